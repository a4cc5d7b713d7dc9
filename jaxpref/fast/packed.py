"""Sums over episodes of different lengths, without the cost of padding.

In `networks.trajectory_log_prob` and `networks.trajectory_reward` most of the work is padding, and the activations of a
minibatch do not fit a cache. Here episodes are cut into short rows once. A minibatch gathers its rows, those with steps
first, and each sum runs over these, about a thousand steps at a time, features first. Values and gradients are those of
the plain functions.
"""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import struct
from jaxtyping import Array, Bool, Float, Int

from jaxpref.fast.loops import any_lane
from jaxpref.networks import ActorCritic, Network, RewardModel, apply_policy, apply_reward
from jaxpref.types import Params, Trajectory, zero_beyond_mask

ROW = 20
"""Steps in a row. An episode wastes half a row on average."""
CHUNK = 64
"""Rows in one pass of the loop: 1280 steps, whose activations fit a core's cache, also for a few runs."""

StepFn = Callable[[Network, Float[Array, "O M"], Array], Float[Array, " M"]]
"""(network, obs, action) -> what is summed, per step. Observations have features first."""


@struct.dataclass
class Rows:
    """Rows of L steps each, features first: [N, K] of a dataset of N trajectories, or [M] of a `Batch`."""

    obs: Float[Array, "O *rows L"]
    action: Array
    mask: Bool[Array, "*rows L"]


def pack(trajectory: Trajectory) -> Rows:
    """Cut trajectories [N, T, ...] into rows, once for a dataset."""
    played = zero_beyond_mask(trajectory)
    num, horizon, _ = played.obs.shape
    num_rows = -(-horizon // ROW)

    def cut(leaf):
        padding = [(0, 0), (0, num_rows * ROW - horizon)] + [(0, 0)] * (leaf.ndim - 2)
        return jnp.pad(leaf, padding).reshape(num, num_rows, ROW, *leaf.shape[2:])

    return Rows(jnp.moveaxis(cut(played.obs), -1, 0), cut(played.action), cut(played.mask))


@struct.dataclass
class Batch:
    """The M rows that trajectories may fill: those with steps come first.

    owner:  the trajectory of each row, from 0 to B - 1; B for a row without steps.
    """

    rows: Rows
    owner: Int[Array, " M"]


def take(rows: Rows, index: Int[Array, " B"]) -> Batch:
    """Gather the rows of the trajectories in `index`. Forward and backward pass both read them."""
    rows_each = rows.mask.shape[1]
    num_rows = index.shape[0] * rows_each
    live = rows.mask.any(-1)[index].reshape(-1)
    order = jnp.nonzero(live, size=-(-num_rows // CHUNK) * CHUNK, fill_value=num_rows)[0]
    owner = order // rows_each
    source = index.at[owner].get(mode="fill", fill_value=rows.mask.shape[0]) * rows_each + order % rows_each

    def gather(leaf):
        flat = leaf.reshape(*leaf.shape[:-3], -1, leaf.shape[-1])
        return flat.at[..., source, :].get(mode="fill", fill_value=0)

    return Batch(jax.tree.map(gather, rows), owner)


def sum_over_steps(step_fn: StepFn, network: Network, rows: Rows, index: Int[Array, " B"]) -> Float[Array, " B"]:
    """Sum step_fn(network, obs_t, action_t) over the mask of each trajectory in `index`. Only reverse mode."""
    return _sum(step_fn, index.shape[0], network, take(rows, index))


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _sum(step_fn: StepFn, num_trajectories: int, network: Network, batch: Batch) -> Float[Array, " B"]:
    def add_chunk(sums, rows, owner):
        return sums.at[owner].add(_row_sums(step_fn, network, rows), mode="drop")

    return _over_chunks(add_chunk, jnp.zeros(num_trajectories), batch)


def _forward(step_fn, num_trajectories, network, batch):
    return _sum(step_fn, num_trajectories, network, batch), (network, batch)


def _backward(step_fn, num_trajectories, residuals, cotangent):
    # The activations were not kept: computing them again, a cached chunk at a time, costs less than storing them.
    network, batch = residuals

    def add_chunk(grads, rows, owner):
        weight = cotangent.at[owner].get(mode="fill", fill_value=0.0)
        chunk_grads = jax.grad(lambda network: jnp.vdot(weight, _row_sums(step_fn, network, rows)))(network)
        return jax.tree.map(jnp.add, grads, chunk_grads)

    return _over_chunks(add_chunk, jax.tree.map(jnp.zeros_like, network), batch), None


_sum.defvjp(_forward, _backward)


def _row_sums(step_fn: StepFn, network: Network, rows: Rows) -> Float[Array, " C"]:
    obs = rows.obs.reshape(rows.obs.shape[0], -1)
    per_step = step_fn(network, obs, rows.action.reshape(-1)).reshape(rows.mask.shape)
    return jnp.where(rows.mask, per_step, 0.0).sum(-1)


def _over_chunks(add_chunk, total, batch: Batch):
    """Fold `add_chunk(total, rows, owner)` over the chunks that hold steps."""
    live = batch.rows.mask.any(-1).sum()

    def body(carry):
        start, total = carry
        cut = functools.partial(jax.lax.dynamic_slice_in_dim, start_index=start, slice_size=CHUNK)
        rows = jax.tree.map(lambda leaf: cut(leaf, axis=leaf.ndim - 2), batch.rows)
        return start + CHUNK, add_chunk(total, rows, cut(batch.owner))

    return jax.lax.while_loop(lambda carry: any_lane(carry[0] < live), body, (0, total))[1]


def _dense(layer: Params, inputs: Float[Array, "I M"]) -> Float[Array, "H M"]:
    return layer["kernel"].T @ inputs + layer["bias"][:, None]


def _log_prob(policy: Network, obs: Float[Array, "O M"], action: Array) -> Float[Array, " M"]:
    if type(policy.module) is not ActorCritic:
        return apply_policy(policy, obs.T)[0].log_prob(action)
    features = jax.nn.relu(_dense(policy.params["torso"], obs))
    log_probs = jax.nn.log_softmax(_dense(policy.params["policy"], features), axis=0)
    taken = action == jnp.arange(log_probs.shape[0])[:, None]
    return jnp.where(taken, log_probs, 0.0).sum(0)


def _reward(reward: Network, obs: Float[Array, "O M"], action: Array) -> Float[Array, " M"]:
    if type(reward.module) is not RewardModel:
        return apply_reward(reward, obs.T, action)
    one_hot = jnp.where(action == jnp.arange(reward.module.num_actions)[:, None], 1.0, 0.0)
    features = jax.nn.relu(_dense(reward.params["torso"], jnp.concatenate([obs, one_hot])))
    return _dense(reward.params["reward"], features).squeeze(0)


log_prob = functools.partial(sum_over_steps, _log_prob)
"""(policy, rows, index) -> [B]: `networks.trajectory_log_prob`."""
reward = functools.partial(sum_over_steps, _reward)
"""(reward, rows, index) -> [B]: `networks.trajectory_reward`."""
