"""Statistics over few runs, after Agarwal et al., 2021, https://arxiv.org/abs/2108.13264.

Scores are NumPy arrays with seeds on the last axis, and tasks (strata) on the first of two.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import scipy.stats
from jaxtyping import Float

Scores = Float[np.ndarray, "*tasks S"]


def iqm(scores: Scores, axis: int | None = None) -> Any:
    """Interquartile mean: the mean of the middle half of the scores. Robust to a lucky and to a failed seed.

    A quarter of the scores is cut off at each end, rounded down: of 3 scores none. A float, or with `axis` an array.
    Raises ValueError for no scores.
    """
    if np.size(scores) == 0:
        raise ValueError("scores must hold at least one seed")
    trimmed = scipy.stats.trim_mean(np.asarray(scores), 0.25, axis=axis)
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
    scores = np.atleast_2d(np.asarray(scores, dtype=np.float64))
    num_tasks, num_seeds = scores.shape
    if scores.size == 0:
        raise ValueError("scores must hold at least one seed")
    index = np.random.default_rng(seed).integers(num_seeds, size=(num_resamples, num_tasks, num_seeds))
    resampled = np.take_along_axis(scores[None], index, axis=-1)
    tail = 100 * (1 - confidence) / 2
    samples = statistic(resampled.reshape(num_resamples, -1), axis=1)
    low, high = np.percentile(samples, [tail, 100 - tail])
    return float(low), float(high)


def probability_of_improvement(scores: Scores, baseline: Float[np.ndarray, "*tasks R"]) -> float:
    """P(a run of the one beats a run of the other), ties half, averaged over tasks: Mann–Whitney's U / (S * R).

    Raises ValueError for no scores, for scores that are not numbers, and for different numbers of tasks.
    """
    scores, baseline = np.atleast_2d(scores), np.atleast_2d(baseline)
    if scores.size == 0 or baseline.size == 0:
        raise ValueError("scores and baseline must hold at least one seed")
    if np.isnan(scores).any() or np.isnan(baseline).any():
        raise ValueError("scores and baseline must be numbers, not NaN")
    if len(scores) != len(baseline):
        raise ValueError(f"scores are of {len(scores)} tasks, baseline of {len(baseline)}")
    difference = scores[:, :, None] - baseline[:, None, :]
    return float(np.mean((difference > 0) + 0.5 * (difference == 0)))
