"""Running a pure function of one seed on many seeds: vmapped, sharded over devices, compiled once and timed."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import math
import os
import time
from collections.abc import Callable, Hashable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import AxisType, PartitionSpec
from jax.stages import Compiled
from rich.console import Console

CACHE = Path(__file__).parents[1] / ".cache" / "jax"
"""Where compiled programs are kept between runs."""


def set_up_jax(num_cpu_devices: int) -> None:
    """Before JAX is first used: one CPU device per core, and compiled programs kept on disk."""
    jax.config.update("jax_num_cpu_devices", num_cpu_devices or len(os.sched_getaffinity(0)))
    jax.config.update("jax_compilation_cache_dir", os.environ.get("JAX_COMPILATION_CACHE_DIR", str(CACHE)))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)


def join_processes(coordinator: str, num_processes: int, process_id: int) -> None:
    """Make this process one of several that share the seeds; before JAX is first used.

    Without a coordinator, JAX asks the launcher that started the processes (Slurm, Open MPI, a TPU pod).
    """
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    jax.distributed.initialize(coordinator or None, num_processes or None, process_id if coordinator else None)


def is_first() -> bool:
    """Whether this process is the one that writes."""
    return jax.process_index() == 0


def share(seeds: np.ndarray, num_processes: int, process_id: int) -> np.ndarray:
    """The seeds of one process: all get equally many, and what is missing to that is filled up from the front."""
    num_each = math.ceil(len(seeds) / num_processes)
    return np.resize(seeds, num_each * num_processes)[process_id * num_each :][:num_each]


def gather(results: Any, num_seeds: int) -> Any:
    """Results of all processes' seeds, in the order of the seeds."""
    if jax.process_count() == 1:
        return results
    return jax.tree.map(lambda leaf: leaf[:num_seeds], multihost_utils.process_allgather(results, tiled=True))


def over_runs(function: Callable, num_runs: int, lanes: int) -> Callable:
    """`function(shared, *args)` of one run, mapped over a leading axis of `num_runs` in `args`.

    That axis, a multiple of the number of this process's devices, is sharded over all of them. Each takes `lanes`
    runs at a time, side by side: enough to make a vector of a small network's work, few enough to stay in its cache.
    """
    mesh = jax.make_mesh(
        (jax.local_device_count(),), ("runs",), axis_types=(AxisType.Auto,), devices=jax.local_devices()
    )
    per_device = num_runs // jax.local_device_count()

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
    per_device = math.ceil(num_runs / jax.local_device_count())
    if per_device > lanes:
        per_device = math.ceil(per_device / lanes) * lanes
    return per_device * jax.local_device_count()


@dataclasses.dataclass
class StageTime:
    """Seconds that a run spent on all calls of a stage: on tracing it and waiting for its program, and on running it.

    Compilation behind an earlier stage's back costs no time of its own and is not counted.
    """

    compile_s: float = 0.0
    run_s: float = 0.0


class Stages:
    """Runs stages, keeps their compiled programs and their times, and says on the terminal what is going on."""

    def __init__(self, console: Console):
        self.console = console
        self.times: dict[str, StageTime] = {}
        self._programs: dict[Any, tuple[Future[Compiled], Any]] = {}
        self._compilers = ThreadPoolExecutor(max_workers=max(1, len(os.sched_getaffinity(0)) // 2))
        self._rehearsing = False

    def rehearse(self, pipeline: Callable[[], Any]) -> None:
        """Go through a pipeline without computing: every stage's program starts to compile in the background.

        A stage's results are zeros of the right shapes meanwhile. So the programs of later stages compile while the
        earlier ones compile and run.
        """
        self._rehearsing = True
        try:
            pipeline()
        finally:
            self._rehearsing = False

    def run(
        self,
        name: str,
        function: Callable,
        shared: Any,
        *args: Any,
        lanes: int = 64,
        detail: str = "",
        program: Hashable = None,
    ) -> Any:
        """Map `function(shared, *args)` over the leading axis of `args`; returns its results as NumPy arrays.

        `shared` holds hyperparameters: they are arguments of the program, not part of it, so a change of them does
        not compile it anew. Runs are padded with copies of the first ones up to what the devices share evenly; the
        copies' results are dropped. A stage run again with the same `program` (by default, name and detail) and shapes
        reuses its program.
        """
        num_runs = jax.tree.leaves(args)[0].shape[0]
        num_padded = padded_size(num_runs, lanes)
        shared = jax.tree.map(np.float32, shared)
        times = self.times.setdefault(name, StageTime())
        start = time.perf_counter()
        future, results = self._program(program or (name, detail), function, shared, args, num_padded, lanes)
        if self._rehearsing:
            times.compile_s += time.perf_counter() - start
            return jax.tree.map(lambda leaf: np.broadcast_to(leaf.dtype.type(), (num_runs, *leaf.shape[1:])), results)
        with self._announced(f"{name} {detail}".strip(), num_runs):
            compiled = future.result()
            ready = time.perf_counter()
            index = np.arange(num_padded) % num_runs
            args = jax.tree.map(lambda leaf: np.asarray(leaf)[index], args)
            result = jax.block_until_ready(compiled(shared, args))
            result = jax.tree.map(lambda leaf: np.asarray(leaf)[:num_runs], result)
            times.compile_s += ready - start
            times.run_s += time.perf_counter() - ready
        return result

    def _program(
        self, program: Hashable, function: Callable, shared: Any, args: Any, num_padded: int, lanes: int
    ) -> tuple[Future[Compiled], Any]:
        """(the program, compiled or about to be; shapes of its results)."""
        shapes = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct((num_padded, *leaf.shape[1:]), leaf.dtype), args)
        key = program, tuple(jax.tree.leaves(shapes))
        if key not in self._programs:
            traced = jax.jit(over_runs(function, num_padded, lanes)).trace(shared, shapes)
            self._programs[key] = self._compilers.submit(lambda: traced.lower().compile()), traced.out_info
        return self._programs[key]

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
