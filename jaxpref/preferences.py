"""Preference datasets: sampling pairs, taking part of them, drawing minibatches."""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Key

from jaxpref import annotators
from jaxpref.checks import (
    check_callable,
    check_count,
    check_dtype,
    check_key,
    check_kind,
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

    Raises TypeError or ValueError for trajectories that are not of this shape, or not of the same, and for an annotator
    that does not answer with a `Label` of single values.
    """
    check_key(key)
    check_callable(annotator, "annotator", "(key, first_reward, second_reward) -> Label")
    check_trajectory(first, "first", num_axes=1)
    check_trajectory(second, "second", num_axes=1)
    check_same_shape(first=first.obs, second=second.obs)
    check_count(first.reward.shape[0], "the number of pairs")
    keys = jax.random.split(key, first.reward.shape[0])

    def ask(key: Key[Array, ""], first_reward: Float[Array, " T"], second_reward: Float[Array, " T"]):
        return _checked(annotator(key, first_reward, second_reward))

    return apply_labels(first, second, jax.vmap(ask)(keys, first.reward, second.reward))


def _checked(label: Any) -> annotators.Label:
    """The answer about one pair, if it is one."""
    check_kind(label, annotators.Label, "annotator's answer")
    for field, kind, words in (
        ("first_preferred", np.bool_, "boolean"),
        ("prob", np.floating, "float"),
        ("weight", np.floating, "float"),
        ("target", np.floating, "float"),
    ):
        value = getattr(label, field)
        number = isinstance(value, bool | int | float | np.generic | np.ndarray | jax.Array)
        if not number or not jnp.issubdtype(jnp.result_type(value), kind) or np.shape(value) != ():
            got = f"{jnp.result_type(value)}{list(np.shape(value))}" if number else f"a {type(value).__name__}"
            raise TypeError(f"annotator's answer must be a Label whose {field} is a single {words}, got {got}")
    return label


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

    Raises TypeError for indices that are no integers, and IndexError for a number that is not one of a pair. (A traced
    one is let through.)
    """
    if not isinstance(index, slice):
        if isinstance(index, bool) or not isinstance(index, int):
            check_dtype(index, "index", np.integer, "integers")
        if not isinstance(index, jax.core.Tracer):
            _check_places(np.asarray(index), preferences.weight.shape[0])
    return jax.tree.map(lambda leaf: leaf[index], preferences)


def _check_places(index: np.ndarray, num_pairs: int) -> None:
    for place in index[(index < -num_pairs) | (index >= num_pairs)].flat:
        raise IndexError(f"index must lie between {-num_pairs} and {num_pairs - 1} for {num_pairs} pairs, got {place}")


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
    TypeError or ValueError for a number of pairs that is no whole number, negative, or more than there are. (An array
    is let through.)
    """
    size = preferences.weight.shape[0]
    if isinstance(num_pairs, jax.Array):
        check_dtype(num_pairs, "num_pairs", np.integer, "integers")
    else:
        check_count(num_pairs, "num_pairs", least=0)
        if num_pairs > size:
            raise ValueError(f"num_pairs must be at most the number of pairs, {size}, got {num_pairs}")
    counts = jnp.arange(size) < num_pairs
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
    # Rounding can carry a draw to a pair without weight, or beyond the last: the next one that has weight is meant, and
    # at the very end the last.
    place = jnp.arange(weight.shape[0])
    last = jnp.max(jnp.where(weight > 0, place, 0))
    following = jax.lax.cummin(jnp.where(weight > 0, place, last), reverse=True)
    return following[jnp.minimum(index, last)]
