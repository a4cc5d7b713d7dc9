"""The figures of an experiment, drawn from its results."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from textwrap import fill
from typing import Any, NamedTuple

import matplotlib
import numpy as np
from jaxtyping import Bool, Float
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from experiments.pipeline.pipeline import Outcome
from experiments.reporting.summary import LABELS, sound
from jaxpref.analysis import plots
from jaxpref.files import store

PANEL_WIDTH, PANEL_HEIGHT, MIN_WIDTH = 4.6, 3.1, 6.4
"""Inches."""


@contextmanager
def style() -> Iterator[None]:
    """Draw and save in the project's style inside this context."""
    with matplotlib.rc_context(plots.STYLE):
        yield


def panels(num_columns: int, num_rows: int = 1, **options: Any) -> tuple[Figure, np.ndarray]:
    """Return a figure and its panels [rows, columns]."""
    width = max(MIN_WIDTH, PANEL_WIDTH * num_columns + 0.4)
    figure = Figure(figsize=(width, PANEL_HEIGHT * num_rows + 1.1))
    return figure, figure.subplots(num_rows, num_columns, squeeze=False, **options)


def finish(figure: Figure, title: str) -> Figure:
    """Give a figure its title, in lines that fit its width, and one legend with each label once."""
    width = figure.get_figwidth()
    figure.suptitle(fill(title.replace(" %", "\N{NO-BREAK SPACE}%"), int(11 * width)), fontsize=11)
    entries: dict[str, Any] = {}
    for axes in figure.axes:  # a panel lacks the lines of which every seed diverged
        handles, labels = axes.get_legend_handles_labels()
        entries = dict(zip(labels, handles, strict=True)) | entries
    if entries:
        figure.legend(entries.values(), entries, loc="outside lower center", ncols=min(len(entries), int(width / 1.5)))
    return figure


def save(figure: Figure, path: Path) -> Path:
    """Write a figure as PNG."""
    with store.atomic_write(path) as file:
        figure.savefig(file, format="png")
    return path


class Line(NamedTuple):
    """How the results of one dataset size are drawn, a `Row` or a reward model, and which seeds have numbers."""

    result: Any
    label: str
    colour: str
    seeds: Bool[np.ndarray, " S"]

    def of(self, values: Any) -> Float[np.ndarray, "S U"]:
        """Return the values of the seeds that have numbers."""
        return np.asarray(values)[self.seeds]


class Results(NamedTuple):
    """What the figures show: lines by reference, and the summary."""

    lines: dict[str, list[Line]]
    outcome: Outcome
    summary: dict[str, Any]

    def title(self, text: str) -> str:
        """Return a figure's title: task and method, what is drawn, and of which seeds."""
        task, num_seeds = self.summary["task"], len(self.summary["seeds"])
        seeds = "one seed" if num_seeds == 1 else f"{num_seeds} seeds"
        return f"{LABELS.get(task, task)}, {LABELS[self.summary['method']]}, {seeds}: {text}"

    def curves_title(self, text: str) -> str:
        """Return the title of curves, which have a band if there is more than one seed."""
        return self.title(text + (", mean and 10-90 % of seeds" if len(self.summary["seeds"]) > 1 else ""))


def draw_all(outcome: Outcome, summary: dict[str, Any], folder: Path) -> list[Path]:
    """Draw every figure into `folder`; return their paths."""
    lines: dict[str, list[Line]] = {}
    for row in outcome.rows:
        of_reference = lines.setdefault(row.reference, [])
        label = f"{row.num_pairs} pair{'s' if row.num_pairs > 1 else ''}"
        seeds = sound(summary["diverged"], summary["seeds"], row.reference, row.num_pairs)
        of_reference.append(Line(row, label, plots.COLOURS[len(of_reference) % len(plots.COLOURS)], seeds))
    drawings: dict[str, Callable] = {"policies": draw_policies, "returns": draw_returns, "loss": draw_loss}
    drawings |= {"margins": draw_margins} if summary["method"].endswith("dpo") else {"kl": draw_kl}
    with style():
        results = Results(lines, outcome, summary)
        return [save(draw(results), folder / f"{name}.png") for name, draw in drawings.items()]


def draw_policies(results: Results) -> Figure:
    """Draw pi2, pi1 and the trained policies side by side."""
    summary = results.summary
    figure, axes_of = panels(len(results.lines), sharey=True)
    for axes, (reference, lines) in zip(axes_of[0], results.lines.items(), strict=True):
        rows = [row["policy"] for row in summary["rows"] if row["reference"] == reference]
        entries = [summary["policies"]["pi2"], summary["policies"]["pi1"], *rows]
        plots.policies(
            axes,
            ["pi2", "pi1", *(line.label.replace(" ", "\n") for line in lines)],
            np.array([entry["per_seed"] for entry in entries], np.float64),  # NaN for None, as in all of these
            [tuple(np.array(entry["ci95"], np.float64)) for entry in entries],
            np.array([entry["iqm"] for entry in entries], np.float64).tolist(),
            [plots.GREY, "black", *(line.colour for line in lines)],
        )
        axes.set_title(f"reference {reference}")
    axes_of[0, 0].set_ylabel("true return")
    interval = {1: "", 2: " with the range"}.get(len(summary["seeds"]), " with 95 % interval")
    return finish(figure, results.title(f"points are seeds, diamonds IQM{interval}"))


def draw_returns(results: Results) -> Figure:
    """Draw true return against update, one line for each dataset size."""
    figure, axes_of = panels(len(results.lines), sharey=True)
    for axes, (reference, lines) in zip(axes_of[0], results.lines.items(), strict=True):
        for line in lines:
            metrics = line.result.metrics
            returns = np.column_stack([results.outcome.returns["pi2"], metrics.true_return])
            updates = np.linspace(0, metrics.loss.shape[-1], returns.shape[-1])
            _draw(axes, line, updates, returns)
        for name, linestyle in (("pi1", "--"), ("pi2", ":")):
            if (level := results.summary["policies"][name]["mean"]) is not None:
                plots.level(axes, level, name, linestyle)
        axes.set(title=f"reference {reference}", xlabel="update")
    axes_of[0, 0].set_ylabel("true return")
    return finish(figure, results.curves_title("return during training"))


def _draw(axes: Axes, line: Line, x: Any, values: Any, smooth: int = 1) -> None:
    """Draw one line, of the seeds that have numbers, if there are any."""
    values = line.of(values)
    if values.size:
        plots.curve(axes, x, values, line.label, line.colour, smooth)


def _draw_metric(axes: Axes, title: str, ylabel: str, lines: list[Line], name: str, smooth: int = 1) -> None:
    """Draw one field of the metrics against update. It has an entry for each update, or for each evaluation."""
    for line in lines:
        values, num_updates = getattr(line.result.metrics, name), line.result.metrics.loss.shape[-1]
        _draw(axes, line, np.linspace(0, num_updates, values.shape[-1] + 1)[1:], values, smooth)
    axes.set(title=title, xlabel="update", ylabel=ylabel)


def draw_loss(results: Results) -> Figure:
    """Draw loss against update; for RLHF that of the reward model, too."""
    fitted, summary = _fitted_lines(results), results.summary
    num_columns = len(results.lines) + bool(fitted)
    figure, axes_of = panels(num_columns, sharey=summary["method"].endswith("dpo"))
    if fitted:
        _draw_metric(axes_of[0, 0], "reward model", "Bradley-Terry loss", fitted, "loss", smooth=5)
    ylabel = "DPO loss" if summary["method"].endswith("dpo") else "PPO loss"
    for axes, (reference, lines) in zip(axes_of[0, bool(fitted) :], results.lines.items(), strict=True):
        _draw_metric(axes, f"reference {reference}", ylabel, lines, "loss", smooth=5)
    return finish(figure, results.curves_title("loss, running mean of 5 updates"))


def _fitted_lines(results: Results) -> list[Line]:
    """Return lines of the reward models; none where no reward model was fitted as a stage of its own."""
    first, summary = next(iter(results.lines.values())), results.summary
    return [
        line._replace(result=model, seeds=sound(summary["diverged"], summary["seeds"], None, line.result.num_pairs))
        for line, model in zip(first, results.outcome.reward_models or [], strict=False)
        if model.metrics is not None
    ]


def draw_margins(results: Results) -> Figure:
    """Draw for DPO the margin of the implicit rewards and the share of a minibatch that they rank as labelled."""
    figure, axes_of = panels(len(results.lines), 2, sharey="row")
    for column, (reference, lines) in zip(axes_of.T, results.lines.items(), strict=True):
        _draw_metric(column[0], f"reference {reference}", "margin", lines, "margin", smooth=5)
        _draw_metric(column[1], "", "accuracy", lines, "accuracy", smooth=5)
    return finish(figure, results.curves_title("implicit rewards, running mean of 5 updates"))


def draw_kl(results: Results) -> Figure:
    """Draw for PPO the exact KL to the reference and the learned return."""
    figure, axes_of = panels(len(results.lines), 2, sharey="row")
    for column, (reference, lines) in zip(axes_of.T, results.lines.items(), strict=True):
        _draw_metric(column[0], f"reference {reference}", "KL(policy || ref), nats per step", lines, "kl")
        _draw_metric(column[1], "", "learned return", lines, "learned_return")
    return finish(figure, results.curves_title("distance and learned return"))
