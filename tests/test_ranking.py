"""Ranking quality: hand-worked numbers, NumPy loops, scipy, and what scores cannot exceed."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats
from helpers import pairs_of_returns, random_trajectories
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxpref import Preferences, ranking

LN2, LN3 = np.log(2), np.log(3)

return_accuracy, label_accuracy = jax.jit(ranking.return_accuracy), jax.jit(ranking.label_accuracy)
length_accuracy, rank_correlation = jax.jit(ranking.length_accuracy), jax.jit(ranking.rank_correlation)
label_entropy, best_accuracy = jax.jit(ranking.label_entropy), jax.jit(ranking.best_accuracy)
equal_return_share = jax.jit(ranking.equal_return_share)
negative_log_likelihood = jax.jit(ranking.negative_log_likelihood)
calibration_error = jax.jit(ranking.calibration_error, static_argnames="num_bins")


def answers(weight, target=None, prob=None):
    """Pairs with these weights, targets and probabilities; their returns do not matter."""
    pairs = pairs_of_returns(np.zeros(len(weight)), np.ones(len(weight)))
    weight, target, prob = (None if array is None else jnp.float32(array) for array in (weight, target, prob))
    return pairs.replace(weight=weight, target=target, prob=pairs.prob if prob is None else prob)


def scores_of(gap):
    """(chosen, rejected) scores with these gaps; the common part, which no measure may depend on, is not zero."""
    common = jnp.arange(len(gap)) - 2.0
    return common + jnp.float32(gap), common


def test_return_accuracy_hand_worked():
    """True order >, <, >, <, >; scores right, right (the label itself was wrong), wrong, tied, right: 3.5 of 5. As
    labelled right, wrong, wrong, tied, right: 2.5."""
    some = pairs_of_returns([5, 1, 9, 2, 4], [3, 2, 8, 6, 0])
    scores = jnp.array([1.0, -3.0, 0.0, 7.0, 0.1]), jnp.array([0.0, 2.0, 1.0, 7.0, 0.0])
    np.testing.assert_allclose(return_accuracy(*scores, some), 3.5 / 5)
    np.testing.assert_allclose(label_accuracy(*scores, some), 2.5 / 5)


def with_rewards(pairs, chosen_rewards):
    """One-step episodes, the chosen ones with other rewards."""
    return pairs.replace(chosen=pairs.chosen.replace(reward=jnp.float32(chosen_rewards)[:, None]))


def test_pairs_of_equal_or_unknown_return_are_not_ranked():
    """Right, wrong, a tie, one that is not known, right: 2 of 3. Labels need no returns: 4 of 5."""
    some = with_rewards(pairs_of_returns([5, 1, 200, 0, 4], [3, 2, 200, 8, 0]), [5, 1, 200, np.nan, 4])
    scores = jnp.array([1.0, 1.0, -1.0, 1.0, 1.0]), jnp.zeros(5)
    np.testing.assert_allclose(return_accuracy(*scores, some), 2 / 3)
    np.testing.assert_allclose(label_accuracy(*scores, some), 4 / 5)
    unknown = with_rewards(some, [np.nan] * 5)
    assert np.isnan([return_accuracy(*scores, unknown), ranking.quality(*scores, unknown).rank_correlation]).all()


def test_equal_return_share_hand_worked():
    """Returns equal, different, equal, unknown, equal; weights 1, 2, 3, 4 and 0: 4 of 6. A tie is no answer: 1 of 3.
    Nothing is left where every return is unknown, or no pair has an answer."""
    some = with_rewards(pairs_of_returns([0] * 5, [5, 2, 200, 8, 0]), [5, 1, 200, np.nan, 0])
    some = some.replace(weight=jnp.array([1.0, 2.0, 3.0, 4.0, 0.0]))
    np.testing.assert_allclose(equal_return_share(some), 4 / 6)
    np.testing.assert_allclose(equal_return_share(some.replace(target=jnp.array([1.0, 1.0, 0.5, 1.0, 1.0]))), 1 / 3)
    for nothing in (with_rewards(some, [np.nan] * 5), some.replace(weight=jnp.zeros(5))):
        assert np.isnan(equal_return_share(nothing))


def pairs_of_lengths(chosen, rejected, returns):
    """Episodes of these lengths; chosen[i] returns returns[i], rejected[i] nothing."""
    sides = [random_trajectories(np.random.default_rng(0), lengths, 4) for lengths in (chosen, rejected)]
    rewards = jnp.float32(np.outer(returns, [1, 0, 0, 0]))
    sides = sides[0].replace(reward=rewards), sides[1].replace(reward=jnp.zeros_like(rewards))
    return Preferences(*sides, weight=jnp.ones(len(returns)), prob=jnp.ones(len(returns)))


def test_length_accuracy_hand_worked():
    """Longer, shorter, shorter, equal; better, better, better, worse: "shorter" has 2.5 of 4. Where the longer one of
    the last pairs is the worse one, all but the equal one are a matter of length, whichever way."""
    for returns, expected in (([1, 1, 1, -1], 2.5 / 4), ([1, -1, -1, 1], 3.5 / 4), ([-1, 1, 1, 1], 3.5 / 4)):
        pairs = pairs_of_lengths([4, 2, 1, 3], [2, 3, 3, 3], returns)
        np.testing.assert_allclose(length_accuracy(pairs), expected)


def test_without_returns_length_is_held_against_the_labels():
    """Weights 1, 3 and 1; as labelled, "longer" is right once, "shorter" twice, with weight 4. No answers: NaN."""
    pairs = pairs_of_lengths([4, 2, 1], [2, 3, 3], [np.nan] * 3).replace(weight=jnp.array([1.0, 3.0, 1.0]))
    np.testing.assert_allclose(length_accuracy(pairs), 4 / 5)
    assert np.isnan(length_accuracy(pairs.replace(weight=jnp.zeros(3))))


def test_a_tie_and_a_skipped_pair_are_no_answers():
    weight, target = [2.0, 0.0, 3.0, 0.5, 0.0], [1.0, 1.0, 0.5, 1.0, 0.5]
    np.testing.assert_array_equal(ranking.answered(answers(weight, target)), [2, 0, 0, 0.5, 0])
    np.testing.assert_array_equal(ranking.answered(answers(weight)), weight)


@pytest.mark.parametrize(
    "measure",
    [
        negative_log_likelihood,
        calibration_error,
        label_accuracy,
        lambda *scores_and_pairs: label_entropy(scores_and_pairs[-1]),
        lambda *scores_and_pairs: best_accuracy(scores_and_pairs[-1]),
    ],
)
def test_measures_are_means_over_answers(measure):
    """A skipped pair and a tie change nothing, whatever their scores, and a pair of weight 2 is two pairs; without any
    answer there is no mean."""
    gap, prob = [LN3, -1.0, 40.0, np.nan], [0.9, 0.6, 0.2, 0.3]
    found = measure(*scores_of(gap), answers([2, 1, 1, 0], [1, 1, 0.5, 1], prob))
    by_hand = measure(*scores_of([LN3, LN3, -1.0]), answers([1, 1, 1], prob=[0.9, 0.9, 0.6]))
    np.testing.assert_allclose(found, by_hand, rtol=1e-6)
    assert abs(found - measure(*scores_of([LN3, -1.0]), answers([1, 1], prob=[0.9, 0.6]))) > 1e-2
    assert np.isnan(measure(*scores_of(gap), answers([0, 0, 1, 0], [1, 1, 0.5, 1], prob)))


def test_negative_log_likelihood_hand_worked():
    """P(chosen) = 3/4, 1/4 and 1/2, weights 1, 2 and 1: (ln 4/3 + 2 ln 4 + ln 2) / 4. A sure and wrong score: 50."""
    found = negative_log_likelihood(*scores_of([LN3, -LN3, 0.0]), answers([1, 2, 1]))
    np.testing.assert_allclose(found, (np.log(4 / 3) + 2 * np.log(4) + LN2) / 4, rtol=1e-6)
    np.testing.assert_allclose(negative_log_likelihood(*scores_of([-50.0]), answers([1])), 50, rtol=1e-6)


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


@settings(deadline=None, max_examples=20)
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


NUMBERS = st.lists(st.integers(-4, 4), min_size=9, max_size=9).filter(lambda numbers: len(set(numbers)) > 1)
"""Nine of nine values: there are always some ties, or all nine."""


@settings(deadline=None, max_examples=25)
@given(NUMBERS, NUMBERS)
def test_rank_correlation_is_scipys_also_with_ties(score, value):
    expected = scipy.stats.spearmanr(score, value).statistic
    np.testing.assert_allclose(rank_correlation(jnp.float32(score), jnp.float32(value)), expected, atol=1e-5)


def test_a_constant_and_an_unknown_number_have_no_rank_correlation():
    some = jnp.arange(9.0)
    for other in (jnp.full(9, 2.0), some.at[3].set(jnp.nan)):
        assert np.isnan(rank_correlation(some, other))
        assert np.isnan(rank_correlation(other, some))


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


def test_quality_is_its_parts():
    """Rank correlation over the twelve trajectories, not over the six pairs."""
    rng = np.random.default_rng(3)
    pairs = pairs_of_returns(rng.normal(size=6), rng.normal(size=6)).replace(
        weight=jnp.array([1.0, 0.0, 2.0, 1.0, 0.5, 1.0]), target=jnp.array([1.0, 1.0, 0.5, 1.0, 1.0, 1.0])
    )
    scores = jnp.float32(rng.normal(size=6)), jnp.float32(rng.normal(size=6))
    found = jax.jit(ranking.quality)(*scores, pairs)
    for name in ("return_accuracy", "label_accuracy", "negative_log_likelihood", "calibration_error"):
        np.testing.assert_allclose(getattr(found, name), getattr(ranking, name)(*scores, pairs), rtol=1e-6)
    returns = np.concatenate([pairs.chosen.reward[:, 0], pairs.rejected.reward[:, 0]])
    expected = scipy.stats.spearmanr(np.concatenate(scores), returns).statistic
    np.testing.assert_allclose(found.rank_correlation, expected, rtol=1e-5)
