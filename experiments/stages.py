"""Running a pure function of one seed on many seeds: vmapped, sharded over devices, compiled once and timed."""

from __future__ import annotations

import dataclasses
import functools
import math
import os
import time
from collections.abc import Callable, Hashable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import AxisType, PartitionSpec
from jax.stages import Compiled, Traced
from rich.console import Console

from experiments import ROOT
from experiments.checkpoints import Checkpoints, describe
from experiments.command import UsageError
from experiments.progress import Done, Progress, mean_return

CACHE = ROOT / ".cache" / "jax"
"""Where compiled programs are kept between runs."""


def set_up_jax(num_cpu_devices: int) -> None:
    """Before JAX is first used: one CPU device per core, and compiled programs kept on disk.

    Raises UsageError for a negative number of devices.
    """
    if num_cpu_devices < 0:
        raise UsageError(f"--devices must not be negative, got {num_cpu_devices}")
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
    # Processes that meet for the first time give up after half a minute: they meet now, before some have more to do.
    multihost_utils.process_allgather(np.zeros(1), tiled=True)


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


def devices_for(num_runs: int) -> list[jax.Device]:
    """As many of this process's devices as there are runs."""
    return jax.local_devices()[:num_runs]


def over_runs(function: Callable, num_runs: int, lanes: int) -> Callable:
    """`function(shared, *args)` of one run, mapped over a leading axis of `num_runs` in `args`.

    That axis, a multiple of the number of devices, is sharded over all of them. Each takes `lanes` runs at a time, side
    by side: enough to make a vector of a small network's work, few enough to stay in its cache.
    """
    devices = devices_for(num_runs)
    mesh = jax.make_mesh((len(devices),), ("runs",), axis_types=(AxisType.Auto,), devices=devices)
    per_device = num_runs // len(devices)

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
    num_devices = len(devices_for(num_runs))
    per_device = math.ceil(num_runs / num_devices)
    if per_device > lanes:
        per_device = math.ceil(per_device / lanes) * lanes
    return per_device * num_devices


def _pad(num_padded: int, leaf: np.ndarray) -> np.ndarray:
    return np.take(leaf, np.arange(num_padded), axis=0, mode="wrap")


@dataclasses.dataclass
class StageTime:
    """Seconds that a run spent on all calls of a stage: on tracing it and waiting for its program, and on running it.

    Compilation behind an earlier stage's back costs no time of its own and is not counted. A result that was kept from
    before, `reused`, counts with the seconds that it took when it was computed.
    """

    compile_s: float = 0.0
    run_s: float = 0.0
    reused: bool = False


@dataclasses.dataclass
class Program:
    """A stage's program: traced, and compiled once it is known to be needed."""

    traced: Traced
    compiled: Future[Compiled] | None = None

    def compile(self, compilers: ThreadPoolExecutor) -> Future[Compiled]:
        """The compiled program, or one that is being compiled."""
        if self.compiled is None:
            self.compiled = compilers.submit(lambda: self.traced.lower().compile())
        return self.compiled

    def zeros(self, num_runs: int) -> Any:
        """Zeros of the shapes that so many runs' results have."""
        return jax.tree.map(
            lambda leaf: np.broadcast_to(leaf.dtype.type(), (num_runs, *leaf.shape[1:])), self.traced.out_info
        )


class Stages:
    """Runs stages, keeps their compiled programs, results and times, and says what is going on."""

    def __init__(self, console: Console, checkpoints: Checkpoints | None = None, progress: Progress | None = None):
        self.checkpoints, self.progress = checkpoints, progress or Progress(console)
        self.times: dict[str, StageTime] = {}
        self._programs: dict[Any, Program] = {}
        self._compilers = ThreadPoolExecutor(max_workers=max(1, len(os.sched_getaffinity(0)) // 2))
        self._rehearsing = False

    def begin(self, number: int, num_batches: int, seeds: np.ndarray) -> None:
        """From now on, stages are those of a batch of seeds: the first has number 1."""
        self.progress.begin(number, num_batches, seeds)
        if self.checkpoints is not None:
            self.checkpoints.begin(str(number), seeds)

    def rehearse(self, pipeline: Callable[[], Any]) -> None:
        """Go through a pipeline without computing: the programs of all stages whose results are not kept start to
        compile in the background.

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
        reuses its program. Where there are checkpoints, a result that is kept there is not computed again.
        """
        title, start = f"{name} {detail}".strip(), time.perf_counter()
        num_runs = jax.tree.leaves(args)[0].shape[0]
        num_padded = padded_size(num_runs, lanes)
        numbers = jax.tree.map(np.float32, shared)
        prepared = self._program(program or (name, detail), function, numbers, args, num_padded, lanes)
        zeros = prepared.zeros(num_runs)
        wanted = self._wanted(title, function, shared, lanes)
        times = self.times.setdefault(name, StageTime())
        if self._rehearsing:
            self._prepare(title, prepared, wanted)
            times.compile_s += time.perf_counter() - start
            return zeros

        def compute() -> tuple[Any, dict[str, float]]:
            compiled = prepared.compile(self._compilers).result()
            ready = time.perf_counter()
            padded = args if num_padded == num_runs else jax.tree.map(functools.partial(_pad, num_padded), args)
            result = jax.block_until_ready(compiled(numbers, padded))
            result = jax.tree.map(lambda leaf: np.asarray(leaf)[:num_runs], result)
            return result, {"compile_s": ready - start, "run_s": time.perf_counter() - ready}

        num_updates = getattr(shared, "num_updates", None)
        self.progress.start(title, num_updates)
        if self.checkpoints is None:
            result, seconds, reused = *compute(), False
        else:
            result, seconds, reused = self.checkpoints.keep(title, wanted, args, zeros, compute)
        self.progress.done(Done(title, num_runs, num_updates, mean_return(result), **seconds, reused=reused))
        times.compile_s += seconds["compile_s"]
        times.run_s += seconds["run_s"]
        times.reused |= reused
        return result

    def log(self, stage: str, metrics: Any, **where: Any) -> None:
        """Write a finished training stage's metrics; axes [S, U]. `where`: which of its runs they are of."""
        if not self._rehearsing:
            self.progress.log(stage, metrics, where)

    def drop(self, title: str) -> None:
        """Do not keep a stage's result any longer."""
        if self.checkpoints is not None:
            self.checkpoints.drop(title)

    def _program(
        self, program: Hashable, function: Callable, shared: Any, args: Any, num_padded: int, lanes: int
    ) -> Program:
        shapes = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct((num_padded, *leaf.shape[1:]), leaf.dtype), args)
        key = program, tuple(jax.tree.leaves(shapes))
        if key not in self._programs:
            self._programs[key] = Program(jax.jit(over_runs(function, num_padded, lanes)).trace(shared, shapes))
        return self._programs[key]

    def _wanted(self, title: str, function: Callable, shared: Any, lanes: int) -> dict[str, Any]:
        """What a kept result must depend on to be used."""
        if self.checkpoints is None:
            return {}
        description = {
            "function": describe(function),
            "hyperparameters": describe(shared),
            "lanes": lanes,
        }
        return self.checkpoints.wanted(title, description)

    def _prepare(self, title: str, program: Program, wanted: dict[str, Any]) -> None:
        if self.checkpoints is not None and self.checkpoints.expects(title, wanted):
            self.progress.plan(title, 0.0)
            return
        program.compile(self._compilers)
        self.progress.plan(title, self.checkpoints.seconds(title) if self.checkpoints is not None else None)
