"""Checks of what a user passes: one sentence that names the argument, before anything is computed.

Checks look at shapes, dtypes and Python values, never at the values of arrays. So they cost time when a function is
traced, and none when it runs. A wrong class of an argument raises TypeError. A wrong shape, count or field of a config
raises ValueError.
"""

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Any, get_args, get_origin, get_type_hints

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from jaxpref.types import Optimiser, Preferences, Scalar, Trajectory

Number = int | float
LARGEST = float(np.finfo(np.float32).max)
"""Larger numbers become infinite as float32."""


def setting(default: Any, *, low: Number = -math.inf, high: Number = math.inf, choices: Sequence[str] = ()) -> Any:
    """Declare a field of a Config with its range, or with its choices.

    A float is a leaf, so that `vmap` can sweep it. Everything else is static. Each value of a tuple is in the range.
    `check_config` does the checks.
    """
    metadata = {"limits": {"low": low, "high": high, "choices": choices}}
    return struct.field(pytree_node=isinstance(default, float), default=default, metadata=metadata)


def problems(config: Any) -> list[tuple[str, str]]:
    """Return (field name, what is wrong with its value), such as ("beta", "must be at least 0, got -1").

    A Config may have a method `problems` of the same form, for rules that concern several fields. It is called where
    each field alone is right.
    """
    kinds = get_type_hints(type(config))
    found = [
        (each.name, _problem(kinds[each.name], getattr(config, each.name), **each.metadata.get("limits", {})))
        for each in dataclasses.fields(config)
    ]
    return [(name, problem) for name, problem in found if problem] or list(getattr(config, "problems", list)())


def check_config(config: Any, kind: type, name: str = "config") -> None:
    """Check that `config` is of this kind, and each of its fields is in its range.

    A trainer calls this, and `__post_init__` does not: jax builds configs whose leaves are tracers or axis numbers.
    """
    if not isinstance(config, kind):
        got = _name(type(config)) if dataclasses.is_dataclass(config) else _describe(config)
        raise TypeError(f"{name} must be a {_name(kind)}, got {got}")
    for field, problem in problems(config):
        raise ValueError(f"{_name(kind)}: {field} {problem}")


def _name(kind: type) -> str:
    return f"{kind.__module__.rpartition('.')[2]}.{kind.__name__}"


KINDS: dict[Any, tuple[str, Any]] = {
    bool: ("True or False", bool | np.bool_),
    bool | None: ("True, False or None", bool | np.bool_ | None),
    int: ("a whole number", int | np.integer),
    Optimiser | None: ("a function of the learning rate, or None", Callable | None),
    Scalar: ("a number", int | float | np.number | jax.Array | np.ndarray),
}
"""{annotation of a field: (its values in words, their types)}. `_problem` does not take True and False for numbers."""


def _problem(kind: Any, value: Any, low: Number = -math.inf, high: Number = math.inf, choices: Any = ()) -> str | None:
    if get_origin(kind) is tuple:
        found = (_problem(get_args(kind)[0], each, low, high) for each in value)
        return next(filter(None, found), None) if value else "needs at least one value"
    if choices and value not in choices and (kind is str or not callable(value)):
        return f"must be one of {', '.join(choices)}, got {value!r}"
    words, types = KINDS.get(kind, ("", object))
    if not isinstance(value, types) or (kind in (int, Scalar) and isinstance(value, bool)):
        return f"must be {words}, got {_describe(value)}"
    if kind == Scalar and np.shape(value) != ():
        return f"must be one number, got {list(np.shape(value))} of them: use jax.vmap to sweep them"
    is_number = isinstance(value, int | float | np.integer | np.floating) and not isinstance(value, bool)
    if not is_number or max(low, -LARGEST) <= value <= min(high, LARGEST):
        return None
    if not abs(value) <= LARGEST:  # NaN is not below it
        return f"must be a finite float32, got {value}"
    return f"must be {f'at least {low:g}' if high == math.inf else f'between {low:g} and {high:.10g}'}, got {value}"


def check_count(value: Any, name: str) -> None:
    """Check that `value` is a whole number of at least 1."""
    if problem := _problem(int, value, low=1):
        raise ValueError(f"{name} {problem}")


def check_kind(value: Any, kind: type, name: str) -> None:
    """Check that `value` is an instance of `kind`."""
    if not isinstance(value, kind):
        raise TypeError(f"{name} must be a {kind.__name__}, got {_describe(value)}")


def check_key(key: Any) -> None:
    """Check that `key` is one typed key."""
    if not (isinstance(key, jax.Array) and jnp.issubdtype(key.dtype, jax.dtypes.prng_key)):
        raise TypeError(f"key must be a typed key, such as jax.random.key(0), got {_describe(key)}")
    if key.shape != ():
        raise ValueError(f"key must be one key, got {list(key.shape)} of them: use jax.vmap to map over keys")


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
    """Check that a trajectory's fields fit each other. `num_axes` counts the axes before time; None allows any."""
    check_kind(trajectory, Trajectory, name)
    steps, features = np.shape(trajectory.mask), np.shape(trajectory.obs)[-1:]
    if len(steps) == 0 or num_axes not in (None, len(steps) - 1):
        raise ValueError(f"{name}.mask must have the shape [{'N' if num_axes else '...'}, T], got {list(steps)}")
    _check_array(trajectory.mask, f"{name}.mask", np.bool_, steps)
    if jnp.issubdtype(getattr(trajectory.action, "dtype", np.int32), np.floating):
        action_size = max((1, *np.shape(trajectory.action)[len(steps) :]))
        _check_array(trajectory.action, f"{name}.action", np.floating, (*steps, action_size))
    else:
        _check_array(trajectory.action, f"{name}.action", np.integer, steps)
    _check_array(trajectory.reward, f"{name}.reward", np.floating, steps)
    _check_array(trajectory.obs, f"{name}.obs", np.floating, steps + features)
    _check_array(trajectory.next_obs, f"{name}.next_obs", np.floating, steps + features)


def check_preferences(preferences: Any) -> None:
    """Check that the parts of pairs [N, T] are of the right dtype and fit each other."""
    check_kind(preferences, Preferences, "preferences")
    chosen, rejected = preferences.chosen, preferences.rejected
    check_trajectory(chosen, "preferences.chosen", num_axes=1)
    check_trajectory(rejected, "preferences.rejected", num_axes=1)
    check_same_shape(**{"preferences.chosen": chosen.obs, "preferences.rejected": rejected.obs})
    for field in ("weight", "prob", "target"):
        if field != "target" or preferences.target is not None:
            _check_array(getattr(preferences, field), f"preferences.{field}", np.floating, chosen.mask.shape[:1])
    check_count(chosen.mask.shape[0], "the number of preferences")


def _check_array(array: Any, name: str, kind: type, shape: tuple[int, ...]) -> None:
    if not hasattr(array, "dtype") or not jnp.issubdtype(array.dtype, kind):
        raise TypeError(f"{name} must be an array of kind {kind.__name__}, got {_describe(array)}")
    if array.shape != shape:
        raise ValueError(f"{name} must have the shape {list(shape)}, got {list(array.shape)}")


def _describe(value: Any) -> str:
    """Describe an array by its dtype and shape, a number or a word by itself, anything else by its type."""
    if hasattr(value, "dtype") and hasattr(value, "shape"):
        return f"{value.dtype}{list(value.shape)}"
    return repr(value) if isinstance(value, int | float | str) or value is None else f"a {type(value).__name__}"
