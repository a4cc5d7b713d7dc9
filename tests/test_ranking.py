"""Ranking quality: hand-worked numbers, NumPy loops, scipy, and what scores cannot exceed."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats
from helpers import assert_same_bytes, pairs_of_returns, random_preferences
from hypothesis import given, settings
from hypothesis import strategies as st

import jaxpref
from jaxpref import ranking

LN2, LN3 = np.log(2), np.log(3)

accuracy = jax.jit(ranking.accuracy)
negative_log_likelihood = jax.jit(ranking.negative_log_likelihood)
calibration_error = jax.jit(ranking.calibration_error, static_argnames="num_bins")
rank_correlation = jax.jit(ranking.rank_correlation)
label_entropy = jax.jit(ranking.label_entropy)
best_accuracy = jax.jit(ranking.best_accuracy)


def answers(weight, target=None, prob=None):
    """Pairs with these weights, targets and probabilities; their returns do not matter."""
    pairs = pairs_of_returns(np.zeros(len(weight)), np.ones(len(weight)))
    weight, target, prob = (None if array is None else jnp.float32(array) for array in (weight, target, prob))
    return pairs.replace(weight=weight, target=target, prob=pairs.prob if prob is None else prob)


def scores_of(gap):
    """(chosen, rejected) scores with these gaps; the common part, which no measure may depend on, is not zero."""
    common = jnp.arange(len(gap)) - 2.0
    return common + jnp.float32(gap), common


# --- accuracy ---------------------------------------------------------------------------------------------------------


def test_ranking_accuracy_hand_worked():
    """True order >, <, >, <, >; scores right, right (the label itself was wrong), wrong, tied, right: 3.5 of 5."""
    some = pairs_of_returns([5, 1, 9, 2, 4], [3, 2, 8, 6, 0])
    share = accuracy(jnp.array([1.0, -3.0, 0.0, 7.0, 0.1]), jnp.array([0.0, 2.0, 1.0, 7.0, 0.0]), some)
    np.testing.assert_allclose(share, 3.5 / 5)


def test_ranking_accuracy_leaves_out_pairs_of_equal_return():
    """The tie is in the returns: whatever its scores, one right pair of the one that has an order."""
    some = pairs_of_returns([5, 200], [3, 200])
    for tied_score in (-1.0, 0.0, 1.0):
        np.testing.assert_array_equal(accuracy(jnp.array([1.0, tied_score]), jnp.zeros(2), some), 1)
    assert np.isnan(accuracy(jnp.ones(2), jnp.zeros(2), pairs_of_returns([1, 1], [1, 1])))


def with_unknown_rewards(chosen, rejected):
    """Returns 5 > 3, 1 < 2, 9 > 8, 4 > 0, but for those that a file does not know."""
    some = pairs_of_returns([5, 1, 9, 4], [3, 2, 8, 0])

    def unknown(trajectory, where):
        return trajectory.replace(reward=jnp.where(jnp.array(where)[:, None], jnp.nan, trajectory.reward))

    return some.replace(chosen=unknown(some.chosen, chosen), rejected=unknown(some.rejected, rejected))


def test_pairs_of_unknown_return_are_not_ranked():
    """Right, wrong, and two that are not known: 1 of 2. Where all are unknown, NaN."""
    unknown = with_unknown_rewards([False, False, True, False], [False, False, False, True])
    scores = jnp.array([1.0, 1.0, 1.0, 1.0]), jnp.zeros(4)
    assert accuracy(*scores, unknown) == ranking.quality(*scores, unknown).accuracy == 0.5
    nothing = with_unknown_rewards([True] * 4, [True] * 4)
    found = ranking.quality(*scores, nothing)
    assert np.isnan([accuracy(*scores, nothing), found.accuracy, found.rank_correlation]).all()
    np.testing.assert_allclose(found.negative_log_likelihood, np.log1p(np.exp(-1)), rtol=1e-6)  # needs no returns


def test_ranking_accuracy_of_the_true_return_is_one_and_of_its_opposite_zero():
    some = random_preferences(np.random.default_rng(9), 30, 6)
    chosen, rejected = jaxpref.true_return(some.chosen), jaxpref.true_return(some.rejected)
    assert (chosen != rejected).sum() > 20
    assert accuracy(chosen, rejected, some) == 1
    assert accuracy(-chosen, -rejected, some) == 0


# --- which pairs count ------------------------------------------------------------------------------------------------


def test_a_tie_and_a_skipped_pair_are_no_answers():
    weight, target = [2.0, 0.0, 3.0, 0.5, 0.0], [1.0, 1.0, 0.5, 1.0, 0.5]
    np.testing.assert_array_equal(ranking.answered(answers(weight, target)), [2, 0, 0, 0.5, 0])
    np.testing.assert_array_equal(ranking.answered(answers(weight)), weight)


@pytest.mark.parametrize(
    "measure",
    [
        lambda gap, pairs: negative_log_likelihood(*scores_of(gap), pairs),
        lambda gap, pairs: calibration_error(*scores_of(gap), pairs),
        lambda gap, pairs: label_entropy(pairs),
        lambda gap, pairs: best_accuracy(pairs),
    ],
    ids=["negative log-likelihood", "calibration error", "label entropy", "best accuracy"],
)
def test_measures_are_means_over_answers(measure):
    """A skipped pair and a tie change nothing, whatever their scores, and a pair of weight 2 is two pairs; without any
    answer there is no mean."""
    gap, prob = [LN3, -1.0, 40.0, np.nan], [0.9, 0.6, 0.2, 0.3]
    found = measure(gap, answers([2, 1, 1, 0], [1, 1, 0.5, 1], prob))
    by_hand = measure([LN3, LN3, -1.0], answers([1, 1, 1], prob=[0.9, 0.9, 0.6]))
    np.testing.assert_allclose(found, by_hand, rtol=1e-6)
    assert abs(found - measure([LN3, -1.0], answers([1, 1], prob=[0.9, 0.6]))) > 1e-2
    assert np.isnan(measure(gap, answers([0, 0, 1, 0], [1, 1, 0.5, 1], prob)))


# --- negative log-likelihood ------------------------------------------------------------------------------------------


def test_negative_log_likelihood_hand_worked():
    """P(chosen) = 3/4, 1/4 and 1/2, weights 1, 2 and 1: (ln 4/3 + 2 ln 4 + ln 2) / 4."""
    found = negative_log_likelihood(*scores_of([LN3, -LN3, 0.0]), answers([1, 2, 1]))
    np.testing.assert_allclose(found, (np.log(4 / 3) + 2 * np.log(4) + LN2) / 4, rtol=1e-6)


def test_equal_scores_know_nothing():
    np.testing.assert_allclose(negative_log_likelihood(*scores_of([0.0] * 3), answers([1, 5, 2])), LN2, rtol=1e-6)
    # And a scorer who is sure of what is wrong knows less than that: -log sigmoid(-50) = 50.
    np.testing.assert_allclose(negative_log_likelihood(*scores_of([-50.0]), answers([1])), 50, rtol=1e-6)


# --- calibration ------------------------------------------------------------------------------------------------------


def test_scores_that_are_right_as_often_as_they_say_are_calibrated():
    """Three of four right where they say 3/4, nine of ten where they say 9/10, half of two where they say 1/2."""
    gap = [LN3] * 3 + [-LN3] + [np.log(9)] * 9 + [-np.log(9)] + [0.0] * 2
    np.testing.assert_allclose(calibration_error(*scores_of(gap), answers([1] * 16)), 0, atol=1e-6)


@pytest.mark.parametrize("num_right", [0, 3, 4])
def test_scores_that_are_always_sure_err_by_the_share_that_is_wrong(num_right):
    """Confidence 1; `num_right` of four are right."""
    gap = [100.0] * num_right + [-100.0] * (4 - num_right)
    np.testing.assert_allclose(calibration_error(*scores_of(gap), answers([1] * 4)), 1 - num_right / 4, atol=1e-6)


def test_calibration_error_hand_worked():
    """Bins of 0.5..0.75 and 0.75..1. In the lower one confidence 0.6 (right) and 0.7 (wrong, weight 3): mean 0.675,
    a quarter right, 0.425 too sure. In the upper one 0.8 (right) and 0.9 (right): 0.15 not sure enough. The bins weigh
    4 and 2. Too sure here is not made up for by not sure enough there; within one bin it is: all four in one are
    right in 3 of 6 where they say 0.7333."""
    confidence, sign = np.array([0.6, 0.7, 0.8, 0.9]), np.array([1, -1, 1, 1])
    scores, pairs = scores_of(sign * np.log(confidence / (1 - confidence))), answers([1, 3, 1, 1])
    np.testing.assert_allclose(calibration_error(*scores, pairs, num_bins=2), (4 * 0.425 + 2 * 0.15) / 6, rtol=1e-5)
    mean_confidence = (0.6 + 3 * 0.7 + 0.8 + 0.9) / 6
    np.testing.assert_allclose(calibration_error(*scores, pairs, num_bins=1), mean_confidence - 0.5, rtol=1e-5)


def numpy_calibration_error(gap, weight, num_bins):
    """Bin by bin."""
    confidence = 1 / (1 + np.exp(-np.abs(gap)))
    total = 0.0
    for i in range(num_bins):
        low, high = 0.5 + 0.5 * i / num_bins, 0.5 + 0.5 * (i + 1) / num_bins
        inside = (confidence >= low) & ((confidence < high) | (i == num_bins - 1)) & (weight > 0)
        if inside.any():
            right = np.average(np.where(gap == 0, 0.5, gap > 0)[inside], weights=weight[inside])
            total += weight[inside].sum() * abs(np.average(confidence[inside], weights=weight[inside]) - right)
    return total / weight.sum()


@settings(deadline=None, max_examples=40)
@given(st.integers(0, 2**32 - 1))
def test_calibration_error_is_a_loop_over_bins(seed):
    """Confidences of 0.505, 0.515, .. 0.995, which no rounding moves to another bin, and three equal scores."""
    rng = np.random.default_rng(seed)
    confidence, right = 0.505 + 0.01 * rng.integers(50, size=30), rng.random(30) < rng.random()
    gap = np.log(confidence / (1 - confidence)) * np.where(right, 1, -1)
    gap[:3], weight = 0, rng.choice([0.0, 0.5, 1.0, 3.0], size=30)
    weight[4] = 1
    found = calibration_error(jnp.float32(gap), jnp.zeros(30), answers(weight))
    np.testing.assert_allclose(found, numpy_calibration_error(gap, weight, 10), rtol=1e-4, atol=1e-6)
    assert 0 <= found <= 1


# --- rank correlation -------------------------------------------------------------------------------------------------

NUMBERS = st.lists(st.integers(-4, 4), min_size=9, max_size=9).filter(lambda numbers: len(set(numbers)) > 1)
"""Nine of nine values: there are always some ties, or all nine."""


@settings(deadline=None, max_examples=60)
@given(NUMBERS, NUMBERS)
def test_rank_correlation_is_scipys_also_with_ties(score, value):
    expected = scipy.stats.spearmanr(score, value).statistic
    np.testing.assert_allclose(rank_correlation(jnp.float32(score), jnp.float32(value)), expected, atol=1e-5)


@settings(deadline=None, max_examples=40)
@given(NUMBERS, NUMBERS)
def test_rank_correlation_sees_the_order_alone(score, value):
    score, value = jnp.float32(score), jnp.float32(value)
    found = rank_correlation(score, value)
    assert_same_bytes(rank_correlation(jnp.exp(score) + 5, value**3), found)
    np.testing.assert_allclose(rank_correlation(-(score**3), value), -found, atol=1e-6)
    np.testing.assert_allclose(rank_correlation(score, 2 * score - 1), 1, rtol=1e-6)


def test_numbers_that_are_not_known_have_no_rank_correlation():
    """As in scipy."""
    score, value = np.array([1.0, 2.0, 3.0]), np.array([1.0, np.nan, 2.0])
    assert np.isnan(scipy.stats.spearmanr(score, value).statistic)
    assert np.isnan(rank_correlation(jnp.float32(score), jnp.float32(value)))


def test_a_constant_has_no_rank_correlation():
    some, constant = jnp.arange(9.0), jnp.full(9, 2.0)
    assert np.isnan(rank_correlation(some, constant))
    assert np.isnan(rank_correlation(constant, some))


# --- what the annotator leaves to be known ----------------------------------------------------------------------------


def test_label_entropy_and_best_accuracy_hand_worked():
    """A coin: ln 2 and 1/2. Never in doubt, also where the answer is an improbable one: 0 and 1. Answers of
    probability 3/4 and 1/4: ln 4 - 3/4 ln 3 and 3/4."""
    for prob, entropy, best in (
        ([0.5] * 3, LN2, 0.5),
        ([1.0, 0.0, 1.0], 0.0, 1.0),
        ([0.75, 0.25, 0.75], np.log(4) - 0.75 * LN3, 0.75),
        ([0.5, 1.0, 0.25], (LN2 + np.log(4) - 0.75 * LN3) / 3, 2.25 / 3),
    ):
        pairs = answers([1] * 3, prob=prob)
        np.testing.assert_allclose(label_entropy(pairs), entropy, rtol=1e-6, atol=1e-7)
        np.testing.assert_allclose(best_accuracy(pairs), best, rtol=1e-6)


@settings(deadline=None, max_examples=40)
@given(st.lists(st.floats(0, 1, width=32), min_size=6, max_size=6))
def test_label_entropy_and_best_accuracy_stay_within_their_bounds(prob):
    """0 .. ln 2 and 0.5 .. 1, scipy's entropy of both answers; who hesitates more is harder to predict:
    1 - best <= entropy / (2 ln 2)."""
    pairs = answers([1.0] * 6, prob=prob)
    entropy, best = label_entropy(pairs), best_accuracy(pairs)
    assert -1e-6 <= entropy <= LN2 + 1e-6
    assert 0.5 - 1e-6 <= best <= 1 + 1e-6
    assert 1 - best <= entropy / (2 * LN2) + 1e-6
    both = np.stack([np.float64(prob), 1 - np.float64(prob)])
    np.testing.assert_allclose(entropy, scipy.stats.entropy(both).mean(), rtol=1e-4, atol=1e-5)


# --- all together -----------------------------------------------------------------------------------------------------


def test_quality_is_its_parts():
    """Rank correlation over the twelve trajectories, not over the six pairs."""
    rng = np.random.default_rng(3)
    pairs = pairs_of_returns(rng.normal(size=6), rng.normal(size=6)).replace(
        weight=jnp.array([1.0, 0.0, 2.0, 1.0, 0.5, 1.0]), target=jnp.array([1.0, 1.0, 0.5, 1.0, 1.0, 1.0])
    )
    scores = jnp.float32(rng.normal(size=6)), jnp.float32(rng.normal(size=6))
    found = jax.jit(ranking.quality)(*scores, pairs)
    parts = accuracy(*scores, pairs), negative_log_likelihood(*scores, pairs), calibration_error(*scores, pairs)
    np.testing.assert_allclose((found.accuracy, found.negative_log_likelihood, found.calibration_error), parts)
    returns = np.concatenate([pairs.chosen.reward[:, 0], pairs.rejected.reward[:, 0]])
    expected = scipy.stats.spearmanr(np.concatenate(scores), returns).statistic
    np.testing.assert_allclose(found.rank_correlation, expected, rtol=1e-5)
