"""Checks of what a user passes: one sentence that names the argument, before anything is computed.

Checks look at shapes, dtypes and Python values, never at the values of arrays. So they cost time when a function is
traced, and none when it runs. A wrong kind raises TypeError, a wrong shape or range ValueError.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from jaxpref.types import Preferences, Trajectory

LARGEST = float(np.finfo(np.float32).max)
"""Larger numbers become infinite as float32."""


def setting(
    default: Any, *, low: int | float = -math.inf, high: int | float = math.inf, choices: Sequence[str] = ()
) -> Any:
    """Declare a field of a Config with its range, or with its choices.

    A float is a leaf, so that `vmap` can sweep it. Everything else is static. `check_config` does the checks.
    """
    metadata = {"low": low, "high": high, "choices": tuple(choices)}
    return struct.field(pytree_node=isinstance(default, float), default=default, metadata=metadata)


def problems(config: Any) -> Iterator[tuple[str, str]]:
    """Yield (field name, what is wrong with its value), such as ("beta", "must be at least 0, got -1").

    A Config may have a method `problems` of the same form, for rules that concern several fields. It is called where
    each field alone is right.
    """
    found = False
    for field in dataclasses.fields(config):
        problem = _problem(field, getattr(config, field.name))
        if problem is not None:
            found = True
            yield field.name, problem
    if not found and hasattr(config, "problems"):
        yield from config.problems()


def check_config(config: Any, kind: type, name: str = "config") -> None:
    """Check that `config` is of this kind, and each of its fields is in its range.

    A trainer calls this, and `__post_init__` does not: jax builds configs whose leaves are tracers or axis numbers.
    """
    if not isinstance(config, kind):
        got = _name(type(config)) if dataclasses.is_dataclass(config) else _describe(config)
        raise TypeError(f"{name} must be a {_name(kind)}, got {got}")
    for field, problem in problems(config):
        raise ValueError(f"{_name(kind)}: {field} {problem}")


def _problem(field: dataclasses.Field, value: Any) -> str | None:
    choices = field.metadata.get("choices", ())
    if choices and value not in choices and (field.type == "str" or not callable(value)):
        return f"must be one of {', '.join(choices)}, got {value!r}"
    if field.type == "bool" and not isinstance(value, bool | np.bool_):
        return f"must be True or False, got {value!r}"
    if field.type == "bool | None" and not (value is None or isinstance(value, bool | np.bool_)):
        return f"must be True, False or None, got {value!r}"
    if field.type == "int" and not _is_int(value):
        return f"must be a whole number, got {_describe(value)}"
    if field.type == "Scalar" and not (_is_number(value) or _is_array_of_numbers(value)):
        return f"must be a number, got {_describe(value)}"
    if field.type == "Scalar" and np.shape(value) != ():
        return f"must be one number, got {list(np.shape(value))} of them: use jax.vmap to sweep them"
    return _out_of_range(value, field.metadata.get("low", -math.inf), field.metadata.get("high", math.inf))


def _out_of_range(value: Any, low: int | float, high: int | float) -> str | None:
    if not _is_number(value) or max(low, -LARGEST) <= value <= min(high, LARGEST):
        return None
    if not math.isfinite(value) or abs(value) > LARGEST:
        return f"must be a finite float32, got {value}"
    return (
        f"must be between {low:g} and {high:g}, got {value}"
        if high < math.inf
        else f"must be at least {low:g}, got {value}"
    )


def _name(kind: type) -> str:
    return f"{kind.__module__.rpartition('.')[2]}.{kind.__name__}"


def _is_int(value: Any) -> bool:
    return isinstance(value, int | np.integer) and not isinstance(value, bool)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float | np.integer | np.floating) and not isinstance(value, bool)


def _is_array_of_numbers(value: Any) -> bool:
    return isinstance(value, jax.Array | np.ndarray) and jnp.issubdtype(value.dtype, np.number)


def check_count(value: Any, name: str, least: int = 1) -> None:
    """Check that `value` is a whole number of at least `least`."""
    if not _is_int(value):
        raise TypeError(f"{name} must be a whole number, got {_describe(value)}")
    if value < least:
        raise ValueError(f"{name} must be at least {least}, got {value}")


def check_number(value: Any, name: str, low: int | float, high: int | float = math.inf) -> None:
    """Check that `value` is a number from `low` to `high`. An array of numbers passes, whatever its values."""
    if not (_is_number(value) or _is_array_of_numbers(value)):
        raise TypeError(f"{name} must be a number, got {_describe(value)}")
    problem = _out_of_range(value, low, high)
    if problem is not None:
        raise ValueError(f"{name} {problem}")


def check_return_range(value: Any, name: str = "return_range") -> None:
    """Check that `value` is a pair (lowest, highest). Arrays pass, whatever their values."""
    if not (isinstance(value, tuple | list) and len(value) == 2):
        raise TypeError(f"{name} must be a pair, (lowest, highest), got {_describe(value)}")
    lowest, highest = value
    if _is_number(lowest) and _is_number(highest) and lowest >= highest:
        raise ValueError(f"{name} must be (lowest, highest), got {value}")


def check_kind(value: Any, kind: type, name: str) -> None:
    """Check that `value` is an instance of `kind`."""
    if not isinstance(value, kind):
        raise TypeError(f"{name} must be a {kind.__name__}, got {_describe(value)}")


def check_key(key: Any, name: str = "key") -> None:
    """Check that `key` is one typed key."""
    if not (isinstance(key, jax.Array) and jnp.issubdtype(key.dtype, jax.dtypes.prng_key)):
        raise TypeError(f"{name} must be a typed key, such as jax.random.key(0), got {_describe(key)}")
    if key.shape != ():
        raise ValueError(f"{name} must be one key, got {list(key.shape)} of them: use jax.vmap to map over keys")


def check_same_shape(**arrays: Any) -> None:
    """Check that all arrays have the same shape. Others would be broadcast silently."""
    shapes = {name: np.shape(array) for name, array in arrays.items()}
    if len(set(shapes.values())) > 1:
        described = ", ".join(f"{name} {list(shape)}" for name, shape in shapes.items())
        raise ValueError(f"all of {', '.join(shapes)} must have the same shape, got {described}")


def check_sequence(**arrays: Any) -> None:
    """Check that all arrays have one axis, time, of the same length."""
    check_same_shape(**arrays)
    for name, array in arrays.items():
        if np.ndim(array) != 1:
            raise ValueError(f"{name} must have one axis, time, got {list(np.shape(array))}: use jax.vmap for more")


def check_trajectory(trajectory: Any, name: str = "trajectory", num_axes: int | None = None) -> None:
    """Check that a trajectory's fields are of the right dtype and fit each other.

    num_axes: axes before time; None: any number.
    """
    check_kind(trajectory, Trajectory, name)
    shape = np.shape(trajectory.mask)
    if len(shape) == 0 or (num_axes is not None and len(shape) != num_axes + 1):
        expected = "a time axis" if num_axes is None else f"the shape {['[T]', '[N, T]'][num_axes]}"
        raise ValueError(f"{name}.mask must have {expected}, got {list(shape)}")
    obs_shape = np.shape(trajectory.obs)
    if len(obs_shape) != len(shape) + 1:
        raise ValueError(f"{name}.obs must have the mask's axes and one of features, got {list(obs_shape)}")
    kinds = {"mask": np.bool_, "action": np.integer, "reward": np.floating, "obs": np.floating, "next_obs": np.floating}
    for field, kind in kinds.items():
        expected_shape = (*shape, obs_shape[-1]) if field in ("obs", "next_obs") else shape
        _check_array(getattr(trajectory, field), f"{name}.{field}", kind, expected_shape)


def check_preferences(preferences: Any, name: str = "preferences", num_axes: int | None = 1) -> None:
    """Check that the parts of pairs are of the right dtype and fit each other.

    num_axes: axes before time, 1 for [N, T]; None: any number.
    """
    check_kind(preferences, Preferences, name)
    chosen, rejected = preferences.chosen, preferences.rejected
    check_trajectory(chosen, f"{name}.chosen", num_axes)
    check_trajectory(rejected, f"{name}.rejected", num_axes)
    check_same_shape(**{f"{name}.chosen": chosen.obs, f"{name}.rejected": rejected.obs})
    pairs = chosen.mask.shape[:-1]
    for field in ("weight", "prob") if preferences.target is None else ("weight", "prob", "target"):
        _check_array(getattr(preferences, field), f"{name}.{field}", np.floating, pairs)
    if 0 in pairs:
        raise ValueError(f"{name} must hold at least one pair, got none")


def _check_array(array: Any, name: str, kind: type, shape: tuple[int, ...]) -> None:
    if not hasattr(array, "dtype") or not jnp.issubdtype(array.dtype, kind):
        words = {np.bool_: "booleans", np.integer: "integers", np.floating: "floats"}[kind]
        raise TypeError(f"{name} must be an array of {words}, got {_describe(array)}")
    if array.shape != shape:
        raise ValueError(f"{name} must have the shape {list(shape)}, got {list(array.shape)}")


def _describe(value: Any) -> str:
    """Describe an array by its dtype and shape, a number or a word by itself, anything else by its type."""
    if hasattr(value, "dtype") and hasattr(value, "shape"):
        return f"{value.dtype}{list(value.shape)}"
    return repr(value) if isinstance(value, int | float | str) or value is None else f"a {type(value).__name__}"
