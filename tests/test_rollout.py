"""Playing: masked episodes and the auto-resetting stream.

`Clock` counts, so that what must come out is known exactly; the two real tasks show the same on real dynamics.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import (
    assert_same_bytes,
    balancing_policy,
    binomial_bound,
    clock,
    constant_policy,
    keys,
    lane,
    linear_policy,
    numpy_policy,
    play,
)

import jaxpref
from jaxpref.fast.loops import any_lane
from jaxpref.rollout import EnvStep, start_stream, step, stream

CLOCK = clock(shortest=1, longest=90, horizon=60)
"""Episodes of 1 to 60 steps: some end by themselves, some are cut off, and 60 is no multiple of the loop's chunk."""


@jax.jit
def cartpole_step(task, obs, action):
    """One step from each observation: CartPole shows its whole state."""

    def one(obs, action):
        blank = task.env.reset_env(jax.random.key(0), task.env_params)[1]
        state = blank.replace(x=obs[0], x_dot=obs[1], theta=obs[2], theta_dot=obs[3])
        following, _, terminated = step(task, jax.random.key(0), EnvStep(obs, state), action)
        return following.obs, terminated

    return jax.vmap(one)(obs, action)


@pytest.fixture(scope="module")
def clock_episodes():
    return jax.tree.map(np.asarray, play(CLOCK, constant_policy(CLOCK, [0.25, 0.75]), jax.random.key(1), 256))


@pytest.fixture(scope="module")
def cartpole_episodes():
    task = jaxpref.cartpole()
    return jax.tree.map(np.asarray, play(task, constant_policy(task, [0.5, 0.5]), jax.random.key(2), 64))


# --- episodes ---------------------------------------------------------------------------------------------------------


def test_an_episode_has_exactly_the_steps_that_were_played(clock_episodes):
    """An episode of n steps is: times 0..n-1, one name, rewards 1..n, and nothing at all behind them."""
    lengths = clock_episodes.mask.sum(-1)
    for i, n in enumerate(lengths):
        played = lane(clock_episodes, i)
        np.testing.assert_array_equal(played.mask, np.arange(60) < n)
        np.testing.assert_array_equal(played.obs[:n, 0], np.arange(n))
        np.testing.assert_array_equal(played.next_obs[:n, 0], 1 + np.arange(n))
        np.testing.assert_array_equal(played.reward[:n], 1 + np.arange(n))
        assert len(set(played.obs[:n, 1]) | set(played.next_obs[:n, 1])) == 1
        np.testing.assert_array_equal(played.next_obs[: n - 1], played.obs[1:n])
        for leaf in (played.obs, played.action, played.reward, played.next_obs):
            assert not leaf[n:].any()


def test_episode_lengths_are_those_of_the_environment_cut_off_at_the_horizon(clock_episodes):
    """Lengths U{1..90} cut off at 60: each of 1..59 has probability 1/90, and 60 has 31/90."""
    lengths = clock_episodes.mask.sum(-1)
    assert lengths.min() >= 1
    assert lengths.max() == 60
    assert abs((lengths == 60).mean() - 31 / 90) < binomial_bound(31 / 90, 256)
    assert abs((lengths <= 30).mean() - 30 / 90) < binomial_bound(30 / 90, 256)


def test_every_episode_and_every_step_has_its_own_noise(clock_episodes):
    names = clock_episodes.obs[:, 0, 1]
    assert len(set(names)) == len(names)
    noise = clock_episodes.next_obs[..., 2][clock_episodes.mask]
    assert len(set(noise)) > 0.999 * len(noise)


def test_actions_follow_the_policys_probabilities(clock_episodes):
    """A policy of (1/4, 3/4): single actions with these frequencies, and neighbouring ones independently."""
    mask, action = clock_episodes.mask, clock_episodes.action
    assert abs(action[mask].mean() - 0.75) < binomial_bound(0.75, mask.sum())
    both = (action[:, :-1] & action[:, 1:])[mask[:, 1:]]
    # Neighbouring pairs overlap, which makes their frequency's variance up to 3 times a binomial's.
    assert abs(both.mean() - 0.75**2) < np.sqrt(3) * binomial_bound(0.75**2, both.size)
    across = action[:-1, 0] & action[1:, 0]
    assert abs(across.mean() - 0.75**2) < np.sqrt(3) * binomial_bound(0.75**2, across.size)


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
    some_keys = jax.random.split(jax.random.key(1), 256)
    alone = jax.jit(jaxpref.episode)(CLOCK, constant_policy(CLOCK, [0.25, 0.75]), some_keys[17])
    assert_same_bytes(alone, lane(clock_episodes, 17))


@pytest.mark.parametrize("horizon", [7, 50, 101])
def test_a_horizon_of_any_length_is_kept_to_the_step(horizon):
    """Episodes of exactly 70 steps: cut off where the horizon is shorter, over before it where it is longer."""
    task = clock(shortest=70, longest=70, horizon=horizon)
    played = play(task, constant_policy(task, [0.5, 0.5]), jax.random.key(4), 2)
    n = min(horizon, 70)
    np.testing.assert_array_equal(played.mask, [np.arange(horizon) < n] * 2)
    np.testing.assert_array_equal(played.next_obs[:, n - 1, 0], [n, n])
    np.testing.assert_array_equal(played.reward.sum(-1), [n * (n + 1) / 2] * 2)


def test_every_step_of_a_cartpole_episode_is_a_step_of_cartpole(cartpole_episodes):
    """Also the last one: its next observation is where the pole fell, not the start of another episode."""
    played = cartpole_episodes
    following, terminated = cartpole_step(jaxpref.cartpole(), played.obs[played.mask], played.action[played.mask])
    np.testing.assert_allclose(played.next_obs[played.mask], following, atol=1e-6)
    # A random policy's pole falls well before step 200: the last step, and no other, is terminal.
    lengths = played.mask.sum(-1)
    assert lengths.max() < 200
    is_last = np.arange(200) == lengths[:, None] - 1
    np.testing.assert_array_equal(terminated, is_last[played.mask])


def test_initial_states_differ_between_episodes(cartpole_episodes):
    assert len(np.unique(cartpole_episodes.obs[:, 0], axis=0)) == 64


def test_evaluate_is_the_sum_of_the_same_episodes_rewards(cartpole_episodes):
    task = jaxpref.cartpole()
    evaluate = jax.jit(jaxpref.evaluate, static_argnums=3)
    returns = evaluate(task, constant_policy(task, [0.5, 0.5]), jax.random.key(2), 64)
    np.testing.assert_array_equal(returns, cartpole_episodes.reward.sum(-1))
    np.testing.assert_array_equal(returns, cartpole_episodes.mask.sum(-1))


# --- the tasks' time limits -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("horizon", [200, 500])
def test_cartpole_ends_at_its_limit_when_the_pole_never_falls(horizon):
    task = jaxpref.cartpole(horizon=horizon)
    played = play(task, balancing_policy(task), jax.random.key(5), 4)
    np.testing.assert_array_equal(played.mask, np.ones((4, horizon), bool))
    np.testing.assert_array_equal(played.reward, np.ones((4, horizon)))


def test_acrobot_ends_at_its_limit_when_no_torque_is_applied():
    task = jaxpref.acrobot()
    played = play(task, constant_policy(task, [1e-30, 1.0, 1e-30]), jax.random.key(5), 4)
    np.testing.assert_array_equal(played.action, np.ones((4, 500)))
    np.testing.assert_array_equal(played.mask, np.ones((4, 500), bool))
    np.testing.assert_array_equal(played.reward, -np.ones((4, 500)))


# --- the stream ---------------------------------------------------------------------------------------------------


run_stream = jax.jit(stream, static_argnames="num_steps")


@pytest.mark.parametrize("task", [jaxpref.cartpole(), jaxpref.acrobot()], ids=lambda task: task.name)
def test_the_time_limit_truncates_a_stream(task):
    """A policy that never ends: done at every horizon-th step, never terminated."""
    policy = balancing_policy(task) if task.name == "cartpole" else constant_policy(task, [1e-30, 1.0, 1e-30])
    _, steps = run_stream(task, policy, start_stream(task, jax.random.key(6)), jax.random.key(7), num_steps=1050)
    assert not steps.terminated.any()
    np.testing.assert_array_equal(steps.done, np.arange(1, 1051) % task.horizon == 0)
    # The observation behind the limit is the true one, and the stream goes on from another: a reset one.
    ends = np.flatnonzero(steps.done)
    inside = np.setdiff1d(np.arange(1049), ends)
    np.testing.assert_array_equal(steps.next_obs[inside], steps.obs[inside + 1])
    for end in ends:
        assert not np.array_equal(steps.next_obs[end], steps.obs[end + 1])
    if task.name == "cartpole":
        following, _ = cartpole_step(task, steps.obs, steps.action)
        np.testing.assert_allclose(steps.next_obs, following, atol=1e-6)
        assert np.abs(steps.obs[ends + 1]).max() <= 0.05


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
    task = CLOCK
    policy = constant_policy(task, [0.25, 0.75])
    state = start_stream(task, jax.random.key(8))
    time, name, lengths = 0, None, {}
    names_seen = []
    for call in range(2):
        state_before = state
        state, steps = run_stream(task, policy, state, jax.random.key(9 + call), num_steps=400)
        steps = jax.tree.map(np.asarray, steps)
        # The environment's own record of how long the episode lasts: known for the one that is running, and, for those
        # that end within the stream, the time at which they do unless the limit comes first.
        lengths[float(steps.obs[0, 1])] = int(state_before.env_step.state.length)
        lengths[float(state.env_step.obs[1])] = int(state.env_step.state.length)
        for t in np.flatnonzero(steps.done):
            lengths.setdefault(float(steps.obs[t, 1]), int(steps.next_obs[t, 0]) if steps.terminated[t] else 10**6)
        (times, names, terminated, done), time, name = python_stream(
            steps, lambda name: lengths[float(name)], task.horizon, time, name
        )
        np.testing.assert_array_equal(steps.obs[:, 0], times)
        np.testing.assert_array_equal(steps.obs[:, 1], names)
        np.testing.assert_array_equal(steps.next_obs[:, 0], times + 1)
        np.testing.assert_array_equal(steps.next_obs[:, 1], names)
        np.testing.assert_array_equal(steps.reward, times + 1)
        np.testing.assert_array_equal(steps.terminated, terminated)
        np.testing.assert_array_equal(steps.done, done)
        assert (state.time, state.env_step.obs[0]) == (time, time)
        names_seen += list(dict.fromkeys(names))
    # The episode that ran on from the first stream into the second is there twice, no other is.
    assert len(names_seen) - len(set(names_seen)) == 1
    assert len(names_seen) > 15


def test_a_stream_ends_episodes_as_whole_episodes_do():
    """Lengths U{1..90}, limit 60: 60 of 90 terminate by themselves in time, the others are cut off."""
    task = CLOCK
    policy = constant_policy(task, [0.5, 0.5])
    many = jax.jit(
        jax.vmap(lambda key: stream(task, policy, start_stream(task, key), jax.random.fold_in(key, 1), 200)[1])
    )
    steps = jax.tree.map(np.asarray, many(jax.random.split(jax.random.key(10), 64)))
    # Only the first episode of each stream: the later ones that end within 200 steps are the shorter ones.
    first = steps.done.argmax(axis=1)
    terminated = steps.terminated[np.arange(64), first]
    assert steps.done[np.arange(64), first].all()
    assert first.max() == 59
    assert not terminated[first == 59].all()
    assert terminated[first < 59].all()
    assert abs(terminated.mean() - 60 / 90) < binomial_bound(60 / 90, 64)


def test_a_streams_log_prob_is_the_policys_of_the_action_taken():
    task = jaxpref.cartpole()
    policy = jaxpref.init_policy(jax.random.key(11), task)
    _, steps = run_stream(task, policy, start_stream(task, jax.random.key(12)), jax.random.key(13), num_steps=1050)
    log_probs, _ = numpy_policy(policy, np.asarray(steps.obs, np.float64))
    expected = np.take_along_axis(log_probs, np.asarray(steps.action)[:, None], axis=1)[:, 0]
    np.testing.assert_allclose(steps.log_prob, expected, atol=1e-5)
    # And the actions follow it: their mean is that of the probabilities, within 5 sigma.
    p = np.exp(log_probs[:, 1])
    assert abs(np.mean(steps.action) - p.mean()) < 5 * np.sqrt(np.sum(p * (1 - p))) / len(p)


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


def test_any_lane_is_one_answer_for_all_lanes():
    def condition(flag):
        return any_lane(flag)

    flags = jnp.array([False, True, False])
    np.testing.assert_array_equal(jax.vmap(condition)(flags), [True] * 3)
    np.testing.assert_array_equal(jax.vmap(condition)(~flags & flags), [False] * 3)
    assert not any_lane(jnp.bool_(False))


def test_episodes_do_not_depend_on_the_episodes_beside_them():
    """The loop runs until the last one has ended; those that ended before must not notice."""
    policy = constant_policy(CLOCK, [0.5, 0.5])
    batch = jax.jit(jax.vmap(lambda key: jaxpref.episode(CLOCK, policy, key)))
    one, other = batch(keys(1, 2, 3, 4)), batch(keys(1, 5, 3, 6))
    assert_same_bytes(lane(one, 0), lane(other, 0))
    assert_same_bytes(lane(one, 2), lane(other, 2))
