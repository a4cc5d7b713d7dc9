"""Devices, processes, and a function of one run mapped over many."""

import atexit
import functools
import gc
import math
import os
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from experiments.harness.errors import UsageError


def num_cores() -> int:
    """Return how many cores this process may use. macOS cannot say it: there, return all."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def set_up_jax(num_cpu_devices: int) -> None:
    """Configure JAX before its first use. 0 CPU devices are one for each core."""
    jax.config.update("jax_num_cpu_devices", num_cpu_devices or num_cores())
    # `programs` keeps compiled programs. A program from JAX's own cache could not be written there.
    jax.config.update("jax_enable_compilation_cache", False)
    # Tracing makes many objects. At the usual threshold, Python's garbage collector takes a fifth of its time. Its last
    # round, at the end of the program, takes half a second.
    gc.set_threshold(50_000)
    atexit.register(gc.freeze)


def join_processes(coordinator: str, num_processes: int, process_id: int) -> None:
    """Make this process one of several that share the seeds, before the first use of JAX.

    Without a coordinator, JAX asks the launcher of the processes (Slurm, Open MPI, a TPU pod).
    """
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    try:
        jax.distributed.initialize(coordinator or None, num_processes or None, process_id if coordinator else None)
    except (ValueError, RuntimeError) as error:
        raise UsageError(f"--processes: cannot join the others: {str(error).splitlines()[0]}") from error
    # The first meeting of the processes has a limit of half a minute. They meet now, before their work differs.
    multihost_utils.process_allgather(np.zeros(1), tiled=True)


def share(seeds: np.ndarray, num_processes: int, process_id: int) -> np.ndarray:
    """Return the seeds of one process. All processes get the same number; the last ones repeat the first seeds."""
    num_each = math.ceil(len(seeds) / num_processes)
    return np.resize(seeds, (num_processes, num_each))[process_id]


def gather(results: Any, num_seeds: int) -> Any:
    """Return the results of all processes' seeds, in the order of the seeds."""
    if jax.process_count() == 1:
        return results
    return jax.tree.map(lambda leaf: leaf[:num_seeds], multihost_utils.process_allgather(results, tiled=True))


def over_runs(function: Callable, num_runs: int, lanes: int, most_devices: int | None = None) -> Callable:
    """Map `function(config, *args)` of one run over a leading axis of `num_runs` in `args`.

    That axis, of a `padded_size`, is sharded over the devices. Each device computes up to `lanes` runs at a time:
    enough to make vectors of a small network's work, few enough to stay in its cache.
    """
    sharding = runs_sharding(num_runs, most_devices)
    per_device = num_runs // sharding.num_devices
    num_groups = math.ceil(per_device / lanes)

    def on_device(config, args):
        if num_groups == 1:
            return jax.vmap(functools.partial(function, config))(*args)
        return jax.lax.map(lambda run: function(config, *run), args, batch_size=per_device // num_groups)

    mesh, runs, everywhere = sharding.mesh, sharding.spec, PartitionSpec()
    # check_vma would ask the library to mark what varies between devices. Nothing is sent between them.
    return jax.shard_map(on_device, mesh=mesh, in_specs=(everywhere, runs), out_specs=runs, check_vma=False)


def runs_sharding(num_runs: int, most_devices: int | None = None) -> NamedSharding:
    """Return how the devices share the first axis of runs."""
    devices = devices_for(num_runs, most_devices)
    mesh = jax.make_mesh((len(devices),), ("runs",), axis_types=(AxisType.Auto,), devices=devices)
    return NamedSharding(mesh, PartitionSpec("runs"))


def padded_size(num_runs: int, lanes: int, most_devices: int | None = None) -> int:
    """Return the least number of runs, at least `num_runs`, that the devices share evenly in equal groups of at most
    `lanes`.
    """
    num_devices = len(devices_for(num_runs, most_devices))
    per_device = math.ceil(num_runs / num_devices)
    num_groups = math.ceil(per_device / lanes)
    return math.ceil(per_device / num_groups) * num_groups * num_devices


def devices_for(num_runs: int, most_devices: int | None = None) -> list[jax.Device]:
    """Return the devices that share these runs: as many as there are, or at most `most_devices`."""
    return jax.local_devices()[:most_devices][:num_runs]
