"""Many runs of the pipeline in one program: one line, one memo and one set of compiled programs for all of them."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

from rich.console import Console

from experiments.harness.devices import set_up_jax
from experiments.harness.folder import locked
from experiments.harness.memo import Memo
from experiments.harness.progress import Done, Progress
from experiments.harness.stages import Stages
from experiments.pipeline import pipeline
from experiments.pipeline.settings import Settings
from experiments.reporting.summary import mean_or_none


@contextlib.contextmanager
def opened(out: Path, devices: int) -> Iterator[tuple[Stages, Progress]]:
    """Hold the folder of results, with JAX set up, and report in it."""
    with locked(out):
        set_up_jax(devices)
        with Stages(Memo()) as stages, Progress(Console(), out) as progress:
            yield stages, progress


def run_reported(title: str, settings: Settings, stages: Stages, progress: Progress) -> pipeline.Outcome:
    """Run the pipeline, and report the run in one line. Its mean return is that of the largest dataset."""
    progress.plan()
    progress.start(title, None)
    stages.follow(Progress(Console(quiet=True)))
    outcome = pipeline.run(settings, pipeline.task_of(settings), stages)
    compile_s, run_s = (sum(getattr(time, name) for time in stages.times.values()) for name in ("compile_s", "run_s"))
    mean = mean_or_none(outcome.rows[-1].true_return)
    progress.done(Done(title, len(settings.seeds), None, mean, compile_s, run_s, kept=run_s == 0))
    return outcome
