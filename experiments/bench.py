"""How fast it is, as ratios measured in one run: `python -m experiments.bench --help`.

Every figure is the median of several repeats, with compilation apart. What is compared runs in turns, so that a busy
machine slows both.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import math
import operator
import os
import platform
import shlex
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
from matplotlib.ticker import LogLocator
from rich import box
from rich.console import Console
from rich.table import Table

import jaxpref
from experiments import START, pipeline, report, stages
from experiments.checkpoints import locked
from experiments.command import NOTHING_KEPT, UsageError, check_folder, exit_codes, read
from jaxpref import plots, store
from jaxpref.tasks import Task
from jaxpref.types import Params

Row = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Settings:
    """What to measure."""

    sections: tuple[str, ...] = ("rollouts", "trainers", "experiments", "memory", "devices")
    """Which parts of the table."""
    num_envs: tuple[int, ...] = (1, 16, 256, 2048)
    """Environments side by side in a rollout."""
    num_seeds: tuple[int, ...] = (1, 3, 32, 128)
    """Seeds in one call of a trainer."""
    memory_seeds: tuple[int, ...] = (100, 1000)
    """Seeds of the runs whose peak memory is compared."""
    repeats: int = 3
    """Of every measurement; the median counts."""
    out: Path = Path("results/bench")
    """Folder for summary.json and the figure."""


def in_turns(repeats: int, *functions: Callable[[], Any]) -> list[float]:
    """Median seconds of each function over repeats in turns, after one call of each that does not count."""
    for function in functions:
        jax.block_until_ready(function())
    seconds: list[list[float]] = [[] for _ in functions]
    for _ in range(repeats):
        for function, spent in zip(functions, seconds, strict=True):
            start = time.perf_counter()
            jax.block_until_ready(function())
            spent.append(time.perf_counter() - start)
    return [statistics.median(spent) for spent in seconds]


# --- rollouts -------------------------------------------------------------------------------------------------------


def jaxpref_returns(task: Task, num_envs: int, params: Params, key: jax.Array) -> jax.Array:
    """Returns of one episode in each environment."""
    return jaxpref.evaluate(task, params, key, num_envs)


def gymnax_returns(task: Task, num_envs: int, params: Params, key: jax.Array) -> jax.Array:
    """The same in the idiom of gymnax's examples: auto-resetting steps, a key split and a categorical in each."""
    step_all = jax.vmap(task.env.step, in_axes=(0, 0, 0, None))

    def step(carry, _):
        obs, state, key, alive, returns = carry
        key, key_action, key_step = jax.random.split(key, 3)
        logits, _ = jaxpref.apply_policy(params, obs)
        action = jax.random.categorical(key_action, logits)
        keys = jax.random.split(key_step, num_envs)
        obs, state, reward, terminated, truncated, _ = step_all(keys, state, action, task.env_params)
        returns = returns + jnp.where(alive, reward, 0.0)
        return (obs, state, key, alive & ~terminated & ~truncated, returns), None

    key, key_reset = jax.random.split(key)
    obs, state = jax.vmap(task.env.reset, in_axes=(0, None))(jax.random.split(key_reset, num_envs), task.env_params)
    start = obs, state, key, jnp.ones(num_envs, bool), jnp.zeros(num_envs)
    return jax.lax.scan(step, start, None, task.horizon)[0][-1]


def bench_rollouts(settings: Settings) -> list[Row]:
    """Whole episodes of an expert: `jaxpref.evaluate` against gymnax's `env.step` in a scan."""
    rows = []
    for name in jaxpref.TASKS:
        task = jaxpref.task(name)
        expert = jax.jit(functools.partial(jaxpref.reinforce.train, task, jaxpref.reinforce.Config()))
        args = expert(jax.random.key(0)).pi1, jax.random.key(1)
        for num_envs in settings.num_envs:
            functions = [functools.partial(play, task, num_envs) for play in (jaxpref_returns, gymnax_returns)]
            programs = [jax.jit(function).lower(*args).compile() for function in functions]
            ours, peer = in_turns(4 * settings.repeats, *(functools.partial(program, *args) for program in programs))
            row = {"task": name, "num_envs": num_envs, "jaxpref_s": ours, "gymnax_s": peer, "ratio": peer / ours}
            rows.append(row)
    return rows


# --- trainers -------------------------------------------------------------------------------------------------------


class Shortened(NamedTuple):
    """A trainer, cut short, as a stage: `run` maps `function(config, *args)` over seeds."""

    function: Callable
    config: Any
    args: tuple
    lanes: int
    num_steps: float
    """Environment steps of one seed: played by REINFORCE and PPO, learned from by the others."""


def shortened_trainers(task: Task, num_seeds: int) -> dict[str, Shortened]:
    """Every trainer with data of its own making for each seed."""
    num_pairs, num_heldout = 200, 50
    seeds, timer = np.arange(num_seeds, dtype=np.uint32), stages.Stages(Console(quiet=True))
    endless = dataclasses.replace(task, pi1_target=math.inf)
    reinforce = jaxpref.reinforce.Config(num_updates=20, score_window=jaxpref.reinforce.Config().episodes_per_update)
    dpo, reward_model = jaxpref.dpo.Config(num_updates=30, eval_every=30), jaxpref.reward_model.Config(num_updates=40)
    ppo = jaxpref.ppo.Config(num_updates=6)

    train_experts = functools.partial(pipeline.train_experts, endless)
    experts = timer.run("experts", train_experts, reinforce, seeds, lanes=32)
    label = functools.partial(pipeline.label_pairs, task, num_pairs + num_heldout)
    pairs = timer.run("preferences", label, jaxpref.annotators.Config(), seeds, experts.pi1, experts.pi2, lanes=4)
    train_reward = functools.partial(pipeline.reward_model_run, task, (num_pairs,), num_heldout)
    rewards, _ = timer.run("reward", train_reward, reward_model, seeds, pairs, lanes=4)
    train_dpo = functools.partial(pipeline.dpo_run, task, (num_pairs,), num_heldout)
    train_ppo = functools.partial(pipeline.ppo_run, task)

    # The score of so short a window is the mean return of one update's episodes: on CartPole, their length.
    played = experts.metrics.score.sum(-1).mean() * reinforce.episodes_per_update
    steps_per_pair = (pairs.chosen.mask.sum() + pairs.rejected.mask.sum()) / pairs.weight.size
    pi2 = experts.pi2
    return {
        "reinforce": Shortened(train_experts, reinforce, (seeds,), 32, played),
        "dpo": Shortened(
            train_dpo, dpo, (pi2, seeds, pi2, pairs), 2, dpo.num_updates * dpo.batch_size * steps_per_pair
        ),
        "reward_model": Shortened(
            train_reward,
            reward_model,
            (seeds, pairs),
            4,
            reward_model.num_updates * reward_model.batch_size * steps_per_pair,
        ),
        "ppo": Shortened(
            train_ppo, ppo, (pi2, seeds, pi2, rewards.params), 8, ppo.num_updates * ppo.num_envs * ppo.num_steps
        ),
    }


def bench_trainers(settings: Settings) -> list[Row]:
    """Each trainer on CartPole with 200 pairs, cut short. An environment step is one played (REINFORCE, PPO) or one
    of a pair that is learned from (DPO, the reward model).
    """
    trainers = shortened_trainers(jaxpref.cartpole(), max(settings.num_seeds))
    rows = []
    for num_seeds in settings.num_seeds:
        timer = stages.Stages(Console(quiet=True))
        for name, (function, config, all_args, lanes, num_steps) in trainers.items():
            args = jax.tree.map(operator.itemgetter(slice(num_seeds)), all_args)
            seconds = []
            for _ in range(settings.repeats):
                before = timer.times.get(name, stages.StageTime()).run_s
                timer.run(name, function, config, *args, lanes=lanes)
                seconds.append(timer.times[name].run_s - before)
            run_s = statistics.median(seconds)
            row = {"trainer": name, "seeds": num_seeds, "compile_s": timer.times[name].compile_s, "run_s": run_s}
            row |= {"s_per_seed": run_s / num_seeds, "updates_per_s": config.num_updates * num_seeds / run_s}
            rows.append(row | {"env_steps_per_s": float(num_steps * num_seeds / run_s)})
    return rows


# --- whole programs ---------------------------------------------------------------------------------------------------


def timed_run(cache: str, module: str, *flags: str) -> Row:
    """An experiment as a program of its own, with its compiled programs in `cache`: its summary."""
    with tempfile.TemporaryDirectory() as out:
        command = [sys.executable, "-m", f"experiments.{module}", "--out", out, *flags]
        subprocess.run(command, check=True, capture_output=True, env=os.environ | {"JAX_COMPILATION_CACHE_DIR": cache})
        return store.load_json(Path(out) / "summary.json")


def bench_experiments(settings: Settings) -> list[Row]:
    """Every experiment from the command line: with no compiled program at hand, and once more."""
    rows = []
    for module in ("cartpole_dpo", "cartpole_rlhf", "acrobot_dpo", "acrobot_rlhf"):
        with tempfile.TemporaryDirectory() as cache:
            cold, warm = (timed_run(cache, module)["timing"] for _ in range(2))
        row = {"experiment": module, "cold_total_s": cold["total_s"], "cold_compile_s": cold["compile_s"]}
        rows.append(row | {"warm_total_s": warm["total_s"], "warm_run_s": warm["run_s"]})
    return rows


SHORT = shlex.split("--num-pairs 200 --reference pi2 --reinforce.num-updates 20 --dpo.num-updates 2 --dpo.eval-every 2")
"""Flags of a run that holds as much data as any other, and does little with it."""


def bench_memory(settings: Settings) -> list[Row]:
    """Peak memory of one process against its number of seeds: CartPole, DPO, 200 pairs, cut short."""
    rows = []
    for num_seeds in settings.memory_seeds:
        summary = timed_run(str(stages.CACHE), "cartpole_dpo", "--seeds", *map(str, range(num_seeds)), *SHORT)
        rows.append({"num_seeds": num_seeds, "peak_memory_gib": summary["peak_memory_gib"]})
    return rows


def bench_devices(settings: Settings) -> list[Row]:
    """The same seeds on one CPU device and on one per core: CartPole, DPO, 200 pairs, reference pi2."""
    rows = []
    flags = ["--seeds", *map(str, range(16)), "--num-pairs", "200", "--reference", "pi2"]
    for devices in (1, jax.local_device_count()):
        summary = timed_run(str(stages.CACHE), "cartpole_dpo", *flags, "--devices", str(devices))
        rows.append({"devices": devices, "num_seeds": 16, "run_s": summary["timing"]["run_s"]})
    for row in rows:
        row["speedup"] = rows[0]["run_s"] / row["run_s"]
    return rows


# --- the report -------------------------------------------------------------------------------------------------------

SECTIONS: dict[str, Callable[[Settings], list[Row]]] = {
    "rollouts": bench_rollouts,
    "trainers": bench_trainers,
    "experiments": bench_experiments,
    "memory": bench_memory,
    "devices": bench_devices,
}


def table(title: str, rows: list[Row]) -> Table:
    """Rows as they are, a column for every key."""
    result = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False)
    columns = list(dict.fromkeys(key for row in rows for key in row))
    for column in columns:
        words = column.replace("_", " ")  # which a narrow terminal can put below each other
        result.add_column(words, justify="left" if isinstance(rows[0].get(column), str) else "right")
    for row in rows:
        cells = (row.get(column, "") for column in columns)
        result.add_row(*(f"{cell:,.4g}" if isinstance(cell, float) else str(cell) for cell in cells))
    return result


def draw(rows: list[Row], path: Path) -> None:
    """Seconds per seed against seeds, a line for each trainer."""
    with plt.rc_context(plots.STYLE):
        figure, axes = plt.subplots(figsize=(5.2, 3.6))
        names = list(dict.fromkeys(row["trainer"] for row in rows))
        for name, colour, marker in zip(names, plots.COLOURS, "osD^", strict=False):
            points = [(row["seeds"], 1000 * row["s_per_seed"]) for row in rows if row["trainer"] == name]
            axes.loglog(*zip(*points, strict=True), marker=marker, color=colour, label=name.replace("_", " "))
        axes.set(
            xlabel="seeds in one call", ylabel="milliseconds per seed", title="Shortened trainers, CartPole, compiled"
        )
        measured = sorted({row["seeds"] for row in rows})
        axes.set_xticks(measured, [str(number) for number in measured])
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.yaxis.set_major_formatter("{x:g}")
        axes.minorticks_off()
        figure.legend(*axes.get_legend_handles_labels(), loc="outside lower center", ncols=4)
        with store.atomic_write(path) as file:
            figure.savefig(file, format="png")
        plt.close(figure)


def main() -> None:
    """Measure, print, write."""
    with exit_codes(NOTHING_KEPT), contextlib.ExitStack() as held:
        settings = read(Settings, sys.argv[1:], __doc__ or "")
        if not settings.sections:
            raise UsageError(f"--sections needs at least one of {', '.join(SECTIONS)}")
        if unknown := set(settings.sections) - SECTIONS.keys():
            raise UsageError(f"--sections: unknown {', '.join(sorted(unknown))}; known are {', '.join(SECTIONS)}")
        for name in ("num_envs", "num_seeds", "memory_seeds", "repeats"):
            if np.min(getattr(settings, name), initial=1) < 1:
                raise UsageError(
                    f"--{name.replace('_', '-')} must be at least 1, got {np.min(getattr(settings, name))}"
                )
        check_folder(settings.out)
        held.enter_context(locked(settings.out))
        stages.set_up_jax(0)
        console = Console()
        device = jax.devices()[0]
        summary: Row = {
            "device": f"{device.platform} {device.device_kind}",
            "num_devices": jax.device_count(),
            "processor": platform.processor() or platform.machine(),
            "versions": report.versions(),
        }
        for name in settings.sections:
            with console.status(name):
                summary[name] = SECTIONS[name](settings)
            title = " ".join((SECTIONS[name].__doc__ or name).split())
            console.print(table(title, summary[name]))
        if "trainers" in settings.sections:
            draw(summary["trainers"], settings.out / "seconds_per_seed.png")
        summary["total_s"] = time.perf_counter() - START
        store.save_json(settings.out / "summary.json", summary)
        console.print(f"{summary['total_s']:.0f} s in all, written to {settings.out}", highlight=False)


if __name__ == "__main__":
    main()
