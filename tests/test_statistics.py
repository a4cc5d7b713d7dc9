"""Statistics over seeds, against loops, scipy, and numbers worked out by hand."""

import numpy as np
import pytest
import scipy.stats

from jaxpref import statistics

FEW = {"confidence": 0.8, "num_resamples": 60, "seed": 3}


def drawn(*sizes):
    """The runs of every resample that FEW draws, one set of runs after the other: resamples of lists of indices."""
    rng = np.random.default_rng(FEW["seed"])
    index = [rng.integers(size, size=(FEW["num_resamples"], size)) for size in sizes]
    return list(zip(*index, strict=True))


def ends(samples):
    """Of the middle 80 %."""
    return np.percentile(samples, [10, 90], axis=0)


def rounded(seed, *shape):
    """Scores of which many tie."""
    return np.random.default_rng(seed).normal(scale=2, size=shape).round()


@pytest.mark.parametrize(
    ("scores", "expected"),
    [
        ([7.0], 7.0),  # a quarter of 1, 2 or 3 scores, rounded down, is none
        ([1.0, 4.0], 2.5),
        ([100.0, 1.0, 7.0], 36.0),
        ([100.0, 1.0, 7.0, -50.0], 4.0),  # from 4 to 7 scores one at each end
        ([-900.0, 1.0, 2.0, 3.0, 4.0, 5.0, 900.0], 3.0),
        ([9.0, -900.0, -800.0, 3.0, 4.0, 5.0, 7.0, 800.0, 900.0], 5.6),  # two: 3 + 4 + 5 + 7 + 9 of 5
        ([[1.0, 2.0, 3.0, 99.0], [98.0, 5.0, 4.0, -70.0]], 3.5),  # tasks are pooled: (2 + 3 + 4 + 5) / 4
    ],
)
def test_iqm_hand_worked(scores, expected):
    result = statistics.iqm(np.array(scores))
    assert isinstance(result, float)
    np.testing.assert_allclose(result, expected, rtol=1e-12)


def test_iqm_along_an_axis_is_that_of_each_row():
    scores = np.random.default_rng(1).normal(size=(13, 9))
    for axis in (0, 1, -1):
        by_row = [statistics.iqm(row) for row in np.moveaxis(scores, axis, -1)]
        np.testing.assert_allclose(statistics.iqm(scores, axis=axis), by_row, rtol=1e-12)


@pytest.mark.parametrize("num_tasks", [1, 3])
def test_intervals_of_paired_runs_by_a_loop_over_resamples(num_tasks):
    """Each task has its own draws, which hold for all sets; the statistic pools the tasks."""
    scores, other, floor = (rounded(seed, num_tasks, 6) for seed in (17, 18, 19))
    full = np.abs(other) + 10

    def iqm_of(runs, index):
        return statistics.iqm(np.array([runs[task, i] for task in range(num_tasks) for i in index[task]]))

    one, difference, share = [], [], []
    for index in drawn(*[6] * num_tasks):
        one.append(iqm_of(scores, index))
        difference.append(one[-1] - iqm_of(other, index))
        share.append((one[-1] - iqm_of(floor, index)) / (iqm_of(full, index) - iqm_of(floor, index)))
    np.testing.assert_allclose(statistics.bootstrap_interval(scores, **FEW), ends(one), rtol=1e-12)
    _, *interval = statistics.paired_difference(scores, other, **FEW)
    np.testing.assert_allclose(interval, ends(difference), rtol=1e-12, atol=1e-12)
    shares_not_above = (1 + sum(value <= 0.4 for value in difference)) / (1 + len(difference))
    np.testing.assert_allclose(statistics.p_value(scores, other, 0.4, **FEW), shares_not_above, rtol=1e-12)
    _, *interval = statistics.explained_share(scores, full, floor, **FEW)
    np.testing.assert_allclose(interval, ends(share), rtol=1e-12, atol=1e-12)


def test_a_p_value_is_never_zero_and_sees_its_bound():
    """Each seed is better by exactly 2."""
    scores = np.arange(8.0)
    found = [statistics.p_value(scores + 2, scores, bound, num_resamples=99) for bound in (1.9, 2.0)]
    assert found == [0.01, 1.0]


def test_holm_by_a_worked_example():
    """Of 0.005, 0.01, 0.03, 0.04 times 4, 3, 2, 1, the last is raised to the one before it."""
    np.testing.assert_allclose(statistics.holm([0.01, 0.04, 0.03, 0.005]), [0.03, 0.06, 0.06, 0.02])
    np.testing.assert_allclose(statistics.holm([0.6, 0.7]), [1, 1])


def test_a_profiles_band_by_a_loop():
    scores, thresholds = rounded(23, 2, 8), np.array([-3.0, -0.5, 0.0, 2.0])
    samples = [(scores[[[0], [1]], np.array(index)][..., None] > thresholds).mean((0, 1)) for index in drawn(8, 8)]
    np.testing.assert_allclose(statistics.profile_band(scores, thresholds, **FEW), ends(samples), rtol=1e-12)


@pytest.mark.parametrize(("confidence", "z"), [(0.5, 0.6745), (0.8, 1.2816), (0.95, 1.9600), (0.99, 2.5758)])
def test_confidence_is_the_share_between_the_ends(confidence, z):
    """The mean of 1000 scores is normal: its interval lies z standard errors to either side."""
    scores = np.random.default_rng(5).normal(size=1000)
    interval = statistics.bootstrap_interval(scores, np.mean, confidence=confidence, num_resamples=4000)
    error = scores.std() / np.sqrt(1000)
    np.testing.assert_allclose(interval, scores.mean() + np.array([-z, z]) * error, atol=0.2 * error)


def test_where_no_resample_can_differ_both_ends_are_the_value():
    """A single seed, and tasks without any spread."""
    assert statistics.bootstrap_interval(np.array([[0.0] * 5, [100.0] * 5]), np.mean) == (50.0, 50.0)
    assert statistics.bootstrap_interval(np.array([42.5])) == (42.5, 42.5)
    assert statistics.bootstrap_interval(np.array([[1.0], [2.0], [9.0]])) == (4.0, 4.0)
    assert statistics.paired_difference(np.array([5.0]), np.array([3.5])) == (1.5, 1.5, 1.5)
    assert statistics.explained_share(np.array([5.0]), np.array([7.0]), np.array([3.0])) == (0.5, 0.5, 0.5)
    band = statistics.profile_band(np.array([5.0]), np.array([4.0, 5.0]))
    np.testing.assert_array_equal(band, [[1, 0], [1, 0]])


def test_probability_of_improvement_is_mann_whitneys_u_over_the_number_of_pairs():
    """Also with ties, of which rounding makes plenty, and with unequal numbers of seeds."""
    for num_scores, num_baseline in ((5, 5), (7, 3), (40, 60)):
        scores, baseline = rounded(8, num_scores), rounded(9, num_baseline)
        expected = scipy.stats.mannwhitneyu(scores, baseline).statistic / (num_scores * num_baseline)
        np.testing.assert_allclose(statistics.probability_of_improvement(scores, baseline), expected, rtol=1e-12)


@pytest.mark.parametrize(
    ("function", "scores", "baseline", "expected"),
    [
        (statistics.probability_of_improvement, [2.0], [1.0, 2.0, 3.0, 4.0], 1.5 / 4),  # above 1, ties with 2
        (statistics.probability_of_improvement, [np.inf, 1.0], [np.inf, 0.0], (1 / 2 + 1 + 0 + 1) / 4),
        (
            statistics.probability_of_improvement,
            [[1, 2], [100, 103]],
            [[0, -1], [102, 104]],
            (1 + 1 / 4) / 2,
        ),  # by task
        (statistics.paired_improvement, [1.0, 2.0, 3.0], [0.0, 1.0, 2.0], 1.0),  # of all 9 pairs 2 tie and 1 is lost
        (statistics.paired_improvement, [[5.0, 6.0], [1.0, 1.0]], [[4.0, 7.0], [1.0, 0.0]], (1 / 2 + 3 / 4) / 2),
    ],
)
def test_improvement_hand_worked(function, scores, baseline, expected):
    assert function(np.array(scores, float), np.array(baseline, float)) == expected


@pytest.mark.parametrize(("statistic", "expected"), [(statistics.iqm, 2.5 - 2), (np.mean, 4 - 2), (np.median, 2.5 - 2)])
def test_the_difference_is_that_of_the_statistics(statistic, expected):
    """Not the statistic of the differences 1, 2, -1 and 6, of which the IQM and the median are 1.5."""
    scores, baseline = np.array([1.0, 2.0, 3.0, 10.0]), np.array([0.0, 0.0, 4.0, 4.0])
    difference, low, high = statistics.paired_difference(scores, baseline, statistic)
    assert difference == expected
    assert low < difference < high


def test_without_a_gain_no_share_of_it_is_known():
    """Means 5, 3 and 1 are half of the gain; nothing of nothing is NaN."""
    scores, full, floor = np.array([2.0, 4.0]), np.array([4.0, 6.0]), np.array([0.0, 2.0])
    assert statistics.explained_share(scores, full, floor)[0] == 0.5
    assert np.isnan(statistics.explained_share(floor, floor, floor)).all()


def test_a_profile_hand_worked():
    """Above, not at: of 1, 2, 2 and 4 on one task and 0, 0, 3 and 9 on the other."""
    scores = np.array([[1.0, 2.0, 2.0, 4.0], [0.0, 0.0, 3.0, 9.0]])
    profile = statistics.performance_profile(scores, np.array([-1.0, 0.0, 1.0, 2.0, 3.5, 9.0]))
    np.testing.assert_array_equal(profile, [1, 6 / 8, 5 / 8, 3 / 8, 2 / 8, 0])


@pytest.mark.parametrize(
    "function",
    [
        statistics.iqm,
        statistics.bootstrap_interval,
        lambda scores: statistics.paired_difference(scores, scores[::-1]),
        lambda scores: statistics.profile_band(scores, np.array([0.0])),
        lambda scores: statistics.probability_of_improvement(np.zeros(3), scores),
        lambda scores: statistics.paired_improvement(scores, np.zeros(len(scores))),
        lambda scores: statistics.performance_profile(scores, np.array([0.0])),
    ],
)
def test_nan_and_no_scores_are_refused(function):
    """NaN would lose in silence."""
    with pytest.raises(ValueError, match="not NaN"):
        function(np.array([1.0, np.nan, 2.0]))
    with pytest.raises(ValueError, match="at least one seed"):
        function(np.array([]))


@pytest.mark.parametrize("function", [statistics.paired_difference, statistics.paired_improvement])
def test_seeds_without_a_partner_are_refused(function):
    """Also a single one, which NumPy would compare with all."""
    for num_seeds in (1, 4):
        with pytest.raises(ValueError, match="shape"):
            function(np.zeros(5), np.zeros(num_seeds))


def test_scipy_stats_is_imported_when_an_interval_is_computed():
    """It takes more than a second."""
    assert "scipy" not in vars(statistics)
