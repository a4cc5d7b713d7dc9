"""Sweep the pull to the reference, pairs and the annotator's temperature: `python -m experiments.sweep --help`.

The pull is DPO's beta or PPO's kl_coef. Finished stages are kept: the same command continues an interrupted run.
"""

import itertools
import sys
import time

from experiments import START
from experiments.claims import grid
from experiments.claims.arms import opened
from experiments.harness.cli import read
from experiments.harness.errors import DIVERGED, exit_codes
from experiments.reporting.summary import null_for_nan
from jaxpref.files import store


def main() -> None:
    """Run every grid, and write its summary and its figures."""
    sweep, all_well, start = read(grid.Sweep, sys.argv[1:], "sweep", __doc__ or ""), True, START
    with opened(sweep.out, sweep.devices) as (run, console):
        for task, method in itertools.product(sweep.tasks, sweep.methods):
            folder, summary = sweep.out / f"{task}-{method}", grid.run_grid(sweep, task, method, run)
            folder.mkdir(exist_ok=True)
            grid.draw(summary, sweep.temperatures, folder)
            best, warning = grid.findings(summary)
            took, start = time.perf_counter() - start, time.perf_counter()
            runs = {name: null_for_nan(values) for name, values in summary["runs"].items()}
            store.save_json(folder / "summary.json", summary | {"runs": runs, "total_s": took})
            console.print(f"{task} {method}: {best}; {took:.0f} s; written to {folder}", highlight=False)
            if warning is not None:
                console.print(f"warning: {warning}", style="bold yellow", highlight=False, soft_wrap=True)
                all_well = False
    if not all_well:
        raise SystemExit(DIVERGED)


if __name__ == "__main__":
    with exit_codes():
        main()
