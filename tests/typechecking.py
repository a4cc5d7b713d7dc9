"""The type checker that the import hook of conftest.py puts on every function of jaxpref."""

import typing
from collections.abc import Callable

import beartype


def check(function: Callable) -> Callable:
    """Beartype, except on constructors.

    flax runs a dataclass's constructor whenever JAX rebuilds a pytree, with None, axis numbers, shapes or NumPy arrays
    as leaves: the annotations of fields describe arrays in use, not every tree of that structure.
    """
    if function.__name__ == "__init__":
        return function
    for hint in getattr(function, "__annotations__", {}).values():
        if getattr(hint, "_is_protocol", False):
            typing.runtime_checkable(hint)  # beartype wants `isinstance`; it then looks for __call__
    return beartype.beartype(function)
