"""What a file of pairs must hold, array by array: docs/preferences-format.md is the schema.

Such a file may come from another program, so everything that training relies on is looked at, values included.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from jaxpref.tasks import Task
from jaxpref.types import Trajectory

FIELDS = {
    "obs": ("float32", "NTO"),
    "action": ("int32", "NT"),
    "reward": ("float32", "NT"),
    "next_obs": ("float32", "NTO"),
    "mask": ("bool", "NT"),
}
"""A trajectory's arrays: dtype, and axes of pairs, steps and features of an observation."""

OPTIONAL = ("reward", "next_obs")
"""What no preference is trained on: a file may leave it out, and it is NaN."""


def read_sides(
    arrays: Mapping[str, np.ndarray], sides: tuple[str, str], numbers: tuple[str, ...] = (), task: Task | None = None
) -> list[Trajectory]:
    """The trajectories [N, T, ...] of both sides of every pair, whose arrays are named `side/field`.

    `numbers` names arrays that may stand beside them. Raises ValueError, naming the array, for one that is missing,
    unknown or not as the schema says, and for sizes other than the task's.
    """
    allowed = {f"{side}/{field}": field for side in sides for field in FIELDS}
    missing = {name for name, field in allowed.items() if field not in OPTIONAL} - arrays.keys()
    unknown = arrays.keys() - allowed.keys() - set(numbers)
    for names, verb in ((missing, "is missing"), (unknown, "is no part of it")):
        if names:
            raise ValueError(f"{', '.join(sorted(names))} {verb}")
    obs = arrays[f"{sides[0]}/obs"]
    if obs.ndim != 3 or 0 in obs.shape:
        raise ValueError(
            f"{sides[0]}/obs is {list(obs.shape)}, expected [pairs, steps, features], at least one of each"
        )
    sizes = dict(zip("NTO", obs.shape, strict=True))
    trajectories = [_read_side(arrays, side, sizes) for side in sides]
    if task is not None:
        _check_task(trajectories, sides, task)
    return trajectories


def read_numbers(
    arrays: Mapping[str, np.ndarray], name: str, num_pairs: int, highest: float = float(np.finfo(np.float32).max)
) -> Float[np.ndarray, " N"]:
    """The numbers [N] of that name, one for each pair; ones where there are none.

    Raises ValueError unless they are float32 from 0 to `highest`.
    """
    if name not in arrays:
        return np.ones(num_pairs, np.float32)
    numbers = arrays[name]
    _check_array(name, numbers, "float32", (num_pairs,))
    _check_each(name, (numbers >= 0) & (numbers <= highest), f"is not a number from 0 to {highest:g}")
    return numbers


def _read_side(arrays: Mapping[str, np.ndarray], side: str, sizes: Mapping[str, int]) -> Trajectory:
    fields: dict[str, Any] = {}
    for field, (dtype, axes) in FIELDS.items():
        name, shape = f"{side}/{field}", tuple(sizes[axis] for axis in axes)
        fields[field] = arrays[name] if name in arrays else np.full(shape, np.nan, np.float32)
        _check_array(name, fields[field], dtype, shape)
    mask = fields["mask"]
    _check_each(f"{side}/mask", mask[:, :-1] | ~mask[:, 1:], "goes on after the trajectory's end")
    _check_each(f"{side}/obs", np.isfinite(fields["obs"]).all(-1) | ~mask, "is not finite")
    _check_each(f"{side}/action", (fields["action"] >= 0) | ~mask, "is negative")
    return Trajectory(**{field: jnp.asarray(array) for field, array in fields.items()})


def _check_array(name: str, array: np.ndarray, dtype: str, shape: tuple[int, ...]) -> None:
    if array.dtype != dtype or array.shape != shape:
        raise ValueError(f"{name} is {array.dtype}{list(array.shape)}, expected {dtype}{list(shape)}")


def _check_each(name: str, valid: np.ndarray, complaint: str) -> None:
    """`valid`: one value per pair [N], or per pair and step [N, T]."""
    if not valid.all():
        place = ", ".join(
            f"{axis} {i}" for axis, i in zip(("pair", "step"), np.argwhere(~valid)[0].tolist(), strict=False)
        )
        raise ValueError(f"{name} {complaint} at {place}")


def _check_task(trajectories: list[Trajectory], sides: tuple[str, str], task: Task) -> None:
    obs_size = trajectories[0].obs.shape[-1]
    if obs_size != task.obs_size:
        raise ValueError(f"observations have {obs_size} features, those of task {task.name} {task.obs_size}")
    for side, trajectory in zip(sides, trajectories, strict=True):
        fits = np.asarray((trajectory.action < task.num_actions) | ~trajectory.mask)
        _check_each(f"{side}/action", fits, f"is not one of the {task.num_actions} actions of task {task.name}")
