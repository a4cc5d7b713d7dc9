"""One call over a grid: strength of the pull to the reference x pairs x annotator's temperature x seeds.

`python -m experiments.sweep --help`. The strength is DPO's beta or PPO's kl_coef. Each axis is one more `vmap` around
the function of one run; the reference is pi2. What is done is kept, so a run that was interrupted goes on where it
stopped.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import math
import sys
import time
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import matplotlib
import matplotlib.pyplot as plt
import numpy as np
from flax import struct
from jaxtyping import Array, Float
from matplotlib.figure import Figure
from rich.console import Console

import jaxpref
from experiments import START, arms, pipeline, report, stages
from experiments.checkpoints import CODE, Checkpoints, locked
from experiments.command import DIVERGED, UsageError, check_folder, exit_codes, read
from experiments.progress import Done, Progress
from experiments.settings import Method, TaskName
from jaxpref import annotators, dpo, plots, ppo, preferences, reinforce, reward_model, statistics, store
from jaxpref.divergence import is_sound
from jaxpref.networks import trajectory_kl, trajectory_log_prob, trajectory_reward
from jaxpref.rollout import episodes
from jaxpref.tasks import Task
from jaxpref.types import Params, Preferences, Trajectory, true_return


@dataclasses.dataclass(frozen=True)
class Settings:
    """The grid."""

    tasks: tuple[TaskName, ...] = ("cartpole", "acrobot")
    """Each is a sweep of its own."""
    methods: tuple[Method, ...] = ("dpo", "rlhf")
    """Each is a sweep of its own."""
    num_seeds: int = 10
    """Seeds 0 to num_seeds - 1."""
    num_pairs: tuple[int, ...] = (10, 50, 200, 1000)
    """Sizes of the preference dataset."""
    temperatures: tuple[float, ...] = (0.005, 0.1, 0.5)
    """Of the Bradley-Terry annotator, as shares of the task's range of returns."""
    beta: tuple[float, ...] = (0.01, 0.03, 0.1, 0.3, 1.0)
    """Of DPO."""
    kl_coef: tuple[float, ...] = (0.0, 0.1, 0.3, 1.0, 3.0, 10.0)
    """Of PPO, in units of the learned reward's mean magnitude per step: below 1 the pull is hardly felt."""
    out: Path = Path("results/sweep")
    """Folder; each sweep gets one of its own in it."""
    devices: int = 0
    """CPU devices that seeds are spread over; 0: one for each core."""


@struct.dataclass
class Run:
    """One run's end: means over the trained policy's own episodes.

    learned_return:  what it was trained to maximise: the reward model's return, or beta times DPO's log-ratio.
    kl:              exact KL(policy || reference), nats per episode.

    All are NaN where the training of the policy, of its reference or of its reward model diverged.
    """

    true_return: Float[Array, "*grid"]
    learned_return: Float[Array, "*grid"]
    kl: Float[Array, "*grid"]


def end_of(
    task: Task, seed: Array, params: Params, ref_params: Params, learned: Any, reward_params: Params | None = None
) -> Run:
    """Play the trained policy; `learned` scores trajectories."""
    played = episodes(task, params, pipeline.keys_of(seed).evaluate, arms.EVAL_EPISODES)
    kl = trajectory_kl(params, ref_params, played)
    sound = is_sound((params, ref_params, reward_params))
    return jax.tree.map(
        lambda of_episodes: jnp.where(sound, of_episodes.mean(), jnp.nan), Run(true_return(played), learned(played), kl)
    )


def dpo_run(task: Task, seed: Array, pi2: Params, pairs: Preferences, beta: Array) -> Run:
    """One run of DPO."""
    params = dpo.train(task, dpo.Config(beta=beta), pipeline.keys_of(seed).train, pairs, pi2, pi2).params

    def implicit_reward(trajectory: Trajectory) -> Array:
        return beta * (trajectory_log_prob(params, trajectory) - trajectory_log_prob(pi2, trajectory))

    return end_of(task, seed, params, pi2, implicit_reward)


def ppo_run(task: Task, seed: Array, pi2: Params, reward_params: Params, kl_coef: Array) -> Run:
    """One run of PPO."""
    key = pipeline.keys_of(seed).train
    params = ppo.train(task, ppo.Config(kl_coef=kl_coef), key, pi2, pi2, reward_params).params
    return end_of(task, seed, params, pi2, functools.partial(trajectory_reward, reward_params), reward_params)


Grid = tuple[Float[Array, " C"], Float[Array, " B"]]
"""(temperatures in units of return, strengths)."""


def sweep_seed(
    task: Task, method: Method, sizes: tuple[int, ...], grid: Grid, seed: Array, pi1: Params, pi2: Params
) -> Run:
    """All runs of one seed, axes [temperatures, sizes, strengths]. They share their episodes and keys."""
    temperatures, strengths = grid
    keys = pipeline.keys_of(seed)

    def at_temperature(temperature: Array) -> Run:
        annotator = functools.partial(annotators.bradley_terry, temperature=temperature)
        pairs = preferences.sample_preferences(task, pi1, pi2, keys.preferences, max(sizes), annotator)
        return jax.vmap(functools.partial(at_size, pairs))(jnp.array(sizes))

    def at_size(pairs: Preferences, num_pairs: Array) -> Run:
        some = preferences.prefix(pairs, num_pairs)
        if method == "dpo":
            return jax.vmap(functools.partial(dpo_run, task, seed, pi2, some))(strengths)
        fitted = reward_model.train(task, reward_model.Config(), keys.reward_model, some).params
        return jax.vmap(functools.partial(ppo_run, task, seed, pi2, fitted))(strengths)

    return jax.vmap(at_temperature)(temperatures)


def iqm_of_known(values: Any) -> np.ndarray:
    """IQM of [S, ...] over the seeds that did not diverge; NaN where all did."""

    def of_cell(per_seed):
        known = per_seed[~np.isnan(per_seed)]
        return statistics.iqm(known) if known.size else np.nan

    return np.apply_along_axis(of_cell, 0, np.asarray(values, np.float64))


def draw_heat_maps(title: str, settings: Settings, strengths: tuple[float, ...], name: str, runs: Run) -> Figure:
    """IQM of the true return over seeds: a panel for each temperature."""
    values = iqm_of_known(runs.true_return)
    num_panels = len(settings.temperatures)
    figure, panels = plt.subplots(1, num_panels, figsize=(3.1 * num_panels + 1.2, 3.6), sharey=True, squeeze=False)
    for axes, temperature, value in zip(panels[0], settings.temperatures, values, strict=True):
        image = plots.heat_map(
            axes,
            value.T,  # a row for each strength
            [f"{strength:g}" for strength in strengths],
            [f"{size:,}" for size in settings.num_pairs],
            "{:.0f}",
            *_ends(values),
        )
        axes.set(title=f"temperature {100 * temperature:g} % of the range", xlabel="pairs")
    panels[0, 0].set_ylabel(name)
    figure.colorbar(image, ax=panels, label="true return, IQM over seeds")
    figure.suptitle(title, fontsize=11)
    return figure


def _ends(values: np.ndarray) -> tuple[float, float]:
    """Of a scale for what is known."""
    known = values[~np.isnan(values)]
    return (float(known.min()), float(known.max())) if known.size else (0.0, 1.0)


def draw_over_optimisation(title: str, settings: Settings, name: str, runs: Run) -> Figure:
    """Learned and true return against KL, a line through the strengths for each size; the first temperature."""
    figure, panels = plt.subplots(1, 2, figsize=(9.6, 3.8))
    for axes, values, label in zip(
        panels, (runs.learned_return, runs.true_return), ("learned return", "true return"), strict=True
    ):
        for place, size in enumerate(settings.num_pairs):
            kl, returns = np.asarray(runs.kl)[:, 0, place], np.asarray(values)[:, 0, place]
            colour = plots.COLOURS[place % len(plots.COLOURS)]
            # From the strongest pull to the weakest: the marker is where least holds the policy back.
            plots.path(axes, kl[:, ::-1], returns[:, ::-1], f"{size:,} pairs", colour)
        axes.set(xlabel="KL(policy || reference), nats per episode", ylabel=label)
    figure.suptitle(f"{title}: from strong to weak {name}, mean over seeds", fontsize=11)
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside lower center", ncols=6)
    return figure


def sweep(settings: Settings, task: Task, method: Method, timer: stages.Stages, console: Console) -> bool:
    """One task and method: run the grid, write summary.json and the figures. Returns whether no run diverged."""
    name, strengths = ("beta", settings.beta) if method == "dpo" else ("kl_coef", settings.kl_coef)
    assert task.return_range is not None  # the study's tasks know theirs
    low, high = task.return_range
    temperatures = [share * (high - low) for share in settings.temperatures]
    seeds = np.arange(settings.num_seeds, dtype=np.uint32)
    start = time.perf_counter()
    train_experts = functools.partial(pipeline.train_experts, task)
    experts = timer.run("experts", train_experts, reinforce.Config(), seeds, lanes=32, detail=task.name)
    grid = np.array(temperatures), np.array(strengths)
    function = functools.partial(sweep_seed, task, method, settings.num_pairs)
    runs: Run = timer.run(
        "sweep", function, grid, seeds, *(experts.pi1, experts.pi2), lanes=1, detail=f"{task.name} {method}"
    )

    folder = settings.out / f"{task.name}-{method}"
    folder.mkdir(exist_ok=True)
    title = f"{report.LABELS[task.name]}, {report.LABELS[method]}, reference pi2, {settings.num_seeds} seeds"
    matplotlib.use("Agg")
    with matplotlib.rc_context(plots.STYLE):
        for file_name, figure in (
            ("heat_map.png", draw_heat_maps(title, settings, strengths, name, runs)),
            ("over_optimisation.png", draw_over_optimisation(title, settings, name, runs)),
        ):
            with store.atomic_write(folder / file_name) as file:
                figure.savefig(file, format="png")
            plt.close(figure)
    summary = {
        "task": task.name,
        "method": method,
        "seeds": seeds.tolist(),
        "axes": ["seed", "temperature", "num_pairs", name],
        "temperature": temperatures,
        "num_pairs": list(settings.num_pairs),
        name: list(strengths),
        "versions": report.versions(),
        "runs": {field: report.null_for_nan(values) for field, values in vars(runs).items()},
        "total_s": time.perf_counter() - start,
    }
    store.save_json(folder / "summary.json", summary)
    known = iqm_of_known(runs.true_return)[0, -1]
    best = ""
    if np.isfinite(known).any():
        place = int(np.nanargmax(known))
        best = f"with {settings.num_pairs[-1]} pairs the best {name} is {strengths[place]:g} (IQM {known[place]:.1f}); "
    console.print(
        f"{task.name} {method}: {np.size(runs.true_return):,} runs in {summary['total_s']:.0f} s; {best}"
        f"written to {folder}",
        highlight=False,
    )
    astray = np.argwhere(np.isnan(runs.true_return))
    if astray.size:
        seed, temperature, size, strength = astray[0]
        console.print(
            f"warning: {len(astray):,} of {np.size(runs.true_return):,} runs diverged and are left out, the first of "
            f"them seed {seeds[seed]}, temperature {temperatures[temperature]:g}, {settings.num_pairs[size]} pairs, "
            f"{name} {strengths[strength]:g}",
            style="bold yellow",
            highlight=False,
            soft_wrap=True,
        )
    return not astray.size


def sweep_all(settings: Settings, timer: stages.Stages, kept: Checkpoints, progress: Progress) -> bool:
    """Every sweep that is asked for. Returns whether no run of any diverged."""
    wanted = [(task, method) for task in settings.tasks for method in settings.methods]
    all_well = True
    for task, method in wanted:
        progress.plan(f"{task} {method}", kept.seconds(f"sweep {task} {method}"))
    for task, method in wanted:
        timer.times.clear()
        progress.start(f"{task} {method}")
        all_well &= sweep(settings, jaxpref.task(task), method, timer, progress.console)
        of_sweep = dataclasses.asdict(timer.times["sweep"])
        progress.done(Done(f"{task} {method}", settings.num_seeds, None, None, **of_sweep))
    return all_well


def check(settings: Settings) -> None:
    """Raise UsageError for a grid that cannot be run."""
    for name in ("tasks", "methods", "num_pairs", "temperatures", "beta", "kl_coef"):
        if not getattr(settings, name):
            raise UsageError(f"--{name.replace('_', '-')} needs at least one value")
    for name, least in (("num_pairs", 1), ("temperatures", 0), ("beta", 0), ("kl_coef", 0)):
        for value in getattr(settings, name):
            if not least <= value < math.inf:
                wanted = "finite" if value == math.inf else f"at least {least}"
                raise UsageError(f"--{name.replace('_', '-')} must be {wanted}, got {value}")
    if settings.num_seeds < 1:
        raise UsageError(f"--num-seeds must be at least 1, got {settings.num_seeds}")
    check_folder(settings.out)


def main() -> None:
    """Run every sweep that is asked for."""
    with exit_codes(), contextlib.ExitStack() as held:
        settings = read(Settings, sys.argv[1:], __doc__ or "")
        check(settings)
        held.enter_context(locked(settings.out))
        stages.set_up_jax(settings.devices)
        console = Console()
        kept = held.enter_context(
            Checkpoints(settings.out, report.versions(), console, sources=(*CODE, Path(__file__)))
        )
        timer = stages.Stages(Console(quiet=True), kept)
        timer.begin(1, 1, np.arange(settings.num_seeds))
        with Progress(console, settings.out, unit="sweeps") as progress:
            all_well = sweep_all(settings, timer, kept, progress)
        kept.join()  # what other tasks and methods keep stays: another sweep may want it
        console.print(f"{time.perf_counter() - START:.0f} s in all", highlight=False)
        if not all_well:
            raise SystemExit(DIVERGED)


if __name__ == "__main__":
    main()
