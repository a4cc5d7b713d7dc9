"""The two kinds of data that every stage hands to the next.

Shapes below are those of one trajectory or one dataset; `*batch` stands for whatever axes the caller adds
(episodes, pairs, seeds).
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from flax import struct
from jaxtyping import Array, Bool, Float, Int

Scalar = int | float | Float[Array, ""]
"""A hyperparameter: a Python number, or a traced array where it is swept by vmap."""

Params = Any
"""A pytree of arrays: what a flax module's `init` returns."""


@struct.dataclass
class Trajectory:
    """One episode of at most T steps, padded to the task's horizon T.

    `mask` is True on the steps that were played and False after the end. Consumers select with
    `jnp.where(mask, ...)`; what lies beyond the mask never reaches a result (rollouts leave zeros there).

    obs:       observation before each step.
    action:    action taken, int32.
    reward:    the environment's own reward.
    next_obs:  observation after each step; on the last step the true last observation, never a reset one.
    mask:      True until and including the last step.
    """

    obs: Float[Array, "*batch T O"]
    action: Int[Array, "*batch T"]
    reward: Float[Array, "*batch T"]
    next_obs: Float[Array, "*batch T O"]
    mask: Bool[Array, "*batch T"]


def zero_beyond_mask(trajectory: Trajectory) -> Trajectory:
    """The same trajectory with zeros beyond its mask.

    Garbage there must not even enter a network: `where` after it keeps the value clean, but the gradient of a
    NaN that was not selected is still NaN.
    """

    def select(leaf):
        mask = trajectory.mask.reshape(trajectory.mask.shape + (1,) * (leaf.ndim - trajectory.mask.ndim))
        return jnp.where(mask, leaf, jnp.zeros_like(leaf))

    return jax.tree.map(select, trajectory)


def true_return(trajectory: Trajectory) -> Float[Array, "*batch"]:
    """Undiscounted sum of the environment's rewards over the mask."""
    return jnp.where(trajectory.mask, trajectory.reward, 0.0).sum(-1)


@struct.dataclass
class Preferences:
    """N labelled pairs of trajectories.

    chosen, rejected:  what the annotator preferred, and what it did not.
    weight:  how much a pair counts in a loss, >= 0; 0 takes the pair out without changing a shape.
    prob:    the annotator's probability of this very label, P(chosen preferred to rejected).
    target:  probability that a loss takes for "chosen is preferred": 1 for an answer, 0.5 for a tie, where the order
             of the two means nothing. None is 1 for every pair.
    """

    chosen: Trajectory
    rejected: Trajectory
    weight: Float[Array, "*batch N"]
    prob: Float[Array, "*batch N"]
    target: Float[Array, "*batch N"] | None = None


def target_of(preferences: Preferences) -> Float[Array, "*batch N"]:
    """The pairs' targets, 1 where none are given."""
    return jnp.ones_like(preferences.weight) if preferences.target is None else preferences.target
