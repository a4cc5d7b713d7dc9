"""All four experiments of the study: `python -m experiments.study --help`.

The flags are those of one experiment and hold for all four. `--out DIR` is the folder above theirs.
"""

import dataclasses
import itertools
import sys
from typing import get_args

from experiments.harness.cli import given
from experiments.harness.errors import exit_codes
from experiments.pipeline.command import parse
from experiments.pipeline.settings import Method, Settings, StudyTask
from experiments.reporting.experiment import run_all

METHODS: tuple[Method, ...] = ("dpo", "rlhf")


def settings_of(argv: list[str]) -> list[Settings]:
    """Return the settings of all experiments, so that a mistake shows before the first one runs."""
    runs = [parse(argv, "study", task, method) for task, method in itertools.product(get_args(StudyTask), METHODS)]
    if given(argv, "out") is None:
        return runs
    return [dataclasses.replace(run, out=run.out / run.defaults.out.name) for run in runs]


if __name__ == "__main__":
    with exit_codes():
        run_all(settings_of(sys.argv[1:]))
