"""Playing: masked episodes and the auto-resetting stream. `Clock` counts, so what must come out is known exactly."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import (
    LEVER,
    assert_same_bytes,
    binomial_bound,
    clock,
    constant_policy,
    lane,
    linear_policy,
    numpy_policy,
    play,
)

import jaxpref
from jaxpref.fast.loops import any_lane
from jaxpref.rollout import reset, start_stream, stream

CLOCK = clock(shortest=1, longest=90, horizon=60)
"""Episodes of 1 to 60 steps: some end by themselves, some are cut off, and 60 is no multiple of the loop's chunk."""
QUARTER = constant_policy(CLOCK, [0.25, 0.75])


@pytest.fixture(scope="module")
def clock_episodes():
    return jax.tree.map(np.asarray, play(CLOCK, QUARTER, jax.random.key(1), 256))


def test_an_episode_has_exactly_the_steps_that_were_played(clock_episodes):
    """An episode of n steps is: times 0..n-1, one name, rewards 1..n, and zeros after them.

    Lengths are U{1..90} cut off at 60, which has 31/90.
    """
    lengths = clock_episodes.mask.sum(-1)
    assert abs((lengths == 60).mean() - 31 / 90) < binomial_bound(31 / 90, 256)
    assert abs((lengths <= 30).mean() - 30 / 90) < binomial_bound(30 / 90, 256)
    for i, n in enumerate(lengths):
        played = lane(clock_episodes, i)
        np.testing.assert_array_equal(played.mask, np.arange(60) < n)
        np.testing.assert_array_equal(played.obs[:n, 0], np.arange(n))
        np.testing.assert_array_equal(played.next_obs[:n, 0], 1 + np.arange(n))
        np.testing.assert_array_equal(played.reward[:n], 1 + np.arange(n))
        assert len(set(played.obs[:n, 1]) | set(played.next_obs[:n, 1])) == 1
        np.testing.assert_array_equal(played.next_obs[: n - 1], played.obs[1:n])
        assert not any(leaf[n:].any() for leaf in (played.obs, played.action, played.reward, played.next_obs))


def test_actions_follow_probabilities_that_depend_on_the_observation():
    """p(1) = sigmoid(4 (name - 1/2)): in each quarter of names, the frequency is the mean probability."""
    policy = linear_policy(CLOCK, [[0, 0], [0, 4], [0, 0]], [0, -2])
    played = jax.tree.map(np.asarray, play(CLOCK, policy, jax.random.key(3), 256))
    name, action = played.obs[..., 1][played.mask], played.action[played.mask]
    probability = 1 / (1 + np.exp(-4 * (name - 0.5)))
    for quarter in range(4):
        there = np.floor(4 * name) == quarter
        expected = probability[there].mean()
        assert abs(action[there].mean() - expected) < binomial_bound(expected, there.sum())


def test_an_episode_in_a_batch_is_the_episode_alone(clock_episodes):
    """Also its return: the loop runs until the last episode of a batch has ended, and the others do not notice."""
    key = jax.random.split(jax.random.key(1), 256)[17]
    assert_same_bytes(jax.jit(jaxpref.episode)(CLOCK, QUARTER, key), lane(clock_episodes, 17))
    returns = jax.jit(jaxpref.evaluate, static_argnums=3)(CLOCK, QUARTER, jax.random.key(1), 256)
    np.testing.assert_array_equal(returns, clock_episodes.reward.sum(-1))


@pytest.mark.parametrize("horizon", [7, 101])
def test_a_horizon_of_any_length_is_kept_to_the_step(horizon):
    """Episodes of exactly 70 steps: cut off where the horizon is shorter, over before it where it is longer."""
    task = clock(shortest=70, longest=70, horizon=horizon)
    played = play(task, QUARTER, jax.random.key(4), 2)
    n = min(horizon, 70)
    np.testing.assert_array_equal(played.mask, [np.arange(horizon) < n] * 2)
    np.testing.assert_array_equal(played.reward.sum(-1), [n * (n + 1) / 2] * 2)


def greedy_evaluate(task, policy, key):
    return jaxpref.evaluate(task, policy, key, 20, greedy=True)


def test_greedy_play_takes_the_most_likely_action():
    """NumPy's argmax of the logits at every step; the other action has a probability of up to 1/2. Of a lever that is
    pressed with probability 0.6, greedy play returns 10 and sampled play about 6."""
    policy = linear_policy(CLOCK, [[0, 0], [0, 1], [0, 2]], [0, -1.5])  # by the name, and by the noise of the last step
    played = jax.jit(functools.partial(jaxpref.episodes, num_episodes=50, greedy=True))(
        CLOCK, policy, jax.random.key(5)
    )
    log_probs, _ = numpy_policy(policy, np.float64(played.obs))
    mask = np.asarray(played.mask)
    np.testing.assert_array_equal(played.action[mask], log_probs.argmax(-1)[mask])
    assert 0.2 < played.action[mask].mean() < 0.8
    assert log_probs.min(-1)[mask].max() > np.log(0.49)
    lever = constant_policy(LEVER, [0.4, 0.6])
    np.testing.assert_array_equal(jax.jit(greedy_evaluate)(LEVER, lever, jax.random.key(6)), np.full(20, 10))
    assert (play(LEVER, lever, jax.random.key(6), 20).reward.sum(-1) < 10).sum() > 15


def test_an_episode_begins_at_its_start(clock_episodes):
    """Where it would begin anyway, it is the same. Three hundred of them, which play in two groups, begin each at its
    own, which has the length of the episode to come."""
    keys = jax.random.split(jax.random.key(1), 256)
    start = reset(CLOCK, jax.random.split(keys[17])[0])
    assert_same_bytes(jax.jit(jaxpref.episode)(CLOCK, QUARTER, keys[17], start), lane(clock_episodes, 17))
    starts = jax.vmap(lambda key: reset(CLOCK, key))(jax.random.split(jax.random.key(7), 300))
    played = play(CLOCK, QUARTER, jax.random.key(8), 300, starts)
    np.testing.assert_array_equal(played.obs[:, 0], starts.obs)
    np.testing.assert_array_equal(played.mask.sum(-1), np.minimum(starts.state.length, 60))
    for wrong in (lane(starts, 0), jax.tree.map(lambda leaf: leaf[:299], starts)):
        with pytest.raises(ValueError, match=r"start.obs must have the shape \[300, 3\], got"):
            jaxpref.episodes(CLOCK, QUARTER, jax.random.key(8), 300, wrong)


@pytest.mark.parametrize("greedy", [True, False])
def test_from_one_start_only_samples_depend_on_the_key(greedy):
    """CartPole is deterministic. Two keys: the same greedy episode, and two sampled ones."""
    task = jaxpref.cartpole(horizon=50)
    policy, start = jaxpref.init_policy(jax.random.key(0), task), reset(task, jax.random.key(1))
    run = jax.jit(functools.partial(jaxpref.episode, greedy=greedy))
    one, other = (run(task, policy, jax.random.key(seed), start) for seed in (2, 3))
    np.testing.assert_array_equal(one.obs[0], start.obs)
    if greedy:
        assert_same_bytes(one, other)
    else:
        assert (one.action != other.action)[one.mask & other.mask].any()


run_stream = jax.jit(stream, static_argnames="num_steps")


def test_a_stream_is_episode_after_episode():
    """Two streams of 400 steps, the second where the first stopped. Time and name say what must come next."""
    state, parts = start_stream(CLOCK, jax.random.key(8)), []
    for seed in (9, 10):
        state, steps = run_stream(CLOCK, QUARTER, state, jax.random.key(seed), num_steps=400)
        parts.append(steps)
    steps = jax.tree.map(lambda *leaves: np.concatenate(leaves), *parts)
    time, name, done = steps.obs[:, 0], steps.obs[:, 1], steps.done
    np.testing.assert_array_equal(time[1:], np.where(done[:-1], 0, time[:-1] + 1))
    np.testing.assert_array_equal(name[1:] == name[:-1], ~done[:-1])
    assert len(set(name)) == 1 + done[:-1].sum() > 15
    np.testing.assert_array_equal(steps.next_obs[:, :2], np.stack([time + 1, name], axis=1))
    np.testing.assert_array_equal(steps.reward, time + 1)
    np.testing.assert_array_equal(done, steps.terminated | (time + 1 == 60))
    assert 0 < steps.terminated.sum() < done.sum()
    assert abs(steps.action.mean() - 0.75) < binomial_bound(0.75, 800)


def collatz(start):
    """Steps of the Collatz sequence down to 1, as a loop whose body leaves a finished lane as it is."""

    def body(carry):
        number, steps = carry
        following = jnp.where(number % 2 == 0, number // 2, 3 * number + 1)
        alive = number != 1
        return jnp.where(alive, following, number), steps + alive

    return jax.lax.while_loop(lambda carry: any_lane(carry[0] != 1), body, (start, jnp.int32(0)))[1]


def test_a_lane_of_a_vmapped_loop_ends_as_it_does_alone():
    """27 takes 111 steps, 1 none: each lane counts its own, whatever runs beside it, under one vmap and under two."""
    starts = jnp.array([1, 27, 6, 9, 97, 2])
    np.testing.assert_array_equal(jax.jit(jax.vmap(collatz))(starts), [0, 111, 8, 19, 118, 1])
    twice = jax.jit(jax.vmap(jax.vmap(collatz)))(starts.reshape(2, 3))
    np.testing.assert_array_equal(twice, [[0, 111, 8], [19, 118, 1]])
