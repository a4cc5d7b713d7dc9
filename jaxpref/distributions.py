"""Distributions over actions. Trainers and rollouts call the methods and never ask which distribution it is."""

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

    def kl(self, other: "Categorical") -> Float[Array, "*batch"]:
        """Return KL(self || other), in nats: the exact sum over actions."""
        p, q = self._log_probs(), other._log_probs()
        return jnp.sum(jnp.exp(p) * (p - q), axis=0)

    def sample(self, key: Key[Array, ""]) -> Int[Array, "*batch"]:
        """Draw one action for each place of the batch."""
        return self.sample_from(jax.random.gumbel(key, self.logits.shape))

    def noise(self, key: Key[Array, ""], num_steps: int) -> Float[Array, "T A"]:
        """Draw the noise of `num_steps` samples at once, which is faster than step by step. Logits may be shapes."""
        return jax.random.gumbel(key, (self.logits.shape[-1], num_steps)).T  # an odd last axis is slow to draw

    def sample_from(self, noise: Float[Array, "*batch A"]) -> Int[Array, "*batch"]:
        """Turn noise into actions: argmax(logits + Gumbel noise) is a sample of softmax(logits)."""
        return jnp.argmax(self.logits + noise, axis=-1).astype(jnp.int32)


Distribution = Categorical
