"""Tasks on gymnax's environments, and on custom ones of gymnax's interface."""

import dataclasses
import difflib
import functools
import importlib
import math
import sys
import types
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Key

from jaxpref.checks import check_count
from jaxpref.types import ActionRange, Observation, Task, select


class _ImportedLater(types.ModuleType):
    """A module that is imported when it is first used."""

    def __getattr__(self, name: str) -> Any:
        if sys.modules.get(self.__name__) is self:
            del sys.modules[self.__name__]
        return getattr(importlib.import_module(self.__name__), name)


@functools.cache
def _gymnax() -> Any:
    """Import gymnax, without the plotting libraries that take most of the time and that only its drawings use."""
    later = {name: _ImportedLater(name) for name in ("matplotlib.pyplot", "seaborn") if name not in sys.modules}
    sys.modules.update(later)
    try:
        import gymnax

        return gymnax
    finally:
        for name, module in later.items():
            if sys.modules[name] is module:
                del sys.modules[name]


@functools.cache
def make(name: str) -> Any:
    """Return gymnax's environment of that name.

    There is one environment object for each name: it is a static argument of every compiled function, and a second one
    would compile them again. gymnax is imported when the first task is made.
    """
    gymnax = _gymnax()
    if name not in gymnax.registered_envs:
        names = {each.lower(): each for each in ("cartpole", "acrobot", *gymnax.registered_envs)}
        names["cartpole-v0"] = "cartpole"
        close = difflib.get_close_matches(name.lower(), names, n=1)
        hint = f"; perhaps {names[close[0]]} is meant" if close else ""
        raise ValueError(f"unknown task {name!r}: it must be acrobot, cartpole or a gymnax id{hint}")
    if name in ("Acrobot-v1", "MountainCarContinuous-v0"):
        from jaxpref.fast import physics

        return physics.Acrobot() if name == "Acrobot-v1" else physics.ContinuousMountainCar()
    return gymnax.make(name)[0]


def mountain_car_observe(obs: Observation) -> Observation:
    """Return (position from the bottom of the valley, 15 * velocity), both about 1 in size.

    The environment's velocity is at most 0.07, too small for a network to distinguish its sign.
    """
    return jnp.stack([obs[..., 0] + 0.5, 15 * obs[..., 1]], axis=-1)


def mountain_car_energy(obs: Observation) -> Float[Array, "*batch"]:
    """Return the car's energy at an observation of `mountain_car_observe`.

    The engine is weaker than gravity, 0.001 against 0.0025 cos(3 x), so the car needs energy to reach the flag. It is
    50 * (sin(3 x) + (v^2 / 2) / (0.0025 / 3)): -50 at rest at the bottom and 50 at the flag's height, so that a better
    swing is worth as much as several steps.
    """
    position, velocity = obs[..., 0] - 0.5, obs[..., 1] / 15
    return 50 * (jnp.sin(3 * position) + 600 * velocity**2)


_MOUNTAIN_CAR: dict[str, Any] = {
    "stochastic": False,
    "observe": mountain_car_observe,
    # A car that never finds the flag learns nothing from the reward, or not to move: experts need the potential.
    "potential": mountain_car_energy,
    "shape_reward": True,
}
MINATAR = ("Asterix-MinAtar", "Breakout-MinAtar", "Freeway-MinAtar", "Seaquest-MinAtar", "SpaceInvaders-MinAtar")
KNOWN: dict[str, dict[str, Any]] = {
    "MountainCar-v0": _MOUNTAIN_CAR,
    "MountainCarContinuous-v0": _MOUNTAIN_CAR,
    "Pendulum-v1": {"stochastic": False},
    "Swimmer-misc": {"stochastic": False},
    # Targets are found once, so that all seeds have the same ones.
    "Reacher-misc": {"pi1_target": 48.0, "pi2_target": 30.0, "stochastic": False},
    "PointRobot-misc": {"pi1_target": 4.0, "pi2_target": 2.5},
    # The ball falls nine rows, whatever the time limit.
    "Catch-bsuite": {"horizon": 9, "return_range": (-1.0, 1.0)},
    # Datasets hold whole episodes of images: with their own limit of 1000 steps they would need five times the memory.
    **{game: {"horizon": 200} for game in MINATAR},
}
"""Fields of `Task` that gymnax's environments do not have themselves. MountainCar's range of returns follows from its
horizon: see `from_gymnax`."""


@dataclasses.dataclass(frozen=True)
class Absorbing:
    """An environment whose episodes go on after their end, in the last state, with reward 0. So none terminates."""

    env: Any

    def reset_env(self, key: Key[Array, ""], params: Any) -> tuple[Array, Any]:
        """Draw an initial state. A state is (the environment's, its observation, whether the episode has ended)."""
        obs, state = self.env.reset_env(key, params)
        return obs, (state, obs, jnp.bool_(False))

    def step_env(self, key: Key[Array, ""], state: Any, action: Array, params: Any) -> tuple:
        """Take a step; none after the end."""
        before, obs_before, ended = state
        obs, after, reward, terminated, info = self.env.step_env(key, before, action, params)
        obs, after = select(ended, (obs_before, before), (obs, after))
        return obs, (after, obs, ended | terminated), jnp.where(ended, 0.0, reward), jnp.bool_(False), info


def from_gymnax(
    env: Any,
    env_params: Any = None,
    *,
    name: str | None = None,
    horizon: Any = None,
    fixed_horizon: bool = False,
    **fields: Any,
) -> Task:
    """Make a task on an environment of gymnax's interface, with discrete actions or a bounded vector of numbers.

    env:      a gymnax id, or an environment object, which need not be registered. It has `reset_env`, `step_env`,
        `action_space` and, unless `env_params` are given, `default_params`. `step_env` reports the end of an episode by
        the game's own rules only: `horizon` is the time limit.
    name:     None: the environment's.
    horizon:  None: `max_steps_in_episode` of `env_params`. Without them: that of `KNOWN`, or of the default parameters.
    fixed_horizon:  give all episodes this length: they go on after their end, see `Absorbing`.
    fields:   other fields of `Task`, such as pi1_target, return_range, observe, policy_network.
    """
    gymnax_id: Any = env if isinstance(env, str) else None
    known = dict(KNOWN.get(gymnax_id, {}))
    env = env if gymnax_id is None else make(gymnax_id)
    name = name or gymnax_id or str(getattr(env, "name", type(env).__name__))
    own_params = getattr(env, "default_params", None)
    own_horizon = known.pop("horizon", getattr(own_params, "max_steps_in_episode", None))
    if horizon is None:
        horizon = own_horizon if env_params is None else getattr(env_params, "max_steps_in_episode", None)
    check_count(horizon, "horizon")
    if env_params is not None or horizon != own_horizon:  # there, the known targets mean something else
        known |= {"pi1_target": None, "pi2_target": None}
    if gymnax_id == "MountainCar-v0":
        known["return_range"] = (-float(horizon), 0.0)
    fields = known | fields
    env_params = own_params if env_params is None else env_params
    num_actions, action_range = _actions(name, env.action_space(env_params))
    obs_shape = _obs_shape(name, env, env_params, fields.get("observe", lambda obs: obs))
    pi1_target, pi2_target = fields.get("pi1_target"), fields.get("pi2_target")
    if pi1_target is not None and pi2_target is not None and pi1_target <= pi2_target:
        raise ValueError(f"pi1_target must be above pi2_target, got {pi1_target} and {pi2_target}")
    fields |= {"obs_size": math.prod(obs_shape), "obs_shape": obs_shape}
    fields |= {"num_actions": num_actions, "action_range": action_range}
    env = Absorbing(env) if fixed_horizon else env
    return Task(name=name, env=env, env_params=env_params, horizon=horizon, **fields)


def _obs_shape(name: str, env: Any, env_params: Any, observe: Callable[[Array], Array]) -> tuple[int, ...]:
    obs = jax.eval_shape(lambda: observe(env.reset_env(jax.random.key(0), env_params)[0]))
    if not isinstance(obs, jax.ShapeDtypeStruct):
        raise ValueError(f"{name} has observations of type {type(obs).__name__}; they must be arrays")
    return obs.shape


def _actions(name: str, space: Any) -> tuple[int, ActionRange | None]:
    """Return the fields `num_actions` and `action_range` of a task with this action space."""
    if hasattr(space, "n"):
        return int(space.n), None
    shape = getattr(space, "shape", None)
    if shape is None or len(shape) != 1:
        raise ValueError(
            f"{name} has actions of {type(space).__name__} {shape or ''}; they must be Discrete or a vector"
        )
    low, high = (np.broadcast_to(np.float32(bound), shape).tolist() for bound in (space.low, space.high))
    if not np.isfinite([low, high]).all():
        raise ValueError(f"{name} has actions from {low} to {high}; the range must be finite")
    return shape[0], tuple(zip(low, high, strict=True))
