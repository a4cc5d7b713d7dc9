"""The study: settings, the shared pipeline, and one small script per experiment."""

import time

START = time.perf_counter()
"""When the program began: what `total_s` is counted from."""
