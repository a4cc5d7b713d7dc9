"""The study's tasks, and tasks by their names."""

import functools
import math
from collections.abc import Callable

from jaxtyping import Array, Float

from jaxpref.checks import check_count, check_kind
from jaxpref.gymnax_tasks import from_gymnax
from jaxpref.types import ActionRange, Observation, Task


def _cartpole_baseline(obs: Observation) -> Float[Array, "*batch"]:
    angle, angular_velocity = obs[..., 2], obs[..., 3]
    return 0.8 * (0.2 - angle**2) - 0.8 * angular_velocity**2


def acrobot_height(obs: Observation) -> Float[Array, "*batch"]:
    """Return the tip's height above the pivot in units of both links: -(cos t1 + cos(t1 + t2)) / 2, from -1 to 1."""
    cos1, sin1, cos2, sin2 = (obs[..., i] for i in range(4))
    return -(cos1 + cos1 * cos2 - sin1 * sin2) / 2


def _acrobot_baseline(obs: Observation) -> Float[Array, "*batch"]:
    return acrobot_height(obs) - 0.05 * (obs[..., 4] ** 2 + obs[..., 5] ** 2)


def cartpole(horizon: int = 200, fixed_horizon: bool = False) -> Task:
    """Make CartPole: +1 for every step until the pole falls. 200 steps are v0, the study's; 500 are v1.

    The targets are the study's 190 and 95 of 200, in the same proportion at other horizons. With `fixed_horizon` an
    episode goes on after its end, with reward 0 (`gymnax_tasks.Absorbing`), so that its length says nothing.
    """
    return from_gymnax(
        "CartPole-v1",
        name="cartpole",
        horizon=horizon,
        fixed_horizon=fixed_horizon,
        pi1_target=0.95 * horizon,
        pi2_target=0.475 * horizon,
        return_range=(0.0, float(horizon)),
        stochastic=False,
        baseline=_cartpole_baseline,
    )


def acrobot(horizon: int = 500, fixed_horizon: bool = False) -> Task:
    """Make Acrobot-v1: -1 for every step until the tip swings over the bar, at most 500 steps.

    The targets are the study's. At other horizons they would mean something else: the experts' training finds others.
    `fixed_horizon` is that of `cartpole`.
    """
    return from_gymnax(
        "Acrobot-v1",
        name="acrobot",
        horizon=horizon,
        fixed_horizon=fixed_horizon,
        pi1_target=-150.0 if horizon == 500 else None,
        pi2_target=-250.0 if horizon == 500 else None,
        return_range=(-float(horizon), 0.0),
        stochastic=False,
        potential=acrobot_height,
        baseline=_acrobot_baseline,
    )


class _NoEnvironment:
    @staticmethod
    def reset_env(*_):
        raise ValueError("a task without an environment cannot be played: train with eval_episodes=0")


def offline(obs_size: int, num_actions: int, horizon: int, action_range: ActionRange | None = None) -> Task:
    """Make a task of recorded episodes, enough to train on preferences from a file. Playing it raises ValueError.

    action_range: (lowest, highest) of each of `num_actions` numbers of a continuous action; None: they are discrete.
    """
    for name, size in {"obs_size": obs_size, "num_actions": num_actions, "horizon": horizon}.items():
        check_count(size, name)
    if action_range is not None and len(action_range) != num_actions:
        raise ValueError(f"action_range must have {num_actions} pairs, as many as num_actions, got {len(action_range)}")
    sizes = horizon, obs_size, num_actions
    return Task("offline", _NoEnvironment, None, *sizes, math.inf, math.inf, action_range=action_range)


TASKS: dict[str, Callable[..., Task]] = {"cartpole": cartpole, "acrobot": acrobot}
"""The study's own tasks. Each takes its horizon."""


def task(name: str, horizon: int | None = None, fixed_horizon: bool = False) -> Task:
    """Make the task of that name: one of TASKS, or a gymnax id such as "Catch-bsuite".

    horizon: its time limit; None: its own.
    fixed_horizon: give all episodes this length, see `cartpole`.
    """
    check_kind(name, str, "name")
    options = {} if horizon is None else {"horizon": horizon}
    make_task = TASKS.get(name, functools.partial(from_gymnax, name))
    return make_task(fixed_horizon=fixed_horizon, **options)
