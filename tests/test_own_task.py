"""Tasks on gymnax's other environments and on custom ones."""

import gymnax
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import struct
from gymnax.environments import spaces
from helpers import constant_policy, play, rewarded

import jaxpref
from jaxpref import annotators, gymnax_tasks
from jaxpref.tasks import from_gymnax


@struct.dataclass
class BoardParams:
    max_steps_in_episode: int = 4


class Board:
    """Shows a 2 x 3 board of integers, 10 * (steps so far) + (place on the board), and goes on for ever."""

    default_params = BoardParams()

    def action_space(self, params):
        return spaces.Discrete(2)

    def _obs(self, time):
        return 10 * time + jnp.arange(6).reshape(2, 3)

    def reset_env(self, key, params):
        return self._obs(jnp.int32(0)), jnp.int32(0)

    def step_env(self, key, state, action, params):
        return self._obs(state + 1), state + 1, 1, False, {}


def test_a_custom_environment_is_played_without_registration():
    """Observations come flat, row by row, and as float32; the horizon is the parameters' time limit."""
    task = from_gymnax(Board())
    assert (task.name, task.horizon, task.num_actions) == ("Board", 4, 2)
    assert (task.obs_shape, task.obs_size) == ((2, 3), 6)
    played = play(task, constant_policy(task, [0.5, 0.5]), jax.random.key(0), 2)
    boards = 10 * np.arange(5)[:, None] + np.arange(6)
    assert played.obs.dtype == jnp.float32
    np.testing.assert_array_equal(played.obs, [boards[:4]] * 2)
    np.testing.assert_array_equal(played.next_obs, [boards[1:]] * 2)
    np.testing.assert_array_equal(played.reward, np.ones((2, 4)))
    assert played.mask.all()


def test_gymnax_ids_are_tasks_whatever_they_show():
    """Catch's ball falls one row a step; an episode ends with it, nine steps later."""
    task = jaxpref.task("Catch-bsuite")
    assert (task.name, task.obs_shape, task.horizon, task.return_range) == ("Catch-bsuite", (10, 5), 9, (-1, 1))
    played = play(task, constant_policy(task, [0.3, 0.4, 0.3]), jax.random.key(0), 20)
    assert played.mask.all()
    boards = np.asarray(played.obs).reshape(20, 9, 10, 5)
    assert all((boards[:, row, row].sum(-1) == 1).all() for row in range(9))
    last = np.asarray(played.next_obs)[:, -1].reshape(20, 10, 5)[:, 9]  # ball and paddle in one place, or in two
    np.testing.assert_array_equal(played.reward.sum(-1), np.where(last.sum(-1) == 1, 1, -1))
    assert jaxpref.task("Breakout-MinAtar").obs_size == 10 * 10 * 4
    assert jaxpref.task("FrozenLake-misc").obs_size == 1  # one integer, of no axis at all


def test_what_is_known_is_of_gymnaxs_ids():
    assert gymnax_tasks.KNOWN.keys() <= set(gymnax.registered_envs)
    assert set(gymnax_tasks.MINATAR) == {name for name in gymnax.registered_envs if name.endswith("-MinAtar")}


class Box(Board):
    """The same with an action space of its own."""

    def __init__(self, *space):
        self.space = spaces.Box(*space)

    def action_space(self, params):
        return self.space


def test_a_range_of_actions_is_that_of_every_number():
    """One number stands for all of them, as in gymnax's own environments."""
    task = from_gymnax(Box(-2.0, jnp.array([1.0, 3.0]), (2,)))
    assert (task.num_actions, task.action_range) == (2, ((-2, 1), (-2, 3)))
    pendulum, reacher = (jaxpref.task(name) for name in ("Pendulum-v1", "Reacher-misc"))
    assert (pendulum.num_actions, pendulum.action_range, pendulum.horizon) == (1, ((-2, 2),), 200)
    assert (reacher.num_actions, reacher.action_range) == (2, ((-1, 1), (-1, 1)))
    assert jaxpref.cartpole().action_range is None


def test_a_task_brings_the_numbers_that_it_needs_however_it_is_made():
    assert from_gymnax("MountainCar-v0") == jaxpref.task("MountainCar-v0")
    car, catch, breakout = (jaxpref.task(name) for name in ("MountainCar-v0", "Catch-bsuite", "Breakout-MinAtar"))
    assert (car.shape_reward, catch.return_range, breakout.horizon, catch.horizon) == (True, (-1, 1), 200, 9)
    assert from_gymnax("Catch-bsuite", catch.env_params).horizon == catch.env_params.max_steps_in_episode == 1000
    assert from_gymnax("Catch-bsuite", catch.env_params, horizon=5).horizon == 5
    assert from_gymnax("MountainCar-v0", horizon=50, return_range=(-9.0, 0.0)).return_range == (-9, 0)
    # Its static part stays hashable.
    assert jax.jit(lambda task: task.horizon)(car) == 200


@pytest.mark.parametrize(
    ("make", "complaint"),
    [
        (lambda: jaxpref.task("breakout-minatari"), r"unknown task 'breakout-minatari'.*perhaps Breakout-MinAtar"),
        (lambda: jaxpref.task(""), "unknown task ''"),
        (lambda: jaxpref.task("CartPole-v0"), r"unknown task 'CartPole-v0'.*perhaps cartpole is meant"),
        (lambda: from_gymnax(Box(-1.0, 1.0, (2, 3))), r"Box has actions of Box \(2, 3\); they must be Discrete or a"),
        (
            lambda: from_gymnax(Box(-np.inf, 1.0, (1,))),
            r"Box has actions from \[-inf\] to \[1.0\]; the range must be",
        ),
        (lambda: from_gymnax(Board(), pi1_target=5, pi2_target=5), "pi1_target must be above pi2_target, got 5 and 5"),
        (lambda: from_gymnax(Board(), BoardParams(None)), "horizon must be a whole number, got None"),
        (lambda: jaxpref.cartpole(horizon=0), "horizon must be at least 1, got 0"),
        (lambda: from_gymnax(Board(), observe=lambda obs: {"all": obs}), "Board has observations of type dict"),
    ],
)
def test_what_is_not_a_task_is_refused_in_one_sentence(make, complaint):
    with pytest.raises(ValueError, match=complaint) as caught:
        make()
    assert "\n" not in str(caught.value)


def test_mountain_cars_potential_is_its_energy():
    """At rest at the bottom, x = -pi / 6: -50. Without the engine, energy stays (to the integrator's error)."""
    task = jaxpref.task("MountainCar-v0")
    at_rest = task.observe(jnp.array([-np.pi / 6, 0.0]))
    np.testing.assert_allclose(task.potential(at_rest), -50, rtol=1e-5)
    position, velocity, states = -0.9, 0.0, []
    for _ in range(100):
        states.append([position, velocity])
        velocity -= 0.0025 * np.cos(3 * position)
        position += velocity
    energy = np.asarray(task.potential(task.observe(jnp.array(states))))
    assert np.ptp(energy) < 0.1 * 100  # of a range of 100; height alone swings through most of it


def test_thresholds_of_an_annotator_need_the_range_of_returns():
    with pytest.raises(ValueError, match=r"tie_threshold is a share of the range .* task Board has no return_range"):
        annotators.teacher_of(from_gymnax(Board()), annotators.Config(tie_threshold=0.1))
    ranged = from_gymnax(Board(), return_range=(0.0, 4.0))
    # A tie: 7 and 6 are closer than a half of 4.
    teacher = annotators.teacher_of(ranged, annotators.Config(tie_threshold=0.5))
    assert teacher(jax.random.key(0), rewarded([3.0, 4.0]), rewarded([5.0, 1.0])).target == 0.5
