"""What an agent is trained on: a gymnax environment, its horizon and the returns that make a policy an expert."""

from __future__ import annotations

import difflib
import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import struct
from jaxtyping import Array, Float

from jaxpref.checks import check_count, check_kind, check_return_range
from jaxpref.types import Scalar

Observation = Float[Array, "*batch O"]


@struct.dataclass
class Task:
    """A gymnax environment and what the study needs to know of it. Environment parameters are leaves, the rest
    is static, so a task can be an argument of a jitted function or be closed over.

    horizon:     steps after which an episode is cut off (truncated, not terminated).
    obs_size:    numbers in an observation, which policies, reward models and trajectories see as one flat axis.
    pi1_target:  mean return at which REINFORCE keeps the good policy; None: `reinforce.train` finds one.
    pi2_target:  mean return, lower, at which it keeps the less good one; None likewise.
    return_range: (lowest, highest) return an episode can have, the unit of an annotator's thresholds; None: unknown.
    stochastic:  False promises that `step_env` ignores its key, which saves drawing one per step.
    potential:   obs -> Phi(obs), for the shaped reward gamma * Phi(next_obs) - Phi(obs) of the original study; None:
        the task has none.
    baseline:    obs -> hand-made baseline of the original study, read at the next observation; None likewise.
    obs_shape:   shape of an observation before it was made flat, as a convolution reads it; None: [obs_size].
    observe:     what the environment shows -> an observation, in scales that a network can learn from; None: as it is.
    policy_network:  flax module, obs[..., O] -> (logits[..., A], value[...]), in place of `networks.ActorCritic`; its
        last, linear layers are named "policy" and "value", as `init_policy` scales the one and PPO resets the other.
    reward_network:  flax module, (obs[..., O], action[...]) -> reward[...], in place of `networks.RewardModel`.
    """

    name: str = struct.field(pytree_node=False)
    env: Any = struct.field(pytree_node=False)
    env_params: Any
    horizon: int = struct.field(pytree_node=False)
    obs_size: int = struct.field(pytree_node=False)
    num_actions: int = struct.field(pytree_node=False)
    pi1_target: Scalar | None
    pi2_target: Scalar | None
    return_range: tuple[float, float] | None = None
    stochastic: bool = struct.field(pytree_node=False, default=True)
    potential: Callable[[Observation], Float[Array, "*batch"]] | None = struct.field(pytree_node=False, default=None)
    baseline: Callable[[Observation], Float[Array, "*batch"]] | None = struct.field(pytree_node=False, default=None)
    obs_shape: tuple[int, ...] | None = struct.field(pytree_node=False, default=None)
    observe: Callable[[Array], Array] | None = struct.field(pytree_node=False, default=None)
    policy_network: Any = struct.field(pytree_node=False, default=None)
    reward_network: Any = struct.field(pytree_node=False, default=None)


def check_task(task: Any) -> None:
    """Raise TypeError for what is no `Task`."""
    check_kind(task, Task, "task")


@functools.cache
def _make(env_name: str):
    # One environment object per name: it is a static argument of every compiled function, and a second one would
    # compile them all again. gymnax pulls in plotting libraries, so it is imported when the first task is made.
    import gymnax

    return gymnax.make(env_name) if env_name in gymnax.registered_envs else None


def unknown(name: str) -> str:
    """What is wrong with the name of a task that does not exist, and which one may be meant."""
    names = {each.lower(): each for each in (*TASKS, *GYMNAX)}
    close = difflib.get_close_matches(name.lower(), names, n=1)
    hint = f"; perhaps {names[close[0]]} is meant" if close else ""
    return f"unknown task {name!r}: it must be {', '.join(sorted(TASKS))} or a gymnax id{hint}"


def _cartpole_baseline(obs: Observation) -> Float[Array, "*batch"]:
    angle, angular_velocity = obs[..., 2], obs[..., 3]
    return 0.8 * (0.2 - angle**2) - 0.8 * angular_velocity**2


def acrobot_height(obs: Observation) -> Float[Array, "*batch"]:
    """Height of the tip over the pivot in units of both links: -(cos t1 + cos(t1 + t2)) / 2, from -1 to 1."""
    cos1, sin1, cos2, sin2 = (obs[..., i] for i in range(4))
    return -(cos1 + cos1 * cos2 - sin1 * sin2) / 2


def _acrobot_baseline(obs: Observation) -> Float[Array, "*batch"]:
    return acrobot_height(obs) - 0.05 * (obs[..., 4] ** 2 + obs[..., 5] ** 2)


def cartpole(horizon: int = 200) -> Task:
    """CartPole: +1 for every step until the pole falls. 200 steps are v0, the study's; 500 are v1.

    The targets are the study's 190 and 95 of 200, in the same proportion at other horizons. Raises TypeError for a
    horizon that is no whole number, ValueError for one below one step.
    """
    check_count(horizon, "horizon")
    env, env_params = _make("CartPole-v1")
    return Task(
        name="cartpole",
        env=env,
        env_params=env_params.replace(max_steps_in_episode=horizon),
        horizon=horizon,
        obs_size=4,
        num_actions=2,
        pi1_target=0.95 * horizon,
        pi2_target=0.475 * horizon,
        return_range=(0.0, float(horizon)),
        stochastic=False,
        baseline=_cartpole_baseline,
    )


def acrobot(horizon: int = 500) -> Task:
    """Acrobot-v1: -1 for every step until the tip swings over the bar, at most 500 steps.

    The targets are the study's. At other horizons they would mean something else, and are left to be found in training.
    Raises TypeError for a horizon that is no whole number, ValueError for one below one step.
    """
    check_count(horizon, "horizon")
    env, env_params = _make("Acrobot-v1")
    return Task(
        name="acrobot",
        env=env,
        env_params=env_params,
        horizon=horizon,
        obs_size=6,
        num_actions=3,
        pi1_target=-150.0 if horizon == 500 else None,
        pi2_target=-250.0 if horizon == 500 else None,
        return_range=(-float(horizon), 0.0),
        stochastic=False,
        potential=acrobot_height,
        baseline=_acrobot_baseline,
    )


def from_gymnax(
    env: Any,
    env_params: Any = None,
    *,
    name: str | None = None,
    horizon: int | None = None,
    pi1_target: float | None = None,
    pi2_target: float | None = None,
    return_range: tuple[float, float] | None = None,
    potential: Callable[[Observation], Float[Array, "*batch"]] | None = None,
    observe: Callable[[Array], Array] | None = None,
    policy_network: Any = None,
    reward_network: Any = None,
) -> Task:
    """A task on any environment of gymnax's interface with a discrete action space.

    `env` is a gymnax id or an environment object of one's own, which need not be registered: it has `reset_env`,
    `step_env`, `action_space` and, unless `env_params` are given, `default_params`. By default `horizon` is the
    parameters' `max_steps_in_episode` and `name` the environment's; the others are fields of `Task`. `step_env` must
    report the end of an episode by the game's own rules only: `horizon` is the time limit.

    One step is traced, and nothing is played. Raises TypeError for an environment of another interface; ValueError for
    an unknown id, an action space that is not discrete, observations that are not one array, steps that show or
    remember something else than a reset does, numbers that are out of range, and where there is no time limit to be
    found.
    """
    if isinstance(env, str):
        name = name or env
        try:
            made = _make(env)
        except OSError as error:  # MNISTBandit-bsuite downloads its images
            raise ValueError(f"gymnax cannot make {env}: {error}") from error
        if made is None:
            raise ValueError(unknown(env))
        env, default_params = made
    else:
        name = name or str(getattr(env, "name", type(env).__name__))
        default_params = getattr(env, "default_params", None)
    env_params = default_params if env_params is None else env_params
    for method in ("reset_env", "step_env", "action_space"):
        if not callable(getattr(env, method, None)):
            raise TypeError(f"env must have gymnax's method {method}, which {name} has not")
    if pi1_target is not None and pi2_target is not None and pi1_target < pi2_target:
        raise ValueError(f"pi1_target must not be below pi2_target, got {pi1_target} and {pi2_target}")
    if return_range is not None:
        check_return_range(return_range)

    space = env.action_space(env_params)
    if not hasattr(space, "n"):
        raise ValueError(f"{name} has an action space of type {type(space).__name__}; it must be discrete")
    if horizon is None:
        limit = getattr(env_params, "max_steps_in_episode", None)
        if limit is None or limit < 1:
            raise ValueError(f"{name} needs a horizon of at least 1 step, its time limit; got {limit}")
        horizon = int(limit)
    check_count(horizon, "horizon")
    shown, state = jax.eval_shape(
        lambda: tuple(_values(env.reset_env(jax.random.key(0), env_params), f"{name}.reset_env", ("obs", "state")))
    )
    obs = shown if observe is None else jax.eval_shape(observe, shown)
    if not isinstance(obs, jax.ShapeDtypeStruct):
        raise ValueError(f"{name} has observations of type {type(obs).__name__}; they must be arrays")
    _check_step(env, env_params, name, shown, state)
    return Task(
        name=name,
        env=env,
        env_params=env_params,
        horizon=int(horizon),
        obs_size=math.prod(obs.shape),
        obs_shape=obs.shape,
        num_actions=int(space.n),
        pi1_target=pi1_target,
        pi2_target=pi2_target,
        return_range=return_range,
        potential=potential,
        observe=observe,
        policy_network=policy_network,
        reward_network=reward_network,
    )


def _check_step(env: Any, env_params: Any, name: str, obs: Any, state: Any) -> None:
    """Raise ValueError unless a step shows and remembers what a reset does, `obs` and `state` by their shapes."""

    def step(state):
        returned = env.step_env(jax.random.key(0), state, jnp.int32(0), env_params)
        return _values(returned, f"{name}.step_env", ("obs", "state", "reward", "terminated", "info"))[:2]

    next_obs, next_state = jax.eval_shape(step, state)
    for part, first, following in (("obs", obs, next_obs), ("state", state, next_state)):
        structure: Any = jax.tree.structure(first)
        if structure != jax.tree.structure(following):
            raise ValueError(f"{name}.step_env must return {part} of the same structure as reset_env does")
        for (path, one), other in zip(jax.tree.leaves_with_path(first), jax.tree.leaves(following), strict=True):
            # Every observation becomes float32, so only its shape counts.
            if one.shape != other.shape or not (part == "obs" or _carries(one, other)):
                raise ValueError(
                    f"{name}.step_env must return {part}{jax.tree_util.keystr(path)} as reset_env does, "
                    f"{one.dtype}{list(one.shape)}, got {other.dtype}{list(other.shape)}"
                )


def _carries(one: jax.ShapeDtypeStruct, other: jax.ShapeDtypeStruct) -> bool:
    """Whether a loop whose state began as `one` goes on from `other`."""
    if one.dtype == other.dtype or one.weak_type:
        return True
    if any(jnp.issubdtype(each.dtype, jax.dtypes.extended) for each in (one, other)):  # a key is nothing else
        return False
    return jnp.promote_types(one.dtype, other.dtype) == one.dtype


def _values(returned: Any, method: str, names: tuple[str, ...]) -> Any:
    """What a method returned, if it is as many values as there are names."""
    if not (isinstance(returned, tuple | list) and len(returned) == len(names)):
        got = f"{len(returned)} values" if isinstance(returned, tuple | list) else f"a {type(returned).__name__}"
        raise ValueError(f"{method} must return {len(names)} values, {', '.join(names)}, got {got}")
    return returned


def mountain_car_observe(obs: Observation) -> Observation:
    """(position from the valley's bottom, 15 * velocity), both about 1 in size; the environment's velocity is at most
    0.07, too small for a network to tell forwards from backwards.
    """
    return jnp.stack([obs[..., 0] + 0.5, 15 * obs[..., 1]], axis=-1)


def mountain_car_energy(obs: Observation) -> Float[Array, "*batch"]:
    """Energy of the car at what `mountain_car_observe` returns, -50 at rest at the bottom and 50 at the flag's height.

    The engine is weaker than gravity, 0.001 against 0.0025 cos(3 x), so what leads to the flag is energy:
    50 * (sin(3 x) + (v^2 / 2) / (0.0025 / 3)). The factor makes a swing count as much as some steps saved.
    """
    position, velocity = obs[..., 0] - 0.5, obs[..., 1] / 15
    return 50 * (jnp.sin(3 * position) + 600 * velocity**2)


GYMNAX = (
    "Acrobot-v1",
    "Asterix-MinAtar",
    "BernoulliBandit-misc",
    "Breakout-MinAtar",
    "CartPole-v1",
    "Catch-bsuite",
    "DeepSea-bsuite",
    "DiscountingChain-bsuite",
    "FourRooms-misc",
    "Freeway-MinAtar",
    "FrozenLake-misc",
    "GaussianBandit-misc",
    "MNISTBandit-bsuite",
    "MemoryChain-bsuite",
    "MetaMaze-misc",
    "MountainCar-v0",
    "Pong-misc",
    "Seaquest-MinAtar",
    "SimpleBandit-bsuite",
    "SpaceInvaders-MinAtar",
    "UmbrellaChain-bsuite",
)
"""The ids of gymnax's own environments with discrete actions, so that a wrong one is told without loading gymnax."""


def _mountain_car(horizon: int = 200) -> dict[str, Any]:
    return {
        "horizon": horizon,
        "return_range": (-float(horizon), 0.0),
        "observe": mountain_car_observe,
        "potential": mountain_car_energy,
    }


def _catch(horizon: int = 9) -> dict[str, Any]:
    # The ball falls nine rows, whatever the time limit.
    return {"horizon": horizon, "return_range": (-1.0, 1.0)}


KNOWN: dict[str, Callable[..., dict[str, Any]]] = {"MountainCar-v0": _mountain_car, "Catch-bsuite": _catch}
"""What `task` knows of some of gymnax's environments that they do not say themselves: arguments of `from_gymnax`."""


class _NoEnvironment:
    """In gymnax's interface, where there is nothing to play."""

    def _refuse(self, *_):
        raise ValueError("a task without an environment cannot be played: train with eval_episodes=0")

    reset_env = step_env = _refuse


_NO_ENVIRONMENT = _NoEnvironment()


def offline(obs_size: int, num_actions: int, horizon: int) -> Task:
    """The sizes of recorded episodes whose environment is not at hand: enough to train on preferences from a file.

    To play it, as evaluations do, raises ValueError. Raises TypeError or ValueError for sizes that are no whole
    numbers, or below 1.
    """
    check_count(obs_size, "obs_size")
    check_count(num_actions, "num_actions")
    check_count(horizon, "horizon")
    return Task(
        name="offline",
        env=_NO_ENVIRONMENT,
        env_params=None,
        horizon=horizon,
        obs_size=obs_size,
        num_actions=num_actions,
        pi1_target=math.inf,
        pi2_target=math.inf,
    )


TASKS: dict[str, Callable[..., Task]] = {"cartpole": cartpole, "acrobot": acrobot}
"""The study's own tasks by their names; each takes its horizon."""


def task(name: str, horizon: int | None = None) -> Task:
    """The task of that name: one of TASKS, or a gymnax id with discrete actions, as "Catch-bsuite"; `horizon`: its time
    limit, None for its own.

    Raises TypeError for what is no name, ValueError for any other name, for a horizon below one step and for what
    `from_gymnax` refuses.
    """
    if not isinstance(name, str):
        raise TypeError(f"name must be a word, as 'cartpole', got {name!r}")
    given = {} if horizon is None else {"horizon": horizon}
    if name in TASKS:
        return TASKS[name](**given)
    known = KNOWN.get(name, dict)
    return from_gymnax(name, **known(**given))
