"""The type checker that the import hook of conftest.py puts on every function of jaxpref."""

from collections.abc import Callable

import beartype


def check(function: Callable) -> Callable:
    """Beartype, except on constructors.

    flax runs a dataclass's constructor whenever JAX rebuilds a pytree, with None, axis numbers, shapes or NumPy arrays
    as leaves: the annotations of fields describe arrays in use, not every tree of that structure.
    """
    if function.__name__ == "__init__":
        return function
    return beartype.beartype(function)
