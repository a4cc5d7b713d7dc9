"""How far a run has come: a live line on a terminal, plain lines elsewhere, and files to follow it by.

`progress.jsonl` gets a line when a run starts, after each stage and when it ends; `metrics.jsonl` gets the metrics of a
training stage, an update a line, as soon as the stage is done. Compiled code calls nobody, so within a stage only time
goes by: the live line says how many updates the stage has, not at which one it is.
"""

from __future__ import annotations

import datetime
import json
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any, NamedTuple

import numpy as np
from rich.console import Console, RenderableType
from rich.progress import BarColumn, MofNCompleteColumn, ProgressColumn, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.progress import Progress as Bar
from rich.text import Text


class Done(NamedTuple):
    """A stage that is done. The seconds are those that it took when it was computed; `reused`: that was before."""

    stage: str
    runs: int
    updates: int | None
    mean_return: float | None
    compile_s: float
    run_s: float
    reused: bool


def mean_return(result: Any) -> float | None:
    """Mean true return at the end of a training stage, over all of its runs; None where it says none."""
    metrics: Any = getattr(result, "metrics", None)
    if hasattr(metrics, "true_return"):
        returns = metrics.true_return[..., -1:]
    elif hasattr(metrics, "score"):  # NaN after training ended
        rows = metrics.score.reshape(-1, metrics.score.shape[-1])
        returns = np.concatenate([row[np.isfinite(row)][-1:] for row in rows])
    else:
        return None
    return float(returns.mean()) if returns.size and np.isfinite(returns).all() else None


STAGES = "stages"
"""What a run consists of; an examination of many runs may count something else."""


class Progress:
    """Says on the console, and in `folder` where one is given, how far a run has come.

    `unit` is what the bar counts. Of stages each has a printed line, and metrics. Whoever counts something else prints
    lines of its own; how long one of these takes is guessed from those before it.
    """

    def __init__(self, console: Console, folder: Path | None = None, tensorboard: bool = False, unit: str = STAGES):
        self.console, self.folder, self.tensorboard, self.unit = console, folder, tensorboard, unit
        self._files: dict[str, IO[str]] = {}
        self._events: Any = None
        self._number, self._num_batches, self._seeds = 1, 1, np.zeros(0, int)
        self._seen: set[int] = set()
        self._seeds_done = 0
        self._updates: dict[str, int | None] = {}
        self._last_return: tuple[str, float] | None = None
        self._planned: dict[str, float | None] = {}
        self._took: dict[str, float] = {}
        self._computed: list[float] = []
        self._waiting: list[str] = []
        self._running: tuple[str, float] | None = None
        self._started = False
        columns = (
            SpinnerColumn(),
            TextColumn("{task.description}"),
            BarColumn(bar_width=16),
            MofNCompleteColumn(),
            TextColumn(unit),
            TimeElapsedColumn(),
        )
        hidden = console.quiet or not console.is_terminal
        self._bar = TwoLines(self, *columns, console=console, transient=True, disable=hidden)
        self._task = self._bar.add_task("preparing", total=None)

    def __enter__(self) -> Progress:
        if self.folder is not None:
            self._files = {"progress": (self.folder / "progress.jsonl").open("a")}
            if self.unit == STAGES:
                self._files["metrics"] = (self.folder / "metrics.jsonl").open("w")
            if self.tensorboard:
                self._events = event_writer(self.folder / "tensorboard")
        self._write("progress", {"time": now(), "event": "start", "process": os.getpid()})
        self._bar.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self._bar.stop()
        self._write("progress", {"time": now(), "event": "end", "error": kind.__name__ if kind else None})
        for file in self._files.values():
            file.close()
        if self._events is not None:
            self._events.close()

    def begin(self, number: int, num_batches: int, seeds: np.ndarray) -> None:
        """The next batch of seeds begins; the first has number 1."""
        self._number, self._num_batches, self._seeds = number, num_batches, seeds
        self._seeds_done = len(self._seen)
        self._seen |= set(seeds.tolist())  # the last batch is filled up with seeds of the first
        self._planned, self._waiting = {}, []
        if num_batches > 1:
            self.console.print(f"batch {number} of {num_batches}, {len(seeds)} seeds", highlight=False)

    def plan(self, stage: str, seconds: float | None) -> None:
        """A stage is going to come; `seconds` that it is expected to take, None where nobody knows."""
        self._planned[stage] = seconds
        self._waiting.append(stage)

    def start(self, stage: str, num_updates: int | None = None) -> None:
        """A stage begins. `num_updates`: of its training; where it is not said, an earlier batch may have told."""
        self._running, self._started = (stage, time.perf_counter()), True
        if num_updates is not None:
            self._updates[stage] = num_updates
        if stage in self._waiting:
            self._waiting.remove(stage)
        batch = f"batch {self._number} of {self._num_batches}: " if self._num_batches > 1 else ""
        total = len(self._planned) * self._num_batches or None
        updates = updates_in_words(self._updates.get(stage))
        self._bar.update(self._task, description=f"{batch}{stage}{', ' if updates else ''}{updates}", total=total)

    def done(self, done: Done) -> None:
        """A stage is done."""
        self._running = None
        self._took[done.stage] = 0.0 if done.reused else done.run_s  # the next batch has the same program
        self._computed += [] if done.reused else [done.compile_s + done.run_s]
        self._updates[done.stage] = done.updates
        if done.mean_return is not None:
            self._last_return = done.stage, done.mean_return
        self._bar.advance(self._task)
        if self.unit == STAGES:
            cells = [
                f"{done.runs} run{'s' if done.runs > 1 else ''}",
                updates_in_words(done.updates),
                "" if done.mean_return is None else f"return {return_in_words(done.mean_return)}",
                "kept" if done.reused else f"{done.compile_s + done.run_s:.1f} s",
            ]
            self.console.print(
                f"  {done.stage:<24} {cells[0]:>9} {cells[1]:>13} {cells[2]:>14} {cells[3]:>9}", highlight=False
            )
        batch = {"batch": self._number, "seeds": self._seeds.tolist()} if self.unit == STAGES else {}
        self._write("progress", {"time": now(), "event": self.unit[:-1], **batch, **done._asdict()})

    def log(self, stage: str, metrics: Any, where: dict[str, Any]) -> None:
        """Means over the seeds of a training stage's metrics, fields [S, U], an update a line.

        Fields that are taken at every so many updates stand in the lines of those. Numbers that are not finite do not
        count; where none is, JSON has null.
        """
        means = {name: mean_of_known(values) for name, values in vars(metrics).items()}
        num_updates = max(map(len, means.values()))
        rows: list[dict[str, Any]] = [{} for _ in range(num_updates)]
        for name, values in means.items():
            for place, value in enumerate(values, 1):
                rows[num_updates * place // len(values) - 1][name] = value
        for update, row in enumerate(rows, 1):
            self._write("metrics", {"batch": self._number, "stage": stage, **where, "update": update, **row})
            if self._events is not None:
                batch = [f"batch {self._number}"] if self._num_batches > 1 else []
                tag = "/".join([*batch, stage, *(f"{name} {value}" for name, value in where.items())])
                for name, value in row.items():
                    if value is not None:
                        self._events.add_scalar(f"{tag}/{name}", value, update)

    def seconds_left(self) -> float | None:
        """About how long the run still takes; None as long as there is a stage of which nobody knows."""
        expected = self._planned | self._took
        if self.unit != STAGES and self._computed:
            mean = sum(self._computed) / len(self._computed)
            expected = {stage: mean if seconds is None else seconds for stage, seconds in expected.items()}
        later = [*self._waiting, *list(self._planned) * (self._num_batches - self._number)]
        seconds = [expected.get(stage) for stage in later]
        running = self._running  # the bar is drawn by a thread of its own
        if running is not None:
            stage, start = running
            before = expected.get(stage)
            seconds.append(None if before is None else max(0.0, before - (time.perf_counter() - start)))
        known = [value for value in seconds if value is not None]
        return sum(known) if len(known) == len(seconds) else None

    def details(self) -> str:
        """What the bar has no room for: the time left, seeds that are through all stages, and the mean true return at
        the end of the last stage that has one.
        """
        parts = []
        left = self.seconds_left() if self._started else None
        if left:
            parts.append(f"about {left:.0f} s left" if left < 120 else f"about {left / 60:.0f} min left")
        if self.unit == STAGES and self._seen:
            through = self._planned and not self._waiting and self._running is None
            done = len(self._seen) if through else self._seeds_done
            more = len(self._seeds) * (self._num_batches - self._number)
            # Until the last batch is there nobody knows how many seeds of the first one it is filled up with.
            parts.append(f"{done} of {'up to ' if more else ''}{len(self._seen) + more} seeds done")
        if self._last_return is not None:
            stage, value = self._last_return
            parts.append(f"mean return {return_in_words(value)} ({stage})")
        return ", ".join(parts)

    def _write(self, name: str, row: dict[str, Any]) -> None:
        if name in self._files:
            self._files[name].write(json.dumps(row) + "\n")
            self._files[name].flush()


class TwoLines(Bar):
    """The bar, and below it what it has no room for."""

    def __init__(self, progress: Progress, *columns: ProgressColumn, **options: Any):
        self.progress = progress
        super().__init__(*columns, **options)

    def get_renderables(self) -> Iterator[RenderableType]:
        """What is shown."""
        yield from super().get_renderables()
        if details := self.progress.details():
            yield Text(f"  {details}", style="dim", no_wrap=True, overflow="ellipsis")


def updates_in_words(number: int | None) -> str:
    """As in "1 update"; nothing where there are none."""
    return "" if number is None else f"{number} update{'s' if number > 1 else ''}"


def return_in_words(value: float) -> str:
    """Small returns, as on Catch, have two decimals."""
    return f"{value:.{1 if abs(value) >= 10 else 2}f}"


def mean_of_known(values: Any) -> list[float | None]:
    """Means over the first axis of what is finite; None where nothing is."""
    values = np.asarray(values, np.float64)
    known = np.isfinite(values)
    counts = known.sum(0)
    sums = np.where(known, values, 0.0).sum(0)
    return [float(total / count) if count else None for total, count in zip(sums, counts, strict=True)]


def now() -> str:
    """The time of day, as in 2025-01-31T12:00:00+00:00."""
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")


def event_writer(folder: Path) -> Any:
    """A writer of TensorBoard's event files; those of an earlier run are removed."""
    from tensorboardX import SummaryWriter

    for path in folder.glob("events.out.tfevents.*"):
        path.unlink()
    return SummaryWriter(str(folder))
