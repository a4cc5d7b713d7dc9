"""Statistics over few runs, after Agarwal et al., 2021, https://arxiv.org/abs/2108.13264.

Scores are NumPy arrays with seeds on the last axis, and tasks (strata) on the first of two. No scores, and scores that
are NaN, raise ValueError: which seeds are left out is for the caller to decide, and to say.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import scipy.stats
from jaxtyping import Float, Int

from jaxpref.checks import check_count

Scores = Float[np.ndarray, "*tasks S"]


def iqm(scores: Scores, axis: int | None = None) -> Any:
    """Interquartile mean: the mean of the middle half of the scores. Robust to a lucky and to a failed seed.

    A quarter of the scores is cut off at each end, rounded down: of 3 scores none. A float, or with `axis` an array.
    Raises ValueError for no scores.
    """
    trimmed = scipy.stats.trim_mean(_numbers(scores), 0.25, axis=axis)
    return float(trimmed) if axis is None else trimmed


def bootstrap_interval(
    scores: Scores,
    statistic: Callable[..., Any] = iqm,
    confidence: float = 0.95,
    num_resamples: int = 2000,
    seed: int = 0,
) -> tuple[float, float]:
    """Stratified percentile bootstrap: seeds are resampled within each task, `statistic` is taken of the whole.

    `statistic` is a reduction that takes an `axis`, as `iqm` or `numpy.mean`.
    Returns (low, high). A single seed says nothing about the spread: both ends are its own score then, and it
    is for the caller to say so. Raises ValueError for no scores.
    """
    scores = _by_task(scores)
    index = _draw(scores, num_resamples, np.random.default_rng(seed))
    low, high = _ends(_samples(statistic, scores, index), confidence)
    return float(low), float(high)


def paired_difference(
    scores: Scores,
    baseline: Float[np.ndarray, "*tasks R"],
    statistic: Callable[..., Any] = iqm,
    confidence: float = 0.95,
    num_resamples: int = 2000,
    seed: int = 0,
) -> tuple[float, float, float]:
    """Statistic of the one less that of the other, with its interval: a seed is drawn for both or for neither.

    For scores that share their seeds, and with them policies and pairs: what a seed does to both cancels.
    Returns (difference, low, high), as `bootstrap_interval`. Raises ValueError for no scores and different shapes.
    """
    scores, baseline = _by_task(scores), _by_task(baseline)
    _check_paired(scores, baseline)
    index = _draw(scores, num_resamples, np.random.default_rng(seed))
    samples = _samples(statistic, scores, index) - _samples(statistic, baseline, index)
    low, high = _ends(samples, confidence)
    return float(statistic(scores) - statistic(baseline)), float(low), float(high)


def explained_share(
    scores: Scores,
    full: Scores,
    floor: Scores,
    statistic: Callable[..., Any] = iqm,
    confidence: float = 0.95,
    num_resamples: int = 2000,
    seed: int = 0,
) -> tuple[float, float, float]:
    """How much of the gain of `full` over `floor` the scores of a control have: 0 nothing, 1 all of it.

        (statistic(scores) - statistic(floor)) / (statistic(full) - statistic(floor))

    Returns (share, low, high), seeds of all three resampled jointly. Without a gain the share means nothing: it is
    large, infinite or NaN, and so is its interval. Raises ValueError for no scores and different shapes.
    """
    scores, full, floor = _by_task(scores), _by_task(full), _by_task(floor)
    _check_paired(scores, full)
    _check_paired(scores, floor)
    index = _draw(scores, num_resamples, np.random.default_rng(seed))
    control, whole, nothing = (_samples(statistic, runs, index) for runs in (scores, full, floor))
    with np.errstate(divide="ignore", invalid="ignore"):
        low, high = _ends((control - nothing) / (whole - nothing), confidence)
        gain, of = statistic(scores) - statistic(floor), statistic(full) - statistic(floor)
        return float(np.divide(gain, of)), float(low), float(high)


def probability_of_improvement(scores: Scores, baseline: Float[np.ndarray, "*tasks R"]) -> float:
    """P(a run of the one beats a run of the other), ties half, averaged over tasks: Mann–Whitney's U / (S * R).

    Raises ValueError for no scores, for scores that are not numbers, and for different numbers of tasks.
    """
    return float(_wins(scores, baseline).mean())


def improvement_interval(
    scores: Scores,
    baseline: Float[np.ndarray, "*tasks R"],
    confidence: float = 0.95,
    num_resamples: int = 2000,
    seed: int = 0,
) -> tuple[float, float]:
    """Stratified bootstrap of `probability_of_improvement`: both sets of runs are resampled, apart from each other.

    Returns (low, high). Where every run wins it is (1, 1), however few runs there are. Errors as there.
    """
    wins = _wins(scores, baseline)
    rng = np.random.default_rng(seed)
    counts, baseline_counts = (_counts(_draw(_by_task(runs), num_resamples, rng)) for runs in (scores, baseline))
    # A run drawn twice wins twice: no [resamples, S, R] is held.
    samples = np.mean((counts @ wins * baseline_counts).sum(axis=-1), axis=0) / wins[0].size
    low, high = _ends(samples, confidence)
    return float(low), float(high)


def paired_improvement(scores: Scores, baseline: Float[np.ndarray, "*tasks R"]) -> float:
    """Share of seeds on which the one beats the other, ties half, averaged over tasks.

    Raises ValueError for no scores, for scores that are not numbers, and for different shapes.
    """
    scores, baseline = _by_task(scores), _by_task(baseline)
    _check_paired(scores, baseline)
    return float(np.mean((scores > baseline) + 0.5 * (scores == baseline)))


def performance_profile(
    scores: Scores, thresholds: Float[np.ndarray, " thresholds"]
) -> Float[np.ndarray, " thresholds"]:
    """Share of runs that score more than each threshold, averaged over tasks: the paper's run-score distribution.

    Raises ValueError for no scores and for scores that are not numbers.
    """
    return (_by_task(scores)[..., None] > thresholds).mean(axis=(0, 1))


def profile_band(
    scores: Scores,
    thresholds: Float[np.ndarray, " thresholds"],
    confidence: float = 0.95,
    num_resamples: int = 2000,
    seed: int = 0,
) -> tuple[Float[np.ndarray, " thresholds"], Float[np.ndarray, " thresholds"]]:
    """Stratified bootstrap of `performance_profile`: (low, high), each end for its threshold alone. Errors as there."""
    above = (_by_task(scores)[..., None] > thresholds).astype(np.float64)
    counts = _counts(_draw(above[..., 0], num_resamples, np.random.default_rng(seed)))
    low, high = _ends((counts @ above).mean(axis=0) / above.shape[1], confidence)
    return low, high


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


def _check_paired(scores: Scores, baseline: Float[np.ndarray, "*others R"]) -> None:
    if scores.shape != baseline.shape:
        raise ValueError(f"scores are of shape {scores.shape}, baseline of {baseline.shape}")


def _wins(scores: Scores, baseline: Float[np.ndarray, "*others R"]) -> Float[np.ndarray, "T S R"]:
    """1 where a run beats a run of the baseline, 1/2 where they tie."""
    scores, baseline = _by_task(scores), _by_task(baseline)
    if len(scores) != len(baseline):
        raise ValueError(f"scores are of {len(scores)} tasks, baseline of {len(baseline)}")
    one, other = scores[:, :, None], baseline[:, None, :]
    return (one > other) + 0.5 * (one == other)


def _draw(
    scores: Float[np.ndarray, "T S"], num_resamples: int, rng: np.random.Generator
) -> Int[np.ndarray, "resamples T S"]:
    """Seeds of every task, drawn from that task's with replacement."""
    check_count(num_resamples, "num_resamples")
    return rng.integers(scores.shape[1], size=(num_resamples, *scores.shape))


def _counts(index: Int[np.ndarray, "resamples T S"]) -> Float[np.ndarray, "T resamples S"]:
    """How often each seed was drawn."""
    num_resamples, num_tasks, num_seeds = index.shape
    row = np.arange(num_resamples * num_tasks).reshape(num_resamples, num_tasks, 1)
    counts = np.bincount((index + num_seeds * row).ravel(), minlength=index.size)
    return counts.reshape(index.shape).swapaxes(0, 1).astype(np.float64)


def _samples(
    statistic: Callable[..., Any], scores: Float[np.ndarray, "T S"], index: Int[np.ndarray, "resamples T S"]
) -> Float[np.ndarray, " resamples"]:
    """The statistic of every resample."""
    return statistic(np.take_along_axis(scores[None], index, axis=-1).reshape(len(index), -1), axis=1)


def _ends(samples: Float[np.ndarray, "resamples ..."], confidence: float) -> Float[np.ndarray, "2 ..."]:
    """Low and high: percentiles that leave half of the rest on either side."""
    if not 0 < confidence < 1:
        raise ValueError(f"confidence must lie between 0 and 1, got {confidence}")
    tail = 100 * (1 - confidence) / 2
    return np.percentile(samples, [tail, 100 - tail], axis=0)
