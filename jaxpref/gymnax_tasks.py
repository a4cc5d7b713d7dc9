"""Tasks on gymnax's environments, and on custom ones of gymnax's interface."""

from __future__ import annotations

import difflib
import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax.core import freeze
from jaxtyping import Array, Float

from jaxpref.checks import check_count, check_return_range
from jaxpref.types import Observation, Task

# fmt: off
GYMNAX = (
    "Acrobot-v1", "Asterix-MinAtar", "BernoulliBandit-misc", "Breakout-MinAtar", "CartPole-v1", "Catch-bsuite",
    "DeepSea-bsuite", "DiscountingChain-bsuite", "FourRooms-misc", "Freeway-MinAtar", "FrozenLake-misc",
    "GaussianBandit-misc", "MNISTBandit-bsuite", "MemoryChain-bsuite", "MetaMaze-misc", "MountainCar-v0", "Pong-misc",
    "Seaquest-MinAtar", "SimpleBandit-bsuite", "SpaceInvaders-MinAtar", "UmbrellaChain-bsuite",
)
# fmt: on
"""The ids of gymnax's environments with discrete actions."""

CONTINUOUS = ("MountainCarContinuous-v0", "Pendulum-v1", "PointRobot-misc", "Reacher-misc", "Swimmer-misc")
"""The ids of its others."""


def unknown(name: str) -> str:
    """Say why there is no task of that name, and which one may be meant."""
    if name in CONTINUOUS:
        return f"{name} has continuous actions, which jaxpref does not play"
    names = {each.lower(): each for each in ("cartpole", "acrobot", *GYMNAX)} | {"cartpole-v0": "cartpole"}
    close = difflib.get_close_matches(name.lower(), names, n=1)
    hint = f"; perhaps {names[close[0]]} is meant" if close else ""
    return f"unknown task {name!r}: it must be acrobot, cartpole or a gymnax id{hint}"


@functools.cache
def make(name: str) -> tuple[Any, Any]:
    """Return gymnax's (environment, parameters).

    There is one environment object for each name: it is a static argument of every compiled function, and a second one
    would compile them again. gymnax loads plotting libraries, so it is imported when the first task is made.
    """
    import gymnax

    if name not in gymnax.registered_envs:
        raise ValueError(unknown(name))
    try:
        return gymnax.make(name)
    except OSError as error:  # MNISTBandit-bsuite downloads its images
        raise ValueError(f"gymnax cannot make {name}: {error}") from error


def mountain_car_observe(obs: Observation) -> Observation:
    """Return (position from the bottom of the valley, 15 * velocity), both about 1 in size.

    The environment's velocity is at most 0.07, too small for a network to distinguish its sign.
    """
    return jnp.stack([obs[..., 0] + 0.5, 15 * obs[..., 1]], axis=-1)


def mountain_car_energy(obs: Observation) -> Float[Array, "*batch"]:
    """Return the car's energy at an observation of `mountain_car_observe`.

    It is -50 at rest at the bottom and 50 at the flag's height. The engine is weaker than gravity, 0.001 against
    0.0025 cos(3 x), so the car needs energy to reach the flag: 50 * (sin(3 x) + (v^2 / 2) / (0.0025 / 3)). The factor
    50 makes a swing count as much as some saved steps.
    """
    position, velocity = obs[..., 0] - 0.5, obs[..., 1] / 15
    return 50 * (jnp.sin(3 * position) + 600 * velocity**2)


def _mountain_car(horizon: int = 200) -> dict[str, Any]:
    # A random policy's episodes all return the same: REINFORCE needs the potential. DPO is held to the reference more
    # tightly: at beta 0.1 it drifts to policies that never reach the flag.
    return {
        "horizon": horizon,
        "return_range": (-float(horizon), 0.0),
        "observe": mountain_car_observe,
        "potential": mountain_car_energy,
        "shape_reward": True,
        "configs": {"dpo": {"beta": 0.5}},
    }


def _catch(horizon: int = 9) -> dict[str, Any]:
    # The ball falls nine rows, whatever the time limit. Half of the pairs are ties that say nothing, so DPO and PPO are
    # held more tightly. All episodes last equally long, so only the reward model's kernels can rank them, and a decay
    # of 10 keeps these too small.
    configs = {"dpo": {"beta": 0.5}, "reward_model": {"weight_decay": 1.0}, "ppo": {"kl_coef": 0.5}}
    return {"horizon": horizon, "return_range": (-1.0, 1.0), "configs": configs}


def _minatar(horizon: int = 200) -> dict[str, Any]:
    # Images need more episodes and smaller steps. Datasets hold whole episodes of images: with their own limit of 1000
    # steps they would need five times the memory.
    experts = {"num_updates": 1500, "episodes_per_update": 16, "learning_rate": 3e-3}
    return {"horizon": horizon, "configs": {"reinforce": experts}}


KNOWN: dict[str, Callable[..., dict[str, Any]]] = {
    "MountainCar-v0": _mountain_car,
    "Catch-bsuite": _catch,
    **{name: _minatar for name in GYMNAX if name.endswith("-MinAtar")},
}
"""Fields of `Task` that gymnax's environments do not have themselves, as functions of the horizon."""


def from_gymnax(
    env: Any, env_params: Any = None, *, name: str | None = None, horizon: int | None = None, **fields: Any
) -> Task:
    """Make a task on an environment of gymnax's interface with discrete actions.

    env:      a gymnax id, or an environment object, which need not be registered. It has `reset_env`, `step_env`,
        `action_space` and, unless `env_params` are given, `default_params`. `step_env` reports the end of an episode by
        the game's own rules only: `horizon` is the time limit.
    name:     None: the environment's.
    horizon:  None: the parameters' `max_steps_in_episode`.
    fields:   other fields of `Task`, such as pi1_target, pi2_target, return_range, observe, potential, policy_network,
        reward_network, configs.

    One step is traced to check the interface, and nothing is played.
    """
    given = {field: value for field, value in fields.items() if value is not None}
    default_params = getattr(env, "default_params", None)
    if isinstance(env, str):
        name = name or env
        if horizon is None and env_params is not None:
            horizon = _horizon(env_params, name)
        known = KNOWN.get(env, dict)(**({} if horizon is None else {"horizon": horizon}))
        horizon, given = known.pop("horizon", None), {**known, **given}
        env, default_params = make(env)
    name = name or str(getattr(env, "name", type(env).__name__))
    env_params = default_params if env_params is None else env_params
    num_actions = _num_actions(env, env_params, name)
    obs_shape = _obs_shape(env, env_params, name, given.get("observe"))
    horizon = _horizon(env_params, name) if horizon is None else horizon
    check_count(horizon, "horizon")
    pi1_target, pi2_target = given.pop("pi1_target", None), given.pop("pi2_target", None)
    if pi1_target is not None and pi2_target is not None and pi1_target <= pi2_target:
        raise ValueError(f"pi1_target must be above pi2_target, got {pi1_target} and {pi2_target}")
    if "return_range" in given:
        check_return_range(given["return_range"])
    return Task(
        name=name,
        env=env,
        env_params=env_params,
        horizon=horizon,
        obs_size=math.prod(obs_shape),
        obs_shape=obs_shape,
        num_actions=num_actions,
        pi1_target=pi1_target,
        pi2_target=pi2_target,
        configs=freeze(given.pop("configs", {})),
        **given,
    )


def _horizon(env_params: Any, name: str) -> int:
    limit = getattr(env_params, "max_steps_in_episode", None)
    if limit is None or limit < 1:
        raise ValueError(f"{name} needs a horizon of at least 1 step, its time limit; got {limit}")
    return int(limit)


def _num_actions(env: Any, env_params: Any, name: str) -> int:
    for method in ("reset_env", "step_env", "action_space"):
        if not callable(getattr(env, method, None)):
            raise TypeError(f"env must have gymnax's method {method}, and {name} does not have it")
    space = env.action_space(env_params)
    if not hasattr(space, "n"):
        raise ValueError(f"{name} has continuous actions ({type(space).__name__}), which jaxpref does not play")
    return int(space.n)


def _obs_shape(env: Any, env_params: Any, name: str, observe: Callable[[Array], Array] | None) -> tuple[int, ...]:
    """Return the shape of an observation, after a check that a step's values fit those of a reset."""

    def reset() -> Any:
        return _values(env.reset_env(jax.random.key(0), env_params), f"{name}.reset_env", ("obs", "state"))

    def step(state: Any) -> Any:
        values = env.step_env(jax.random.key(0), state, jnp.int32(0), env_params)
        return _values(values, f"{name}.step_env", ("obs", "state", "reward", "terminated", "info"))[:2]

    shown, state = jax.eval_shape(reset)
    obs = shown if observe is None else jax.eval_shape(observe, shown)
    if not isinstance(obs, jax.ShapeDtypeStruct):
        raise ValueError(f"{name} has observations of type {type(obs).__name__}; they must be arrays")
    for part, first, second in zip(("obs", "state"), (shown, state), jax.eval_shape(step, state), strict=True):
        structure: Any = jax.tree.structure(first)
        if structure != jax.tree.structure(second):
            raise ValueError(f"{name}.step_env must return {part} of the same structure as reset_env does")
        for (path, one), other in zip(jax.tree.leaves_with_path(first), jax.tree.leaves(second), strict=True):
            # Every observation becomes float32, so only its shape counts.
            if one.shape != other.shape or (part == "state" and not _carries(one, other)):
                raise ValueError(
                    f"{name}.step_env must return {part}{jax.tree_util.keystr(path)} as reset_env does, "
                    f"{one.dtype}{list(one.shape)}, got {other.dtype}{list(other.shape)}"
                )
    return obs.shape


def _carries(one: jax.ShapeDtypeStruct, other: jax.ShapeDtypeStruct) -> bool:
    """Return whether a loop that starts with `one` can go on with `other`."""
    if one.dtype == other.dtype or one.weak_type:
        return True
    if any(jnp.issubdtype(each.dtype, jax.dtypes.extended) for each in (one, other)):  # a key fits a key only
        return False
    return jnp.promote_types(one.dtype, other.dtype) == one.dtype


def _values(returned: Any, method: str, names: tuple[str, ...]) -> tuple[Any, ...]:
    if not isinstance(returned, tuple) or len(returned) != len(names):
        got = len(returned) if isinstance(returned, tuple) else f"a {type(returned).__name__}"
        raise ValueError(f"{method} must return {len(names)} values, {', '.join(names)}, got {got}")
    return returned
