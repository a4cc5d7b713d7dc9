"""What several test modules share: oracles in NumPy, hand-made trajectories and policies, small environments."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import scipy.stats
from flax import struct

from jaxpref.networks import ActorCritic, Network, RewardModel, init_policy, init_reward
from jaxpref.rollout import episodes
from jaxpref.tasks import Task
from jaxpref.types import Preferences, Trajectory

optimised_jit = functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 1})
"""`jax.jit` for the few programs that run for longer than they compile; for the others conftest.py turns most
optimisations off."""

play = jax.jit(episodes, static_argnums=3)
"""(task, policy, key, num_episodes) -> episodes; one program for all tests with the same task and number."""


def assert_same_bytes(one, other):
    """Bit for bit; NaN equals NaN."""
    assert jax.tree.structure(one) == jax.tree.structure(other)
    for (path, x), y in zip(jax.tree.leaves_with_path(one), jax.tree.leaves(other), strict=True):
        x, y = np.asarray(x), np.asarray(y)
        assert x.dtype == y.dtype, jax.tree_util.keystr(path)
        assert x.tobytes() == y.tobytes(), jax.tree_util.keystr(path)


def assert_close(one, other, **tolerance):
    """Every leaf of both trees is close."""
    assert jax.tree.structure(one) == jax.tree.structure(other)
    for (path, x), y in zip(jax.tree.leaves_with_path(one), jax.tree.leaves(other), strict=True):
        np.testing.assert_allclose(x, y, err_msg=jax.tree_util.keystr(path), **tolerance)


def lane(tree, i):
    """The i-th of a batch of results."""
    return jax.tree.map(lambda leaf: leaf[i], tree)


def stack(*trees):
    """A batch of results."""
    return jax.tree.map(lambda *leaves: jnp.stack([jnp.asarray(leaf) for leaf in leaves]), *trees)


def keys(*seeds):
    """One key per seed."""
    return jax.vmap(jax.random.key)(jnp.array(seeds, jnp.uint32))


def binomial_bound(probability, num_draws, sigmas=5.0):
    """How far a frequency of `num_draws` may lie from its probability: 5 sigma, one false alarm in two million."""
    return sigmas * np.sqrt(probability * (1 - probability) / num_draws)


def numpy_layers(policy, obs):
    """Compute ActorCritic's layers in float64: (outputs of the policy's head, value)."""
    layers = jax.tree.map(np.float64, policy.params)
    features = np.maximum(obs @ layers["torso"]["kernel"] + layers["torso"]["bias"], 0)
    outputs = features @ layers["policy"]["kernel"] + layers["policy"]["bias"]
    value = features @ layers["value"]["kernel"] + layers["value"]["bias"]
    return outputs, value[..., 0]


def numpy_policy(policy, obs):
    """Compute a policy of discrete actions in float64: (log-probabilities, value)."""
    logits, value = numpy_layers(policy, obs)
    return logits - np.log(np.exp(logits).sum(-1, keepdims=True)), value


def numpy_reward(reward, obs, action, next_obs):
    """Compute RewardModel's forward pass in float64."""
    layers = jax.tree.map(np.float64, reward.params)
    change = [next_obs - obs] if reward.module.use_next_obs else []
    inputs = np.concatenate([obs, *change, np.eye(reward.module.num_actions)[action]], axis=-1)
    features = np.maximum(inputs @ layers["torso"]["kernel"] + layers["torso"]["bias"], 0)
    return (features @ layers["reward"]["kernel"] + layers["reward"]["bias"])[..., 0]


def random_trajectories(rng, lengths, horizon, obs_size=4, num_actions=2, continuous=False):
    """Trajectories [N] of the given lengths, of random contents, zero beyond their masks."""
    mask = np.arange(horizon) < np.asarray(lengths)[:, None]
    shape = mask.shape

    def numbers(size):
        return jnp.array(np.where(mask[..., None], rng.normal(size=(*shape, size)), 0), jnp.float32)

    def one_of(low, high, dtype):
        return jnp.array(np.where(mask, rng.integers(low, high, size=shape), 0), dtype)

    return Trajectory(
        obs=numbers(obs_size),
        action=numbers(num_actions) if continuous else one_of(0, num_actions, jnp.int32),
        reward=one_of(-3, 4, jnp.float32),
        next_obs=numbers(obs_size),
        mask=jnp.array(mask),
    )


def random_preferences(rng, num_pairs, horizon, **sizes):
    """Pairs of random trajectories of random lengths; `sizes` are those of `random_trajectories`."""
    lengths = (rng.integers(1, horizon + 1, num_pairs) for _ in range(2))
    sides = [random_trajectories(rng, each, horizon, **sizes) for each in lengths]
    return Preferences(*sides, weight=jnp.ones(num_pairs), prob=jnp.full(num_pairs, 0.5))


def spoil(trajectory):
    """The same episodes with garbage beyond their masks: NaN, infinity, an action that does not exist."""
    beyond = ~np.asarray(trajectory.mask)
    every_other = np.arange(beyond.shape[-1]) % 2 == 0
    no_number, no_action = np.where(every_other, np.nan, np.inf).astype(np.float32), np.where(every_other, 99, -99)

    def spoilt(leaf):
        garbage = no_number if jnp.issubdtype(leaf.dtype, jnp.floating) else no_action
        axes = (..., *[None] * (leaf.ndim - beyond.ndim))
        return jnp.array(np.where(beyond[axes], garbage[axes], leaf), leaf.dtype)

    return jax.tree.map(spoilt, trajectory).replace(mask=trajectory.mask)


def spoil_pairs(preferences):
    """The same pairs with garbage beyond the ends of their episodes."""
    return preferences.replace(chosen=spoil(preferences.chosen), rejected=spoil(preferences.rejected))


def linear_policy(task, weights, bias):
    """ActorCritic with logits = weights^T obs + bias, exactly: w.x = relu(w.x) - relu(-w.x). Its value is zero."""
    weights = np.asarray(weights, np.float32)
    torso, head = np.zeros((task.obs_size, 32), np.float32), np.zeros((32, task.num_actions), np.float32)
    for a in range(task.num_actions):
        torso[:, 2 * a], torso[:, 2 * a + 1] = weights[:, a], -weights[:, a]
        head[2 * a, a], head[2 * a + 1, a] = 1, -1
    layers = {
        "torso": {"kernel": jnp.array(torso), "bias": jnp.zeros(32)},
        "policy": {"kernel": jnp.array(head), "bias": jnp.array(bias, jnp.float32)},
        "value": {"kernel": jnp.zeros((32, 1)), "bias": jnp.zeros(1)},
    }
    return Network(ActorCritic(task.num_actions), layers)


def constant_policy(task, probabilities):
    """ActorCritic with the same action probabilities everywhere."""
    return linear_policy(task, np.zeros((task.obs_size, task.num_actions)), np.log(probabilities))


@struct.dataclass
class ClockState:
    time: jax.Array
    length: jax.Array
    name: jax.Array


class Clock:
    """Counts. An episode has a length, drawn from [shortest, longest] at its reset, and a name, a random number.

    Observation: (steps so far, name, noise of the last step). Reward: steps so far + 1, so an episode of n steps
    returns 1 + 2 + .. + n. Actions do nothing.
    """

    def __init__(self, shortest, longest):
        self.shortest, self.longest = shortest, longest

    def _obs(self, state, noise):
        return jnp.stack([jnp.float32(state.time), state.name, noise])

    def reset_env(self, key, params):
        key_length, key_name = jax.random.split(key)
        length = jax.random.randint(key_length, (), self.shortest, self.longest + 1)
        state = ClockState(jnp.int32(0), length, jax.random.uniform(key_name))
        return self._obs(state, jnp.float32(0)), state

    def step_env(self, key, state, action, params):
        state = state.replace(time=state.time + 1)
        terminated = state.time >= state.length
        return self._obs(state, jax.random.uniform(key)), state, jnp.float32(state.time), terminated, {}


def clock(shortest, longest, horizon):
    """A task on a `Clock`."""
    return Task("clock", Clock(shortest, longest), None, horizon, 3, 2, pi1_target=jnp.inf, pi2_target=jnp.inf)


class Sign:
    """Shows a number from U(-1, 1) in every step and never ends. The true reward is -|obs| where the action (0 or 1)
    is the number's sign, else 0: the opposite of what `sign_reward` pays for."""

    def reset_env(self, key, params):
        obs = jax.random.uniform(key, (1,), minval=-1, maxval=1)
        return obs, obs

    def step_env(self, key, state, action, params):
        right = (state[0] > 0) == (action == 1)
        reward = -jnp.where(right, jnp.abs(state[0]), 0.0)
        obs = jax.random.uniform(key, (1,), minval=-1, maxval=1)
        return obs, obs, reward, jnp.bool_(False), {}


SIGN = Task("sign", Sign(), None, horizon=10, obs_size=1, num_actions=2, pi1_target=jnp.inf, pi2_target=jnp.inf)


def sign_reward():
    """A reward model that pays |obs| for the action (0 or 1) that is the sign of obs, and nothing for the other:
    relu(x + 2 [a=1] - 2) + relu(-x + 2 [a=0] - 2), for |x| < 1."""
    torso = {"kernel": jnp.array([[1.0, -1.0], [0.0, 2.0], [2.0, 0.0]]), "bias": jnp.array([-2.0, -2.0])}
    head = {"kernel": jnp.array([[1.0], [1.0]]), "bias": jnp.zeros(1)}
    return Network(RewardModel(2, hidden_size=2), {"torso": torso, "reward": head})


class Lever:
    """Pays 1 for action 1 and 0 for action 0, for as long as the task's horizon allows; shows nothing."""

    def reset_env(self, key, params):
        return jnp.zeros(1), jnp.zeros(1)

    def step_env(self, key, state, action, params):
        return state, state, jnp.float32(action), jnp.bool_(False), {}


LEVER = Task("lever", Lever(), None, horizon=10, obs_size=1, num_actions=2, pi1_target=9.0, pi2_target=7.0)


def rewarded(reward):
    """Trajectories [..., T] of these rewards, which show nothing. All of their steps were played."""
    reward = jnp.asarray(reward, jnp.float32)
    obs = jnp.zeros((*reward.shape, 1))
    return Trajectory(obs, jnp.zeros(reward.shape, jnp.int32), reward, obs, jnp.ones(reward.shape, bool))


class Aim:
    """Pays -(a - 0.3)^2 for an action a, for as long as the task's horizon allows; shows nothing."""

    def reset_env(self, key, params):
        return jnp.zeros(1), jnp.zeros(1)

    def step_env(self, key, state, action, params):
        return state, state, -((action[0] - 0.3) ** 2), jnp.bool_(False), {}


AIM = Task("aim", Aim(), None, horizon=10, obs_size=1, num_actions=1, action_range=((-1.0, 1.0),))


def gaussian_policy(task, mean, std):
    """ActorCritic with the same mean and deviation everywhere, of actions between -1 and 1. Its value is zero."""
    policy = jax.tree.map(jnp.zeros_like, init_policy(jax.random.key(0), task))
    size = task.num_actions
    policy.params["policy"]["bias"], policy.params["log_std"] = jnp.full(size, mean), jnp.full(size, jnp.log(std))
    return policy


def normal_quantiles(mean, std, num=20_000):
    """Numbers whose plain mean stands for the expectation over N(mean, std^2)."""
    return mean + std * scipy.stats.norm.ppf((np.arange(num) + 0.5) / num)


def pairs_of_returns(chosen_returns, rejected_returns):
    """One-step episodes of these returns."""
    sides = (rewarded(np.reshape(returns, (-1, 1))) for returns in (chosen_returns, rejected_returns))
    return Preferences(*sides, weight=jnp.ones(len(chosen_returns)), prob=jnp.ones(len(chosen_returns)))


def policy(seed, task=LEVER):
    """A fresh policy."""
    return init_policy(jax.random.key(seed), task)


def random_reward(seed, task=LEVER):
    """A reward model whose head is not zero."""
    params = init_reward(jax.random.key(seed), task)
    head = np.random.default_rng(seed).normal(size=65) / 5
    params.params["reward"] = {"kernel": jnp.float32(head[:64, None]), "bias": jnp.float32(head[64:])}
    return params


def pairs(seed, obs_size=1):
    """Twelve random pairs of up to 30 steps."""
    return random_preferences(np.random.default_rng(seed), 12, 30, obs_size=obs_size)


def swap(pairs):
    """The same pairs with the opposite labels."""
    return pairs.replace(chosen=pairs.rejected, rejected=pairs.chosen)
