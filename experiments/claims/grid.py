"""A sweep: strength of the pull to the reference x pairs x the annotator's temperature x seeds, with reference pi2.

The strength is DPO's beta or PPO's kl_coef. Temperature and strength are floats, so one program serves all of them.
"""

import dataclasses
import itertools
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
from matplotlib.figure import Figure

from experiments.claims.arms import Job, Run, numbers
from experiments.pipeline.settings import StudyTask, default_settings
from experiments.reporting.figures import finish, panels, save, style
from experiments.reporting.summary import TITLES, versions
from jaxpref import annotators, tasks
from jaxpref.analysis import plots, statistics
from jaxpref.checks import setting

Trainer = Literal["dpo", "rlhf"]


@dataclasses.dataclass(frozen=True)
class Sweep:
    """The values of a grid. Each task with each method is a grid of its own."""

    tasks: tuple[StudyTask, ...] = get_args(StudyTask)  # The tasks.
    methods: tuple[Trainer, ...] = get_args(Trainer)  # The methods.
    num_seeds: int = setting(10, low=1)  # Seeds 0 to num_seeds - 1.
    num_pairs: tuple[int, ...] = setting((10, 50, 200, 1000), low=1)  # Sizes of the preference dataset.
    temperatures: tuple[float, ...] = setting((0.005, 0.1, 0.5), low=0)
    """Temperatures of the Bradley-Terry annotator, as shares of the task's range of returns."""
    beta: tuple[float, ...] = setting((0.01, 0.03, 0.1, 0.3, 1.0), low=0)  # DPO's pull to the reference.
    kl_coef: tuple[float, ...] = setting((0.0, 0.01, 0.03, 0.1, 0.3, 1.0), low=0)
    """PPO's pull to the reference, in the unit of the learned reward (log-odds) per nat."""
    out: Path = Path("results/sweep")  # Folder; each grid has its own folder in it.
    devices: int = setting(0, low=0)  # CPU devices that seeds are spread over; 0: one for each core.


def run_grid(sweep: Sweep, task: StudyTask, method: Trainer, run: Run) -> dict[str, Any]:
    """Run all points of a task with a method; return what is in summary.json. A run that diverged is NaN."""
    trainer, strength = ("dpo", "beta") if method == "dpo" else ("ppo", "kl_coef")
    low, high = tasks.task(task).return_range or (0.0, 1.0)
    temperatures, strengths = [share * (high - low) for share in sweep.temperatures], list(getattr(sweep, strength))
    axes: dict[str, list] = {"temperature": temperatures, "num_pairs": list(sweep.num_pairs), strength: strengths}
    shape = sweep.num_seeds, *map(len, axes.values())
    runs = {name: np.full(shape, np.nan) for name in ("true_return", "learned_return", "kl")}
    plain, seeds = default_settings(task, method), tuple(range(sweep.num_seeds))
    plain = dataclasses.replace(plain, seeds=seeds, num_pairs=sweep.num_pairs, reference=("pi2",))
    jobs = list[Job]()
    for temperature, value in itertools.product(temperatures, strengths):
        pulled: Any = {trainer: dataclasses.replace(getattr(plain, trainer), **{strength: value})}
        settings = dataclasses.replace(plain, annotator=annotators.Config(temperature=temperature), **pulled)
        jobs.append((f"{task} {method}, temperature {temperature:g}, {strength} {value:g}", settings))
    places = np.ndindex(len(temperatures), len(strengths))
    for (i, k), (_, settings), outcome in zip(places, jobs, run(jobs), strict=True):
        for j, num_pairs in enumerate(sweep.num_pairs):
            found = numbers(settings, outcome, num_pairs)
            for name, values in runs.items():
                values[:, i, j, k] = found[name]
    facts = {"task": task, "method": method, "seeds": list(seeds), "axes": ["seed", *axes]}
    return facts | axes | {"versions": versions(), "runs": runs}


def iqm_of_known(values: np.ndarray) -> np.ndarray:
    """Return the IQM of [S, ...] over the seeds that are not NaN; NaN where all are."""

    def iqm(cell: np.ndarray) -> float:
        known = cell[~np.isnan(cell)]
        return statistics.iqm(known) if known.size else np.nan

    return np.apply_along_axis(iqm, 0, values)


def findings(summary: dict[str, Any]) -> tuple[str, str | None]:
    """Name the best strength at the first temperature with the most pairs; and the seeds that diverged, if any did."""
    returns, strength, num_pairs = summary["runs"]["true_return"], summary["axes"][-1], summary["num_pairs"][-1]
    best, known = "every run diverged", iqm_of_known(returns)[0, -1]
    if np.isfinite(known).any():
        place = np.nanargmax(known)
        value = summary[strength][place]
        best = f"with {num_pairs} pairs the best {strength} is {value:g} (IQM {known[place]:.1f})"
    lost = np.argwhere(np.isnan(returns))
    seeds = " ".join(str(seed) for seed in np.unique(lost[:, 0]))
    return best, f"{len(lost):,} of {returns.size:,} runs diverged and are left out; seeds {seeds}" if seeds else None


@style()
def draw(summary: dict[str, Any], shares: tuple[float, ...], folder: Path) -> None:
    """Draw both figures of a grid. `shares`: its temperatures, of the range of returns."""
    title = f"{TITLES[summary['task']]}, {TITLES[summary['method']]}, reference pi2, {len(summary['seeds'])} seeds"
    save(draw_heat_maps(summary, shares, title), folder / "heat_map.png")
    save(draw_over_optimisation(summary, title), folder / "over_optimisation.png")


def draw_heat_maps(summary: dict[str, Any], shares: tuple[float, ...], title: str) -> Figure:
    """Draw the IQM of the true return over seeds: a panel for each temperature."""
    values, strength = iqm_of_known(summary["runs"]["true_return"]), summary["axes"][-1]
    known = values[np.isfinite(values)] if np.isfinite(values).any() else np.array([0.0, 1.0])
    rows, columns = [f"{value:g}" for value in summary[strength]], [f"{size:,}" for size in summary["num_pairs"]]
    figure, axes_of = panels(len(shares), sharey=True)
    for axes, share, value in zip(axes_of[0], shares, values, strict=True):
        image = plots.heat_map(axes, value.T, rows, columns, "{:.0f}", float(known.min()), float(known.max()))
        axes.set(title=f"temperature {100 * share:g} % of the range", xlabel="pairs")
    axes_of[0, 0].set_ylabel(strength)
    figure.colorbar(image, ax=axes_of, label="true return, IQM over seeds")
    return finish(figure, title)


def draw_over_optimisation(summary: dict[str, Any], title: str) -> Figure:
    """Draw learned and true return against KL: a line through the strengths for each size, at the first temperature."""
    figure, axes_of = panels(2)
    for axes, label in zip(axes_of[0], ("learned return", "true return"), strict=True):
        runs = summary["runs"]["kl"], summary["runs"][label.replace(" ", "_")]
        for place, size in enumerate(summary["num_pairs"]):
            # From the strongest pull to the weakest: the marker is where the least holds the policy back.
            x, y = (each[:, 0, place, ::-1] for each in runs)
            plots.path(axes, x, y, f"{size:,} pairs", plots.COLOURS[place % len(plots.COLOURS)])
        axes.set(xlabel="KL(policy || reference), nats per episode", ylabel=label)
    return finish(figure, f"{title}: from strong to weak {summary['axes'][-1]}, mean over seeds")
