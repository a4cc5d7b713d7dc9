"""One experiment as a program: from its settings to its files and its table."""

import contextlib
import dataclasses
import importlib
import resource
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from rich.console import Console

from experiments import START
from experiments.harness import devices, folder
from experiments.harness.errors import DIVERGED, UsageError, exit_codes
from experiments.harness.memo import Memo
from experiments.harness.progress import Progress, bar_on
from experiments.harness.stages import Stages
from experiments.pipeline import pipeline, recorded
from experiments.pipeline.command import check_unused, parse
from experiments.pipeline.settings import Method, Settings, changes, from_config
from jaxpref.files import store
from jaxpref.preferences import take
from jaxpref.tasks import Task

NOT_RESULTS = {"fresh", "tensorboard", "save-preferences", "devices", "processes", "process", "coordinator", "out"}
"""Settings that do not change the results."""


def main(script: str, task: str | None = None, method: Method | None = None, argv: Sequence[str] | None = None) -> None:
    """Run an experiment from the command line. Without `task` and `method`, the user names them."""
    with exit_codes():
        settings = parse(sys.argv[1:] if argv is None else argv, script, task, method)
        check_unused(settings)
        run_all([settings])


def run_all(runs: Sequence[Settings]) -> None:
    """Run experiments with one memo and one set of programs. Exit with code 3 after divergence."""
    first = runs[0]
    devices.set_up_jax(first.devices)
    if first.processes != 1:
        devices.join_processes(first.coordinator, first.processes, first.process)
    try:
        tasks = [pipeline.task_of(settings) for settings in runs]  # a wrong one leaves no folder behind
        runs = [recorded.with_sizes(settings, task) for settings, task in zip(runs, tasks, strict=True)]
    except ValueError as error:
        raise UsageError(str(error)) from error
    writes = jax.process_index() == 0  # of several processes, the first one writes the results
    import_s, begin, all_well = time.perf_counter() - START, START, True
    with contextlib.ExitStack() as held:
        bar = held.enter_context(bar_on(Console(quiet=not writes)))
        if writes:
            for settings in runs:
                held.enter_context(folder.locked(settings.out))
            for settings in runs:
                set_aside_other(settings, bar.console)
        stages = held.enter_context(Stages(Memo(fresh=first.fresh)))
        # All start now: while one is written, the next one runs. What writing needs is imported in the meantime.
        threading.Thread(target=_import_writers, daemon=True).start()
        started = []
        for settings, task in zip(runs, tasks, strict=True):
            title = f"{settings.experiment}, seeds {' '.join(map(str, settings.seeds))}"
            progress = Progress(bar, settings.out if writes else None, settings.tensorboard, title)
            own = stages.of_run(held.enter_context(progress))
            started.append((settings, task, own, pipeline.start(settings, task, own, show=True)))
        while started:
            settings, task, own, finish = started.pop(0)
            outcome = finish()
            own.progress.close()
            if writes:
                all_well &= write(settings, task, outcome, timing(own, import_s, begin), bar.console)
            import_s, begin = 0.0, time.perf_counter()
    if len(runs) > 1:
        bar.console.print(f"{len(runs)} experiments: {time.perf_counter() - START:.1f} s in all", highlight=False)
    if not all_well:
        raise SystemExit(DIVERGED)


def _import_writers() -> None:
    for name in ("scipy.stats", "experiments.reporting.page"):
        importlib.import_module(name)


def write(settings: Settings, task: Task, outcome: pipeline.Outcome, times: dict[str, Any], console: Console) -> bool:
    """Write summary, arrays, figures and page, and print the table. Returns whether no training diverged."""
    from experiments.reporting import animations, figures, page, summary, table

    start = time.perf_counter()
    results = summary.summarise(settings, outcome)
    paths = save_arrays(settings, outcome, settings.out)
    paths += figures.draw_all(outcome, results, settings.out)
    played = animations.animate(task, outcome.shown, results)
    times["total_s"] += time.perf_counter() - start
    # The host's memory only. macOS counts in bytes, Linux in KiB.
    peak_memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**30 if sys.platform == "darwin" else 2**20)
    results |= {"timing": times, "peak_memory_gib": peak_memory}
    store.save_json(settings.out / "summary.json", results)
    paths = [settings.out / "summary.json", *paths, settings.out / "metrics.jsonl"]
    paths.append(page.write(settings.out, results, played))
    table.print_report(console, results, paths, settings.out)
    console.print()
    return not results["diverged"]


def save_arrays(settings: Settings, outcome: pipeline.Outcome, folder: Path) -> list[Path]:
    """Write every array of a run into `folder`; return the paths. What was trained on pairs is [S, sizes, ...]."""
    experts, models = outcome.experts, outcome.reward_models
    policies: dict[str, Any] = {"pi1": experts.pi1, "pi2": experts.pi2}
    metrics: dict[str, Any] = {settings.expert_stage.replace(" ", "_"): experts.metrics}
    for reference in settings.reference:
        rows = [row for row in outcome.rows if row.reference == reference]
        policies[f"trained_{reference}"] = _stack([row.params for row in rows])
        metrics[f"trained_{reference}"] = _stack([row.metrics for row in rows])
    trees: dict[str, Any] = {"policies.npz": policies, "metrics.npz": metrics}
    if outcome.shown is not None:
        trees["episodes.npz"] = outcome.shown
    if models:
        trees["reward_models.npz"] = _stack([model.params for model in models])
        metrics["reward_model"] = _stack([model.metrics for model in models])
    if outcome.pairs is not None:
        for place, seed in enumerate(settings.seeds):
            trees[f"preferences_seed{seed}.npz"] = take(outcome.pairs, place)
    for name, tree in trees.items():
        store.save_pytree(folder / name, tree)
    return [folder / name for name in trees]


def _stack(trees: list[Any]) -> Any:
    """[S, ...] of each size -> [S, sizes, ...]. Metrics of sizes with fewer updates end in NaN."""

    def join(*leaves):
        most = np.max([leaf.shape for leaf in leaves], axis=0)
        padded = [np.pad(leaf, [(0, n) for n in most - leaf.shape], constant_values=np.nan) for leaf in leaves]
        return np.stack(padded, axis=1)

    return jax.tree.map(join, *trees)


def timing(stages: Stages, import_s: float, start: float) -> dict[str, Any]:
    """Return the seconds of this run so far."""
    of_stages = {name: dataclasses.asdict(stage) for name, stage in stages.times.items()}
    sums = {name: sum(stage[name] for stage in of_stages.values()) for name in ("compile_s", "run_s")}
    return {"import_s": import_s, **sums, "total_s": time.perf_counter() - start, "stages": of_stages}


def set_aside_other(settings: Settings, console: Console) -> None:
    """Move finished results of other settings out of the folder, so that nothing is overwritten."""
    try:
        earlier = from_config(store.load_json(settings.out / "summary.json")["config"])
        differing = changes(earlier, settings).keys() - NOT_RESULTS
    except FileNotFoundError:
        return
    except (ValueError, KeyError, TypeError, AttributeError):
        differing = {"not of this version"}
    if differing:
        moved = folder.set_aside(settings.out)
        what = ", ".join(sorted(differing))
        console.print(f"earlier results with other settings ({what}) are now in {moved}", highlight=False)
