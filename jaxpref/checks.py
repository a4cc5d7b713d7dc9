"""What a function is given: whatever is wrong with it is said where it comes in, in one sentence that names it.

Shapes, dtypes and Python values are looked at, never the values of arrays: a check takes its time when a function is
traced, and none when it runs. Kinds that are wrong raise TypeError, shapes and ranges ValueError.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxpref.types import Preferences, Trajectory

LARGEST = float(np.finfo(np.float32).max)
"""What is beyond it becomes infinite as a float32, which is what everything is computed in."""

# --- configs ----------------------------------------------------------------------------------------------------------


def check_range(config: Any, low: int | float, high: int | float, *names: str) -> None:
    """Raise ValueError for a field of `config` that is not a finite float32 from `low` to `high`, or is declared as an
    int and is none.

    Arrays are let through: a hyperparameter that is swept or traced has no one value to look at. So is what is no
    number: `check_config` looks at that.
    """
    check_whole(config, *names)
    for name in names:
        value = getattr(config, name)
        if _is_number(value):
            _check_bounds(value, f"{_name(config)}: {name}", low, high)


def _check_bounds(value: Any, name: str, low: int | float, high: int | float) -> None:
    if not low <= value <= min(high, LARGEST):
        too_large = math.isfinite(value) and value > LARGEST
        wanted = f"between {low:g} and {min(high, LARGEST):g}" if high < math.inf or too_large else f"at least {low:g}"
        raise ValueError(f"{name} must be {wanted}, got {value}")


def check_whole(config: Any, *names: str) -> None:
    """Raise ValueError for a field that is declared as an int and holds something else."""
    kinds = {field.name: field.type for field in dataclasses.fields(config)}
    for name in names:
        if kinds[name] == "int" and not _is_int(getattr(config, name)):
            raise ValueError(f"{_name(config)}: {name} must be a whole number, got {getattr(config, name)!r}")


def check_flag(config: Any, *names: str) -> None:
    """Raise ValueError for a field of `config` that is neither True nor False."""
    for name in names:
        if not isinstance(getattr(config, name), bool | np.bool_):
            raise ValueError(f"{_name(config)}: {name} must be True or False, got {getattr(config, name)!r}")


def check_choice(config: Any, name: str, choices: tuple[str, ...]) -> None:
    """Raise ValueError for a field of `config` that is none of `choices`."""
    if getattr(config, name) not in choices:
        raise ValueError(f"{_name(config)}: {name} must be one of {choices}, got {getattr(config, name)!r}")


def check_schedule(config: Any) -> None:
    """Raise ValueError unless `config.eval_every` divides `config.num_updates`, both at least 1."""
    check_whole(config, "num_updates", "eval_every")
    num_updates, eval_every = config.num_updates, config.eval_every
    if num_updates < 1 or eval_every < 1 or num_updates % eval_every:
        raise ValueError(
            f"{_name(config)}: num_updates must be a multiple of eval_every, both at least 1; "
            f"got {num_updates} and {eval_every}"
        )


def check_config(config: Any, kind: type, name: str = "config") -> None:
    """Raise TypeError for a config of another function, and for a hyperparameter that is no number, ValueError for one
    that is several.

    Hyperparameters are leaves, and jax rebuilds a config with whatever it likes in their place: so their kind is looked
    at here, where the config is used, and not in `__post_init__`.
    """
    if not isinstance(config, kind):
        wanted = f"{kind.__module__.rpartition('.')[2]}.{kind.__name__}"
        got = _name(config) if dataclasses.is_dataclass(config) else repr(config)
        raise TypeError(f"{name} must be a {wanted}, got {got}")
    for field in dataclasses.fields(kind):
        value = getattr(config, field.name)
        if field.type == "Scalar":
            if not (_is_number(value) or _is_array_of_numbers(value)):
                raise TypeError(f"{_name(config)}: {field.name} must be a number, got {_describe(value)}")
            if np.shape(value) != ():
                raise ValueError(
                    f"{_name(config)}: {field.name} must be a single number, got {_shape(value)} of them: use jax.vmap "
                    "to sweep them"
                )


def _name(config: Any) -> str:
    return f"{type(config).__module__.rpartition('.')[2]}.{type(config).__name__}"


def _is_int(value: Any) -> bool:
    return isinstance(value, int | np.integer) and not isinstance(value, bool)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float | np.integer | np.floating) and not isinstance(value, bool)


def _is_array_of_numbers(value: Any) -> bool:
    return isinstance(value, jax.Array | np.ndarray) and (
        jnp.issubdtype(value.dtype, np.integer) or jnp.issubdtype(value.dtype, np.floating)
    )


# --- arguments --------------------------------------------------------------------------------------------------------


def check_count(value: Any, name: str, least: int = 1) -> None:
    """Raise TypeError for what is no whole number, ValueError for one below `least`."""
    if not _is_int(value):
        raise TypeError(f"{name} must be a whole number, got {_describe(value)}")
    if value < least:
        raise ValueError(f"{name} must be at least {least}, got {value}")


def check_number(value: Any, name: str, low: int | float, high: int | float = math.inf) -> None:
    """Raise TypeError for what is no number, ValueError for one that is not finite or not from `low` to `high`.

    Arrays are let through, as in `check_range`.
    """
    if _is_array_of_numbers(value):
        return
    if not _is_number(value):
        raise TypeError(f"{name} must be a number, got {_describe(value)}")
    _check_bounds(value, name, low, high)


def check_return_range(value: Any, name: str = "return_range") -> None:
    """Raise TypeError for what is no pair, ValueError for one that is not (lowest, highest). Arrays are let through."""
    if not (isinstance(value, tuple | list) and len(value) == 2):
        raise TypeError(f"{name} must be a pair, (lowest, highest), got {_describe(value)}")
    lowest, highest = value
    if _is_number(lowest) and _is_number(highest) and lowest >= highest:
        raise ValueError(f"{name} must be (lowest, highest), got {value}")


def check_kind(value: Any, kind: type, name: str) -> None:
    """Raise TypeError for what is no instance of `kind`."""
    if not isinstance(value, kind):
        raise TypeError(f"{name} must be a {kind.__name__}, got {_describe(value)}")


def check_callable(function: Any, name: str, signature: str) -> None:
    """Raise TypeError for what cannot be called; `signature` says how it would be."""
    if not callable(function):
        raise TypeError(f"{name} must be a function, {signature}, got {_describe(function)}")


def check_key(key: Any, name: str = "key") -> None:
    """Raise TypeError for what is no typed key, ValueError for several keys."""
    if not (isinstance(key, jax.Array) and jnp.issubdtype(key.dtype, jax.dtypes.prng_key)):
        raise TypeError(f"{name} must be a typed key, as of jax.random.key(0), got {_describe(key)}")
    if key.shape != ():
        raise ValueError(f"{name} must be a single key, got {_shape(key)} of them: use jax.vmap to map over keys")


def check_same_shape(**arrays: Any) -> None:
    """Raise ValueError for arrays of different shapes, which would be broadcast without a word."""
    shapes = {name: np.shape(array) for name, array in arrays.items()}
    if len(set(shapes.values())) > 1:
        described = ", ".join(f"{name} {list(shape)}" for name, shape in shapes.items())
        raise ValueError(f"all of {', '.join(shapes)} must have the same shape, got {described}")


def check_sequence(**arrays: Any) -> None:
    """Raise ValueError for arrays that do not all have the one axis of time, of the same length."""
    check_same_shape(**arrays)
    for name, array in arrays.items():
        if np.ndim(array) != 1:
            raise ValueError(f"{name} must have one axis, of time, got {_shape(array)}: use jax.vmap for more")


def check_dtype(array: Any, name: str, kind: type, words: str) -> None:
    """Raise TypeError for what is no array of `kind`, an abstract NumPy dtype, which `words` name."""
    if not hasattr(array, "dtype") or not jnp.issubdtype(array.dtype, kind):
        raise TypeError(f"{name} must be an array of {words}, got {_describe(array)}")


def check_trajectory(trajectory: Any, name: str = "trajectory", num_axes: int | None = None) -> None:
    """Raise TypeError or ValueError for a trajectory whose fields are not of their kind or do not fit each other.

    num_axes: axes in front of time; None: as many as there are.
    """
    if not isinstance(trajectory, Trajectory):
        raise TypeError(f"{name} must be a Trajectory, got {_describe(trajectory)}")
    for field, kind, words in (
        ("mask", np.bool_, "booleans"),
        ("action", np.integer, "integers"),
        ("reward", np.floating, "floats"),
        ("obs", np.floating, "floats"),
        ("next_obs", np.floating, "floats"),
    ):
        check_dtype(getattr(trajectory, field), f"{name}.{field}", kind, words)
    shape = trajectory.mask.shape
    if len(shape) == 0 or (num_axes is not None and len(shape) != num_axes + 1):
        wanted = "a time axis" if num_axes is None else f"the shape {['[T]', '[N, T]'][num_axes]}"
        raise ValueError(f"{name}.mask must have {wanted}, got {_shape(trajectory.mask)}")
    for field in ("action", "reward"):
        if getattr(trajectory, field).shape != shape:
            got = _shape(getattr(trajectory, field))
            raise ValueError(f"{name}.{field} must have the mask's shape {list(shape)}, got {got}")
    for field in ("obs", "next_obs"):
        array = getattr(trajectory, field)
        if array.shape[:-1] != shape or array.shape != trajectory.obs.shape:
            wanted = f"{list(shape)} of the mask and one axis more, of features, the same in obs and next_obs"
            raise ValueError(f"{name}.{field} must have the shape {wanted}, got {_shape(array)}")


def check_preferences(preferences: Any, name: str = "preferences", num_axes: int | None = 1) -> None:
    """Raise TypeError or ValueError for pairs whose parts are not of their kind or do not fit each other.

    num_axes: axes in front of time, 1 for [N, T]; None: as many as there are.
    """
    if not isinstance(preferences, Preferences):
        raise TypeError(f"{name} must be Preferences, got {_describe(preferences)}")
    chosen, rejected = preferences.chosen, preferences.rejected
    check_trajectory(chosen, f"{name}.chosen", num_axes)
    check_trajectory(rejected, f"{name}.rejected", num_axes)
    if chosen.obs.shape != rejected.obs.shape:
        raise ValueError(
            f"{name}.chosen and {name}.rejected must have the same shape, got observations {_shape(chosen.obs)} and "
            f"{_shape(rejected.obs)}"
        )
    pairs = chosen.mask.shape[:-1]
    for field in ("weight", "prob", "target"):
        array = getattr(preferences, field)
        if field == "target" and array is None:
            continue
        check_dtype(array, f"{name}.{field}", np.floating, "floats")
        if array.shape != pairs:
            raise ValueError(f"{name}.{field} must have a number for every pair, {list(pairs)}, got {_shape(array)}")
    if 0 in pairs:
        raise ValueError(f"{name} must hold at least one pair, got none")


def _shape(array: Any) -> str:
    return str(list(np.shape(array)))


def _describe(value: Any) -> str:
    """An array by its dtype and shape, a number or a word as it is, anything else by its type."""
    if hasattr(value, "dtype") and hasattr(value, "shape"):
        return f"{value.dtype}{_shape(value)}"
    return repr(value) if isinstance(value, int | float | str) or value is None else f"a {type(value).__name__}"
