"""What the trainers share: the schedule of updates and evaluations, and minibatches of pairs."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxpref import training


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
    with pytest.raises(ValueError, match=f"multiple of eval_every.*got {num_updates} and {eval_every}"):
        training.check_schedule(num_updates, eval_every)


@pytest.mark.parametrize(("num_updates", "eval_every"), [(10, 5), (1, 1), (7, 7)])
def test_a_schedule_that_works_out_is_accepted(num_updates, eval_every):
    assert training.check_schedule(num_updates, eval_every) is None


def test_a_negative_batch_size_is_refused():
    with pytest.raises(ValueError, match=r"batch_size must be at least 1, or 0.*got -1"):
        training.check_batch_size(-1)


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
