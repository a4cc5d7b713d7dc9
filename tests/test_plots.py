"""Figures: what stands in the axes is what was handed over, read back from matplotlib's own objects."""

import matplotlib as mpl
import numpy as np
import pytest

mpl.use("Agg")  # before pyplot: no window

import matplotlib.pyplot as plt
from matplotlib.colors import to_rgba

from jaxpref import plots


@pytest.fixture
def axes():
    """Empty axes, gone after the test."""
    figure, result = plt.subplots()
    yield result
    plt.close(figure)


def band(axes):
    """Of `curve`: [x, low, high], from the polygon that goes forth along one edge and back along the other."""
    (polygon,) = axes.collections
    vertices = polygon.get_paths()[0].vertices
    ends = {x: vertices[vertices[:, 0] == x, 1] for x in np.unique(vertices[:, 0])}
    return np.transpose([(x, y.min(), y.max()) for x, y in ends.items()])


def test_a_curve_is_the_mean_over_seeds_in_a_band_of_their_percentiles(axes):
    """Of 11 seeds the 10th and 90th percentiles are the second and the tenth in order."""
    x, y = np.array([0.0, 5.0, 20.0]), np.random.default_rng(1).normal(size=(11, 3))
    plots.curve(axes, x, y, "50 pairs", "#D55E00")
    (line,) = axes.get_lines()
    np.testing.assert_allclose(line.get_xydata(), np.column_stack([x, y.mean(axis=0)]), rtol=1e-12)
    np.testing.assert_allclose(band(axes), [x, np.sort(y, axis=0)[1], np.sort(y, axis=0)[9]], rtol=1e-12)
    assert axes.get_legend_handles_labels()[1] == ["50 pairs"]
    assert to_rgba(line.get_color()) == to_rgba("#D55E00")


@pytest.mark.parametrize("smooth", [2, 5, 12, 20])
def test_smoothing_is_a_running_mean_of_each_seed(axes, smooth):
    """Of each seed first, and percentiles of the smoothed seeds; x is the middle of each window. A window longer than
    the curve, of 12 places, is the whole curve."""
    x, y = np.arange(1.0, 13.0), np.random.default_rng(2).normal(size=(4, 12))
    plots.curve(axes, x, y, "50 pairs", "#D55E00", smooth)
    width = min(smooth, 12)
    windows = [slice(first, first + width) for first in range(13 - width)]
    middle, smoothed = (np.stack([array[..., each].mean(-1) for each in windows], axis=-1) for array in (x, y))
    (line,) = axes.get_lines()
    expected = np.column_stack([middle, smoothed.mean(axis=0)])
    np.testing.assert_allclose(line.get_xydata(), expected, rtol=1e-9, atol=1e-12)
    expected = [middle, *np.percentile(smoothed, [10, 90], axis=0)]
    np.testing.assert_allclose(band(axes), expected, rtol=1e-9, atol=1e-12)


def test_a_level_runs_across_the_whole_width_at_its_value(axes):
    plots.level(axes, -145.5, "pi1", ":")
    (line,) = axes.get_lines()
    np.testing.assert_array_equal(line.get_xydata(), [(0, -145.5), (1, -145.5)])  # x in parts of the axes
    assert (line.get_label(), line.get_linestyle()) == ("pi1", ":")


COLOURS = ["#5B6770", "black", "#0072B2"]


def test_policies_have_a_point_for_every_seed_and_beside_them_the_centre_with_its_interval(axes):
    """Points lie apart from each other, also where returns are equal. The centre is a diamond, and the interval is a
    bar with its ends, also where it is lopsided."""
    per_seed = np.array([[1.0, 2.0, 6.0, 3.5], [10.0, 12.0, 11.0, 9.0], [4.0, 4.0, 4.0, 8.0]])
    ends, centres = [(1.5, 5.0), (9.0, 12.0), (4.0, 7.0)], [2.75, 10.5, 4.0]
    plots.policies(axes, ["pi2", "pi1", "10\npairs"], per_seed, ends, centres, COLOURS)
    clouds = [cloud for cloud in axes.collections if len(cloud.get_offsets()) == 4]
    diamonds = [line for line in axes.get_lines() if line.get_marker() == "D"]
    assert len(clouds) == len(diamonds) == len(axes.containers) == 3
    for place, (cloud, diamond, bar) in enumerate(zip(clouds, diamonds, axes.containers, strict=True)):
        x, y = np.asarray(cloud.get_offsets()).T
        np.testing.assert_array_equal(y, per_seed[place])
        assert len(set(x)) == 4
        ((centre_x, centre),) = diamond.get_xydata()
        assert centre == centres[place]
        assert place - 0.5 < x.min() < x.max() < centre_x < place + 0.5
        _, caps, (segments,) = bar.lines
        np.testing.assert_allclose(segments.get_segments()[0], [(centre_x, end) for end in ends[place]], rtol=1e-12)
        np.testing.assert_allclose(sorted(cap.get_ydata()[0] for cap in caps), ends[place], rtol=1e-12)
        assert tuple(cloud.get_facecolor()[0][:3]) == to_rgba(COLOURS[place])[:3]
    assert [label.get_text() for label in axes.get_xticklabels()] == ["pi2", "pi1", "10\npairs"]


def test_rows_stand_from_top_to_bottom_with_their_centres_and_intervals(axes):
    """The second interval does not hold its centre: its ends are drawn where they are. The third row has no centre:
    it is empty and keeps its place."""
    nan = float("nan")
    centres, ends = [2.75, 10.5, nan, 4.0], [(1.5, 5.0), (11.0, 12.0), (nan, nan), (-4.0, 7.0)]
    plots.intervals(axes, ["a", "b", "c", "d"], centres, ends, [*COLOURS, "red"])
    drawn = iter(axes.get_lines())
    for row, colour in ((0, COLOURS[0]), (1, COLOURS[1]), (3, "red")):
        bar, diamond = next(drawn), next(drawn)
        np.testing.assert_array_equal(bar.get_xydata(), [(end, row) for end in ends[row]])
        np.testing.assert_array_equal(diamond.get_xydata(), [(centres[row], row)])
        assert diamond.get_marker() == "D"
        assert to_rgba(diamond.get_color()) == to_rgba(bar.get_color()) == to_rgba(colour)
    assert next(drawn, None) is None
    assert [label.get_text() for label in axes.get_yticklabels()] == ["a", "b", "c", "d"]
    np.testing.assert_array_equal(axes.get_yticks(), [0, 1, 2, 3])
    bottom, top = axes.get_ylim()
    assert bottom > 3 > 0 > top
    left, right = axes.get_xlim()
    assert left < -4 < 12 < right


VALUES = np.array([[0.0, 0.25, 0.5], [0.75, 1.0, 0.6]])


def cells(axes):
    """{(column, row): text}."""
    return {text.get_position(): text for text in axes.texts}


def luminance(colour):
    """WCAG's relative luminance, channel by channel."""
    red, green, blue = (c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in to_rgba(colour)[:3])
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


def contrast(one, other):
    """WCAG's ratio, from 1 to 21."""
    dark, bright = sorted([luminance(one), luminance(other)])
    return (bright + 0.05) / (dark + 0.05)


def test_a_heat_map_shows_each_number_in_its_cell(axes):
    image = plots.heat_map(axes, VALUES, ["DPO", "PPO"], ["10", "50", "250"], label="{:.1f} %")
    np.testing.assert_array_equal(image.get_array(), VALUES)
    expected = {(column, row): f"{VALUES[row, column]:.1f} %" for row in range(2) for column in range(3)}
    assert {place: text.get_text() for place, text in cells(axes).items()} == expected
    assert [label.get_text() for label in axes.get_xticklabels()] == ["10", "50", "250"]
    assert [label.get_text() for label in axes.get_yticklabels()] == ["DPO", "PPO"]
    first, second = axes.transData.transform([(0, 0), (0, 1)])[:, 1]
    assert first > second  # the first row at the top
    assert list(axes.images) == [image]
    assert image.axes.figure.colorbar(image).vmax == 1


def test_a_scale_is_that_of_the_numbers_or_a_given_one_which_panels_share(axes):
    """0.5 has one colour on a scale from 0 to 2, whatever stands beside it. A cell that is NaN is empty, transparent,
    and does not count for the scale."""
    one = plots.heat_map(axes, VALUES, ["", ""], [""] * 3, vmin=0.0, vmax=2.0)
    other = plots.heat_map(axes, 2 * VALUES, ["", ""], [""] * 3, vmin=0.0, vmax=2.0)
    np.testing.assert_array_equal(one.to_rgba(VALUES)[0, 2], other.to_rgba(2 * VALUES)[0, 1])
    axes.clear()
    values = np.where(VALUES == 1.0, np.nan, VALUES)
    image = plots.heat_map(axes, values, ["", ""], [""] * 3)
    assert set(cells(axes)) == {(0, 0), (1, 0), (2, 0), (0, 1), (2, 1)}
    assert image.get_clim() == (0, 0.75)
    assert image.to_rgba(image.get_array())[1, 1, 3] == 0


def test_the_numbers_are_readable_on_every_colour_of_the_scale(axes):
    """Of black and white the one with more contrast, which is never under 4.5, WCAG's AA."""
    values = np.linspace(0, 1, 101)[None]
    image = plots.heat_map(axes, values, ["row"], [""] * 101)
    inks = set()
    for (column, _), text in cells(axes).items():
        background, ink = image.to_rgba(values[0, column]), text.get_color()
        assert contrast(ink, background) == max(contrast(colour, background) for colour in ("black", "white"))
        assert contrast(ink, background) > 4.5
        inks.add(ink)
    assert inks == {"black", "white"}


def test_a_profile_keeps_its_share_up_to_the_next_threshold_line_and_band(axes):
    thresholds, shares = np.array([0.0, 1.0, 4.0]), np.array([1.0, 0.5, 0.1])
    low, high = np.array([0.9, 0.3, 0.0]), np.array([1.0, 0.8, 0.2])
    plots.profiles(axes, thresholds, shares, low, high, "DPO", "#D55E00")
    (line,) = axes.get_lines()
    assert line.get_drawstyle() == "steps-post"
    np.testing.assert_array_equal(line.get_xydata(), np.column_stack([thresholds, shares]))
    (polygon,) = axes.collections
    (outline,) = polygon.get_paths()
    for start, end, bottom, top in zip(thresholds, thresholds[1:], low, high, strict=False):
        for x in (start + 0.01, end - 0.01):
            inside = [outline.contains_point((x, y)) for y in (bottom - 0.01, bottom + 0.01, top - 0.01, top + 0.01)]
            assert inside == [False, True, True, False]
    assert to_rgba(line.get_color()) == to_rgba("#D55E00")
    assert tuple(polygon.get_facecolor()[0][:3]) == to_rgba("#D55E00")[:3]
    assert axes.get_legend_handles_labels()[1] == ["DPO"]
    bottom, top = axes.get_ylim()
    assert bottom < 0 < 1 < top  # lines at both are seen whole


def test_a_path_is_the_mean_over_seeds_of_both_and_ends_in_a_marker(axes):
    """Of x too, which seeds do not share; in the order of evaluations, also where x turns back."""
    x, y = np.array([[0.0, 2.0, 1.0], [0.0, 4.0, 2.0]]), np.array([[-100.0, 10.0, 60.0], [-300.0, 30.0, 40.0]])
    plots.path(axes, x, y, "50 pairs", "#009E73")
    (line,) = axes.get_lines()
    np.testing.assert_array_equal(line.get_xydata(), [(0, -200), (3, 20), (1.5, 50)])
    assert (line.get_marker(), line.get_markevery(), line.get_linestyle()) == ("o", [-1], "-")
    assert to_rgba(line.get_color()) == to_rgba("#009E73")
    assert axes.get_legend_handles_labels()[1] == ["50 pairs"]
