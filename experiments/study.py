"""All four experiments, one after the other: `python -m experiments.study --help`.

The flags are those of a single experiment and hold for all four; `--out DIR` is the folder above theirs.
"""

from __future__ import annotations

import dataclasses
import itertools
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import get_args

from experiments import START, command
from experiments.settings import Method, Settings, TaskName


def parse(argv: Sequence[str]) -> list[Settings]:
    """Settings of all experiments, so that a mistake in any of them shows before the first one runs."""
    chosen, rest = command.take_flags(argv, "out")
    studies = [
        command.parse(rest, task, method) for task, method in itertools.product(get_args(TaskName), get_args(Method))
    ]
    if chosen.out is None:
        return studies
    return [dataclasses.replace(settings, out=Path(chosen.out) / settings.out.name) for settings in studies]


def main() -> None:
    """Run the study."""
    with command.exit_codes():
        studies = parse(sys.argv[1:])
        with command.set_up(studies) as console:
            start, all_well = START, True
            for settings in studies:
                all_well &= command.run(settings, console, start)
                console.print()
                start = time.perf_counter()
            console.print(f"study: {time.perf_counter() - START:.1f} s in all", highlight=False)
        if not all_well:
            raise SystemExit(command.DIVERGED)


if __name__ == "__main__":
    main()
