"""Distributions over actions. Trainers and rollouts call the methods and never ask which distribution it is."""

import jax
import jax.numpy as jnp
from flax import struct
from jaxtyping import Array, Float, Int, Key


@struct.dataclass
class Categorical:
    """softmax(logits) over A actions, the last axis."""

    logits: Float[Array, "*batch A"]

    def log_prob(self, action: Int[Array, "*batch"]) -> Float[Array, "*batch"]:
        """Return the log-probability of `action`, in nats."""
        log_probs = jax.nn.log_softmax(self.logits)
        return jnp.take_along_axis(log_probs, action[..., None], axis=-1).squeeze(-1)

    def entropy(self) -> Float[Array, "*batch"]:
        """Return the entropy, in nats."""
        log_probs = jax.nn.log_softmax(self.logits)
        return -jnp.sum(jnp.exp(log_probs) * log_probs, axis=-1)

    def kl(self, other: "Categorical") -> Float[Array, "*batch"]:
        """Return KL(self || other), in nats: the exact sum over actions."""
        p, q = jax.nn.log_softmax(self.logits), jax.nn.log_softmax(other.logits)
        return jnp.sum(jnp.exp(p) * (p - q), axis=-1)

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
