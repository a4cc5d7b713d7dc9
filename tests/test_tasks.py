"""Tasks: their environments against gymnasium, one step at a time, and what the study knows of them."""

import warnings

import gymnasium
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxpref
from jaxpref.rollout import EnvStep, step


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


def test_a_task_made_again_compiles_nothing_again():
    one, other = (jax.tree.structure(jaxpref.cartpole()) for _ in range(2))
    assert (one, hash(one)) == (other, hash(other))
    assert jaxpref.cartpole().env is jaxpref.cartpole(horizon=500).env
