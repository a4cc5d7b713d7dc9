"""Print the end of a run: the summary as a table, warnings, seconds, and the names of its files."""

import collections
from pathlib import Path
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table

from experiments.reporting.summary import TITLES, title


def rows(summary: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the lines of a table: pi2, pi1, and the rows of summary.json.

    Each has a `name`, words for its `training`, and the `path` of its score in summary.json, as in `rows.3.policy`.
    """
    found = []
    for name in ("pi2", "pi1"):
        row = {"policy": summary["policies"][name], "reference": "", "num_pairs": ""}
        found.append(row | {"name": name, "path": f"policies.{name}", "training": ""})
    for place, row in enumerate(summary["rows"]):
        training = f"{row['num_pairs']:,} pair{'s' if row['num_pairs'] > 1 else ''}, reference {row['reference']}"
        name = TITLES[summary["method"]]
        found.append(row | {"name": name, "path": f"rows.{place}.policy", "training": training})
    return found


def table(summary: dict[str, Any]) -> Table:
    """Return the summary as a table of at most 100 columns. If a seed diverged, the last column counts the others."""
    num_seeds, digits, lacking = len(summary["seeds"]), decimals(summary), bool(summary["diverged"])
    frame: dict[str, Any] = {"box": box.SIMPLE_HEAD, "show_edge": False, "pad_edge": False, "padding": (0, 0, 0, 1)}
    result = Table("policy", "ref", title=f"{title(summary)}: true return", title_justify="left", **frame)
    for heading in ("pairs", "mean", "IQM", interval_name(num_seeds), "held-out", "label", "length"):
        result.add_column(heading, justify="right")
    if lacking:
        result.add_column("seeds", justify="right")
    for row in rows(summary):
        score, num_known = row["policy"], num_seeds - row["policy"]["per_seed"].count(None)
        mean, iqm, low, high = (number(each, digits) for each in (score["mean"], score["iqm"], *score["ci95"]))
        interval = f"{'range ' if num_known == 2 < num_seeds else ''}{low} to {high}"
        if num_known < 2:
            interval = "" if num_seeds == 1 else ("none", "one seed")[num_known]
        accuracies = [f"{name}_accuracy" for name in ("heldout", "label", "length")]
        cells = [row["name"], row["reference"], str(row["num_pairs"]), mean, iqm, interval]
        cells += [number(row[name], 3) if name in row else "" for name in accuracies]
        last = row["name"] == "pi1" or row["num_pairs"] == summary["config"]["num_pairs"][-1]
        result.add_row(*cells, *[str(num_known)] * lacking, end_section=last)
    return result


def interval_name(num_seeds: int) -> str:
    """Name an interval by its number of seeds. The ends of a bootstrap interval of two seeds are these two."""
    return {1: "one seed", 2: "range of 2 seeds"}.get(num_seeds, f"95 % of {num_seeds} seeds")


def number(value: float | None, digits: int) -> str:
    """Format a number; "none" if there is none."""
    return "none" if value is None else f"{value:.{digits}f}"


def decimals(summary: dict[str, Any]) -> int:
    """Return how many decimals of returns to show: two if all returns are below 10 in size, as on Catch, else one."""
    means = [row["policy"]["mean"] for row in rows(summary)]
    return 2 if all(mean is None or abs(mean) < 10 for mean in means) else 1


def accuracies_explained(summary: dict[str, Any]) -> str:
    """Return what the three accuracies mean. The ceiling is one of the label accuracy only."""
    best = summary["best_accuracy"]
    ceiling = "" if best is None else f" (the annotator's own probabilities reach {best:.3f})"
    return (
        f"Held-out: share of {summary['config']['num_heldout']} fresh pairs ranked as their true returns rank them; "
        f"label: as they were labelled{ceiling}; length: by the better of longer and shorter"
    )


def warnings(summary: dict[str, Any]) -> list[str]:
    """Return lines about what a reader should know before the numbers.

    - A policy missed its target on some seeds.
    - Most answers about the held-out pairs are guesses.
    - Some seeds of a row are worse than at the start, or had a reward of 0.
    - A stage diverged.
    """
    lines, stages = [], collections.defaultdict(list)
    for name, seeds in summary["not_reached"].items():
        if seeds:
            share = f"{len(seeds)} of {len(summary['seeds'])} seeds"
            lines.append(f"{name} never reached its target return for {share}: {' '.join(map(str, seeds))}")
    if (summary["equal_return_share"] or 0) > 0.5:
        share = f"{summary['equal_return_share']:.0%}"
        lines.append(f"{share} of the held-out pairs have two equal returns: their labels are guesses")
    for row in rows(summary):
        for key, what in (("failed", "ended below their pi2"), ("no_reward", "had a reward of 0")):
            if seeds := row.get(key):
                share = f"{len(seeds)} of {len(summary['seeds'])} seeds"
                lines.append(f"{row['name']}, {row['training']}: {share} {what}: {' '.join(map(str, seeds))}")
    for entry in summary["diverged"]:
        stage = entry["stage"]
        stage += f", reference {entry['reference']}" if entry["reference"] else ""
        stage += f", {entry['num_pairs']} pairs" if entry["num_pairs"] else ""
        update = f", update {entry['update']}" if entry["update"] else ""
        stages[stage].append(f"{entry['seed']} ({entry['what']}{update})")
    for stage, named in sorted(stages.items()):
        lines.append(f"{stage}: diverged for seed {', '.join(named)}; the rows that depend on this leave the seed out")
    return lines


def print_report(console: Console, summary: dict[str, Any], paths: list[Path], folder: Path) -> None:
    """Print the table, the warnings, the names of the files, and the seconds of this run."""
    timing, stages = summary["timing"], summary["timing"]["stages"].values()
    num_kept = sum(1 for stage in stages if stage.get("kept") and not stage["run_s"])
    console.print()
    console.print(table(summary))
    console.print(accuracies_explained(summary), style="dim", highlight=False)
    for line in warnings(summary):
        console.print(f"warning: {line}", style="bold yellow", highlight=False)
    console.print(f"written to {folder}: {', '.join(path.name for path in paths)}", highlight=False, soft_wrap=True)
    console.print(
        f"{timing['total_s']:.1f} s in all: {timing['import_s']:.1f} s imports, {timing['compile_s']:.1f} s "
        f"compilation, {timing['run_s']:.1f} s running, {num_kept} of {len(stages)} stages were kept",
        highlight=False,
    )
