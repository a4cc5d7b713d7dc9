"""Annotators: frequencies of their labels, limits of their temperature, the probability they report, their habits."""

import dataclasses
import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import LEVER, assert_same_bytes, binomial_bound, keys, lane
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxpref import annotators
from jaxpref.annotators import Config, bradley_terry

NUM_LABELS = 20_000
ACROBATIC = dataclasses.replace(LEVER, return_range=(-500.0, 0.0))
"""A task with Acrobot's returns."""

# --- Bradley–Terry ----------------------------------------------------------------------------------------------------


@functools.partial(jax.jit, static_argnames="num_labels")
def labels(first_return, second_return, temperature, num_labels=NUM_LABELS):
    """The same pair, labelled many times; the returns are spread over two steps."""
    first, second = jnp.array([0.25, 0.75]) * first_return, jnp.array([1.5, -0.5]) * second_return
    annotate = functools.partial(bradley_terry, temperature=temperature)
    return jax.vmap(annotate, in_axes=(0, None, None))(jax.random.split(jax.random.key(0), num_labels), first, second)


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


@pytest.mark.parametrize(
    ("first_return", "second_return", "temperature"),
    [(3.0, 3.0, 1.0), (3.0, 2.0, 1.0), (-7.0, -5.0, 1.0), (100.0, 96.0, 1.0), (190.0, 95.0, 50.0), (2.0, 3.0, 0.5)],
)
def test_labels_have_bradley_terrys_frequencies(first_return, second_return, temperature):
    """P(first preferred) = sigmoid((R1 - R2) / temperature)."""
    probability = sigmoid((first_return - second_return) / temperature)
    frequency = labels(first_return, second_return, temperature).first_preferred.mean()
    assert abs(frequency - probability) < binomial_bound(probability, NUM_LABELS)


def test_without_a_temperature_it_is_one():
    """A gap of ln 3: the first is preferred three times in four."""
    first, second = jnp.array([np.log(3), 1.0]), jnp.array([1.0, 0.0])
    label = jax.vmap(lambda key: bradley_terry(key, first, second))(jax.random.split(jax.random.key(1), 4))
    np.testing.assert_allclose(label.prob, np.where(label.first_preferred, 0.75, 0.25), rtol=1e-6)


@pytest.mark.parametrize("gap", [-2.0, 1.0])
def test_at_temperature_zero_the_better_one_is_always_preferred(gap):
    label = labels(5.0 + gap, 5.0, 1e-3)
    np.testing.assert_array_equal(label.first_preferred, np.full(NUM_LABELS, gap > 0))
    np.testing.assert_array_equal(label.prob, np.ones(NUM_LABELS))


def test_at_temperature_infinity_a_label_is_the_toss_of_a_coin():
    label = labels(500.0, -500.0, 1e9)
    assert abs(label.first_preferred.mean() - 0.5) < binomial_bound(0.5, NUM_LABELS)
    np.testing.assert_allclose(label.prob, 0.5, atol=1e-6)


def test_prob_is_that_of_the_label_given():
    """Both labels of the pair occur, each with its own probability; every label counts alike."""
    label = labels(3.0, 1.0, 1.0)
    assert 0 < label.first_preferred.mean() < 1
    np.testing.assert_allclose(label.prob, np.where(label.first_preferred, sigmoid(2), sigmoid(-2)), rtol=1e-5)
    np.testing.assert_array_equal(label.weight, np.ones(NUM_LABELS))


def test_an_improbable_labels_probability_is_not_rounded_to_zero():
    """sigmoid(-12) = 6e-6, where 1 - sigmoid(12) has only two digits left in float32: about one label in 160,000."""
    label = labels(0.0, 12.0, 1.0, num_labels=2_000_000)
    improbable = np.asarray(label.prob)[np.asarray(label.first_preferred)]
    assert 0 < len(improbable) < 60
    np.testing.assert_allclose(improbable, sigmoid(-12.0), rtol=1e-5)


# --- teachers ---------------------------------------------------------------------------------------------------------

EIGHT_KEYS = keys(*range(8))
MANY_KEYS = jax.random.split(jax.random.key(2), NUM_LABELS)


@jax.jit
def taught(first_reward, second_reward, config, return_range):
    """The same pair, shown to a teacher many times."""
    teacher = functools.partial(annotators.teacher, config=config, return_range=return_range)
    return jax.vmap(teacher, in_axes=(0, None, None))(MANY_KEYS, first_reward, second_reward)


@functools.partial(jax.jit, static_argnums=0)
def asked(annotator, first_returns, second_returns):
    """Each pair of one-step episodes, shown to an annotator eight times: [pairs, 8]."""
    over_keys = jax.vmap(annotator, in_axes=(0, None, None))
    first, second = jnp.array(first_returns, jnp.float32), jnp.array(second_returns, jnp.float32)
    return jax.vmap(over_keys, in_axes=(None, 0, 0))(EIGHT_KEYS, first[:, None], second[:, None])


@pytest.mark.parametrize(
    ("temperature", "mistake_prob", "gap", "probability"),
    [
        # sigmoid(ln 3) = 3/4, and then 4/5 * 3/4 + 1/5 * 1/4.
        (1.0, 0.0, math.log(3), 0.75),
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


def test_a_noiseless_annotator_prefers_the_higher_return():
    """And tosses a coin between equals, which are no tie: both answers occur, as probable as each other."""
    label = asked(annotators.noiseless, [3.0, 0.0, 0.001, 7.0], [2.0, 200.0, 0.0, 7.0])
    np.testing.assert_array_equal(label.first_preferred[:3], np.repeat([[True], [False], [True]], 8, axis=1))
    assert 0 < label.first_preferred[3].sum() < 8
    np.testing.assert_array_equal(label.prob, np.repeat([[1], [1], [1], [0.5]], 8, axis=1))
    np.testing.assert_array_equal([label.weight, label.target], np.ones((2, 4, 8)))


@pytest.mark.parametrize("name", ["bradley_terry", "noiseless", "mistaken", "myopic"])
def test_annotators_without_thresholds_never_skip(name):
    """Whatever the returns: they do not even know the task's range."""
    label = asked(getattr(annotators, name), [-3.0, -200.0, 5.0], [-4.0, -100.0, -1.0])
    np.testing.assert_array_equal([label.weight, label.target], np.ones((2, 3, 8)))


def test_a_mistaken_annotator_errs_one_time_in_ten():
    """By default; each answer has its own probability."""
    many = jax.vmap(lambda key: annotators.mistaken(key, jnp.array([5.0]), jnp.array([3.0])))
    label = jax.jit(many)(MANY_KEYS)
    assert abs(label.first_preferred.mean() - 0.9) < binomial_bound(0.9, NUM_LABELS)
    np.testing.assert_allclose(label.prob, np.where(label.first_preferred, 0.9, 0.1), rtol=1e-5)


# --- ties and skips ---------------------------------------------------------------------------------------------------


def test_an_undecided_annotator_calls_close_returns_equal():
    """An eighth of a range of 200 is 25: gaps of 0 and 24 are ties, 25 is none. A tie counts in full and is certain."""
    undecided = functools.partial(annotators.undecided, threshold=0.125, return_range=(-100.0, 100.0))
    label = asked(undecided, [3.0, 50.0, -40.0, 50.0, -90.0], [3.0, 26.0, -16.0, 25.0, 90.0])
    np.testing.assert_array_equal(label.target, np.repeat([[0.5], [0.5], [0.5], [1], [1]], 8, axis=1))
    np.testing.assert_array_equal([label.weight, label.prob], np.ones((2, 5, 8)))
    np.testing.assert_array_equal(label.first_preferred[3:], np.repeat([[True], [False]], 8, axis=1))


def test_a_skipping_annotator_says_nothing_about_bad_pairs():
    """A quarter of the way from -100 to 100 is -50: neither -51 and -52 nor -100 twice get an answer; one that reaches
    -50 is enough, on either side."""
    skipping = functools.partial(annotators.skipping, threshold=0.25, return_range=(-100.0, 100.0))
    label = asked(skipping, [-51.0, -100.0, -50.0, -99.0, 80.0], [-52.0, -100.0, -99.0, -50.0, 70.0])
    np.testing.assert_array_equal(label.weight, np.repeat([[0], [0], [1], [1], [1]], 8, axis=1))
    np.testing.assert_array_equal([label.target, label.prob], np.ones((2, 5, 8)))
    np.testing.assert_array_equal(label.first_preferred[2:], np.repeat([[True], [False], [True]], 8, axis=1))


def test_a_teachers_thresholds_are_shares_of_the_tasks_range():
    """Acrobot's -500 to 0: seven tenths from the bottom are -150, a tenth is 50. A pair can be tied and skipped."""
    config = Config(temperature=0.0, tie_threshold=0.1, skip_threshold=0.7)
    first, second = [-151.0, -150.0, -160.0, -100.0, -100.0], [-300.0, -300.0, -170.0, -149.0, -150.0]
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
    return jax.vmap(teacher, in_axes=(0, None, None))(EIGHT_KEYS, first_reward, second_reward)


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
    reward = jnp.float32(jnp.arange(200) < jnp.array([150, 100, 130, 160])[:, None])
    teacher = functools.partial(annotators.teacher, config=config, return_range=(0.0, 200.0))
    answer, skipped, tied = (teacher(jax.random.key(0), reward[i], reward[j]) for i, j in ((0, 1), (2, 1), (3, 0)))
    assert (answer.weight, answer.target, bool(answer.first_preferred)) == (1, 1, True)
    assert skipped.weight == 0
    assert (tied.weight, tied.target) == (1, 0.5)


def test_myopic_is_a_teacher_that_discounts():
    """0.9 by default: 9 + 0.81 * 3 and 0.9 * 10 + 0.81 are 1.62 apart. With a discount of 1 it is Bradley–Terry, and
    returns of 12 and 11 at temperature 3 are a third apart."""
    first, second = jnp.array([9.0, 0.0, 3.0]), jnp.array([0.0, 10.0, 1.0])
    over_keys = functools.partial(jax.vmap, in_axes=(0, None, None))
    default = jax.jit(over_keys(annotators.myopic))(EIGHT_KEYS, first, second)
    prob = np.where(default.first_preferred, sigmoid(1.62), sigmoid(-1.62))
    np.testing.assert_allclose(default.prob, prob, rtol=1e-5)
    sharp_sighted = functools.partial(annotators.myopic, discount=1.0, temperature=3.0)
    plain = functools.partial(bradley_terry, temperature=3.0)
    one, other = (jax.jit(over_keys(annotator))(EIGHT_KEYS, first, second) for annotator in (sharp_sighted, plain))
    assert_same_bytes(one, other)
    prob = np.where(one.first_preferred, sigmoid(1 / 3), sigmoid(-1 / 3))
    np.testing.assert_allclose(one.prob, prob, rtol=1e-5)


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
    # -4 and -22 are 18 apart, more than an eighth of 64: an answer, which differs from teacher to teacher.
    assert {*np.ravel(together.target)} == {1.0}
    np.testing.assert_allclose(
        np.where(together.first_preferred, together.prob, 1 - together.prob)[:, 0],
        [0.7, sigmoid(18), 0.9 * sigmoid(0.36) + 0.1 * sigmoid(-0.36)],
        rtol=1e-5,
    )


def test_a_habit_out_of_its_range_is_refused():
    """By its name, where the teacher is asked."""
    one = jnp.ones(2)
    for habit in ("temperature", "mistake_prob", "tie_threshold", "skip_threshold", "discount"):
        with pytest.raises(ValueError, match=rf"^annotators\.Config: {habit} must be .*, got -0.5$"):
            annotators.teacher(jax.random.key(0), one, one, Config(**{habit: -0.5}))
