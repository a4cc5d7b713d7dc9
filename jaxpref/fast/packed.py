"""Sums over episodes of different lengths, without the cost of padding.

In `networks.trajectory_log_prob` and `networks.trajectory_reward` most of the work is padding, and the activations of a
minibatch do not fit a cache. Here episodes are cut into short rows once. Each sum runs over the rows that hold steps, a
few hundred steps at a time, features first. Values and gradients are those of the plain functions.
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

ROW = 25
"""Steps in a row. An episode wastes half a row on average."""
CHUNK = 32
"""Rows in one pass of the loop: 800 steps, whose activations fit a core's cache, also for a few runs."""

StepFn = Callable[[Network, Float[Array, "O M"], Array], Float[Array, " M"]]
"""(network, obs, action) -> what is summed, per step. Observations have features first."""


@struct.dataclass
class Rows:
    """N trajectories cut into K rows of L steps each, features before steps."""

    obs: Float[Array, "N K O L"]
    action: Array
    mask: Bool[Array, "N K L"]


def pack(trajectory: Trajectory) -> Rows:
    """Cut trajectories [N, T, ...] into rows, once for a dataset."""
    played = zero_beyond_mask(trajectory)
    num, horizon, _ = played.obs.shape
    num_rows = -(-horizon // ROW)

    def cut(leaf):
        padding = [(0, 0), (0, num_rows * ROW - horizon)] + [(0, 0)] * (leaf.ndim - 2)
        return jnp.pad(leaf, padding).reshape(num, num_rows, ROW, *leaf.shape[2:])

    return Rows(cut(played.obs).swapaxes(-1, -2), cut(played.action), cut(played.mask))


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def sum_over_steps(step_fn: StepFn, network: Network, rows: Rows, index: Int[Array, " B"]) -> Float[Array, " B"]:
    """Sum step_fn(network, obs_t, action_t) over the mask of each trajectory in `index`. Only reverse mode."""

    def add_chunk(sums, steps, row_ids):
        return sums.at[row_ids].add(_row_sums(step_fn, network, steps), mode="drop")

    num_rows = index.shape[0] * rows.mask.shape[1]
    return _over_live_rows(add_chunk, jnp.zeros(num_rows), rows, index).reshape(index.shape[0], -1).sum(-1)


def _forward(step_fn, network, rows, index):
    return sum_over_steps(step_fn, network, rows, index), (network, rows, index)


def _backward(step_fn, residuals, cotangent):
    # The activations were not kept: computing them again, a cached chunk at a time, costs less than storing them.
    network, rows, index = residuals
    row_cotangent = jnp.repeat(cotangent, rows.mask.shape[1])

    def add_chunk(grads, steps, row_ids):
        weight = row_cotangent.at[row_ids].get(mode="fill", fill_value=0.0)
        chunk_grads = jax.grad(lambda network: jnp.vdot(weight, _row_sums(step_fn, network, steps)))(network)
        return jax.tree.map(jnp.add, grads, chunk_grads)

    return _over_live_rows(add_chunk, jax.tree.map(jnp.zeros_like, network), rows, index), None, None


sum_over_steps.defvjp(_forward, _backward)


def _row_sums(step_fn: StepFn, network: Network, steps: Rows) -> Float[Array, " C"]:
    obs = steps.obs.swapaxes(0, 1).reshape(steps.obs.shape[1], -1)
    per_step = step_fn(network, obs, steps.action.reshape(-1)).reshape(steps.mask.shape)
    return jnp.where(steps.mask, per_step, 0.0).sum(-1)


def _over_live_rows(add_chunk, total, rows: Rows, index: Int[Array, " B"]):
    """Fold `add_chunk(total, rows of one chunk, their indices among the [B * K] rows)` over the rows with steps."""
    rows_each = rows.mask.shape[1]
    num_rows = index.shape[0] * rows_each
    live = rows.mask.any(-1)[index].reshape(-1)
    order = jnp.nonzero(live, size=num_rows + CHUNK, fill_value=num_rows)[0]
    flat = jax.tree.map(lambda leaf: leaf.reshape(-1, *leaf.shape[2:]), rows)
    source = jnp.append(index[:, None] * rows_each + jnp.arange(rows_each), flat.mask.shape[0])

    def body(carry):
        start, total = carry
        row_ids = jax.lax.dynamic_slice_in_dim(order, start, CHUNK)
        steps = jax.tree.map(lambda leaf: leaf.at[source[row_ids]].get(mode="fill", fill_value=0), flat)
        return start + CHUNK, add_chunk(total, steps, row_ids)

    return jax.lax.while_loop(lambda carry: any_lane(carry[0] < live.sum()), body, (0, total))[1]


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
