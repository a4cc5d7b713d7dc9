"""Detect training that diverged, by its numbers.

A learning rate that is far too large seldom gives NaN. Adam's steps are as large as the learning rate, so parameters
grow in even steps, the policy always takes one action, and the loss stays finite. So a run has diverged if its loss is
NaN or infinite, or if its parameters are far larger than in any successful run.
"""

from typing import Any

import jax
import jax.numpy as jnp
from flax import struct
from jaxtyping import Array, Float, Int

from jaxpref.types import Params

LIMIT = 1e3
"""Largest magnitude of a parameter. Fresh ones are below 1, and Adam moves them by about the learning rate in each
update: by about 10 in a thousand updates with 1e-2, and past the limit in the first update with 1e3."""
WHAT = ("nothing", "loss", "parameters")


@struct.dataclass
class Divergence:
    """Where a run of training diverged.

    update:  the first update, counted from 1, whose loss or whose parameters after it diverged; 0: none.
    what:    which of the two, as an index into `WHAT`; the loss where both did.
    """

    update: Int[Array, "*batch"]
    what: Int[Array, "*batch"]


def param_size(params: Params) -> Float[Array, ""]:
    """Compute the largest magnitude of all parameters; NaN if one of them is NaN."""
    return jnp.max(jnp.stack([jnp.max(jnp.abs(leaf)) for leaf in jax.tree.leaves(params)]))


def find_divergence(metrics: Any, params: Params, num_updates: int | Int[Array, ""]) -> Divergence:
    """Find the divergence of one run in its metrics `loss` [U] and `param_size` [U], and in its last parameters.

    `metrics.param_size` is from before every update. Entries after the first `num_updates` are ignored.
    """
    made = jnp.arange(metrics.loss.shape[0]) < num_updates
    size_after = jnp.roll(metrics.param_size, -1).at[num_updates - 1].set(param_size(params))
    bad_loss, bad_params = ~jnp.isfinite(metrics.loss), ~(size_after <= LIMIT)  # NaN is not below the limit
    bad = made & (bad_loss | bad_params)
    first = jnp.argmax(bad)
    what = jnp.where(bad_loss[first], WHAT.index("loss"), WHAT.index("parameters"))
    return Divergence(jnp.where(bad.any(), first + 1, 0), jnp.where(bad.any(), what, 0))
