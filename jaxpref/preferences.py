"""Preference datasets: sampling pairs, taking part of them, drawing minibatches."""

from __future__ import annotations

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Key

from jaxpref import annotators
from jaxpref.checks import (
    check_count,
    check_dtype,
    check_key,
    check_preferences,
    check_same_shape,
    check_trajectory,
)
from jaxpref.fit import check_policy
from jaxpref.rollout import episodes
from jaxpref.tasks import Task
from jaxpref.types import Params, Preferences, Trajectory


def sample_preferences(
    task: Task,
    pi1_params: Params,
    pi2_params: Params,
    key: Key[Array, ""],
    num_pairs: int,
    annotator: annotators.Annotator = annotators.bradley_terry,
) -> Preferences:
    """Play `num_pairs` episodes with each policy, every one from its own initial state, and label the pairs.

    The i-th pair is one episode of pi1 and one of pi2, in this order before the annotator. Raises TypeError or
    ValueError for fewer than one pair, for parameters that are no policy of the task and for what is not one typed key.
    """
    check_count(num_pairs, "num_pairs")
    check_policy(task, pi1_params, "pi1_params")
    check_policy(task, pi2_params, "pi2_params")
    check_key(key)
    key_pi1, key_pi2, key_label = jax.random.split(key, 3)
    first = episodes(task, pi1_params, key_pi1, num_pairs)
    second = episodes(task, pi2_params, key_pi2, num_pairs)
    return label_pairs(key_label, first, second, annotator)


def label_pairs(
    key: Key[Array, ""], first: Trajectory, second: Trajectory, annotator: annotators.Annotator
) -> Preferences:
    """Ask the annotator about the pairs (first[i], second[i]); both have a leading axis [N].

    Raises TypeError or ValueError for trajectories that are not of this shape, or not of the same.
    """
    check_key(key)
    check_trajectory(first, "first", num_axes=1)
    check_trajectory(second, "second", num_axes=1)
    check_same_shape(first=first.obs, second=second.obs)
    check_count(first.reward.shape[0], "the number of pairs")
    keys = jax.random.split(key, first.reward.shape[0])
    return apply_labels(first, second, jax.vmap(annotator)(keys, first.reward, second.reward))


def apply_labels(first: Trajectory, second: Trajectory, label: annotators.Label) -> Preferences:
    """The pairs (first[i], second[i]), put in the order that label[i] gave them; all have a leading axis [N]."""
    chosen, rejected = _order(label.first_preferred, first, second)
    return Preferences(chosen, rejected, label.weight, label.prob, jnp.asarray(label.target))


def _order(first_preferred: Bool[Array, " N"], first: Trajectory, second: Trajectory) -> tuple[Trajectory, Trajectory]:
    def choose(preferred, one, other):
        return jnp.where(preferred.reshape(preferred.shape + (1,) * (one.ndim - 1)), one, other)

    chosen = jax.tree.map(functools.partial(choose, first_preferred), first, second)
    rejected = jax.tree.map(functools.partial(choose, ~first_preferred), first, second)
    return chosen, rejected


def take(preferences: Preferences, index: Int[Array, " B"] | slice | int) -> Preferences:
    """The pairs at `index`: an array of indices, a slice, or a single number, which drops the axis.

    Raises TypeError for indices that are no integers, and IndexError for a number that is not one of a pair.
    """
    if isinstance(index, int):
        num_pairs = preferences.weight.shape[0]
        if not -num_pairs <= index < num_pairs:
            raise IndexError(
                f"index must lie between {-num_pairs} and {num_pairs - 1} for {num_pairs} pairs, got {index}"
            )
    elif not isinstance(index, slice):
        check_dtype(index, "index", np.integer, "integers")
    return jax.tree.map(lambda leaf: leaf[index], preferences)


def split(preferences: Preferences, num_heldout: int) -> tuple[Preferences, Preferences]:
    """(the pairs to train on, the last `num_heldout` pairs). Raises ValueError if one side would be empty."""
    check_preferences(preferences)
    num_pairs = preferences.weight.shape[0]
    check_count(num_heldout, "num_heldout", least=-num_pairs)
    if not 0 < num_heldout < num_pairs:
        raise ValueError(f"num_heldout must lie between 1 and {num_pairs - 1} for {num_pairs} pairs, got {num_heldout}")
    return take(preferences, slice(None, -num_heldout)), take(preferences, slice(-num_heldout, None))


def prefix(preferences: Preferences, num_pairs: int | Int[Array, ""]) -> Preferences:
    """Only the first `num_pairs` pairs count: the others keep their place with weight zero.

    Shapes stay, so `num_pairs` may be traced, and one program trains on every size of dataset under vmap. Raises
    TypeError or ValueError for a number of pairs that is no whole number, or negative.
    """
    if isinstance(num_pairs, jax.Array):
        check_dtype(num_pairs, "num_pairs", np.integer, "integers")
    else:
        check_count(num_pairs, "num_pairs", least=0)
    counts = jnp.arange(preferences.weight.shape[0]) < num_pairs
    return dataclasses.replace(preferences, weight=jnp.where(counts, preferences.weight, 0.0))


def draw_index(key: Key[Array, ""], weight: Float[Array, " N"], batch_size: int) -> Int[Array, " B"]:
    """Draw `batch_size` pairs in proportion to their weight, by stratified sampling.

    The cumulative weight is cut into `batch_size` equal strata and one pair is drawn in each, so a pair of share
    p appears p * batch_size times, give or take two: a mean over the minibatch estimates the weighted mean without
    bias, and a dataset smaller than the minibatch is taken (almost) whole. Pairs of weight zero are never drawn.
    """
    cumulative = jnp.cumsum(weight)
    strata = (jnp.arange(batch_size) + jax.random.uniform(key, (batch_size,))) / batch_size
    index = jnp.searchsorted(cumulative, strata * cumulative[-1], side="right")
    # Rounding can carry the last stratum to the very end: the last pair that has weight is meant.
    last = jnp.max(jnp.where(weight > 0, jnp.arange(weight.shape[0]), 0))
    return jnp.minimum(index, last)
