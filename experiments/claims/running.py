"""Run settings one after the other with one memo and one set of programs, and report each run in one line."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import itertools
import operator
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console

from experiments.claims.arms import Arm, arm
from experiments.harness.devices import set_up_jax
from experiments.harness.folder import locked
from experiments.harness.memo import Memo
from experiments.harness.progress import Done, Progress, bar_on
from experiments.harness.stages import Stages
from experiments.pipeline import pipeline
from experiments.pipeline.settings import Settings, StudyTask
from experiments.reporting.summary import diverged, mean_or_none, sound

BATCH = 20
"""Seeds of the evidence that run at the same time: their largest dataset fits in memory."""
Run = Callable[[str, Settings], pipeline.Outcome]
"""Runs settings under a title."""
Table = dict[str, dict[str, Any]]
"""Results [S] by the arm's name and by their names in summary.json. NaN where the arm does not have the number."""


@contextlib.contextmanager
def opened(out: Path, devices: int) -> Iterator[tuple[Run, Console]]:
    """Hold the folder of results, with JAX set up; give a function that runs settings, and a console."""
    with locked(out):
        set_up_jax(devices)
        with bar_on(Console()) as bar, Stages(Memo()) as stages, Progress(bar, out) as progress:
            yield functools.partial(_run, stages, progress), bar.console


def _run(stages: Stages, progress: Progress, title: str, settings: Settings) -> pipeline.Outcome:
    progress.plan()
    progress.start(title, None)
    stages = stages.of_run(Progress(bar_on(Console(quiet=True))))
    outcome = pipeline.run(settings, pipeline.task_of(settings), stages)
    compile_s, run_s = (sum(getattr(time, name) for time in stages.times.values()) for name in ("compile_s", "run_s"))
    mean = mean_or_none(outcome.rows[-1].true_return)
    progress.done(Done(title, len(settings.seeds), None, mean, compile_s, run_s, kept=run_s == 0))
    return outcome


def run_arms(task: StudyTask, names: Iterable[str], seeds: range, run: Run) -> Table:
    """Run arms on all seeds, one batch of seeds after another. Arms with the same settings are one run."""
    arms = {name: arm(task, name) for name in names}
    # Arms with the same pairs follow each other, so that pairs stay in memory.
    parts = operator.attrgetter("settings.annotator", "settings.num_pairs", "settings")
    ordered = sorted(arms, key=lambda name: repr(parts(arms[name])))
    results: dict[str, list[dict[str, Any]]] = {name: [] for name in arms}
    for batch in (seeds[start : start + BATCH] for start in range(0, len(seeds), BATCH)):
        for settings, group in itertools.groupby(ordered, lambda name: arms[name].settings):
            together, settings = list(group), dataclasses.replace(settings, seeds=tuple(batch))
            outcome = run(f"{task} {', '.join(together)}, seeds {batch[0]}-{batch[-1]}", settings)
            for name in together:
                results[name].append(result_of(arms[name]._replace(settings=settings), outcome))
    return {
        name: {key: np.concatenate([part[key] for part in each]) for key in each[0]} for name, each in results.items()
    }


def result_of(arm: Arm, outcome: pipeline.Outcome) -> dict[str, Any]:
    """Take an arm's numbers from the outcome of its settings; `diverged`: the experts, reward model or policy did."""
    row = next(row for row in outcome.rows if row.num_pairs == arm.num_pairs)
    of_training: Any = (row.reference, row.num_pairs)
    ends: Any = {"true_return": row.true_return, "kl": row.kl}
    judged: Any = {
        "heldout_accuracy": row.quality.return_accuracy,
        "label_accuracy": row.quality.label_accuracy,
        "heldout_negative_log_likelihood": row.quality.negative_log_likelihood,
        "heldout_calibration_error": row.quality.calibration_error,
        "heldout_rank_correlation": row.quality.rank_correlation,
        "score_per_step": row.score_per_step,
    }
    if arm.policy != "trained" or arm.settings.reward == "true":
        judged = dict.fromkeys(judged, np.full_like(row.kl, np.nan))
    if arm.policy != "trained":
        kl = outcome.pi1_kl if arm.policy == "pi1" else np.zeros_like(row.kl)
        ends, of_training = {"true_return": outcome.returns[arm.policy], "kl": kl}, ()
    well = sound(diverged(arm.settings, outcome), arm.settings.seeds, *of_training)
    labels = {"label_entropy": outcome.labels.entropy, "best_accuracy": outcome.labels.best_accuracy}
    return {**ends, **labels, **judged, "diverged": ~well}
