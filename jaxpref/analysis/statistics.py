"""Compute statistics over few runs, after Agarwal et al., 2021, https://arxiv.org/abs/2108.13264.

Scores are NumPy arrays [S] of seeds, or [T, S] of tasks and seeds: seeds are resampled within their task. Scores that
are NaN raise ValueError: the caller decides which seeds to leave out. scipy.stats is imported when it is first needed:
the import takes more than a second.
"""

import warnings
from collections.abc import Callable, Sequence
from typing import Any, TypedDict, Unpack

import numpy as np
from jaxtyping import Float, Int

from jaxpref.checks import check_count, check_same_shape

Scores = Float[np.ndarray, "*tasks S"]
Baseline = Float[np.ndarray, "*tasks R"]
Thresholds = Float[np.ndarray, " K"]
Statistic = Callable[..., Any]
"""A reduction that takes an `axis`, such as `iqm` or `numpy.mean`."""


class Bootstrap(TypedDict, total=False):
    """Options of every interval: its confidence (0.95), the number of resamples (2000) and the seed (0)."""

    confidence: float
    num_resamples: int
    seed: int


def iqm(scores: Scores, axis: int | None = None) -> Any:
    """Compute the interquartile mean, the mean of the middle half: robust to a lucky seed and to a failed one.

    A quarter of the scores, rounded down, is cut off at each end: of 3 scores none. Without `axis`, of all the scores.
    """
    import scipy.stats

    trimmed = scipy.stats.trim_mean(_numbers(scores), 0.25, axis=axis)
    return float(trimmed) if axis is None else trimmed


def bootstrap_interval(scores: Scores, statistic: Statistic = iqm, **options: Unpack[Bootstrap]) -> tuple[float, float]:
    """Compute the percentile bootstrap interval (low, high) of a statistic. With one seed both ends are its score."""
    return _estimate(np.positive, statistic, [_by_task(scores)], options)[1:3]


def paired_difference(
    scores: Scores, baseline: Baseline, statistic: Statistic = iqm, **options: Unpack[Bootstrap]
) -> tuple[float, float, float]:
    """Compute (difference, low, high): the statistic of the scores minus that of the baseline, and its interval.

    Both have the same seeds, and a resample draws a seed for both. So what a seed does to both cancels.
    """
    return _estimate(np.subtract, statistic, _same_seeds(scores, baseline), options)[:3]


def p_value(
    scores: Scores,
    baseline: Baseline,
    bound: float = 0.0,
    statistic: Statistic = iqm,
    **options: Unpack[Bootstrap],
) -> float:
    """Compute the one-sided p-value of "the paired difference is above `bound`".

    It is the share of resamples in which the difference is not above it. The sample itself counts as one that is not.
    So the least p-value of B resamples is 1 / (B + 1).
    """
    differences = _estimate(np.subtract, statistic, _same_seeds(scores, baseline), options)[3]
    return float((1 + (differences <= bound).sum()) / (1 + differences.size))


def holm(p_values: Sequence[float]) -> Float[np.ndarray, " C"]:
    """Adjust the p-values of C comparisons for their number (Holm, 1979, https://www.jstor.org/stable/4615733).

    The i-th smallest is multiplied by C - i + 1. None becomes smaller than one before it, or larger than 1.
    """
    raw = np.asarray(p_values, np.float64)
    order = np.argsort(raw)
    steps = np.arange(raw.size, 0, -1) * raw[order]
    adjusted = np.empty_like(raw)
    adjusted[order] = np.minimum(np.maximum.accumulate(steps), 1.0)
    return adjusted


def explained_share(
    scores: Scores, full: Scores, floor: Scores, statistic: Statistic = iqm, **options: Unpack[Bootstrap]
) -> tuple[float, float, float]:
    """Compute (share, low, high): the share of the gain of `full` over `floor` that the scores have, 0 none, 1 all.

        (statistic(scores) - statistic(floor)) / (statistic(full) - statistic(floor))

    All three have the same seeds, drawn together. Without a gain the share is large, infinite or NaN.
    """
    runs = _same_seeds(scores, full, floor)
    with np.errstate(divide="ignore", invalid="ignore"):
        return _estimate(lambda one, full, floor: np.divide(one - floor, full - floor), statistic, runs, options)[:3]


def probability_of_improvement(scores: Scores, baseline: Baseline) -> float:
    """Compute P(a run beats a run of the baseline), ties half, averaged over tasks: Mann-Whitney's U / (S * R)."""
    scores, baseline = _by_task(scores), _by_task(baseline)
    if len(scores) != len(baseline):
        raise ValueError(f"scores are of {len(scores)} tasks, baseline of {len(baseline)}")
    return float(_beats(scores[:, :, None], baseline[:, None, :]).mean())


def paired_improvement(scores: Scores, baseline: Baseline) -> float:
    """Compute the share of seeds on which the scores beat the baseline, ties half, averaged over tasks."""
    return float(np.mean(_beats(*_same_seeds(scores, baseline))))


def performance_profile(scores: Scores, thresholds: Thresholds) -> Thresholds:
    """Compute the share of runs that score more than each threshold: the paper's run-score distribution."""
    return (_by_task(scores)[..., None] > thresholds).mean(axis=(0, 1))


def profile_band(scores: Scores, thresholds: Thresholds, **options: Unpack[Bootstrap]) -> tuple[Thresholds, Thresholds]:
    """Compute the bootstrap interval (low, high) of `performance_profile` at each threshold separately."""
    above = (_by_task(scores)[..., None] > thresholds).astype(np.float64)
    num_tasks, num_seeds, _ = above.shape

    def profile(index: Sequence[np.ndarray]) -> Any:
        return (_counts(index) @ above).mean(axis=0).T / num_seeds

    return _bootstrap(profile, num_tasks, num_seeds, **options)[:2]


def _estimate(
    combine: Callable[..., Any], statistic: Statistic, runs: Sequence[Float[np.ndarray, "T S"]], options: Bootstrap
) -> tuple[float, float, float, Float[np.ndarray, " resamples"]]:
    """Compute `combine(statistic(runs[0]), ...)`, its interval, and its values of the resamples.

    All runs have the same seeds, drawn together.
    """

    def of_resamples(index: Sequence[np.ndarray]) -> Any:
        drawn = (np.concatenate([row[i] for row, i in zip(each, index, strict=True)], axis=1) for each in runs)
        return combine(*(statistic(each, axis=1) for each in drawn))

    low, high, values = _bootstrap(of_resamples, *runs[0].shape, **options)
    return float(combine(*map(statistic, runs))), float(low), float(high), values


def _bootstrap(
    statistic: Callable[[Sequence[np.ndarray]], Any],
    num_tasks: int,
    num_seeds: int,
    confidence: float = 0.95,
    num_resamples: int = 2000,
    seed: int = 0,
) -> tuple[Any, Any, Any]:
    """Bootstrap a statistic [..., resamples] of drawn seeds, one array [resamples, S] for each task.

    Returns both ends of its interval [...], and its values.
    """
    import scipy.stats

    check_count(num_resamples, "num_resamples")
    if not 0 < confidence < 1:
        raise ValueError(f"confidence must be between 0 and 1, got {confidence}")

    def of_resamples(*drawn: np.ndarray, axis: int = -1) -> Any:
        return statistic(drawn)

    if num_seeds == 1:  # scipy refuses a sample of one run. Its only resample is itself.
        values = statistic([np.zeros((1, 1), np.int64)] * num_tasks)
        return values[..., 0], values[..., 0], values
    samples = [np.arange(num_seeds)] * num_tasks
    options: dict[str, Any] = {"n_resamples": num_resamples, "confidence_level": confidence, "rng": seed}
    # It warns of ends that are NaN, in words about another method. Here NaN says that a share has no meaning.
    with warnings.catch_warnings(action="ignore", category=scipy.stats.DegenerateDataWarning):
        result = scipy.stats.bootstrap(samples, of_resamples, vectorized=True, method="percentile", **options)
    return *result.confidence_interval, result.bootstrap_distribution


def _counts(index: Sequence[Int[np.ndarray, "resamples S"]]) -> Float[np.ndarray, "T resamples S"]:
    """Count how often each run was drawn."""
    return np.array([[np.bincount(row, minlength=len(row)) for row in task] for task in index], np.float64)


def _numbers(scores: Scores) -> Scores:
    scores = np.asarray(scores, dtype=np.float64)
    if scores.size == 0:
        raise ValueError("scores must hold at least one seed")
    if np.isnan(scores).any():
        raise ValueError("scores must be numbers, not NaN: leave those seeds out")
    return scores


def _by_task(scores: Scores) -> Float[np.ndarray, "T S"]:
    scores = np.atleast_2d(_numbers(scores))
    if scores.ndim > 2:
        raise ValueError(f"scores must have the axes [seeds] or [tasks, seeds], got {list(scores.shape)}")
    return scores


def _same_seeds(*runs: Any) -> list[Float[np.ndarray, "T S"]]:
    check_same_shape(**{f"scores {number}": np.atleast_2d(each) for number, each in enumerate(runs, start=1)})
    return [_by_task(each) for each in runs]


def _beats(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    return (one > other) + 0.5 * (one == other)
