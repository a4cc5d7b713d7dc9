"""Discounted returns and generalised advantage estimation, against hand-worked numbers and plain loops."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxpref import returns

discounted_returns = jax.jit(returns.discounted_returns)
gae = jax.jit(returns.gae)

T = 12


def numpy_gae(reward, value, next_value, terminated, done, gamma, gae_lambda):
    """The definition, A_t = sum_k (gamma lambda)^k delta_{t+k} up to the end of t's episode, summed forwards."""
    delta = reward + gamma * np.where(terminated, 0, next_value) - value
    advantage = np.zeros(len(reward))
    for t in range(len(reward)):
        for k in range(t, len(reward)):
            advantage[t] += (gamma * gae_lambda) ** (k - t) * delta[k]
            if done[k]:
                break
    return advantage, advantage + value


def random_steps(seed):
    """Rewards, values, flags of T steps with episodes that terminate and episodes that are cut off."""
    rng = np.random.default_rng(seed)
    reward, value, next_value = rng.normal(size=(3, T)).astype(np.float32)
    terminated = rng.random(T) < 0.2
    return reward, value, next_value, terminated, terminated | (rng.random(T) < 0.2)


def test_discounted_returns_hand_worked():
    """Rewards 1, 2, 4 at gamma 1/2: 4; 2 + 4/2 = 4; 1 + 4/2 = 3."""
    np.testing.assert_array_equal(discounted_returns(jnp.array([1.0, 2.0, 4.0]), 0.5), [3, 4, 4])


@settings(deadline=None, max_examples=30)
@given(st.lists(st.floats(-100, 100, width=32), min_size=T, max_size=T), st.floats(0, 1, width=32))
def test_discounted_returns_are_the_sum_of_discounted_rewards(reward, gamma):
    expected = [sum(gamma**k * r for k, r in enumerate(reward[t:])) for t in range(T)]
    np.testing.assert_allclose(discounted_returns(jnp.array(reward), gamma), expected, rtol=1e-5, atol=1e-3)


def test_returns_are_about_1_in_size_at_any_discount():
    """The first return of 50 rewards of 1 is 50 undiscounted, and (1 - 0.9^50) / (1 - 0.9) = 9.95 at gamma 0.9."""
    assert returns.reward_scale(1.0, 50) * discounted_returns(jnp.ones(50), 1.0)[0] == pytest.approx(1)
    assert returns.reward_scale(0.9, 50) * discounted_returns(jnp.ones(50), 0.9)[0] == pytest.approx(0.995, rel=1e-3)
    # Bit for bit 1 - gamma where the discount is what limits the return, as in every experiment of the study.
    for horizon in (100, 200, 500):
        assert returns.reward_scale(0.99, horizon) == jnp.float32(1 - 0.99)


def test_gae_hand_worked():
    """gamma 1/2, lambda 1/2; three steps, of which the second terminates and the third is cut off.

    delta = 1 + 8/2 - 2 = 3;  4 + 0 - 1 = 3;  2 + 6/2 - 4 = 1.  A = 3 + 3/4, 3, 1;  targets A + V.
    """
    advantage, target = gae(
        reward=jnp.array([1.0, 4.0, 2.0]),
        value=jnp.array([2.0, 1.0, 4.0]),
        next_value=jnp.array([8.0, 100.0, 6.0]),
        terminated=jnp.array([False, True, False]),
        done=jnp.array([False, True, True]),
        gamma=0.5,
        gae_lambda=0.5,
    )
    np.testing.assert_array_equal(advantage, [3.75, 3, 1])
    np.testing.assert_array_equal(target, [5.75, 4, 5])


@pytest.mark.parametrize(("seed", "gae_lambda"), [(0, 0.8), (1, 0.8), (2, 0.8), (3, 0.0), (4, 1.0)])
def test_gae_is_the_sum_of_discounted_td_errors(seed, gae_lambda):
    steps = random_steps(seed)
    for result, expected in zip(gae(*steps, 0.9, gae_lambda), numpy_gae(*steps, 0.9, gae_lambda), strict=True):
        np.testing.assert_allclose(result, expected, atol=1e-5)


@pytest.mark.parametrize("garbage", [np.nan, np.inf])
def test_the_value_after_a_terminal_step_is_never_read(garbage):
    """Neither by the advantages nor by their gradient."""
    reward, value, next_value, terminated, done = (jnp.array(column) for column in random_steps(9))
    assert terminated.any()
    spoilt = jnp.where(terminated, garbage, next_value)

    @jax.jit
    @jax.value_and_grad
    def total(value, next_value):
        advantage, target = returns.gae(reward, value, next_value, terminated, done, 0.9, 0.8)
        return jnp.vdot(advantage, advantage) + target.sum()

    for clean, dirty in zip(total(value, next_value), total(value, spoilt), strict=True):
        assert np.isfinite(clean).all()
        np.testing.assert_array_equal(clean, dirty)


# --- the unit of a reward ---------------------------------------------------------------------------------------------


def test_the_unit_of_a_reward():
    """Size (3 + 1 + 8) / 3 = 4. One of three steps terminates: V = (10 / 3) / 4 + 0.9 * 2/3 * V, so V = 25 / 12. A head
    that says 0.1 everywhere, in units of 1 / (1 - 0.9), says 1 already. Without discount and terminations no V fits."""
    reward, ends, nothing = jnp.array([3.0, -1.0, 8.0]), jnp.array([False, True, False]), jnp.zeros(3)

    def unit(reward, head, ends, gamma):
        found = returns.reward_unit(reward, nothing + head, nothing + head, ends, gamma, 10)
        return found.size, found.value

    np.testing.assert_allclose(unit(reward, 0, ends, 0.9), [4, 25 / 12], rtol=1e-6)
    np.testing.assert_allclose(unit(reward, 0, ends & False, 1.0), [4, 0])
    np.testing.assert_allclose(unit(reward, 0.1, ends, 0.9), [4, 25 / 12 - 1], rtol=1e-5)
    assert unit(nothing, 0, ends, 0.9) == (1, 0)


def test_in_its_unit_a_reward_has_the_same_advantages_relative_to_values_without_the_offset():
    """Shaping by a constant: GAE of r / size with values V + value is GAE of the reward in its unit with values V."""
    steps = map(jnp.array, random_steps(3))
    unit = returns.RewardUnit(2.0, 0.7)
    reward, value, next_value, terminated, done = steps
    shifted = gae(unit.convert(reward, 0.9, terminated), value, next_value, terminated, done, 0.9, 0.8)[0]
    plain = gae(reward / 2, value + 0.7, next_value + 0.7, terminated, done, 0.9, 0.8)[0]
    np.testing.assert_allclose(shifted, plain, atol=1e-5)
