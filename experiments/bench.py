"""How fast it is, as ratios measured in one run: `python -m experiments.bench --help`.

Every figure is the median of several repeats, without compilation. What is compared runs in turns, so that a busy
machine slows both.
"""

import os
import platform
import sys
import time

import jax
from rich.console import Console

from experiments import START
from experiments.benchmarks import library, peer, programs
from experiments.benchmarks.timing import Row, Settings, check_numbers, table
from experiments.harness import cli, devices, folder
from experiments.harness.errors import NOTHING_KEPT, exit_codes
from experiments.reporting import figures, summary
from jaxpref.files import store

SECTIONS = {
    "rollouts": library.measure_rollouts,
    "trainers": library.measure_trainers,
    "experiments": programs.measure_experiments,
    "memory": programs.measure_memory,
    "devices": programs.measure_devices,
    "peer": peer.measure,
}


def run(settings: Settings, console: Console) -> None:
    """Measure, print, write."""
    devices.set_up_jax(0)
    device = jax.devices()[0]
    results: Row = {"device": f"{device.platform} {device.device_kind}", "num_devices": jax.device_count()}
    results |= {"processor": platform.processor() or platform.machine(), "load_before": os.getloadavg()[0]}
    results["versions"] = summary.versions()
    for name in settings.sections:
        with console.status(name):
            results[name] = SECTIONS[name](settings)
        title = " ".join((SECTIONS[name].__doc__ or name).partition("\n\n")[0].split())
        console.print(table(title, results[name]))
    if "trainers" in results:
        figures.save(library.draw(results["trainers"]), settings.out / "seconds_per_seed.png")
    results["total_s"] = time.perf_counter() - START
    store.save_json(settings.out / "summary.json", results)
    console.print(f"{results['total_s']:.0f} s in all, written to {settings.out}", highlight=False)


if __name__ == "__main__":
    with exit_codes(NOTHING_KEPT):
        chosen = cli.read(Settings, sys.argv[1:], "bench", __doc__ or "")
        check_numbers(chosen)
        with folder.locked(chosen.out):
            run(chosen, Console())
