"""Sums over episodes of different length, without paying for the padding.

Training on preferences means summing log-probabilities, or rewards, over whole episodes and following the
gradient of that sum. Done plainly (`networks.trajectory_log_prob`, `networks.trajectory_reward`) most of the work
is padding, and the activations of a minibatch do not fit a cache. Here episodes are cut into short rows once, and
each sum runs over the rows that hold steps, a few thousand steps at a time, features first. The values and the
gradients are those of the plain functions; tests hold them to it.
"""

from __future__ import annotations

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import struct
from jaxtyping import Array, Bool, Float, Int

from jaxpref.fast.loops import any_lane
from jaxpref.networks import Network, apply_policy, apply_reward, categorical_log_prob
from jaxpref.types import Params, Trajectory, zero_beyond_mask

ROW = 25
"""Steps in a row: an episode wastes half a row on average."""
CHUNK = 32
"""Rows in one pass of the loop: 800 steps, whose activations stay in a core's cache, also those of a few runs."""

StepFn = Callable[[Params, Float[Array, "O M"], Int[Array, " M"]], Float[Array, " M"]]
"""(params, obs, action) -> what is summed, per step; observations with features first."""


@struct.dataclass
class Rows:
    """N trajectories cut into K rows of L steps each, features before steps."""

    obs: Float[Array, "N K O L"]
    action: Int[Array, "N K L"]
    mask: Bool[Array, "N K L"]


def pack(trajectory: Trajectory) -> Rows:
    """Cut trajectories [N, T, ...] into rows. Done once for a dataset."""
    played = zero_beyond_mask(trajectory)
    num, horizon, _ = played.obs.shape
    num_rows = -(-horizon // ROW)

    def cut(leaf):
        padding = [(0, 0), (0, num_rows * ROW - horizon)] + [(0, 0)] * (leaf.ndim - 2)
        return jnp.pad(leaf, padding).reshape(num, num_rows, ROW, *leaf.shape[2:])

    return Rows(cut(played.obs).swapaxes(-1, -2), cut(played.action), cut(played.mask))


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def sum_over_steps(step_fn: StepFn, params: Params, rows: Rows, index: Int[Array, " B"]) -> Float[Array, " B"]:
    """sum_t step_fn(params, obs_t, action_t) over the mask of each trajectory named by `index`.

    Differentiable in `params`, in reverse mode.
    """

    def add_chunk(sums, steps, row_ids):
        return sums.at[row_ids].add(_row_sums(step_fn, params, steps), mode="drop")

    num_rows = index.shape[0] * rows.mask.shape[1]
    return _over_live_rows(add_chunk, jnp.zeros(num_rows), rows, index).reshape(index.shape[0], -1).sum(-1)


def _forward(step_fn, params, rows, index):
    return sum_over_steps(step_fn, params, rows, index), (params, rows, index)


def _backward(step_fn, residuals, cotangent):
    # The activations were not kept: computing them again, a cached chunk at a time, costs less than storing them.
    params, rows, index = residuals
    row_cotangent = jnp.repeat(cotangent, rows.mask.shape[1])

    def add_chunk(grads, steps, row_ids):
        weight = row_cotangent.at[row_ids].get(mode="fill", fill_value=0.0)
        chunk_grads = jax.grad(lambda params: jnp.vdot(weight, _row_sums(step_fn, params, steps)))(params)
        return jax.tree.map(jnp.add, grads, chunk_grads)

    return _over_live_rows(add_chunk, jax.tree.map(jnp.zeros_like, params), rows, index), None, None


sum_over_steps.defvjp(_forward, _backward)


def _row_sums(step_fn: StepFn, params: Params, steps: Rows) -> Float[Array, " C"]:
    obs = steps.obs.swapaxes(0, 1).reshape(steps.obs.shape[1], -1)
    per_step = step_fn(params, obs, steps.action.reshape(-1)).reshape(steps.mask.shape)
    return jnp.where(steps.mask, per_step, 0.0).sum(-1)


def _over_live_rows(add_chunk, total, rows: Rows, index: Int[Array, " B"]):
    """Fold `add_chunk(total, rows of one chunk, their places among the [B * K] rows)` over the rows with steps."""
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

    def remaining(carry):
        return any_lane(carry[0] < live.sum())

    return jax.lax.while_loop(remaining, body, (0, total))[1]


def _torso(params: Params, inputs: Float[Array, "I M"]) -> Float[Array, "H M"]:
    layer = params["params"]["torso"]
    return jax.nn.relu(layer["kernel"].T @ inputs + layer["bias"][:, None])


def _log_prob(params: Params, obs: Float[Array, "O M"], action: Int[Array, " M"]) -> Float[Array, " M"]:
    if isinstance(params, Network):
        return categorical_log_prob(apply_policy(params, obs.T)[0], action)
    head = params["params"]["policy"]
    log_probs = jax.nn.log_softmax(head["kernel"].T @ _torso(params, obs) + head["bias"][:, None], axis=0)
    taken = action == jnp.arange(log_probs.shape[0])[:, None]
    return jnp.where(taken, log_probs, 0.0).sum(0)


def _reward(params: Params, obs: Float[Array, "O M"], action: Int[Array, " M"]) -> Float[Array, " M"]:
    if isinstance(params, Network):
        return apply_reward(params, obs.T, action)
    head = params["params"]["reward"]
    num_actions = params["params"]["torso"]["kernel"].shape[0] - obs.shape[0]
    one_hot = jnp.where(action == jnp.arange(num_actions)[:, None], 1.0, 0.0)
    features = _torso(params, jnp.concatenate([obs, one_hot]))
    return (head["kernel"].T @ features + head["bias"][:, None]).squeeze(0)


log_prob = functools.partial(sum_over_steps, _log_prob)
"""(params, rows, index) -> [B]: `networks.trajectory_log_prob`."""

reward = functools.partial(sum_over_steps, _reward)
"""(params, rows, index) -> [B]: `networks.trajectory_reward`, not of an ensemble."""
