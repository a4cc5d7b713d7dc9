"""A sweep: strength of the pull to the reference x pairs x the annotator's temperature x seeds, with reference pi2.

The strength is DPO's beta or PPO's kl_coef. A temperature and a strength are settings; one program serves all of them.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np

from experiments.claims.running import Run
from experiments.harness.errors import UsageError
from experiments.pipeline.settings import StudyTask, default_settings, flag
from experiments.reporting.summary import diverged, score, sound, versions
from jaxpref import annotators, tasks

Trainer = Literal["dpo", "rlhf"]


@dataclasses.dataclass(frozen=True)
class Sweep:
    """The values of a grid. Each task with each method is a grid of its own."""

    tasks: tuple[StudyTask, ...] = get_args(StudyTask)  # The tasks.
    methods: tuple[Trainer, ...] = get_args(Trainer)  # The methods.
    num_seeds: int = 10  # Seeds 0 to num_seeds - 1.
    num_pairs: tuple[int, ...] = (10, 50, 200, 1000)  # Sizes of the preference dataset.
    temperatures: tuple[float, ...] = (0.005, 0.1, 0.5)
    """Temperatures of the Bradley-Terry annotator, as shares of the task's range of returns."""
    beta: tuple[float, ...] = (0.01, 0.03, 0.1, 0.3, 1.0)  # DPO's pull to the reference.
    kl_coef: tuple[float, ...] = (0.0, 0.1, 0.3, 1.0, 3.0, 10.0)
    """PPO's pull, in units of the learned reward's mean magnitude per step. Below 1 it is weak."""
    out: Path = Path("results/sweep")  # Folder; each grid has its own folder in it.
    devices: int = 0  # CPU devices that seeds are spread over; 0: one for each core.

    def check(self) -> None:
        """Raise UsageError for a grid that cannot run."""
        for name, least in (("num_pairs", 1), ("temperatures", 0), ("beta", 0), ("kl_coef", 0)):
            values = getattr(self, name)
            if not values or not all(least <= value < math.inf for value in values):
                got = " ".join(map(str, values)) or "none"
                raise UsageError(f"--{flag(name)} needs finite numbers of at least {least}, got {got}")
        if self.num_seeds < 1 or not self.tasks or not self.methods:
            raise UsageError("--num-seeds must be at least 1; --tasks and --methods need at least one name each")


def run_grid(sweep: Sweep, task: StudyTask, method: Trainer, run: Run) -> dict[str, Any]:
    """Run all points of a task with a method; return what is in summary.json. A run that diverged is NaN."""
    trainer, strength = ("dpo", "beta") if method == "dpo" else ("ppo", "kl_coef")
    low, high = tasks.task(task).return_range or (0.0, 1.0)
    temperatures, strengths = [share * (high - low) for share in sweep.temperatures], getattr(sweep, strength)
    shape = sweep.num_seeds, len(temperatures), len(sweep.num_pairs), len(strengths)
    runs = {name: np.full(shape, np.nan) for name in ("true_return", "learned_return", "kl")}
    plain = dataclasses.replace(
        default_settings(task, method),
        reference=("pi2",),
        seeds=tuple(range(sweep.num_seeds)),
        num_pairs=sweep.num_pairs,
    )
    for (i, temperature), (k, value) in itertools.product(enumerate(temperatures), enumerate(strengths)):
        pulled: Any = {trainer: dataclasses.replace(getattr(plain, trainer), **{strength: value})}
        settings = dataclasses.replace(plain, annotator=annotators.Config(temperature=temperature), **pulled)
        outcome = run(f"{task} {method}, temperature {temperature:g}, {strength} {value:g}", settings)
        entries = diverged(settings, outcome)
        for j, row in enumerate(outcome.rows):
            known = sound(entries, settings.seeds, row.reference, row.num_pairs)
            for name, values in runs.items():
                values[known, i, j, k] = getattr(row, name)[known]
    return {
        "task": task,
        "method": method,
        "seeds": list(plain.seeds),
        "axes": ["seed", "temperature", "num_pairs", strength],
        "temperature": temperatures,
        "num_pairs": list(sweep.num_pairs),
        strength: list(strengths),
        "versions": versions(),
        "runs": runs,
    }


def iqm_of_known(values: np.ndarray) -> np.ndarray:
    """Return the IQM of [S, ...] over the seeds that are not NaN; NaN where all are."""
    return np.apply_along_axis(lambda cell: np.float64(score(cell)["iqm"]), 0, values)


def findings(summary: dict[str, Any]) -> tuple[str, str | None]:
    """Name the best strength at the first temperature with the most pairs; and the seeds that diverged, if any did."""
    returns, strength, num_pairs = summary["runs"]["true_return"], summary["axes"][-1], summary["num_pairs"][-1]
    best, known = "every run diverged", iqm_of_known(returns)[0, -1]
    if np.isfinite(known).any():
        place = np.nanargmax(known)
        value = summary[strength][place]
        best = f"with {num_pairs} pairs the best {strength} is {value:g} (IQM {known[place]:.1f})"
    lost = np.argwhere(np.isnan(returns))
    seeds = " ".join(str(summary["seeds"][place]) for place in np.unique(lost[:, 0]))
    return best, f"{len(lost):,} of {returns.size:,} runs diverged and are left out; seeds {seeds}" if seeds else None
