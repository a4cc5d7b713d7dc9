"""Compiled programs of stages, kept on disk under the hash of all that they are made from.

A program that is there is neither traced nor compiled again. JAX's own cache finds a program only after tracing, which
often takes longer than the program itself.
"""

import contextlib
import dataclasses
import functools
import hashlib
import io
import os
import pickle
import platform
import types
from collections.abc import Callable
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import jax
from jax.experimental import serialize_executable
from jax.stages import Compiled, Lowered

import experiments
import jaxpref
from experiments.harness.devices import devices_for, over_runs, runs_sharding
from experiments.harness.memo import Memo

LIBRARIES = {"builtins", "functools", "copyreg", "numpy", "jax", "jaxlib", "flax", "gymnax", "jaxpref", "experiments"}
"""Packages whose functions and classes may be in a kept program: their code or version is part of the hash."""
QUICK: Any = {"xla_cpu_use_fusion_emitters": False, "xla_backend_optimization_level": 1}
"""XLA's options for a program that is not optimised. On CPUs it compiles in less than half the time. Rollouts run as
fast as with the defaults, PPO a quarter slower, and sums over many pairs 4 times slower."""
LOADED = 60
"""Programs in memory. Linux allows a process 65,530 mappings, and a program has hundreds. Others are loaded again."""


@dataclasses.dataclass
class Program:
    """A stage's program, compiled when it is needed.

    key:   the hash of its text and of what decides about rounding.
    like:  shapes of its results, with all runs on the first axis.
    """

    key: str
    like: Any
    num_runs: int
    compile: Callable[[], Compiled]
    forget: Callable[[], None]  # clears the caches that hold what is compiled
    compiled: Future[Compiled] | None = None


def fingerprint(*parts: Any) -> tuple[Any, bool]:
    """Return the hash of what a program is traced from, and whether it holds beyond this process.

    It does not hold if a function or a class is outside of LIBRARIES, because its code may change. If a part cannot be
    pickled, the hash is an object that equals no other.
    """
    file = io.BytesIO()
    pickler = _Pickler(file)
    pickler.fast = True  # the bytes do not depend on which equal objects are the same object
    try:
        pickler.dump(parts)
    except (pickle.PicklingError, TypeError, AttributeError):
        return object(), False
    return hashlib.sha256(file.getvalue() + _code() + environment().encode()).hexdigest(), pickler.lasting


class _Pickler(pickle.Pickler):
    lasting = True

    def reducer_override(self, part: Any) -> Any:
        if isinstance(part, type | types.FunctionType) and part.__module__.partition(".")[0] not in LIBRARIES:
            self.lasting = False
        return NotImplemented


@functools.cache
def _code() -> bytes:
    """Return the hash of this project's code, and of the versions of Python and of all installed packages."""
    hasher = hashlib.sha256(platform.python_version().encode())
    for package in (jaxpref, experiments):
        for path in sorted(Path(str(package.__file__)).parent.rglob("*.py")):
            hasher.update(path.read_bytes())
    for path in sorted(Path(jax.__file__).parents[1].glob("*.dist-info")):
        hasher.update(path.name.encode())
    return hasher.digest()


@functools.cache
def environment() -> str:
    """Describe what decides about rounding beside the program: jaxlib's version, processor, devices, JAX's settings."""
    devices = [device.device_kind for device in jax.local_devices()]
    variables = {name: os.environ[name] for name in sorted(os.environ) if name.startswith(("JAX_", "XLA_"))}
    variables.pop("JAX_COMPILATION_CACHE_DIR", None)
    return f"{jax.lib.__version__} {_processor()} {devices} {variables}"


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line for line in lines if line.startswith(("flags", "Features")))
    except (OSError, StopIteration):
        return f"{platform.machine()} {platform.processor()}"


class Programs:
    """The programs of this process, and those that earlier ones left in the memo.

    The memo has two files for each: what a fingerprint was traced to, and what that was compiled to. After a change of
    code a stage is traced again, but compiled again only where its program has changed.
    """

    def __init__(self, memo: Memo, most_devices: int | None = None):
        self.memo, self.most_devices, self.loads = memo, most_devices, True
        self._found: dict[Any, Program] = {}

    def find(
        self, name: str, function: Callable, config: Any, shapes: Any, num_runs: int, lanes: int, optimise: bool
    ) -> Program:
        """Return the program of `function(config, *inputs)` mapped over `num_runs` runs."""
        quick = not (optimise or jax.config.read("jax_disable_most_optimizations")) and jax.default_backend() == "cpu"
        options = QUICK if quick else None
        # The values of config's floats are arguments of the program.
        config = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), config)
        args = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct((num_runs, *leaf.shape[1:]), leaf.dtype), shapes)
        identity, lasting = fingerprint(function, config, args, lanes, options, self.most_devices)
        if identity not in self._found:
            function = over_runs(function, num_runs, lanes, self.most_devices)
            # Without a sharding of its own, an argument that the function ignores would go to all devices.
            mapped: Any = jax.jit(function, in_shardings=(None, runs_sharding(num_runs, self.most_devices)))
            trace = functools.cache(functools.partial(_trace, mapped, config, args, options))
            traced = self.memo.read(name, identity, pickle.loads, "trace") if lasting else None
            if traced is None:
                traced = trace()[:2]
                if lasting:
                    self.memo.write(name, identity, pickle.dumps(traced), "trace")
            key, like = traced
            compile_it = functools.partial(self._compile, name, key, num_runs, options, lambda: trace()[2])

            def forget() -> None:
                trace.cache_clear()
                mapped.clear_cache()

            self._found[identity] = Program(key, like, num_runs, compile_it, forget)
        program = self._found[identity] = self._found.pop(identity)  # the last one used comes last
        for old in [*self._found.values()][:-LOADED]:
            if old.compiled is not None:
                old.compiled = None
                old.forget()
        return program

    def _compile(self, name: str, key: str, num_runs: int, options: Any, lower: Callable[[], Lowered]) -> Compiled:
        """Load a compiled program, or compile and keep it."""
        devices = devices_for(num_runs, self.most_devices)
        place = hashlib.sha256(f"{key} {[device.id for device in devices]}".encode()).hexdigest()
        if self.loads and (kept := self.memo.read(name, place, pickle.loads, "program")) is not None:
            serialised, in_tree, out_tree = kept
            try:
                return serialize_executable.deserialize_and_load(
                    serialised, in_tree, out_tree, execution_devices=devices
                )
            except jax.errors.JaxRuntimeError as error:
                self.loads = False
                self.memo.warn(f"compiled programs cannot be loaded here, so every run compiles them: {error}")
        compiled = lower().compile(options)
        with contextlib.suppress(NotImplementedError):  # of a program with constants of its own
            self.memo.write(name, place, pickle.dumps(serialize_executable.serialize(compiled)), "program")
        return compiled


def _trace(mapped: Any, config: Any, args: Any, options: Any) -> tuple[str, Any, Lowered]:
    traced = mapped.trace(config, args)
    lowered = traced.lower()
    like = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), traced.out_info)
    # The program's text stands for the function, its static arguments, the code and the libraries' versions.
    parts = lowered.as_text(), str(lowered.in_avals), str(like), environment(), str(options)
    return hashlib.sha256("\n".join(parts).encode()).hexdigest(), like, lowered
