"""How well scores rank labelled pairs, and how well any score could.

A score is a number for every trajectory: a learned return, or DPO's implicit reward. Scores that are not one for each
pair raise ValueError.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from flax import struct
from jaxtyping import Array, Float

from jaxpref import losses
from jaxpref.checks import check_count, check_preferences, check_same_shape, check_sequence
from jaxpref.types import Preferences, true_return


@struct.dataclass
class Quality:
    """What scores are worth on pairs they were not fitted to; see the functions of the same names."""

    accuracy: Float[Array, "*batch"]
    negative_log_likelihood: Float[Array, "*batch"]
    calibration_error: Float[Array, "*batch"]
    rank_correlation: Float[Array, "*batch"]


def quality(chosen_score: Float[Array, " N"], rejected_score: Float[Array, " N"], preferences: Preferences) -> Quality:
    """All measures at once; rank correlation over the 2N trajectories."""
    _check_scores(chosen_score, rejected_score, preferences)
    score = jnp.concatenate([chosen_score, rejected_score])
    returns = jnp.concatenate([true_return(preferences.chosen), true_return(preferences.rejected)])
    return Quality(
        accuracy=accuracy(chosen_score, rejected_score, preferences),
        negative_log_likelihood=negative_log_likelihood(chosen_score, rejected_score, preferences),
        calibration_error=calibration_error(chosen_score, rejected_score, preferences),
        rank_correlation=rank_correlation(score, returns),
    )


def accuracy(
    chosen_score: Float[Array, " N"], rejected_score: Float[Array, " N"], preferences: Preferences
) -> Float[Array, ""]:
    """Share of pairs that the scores rank as the true returns do.

    Pairs of equal return, or of one that is not known (NaN), have no true ranking and are left out (NaN if there are no
    others); equal scores count as half right.
    """
    _check_scores(chosen_score, rejected_score, preferences)
    score_gap = chosen_score - rejected_score
    return_gap = true_return(preferences.chosen) - true_return(preferences.rejected)
    agree = jnp.where(score_gap == 0, 0.5, jnp.sign(score_gap) == jnp.sign(return_gap))
    ranked = (return_gap != 0) & ~jnp.isnan(return_gap)
    return jnp.where(ranked, agree, 0.0).sum() / ranked.sum()


def negative_log_likelihood(
    chosen_score: Float[Array, " N"], rejected_score: Float[Array, " N"], preferences: Preferences
) -> Float[Array, ""]:
    """Weighted mean of -log sigmoid(chosen_score - rejected_score), in nats, over answers; ln 2 knows nothing."""
    _check_scores(chosen_score, rejected_score, preferences)
    return _average(losses.bradley_terry(chosen_score, rejected_score), answered(preferences))


def calibration_error(
    chosen_score: Float[Array, " N"],
    rejected_score: Float[Array, " N"],
    preferences: Preferences,
    num_bins: int = 10,
) -> Float[Array, ""]:
    """Expected calibration error (Guo et al., 2017, https://arxiv.org/abs/1706.04599, equation 3).

    The scores say that one of a pair is preferred with confidence sigmoid(|gap|), from 0.5 to 1. In each of
    `num_bins` equal bins of confidence, how far is its mean from the share of answers that agree? The mean over bins,
    each counting as it is filled. Equal scores agree by half.
    """
    _check_scores(chosen_score, rejected_score, preferences)
    check_count(num_bins, "num_bins")
    gap, weight = chosen_score - rejected_score, answered(preferences)
    confidence, agree = jax.nn.sigmoid(jnp.abs(gap)), jnp.heaviside(gap, 0.5)
    place = jnp.clip(jnp.int32((confidence - 0.5) * 2 * num_bins), 0, num_bins - 1)
    surplus = jnp.zeros(num_bins).at[place].add(jnp.where(weight > 0, weight * (confidence - agree), 0.0))
    return jnp.abs(surplus).sum() / weight.sum()


def rank_correlation(score: Float[Array, " N"], value: Float[Array, " N"]) -> Float[Array, ""]:
    """Spearman's: Pearson's correlation of the ranks, equal numbers sharing the mean of theirs; NaN for a constant, and
    where a number is NaN.
    """
    check_sequence(score=score, value=value)
    return jnp.corrcoef(_ranks(score), _ranks(value))[0, 1]


def _ranks(values: Float[Array, " N"]) -> Float[Array, " N"]:
    below = (values < values[:, None]).sum(-1)
    equal = (values == values[:, None]).sum(-1)
    return jnp.where(jnp.isnan(values), jnp.nan, below + (equal + 1) / 2)


def label_entropy(preferences: Preferences) -> Float[Array, ""]:
    """Mean entropy of the annotator's answers, in nats: 0 where it never hesitates, ln 2 where it tosses a coin."""
    prob = preferences.prob
    return _average(jax.scipy.special.entr(prob) + jax.scipy.special.entr(1 - prob), answered(preferences))


def best_accuracy(preferences: Preferences) -> Float[Array, ""]:
    """Expected share of answers that a ranker with the annotator's own probabilities predicts: none does better."""
    return _average(jnp.maximum(preferences.prob, 1 - preferences.prob), answered(preferences))


def answered(preferences: Preferences) -> Float[Array, " N"]:
    """Weights of the pairs that have an answer: 0 for skipped ones and for ties."""
    if preferences.target is None:
        return preferences.weight
    return jnp.where(preferences.target == 0.5, 0.0, preferences.weight)


def _check_scores(chosen_score: Any, rejected_score: Any, preferences: Preferences) -> None:
    check_preferences(preferences)
    check_same_shape(chosen_score=chosen_score, rejected_score=rejected_score, weight=preferences.weight)


def _average(values: Float[Array, " N"], weight: Float[Array, " N"]) -> Float[Array, ""]:
    return jnp.where(weight > 0, weight * values, 0.0).sum() / weight.sum()
