"""The study of jaxpref: experiments, evidence and benchmarks. Each is a small script that uses the folders here."""

import sys
import time
from pathlib import Path

START = time.perf_counter()
"""When the program began: `total_s` counts from here."""
ROOT = Path(__file__).parents[1]
"""The checkout."""


def python() -> str:
    """Return the name of this Python in a shell: its path for make's environment, `python` for any other."""
    return ".venv/bin/python" if Path(sys.prefix) == ROOT / ".venv" else "python"
