"""The default networks' layers, with the gradient of sums over many steps written by hand.

The layers are so narrow that XLA's products of matrices spend their time on memory. Here the hidden layer is a sum of
few outer products, which XLA computes in one pass with what follows.
"""

import jax
import jax.numpy as jnp
from flax import struct
from jaxtyping import Array, Float

from jaxpref.fast.dense import short_product
from jaxpref.types import Params


@struct.dataclass
class Perceptron:
    """A network of one hidden layer of ReLU units. The first input is 1: its row of the kernel holds the biases."""

    kernel: Float[Array, "K H"]
    head: Float[Array, "H P"]
    bias: Float[Array, " P"]

    def apply(self, inputs: Float[Array, "K M"]) -> Float[Array, "P M"]:
        """Return the outputs for M inputs. The gradient is that of the parameters only."""
        return _layers(self.kernel, self.head, inputs) + self.bias[:, None]


def of_policy(params: Params) -> Perceptron:
    """Make the perceptron of an `ActorCritic`: [1, obs] -> logits of all actions but the first, relative to it."""
    torso, head = params["torso"], params["policy"]
    kernel = jnp.concatenate([torso["bias"][None], torso["kernel"]])
    return Perceptron(kernel, head["kernel"][:, 1:] - head["kernel"][:, :1], head["bias"][1:] - head["bias"][:1])


def of_reward(params: Params, obs_size: int) -> Perceptron:
    """Make the perceptron of a `RewardModel`: [1, obs, one-hot action without the first] -> reward."""
    torso, head = params["torso"], params["reward"]
    obs, first, others = jnp.split(torso["kernel"], [obs_size, obs_size + 1])
    kernel = jnp.concatenate([torso["bias"] + first, obs, others - first])
    return Perceptron(kernel, head["kernel"], head["bias"])


@jax.custom_vjp
def _layers(kernel: Float[Array, "K H"], head: Float[Array, "H P"], inputs: Float[Array, "K M"]):
    return head.T @ jax.nn.relu(short_product(kernel.T, inputs))


def _forward(kernel, head, inputs):
    hidden = short_product(kernel.T, inputs)
    return head.T @ jax.nn.relu(hidden), (kernel, head, inputs, hidden)


def _backward(residuals, cotangent):
    kernel, head, inputs, hidden = residuals
    if head.shape[1] == 1:
        # Both gradients follow from the sums of cotangent * input over the steps where a unit is on. So nothing of the
        # hidden layer is stored but which units are on.
        sums = (cotangent * inputs) @ jnp.where(hidden > 0, 1.0, 0.0).T
        return sums * head.T, (sums * kernel).sum(0)[:, None], None
    of_hidden = jnp.where(hidden > 0, short_product(head, cotangent), 0.0)
    return inputs @ of_hidden.T, jax.nn.relu(hidden) @ cotangent.T, None


_layers.defvjp(_forward, _backward)
