"""The study: settings, the shared pipeline, and one small script per experiment."""

import sys
import time
from pathlib import Path

START = time.perf_counter()
"""When the program began: what `total_s` is counted from."""

INTERRUPTED = "interrupted: every file is whole, and the same command again goes on from there"


ROOT = Path(__file__).parents[1]


def python() -> str:
    """What a shell in the checkout calls this Python: make's environment by its path, any other by its name."""
    return ".venv/bin/python" if Path(sys.prefix) == ROOT / ".venv" else "python"


def _hook(kind, error, traceback):
    # Importing takes seconds, and Ctrl-C in them comes before any program can catch it.
    if issubclass(kind, KeyboardInterrupt):
        print(INTERRUPTED, file=sys.stderr)
    else:
        sys.__excepthook__(kind, error, traceback)


sys.excepthook = _hook
