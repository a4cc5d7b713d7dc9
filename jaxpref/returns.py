"""Discounted returns and generalised advantage estimation over one sequence of steps, and the unit of a reward."""

import jax
import jax.numpy as jnp
from flax import struct
from jaxtyping import Array, Bool, Float

from jaxpref.checks import check_sequence
from jaxpref.types import Scalar

Steps = Float[Array, " T"]
Flags = Bool[Array, " T"]


def discounted_returns(reward: Steps, gamma: Scalar) -> Steps:
    """Compute the rewards-to-go, G_t = r_t + gamma * G_{t+1}. Rewards after the end of an episode must be zero."""
    check_sequence(reward=reward)

    def backward(following, reward):
        current = reward + gamma * following
        return current, current

    return jax.lax.scan(backward, jnp.zeros(()), reward, reverse=True)[1]


def gae(
    reward: Steps, value: Steps, next_value: Steps, terminated: Flags, done: Flags, gamma: Scalar, gae_lambda: Scalar
) -> tuple[Steps, Steps]:
    """Estimate advantages: GAE (Schulman et al., 2016, https://arxiv.org/abs/1506.02438).

        delta_t = r_t + gamma * (0 if terminated_t else V(next_obs_t)) - V(obs_t)
        A_t     = delta_t + gamma * gae_lambda * (0 if done_t else A_{t+1})

    `next_value` is the value of the true next observation. It counts on truncation (done, not terminated), and not on
    termination. Returns the advantages and the value targets A_t + V(obs_t).
    """
    check_sequence(reward=reward, value=value, next_value=next_value, terminated=terminated, done=done)
    delta = reward + gamma * jnp.where(terminated, 0.0, next_value) - value

    def backward(following, step):
        delta, done = step
        advantage = delta + gamma * gae_lambda * jnp.where(done, 0.0, following)
        return advantage, advantage

    advantage = jax.lax.scan(backward, jnp.zeros(()), (delta, done), reverse=True)[1]
    return advantage, advantage + value


def reward_scale(gamma: Scalar, horizon: int) -> Float[Array, ""]:
    """Compute the factor that makes returns of rewards of size 1 about 1 in size: 1 / min(horizon, 1 / (1 - gamma))."""
    return jnp.maximum(1 - gamma, 1 / horizon)


@struct.dataclass
class RewardUnit:
    """The unit in which PPO measures a reward: divided by `size`, and shaped so that all values are lower by `value`.

    If all steps have a similar reward, all states have a similar value. A value head that starts at zero learns this
    value first where the features are large. Until it has learned the value of all states, the differences between
    states act like a reward. Potential-based shaping (Ng et al., 1999) with the constant potential `value` takes the
    common value away. The best policy stays the same. If `value` is None, the reward is not shaped: the experts' case.
    """

    size: Scalar
    value: Scalar | None = None

    def convert(
        self, reward: Float[Array, "*batch"], gamma: Scalar, terminated: Bool[Array, "*batch"]
    ) -> Float[Array, "*batch"]:
        """Return the reward in this unit."""
        scaled = reward / self.size
        return scaled if self.value is None else scaled - self.value * (1 - gamma * ~terminated)


def reward_unit(
    reward: Float[Array, "*batch"],
    value: Float[Array, "*batch"],
    next_value: Float[Array, "*batch"],
    terminated: Bool[Array, "*batch"],
    gamma: Scalar,
    horizon: int,
) -> RewardUnit:
    """Find the unit of a reward on played steps.

    `size` is its mean magnitude, or 1 for a reward of zero. With `value` the mean one-step error of the value head is
    zero.

    value, next_value:  the head's outputs at both observations of a step: values in units of 1 / `reward_scale`.
    """
    size = jnp.abs(reward).mean()
    size = jnp.where(size > 0, size, 1.0)
    discount = gamma * ~terminated
    error = reward / size + (discount * next_value - value) / reward_scale(gamma, horizon)
    # A constant value V lowers the mean error by slope * V. Without discount and terminations the slope is zero.
    slope = 1 - discount.mean()
    return RewardUnit(size, jnp.where(slope > 0, error.mean() / jnp.where(slope > 0, slope, 1.0), 0.0))
