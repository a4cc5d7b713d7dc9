"""Test a list of claims on many seeds, and write a page with the results: `python -m experiments.evidence --help`.

Every arm of every claim runs on every seed. Finished stages are kept: the same command continues an interrupted run.
"""

import dataclasses
import sys
import time
from pathlib import Path
from typing import get_args

from rich.markdown import Markdown

from experiments import START
from experiments.claims import arms, page
from experiments.claims.claims import CLAIMS, ClaimName
from experiments.harness.cli import read
from experiments.harness.errors import DIVERGED, exit_codes
from jaxpref.checks import setting
from jaxpref.files import store


@dataclasses.dataclass(frozen=True)
class Evidence:
    """The claims, and the seeds that they are tested on."""

    num_seeds: int = setting(100, low=1)  # Seeds 0 to num_seeds - 1.
    claims: tuple[ClaimName, ...] = get_args(ClaimName)  # Names of claims.
    tasks: tuple[arms.TaskName, ...] = get_args(arms.TaskName)  # Tasks. Each claim is tested on those that it is about.
    out: Path = Path("results/evidence")  # Folder for the page, its figures and summary.json.
    devices: int = setting(0, low=0)  # CPU devices that seeds are spread over; 0: one for each core.


def main() -> None:
    """Run the arms, test the claims, write the page."""
    settings = read(Evidence, sys.argv[1:], "evidence", __doc__ or "")
    out, seeds = settings.out, range(settings.num_seeds)
    chosen = {
        name: claim for name, claim in CLAIMS.items() if name in settings.claims and {*claim.tasks} & {*settings.tasks}
    }
    with arms.opened(out, settings.devices) as (run, console):
        tables = {}
        for task in settings.tasks:
            if of_task := [name for claim in chosen.values() if task in claim.tasks for name in claim.arms]:
                tables[task] = arms.run_arms(task, ["pi1", "pi2", *of_task], seeds, run)
    summary = page.summarise(tables, seeds, chosen) | {"total_s": time.perf_counter() - START}
    page.draw(chosen, summary["arms"], out)
    text = page.page(chosen, summary)
    with store.atomic_write(out / "evidence.md") as file:
        file.write(text.encode())
    store.save_json(out / "summary.json", summary)
    console.print(Markdown("\n".join(line for line in text.splitlines() if not line.startswith("!["))))
    console.print(f"{summary['total_s']:.0f} s; written to {out}: evidence.md, summary.json, figures", highlight=False)
    if any(summary["diverged"].values()):
        raise SystemExit(DIVERGED)


if __name__ == "__main__":
    with exit_codes():
        main()
