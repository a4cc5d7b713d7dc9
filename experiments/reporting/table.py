"""What a run prints at its end: the summary as a table, warnings, seconds, and the names of its files."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table

from experiments.reporting.summary import LABELS


def table(summary: dict[str, Any]) -> Table:
    """Return the summary as a table of at most 100 columns."""
    method, lacking = LABELS[summary["method"]], bool(summary["diverged"])
    title = f"{LABELS.get(summary['task'], summary['task'])}, {method}: true return"
    result = Table(
        title=title, title_justify="left", box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=(0, 0, 0, 1)
    )
    for column in ("policy", "ref"):
        result.add_column(column)
    measures = ("mean", "IQM", interval_name(len(summary["seeds"])), "held-out", "label", "length")
    for column in ("pairs", *measures, *(["seeds"] if lacking else [])):
        result.add_column(column, justify="right")
    digits, num_seeds = decimals(summary), len(summary["seeds"])

    def add(policy: dict[str, Any], *cells: str, accuracies: tuple[str, ...] = ("", "", ""), last: bool) -> None:
        known = num_seeds - policy["per_seed"].count(None)
        scores = number(policy["mean"], digits), number(policy["iqm"], digits), _interval(policy, digits, num_seeds)
        result.add_row(*cells, *scores, *accuracies, *([str(known)] if lacking else []), end_section=last)

    for name in ("pi2", "pi1"):
        add(summary["policies"][name], name, "", "", last=name == "pi1")
    for row in summary["rows"]:
        found = tuple(number(row[f"{name}_accuracy"], 3) for name in ("heldout", "label", "length"))
        last = row["num_pairs"] == summary["config"]["num_pairs"][-1]
        add(row["policy"], method, row["reference"], str(row["num_pairs"]), accuracies=found, last=last)
    return result


def interval_name(num_seeds: int) -> str:
    """Name an interval by the seeds that it is of. A bootstrap of two seeds has no other ends than these two."""
    return f"95 % of {num_seeds} seeds" if num_seeds > 2 else ("range of 2 seeds" if num_seeds == 2 else "one seed")


def _interval(policy: dict[str, Any], digits: int, num_seeds: int) -> str:
    num_known = num_seeds - policy["per_seed"].count(None)
    if num_known < 2:
        return "" if num_seeds == 1 else ("one seed" if num_known else "none")
    low, high = policy["ci95"]
    return f"{'range ' if num_known == 2 < num_seeds else ''}{low:.{digits}f} to {high:.{digits}f}"


def number(value: float | None, digits: int) -> str:
    """Format a number; "none" if there is none."""
    return "none" if value is None else f"{value:.{digits}f}"


def decimals(summary: dict[str, Any]) -> int:
    """Return how many decimals of returns to show: two if all returns are below 10 in size, as on Catch, else one."""
    scores = [*summary["policies"].values(), *(row["policy"] for row in summary["rows"])]
    return 2 if all(abs(score["mean"]) < 10 for score in scores if score["mean"] is not None) else 1


def accuracies_explained(summary: dict[str, Any]) -> str:
    """Return what the three accuracies mean. The ceiling is of labels, so it stands beside them alone."""
    best = summary["best_accuracy"]
    ceiling = "" if best is None else f" (the annotator's own probabilities reach {best:.3f})"
    return (
        f"Held-out: share of {summary['config']['num_heldout']} fresh pairs ranked as their true returns rank them; "
        f"label: as they were labelled{ceiling}; length: by the better of longer and shorter"
    )


def warnings(summary: dict[str, Any]) -> list[str]:
    """Return a line for each policy that missed its target on some seeds, and for each stage that diverged."""
    lines = []
    for name, seeds in summary["not_reached"].items():
        if seeds:
            share = f"{len(seeds)} of {len(summary['seeds'])} seeds"
            lines.append(f"{name} never reached its target return for {share}: {' '.join(map(str, seeds))}")
    for stage, entries in itertools.groupby(sorted(summary["diverged"], key=_stage_of), key=_stage_of):
        named = ", ".join(
            f"{entry['seed']} ({entry['what']}{'' if entry['update'] is None else ', update ' + str(entry['update'])})"
            for entry in entries
        )
        lines.append(f"{stage}: diverged for seed {named}; the rows that depend on this leave the seed out")
    return lines


def _stage_of(entry: dict[str, Any]) -> str:
    reference = "" if entry["reference"] is None else f", reference {entry['reference']}"
    return entry["stage"] + reference + ("" if entry["num_pairs"] is None else f", {entry['num_pairs']} pairs")


def print_report(console: Console, summary: dict[str, Any], paths: list[Path], folder: Path) -> None:
    """Print the table, the warnings, the names of the files, and the seconds of this run."""
    console.print()
    console.print(table(summary))
    console.print(accuracies_explained(summary), style="dim", highlight=False)
    for line in warnings(summary):
        console.print(f"warning: {line}", style="bold yellow", highlight=False)
    console.print(f"written to {folder}: {', '.join(path.name for path in paths)}", highlight=False, soft_wrap=True)
    timing = summary["timing"]
    stages = timing["stages"].values()
    num_kept = sum(1 for stage in stages if stage.get("kept") and not stage["run_s"])
    console.print(
        f"{timing['total_s']:.1f} s in all: {timing['import_s']:.1f} s imports, {timing['compile_s']:.1f} s "
        f"compilation, {timing['run_s']:.1f} s running, {num_kept} of {len(stages)} stages were kept",
        highlight=False,
    )
