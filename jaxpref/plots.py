"""Arrays in, matplotlib Axes out: figures fit for a paper.

Colours are Okabe and Ito's, which stay apart for colour-blind readers; markers and order tell the same.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Float
from matplotlib.axes import Axes

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
"""For `matplotlib.rc_context`."""


def curve(
    axes: Axes, x: Float[np.ndarray, " U"], y: Float[np.ndarray, "S U"], label: str, colour: str, smooth: int = 1
) -> None:
    """Mean over seeds against x, and a band from the 10th to the 90th percentile of the seeds.

    smooth: width of a running mean along x, for curves measured on minibatches; at most the whole curve.
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
    """A horizontal line: what a policy that does not learn any more scores."""
    axes.axhline(value, color=GREY, linestyle=linestyle, linewidth=1.1, label=label)


def policies(
    axes: Axes,
    names: Sequence[str],
    per_seed: Float[np.ndarray, "P S"],
    intervals: Sequence[tuple[float, float]],
    centres: Sequence[float],
    colours: Sequence[str],
) -> None:
    """Policies side by side: a point for every seed, the centre and its interval beside them."""
    for place, (points, interval, centre, colour) in enumerate(zip(per_seed, intervals, centres, colours, strict=True)):
        # A fixed fan of the seeds, not random jitter: the same data always draw the same figure.
        spread = np.linspace(-0.17, 0.17, len(points)) if len(points) > 1 else np.zeros(1)
        axes.scatter(place - 0.16 + spread, points, s=16, color=colour, alpha=0.55, linewidths=0, zorder=2)
        error = np.abs(np.array(interval) - centre)[:, None]
        if np.isfinite(error).all():
            axes.errorbar(place + 0.2, centre, yerr=error, color=colour, capsize=3, linewidth=1.6, zorder=3)
        axes.plot(place + 0.2, centre, "D", color=colour, markersize=6, zorder=4)
    axes.set_xticks(range(len(names)), names)
    axes.grid(axis="x", visible=False)
    axes.margins(x=0.03)
