"""What the trainers share: datasets and minibatches of pairs, and updates in a scan with evaluations between them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import optax
from flax import struct
from jaxtyping import Array, Float, Int, Key

from jaxpref.divergence import Divergence
from jaxpref.fast import packed
from jaxpref.networks import Network
from jaxpref.preferences import draw_index
from jaxpref.types import Preferences, target_of


@struct.dataclass
class Result:
    """What was trained, with its metrics: a policy, or a reward model."""

    params: Network
    metrics: Any
    divergence: Divergence


@struct.dataclass
class TrainState:
    """What one update passes to the next."""

    params: Network
    opt_state: optax.OptState


@struct.dataclass
class Pairs:
    """N pairs, ready for updates: trajectory i is the i-th chosen one, N + i the i-th rejected one."""

    rows: packed.Rows
    num_steps: Float[Array, " 2N"]
    weight: Float[Array, " N"]
    target: Float[Array, " N"]


def prepare(preferences: Preferences) -> Pairs:
    """Cut the pairs into rows, once for all updates."""
    rows = packed.pack(jax.tree.map(lambda *both: jnp.concatenate(both), preferences.chosen, preferences.rejected))
    return Pairs(rows, 1.0 * rows.mask.sum((-1, -2)), preferences.weight, target_of(preferences))


State = TypeVar("State")
Metrics = TypeVar("Metrics")
Evaluation = TypeVar("Evaluation")


def scan_updates(
    update: Callable[[State, Key[Array, ""]], tuple[State, Metrics]],
    evaluate: Callable[[State, Key[Array, ""]], Evaluation],
    state: State,
    key: Key[Array, ""],
    num_updates: int,
    eval_every: int,
) -> tuple[State, Metrics, Evaluation]:
    """Make `num_updates` updates, with an evaluation after every `eval_every` of them.

    Returns the last state, the metrics of every update [U, ...] and the evaluations [U / eval_every, ...]. The last
    evaluation is of the last state.
    """

    def block(state, key):
        key_update, key_eval = jax.random.split(key)
        state, metrics = jax.lax.scan(update, state, jax.random.split(key_update, eval_every))
        return state, (metrics, evaluate(state, key_eval))

    state, (metrics, evaluation) = jax.lax.scan(block, state, jax.random.split(key, num_updates // eval_every))
    return state, jax.tree.map(lambda leaf: leaf.reshape(num_updates, *leaf.shape[2:]), metrics), evaluation


def schedule_problems(config: Any) -> Iterator[tuple[str, str]]:
    """Yield the problem of a config whose `eval_every` does not divide its `num_updates`."""
    if config.num_updates % config.eval_every:
        yield "num_updates", f"must be a multiple of eval_every, got {config.num_updates} and {config.eval_every}"


def draw_minibatch(
    key: Key[Array, ""], weight: Float[Array, " N"], batch_size: int
) -> tuple[Int[Array, " B"], Float[Array, " B"]]:
    """Draw (index, weight) of the pairs of one update.

    `batch_size` pairs are drawn in proportion to their weight and then count alike. `batch_size` 0 takes all pairs
    with their own weights. Where no pair has weight, the minibatch has none either.
    """
    if batch_size == 0:
        return jnp.arange(weight.shape[0]), weight
    any_answer = 1.0 * (weight.sum() > 0)
    return draw_index(key, weight, batch_size), jnp.broadcast_to(any_answer, batch_size)


def weighted_mean(values: Float[Array, " B"], weight: Float[Array, " B"]) -> Float[Array, ""]:
    """Compute sum(w x) / sum(w). It is 0 where there is no weight: nothing is learned from no answers."""
    total = weight.sum()
    return jnp.where(weight > 0, weight * values, 0.0).sum() / jnp.where(total > 0, total, 1.0)
