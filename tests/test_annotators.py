"""The Bradley–Terry annotator: frequencies of its labels, limits of its temperature, and the probability it reports."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import binomial_bound

from jaxpref.annotators import bradley_terry

NUM_LABELS = 20_000


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
