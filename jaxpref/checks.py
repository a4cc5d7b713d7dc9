"""What a config may hold: a value out of range is named when the config is made."""

from __future__ import annotations

import math
from typing import Any

import numpy as np


def check_range(config: Any, low: int | float, high: int | float, *names: str) -> None:
    """Raise ValueError for a field of `config` that is not a finite number from `low` to `high`.

    Arrays are let through: a hyperparameter that is swept or traced has no one value to look at.
    """
    for name in names:
        value = getattr(config, name)
        if isinstance(value, int | float | np.number) and not (math.isfinite(value) and low <= value <= high):
            wanted = f"at least {low:g}" if high == math.inf else f"between {low:g} and {high:g}"
            raise ValueError(f"{_name(config)}: {name} must be {wanted}, got {value}")


def check_choice(config: Any, name: str, choices: tuple[str, ...]) -> None:
    """Raise ValueError for a field of `config` that is none of `choices`."""
    if getattr(config, name) not in choices:
        raise ValueError(f"{_name(config)}: {name} must be one of {choices}, got {getattr(config, name)!r}")


def check_schedule(config: Any) -> None:
    """Raise ValueError unless `config.eval_every` divides `config.num_updates`, both at least 1."""
    num_updates, eval_every = config.num_updates, config.eval_every
    if num_updates < 1 or eval_every < 1 or num_updates % eval_every:
        raise ValueError(
            f"{_name(config)}: num_updates must be a multiple of eval_every, both at least 1; "
            f"got {num_updates} and {eval_every}"
        )


def _name(config: Any) -> str:
    return f"{type(config).__module__.rpartition('.')[2]}.{type(config).__name__}"
