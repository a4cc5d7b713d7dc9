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

# fmt: off
GYMNAX = (
    "Acrobot-v1", "Asterix-MinAtar", "BernoulliBandit-misc", "Breakout-MinAtar", "CartPole-v1", "Catch-bsuite",
    "DeepSea-bsuite", "DiscountingChain-bsuite", "FourRooms-misc", "Freeway-MinAtar", "FrozenLake-misc",
    "GaussianBandit-misc", "MNISTBandit-bsuite", "MemoryChain-bsuite", "MetaMaze-misc", "MountainCar-v0",
    "MountainCarContinuous-v0", "Pendulum-v1", "PointRobot-misc", "Pong-misc", "Reacher-misc", "Seaquest-MinAtar",
    "SimpleBandit-bsuite", "SpaceInvaders-MinAtar", "Swimmer-misc", "UmbrellaChain-bsuite",
)
# fmt: on
"""The ids of gymnax's environments."""


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
        names = {each.lower(): each for each in ("cartpole", "acrobot", *GYMNAX)} | {"cartpole-v0": "cartpole"}
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


def _with_targets(pi1_target: float, pi2_target: float, **fields: Any) -> Callable[..., dict[str, Any]]:
    # Found once, so that all seeds have the same ones. At another horizon they would mean something else.
    targets = {"pi1_target": pi1_target, "pi2_target": pi2_target}
    return lambda horizon=100: {"horizon": horizon} | fields | (targets if horizon == 100 else {})


_MOUNTAIN_CAR: dict[str, Any] = {
    "stochastic": False,
    "observe": mountain_car_observe,
    # A car that never finds the flag learns nothing from the reward, or not to move: experts need the potential.
    "potential": mountain_car_energy,
    "shape_reward": True,
}
KNOWN: dict[str, Callable[..., dict[str, Any]]] = {
    "MountainCar-v0": lambda horizon=200: _MOUNTAIN_CAR | {"horizon": horizon, "return_range": (-float(horizon), 0.0)},
    "MountainCarContinuous-v0": lambda horizon=999: _MOUNTAIN_CAR | {"horizon": horizon},
    **dict.fromkeys(("Pendulum-v1", "Swimmer-misc"), lambda horizon=None: {"horizon": horizon, "stochastic": False}),
    "Reacher-misc": _with_targets(48.0, 30.0, stochastic=False),
    "PointRobot-misc": _with_targets(4.0, 2.5),
    # The ball falls nine rows, whatever the time limit.
    "Catch-bsuite": lambda horizon=9: {"horizon": horizon, "return_range": (-1.0, 1.0)},
    # Datasets hold whole episodes of images: with their own limit of 1000 steps they would need five times the memory.
    **{name: lambda horizon=200: {"horizon": horizon} for name in GYMNAX if name.endswith("-MinAtar")},
}
"""Fields of `Task` that gymnax's environments do not have themselves, as functions of the horizon."""


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
    horizon:  None: the parameters' `max_steps_in_episode`.
    fixed_horizon:  give all episodes this length: they go on after their end, see `Absorbing`.
    fields:   other fields of `Task`, such as pi1_target, return_range, observe, policy_network.
    """
    horizon = getattr(env_params, "max_steps_in_episode", None) if horizon is None else horizon
    if isinstance(env, str):
        known = KNOWN.get(env, dict)
        # The targets that are known are those of the environment's own parameters.
        found = {} if env_params is None else {"pi1_target": None, "pi2_target": None}
        fields = (known() if horizon is None else known(horizon=horizon)) | found | fields
        name, horizon, env = name or env, fields.pop("horizon", None), make(env)
    name = name or str(getattr(env, "name", type(env).__name__))
    env_params = getattr(env, "default_params", None) if env_params is None else env_params
    horizon = getattr(env_params, "max_steps_in_episode", None) if horizon is None else horizon
    space = env.action_space(env_params)
    num_actions, action_range = _actions(name, space)
    check_count(horizon, "horizon")
    observe = fields.get("observe", lambda obs: obs)
    obs = jax.eval_shape(lambda: observe(env.reset_env(jax.random.key(0), env_params)[0]))
    if not isinstance(obs, jax.ShapeDtypeStruct):
        raise ValueError(f"{name} has observations of type {type(obs).__name__}; they must be arrays")
    pi1_target, pi2_target = fields.get("pi1_target"), fields.get("pi2_target")
    if pi1_target is not None and pi2_target is not None and pi1_target <= pi2_target:
        raise ValueError(f"pi1_target must be above pi2_target, got {pi1_target} and {pi2_target}")
    fields |= {"obs_size": math.prod(obs.shape), "obs_shape": obs.shape}
    fields |= {"num_actions": num_actions, "action_range": action_range}
    env = Absorbing(env) if fixed_horizon else env
    return Task(name=name, env=env, env_params=env_params, horizon=horizon, **fields)


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
