"""What the trainers share: the schedule of updates and evaluations, and minibatches of pairs."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import scipy.stats

from jaxpref import checks, dpo, reward_model, training
from jaxpref.fast.shuffle import shuffled


def test_scan_updates_evaluates_after_every_block():
    """A state that counts: metrics of all 6 updates in order, evaluations after updates 2, 4 and 6."""

    def update(state, key):
        return state + 1, {"before": state, "noise": jax.random.uniform(key)}

    def evaluate(state, key):
        return 10 * state, jax.random.uniform(key)

    config = dpo.Config(num_updates=6, eval_every=2)
    run = jax.jit(lambda key: training.scan_updates(update, evaluate, jnp.int32(0), key, config))
    state, metrics, (evaluations, eval_noise) = run(jax.random.key(1))
    assert state == 6
    np.testing.assert_array_equal(metrics["before"], [0, 1, 2, 3, 4, 5])
    np.testing.assert_array_equal(evaluations, [20, 40, 60])
    # No key is used twice, neither among updates nor by an update and an evaluation.
    noise = [*np.asarray(metrics["noise"]), *np.asarray(eval_noise)]
    assert len(set(noise)) == 9


SHUFFLED = jax.jit(shuffled, static_argnums=1)


@pytest.mark.parametrize("size", [1, 5, 2048, 20_000])
def test_a_shuffle_holds_every_number_once(size):
    np.testing.assert_array_equal(np.sort(SHUFFLED(jax.random.key(size), size)), np.arange(size))


def test_every_order_is_equally_likely():
    """3! = 6 orders, each in a sixth of 30,000 shuffles. In longer shuffles every number is in every place as often."""
    draw = jax.jit(jax.vmap(shuffled, in_axes=(0, None)), static_argnums=1)
    orders, counts = np.unique(draw(jax.random.split(jax.random.key(1), 30_000), 3), axis=0, return_counts=True)
    assert len(orders) == 6
    assert scipy.stats.chisquare(counts).pvalue > 1e-6
    places = np.asarray(draw(jax.random.split(jax.random.key(2), 20_000), 16))
    for place in range(16):
        assert scipy.stats.chisquare(np.bincount(places[:, place], minlength=16)).pvalue > 1e-6


def test_a_minibatch_is_drawn_by_weight_and_then_counted_alike():
    """Batch size 0 is all pairs with their own weights."""
    weight = jnp.array([0.5, 0.0, 2.0])
    index, weights = training.draw_minibatch(jax.random.key(2), weight, 0)
    np.testing.assert_array_equal(index, [0, 1, 2])
    np.testing.assert_array_equal(weights, weight)
    index, weights = training.draw_minibatch(jax.random.key(2), weight, 10)
    np.testing.assert_array_equal(np.bincount(index), [2, 0, 8])
    np.testing.assert_array_equal(weights, np.ones(10))


@pytest.mark.parametrize("batch_size", [0, 3])
def test_from_no_answers_nothing_is_learned(batch_size):
    """Where no pair has weight, mean and slope are zero, not 0 / 0; whatever the pairs contain."""
    index, weight = training.draw_minibatch(jax.random.key(2), jnp.zeros(4), batch_size)
    values = jnp.array([1.0, jnp.nan, jnp.inf, 2.0])[index]
    mean, slope = jax.value_and_grad(training.weighted_mean)(values, weight)
    assert mean == 0
    np.testing.assert_array_equal(slope, np.zeros(len(index)))


def test_a_weighted_mean_is_numpys():
    values, weight = jnp.array([1.0, -2.0, 4.0]), jnp.array([0.5, 0.0, 2.0])
    np.testing.assert_allclose(training.weighted_mean(values, weight), np.average(values, weights=weight), rtol=1e-6)


@pytest.mark.parametrize("trainer", [dpo, reward_model])
def test_an_optimiser_that_is_no_function_is_named_in_one_sentence(trainer):
    """Also the easy mistake, an optimiser that has its learning rate already."""
    config, words = trainer.Config(), "must be a function of the learning rate, or None, got "
    assert checks.problems(config.replace(optimiser=optax.sgd)) == []
    for wrong, kind in ((optax.sgd(0.1), "a GradientTransformationExtraArgs"), ("adam", "'adam'")):
        assert checks.problems(config.replace(optimiser=wrong)) == [("optimiser", words + kind)]


def test_without_an_optimiser_it_is_adam():
    """The first step of Adam is the learning rate, whatever the size of the gradient; of gradient descent it is not."""
    params, grads = jnp.array([1.0, 2.0]), jnp.array([0.5, -3.0])
    for made, expected in ((None, [-0.1, 0.1]), (optax.sgd, [-0.05, 0.3])):
        optimiser = training.make_optimiser(dpo.Config(learning_rate=0.1, optimiser=made))
        updates, _ = optimiser.update(grads, optimiser.init(params), params)
        np.testing.assert_allclose(updates, expected, rtol=1e-5)
