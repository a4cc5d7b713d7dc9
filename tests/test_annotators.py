"""Annotators: frequencies of their labels, limits of their temperature, the probability they report, their habits."""

import dataclasses
import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import LEVER, assert_same_bytes, binomial_bound, keys, lane, random_trajectories, rewarded, spoil
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxpref import annotators
from jaxpref.annotators import Config

NUM_LABELS = 20_000
ACROBATIC = dataclasses.replace(LEVER, return_range=(-500.0, 0.0))
"""A task with Acrobot's returns."""

EIGHT_KEYS = keys(*range(8))
MANY_KEYS = jax.random.split(jax.random.key(2), NUM_LABELS)


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


@jax.jit
def taught(first_reward, second_reward, config, return_range):
    """The same pair, shown to a teacher many times."""
    teacher = functools.partial(annotators.teacher, config=config, return_range=return_range)
    return jax.vmap(teacher, in_axes=(0, None, None))(MANY_KEYS, rewarded(first_reward), rewarded(second_reward))


@functools.partial(jax.jit, static_argnums=0)
def asked(annotator, first_rewards, second_rewards):
    """Each pair of episodes, shown to an annotator eight times: [pairs, 8]."""
    over_keys = jax.vmap(annotator, in_axes=(0, None, None))
    return jax.vmap(over_keys, in_axes=(None, 0, 0))(EIGHT_KEYS, rewarded(first_rewards), rewarded(second_rewards))


@pytest.mark.parametrize(
    ("temperature", "mistake_prob", "gap", "probability"),
    [
        # sigmoid(ln 3) = 3/4, and then 4/5 * 3/4 + 1/5 * 1/4.
        (1.0, 0.0, math.log(3), 0.75),
        (50.0, 0.0, 95.0, sigmoid(1.9)),
        (0.5, 0.0, -1.0, sigmoid(-2)),
        (1e9, 0.0, 250.0, 0.5),
        (1e-3, 0.0, 0.25, 1.0),
        (1.0, 0.2, math.log(3), 0.65),
        (1.0, 0.2, -math.log(3), 0.35),
        (10.0, 0.1, 10 * math.log(9), 0.82),
        (1.0, 1.0, math.log(3), 0.25),
        # Temperature 0: only mistakes are left, and a coin between equals.
        (0.0, 0.0, 0.001, 1.0),
        (0.0, 0.0, -200.0, 0.0),
        (0.0, 0.1, 30.0, 0.9),
        (0.0, 0.1, -30.0, 0.1),
        (0.0, 0.0, 0.0, 0.5),
        (0.0, 0.3, 0.0, 0.5),
        # Mistakes half of the time: a coin whatever the returns.
        (1.0, 0.5, math.log(3), 0.5),
        (0.0, 0.5, -200.0, 0.5),
    ],
)
def test_a_teachers_answers_hand_worked(temperature, mistake_prob, gap, probability):
    """P(first) = (1 - m) p + m (1 - p): its answers have that frequency, and each its own probability. Without
    thresholds no pair is tied or skipped, and the sign of the returns means nothing."""
    for second in ([1.0, 2.0, 0.0], [-250.0, 0.0, -250.0]):
        first = [second[2] + gap, second[1], second[0]]
        config = Config(temperature=temperature, mistake_prob=mistake_prob)
        label = taught(jnp.array(first), jnp.array(second), config, (-700.0, 300.0))
        frequency = label.first_preferred.mean()
        assert abs(frequency - probability) <= binomial_bound(probability, NUM_LABELS)
        expected = np.where(label.first_preferred, probability, 1 - probability)
        np.testing.assert_allclose(label.prob, expected, rtol=1e-3 if second[0] < 0 else 1e-5)
        np.testing.assert_array_equal([label.weight, label.target], np.ones((2, NUM_LABELS)))


def test_an_improbable_labels_probability_is_not_rounded():
    """sigmoid(-8) = 3e-4, where 1 - sigmoid(8) has only three digits left in float32."""
    label = taught(jnp.zeros(1), jnp.array([8.0]), Config(), (0.0, 1.0))
    improbable = np.asarray(label.prob)[np.asarray(label.first_preferred)]
    assert 0 < len(improbable) < 30
    np.testing.assert_allclose(improbable, sigmoid(-8.0), rtol=1e-5)


PRESETS = {
    annotators.bradley_terry: Config(),
    functools.partial(annotators.bradley_terry, temperature=3.0): Config(temperature=3.0),
    annotators.noiseless: Config(temperature=0.0),
}


@pytest.mark.parametrize("preset", PRESETS)
def test_the_other_annotators_are_teachers_with_one_habit(preset):
    """One pair with equal returns, and five without."""
    first = [[3.0, 0.0], [40.0, 10.0], [-51.0, 0.0], [-80.0, -20.0], [-40.0, -10.0], [0.0, 80.0]]
    second = [[3.0, 0.0], [26.0, 0.0], [-52.0, 0.0], [0.0, -60.0], [0.0, -99.0], [20.0, 35.0]]
    teacher = functools.partial(annotators.teacher, config=PRESETS[preset])
    assert_same_bytes(asked(preset, first, second), asked(teacher, first, second))


def test_only_rewards_within_the_mask_count():
    """NaN and infinity beyond the ends of both: the same answers, ties and skips."""
    sides = [random_trajectories(np.random.default_rng(seed), [5, 3, 1, 4], 6) for seed in (0, 1)]
    config = Config(temperature=2.0, tie_threshold=0.02, skip_threshold=0.5, discount=0.5)
    teacher = functools.partial(annotators.teacher, config=config, return_range=(-18.0, 18.0))
    ask = jax.jit(jax.vmap(jax.vmap(teacher, in_axes=(0, None, None)), in_axes=(None, 0, 0)))
    label = ask(EIGHT_KEYS, *sides)
    assert_same_bytes(ask(EIGHT_KEYS, *map(spoil, sides)), label)
    first, second = (np.asarray(side.reward @ 0.5 ** np.arange(6)) for side in sides)
    prob = sigmoid(np.where(label.first_preferred, 1, -1) * (first - second)[:, None] / 2)
    answered = np.asarray((label.weight == 1) & (label.target == 1))
    assert 0 < answered[:, 0].sum() < 4
    np.testing.assert_allclose(label.prob, np.where(answered, prob, 1), rtol=1e-5)


# --- ties and skips ---------------------------------------------------------------------------------------------------


def test_a_teachers_thresholds_are_shares_of_the_tasks_range():
    """Acrobot's -500 to 0: seven tenths from the bottom are -150, a tenth is 50. A pair can be tied and skipped."""
    config = Config(temperature=0.0, tie_threshold=0.1, skip_threshold=0.7)
    first = [[-151.0], [-150.0], [-160.0], [-100.0], [-100.0]]
    second = [[-300.0], [-300.0], [-170.0], [-149.0], [-150.0]]
    label = asked(annotators.teacher_of(ACROBATIC, config), first, second)
    np.testing.assert_array_equal(label.weight, np.repeat([[0], [1], [0], [1], [1]], 8, axis=1))
    np.testing.assert_array_equal(label.target, np.repeat([[1], [1], [0.5], [0.5], [1]], 8, axis=1))
    np.testing.assert_array_equal(label.prob, np.ones((5, 8)))


def test_a_hesitant_teachers_ties_and_skips_are_certain():
    """16 and 12 at temperature 4 / ln 3: an answer is right three times in four, a tie or a skip is always given."""
    hesitant = Config(temperature=4 / math.log(3))
    first, second, range_ = jnp.array([14.0, 2.0, 0.0]), jnp.array([2.0, 10.0, 0.0]), (0.0, 100.0)
    for habit, weight, target in (({"tie_threshold": 0.05}, 1, 0.5), ({"skip_threshold": 0.2}, 0, 1), ({}, 1, 1)):
        label = taught(first, second, dataclasses.replace(hesitant, **habit), range_)
        prob = np.where(label.first_preferred, 0.75, 0.25) if not habit else 1
        np.testing.assert_allclose(label.prob, np.broadcast_to(prob, NUM_LABELS), rtol=1e-5)
        np.testing.assert_array_equal(label.weight, np.full(NUM_LABELS, weight))
        np.testing.assert_array_equal(label.target, np.full(NUM_LABELS, target))


@jax.jit
def taught_eight(first_reward, second_reward, config, return_range):
    """The same pair, shown to a teacher eight times."""
    teacher = functools.partial(annotators.teacher, config=config, return_range=return_range)
    return jax.vmap(teacher, in_axes=(0, None, None))(EIGHT_KEYS, rewarded(first_reward), rewarded(second_reward))


eighths = st.integers(0, 8).map(lambda n: n / 8)
returns = st.integers(0, 400)


@settings(deadline=None, max_examples=30)
@given(returns, returns, eighths, eighths, st.integers(-1000, 1000))
def test_only_differences_of_returns_count(first, second, tie_threshold, skip_threshold, shift):
    """Both returns and the range raised by the same: all eight answers stay as they are. Whole numbers are exact."""
    config = Config(temperature=40.0, mistake_prob=0.1, tie_threshold=tie_threshold, skip_threshold=skip_threshold)

    def answers(shift):
        first_reward, second_reward = jnp.float32([first + shift, 0]), jnp.float32([shift, second])
        return taught_eight(first_reward, second_reward, config, (0.0 + shift, 400.0 + shift))

    assert_same_bytes(answers(shift), answers(0))
    tied, skipped = abs(first - second) < 400 * tie_threshold, max(first, second) < 400 * skip_threshold
    np.testing.assert_array_equal(answers(shift).target, np.full(8, 0.5 if tied else 1))
    np.testing.assert_array_equal(answers(shift).weight, np.full(8, 0 if skipped else 1))


# --- myopia -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("discount", "temperature", "first", "second", "probability"),
    [
        # 8/4 = 2 and 1 + 2/2 = 2.
        (0.5, 1.0, [0, 0, 8], [1, 2, 0], 0.5),
        # 4 and 8/4: the first step counts in full, so the worse episode is the likelier one.
        (0.5, 2 / math.log(3), [4, 0, 0], [0, 0, 8], 0.75),
        # 0.9 + 0.81 * 10 = 9 and 0.81 * 100 / 9 = 9.
        (0.9, 1.0, [0, 1, 10], [0, 0, 100 / 9], 0.5),
        # Blind to all but the first step: 1 and 0.
        (0.0, 1 / math.log(9), [1, 0, 0], [0, 50, 50], 0.9),
    ],
)
def test_a_myopic_teacher_hand_worked(discount, temperature, first, second, probability):
    """Step t, from 0, counts discount^t."""
    config = Config(temperature=temperature, discount=discount)
    label = taught(jnp.float32(first), jnp.float32(second), config, (0.0, 100.0))
    expected = np.where(label.first_preferred, probability, 1 - probability)
    np.testing.assert_allclose(label.prob, expected, rtol=1e-5)
    assert abs(label.first_preferred.mean() - probability) < binomial_bound(probability, NUM_LABELS)


def test_thresholds_of_a_myopic_teacher_look_at_undiscounted_returns():
    """CartPole's 200 steps of reward 1, seen at a discount of 0.98: at most 50 of 200, below any threshold of 0.7.
    Undiscounted, an episode of 150 steps is answered about and one of 130 is skipped; 10 steps apart is a tie."""
    config = Config(temperature=0.0, tie_threshold=0.1, skip_threshold=0.7, discount=0.98)
    shown = rewarded(jnp.arange(200) < jnp.array([150, 100, 130, 160])[:, None])
    teacher = functools.partial(annotators.teacher, config=config, return_range=(0.0, 200.0))
    answer, skipped, tied = (
        teacher(jax.random.key(0), lane(shown, i), lane(shown, j)) for i, j in ((0, 1), (2, 1), (3, 0))
    )
    assert (answer.weight, answer.target, bool(answer.first_preferred)) == (1, 1, True)
    assert skipped.weight == 0
    assert (tied.weight, tied.target) == (1, 0.5)


# --- many teachers ----------------------------------------------------------------------------------------------------


def test_vmap_over_teachers_is_one_after_the_other():
    """Temperatures, zero among them, and chances of a mistake as arrays, beside habits that are plain numbers."""
    configs = Config(jnp.array([0.0, 1.0, 50.0]), jnp.array([0.3, 0.0, 0.1]), tie_threshold=0.125, discount=0.5)
    axes = Config(temperature=0, mistake_prob=0, tie_threshold=None, skip_threshold=None, discount=None)
    first, second, range_ = jnp.array([-3.0, -2.0]), jnp.array([-20.0, -4.0]), (-64.0, 0.0)
    together = jax.jit(jax.vmap(taught_eight, in_axes=(None, None, axes, None)))(first, second, configs, range_)
    assert together.prob.shape == (3, 8)
    for i, (temperature, mistake_prob) in enumerate([(0.0, 0.3), (1.0, 0.0), (50.0, 0.1)]):
        alone = taught_eight(first, second, Config(temperature, mistake_prob, 0.125, 0.0, 0.5), range_)
        np.testing.assert_array_equal(lane(together, i).first_preferred, alone.first_preferred)
        np.testing.assert_allclose(lane(together, i).prob, alone.prob, rtol=1e-6)
