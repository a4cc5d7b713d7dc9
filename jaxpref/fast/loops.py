"""Loops that stay loops under vmap."""

from jax.custom_batching import custom_vmap
from jaxtyping import Array, Bool


@custom_vmap
def any_lane(flag: Bool[Array, ""]) -> Bool[Array, ""]:
    """Return whether `flag` holds in this lane or in any other lane of the vmap.

    Use it as the condition of a `while_loop`. With one condition for each lane, vmap selects between the old and the
    new carry in every iteration, whole buffers included. The body must not change a lane that has finished.
    """
    return flag


@any_lane.def_vmap
def _any_lane_vmap(axis_size, in_batched, flag):
    return any_lane(flag.any()), False
