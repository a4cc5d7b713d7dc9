"""Label pairs: pure functions of a random key and both trajectories.

An annotator may look at all of a trajectory: what was observed, done and rewarded. Those of this module look at the
true rewards. A `teacher` has all habits of `Config` at once. Each habit is one number, so that `vmap` can sweep it.
"""

import functools
import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import struct
from jaxtyping import Array, Bool, Float, Key

from jaxpref.checks import check_config, check_kind, setting
from jaxpref.tasks import Task
from jaxpref.types import Scalar, Trajectory, true_return

Range = tuple[Scalar, Scalar]
"""(lowest, highest) return of an episode."""


@struct.dataclass
class Label:
    """An annotator's answer about one pair (first, second).

    first_preferred:  whether the first one was chosen.
    prob:             probability of this answer under this annotator.
    weight:           how much the answer counts, >= 0. 0 means "I cannot say" and takes the pair out.
    target:           1 for an answer; 0.5 for "both are the same".
    """

    first_preferred: Bool[Array, "*batch"]
    prob: Float[Array, "*batch"]
    weight: Float[Array, "*batch"]
    target: Float[Array, "*batch"] | float = 1.0


Annotator = Callable[[Key[Array, ""], Trajectory, Trajectory], Label]
"""(key, first, second) -> Label, for one pair [T]. Values beyond the masks mean nothing. Rollouts leave zeros there."""


@struct.dataclass
class Config:
    """The habits of a teacher, after Lee et al., 2021 (B-Pref, https://arxiv.org/abs/2111.03026, section 3)."""

    temperature: Scalar = setting(1.0, low=0)
    """Of the Bradley-Terry model, in units of return. A higher one hesitates more; 0 never errs."""
    mistake_prob: Scalar = setting(0.0, low=0, high=1)
    """Probability of the opposite answer."""
    tie_threshold: Scalar = setting(0.0, low=0, high=1)
    """Returns that differ by less than this share of the task's range are called equal."""
    skip_threshold: Scalar = setting(0.0, low=0, high=1)
    """A pair is skipped if both returns lie below this share of the task's range, counted from its lower end."""
    discount: Scalar = setting(1.0, low=0, high=1)
    """Per step. Below 1 the teacher is myopic: it sees little after the first 1 / (1 - discount) steps."""


def teacher(
    key: Key[Array, ""], first: Trajectory, second: Trajectory, config: Config, return_range: Range = (0.0, 1.0)
) -> Label:
    """Compare the discounted returns D = sum_t discount^t r_t of both.

        P(first preferred) = (1 - mistake_prob) * p + mistake_prob * (1 - p),   p = sigmoid((D1 - D2) / temperature)

    Ties and skips look at undiscounted returns, as in B-Pref. The unit of both thresholds is `return_range`, the
    task's (lowest, highest) return. B-Pref discounts from the end of a segment. Episodes have no common end, so this
    teacher discounts from the beginning.
    """
    check_config(config, Config)
    lowest, highest = return_range
    if isinstance(lowest, int | float) and isinstance(highest, int | float) and lowest >= highest:
        raise ValueError(f"return_range must be (lowest, highest), got {return_range}")
    weights = config.discount ** jnp.arange(first.mask.shape[-1])
    first_value, second_value = (jnp.where(each.mask, weights * each.reward, 0.0).sum() for each in (first, second))
    gap = first_value - second_value
    certain = jnp.where(gap == 0, 0.0, jnp.sign(gap) * jnp.inf)
    logit = jnp.where(config.temperature > 0, gap / jnp.where(config.temperature > 0, config.temperature, 1.0), certain)
    # Both probabilities come from the logit: 1 - sigmoid(x) would lose the small one to rounding.
    p_first, p_second = jax.nn.sigmoid(logit), jax.nn.sigmoid(-logit)
    prob_first = (1 - config.mistake_prob) * p_first + config.mistake_prob * p_second
    prob_second = (1 - config.mistake_prob) * p_second + config.mistake_prob * p_first
    first_preferred = jax.random.bernoulli(key, prob_first)

    first_return, second_return = true_return(first), true_return(second)
    tied = jnp.abs(first_return - second_return) < config.tie_threshold * (highest - lowest)
    low = jnp.maximum(first_return, second_return) < lowest + config.skip_threshold * (highest - lowest)
    skipped = low & (config.skip_threshold > 0)  # without a threshold, returns below the range are not skipped
    prob = jnp.where(first_preferred, prob_first, prob_second)
    return Label(
        first_preferred, jnp.where(tied | skipped, 1.0, prob), jnp.where(skipped, 0.0, 1.0), jnp.where(tied, 0.5, 1.0)
    )


def teacher_of(task: Task, config: Config) -> Annotator:
    """Make a teacher whose thresholds are shares of the task's range of returns.

    Raises:
        ValueError: a threshold is set and the task does not know its range. A traced threshold is not checked. It
            then calls nothing a tie and skips nothing.
    """
    check_kind(task, Task, "task")
    check_config(config, Config)
    for name in ("tie_threshold", "skip_threshold"):
        threshold = getattr(config, name)
        if task.return_range is None and isinstance(threshold, int | float) and threshold > 0:
            raise ValueError(
                f"{name} is a share of the range of returns, and task {task.name} has no return_range: give it one"
            )
    return functools.partial(teacher, config=config, return_range=task.return_range or (math.nan, math.nan))


def bradley_terry(key: Key[Array, ""], first: Trajectory, second: Trajectory, temperature: Scalar = 1.0) -> Label:
    """Prefer the first one with probability sigmoid((R1 - R2) / temperature), R the undiscounted return."""
    return teacher(key, first, second, Config(temperature=temperature))


def noiseless(key: Key[Array, ""], first: Trajectory, second: Trajectory) -> Label:
    """Prefer the higher return; toss a coin between equal ones."""
    return teacher(key, first, second, Config(temperature=0.0))
