"""PPO of this library against rejax's, at the same settings and in turns: `make bench-peer`."""

import dataclasses
import os
import sys
from pathlib import Path

import jax
from rich.console import Console

from experiments.benchmarks import peer
from experiments.benchmarks.timing import Row, check_numbers, table
from experiments.harness import cli, devices, folder
from experiments.harness.errors import NOTHING_KEPT, UsageError, exit_codes
from jaxpref.files import store

OUT = Path("results/bench-peer")


@dataclasses.dataclass(frozen=True)
class Settings:
    """How long it is measured."""

    num_updates: int = 200  # Updates of every training.
    repeats: int = 9  # Trainings of each side, in turns.


def run(settings: Settings, console: Console) -> None:
    """Measure, print, write."""
    results: Row = {"cores": len(os.sched_getaffinity(0)), "load_before": os.getloadavg()[0]}
    devices.set_up_jax(0)
    jax.config.update("jax_enable_compilation_cache", False)  # compile_s is that of a first run
    results |= {"platform": jax.default_backend()} | peer.measure(settings.num_updates, settings.repeats)
    store.save_json(OUT / "summary.json", results)
    title = f"CartPole, {len(peer.SEEDS)} seeds, {settings.num_updates} updates; train s: median of {settings.repeats}"
    console.print(table(title, [row(name, side) for name, side in results["sides"].items()]))
    console.print(f"{results['cores']} cores, load {results['load_before']:.2f}; the experiments use a device per core")
    console.print("jaxpref's time includes a learned reward, a reference policy and more that rejax's PPO does not do")
    console.print(f"written to {OUT / 'summary.json'}", highlight=False)


def row(name: str, side: Row) -> Row:
    """Return a side's row of the table."""
    spent, shown = side["seconds"], {"PPO": name.partition(",")[0], "devices": side["num_devices"]}
    shown |= {"compile_s": side["compile_s"], "train_s": side["train_s"], "least": min(spent), "most": max(spent)}
    shown |= {"steps_per_s": side["env_steps_per_s"], "ratio": side["ratio_to_rejax"], "return": side["mean_return"]}
    return shown


if __name__ == "__main__":
    with exit_codes(NOTHING_KEPT):
        chosen = cli.read(Settings, sys.argv[1:], "bench_peer", __doc__)
        check_numbers(chosen)
        if not peer.PYTHON.exists():
            raise UsageError(f"{peer.PYTHON} is missing, the Python of rejax's environment: make bench-peer makes it")
        with folder.locked(OUT):
            run(chosen, Console())
