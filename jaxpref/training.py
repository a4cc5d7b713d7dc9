"""What the trainers share: minibatches of pairs, and updates in a scan with evaluations between."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key

from jaxpref.preferences import draw_index

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
    """`num_updates` updates, with an evaluation after every `eval_every` of them.

    Returns the last state, the metrics of every update [U, ...] and the evaluations [U / eval_every, ...]. The
    last evaluation is of the last state.
    """

    def block(state, key):
        key_update, key_eval = jax.random.split(key)
        state, metrics = jax.lax.scan(update, state, jax.random.split(key_update, eval_every))
        return state, (metrics, evaluate(state, key_eval))

    state, (metrics, evaluation) = jax.lax.scan(block, state, jax.random.split(key, num_updates // eval_every))
    return state, jax.tree.map(lambda leaf: leaf.reshape(num_updates, *leaf.shape[2:]), metrics), evaluation


def draw_minibatch(
    key: Key[Array, ""], weight: Float[Array, " N"], batch_size: int
) -> tuple[Int[Array, " B"], Float[Array, " B"]]:
    """(index, weight) of the pairs of one update.

    `batch_size` pairs drawn in proportion to their weight, which then count alike; or, for `batch_size` 0, all
    pairs with their own weights. Where no pair has weight, none of the minibatch has.
    """
    if batch_size == 0:
        return jnp.arange(weight.shape[0]), weight
    any_answer = 1.0 * (weight.sum() > 0)
    return draw_index(key, weight, batch_size), jnp.broadcast_to(any_answer, batch_size)


def weighted_mean(values: Float[Array, " B"], weight: Float[Array, " B"]) -> Float[Array, ""]:
    """Mean sum(w x) / sum(w); 0 where there is no weight at all: from no answers nothing is learned."""
    total = weight.sum()
    return jnp.where(weight > 0, weight * values, 0.0).sum() / jnp.where(total > 0, total, 1.0)
