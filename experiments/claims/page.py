"""What the data say about the claims, seed by seed: summary.json, figures, and the page in Markdown that shows them."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from jinja2 import StrictUndefined, Template
from matplotlib.figure import Figure

from experiments import python
from experiments.claims.arms import Table
from experiments.claims.claims import Claim, ClaimName
from experiments.harness.errors import UsageError
from experiments.pipeline.settings import StudyTask
from experiments.reporting.figures import finish, panels, save, style
from experiments.reporting.summary import LABELS, mean_or_none, null_for_nan, score, versions
from jaxpref.analysis import plots, statistics

TEMPLATE = Path(__file__).with_name("evidence.md.jinja")
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
COLOURS = dict(zip(("dpo", "rlhf", "online-dpo", "online-rlhf", "cloning"), plots.COLOURS, strict=False))
"""By the beginning of an arm's name."""


def summarise(tables: Mapping[StudyTask, Table], seeds: range, claims: dict[ClaimName, Claim]) -> dict[str, Any]:
    """Return summary.json. A seed that one arm of a task lost is left out of all its arms: they are paired by seed."""
    summary: dict[str, Any] = {"seeds": list(seeds), "versions": versions(), "diverged": {}, "arms": {}}
    summary["claims"] = {name: {} for name in claims}
    for task, table in tables.items():
        lost = {name: np.isnan(numbers["true_return"]) for name, numbers in table.items()}
        sound = ~np.any([*lost.values()], axis=0)
        if not sound.any():
            raise UsageError("on every seed an arm diverged: nothing can be compared")
        summary["diverged"][task] = {name: np.array(seeds)[at].tolist() for name, at in lost.items() if at.any()}
        table = {name: {key: values[sound] for key, values in numbers.items()} for name, numbers in table.items()}
        summary["arms"][task] = {name: describe(table, name) for name in table}
        for name, claim in claims.items():
            summary["claims"][name][task] = [compare(table, each) for each in claim.comparisons]
    return summary


def describe(table: Table, name: str) -> dict[str, Any]:
    """Return an arm's entry in summary.json: its score, and means over seeds of everything else."""
    numbers, per_step = table[name], table[name]["score_per_step"]
    return {
        **score(numbers["true_return"]),
        "score_per_step": dict(zip(("min", "max"), null_for_nan([per_step.min(), per_step.max()]), strict=True)),
        "positive_reward": f"{(per_step > 0).mean():.0%} of seeds",
        "explained": explained(table, name),
        **{key: mean_or_none(values) for key, values in numbers.items() if key in COLUMNS},
    }


def explained(table: Table, name: str) -> str | None:
    """Say which share of its method's gain over pi2 a control has, with its interval; None for other arms."""
    method, _, kind = name.rpartition("-")
    if kind not in ("zero", "random", "coin", "true"):
        return None
    shares = statistics.explained_share(*(table[each]["true_return"] for each in (name, method, "pi2")))
    return "{} % ({} to {})".format(*(f"{100 * share:.0f}" if np.isfinite(share) else "?" for share in shares))


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


def page(claims: dict[ClaimName, Claim], summary: dict[str, Any]) -> str:
    """Write everything, one claim a section."""
    compared = [(task, entry) for found in summary["claims"].values() for task in found for entry in found[task]]
    contradicting = [(task, entry) for task, entry in compared if entry["verdict"].startswith("NO")]
    template = Template(TEMPLATE.read_text(), undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    used = {"labels": LABELS, "columns": COLUMNS, "python": python(), "claims": claims, "summary": summary}
    return template.render(compared=compared, contradicting=contradicting, **used) + "\n"


@style()
def draw(claims: dict[ClaimName, Claim], arms: dict[str, Any], folder: Path) -> None:
    """Draw what the page shows, from the entries of all arms by task."""
    for name, claim in claims.items():
        save(draw_claim(claim, arms), folder / f"{name}.png")
    if "gain" in claims:
        save(draw_profiles(arms), folder / "profiles.png")


def draw_claim(claim: Claim, arms: dict[str, Any]) -> Figure:
    """Draw IQM and interval of every arm, with lines where pi2 and pi1 stand: a panel for each task."""
    figure, axes_of = panels(len(arms), sharey=True)
    figure.set_size_inches(5.0 * len(arms) + 1.2, 0.27 * len(claim.arms) + 1.5)
    colours = [next((COLOURS[start] for start in COLOURS if name.startswith(start)), "black") for name in claim.arms]
    for axes, (task, entries) in zip(axes_of[0], arms.items(), strict=True):
        centres, ends = ([entries[name][key] for name in claim.arms] for key in ("iqm", "ci95"))
        plots.intervals(axes, claim.arms, centres, [*map(tuple, ends)], colours)
        for policy, line in (("pi2", ":"), ("pi1", "--")):
            axes.axvline(entries[policy]["iqm"], color=plots.GREY, linestyle=line, linewidth=1.0, zorder=0)
        axes.set(title=LABELS[task], xlabel="true return, IQM over seeds with 95 % interval")
    return finish(figure, f"{claim.title} (dotted: pi2, dashed: pi1)")


def draw_profiles(arms: dict[str, Any]) -> Figure:
    """Draw the share of seeds above every return."""
    figure, axes_of = panels(len(arms), sharey=True)
    colours = {"pi2": plots.GREY, "pi1": "black", "dpo": COLOURS["dpo"], "rlhf": COLOURS["rlhf"]}
    for axes, (task, entries) in zip(axes_of[0], arms.items(), strict=True):
        scores = {name: np.array(entries[name]["per_seed"]) for name in colours}
        everyone = np.concatenate([*scores.values()])
        thresholds = np.linspace(everyone.min() - 1, everyone.max(), 400)
        for name, colour in colours.items():
            shares = statistics.performance_profile(scores[name], thresholds)
            band = statistics.profile_band(scores[name], thresholds)
            plots.profiles(axes, thresholds, shares, *band, name, colour)
        axes.set(title=LABELS[task], xlabel="true return")
    axes_of[0, 0].set_ylabel("share of seeds above")
    return finish(figure, "Performance profiles, 200 pairs, reference pi2, 95 % bands")
