"""Statistics over seeds, against scipy and against numbers worked out by hand."""

import numpy as np
import pytest
import scipy.stats

from jaxpref import statistics

# --- the interquartile mean -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("num_seeds", [4, 8, 20, 100])
def test_iqm_is_the_mean_of_the_middle_half(num_seeds):
    """Where a quarter of the seeds is a whole number: sort, cut a quarter at each end, average."""
    scores = np.random.default_rng(num_seeds).normal(size=num_seeds)
    quarter = num_seeds // 4
    np.testing.assert_allclose(statistics.iqm(scores), np.sort(scores)[quarter:-quarter].mean(), rtol=1e-12)
    np.testing.assert_allclose(statistics.iqm(scores), scipy.stats.trim_mean(scores, 0.25), rtol=1e-12)


@pytest.mark.parametrize(
    ("scores", "expected"),
    [
        ([7.0], 7.0),  # a quarter of 1, 2 or 3 scores, rounded down, is none
        ([1.0, 4.0], 2.5),
        ([100.0, 1.0, 7.0], 36.0),
        ([100.0, 1.0, 7.0, -50.0], 4.0),  # from 4 to 7 scores one at each end
        ([5.0, 1.0, 900.0, 3.0, 4.0], 4.0),
        ([0.0, 1.0, 2.0, 3.0, 4.0, 95.0], 2.5),
        ([-900.0, 1.0, 2.0, 3.0, 4.0, 5.0, 900.0], 3.0),
        ([9.0, -900.0, -800.0, 3.0, 4.0, 5.0, 7.0, 800.0, 900.0], 5.6),  # two: 3 + 4 + 5 + 7 + 9 of 5
    ],
)
def test_iqm_hand_worked(scores, expected):
    result = statistics.iqm(np.array(scores))
    assert isinstance(result, float)
    np.testing.assert_allclose(result, expected, rtol=1e-12)


def test_iqm_of_several_tasks_pools_all_their_scores():
    """Two outliers of eight scores are cut wherever they stand: (2 + 3 + 4 + 5) / 4."""
    np.testing.assert_allclose(statistics.iqm(np.array([[1.0, 2.0, 3.0, 99.0], [98.0, 5.0, 4.0, -70.0]])), 3.5)


def test_iqm_along_an_axis_is_that_of_every_row():
    scores = np.random.default_rng(1).normal(size=(3, 9))
    np.testing.assert_allclose(statistics.iqm(scores, axis=1), [statistics.iqm(row) for row in scores], rtol=1e-12)
    columns = statistics.iqm(scores.T, axis=0)
    np.testing.assert_allclose(columns, [statistics.iqm(row) for row in scores], rtol=1e-12)


# --- the bootstrap ----------------------------------------------------------------------------------------------------


def width(interval):
    """Of an interval."""
    low, high = interval
    return high - low


def test_the_interval_is_the_same_in_every_call_and_another_with_another_seed():
    scores = np.random.default_rng(2).normal(size=10)
    first = statistics.bootstrap_interval(scores)
    assert statistics.bootstrap_interval(scores) == first
    assert statistics.bootstrap_interval(scores, seed=1) != first


@pytest.mark.parametrize("statistic", [statistics.iqm, np.mean, np.median])
def test_the_interval_holds_the_statistic_and_no_more_than_the_scores(statistic):
    for seed in range(20):
        scores = np.random.default_rng(seed).normal(size=12)
        low, high = statistics.bootstrap_interval(scores, statistic)
        assert scores.min() <= low < statistic(scores) < high <= scores.max()


def test_the_interval_is_of_the_iqm_unless_told_otherwise():
    """One failed seed of twelve. A resample holds it three times or more with probability 0.07, and then its mean is
    below (9 * 20 - 3000) / 12 = -235; four times, one more than the IQM cuts, with probability 0.014 < 0.025."""
    scores = np.append(np.arange(10.0, 21.0), -1000.0)
    assert statistics.bootstrap_interval(scores, np.mean)[0] <= -235
    assert statistics.bootstrap_interval(scores)[0] >= 10
    assert statistics.bootstrap_interval(scores) == statistics.bootstrap_interval(scores, statistics.iqm)


def test_the_interval_is_scipys_percentile_bootstrap():
    """Of the mean of 25 scores; both estimate 2.5 % quantiles from 20 000 resamples, good to 0.02 deviations."""
    scores = np.random.default_rng(3).exponential(size=25)
    ours = statistics.bootstrap_interval(scores, np.mean, num_resamples=20_000)
    theirs = scipy.stats.bootstrap(
        (scores,), np.mean, n_resamples=20_000, method="percentile", rng=np.random.default_rng(4)
    ).confidence_interval
    deviation = scores.std() / np.sqrt(25)
    np.testing.assert_allclose(ours, theirs, atol=0.1 * deviation)


@pytest.mark.parametrize(("confidence", "z"), [(0.5, 0.6745), (0.8, 1.2816), (0.95, 1.9600), (0.99, 2.5758)])
def test_confidence_is_the_share_between_the_ends(confidence, z):
    """The mean of 1000 scores is normal: its interval lies z standard errors to either side."""
    scores = np.random.default_rng(5).normal(size=1000)
    interval = statistics.bootstrap_interval(scores, np.mean, confidence=confidence, num_resamples=4000)
    error = scores.std() / np.sqrt(1000)
    np.testing.assert_allclose(interval, scores.mean() + np.array([-z, z]) * error, atol=0.2 * error)


def test_the_interval_narrows_with_the_root_of_the_number_of_seeds():
    """16 times the seeds, a quarter of the width: over 20 data sets, to 15 %."""
    widths = {
        num_seeds: np.mean(
            [
                width(
                    statistics.bootstrap_interval(np.random.default_rng(seed).normal(size=num_seeds), num_resamples=500)
                )
                for seed in range(20)
            ]
        )
        for num_seeds in (25, 400)
    }
    np.testing.assert_allclose(widths[25] / widths[400], 4, rtol=0.15)


def test_95_percent_intervals_of_normal_data_hold_the_truth_19_times_of_20():
    """500 data sets of 50 seeds with mean 3. The percentile bootstrap of the mean uses the deviation with n in the
    denominator and normal quantiles for t's: P(|t_49| < 1.96 * sqrt(49 / 50)) = 0.942; 4 sigma of 500 are 0.042."""
    rng = np.random.default_rng(6)
    held = []
    for _ in range(500):
        low, high = statistics.bootstrap_interval(rng.normal(3.0, 2.0, size=50), np.mean, num_resamples=400)
        held.append(low < 3.0 < high)
    expected = 2 * scipy.stats.t.cdf(1.96 * np.sqrt(49 / 50), 49) - 1
    assert abs(np.mean(held) - expected) < 4 * np.sqrt(expected * (1 - expected) / 500)


def test_seeds_are_resampled_within_their_task():
    """Tasks at 0 and at 100 without any spread: whatever is drawn, half of it is 100."""
    scores = np.array([[0.0] * 5, [100.0] * 5])
    assert statistics.bootstrap_interval(scores, np.mean) == (50.0, 50.0)


def test_tasks_are_resampled_independently_of_each_other():
    """The second task mirrors the first. Drawn together they would cancel in every resample; drawn apart the mean's
    deviation is that of 2 * 40 independent scores."""
    scores = np.random.default_rng(7).normal(size=40)
    low, high = statistics.bootstrap_interval(np.stack([scores, -scores]), np.mean, num_resamples=4000)
    error = 1.96 * scores.std() / np.sqrt(80)
    np.testing.assert_allclose([low, high], [-error, error], rtol=0.1)


def test_a_single_seed_is_its_own_interval():
    assert statistics.bootstrap_interval(np.array([42.5])) == (42.5, 42.5)


def test_no_scores_have_no_interval():
    with pytest.raises(ValueError, match="at least one seed"):
        statistics.bootstrap_interval(np.array([]))


# --- the probability of improvement -----------------------------------------------------------------------------------


def test_probability_of_improvement_is_mann_whitneys_u_over_the_number_of_pairs():
    """Also with ties, of which rounding makes plenty, and with unequal numbers of seeds."""
    rng = np.random.default_rng(8)
    for num_scores, num_baseline in ((5, 5), (7, 3), (40, 60)):
        scores, baseline = rng.normal(0.5, 1, num_scores).round(), rng.normal(0, 1, num_baseline).round()
        u = scipy.stats.mannwhitneyu(scores, baseline).statistic
        np.testing.assert_allclose(
            statistics.probability_of_improvement(scores, baseline), u / (num_scores * num_baseline), rtol=1e-12
        )


@pytest.mark.parametrize(
    ("scores", "baseline", "expected"),
    [
        ([5.0, 6.0, 7.0], [1.0, 2.0], 1.0),
        ([1.0, 2.0], [5.0, 6.0, 7.0], 0.0),
        ([3.0, 3.0], [3.0, 3.0, 3.0], 0.5),
        ([2.0], [1.0, 2.0, 3.0, 4.0], 1.5 / 4),  # above 1, ties with 2
        ([1.0, 4.0], [2.0, 3.0], 0.5),
    ],
)
def test_probability_of_improvement_hand_worked(scores, baseline, expected):
    assert statistics.probability_of_improvement(np.array(scores), np.array(baseline)) == expected


def test_probability_of_improvement_compares_within_a_task_and_averages_over_tasks():
    """1 on the first task, 1/4 on the second; the tasks' scores are never held against each other."""
    scores, baseline = np.array([[1.0, 2.0], [100.0, 103.0]]), np.array([[0.0, -1.0], [102.0, 104.0]])
    assert statistics.probability_of_improvement(scores, baseline) == (1 + 1 / 4) / 2


def test_probability_of_improvement_and_of_the_opposite_are_one_together():
    rng = np.random.default_rng(9)
    scores, baseline = rng.integers(5, size=(2, 8)).astype(float), rng.integers(5, size=(2, 6)).astype(float)
    forth = statistics.probability_of_improvement(scores, baseline)
    np.testing.assert_allclose(forth + statistics.probability_of_improvement(baseline, scores), 1, rtol=1e-12)
