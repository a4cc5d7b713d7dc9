"""Sums over episodes of different lengths, without the cost of padding.

In `networks.trajectory_log_prob` and `networks.trajectory_reward` most of the work is padding, and the activations of a
minibatch do not fit a cache. Here episodes are cut into short rows once. Each sum runs over the rows of a minibatch
that hold steps, a few hundred steps at a time, features first. Values and gradients are those of the plain functions.
"""

import dataclasses
import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import struct
from jaxtyping import Array, Bool, Float, Int

from jaxpref.fast import perceptron
from jaxpref.fast.loops import any_lane
from jaxpref.fast.perceptron import Perceptron
from jaxpref.networks import ActorCritic, Network, RewardModel, apply_policy, apply_reward, uses_next_obs, with_change
from jaxpref.types import Params, Trajectory, zero_beyond_mask

ROW = 16
"""Steps in a row. An episode wastes half a row on average."""
CHUNK = 16
"""Rows in one pass of the loop: 256 steps, whose activations fit a core's cache, also for a few runs."""

Steps = Float[Array, "F M"]
StepFn = Callable[[Params, "Rows", Steps], Float[Array, " M"]]
"""(params, rows, steps) -> what is summed, per step. Of the rows only the layout is used."""


@struct.dataclass
class Rows:
    """N trajectories, cut into K rows of L steps each.

    steps:     F features: a one, the observation, also its change for a reward model of next observations, and the
               action: a one for it, if it is not the first of A discrete actions, or its D numbers. All are zero beyond
               the mask. The features of a row lie in one piece of memory.
    num_rows:  how many rows a trajectory needs, up to its last step.
    obs_size:  numbers of an observation, twice as many with its change.
    """

    steps: Float[Array, "N K F L"]
    num_rows: Int[Array, " N"]
    obs_size: int = struct.field(pytree_node=False)
    use_next_obs: bool = struct.field(pytree_node=False)
    discrete: bool = struct.field(pytree_node=False)


def pack(trajectory: Trajectory, num_actions: int, use_next_obs: bool = False) -> Rows:
    """Cut trajectories [N, T, ...] into rows, once for a dataset."""
    played = zero_beyond_mask(trajectory)
    obs = with_change(played.obs, played.next_obs) if use_next_obs else played.obs
    num, horizon, obs_size = obs.shape
    most = -(-horizon // ROW)
    discrete = jnp.issubdtype(played.action.dtype, jnp.integer)
    action = played.action[..., None] == jnp.arange(1, num_actions) if discrete else played.action
    steps = jnp.concatenate([played.mask[..., None], obs, action], -1, dtype=jnp.float32)
    steps = jnp.pad(steps, [(0, 0), (0, most * ROW - horizon), (0, 0)]).reshape(num, most, ROW, -1).swapaxes(-1, -2)
    num_rows = jnp.where(steps[:, :, 0].any(-1), jnp.arange(1, most + 1), 0).max(-1)
    return Rows(steps, num_rows, obs_size, use_next_obs, discrete)


def normalise(rows: Rows, counts: Bool[Array, " N"]) -> tuple[Rows, Float[Array, " O"], Float[Array, " O"]]:
    """Return (the rows of (obs - mean) / deviation, mean, deviation).

    Mean and deviation are over the steps of the trajectories that count. A feature that does not vary has deviation 1.
    """
    played = rows.steps[:, :, :1] > 0
    obs = rows.steps[:, :, 1 : 1 + rows.obs_size]
    weight = played * counts[:, None, None, None]

    def mean_of(values: Float[Array, "N K O L"]) -> Float[Array, " O"]:
        return (weight * values).sum((0, 1, 3)) / jnp.maximum(weight.sum(), 1)

    mean = mean_of(obs)
    deviation = jnp.sqrt(mean_of((obs - mean[:, None]) ** 2))
    rounding = 1e-4 * jnp.abs(mean)
    if rows.use_next_obs:  # a change is rounded as the observations are, however small it is
        size = 1e-6 * jnp.sqrt(mean_of(obs**2))[: rows.obs_size // 2]
        rounding = jnp.maximum(rounding, jnp.concatenate([jnp.zeros_like(size), size]))
    deviation = jnp.where(deviation > rounding, deviation, 1.0)
    unit = jnp.where(played, (obs - mean[:, None]) / deviation[:, None], 0.0)
    steps = rows.steps.at[:, :, 1 : 1 + rows.obs_size].set(unit)
    return dataclasses.replace(rows, steps=steps), mean, deviation


@struct.dataclass
class Batch:
    """The rows of B trajectories, in chunks of C rows. Only the first `num_rows` are theirs. The others are padding.

    source:  the row's number in the dataset, from 0 to N * K - 1.
    owner:   the row's trajectory, from 0 to B - 1; B for the others.
    """

    source: Int[Array, "chunks C"]
    owner: Int[Array, "chunks C"]
    num_rows: Int[Array, ""]


def find(rows: Rows, index: Int[Array, " B"]) -> Batch:
    """Find the rows of the trajectories in `index`. Forward and backward pass gather them chunk by chunk."""
    num, most = index.shape[0], rows.steps.shape[1]
    num_rows = rows.num_rows[index]
    end = jnp.cumsum(num_rows)
    row = jnp.arange(-(-num * most // CHUNK) * CHUNK)
    owner = jnp.repeat(jnp.arange(num), num_rows, total_repeat_length=row.shape[0])
    source = (index * most - end + num_rows)[owner] + row
    owner = jnp.where(row < end[-1], owner, num)
    return Batch(source.reshape(-1, CHUNK), owner.reshape(-1, CHUNK), end[-1])


def sum_over_steps(step_fn: StepFn, params: Params, rows: Rows, index: Int[Array, " B"]) -> Float[Array, " B"]:
    """Sum `step_fn` over the mask of each trajectory in `index`. Only reverse mode."""
    return _sum(step_fn, index.shape[0], params, rows, find(rows, index))


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _sum(step_fn: StepFn, num_trajectories: int, params: Params, rows: Rows, batch: Batch) -> Float[Array, " B"]:
    def add_chunk(sums, steps, owner):
        return sums.at[owner].add(_row_sums(step_fn, params, rows, steps), mode="drop")

    return _over_chunks(add_chunk, jnp.zeros(num_trajectories), rows, batch)


def _forward(step_fn, num_trajectories, *args):
    return _sum(step_fn, num_trajectories, *args), args


def _backward(step_fn, num_trajectories, residuals, cotangent):
    # The activations were not kept: computing them again, a cached chunk at a time, costs less than storing them.
    params, rows, batch = residuals

    def add_chunk(grads, steps, owner):
        weight = cotangent.at[owner].get(mode="fill", fill_value=0.0)
        chunk_grads = jax.grad(lambda params: jnp.vdot(weight, _row_sums(step_fn, params, rows, steps)))(params)
        return jax.tree.map(jnp.add, grads, chunk_grads)

    return _over_chunks(add_chunk, jax.tree.map(jnp.zeros_like, params), rows, batch), None, None


_sum.defvjp(_forward, _backward)


def _row_sums(step_fn: StepFn, params: Params, rows: Rows, steps: Steps) -> Float[Array, " C"]:
    per_step = step_fn(params, rows, steps)
    return jnp.where(steps[0] > 0, per_step, 0.0).reshape(CHUNK, -1).sum(-1)


def _over_chunks(add_chunk, total, rows: Rows, batch: Batch):
    """Fold `add_chunk(total, steps, owner)` over the chunks that hold steps."""
    num_features, length = rows.steps.shape[2:]
    # Each feature of a row is gathered on its own: so the features come first without a transpose.
    pieces = rows.steps.reshape(-1, length)

    def body(carry):
        chunk, total = carry
        place = batch.source[chunk] * num_features + jnp.arange(num_features)[:, None]
        steps = pieces.at[place].get(mode="clip").reshape(num_features, -1)
        return chunk + 1, add_chunk(total, steps, batch.owner[chunk])

    return jax.lax.while_loop(lambda carry: any_lane(carry[0] * CHUNK < batch.num_rows), body, (0, total))[1]


def _obs_and_actions(rows: Rows, steps: Steps) -> tuple[Float[Array, "M O"], Array]:
    obs, actions = steps[1 : 1 + rows.obs_size], steps[1 + rows.obs_size :]
    if rows.discrete:
        return obs.T, (actions * jnp.arange(1, 1 + actions.shape[0])[:, None]).sum(0).astype(int)
    return obs.T, actions.T


def _log_prob(policy: Network, rows: Rows, steps: Steps) -> Float[Array, " M"]:
    obs, actions = _obs_and_actions(rows, steps)
    return apply_policy(policy, obs)[0].log_prob(actions)


def _fast_log_prob(perceptron: Perceptron, rows: Rows, steps: Steps) -> Float[Array, " M"]:
    logits = perceptron.apply(steps[: 1 + rows.obs_size])  # relative to the first action's
    most = jax.lax.stop_gradient(logits.max(0, initial=0.0))
    taken = (steps[1 + rows.obs_size :] * logits).sum(0)
    return taken - most - jnp.log(jnp.exp(-most) + jnp.exp(logits - most).sum(0))


def log_prob(policy: Network, rows: Rows, index: Int[Array, " B"]) -> Float[Array, " B"]:
    """Compute `networks.trajectory_log_prob` of the trajectories in `index`."""
    if type(policy.module) is ActorCritic and rows.discrete:
        return sum_over_steps(_fast_log_prob, perceptron.of_policy(policy.params), rows, index)
    return sum_over_steps(_log_prob, policy, rows, index)


def _reward(reward: Network, rows: Rows, steps: Steps) -> Float[Array, " M"]:
    obs, action = _obs_and_actions(rows, steps)
    if not rows.use_next_obs:
        return apply_reward(reward, obs, action)
    obs, change = jnp.split(obs, 2, axis=-1)
    return apply_reward(reward, obs, action, obs + change)


def _fast_reward(perceptron: Perceptron, rows: Rows, steps: Steps) -> Float[Array, " M"]:
    return perceptron.apply(steps)[0]


def reward(reward: Network, rows: Rows, index: Int[Array, " B"]) -> Float[Array, " B"]:
    """Compute `networks.trajectory_reward` of the trajectories in `index`."""
    if rows.use_next_obs != uses_next_obs(reward.module):
        raise ValueError(f"this reward model needs pairs of prepare(..., use_next_obs={not rows.use_next_obs})")
    if type(reward.module) is RewardModel and rows.discrete:
        return sum_over_steps(_fast_reward, perceptron.of_reward(reward.params, rows.obs_size), rows, index)
    return sum_over_steps(_reward, reward, rows, index)
