"""What changed since an earlier result of the benchmark: a line for each row that both results have."""

from pathlib import Path
from typing import Any

from experiments.benchmarks.timing import Row
from experiments.harness.errors import UsageError
from jaxpref.files import store


def read(path: Path) -> dict[str, Any]:
    """Read summary.json of a benchmark. Raises UsageError for another file."""
    try:
        result = store.load_json(path)
    except ValueError:
        result = None
    if not isinstance(result, dict) or not {"device", "num_devices"} <= result.keys():
        raise UsageError(f"{path} is not a result of this benchmark")
    return result


def changes(rows: list[Row], before: list[Row]) -> list[str]:
    """Return a line for each row that is about the same as one of `before`: how much each measured number changed.

    What a row is about stands in its words and whole numbers. What was measured is a float.
    """
    known, lines = {_about(row): row for row in before}, []
    for row in rows:
        old = known.get(_about(row), {})
        measured = [name for name, value in row.items() if isinstance(value, float) and old.get(name)]
        if measured:
            numbers = ", ".join(f"{name} {row[name] / old[name]:.2f}x" for name in measured)
            lines.append(f"{_about(row)}: {numbers} of before")
    return lines


def _about(row: Row) -> str:
    return ", ".join(f"{name} {value}" for name, value in row.items() if not isinstance(value, float))
