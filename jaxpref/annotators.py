"""Who labels a pair: pure functions of a random key and the true rewards of both trajectories.

`teacher` has all of the habits below at once, each with a number of its own, so that `vmap` can sweep them; the other
annotators are teachers with one habit.
"""

from __future__ import annotations

import functools
import math
from typing import Protocol

import jax
import jax.numpy as jnp
from flax import struct
from jaxtyping import Array, Bool, Float, Key

from jaxpref.checks import check_config, check_range, check_return_range
from jaxpref.tasks import Task, check_task
from jaxpref.types import Scalar


@struct.dataclass
class Label:
    """An annotator's answer about one pair (first, second).

    first_preferred:  whether the first was chosen.
    prob:             probability, under this annotator, of the answer it gave.
    weight:           how much the answer counts, >= 0; 0 for "I cannot say", which takes the pair out.
    target:           1; 0.5 for "both are the same".
    """

    first_preferred: Bool[Array, "*batch"]
    prob: Float[Array, "*batch"]
    weight: Float[Array, "*batch"]
    target: Float[Array, "*batch"] | float = 1.0


class Annotator(Protocol):
    """(key, true rewards of the first, of the second; both zero beyond the end of the episode) -> Label."""

    def __call__(
        self, key: Key[Array, ""], first_reward: Float[Array, " T"], second_reward: Float[Array, " T"]
    ) -> Label: ...


@struct.dataclass
class Config:
    """The habits of a teacher, after Lee et al., 2021 (B-Pref, https://arxiv.org/abs/2111.03026, section 3)."""

    temperature: Scalar = 1.0
    """Of the Bradley-Terry model, in units of return: higher is more hesitant, 0 never errs."""
    mistake_prob: Scalar = 0.0
    """Probability of giving the opposite answer."""
    tie_threshold: Scalar = 0.0
    """Returns closer than this share of the task's range are called equal."""
    skip_threshold: Scalar = 0.0
    """A pair is skipped if both returns lie below this share of the task's range, from its lower end."""
    discount: Scalar = 1.0
    """Per step: below 1 the teacher is myopic and sees little beyond the first 1 / (1 - discount) steps."""

    def __post_init__(self):
        check_range(self, 0, math.inf, "temperature")
        check_range(self, 0, 1, "mistake_prob", "tie_threshold", "skip_threshold", "discount")


def teacher(
    key: Key[Array, ""],
    first_reward: Float[Array, " T"],
    second_reward: Float[Array, " T"],
    config: Config,
    return_range: tuple[Scalar, Scalar] = (0.0, 1.0),
) -> Label:
    """Compares the returns R = sum_t discount^t r_t of both.

        P(first preferred) = (1 - mistake_prob) * p + mistake_prob * (1 - p),   p = sigmoid((R1 - R2) / temperature)

    B-Pref's myopic teacher discounts from the end of a segment; episodes have no common end, so this one discounts
    from their beginning. `return_range` is the task's (lowest, highest) return, the unit of both thresholds.
    Raises TypeError for a config that is none or holds what is no number, ValueError for a range that is none.
    """
    check_config(config, Config)
    check_return_range(return_range)
    weights = config.discount ** jnp.arange(first_reward.shape[-1])
    first, second = (weights * first_reward).sum(), (weights * second_reward).sum()
    gap, (lowest, highest) = first - second, return_range
    certain = jnp.where(gap == 0, 0.0, jnp.sign(gap) * jnp.inf)
    logit = jnp.where(config.temperature > 0, gap / jnp.where(config.temperature > 0, config.temperature, 1.0), certain)
    # Both probabilities from the logit: 1 - sigmoid(x) would lose the small one to rounding.
    p_first, p_second = jax.nn.sigmoid(logit), jax.nn.sigmoid(-logit)
    prob_first = (1 - config.mistake_prob) * p_first + config.mistake_prob * p_second
    prob_second = (1 - config.mistake_prob) * p_second + config.mistake_prob * p_first
    first_preferred = jax.random.bernoulli(key, prob_first)

    tied = jnp.abs(gap) < config.tie_threshold * (highest - lowest)
    low = jnp.maximum(first, second) < lowest + config.skip_threshold * (highest - lowest)
    skipped = low & (config.skip_threshold > 0)  # without a threshold the range may be any
    prob = jnp.where(first_preferred, prob_first, prob_second)
    return Label(
        first_preferred,
        jnp.where(tied | skipped, 1.0, prob),
        jnp.where(skipped, 0.0, 1.0),
        jnp.where(tied, 0.5, 1.0),
    )


def teacher_of(task: Task, config: Config) -> Annotator:
    """A teacher whose thresholds are measured in the task's range of returns.

    Raises ValueError for a threshold where the task does not know its range. (A traced one is let through, and then
    nothing is a tie and nothing is skipped.)
    """
    check_task(task)
    check_config(config, Config)
    if task.return_range is not None:
        return functools.partial(teacher, config=config, return_range=task.return_range)
    for name in ("tie_threshold", "skip_threshold"):
        threshold = getattr(config, name)
        if isinstance(threshold, int | float) and threshold > 0:
            raise ValueError(f"{name} is a share of the range of returns, which {task.name} does not know")
    return functools.partial(teacher, config=config, return_range=(math.nan, math.nan))


def bradley_terry(
    key: Key[Array, ""],
    first_reward: Float[Array, " T"],
    second_reward: Float[Array, " T"],
    temperature: Scalar = 1.0,
) -> Label:
    """Prefers the first with probability sigmoid((R1 - R2) / temperature), R the undiscounted return.

    `functools.partial(bradley_terry, temperature=10.0)` is a more hesitant annotator.
    """
    return teacher(key, first_reward, second_reward, Config(temperature=temperature))


def noiseless(key: Key[Array, ""], first_reward: Float[Array, " T"], second_reward: Float[Array, " T"]) -> Label:
    """Prefers the higher return; a coin decides between equal ones."""
    return teacher(key, first_reward, second_reward, Config(temperature=0.0))


def mistaken(
    key: Key[Array, ""],
    first_reward: Float[Array, " T"],
    second_reward: Float[Array, " T"],
    mistake_prob: Scalar = 0.1,
) -> Label:
    """Prefers the higher return, but gives the opposite answer with probability `mistake_prob`."""
    return teacher(key, first_reward, second_reward, Config(temperature=0.0, mistake_prob=mistake_prob))


def undecided(
    key: Key[Array, ""],
    first_reward: Float[Array, " T"],
    second_reward: Float[Array, " T"],
    threshold: Scalar,
    return_range: tuple[Scalar, Scalar] = (0.0, 1.0),
) -> Label:
    """Prefers the higher return; calls returns equal that differ by less than `threshold` times the range."""
    config = Config(temperature=0.0, tie_threshold=threshold)
    return teacher(key, first_reward, second_reward, config, return_range)


def skipping(
    key: Key[Array, ""],
    first_reward: Float[Array, " T"],
    second_reward: Float[Array, " T"],
    threshold: Scalar,
    return_range: tuple[Scalar, Scalar] = (0.0, 1.0),
) -> Label:
    """Prefers the higher return; skips pairs of which neither reaches `threshold` times the range."""
    config = Config(temperature=0.0, skip_threshold=threshold)
    return teacher(key, first_reward, second_reward, config, return_range)


def myopic(
    key: Key[Array, ""],
    first_reward: Float[Array, " T"],
    second_reward: Float[Array, " T"],
    discount: Scalar = 0.9,
    temperature: Scalar = 1.0,
) -> Label:
    """Bradley-Terry on returns discounted from the first step."""
    return teacher(key, first_reward, second_reward, Config(temperature=temperature, discount=discount))
