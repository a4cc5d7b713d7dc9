"""A sweep: strength of the pull to the reference x pairs x the annotator's temperature x seeds, with reference pi2.

The strength is DPO's beta or PPO's kl_coef. A temperature and a strength are settings; one program serves all of them.
"""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
from flax import struct
from jaxtyping import Float

from experiments.claims.running import run_reported
from experiments.harness.errors import UsageError
from experiments.harness.progress import Progress
from experiments.harness.stages import Stages
from experiments.pipeline.settings import Settings, StudyTask, default_settings, flag
from experiments.reporting.summary import LABELS, diverged, null_for_nan, score, sound, versions
from jaxpref import annotators, tasks

Trainer = Literal["dpo", "rlhf"]


@dataclasses.dataclass(frozen=True)
class Sweep:
    """The values of a grid. Each task with each method is a grid of its own."""

    tasks: tuple[StudyTask, ...] = get_args(StudyTask)
    """The tasks."""
    methods: tuple[Trainer, ...] = get_args(Trainer)
    """The methods."""
    num_seeds: int = 10
    """Seeds 0 to num_seeds - 1."""
    num_pairs: tuple[int, ...] = (10, 50, 200, 1000)
    """Sizes of the preference dataset."""
    temperatures: tuple[float, ...] = (0.005, 0.1, 0.5)
    """Temperatures of the Bradley-Terry annotator, as shares of the task's range of returns."""
    beta: tuple[float, ...] = (0.01, 0.03, 0.1, 0.3, 1.0)
    """DPO's pull to the reference."""
    kl_coef: tuple[float, ...] = (0.0, 0.1, 0.3, 1.0, 3.0, 10.0)
    """PPO's pull, in units of the learned reward's mean magnitude per step. Below 1 it is weak."""
    out: Path = Path("results/sweep")
    """Folder; each grid has its own folder in it."""
    devices: int = 0
    """CPU devices that seeds are spread over; 0: one for each core."""

    def check(self) -> None:
        """Raise UsageError for a grid that cannot run."""
        for name, least in (("num_pairs", 1), ("temperatures", 0), ("beta", 0), ("kl_coef", 0)):
            values = getattr(self, name)
            if not values or not all(least <= value < math.inf for value in values):
                got = " ".join(map(str, values)) or "none"
                raise UsageError(f"--{flag(name)} needs finite numbers of at least {least}, got {got}")
        if self.num_seeds < 1 or not self.tasks or not self.methods:
            raise UsageError("--num-seeds must be at least 1; --tasks and --methods need at least one name each")


class Grid:
    """One task and method of a sweep. Axes: seed, temperature, num_pairs, strength."""

    def __init__(self, sweep: Sweep, task: str, method: Trainer):
        self.task, self.method, self.seeds = task, method, tuple(range(sweep.num_seeds))
        self.num_pairs, self.shares = sweep.num_pairs, sweep.temperatures
        low, high = tasks.task(task).return_range or (0.0, 1.0)
        self.temperatures = [share * (high - low) for share in self.shares]
        self.strength = "beta" if method == "dpo" else "kl_coef"
        self.strengths = getattr(sweep, self.strength)
        self.title = f"{LABELS[task]}, {LABELS[method]}, reference pi2, {sweep.num_seeds} seeds"

    def settings(self, temperature: float, strength: float) -> Settings:
        """Return the settings of one temperature and one strength, for all dataset sizes."""
        default = default_settings(self.task, self.method)
        trainer = "dpo" if self.method == "dpo" else "ppo"
        pulled: Any = {trainer: dataclasses.replace(getattr(default, trainer), **{self.strength: strength})}
        annotator, sizes = annotators.Config(temperature=temperature), self.num_pairs
        return dataclasses.replace(
            default, reference=("pi2",), seeds=self.seeds, num_pairs=sizes, annotator=annotator, **pulled
        )


@struct.dataclass
class Runs:
    """The ends of a grid's runs, as in `pipeline.Row`. NaN where the training of a run diverged."""

    true_return: Float[np.ndarray, "S C P B"]
    learned_return: Float[np.ndarray, "S C P B"]
    kl: Float[np.ndarray, "S C P B"]


def run(grid: Grid, stages: Stages, progress: Progress) -> Runs:
    """Run all points of a grid."""
    shape = len(grid.seeds), len(grid.temperatures), len(grid.num_pairs), len(grid.strengths)
    runs = Runs(*(np.full(shape, np.nan) for _ in dataclasses.fields(Runs)))
    for i, temperature in enumerate(grid.temperatures):
        for k, strength in enumerate(grid.strengths):
            settings = grid.settings(temperature, strength)
            title = f"{grid.task} {grid.method}, temperature {temperature:g}, {grid.strength} {strength:g}"
            outcome = run_reported(title, settings, stages, progress)
            lost = diverged(settings, outcome)
            for j, row in enumerate(outcome.rows):
                known = sound(lost, grid.seeds, row.reference, row.num_pairs)
                for name, values in vars(runs).items():
                    values[known, i, j, k] = getattr(row, name)[known]
    return runs


def summarise(grid: Grid, runs: Runs) -> dict[str, Any]:
    """Return summary.json without its timing."""
    return {
        "task": grid.task,
        "method": grid.method,
        "seeds": list(grid.seeds),
        "axes": ["seed", "temperature", "num_pairs", grid.strength],
        "temperature": grid.temperatures,
        "num_pairs": list(grid.num_pairs),
        grid.strength: list(grid.strengths),
        "versions": versions(),
        "runs": {name: null_for_nan(values) for name, values in vars(runs).items()},
    }


def iqm_of_known(values: Any) -> np.ndarray:
    """Return the IQM of [S, ...] over the seeds that are not NaN; NaN where all are."""
    return np.apply_along_axis(lambda cell: np.float64(score(cell)["iqm"]), 0, np.asarray(values, np.float64))


def findings(grid: Grid, runs: Runs) -> tuple[str, str | None]:
    """Name the best strength at the first temperature with the most pairs; and the runs that diverged, if any did."""
    best, known = "every run diverged", iqm_of_known(runs.true_return)[0, -1]
    if np.isfinite(known).any():
        k = int(np.nanargmax(known))
        best = f"with {grid.num_pairs[-1]} pairs the best {grid.strength} is {grid.strengths[k]:g} (IQM {known[k]:.1f})"
    lost = np.argwhere(np.isnan(runs.true_return))
    if not lost.size:
        return best, None
    seed, i, j, k = lost[0]
    return best, (
        f"{len(lost):,} of {runs.true_return.size:,} runs diverged and are left out. The first is seed "
        f"{grid.seeds[seed]}, temperature {grid.temperatures[i]:g}, {grid.num_pairs[j]} pairs, "
        f"{grid.strength} {grid.strengths[k]:g}"
    )
