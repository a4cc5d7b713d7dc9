"""Experts: pi1 (good) and pi2 (less good), snapshots of one training run on the true reward.

A trainer defines one update. This module decides when the snapshots are taken, and when training ends.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import struct
from jaxtyping import Array, Bool, Float, Int

from jaxpref.divergence import Divergence, find_divergence, param_size
from jaxpref.fast.loops import any_lane
from jaxpref.networks import Network
from jaxpref.tasks import Task
from jaxpref.types import Scalar, Trajectory, select


@struct.dataclass
class Metrics:
    """One entry per update; NaN after training ended.

    loss:        of the update.
    score:       of the update, which is compared with the targets. The trainer says which episodes it is a mean of.
    param_size:  largest magnitude of a parameter before the update.
    """

    loss: Float[Array, "*batch U"]
    score: Float[Array, "*batch U"]
    param_size: Float[Array, "*batch U"]


@struct.dataclass
class Result:
    """The snapshots: the policies right after the first update whose score reaches a target.

    pi1, pi2:        the policies. Where a target was not reached, the policy is the last one.
    pi1_target, pi2_target:    the task's targets, or those that were found.
    pi1_reached, pi2_reached:  whether the score reached them.
    num_updates:     number of updates made.
    """

    pi1: Network
    pi2: Network
    pi1_target: Float[Array, "*batch"]
    pi2_target: Float[Array, "*batch"]
    pi1_reached: Bool[Array, "*batch"]
    pi2_reached: Bool[Array, "*batch"]
    num_updates: Int[Array, "*batch"]
    metrics: Metrics
    divergence: Divergence


Update = Callable[[Any, Int[Array, ""]], tuple[Any, Float[Array, ""], Float[Array, ""]]]
"""(a trainer's state, number of the update) -> (next state, loss, score). A state has the policy as `params`."""


def shaped_reward(task: Task, gamma: Scalar, steps: Trajectory | Any) -> Float[Array, "*batch"]:
    """Return reward + gamma * potential(next_obs) - potential(obs) of played steps (Ng et al., 1999)."""
    potential = function_of(task, "potential")
    return steps.reward + gamma * potential(steps.next_obs) - potential(steps.obs)


def function_of(task: Task, name: str) -> Callable[[Float[Array, "*batch O"]], Float[Array, "*batch"]]:
    """Return the task's potential or baseline."""
    function = getattr(task, name)
    if function is None:
        raise ValueError(f"the experts' config uses the task's {name}, and task {task.name} has none")
    return function


def train_to_targets(task: Task, num_updates: int, start: Any, update: Update, first_window: int) -> Result:
    """Make updates from the state `start` until both snapshots are taken, or until `num_updates` are made.

    Where the task lacks a target, a first run of all updates finds it (`targets_of_curve`). A second run repeats the
    same updates and takes the snapshots.
    """
    if task.pi1_target is not None and task.pi2_target is not None:
        return _run(task.pi1_target, task.pi2_target, num_updates, start, update)

    def run_with(found, _):
        pi1_target = found[0] if task.pi1_target is None else task.pi1_target
        pi2_target = found[1] if task.pi2_target is None else task.pi2_target
        result = _run(pi1_target, pi2_target, num_updates, start, update)
        return targets_of_curve(result.metrics.score, first_window), result

    # A scan makes one program of both runs. Two programs could round differently, and then the scores would differ.
    _, results = jax.lax.scan(run_with, (jnp.float32(jnp.inf), jnp.float32(jnp.inf)), length=2)
    return jax.tree.map(lambda leaf: leaf[1], results)


def targets_of_curve(score: Float[Array, " U"], first_window: int) -> tuple[Float[Array, ""], Float[Array, ""]]:
    """Find (pi1_target, pi2_target) on a curve of scores: 90 % and 50 % of the way from the start to the best score.

    The start is the best of the first `first_window` scores, which may be means of few episodes. The targets are
    infinite where training never got past the start.
    """
    first, best = jnp.nanmax(score[:first_window]), jnp.nanmax(score)
    pi1_target, pi2_target = (jnp.where(best > first, first + share * (best - first), jnp.inf) for share in (0.9, 0.5))
    return pi1_target, pi2_target


def _run(pi1_target: Scalar, pi2_target: Scalar, num_updates: int, start: Any, update: Update) -> Result:
    nothing = jnp.full(num_updates, jnp.nan)
    result = Result(
        pi1=start.params,
        pi2=start.params,
        pi1_target=jnp.float32(pi1_target),
        pi2_target=jnp.float32(pi2_target),
        pi1_reached=jnp.bool_(False),
        pi2_reached=jnp.bool_(False),
        num_updates=jnp.int32(0),
        metrics=Metrics(nothing, nothing, nothing),
        divergence=Divergence(jnp.int32(0), jnp.int32(0)),
    )

    def training(result: Result) -> Bool[Array, ""]:
        return ~(result.pi1_reached & result.pi2_reached)

    def guarded_update(carry):
        number, state, result = carry
        following, loss, score = update(state, number)
        metrics = Metrics(loss, score, param_size(state.params))
        recorded = _record(result, number, following.params, metrics)
        return number + 1, *select(training(result), (following, recorded), (state, result))

    def running(carry):
        number, _, result = carry
        return any_lane(training(result)) & (number < num_updates)

    *_, result = jax.lax.while_loop(running, guarded_update, (jnp.int32(0), start, result))
    last = result.pi1, result.pi2  # the last update made one of them
    return dataclasses.replace(result, divergence=find_divergence(result.metrics, last, result.num_updates))


def _record(result: Result, number: Int[Array, ""], params: Network, metrics: Metrics) -> Result:
    """Take the snapshots that are due after an update, and write its metrics."""
    return dataclasses.replace(
        result,
        pi1=select(result.pi1_reached, result.pi1, params),
        pi2=select(result.pi2_reached, result.pi2, params),
        pi1_reached=result.pi1_reached | (metrics.score >= result.pi1_target),
        pi2_reached=result.pi2_reached | (metrics.score >= result.pi2_target),
        num_updates=number + 1,
        metrics=jax.tree.map(lambda values, value: values.at[number].set(value), result.metrics, metrics),
    )
