"""Detect training that diverged, by its numbers.

A learning rate that is far too large seldom gives NaN. Adam's steps are as large as the learning rate, whatever the
gradients: parameters grow in even steps, the policy always takes one action, and the loss stays finite. So a run has
diverged if its loss is NaN or infinite, or if its parameters are far larger than in any successful run.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import struct
from jaxtyping import Array, Bool, Float, Int

from jaxpref.types import Params

LIMIT = 1e3
"""Largest magnitude of a parameter. Fresh ones are below 1, and Adam moves them by about the learning rate in each
update: by about 10 in a thousand updates with 1e-2, and past the limit in the first update with 1e3."""

WHAT = ("nothing", "loss", "parameters")


@struct.dataclass
class Divergence:
    """Where a run of training diverged.

    update:  number of the first update, counted from 1, that diverged by its loss or by its parameters after it; 0:
        none did.
    what:    which of the two, as an index into `WHAT`; the loss where both did.
    """

    update: Int[Array, "*batch"]
    what: Int[Array, "*batch"]


def no_divergence() -> Divergence:
    """Return the value for a run that has not diverged."""
    return Divergence(jnp.int32(0), jnp.int32(0))


def param_size(params: Params) -> Float[Array, ""]:
    """Compute the largest magnitude of all parameters; NaN if one of them is NaN."""
    return jnp.max(jnp.stack([jnp.max(jnp.abs(leaf)) for leaf in jax.tree.leaves(params)]))


def is_sound(params: Params) -> Bool[Array, ""]:
    """Return whether all parameters are within `LIMIT`. After a loss that was NaN or infinite they never are again."""
    return param_size(params) <= LIMIT


def find_divergence(
    loss: Float[Array, " U"], size: Float[Array, " U"], params: Params, num_updates: int | Int[Array, ""]
) -> Divergence:
    """Find the divergence of one run in the metrics of its updates and its last parameters. vmap it over runs.

    loss:         of every update.
    size:         `param_size` before every update.
    num_updates:  how many were made, at least 1; entries after them are ignored.
    """
    made = jnp.arange(loss.shape[0]) < num_updates
    size_after = jnp.roll(size, -1).at[num_updates - 1].set(param_size(params))
    bad_loss, bad_params = ~jnp.isfinite(loss), ~(size_after <= LIMIT)  # NaN is not below the limit
    bad = made & (bad_loss | bad_params)
    first = jnp.argmax(bad)
    what = jnp.where(bad_loss[first], WHAT.index("loss"), WHAT.index("parameters"))
    return Divergence(jnp.where(bad.any(), first + 1, 0), jnp.where(bad.any(), what, 0))
