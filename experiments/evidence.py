"""What the data say about a list of claims: `python -m experiments.evidence --help`.

Every arm of `experiments.claims` is run on every seed. Its results are kept, so a run that was interrupted goes on
where it stopped. Then every comparison that a claim makes is tested, seed by seed, and a page says what came out.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import itertools
import math
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import jax
import matplotlib
import matplotlib.pyplot as plt
import numpy as np
from matplotlib.figure import Figure
from rich import box
from rich.console import Console
from rich.table import Table as TerminalTable

import jaxpref
from experiments import START, arms, python, report, stages
from experiments.checkpoints import locked
from experiments.claims import CLAIMS, Claim, Comparison
from experiments.claims import arms as arms_of
from experiments.command import DIVERGED, UsageError, check_folder, exit_codes, read
from experiments.progress import Progress
from experiments.settings import TaskName
from jaxpref import plots, statistics, store

Numbers = dict[str, Any]
"""A part of summary.json."""


@dataclasses.dataclass(frozen=True)
class Settings:
    """What is examined, and on how many seeds."""

    num_seeds: int = 100
    """Seeds 0 to num_seeds - 1."""
    claims: tuple[str, ...] = tuple(claim.name for claim in CLAIMS)
    """Names of claims."""
    tasks: tuple[TaskName, ...] = ("cartpole", "acrobot")
    """On both, unless one is named."""
    out: Path = Path("results/evidence")
    """Folder for the page, its figures, summary.json and every arm's results."""
    devices: int = 0
    """CPU devices that seeds are spread over; 0: one for each core."""


# --- numbers ----------------------------------------------------------------------------------------------------------


def diverged(table: arms.Table, seeds: Sequence[int]) -> dict[str, list[int]]:
    """The seeds, by arm, whose training went astray; arms of which none did are not named."""
    by_arm = {name: np.asarray(seeds)[result.diverged > 0].tolist() for name, result in table.items()}
    return {name: astray for name, astray in by_arm.items() if astray}


def without(table: arms.Table, seeds: Sequence[int], left_out: Iterable[int]) -> arms.Table:
    """The results of all other seeds: arms are compared seed by seed, so a seed that one arm lost is lost to all.

    Raises UsageError if none is left.
    """
    kept = ~np.isin(seeds, list(left_out))
    if not kept.any():
        raise UsageError("there is no seed on which no arm diverged: nothing can be compared")
    return {name: jax.tree.map(lambda leaf: leaf[kept], result) for name, result in table.items()}


def returns_of(table: arms.Table, name: str) -> np.ndarray:
    """An arm's true return on every seed."""
    return np.asarray(table[name].true_return, np.float64)


def describe(arm: arms.Result) -> Numbers:
    """An arm's entry in summary.json: its score as in every summary, and means over seeds of all else."""
    numbers = report.score(np.asarray(arm.true_return)) | {
        "kl": report.mean_or_none(arm.kl),
        "score_per_step": {
            "min": _number(np.min(arm.score_per_step)),
            "max": _number(np.max(arm.score_per_step)),
        },
        "label_entropy": report.mean_or_none(arm.label_entropy),
        "best_accuracy": report.mean_or_none(arm.best_accuracy),
    }
    return numbers | {f"heldout_{name}": report.mean_or_none(values) for name, values in vars(arm.quality).items()}


def _number(value: Any) -> float | None:
    return float(value) if np.isfinite(value) else None


def compare(table: arms.Table, comparison: Comparison) -> Numbers:
    """One comparison, seed by seed: the difference of the IQMs with its interval, and who wins how often."""
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
    """What the interval of the difference says about the expectation."""
    above, below = low > 0, high < 0
    match expectation:
        case "above":
            return "yes" if above else "NO, below" if below else "not shown"
        case "not below":
            return "yes, even above" if above else "NO, below" if below else "no difference shown"
        case _:
            return "NO, a gain" if above else "yes, even a loss" if below else "yes"


CONTROLS = ("zero", "random", "coin", "true")


def explained(table: arms.Table, name: str) -> tuple[float, float, float] | None:
    """Share of the gain over pi2 that a control has of its own method's, under the same reference and settings."""
    method, _, kind = name.rpartition("-")
    if kind not in CONTROLS:
        return None
    return statistics.explained_share(returns_of(table, name), returns_of(table, method), returns_of(table, "pi2"))


# --- the table of a claim ---------------------------------------------------------------------------------------------


def _share(values: tuple[float, float, float] | None) -> str:
    if values is None:
        return ""
    share, low, high = (f"{100 * value:.0f}" if math.isfinite(value) else "?" for value in values)
    return f"{share} % ({low} to {high})"


def _format(pattern: str, field: str) -> Callable[[arms.Table, str, Numbers], str]:
    return lambda table, name, numbers: "" if numbers[field] is None else pattern.format(numbers[field])


def _sign(table: arms.Table, name: str, numbers: Numbers) -> str:
    per_step = table[name].score_per_step
    return f"{np.mean(per_step > 0):.0%} of seeds positive"


COLUMNS: dict[str, tuple[str, Callable[[arms.Table, str, Numbers], str]]] = {
    "kl": ("KL to reference, nats per episode", _format("{:.1f}", "kl")),
    "explained": ("share of the gain explained", lambda table, name, numbers: _share(explained(table, name))),
    "accuracy": ("held-out accuracy", _format("{:.3f}", "heldout_accuracy")),
    "nll": ("negative log-likelihood", _format("{:.3f}", "heldout_negative_log_likelihood")),
    "calibration": ("calibration error", _format("{:.3f}", "heldout_calibration_error")),
    "rank": ("rank correlation with the return", _format("{:.2f}", "heldout_rank_correlation")),
    "entropy": ("label entropy, nats", _format("{:.2f}", "label_entropy")),
    "best": ("best accuracy possible", _format("{:.2f}", "best_accuracy")),
    "sign": ("mean reward per step", _sign),
}
"""Further columns by name: (heading, cell of an arm)."""


def rows_of(claim: Claim, table: arms.Table, numbers: Numbers) -> tuple[list[str], list[list[str]]]:
    """(headings, rows) of a claim's arms on one task."""
    headings = ["arm", "IQM", "95 % interval", "mean", "worst seed", *(COLUMNS[name][0] for name in claim.columns)]
    rows = []
    for name in claim.arms:
        entry = numbers[name]
        low, high = entry["ci95"]
        cells = [name, f"{entry['iqm']:.1f}", f"{low:.1f} to {high:.1f}"]
        cells += [f"{entry['mean']:.1f}", f"{min(entry['per_seed']):.1f}"]
        rows.append(cells + [COLUMNS[column][1](table, name, entry) for column in claim.columns])
    return headings, rows


def comparison_rows(comparisons: list[Numbers]) -> tuple[list[str], list[list[str]]]:
    """(headings, rows) of a claim's comparisons on one task."""
    headings = ["expected", "difference of IQMs", "95 % interval", "better on", "P(improvement)", "borne out"]
    rows = []
    for entry in comparisons:
        low, high = entry["ci95"]
        expected = f"{entry['arm']} {entry['expectation'].replace('no gain', 'no gain on')} {entry['baseline']}"
        cells = [expected, f"{entry['difference']:+.1f}", f"{low:+.1f} to {high:+.1f}"]
        cells += [f"{entry['seeds_improved']:.0%} of seeds", f"{entry['probability_of_improvement']:.2f}"]
        rows.append([*cells, entry["verdict"]])
    return headings, rows


def markdown(headings: list[str], rows: list[list[str]]) -> str:
    """A Markdown table."""
    lines = [headings, ["---"] + ["---:"] * (len(headings) - 1), *rows]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in lines)


def print_table(console: Console, title: str, headings: list[str], rows: list[list[str]], left_out: set[str]) -> None:
    """The same for the terminal, without the columns that it has no room for."""
    table = TerminalTable(title=title, title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False)
    shown = [place for place, heading in enumerate(headings) if heading not in left_out]
    for place in shown:
        table.add_column(headings[place], justify="right" if place else "left", no_wrap=place == 0)
    for row in rows:
        table.add_row(*(row[place] for place in shown))
    console.print(table)


# --- figures ----------------------------------------------------------------------------------------------------------


def draw_claim(claim: Claim, summaries: dict[str, Numbers]) -> Figure:
    """IQM and interval of every arm, a panel for each task; lines where pi2 and pi1 stand."""
    size = (5.0 * len(summaries) + 1.2, 0.27 * len(claim.arms) + 1.5)
    figure, panels = plt.subplots(1, len(summaries), figsize=size, sharey=True, squeeze=False)
    for axes, (task, numbers) in zip(panels[0], summaries.items(), strict=True):
        entries = [numbers[name] for name in claim.arms]
        plots.intervals(
            axes,
            claim.arms,
            [entry["iqm"] for entry in entries],
            [tuple(entry["ci95"]) for entry in entries],
            [_colour(name) for name in claim.arms],
        )
        for policy, style in (("pi2", ":"), ("pi1", "--")):
            axes.axvline(numbers[policy]["iqm"], color=plots.GREY, linestyle=style, linewidth=1.0, zorder=0)
        axes.set(title=report.LABELS[task], xlabel="true return, IQM over seeds with 95 % interval")
    figure.suptitle(claim.title + " (dotted: pi2, dashed: pi1)", fontsize=11)
    return figure


def _colour(name: str) -> str:
    if name.startswith("pi"):
        return "black"
    place = ("dpo", "rlhf", "online-dpo", "online-rlhf", "cloning").index(
        next(kind for kind in ("online-dpo", "online-rlhf", "dpo", "rlhf", "cloning") if name.startswith(kind))
    )
    return plots.COLOURS[place]


PROFILED = ("pi2", "pi1", "dpo", "rlhf")


def draw_profiles(tables: dict[str, arms.Table]) -> Figure:
    """Share of seeds above every return."""
    figure, panels = plt.subplots(1, len(tables), figsize=(4.6 * len(tables) + 0.4, 3.6), sharey=True, squeeze=False)
    for axes, (task, table) in zip(panels[0], tables.items(), strict=True):
        scores = {name: returns_of(table, name) for name in PROFILED}
        thresholds = np.linspace(min(map(np.min, scores.values())) - 1, max(map(np.max, scores.values())), 400)
        for name, colour in zip(PROFILED, (plots.GREY, "black", *plots.COLOURS), strict=False):
            low, high = statistics.profile_band(scores[name], thresholds)
            shares = statistics.performance_profile(scores[name], thresholds)
            plots.profiles(axes, thresholds, shares, low, high, name, colour)
        axes.set(title=report.LABELS[task], xlabel="true return")
    panels[0, 0].set_ylabel("share of seeds above")
    figure.suptitle("Performance profiles, 200 pairs, reference pi2, 95 % bands", fontsize=11)
    figure.legend(*panels[0, 0].get_legend_handles_labels(), loc="outside lower center", ncols=4)
    return figure


def figures(settings: Settings, summary: Numbers, tables: dict[str, arms.Table]) -> None:
    """Draw what the page shows."""
    matplotlib.use("Agg")
    drawings: dict[str, Callable[[], Figure]] = {
        claim.name: functools.partial(draw_claim, claim, summary["arms"]) for claim in chosen(settings)
    }
    if "gain" in drawings:
        drawings["profiles"] = functools.partial(draw_profiles, tables)
    with matplotlib.rc_context(plots.STYLE):
        for name, draw in drawings.items():
            figure = draw()
            with store.atomic_write(settings.out / f"{name}.png") as file:
                figure.savefig(file, format="png")
            plt.close(figure)


# --- the page ---------------------------------------------------------------------------------------------------------


def page(settings: Settings, summary: Numbers, tables: dict[str, arms.Table]) -> str:
    """Everything in Markdown, one claim a section."""
    lines = [
        "# What do preferences really teach?",
        f"{settings.num_seeds} seeds (0 to {settings.num_seeds - 1}) on {' and '.join(settings.tasks)}; every seed is "
        "a study of its own, and all arms of a seed share its experts, initial states and pairs. Scores are the mean "
        f"true return of {arms.EVAL_EPISODES} episodes. Intervals are bootstraps over seeds, 95 %; those of "
        "differences resample both arms' seeds together. They are not corrected for the number of comparisons. A "
        "comparison is borne out if its interval lies on the expected side of zero.",
        outcome(summary),
        *(f"**{line}**" for line in warnings(summary)),
    ]
    for claim in chosen(settings):
        lines += [f"## {claim.title}", claim.text, f"![{claim.title}]({claim.name}.png)"]
        if claim.name == "gain":
            lines.append("![Performance profiles](profiles.png)")
        for task in settings.tasks:
            lines.append(f"**{report.LABELS[task]}**")
            lines.append(markdown(*comparison_rows(summary["claims"][claim.name][task])))
            lines.append(markdown(*rows_of(claim, tables[task], summary["arms"][task])))
        command = f"{python()} -m experiments.evidence --claims {claim.name} --num-seeds {settings.num_seeds}"
        lines.append(f"Reproduce: `{command}`")
    versions = ", ".join(f"{name} {version}" for name, version in summary["versions"].items())
    lines.append(f"Measured with {versions}.")
    return "\n\n".join(lines) + "\n"


def outcome(summary: Numbers) -> str:
    """How many comparisons are borne out, and which are not."""
    entries = [
        (report.LABELS[task], entry)
        for by_task in summary["claims"].values()
        for task, comparisons in by_task.items()
        for entry in comparisons
    ]
    missed = [(task, entry) for task, entry in entries if entry["verdict"].startswith("NO")]
    open_ = [entry for _, entry in entries if entry["verdict"].startswith("no")]
    text = f"Of {len(entries)} comparisons {len(missed)} contradict what was expected and {len(open_)} show nothing."
    lines = [
        f"- {task}: {entry['arm']} was expected {_words(entry['expectation'])} {entry['baseline']}; it is "
        f"{entry['difference']:+.1f} ({entry['ci95'][0]:+.1f} to {entry['ci95'][1]:+.1f})"
        for task, entry in missed
    ]
    return "\n".join([text, "", *lines]) if missed else text


def warnings(summary: Numbers) -> list[str]:
    """Which seeds are left out, and why."""
    return [
        f"{report.LABELS[task]}: {arm} diverged on seed{'s' if len(seeds) > 1 else ''} {' '.join(map(str, seeds))}, "
        "left out of all arms"
        for task, by_arm in summary["diverged"].items()
        for arm, seeds in by_arm.items()
    ]


def _words(expectation: str) -> str:
    return {"above": "above", "not below": "not below", "no gain": "to gain nothing on"}[expectation]


def chosen(settings: Settings) -> list[Claim]:
    """The claims that are asked for, in the order of the page."""
    return [claim for claim in CLAIMS if claim.name in settings.claims]


def needed(settings: Settings, task: TaskName) -> dict[str, arms.Arm]:
    """The arms that the claims speak of."""
    names = {"pi1", "pi2"}
    for claim in chosen(settings):
        names |= {*claim.arms, *(name for pair in claim.comparisons for name in (pair.arm, pair.baseline))}
    return {name: arm for name, arm in arms_of(task).items() if name in names}


def check(settings: Settings) -> None:
    """Raise UsageError for what cannot be examined."""
    known = [claim.name for claim in CLAIMS]
    if unknown := set(settings.claims) - set(known):
        raise UsageError(f"--claims: unknown {', '.join(sorted(unknown))}; known are {', '.join(known)}")
    if not settings.claims or not settings.tasks:
        raise UsageError("--claims and --tasks need at least one name each")
    if not 1 <= settings.num_seeds <= 2**32:
        raise UsageError(f"--num-seeds must be at least 1, got {settings.num_seeds}")
    check_folder(settings.out)


def main() -> None:
    """Run the arms, test the claims, write the page."""
    with exit_codes(), contextlib.ExitStack() as held:
        settings = read(Settings, sys.argv[1:], __doc__ or "")
        check(settings)
        held.enter_context(locked(settings.out))
        stages.set_up_jax(settings.devices)
        console, seeds = Console(), range(settings.num_seeds)
        tables: dict[str, arms.Table] = {}
        astray: dict[str, dict[str, list[int]]] = {}
        with Progress(console, settings.out, unit="arms") as progress:
            for task in settings.tasks:
                arms.plan(jaxpref.task(task), needed(settings, task), seeds, progress)
            for task in settings.tasks:
                folder = settings.out / "arms" / task
                tables[task] = arms.run(jaxpref.task(task), needed(settings, task), seeds, folder, progress)
        for task in settings.tasks:
            astray[task] = diverged(tables[task], seeds)
            tables[task] = without(tables[task], seeds, itertools.chain(*astray[task].values()))
        claims: dict[str, dict[str, list[Numbers]]] = {
            claim.name: {task: [compare(table, pair) for pair in claim.comparisons] for task, table in tables.items()}
            for claim in chosen(settings)
        }
        summary: Numbers = {
            "seeds": list(seeds),
            "diverged": astray,
            "versions": report.versions(),
            "claims": claims,
            "arms": {
                task: {name: describe(result) for name, result in table.items()} for task, table in tables.items()
            },
            "total_s": time.perf_counter() - START,
        }
        figures(settings, summary, tables)
        with store.atomic_write(settings.out / "evidence.md") as file:
            file.write(page(settings, summary, tables).encode())
        store.save_json(settings.out / "summary.json", summary)
        for claim in chosen(settings):
            for task in settings.tasks:
                title = f"{report.LABELS[task]}: {claim.title}"
                compared = comparison_rows(claims[claim.name][task])
                print_table(console, title, *compared, left_out={"better on", "P(improvement)"})
                print_table(console, "", *rows_of(claim, tables[task], summary["arms"][task]), left_out={"mean"})
        console.print(outcome(summary), highlight=False)
        for line in warnings(summary):
            console.print(f"warning: {line}", style="bold yellow", highlight=False, soft_wrap=True)
        took = time.perf_counter() - START
        console.print(f"{took:.0f} s; written to {settings.out}: evidence.md, summary.json, figures", highlight=False)
        if any(astray.values()):
            raise SystemExit(DIVERGED)


if __name__ == "__main__":
    main()
