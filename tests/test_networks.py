"""Networks: initial weights and forward passes against NumPy, the distributions, and sums over masks."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.integrate
import scipy.special
import scipy.stats
from helpers import (
    assert_same_bytes,
    binomial_bound,
    numpy_layers,
    numpy_policy,
    numpy_reward,
    random_trajectories,
    spoil,
    stack,
)
from hypothesis import given, settings
from hypothesis import strategies as st

import jaxpref
from jaxpref import networks
from jaxpref.distributions import Categorical, Gaussian
from jaxpref.networks import Ensemble, Network
from jaxpref.tasks import Task

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
    """Its head is zero: 64 hidden units on (obs, its change, one-hot action). Each return is exactly 0."""
    assert jax.tree.map(jnp.shape, FRESH.params) == {
        "torso": {"kernel": (15, 64), "bias": (64,)},
        "reward": {"kernel": (64, 1), "bias": (1,)},
    }
    for part in FRESH.params["torso"].values():
        assert 0 < np.abs(part).max() <= 1 / np.sqrt(15)
    trajectories = random_trajectories(np.random.default_rng(0), [3, 9], 9, *SIZES)
    np.testing.assert_array_equal(trajectory_reward(FRESH, trajectories), [0, 0])


@pytest.mark.parametrize("batch", [(), (2, 3)])
def test_networks_are_numpys_forward_passes_for_any_leading_axes(batch):
    """An ensemble's reward is the mean of its members'."""
    rng = np.random.default_rng(2)
    obs, next_obs = rng.normal(size=(2, *batch, 6)).astype(np.float32)
    action = rng.integers(3, size=batch)
    distribution, value = jax.jit(networks.apply_policy)(POLICY, obs)
    log_probs, expected_value = numpy_policy(POLICY, obs.astype(np.float64))
    np.testing.assert_allclose(scipy.special.log_softmax(distribution.logits, axis=-1), log_probs, atol=1e-5)
    np.testing.assert_allclose(value, expected_value, atol=1e-5)
    members = [jax.tree.map(lambda leaf, factor=factor: factor * leaf, REWARD) for factor in (1.0, -0.5, 2.0)]
    each = [numpy_reward(member, np.float64(obs), action, np.float64(next_obs)) for member in members]
    apply_reward = jax.jit(networks.apply_reward)
    np.testing.assert_allclose(apply_reward(REWARD, obs, action, next_obs), each[0], atol=1e-4)
    with pytest.raises(ValueError, match="pass next_obs"):
        networks.apply_reward(REWARD, jnp.asarray(obs), jnp.asarray(action))
    ensemble = Network(Ensemble(REWARD.module), stack(*[member.params for member in members]))
    np.testing.assert_allclose(
        apply_reward(ensemble, obs, action, next_obs), np.mean(each, axis=0), rtol=1e-4, atol=1e-4
    )


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


TRIPLES = st.lists(st.floats(-3, 3, width=32), min_size=3, max_size=3).map(jnp.array)


@settings(deadline=None, max_examples=25)
@given(TRIPLES, TRIPLES, TRIPLES, TRIPLES, TRIPLES)
def test_gaussian_methods_are_scipys(mean, log_std, other_mean, other_log_std, action):
    """The divergence is worked by hand: log(r / s) + (s^2 + (m - n)^2) / (2 r^2) - 1/2 of N(m, s^2) from N(n, r^2)."""
    log_prob, entropy, kl, none = gaussian_methods(Gaussian(mean, log_std), Gaussian(other_mean, other_log_std), action)
    m, n, x = np.float64(mean), np.float64(other_mean), np.float64(action)
    s, r = np.exp(np.float64(log_std)), np.exp(np.float64(other_log_std))
    np.testing.assert_allclose(log_prob, scipy.stats.norm(m, s).logpdf(x).sum(), rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(entropy, scipy.stats.norm(m, s).entropy().sum(), rtol=1e-5, atol=1e-5)
    expected = np.log(r / s) + (s**2 + (m - n) ** 2) / (2 * r**2) - 0.5
    np.testing.assert_allclose(kl, expected.sum(), rtol=1e-4, atol=1e-4)
    assert none == 0


@jax.jit
def gaussian_methods(one, other, action):
    return one.log_prob(action), one.entropy(), one.kl(other), one.kl(one)


def test_a_gaussians_entropy_and_divergence_are_integrals():
    """Of -p log p and of p log(p / q), each number of the action on its own."""
    one = Gaussian(jnp.array([0.3, -1.0]), jnp.log(jnp.array([0.5, 2.0])))
    other = Gaussian(jnp.array([0.6, 2.0]), jnp.log(jnp.array([0.8, 1.5])))
    _, entropy, kl, _ = gaussian_methods(one, other, one.mean)
    expected_entropy = expected_kl = 0.0
    for i in range(2):
        p, q = (scipy.stats.norm(float(each.mean[i]), float(np.exp(each.log_std[i]))) for each in (one, other))
        low, high = p.mean() - 12 * p.std(), p.mean() + 12 * p.std()
        expected_entropy -= scipy.integrate.quad(lambda x, p=p: p.pdf(x) * p.logpdf(x), low, high)[0]
        expected_kl += scipy.integrate.quad(lambda x, p=p, q=q: p.pdf(x) * (p.logpdf(x) - q.logpdf(x)), low, high)[0]
    np.testing.assert_allclose(entropy, expected_entropy, rtol=1e-5)
    np.testing.assert_allclose(kl, expected_kl, rtol=1e-5)


def test_the_score_of_a_gaussian_hand_worked():
    """d log p / d mean = (x - m) / s^2 and d log p / d log s = ((x - m) / s)^2 - 1: at m = 1, s = 2, x = 4 and at
    m = 0, s = 1/2, x = 1/4."""
    one = Gaussian(jnp.array([1.0, 0.0]), jnp.log(jnp.array([2.0, 0.5])))
    score = jax.grad(lambda one: one.log_prob(jnp.array([4.0, 0.25])))(one)
    np.testing.assert_allclose(score.mean, [3 / 4, 1], rtol=1e-6)
    np.testing.assert_allclose(score.log_std, [9 / 4 - 1, 1 / 4 - 1], rtol=1e-6)


def test_a_gaussians_samples_have_its_mean_and_deviation_one_by_one_and_through_noise():
    """20,000 draws of two numbers: means and deviations within 5 sigma, and the numbers do not depend on each other."""
    num, mean, std = 20_000, np.array([-3.0, 1.0]), np.array([0.2, 4.0])
    one = Gaussian(jnp.float32(mean), jnp.log(jnp.float32(std)))
    batch = jax.tree.map(lambda leaf: jnp.broadcast_to(leaf, (num, 2)), one).sample(jax.random.key(0))
    noise = jax.eval_shape(lambda: one).noise(jax.random.key(1), num)
    for action in (batch, jax.vmap(one.sample_from)(noise)):
        assert (action.dtype, action.shape) == (jnp.float32, (num, 2))
        z = (np.float64(action) - mean) / std
        assert (np.abs(z.mean(axis=0)) < 5 / np.sqrt(num)).all()
        assert (np.abs(z.std(axis=0) - 1) < 5 / np.sqrt(2 * num)).all()
        assert abs((z[:, 0] * z[:, 1]).mean()) < 5 / np.sqrt(num)
        assert scipy.stats.kstest(z.ravel(), "norm").statistic < 2 / np.sqrt(2 * num)
    # A sample is the mean and so many deviations.
    np.testing.assert_allclose(one.sample_from(jnp.array([1.0, -0.5])), [-2.8, -1.0], rtol=1e-6)
    key = jax.random.key(2)
    assert_same_bytes(one.sample(key), one.sample_from(jax.random.normal(key, (2,))))


# --- continuous actions -----------------------------------------------------------------------------------------------

RANGE = ((-2.0, 4.0), (0.0, 1.0))
"""Of two numbers: centres 1 and 1/2, halves 3 and 1/2."""
BOXED = Task("boxed", None, None, 12, 6, 2, action_range=RANGE)


def test_a_gaussian_policy_is_in_units_of_half_the_range():
    """The outputs of the last layer, times half the range, from its centre; deviations of exp(log_std) halves, the same
    at all observations."""
    policy = networks.init_policy(jax.random.key(8), BOXED)
    assert policy.params["log_std"].shape == (2,)
    assert policy.params["torso"]["kernel"].shape == (6, 64)
    policy.params["log_std"] = jnp.array([0.0, -1.0])
    obs = np.random.default_rng(8).normal(size=(2, 3, 6)).astype(np.float32)
    distribution, value = networks.apply_policy(policy, jnp.asarray(obs))
    outputs, expected_value = numpy_layers(policy, obs.astype(np.float64))
    np.testing.assert_allclose(distribution.mean, [1, 0.5] + [3, 0.5] * outputs, atol=1e-5)
    expected = np.broadcast_to(np.log([3, 0.5 * np.exp(-1)]), (2, 3, 2))
    np.testing.assert_allclose(distribution.log_std, expected, rtol=1e-6)
    np.testing.assert_allclose(value, expected_value, atol=1e-5)
    # A small last layer is a first policy in the middle of the range.
    small = networks.init_policy(jax.random.key(8), BOXED, policy_scale=1e-4)
    mean = networks.apply_policy(small, jnp.asarray(obs))[0].mean
    np.testing.assert_allclose(mean, np.broadcast_to([1, 0.5], (2, 3, 2)), atol=1e-3)


def test_a_reward_model_clips_and_scales_continuous_actions():
    """-2, 1 and 4 are -1, 0 and 1 in units of half the range from its centre; 7 is beyond and counts as 4."""
    reward = networks.init_reward(jax.random.key(9), BOXED, use_next_obs=False)
    rng = np.random.default_rng(9)
    reward = jax.tree.map(lambda leaf: jnp.float32(rng.normal(size=leaf.shape)), reward)
    obs, action = rng.normal(size=6), np.array([[-2, 0], [1, 0.5], [4, 0.75], [7, -3], [4, 0]])
    scaled = np.array([[-1, -1], [0, 0], [1, 0.5], [1, -1], [1, -1]])
    layers = jax.tree.map(np.float64, reward.params)
    inputs = np.concatenate([np.broadcast_to(obs, (5, 6)), scaled], axis=1)
    features = np.maximum(inputs @ layers["torso"]["kernel"] + layers["torso"]["bias"], 0)
    expected = features @ layers["reward"]["kernel"] + layers["reward"]["bias"]
    paid = networks.apply_reward(reward, jnp.float32(inputs[:, :6]), jnp.float32(action))
    np.testing.assert_allclose(paid, expected[:, 0], rtol=1e-4, atol=1e-4)
    assert paid[3] == paid[4]


# --- sums -------------------------------------------------------------------------------------------------------------


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
            expected_return += numpy_reward(REWARD, obs, np.array(action), np.float64(trajectories.next_obs[i, t]))
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
