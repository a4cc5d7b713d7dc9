"""Sweep the pull to the reference, pairs and the annotator's temperature: `python -m experiments.sweep --help`.

The pull is DPO's beta or PPO's kl_coef. Finished stages are kept: the same command continues an interrupted run.
"""

from __future__ import annotations

import itertools
import sys
import time

from experiments import START
from experiments.claims import heat_maps
from experiments.claims.grid import Grid, Sweep, findings, run, summarise
from experiments.claims.running import opened
from experiments.harness.cli import read
from experiments.harness.errors import DIVERGED, exit_codes
from jaxpref.files import store


def main() -> None:
    """Run every grid, and write its summary and its figures."""
    sweep, all_well, start = read(Sweep, sys.argv[1:], "sweep", __doc__ or "", Sweep()), True, START
    sweep.check()
    with opened(sweep.out, sweep.devices) as (stages, progress):
        for task, method in itertools.product(sweep.tasks, sweep.methods):
            grid, folder = Grid(sweep, task, method), sweep.out / f"{task}-{method}"
            runs = run(grid, stages, progress)
            folder.mkdir(exist_ok=True)
            heat_maps.draw_all(grid, runs, folder)
            best, warning = findings(grid, runs)
            took, start = time.perf_counter() - start, time.perf_counter()
            store.save_json(folder / "summary.json", summarise(grid, runs) | {"total_s": took})
            progress.console.print(f"{task} {method}: {best}; {took:.0f} s; written to {folder}", highlight=False)
            if warning is not None:
                progress.console.print(f"warning: {warning}", style="bold yellow", highlight=False, soft_wrap=True)
                all_well = False
    if not all_well:
        raise SystemExit(DIVERGED)


if __name__ == "__main__":
    with exit_codes():
        main()
