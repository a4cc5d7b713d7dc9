"""Policies and reward models: flax modules, and pure functions of a module with its parameters."""

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from jaxtyping import Array, Float, Int, Key

from jaxpref.checks import check_key, check_kind, check_trajectory
from jaxpref.distributions import Categorical, Distribution, Gaussian
from jaxpref.fast.dense import narrow_product, short_product
from jaxpref.tasks import Task
from jaxpref.types import ActionRange, Params, Scalar, Trajectory, zero_beyond_mask


def _dense(features: int, fan_in: int, name: str, scale: Scalar = 1.0, dot_general: Any = None) -> nn.Dense:
    """Make a layer with weights and biases from U(-b, b), b = scale / sqrt(fan_in): PyTorch's default, times scale."""
    bound = scale / math.sqrt(fan_in)

    def init(key: Key[Array, ""], shape, dtype=jnp.float32, out_sharding=None):
        return jax.random.uniform(key, shape, dtype, -bound, bound)

    return nn.Dense(features, kernel_init=init, bias_init=init, name=name, dot_general=dot_general)


def _actor_critic(inputs, num_actions: int, hidden_size: int, policy_scale: Scalar = 1.0):
    features = nn.relu(_dense(hidden_size, inputs.shape[-1], "torso", dot_general=short_product)(inputs))
    outputs = _dense(num_actions, hidden_size, "policy", policy_scale, narrow_product)(features)
    return outputs, _dense(1, hidden_size, "value")(features).squeeze(-1)


class ActorCritic(nn.Module):
    """obs -> Dense(hidden), ReLU -> a distribution over actions and the state value, both from one torso.

    The distribution is a `Categorical`. With an `action_range` it is a `Gaussian`: mean and standard deviation are in
    units of half the range, and the logarithm of the latter is a parameter, "log_std", the same at all observations.
    """

    num_actions: int
    hidden_size: int = 32
    policy_scale: Scalar = 1.0
    action_range: ActionRange | None = None

    @nn.compact
    def __call__(self, obs):
        outputs, value = _actor_critic(obs, self.num_actions, self.hidden_size, self.policy_scale)
        if self.action_range is None:
            return Categorical(outputs), value
        centre, half = _centre_and_half(self.action_range)
        log_std = np.log(half) + self.param("log_std", nn.initializers.zeros, (self.num_actions,))
        return Gaussian(centre + half * outputs, jnp.broadcast_to(log_std, outputs.shape)), value


def _centre_and_half(action_range: ActionRange) -> tuple[np.ndarray, np.ndarray]:
    low, high = np.array(action_range, np.float32).T
    return (low + high) / 2, (high - low) / 2


class RewardModel(nn.Module):
    """(obs, action) -> Dense(hidden), ReLU -> one reward per step. The head's kernel starts at zero.

    A discrete action is one-hot. A continuous one is clipped to its range, as the environment does, and is in units of
    half the range. With `use_next_obs` the inputs are (obs, next_obs - obs, action): what a step changed is easier to
    learn from than where it led.
    """

    num_actions: int
    hidden_size: int = 64
    action_range: ActionRange | None = None
    use_next_obs: bool = False

    @nn.compact
    def __call__(self, obs, action, next_obs=None):
        if self.use_next_obs:
            obs = with_change(obs, next_obs)
        if self.action_range is None:
            encoded = jax.nn.one_hot(action, self.num_actions)
        else:
            centre, half = _centre_and_half(self.action_range)
            encoded = jnp.clip((action - centre) / half, -1.0, 1.0)
        inputs = jnp.concatenate([obs, encoded], axis=-1)
        features = nn.relu(_dense(self.hidden_size, inputs.shape[-1], "torso", dot_general=short_product)(inputs))
        head = nn.Dense(1, kernel_init=nn.initializers.zeros, name="reward")
        return head(features).squeeze(-1)


def with_change(obs: Float[Array, "*batch O"], next_obs: Float[Array, "*batch O"]) -> Float[Array, "*batch 2*O"]:
    """Return each observation, followed by its change in the step."""
    return jnp.concatenate([obs, next_obs - obs], axis=-1)


class Convolution(nn.Module):
    """3 x 3 convolution with ReLU over flat images: [..., H * W * C] -> [..., (H - 2) * (W - 2) * features].

    It is one matrix product of the images' patches: on a CPU a convolution is slow under vmap over its kernels.
    """

    obs_shape: tuple[int, ...]
    features: int = 16

    @nn.compact
    def __call__(self, obs):
        height, width = self.obs_shape[:2]
        image = obs.reshape(*obs.shape[:-1], height, width, -1)
        rows = [image[..., row : row + height - 2, :, :] for row in range(3)]
        patches = jnp.concatenate([row[..., i : i + width - 2, :] for row in rows for i in range(3)], axis=-1)
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
        logits, value = _actor_critic(features, self.num_actions, self.hidden_size)
        return Categorical(logits), value


class ConvRewardModel(nn.Module):
    """A `RewardModel` after a `Convolution`, for images. With `use_next_obs` it sees the change of the features."""

    num_actions: int
    obs_shape: tuple[int, ...]
    hidden_size: int = 64
    use_next_obs: bool = False

    @nn.compact
    def __call__(self, obs, action, next_obs=None):
        features = Convolution(self.obs_shape, name="convolution")
        next_features = features(next_obs) if self.use_next_obs else None
        model = RewardModel(self.num_actions, self.hidden_size, use_next_obs=self.use_next_obs, name="model")
        return model(features(obs), action, next_features)


@struct.dataclass
class Network:
    """A module with its parameters, such as {"torso": {"kernel", "bias"}, "policy": .., "value": ..}.

    `module` is a flax module, or any hashable object with flax's `apply({"params": params}, *inputs)`.
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


def init_policy(key: Key[Array, ""], task: Task, policy_scale: Scalar = 1.0) -> Network:
    """Draw a fresh policy. The weights of its layer "policy" are multiplied by `policy_scale`: near 0 it is uniform."""
    check_key(key)
    check_kind(task, Task, "task")
    hidden_size = 32 if task.action_range is None else 64
    module = task.policy_network or ActorCritic(task.num_actions, hidden_size, action_range=task.action_range)
    obs = jnp.zeros(task.obs_size)
    if type(module) is ActorCritic:
        # The scale may be traced, and a static module holds no tracers: only the first weights depend on it.
        scaled = module.clone(policy_scale=module.policy_scale * policy_scale)
        return Network(module, scaled.init(key, obs)["params"])
    params = module.init(key, obs)["params"]
    if not {"policy", "value"} <= set(params):
        raise ValueError(f'{type(module).__name__} must have layers "policy" and "value", but has {sorted(params)}')
    return replace_layer(Network(module, params), "policy", lambda leaf: policy_scale * leaf)


def init_reward(key: Key[Array, ""], task: Task, use_next_obs: bool = True) -> Network:
    """Draw a fresh reward model. `use_next_obs` is for the default network: see `RewardModel`."""
    check_key(key)
    check_kind(task, Task, "task")
    module = task.reward_network or RewardModel(
        task.num_actions, action_range=task.action_range, use_next_obs=use_next_obs
    )
    obs = jnp.zeros(task.obs_size)
    next_obs = (obs,) if uses_next_obs(module) else ()
    return Network(module, module.init(key, obs, no_action(task), *next_obs)["params"])


def no_action(task: Task) -> Int[Array, ""] | Float[Array, " D"]:
    """Return an action that is zero: one whole number, or D numbers."""
    return jnp.int32(0) if task.action_range is None else jnp.zeros(task.num_actions)


def replace_layer(policy: Network, name: str, change: Callable[[Array], Array]) -> Network:
    """Return the policy with `change` applied to every array of one of its layers, "policy" or "value"."""
    return dataclasses.replace(policy, params={**policy.params, name: jax.tree.map(change, policy.params[name])})


def fold_normalisation(reward: Network, mean: Float[Array, " F"], deviation: Float[Array, " F"]) -> Network:
    """Move a normalisation of the observations into the first layer of a `RewardModel`.

    The result gives for x, an observation (and its change), what `reward` gives for (x - mean) / deviation.
    """
    torso = reward.params["torso"]
    of_obs, of_action = jnp.split(torso["kernel"], [mean.shape[0]])
    of_obs = of_obs / deviation[:, None]
    torso = {"kernel": jnp.concatenate([of_obs, of_action]), "bias": torso["bias"] - mean @ of_obs}
    return dataclasses.replace(reward, params={**reward.params, "torso": torso})


def apply_policy(policy: Network, obs: Float[Array, "*batch O"]) -> tuple[Distribution, Float[Array, "*batch"]]:
    """Return the distribution over actions, and the state value, at each observation. The module may return logits."""
    check_kind(policy, Network, "policy")
    output, value = policy.apply(obs)
    return Categorical(output) if hasattr(output, "shape") else output, value


def uses_next_obs(module: Any) -> bool:
    """Return whether a reward model's module takes (obs, action, next_obs), or only (obs, action)."""
    return getattr(getattr(module, "member", module), "use_next_obs", False)


def apply_reward(
    reward: Network, obs: Float[Array, "*batch O"], action: Array, next_obs: Float[Array, "*batch O"] | None = None
) -> Float[Array, "*batch"]:
    """Return the learned reward of each step. A module with `use_next_obs` needs the next observations."""
    check_kind(reward, Network, "reward")
    if not uses_next_obs(reward.module):
        return reward.apply(obs, action)
    if next_obs is None:
        raise ValueError("this reward model is of (obs, action, next_obs): pass next_obs")
    return reward.apply(obs, action, next_obs)


def trajectory_log_prob(params: Network, trajectory: Trajectory) -> Float[Array, "*batch"]:
    """Return log prod_t pi(a_t | s_t), in nats, over the trajectory's mask."""
    return _sum(trajectory, lambda steps: apply_policy(params, steps.obs)[0].log_prob(steps.action))


def trajectory_kl(params: Network, ref_params: Network, trajectory: Trajectory) -> Float[Array, "*batch"]:
    """Return KL(policy || reference), in nats, exact in the actions, summed over the visited states.

    Its mean over the policy's own episodes is the KL divergence between the two distributions of trajectories: the
    environment's transition probabilities cancel.
    """
    return _sum(trajectory, lambda steps: apply_policy(params, steps.obs)[0].kl(apply_policy(ref_params, steps.obs)[0]))


def trajectory_reward(params: Network, trajectory: Trajectory) -> Float[Array, "*batch"]:
    """Return the learned return: the undiscounted sum of learned rewards over the trajectory's mask."""
    return _sum(trajectory, lambda steps: apply_reward(params, steps.obs, steps.action, steps.next_obs))


def _sum(trajectory: Trajectory, step_fn: Callable[[Trajectory], Array]) -> Float[Array, "*batch"]:
    check_trajectory(trajectory)
    played = zero_beyond_mask(trajectory)
    return jnp.where(played.mask, step_fn(played), 0.0).sum(-1)


def check_policy(task: Task, params: Any, name: str = "params") -> None:
    """Check that `params` give a distribution over the task's actions and one value at its observations."""
    check_kind(task, Task, "task")
    distribution = [(task.num_actions,)] * (1 if task.action_range is None else 2)
    _check_outputs(task, params, name, [*distribution, ()], apply_policy)


def check_reward(task: Task, params: Any, name: str = "reward_params") -> None:
    """Check that `params` give one reward for each of the task's steps."""
    check_kind(task, Task, "task")
    obs = jax.ShapeDtypeStruct((task.obs_size,), jnp.float32)
    _check_outputs(task, params, name, [()], apply_reward, no_action(task), obs)
    num_actions = getattr(getattr(params.module, "member", params.module), "num_actions", task.num_actions)
    if num_actions != task.num_actions:
        raise ValueError(f"{name} is of {num_actions} actions, and task {task.name} has {task.num_actions}")


def _check_outputs(task: Task, network: Any, name: str, expected: list, apply: Callable, *action: Any) -> None:
    check_kind(network, Network, name)
    try:
        outputs = jax.eval_shape(apply, network, jax.ShapeDtypeStruct((task.obs_size,), jnp.float32), *action)
    except Exception as error:  # a custom module may raise anything
        reason = f"{type(error).__name__}: {error}".splitlines()[0]
        kind = type(network.module).__name__
        raise ValueError(f"{name}, of module {kind}, does not fit task {task.name}: {reason}") from error
    shapes = [leaf.shape for leaf in jax.tree.leaves(outputs)]
    if shapes != expected:
        raise ValueError(f"{name} must give outputs of shapes {expected} for task {task.name}, got {shapes}")
