"""Pictures of episodes: where things stand in them, by the colours of their pixels."""

import dataclasses
import io

import jax.numpy as jnp
import numpy as np
import pytest
from gymnax.environments.misc import reacher as gymnax_reacher
from PIL import Image, ImageColor

from jaxpref import render
from jaxpref.gymnax_tasks import mountain_car_observe
from jaxpref.types import Task

BLUE, ORANGE, GREEN, GREY, LINE, BLACK, WHITE = (
    np.array(ImageColor.getrgb(colour))
    for colour in ("#0072B2", "#D55E00", "#009E73", "#5B6770", "#CFD6DC", "black", "white")
)
CARS = ("MountainCar-v0", "MountainCarContinuous-v0")


def places(picture, colour):
    """(x, y) of every pixel that has about this colour, y upwards, from the lower left corner. [N, 2]"""
    y, x = np.nonzero(np.abs(picture.astype(int) - colour).max(axis=-1) < 20)
    return np.stack([x, picture.shape[0] - 1 - y], axis=1)


def cartpole(x=0.0, angle=0.0):
    return render.frames("cartpole", np.array([[x, 0.0, angle, 0.0]]))[0]


def acrobot(angle, second_angle):
    obs = [np.cos(angle), np.sin(angle), np.cos(second_angle), np.sin(second_angle), 0.0, 0.0]
    return render.frames("acrobot", np.array([obs]))[0]


def pendulum(angle):
    return render.frames("Pendulum-v1", np.array([[np.cos(angle), np.sin(angle), 0.0]]))[0]


def mountain_car(position, task_name="MountainCar-v0"):
    return render.frames(task_name, np.asarray(mountain_car_observe(jnp.array([[position, 0.0]]))))[0]


def reacher(angle, second_angle, goal=(0.0, 0.0)):
    obs = [np.cos(angle), np.cos(second_angle), np.sin(angle), np.sin(second_angle), 0.0, 0.0, *goal]
    return render.frames("Reacher-misc", np.array([obs]))[0]


def colour_at(picture, x, y):
    """The colour of the pixel at (x, y), y upwards, from the lower left corner. [3]"""
    return picture[picture.shape[0] - 1 - round(y), round(x)]


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


@pytest.mark.parametrize(
    ("angle", "across", "up"),
    [(0.0, 0, 1), (np.pi / 6, -0.5, 0.866), (np.pi / 2, -1, 0), (np.pi, 0, -1), (-np.pi / 3, 0.866, 0.5)],
)
def test_a_pendulum_is_upright_at_angle_0_and_turns_counter_clockwise(angle, across, up):
    """The rod is one metre, 240 / 2.6 = 92.3 pixels, from (159.5, 119.5). Its round end adds 0.075 metres. A twelfth
    of a turn to the left takes the tip half a metre to the left."""
    picture = pendulum(angle)
    for metres, colour in ((0.5, ORANGE), (1.04, ORANGE), (1.1, WHITE), (-0.5, WHITE), (0.0, BLACK)):
        place = (159.5 + 92.3 * metres * across, 119.5 + 92.3 * metres * up)
        np.testing.assert_array_equal(colour_at(picture, *place), colour, err_msg=f"{metres} metres from the pivot")


def test_the_mark_is_over_an_upright_pendulum():
    """The mark reaches further out than the circle of radius 1.17, and nothing else does."""
    marks = places(pendulum(2.0), LINE) - 159.5 + np.array([0, 40])  # from the pivot, at (159.5, 119.5)
    outside = marks[np.hypot(*marks.T) > 1.19 * 92.3]
    assert len(outside) > 8
    assert np.abs(outside[:, 0]).max() <= 2
    assert outside[:, 1].min() > 1.18 * 92.3


@pytest.mark.parametrize("position", [-1.15, -0.9, -0.2, 0.1, 0.3])
def test_the_hill_has_the_height_of_gymnasiums_pictures(position):
    """The height is 0.45 sin(3 x). The picture shows 2.1 units, each 320 / 2.1 = 152.4 pixels. In its middle, at
    (159.5, 99.5), x is -0.3 and the height is 0.12."""
    column = round(159.5 + 152.4 * (position + 0.3))
    hill = places(mountain_car(-0.55), LINE)
    surface = hill[hill[:, 0] == column, 1].max()
    np.testing.assert_allclose(surface, 99.5 + 152.4 * (0.45 * np.sin(3 * position) - 0.12), atol=1.5)


def test_the_hill_ends_where_the_track_does():
    """From -1.2 to 0.6 is 0.9 units to either side of the middle. Row 60 is under both ends."""
    hill = places(mountain_car(-0.55), LINE)
    columns = hill[hill[:, 1] == 60, 0]
    np.testing.assert_allclose([columns.min(), columns.max()], 159.5 + 152.4 * np.array([-0.9, 0.9]), atol=1)


@pytest.mark.parametrize(
    ("position", "height", "slope"),
    [(-np.pi / 6, -0.45, 0), (0, 0, 1.35), (-np.pi / 3, 0, -1.35), (-np.pi / 4, -0.318, -0.955), (np.pi / 6, 0.45, 0)],
)
def test_a_car_stands_on_the_hill_and_leans_with_it(position, height, slope):
    """The slope is 3 * 0.45 cos(3 x). The wheels' centres are 0.035 units from the ground, at right angles to it: to
    the left where the hill goes up. A wheel is 0.06 units from the middle."""
    steep = np.hypot(1, slope)
    middle = np.array([position + 0.3 - 0.035 * slope / steep, height + 0.035 / steep - 0.12])
    picture = mountain_car(position)
    wheels = places(picture, BLACK)
    np.testing.assert_allclose(wheels.mean(axis=0), [159.5, 99.5] + 152.4 * middle, atol=1)
    front = middle + 0.06 * np.array([1, slope]) / steep
    np.testing.assert_array_equal(colour_at(picture, *([159.5, 99.5] + 152.4 * front)), BLACK)
    roof = middle + 0.08 * np.array([-slope, 1]) / steep
    np.testing.assert_array_equal(colour_at(picture, *([159.5, 99.5] + 152.4 * roof)), ORANGE)


@pytest.mark.parametrize(("task_name", "goal"), zip(CARS, (0.5, 0.45), strict=True))
def test_a_car_at_the_goal_covers_the_foot_of_the_flag(task_name, goal):
    """The two goals are 0.05 * 152.4 = 8 pixels apart. The car's roof is 0.13 units over the ground."""
    away, there = mountain_car(-0.5, task_name), mountain_car(goal, task_name)
    flag, foot = 159.5 + 152.4 * (goal + 0.3), 99.5 + 152.4 * (0.45 * np.sin(3 * goal) - 0.12)
    grey = places(away, GREY)
    pole = grey[grey[:, 0] > 240]  # edges of the wheels are grey, too
    np.testing.assert_allclose(pole[:, 0].mean(), flag, atol=1)
    np.testing.assert_allclose(pole[:, 1].min(), foot, atol=2)
    assert abs(places(there, BLACK)[:, 0].mean() - flag) < 2
    np.testing.assert_array_equal(colour_at(away, flag, foot + 0.08 * 152.4), GREY)
    np.testing.assert_array_equal(colour_at(there, flag, foot + 0.08 * 152.4), ORANGE)
    np.testing.assert_array_equal(colour_at(there, flag, foot + 0.16 * 152.4), GREY)


@pytest.mark.parametrize(
    ("angles", "joint", "tip"),
    [
        ((0, np.pi / 2), (1, 0), (1, 1)),
        ((np.pi / 2, 0), (0, 1), (1, 1)),
        ((np.pi / 2, np.pi), (0, 1), (-1, 1)),
        ((-np.pi / 2, -np.pi / 2), (0, -1), (0, -2)),
        ((np.pi / 6, -np.pi / 6), (0.866, 0.5), (1.732, 0)),
    ],
)
def test_both_angles_of_a_reacher_are_measured_from_the_x_axis(angles, joint, tip):
    """A link is one unit, 240 / 4.6 = 52.2 pixels, and the pivot is at (159.5, 119.5). In the second case the second
    link points to the right: an angle from the first link would make it point up."""
    picture = reacher(*angles, goal=(-2.0, -1.0))
    middle_of_first, middle_of_second = np.array(joint) / 2, (np.array(joint) + tip) / 2
    for place, colour in ((middle_of_first, BLUE), (joint, BLACK), (middle_of_second, ORANGE), (tip, ORANGE)):
        np.testing.assert_array_equal(colour_at(picture, *([159.5, 119.5] + 52.2 * np.array(place))), colour)
    beyond = np.array(tip) + 0.13 * (np.array(tip) - joint)  # the round end adds 0.085
    np.testing.assert_array_equal(colour_at(picture, *([159.5, 119.5] + 52.2 * beyond)), WHITE)


@pytest.mark.parametrize("angles", [(2.0, 0.7), (-2.5, -1.3), (1.0, 1.4)])
def test_a_reachers_tip_is_as_far_from_the_goal_as_its_reward_says(angles):
    """The reward is exp(-distance^2). The goal is the pivot, and the tip is the far end of the second link, which adds
    0.085."""
    env, goal = gymnax_reacher.Reacher(), jnp.zeros(2)
    state = gymnax_reacher.EnvState(angles=jnp.array(angles), angle_vels=jnp.zeros(2), goal_xy=goal, time=0.0)
    obs, _, reward, _, _ = env.step_env(jnp.zeros(2, jnp.uint32), state, jnp.zeros(2), env.default_params)
    picture = render.frames("Reacher-misc", np.asarray(obs)[None])[0]
    distance = np.hypot(*(places(picture, ORANGE) - [159.5, 119.5]).T).max() / 52.2
    np.testing.assert_allclose(distance - 0.085, np.sqrt(-np.log(float(reward))), atol=0.03)


@pytest.mark.parametrize("goal", [(2.0, 2.0), (-2.0, 2.0), (2.0, -2.0), (-1.0, 0.5)])
def test_the_whole_goal_of_a_reacher_is_in_the_picture(goal):
    """The disc has a radius of 0.2 units, 10.4 pixels."""
    disc = places(reacher(0.0, 0.0, goal), GREEN)
    np.testing.assert_allclose(disc.mean(axis=0), [159.5, 119.5] + 52.2 * np.array(goal), atol=1)
    np.testing.assert_allclose(len(disc), np.pi * 10.4**2, rtol=0.1)


@pytest.mark.parametrize(
    ("draw", "state", "mirrored", "axis"),
    [
        (pendulum, [0.7], [-0.7], 159.5),
        (reacher, [0.4, 1.1], [np.pi - 0.4, np.pi - 1.1], 159.5),
        # The axis is the valley's bottom, where 3 x is -pi / 2.
        (mountain_car, [-np.pi / 6 + 0.35], [-np.pi / 6 - 0.35], 159.5 + 152.4 * (0.3 - np.pi / 6)),
    ],
)
def test_mirrored_states_have_mirrored_pictures(draw, state, mirrored, axis):
    """What moves is orange or black: the pixels have the same mean and spread on the other side of the axis."""
    for colour in (ORANGE, BLACK):
        here, there = places(draw(*state), colour), places(draw(*mirrored), colour)
        expected = here * [-1, 1] + [2 * axis, 0]
        np.testing.assert_allclose(there.mean(axis=0), expected.mean(axis=0), atol=1)
        np.testing.assert_allclose(there.std(axis=0), expected.std(axis=0), atol=1)


def test_bars_go_up_and_down_in_units_of_each_numbers_largest_value():
    """Two numbers, one bar each on either half; the middle is row 80, the whole height 80 rows to each side."""
    pictures = render.frames("a task of one's own", np.array([[1.0, -8.0], [0.5, 4.0], [0.0, 0.0]]))
    assert pictures.shape == (3, 161, 320, 3)
    blue = (pictures == BLUE).all(axis=-1)
    for column, filled in ((10, [(0, 81), (40, 81), (80, 81)]), (200, [(80, 161), (40, 81), (80, 81)])):
        for picture, (first, end) in zip(blue, filled, strict=True):
            np.testing.assert_array_equal(np.nonzero(picture[:, column])[0], np.arange(first, end))


def test_a_task_may_have_a_drawing_of_its_own_and_keeps_the_shape_of_its_images():
    obs = np.arange(24.0).reshape(2, 12)
    task = Task("other", None, None, horizon=2, obs_size=12, num_actions=2, obs_shape=(2, 3, 2))
    np.testing.assert_array_equal(render.draw(task, obs), render.frames("other", obs.reshape(2, 2, 3, 2)))

    def filled(one):
        return np.full((4, 6, 3), one.sum(), np.uint8)

    pictures = render.draw(dataclasses.replace(task, draw=filled), obs)
    np.testing.assert_array_equal(pictures[:, 0, 0, 0], [66, 210])
    assert pictures.shape == (2, 4, 6, 3)


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
