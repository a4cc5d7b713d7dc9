"""Preference datasets: sample pairs of trajectories, label them, take parts of them, draw minibatches."""

import dataclasses
import functools
import itertools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Key

from jaxpref.annotators import Annotator, Label, bradley_terry
from jaxpref.checks import check_count, check_key, check_kind, check_preferences, check_same_shape, check_trajectory
from jaxpref.fast.keys import fast_key
from jaxpref.networks import Network, check_policy
from jaxpref.rollout import episodes, reset
from jaxpref.tasks import Task
from jaxpref.types import Preferences, Trajectory, select


def sample_preferences(
    task: Task,
    pi1_params: Network,
    pi2_params: Network,
    key: Key[Array, ""],
    num_pairs: int,
    annotator: Annotator = bradley_terry,
    segment: int | None = None,
    *,
    others: Sequence[Network] = (),
    same_start: bool = False,
) -> Preferences:
    """Play `num_pairs` pairs of episodes, one of each policy, and label them. The annotator sees pi1's episode first.

    segment:     compare clips of this many steps, as `clip_pairs` cuts them; None: whole episodes.
    others:      more policies. The pairs then cycle through the combinations of two of (pi1, pi2, *others), and the
                 annotator sees the two in this order.
    same_start:  both episodes of a pair start in the same initial state; else each has its own.
    """
    check_count(num_pairs, "num_pairs")
    check_policy(task, pi1_params, "pi1_params")
    check_policy(task, pi2_params, "pi2_params")
    for policy in others:
        check_policy(task, policy, "one of others")
    check_segment(task, segment)
    check_key(key)
    matches = list(itertools.combinations((pi1_params, pi2_params, *others), 2))
    num_each = -(-num_pairs // len(matches))  # pairs of a match
    key_pi1, key_pi2, key_label, key_clip, key_start, *more = jax.random.split(key, 3 + 2 * len(matches))
    policies, keys = itertools.chain(*matches), (key_pi1, key_pi2, *more)
    sides: list[dict[str, Any]] = [{"params": each, "key": key} for each, key in zip(policies, keys, strict=True)]
    if same_start:
        start = jax.vmap(functools.partial(reset, task))(jax.random.split(fast_key(key_start), num_each * len(matches)))
        for number, side in enumerate(sides):
            side["start"] = jax.tree.map(lambda leaf, match=number // 2: leaf[match :: len(matches)], start)
    played = _play(task, sides, num_each)

    def take_turns(*leaves: Array) -> Array:
        return jnp.stack(leaves, axis=1).reshape(-1, *leaves[0].shape[1:])[:num_pairs]

    first, second = (jax.tree.map(take_turns, *played[place::2]) for place in (0, 1))
    first, second = clip_pairs(key_clip, first, second, segment)
    return label_pairs(key_label, first, second, annotator)


def _play(task: Task, sides: list[dict[str, Any]], num_episodes: int) -> list[Trajectory]:
    """Play `num_episodes` episodes of each side, {"params", "key"} and perhaps "start"."""
    play = functools.partial(episodes, task, num_episodes=num_episodes)
    if len({jax.tree.structure(side) for side in sides}) > 1:
        return [play(**side) for side in sides]
    # One loop for all policies compiles in half the time.
    played = jax.lax.map(lambda side: play(**side), jax.tree.map(lambda *leaves: jnp.stack(leaves), *sides))
    return [jax.tree.map(lambda leaf, place=place: leaf[place], played) for place in range(len(sides))]


def clip(trajectory: Trajectory, start: Int[Array, ""] | int, length: int) -> Trajectory:
    """Cut `length` steps out of one trajectory [T], from step `start` on, which is at most T - length."""
    return jax.tree.map(lambda leaf: jax.lax.dynamic_slice_in_dim(leaf, start, length), trajectory)


def draw_start(key: Key[Array, ""], trajectory: Trajectory, length: int) -> Int[Array, ""]:
    """Draw where a clip of one trajectory [T] starts: uniform among the places where all its steps were played.

    An episode of fewer than `length` steps is its own clip: it starts at 0.
    """
    return jax.random.randint(key, (), 0, jnp.maximum(trajectory.mask.sum() - length, 0) + 1)


def clip_pairs(
    key: Key[Array, ""], first: Trajectory, second: Trajectory, segment: int | None
) -> tuple[Trajectory, Trajectory]:
    """Replace each episode of the pairs [N] by a clip of `segment` steps from a random place. None keeps the episodes.

    Clips are what Christiano et al., 2017 (https://arxiv.org/abs/1706.03741), and B-Pref (Lee et al., 2021,
    https://arxiv.org/abs/2111.03026) compare. A clip's T is `segment`.
    """
    if segment is None:
        return first, second
    keys = jax.random.split(fast_key(key), (first.mask.shape[0], 2))
    cut = jax.vmap(lambda key, episode: clip(episode, draw_start(key, episode, segment), segment))
    return cut(keys[:, 0], first), cut(keys[:, 1], second)


def check_segment(task: Task, segment: Any) -> None:
    """Check that `segment` is None, or a number of steps that an episode of the task can have."""
    if segment is not None:
        check_count(segment, "segment")
        if segment > task.horizon:
            raise ValueError(f"segment must be at most {task.horizon}, the horizon of task {task.name}, got {segment}")


def label_pairs(key: Key[Array, ""], first: Trajectory, second: Trajectory, annotator: Annotator) -> Preferences:
    """Ask the annotator about the pairs (first[i], second[i]); both have a leading axis [N]."""
    check_key(key)
    check_trajectory(first, "first", num_axes=1)
    check_trajectory(second, "second", num_axes=1)
    check_same_shape(first=first.obs, second=second.obs)
    check_count(first.reward.shape[0], "the number of pairs")
    keys = jax.random.split(key, first.reward.shape[0])
    label = jax.vmap(functools.partial(_ask, annotator))(keys, first, second)
    return apply_labels(first, second, label)


def _ask(annotator: Annotator, key: Key[Array, ""], first: Trajectory, second: Trajectory) -> Label:
    """Ask about one pair. A custom annotator may return anything."""
    label = annotator(key, first, second)
    check_kind(label, Label, "the annotator's answer")
    kinds = {"first_preferred": np.bool_, "prob": np.floating, "weight": np.floating, "target": np.floating}
    for field, kind in kinds.items():
        value = jnp.asarray(getattr(label, field))
        if not jnp.issubdtype(value.dtype, kind) or value.shape != ():
            got = f"{value.dtype}{list(value.shape)}"
            raise TypeError(f"the annotator's answer must be a Label whose {field} is one {kind.__name__}, got {got}")
    return label


def apply_labels(first: Trajectory, second: Trajectory, label: Label) -> Preferences:
    """Put each pair (first[i], second[i]) in the order that label[i] gives; all have a leading axis [N]."""
    chosen = select(label.first_preferred, first, second)
    rejected = select(label.first_preferred, second, first)
    return Preferences(chosen, rejected, label.weight, label.prob, jnp.asarray(label.target))


def check_pairs(task: Task, preferences: Any) -> None:
    """Check that `preferences` are [N] pairs of the task's episodes."""
    check_kind(task, Task, "task")
    check_preferences(preferences)
    obs_size = preferences.chosen.obs.shape[-1]
    if obs_size != task.obs_size:
        raise ValueError(
            f"preferences must have observations of {task.obs_size} numbers, as task {task.name} has, got {obs_size}"
        )
    action = preferences.chosen.action
    size: tuple[int, ...] = () if jnp.issubdtype(action.dtype, jnp.integer) else action.shape[-1:]
    expected: tuple[int, ...] = () if task.action_range is None else (task.num_actions,)
    if size != expected:
        kinds = ["discrete actions" if each == () else f"actions of {each[0]} numbers" for each in (expected, size)]
        raise ValueError(f"preferences must have {kinds[0]}, as task {task.name} has, got {kinds[1]}")


def take(preferences: Preferences, index: Int[Array, " B"] | slice | int) -> Preferences:
    """Take the pairs at `index`: indices, a slice, or a number, which drops the axis.

    Raises:
        IndexError: a pair does not exist. A traced index is not checked.
    """
    if not isinstance(index, slice | jax.core.Tracer):
        _ = np.arange(preferences.weight.shape[0])[np.asarray(index)]  # NumPy raises where jax would clip the index
    return jax.tree.map(lambda leaf: leaf[index], preferences)


def split(preferences: Preferences, num_heldout: int) -> tuple[Preferences, Preferences]:
    """Return (the pairs to train on, the last `num_heldout` pairs); neither is empty."""
    num_pairs = preferences.weight.shape[0]
    if not 0 < num_heldout < num_pairs:
        raise ValueError(f"num_heldout must be between 1 and {num_pairs - 1} for {num_pairs} pairs, got {num_heldout}")
    return take(preferences, slice(None, -num_heldout)), take(preferences, slice(-num_heldout, None))


def prefix(preferences: Preferences, num_pairs: int | Int[Array, ""]) -> Preferences:
    """Set the weight of all pairs after the first `num_pairs` to zero. Shapes stay, so `num_pairs` may be traced."""
    size = preferences.weight.shape[0]
    if isinstance(num_pairs, int) and not 0 <= num_pairs <= size:
        raise ValueError(f"num_pairs must be between 0 and {size}, the number of pairs, got {num_pairs}")
    counts = jnp.arange(size) < num_pairs
    return dataclasses.replace(preferences, weight=jnp.where(counts, preferences.weight, 0.0))


def draw_index(key: Key[Array, ""], weight: Float[Array, " N"], batch_size: int) -> Int[Array, " B"]:
    """Draw `batch_size` pairs in proportion to their weight, by stratified sampling.

    The cumulative weight is cut into `batch_size` equal strata, and one pair is drawn in each. A pair with share p of
    the weight is drawn p * batch_size times on average, and always at most two times more or less. So a mean over the
    minibatch estimates the weighted mean without bias, and a dataset smaller than the minibatch is taken (almost)
    whole. A pair of weight zero is never drawn.
    """
    cumulative = jnp.cumsum(weight)
    strata = (jnp.arange(batch_size) + jax.random.uniform(key, (batch_size,))) / batch_size
    index = jnp.searchsorted(cumulative, strata * cumulative[-1], side="right")
    # Rounding can move a draw to a pair without weight, or past the last pair. Take the next pair that has weight, and
    # at the end the last one.
    pairs = jnp.arange(weight.shape[0])
    last = jnp.max(jnp.where(weight > 0, pairs, 0))
    following = jax.lax.cummin(jnp.where(weight > 0, pairs, last), reverse=True)
    return following[jnp.minimum(index, last)]
