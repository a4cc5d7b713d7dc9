"""Whole experiments as programs of their own: seconds, peak memory, and one device against several.

No program uses a result of an earlier one. Compiled programs are in a folder of the measurement's own.
"""

import functools
import os
import subprocess
import sys
import tempfile
from statistics import median

import jax

from experiments import ROOT
from experiments.benchmarks.timing import Row, Settings, in_turns
from jaxpref.files import store

NUM_SEEDS = 16  # on one device and on several


def run_program(cache: str, module: str, *flags: str) -> Row:
    """Run an experiment whose compiled programs are in `cache`; return its summary."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", f"experiments.{module}", "--fresh", "--out", f"{folder}/results", *flags]
        own = os.environ | {"JAXPREF_STAGES": cache}
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL, cwd=ROOT, env=own)
        return store.load_json(f"{folder}/results/summary.json")


def run_seeds(cache: str, num_seeds: int, *flags: str) -> Row:
    """Run CartPole, DPO, 200 pairs, reference pi2."""
    seeds = map(str, range(num_seeds))
    return run_program(cache, "cartpole_dpo", "--num-pairs", "200", "--reference", "pi2", "--seeds", *seeds, *flags)


def measure_experiments(settings: Settings) -> list[Row]:
    """Every experiment from the command line: without compiled programs, and once more with them."""
    rows = []
    for module in ("cartpole_dpo", "cartpole_rlhf", "acrobot_dpo", "acrobot_rlhf"):
        with tempfile.TemporaryDirectory() as cache:
            cold, warm = (run_program(cache, module)["timing"] for _ in range(2))
        row = {"experiment": module, "cold_total_s": cold["total_s"], "cold_compile_s": cold["compile_s"]}
        rows.append(row | {"warm_total_s": warm["total_s"], "warm_run_s": warm["run_s"]})
    return rows


def measure_memory(settings: Settings) -> list[Row]:
    """Peak memory of one process against its number of seeds: CartPole, DPO, 200 pairs, cut short."""
    short = "--reinforce.num-updates", "20", "--dpo.num-updates", "2", "--dpo.eval-every", "2"
    with tempfile.TemporaryDirectory() as cache:
        peaks = [run_seeds(cache, num_seeds, *short)["peak_memory_gib"] for num_seeds in settings.memory_seeds]
    pairs = zip(settings.memory_seeds, peaks, strict=True)
    return [{"num_seeds": num_seeds, "peak_memory_gib": peak} for num_seeds, peak in pairs]


def measure_devices(settings: Settings) -> list[Row]:
    """The same seeds on one CPU device and on one for each core: CartPole, DPO, 200 pairs, reference pi2.

    Seconds are medians of runs in turns, after one run of each that compiles.
    """
    counts = list(dict.fromkeys((1, jax.local_device_count())))
    with tempfile.TemporaryDirectory() as cache:

        def run_s(num_devices: int) -> float:
            return run_seeds(cache, NUM_SEEDS, "--devices", str(num_devices))["timing"]["run_s"]

        turns = in_turns(settings.repeats, *(functools.partial(run_s, number) for number in counts))
    rows = []
    for num_devices, seconds in zip(counts, map(median, turns), strict=True):
        row = {"devices": num_devices, "num_seeds": NUM_SEEDS, "run_s": seconds}
        rows.append(row | {"speedup": median(turns[0]) / seconds})
    return rows
