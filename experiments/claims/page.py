"""What the data say about the claims, seed by seed: summary.json, and the page in Markdown that shows it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jinja2 import StrictUndefined, Template

from experiments import python
from experiments.claims.claims import Claim
from experiments.claims.running import Table
from experiments.harness.errors import UsageError
from experiments.pipeline.settings import StudyTask
from experiments.reporting.summary import LABELS, mean_or_none, null_for_nan, score, versions
from jaxpref.analysis import statistics

PAGE = Path(__file__).with_name("evidence.md.jinja")
VERDICTS = {
    "above": ("NO, below", "not shown", "yes"),
    "not below": ("NO, below", "no difference shown", "yes, even above"),
    "no gain": ("yes, even a loss", "yes", "NO, a gain"),
}
"""By expectation, where the interval of the difference lies below zero, around zero and above zero."""
COLUMNS = {
    "kl": ("KL to reference, nats per episode", "%.1f"),
    "explained": ("share of the gain explained", "%s"),
    "heldout_accuracy": ("held-out accuracy", "%.3f"),
    "label_accuracy": ("accuracy on labels", "%.3f"),
    "best_accuracy": ("best possible on labels", "%.3f"),
    "heldout_negative_log_likelihood": ("negative log-likelihood", "%.3f"),
    "heldout_calibration_error": ("calibration error", "%.3f"),
    "heldout_rank_correlation": ("rank correlation with the return", "%.2f"),
    "label_entropy": ("label entropy, nats", "%.2f"),
    "positive_reward": ("positive reward per step", "%s"),
}
"""Columns that a claim can add to its table of arms, by their names in summary.json: heading and format."""


def compare(table: Table, comparison: dict[str, str]) -> dict[str, Any]:
    """Compare two arms seed by seed: the difference of the IQMs with its interval, and how often the arm wins."""
    runs = [table[comparison[which]]["true_return"] for which in ("arm", "baseline")]
    difference, low, high = statistics.paired_difference(*runs)
    return comparison | {
        "difference": difference,
        "ci95": [low, high],
        "seeds_improved": statistics.paired_improvement(*runs),
        "probability_of_improvement": statistics.probability_of_improvement(*runs),
        "verdict": verdict(comparison["expectation"], low, high),
    }


def verdict(expectation: str, low: float, high: float) -> str:
    """Say what the interval of the difference means for the expectation."""
    return VERDICTS[expectation][1 + int(low > 0) - int(high < 0)]


def describe(table: Table, name: str) -> dict[str, Any]:
    """Return an arm's entry in summary.json: its score, and means over seeds of everything else."""
    others = dict(table[name])
    true_return, per_step, _ = (others.pop(key) for key in ("true_return", "score_per_step", "diverged"))
    return {
        **score(true_return),
        "score_per_step": dict(zip(("min", "max"), null_for_nan([per_step.min(), per_step.max()]), strict=True)),
        "positive_reward": f"{(per_step > 0).mean():.0%} of seeds",
        "explained": explained(table, name),
        **{key: mean_or_none(values) for key, values in others.items()},
    }


def explained(table: Table, name: str) -> str | None:
    """Say which share of its method's gain over pi2 a control has, with its interval; None for other arms."""
    method, _, kind = name.rpartition("-")
    if kind not in ("zero", "random", "coin", "true"):
        return None
    shares = statistics.explained_share(*(table[each]["true_return"] for each in (name, method, "pi2")))
    share, low, high = (f"{100 * value:.0f}" if np.isfinite(value) else "?" for value in shares)
    return f"{share} % ({low} to {high})"


def summarise(tables: Mapping[StudyTask, Table], seeds: range, claims: Sequence[Claim]) -> dict[str, Any]:
    """Return summary.json. A seed that one arm of a task lost is left out of all its arms: they are paired by seed."""
    summary: dict[str, Any] = {"seeds": list(seeds), "versions": versions(), "diverged": {}, "arms": {}}
    summary["claims"] = {claim.name: {} for claim in claims}
    for task, table in tables.items():
        lost = {name: np.asarray(seeds)[result["diverged"]].tolist() for name, result in table.items()}
        summary["diverged"][task] = {name: some for name, some in lost.items() if some}
        sound = ~np.any([result["diverged"] for result in table.values()], axis=0)
        if not sound.any():
            raise UsageError("on every seed an arm diverged: nothing can be compared")
        table = {name: {key: values[sound] for key, values in result.items()} for name, result in table.items()}
        summary["arms"][task] = {name: describe(table, name) for name in table}
        for claim in claims:
            summary["claims"][claim.name][task] = [compare(table, each) for each in claim.comparisons]
    return summary


def page(claims: Sequence[Claim], summary: dict[str, Any]) -> str:
    """Write everything, one claim a section."""
    by_task = [each for found in summary["claims"].values() for each in found.items()]
    compared = [(task, entry) for task, entries in by_task for entry in entries]
    template = Template(PAGE.read_text(), undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    used = {"labels": LABELS, "columns": COLUMNS, "python": python()}
    return template.render(summary=summary, claims=claims, compared=compared, **used) + "\n"
