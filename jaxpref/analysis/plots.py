"""Draw arrays on matplotlib Axes, for figures in papers.

The colours are Okabe and Ito's: colour-blind readers can tell them apart.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Float
from matplotlib.axes import Axes
from matplotlib.image import AxesImage

Words = Sequence[str]
Numbers = Sequence[float]
Intervals = Sequence[tuple[float, float]]
PerLevel = Float[np.ndarray, " K"]

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
GREY = "#5B6770"
STYLE: dict[Any, Any] = {
    "font.size": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#E5E8EB",
    "grid.linewidth": 0.8,
    "legend.frameon": False,
    "savefig.dpi": 160,
    "figure.constrained_layout.use": True,
}
"""Settings for `matplotlib.rc_context`."""
BRIGHT = 111 / 256
"""From this level of viridis on, black text has more contrast than white text: https://www.w3.org/TR/WCAG22."""


def curve(
    axes: Axes, x: Float[np.ndarray, " U"], y: Float[np.ndarray, "S U"], label: str, colour: str, smooth: int = 1
) -> None:
    """Draw the mean over seeds against x, in a band from the 10th to the 90th percentile of the seeds.

    smooth: width of a running mean along x, for noisy curves.
    """
    y = np.asarray(y, dtype=np.float64)
    smooth = min(smooth, len(x))
    if smooth > 1:
        kernel = np.ones(smooth) / smooth
        y = np.stack([np.convolve(row, kernel, mode="valid") for row in y])
        x = np.convolve(x, kernel, mode="valid")
    low, high = np.percentile(y, [10, 90], axis=0)
    axes.fill_between(x, low, high, color=colour, alpha=0.18, linewidth=0)
    axes.plot(x, y.mean(axis=0), color=colour, label=label, linewidth=1.6)


def level(axes: Axes, value: float, label: str, linestyle: str = "--") -> None:
    """Draw a horizontal line: the score of a fixed policy."""
    axes.axhline(value, color=GREY, linestyle=linestyle, linewidth=1.1, label=label)


def policies(
    axes: Axes, names: Words, per_seed: Float[np.ndarray, "P S"], intervals: Intervals, centres: Numbers, colours: Words
) -> None:
    """Draw policies side by side: a point for every seed, and beside the points the centre with its interval."""
    rows = zip(per_seed, intervals, centres, colours, strict=True)
    for position, (points, interval, centre, colour) in enumerate(rows):
        # The seeds are spread evenly, without random jitter: the same data give the same figure.
        spread = np.linspace(-0.17, 0.17, len(points)) if len(points) > 1 else np.zeros(1)
        axes.scatter(position - 0.16 + spread, points, s=16, color=colour, alpha=0.55, linewidths=0, zorder=2)
        error = np.abs(np.array(interval) - centre)[:, None]
        if np.isfinite(error).all():
            axes.errorbar(position + 0.2, centre, yerr=error, color=colour, capsize=3, linewidth=1.6, zorder=3)
        axes.plot(position + 0.2, centre, "D", color=colour, markersize=6, zorder=4)
    axes.set_xticks(range(len(names)), names)
    axes.grid(axis="x", visible=False)
    axes.margins(x=0.03)


def intervals(axes: Axes, names: Words, centres: Numbers, intervals: Intervals, colours: Words) -> None:
    """Draw a forest plot: a row for each name, from the top, with its centre and interval; empty where that is NaN."""
    for row, (_, centre, interval, colour) in enumerate(zip(names, centres, intervals, colours, strict=True)):
        if np.isfinite(centre):
            # Not error bars: they start at the centre, and an interval need not hold its centre.
            axes.plot(interval, [row, row], color=colour, marker="|", markersize=7, linewidth=1.6, zorder=3)
            axes.plot(centre, row, "D", color=colour, markersize=6, zorder=4)
    axes.set_yticks(range(len(names)), names)
    axes.set_ylim(len(names) - 0.5, -0.5)
    axes.grid(axis="y", visible=False)


def heat_map(
    axes: Axes,
    values: Float[np.ndarray, "R C"],
    row_names: Words,
    column_names: Words,
    label: str = "{:.2f}",
    vmin: float | None = None,
    vmax: float | None = None,
) -> AxesImage:
    """Draw a table of numbers, the first row at the top. Return the image, for a colour bar.

    label: format of the number in each cell. The cell of a NaN stays empty.
    vmin, vmax: ends of the colour scale, for panels that share one. None: the smallest and the largest value.
    """
    image = axes.imshow(values, cmap="viridis", vmin=vmin, vmax=vmax, aspect="auto", origin="upper")
    for (row, column), value in np.ndenumerate(values):
        if np.isfinite(value):
            ink = "black" if np.asarray(image.norm(value)) >= BRIGHT else "white"
            axes.text(column, row, label.format(value), color=ink, ha="center", va="center")
    axes.set_xticks(range(values.shape[1]), column_names)
    axes.set_yticks(range(values.shape[0]), row_names)
    axes.grid(visible=False)
    axes.spines[:].set_visible(False)
    axes.tick_params(length=0)
    return image


def profiles(
    axes: Axes, thresholds: PerLevel, shares: PerLevel, low: PerLevel, high: PerLevel, label: str, colour: str
) -> None:
    """Draw a performance profile in its band, as steps: `statistics.performance_profile` and `profile_band`."""
    axes.fill_between(thresholds, low, high, step="post", color=colour, alpha=0.18, linewidth=0)
    axes.step(thresholds, shares, where="post", color=colour, label=label, linewidth=1.6)
    axes.set_ylim(-0.02, 1.02)


def path(axes: Axes, x: Float[np.ndarray, "S E"], y: Float[np.ndarray, "S E"], label: str, colour: str) -> None:
    """Draw the mean over seeds of y against that of x, for each evaluation, with a marker at the last one."""
    axes.plot(x.mean(axis=0), y.mean(axis=0), "o-", markevery=[-1], color=colour, label=label, linewidth=1.1)
