"""Check the arrays of a file of pairs, which another program may have written: docs/preferences-format.md.

Values are checked, too. Training relies on them.
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
"""A trajectory's arrays: their dtype and their axes, pairs N, steps T and features O."""

OPTIONAL = ("reward", "next_obs")
"""Arrays that preferences are not trained on. A file may leave them out; then they are NaN."""


def read_sides(
    arrays: Mapping[str, np.ndarray], sides: tuple[str, str], numbers: tuple[str, ...] = (), task: Task | None = None
) -> list[Trajectory]:
    """Read the trajectories [N, T, ...] of both sides, from arrays named `side/field`.

    `numbers` are the names of other arrays that the file may hold. Raises ValueError, naming the array, for one that is
    missing, unknown, or does not follow the format, and for sizes that are not the task's.
    """
    allowed = {f"{side}/{field}": field for side in sides for field in FIELDS}
    missing = {name for name, field in allowed.items() if field not in OPTIONAL} - arrays.keys()
    unknown = arrays.keys() - allowed.keys() - set(numbers)
    for names, problem in ((missing, "is missing"), (unknown, "is not part of the format")):
        if names:
            raise ValueError(f"{', '.join(sorted(names))} {problem}")
    obs = arrays[f"{sides[0]}/obs"]
    if obs.ndim != 3 or 0 in obs.shape:
        raise ValueError(f"{sides[0]}/obs is {list(obs.shape)}, expected [pairs, steps, features], none of them 0")
    if task is not None and obs.shape[-1] != task.obs_size:
        raise ValueError(f"observations have {obs.shape[-1]} features, those of task {task.name} {task.obs_size}")
    return [_read_side(arrays, side, dict(zip("NTO", obs.shape, strict=True)), task) for side in sides]


def read_numbers(
    arrays: Mapping[str, np.ndarray], name: str, num_pairs: int, highest: float = float(np.finfo(np.float32).max)
) -> Float[np.ndarray, " N"]:
    """Read one float32 from 0 to `highest` for each pair; ones if the file has none."""
    if name not in arrays:
        return np.ones(num_pairs, np.float32)
    numbers = arrays[name]
    _check_array(name, numbers, "float32", (num_pairs,))
    _check_each(name, (numbers >= 0) & (numbers <= highest), f"is not a number from 0 to {highest:g}")
    return numbers


def _read_side(arrays: Mapping[str, np.ndarray], side: str, sizes: Mapping[str, int], task: Task | None) -> Trajectory:
    fields: dict[str, Any] = {}
    for field, (dtype, axes) in FIELDS.items():
        name, shape = f"{side}/{field}", tuple(sizes[axis] for axis in axes)
        fields[field] = arrays[name] if name in arrays else np.full(shape, np.nan, np.float32)
        _check_array(name, fields[field], dtype, shape)
    mask, action = fields["mask"], fields["action"]
    _check_each(f"{side}/mask", mask[:, :-1] | ~mask[:, 1:], "goes on after the trajectory's end")
    _check_each(f"{side}/obs", np.isfinite(fields["obs"]).all(-1) | ~mask, "is not finite")
    _check_each(f"{side}/action", (action >= 0) | ~mask, "is negative")
    if task is not None:
        problem = f"is not one of the {task.num_actions} actions of task {task.name}"
        _check_each(f"{side}/action", (action < task.num_actions) | ~mask, problem)
    return Trajectory(**{field: jnp.asarray(array) for field, array in fields.items()})


def _check_array(name: str, array: np.ndarray, dtype: str, shape: tuple[int, ...]) -> None:
    if array.dtype != dtype or array.shape != shape:
        raise ValueError(f"{name} is {array.dtype}{list(array.shape)}, expected {dtype}{list(shape)}")


def _check_each(name: str, valid: np.ndarray, problem: str) -> None:
    """Check `valid`, one value for each pair [N], or for each step [N, T]."""
    if not valid.all():
        places = zip(("pair", "step"), np.argwhere(~valid)[0], strict=False)
        raise ValueError(f"{name} {problem} at {', '.join(f'{axis} {index}' for axis, index in places)}")
