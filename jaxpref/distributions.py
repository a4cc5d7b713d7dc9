"""Distributions over actions. Trainers and rollouts call the methods and never ask which distribution it is."""

import math
from typing import Any

import jax
import jax.numpy as jnp
from flax import struct
from jaxtyping import Array, Float, Int, Key


@struct.dataclass
class Categorical:
    """softmax(logits) over A actions, the last axis."""

    logits: Float[Array, "*batch A"]

    def _log_probs(self) -> Float[Array, "A *batch"]:
        # Actions first: on a CPU, sums over a short last axis are slow.
        return jax.nn.log_softmax(jnp.moveaxis(self.logits, -1, 0), axis=0)

    def log_prob(self, action: Int[Array, "*batch"]) -> Float[Array, "*batch"]:
        """Return the log-probability of `action`, in nats."""
        # Not a gather: the sum over few actions costs less, and so does its gradient.
        taken = jax.nn.one_hot(action, self.logits.shape[-1], dtype=bool, axis=0)
        return jnp.where(taken, self._log_probs(), 0.0).sum(0)

    def entropy(self) -> Float[Array, "*batch"]:
        """Return the entropy, in nats."""
        log_probs = self._log_probs()
        return -jnp.sum(jnp.exp(log_probs) * log_probs, axis=0)

    def kl(self, other: Any) -> Float[Array, "*batch"]:
        """Return KL(self || other), in nats: the exact sum over actions."""
        p, q = self._log_probs(), other._log_probs()
        return jnp.sum(jnp.exp(p) * (p - q), axis=0)

    def sample(self, key: Key[Array, ""]) -> Int[Array, "*batch"]:
        """Draw one action for each place of the batch."""
        return self.sample_from(jax.random.gumbel(key, self.logits.shape))

    def noise(self, key: Key[Array, ""], num_steps: int) -> Float[Array, "T A"]:
        """Draw the noise of `num_steps` samples at once, which is faster. Of the logits only the shape is used."""
        return jax.random.gumbel(key, (self.logits.shape[-1], num_steps)).T  # an odd last axis is slow to draw

    def sample_from(self, noise: Float[Array, "*batch A"]) -> Int[Array, "*batch"]:
        """Turn noise into actions: argmax(logits + Gumbel noise) is a sample of softmax(logits)."""
        return jnp.argmax(self.logits + noise, axis=-1).astype(jnp.int32)


@struct.dataclass
class Gaussian:
    """Independent normal distributions of the D numbers of an action, the last axis."""

    mean: Float[Array, "*batch D"]
    log_std: Float[Array, "*batch D"]

    def log_prob(self, action: Float[Array, "*batch D"]) -> Float[Array, "*batch"]:
        """Return the log-density at `action`, in nats."""
        z = (action - self.mean) * jnp.exp(-self.log_std)
        return -(0.5 * z**2 + self.log_std + 0.5 * math.log(2 * math.pi)).sum(-1)

    def entropy(self) -> Float[Array, "*batch"]:
        """Return the differential entropy, in nats. It is negative for a narrow distribution."""
        return (self.log_std + 0.5 * math.log(2 * math.pi * math.e)).sum(-1)

    def kl(self, other: Any) -> Float[Array, "*batch"]:
        """Return KL(self || other), in nats."""
        variances = jnp.exp(2 * (self.log_std - other.log_std))
        distance = ((self.mean - other.mean) * jnp.exp(-other.log_std)) ** 2
        return (other.log_std - self.log_std + 0.5 * (variances + distance - 1)).sum(-1)

    def sample(self, key: Key[Array, ""]) -> Float[Array, "*batch D"]:
        """Draw one action for each place of the batch."""
        return self.sample_from(jax.random.normal(key, self.mean.shape))

    def noise(self, key: Key[Array, ""], num_steps: int) -> Float[Array, "T D"]:
        """Draw the noise of `num_steps` samples at once. Of the mean only the shape is used."""
        return jax.random.normal(key, (self.mean.shape[-1], num_steps)).T

    def sample_from(self, noise: Float[Array, "*batch D"]) -> Float[Array, "*batch D"]:
        """Turn standard normal noise into actions."""
        return self.mean + jnp.exp(self.log_std) * noise


Distribution = Categorical | Gaussian
