"""The figures of a sweep: heat maps of the return, and learned and true return against the distance."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from experiments.claims.grid import Grid, Runs, iqm_of_known
from experiments.reporting.figures import finish, panels, save, style
from jaxpref.analysis import plots


def draw_all(grid: Grid, runs: Runs, folder: Path) -> None:
    """Draw both figures."""
    with style():
        save(draw_heat_maps(grid, runs), folder / "heat_map.png")
        save(draw_over_optimisation(grid, runs), folder / "over_optimisation.png")


def draw_heat_maps(grid: Grid, runs: Runs) -> Figure:
    """Draw the IQM of the true return over seeds: a panel for each temperature."""
    values = iqm_of_known(runs.true_return)
    known = values[np.isfinite(values)]
    scale = (float(known.min()), float(known.max())) if known.size else (0.0, 1.0)
    figure, axes_of = panels(len(grid.temperatures), sharey=True)
    for axes, temperature, value in zip(axes_of[0], grid.shares, values, strict=True):
        rows, columns = [f"{strength:g}" for strength in grid.strengths], [f"{size:,}" for size in grid.num_pairs]
        image = plots.heat_map(axes, value.T, rows, columns, "{:.0f}", *scale)
        axes.set(title=f"temperature {100 * temperature:g} % of the range", xlabel="pairs")
    axes_of[0, 0].set_ylabel(grid.strength)
    figure.colorbar(image, ax=axes_of, label="true return, IQM over seeds")
    return finish(figure, grid.title)


def draw_over_optimisation(grid: Grid, runs: Runs) -> Figure:
    """Draw learned and true return against KL: a line through the strengths for each size, at the first temperature."""
    figure, axes_of = panels(2)
    returns = {"learned return": runs.learned_return, "true return": runs.true_return}
    for axes, (label, values) in zip(axes_of[0], returns.items(), strict=True):
        for place, size in enumerate(grid.num_pairs):
            # From the strongest pull to the weakest: the marker is where the least holds the policy back.
            kl, ends = runs.kl[:, 0, place, ::-1], values[:, 0, place, ::-1]
            plots.path(axes, kl, ends, f"{size:,} pairs", plots.COLOURS[place % len(plots.COLOURS)])
        axes.set(xlabel="KL(policy || reference), nats per episode", ylabel=label)
    return finish(figure, f"{grid.title}: from strong to weak {grid.strength}, mean over seeds")
