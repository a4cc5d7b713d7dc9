"""Whole experiments as programs of their own: seconds and peak memory. No program uses a result of an earlier one."""

import dataclasses
import os
import subprocess
import sys
import tempfile
from statistics import median
from typing import Any

from experiments import ROOT
from experiments.benchmarks.timing import Row, Settings, short_run
from experiments.harness import memo
from experiments.pipeline.settings import to_flags
from jaxpref.files import store


def run_program(module: str, *flags: str, programs: Any = memo.FOLDER) -> Row:
    """Run an experiment whose compiled programs are in the folder `programs`; return its summary."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", f"experiments.{module}", "--fresh", "--out", f"{folder}/results", *flags]
        variables = os.environ | {"JAXPREF_STAGES": str(programs)}
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL, cwd=ROOT, env=variables)
        return store.load_json(f"{folder}/results/summary.json")


def measure_experiments(settings: Settings) -> list[Row]:
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


def measure_memory(settings: Settings) -> list[Row]:
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
