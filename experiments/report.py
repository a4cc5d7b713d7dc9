"""What an experiment leaves behind: summary.json, the table on the terminal, figures, policies."""

from __future__ import annotations

import dataclasses
import importlib.metadata
import itertools
import platform
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import jax
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
from jaxpref.divergence import WHAT, Divergence
from jaxpref.preferences import take

LABELS = {"dpo": "DPO", "rlhf": "PPO-RLHF", "cartpole": "CartPole", "acrobot": "Acrobot"}
"""How methods and the study's tasks are written; other tasks have their own names."""


def score(per_seed: np.ndarray) -> dict[str, Any]:
    """A policy's entry in summary.json: `ci95` is the bootstrap interval of the IQM over seeds.

    Seeds that are NaN are left out, and null, which JSON has for NaN; so is everything where none is left.
    """
    per_seed = np.asarray(per_seed, np.float64)
    known = per_seed[~np.isnan(per_seed)]
    return {
        "mean": mean_or_none(per_seed),
        "iqm": statistics.iqm(known) if known.size else None,
        "ci95": list(statistics.bootstrap_interval(known)) if known.size else [None, None],
        "per_seed": null_for_nan(per_seed),
    }


def null_for_nan(values: Any) -> Any:
    """Nested lists of the numbers of an array, None, JSON's null, for NaN."""
    numbers = np.asarray(values, np.float64)
    objects = numbers.astype(object)
    objects[np.isnan(numbers)] = None
    return objects.tolist()


def summarise(settings: Settings, outcome: Outcome) -> dict[str, Any]:
    """summary.json without its timing."""
    astray = diverged(settings, outcome)
    outcome = without_diverged(settings, outcome, astray)
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
        "pi1_target": _targets(experts.pi1_target),
        "pi2_target": _targets(experts.pi2_target),
        "pi1_reached": experts.pi1_reached.tolist(),
        "pi2_reached": experts.pi2_reached.tolist(),
        "not_reached": not_reached(settings, outcome),
        "diverged": astray,
        "rows": rows,
    }


def _targets(per_seed: Any) -> list[float | None]:
    """JSON has no infinity either, a target that was not found."""
    return null_for_nan(np.where(np.isfinite(per_seed), per_seed, np.nan))


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


def diverged(settings: Settings, outcome: Outcome) -> list[dict[str, Any]]:
    """Every seed whose training went astray: the first stage that did, and what it did it with.

    `reference` and `num_pairs` are None where a stage is the same for all of them. `what` is the quantity that went
    astray, at `update`, counted from 1; the mean return of a final evaluation, "return", belongs to no update.
    """
    stages: list[tuple[str, str | None, Any]] = [("reinforce", None, outcome.experts.divergence)]
    stages += [("evaluate", None, returns) for returns in outcome.returns.values()]
    first = next(iter(outcome.trained.values()))
    if first.reward_divergence is not None:
        stages.append(("reward model", None, first.reward_divergence))
    for name, trained in outcome.trained.items():
        stages.append(({"dpo": "dpo", "rlhf": "ppo"}[settings.method], name, trained.divergence))
        stages.append(("evaluate", name, outcome.trained_returns[name]))

    entries: list[dict[str, Any]] = []
    for stage, reference, found in stages:
        trains = isinstance(found, Divergence)
        for run in zip(*np.nonzero(found.update if trains else ~np.isfinite(found)), strict=True):
            seed, num_pairs = settings.seeds[run[0]], settings.num_pairs[run[1]] if len(run) > 1 else None
            if not concerned(entries, seed, reference, num_pairs):
                update, what = (int(found.update[run]), WHAT[found.what[run]]) if trains else (None, "return")
                of = {"seed": seed, "stage": stage, "reference": reference, "num_pairs": num_pairs}
                entries.append(of | {"update": update, "what": what})
    return entries


def concerned(entries: list[dict[str, Any]], seed: int, reference: str | None, num_pairs: int | None) -> bool:
    """Whether a seed diverged in a stage that a row, of that reference and size, is made by."""
    return any(
        entry["seed"] == seed and entry["reference"] in (None, reference) and entry["num_pairs"] in (None, num_pairs)
        for entry in entries
    )


def without_diverged(settings: Settings, outcome: Outcome, entries: list[dict[str, Any]]) -> Outcome:
    """The same results with NaN for those of diverged seeds, in the rows that this concerns."""
    if not entries:
        return outcome

    def sound(reference: str | None, sizes: Sequence[int | None]) -> np.ndarray:
        return np.array([[not concerned(entries, seed, reference, size) for size in sizes] for seed in settings.seeds])

    def keep(mask: np.ndarray, tree: Any) -> Any:
        def mark(leaf: np.ndarray) -> np.ndarray:
            return np.where(mask.reshape(mask.shape + (1,) * (leaf.ndim - mask.ndim)), leaf, np.float32(np.nan))

        return jax.tree.map(mark, tree)

    rows = {name: sound(name, settings.num_pairs) for name in outcome.trained}
    rewards = sound(None, settings.num_pairs)
    return dataclasses.replace(
        outcome,
        returns=keep(sound(None, (None,))[:, 0], outcome.returns),
        trained_returns={name: keep(rows[name], returns) for name, returns in outcome.trained_returns.items()},
        trained={
            name: dataclasses.replace(
                trained,
                heldout_accuracy=keep(rows[name], trained.heldout_accuracy),
                metrics=keep(rows[name], trained.metrics),
                reward_metrics=keep(rewards, trained.reward_metrics),
            )
            for name, trained in outcome.trained.items()
        },
    )


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
    # How many seeds a row is over goes without saying unless some diverged.
    for column in ("mean", "IQM", "95 % interval", "held-out", *(["seeds"] if summary["diverged"] else [])):
        result.add_column(column, justify="right")
    digits = decimals(summary)
    for name in ("pi2", "pi1"):
        policy = summary["policies"][name]
        cells = *_score_cells(policy, digits), "", *_seeds_cell(summary, policy)
        result.add_row(name, "", "", *cells, end_section=name == "pi1")
    for row in summary["rows"]:
        cells = _score_cells(row["policy"], digits)
        last = row["num_pairs"] == summary["config"]["num_pairs"][-1]
        accuracy = "none" if row["heldout_accuracy"] is None else f"{row['heldout_accuracy']:.3f}"
        trained = LABELS[summary["method"]]
        cells += accuracy, *_seeds_cell(summary, row["policy"])
        result.add_row(trained, row["reference"], str(row["num_pairs"]), *cells, end_section=last)
    return result


def decimals(summary: dict[str, Any]) -> int:
    """Of returns, for the eye: two where all of them are below 10 in size, as on Catch, else one."""
    scores = [*summary["policies"].values(), *(row["policy"] for row in summary["rows"])]
    return 2 if all(abs(score["mean"]) < 10 for score in scores if score["mean"] is not None) else 1


def _score_cells(policy: dict[str, Any], digits: int) -> tuple[str, ...]:
    num_known = len(policy["per_seed"]) - policy["per_seed"].count(None)
    if num_known == 0:
        return "none", "none", "none"
    low, high = policy["ci95"]
    interval = f"{low:.{digits}f} to {high:.{digits}f}" if num_known > 1 else "one seed"
    return f"{policy['mean']:.{digits}f}", f"{policy['iqm']:.{digits}f}", interval


def _seeds_cell(summary: dict[str, Any], policy: dict[str, Any]) -> tuple[str, ...]:
    """How many seeds a row is over; no cell where none diverged."""
    num_seeds = len(policy["per_seed"])
    return (f"{num_seeds - policy['per_seed'].count(None)} of {num_seeds}",) if summary["diverged"] else ()


def warnings(summary: dict[str, Any]) -> list[str]:
    """What a reader of the table has to know: seeds that have no expert, and seeds that diverged."""
    lines = []
    for name, seeds in summary["not_reached"].items():
        if seeds:
            named = " ".join(map(str, seeds))
            share = f"{len(seeds)} of {len(summary['seeds'])} seeds"
            lines.append(f"{name} never reached its target return for {share}: {named}")
    for stage, entries in itertools.groupby(sorted(summary["diverged"], key=_stage_of), key=_stage_of):
        named = ", ".join(
            f"{entry['seed']} ({entry['what']}{'' if entry['update'] is None else ', update ' + str(entry['update'])})"
            for entry in entries
        )
        lines.append(f"{stage}: diverged, and left out of the rows that this concerns, for seed {named}")
    return lines


def _stage_of(entry: dict[str, Any]) -> str:
    """Of an entry of `diverged`, in words."""
    reference = "" if entry["reference"] is None else f", reference {entry['reference']}"
    return entry["stage"] + reference + ("" if entry["num_pairs"] is None else f", {entry['num_pairs']} pairs")


def figures(settings: Settings, outcome: Outcome, summary: dict[str, Any], folder: Path) -> list[Path]:
    """Draw every figure into `folder`."""
    outcome = without_diverged(settings, outcome, summary["diverged"])
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


def _legend_below(figure: Figure) -> None:
    """One entry for each label: a panel has none for what all seeds diverged at."""
    entries: dict[str, Any] = {}
    for axes in figure.axes:
        handles, labels = axes.get_legend_handles_labels()
        entries = dict(zip(labels, handles, strict=True)) | entries
    if entries:
        figure.legend(entries.values(), entries, loc="outside lower center", ncols=min(6, len(entries)))


def _numbers(values: Sequence[float | None]) -> np.ndarray:
    """NaN for None."""
    return np.array(values, np.float64)


def draw_policies(settings: Settings, outcome: Outcome, summary: dict[str, Any]) -> Figure:
    """pi2, pi1 and the trained policies side by side."""
    figure, panels = _panels(len(outcome.trained))
    for axes, reference in zip(panels[0], outcome.trained, strict=True):
        rows = [row["policy"] for row in summary["rows"] if row["reference"] == reference]
        entries = [summary["policies"]["pi2"], summary["policies"]["pi1"], *rows]
        plots.policies(
            axes,
            ["pi2", "pi1", *(f"{size:,}\npairs" for size in settings.num_pairs)],
            np.array([_numbers(entry["per_seed"]) for entry in entries]),
            [tuple(_numbers(entry["ci95"])) for entry in entries],
            [float(value) for value in _numbers([entry["iqm"] for entry in entries])],
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
            with_start = with_start[~np.isnan(curves[:, place]).all(axis=1)]
            if with_start.size:
                plots.curve(axes, updates, with_start, label, colour)
        for name, style in (("pi1", "--"), ("pi2", ":")):
            if summary["policies"][name]["mean"] is not None:
                plots.level(axes, summary["policies"][name]["mean"], name, style)
        axes.set(title=f"reference {reference}", xlabel="update")
    panels[0, 0].set_ylabel("true return")
    figure.suptitle(_title(settings, "return during training, mean and 10-90 % of seeds"), fontsize=11)
    _legend_below(figure)
    return figure


def _draw_metric(settings: Settings, axes: Axes, title: str, ylabel: str, x, values, smooth: int = 1) -> None:
    """One line per dataset size: values [S, sizes, len(x)], of the seeds that have any."""
    for place, label, colour in _sizes(settings):
        of_size = values[~np.isnan(values[:, place]).all(axis=1), place]
        known = ~np.isnan(of_size).any(axis=0)
        if of_size.size:
            plots.curve(axes, x[known], of_size[:, known], label, colour, smooth)
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
    _legend_below(figure)
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
    _legend_below(figure)
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
    _legend_below(figure)
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
