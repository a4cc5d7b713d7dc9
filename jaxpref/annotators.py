"""Who labels a pair: pure functions of a random key and the true rewards of both trajectories."""

from __future__ import annotations

from typing import Protocol

import jax
from flax import struct
from jaxtyping import Array, Bool, Float, Key

from jaxpref.types import Scalar


@struct.dataclass
class Label:
    """An annotator's answer about one pair (first, second).

    first_preferred:  whether the first was chosen.
    prob:             probability, under this annotator, of the answer it gave.
    weight:           how much the answer counts, >= 0.
    """

    first_preferred: Bool[Array, "*batch"]
    prob: Float[Array, "*batch"]
    weight: Float[Array, "*batch"]


class Annotator(Protocol):
    """(key, true rewards of the first, of the second; both zero beyond the end of the episode) -> Label."""

    def __call__(
        self, key: Key[Array, ""], first_reward: Float[Array, " T"], second_reward: Float[Array, " T"]
    ) -> Label: ...


def bradley_terry(
    key: Key[Array, ""],
    first_reward: Float[Array, " T"],
    second_reward: Float[Array, " T"],
    temperature: Scalar = 1.0,
) -> Label:
    """Prefers the first with probability sigmoid((R1 - R2) / temperature), R the undiscounted return.

    `functools.partial(bradley_terry, temperature=10.0)` is a more hesitant annotator.
    """
    logit = (first_reward.sum() - second_reward.sum()) / temperature
    first_preferred = jax.random.bernoulli(key, jax.nn.sigmoid(logit))
    # The answer's own probability from the logit's sign: 1 - sigmoid(x) would lose it to rounding.
    prob = jax.nn.sigmoid(jax.numpy.where(first_preferred, logit, -logit))
    return Label(first_preferred, prob, jax.numpy.ones(()))
