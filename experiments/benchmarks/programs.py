"""Whole experiments as programs of their own: seconds, peak memory, and one device against several.

No program uses a stage that an earlier one has finished. Compiled programs are in a folder of the measurement's own.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path

import jax
import numpy as np

from experiments import ROOT
from experiments.benchmarks.timing import Row, Settings
from jaxpref.files import store

NUM_SEEDS = 16
"""Seeds of the runs on one device and on several."""
SAME_DATA = "--num-pairs", "200", "--reference", "pi2"
SHORT = "--reinforce.num-updates", "20", "--dpo.num-updates", "2", "--dpo.eval-every", "2"


def run_program(cache: str, module: str, *flags: str) -> Row:
    """Run an experiment whose compiled programs are in `cache`; return its summary."""
    with tempfile.TemporaryDirectory() as folder:
        own = {"JAX_COMPILATION_CACHE_DIR": cache, "JAXPREF_STAGES": str(Path(folder) / "stages")}
        out = Path(folder) / "results"
        command = [sys.executable, "-m", f"experiments.{module}", "--fresh", "--out", str(out), *flags]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL, cwd=ROOT, env=os.environ | own)
        return store.load_json(out / "summary.json")


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
    rows = []
    with tempfile.TemporaryDirectory() as cache:
        for num_seeds in settings.memory_seeds:
            summary = run_program(cache, "cartpole_dpo", "--seeds", *map(str, range(num_seeds)), *SAME_DATA, *SHORT)
            rows.append({"num_seeds": num_seeds, "peak_memory_gib": summary["peak_memory_gib"]})
    return rows


def measure_devices(settings: Settings) -> list[Row]:
    """The same seeds on one CPU device and on one for each core: CartPole, DPO, 200 pairs, reference pi2.

    Seconds are medians of runs in turns, after one run of each that compiles.
    """
    counts = list(dict.fromkeys((1, jax.local_device_count())))
    flags = ["--seeds", *map(str, range(NUM_SEEDS)), *SAME_DATA]
    with tempfile.TemporaryDirectory() as cache:

        def run_s(num_devices: int) -> float:
            return run_program(cache, "cartpole_dpo", *flags, "--devices", str(num_devices))["timing"]["run_s"]

        turns = [[run_s(num_devices) for num_devices in counts] for _ in range(1 + settings.repeats)]
    medians = np.median(turns[1:], axis=0).tolist()
    return [
        {"devices": num_devices, "num_seeds": NUM_SEEDS, "run_s": seconds, "speedup": medians[0] / seconds}
        for num_devices, seconds in zip(counts, medians, strict=True)
    ]
