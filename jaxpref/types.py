"""The data that stages exchange. `*batch` stands for the axes that the caller adds (episodes, pairs, seeds)."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import struct
from jaxtyping import Array, Bool, Float, Int

Scalar = int | float | Float[Array, ""]
"""A hyperparameter: a Python number, or a traced array where vmap sweeps it."""
Params = Any
"""A pytree of arrays."""
Optimiser = Callable[[Any], optax.GradientTransformation]
"""A function of the learning rate: `optax.sgd`, or `lambda lr: optax.adam(optax.cosine_decay_schedule(lr, 150))`."""
Observation = Float[Array, "*batch O"]
ActionRange = tuple[tuple[float, float], ...]


@struct.dataclass
class Task:
    """An environment of gymnax's interface, and what the study needs to know about it.

    Environment parameters, targets and the range of returns are leaves, the rest is static.

    horizon:     steps after which an episode is cut off (truncated, not terminated).
    obs_size:    numbers in an observation, on one flat axis.
    num_actions: discrete actions A, or the numbers D of a continuous action.
    pi1_target:  mean return at which experts' training keeps the good policy; None: it finds one, see `experts`.
    pi2_target:  lower mean return, at which it keeps the less good policy; None likewise.
    return_range: (lowest, highest) return of an episode, the unit of an annotator's thresholds; None: unknown.
    action_range: (lowest, highest) of each number of a continuous action; None: the actions are discrete.
    stochastic:  False says that `step_env` ignores its key; then no keys are drawn for it.
    potential:   obs -> Phi(obs), for the shaped reward gamma * Phi(next_obs) - Phi(obs) of the original study.
    shape_reward: whether experts learn from the shaped reward, where their config leaves this to the task.
    baseline:    obs -> hand-made baseline of the original study, read at the next observation.
    obs_shape:   shape of an observation before it was made flat, which a convolution needs; None: [obs_size].
    observe:     the environment's observation -> one in scales that a network can learn from; None: as it is.
    draw:        one observation -> its picture, uint8 [height, width, 3], for people to look at; None: `render.frames`.
    policy_network:  flax module, obs[..., O] -> (distribution or logits[..., A], value[...]); None: `ActorCritic`.
        Its last, linear layers are named "policy" and "value": `init_policy` scales the one, PPO resets the other.
    reward_network:  flax module, (obs[..., O], action[...]) -> reward[...]; None: `RewardModel`. With an attribute
        `use_next_obs` that is True, it takes (obs, action, next_obs). Its last, linear layer is named "reward": the
        calibration scales it.
    """

    name: str = struct.field(pytree_node=False)
    env: Any = struct.field(pytree_node=False)
    env_params: Any
    horizon: int = struct.field(pytree_node=False)
    obs_size: int = struct.field(pytree_node=False)
    num_actions: int = struct.field(pytree_node=False)
    pi1_target: Scalar | None = None
    pi2_target: Scalar | None = None
    return_range: tuple[float, float] | None = None
    action_range: ActionRange | None = struct.field(pytree_node=False, default=None)
    stochastic: bool = struct.field(pytree_node=False, default=True)
    potential: Callable[[Observation], Float[Array, "*batch"]] | None = struct.field(pytree_node=False, default=None)
    shape_reward: bool = struct.field(pytree_node=False, default=False)
    baseline: Callable[[Observation], Float[Array, "*batch"]] | None = struct.field(pytree_node=False, default=None)
    obs_shape: tuple[int, ...] | None = struct.field(pytree_node=False, default=None)
    observe: Callable[[Array], Array] | None = struct.field(pytree_node=False, default=None)
    draw: Callable[[Any], Any] | None = struct.field(pytree_node=False, default=None)
    policy_network: Any = struct.field(pytree_node=False, default=None)
    reward_network: Any = struct.field(pytree_node=False, default=None)


@struct.dataclass
class Trajectory:
    """One episode of at most T steps, padded to the task's horizon T.

    `action` is [T] int32, or [T, D] float32 for continuous actions: as drawn, also where the environment clips it.
    `mask` is True on the steps that were played and False after the end. Values beyond the mask never reach a result:
    select with `jnp.where(mask, ...)`. Rollouts leave zeros there.
    `next_obs` is the observation after each step; on the last step the true last observation, never a reset one.
    """

    obs: Float[Array, "*batch T O"]
    action: Int[Array, "*batch T"] | Float[Array, "*batch T D"]
    reward: Float[Array, "*batch T"]
    next_obs: Float[Array, "*batch T O"]
    mask: Bool[Array, "*batch T"]


def zero_beyond_mask(trajectory: Trajectory) -> Trajectory:
    """Return the trajectory with zeros beyond its mask.

    NaN there must not enter a network: where a later `where` does not select it, the gradient is still NaN.
    """
    return select(trajectory.mask, trajectory, jax.tree.map(jnp.zeros_like, trajectory))


def select(condition: Bool[Array, "*batch"], one: Any, other: Any) -> Any:
    """Return `one` where the condition holds, else `other`: two pytrees whose leaves have its axes first."""

    def of_leaf(one, other):
        return jnp.where(condition.reshape(condition.shape + (1,) * (jnp.ndim(one) - condition.ndim)), one, other)

    return jax.tree.map(of_leaf, one, other)


def true_return(trajectory: Trajectory) -> Float[Array, "*batch"]:
    """Return the undiscounted sum of the environment's rewards over the mask."""
    return jnp.where(trajectory.mask, trajectory.reward, 0.0).sum(-1)


@struct.dataclass
class Preferences:
    """N labelled pairs of trajectories: the one that the annotator preferred, and the other one.

    weight:  how much a pair counts in a loss, >= 0; 0 takes the pair out without changing a shape.
    prob:    the annotator's probability of this label, P(chosen preferred to rejected).
    target:  the probability of "chosen is preferred" that a loss learns: 1 for an answer; 0.5 for a tie, where the
             order of the two means nothing. None: 1 for every pair.
    """

    chosen: Trajectory
    rejected: Trajectory
    weight: Float[Array, "*batch N"]
    prob: Float[Array, "*batch N"]
    target: Float[Array, "*batch N"] | None = None
