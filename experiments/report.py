"""What an experiment leaves behind: summary.json, the table on the terminal, figures, policies."""

from __future__ import annotations

import dataclasses
import importlib.metadata
import platform
from pathlib import Path
from typing import Any, Literal

import matplotlib
import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from rich import box
from rich.console import Console
from rich.table import Table

from experiments.pipeline import Outcome
from experiments.settings import Settings
from jaxpref import plots, statistics, store
from jaxpref.preferences import take

LABELS = {"dpo": "DPO", "rlhf": "PPO-RLHF", "cartpole": "CartPole", "acrobot": "Acrobot"}
"""How methods and the study's tasks are written; other tasks have their own names."""
REFERENCES = ("pi1", "pi2")


def score(per_seed: np.ndarray) -> dict[str, Any]:
    """A policy's entry in summary.json: `ci95` is the bootstrap interval of the IQM over seeds."""
    per_seed = np.asarray(per_seed, np.float64)
    return {
        "mean": float(per_seed.mean()),
        "iqm": statistics.iqm(per_seed),
        "ci95": list(statistics.bootstrap_interval(per_seed)),
        "per_seed": per_seed.tolist(),
    }


def summarise(settings: Settings, outcome: Outcome) -> dict[str, Any]:
    """summary.json without its timing."""
    experts = outcome.experts
    rows = [
        {
            "num_pairs": num_pairs,
            "init": "pi2",
            "reference": reference,
            "policy": score(outcome.trained_returns[reference][:, place]),
            "heldout_accuracy": mean_or_none(trained.heldout_accuracy[:, place]),
        }
        for reference, trained in outcome.trained.items()
        for place, num_pairs in enumerate(settings.num_pairs)
    ]
    return {
        "experiment": settings.experiment,
        "task": settings.task,
        "method": settings.method,
        "seeds": list(settings.seeds),
        "config": dataclasses.asdict(settings) | {"out": str(settings.out)},
        "versions": versions(),
        "policies": {name: score(returns) for name, returns in outcome.returns.items()},
        "pi1_reached": experts.pi1_reached.tolist(),
        "pi2_reached": experts.pi2_reached.tolist(),
        "not_reached": not_reached(settings, outcome),
        "rows": rows,
    }


def mean_or_none(per_seed: Any) -> float | None:
    """Mean over the seeds that have a number; None, JSON's null, where none has."""
    known = np.asarray(per_seed)[~np.isnan(per_seed)]
    return float(known.mean()) if known.size else None


def not_reached(settings: Settings, outcome: Outcome) -> dict[str, list[int]]:
    """The seeds, by name, whose policy never reached its target."""
    reached = {"pi1": outcome.experts.pi1_reached, "pi2": outcome.experts.pi2_reached}
    return {
        name: [seed for seed, good in zip(settings.seeds, flags, strict=True) if not good]
        for name, flags in reached.items()
    }


def versions() -> dict[str, str]:
    """Of Python and of the libraries that results depend on."""
    names = ("jaxpref", "jax", "jaxlib", "flax", "optax", "gymnax", "numpy", "scipy")
    return {"python": platform.python_version()} | {name: importlib.metadata.version(name) for name in names}


def table(summary: dict[str, Any]) -> Table:
    """The summary for the terminal."""
    seeds = summary["seeds"]
    label = LABELS.get(summary["task"], summary["task"])
    title = f"{label} {LABELS[summary['method']]}, {len(seeds)} seed{'s' if len(seeds) > 1 else ''}"
    result = Table(title=f"{title}: true return", title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False)
    for column in ("policy", "reference", "pairs"):
        result.add_column(column, justify="right" if column == "pairs" else "left")
    for column in ("mean", "IQM", "95 % interval", "held-out"):
        result.add_column(column, justify="right")
    for name in ("pi2", "pi1"):
        result.add_row(name, "", "", *_score_cells(summary["policies"][name]), "", end_section=name == "pi1")
    for row in summary["rows"]:
        cells = _score_cells(row["policy"])
        last = row["num_pairs"] == summary["config"]["num_pairs"][-1]
        accuracy = "none" if row["heldout_accuracy"] is None else f"{row['heldout_accuracy']:.3f}"
        trained = LABELS[summary["method"]]
        result.add_row(trained, row["reference"], str(row["num_pairs"]), *cells, accuracy, end_section=last)
    return result


def _score_cells(policy: dict[str, Any]) -> tuple[str, str, str]:
    low, high = policy["ci95"]
    interval = f"{low:.1f} to {high:.1f}" if len(policy["per_seed"]) > 1 else "one seed"
    return f"{policy['mean']:.1f}", f"{policy['iqm']:.1f}", interval


def warnings(summary: dict[str, Any]) -> list[str]:
    """What a reader of the table has to know: seeds that have no expert, results that are not numbers."""
    lines = []
    for name, seeds in summary["not_reached"].items():
        if seeds:
            named = " ".join(map(str, seeds))
            share = f"{len(seeds)} of {len(summary['seeds'])} seeds"
            lines.append(f"{name} never reached its target return for {share}: {named}")
    return lines


def figures(settings: Settings, outcome: Outcome, summary: dict[str, Any], folder: Path) -> list[Path]:
    """Draw every figure into `folder`."""
    drawings = {"policies": draw_policies, "returns": draw_returns, "loss": draw_loss}
    drawings |= {"margins": draw_margins} if settings.method == "dpo" else {"kl": draw_kl}
    paths = []
    matplotlib.use("Agg")  # a file is drawn, no window is wanted
    with matplotlib.rc_context(plots.STYLE):
        for name, draw in drawings.items():
            figure = draw(settings, outcome, summary)
            paths.append(folder / f"{name}.png")
            with store.atomic_write(paths[-1]) as file:
                figure.savefig(file, format="png")
            plt.close(figure)
    return paths


def _title(settings: Settings, text: str) -> str:
    seeds = len(settings.seeds)
    label = LABELS.get(settings.task, settings.task)
    return f"{label}, {LABELS[settings.method]}: {text} ({seeds} seed{'s' if seeds > 1 else ''})"


def _panels(num_columns: int, num_rows: int = 1, sharey: bool | Literal["row"] = "row") -> tuple[Figure, np.ndarray]:
    size = (4.6 * num_columns + 0.4, 3.1 * num_rows + 0.7)
    return plt.subplots(num_rows, num_columns, figsize=size, sharey=sharey, squeeze=False)


def _sizes(settings: Settings) -> list[tuple[int, str, str]]:
    """(place, label, colour) of every dataset size."""
    colours = [plots.COLOURS[place % len(plots.COLOURS)] for place in range(len(settings.num_pairs))]
    labels = [f"{size} pair{'s' if size > 1 else ''}" for size in settings.num_pairs]
    return list(zip(range(len(labels)), labels, colours, strict=True))


def _legend_below(figure: Figure, axes: Axes) -> None:
    handles, labels = axes.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=min(6, len(labels)))


def draw_policies(settings: Settings, outcome: Outcome, summary: dict[str, Any]) -> Figure:
    """pi2, pi1 and the trained policies side by side."""
    figure, panels = _panels(len(outcome.trained))
    for axes, reference in zip(panels[0], outcome.trained, strict=True):
        rows = [row["policy"] for row in summary["rows"] if row["reference"] == reference]
        entries = [summary["policies"]["pi2"], summary["policies"]["pi1"], *rows]
        plots.policies(
            axes,
            ["pi2", "pi1", *(f"{size:,}\npairs" for size in settings.num_pairs)],
            np.array([entry["per_seed"] for entry in entries]),
            [tuple(entry["ci95"]) for entry in entries],
            [entry["iqm"] for entry in entries],
            [plots.GREY, "black", *(colour for *_, colour in _sizes(settings))],
        )
        axes.set_title(f"reference {reference}")
    panels[0, 0].set_ylabel("true return")
    figure.suptitle(_title(settings, "policies, points are seeds, diamonds IQM with 95 % interval"), fontsize=11)
    return figure


def draw_returns(settings: Settings, outcome: Outcome, summary: dict[str, Any]) -> Figure:
    """True return against update, one line per dataset size."""
    figure, panels = _panels(len(outcome.trained))
    for axes, (reference, trained) in zip(panels[0], outcome.trained.items(), strict=True):
        curves = trained.metrics.true_return
        num_updates = trained.metrics.loss.shape[-1]
        updates = np.linspace(0, num_updates, curves.shape[-1] + 1)
        for place, label, colour in _sizes(settings):
            with_start = np.column_stack([outcome.returns["pi2"], curves[:, place]])
            plots.curve(axes, updates, with_start, label, colour)
        plots.level(axes, summary["policies"]["pi1"]["mean"], "pi1")
        plots.level(axes, summary["policies"]["pi2"]["mean"], "pi2", ":")
        axes.set(title=f"reference {reference}", xlabel="update")
    panels[0, 0].set_ylabel("true return")
    figure.suptitle(_title(settings, "return during training, mean and 10-90 % of seeds"), fontsize=11)
    _legend_below(figure, panels[0, 0])
    return figure


def _draw_metric(settings: Settings, axes: Axes, title: str, ylabel: str, x, values, smooth: int = 1) -> None:
    """One line per dataset size: values [S, sizes, len(x)]."""
    for place, label, colour in _sizes(settings):
        known = ~np.isnan(values[:, place]).any(axis=0)
        plots.curve(axes, x[known], values[:, place, known], label, colour, smooth)
    axes.set(title=title, xlabel="update", ylabel=ylabel)


def _updates(values: Any) -> np.ndarray:
    return np.arange(1.0, values.shape[-1] + 1)


def draw_loss(settings: Settings, outcome: Outcome, summary: dict[str, Any]) -> Figure:
    """Loss against update; for RLHF the reward model's, then PPO's."""
    losses = [
        (f"reference {reference}", f"{LABELS[settings.method]} loss", trained.metrics.loss)
        for reference, trained in outcome.trained.items()
    ]
    first = next(iter(outcome.trained.values()))
    if first.reward_metrics is not None:
        losses.insert(0, ("reward model", "Bradley-Terry loss", first.reward_metrics.loss))
    figure, panels = _panels(len(losses), sharey=settings.method == "dpo")
    for axes, (title, ylabel, values) in zip(panels[0], losses, strict=True):
        _draw_metric(settings, axes, title, ylabel, _updates(values), values, smooth=5)
    figure.suptitle(_title(settings, "loss, running mean of 5 updates, mean and 10-90 % of seeds"), fontsize=11)
    _legend_below(figure, panels[0, 0])
    return figure


def draw_margins(settings: Settings, outcome: Outcome, summary: dict[str, Any]) -> Figure:
    """DPO: the margin of the implicit rewards, and the share of the minibatch's pairs it ranks as labelled."""
    figure, panels = _panels(len(outcome.trained), 2)
    for column, (reference, trained) in zip(panels.T, outcome.trained.items(), strict=True):
        for axes, name, ylabel in zip(
            column, ("margin", "accuracy"), ("implicit reward margin", "accuracy"), strict=True
        ):
            values = getattr(trained.metrics, name)
            _draw_metric(settings, axes, f"reference {reference}", ylabel, _updates(values), values, smooth=5)
    figure.suptitle(
        _title(settings, "implicit rewards, running mean of 5 updates, mean and 10-90 % of seeds"), fontsize=11
    )
    _legend_below(figure, panels[0, 0])
    return figure


def draw_kl(settings: Settings, outcome: Outcome, summary: dict[str, Any]) -> Figure:
    """PPO: exact KL to the reference, and the learned return that is bought with it."""
    figure, panels = _panels(len(outcome.trained), 2)
    for column, (reference, trained) in zip(panels.T, outcome.trained.items(), strict=True):
        kl, learned = trained.metrics.kl, trained.metrics.learned_return
        evaluations = np.linspace(0, kl.shape[-1], learned.shape[-1] + 1)[1:]
        title = f"reference {reference}"
        _draw_metric(settings, column[0], title, "KL(policy || ref), nats per step", _updates(kl), kl)
        _draw_metric(settings, column[1], title, "learned return", evaluations, learned)
    figure.suptitle(_title(settings, "distance and learned return, mean and 10-90 % of seeds"), fontsize=11)
    _legend_below(figure, panels[0, 0])
    return figure


def save_arrays(settings: Settings, outcome: Outcome, folder: Path) -> list[Path]:
    """Policies, reward models, metrics, and preferences where they were asked for. Leading axis: seeds."""
    trained = outcome.trained
    trees = {
        "policies.npz": {"pi1": outcome.experts.pi1, "pi2": outcome.experts.pi2}
        | {f"trained_{reference}": part.params for reference, part in trained.items()},
        "metrics.npz": {"reinforce": outcome.experts.metrics}
        | {f"trained_{reference}": part.metrics for reference, part in trained.items()},
    }
    first = next(iter(trained.values()))
    if first.reward_params is not None:
        trees["reward_models.npz"] = first.reward_params
        trees["metrics.npz"]["reward_model"] = first.reward_metrics
    for name, tree in trees.items():
        store.save_pytree(folder / name, tree)
    paths = [folder / name for name in trees]
    if outcome.preferences is not None:
        for place, seed in enumerate(settings.seeds):
            paths.append(folder / f"preferences_seed{seed}.npz")
            store.save_preferences(paths[-1], take(outcome.preferences, place))
    return paths


def print_report(console: Console, summary: dict[str, Any], paths: list[Path], folder: Path) -> None:
    """The table, the warnings, the files."""
    console.print()
    console.print(table(summary))
    for line in warnings(summary):
        console.print(f"warning: {line}", style="bold yellow", highlight=False)
    timing = summary["timing"]
    console.print(
        f"{timing['total_s']:.1f} s in all: {timing['import_s']:.1f} s imports, {timing['compile_s']:.1f} s "
        f"compilation, {timing['run_s']:.1f} s running",
        highlight=False,
    )
    console.print(f"written to {folder}: {', '.join(path.name for path in paths)}", highlight=False, soft_wrap=True)
