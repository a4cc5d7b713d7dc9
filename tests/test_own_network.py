"""Custom networks: a flax module that travels with its parameters, through every part of the library."""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats
from helpers import AIM, assert_close, assert_same_bytes, random_preferences

import jaxpref
from jaxpref import dpo, expert_ppo, networks, packed, ppo, reinforce, reward_model, store
from jaxpref.distributions import Gaussian
from jaxpref.networks import Ensemble, Network
from jaxpref.rollout import episodes


class Policy(nn.Module):
    """The default policy as a class that the library does not know, with logits in place of a distribution."""

    @nn.compact
    def __call__(self, obs):
        features = nn.relu(nn.Dense(32, name="torso")(obs))
        return nn.Dense(2, name="policy")(features), nn.Dense(1, name="value")(features).squeeze(-1)


class Reward(networks.RewardModel):
    """The default reward model as a class that the library does not know."""


KEY, TASK = jax.random.key(0), jaxpref.cartpole(horizon=20)
CUSTOM = dataclasses.replace(TASK, policy_network=Policy(), reward_network=Reward(2), pi1_target=18, pi2_target=15)


def default(network):
    """The default network with a custom network's parameters."""
    return Network(networks.ActorCritic(2) if network.module == Policy() else networks.RewardModel(2), network.params)


def test_a_custom_network_computes_what_the_default_one_does():
    """Also in packed sums, which know the default forward pass and take the custom one as it is."""
    pairs = random_preferences(np.random.default_rng(0), 3, 20)
    policy = networks.init_policy(KEY, CUSTOM, policy_scale=0.5)
    reward = jax.tree.map(lambda leaf: leaf + 0.1, networks.init_reward(jax.random.key(1), CUSTOM))
    outputs = [networks.apply_policy(each, pairs.chosen.obs) for each in (policy, default(policy))]
    assert_close(*outputs, rtol=1e-5, atol=1e-6)  # the sums of a layer have another order
    rows, index = packed.pack(pairs.chosen, CUSTOM.num_actions), jnp.arange(3)
    for sums, network in ((packed.log_prob, policy), (packed.reward, reward)):
        value_and_grad = jax.jit(jax.value_and_grad(lambda network, sums=sums: sums(network, rows, index).sum()))
        value, grads = value_and_grad(network)
        assert_close((value, default(grads)), value_and_grad(default(network)), rtol=1e-4, atol=1e-5)


class Nameless(nn.Module):
    """A reward model whose last layer has no name of its own."""

    @nn.compact
    def __call__(self, obs, action):
        return nn.Dense(1)(obs).squeeze(-1)


def test_a_reward_model_that_cannot_be_calibrated_is_refused():
    task = dataclasses.replace(TASK, reward_network=Nameless())
    pairs = random_preferences(np.random.default_rng(0), 4, 20)
    with pytest.raises(ValueError, match='Nameless needs a last, linear layer "reward" for the calibration'):
        reward_model.train(task, reward_model.Config(num_updates=1), KEY, pairs)
    result = reward_model.train(task, reward_model.Config(num_updates=1, num_folds=0), KEY, pairs)
    assert np.isfinite(result.metrics.loss).all()


def test_a_network_is_stored_under_the_names_of_its_parameters(tmp_path):
    policy, other = (networks.init_policy(jax.random.key(seed), CUSTOM) for seed in (0, 1))
    names = {f"params/{layer}/{part}" for layer in ("torso", "policy", "value") for part in ("kernel", "bias")}
    assert set(store.named_leaves(policy)) == names
    store.save_pytree(tmp_path / "policy.npz", policy)
    assert_same_bytes(store.load_pytree(tmp_path / "policy.npz", other), policy)


def test_a_custom_policy_has_the_heads_that_others_change():
    """`init_policy` scales the one, PPO resets the other, and nothing else changes."""
    full, small = (networks.init_policy(KEY, CUSTOM, scale) for scale in (1.0, 0.01))
    assert_close(small.params["policy"], jax.tree.map(lambda leaf: 0.01 * leaf, full.params["policy"]))
    without = ppo.without_value(small)
    obs = jax.random.normal(jax.random.key(1), (5, 4))
    np.testing.assert_array_equal(networks.apply_policy(without, obs)[1], np.zeros(5))
    assert_same_bytes(without.params["torso"], full.params["torso"])

    class Headless(nn.Module):
        @nn.compact
        def __call__(self, obs):
            outputs = nn.Dense(3, name="outputs")(obs)
            return outputs[..., :2], outputs[..., 2]

    with pytest.raises(ValueError, match=r'Headless must have layers "policy" and "value", but has .*outputs'):
        networks.init_policy(KEY, dataclasses.replace(TASK, policy_network=Headless()))


def test_every_trainer_takes_a_custom_network_and_returns_it():
    """Traced, not run. REINFORCE takes it from the task, the others with the parameters."""
    pairs, policy = random_preferences(np.random.default_rng(1), 8, 20), networks.init_policy(KEY, CUSTOM)
    ppo_config = ppo.Config(num_updates=2, eval_every=1, num_envs=2, num_steps=16, num_minibatches=2)

    def train_all(key):
        reward = reward_model.train_ensemble(CUSTOM, reward_model.Config(), key, pairs, num_members=2).params
        trained = dpo.train(CUSTOM, dpo.Config(), key, pairs, policy, policy).params
        experts = reinforce.train(CUSTOM, reinforce.Config(), key)
        return reward, trained, ppo.train(CUSTOM, ppo_config, key, policy, policy, reward).params, experts.pi1

    reward, *policies = jax.eval_shape(train_all, KEY)
    assert reward.module == Ensemble(Reward(2))
    assert {leaf.shape[0] for leaf in jax.tree.leaves(reward)} == {2}
    for trained in policies:
        assert trained.module == Policy()
        assert jax.tree.map(jnp.shape, trained.params) == jax.tree.map(jnp.shape, policy.params)


class Cautious(nn.Module):
    """A policy of continuous actions whose deviation depends on the observation."""

    @nn.compact
    def __call__(self, obs):
        features = nn.relu(nn.Dense(8, name="torso")(obs))
        mean, log_std = jnp.split(nn.Dense(2, name="policy")(features), 2, axis=-1)
        return Gaussian(mean, log_std), nn.Dense(1, name="value")(features).squeeze(-1)


def test_a_custom_policy_of_continuous_actions_is_played_and_trained():
    """Its density of a drawn action is that of its own mean and deviation, also in packed sums."""
    task = dataclasses.replace(AIM, policy_network=Cautious())
    policy = networks.init_policy(KEY, task)
    played = jax.jit(episodes, static_argnums=3)(task, policy, KEY, 5)
    distribution, _ = networks.apply_policy(policy, played.obs)
    expected = scipy.stats.norm(distribution.mean, np.exp(distribution.log_std)).logpdf(played.action).sum((1, 2))
    rows = packed.pack(played, task.num_actions)
    np.testing.assert_allclose(packed.log_prob(policy, rows, jnp.arange(5)), expected, rtol=1e-4)
    config = ppo.Config(num_updates=1, eval_every=1, num_envs=2, num_steps=16, num_minibatches=2)
    experts = jax.eval_shape(lambda key: expert_ppo.train(task, config, key), KEY)
    assert experts.pi1.module == Cautious()


def test_the_convolution_is_that_of_its_definition():
    """features[y, x, k] = relu(sum_{i, j, c} image[y + i, x + j, c] * kernel[i, j, c, k] + bias[k])."""
    rng = np.random.default_rng(0)
    image, kernel, bias = rng.normal(size=(2, 5, 4, 3)), rng.normal(size=(3, 3, 3, 6)), rng.normal(size=6)
    params = {"kernels": {"kernel": jnp.float32(kernel.reshape(27, 6)), "bias": jnp.float32(bias)}}
    module = networks.Convolution((5, 4, 3), features=6)
    features = module.apply({"params": params}, jnp.float32(image.reshape(2, 60)))
    patches = np.lib.stride_tricks.sliding_window_view(image, (3, 3), axis=(1, 2))  # [b, y, x, c, i, j]
    expected = np.maximum(np.einsum("byxcij,ijck->byxk", patches, kernel) + bias, 0)
    np.testing.assert_allclose(features, expected.reshape(2, 36), rtol=1e-4, atol=1e-5)


def test_convolutions_take_flat_images_with_any_batch_axes():
    task = dataclasses.replace(jaxpref.task("Catch-bsuite"), policy_network=networks.ConvActorCritic(3, (10, 5)))
    obs, action = jnp.ones((2, 4, 50)), jnp.zeros((2, 4), jnp.int32)  # two axes: one channel
    distribution, value = networks.apply_policy(networks.init_policy(KEY, task), obs)
    assert (distribution.logits.shape, value.shape) == ((2, 4, 3), (2, 4))
    for use_next_obs in (False, True):
        task = dataclasses.replace(task, reward_network=networks.ConvRewardModel(3, (10, 5), use_next_obs=use_next_obs))
        reward = jax.tree.map(lambda leaf: leaf + 0.1, networks.init_reward(KEY, task))
        still, moved = (networks.apply_reward(reward, obs, action, next_obs) for next_obs in (obs, 2 * obs))
        assert still.shape == (2, 4)
        assert np.allclose(still, moved) == (not use_next_obs)


def test_the_policies_of_a_pair_may_be_of_two_kinds():
    """The same pairs as those of one kind: the custom network computes what the default one does."""
    policy = networks.init_policy(KEY, CUSTOM)
    one_kind, two_kinds = (
        jaxpref.sample_preferences(CUSTOM, first, default(policy), jax.random.key(2), 5)
        for first in (default(policy), policy)
    )
    assert_close(two_kinds, one_kind, rtol=1e-5, atol=1e-6)
