"""How fast it is, as ratios measured in one run: `python -m experiments.bench --help`.

Every figure is the median of several repeats, without compilation except in cold runs. What is compared runs in turns,
so that a busy machine slows both.
"""

import os
import platform
import sys
import time

import jax
from rich.console import Console

from experiments import START
from experiments.benchmarks import against_imitation, library, peer, timing
from experiments.benchmarks.timing import Bench, Row
from experiments.harness import cli, devices, folder
from experiments.harness.errors import exit_codes
from experiments.reporting import summary
from jaxpref.files import store

SECTIONS = {
    "rollouts": library.measure_rollouts,
    "trainers": library.measure_trainers,
    "experiments": library.measure_experiments,
    "memory": library.measure_memory,
    "devices": library.measure_devices,
    "peer": peer.measure,
    "imitation": against_imitation.measure,
}


def run(settings: Bench, console: Console) -> None:
    """Measure, print, compare with an earlier result, write."""
    last = settings.out / "summary.json"
    before = timing.earlier(settings.against or last) if settings.against or last.exists() else {}
    devices.set_up_jax(0)
    device = jax.devices()[0]
    results: Row = {"device": f"{device.platform} {device.device_kind}", "num_devices": jax.device_count()}
    results |= {"processor": platform.machine(), "load_before": os.getloadavg()[0], "versions": summary.versions()}
    for name in settings.sections:
        with console.status(name):
            results[name] = SECTIONS[name](settings)
        title = " ".join((SECTIONS[name].__doc__ or name).split())
        changes = timing.changes(results[name], before.get(name, []))
        console.print(title, timing.table(results[name]), *changes, sep="\n", highlight=False)
    if last.exists():
        last.replace(settings.out / "previous.json")
    results["total_s"] = time.perf_counter() - START
    store.save_json(last, results)
    console.print(f"{results['total_s']:.0f} s in all, written to {settings.out}", highlight=False)


if __name__ == "__main__":
    with exit_codes("interrupted: the same command starts from the beginning"):
        chosen = cli.read(Bench, sys.argv[1:], "bench", __doc__ or "")
        with folder.locked(chosen.out):
            run(chosen, Console())
