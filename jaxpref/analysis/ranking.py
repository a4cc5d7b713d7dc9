"""Measure how well scores rank labelled pairs, and how well any score can.

A score is one number for each trajectory: a learned return, or DPO's implicit reward.
"""

from typing import Any

import jax
import jax.numpy as jnp
from flax import struct
from jax.scipy.stats import rankdata
from jaxtyping import Array, Float

from jaxpref import losses
from jaxpref.checks import check_count, check_preferences, check_same_shape, check_sequence
from jaxpref.types import Preferences, true_return

Scores = Float[Array, " N"]


@struct.dataclass
class Quality:
    """How good scores are on pairs that they were not trained on; see the functions of the same names."""

    return_accuracy: Float[Array, "*batch"]
    label_accuracy: Float[Array, "*batch"]
    negative_log_likelihood: Float[Array, "*batch"]
    calibration_error: Float[Array, "*batch"]
    rank_correlation: Float[Array, "*batch"]


def quality(chosen_score: Scores, rejected_score: Scores, preferences: Preferences) -> Quality:
    """Compute all measures; the rank correlation is that of scores and true returns over all 2N trajectories."""
    measures = (return_accuracy, label_accuracy, negative_log_likelihood, calibration_error)
    found = {each.__name__: each(chosen_score, rejected_score, preferences) for each in measures}
    score = jnp.concatenate([chosen_score, rejected_score])
    returns = jnp.concatenate([true_return(preferences.chosen), true_return(preferences.rejected)])
    return Quality(**found, rank_correlation=rank_correlation(score, returns))


def return_accuracy(chosen_score: Scores, rejected_score: Scores, preferences: Preferences) -> Float[Array, ""]:
    """Compute the share of pairs that the scores rank as the true returns do.

    Equal scores count half. Pairs with equal or unknown (NaN) returns are left out. NaN if no pair is left.
    """
    _check_scores(chosen_score, rejected_score, preferences)
    gap = true_return(preferences.chosen) - true_return(preferences.rejected)
    return _accuracy(chosen_score - rejected_score, gap, jnp.float32((gap != 0) & ~jnp.isnan(gap)))


def label_accuracy(chosen_score: Scores, rejected_score: Scores, preferences: Preferences) -> Float[Array, ""]:
    """Compute the weighted share of pairs that the scores rank as they are labelled.

    Equal scores count half. Ties are left out. NaN if no pair has an answer.
    """
    _check_scores(chosen_score, rejected_score, preferences)
    return _accuracy(chosen_score - rejected_score, 1.0, answered(preferences))


def length_accuracy(preferences: Preferences) -> Float[Array, ""]:
    """Compute the accuracy of the better of two rankers, "the longer one" and "the shorter one": what one bit reaches.

    It is a `return_accuracy`, or a `label_accuracy` if no two returns can be compared. Equal lengths count half.
    """
    lengths = jnp.float32(preferences.chosen.mask.sum(-1)), jnp.float32(preferences.rejected.mask.sum(-1))
    by_return, by_label = return_accuracy(*lengths, preferences), label_accuracy(*lengths, preferences)
    longer = jnp.where(jnp.isnan(by_return), by_label, by_return)
    return jnp.maximum(longer, 1 - longer)


def negative_log_likelihood(chosen_score: Scores, rejected_score: Scores, preferences: Preferences) -> Float[Array, ""]:
    """Compute the weighted mean of -log sigmoid(chosen_score - rejected_score), in nats. A guess has ln 2."""
    _check_scores(chosen_score, rejected_score, preferences)
    return _average(losses.bradley_terry(chosen_score, rejected_score), answered(preferences))


def calibration_error(
    chosen_score: Scores, rejected_score: Scores, preferences: Preferences, num_bins: int = 10
) -> Float[Array, ""]:
    """Compute the expected calibration error (Guo et al., 2017, https://arxiv.org/abs/1706.04599, equation 3).

    The confidence that one of a pair is preferred is sigmoid(|gap|), from 0.5 to 1. Each of `num_bins` equal bins of
    confidence compares its mean confidence with its share of agreeing answers. The error is the mean absolute
    difference, weighted by the answers in each bin. Equal scores agree half.
    """
    _check_scores(chosen_score, rejected_score, preferences)
    check_count(num_bins, "num_bins")
    gap, weight = chosen_score - rejected_score, answered(preferences)
    confidence, agree = jax.nn.sigmoid(jnp.abs(gap)), jnp.heaviside(gap, 0.5)
    bin_index = jnp.clip(jnp.int32((confidence - 0.5) * 2 * num_bins), 0, num_bins - 1)
    surplus = jnp.zeros(num_bins).at[bin_index].add(jnp.where(weight > 0, weight * (confidence - agree), 0.0))
    return jnp.abs(surplus).sum() / weight.sum()


def rank_correlation(score: Scores, value: Scores) -> Float[Array, ""]:
    """Compute Spearman's rank correlation. Equal numbers share their mean rank. NaN for a constant and with a NaN."""
    check_sequence(score=score, value=value)
    return jnp.corrcoef(rankdata(score), rankdata(value))[0, 1]


def label_entropy(preferences: Preferences) -> Float[Array, ""]:
    """Compute the mean entropy of the annotator's answers, in nats: 0 if it is always sure, ln 2 if it guesses."""
    prob = preferences.prob
    return _average(jax.scipy.special.entr(prob) + jax.scipy.special.entr(1 - prob), answered(preferences))


def best_accuracy(preferences: Preferences) -> Float[Array, ""]:
    """Compute the ceiling of `label_accuracy`: its expectation for a ranker with the annotator's own probabilities."""
    return _average(jnp.maximum(preferences.prob, 1 - preferences.prob), answered(preferences))


def equal_return_share(preferences: Preferences) -> Float[Array, ""]:
    """Compute the weighted share of answers about two equal true returns. There, an answer by return is a coin flip.

    Pairs without an answer, and those of an unknown (NaN) return, are left out. NaN if no pair is left.
    """
    gap = true_return(preferences.chosen) - true_return(preferences.rejected)
    return _average(jnp.float32(gap == 0), jnp.where(jnp.isnan(gap), 0.0, answered(preferences)))


def answered(preferences: Preferences) -> Float[Array, " N"]:
    """Return the weights of the pairs that have an answer, 0 for skipped pairs and for ties."""
    if preferences.target is None:
        return preferences.weight
    return jnp.where(preferences.target == 0.5, 0.0, preferences.weight)


def _accuracy(gap: Scores, true_gap: Scores | float, weight: Float[Array, " N"]) -> Float[Array, ""]:
    """Average 1 where the gap has the sign of the true gap, 1/2 where it is 0, and 0 elsewhere."""
    return _average(jnp.where(gap == 0, 0.5, jnp.sign(gap) == jnp.sign(true_gap)), weight)


def _average(values: Float[Array, " N"], weight: Float[Array, " N"]) -> Float[Array, ""]:
    return jnp.where(weight > 0, weight * values, 0.0).sum() / weight.sum()


def _check_scores(chosen_score: Any, rejected_score: Any, preferences: Preferences) -> None:
    check_preferences(preferences)
    check_same_shape(chosen_score=chosen_score, rejected_score=rejected_score, weight=preferences.weight)
