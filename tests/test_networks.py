"""Networks: initial weights and forward passes against NumPy, the categorical distribution, and sums over masks."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special
import scipy.stats
from helpers import assert_same_bytes, binomial_bound, numpy_policy, numpy_reward, random_trajectories, spoil, stack
from hypothesis import given, settings
from hypothesis import strategies as st

import jaxpref
from jaxpref import networks
from jaxpref.distributions import Categorical
from jaxpref.networks import Ensemble, Network

LOGITS = st.lists(st.floats(-20, 20, width=32), min_size=3, max_size=3).map(jnp.array)

init_policy = jax.jit(networks.init_policy)
init_reward = jax.jit(networks.init_reward)
log_prob = jax.jit(lambda logits, action: Categorical(logits).log_prob(action))
entropy = jax.jit(lambda logits: Categorical(logits).entropy())
kl = jax.jit(lambda p, q: Categorical(p).kl(Categorical(q)))
trajectory_kl = jax.jit(networks.trajectory_kl)
trajectory_reward = jax.jit(networks.trajectory_reward)

TASK = jaxpref.acrobot()
SIZES = TASK.obs_size, TASK.num_actions  # 6, 3
POLICY, OTHER = (init_policy(jax.random.key(seed), TASK) for seed in (1, 7))
FRESH = init_reward(jax.random.key(2), TASK)
HEAD = {"kernel": jax.random.normal(jax.random.key(3), (64, 1)), "bias": jnp.array([0.3])}
REWARD = FRESH.replace(params={**FRESH.params, "reward": HEAD})


def test_a_policys_weights_are_uniform_between_plus_and_minus_one_over_root_fan_in():
    """Kernels and biases alike, over 300 seeds: within the bounds, and spread like a uniform variable. `policy_scale`
    scales the policy's head."""
    draw = jax.jit(jax.vmap(lambda key: networks.init_policy(key, TASK, 0.1)))
    many = draw(jax.random.split(jax.random.key(4), 300))
    assert many.module == networks.ActorCritic(3)
    assert jax.tree.map(lambda leaf: leaf.shape[1:], many.params) == {
        "torso": {"kernel": (6, 32), "bias": (32,)},
        "policy": {"kernel": (32, 3), "bias": (3,)},
        "value": {"kernel": (32, 1), "bias": (1,)},
    }
    for layer, (fan_in, scale) in {"torso": (6, 1), "policy": (32, 0.1), "value": (32, 1)}.items():
        for part in ("kernel", "bias"):
            bound = scale / np.sqrt(fan_in)
            weights = np.asarray(many.params[layer][part], np.float64).ravel()
            assert 0.95 * bound < np.abs(weights).max() <= bound * (1 + 1e-6)
            # Kolmogorov–Smirnov: at most 2 / sqrt(n) from the uniform distribution, except in one case of 1500.
            distance = scipy.stats.kstest(weights, "uniform", args=(-bound, 2 * bound)).statistic
            assert distance < 2 / np.sqrt(len(weights))


def test_a_fresh_reward_model_pays_nothing():
    """Its head is zero: 64 hidden units on (obs, one-hot action), and a return of exactly 0 for every episode."""
    assert jax.tree.map(jnp.shape, FRESH.params) == {
        "torso": {"kernel": (9, 64), "bias": (64,)},
        "reward": {"kernel": (64, 1), "bias": (1,)},
    }
    for part in FRESH.params["torso"].values():
        assert 0 < np.abs(part).max() <= 1 / 3
    trajectories = random_trajectories(np.random.default_rng(0), [3, 9], 9, *SIZES)
    np.testing.assert_array_equal(trajectory_reward(FRESH, trajectories), [0, 0])


@pytest.mark.parametrize("batch", [(), (2, 3)])
def test_networks_are_numpys_forward_passes_for_any_leading_axes(batch):
    """An ensemble's reward is the mean of its members'."""
    rng = np.random.default_rng(2)
    obs, action = rng.normal(size=(*batch, 6)).astype(np.float32), rng.integers(3, size=batch)
    distribution, value = jax.jit(networks.apply_policy)(POLICY, obs)
    log_probs, expected_value = numpy_policy(POLICY, obs.astype(np.float64))
    np.testing.assert_allclose(scipy.special.log_softmax(distribution.logits, axis=-1), log_probs, atol=1e-5)
    np.testing.assert_allclose(value, expected_value, atol=1e-5)
    members = [jax.tree.map(lambda leaf, factor=factor: factor * leaf, REWARD) for factor in (1.0, -0.5, 2.0)]
    each = [numpy_reward(member, obs.astype(np.float64), action) for member in members]
    apply_reward = jax.jit(networks.apply_reward)
    np.testing.assert_allclose(apply_reward(REWARD, obs, action), each[0], atol=1e-4)
    ensemble = Network(Ensemble(REWARD.module), stack(*[member.params for member in members]))
    np.testing.assert_allclose(apply_reward(ensemble, obs, action), np.mean(each, axis=0), rtol=1e-4, atol=1e-4)


@settings(deadline=None, max_examples=40)
@given(LOGITS, LOGITS)
def test_categorical_methods_are_scipys(p_logits, q_logits):
    p, q = scipy.special.softmax(np.float64(p_logits)), scipy.special.softmax(np.float64(q_logits))
    np.testing.assert_allclose(entropy(p_logits), scipy.stats.entropy(p), rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(kl(p_logits, q_logits), scipy.stats.entropy(p, q), rtol=1e-4, atol=1e-5)
    log_probs = log_prob(jnp.broadcast_to(p_logits, (3, 3)), jnp.arange(3))
    np.testing.assert_allclose(log_probs, np.log(p), rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(kl(p_logits, p_logits + 3), 0, atol=1e-5)  # a constant changes nothing


@pytest.mark.parametrize("probabilities", [[1.0], [0.2, 0.8], [0.1, 0.3, 0.6]])
def test_samples_follow_the_probabilities_one_by_one_and_through_noise(probabilities):
    """20,000 draws, with `sample` for a batch and with `noise` for a loop: within 5 sigma."""
    probabilities, num = np.array(probabilities), 20_000
    logits = jnp.log(jnp.array(probabilities, jnp.float32))
    batch = Categorical(jnp.broadcast_to(logits, (num, len(probabilities)))).sample(jax.random.key(0))
    one = Categorical(logits)
    noise = jax.eval_shape(lambda: one).noise(jax.random.key(1), num)
    for action in (batch, jax.vmap(one.sample_from)(noise)):
        assert action.dtype == jnp.int32
        frequencies = np.bincount(action, minlength=len(probabilities)) / num
        assert (np.abs(frequencies - probabilities) <= [binomial_bound(p, num) for p in probabilities]).all()


def test_trajectory_sums_are_a_loop_over_the_steps_played():
    """The KL divergence is sum_t sum_a pi(a|s_t) log(pi(a|s_t) / ref(a|s_t)): the policy's own probabilities, not the
    reference's, and not the actions that were taken."""
    lengths = [1, 5, 11, 12]
    trajectories = random_trajectories(np.random.default_rng(3), lengths, 12, *SIZES)
    logp = jax.jit(networks.trajectory_log_prob)(POLICY, trajectories)
    learned_return = trajectory_reward(REWARD, trajectories)
    kl_of_policies = trajectory_kl(POLICY, OTHER, trajectories)
    for i, length in enumerate(lengths):
        expected_logp = expected_return = expected_kl = 0.0
        for t in range(length):
            obs, action = np.asarray(trajectories.obs[i, t], np.float64), int(trajectories.action[i, t])
            log_p, log_q = (numpy_policy(policy, obs)[0] for policy in (POLICY, OTHER))
            expected_logp += log_p[action]
            expected_return += numpy_reward(REWARD, obs, np.array(action))
            expected_kl += (np.exp(log_p) * (log_p - log_q)).sum()
        np.testing.assert_allclose(logp[i], expected_logp, rtol=1e-5)
        np.testing.assert_allclose(learned_return[i], expected_return, rtol=1e-4, atol=1e-4)
        np.testing.assert_allclose(kl_of_policies[i], expected_kl, rtol=1e-3)
    np.testing.assert_array_equal(trajectory_kl(POLICY, POLICY, trajectories), np.zeros(4))
    np.testing.assert_array_equal(jaxpref.true_return(trajectories), trajectories.reward.sum(-1))


def test_garbage_beyond_the_mask_changes_neither_value_nor_gradient():
    """NaN, infinity and actions that do not exist: not a bit of the result differs."""
    clean = random_trajectories(np.random.default_rng(4), [1, 5, 12], 12, *SIZES)
    dirty = spoil(clean)
    for function, params in (
        (networks.trajectory_log_prob, POLICY),
        (networks.trajectory_reward, REWARD),
        (lambda params, t: networks.trajectory_kl(params, OTHER, t), POLICY),
    ):
        value_and_grad = jax.jit(jax.value_and_grad(lambda params, t, function=function: function(params, t).sum()))
        assert_same_bytes(value_and_grad(params, clean), value_and_grad(params, dirty))
    true_return = jax.jit(jax.value_and_grad(lambda reward, t: jaxpref.true_return(t.replace(reward=reward)).sum()))
    assert_same_bytes(true_return(clean.reward, clean), true_return(dirty.reward, dirty))
