"""Playing: masked episodes and the auto-resetting stream. `Clock` counts, so what must come out is known exactly."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import (
    assert_same_bytes,
    binomial_bound,
    clock,
    constant_policy,
    lane,
    linear_policy,
    play,
)

import jaxpref
from jaxpref.fast.loops import any_lane
from jaxpref.rollout import start_stream, stream

CLOCK = clock(shortest=1, longest=90, horizon=60)
"""Episodes of 1 to 60 steps: some end by themselves, some are cut off, and 60 is no multiple of the loop's chunk."""
QUARTER = constant_policy(CLOCK, [0.25, 0.75])


@pytest.fixture(scope="module")
def clock_episodes():
    return jax.tree.map(np.asarray, play(CLOCK, QUARTER, jax.random.key(1), 256))


# --- episodes ---------------------------------------------------------------------------------------------------------


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


# --- the stream ---------------------------------------------------------------------------------------------------


run_stream = jax.jit(stream, static_argnames="num_steps")


def python_stream(steps, length_of, horizon, time, name):
    """What a stream of `Clock` must look like, in a plain loop: (obs time, obs name, terminated, done) of each step.

    Names and lengths come from the resets, whose outcome is read off the first step of each episode.
    """
    rows = []
    for t in range(len(steps.action)):
        if time == 0:
            name = steps.obs[t, 1]
        rows.append((time, name, time + 1 >= length_of(name), time + 1 >= min(length_of(name), horizon)))
        time = 0 if rows[-1][-1] else time + 1
    return [np.array(column) for column in zip(*rows, strict=True)], time, name


def test_a_stream_is_a_plain_loop_of_steps_and_resets():
    """Two streams of 400 steps, the second where the first stopped: episode after episode, none begun twice."""
    state = start_stream(CLOCK, jax.random.key(8))
    time, name, lengths, names_seen = 0, None, {}, []
    for call in range(2):
        state_before = state
        state, steps = run_stream(CLOCK, QUARTER, state, jax.random.key(9 + call), num_steps=400)
        steps = jax.tree.map(np.asarray, steps)
        # How long episodes last: the environment knows it of those that run at the start and at the end. Of the others,
        # the step that terminates them shows it.
        lengths[float(steps.obs[0, 1])] = int(state_before[0].state.length)
        lengths[float(state[0].obs[1])] = int(state[0].state.length)
        for t in np.flatnonzero(steps.done):
            lengths.setdefault(float(steps.obs[t, 1]), int(steps.next_obs[t, 0]) if steps.terminated[t] else 10**6)
        (times, names, terminated, done), time, name = python_stream(
            steps, lambda name: lengths[float(name)], CLOCK.horizon, time, name
        )
        np.testing.assert_array_equal(steps.obs[:, 0], times)
        np.testing.assert_array_equal(steps.obs[:, 1], names)
        np.testing.assert_array_equal(steps.next_obs[:, 0], times + 1)
        np.testing.assert_array_equal(steps.next_obs[:, 1], names)
        np.testing.assert_array_equal(steps.reward, times + 1)
        np.testing.assert_array_equal(steps.terminated, terminated)
        np.testing.assert_array_equal(steps.done, done)
        np.testing.assert_allclose(steps.log_prob, np.log([0.25, 0.75])[steps.action], rtol=1e-5)
        assert (state[1], state[0].obs[0]) == (time, time)
        names_seen += list(dict.fromkeys(names))
    # The episode that ran on from the first stream into the second is there twice, no other is.
    assert len(names_seen) - len(set(names_seen)) == 1
    assert len(names_seen) > 15


# --- any_lane -----------------------------------------------------------------------------------------------------


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
    np.testing.assert_array_equal(
        jax.jit(jax.vmap(jax.vmap(collatz)))(starts.reshape(2, 3)), [[0, 111, 8], [19, 118, 1]]
    )
    assert int(jax.jit(collatz)(27)) == 111
