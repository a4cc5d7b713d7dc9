"""What the data say about a claim, seed by seed."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from experiments.claims.arms import Result, Table
from experiments.claims.claims import Claim, Comparison
from experiments.harness.errors import UsageError
from experiments.reporting.summary import mean_or_none, score, versions
from jaxpref.analysis import statistics

Numbers = dict[str, Any]
"""A part of summary.json."""
CONTROLS = ("zero", "random", "coin", "true")


def diverged(table: Table, seeds: Sequence[int]) -> dict[str, list[int]]:
    """Return the seeds that diverged, by arm, for the arms that have any."""
    by_arm = {name: np.asarray(seeds)[result.diverged].tolist() for name, result in table.items()}
    return {name: lost for name, lost in by_arm.items() if lost}


def without(table: Table, seeds: Sequence[int], left_out: Iterable[int]) -> Table:
    """Return the results of all other seeds: a seed that one arm lost is left out of all, for arms are paired by seed.

    Raises UsageError if no seed remains.
    """
    remaining = ~np.isin(seeds, list(left_out))
    if not remaining.any():
        raise UsageError("on every seed an arm diverged: nothing can be compared")
    return {name: jax.tree.map(lambda leaf: leaf[remaining], result) for name, result in table.items()}


def returns_of(table: Table, name: str) -> np.ndarray:
    """Return an arm's true return on every seed."""
    return np.asarray(table[name].true_return, np.float64)


def describe(result: Result) -> Numbers:
    """Return an arm's entry in summary.json: its score, and means over seeds of everything else."""
    ends = {name: end(result.score_per_step) for name, end in (("min", np.min), ("max", np.max))}
    means = {
        "kl": result.kl,
        "label_entropy": result.label_entropy,
        "best_accuracy": result.best_accuracy,
        "heldout_accuracy": result.quality.return_accuracy,
        "label_accuracy": result.quality.label_accuracy,
        "heldout_negative_log_likelihood": result.quality.negative_log_likelihood,
        "heldout_calibration_error": result.quality.calibration_error,
        "heldout_rank_correlation": result.quality.rank_correlation,
    }
    return {
        **score(result.true_return),
        "score_per_step": {name: float(end) if np.isfinite(end) else None for name, end in ends.items()},
        **{name: mean_or_none(values) for name, values in means.items()},
    }


def compare(table: Table, comparison: Comparison) -> Numbers:
    """Compare two arms seed by seed: the difference of the IQMs with its interval, and how often the arm wins."""
    scores, baseline = returns_of(table, comparison.arm), returns_of(table, comparison.baseline)
    difference, low, high = statistics.paired_difference(scores, baseline)
    return dataclasses.asdict(comparison) | {
        "difference": difference,
        "ci95": [low, high],
        "seeds_improved": statistics.paired_improvement(scores, baseline),
        "probability_of_improvement": statistics.probability_of_improvement(scores, baseline),
        "verdict": verdict(comparison.expectation, low, high),
    }


def verdict(expectation: str, low: float, high: float) -> str:
    """Say what the interval of the difference means for the expectation."""
    above, below = low > 0, high < 0
    match expectation:
        case "above":
            return "yes" if above else "NO, below" if below else "not shown"
        case "not below":
            return "yes, even above" if above else "NO, below" if below else "no difference shown"
        case _:
            return "NO, a gain" if above else "yes, even a loss" if below else "yes"


def explained(table: Table, name: str) -> tuple[float, float, float] | None:
    """Return a control's share of its method's gain over pi2, with its interval; None for other arms."""
    method, _, kind = name.rpartition("-")
    if kind not in CONTROLS:
        return None
    return statistics.explained_share(returns_of(table, name), returns_of(table, method), returns_of(table, "pi2"))


def summarise(tables: Mapping[str, Table], seeds: Sequence[int], claims: Sequence[Claim]) -> tuple[Numbers, dict]:
    """Return (summary.json, the tables by task without the seeds that diverged)."""
    lost = {task: diverged(table, seeds) for task, table in tables.items()}
    tables = {task: without(table, seeds, itertools.chain(*lost[task].values())) for task, table in tables.items()}
    return {
        "seeds": list(seeds),
        "diverged": lost,
        "versions": versions(),
        "claims": {
            claim.name: {task: [compare(table, pair) for pair in claim.comparisons] for task, table in tables.items()}
            for claim in claims
        },
        "arms": {task: {name: describe(result) for name, result in table.items()} for task, table in tables.items()},
    }, tables
