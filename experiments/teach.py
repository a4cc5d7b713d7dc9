"""Teach a policy in a browser: `python -m experiments.teach --help`. It plays, you answer, and it learns."""

import sys

from rich.console import Console

from experiments.harness.cli import read
from experiments.harness.errors import exit_codes

if __name__ == "__main__":
    with exit_codes("interrupted: all answers are kept, and the same command goes on"):
        from experiments.asking import teaching

        teaching.run(read(teaching.Teach, sys.argv[1:], "teach", __doc__ or ""), Console())
