"""The tables and the figure of the benchmarks."""

from __future__ import annotations

from typing import Any

from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator
from rich import box
from rich.table import Table

from experiments.benchmarks.timing import Row
from experiments.reporting import figures
from jaxpref.analysis import plots


def table(title: str, rows: list[Row]) -> Table:
    """Return a table of the rows as they are, with a column for every key."""
    result = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False, collapse_padding=True)
    columns = list(dict.fromkeys(key for row in rows for key in row))
    for column in columns:
        words = column.replace("_", " ")  # a narrow terminal breaks the line between words
        if isinstance(rows[0].get(column), str):
            result.add_column(words, no_wrap=True)
        else:
            result.add_column(words, justify="right", overflow="fold")
    for row in rows:
        result.add_row(*(_cell(row.get(column, "")) for column in columns))
    return result


def _cell(value: Any) -> str:
    if not isinstance(value, float):
        return str(value)
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"


@figures.style()
def draw(rows: list[Row]) -> Figure:
    """Draw seconds per seed against seeds, a line for each trainer."""
    figure, ((axes,),) = figures.panels(1)
    names = list(dict.fromkeys(row["trainer"] for row in rows))
    for name, colour, marker in zip(names, plots.COLOURS, "osD^", strict=False):
        points = [(row["seeds"], 1000 * row["s_per_seed"]) for row in rows if row["trainer"] == name]
        axes.loglog(*zip(*points, strict=True), marker=marker, color=colour, label=name.replace("_", " "))
    axes.set(xlabel="seeds in one call", ylabel="milliseconds per seed")
    measured = sorted({row["seeds"] for row in rows})
    axes.set_xticks(measured, [str(number) for number in measured])
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.yaxis.set_major_formatter("{x:g}")
    axes.minorticks_off()
    return figures.finish(figure, "Shortened trainers, CartPole, compiled")
