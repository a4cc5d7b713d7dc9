"""Training that went astray, found by its numbers.

A learning rate far too large seldom gives NaN: Adam's steps are as large as the learning rate, whatever the gradients,
so parameters walk off in even steps and the policy is stuck, one action for ever, with a loss that is a number. So
divergence is either: a loss that is NaN or infinite, or parameters beyond what any run that works comes near.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import struct
from jaxtyping import Array, Bool, Float, Int

from jaxpref.types import Params

LIMIT = 1e3
"""Largest magnitude of a parameter. Fresh ones are below 1, and Adam moves them by about the learning rate in each
update: a thousand updates with 1e-2 carry them no further than about 10, the first with 1e3 past the limit."""

WHAT = ("nothing", "loss", "parameters")


@struct.dataclass
class Divergence:
    """Where a run of training went astray, if it did.

    update:  number of the first update, counted from 1, whose loss or whose parameters afterwards were astray; 0: none.
    what:    which of them, as a place in `WHAT`; the loss, which comes first, where both were.
    """

    update: Int[Array, "*batch"]
    what: Int[Array, "*batch"]


def no_divergence() -> Divergence:
    """That of a run that has not begun."""
    return Divergence(jnp.int32(0), jnp.int32(0))


def param_size(params: Params) -> Float[Array, ""]:
    """Largest magnitude of all parameters; NaN if one of them is."""
    return jnp.max(jnp.stack([jnp.max(jnp.abs(leaf)) for leaf in jax.tree.leaves(params)]))


def is_sound(params: Params) -> Bool[Array, ""]:
    """Whether all parameters are numbers within `LIMIT`. After a loss that was NaN or infinite they never are again."""
    return param_size(params) <= LIMIT


def find_divergence(
    loss: Float[Array, " U"], size: Float[Array, " U"], params: Params, num_updates: int | Int[Array, ""]
) -> Divergence:
    """The divergence of one run, from the metrics of its updates and its last parameters. vmap it over runs.

    loss:         of every update.
    size:         `param_size` before every update.
    num_updates:  how many were made, at least 1; entries behind them are not looked at.
    """
    made = jnp.arange(loss.shape[0]) < num_updates
    size_after = jnp.roll(size, -1).at[num_updates - 1].set(param_size(params))
    bad_loss, bad_params = ~jnp.isfinite(loss), ~(size_after <= LIMIT)  # NaN is not below the limit
    bad = made & (bad_loss | bad_params)
    first = jnp.argmax(bad)
    what = jnp.where(bad_loss[first], WHAT.index("loss"), WHAT.index("parameters"))
    return Divergence(jnp.where(bad.any(), first + 1, 0), jnp.where(bad.any(), what, 0))
