"""The figures of an experiment, drawn from its results."""

import functools
import itertools
from pathlib import Path
from textwrap import fill
from typing import Any

import matplotlib
import numpy as np
from matplotlib.figure import Figure

from experiments.pipeline.pipeline import Outcome
from experiments.reporting.summary import sound, title
from jaxpref.analysis import plots
from jaxpref.files import store

PANEL_WIDTH, PANEL_HEIGHT, MIN_WIDTH = 4.6, 3.1, 6.4
"""Inches."""
style = functools.partial(matplotlib.rc_context, plots.STYLE)
"""Draw and save in the project's style inside this context."""


def panels(num_columns: int, num_rows: int = 1, **options: Any) -> tuple[Figure, np.ndarray]:
    """Return a figure and its panels [rows, columns]."""
    width = max(MIN_WIDTH, PANEL_WIDTH * num_columns + 0.4)
    figure = Figure(figsize=(width, PANEL_HEIGHT * num_rows + 1.1))
    return figure, figure.subplots(num_rows, num_columns, squeeze=False, **options)


def finish(figure: Figure, title: str) -> Figure:
    """Give a figure its title, in lines that fit its width, and one legend with each label once."""
    width = figure.get_figwidth()
    lines = title.replace(" %", "\N{NO-BREAK SPACE}%").splitlines()
    figure.suptitle("\n".join(fill(line, int(11 * width)) for line in lines), fontsize=11)
    entries: dict[str, Any] = {}
    for axes in figure.axes:  # a panel lacks the lines of which every seed diverged
        handles, labels = axes.get_legend_handles_labels()
        entries = dict(zip(labels, handles, strict=True)) | entries
    if entries:
        figure.legend(entries.values(), entries, loc="outside lower center", ncols=min(len(entries), int(width / 1.5)))
    return figure


def save(figure: Figure, path: Path) -> None:
    """Write a figure as PNG."""
    with store.atomic_write(path) as file:
        figure.savefig(file, format="png")


Columns = dict[str, list[tuple[Any, np.ndarray, str, str]]]
"""Trainings by the heading of their column of panels: metrics, the seeds that did not diverge, label and colour."""
CURVES = {
    "returns": ("return during training", {"true_return": "true return"}),
    "loss": ("loss, running mean of 5 updates", {"loss": "{} loss"}),
    "margins": ("implicit rewards, running mean of 5 updates", {"margin": "margin", "accuracy": "accuracy"}),
    "kl": (
        "distance and learned return",
        {"kl": "KL(policy || ref), nats per step", "learned_return": "learned return"},
    ),
}
"""Figures of metrics against update: words for the title, and the fields, each with the label of its row of panels."""
SMOOTHED = ("loss", "margin", "accuracy")
"""Fields that are drawn as running means of 5 updates."""


def draw_all(outcome: Outcome, summary: dict[str, Any], folder: Path) -> list[Path]:
    """Draw every figure into `folder`; return their paths."""
    policies, reward_models = columns_of(outcome, summary)
    num_seeds, last = len(summary["seeds"]), "margins" if summary["method"].endswith("dpo") else "kl"
    seeds, band = (f"{num_seeds} seeds", ", mean and 10-90 % of seeds") if num_seeds > 1 else ("one seed", "")
    interval = {1: "", 2: " with the range"}.get(num_seeds, " with 95 % interval")
    with style():
        figures = {"policies": (draw_policies(summary, policies), f"points are seeds, diamonds IQM{interval}")}
        for name in ("returns", "loss", last):
            text, fields = CURVES[name]
            columns = reward_models | policies if name == "loss" else policies
            figures[name] = draw_curves(outcome, summary, columns, fields), text + band
        for name, (figure, text) in figures.items():
            save(finish(figure, f"{title(summary)}, {seeds}: {text}"), folder / f"{name}.png")
    return [folder / f"{name}.png" for name in figures]


def columns_of(outcome: Outcome, summary: dict[str, Any]) -> tuple[Columns, Columns]:
    """Return the columns of the policies, one for each reference, and that of the reward models, if any were fitted."""
    sizes, colours = summary["config"]["num_pairs"], itertools.cycle(plots.COLOURS)
    lines = {size: (f"{size} pair{'s' if size > 1 else ''}", next(colours)) for size in sizes}
    known = functools.partial(sound, summary["diverged"], summary["seeds"])
    policies, reward_models = Columns(), Columns()
    for row in outcome.rows:
        training = row.metrics, known(row.reference, row.num_pairs), *lines[row.num_pairs]
        policies.setdefault(f"reference {row.reference}", []).append(training)
    for size, model in zip(sizes, outcome.reward_models, strict=False):  # DPO has none
        if model.metrics is not None:
            reward_models.setdefault("reward model", []).append((model.metrics, known(None, size), *lines[size]))
    return policies, reward_models


def draw_policies(summary: dict[str, Any], columns: Columns) -> Figure:
    """Draw pi2, pi1 and the trained policies side by side."""
    figure, axes_of = panels(len(columns), sharey=True)
    for axes, (heading, rows) in zip(axes_of[0], columns.items(), strict=True):
        trained = [row["policy"] for row in summary["rows"] if heading == f"reference {row['reference']}"]
        scores = [summary["policies"]["pi2"], summary["policies"]["pi1"], *trained]
        keys = ("per_seed", "ci95", "iqm")
        per_seed, ends, centres = (np.array([x[key] for x in scores], np.float64) for key in keys)  # None becomes NaN
        names = ["pi2", "pi1", *(label.replace(" ", "\n") for *_, label, _ in rows)]
        colours = [plots.GREY, "black", *(colour for *_, colour in rows)]
        plots.policies(axes, names, per_seed, [*map(tuple, ends)], centres.tolist(), colours)
        axes.set_title(heading)
    axes_of[0, 0].set_ylabel("true return")
    return figure


def draw_curves(outcome: Outcome, summary: dict[str, Any], columns: Columns, fields: dict[str, str]) -> Figure:
    """Draw a curve for each dataset size in every column, and a row of panels for each field. Returns begin at pi2."""
    policy_loss = "DPO" if summary["method"].endswith("dpo") else "PPO"
    figure, axes_of = panels(len(columns), len(fields), sharey=False if "reward model" in columns else "row")
    for column, (heading, rows) in zip(axes_of.T, columns.items(), strict=True):
        column[0].set_title(heading)
        loss = "Bradley-Terry" if heading == "reward model" else policy_loss
        for axes, (field, label) in zip(column, fields.items(), strict=True):
            axes.set(xlabel="update", ylabel=label.format(loss))
            for metrics, known, size, colour in rows:
                values = getattr(metrics, field)
                updates = np.linspace(0, metrics.loss.shape[-1], values.shape[-1] + 1)[1:]
                if field == "true_return":
                    updates, values = np.append(0, updates), np.column_stack([outcome.returns["pi2"], values])
                if known.any():
                    plots.curve(axes, updates, values[known], size, colour, 5 if field in SMOOTHED else 1)
            for policy, linestyle in (("pi1", "--"), ("pi2", ":")):
                level = summary["policies"][policy]["mean"]
                if field == "true_return" and level is not None:
                    plots.level(axes, level, policy, linestyle)
    return figure
