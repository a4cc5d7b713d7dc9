"""Report the progress of a run: a live bar on a terminal, plain lines, and two files.

`progress.jsonl` gets a line when a run starts, after each stage and when it ends. `metrics.jsonl` gets the metrics of a
training stage, one line for each update, when the stage is done. The bar counts stages, because compiled code
reports nothing while it runs.
"""

import datetime
import json
import os
from contextlib import AbstractContextManager
from pathlib import Path
from typing import IO, Any

import numpy as np
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.progress import Progress as Bar


def bar_on(console: Console) -> Bar:
    """Return a live bar that counts the stages of all runs; it shows nothing where the output is no terminal."""
    columns = TextColumn("{task.description}"), BarColumn(bar_width=16), MofNCompleteColumn(), TextColumn("stages")
    hidden = console.quiet or not console.is_terminal
    bar = Bar(SpinnerColumn(), *columns, TimeElapsedColumn(), console=console, transient=True, disable=hidden)
    bar.add_task("preparing", total=0)
    return bar


class Progress(AbstractContextManager["Progress"]):
    """Report the progress of a run on a bar's console, under a title, and in `folder` if there is one."""

    def __init__(self, bar: Bar, folder: Path | None = None, tensorboard: bool = False, title: str = ""):
        self.console, self._bar, self._title, self._batch = bar.console, bar, title, {"batch": 1}
        self._files: dict[str, IO[str]] = {}
        self._events: Any = None
        if folder is not None:
            self._files["progress"] = (folder / "progress.jsonl").open("a", buffering=1)  # by line
            self._files["metrics"] = (folder / "metrics.jsonl").open("w", buffering=1)
            if tensorboard:
                from tensorboardX import SummaryWriter

                for path in folder.glob("tensorboard/events.out.tfevents.*"):  # of an earlier run
                    path.unlink()
                self._events = SummaryWriter(str(folder / "tensorboard"))
        self._event("start", process=os.getpid())

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self.close(kind.__name__ if kind else None)

    def close(self, error: str | None = None) -> None:
        """Write the last event; what follows is not written."""
        self._event("end", error=error)
        for file in (*self._files.values(), self._events):
            if file is not None:
                file.close()
        self._files, self._events = {}, None

    def begin(self, batch: int, num_batches: int, seeds: np.ndarray) -> None:
        """Start a batch of seeds. The first has number 1."""
        self._batch = {"batch": batch}
        self._event("batch", seeds=seeds.tolist(), **self._batch)
        if num_batches > 1:
            self._print(f"batch {batch} of {num_batches}, {len(seeds)} seeds")

    def plan(self) -> None:
        """Expect one more stage."""
        task = self._bar.tasks[0]
        self._bar.update(task.id, total=(task.total or 0) + 1)

    def start(self, stage: str, num_updates: int | None) -> None:
        """Show the stage that runs now."""
        self._bar.update(self._bar.task_ids[0], description=", ".join(filter(None, (stage, _updates(num_updates)))))

    def done(self, stage: str, num_runs: int, num_updates: int | None, mean_return: float | None, **how: Any) -> None:
        """Report a finished stage: its mean return at the end, its `compile_s` and `run_s`, whether it was `kept`."""
        self._bar.advance(self._bar.task_ids[0])
        runs = f"{num_runs} run{'s' if num_runs > 1 else ''}"
        returned = ""
        if mean_return is not None:
            digits = 1 if abs(mean_return) >= 10 else 2  # returns are small on Catch
            returned = f"return {mean_return:.{digits}f}"
        took = "kept" if how["kept"] else f"{how['compile_s'] + how['run_s']:.1f} s"
        self._print(f"  {stage:<24} {runs:>9} {_updates(num_updates):>13} {returned:>14} {took:>9}")
        self._event("stage", stage=stage, runs=num_runs, updates=num_updates, mean_return=mean_return, **how)

    def log(self, stage: str, metrics: Any, **labels: Any) -> None:
        """Write the means over seeds of a training's metrics [S, U], one line for each update.

        Fields with fewer entries than updates were taken at regular updates, and stand in the lines of those. Numbers
        that are not finite do not count. Where none is finite, JSON has null.
        """
        logged = {name: values for name, values in vars(metrics).items() if values is not None}
        means = {name: np.ma.masked_invalid(values).mean(0, np.float64).tolist() for name, values in logged.items()}
        num_updates = max(map(len, means.values()))
        rows: list[dict[str, Any]] = [{} for _ in range(num_updates)]
        for name, values in means.items():
            for place, value in enumerate(values, 1):
                rows[num_updates * place // len(values) - 1][name] = value
        tag = "/".join([stage, *(f"{name} {value}" for name, value in {**self._batch, **labels}.items())])
        for update, row in enumerate(rows, 1):
            self._write("metrics", {**self._batch, "stage": stage, **labels, "update": update, **row})
            for name, value in row.items():
                if self._events is not None and value is not None:
                    self._events.add_scalar(f"{tag}/{name}", value, update)

    def _print(self, line: str) -> None:
        """Print a line. Before the first line, print the title."""
        if self._title:
            self.console.print(self._title, style="bold", highlight=False)
            self._title = ""
        self.console.print(line, highlight=False, soft_wrap=True)

    def _event(self, event: str, **fields: Any) -> None:
        now = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
        self._write("progress", {"time": now, "event": event, **fields})

    def _write(self, name: str, row: dict[str, Any]) -> None:
        if name in self._files:
            self._files[name].write(json.dumps(row) + "\n")


def mean_return(result: Any) -> float | None:
    """Return the mean true return at the end of training, over all runs of a stage; None if the stage has none."""
    metrics: Any = getattr(result, "metrics", None)
    if hasattr(metrics, "score"):
        returns = np.take_along_axis(metrics.score, result.num_updates[..., None] - 1, -1)
    elif getattr(metrics, "true_return", None) is not None:
        returns = metrics.true_return[..., -1]
    else:
        return None
    return float(returns.mean()) if np.isfinite(returns).all() else None


def _updates(number: int | None) -> str:
    return "" if number is None else f"{number} update{'s' if number > 1 else ''}"
