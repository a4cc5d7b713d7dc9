"""Policies and reward models: flax modules, and pure functions of a module with its parameters.

A `Network` is a pytree: its parameters are leaves, its module is static. The default network and a custom one go the
same way.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax import struct
from jaxtyping import Array, Float, Key

from jaxpref.checks import check_key, check_kind, check_trajectory
from jaxpref.distributions import Categorical, Distribution, as_distribution
from jaxpref.tasks import Task, check_task
from jaxpref.types import Params, Scalar, Trajectory, zero_beyond_mask

HIDDEN_SIZE = 32
REWARD_HIDDEN_SIZE = 64


def _dense(features: int, fan_in: int, name: str, scale: Scalar = 1.0) -> nn.Dense:
    """Make a layer with weights and biases from U(-b, b), b = scale / sqrt(fan_in): PyTorch's default, times scale."""
    bound = scale / math.sqrt(fan_in)

    def init(key: Key[Array, ""], shape, dtype=jnp.float32, out_sharding=None):
        return jax.random.uniform(key, shape, dtype, -bound, bound)

    return nn.Dense(features, kernel_init=init, bias_init=init, name=name)


def _actor_critic(inputs, num_actions: int, hidden_size: int, policy_scale: Scalar = 1.0):
    features = nn.relu(_dense(hidden_size, inputs.shape[-1], "torso")(inputs))
    logits = _dense(num_actions, hidden_size, "policy", policy_scale)(features)
    return Categorical(logits), _dense(1, hidden_size, "value")(features).squeeze(-1)


class ActorCritic(nn.Module):
    """obs -> Dense(hidden), ReLU -> a `Categorical` over actions and the state value, both from one torso.

    `policy_scale` scales the policy head's initial weights. Near 0 the first policy is uniform.
    """

    num_actions: int
    hidden_size: int = HIDDEN_SIZE
    policy_scale: Scalar = 1.0

    @nn.compact
    def __call__(self, obs):
        return _actor_critic(obs, self.num_actions, self.hidden_size, self.policy_scale)


class RewardModel(nn.Module):
    """(obs, one-hot action) -> Dense(hidden), ReLU -> one reward per step.

    The head's kernel starts at zero. So the model first learns the head's bias, one constant reward for every step,
    which ranks episodes by their length alone. The features explain only what length does not.
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
    """3 x 3 convolution with ReLU over flat images: [..., H * W * C] -> [..., (H - 2) * (W - 2) * features].

    It is one matrix product of the images' patches: on a CPU a convolution is slow under vmap over its kernels. A shape
    of two axes is an image of one channel.
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
    """An `ActorCritic` after a `Convolution`, for images."""

    num_actions: int
    obs_shape: tuple[int, ...]
    hidden_size: int = 64

    @nn.compact
    def __call__(self, obs):
        features = Convolution(self.obs_shape, name="convolution")(obs)
        return _actor_critic(features, self.num_actions, self.hidden_size)


class ConvRewardModel(nn.Module):
    """A `RewardModel` after a `Convolution`, for images."""

    num_actions: int
    obs_shape: tuple[int, ...]
    hidden_size: int = REWARD_HIDDEN_SIZE

    @nn.compact
    def __call__(self, obs, action):
        features = Convolution(self.obs_shape, name="convolution")(obs)
        return RewardModel(self.num_actions, self.hidden_size, name="model")(features, action)


@struct.dataclass
class Network:
    """A module with its parameters.

    module:  a flax module, or any hashable object with flax's `apply({"params": params}, *inputs)`.
    params:  a pytree of arrays, for an `ActorCritic` {"torso": {"kernel", "bias"}, "policy": .., "value": ..}.
    """

    module: Any = struct.field(pytree_node=False)
    params: Params

    def apply(self, *inputs: Array) -> Any:
        """Return the module's outputs with these parameters."""
        return self.module.apply({"params": self.params}, *inputs)


@dataclasses.dataclass(frozen=True)
class Ensemble:
    """The mean of M networks of one module, `member`. Its parameters have one leading axis [M]."""

    member: Any

    def apply(self, variables: Params, *inputs: Array) -> Array:
        """Return the mean of the members' outputs."""
        return jax.vmap(lambda each: self.member.apply(each, *inputs))(variables).mean(0)


def policy_module(task: Task) -> Any:
    """Return the module of the task's policies: its own, or an `ActorCritic`."""
    return ActorCritic(task.num_actions) if task.policy_network is None else task.policy_network


def reward_module(task: Task) -> Any:
    """Return the module of the task's reward models: its own, or a `RewardModel`."""
    return RewardModel(task.num_actions) if task.reward_network is None else task.reward_network


def init_policy(key: Key[Array, ""], task: Task, policy_scale: Scalar = 1.0) -> Network:
    """Draw a fresh policy. The initial weights of its layer "policy" are multiplied by `policy_scale`."""
    check_key(key)
    check_task(task)
    module, obs = policy_module(task), jnp.zeros(task.obs_size)
    if type(module) is ActorCritic:
        # The scale may be traced, and a static module holds no tracers: only the first weights depend on it.
        scaled = module.clone(policy_scale=module.policy_scale * policy_scale)
        return Network(module, _init_params(scaled, key, obs))
    params = _init_params(module, key, obs)
    if not {"policy", "value"} <= set(params):
        raise ValueError(
            f'{type(module).__name__} must have submodules "policy" and "value", the heads of its two outputs, '
            f"but has {', '.join(sorted(params))}"
        )
    return replace_layer(Network(module, params), "policy", lambda leaf: policy_scale * leaf)


def init_reward(key: Key[Array, ""], task: Task) -> Network:
    """Draw a fresh reward model."""
    check_key(key)
    check_task(task)
    module = reward_module(task)
    return Network(module, _init_params(module, key, jnp.zeros(task.obs_size), jnp.int32(0)))


def _init_params(module: Any, key: Key[Array, ""], *inputs: Array) -> Params:
    variables = module.init(key, *inputs)
    if set(variables) != {"params"}:
        raise ValueError(f"{type(module).__name__} must have parameters only, but has {', '.join(sorted(variables))}")
    return variables["params"]


def replace_layer(policy: Network, name: str, change: Callable[[Array], Array]) -> Network:
    """Return the policy with `change` applied to every array of one of its layers, "policy" or "value"."""
    layer = jax.tree.map(change, policy.params[name])
    return dataclasses.replace(policy, params={**policy.params, name: layer})


def apply_policy(policy: Network, obs: Float[Array, "*batch O"]) -> tuple[Distribution, Float[Array, "*batch"]]:
    """Return the distribution over actions and the state value at each observation."""
    check_kind(policy, Network, "policy")
    distribution, value = policy.apply(obs)
    return as_distribution(distribution), value


def apply_reward(reward: Network, obs: Float[Array, "*batch O"], action: Array) -> Float[Array, "*batch"]:
    """Return the learned reward of each step."""
    check_kind(reward, Network, "reward")
    return reward.apply(obs, action)


def trajectory_log_prob(params: Network, trajectory: Trajectory) -> Float[Array, "*batch"]:
    """Return log prod_t pi(a_t | s_t), in nats: the sum over the trajectory's mask."""
    return _sum(trajectory, lambda played: apply_policy(params, played.obs)[0].log_prob(played.action))


def trajectory_kl(params: Network, ref_params: Network, trajectory: Trajectory) -> Float[Array, "*batch"]:
    """Return KL(policy || reference), in nats, exact in the actions, summed over the visited states.

    Its mean over the policy's own episodes is the KL divergence between the two distributions of trajectories. The
    environment's transition probabilities are the same for both and cancel.
    """
    return _sum(
        trajectory, lambda played: apply_policy(params, played.obs)[0].kl(apply_policy(ref_params, played.obs)[0])
    )


def trajectory_reward(params: Network, trajectory: Trajectory) -> Float[Array, "*batch"]:
    """Return the learned return: the undiscounted sum of learned rewards over the trajectory's mask."""
    return _sum(trajectory, lambda played: apply_reward(params, played.obs, played.action))


def _sum(trajectory: Trajectory, step_fn: Callable[[Trajectory], Array]) -> Float[Array, "*batch"]:
    check_trajectory(trajectory)
    played = zero_beyond_mask(trajectory)
    return jnp.where(played.mask, step_fn(played), 0.0).sum(-1)


def check_policy(task: Task, params: Any, name: str = "params") -> None:
    """Check that `params` give a distribution over the task's actions and one value at its observations."""
    distribution, value = _output_shapes(apply_policy, task, params, name)
    shapes = [leaf.shape for leaf in jax.tree.leaves(distribution)]
    if shapes != [(task.num_actions,)] or value.shape != ():
        raise ValueError(
            f"{name} must give {task.num_actions} logits and one value for task {task.name}, "
            f"got {', '.join(str(list(shape)) for shape in shapes)} and value {list(value.shape)}"
        )


def check_reward(task: Task, params: Any, name: str = "reward_params") -> None:
    """Check that `params` give one reward for each of the task's steps."""
    output = _output_shapes(apply_reward, task, params, name, jax.ShapeDtypeStruct((), jnp.int32))
    if getattr(output, "shape", None) != ():
        raise ValueError(f"{name} must give one reward for each step of task {task.name}, got {output}")
    module = getattr(params.module, "member", params.module)
    if getattr(module, "num_actions", task.num_actions) != task.num_actions:
        raise ValueError(f"{name} is of {module.num_actions} actions, and task {task.name} has {task.num_actions}")


def _output_shapes(function: Callable, task: Task, network: Any, name: str, *inputs: jax.ShapeDtypeStruct) -> Any:
    check_task(task)
    check_kind(network, Network, name)
    try:
        return jax.eval_shape(function, network, jax.ShapeDtypeStruct((task.obs_size,), jnp.float32), *inputs)
    except Exception as error:  # a custom module may raise anything
        reason = f"{type(error).__name__}: {error}".splitlines()[0]
        kind = type(network.module).__name__
        raise ValueError(f"{name}, of module {kind}, does not fit task {task.name}: {reason}") from error
