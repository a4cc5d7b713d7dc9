"""Settings of the benchmark, and the seconds of functions that run in turns."""

from __future__ import annotations

import dataclasses
import functools
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import jax

from experiments.harness.errors import UsageError

Row = dict[str, Any]
Section = Literal["rollouts", "trainers", "experiments", "memory", "devices"]


@dataclasses.dataclass(frozen=True)
class Settings:
    """What is measured."""

    sections: tuple[Section, ...] = ("rollouts", "trainers", "experiments", "memory", "devices")
    """Parts of the table."""
    num_envs: tuple[int, ...] = (1, 16, 256, 2048)
    """Environments side by side in a rollout."""
    num_seeds: tuple[int, ...] = (1, 3, 32, 128)
    """Seeds in one call of a trainer."""
    memory_seeds: tuple[int, ...] = (100, 1000)
    """Seeds of the runs whose peak memory is compared."""
    repeats: int = 3
    """Repeats of every measurement; the median counts."""
    out: Path = Path("results/bench")
    """Folder for summary.json and the figure."""


def check_numbers(settings: Any) -> None:
    """Check that no list is empty, and that every number is at least 1."""
    for name, value in vars(settings).items():
        flag, values = name.replace("_", "-"), value if isinstance(value, tuple) else (value,)
        if not values:
            raise UsageError(f"--{flag} needs at least one value")
        for number in values:
            if isinstance(number, int) and number < 1:
                raise UsageError(f"--{flag} must be at least 1, got {number}")


def compiled(function: Callable, *args: Any) -> tuple[Callable[[], Any], float]:
    """Return a call of the compiled function on `args`, and the seconds of tracing and compiling it."""
    start = time.perf_counter()
    program = jax.jit(function).lower(*args).compile()
    return functools.partial(program, *args), time.perf_counter() - start


def in_turns(repeats: int, *functions: Callable[[], Any]) -> list[list[float]]:
    """Return the seconds of each function's calls. They run in turns, after one call of each that does not count."""
    seconds: list[list[float]] = [[] for _ in functions]
    for turn in range(1 + repeats):
        for function, spent in zip(functions, seconds, strict=True):
            start = time.perf_counter()
            jax.block_until_ready(function())
            if turn:
                spent.append(time.perf_counter() - start)
    return seconds
