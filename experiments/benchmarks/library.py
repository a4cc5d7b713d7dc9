"""Rollouts against gymnax's own loop, the study's trainers on more seeds and devices, and whole experiments."""

import contextlib
import dataclasses
import functools
import itertools
import math
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from statistics import median
from typing import Any

import jax

import jaxpref
from experiments import ROOT
from experiments.benchmarks.timing import Bench, Row, in_turns, short_run, timed
from experiments.harness.devices import over_runs
from experiments.harness.memo import FOLDER, Memo
from experiments.harness.stages import Stages
from experiments.pipeline import pipeline
from experiments.pipeline.settings import to_flags
from jaxpref import reinforce
from jaxpref.files import store
from jaxpref.networks import Network
from jaxpref.tasks import Task

TRAINERS = ("reinforce", "dpo", "reward model", "ppo")
WHOLE = "whole CartPole-DPO"


def device_counts() -> list[int]:
    """Return 1 and the number of devices, once if there is only one."""
    return sorted({1, jax.local_device_count()})


def measure_rollouts(settings: Bench) -> list[Row]:
    """Whole episodes of an expert: `jaxpref.evaluate`, on one device and on all, against gymnax's `RolloutWrapper`."""
    rows = []
    for name in jaxpref.TASKS:
        task, key = jaxpref.task(name), jax.random.key(0)
        expert = jax.jit(functools.partial(reinforce.train, task, reinforce.Config()))(key).pi1
        for num_envs in settings.num_envs:
            theirs = timed(jax.jit(functools.partial(gymnax_returns, task)), expert, jax.random.split(key, num_envs))
            ours = [own_rollout(task, expert, num_envs, num_devices) for num_devices in device_counts()]
            gymnax_s, *own_s = map(median, in_turns(2 * settings.repeats, theirs, *ours))
            for num_devices, seconds in zip(device_counts(), own_s, strict=True):
                row: Row = {"task": name, "num_envs": num_envs, "devices": num_devices, "jaxpref_s": seconds}
                rows.append(row | {"gymnax_s": gymnax_s, "ratio": gymnax_s / seconds})
    return rows


def own_rollout(task: Task, expert: Network, num_envs: int, num_devices: int) -> Callable[[], float]:
    """Return a function that plays an episode in each environment, shared by devices, and returns its seconds."""
    play = functools.partial(jaxpref.evaluate, task, num_episodes=math.ceil(num_envs / num_devices))
    keys = jax.random.split(jax.random.key(0), num_devices)
    return timed(jax.jit(over_runs(play, num_devices, lanes=1)), expert, (keys,))


def gymnax_returns(task: Task, policy: Network, keys: jax.Array) -> jax.Array:
    """Play an episode for each key with gymnax's own loop: a new key and a sample at each step."""
    from gymnax.experimental.rollout import RolloutWrapper  # gymnax uses JAX when it is imported

    def act(policy: Network, obs: jax.Array, key: jax.Array) -> jax.Array:
        return jaxpref.apply_policy(policy, obs)[0].sample(key)

    rollout = RolloutWrapper(act, num_env_steps=task.horizon, env=task.env, env_params=task.env_params)
    return rollout.batch_rollout(keys, policy)[-1]


def measure_trainers(settings: Bench) -> list[Row]:
    """Each trainer, cut short, on more and more seeds: CartPole, 200 pairs. Ratios are of seeds per second."""
    num_devices = jax.local_device_count()
    return compare_trainers([(number, min(number, num_devices)) for number in settings.num_seeds], settings.repeats)


def measure_devices(settings: Bench) -> list[Row]:
    """The same trainers, and all stages of CartPole-DPO, on one device and on all. Ratios are of seeds per second."""
    return compare_trainers([(max(settings.num_seeds), number) for number in device_counts()], settings.repeats)


def compare_trainers(cases: list[tuple[int, int]], repeats: int) -> list[Row]:
    """Train in turns with each (number of seeds, number of devices). Ratios compare with the first of them."""
    with contextlib.ExitStack() as stack:
        runs = []
        for num_seeds, num_devices in cases:
            stages = stack.enter_context(Stages(Memo(fresh=True), num_devices))
            runs.append(functools.partial(train_all, stages, itertools.count(0, num_seeds), num_seeds))
        turns = in_turns(repeats, *runs)
    rows = []
    for (num_seeds, num_devices), runs_of_case in zip(cases, turns, strict=True):
        for name in (*TRAINERS, WHOLE):
            first_s, run_s = (median(run[name] for run in each) for each in (turns[0], runs_of_case))
            row: Row = {"trainer": name, "seeds": num_seeds, "devices": num_devices, "run_s": run_s}
            ratio = first_s / cases[0][0] / (run_s / num_seeds)
            rows.append(row | {"seeds_per_s": num_seeds / run_s, "ratio": ratio})
    return rows


def train_all(stages: Stages, first_seed: Iterator[int], num_seeds: int) -> dict[str, float]:
    """Run both methods on new seeds. Returns the seconds of each stage, and of all stages of DPO."""
    times, seeds = [], tuple(itertools.islice(itertools.count(next(first_seed)), num_seeds))
    for method in ("dpo", "rlhf"):
        run, own = dataclasses.replace(short_run(method, num_seeds), seeds=seeds), stages.of_run(stages.progress)
        pipeline.run(run, pipeline.task_of(run), own)
        times.append({name: each.run_s for name, each in own.times.items()})
    dpo_s, rlhf_s = times  # RLHF's run has the experts and the pairs of DPO's
    return rlhf_s | dpo_s | {WHOLE: sum(dpo_s.values())}


def run_program(module: str, *flags: str, programs: Any = FOLDER) -> Row:
    """Run an experiment whose compiled programs are in the folder `programs`; return its summary."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", f"experiments.{module}", "--fresh", "--out", f"{folder}/results", *flags]
        variables = os.environ | {"JAXPREF_STAGES": str(programs)}
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL, cwd=ROOT, env=variables)
        return store.load_json(f"{folder}/results/summary.json")


def measure_experiments(settings: Bench) -> list[Row]:
    """Experiments from the command line: without compiled programs, and once more with them, in turns."""
    rows = []
    for module in settings.experiments:
        turns = []
        for _ in range(settings.repeats):
            with tempfile.TemporaryDirectory() as empty:
                turns.append([run_program(module, programs=empty)["timing"]["total_s"] for _ in range(2)])
        cold, warm = map(median, zip(*turns, strict=True))
        rows.append({"experiment": module, "cold_s": cold, "warm_s": warm, "ratio": cold / warm})
    return rows


def measure_memory(settings: Bench) -> list[Row]:
    """Peak memory of a process that runs its seeds in batches of 16: CartPole, DPO, 200 pairs, cut short.

    The ratio compares with the first number of seeds.
    """

    def peak(num_seeds: int) -> float:
        run = dataclasses.replace(short_run("dpo", num_seeds), batch_seeds=16)
        return run_program("run", *to_flags(run))["peak_memory_gib"]

    turns = [[peak(number) for number in settings.memory_seeds] for _ in range(settings.repeats)]
    peaks = dict(zip(settings.memory_seeds, map(median, zip(*turns, strict=True)), strict=True))
    first = peaks[settings.memory_seeds[0]]
    return [{"seeds": number, "peak_memory_gib": gib, "ratio": gib / first} for number, gib in peaks.items()]
