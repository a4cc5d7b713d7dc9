"""Label pairs in a browser: `python -m experiments.label --help`. Answers are kept one by one, as JSON lines."""

import sys

from rich.console import Console

from experiments.harness.cli import read
from experiments.harness.errors import exit_codes

if __name__ == "__main__":
    with exit_codes():
        from experiments.asking import labelling

        labelling.run(read(labelling.Label, sys.argv[1:], "label", __doc__ or ""), Console())
