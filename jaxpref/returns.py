"""Discounted returns and generalised advantage estimation over one sequence of steps."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from jaxpref.checks import check_number, check_sequence
from jaxpref.types import Scalar


def discounted_returns(reward: Float[Array, " T"], gamma: Scalar) -> Float[Array, " T"]:
    """Rewards-to-go, G_t = r_t + gamma * G_{t+1}. Rewards beyond the end of an episode must be zero.

    Raises ValueError for rewards with more axes than that of time, and for a discount that is not between 0 and 1.
    """
    check_sequence(reward=reward)
    check_number(gamma, "gamma", 0, 1)

    def backward(following, reward):
        current = reward + gamma * following
        return current, current

    return jax.lax.scan(backward, jnp.zeros(()), reward, reverse=True)[1]


def gae(
    reward: Float[Array, " T"],
    value: Float[Array, " T"],
    next_value: Float[Array, " T"],
    terminated: Bool[Array, " T"],
    done: Bool[Array, " T"],
    gamma: Scalar,
    gae_lambda: Scalar,
) -> tuple[Float[Array, " T"], Float[Array, " T"]]:
    """Generalised advantage estimation (Schulman et al., 2016, https://arxiv.org/abs/1506.02438).

        delta_t = r_t + gamma * (0 if terminated_t else V(next_obs_t)) - V(obs_t)
        A_t     = delta_t + gamma * gae_lambda * (0 if done_t else A_{t+1})

    `next_value` is the value of the true next observation: on truncation (done, not terminated) it is
    bootstrapped from, on termination it is not. Steps after the last are taken to have no advantage.

    Returns the advantages and the value targets A_t + V(obs_t). Raises ValueError for arrays of different shapes, or
    with more axes than that of time, and for `gamma` or `gae_lambda` that are not between 0 and 1.
    """
    check_sequence(reward=reward, value=value, next_value=next_value, terminated=terminated, done=done)
    check_number(gamma, "gamma", 0, 1)
    check_number(gae_lambda, "gae_lambda", 0, 1)
    delta = reward + gamma * jnp.where(terminated, 0.0, next_value) - value

    def backward(following, step):
        delta, done = step
        advantage = delta + gamma * gae_lambda * jnp.where(done, 0.0, following)
        return advantage, advantage

    advantage = jax.lax.scan(backward, jnp.zeros(()), (delta, done), reverse=True)[1]
    return advantage, advantage + value
