"""Networks of one's own: a flax module that travels with its parameters, through every part of the library."""

import dataclasses
import importlib.util
from pathlib import Path

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import assert_close, assert_same_bytes, random_preferences

import jaxpref
from jaxpref import dpo, networks, packed, ppo, reinforce, reward_model, store

EXAMPLES = Path(__file__).parents[1] / "examples"
TASK = jaxpref.cartpole(horizon=20)
OWN = dataclasses.replace(
    TASK, policy_network=networks.ActorCritic(2), reward_network=networks.RewardModel(2), pi1_target=18, pi2_target=15
)
"""The default networks, given as if they were one's own: whatever is trained must come out the same."""


def plain(network):
    """The parameters of a `Network` without their module."""
    return {"params": network.params}


def test_a_network_without_its_module_computes_the_same():
    pairs = random_preferences(np.random.default_rng(0), 3, 20)
    policy = networks.init_policy(jax.random.key(0), OWN, policy_scale=0.5)
    reward = networks.init_reward(jax.random.key(1), OWN)
    reward = dataclasses.replace(reward, params=jax.tree.map(lambda leaf: leaf + 0.1, reward.params))
    assert_close(
        networks.apply_policy(policy, pairs.chosen.obs), networks.apply_policy(plain(policy), pairs.chosen.obs)
    )
    rows, index = packed.pack(pairs.chosen), jnp.arange(3)
    for sums, params in ((packed.log_prob, policy), (packed.reward, reward)):
        value, grads = jax.jit(jax.value_and_grad(lambda params, sums=sums: sums(params, rows, index).sum()))(params)
        expected = jax.jit(jax.value_and_grad(lambda params, sums=sums: sums(params, rows, index).sum()))(plain(params))
        assert_close((value, plain(grads)), expected, rtol=1e-4, atol=1e-5)


def test_policy_scale_shrinks_ones_own_policy_head_alone():
    full, small = (networks.init_policy(jax.random.key(0), OWN, scale) for scale in (1.0, 0.01))
    assert_close(small.params["policy"], jax.tree.map(lambda leaf: 0.01 * leaf, full.params["policy"]))
    for name in ("torso", "value"):
        assert_same_bytes(small.params[name], full.params[name])


def test_every_trainer_takes_a_network_as_it_takes_parameters():
    pairs = random_preferences(np.random.default_rng(1), 8, 20)
    key, policy = jax.random.key(2), networks.init_policy(jax.random.key(3), OWN)
    dpo_config = dpo.Config(num_updates=4, eval_every=2, eval_episodes=2, batch_size=4)
    reward_config = reward_model.Config(num_updates=4, batch_size=4)
    ppo_config = ppo.Config(num_updates=2, eval_every=1, eval_episodes=2, num_envs=2, num_steps=16, num_minibatches=2)

    @jax.jit
    def train_all(task, policy):
        trained = dpo.train(task, dpo_config, key, pairs, policy, policy)
        reward = reward_model.train_ensemble(task, reward_config, key, pairs, num_members=2)
        return trained, reward, ppo.train(task, ppo_config, key, policy, policy, reward.params)

    of_networks = train_all(OWN, policy)
    of_params = train_all(TASK, plain(policy))
    assert of_networks[1].params.is_ensemble
    assert not of_networks[0].params.is_ensemble
    for own, default in zip(of_networks, of_params, strict=True):
        assert_close(plain(own.params), default.params, rtol=1e-3, atol=1e-4)
        assert_close(own.metrics, default.metrics, rtol=1e-3, atol=1e-3)


def test_reinforce_takes_its_network_from_the_task():
    result = jax.jit(reinforce.train)(OWN, reinforce.Config(num_updates=2), jax.random.key(0))
    assert result.pi1.module == networks.ActorCritic(2)
    assert result.pi1.params["torso"]["kernel"].shape == (4, 32)


def test_ppo_forgets_the_value_head_of_ones_own_network():
    policy = networks.init_policy(jax.random.key(0), OWN)
    without = ppo.without_value(policy)
    obs = jax.random.normal(jax.random.key(1), (5, 4))
    np.testing.assert_array_equal(networks.apply_policy(without, obs)[1], np.zeros(5))
    np.testing.assert_array_equal(networks.apply_policy(without, obs)[0], networks.apply_policy(policy, obs)[0])


def test_a_network_is_stored_under_the_names_of_its_parameters(tmp_path):
    policy = networks.init_policy(jax.random.key(0), OWN)
    assert set(store.named_leaves(policy)) == set(store.named_leaves(plain(policy)))
    store.save_pytree(tmp_path / "policy.npz", policy)
    other = networks.init_policy(jax.random.key(1), OWN)
    assert_same_bytes(store.load_pytree(tmp_path / "policy.npz", other), policy)


def test_networks_that_cannot_serve_are_refused():
    class Headless(nn.Module):
        @nn.compact
        def __call__(self, obs):
            outputs = nn.Dense(3, name="outputs")(obs)
            return outputs[..., :2], outputs[..., 2]

    class Counting(nn.Module):
        @nn.compact
        def __call__(self, obs):
            self.variable("counts", "calls", lambda: jnp.zeros(()))
            return nn.Dense(2, name="policy")(obs), nn.Dense(1, name="value")(obs).squeeze(-1)

    for module, complaint in (
        (Headless(), r'Headless needs submodules "policy" and "value".*but has outputs'),
        (Counting(), r"Counting must have parameters only, but has counts, params"),
    ):
        with pytest.raises(ValueError, match=complaint):
            networks.init_policy(jax.random.key(0), dataclasses.replace(TASK, policy_network=module))


def test_the_convolution_is_that_of_its_definition():
    """features[y, x, k] = relu(sum_{i, j, c} image[y + i, x + j, c] * kernel[i, j, c, k] + bias[k])."""
    rng = np.random.default_rng(0)
    image = rng.normal(size=(2, 5, 4, 3))
    kernel, bias = rng.normal(size=(3, 3, 3, 6)), rng.normal(size=6)
    params = {"kernels": {"kernel": jnp.float32(kernel.reshape(27, 6)), "bias": jnp.float32(bias)}}
    module = networks.Convolution((5, 4, 3), features=6)
    features = module.apply({"params": params}, jnp.float32(image.reshape(2, 60)))
    expected = np.zeros((2, 3, 2, 6))
    for y in range(3):
        for x in range(2):
            expected[:, y, x] = np.einsum("bijc,ijck->bk", image[:, y : y + 3, x : x + 3], kernel) + bias
    np.testing.assert_allclose(features, np.maximum(expected, 0).reshape(2, 36), rtol=1e-4, atol=1e-5)


def test_convolutions_take_flat_images_with_any_batch_axes():
    task = jaxpref.task("Catch-bsuite")  # a shape of two axes: one channel
    task = dataclasses.replace(
        task,
        policy_network=networks.ConvActorCritic(3, task.obs_shape),
        reward_network=networks.ConvRewardModel(3, task.obs_shape),
    )
    obs, action = jnp.ones((2, 4, 50)), jnp.zeros((2, 4), jnp.int32)
    logits, value = networks.apply_policy(networks.init_policy(jax.random.key(0), task), obs)
    assert (logits.shape, value.shape) == ((2, 4, 3), (2, 4))
    assert networks.apply_reward(networks.init_reward(jax.random.key(0), task), obs, action).shape == (2, 4)


@pytest.mark.parametrize("name", ["own_network", "own_task"])
def test_the_example_runs(name):
    path = EXAMPLES / f"{name}.py"
    assert len(path.read_text().splitlines()) < 40
    spec = importlib.util.spec_from_file_location(name, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    returns = module.main(num_pairs=4, expert_updates=8, dpo_updates=15)
    assert set(returns) == {"pi1", "pi2", "trained"}
    lowest, highest = {"own_network": (1, 200), "own_task": (-50, -4)}[name]
    assert all(lowest <= value <= highest for value in returns.values())
