"""The page of the evidence, in Markdown: one section for each claim, with its comparisons and its arms."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path

from rich.console import Console
from rich.markdown import Markdown

from experiments import python
from experiments.claims.arms import Table
from experiments.claims.claims import Claim
from experiments.claims.verdicts import Numbers, explained
from experiments.reporting.summary import LABELS
from jaxpref.files import store

EXPECTED = {"above": "above", "not below": "not below", "no gain": "to gain nothing on"}


def _number(digits: int, field: str) -> Callable[[Table, str, Numbers], str]:
    return lambda table, name, numbers: "" if numbers[field] is None else f"{numbers[field]:.{digits}f}"


def _explained(table: Table, name: str, numbers: Numbers) -> str:
    values = explained(table, name)
    if values is None:
        return ""
    share, low, high = (f"{100 * value:.0f}" if math.isfinite(value) else "?" for value in values)
    return f"{share} % ({low} to {high})"


COLUMNS: dict[str, tuple[str, Callable[[Table, str, Numbers], str]]] = {
    "kl": ("KL to reference, nats per episode", _number(1, "kl")),
    "explained": ("share of the gain explained", _explained),
    "accuracy": ("held-out accuracy", _number(3, "heldout_accuracy")),
    "label_accuracy": ("accuracy on labels", _number(3, "label_accuracy")),
    "best": ("best possible on labels", _number(3, "best_accuracy")),
    "nll": ("negative log-likelihood", _number(3, "heldout_negative_log_likelihood")),
    "calibration": ("calibration error", _number(3, "heldout_calibration_error")),
    "rank": ("rank correlation with the return", _number(2, "heldout_rank_correlation")),
    "entropy": ("label entropy, nats", _number(2, "label_entropy")),
    "sign": (
        "positive reward per step",
        lambda table, name, _: f"{(table[name].score_per_step > 0).mean():.0%} of seeds",
    ),
}
"""The columns that a claim can add to its table, by name: (heading, cell of an arm)."""


def markdown(headings: list[str], rows: list[list[str]]) -> str:
    """Format a Markdown table."""
    lines = [headings, ["---"] + ["---:"] * (len(headings) - 1), *rows]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in lines)


def arms_table(claim: Claim, table: Table, numbers: Numbers) -> str:
    """Show a claim's arms on one task."""
    headings = ["arm", "IQM", "95 % interval", "mean", "worst seed", *(COLUMNS[name][0] for name in claim.columns)]
    rows = []
    for name in claim.arms:
        entry = numbers[name]
        low, high = entry["ci95"]
        cells = [name, f"{entry['iqm']:.1f}", f"{low:.1f} to {high:.1f}"]
        cells += [f"{entry['mean']:.1f}", f"{min(entry['per_seed']):.1f}"]
        rows.append(cells + [COLUMNS[column][1](table, name, entry) for column in claim.columns])
    return markdown(headings, rows)


def comparisons_table(comparisons: list[Numbers]) -> str:
    """Show a claim's comparisons on one task."""
    headings = ["expected", "difference of IQMs", "95 % interval", "better on", "P(improvement)", "borne out"]
    rows = []
    for entry in comparisons:
        low, high = entry["ci95"]
        expected = f"{entry['arm']} {entry['expectation'].replace('no gain', 'no gain on')} {entry['baseline']}"
        cells = [expected, f"{entry['difference']:+.1f}", f"{low:+.1f} to {high:+.1f}"]
        cells += [f"{entry['seeds_improved']:.0%} of seeds", f"{entry['probability_of_improvement']:.2f}"]
        rows.append([*cells, entry["verdict"]])
    return markdown(headings, rows)


def page(claims: Sequence[Claim], summary: Numbers, tables: dict[str, Table]) -> str:
    """Write everything, one claim a section. `tables`: without the seeds that diverged, as in the summary."""
    num_seeds = len(summary["seeds"])
    lines = [
        "# What do preferences really teach?",
        f"{num_seeds} seeds (0 to {num_seeds - 1}) on {' and '.join(tables)}. Each seed is a study of its own. All "
        "arms of a seed share its experts, its initial states and, where annotator and size are the same, its pairs. A "
        "score is the mean true return of 100 episodes. Held-out pairs are 200 fresh pairs of the same annotator. "
        "Intervals are 95 % bootstraps over seeds. An interval of a difference resamples the seeds of both arms "
        "together. They are not corrected for the number of comparisons. A comparison is borne out if its interval "
        "lies on the expected side of zero.",
        outcome(summary),
        *(f"**{line}**" for line in warnings(summary)),
    ]
    for claim in claims:
        lines += [f"## {claim.title}", claim.text, f"![{claim.title}]({claim.name}.png)"]
        if claim.name == "gain":
            lines.append("![Performance profiles](profiles.png)")
        for task, table in tables.items():
            lines.append(f"**{LABELS[task]}**")
            lines.append(comparisons_table(summary["claims"][claim.name][task]))
            lines.append(arms_table(claim, table, summary["arms"][task]))
        command = f"{python()} -m experiments.evidence --claims {claim.name} --num-seeds {num_seeds}"
        lines.append(f"Reproduce: `{command}`")
    versions = ", ".join(f"{name} {version}" for name, version in summary["versions"].items())
    return "\n\n".join([*lines, f"Measured with {versions}."]) + "\n"


def outcome(summary: Numbers) -> str:
    """Count the comparisons that are borne out, and name those that contradict."""
    entries = [
        (LABELS[task], entry)
        for by_task in summary["claims"].values()
        for task, comparisons in by_task.items()
        for entry in comparisons
    ]
    contradicting = [(task, entry) for task, entry in entries if entry["verdict"].startswith("NO")]
    num_open = sum(entry["verdict"].startswith("no") for _, entry in entries)
    text = f"Of {len(entries)} comparisons {len(contradicting)} contradict the expectation and {num_open} show nothing."
    lines = [
        f"- {task}: {entry['arm']} was expected {EXPECTED[entry['expectation']]} {entry['baseline']}; it is "
        f"{entry['difference']:+.1f} ({entry['ci95'][0]:+.1f} to {entry['ci95'][1]:+.1f})"
        for task, entry in contradicting
    ]
    return "\n".join([text, "", *lines]) if lines else text


def warnings(summary: Numbers) -> list[str]:
    """Name the seeds that are left out."""
    return [
        f"{LABELS[task]}: {arm} diverged on seed{'s' if len(seeds) > 1 else ''} {' '.join(map(str, seeds))}, "
        "left out of all arms"
        for task, by_arm in summary["diverged"].items()
        for arm, seeds in by_arm.items()
    ]


def write(text: str, folder: Path, console: Console) -> None:
    """Write the page into a folder, and show it on the terminal without its pictures."""
    with store.atomic_write(folder / "evidence.md") as file:
        file.write(text.encode())
    console.print(Markdown("\n".join(line for line in text.splitlines() if not line.startswith("!["))))
