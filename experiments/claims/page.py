"""What the data say about the claims, seed by seed: summary.json, figures, and the page in Markdown that shows them."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from jinja2 import StrictUndefined, Template
from matplotlib.figure import Figure

from experiments import python
from experiments.claims.arms import TASKS, Table, TaskName
from experiments.claims.claims import STUDY, Claim, ClaimName
from experiments.harness.errors import UsageError
from experiments.reporting.figures import finish, panels, save, style
from experiments.reporting.summary import mean_or_none, over_seeds, versions
from jaxpref.analysis import plots, statistics

TEMPLATE = Path(__file__).with_name("evidence.md.jinja")
TITLES: dict[str, str] = {task: label for task, (label, _) in TASKS.items()}
EXPECTATIONS = {"above": (1, 0.0), "not below": (1, -1.0), "no gain": (-1, -1.0)}
"""(sign, bound): an expectation is borne out where sign * difference is above the bound, in units of the margin."""
MARGIN = 0.02
"""Of the way from pi2 to the task's best arm: a smaller difference does not matter."""
ALPHA = 0.025
"""One-sided, after Holm's correction: as strict as a 95 % interval."""
BOOTSTRAP: statistics.Bootstrap = {"num_resamples": 10_000}
CONTROLS = "bias|plus|minus|zero|random|coin"
"""Words in the names of controls. "explained" is their share of the gain of the arm without this word."""
COLUMNS = {
    "kl": ("KL to reference, nats per episode", "%.1f"),
    "explained": ("share of the gain explained", "%s"),
    "heldout_accuracy": ("held-out accuracy", "%.3f"),
    "label_accuracy": ("accuracy on labels", "%.3f"),
    "best_accuracy": ("best possible on labels", "%.3f"),
    "heldout_negative_log_likelihood": ("negative log-likelihood", "%.3f"),
    "heldout_calibration_error": ("calibration error", "%.3f"),
    "heldout_rank_correlation": ("rank correlation with the return", "%.2f"),
    "length_accuracy": ("accuracy of the length", "%.3f"),
    "own_rank_correlation": ("the same on own episodes", "%.2f"),
    "label_entropy": ("label entropy, nats", "%.2f"),
}
"""Columns that a claim can add to its table of arms, by their names in summary.json: heading and format."""
COLOURS = dict(zip(("dpo", "rlhf", "online-dpo", "online-rlhf", "cloning"), plots.COLOURS, strict=False))
"""By the beginning of an arm's name."""


def summarise(tables: Mapping[TaskName, Table], seeds: range, claims: dict[ClaimName, Claim]) -> dict[str, Any]:
    """Return summary.json. A seed that one arm of a task lost is left out of all its arms: they are paired by seed."""
    summary: dict[str, Any] = {"seeds": list(seeds), "versions": versions(), "diverged": {}, "arms": {}, "margin": {}}
    compared: dict[ClaimName, dict[TaskName, list]] = {name: {} for name in claims}
    for task, table in tables.items():
        lost = {name: np.isnan(numbers["true_return"]) for name, numbers in table.items()}
        sound = ~np.any([*lost.values()], axis=0)
        if not sound.any():
            raise UsageError("on every seed an arm diverged: nothing can be compared")
        summary["diverged"][task] = {name: np.array(seeds)[at].tolist() for name, at in lost.items() if at.any()}
        table = {name: {key: values[sound] for key, values in numbers.items()} for name, numbers in table.items()}
        arms = summary["arms"][task] = {name: describe(table, name) for name in table}
        margin = MARGIN * (max(arm["iqm"] for arm in arms.values()) - arms["pi2"]["iqm"])
        summary["margin"][task] = margin
        for name, claim in claims.items():
            if task in claim.tasks:
                compared[name][task] = [compare(table, each, margin) for each in claim.comparisons]
    for found in compared.values():
        judge([entry for entries in found.values() for entry in entries])
    return summary | {"claims": compared}


def describe(table: Table, name: str) -> dict[str, Any]:
    """Return an arm's entry in summary.json: its return, and means over seeds of everything else."""
    numbers = table[name]
    return {
        **over_seeds(numbers["true_return"]),
        "failure_rate": float(numbers["failed"].mean()),
        "explained": explained(table, name),
        **{key: mean_or_none(values) for key, values in numbers.items() if key in COLUMNS},
    }


def explained(table: Table, name: str) -> str | None:
    """Say which share of its method's gain over pi2 a control has, with its interval; None for other arms."""
    method = re.sub(f"-({CONTROLS})(?=-|$)", "", name)
    if method == name or method not in table:
        return None
    shares = statistics.explained_share(*(table[each]["true_return"] for each in (name, method, "pi2")))
    return "{} % ({} to {})".format(*(f"{100 * share:.0f}" if np.isfinite(share) else "?" for share in shares))


def compare(table: Table, comparison: dict[str, str], margin: float) -> dict[str, Any]:
    """Compare two arms seed by seed: the difference of the IQMs with its interval, and how often the arm wins.

    p_for and p_against are those of the expectation and of its opposite, each alone.
    """
    arm, baseline = (table[comparison[which]]["true_return"] for which in ("arm", "baseline"))
    difference, low, high = statistics.paired_difference(arm, baseline, **BOOTSTRAP)
    sign, bound = EXPECTATIONS[comparison["expectation"]]
    better, worse = (arm, baseline) if sign > 0 else (baseline, arm)
    return comparison | {
        "difference": difference,
        "ci95": [low, high],
        "seeds_improved": statistics.paired_improvement(arm, baseline),
        "probability_of_improvement": statistics.probability_of_improvement(arm, baseline),
        "p_for": statistics.p_value(better, worse, bound * margin, **BOOTSTRAP),
        "p_against": statistics.p_value(worse, better, -bound * margin, **BOOTSTRAP),
    }


def judge(entries: list[dict[str, Any]]) -> None:
    """Give each comparison of a claim its verdict, and its p-value corrected for the number of comparisons."""
    both = (statistics.holm([entry[which] for entry in entries]) for which in ("p_for", "p_against"))
    for entry, p_for, p_against in zip(entries, *both, strict=True):
        entry["verdict"] = "yes" if p_for < ALPHA else "NO" if p_against < ALPHA else "not shown"
        entry["p_corrected"] = p_against if entry["verdict"] == "NO" else p_for


def page(claims: dict[ClaimName, Claim], summary: dict[str, Any]) -> str:
    """Write everything, one claim a section."""
    compared = [(task, entry) for found in summary["claims"].values() for task in found for entry in found[task]]
    found = {name: [each for each in compared if each[1]["verdict"] == name] for name in ("yes", "NO", "not shown")}
    template = Template(TEMPLATE.read_text(), undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    used = {"titles": TITLES, "columns": COLUMNS, "python": python(), "claims": claims, "summary": summary}
    return template.render(compared=compared, verdicts=found, margin=MARGIN, **used) + "\n"


@style()
def draw(claims: dict[ClaimName, Claim], arms: dict[str, Any], folder: Path) -> None:
    """Draw what the page shows, from the entries of all arms by task."""
    for name, claim in claims.items():
        save(draw_claim(claim, {task: arms[task] for task in claim.tasks if task in arms}), folder / f"{name}.png")
    if "gain" in claims:
        save(draw_profiles(arms), folder / "profiles.png")


def draw_claim(claim: Claim, arms: dict[str, Any]) -> Figure:
    """Draw IQM and interval of every arm, with lines where pi2 and pi1 stand: a panel for each task, four in a row."""
    num_columns = min(len(arms), 4)
    figure, axes_of = panels(num_columns, -(-len(arms) // num_columns), sharey=True)
    figure.set_size_inches(3.8 * num_columns + 1.8, (0.27 * len(claim.arms) + 0.9) * len(axes_of) + 0.6)
    colours = [next((COLOURS[start] for start in COLOURS if name.startswith(start)), "black") for name in claim.arms]
    for axes in axes_of.flat[len(arms) :]:
        axes.set_visible(False)
    for axes, (task, entries) in zip(axes_of.flat, arms.items(), strict=False):
        centres, ends = ([entries[name][key] for name in claim.arms] for key in ("iqm", "ci95"))
        plots.intervals(axes, claim.arms, centres, [*map(tuple, ends)], colours)
        for policy, line in (("pi2", ":"), ("pi1", "--")):
            axes.axvline(entries[policy]["iqm"], color=plots.GREY, linestyle=line, linewidth=1.0, zorder=0)
        axes.set(title=TITLES[task], xlabel="true return")
        axes.locator_params(axis="x", nbins=6)
    return finish(figure, f"{claim.title}\nIQM over seeds with 95 % interval; dotted: pi2, dashed: pi1")


def draw_profiles(arms: dict[str, Any]) -> Figure:
    """Draw the share of seeds above every return: on the study's tasks, or on all if they are not among them."""
    arms = {task: entries for task, entries in arms.items() if task in STUDY} or arms
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
        axes.set(title=TITLES[task], xlabel="true return")
    axes_of[0, 0].set_ylabel("share of seeds above")
    return finish(figure, "Performance profiles, 200 pairs, reference pi2, 95 % bands")
