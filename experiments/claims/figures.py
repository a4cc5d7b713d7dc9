"""The figures of the evidence, a forest plot for each claim and performance profiles; and those of a sweep."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from experiments.claims.claims import Claim
from experiments.claims.grid import iqm_of_known
from experiments.reporting.figures import finish, panels, save, style
from experiments.reporting.summary import LABELS
from jaxpref.analysis import plots, statistics

METHODS = ("dpo", "rlhf", "online-dpo", "online-rlhf", "cloning")
COLOURS = {"pi": "black"} | dict(zip(METHODS, plots.COLOURS, strict=False))
"""By the beginning of an arm's name."""


def draw_evidence(claims: Sequence[Claim], arms: dict[str, Any], folder: Path) -> None:
    """Draw what the page shows, from the entries of all arms by task."""
    with style():
        for claim in claims:
            save(draw_claim(claim, arms), folder / f"{claim.name}.png")
            if claim.name == "gain":
                save(draw_profiles(arms), folder / "profiles.png")


def draw_claim(claim: Claim, arms: dict[str, Any]) -> Figure:
    """Draw IQM and interval of every arm, with lines where pi2 and pi1 stand: a panel for each task."""
    figure, axes_of = panels(len(arms), sharey=True)
    figure.set_size_inches(5.0 * len(arms) + 1.2, 0.27 * len(claim.arms) + 1.5)
    colours = [next(COLOURS[start] for start in COLOURS if name.startswith(start)) for name in claim.arms]
    for axes, (task, entries) in zip(axes_of[0], arms.items(), strict=True):
        centres, intervals = ([entries[name][key] for name in claim.arms] for key in ("iqm", "ci95"))
        plots.intervals(axes, claim.arms, centres, intervals, colours)
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
            band = statistics.profile_band(scores[name], thresholds)
            shares = statistics.performance_profile(scores[name], thresholds)
            plots.profiles(axes, thresholds, shares, *band, name, colour)
        axes.set(title=LABELS[task], xlabel="true return")
    axes_of[0, 0].set_ylabel("share of seeds above")
    return finish(figure, "Performance profiles, 200 pairs, reference pi2, 95 % bands")


def draw_sweep(summary: dict[str, Any], shares: Sequence[float], folder: Path) -> None:
    """Draw both figures of a grid. `shares`: its temperatures, of the range of returns."""
    title = f"{LABELS[summary['task']]}, {LABELS[summary['method']]}, reference pi2, {len(summary['seeds'])} seeds"
    with style():
        save(draw_heat_maps(summary, shares, title), folder / "heat_map.png")
        save(draw_over_optimisation(summary, title), folder / "over_optimisation.png")


def draw_heat_maps(summary: dict[str, Any], shares: Sequence[float], title: str) -> Figure:
    """Draw the IQM of the true return over seeds: a panel for each temperature."""
    values, strength = iqm_of_known(summary["runs"]["true_return"]), summary["axes"][-1]
    known = values[np.isfinite(values)] if np.isfinite(values).any() else np.array([0.0, 1.0])
    rows, columns = [f"{value:g}" for value in summary[strength]], [f"{size:,}" for size in summary["num_pairs"]]
    figure, axes_of = panels(len(shares), sharey=True)
    for axes, share, value in zip(axes_of[0], shares, values, strict=True):
        image = plots.heat_map(axes, value.T, rows, columns, "{:.0f}", float(known.min()), float(known.max()))
        axes.set(title=f"temperature {100 * share:g} % of the range", xlabel="pairs")
    axes_of[0, 0].set_ylabel(strength)
    figure.colorbar(image, ax=axes_of, label="true return, IQM over seeds")
    return finish(figure, title)


def draw_over_optimisation(summary: dict[str, Any], title: str) -> Figure:
    """Draw learned and true return against KL: a line through the strengths for each size, at the first temperature."""
    figure, axes_of = panels(2)
    for axes, label in zip(axes_of[0], ("learned return", "true return"), strict=True):
        runs = summary["runs"]["kl"], summary["runs"][label.replace(" ", "_")]
        for place, size in enumerate(summary["num_pairs"]):
            # From the strongest pull to the weakest: the marker is where the least holds the policy back.
            x, y = (each[:, 0, place, ::-1] for each in runs)
            plots.path(axes, x, y, f"{size:,} pairs", plots.COLOURS[place % len(plots.COLOURS)])
        axes.set(xlabel="KL(policy || reference), nats per episode", ylabel=label)
    return finish(figure, f"{title}: from strong to weak {summary['axes'][-1]}, mean over seeds")
