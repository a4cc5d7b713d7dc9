"""Check the arrays of a file of pairs, which another program may have written: docs/preferences-format.md."""

from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

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
CONTINUOUS = ("float32", "NTD")
"""The same of an action that is D numbers."""
OPTIONAL = ("reward", "next_obs")
"""Arrays that a file may leave out. Rewards are then NaN. Next observations are those of `_next_obs`."""

Arrays = Mapping[str, np.ndarray]


def read_pairs(
    arrays: Arrays, sides: tuple[str, str], task: Task | None, highest: Mapping[str, float]
) -> tuple[Trajectory, Trajectory, dict[str, Float[Array, " N"]]]:
    """Read the trajectories [N, T, ...] of both sides, from arrays named `side/field`, and the numbers of each pair.

    `highest` has the names of the numbers, which a file may leave out, and the highest value of each; the lowest is 0.
    Raises ValueError, naming the array, for one that is missing, unknown, or does not follow the format, and for sizes
    that are not the task's.
    """
    expected = {f"{side}/{field}": of_field for side in sides for field, of_field in FIELDS.items()}
    missing = {name for name in expected if name.partition("/")[2] not in OPTIONAL} - arrays.keys()
    expected |= dict.fromkeys(highest, ("float32", "N"))
    for names, problem in ((missing, "is missing"), (arrays.keys() - expected, "is not part of the format")):
        if names:
            raise ValueError(f"{', '.join(sorted(names))} {problem}")
    obs = arrays[f"{sides[0]}/obs"]
    if obs.ndim != 3 or 0 in obs.shape:
        raise ValueError(f"{sides[0]}/obs is {list(obs.shape)}, expected [pairs, steps, features], none of them 0")
    if task is not None and obs.shape[-1] != task.obs_size:
        raise ValueError(f"observations have {obs.shape[-1]} features, those of task {task.name} {task.obs_size}")
    action, sizes = arrays[f"{sides[0]}/action"], dict(zip("NTO", obs.shape, strict=True))
    if np.issubdtype(action.dtype, np.floating) if task is None else task.action_range is not None:
        expected |= {f"{side}/action": CONTINUOUS for side in sides}
        sizes["D"] = max((1, *action.shape[2:])) if task is None else task.num_actions
    for name, array in arrays.items():
        dtype, axes = expected[name]
        check_array(name, array, dtype, tuple(sizes[axis] for axis in axes))
    numbers = {name: arrays[name] for name in highest if name in arrays}
    for name, array in numbers.items():
        _check_each(name, (array >= 0) & (array <= highest[name]), f"is not a number from 0 to {highest[name]:g}")
    first, second = (_read_side(arrays, side, task) for side in sides)
    return first, second, {name: jnp.asarray(array) for name, array in numbers.items()}


def check_array(name: str, array: Any, dtype: Any, shape: tuple[int, ...]) -> None:
    """Check that an array has this dtype and shape."""
    if array.dtype != dtype or array.shape != shape:
        raise ValueError(f"{name} is {array.dtype}{list(array.shape)}, expected {dtype}{list(shape)}")


def _read_side(arrays: Arrays, side: str, task: Task | None) -> Trajectory:
    obs, action, mask = (arrays[f"{side}/{field}"] for field in ("obs", "action", "mask"))
    _check_each(f"{side}/mask", mask[:, :-1] | ~mask[:, 1:], "goes on after the trajectory's end")
    _check_each(f"{side}/obs", np.isfinite(obs).all(-1) | ~mask, "is not finite")
    if np.issubdtype(action.dtype, np.floating):
        _check_each(f"{side}/action", np.isfinite(action).all(-1) | ~mask, "is not finite")
    else:
        _check_each(f"{side}/action", (action >= 0) | ~mask, "is negative")
    if task is not None and task.action_range is None:
        problem = f"is not one of the {task.num_actions} actions of task {task.name}"
        _check_each(f"{side}/action", (action < task.num_actions) | ~mask, problem)
    reward = arrays.get(f"{side}/reward", np.full(mask.shape, np.nan, np.float32))
    next_obs = arrays.get(f"{side}/next_obs", np.full(obs.shape, np.nan, np.float32))
    next_obs = _next_obs(obs, mask) if np.isnan(next_obs).all() else next_obs
    _check_each(f"{side}/next_obs", np.isfinite(next_obs).all(-1) | ~mask, "is not finite")
    return Trajectory(*(jnp.asarray(array) for array in (obs, action, reward, next_obs, mask)))


def _next_obs(obs: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """Return the observations of the next steps. After the last step nothing is known: it keeps its own."""
    goes_on = np.pad(mask[:, 1:], [(0, 0), (0, 1)])
    return np.where(goes_on[..., None], np.roll(obs, -1, axis=1), obs)


def _check_each(name: str, valid: np.ndarray, problem: str) -> None:
    """Check `valid`, one value for each pair [N], or for each step [N, T]."""
    if not valid.all():
        places = zip(("pair", "step"), np.argwhere(~valid)[0], strict=False)
        raise ValueError(f"{name} {problem} at {', '.join(f'{axis} {index}' for axis, index in places)}")
