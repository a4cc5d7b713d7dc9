"""Loops that stay loops under vmap."""

from __future__ import annotations

from jax.custom_batching import custom_vmap
from jaxtyping import Array, Bool


@custom_vmap
def any_lane(flag: Bool[Array, ""]) -> Bool[Array, ""]:
    """Whether `flag` holds here or in any computation vmapped beside this one.

    As a `while_loop`'s condition it keeps the loop a loop: with a condition of its own for each lane, vmap would
    select between the old and the new carry in every iteration, whole buffers included. The body must leave a
    lane that has finished as it is.
    """
    return flag


@any_lane.def_vmap
def _any_lane_vmap(axis_size, in_batched, flag):
    return any_lane(flag.any()), False
