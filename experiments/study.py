"""All four experiments of the study, one after the other: `python -m experiments.study --help`.

The flags are those of one experiment and hold for all four. `--out DIR` is the folder above theirs.
"""

from __future__ import annotations

import dataclasses
import itertools
import sys
from pathlib import Path
from typing import get_args

from experiments.harness.cli import given
from experiments.harness.errors import exit_codes
from experiments.pipeline.command import parse
from experiments.pipeline.settings import Method, Settings, StudyTask
from experiments.reporting.experiment import run_all


def settings_of(argv: list[str]) -> list[Settings]:
    """Return the settings of all experiments, so that a mistake shows before the first one runs."""
    out = given(argv, "out")
    words = [word for word in argv if not word.startswith("--out=")]
    if "--out" in words:
        place = words.index("--out")
        del words[place : place + 2]
    runs = [parse(words, "study", task, method) for task, method in itertools.product(get_args(StudyTask), METHODS)]
    return [dataclasses.replace(run, out=Path(out) / run.out.name) if out else run for run in runs]


METHODS: tuple[Method, ...] = ("dpo", "rlhf")

if __name__ == "__main__":
    with exit_codes():
        run_all(settings_of(sys.argv[1:]))
