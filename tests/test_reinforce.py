"""REINFORCE: its loss, what it learns, and its score.

`LEVER` pays for one of two actions, ten times: a policy's return rises from 5 to 10 within a few updates.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import (
    AIM,
    LEVER,
    clock,
    constant_policy,
    gaussian_policy,
    normal_quantiles,
    numpy_policy,
    random_trajectories,
)

import jaxpref
from jaxpref import reinforce
from jaxpref.types import Trajectory

CONFIG = reinforce.Config(num_updates=12, episodes_per_update=4, score_window=8, learning_rate=0.1)
NEVER = {"pi1_target": 1e9, "pi2_target": 1e9}

train = jax.jit(reinforce.train)
loss = jax.jit(reinforce.loss_fn)
loss_grad = jax.jit(jax.grad(reinforce.loss_fn))


# --- the loss ---------------------------------------------------------------------------------------------------------


def numpy_loss(params, task, config, played):
    """The loss as an average over episodes of a sum over the steps played."""
    episodes = []
    for i in range(len(played.mask)):
        n = int(played.mask[i].sum())
        obs, action = np.float64(played.obs[i, :n]), np.asarray(played.action[i, :n])
        log_probs, value = numpy_policy(params, obs)
        returns = [
            (1 - config.gamma) * sum(config.gamma**k * float(r) for k, r in enumerate(played.reward[i, t:n]))
            for t in range(n)
        ]
        if config.baseline == "value":
            baseline = value
        else:  # read at the next observation: 0.8 (0.2 - theta^2) - 0.8 theta_dot^2
            theta, theta_dot = np.float64(played.next_obs[i, :n, 2]), np.float64(played.next_obs[i, :n, 3])
            baseline = (1 - config.gamma) * (0.8 * (0.2 - theta**2) - 0.8 * theta_dot**2)
        entropy = -(np.exp(log_probs) * log_probs).sum(-1)
        episodes.append((log_probs[np.arange(n), action], returns - baseline, entropy, value, np.array(returns)))
    advantages = np.concatenate([advantage for _, advantage, *_ in episodes])
    mean, deviation = (advantages.mean(), advantages.std()) if config.normalise_advantage else (0, 1)
    total = 0.0
    for log_prob, advantage, entropy, value, returns in episodes:
        total -= (log_prob * (advantage - mean) / deviation).sum() + config.ent_coef * entropy.sum()
        if config.baseline == "value":
            total += config.vf_coef * 0.5 * ((value - returns) ** 2).sum()
    return total / len(episodes)


@pytest.mark.parametrize("baseline", reinforce.BASELINES)
@pytest.mark.parametrize("normalise", [True, False])
def test_the_loss_is_a_plain_loop_over_episodes_and_steps(baseline, normalise):
    task = jaxpref.cartpole()
    config = reinforce.Config(baseline=baseline, normalise_advantage=normalise, gamma=0.9, ent_coef=0.07, vf_coef=0.3)
    played = random_trajectories(np.random.default_rng(1), [1, 6, 9], 9)
    params = jaxpref.init_policy(jax.random.key(1), task)
    np.testing.assert_allclose(loss(params, task, config, played), numpy_loss(params, task, config, played), rtol=1e-4)


def bandit_batch(actions, reward_of):
    """One-step episodes with these actions."""
    actions = np.array(actions)
    nothing = jnp.zeros((len(actions), 1, 1))
    return Trajectory(
        obs=nothing,
        action=jnp.array(actions[:, None], jnp.int32),
        reward=jnp.array(np.array(reward_of)[actions][:, None], jnp.float32),
        next_obs=nothing,
        mask=jnp.ones((len(actions), 1), bool),
    )


ZERO_BASELINE = LEVER.replace(baseline=lambda obs: jnp.zeros(obs.shape[:-1]))


def test_the_gradient_is_that_of_the_expected_return():
    """A bandit that pays 3 and 7, and a policy of (1/4, 3/4): one episode with the first action and three with the
    second are its exact expectation. The gradient of 3 p0 + 7 p1 in the logits is p0 p1 (3 - 7) (1, -1)."""
    params = constant_policy(LEVER, [0.25, 0.75])
    config = reinforce.Config(baseline="handmade", normalise_advantage=False, gamma=0.0, ent_coef=0.0)
    grads = loss_grad(params, ZERO_BASELINE, config, bandit_batch([0, 1, 1, 1], reward_of=[3, 7]))
    ascent = 0.25 * 0.75 * (3 - 7) * np.array([1, -1])
    np.testing.assert_allclose(grads.params["policy"]["bias"], -ascent, rtol=1e-5)


def test_a_baseline_does_not_change_the_expected_gradient():
    """The same enumeration with the value head's 5 as the baseline: the same gradient. The value head learns by its
    own loss alone: vf_coef (V - R), in the mean 1/2 (5 - (3 + 3 * 7) / 4) = -1/2."""
    params = constant_policy(LEVER, [0.25, 0.75])
    params.params["value"]["bias"] = jnp.array([5.0])
    config = reinforce.Config(baseline="value", normalise_advantage=False, gamma=0.0, ent_coef=0.0, vf_coef=0.5)
    grads = loss_grad(params, LEVER, config, bandit_batch([0, 1, 1, 1], reward_of=[3, 7]))
    ascent = 0.25 * 0.75 * (3 - 7) * np.array([1, -1])
    np.testing.assert_allclose(grads.params["policy"]["bias"], -ascent, rtol=1e-5)
    np.testing.assert_allclose(grads.params["value"]["bias"], [-0.5], rtol=1e-5)


def test_the_entropy_bonus_pulls_towards_the_uniform_policy():
    """With nothing to earn, its gradient is all there is: dH/dlogit_a = -p_a (ln p_a + H)."""
    params = constant_policy(LEVER, [0.25, 0.75])
    config = reinforce.Config(baseline="handmade", normalise_advantage=False, gamma=0.0, ent_coef=0.1)
    grads = loss_grad(params, ZERO_BASELINE, config, bandit_batch([0, 1], reward_of=[0, 0]))
    p = np.array([0.25, 0.75])
    entropy = -(p * np.log(p)).sum()
    np.testing.assert_allclose(grads.params["policy"]["bias"], 0.1 * p * (np.log(p) + entropy), rtol=1e-5)


def test_the_gradient_of_a_gaussian_is_that_of_the_expected_return():
    """`AIM` pays -(a - 0.3)^2, so E[r] = -(m - 0.3)^2 - s^2: its gradients in m and log s are -2 (m - 0.3) and -2 s^2.
    One episode for each of 20,000 quantiles of the policy's actions. The entropy's gradient in log s is 1."""
    m, s = -0.2, 0.25
    action = normal_quantiles(m, s)
    reward, nothing = -((action - 0.3) ** 2), jnp.zeros((len(action), 1, 1))
    played = Trajectory(
        nothing, jnp.float32(action[:, None, None]), jnp.float32(reward[:, None]), nothing, nothing[..., 0] == 0
    )
    config = reinforce.Config(baseline="handmade", normalise_advantage=False, gamma=0.0, ent_coef=0.07)
    grads = loss_grad(gaussian_policy(AIM, m, s), AIM.replace(baseline=ZERO_BASELINE.baseline), config, played).params
    np.testing.assert_allclose(grads["policy"]["bias"], [2 * (m - 0.3)], rtol=1e-2)
    np.testing.assert_allclose(grads["log_std"], [2 * s**2 - 0.07], rtol=1e-2)


# --- what it learns, and its score ------------------------------------------------------------------------------------


def test_without_discount_it_learns_as_well():
    """Rewards are scaled by 1 / horizon where 1 - gamma is zero: nothing would be learned from rewards of zero."""
    score = train(LEVER.replace(**NEVER), dataclasses.replace(CONFIG, gamma=1.0), jax.random.key(3)).metrics.score
    assert score[0] < 7
    assert score[-1] > 8


def test_the_score_is_the_mean_return_of_the_last_episodes():
    """Against a rolling mean over the episodes, which a window of 1 shows one by one; fewer at the start."""
    task = clock(shortest=1, longest=8, horizon=8)
    config = reinforce.Config(num_updates=9, episodes_per_update=1, score_window=1)
    each = train(task, config, jax.random.key(4)).metrics.score
    assert len(set(np.asarray(each).tolist())) > 3
    rolling = train(task, dataclasses.replace(config, score_window=3), jax.random.key(4)).metrics.score
    np.testing.assert_allclose(rolling, [np.mean(each[max(0, u - 2) : u + 1]) for u in range(9)], rtol=1e-6)


@pytest.mark.parametrize(
    ("of_task", "of_config", "score_shaping", "score"),
    [(False, True, False, 21), (True, None, True, 16.5), (True, False, True, 21)],
)
def test_a_shaped_score_counts_the_shaping(of_task, of_config, score_shaping, score):
    """Six steps of rewards 1 + .. + 6 = 21 and a potential that is the time, at gamma 1/2:
    sum over t = 0..5 of (t + 1)/2 - t = 21/2 - 15, and 21 + 10.5 - 15 = 16.5. The task decides where the config does
    not."""
    task = clock(shortest=6, longest=6, horizon=10).replace(potential=lambda obs: obs[..., 0], shape_reward=of_task)
    config = reinforce.Config(num_updates=1, episodes_per_update=3, gamma=0.5, shape_reward=of_config)
    config = dataclasses.replace(config, score_shaping=score_shaping)
    np.testing.assert_allclose(train(task, config, jax.random.key(5)).metrics.score, [score], rtol=1e-6)
