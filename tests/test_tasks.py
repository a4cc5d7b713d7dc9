"""Tasks: their environments against gymnasium, one step at a time, and what the study knows of them."""

import pickle
import warnings

import gymnasium
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from gymnax.environments import spaces
from helpers import assert_close, assert_same_bytes, clock, constant_policy, lane, linear_policy, play

import jaxpref
from jaxpref.gymnax_tasks import KNOWN, Absorbing
from jaxpref.rollout import EnvStep, reset, start_stream, step, stream
from jaxpref.tasks import from_gymnax


def cartpole_states(rng, num_states):
    """States (x, x_dot, theta, theta_dot), none of them terminal; a third of them close to an edge."""
    states = rng.uniform([-2.4, -3, -0.2094, -3], [2.4, 3, 0.2094, 3], (num_states, 4))
    some = num_states // 6
    near = rng.choice([-1, 1], (2, some)) * ([[2.4], [12 * np.pi / 180]] - rng.uniform(1e-4, 0.02, (2, some)))
    states[:some, 0], states[some : 2 * some, 2] = near
    return states


def acrobot_states(rng, num_states):
    """States (t1, t2, v1, v2), none of them terminal; half of them close to the bar."""
    high = np.array([np.pi, np.pi, 5, 10])
    states = rng.uniform(-high, high, (10 * num_states, 4))
    height = -np.cos(states[:, 0]) - np.cos(states[:, 0] + states[:, 1])
    below, near = states[height < 1][: num_states // 2], states[(height > 0.7) & (height < 1)][: num_states // 2]
    return np.concatenate([below, near])


def car_states(rng, num_states):
    """States (x, v); a fifth of them close to the flag, and a tenth close to the wall."""
    states = rng.uniform([-1.2, -0.07], [0.6, 0.07], (num_states, 2))
    states[: num_states // 5, 0] = rng.uniform(0.4, 0.52, num_states // 5)
    states[-num_states // 10 :, 0] = rng.uniform(-1.2, -1.15, num_states // 10)
    return states


def pendulum_states(rng, num_states):
    """States (theta, theta_dot), up to the largest speed, and beyond one turn."""
    return rng.uniform([-7, -8], [7, 8], (num_states, 2))


TASKS = {
    "cartpole": ("CartPole-v1", ("x", "x_dot", "theta", "theta_dot"), cartpole_states),
    "acrobot": ("Acrobot-v1", ("joint_angle1", "joint_angle2", "velocity_1", "velocity_2"), acrobot_states),
    "MountainCar-v0": ("MountainCar-v0", ("position", "velocity"), car_states),
    "MountainCarContinuous-v0": ("MountainCarContinuous-v0", ("position", "velocity"), car_states),
    "Pendulum-v1": ("Pendulum-v1", ("theta", "theta_dot"), pendulum_states),
}
"""{task: (gymnasium's id, fields of gymnax's state, states to step from)}."""


def draw_actions(rng, task, num_actions):
    """Any of the discrete actions, or numbers from half as large a range again."""
    if task.action_range is None:
        return rng.integers(task.num_actions, size=num_actions)
    return rng.uniform(*1.5 * np.array(task.action_range).T, (num_actions, task.num_actions)).astype(np.float32)


def gymnasium_steps(name, states, actions):
    """(obs, reward, terminated) of gymnasium's environment after one step from each state."""
    env, results = gymnasium.make(name).unwrapped, []
    env.reset(seed=0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # CartPole objects to a step after its end, and it has not seen a reset
        for state, action in zip(states, actions, strict=True):
            env.state, env.steps_beyond_terminated = state.copy(), None  # the second is CartPole's
            results.append(env.step(action)[:3])
    return tuple(np.array(column) for column in zip(*results, strict=True))


@pytest.mark.parametrize("name", TASKS)
def test_one_step_is_gymnasiums(name):
    """Actions beyond the range are those at its ends: gymnasium's Pendulum clips them itself, and its car only a part
    of them."""
    (gym_name, fields, draw_states), rng = TASKS[name], np.random.default_rng(1)
    task, is_car = jaxpref.task(name), name.startswith("MountainCar")
    # Both sides start from the same float32 numbers.
    states = draw_states(rng, 1000).astype(np.float32).astype(np.float64)
    actions = draw_actions(rng, task, len(states))
    gym_actions = np.clip(actions, -1, 1) if name == "MountainCarContinuous-v0" else actions
    gym_obs, gym_reward, gym_terminated = gymnasium_steps(gym_name, states, gym_actions)

    blank = task.env.reset_env(jax.random.key(0), task.env_params)[1]

    @jax.jit
    @jax.vmap
    def jax_step(state, action):
        env_state = blank.replace(**dict(zip(fields, state, strict=True)))
        following, reward, terminated = step(task, jax.random.key(0), EnvStep(None, env_state), action)
        return following.obs, reward, terminated

    obs, reward, terminated = jax_step(jnp.array(states, jnp.float32), jnp.array(actions))
    if is_car:  # what networks see
        gym_obs = np.stack([gym_obs[:, 0] + 0.5, 15 * gym_obs[:, 1]], axis=-1)
    tolerance = 2e-5 if is_car else 2e-6
    np.testing.assert_allclose(obs, gym_obs, rtol=tolerance, atol=tolerance)
    np.testing.assert_array_equal(terminated, gym_terminated)
    np.testing.assert_allclose(reward, gym_reward, rtol=0 if task.action_range is None else 1e-5)
    assert 0.05 < gym_terminated.mean() < 0.95 or name == "Pendulum-v1"  # which never ends


def test_acrobot_height_is_that_of_the_angles():
    t1, t2 = np.random.default_rng(2).uniform(-np.pi, np.pi, (2, 500))
    obs = np.stack([np.cos(t1), np.sin(t1), np.cos(t2), np.sin(t2), 0 * t1, 0 * t1], axis=-1)
    height = jax.jit(jaxpref.tasks.acrobot_height)(jnp.array(obs, jnp.float32))
    np.testing.assert_allclose(height, -(np.cos(t1) + np.cos(t1 + t2)) / 2, atol=1e-6)


def test_handmade_baselines_hand_worked():
    # 0.8 * (0.2 - 0.1^2) - 0.8 * 0.5^2 = 0.152 - 0.2; position and speed of the cart do not count.
    cartpole = jaxpref.cartpole().baseline(jnp.array([7.0, -7.0, 0.1, 0.5]))
    np.testing.assert_allclose(cartpole, -0.048, rtol=1e-5)
    # Hanging, at speeds 1 and 2: -1 - 0.05 * (1 + 4).
    acrobot = jaxpref.acrobot().baseline(jnp.array([1.0, 0.0, 1.0, 0.0, 1.0, 2.0]))
    np.testing.assert_allclose(acrobot, -1.25, rtol=1e-6)


HORIZONS = {jaxpref.cartpole: (200, 500), jaxpref.acrobot: (500, 300)}


def test_targets_and_horizons_are_the_studys():
    """CartPole's targets in proportion to the horizon. It is v0, which ended after 200 steps; gymnasium only has v1."""
    tasks = [make(horizon) for make, horizons in HORIZONS.items() for horizon in horizons]
    targets = [(task.pi1_target, task.pi2_target) for task in tasks]
    assert targets == [(190, 95), (475, 237.5), (-150, -250), (None, None)]
    assert jaxpref.cartpole().horizon == 200
    for name, (gym_name, *_) in TASKS.items():
        if name != "cartpole":
            assert jaxpref.task(name).horizon == gymnasium.spec(gym_name).max_episode_steps


@pytest.mark.parametrize("fixed_horizon", [False, True])
def test_a_task_made_again_compiles_nothing_again(fixed_horizon):
    """Also one that comes back from another process."""
    for name in ("cartpole", "Pendulum-v1"):
        one, other = (jax.tree.structure(jaxpref.task(name, fixed_horizon=fixed_horizon)) for _ in range(2))
        assert (one, hash(one)) == (other, hash(other))
        assert one != jax.tree.structure(jaxpref.task(name, fixed_horizon=not fixed_horizon))
    assert jaxpref.cartpole().env is jaxpref.cartpole(horizon=500).env
    assert pickle.loads(pickle.dumps(Absorbing("env"))) == Absorbing("env")


# --- continuous actions -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [name for name, known in KNOWN.items() if known.get("stochastic") is False])
def test_a_task_that_says_so_does_not_use_the_key_of_a_step(name):
    task = jaxpref.task(name)
    _, state = task.env.reset_env(jax.random.key(0), task.env_params)
    action = jnp.int32(1) if task.action_range is None else jnp.full(task.num_actions, 0.3)
    take_step = jax.jit(lambda key: step(task, key, EnvStep(None, state), action))
    assert_same_bytes(*(take_step(jax.random.key(seed)) for seed in (1, 2)))


class Push:
    """Shows what it was paid: the sum of two numbers, one from -1 to 1 and one from 0 to 4."""

    def action_space(self, params):
        return spaces.Box(jnp.array([-1.0, 0.0]), jnp.array([1.0, 4.0]), (2,))

    def reset_env(self, key, params):
        return jnp.zeros(1), jnp.float32(0)

    def step_env(self, key, state, action, params):
        paid = action.sum()
        return paid[None], paid, paid, jnp.bool_(False), {}


def test_an_action_is_clipped_for_the_environment_and_recorded_as_it_was_drawn():
    """In episodes and in the stream that PPO learns from. The policy draws around the middle, (0, 2), with deviations
    of three halves of the range: 3 and 6."""
    task = from_gymnax(Push(), horizon=40)
    assert (task.num_actions, task.action_range) == (2, ((-1, 1), (0, 4)))
    policy = jaxpref.init_policy(jax.random.key(0), task, policy_scale=0.0)
    policy.params["log_std"] = jnp.log(jnp.array([3.0, 3.0]))
    played = play(task, policy, jax.random.key(1), 20)
    start = start_stream(task, jax.random.key(2))
    _, streamed = jax.jit(stream, static_argnums=4)(task, policy, start, jax.random.key(3), 800)
    for steps in (played, streamed):
        actions = np.asarray(steps.action, np.float64).reshape(-1, 2)
        paid = np.clip(actions, [-1, 0], [1, 4]).sum(-1)
        np.testing.assert_allclose(np.ravel(steps.reward), paid, rtol=1e-5, atol=1e-5)
        np.testing.assert_array_equal(np.ravel(steps.next_obs), np.ravel(steps.reward))
        # 800 draws of each number: the standard error of a deviation is 1/40 of it, that of a mean 1/28.
        np.testing.assert_allclose(actions.std(axis=0), [3, 6], rtol=5 / 40)
        np.testing.assert_allclose((actions.mean(axis=0) - [0, 2]) / [3, 6], [0, 0], atol=5 / 28)
    assert played.action.shape == (20, 40, 2)


# --- episodes of one length -------------------------------------------------------------------------------------------


def swinging(task):
    """A policy of Acrobot that pushes with the second link's velocity, and so gets over the bar soon."""
    weights = np.zeros((6, 3))
    weights[5] = -5, 0, 5
    return linear_policy(task, weights, [0, 0, 0])


def test_known_targets_are_those_of_the_environments_own_parameters():
    """Other parameters pay other returns, so their targets are found."""
    params = jaxpref.task("PointRobot-misc").env_params
    assert jaxpref.task("PointRobot-misc").pi1_target == 4.0
    assert jaxpref.task("PointRobot-misc", horizon=50).pi1_target is None
    other = from_gymnax("PointRobot-misc", params.replace(dense_reward=True))
    assert other.pi1_target is None
    assert other.horizon == 100


def as_absorbing(task):
    return task.replace(env=Absorbing(task.env))


CLOCK = clock(shortest=1, longest=90, horizon=60)
ORDINARY_AND_FIXED = {
    "cartpole": (jaxpref.cartpole(), jaxpref.cartpole(fixed_horizon=True), constant_policy),
    "acrobot": (jaxpref.acrobot(), jaxpref.acrobot(fixed_horizon=True), swinging),
    "clock": (CLOCK, as_absorbing(CLOCK), constant_policy),
}


@pytest.mark.parametrize("name", ORDINARY_AND_FIXED)
def test_episodes_of_one_length_go_on_where_the_others_end(name):
    """The same policy and key: the same steps up to the end, and so the same return. Then the last observation and a
    reward of zero, up to the horizon. Two programs round differently, and Acrobot magnifies that."""
    task, fixed, make_policy = ORDINARY_AND_FIXED[name]
    policy = make_policy(task) if make_policy is swinging else make_policy(task, [0.5, 0.5])
    ordinary, longer = (jax.tree.map(np.asarray, play(each, policy, jax.random.key(6), 20)) for each in (task, fixed))
    lengths = ordinary.mask.sum(-1)
    assert len(set(lengths[lengths < task.horizon])) > 5
    assert longer.mask.all()
    np.testing.assert_array_equal(longer.reward.sum(-1), ordinary.reward.sum(-1))
    for i, n in enumerate(lengths):
        one, other = lane(ordinary, i), lane(longer, i)
        assert_close(*(jax.tree.map(lambda leaf, n=n: leaf[:n], each) for each in (other, one)), atol=0.02)
        assert not other.reward[n:].any()
        for after in (other.obs[n:], other.next_obs[n:]):
            np.testing.assert_array_equal(after, np.broadcast_to(other.next_obs[n - 1], after.shape))


def test_after_the_end_the_state_stands_still():
    """Every number of it, whatever the action; and no step terminates, neither the last one nor those after it."""
    task = as_absorbing(clock(shortest=3, longest=3, horizon=10))
    states, current = [], reset(task, jax.random.key(0))
    for t in range(6):
        current, reward, terminated = step(task, jax.random.key(t), current, jnp.int32(t % 2))
        assert (float(reward), bool(terminated)) == (t + 1 if t < 3 else 0, False)
        states.append(current)
    assert states[2].state[0].time == 3
    for after in states[3:]:
        assert_same_bytes(after, states[2])


def test_the_task_of_a_name_may_have_episodes_of_one_length():
    """Its other fields are the same."""
    for name, horizon in (("acrobot", 100), ("Catch-bsuite", None), ("Pendulum-v1", 50)):
        fixed = jaxpref.task(name, horizon, fixed_horizon=True)
        assert fixed.env == Absorbing(jaxpref.task(name).env)
        assert_same_bytes(fixed.replace(env=None), jaxpref.task(name, horizon).replace(env=None))
