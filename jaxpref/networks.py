"""The two networks, as flax modules and as pure functions of their parameters; categorical helpers.

The default networks' sizes are read off their parameters, so `apply_policy(params, obs)` needs no module and no task.
Any other flax module travels with its parameters: a task names it, `init_policy` and `init_reward` return a `Network`,
and whatever takes parameters takes that.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from jaxtyping import Array, Float, Int, Key

from jaxpref.checks import check_key, check_trajectory
from jaxpref.tasks import Task, check_task
from jaxpref.types import Params, Scalar, Trajectory, zero_beyond_mask

HIDDEN_SIZE = 32
REWARD_HIDDEN_SIZE = 64


def fan_in_uniform(fan_in: int, scale: Scalar = 1.0) -> nn.initializers.Initializer:
    """U(-b, b) with b = scale / sqrt(fan_in), for kernels and biases alike: PyTorch's default for a linear layer."""
    bound = scale / math.sqrt(fan_in)

    def init(key: Key[Array, ""], shape, dtype=jnp.float32, out_sharding=None):
        return jax.random.uniform(key, shape, dtype, -bound, bound)

    return init


def _dense(features: int, fan_in: int, name: str, scale: Scalar = 1.0) -> nn.Dense:
    init = fan_in_uniform(fan_in, scale)
    return nn.Dense(features, kernel_init=init, bias_init=init, name=name)


class ActorCritic(nn.Module):
    """obs -> Dense(hidden), ReLU -> policy logits and state value from one torso.

    `policy_scale` shrinks the policy head's initial weights; near 0 the first policy is uniform.
    """

    num_actions: int
    hidden_size: int = HIDDEN_SIZE
    policy_scale: Scalar = 1.0

    @nn.compact
    def __call__(self, obs):
        features = nn.relu(_dense(self.hidden_size, obs.shape[-1], "torso")(obs))
        logits = _dense(self.num_actions, self.hidden_size, "policy", self.policy_scale)(features)
        value = _dense(1, self.hidden_size, "value")(features)
        return logits, value.squeeze(-1)


class RewardModel(nn.Module):
    """(obs, one-hot action) -> Dense(hidden), ReLU -> one reward per step.

    The head starts at zero, so that the first thing learned is its bias: one constant reward for every step,
    which ranks episodes by their length alone. Only what length does not explain is left to the features.
    """

    num_actions: int
    hidden_size: int = REWARD_HIDDEN_SIZE

    @nn.compact
    def __call__(self, obs, action):
        inputs = jnp.concatenate([obs, jax.nn.one_hot(action, self.num_actions)], axis=-1)
        features = nn.relu(_dense(self.hidden_size, inputs.shape[-1], "torso")(inputs))
        head = nn.Dense(1, kernel_init=nn.initializers.zeros, name="reward")
        return head(features).squeeze(-1)


class Convolution(nn.Module):
    """3 x 3 convolution with ReLU over images that come flat: [..., H * W * C] -> [..., (H - 2) * (W - 2) * features].

    The patches are cut out and multiplied as a matrix, since a convolution whose kernels are vmapped, over seeds as
    here, is slow on a CPU. A shape of two axes is an image of one channel.
    """

    obs_shape: tuple[int, ...]
    features: int = 16

    @nn.compact
    def __call__(self, obs):
        height, width = self.obs_shape[:2]
        image = obs.reshape(*obs.shape[:-1], height, width, -1)
        offsets = [(row, column) for row in range(3) for column in range(3)]
        patches = jnp.concatenate(
            [image[..., row : row + height - 2, column : column + width - 2, :] for row, column in offsets], axis=-1
        )
        features = nn.relu(_dense(self.features, patches.shape[-1], "kernels")(patches))
        return features.reshape(*obs.shape[:-1], -1)


class ConvActorCritic(nn.Module):
    """An `ActorCritic` behind a `Convolution`, for image observations."""

    num_actions: int
    obs_shape: tuple[int, ...]
    hidden_size: int = 64

    @nn.compact
    def __call__(self, obs):
        features = Convolution(self.obs_shape, name="convolution")(obs)
        features = nn.relu(_dense(self.hidden_size, features.shape[-1], "torso")(features))
        logits = _dense(self.num_actions, self.hidden_size, "policy")(features)
        value = _dense(1, self.hidden_size, "value")(features)
        return logits, value.squeeze(-1)


class ConvRewardModel(nn.Module):
    """A `RewardModel` behind a `Convolution`, for image observations."""

    num_actions: int
    obs_shape: tuple[int, ...]
    hidden_size: int = REWARD_HIDDEN_SIZE

    @nn.compact
    def __call__(self, obs, action):
        features = Convolution(self.obs_shape, name="convolution")(obs)
        return RewardModel(self.num_actions, self.hidden_size, name="model")(features, action)


@struct.dataclass
class Network:
    """A network of one's own: a flax module (static) and its parameters (leaves), in one pytree.

    `ndim` is the number of axes that the first leaf was made with; one more is an ensemble's.
    """

    module: Any = struct.field(pytree_node=False)
    ndim: int = struct.field(pytree_node=False)
    params: Any

    @property
    def is_ensemble(self) -> bool:
        """Whether the parameters have one leading axis more than the module's."""
        return jax.tree.leaves(self.params)[0].ndim > self.ndim

    def apply(self, *inputs: Array) -> Any:
        """The module's outputs with these parameters."""
        return self.module.apply({"params": self.params}, *inputs)


def init_network(module: Any, key: Key[Array, ""], *inputs: Array) -> Network:
    """A `Network` of fresh parameters. Raises ValueError for a module with variables beside its parameters."""
    variables = module.init(key, *inputs)
    if set(variables) != {"params"}:
        raise ValueError(f"{type(module).__name__} must have parameters only, but has {', '.join(sorted(variables))}")
    params = variables["params"]
    return Network(module, jax.tree.leaves(params)[0].ndim, params)


def replace_layer(params: Params, name: str, change: Callable[[Array], Array]) -> Params:
    """The same policy with `change` applied to every array of one of its layers, "policy" or "value"."""
    layers = params.params if isinstance(params, Network) else params["params"]
    layers = {**layers, name: jax.tree.map(change, layers[name])}
    return dataclasses.replace(params, params=layers) if isinstance(params, Network) else {"params": layers}


def init_policy(key: Key[Array, ""], task: Task, policy_scale: Scalar = 1.0) -> Params:
    """Fresh parameters of an `ActorCritic` for `task`, weights and biases U(+-1/sqrt(fan_in)), the policy head's times
    `policy_scale`; or a `Network` of the task's own `policy_network`.

    Raises ValueError if that has no submodules "policy" and "value", and TypeError or ValueError for what is
    no task or not one typed key.
    """
    check_key(key)
    check_task(task)
    if task.policy_network is None:
        module = ActorCritic(task.num_actions, policy_scale=policy_scale)
        return module.init(key, jnp.zeros(task.obs_size))
    network = init_network(task.policy_network, key, jnp.zeros(task.obs_size))
    if not {"policy", "value"} <= set(network.params):
        raise ValueError(
            f'{type(network.module).__name__} needs submodules "policy" and "value", the heads of its two outputs, '
            f"but has {', '.join(sorted(network.params))}"
        )
    return replace_layer(network, "policy", lambda leaf: policy_scale * leaf)


def _check_policy(params: Any, obs: Any, name: str = "params") -> None:
    """Raise ValueError for what are no parameters of an `ActorCritic` of these observations."""
    torso, policy, value = _kernels(params, obs, name, "torso", "policy", "value")
    hidden_size = torso[-1:]
    if torso != obs.shape[-1:] + hidden_size or policy != hidden_size + policy[-1:] or value != (*hidden_size, 1):
        raise ValueError(
            f"{name} must be a policy's parameters for observations of size {obs.shape[-1]}, got kernels "
            f"{list(torso)}, {list(policy)} and {list(value)}"
        )


def _check_reward(params: Any, obs: Any, name: str = "params") -> None:
    """Raise ValueError for what are no parameters of a `RewardModel`, or an ensemble, of these observations."""
    torso, head = _kernels(params, obs, name, "torso", "reward")
    members = torso[:-2]
    if len(torso) not in (2, 3) or head != (*members, *torso[-1:], 1) or torso[-2] <= obs.shape[-1]:
        raise ValueError(
            f"{name} must be a reward model's parameters for observations of size {obs.shape[-1]} and at least one "
            f"action, got kernels {list(torso)} and {list(head)}"
        )


def _kernels(params: Any, obs: Any, name: str, *layers: str) -> list[tuple[int, ...]]:
    """Shapes of the kernels of these layers. Raises ValueError where there are others, TypeError for other things."""
    if not hasattr(obs, "shape") or len(obs.shape) == 0:
        raise TypeError("obs must be an array whose last axis is that of the observed numbers")
    found = params.get("params") if isinstance(params, Mapping) else None
    if not isinstance(found, Mapping):
        raise TypeError(
            f"{name} must be a network's parameters, as init_policy and init_reward make, got a {type(params).__name__}"
        )
    each = [found[layer] for layer in layers if isinstance(found.get(layer), Mapping)]
    if len(each) < len(layers):
        raise ValueError(f"{name} must have the layers {', '.join(layers)}, got {', '.join(found)}")
    return [np.shape(layer.get("kernel")) for layer in each]


def apply_policy(
    params: Params, obs: Float[Array, "*batch O"]
) -> tuple[Float[Array, "*batch A"], Float[Array, "*batch"]]:
    """Logits over actions and state value at each observation.

    Raises TypeError or ValueError for parameters of another network than an `ActorCritic` of such observations.
    """
    if isinstance(params, Network):
        return params.apply(obs)
    _check_policy(params, obs)
    hidden_size, num_actions = params["params"]["policy"]["kernel"].shape
    module: Any = ActorCritic(num_actions, hidden_size)
    return module.apply(params, obs)


def init_reward(key: Key[Array, ""], task: Task) -> Params:
    """Fresh parameters of a `RewardModel` for `task`, or a `Network` of the task's own `reward_network`.

    Raises TypeError or ValueError for what is no task or not one typed key.
    """
    check_key(key)
    check_task(task)
    inputs = jnp.zeros(task.obs_size), jnp.int32(0)
    if task.reward_network is None:
        return RewardModel(task.num_actions).init(key, *inputs)
    return init_network(task.reward_network, key, *inputs)


def apply_reward(params: Params, obs: Float[Array, "*batch O"], action: Int[Array, "*batch"]) -> Float[Array, "*batch"]:
    """Learned reward of each step; of an ensemble, whose parameters have one leading axis more, its members' mean.

    What a `RewardModel` takes in beside the observation are its actions. Raises TypeError or ValueError for parameters
    of another network, and for observations that leave no room for an action.
    """
    own = isinstance(params, Network)
    if not own:
        _check_reward(params, obs)
    if params.is_ensemble if own else params["params"]["torso"]["kernel"].ndim == 3:
        return jax.vmap(apply_reward, in_axes=(0, None, None))(params, obs, action).mean(0)
    if own:
        return params.apply(obs, action)
    input_size, hidden_size = params["params"]["torso"]["kernel"].shape
    module: Any = RewardModel(input_size - obs.shape[-1], hidden_size)
    return module.apply(params, obs, action)


def categorical_log_prob(logits: Float[Array, "*batch A"], action: Int[Array, "*batch"]) -> Float[Array, "*batch"]:
    """Log-probability of the action under softmax(logits)."""
    log_probs = jax.nn.log_softmax(logits)
    return jnp.take_along_axis(log_probs, action[..., None], axis=-1).squeeze(-1)


def categorical_entropy(logits: Float[Array, "*batch A"]) -> Float[Array, "*batch"]:
    """Entropy of softmax(logits), in nats."""
    log_probs = jax.nn.log_softmax(logits)
    return -jnp.sum(jnp.exp(log_probs) * log_probs, axis=-1)


def categorical_kl(p_logits: Float[Array, "*batch A"], q_logits: Float[Array, "*batch A"]) -> Float[Array, "*batch"]:
    """KL(p || q) of two categorical distributions given by their logits, summed over actions, in nats."""
    p, q = jax.nn.log_softmax(p_logits), jax.nn.log_softmax(q_logits)
    return jnp.sum(jnp.exp(p) * (p - q), axis=-1)


def trajectory_log_prob(params: Params, trajectory: Trajectory) -> Float[Array, "*batch"]:
    """Log-probability of all actions of a trajectory, log prod_t pi(a_t | s_t): the sum over its mask, in nats."""
    check_trajectory(trajectory)
    played = zero_beyond_mask(trajectory)
    logits, _ = apply_policy(params, played.obs)
    return jnp.where(played.mask, categorical_log_prob(logits, played.action), 0.0).sum(-1)


def trajectory_kl(params: Params, ref_params: Params, trajectory: Trajectory) -> Float[Array, "*batch"]:
    """KL(policy || ref) summed over the visited states of a trajectory, exact in the actions, in nats.

    Its mean over the policy's own episodes is the KL divergence of its distribution of trajectories from the
    reference's: the environment's transition probabilities are the same for both and cancel. Raises TypeError or
    ValueError for what is no trajectory, and for parameters of another network.
    """
    check_trajectory(trajectory)
    if not isinstance(ref_params, Network):
        _check_policy(ref_params, trajectory.obs, "ref_params")
    played = zero_beyond_mask(trajectory)
    kl = categorical_kl(apply_policy(params, played.obs)[0], apply_policy(ref_params, played.obs)[0])
    return jnp.where(played.mask, kl, 0.0).sum(-1)


def trajectory_reward(params: Params, trajectory: Trajectory) -> Float[Array, "*batch"]:
    """Learned return of a trajectory: the undiscounted sum of learned rewards over its mask."""
    check_trajectory(trajectory)
    played = zero_beyond_mask(trajectory)
    return jnp.where(played.mask, apply_reward(params, played.obs, played.action), 0.0).sum(-1)
