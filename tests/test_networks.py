"""Networks: initial weights and forward passes against NumPy, the categorical distribution, and sums over masks."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special
import scipy.stats
from helpers import (
    assert_same_bytes,
    binomial_bound,
    constant_policy,
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
from jaxpref.distributions import Categorical
from jaxpref.networks import Ensemble, Network

TASKS = {"cartpole": (4, 2), "acrobot": (6, 3)}
"""(O, A) of each task."""

LOGITS = st.lists(st.floats(-20, 20, width=32), min_size=3, max_size=3).map(jnp.array)

init_policy = jax.jit(networks.init_policy)
init_reward = jax.jit(networks.init_reward)
log_prob = jax.jit(lambda logits, action: Categorical(logits).log_prob(action))
entropy = jax.jit(lambda logits: Categorical(logits).entropy())
kl = jax.jit(lambda p, q: Categorical(p).kl(Categorical(q)))
trajectory_kl = jax.jit(networks.trajectory_kl)


@pytest.fixture(scope="module", params=TASKS)
def task(request):
    return jaxpref.task(request.param)


@pytest.fixture(scope="module")
def policy(task):
    return init_policy(jax.random.key(1), task)


@pytest.fixture(scope="module")
def reward_model(task):
    """A reward model whose head is not zero."""
    fresh = init_reward(jax.random.key(2), task)
    head = {"kernel": jax.random.normal(jax.random.key(3), (64, 1)), "bias": jnp.array([0.3])}
    return fresh.replace(params={**fresh.params, "reward": head})


def ensemble_of(*members):
    return Network(Ensemble(members[0].module), stack(*[member.params for member in members]))


# --- initial weights --------------------------------------------------------------------------------------------------


def test_an_actor_critic_has_the_layers_that_the_contract_names(task, policy):
    obs_size, num_actions = TASKS[task.name]
    assert policy.module == networks.ActorCritic(num_actions)
    assert jax.tree.map(jnp.shape, policy.params) == {
        "torso": {"kernel": (obs_size, 32), "bias": (32,)},
        "policy": {"kernel": (32, num_actions), "bias": (num_actions,)},
        "value": {"kernel": (32, 1), "bias": (1,)},
    }


def test_initial_weights_are_uniform_between_plus_and_minus_one_over_root_fan_in(task):
    """Kernels and biases alike, over 300 seeds: within the bounds, and spread like a uniform variable."""
    many = jax.jit(jax.vmap(networks.init_policy, in_axes=(0, None)))(jax.random.split(jax.random.key(4), 300), task)
    for layer, fan_in in {"torso": task.obs_size, "policy": 32, "value": 32}.items():
        for part in ("kernel", "bias"):
            bound = 1 / np.sqrt(fan_in)
            weights = np.asarray(many.params[layer][part], np.float64).ravel()
            assert np.abs(weights).max() <= bound * (1 + 1e-6)
            assert np.abs(weights).max() > 0.95 * bound
            # Kolmogorov–Smirnov: at most 2 / sqrt(n) from the uniform distribution, but for one case in 1500.
            distance = scipy.stats.kstest(weights, "uniform", args=(-bound, 2 * bound)).statistic
            assert distance < 2 / np.sqrt(len(weights))


def test_policy_scale_shrinks_the_policy_head_alone(task, policy):
    small = init_policy(jax.random.key(1), task, 0.01)
    for part in ("kernel", "bias"):
        np.testing.assert_allclose(small.params["policy"][part], 0.01 * policy.params["policy"][part], rtol=1e-5)
    for layer in ("torso", "value"):
        assert_same_bytes(small.params[layer], policy.params[layer])
    assert small.module == policy.module


def test_a_fresh_reward_model_pays_nothing(task):
    """Its head is zero: 64 hidden units on (obs, one-hot action), and a return of exactly 0 for every episode."""
    fresh = init_reward(jax.random.key(5), task)
    obs_size, num_actions = TASKS[task.name]
    assert jax.tree.map(jnp.shape, fresh.params) == {
        "torso": {"kernel": (obs_size + num_actions, 64), "bias": (64,)},
        "reward": {"kernel": (64, 1), "bias": (1,)},
    }
    for part in fresh.params["torso"].values():
        assert 0 < np.abs(part).max() <= 1 / np.sqrt(obs_size + num_actions)
    trajectories = random_trajectories(np.random.default_rng(0), [3, 9], 9, obs_size, num_actions)
    np.testing.assert_array_equal(jax.jit(networks.trajectory_reward)(fresh, trajectories), [0, 0])


# --- forward passes -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("batch", [(), (5,), (2, 3, 4)])
def test_apply_policy_is_numpys_forward_pass_for_any_leading_axes(task, policy, batch):
    obs = np.random.default_rng(1).normal(size=(*batch, task.obs_size)).astype(np.float32)
    distribution, value = jax.jit(networks.apply_policy)(policy, obs)
    log_probs, expected_value = numpy_policy(policy, obs.astype(np.float64))
    assert distribution.logits.shape == (*batch, task.num_actions)
    np.testing.assert_allclose(scipy.special.log_softmax(distribution.logits, axis=-1), log_probs, atol=1e-5)
    np.testing.assert_allclose(value, expected_value, atol=1e-5)


@pytest.mark.parametrize("batch", [(), (2, 3)])
def test_apply_reward_is_numpys_forward_pass_for_any_leading_axes(task, reward_model, batch):
    rng = np.random.default_rng(2)
    obs, action = (
        rng.normal(size=(*batch, task.obs_size)).astype(np.float32),
        rng.integers(task.num_actions, size=batch),
    )
    reward = jax.jit(networks.apply_reward)(reward_model, obs, action)
    np.testing.assert_allclose(reward, numpy_reward(reward_model, obs.astype(np.float64), action), atol=1e-4)


def test_an_ensembles_reward_is_the_mean_of_its_members(task, reward_model):
    """Three members, one leading axis more; any leading axes of the steps; and an ensemble of one is that one."""
    members = [jax.tree.map(lambda leaf, factor=factor: factor * leaf, reward_model) for factor in (1.0, -0.5, 2.0)]
    ensemble, rng = ensemble_of(*members), np.random.default_rng(8)
    apply_reward = jax.jit(networks.apply_reward)
    for batch in ((), (2, 5)):
        obs = jnp.float32(rng.normal(size=(*batch, task.obs_size)))
        action = jnp.int32(rng.integers(task.num_actions, size=batch))
        each = [numpy_reward(member, np.float64(obs), np.asarray(action)) for member in members]
        np.testing.assert_allclose(apply_reward(ensemble, obs, action), np.mean(each, axis=0), rtol=1e-4, atol=1e-4)
        assert np.min(np.std(each, axis=0)) > 1e-3
        alone = apply_reward(ensemble_of(reward_model), obs, action)
        np.testing.assert_allclose(alone, apply_reward(reward_model, obs, action), rtol=1e-5, atol=1e-5)


# --- the categorical distribution -------------------------------------------------------------------------------------


@settings(deadline=None, max_examples=40)
@given(LOGITS, LOGITS)
def test_categorical_methods_are_scipys(p_logits, q_logits):
    p, q = scipy.special.softmax(np.float64(p_logits)), scipy.special.softmax(np.float64(q_logits))
    np.testing.assert_allclose(entropy(p_logits), scipy.stats.entropy(p), rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(kl(p_logits, q_logits), scipy.stats.entropy(p, q), rtol=1e-4, atol=1e-5)
    log_probs = log_prob(jnp.broadcast_to(p_logits, (3, 3)), jnp.arange(3))
    np.testing.assert_allclose(log_probs, np.log(p), rtol=1e-5, atol=1e-5)
    # Not negative, and zero only between equal distributions: logits that differ by a constant are equal ones.
    assert kl(p_logits, q_logits) >= -1e-6
    np.testing.assert_allclose(kl(p_logits, p_logits + 3), 0, atol=1e-5)
    if np.abs(p - q).max() > 1e-2:
        assert kl(p_logits, q_logits) > 1e-5  # Pinsker: at least 2 |p - q|^2, of which 2e-4 here


def test_categorical_methods_hand_worked():
    """p = (1/2, 1/4, 1/4), q = (1/4, 1/4, 1/2): entropy 3/2 bits; KL(p || q) = 1/2 - 1/4 = 1/4 bit."""
    p, q = jnp.log(jnp.array([0.5, 0.25, 0.25])), jnp.log(jnp.array([0.25, 0.25, 0.5]))
    np.testing.assert_allclose(entropy(p), 1.5 * np.log(2), rtol=1e-6)
    np.testing.assert_allclose(kl(p, q), 0.25 * np.log(2), rtol=1e-6)
    np.testing.assert_allclose(entropy(jnp.zeros(7)), np.log(7), rtol=1e-6)


def test_kl_is_not_symmetric_and_puts_its_first_argument_first():
    """p = (1/2, 1/2), q = (1/10, 9/10): sum p ln(p/q) = ln 5 / 2 + ln(5/9) / 2, and not the other one."""
    p, q = jnp.log(jnp.array([0.5, 0.5])), jnp.log(jnp.array([0.1, 0.9]))
    np.testing.assert_allclose(kl(p, q), (np.log(5) + np.log(5 / 9)) / 2, rtol=1e-5)
    np.testing.assert_allclose(kl(q, p), 0.1 * np.log(0.2) + 0.9 * np.log(1.8), rtol=1e-5)


def test_samples_follow_the_probabilities_one_by_one_and_through_noise():
    """20,000 draws of (1/10, 3/10, 6/10), with `sample` for a batch and with `noise` for a loop: within 5 sigma."""
    probabilities, num = np.array([0.1, 0.3, 0.6]), 20_000
    logits = jnp.log(jnp.array(probabilities, jnp.float32))
    batch = Categorical(jnp.broadcast_to(logits, (num, 3))).sample(jax.random.key(0))
    one = Categorical(logits)
    noise = jax.eval_shape(lambda: one).noise(jax.random.key(1), num)
    for action in (batch, jax.vmap(one.sample_from)(noise)):
        assert action.dtype == jnp.int32
        frequencies = np.bincount(action, minlength=3) / num
        assert (np.abs(frequencies - probabilities) < [binomial_bound(p, num) for p in probabilities]).all()


# --- sums over whole trajectories ---------------------------------------------------------------------------------


def test_trajectory_sums_are_a_loop_over_the_steps_played(task, policy, reward_model):
    lengths = [1, 5, 11, 12]
    trajectories = random_trajectories(np.random.default_rng(3), lengths, 12, *TASKS[task.name])
    logp = jax.jit(networks.trajectory_log_prob)(policy, trajectories)
    learned_return = jax.jit(networks.trajectory_reward)(reward_model, trajectories)
    for i, length in enumerate(lengths):
        expected_logp = expected_return = 0.0
        for t in range(length):
            obs, action = np.asarray(trajectories.obs[i, t], np.float64), int(trajectories.action[i, t])
            expected_logp += numpy_policy(policy, obs)[0][action]
            expected_return += numpy_reward(reward_model, obs, np.array(action))
        np.testing.assert_allclose(logp[i], expected_logp, rtol=1e-5)
        np.testing.assert_allclose(learned_return[i], expected_return, rtol=1e-4, atol=1e-4)
    np.testing.assert_array_equal(jax.jit(jaxpref.true_return)(trajectories), trajectories.reward.sum(-1))


def test_a_trajectorys_kl_is_a_loop_over_the_steps_played(task, policy):
    """sum_t sum_a pi(a|s_t) log(pi(a|s_t) / ref(a|s_t)): the policy's own probabilities, not the reference's, and not
    the actions that were taken. Zero between equal policies, else positive, also where the log-ratio of the actions
    taken is negative."""
    ref_params, lengths = init_policy(jax.random.key(7), task), [1, 5, 11, 12]
    trajectories = random_trajectories(np.random.default_rng(10), lengths, 12, *TASKS[task.name])
    found = trajectory_kl(policy, ref_params, trajectories)
    for i, length in enumerate(lengths):
        expected = 0.0
        for t in range(length):
            log_p, log_q = (numpy_policy(p, np.float64(trajectories.obs[i, t]))[0] for p in (policy, ref_params))
            expected += (np.exp(log_p) * (log_p - log_q)).sum()
        np.testing.assert_allclose(found[i], expected, rtol=1e-3)
    assert (found > 0).all()
    np.testing.assert_array_equal(trajectory_kl(policy, policy, trajectories), np.zeros(4))
    assert np.abs(found / trajectory_kl(ref_params, policy, trajectories) - 1).max() > 1e-2


def test_a_trajectorys_kl_hand_worked():
    """(1/2, 1/2) against (1/10, 9/10) in each of the three steps played of five: 3 (ln 5 + ln 5/9) / 2."""
    cartpole = jaxpref.cartpole()
    trajectory = random_trajectories(np.random.default_rng(11), [3], 5)
    policies = constant_policy(cartpole, [0.5, 0.5]), constant_policy(cartpole, [0.1, 0.9])
    np.testing.assert_allclose(trajectory_kl(*policies, trajectory), [1.5 * (np.log(5) + np.log(5 / 9))], rtol=1e-5)


def test_garbage_beyond_the_mask_changes_neither_value_nor_gradient(task, policy, reward_model):
    """NaN, infinity and actions that do not exist: not a bit of the result differs."""
    clean = random_trajectories(np.random.default_rng(4), [1, 5, 12], 12, *TASKS[task.name])
    dirty = spoil(clean)
    assert np.isnan(dirty.obs).any()
    assert np.isinf(dirty.obs).any()
    for function, params in (
        (networks.trajectory_log_prob, policy),
        (networks.trajectory_reward, reward_model),
        (lambda params, t: networks.trajectory_kl(params, init_policy(jax.random.key(7), task), t), policy),
    ):
        value_and_grad = jax.jit(jax.value_and_grad(lambda params, t, function=function: function(params, t).sum()))
        assert_same_bytes(value_and_grad(params, clean), value_and_grad(params, dirty))
    true_return = jax.jit(jax.value_and_grad(lambda reward, t: jaxpref.true_return(t.replace(reward=reward)).sum()))
    assert_same_bytes(true_return(clean.reward, clean), true_return(dirty.reward, dirty))


def test_trajectory_log_probs_gradient_is_that_of_finite_differences():
    """Along one random direction of the parameters, in float64 NumPy."""
    task = jaxpref.cartpole()
    policy = init_policy(jax.random.key(6), task)
    trajectory = random_trajectories(np.random.default_rng(5), [8], 10)
    gradient = jax.jit(jax.grad(lambda policy: networks.trajectory_log_prob(policy, trajectory)[0]))(policy)
    rng = np.random.default_rng(6)
    direction = jax.tree.map(lambda leaf: rng.normal(size=leaf.shape), policy)

    def numpy_logp(step):
        moved = jax.tree.map(lambda leaf, d: np.float64(leaf) + step * d, policy, direction)
        log_probs, _ = numpy_policy(moved, np.float64(trajectory.obs[0, :8]))
        return np.take_along_axis(log_probs, np.asarray(trajectory.action[0, :8, None]), axis=1).sum()

    slope = (numpy_logp(1e-6) - numpy_logp(-1e-6)) / 2e-6
    along = sum(jax.tree.leaves(jax.tree.map(lambda g, d: np.vdot(g, d), gradient, direction)))
    np.testing.assert_allclose(along, slope, rtol=1e-4)


def test_zero_beyond_mask_keeps_what_was_played():
    trajectories = random_trajectories(np.random.default_rng(7), [2, 6], 6)
    assert_same_bytes(jax.jit(jaxpref.types.zero_beyond_mask)(spoil(trajectories)), trajectories)
