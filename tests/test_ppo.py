"""PPO-RLHF: its loss, its advantages, and what it learns where the answer is known.

`SIGN` has a reward of its own, which PPO must not follow: `sign_reward` pays for the opposite. With a reward model that
looks at the action alone it is a bandit of two arms.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats
from helpers import (
    AIM,
    SIGN,
    assert_same_bytes,
    clock,
    constant_policy,
    gaussian_policy,
    linear_policy,
    normal_quantiles,
    numpy_policy,
    policy,
    sign_reward,
)

import jaxpref
from jaxpref import expert_ppo, networks, ppo
from jaxpref.distributions import Categorical, Gaussian
from jaxpref.networks import Network, RewardModel
from jaxpref.rollout import Transition
from jaxpref.tasks import Task

CONFIG = ppo.Config(num_updates=20, num_envs=8, num_steps=16, num_epochs=2, num_minibatches=2, eval_every=10)
CONFIG = CONFIG.replace(learning_rate=0.02, kl_coef=0.0)

train = jax.jit(ppo.train)
loss = jax.jit(ppo.loss_fn)
loss_grad = jax.jit(jax.grad(ppo.loss_fn))


@jax.jit
def advantages(config, params, reference, reward, steps):
    """As in an update: the penalty, and the values of both observations."""
    played, value = networks.apply_policy(params, steps.obs)
    _, next_value = networks.apply_policy(params, steps.next_obs)
    paid = ppo.penalised(config, played, reference, reward, steps.action)
    return ppo.advantages(config, paid, value, next_value, steps, horizon=200)


def arms(action_0, action_1):
    """A reward model that pays these for the two actions, whatever it sees."""
    torso = {"kernel": jnp.array([[0.0, 0.0], [1.0, 0.0], [0.0, 1.0]]), "bias": jnp.zeros(2)}
    head = {"kernel": jnp.array([[action_0], [action_1]], jnp.float32), "bias": jnp.zeros(1)}
    return Network(RewardModel(2, hidden_size=2), {"torso": torso, "reward": head})


def probabilities(params, obs=(0.0,)):
    return np.exp(numpy_policy(params, np.array(obs, np.float64))[0])


def kl(p, q):
    return (p * np.log(p / q)).sum(-1)


# --- advantages -------------------------------------------------------------------------------------------------------


def random_steps(rng, *shape, obs_size=4):
    """Steps of streams in which one episode in five ends by termination and one in five by the time limit."""
    terminated = rng.random(shape) < 0.2
    return Transition(
        obs=jnp.array(rng.normal(size=(*shape, obs_size)), jnp.float32),
        action=jnp.array(rng.integers(2, size=shape), jnp.int32),
        reward=jnp.array(rng.normal(size=shape), jnp.float32),
        next_obs=jnp.array(rng.normal(size=(*shape, obs_size)), jnp.float32),
        terminated=jnp.array(terminated),
        done=jnp.array(terminated | (rng.random(shape) < 0.2)),
    )


@pytest.mark.parametrize("kl_penalty", ppo.KL_PENALTIES)
def test_advantages_are_a_plain_loop_over_streams_and_steps(kl_penalty):
    """The learned reward, in place of the true one, less the penalty where it is in the reward, times 1 - gamma. What
    comes after a step: nothing after termination; after the time limit the value of the true next observation, and
    no later step; else all steps up to the end of the stream."""
    rng = np.random.default_rng(1)
    steps, params = random_steps(rng, 3, 9), policy(1, jaxpref.cartpole())
    assert steps.terminated.any()
    assert (steps.done & ~steps.terminated).any()
    ref_logits = jnp.array(rng.normal(size=(3, 9, 2)), jnp.float32)
    reward = jnp.array(rng.normal(size=(3, 9)), jnp.float32)
    gamma, gae_lambda, kl_coef = 0.9, 0.7, 0.3
    config = ppo.Config(gamma=gamma, gae_lambda=gae_lambda, kl_coef=kl_coef, kl_penalty=kl_penalty)
    advantage, target = advantages(config, params, Categorical(ref_logits), reward, steps)

    log_probs, value = numpy_policy(params, np.float64(steps.obs))
    _, next_value = numpy_policy(params, np.float64(steps.next_obs))
    ref_log_probs = np.float64(ref_logits) - np.log(np.exp(np.float64(ref_logits)).sum(-1, keepdims=True))
    for e in range(3):
        for t in range(9):
            expected, discount = 0.0, 1.0
            for k in range(t, 9):
                paid = float(reward[e, k])
                if kl_penalty == "reward":
                    taken = e, k, int(steps.action[e, k])
                    paid -= kl_coef * (log_probs[taken] - ref_log_probs[taken])
                following = 0.0 if steps.terminated[e, k] else next_value[e, k]
                expected += discount * ((1 - gamma) * paid + gamma * following - value[e, k])
                discount *= gamma * gae_lambda
                if steps.done[e, k]:
                    break
            np.testing.assert_allclose(advantage[e, t], expected, rtol=1e-4, atol=1e-5)
            np.testing.assert_allclose(target[e, t], expected + value[e, t], rtol=1e-4, atol=1e-5)


# --- the loss ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("kl_penalty", "normalise"), [("reward", False), ("loss", True)])
def test_the_loss_is_a_plain_loop_over_steps(kl_penalty, normalise):
    rng = np.random.default_rng(2)
    params, old = policy(2, jaxpref.cartpole()), policy(3, jaxpref.cartpole())
    steps = random_steps(rng, 40)
    old_log_probs, _ = numpy_policy(old, np.float64(steps.obs))
    old_log_prob = jnp.float32(old_log_probs[np.arange(40), steps.action])
    ref_logits, advantage, target = rng.normal(size=(40, 2)), rng.normal(size=40), rng.normal(size=40)
    config = ppo.Config(clip_eps=0.1, vf_coef=0.7, ent_coef=0.3, kl_coef=0.6, kl_penalty=kl_penalty)
    config = dataclasses.replace(config, normalise_advantage=normalise)
    ref_logits, advantage, target = (jnp.float32(array) for array in (ref_logits, advantage, target))
    batch = ppo.Batch(steps, old_log_prob, Categorical(ref_logits), advantage, target)

    normalised = (advantage - advantage.mean()) / advantage.std() if normalise else advantage
    log_probs, value = numpy_policy(params, np.float64(steps.obs))
    total, clipped = 0.0, 0
    for i in range(40):
        p = np.exp(log_probs[i])
        ratio = p[steps.action[i]] / np.exp(old_log_probs[i, steps.action[i]])
        clipped += abs(ratio - 1) > 0.1
        total -= min(ratio * normalised[i], np.clip(ratio, 0.9, 1.1) * normalised[i])
        total += 0.7 * 0.5 * (value[i] - target[i]) ** 2 + 0.3 * (p * log_probs[i]).sum()
        if kl_penalty == "loss":
            ref = np.exp(ref_logits[i]) / np.exp(ref_logits[i]).sum()
            total += 0.6 * kl(ref, p)
    np.testing.assert_allclose(loss(params, config, batch), total / 40, rtol=1e-4)
    assert 0 < clipped < 40


def four_steps(params, actions=(0, 1, 1, 1)):
    """(steps, log_prob): the exact expectation of a policy of (1/4, 3/4); every step is an episode."""
    log_probs, _ = numpy_policy(params, np.zeros(1))
    actions, nothing, last = np.array(actions), jnp.zeros((4, 1)), jnp.ones(4, bool)
    steps = Transition(nothing, jnp.int32(actions), jnp.zeros(4), nothing, last, last)
    return steps, jnp.float32(log_probs[actions])


POLICY, REFERENCE = np.array([0.25, 0.75]), np.array([0.6, 0.4])


def test_the_gradient_of_the_penalty_in_the_loss():
    """With advantages of zero it is all there is: kl_coef * d KL(ref || pi) / d logits = kl_coef * (pi - ref)."""
    params = constant_policy(SIGN, POLICY)
    config = ppo.Config(kl_penalty="loss", kl_coef=0.3, vf_coef=0.0)
    reference = Categorical(jnp.tile(jnp.log(REFERENCE), (4, 1)))
    grads = loss_grad(params, config, ppo.Batch(*four_steps(params), reference, jnp.zeros(4), jnp.zeros(4)))
    np.testing.assert_allclose(grads.params["policy"]["bias"], 0.3 * (POLICY - REFERENCE), rtol=1e-5)


def test_the_gradient_of_the_penalty_in_the_reward():
    """With nothing else to earn: d KL(pi || ref) / d logit_a = pi_a (log(pi_a / ref_a) - KL), in units of the
    advantages' deviation, which is that of the log-ratio: kl_coef cancels."""
    params = constant_policy(SIGN, POLICY)
    config = ppo.Config(kl_penalty="reward", kl_coef=0.3, vf_coef=0.0)
    (steps, log_prob), reference = four_steps(params), Categorical(jnp.tile(jnp.log(REFERENCE), (4, 1)))
    as_stream = jax.tree.map(lambda leaf: leaf[None], steps)
    advantage, target = advantages(config, params, Categorical(reference.logits[None]), jnp.zeros((1, 4)), as_stream)
    grads = loss_grad(params, config, ppo.Batch(steps, log_prob, reference, advantage[0], target[0]))
    log_ratio = np.log(POLICY / REFERENCE)
    deviation = np.sqrt((POLICY * (log_ratio - kl(POLICY, REFERENCE)) ** 2).sum())
    expected = POLICY * (log_ratio - kl(POLICY, REFERENCE)) / deviation
    np.testing.assert_allclose(grads.params["policy"]["bias"], expected, rtol=1e-4)


def gaussian_batch(mean, std):
    """(steps, log_prob, action): a batch for each of 20,000 quantiles of the actions of such a policy."""
    action = normal_quantiles(mean, std)
    nothing, last = jnp.zeros((len(action), 1)), jnp.ones(len(action), bool)
    steps = Transition(nothing, jnp.float32(action[:, None]), nothing[:, 0], nothing, last, last)
    return steps, jnp.float32(scipy.stats.norm(mean, std).logpdf(action)), action


def test_the_gradient_of_a_gaussian_is_that_of_the_expected_return():
    """`AIM` pays -(a - 0.3)^2, so E[r] = -(m - 0.3)^2 - s^2: its gradients in m and log s are -2 (m - 0.3) and -2 s^2.
    The entropy's gradient in log s is 1."""
    m, s = -0.2, 0.25
    steps, log_prob, action = gaussian_batch(m, s)
    config = ppo.Config(normalise_advantage=False, vf_coef=0.0, ent_coef=0.07)
    reference, advantage = Gaussian(steps.action, steps.action), jnp.float32(-((action - 0.3) ** 2))
    batch = ppo.Batch(steps, log_prob, reference, advantage, advantage)
    grads = loss_grad(gaussian_policy(AIM, m, s), config, batch).params
    np.testing.assert_allclose(grads["policy"]["bias"], [2 * (m - 0.3)], rtol=1e-2)
    np.testing.assert_allclose(grads["log_std"], [2 * s**2 - 0.07], rtol=1e-2)


def test_the_gradient_of_a_gaussians_penalty_in_the_loss():
    """Of KL(N(n, r^2) || N(m, s^2)) = log(s / r) + (r^2 + (m - n)^2) / (2 s^2) - 1/2: (m - n) / s^2 in m, and
    1 - (r^2 + (m - n)^2) / s^2 in log s."""
    m, s, n, r = -0.2, 0.25, 0.1, 0.5
    steps, log_prob, _ = gaussian_batch(m, s)
    ones = jnp.ones_like(steps.action)
    config = ppo.Config(kl_penalty="loss", kl_coef=0.3, vf_coef=0.0)
    reference, zero = Gaussian(n * ones, jnp.log(r) * ones), jnp.zeros(len(ones))
    grads = loss_grad(gaussian_policy(AIM, m, s), config, ppo.Batch(steps, log_prob, reference, zero, zero)).params
    np.testing.assert_allclose(grads["policy"]["bias"], [0.3 * (m - n) / s**2], rtol=1e-4)
    np.testing.assert_allclose(grads["log_std"], [0.3 * (1 - (r**2 + (m - n) ** 2) / s**2)], rtol=1e-4)


def test_gradients_are_clipped_to_their_global_norm():
    """(3, 4) has norm 5 and is cut to (0.3, 0.4); Adam's first moment takes a tenth of that. (0.03, 0.04) stays."""
    config = ppo.Config(max_grad_norm=0.5)
    for grads, expected in (([3.0, 4.0], [0.03, 0.04]), ([0.03, 0.04], [0.003, 0.004])):
        optimiser = ppo.optimiser(config)
        _, state = optimiser.update(jnp.array(grads), optimiser.init(jnp.zeros(2)))
        moments = [leaf for leaf in jax.tree.leaves(state) if leaf.shape == (2,)]
        np.testing.assert_allclose(moments[0], expected, rtol=1e-5)


# --- one update -------------------------------------------------------------------------------------------------------

COUNTING = clock(shortest=10, longest=10, horizon=10)
"""Episodes of ten steps that show the time, 0 to 9, and return 1 + 2 + .. + 10 = 55."""


def reward_of_time(values):
    """A reward model on `COUNTING` that pays values[t] at time t: linear between, by one ReLU(t - k) per k."""
    slopes = np.diff(values)
    torso = np.zeros((5, len(slopes)))
    torso[0] = 1
    head = np.diff(slopes, prepend=0)[:, None]
    layers = {
        "torso": {"kernel": jnp.float32(torso), "bias": -jnp.arange(len(slopes), dtype=jnp.float32)},
        "reward": {"kernel": jnp.float32(head), "bias": jnp.float32(values[:1])},
    }
    return Network(RewardModel(2, hidden_size=len(slopes)), layers)


PAID = 2.0 ** (np.arange(10) / 2)


@pytest.fixture(scope="module")
def without_learning():
    """(metrics, policy, reference) of eight updates, each of one whole episode in two passes of three minibatches,
    with a learning rate of zero."""
    sizes = {"num_updates": 8, "num_envs": 1, "num_steps": 10, "num_epochs": 2, "num_minibatches": 3}
    config = ppo.Config(**sizes, eval_every=4, eval_episodes=3, learning_rate=0.0, gamma=0.0, kl_coef=0.0, vf_coef=2.0)
    params = linear_policy(COUNTING, [[0.1, 0.0], [0, 0], [0, 0]], [0.0, 0.3])
    ref_params = linear_policy(COUNTING, [[0.0, 0.4], [0, 0], [0, 0]], [0.5, 0.0])
    result = train(COUNTING, config, jax.random.key(4), params, ref_params, reward_of_time(PAID))
    assert_same_bytes(result.params, params)
    return result.metrics, params, ref_params


def test_the_metrics_of_an_update_are_exact_means_over_the_steps_played(without_learning):
    """KL(pi || ref), entropy, and the reward as the model gives it, each a mean over the times 0 to 9."""
    metrics, params, ref_params = without_learning
    obs = np.stack([np.arange(10), np.zeros(10), np.zeros(10)], axis=1)
    p, ref = probabilities(params, obs), probabilities(ref_params, obs)
    np.testing.assert_allclose(metrics.kl, np.full(8, kl(p, ref).mean()), rtol=1e-4)
    assert abs(kl(p, ref).mean() - kl(ref, p).mean()) > 0.01
    np.testing.assert_allclose(metrics.entropy, np.full(8, -(p * np.log(p)).sum(-1).mean()), rtol=1e-4)
    np.testing.assert_allclose(metrics.learned_reward, np.full(8, PAID.mean()), rtol=1e-4)
    np.testing.assert_allclose(metrics.true_return, [55, 55])  # evaluations are of whole episodes
    np.testing.assert_allclose(metrics.learned_return, [PAID.sum()] * 2, rtol=1e-4)


def test_three_minibatches_of_ten_steps_leave_one_out_another_in_every_pass(without_learning):
    """At gamma 0, a value of 0 and vf_coef 2, the loss of a step is the square of its reward's distance from the mean
    reward, in units of that, and the policy's loss is a mean of normalised advantages, zero. Two passes over the ten
    steps would sum to twice the sum of all squares. Two squares are missing, and their sum tells which."""
    metrics, _, _ = without_learning
    squares = (PAID - PAID.mean()) ** 2
    missing = 2 * squares.sum() - np.asarray(metrics.loss, np.float64) * (2 * 9) * PAID.mean() ** 2
    sums = np.add.outer(squares, squares)[np.triu_indices(10)]
    distance = np.abs(missing[:, None] - sums)
    assert (np.sort(distance)[:, 0] < 0.02).all()
    assert (np.sort(distance)[:, 1] > 0.04).all()
    left_out = {(first, second) for first, second in np.transpose(np.triu_indices(10))[distance.argmin(1)].tolist()}
    assert len(left_out) >= 4
    assert sum(first != second for first, second in left_out) >= 3


@pytest.mark.parametrize("reward", [-3.0, 1.0])
def test_the_same_reward_at_each_step_leaves_nothing_to_learn(reward):
    """`SIGN` never terminates. The value of all states is V, which a value head of zero says already."""
    config = CONFIG.replace(num_updates=1, eval_every=1, num_epochs=1, num_minibatches=1, normalise_advantage=False)
    result = train(SIGN, config, jax.random.key(6), policy(6, SIGN), policy(6, SIGN), arms(reward, reward))
    assert abs(result.metrics.loss[0]) < 1e-4


# --- what it learns ---------------------------------------------------------------------------------------------------


def bandit_run(seed, reward_params, init=(0.5, 0.5), ref=(0.5, 0.5), **settings):
    """The result of `CONFIG` from and towards policies with these probabilities, which can learn nothing but other
    probabilities: their torso is dead."""
    policies = constant_policy(SIGN, np.array(init)), constant_policy(SIGN, np.array(ref))
    config = dataclasses.replace(CONFIG, **({"learning_rate": 0.1} | settings))
    return train(SIGN, config, jax.random.key(seed), *policies, reward_params)


def test_it_learns_to_read_the_observation():
    """The right action is the sign of a number between -1 and 1; the environment pays for the other."""
    result = train(SIGN, CONFIG, jax.random.key(20), policy(20, SIGN), policy(120, SIGN), sign_reward())
    for number in (-0.9, -0.6, 0.6, 0.9):
        assert probabilities(result.params, [number])[int(number > 0)] > 0.9, number
    # E|obs| = 1/2, paid for in each of 10 steps; half of that is what a coin earns.
    assert result.metrics.learned_return[-1] > 4
    np.testing.assert_allclose(result.metrics.true_return, -result.metrics.learned_return, rtol=1e-4)
    assert result.metrics.true_return.shape == (2,)


def test_it_learns_the_arm_that_pays():
    """Metrics of an update are of the policy that played: in the first, of the reference."""
    result = bandit_run(6, arms(1, -1))
    assert probabilities(result.params)[0] > 0.97
    assert result.metrics.learned_return[-1] > 8
    assert abs(result.metrics.kl[0]) < 1e-6
    assert result.metrics.kl[1] > 1e-3
    np.testing.assert_allclose(result.metrics.entropy[0], np.log(2), rtol=1e-5)


@pytest.mark.parametrize("seed", [8, 9])
def test_the_penalty_in_the_reward_has_its_optimum_where_theory_says(seed):
    """pi(a) ~ ref(a) exp(reward(a) / kl_coef), whatever the size of the rewards: rewards of 5 and -5, a kl_coef of 10
    and a reference of (0.2, 0.8) give odds of e / 4 = 0.68, so 0.405 for action 0."""
    result = bandit_run(seed, arms(5, -5), init=(0.6, 0.4), ref=(0.2, 0.8), kl_coef=10.0, learning_rate=0.03)
    assert abs(probabilities(result.params)[0] - np.e / (np.e + 4)) < 0.07


@pytest.mark.parametrize("kl_penalty", ppo.KL_PENALTIES)
def test_without_a_reward_the_policy_approaches_the_reference(kl_penalty):
    settings = {"kl_penalty": kl_penalty, "init": (0.9, 0.1), "ref": (0.2, 0.8)}
    result = bandit_run(11, arms(0, 0), kl_coef=10.0, learning_rate=0.05, **settings)
    start = kl(np.array([0.9, 0.1]), np.array([0.2, 0.8]))
    np.testing.assert_allclose(result.metrics.kl[0], start, rtol=1e-4)
    assert kl(probabilities(result.params), np.array([0.2, 0.8])) < 0.05 * start
    assert (result.metrics.learned_return == 0).all()


def test_a_rewards_scale_changes_nothing_but_the_learned_returns():
    """Eight times the reward and the penalty, exact in floating point: the same bytes."""
    one = bandit_run(12, arms(0.7, -0.4), kl_coef=0.5)
    eight = bandit_run(12, arms(8 * np.float32(0.7), 8 * np.float32(-0.4)), kl_coef=4.0)
    assert_same_bytes(eight.params, one.params)
    for name in ("loss", "entropy", "kl", "true_return"):
        assert_same_bytes(getattr(eight.metrics, name), getattr(one.metrics, name))
    for name in ("learned_reward", "learned_return"):
        np.testing.assert_allclose(getattr(eight.metrics, name), 8 * getattr(one.metrics, name), rtol=1e-5)


def test_a_time_limit_is_not_an_end():
    """A reward of 1 for ever is worth (1 - gamma) / (1 - gamma) = 1, although every episode stops after ten steps. The
    reward's unit has that value, so that the head stays at 0. Taken for an end, the limit would leave 1 - 0.9^n with n
    steps to go, and -0.59 for the head: minus the mean of 0.9^n over n = 1..10."""
    result = bandit_run(13, arms(1, 1), gamma=0.9, vf_coef=1.0)
    _, value = numpy_policy(result.params, np.zeros(1))
    assert abs(value) < 0.1


# --- the true reward, and the value head that knows it ----------------------------------------------------------------


class Echo:
    """Shows the last action as -1 or 1, and three random numbers. Pays `params` for action 1 and nothing for 0."""

    def _obs(self, key, last):
        return jax.random.uniform(key, (4,), minval=-1, maxval=1).at[0].set(last)

    def reset_env(self, key, params):
        obs = self._obs(key, 0.0)
        return obs, obs

    def step_env(self, key, state, action, params):
        obs = self._obs(key, 2.0 * action - 1)
        return obs, obs, params * action, jnp.bool_(False), {}


ECHO = Task("echo", Echo(), 1.0, horizon=10, obs_size=4, num_actions=2, pi1_target=jnp.inf, pi2_target=jnp.inf)
PENALISED = dataclasses.replace(CONFIG, kl_coef=0.03)

train_on = jax.jit(ppo.train, static_argnames="reward_fn")
# Without the slower half of the optimisations, for what is run once.
train_once = jax.jit(ppo.train, static_argnames="reward_fn", compiler_options={"xla_backend_optimization_level": 0})


def echo_run(seed, pays, config=PENALISED, params=None, train_on=train_on):
    """The result of training on the true reward, towards and from these parameters: by default `knowing` ones."""
    params = knowing(seed) if params is None else params
    task = dataclasses.replace(ECHO, env_params=jnp.float32(pays))
    return train_on(task, config, jax.random.key(seed), params, params, None, reward_fn=ppo.true_reward)


def knowing(seed):
    """A policy that knows nothing, and a value head that has learned that action 1 pays: the value is obs[0], by
    relu(x) - relu(-x)."""
    layers = policy(seed, ECHO).params
    torso, weights = layers["torso"], jnp.zeros((4, 2)).at[0].set(jnp.array([1.0, -1.0]))
    torso = {"kernel": torso["kernel"].at[:, :2].set(weights), "bias": torso["bias"].at[:2].set(0.0)}
    value = {"kernel": jnp.zeros((32, 1)).at[:2, 0].set(jnp.array([1.0, -1.0])), "bias": jnp.zeros(1)}
    return policy(seed, ECHO).replace(params={**layers, "torso": torso, "value": value})


def of_action_1(params):
    """Its mean probability over 400 states."""
    obs = np.random.default_rng(0).uniform(-1, 1, size=(400, 4))
    obs[:, 0] = np.sign(obs[:, 0])
    return probabilities(params, obs)[:, 1].mean()


def test_on_the_true_reward_it_learns_the_true_reward():
    """What it reports as the learned return is then the true one, exactly."""
    result = echo_run(30, pays=1.0)
    assert of_action_1(result.params) > 0.9 > 0.7 > of_action_1(knowing(30))
    assert_same_bytes(result.metrics.learned_return, result.metrics.true_return)
    assert result.metrics.true_return[-1] > 9
    # Per step of the policy that played: in the first update of one that takes action 1 about as often as not.
    assert 0.3 < result.metrics.learned_reward[0] < 0.7
    assert result.metrics.learned_reward[-1] > 0.9


def test_where_it_starts_the_value_head_is_forgotten():
    """One of NaN is as good as one of zeros: the same bytes. What is left of the start is learned from."""
    starts = [networks.replace_layer(knowing(32), "value", lambda leaf, x=x: 0 * leaf + x) for x in (0.0, np.nan)]
    ones = [echo_run(32, 1.0, params=start) for start in starts]
    assert_same_bytes(*ones)
    assert np.isfinite(ones[0].metrics.loss).all()
    assert ones[0].metrics.kl[-1] > 0.1


@pytest.mark.parametrize("kl_coef", [0.0, 0.03, 10.0])
def test_a_reward_of_zero_leaves_the_reference_as_it_is(kl_coef):
    """To the last bit, penalty or not: there is nothing to gain, no rounding error counts as a gain, and what the value
    head knows is no reason to move."""
    init_params = knowing(34)
    result = echo_run(34, pays=0.0, config=dataclasses.replace(PENALISED, kl_coef=kl_coef))
    for layer in ("torso", "policy"):
        assert_same_bytes(result.params.params[layer], init_params.params[layer])
    assert_same_bytes(result.metrics.kl, jnp.zeros(20))
    assert_same_bytes(result.metrics.learned_return, jnp.zeros(2))


def test_a_value_head_that_is_not_forgotten_teaches_what_it_knows():
    """Where nothing is paid any more, V(s') - V(s) still says that action 1 is the better one."""
    config = dataclasses.replace(PENALISED, reset_value=False, vf_coef=0.0)
    result = echo_run(35, pays=0.0, config=config, train_on=train_once)
    assert of_action_1(result.params) > 0.9 > 0.7 > of_action_1(knowing(35))


# --- experts ----------------------------------------------------------------------------------------------------------

train_experts = jax.jit(expert_ppo.train)


def test_an_expert_of_continuous_actions_finds_the_best_one():
    """`AIM` pays most for 0.3. An episode loses the variance and the square of the mean's distance, ten times. So the
    targets say what is left of both."""
    config = CONFIG.replace(num_updates=60, eval_every=1, eval_episodes=16, num_steps=20, learning_rate=0.02)
    result = train_experts(AIM.replace(pi1_target=-0.15, pi2_target=-1.0), config, jax.random.key(40))
    assert result.pi1_reached
    assert result.metrics.score[0] < -2
    for expert, target in ((result.pi1, -0.15), (result.pi2, -1.0)):
        distribution, _ = networks.apply_policy(expert, jnp.zeros(1))
        loss = (distribution.mean - 0.3) ** 2 + jnp.exp(2 * distribution.log_std)
        np.testing.assert_allclose(-10 * loss, [target], rtol=0.3)


@pytest.mark.parametrize("shape_reward", [True, False])
def test_experts_learn_from_the_shaped_reward_where_the_task_says_so(shape_reward):
    """`COUNTING` pays 1, 2, .. 10. With the time as a potential and gamma 0, a step's reward is (t + 1) - t = 1. At a
    value of 0 and vf_coef 2 the loss is the mean square of the rewards, in units of their mean size from the second
    update on: 1 and 1, or 385 / 10 and 38.5 / 5.5^2. The score is the true return."""
    task = COUNTING.replace(potential=lambda obs: obs[..., 0], shape_reward=shape_reward)
    config = ppo.Config(num_updates=3, num_envs=1, num_steps=10, num_epochs=1, num_minibatches=1, eval_every=1)
    config = config.replace(eval_episodes=2, learning_rate=0.0, gamma=0.0, kl_coef=0.0, vf_coef=2.0)
    metrics = train_experts(task, config, jax.random.key(41), ppo.without_value(policy(41, COUNTING))).metrics
    np.testing.assert_allclose(metrics.loss, [1, 1, 1] if shape_reward else [38.5, *[38.5 / 5.5**2] * 2], rtol=1e-5)
    np.testing.assert_array_equal(metrics.score, [55, 55, 55])
