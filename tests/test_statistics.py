"""Statistics over seeds, against scipy and against numbers worked out by hand."""

import tracemalloc

import numpy as np
import pytest
import scipy.stats
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

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


def test_infinite_scores_are_compared_as_any_other():
    """Both tie at infinity, 1/2, and beat the other's 0: 3.5 / 4, and 1 / 2 by seed."""
    scores, baseline = np.array([np.inf, 1.0]), np.array([np.inf, 0.0])
    assert statistics.probability_of_improvement(scores, baseline) == (1 / 2 + 1 + 0 + 1) / 4
    assert statistics.paired_improvement(scores, baseline) == (1 / 2 + 1) / 2


def indices(seed, num_resamples, *shapes):
    """The seeds that the bootstrap draws, one array [resamples, T, S] for each shape (T, S)."""
    rng = np.random.default_rng(seed)
    return [rng.integers(num_seeds, size=(num_resamples, num_tasks, num_seeds)) for num_tasks, num_seeds in shapes]


def rounded(seed, *shape):
    """Scores of which many tie."""
    return np.random.default_rng(seed).normal(scale=2, size=shape).round()


def test_the_interval_of_the_probability_of_improvement_by_a_double_loop():
    scores, baseline = rounded(10, 2, 5), rounded(11, 2, 4)
    samples = []
    for draw, baseline_draw in zip(*indices(3, 60, (2, 5), (2, 4)), strict=True):
        wins = 0.0
        for task in range(2):
            for i in draw[task]:
                for j in baseline_draw[task]:
                    wins += (scores[task, i] > baseline[task, j]) + 0.5 * (scores[task, i] == baseline[task, j])
        samples.append(wins / (2 * 5 * 4))
    interval = statistics.improvement_interval(scores, baseline, confidence=0.8, num_resamples=60, seed=3)
    np.testing.assert_allclose(interval, np.percentile(samples, [10, 90]), rtol=1e-12)


def test_the_interval_of_the_probability_of_improvement_is_scipys():
    """Of two independent samples, resampled by scipy; ends of either are good to a few hundredths of the width."""

    def probability(scores, baseline, axis):
        wins = scores[..., :, None] > baseline[..., None, :]  # no ties here
        return wins.mean(axis=(-2, -1))

    rng = np.random.default_rng(12)
    scores, baseline = rng.normal(0.5, 1, size=20), rng.normal(0, 2, size=15)
    theirs = scipy.stats.bootstrap(
        (scores, baseline), probability, n_resamples=4000, method="percentile", rng=np.random.default_rng(13)
    ).confidence_interval
    ours = statistics.improvement_interval(scores, baseline, num_resamples=4000)
    np.testing.assert_allclose(ours, theirs, atol=0.08 * width(theirs))


def test_runs_and_baseline_are_resampled_apart():
    """A set against itself: drawn together, each resample would say 1/2. Drawn apart, the variance is that of
    U / (S * R) for equal distributions, (S + R + 1) / (12 * S * R), to about a hundredth."""
    scores = np.random.default_rng(14).normal(size=100)
    low, high = statistics.improvement_interval(scores, scores, num_resamples=4000)
    error = 1.96 * np.sqrt(201 / (12 * 100 * 100))
    np.testing.assert_allclose([low, high], [0.5 - error, 0.5 + error], atol=0.1 * error)


@pytest.mark.parametrize(
    ("scores", "baseline", "expected"),
    [
        ([[5.0, 6.0, 7.0]], [[1.0, 2.0]], 1.0),
        ([[1.0, 2.0]], [[5.0, 6.0, 7.0]], 0.0),
        ([[3.0, 3.0]], [[3.0, 3.0, 3.0]], 0.5),
        ([[1.0, 2.0], [1.0, 2.0]], [[0.0, 0.0], [3.0, 3.0]], 0.5),  # 1 on one task, 0 on the other
        ([[4.0], [5.0]], [[3.0], [5.0]], 0.75),  # one seed
    ],
)
def test_where_no_resample_can_differ_both_ends_are_the_probability(scores, baseline, expected):
    assert statistics.improvement_interval(np.array(scores), np.array(baseline)) == (expected, expected)


@given(arrays(float, (2, 6), elements=st.integers(-3, 3)), arrays(float, (2, 5), elements=st.integers(-3, 3)))
@settings(deadline=None, max_examples=40)
def test_only_the_order_of_scores_matters_to_the_probability_of_improvement(scores, baseline):
    """Any increasing function of all scores leaves the interval as it is; it holds the probability of the data."""
    low, high = statistics.improvement_interval(scores, baseline, num_resamples=200)
    assert statistics.improvement_interval(np.exp(scores), np.exp(baseline), num_resamples=200) == (low, high)
    assert 0 <= low <= statistics.probability_of_improvement(scores, baseline) <= high <= 1


def test_no_array_of_resamples_by_pairs_of_runs_is_held():
    """100 by 100 runs and 2000 resamples would be 20 MB of flags, or 160 MB of numbers."""
    scores = np.random.default_rng(15).normal(size=(2, 100))
    tracemalloc.start()
    statistics.improvement_interval(scores[0], scores[1], num_resamples=2000)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 12e6


# --- paired by seed ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("statistic", "expected"), [(statistics.iqm, 2.5 - 2), (np.mean, 4 - 2), (np.median, 2.5 - 2)])
def test_the_difference_is_that_of_the_statistics(statistic, expected):
    """Not the statistic of the differences 1, 2, -1 and 6, of which the IQM and the median are 1.5."""
    difference, low, high = statistics.paired_difference(
        np.array([1.0, 2.0, 3.0, 10.0]), np.array([0.0, 0.0, 4.0, 4.0]), statistic
    )
    assert difference == expected
    assert low < difference < high


@pytest.mark.parametrize("shape", [(9,), (3, 9)])
def test_of_means_it_is_the_interval_of_the_mean_difference(shape):
    rng = np.random.default_rng(16)
    scores, baseline = rng.normal(1, 1, shape), rng.normal(size=shape)
    options = {"confidence": 0.9, "num_resamples": 300, "seed": 4}
    difference, *interval = statistics.paired_difference(scores, baseline, np.mean, **options)
    np.testing.assert_allclose(difference, (scores - baseline).mean(), rtol=1e-12)
    expected = statistics.bootstrap_interval(scores - baseline, np.mean, **options)
    np.testing.assert_allclose(interval, expected, rtol=1e-9, atol=1e-12)


def test_the_paired_interval_by_a_loop_over_resamples():
    """A draw belongs to a task and holds for both sets; the IQM pools the tasks."""
    scores, baseline = rounded(17, 3, 6), rounded(18, 3, 6)
    (index,) = indices(5, 80, (3, 6))
    samples = []
    for draw in index:
        pooled, pooled_baseline = [], []
        for task in range(3):
            pooled += [scores[task, i] for i in draw[task]]
            pooled_baseline += [baseline[task, i] for i in draw[task]]
        samples.append(statistics.iqm(np.array(pooled)) - statistics.iqm(np.array(pooled_baseline)))
    result = statistics.paired_difference(scores, baseline, confidence=0.8, num_resamples=80, seed=5)
    expected = [statistics.iqm(scores) - statistics.iqm(baseline), *np.percentile(samples, [10, 90])]
    np.testing.assert_allclose(result, expected, rtol=1e-12, atol=1e-12)


def test_the_paired_interval_is_scipys():
    rng = np.random.default_rng(19)
    baseline = rng.normal(size=30)
    scores = baseline + rng.exponential(size=30)
    theirs = scipy.stats.bootstrap(
        (scores, baseline),
        lambda one, other, axis: statistics.iqm(one, axis=axis) - statistics.iqm(other, axis=axis),
        paired=True,
        vectorized=True,
        n_resamples=10_000,
        method="percentile",
        rng=np.random.default_rng(20),
    ).confidence_interval
    _, *ours = statistics.paired_difference(scores, baseline, num_resamples=10_000)
    np.testing.assert_allclose(ours, theirs, atol=0.05 * width(theirs))


def test_what_seeds_have_in_common_cancels():
    """Seeds of deviation 10, differences of deviation 1: the interval is that of the differences, and that of two
    independent sets would be 10 * sqrt(2) times as wide."""
    rng = np.random.default_rng(21)
    baseline = rng.normal(0, 10, size=200)
    scores = baseline + rng.normal(size=200)
    _, *interval = statistics.paired_difference(scores, baseline, np.mean, num_resamples=4000)
    error = (scores - baseline).std() / np.sqrt(200)
    np.testing.assert_allclose(width(interval), 2 * 1.96 * error, rtol=0.08)
    unpaired = scipy.stats.bootstrap(
        (scores, baseline), lambda one, other, axis: one.mean(axis) - other.mean(axis), n_resamples=2000, rng=rng
    ).confidence_interval
    assert width(interval) < width(unpaired) / 10


SCORES = arrays(float, (2, 5), elements=st.integers(-20, 20))
FEW = {"num_resamples": 100}


@given(SCORES)
@settings(deadline=None, max_examples=25)
def test_scores_do_not_differ_from_themselves(scores):
    assert statistics.paired_difference(scores, scores.copy(), **FEW) == (0, 0, 0)
    assert statistics.paired_improvement(scores, scores.copy()) == 0.5


@given(SCORES, SCORES, st.integers(-50, 50))
@settings(deadline=None, max_examples=40)
def test_paired_statistics_do_not_see_a_shift_of_both_and_mirror_when_the_sets_change_places(scores, baseline, shift):
    difference, low, high = statistics.paired_difference(scores, baseline, **FEW)
    shifted = statistics.paired_difference(scores + shift, baseline + shift, **FEW)
    np.testing.assert_allclose(shifted, (difference, low, high), atol=1e-9)
    mirrored = statistics.paired_difference(baseline, scores, **FEW)
    np.testing.assert_allclose(mirrored, (-difference, -high, -low), atol=1e-9)
    one_more = statistics.paired_difference(scores + shift, baseline, **FEW)
    np.testing.assert_allclose(one_more, np.array([difference, low, high]) + shift, atol=1e-9)
    improvement = statistics.paired_improvement(scores, baseline)
    assert statistics.paired_improvement(scores + shift, baseline + shift) == improvement
    np.testing.assert_allclose(statistics.paired_improvement(baseline, scores), 1 - improvement, rtol=1e-12)


def test_a_single_pair_is_its_own_interval():
    assert statistics.paired_difference(np.array([5.0]), np.array([3.5])) == (1.5, 1.5, 1.5)


def test_a_failed_seed_makes_no_difference_nan_but_an_error():
    with pytest.raises(ValueError, match="not NaN"):
        statistics.paired_difference(np.array([1.0, np.nan, 3.0, 4.0]), np.zeros(4))


@pytest.mark.parametrize(
    ("scores", "baseline", "expected"),
    [
        ([1.0, 2.0, 3.0], [0.0, 1.0, 2.0], 1.0),  # all beaten, where of all 9 pairs 2 tie and 1 is lost
        ([1.0, 2.0, 3.0, 4.0], [2.0, 2.0, 1.0, 9.0], 1.5 / 4),
        ([[5.0, 6.0], [1.0, 1.0]], [[4.0, 7.0], [1.0, 0.0]], (1 / 2 + 3 / 4) / 2),
    ],
)
def test_paired_improvement_hand_worked(scores, baseline, expected):
    assert statistics.paired_improvement(np.array(scores), np.array(baseline)) == expected


@pytest.mark.parametrize("function", [statistics.paired_difference, statistics.paired_improvement])
def test_seeds_without_a_partner_are_refused(function):
    """Also a single one, which NumPy would hold against all."""
    for num_seeds in (1, 4):
        with pytest.raises(ValueError, match="shape"):
            function(np.zeros(5), np.zeros(num_seeds))


# --- performance profiles ---------------------------------------------------------------------------------------------


def test_a_profile_hand_worked():
    """Above, not at: of 1, 2, 2 and 4 on one task and 0, 0, 3 and 9 on the other."""
    scores = np.array([[1.0, 2.0, 2.0, 4.0], [0.0, 0.0, 3.0, 9.0]])
    profile = statistics.performance_profile(scores, np.array([-1.0, 0.0, 1.0, 2.0, 3.5, 9.0]))
    np.testing.assert_array_equal(profile, [1, 6 / 8, 5 / 8, 3 / 8, 2 / 8, 0])


def test_a_profile_is_scipys_empirical_survival_function():
    scores, thresholds = rounded(22, 30), np.linspace(-6, 6, 25)
    expected = scipy.stats.ecdf(scores).sf.evaluate(thresholds)
    np.testing.assert_allclose(statistics.performance_profile(scores, thresholds), expected, rtol=1e-12, atol=1e-12)


@given(SCORES, arrays(float, 7, elements=st.floats(-25, 25)))
@settings(deadline=None, max_examples=40)
def test_a_profile_and_its_band_fall_from_one_to_zero(scores, thresholds):
    thresholds = np.sort(np.concatenate([[-21.0], thresholds.clip(-21, 20), [20.0]]))
    profile = statistics.performance_profile(scores, thresholds)
    low, high = statistics.profile_band(scores, thresholds, **FEW)
    for shares in (profile, low, high):
        assert (shares[0], shares[-1]) == (1, 0)
        assert (np.diff(shares) <= 1e-12).all()
    assert (low <= high).all()


@given(arrays(float, (2, 5), elements=st.integers(0, 20)))
@settings(deadline=None, max_examples=40)
def test_the_area_under_a_profile_is_the_mean(scores):
    """Of whole numbers from 0 on: the sum over tau = 0, 1, ... of P(score > tau)."""
    area = statistics.performance_profile(scores, np.arange(20.0)).sum()
    np.testing.assert_allclose(area, scores.mean(), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("shape", [(8,), (3, 8)])
def test_a_band_is_the_interval_of_the_mean_of_zeros_and_ones(shape):
    scores, thresholds = rounded(23, *shape), np.array([-3.0, -0.5, 0.0, 2.0])
    options = {"confidence": 0.8, "num_resamples": 300, "seed": 2}
    above = [(scores > threshold).astype(float) for threshold in thresholds]
    expected = np.transpose([statistics.bootstrap_interval(ones, np.mean, **options) for ones in above])
    band = statistics.profile_band(scores, thresholds, **options)
    np.testing.assert_allclose(band, expected, rtol=1e-9, atol=1e-12)


def test_a_band_has_the_width_of_the_binomial():
    """100 of 400 runs are above: what a resample has is binomial; its quantiles are good to 2 runs."""
    scores = np.repeat([0.0, 1.0], [300, 100])
    low, high = statistics.profile_band(scores, np.array([0.5]), num_resamples=10_000)
    np.testing.assert_allclose(
        [low[0] * 400, high[0] * 400], scipy.stats.binom.ppf([0.025, 0.975], 400, 0.25), rtol=0, atol=2
    )


# --- what all of them share -------------------------------------------------------------------------------------------

LEVELS = np.array([-0.5, 0.5])
COMPARING = {
    "probability_of_improvement": lambda scores: statistics.probability_of_improvement(scores, np.zeros(3)),
    "baseline": lambda scores: statistics.probability_of_improvement(np.zeros(3), scores),
    "improvement_interval": lambda scores: statistics.improvement_interval(scores, np.zeros(3)),
    "paired_improvement": lambda scores: statistics.paired_improvement(scores, np.zeros(len(scores))),
    "performance_profile": lambda scores: statistics.performance_profile(scores, LEVELS),
    "profile_band": lambda scores: statistics.profile_band(scores, LEVELS),
}


@pytest.mark.parametrize("name", COMPARING)
def test_nan_is_not_compared(name):
    """It would lose in silence."""
    with pytest.raises(ValueError, match="not NaN"):
        COMPARING[name](np.array([1.0, np.nan, 2.0]))


@pytest.mark.parametrize("name", [*COMPARING, "paired_difference"])
def test_no_scores_are_refused(name):
    function = COMPARING.get(name, lambda scores: statistics.paired_difference(scores, scores))
    with pytest.raises(ValueError, match="at least one seed"):
        function(np.array([]))


@pytest.mark.parametrize(
    "function",
    [
        lambda scores, **options: statistics.paired_difference(scores, np.zeros(10), **options)[1:],
        lambda scores, **options: statistics.improvement_interval(scores, np.zeros(3), **options),
        lambda scores, **options: statistics.profile_band(scores, np.array([0.0]), **options),
    ],
)
def test_every_interval_is_reproducible_and_widens_with_the_confidence(function):
    """From half of the resamples to nearly all of them, at both ends."""
    scores = np.random.default_rng(24).normal(size=10)
    np.testing.assert_array_equal(function(scores), function(scores))
    narrow, wide = (np.ravel(function(scores, confidence=confidence)) for confidence in (0.5, 0.99))
    assert wide[0] < narrow[0] < narrow[1] < wide[1]
