"""Running a pure function of one seed on many seeds: vmapped, sharded over devices, compiled once and timed."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import math
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, PartitionSpec
from rich.console import Console

CACHE = Path(__file__).parents[1] / ".cache" / "jax"
"""Where compiled programs are kept between runs."""


def set_up_jax(num_cpu_devices: int) -> None:
    """Before JAX is first used: one CPU device per core, and compiled programs kept on disk."""
    jax.config.update("jax_num_cpu_devices", num_cpu_devices or len(os.sched_getaffinity(0)))
    jax.config.update("jax_compilation_cache_dir", str(CACHE))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)


def over_runs(function: Callable, num_runs: int, lanes: int) -> Callable:
    """`function(shared, *args)` of one run, mapped over a leading axis of `num_runs` in `args`.

    That axis, a multiple of the number of devices, is sharded over all of them. Each takes `lanes` runs at a time,
    side by side: enough to make a vector of a small network's work, few enough to stay in its cache.
    """
    mesh = jax.make_mesh((jax.device_count(),), ("runs",), axis_types=(AxisType.Auto,))
    per_device = num_runs // jax.device_count()

    def on_device(shared, args):
        side_by_side = jax.vmap(functools.partial(function, shared))
        if per_device <= lanes:
            return side_by_side(*args)
        grouped = jax.tree.map(lambda leaf: leaf.reshape(-1, lanes, *leaf.shape[1:]), args)
        result = jax.lax.map(lambda group: side_by_side(*group), grouped)
        return jax.tree.map(lambda leaf: leaf.reshape(per_device, *leaf.shape[2:]), result)

    runs, everywhere = PartitionSpec("runs"), PartitionSpec()
    # check_vma would ask the library to mark what varies between devices; nothing is sent between them.
    return jax.shard_map(on_device, mesh=mesh, in_specs=(everywhere, runs), out_specs=runs, check_vma=False)


def padded_size(num_runs: int, lanes: int) -> int:
    """The least multiple of devices (and of lanes, where there are more runs than fit side by side) that holds them."""
    per_device = math.ceil(num_runs / jax.device_count())
    if per_device > lanes:
        per_device = math.ceil(per_device / lanes) * lanes
    return per_device * jax.device_count()


@dataclasses.dataclass
class StageTime:
    """Seconds, over all calls of a stage."""

    compile_s: float = 0.0
    run_s: float = 0.0


class Stages:
    """Runs stages, keeps their compiled programs and their times, and says on the terminal what is going on."""

    def __init__(self, console: Console):
        self.console = console
        self.times: dict[str, StageTime] = {}
        self._programs: dict[Any, Any] = {}

    def run(self, name: str, function: Callable, shared: Any, *args: Any, lanes: int = 64, detail: str = "") -> Any:
        """Map `function(shared, *args)` over the leading axis of `args`; returns its results as NumPy arrays.

        `shared` holds hyperparameters: they are arguments of the program, not part of it, so a change of them does
        not compile it anew. Runs are padded with copies of the first ones up to what the devices share evenly; the
        copies' results are dropped. A stage run again with the same name, detail and shapes reuses its program.
        """
        num_runs = jax.tree.leaves(args)[0].shape[0]
        index = np.arange(padded_size(num_runs, lanes)) % num_runs
        args = jax.tree.map(lambda leaf: np.asarray(leaf)[index], args)
        shapes = tuple((leaf.shape, leaf.dtype) for leaf in jax.tree.leaves(args))
        shared = jax.tree.map(np.float32, shared)
        times = self.times.setdefault(name, StageTime())
        with self._announced(f"{name} {detail}".strip(), num_runs):
            program = self._programs.get((name, detail, shapes))
            start = time.perf_counter()
            if program is None:
                program = jax.jit(over_runs(function, len(index), lanes)).lower(shared, args).compile()
                self._programs[name, detail, shapes] = program
            compiled = time.perf_counter()
            result = jax.tree.map(
                lambda leaf: np.asarray(leaf)[:num_runs], jax.block_until_ready(program(shared, args))
            )
            times.compile_s += compiled - start
            times.run_s += time.perf_counter() - compiled
        return result

    @contextlib.contextmanager
    def _announced(self, title: str, num_runs: int) -> Iterator[None]:
        start = time.perf_counter()
        runs = f"{num_runs} run{'s' if num_runs > 1 else ''}"
        if self.console.is_terminal:
            with self.console.status(f"{title} [dim]({runs})"):
                yield
        else:
            yield
        self.console.print(f"  {title:<24} {runs:>9} {time.perf_counter() - start:7.1f} s", highlight=False)
