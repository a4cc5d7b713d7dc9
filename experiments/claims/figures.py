"""The figures of the evidence: a forest plot for each claim, and performance profiles."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from experiments.claims.arms import Table
from experiments.claims.claims import Claim
from experiments.claims.verdicts import Numbers, returns_of
from experiments.reporting.figures import finish, panels, save, style
from experiments.reporting.summary import LABELS
from jaxpref.analysis import plots, statistics

PROFILED = {"pi2": plots.GREY, "pi1": "black", "dpo": plots.COLOURS[0], "rlhf": plots.COLOURS[1]}
"""Arms of the performance profiles, with their colours."""


def draw_all(claims: Sequence[Claim], summary: Numbers, tables: dict[str, Table], folder: Path) -> None:
    """Draw what the page shows."""
    with style():
        for claim in claims:
            save(draw_claim(claim, summary["arms"]), folder / f"{claim.name}.png")
            if claim.name == "gain":
                save(draw_profiles(tables), folder / "profiles.png")


def draw_claim(claim: Claim, summaries: dict[str, Numbers]) -> Figure:
    """Draw IQM and interval of every arm, with lines where pi2 and pi1 stand: a panel for each task."""
    figure, axes_of = panels(len(summaries), sharey=True)
    figure.set_size_inches(5.0 * len(summaries) + 1.2, 0.27 * len(claim.arms) + 1.5)
    for axes, (task, numbers) in zip(axes_of[0], summaries.items(), strict=True):
        entries = [numbers[name] for name in claim.arms]
        ends = [tuple(entry["ci95"]) for entry in entries]
        plots.intervals(axes, claim.arms, [entry["iqm"] for entry in entries], ends, [*map(_colour, claim.arms)])
        for policy, line in (("pi2", ":"), ("pi1", "--")):
            axes.axvline(numbers[policy]["iqm"], color=plots.GREY, linestyle=line, linewidth=1.0, zorder=0)
        axes.set(title=LABELS[task], xlabel="true return, IQM over seeds with 95 % interval")
    return finish(figure, f"{claim.title} (dotted: pi2, dashed: pi1)")


def _colour(name: str) -> str:
    if name.startswith("pi"):
        return "black"
    methods = ("dpo", "rlhf", "online-dpo", "online-rlhf", "cloning")
    return plots.COLOURS[next(place for place, method in enumerate(methods) if name.startswith(method))]


def draw_profiles(tables: dict[str, Table]) -> Figure:
    """Draw the share of seeds above every return."""
    figure, axes_of = panels(len(tables), sharey=True)
    for axes, (task, table) in zip(axes_of[0], tables.items(), strict=True):
        scores = {name: returns_of(table, name) for name in PROFILED}
        everyone = np.concatenate([*scores.values()])
        thresholds = np.linspace(everyone.min() - 1, everyone.max(), 400)
        for name, colour in PROFILED.items():
            low, high = statistics.profile_band(scores[name], thresholds)
            shares = statistics.performance_profile(scores[name], thresholds)
            plots.profiles(axes, thresholds, shares, low, high, name, colour)
        axes.set(title=LABELS[task], xlabel="true return")
    axes_of[0, 0].set_ylabel("share of seeds above")
    return finish(figure, "Performance profiles, 200 pairs, reference pi2, 95 % bands")
