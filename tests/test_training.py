"""What the trainers share: the schedule of updates and evaluations, and minibatches of pairs."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

from jaxpref import dpo, training


def test_scan_updates_evaluates_after_every_block():
    """A state that counts: metrics of all 6 updates in order, evaluations after updates 2, 4 and 6."""

    def update(state, key):
        return state + 1, {"before": state, "noise": jax.random.uniform(key)}

    def evaluate(state, key):
        return 10 * state, jax.random.uniform(key)

    run = jax.jit(lambda key: training.scan_updates(update, evaluate, jnp.int32(0), key, num_updates=6, eval_every=2))
    state, metrics, (evaluations, eval_noise) = run(jax.random.key(1))
    assert state == 6
    np.testing.assert_array_equal(metrics["before"], [0, 1, 2, 3, 4, 5])
    np.testing.assert_array_equal(evaluations, [20, 40, 60])
    # No key is used twice, neither among updates nor by an update and an evaluation.
    noise = [*np.asarray(metrics["noise"]), *np.asarray(eval_noise)]
    assert len(set(noise)) == 9


@pytest.mark.parametrize(("num_updates", "eval_every"), [(10, 3), (0, 1), (10, 0), (10, 20), (-4, 2)])
def test_a_schedule_that_does_not_work_out_is_refused(num_updates, eval_every):
    with pytest.raises(ValueError, match=rf"dpo\.Config: .*multiple of eval_every.*got {num_updates} and {eval_every}"):
        dpo.Config(num_updates=num_updates, eval_every=eval_every)


@pytest.mark.parametrize(("num_updates", "eval_every"), [(10, 5), (1, 1), (7, 7)])
def test_a_schedule_that_works_out_is_accepted(num_updates, eval_every):
    assert dpo.Config(num_updates=num_updates, eval_every=eval_every).num_updates == num_updates


@pytest.mark.parametrize("beta", [-0.1, float("nan"), float("inf")])
def test_a_number_out_of_its_range_is_refused(beta):
    with pytest.raises(ValueError, match=rf"^dpo\.Config: beta must be at least 0, got {beta}$"):
        dpo.Config(beta=beta)


def test_both_ends_of_a_range_belong_to_it():
    assert [dpo.Config(label_smoothing=end).label_smoothing for end in (0, 0.5)] == [0, 0.5]
    for outside in (-0.01, 0.51):
        with pytest.raises(ValueError, match=r"between 0 and 0\.5"):
            dpo.Config(label_smoothing=outside)


def test_a_hyperparameter_that_is_swept_is_not_looked_at():
    betas = jnp.array([0.1, -1.0])
    np.testing.assert_array_equal(dpo.Config(beta=betas).beta, betas)
    np.testing.assert_array_equal(jax.vmap(lambda beta: dpo.Config(beta=beta).beta)(betas), betas)


@pytest.mark.parametrize("size", [1, 2, 5, 64, 100, 2048, 20_000])
def test_a_shuffle_holds_every_number_once(size):
    order = np.asarray(jax.jit(training.shuffled, static_argnums=1)(jax.random.key(size), size))
    np.testing.assert_array_equal(np.sort(order), np.arange(size))


def test_every_order_is_equally_likely():
    """3! = 6 orders, each in a sixth of 30,000 shuffles; and in longer ones every number is in every place as often."""
    draw = jax.jit(jax.vmap(training.shuffled, in_axes=(0, None)), static_argnums=1)
    orders, counts = np.unique(draw(jax.random.split(jax.random.key(1), 30_000), 3), axis=0, return_counts=True)
    assert len(orders) == 6
    assert scipy.stats.chisquare(counts).pvalue > 1e-6
    places = np.asarray(draw(jax.random.split(jax.random.key(2), 20_000), 16))
    for place in range(16):
        assert scipy.stats.chisquare(np.bincount(places[:, place], minlength=16)).pvalue > 1e-6


def test_batch_size_0_is_all_pairs_with_their_own_weights():
    weight = jnp.array([0.5, 0.0, 2.0])
    index, weights = training.draw_minibatch(jax.random.key(2), weight, 0)
    np.testing.assert_array_equal(index, [0, 1, 2])
    np.testing.assert_array_equal(weights, weight)


def test_a_minibatch_estimates_the_weighted_mean_of_all_pairs():
    """Drawn by weight and then counted alike: the mean over minibatches is the weighted mean."""
    weight, loss = jnp.array([1.0, 3.0, 0.0, 4.0]), jnp.array([10.0, 2.0, 99.0, -1.0])

    @jax.jit
    @jax.vmap
    def estimate(key):
        index, weights = training.draw_minibatch(key, weight, 3)
        return jnp.average(loss[index], weights=weights)

    estimates = np.asarray(estimate(jax.random.split(jax.random.key(3), 20_000)))
    expected = (10 + 3 * 2 + 4 * -1) / 8
    assert estimates.std() > 0.5
    assert abs(estimates.mean() - expected) < 5 * estimates.std() / np.sqrt(len(estimates))


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
