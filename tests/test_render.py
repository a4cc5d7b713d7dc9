"""Pictures of episodes: where things stand in them, by the colours of their pixels."""

import io

import numpy as np
import pytest
from PIL import Image, ImageColor

from jaxpref import render

BLUE, ORANGE, GREEN = (np.array(ImageColor.getrgb(colour)) for colour in ("#0072B2", "#D55E00", "#009E73"))


def places(picture, colour):
    """(x, y) of every pixel that has about this colour, y upwards, from the lower left corner. [N, 2]"""
    y, x = np.nonzero(np.abs(picture.astype(int) - colour).max(axis=-1) < 20)
    return np.stack([x, picture.shape[0] - 1 - y], axis=1)


def cartpole(x=0.0, angle=0.0):
    return render.frames("cartpole", np.array([[x, 0.0, angle, 0.0]]))[0]


def acrobot(angle, second_angle):
    obs = [np.cos(angle), np.sin(angle), np.cos(second_angle), np.sin(second_angle), 0.0, 0.0]
    return render.frames("acrobot", np.array([obs]))[0]


def lean(picture, colour):
    """The angle of a rod to the vertical, clockwise: of the direction in which its pixels spread most."""
    rod = places(picture, colour)
    across, up = np.linalg.svd(rod - rod.mean(axis=0))[2][0]
    return np.arctan(across / up)


def test_a_cart_stands_where_its_position_says():
    """The picture, 320 pixels, shows 5.2 metres, with 0 in the middle."""
    centres = [places(cartpole(x), ORANGE)[:, 0].mean() for x in (-2.0, -1.0, 0.0, 1.0, 2.0)]
    np.testing.assert_allclose(centres, 159.5 + 320 / 5.2 * np.arange(-2, 3), atol=1)


@pytest.mark.parametrize("angle", [0.2, 0.0, -0.1])
def test_a_pole_leans_by_its_angle_to_the_right(angle):
    np.testing.assert_allclose(lean(cartpole(angle=angle), ORANGE), angle, atol=0.01)


def test_links_at_rest_hang_below_the_pivot():
    picture = acrobot(0.0, 0.0)
    upper, lower = places(picture, BLUE), places(picture, ORANGE)
    assert lower[:, 1].max() <= upper[:, 1].min() + 5
    for link in (upper, lower):
        assert abs(link[:, 0].mean() - 159.5) < 1
    assert 119.5 - 2 * 240 / 4.4 - 6 < lower[:, 1].min() < 119.5 - 2 * 240 / 4.4 + 2


def test_the_second_angle_is_measured_from_the_first_link():
    """The first link points to the right, and so does the second; bent by a right angle it points up."""
    straight, bent = acrobot(np.pi / 2, 0.0), acrobot(np.pi / 2, np.pi / 2)
    assert places(straight, ORANGE)[:, 0].min() > places(straight, BLUE)[:, 0].mean()
    assert abs(places(straight, ORANGE)[:, 1].mean() - 119.5) < 1
    assert abs(lean(bent, ORANGE)) < 0.01
    assert places(bent, ORANGE)[:, 1].mean() > 119.5 + 20


@pytest.mark.parametrize("angles", [(2.9, 0.4), (1.5, 1.0), (2.3, 0.9)])
def test_the_tip_is_over_the_line_where_the_environment_says_so(angles):
    """The episode ends where -cos t1 - cos(t1 + t2) > 1. The line is one link over the pivot."""
    picture = acrobot(*angles)
    line = 119.5 + 240 / 4.4
    tip = places(picture, ORANGE)[:, 1].max() - 0.17 / 2 * 240 / 4.4  # its round end reaches half a width further
    height = -np.cos(angles[0]) - np.cos(sum(angles))
    np.testing.assert_allclose((tip - line) / (240 / 4.4), height - 1, atol=0.06)
    assert ((tip - line) > 2) == (height > 1.05)


def test_bars_go_up_and_down_in_units_of_each_numbers_largest_value():
    """Two numbers, one bar each on either half; the middle is row 80, the whole height 80 rows to each side."""
    pictures = render.frames("a task of one's own", np.array([[1.0, -8.0], [0.5, 4.0], [0.0, 0.0]]))
    assert pictures.shape == (3, 161, 320, 3)
    blue = (pictures == BLUE).all(axis=-1)
    for column, filled in ((10, [(0, 81), (40, 81), (80, 81)]), (200, [(80, 161), (40, 81), (80, 81)])):
        for picture, (first, end) in zip(blue, filled, strict=True):
            np.testing.assert_array_equal(np.nonzero(picture[:, column])[0], np.arange(first, end))


def test_channels_of_an_image_have_colours_of_their_own():
    """A pixel is painted as far as its channel is on: nothing is white, half is half way to white. An image without
    channels has one."""
    obs = np.zeros((2, 2, 3, 3))
    obs[0, 0, 0, 0], obs[0, 0, 1, 1], obs[0, 1, 2, 2] = 5.0, 2.0, 1.0
    obs[1, 0, 0, 0] = 2.5
    pictures = render.frames("other", obs)
    np.testing.assert_array_equal(render.frames("other", obs[..., 0]), render.frames("other", obs[..., :1]))
    side = pictures.shape[2] // 3
    assert pictures.shape == (2, 2 * side, 3 * side, 3)
    blocks = pictures.reshape(2, 2, side, 3, side, 3)
    assert (blocks == blocks[:, :, :1, :, :1]).all()
    colours = blocks[:, :, 0, :, 0].astype(int)
    expected = np.full((2, 2, 3, 3), 255)
    expected[0, 0, 0], expected[0, 0, 1], expected[0, 1, 2] = BLUE, ORANGE, GREEN
    expected[1, 0, 0] = np.round((BLUE + 255) / 2)
    np.testing.assert_allclose(colours, expected, atol=1)


@pytest.mark.parametrize("shape", [(3,), (0, 4), (2, 0), (2, 3, 4, 5, 6)])
def test_observations_of_other_shapes_are_refused(shape):
    with pytest.raises(ValueError, match=r"obs must be \[T, O\]"):
        render.frames("cartpole", np.zeros(shape))


def test_a_gif_has_its_pictures_and_their_durations_and_repeats_for_ever():
    pictures = render.frames("cartpole", np.array([[x, 0.0, 0.1 * x, 0.0] for x in (-1.0, 0.0, 1.0)]))
    gif = render.gif(pictures, [0.04, 0.1, 2.0])
    assert render.gif(pictures.copy(), [0.04, 0.1, 2.0]) == gif
    with pytest.raises(ValueError, match="one number for each of 3 pictures, got 2"):
        render.gif(pictures, [0.1] * 2)
    with Image.open(io.BytesIO(gif)) as image:
        assert image.info["loop"] == 0
        assert image.n_frames == 3
        for place, (picture, duration) in enumerate(zip(pictures, (40, 100, 2000), strict=True)):
            image.seek(place)
            assert image.info["duration"] == duration
            # 32 colours come close to those of smoothed edges.
            difference = np.abs(np.asarray(image.convert("RGB")).astype(int) - picture)
            assert difference.max() < 60
            assert difference.mean() < 0.5


def test_a_multiple_exposure_shows_first_last_and_what_lies_between_evenly():
    """Nine pictures with a black pixel each, exposed three times."""
    pictures = np.full((9, 1, 9, 3), 255, np.uint8)
    pictures[np.arange(9), 0, np.arange(9)] = 0
    with Image.open(io.BytesIO(render.multiple_exposure(pictures, 3))) as image:
        dark = np.asarray(image.convert("RGB")).max(axis=-1)[0] == 0
    assert np.nonzero(dark)[0].tolist() == [0, 4, 8]
