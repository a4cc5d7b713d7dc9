"""What an agent is trained on: a gymnax environment, its horizon and the returns that make a policy an expert."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
from flax import struct
from jaxtyping import Array, Float

Observation = Float[Array, "*batch O"]


def _zero(obs: Observation) -> Float[Array, "*batch"]:
    return jnp.zeros(obs.shape[:-1])


@struct.dataclass
class Task:
    """A gymnax environment and what the study needs to know of it. Environment parameters are leaves, the rest
    is static, so a task can be an argument of a jitted function or be closed over.

    horizon:     steps after which an episode is cut off (truncated, not terminated).
    pi1_target:  mean return at which REINFORCE keeps the good policy.
    pi2_target:  mean return, lower, at which it keeps the less good one.
    return_range: (lowest, highest) return an episode can have: the unit of an annotator's thresholds.
    stochastic:  False promises that `step_env` ignores its key, which saves drawing one per step.
    potential:   obs -> Phi(obs), for the shaped reward gamma * Phi(next_obs) - Phi(obs) of the original study.
    baseline:    obs -> hand-made baseline of the original study, read at the next observation.
    """

    name: str = struct.field(pytree_node=False)
    env: Any = struct.field(pytree_node=False)
    env_params: Any
    horizon: int = struct.field(pytree_node=False)
    obs_size: int = struct.field(pytree_node=False)
    num_actions: int = struct.field(pytree_node=False)
    pi1_target: float
    pi2_target: float
    return_range: tuple[float, float] = (0.0, 1.0)
    stochastic: bool = struct.field(pytree_node=False, default=True)
    potential: Callable[[Observation], Float[Array, "*batch"]] = struct.field(pytree_node=False, default=_zero)
    baseline: Callable[[Observation], Float[Array, "*batch"]] = struct.field(pytree_node=False, default=_zero)


@functools.cache
def _make(env_name: str):
    # One environment object per name: it is a static argument of every compiled function, and a second one would
    # compile them all again. gymnax pulls in plotting libraries, so it is imported when the first task is made.
    import gymnax

    return gymnax.make(env_name)


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

    The targets are the study's 190 and 95 of 200, in the same proportion at other horizons. Raises ValueError for a
    horizon below one step.
    """
    if horizon < 1:
        raise ValueError(f"horizon must be at least 1 step, got {horizon}")
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


def acrobot() -> Task:
    """Acrobot-v1: -1 for every step until the tip swings over the bar, at most 500 steps."""
    env, env_params = _make("Acrobot-v1")
    return Task(
        name="acrobot",
        env=env,
        env_params=env_params,
        horizon=500,
        obs_size=6,
        num_actions=3,
        pi1_target=-150.0,
        pi2_target=-250.0,
        return_range=(-500.0, 0.0),
        stochastic=False,
        potential=acrobot_height,
        baseline=_acrobot_baseline,
    )


TASKS: dict[str, Callable[[], Task]] = {"cartpole": cartpole, "acrobot": acrobot}
"""Every task by its name."""


def task(name: str) -> Task:
    """The task of that name. Raises ValueError, naming the known ones, for any other."""
    if name not in TASKS:
        raise ValueError(f"unknown task {name!r}: choose one of {', '.join(sorted(TASKS))}")
    return TASKS[name]()
