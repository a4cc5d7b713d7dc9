"""Stages: pure functions of one seed, run on many seeds, each computed once.

`Stages.run` traces a stage and returns a `Lazy` result at once. Its program compiles in the background, and a thread
runs the stages in their order, while the caller goes on to the next ones. A result in the memo is not computed.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import os
import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import jax
import numpy as np
from jax.stages import Compiled, Lowered
from rich.console import Console

from experiments.harness.devices import over_runs, padded_size
from experiments.harness.memo import Memo, digest, environment
from experiments.harness.progress import Done, Progress, mean_return

RECENT = 600_000_000
"""Bytes of results that stay in memory for a later run with the same stages."""


@dataclasses.dataclass
class StageTime:
    """Seconds of this run that went into all calls of a stage. `kept`: calls whose result was in the memo."""

    compile_s: float = 0.0
    """Tracing, and waiting for the compiled program."""
    run_s: float = 0.0
    kept: int = 0


@dataclasses.dataclass
class Program:
    """A stage's program: lowered, and compiled when it is needed."""

    lowered: Lowered
    like: Any
    """Shapes of its results, all runs on the leading axis."""
    key: str
    compiled: Future[Compiled] | None = None


class Lazy:
    """The result of a stage, NumPy arrays with seeds on the leading axis. It is there when `value` returns."""

    def __init__(self, key: str, like: Any, compute: Callable[[], Any]):
        self.key, self.like = key, like
        self._compute: Callable[[], Any] | None = compute
        self._lock, self._value = threading.Lock(), None

    @property
    def value(self) -> Any:
        """The result: found, computed, or awaited."""
        with self._lock:
            if self._compute is not None:
                self._value, self._compute = self._compute(), None
        return self._value


@dataclasses.dataclass(frozen=True)
class Call:
    """One call of a stage: what its result depends on, and how it is reported."""

    name: str
    title: str
    key: str
    program: Program
    config: Any
    inputs: tuple
    num_seeds: int
    variants: np.ndarray | None
    num_padded: int
    num_updates: int | None

    @property
    def num_runs(self) -> int:
        """Seeds, times variants."""
        return self.num_seeds * (1 if self.variants is None else len(self.variants))


class Stages:
    """Run stages in their order; keep their programs, results and times."""

    def __init__(self, memo: Memo, progress: Progress | None = None):
        self.memo = memo
        self.follow(progress or Progress(Console(quiet=True)))
        self._programs: dict[Any, Program] = {}
        self._recent: OrderedDict[str, Lazy] = OrderedDict()
        self._compiler = ThreadPoolExecutor(max(1, len(os.sched_getaffinity(0)) // 2))
        self._runner, self._writer = ThreadPoolExecutor(1), ThreadPoolExecutor(1)
        self._writes: list[Future] = []

    def __enter__(self) -> Stages:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        for pool in (self._runner, self._compiler, self._writer):
            pool.shutdown(cancel_futures=kind is not None)
        if kind is None:
            for write in self._writes:
                write.result()
            self.memo.prune()

    def follow(self, progress: Progress) -> None:
        """Report to `progress` from now on, and count times from zero."""
        self.progress, self.times = progress, dict[str, StageTime]()

    def run(
        self,
        name: str,
        function: Callable,
        config: Any,
        *inputs: Any,
        lanes: int = 64,
        variants: np.ndarray | None = None,
        detail: str = "",
    ) -> Lazy:
        """Map `function(config, *inputs)` of one seed over the leading axis of `inputs`, arrays or stages' results.

        With `variants` [V], `function(config, *inputs, variant)` runs on each seed with each of them; results are
        [S, V, ...]. The floats of `config` are arguments of the program: another value does not compile it again. Runs
        are padded with copies of the first ones to a number that the devices share evenly.
        """
        start = time.perf_counter()
        config = jax.tree.map(np.float32, config)
        shapes = jax.tree.map(_like, inputs)
        num_seeds = jax.tree.leaves(shapes)[0].shape[0]
        num_padded = padded_size(num_seeds * (1 if variants is None else len(variants)), lanes)
        per_run = shapes if variants is None else (*shapes, jax.ShapeDtypeStruct((num_seeds,), variants.dtype))
        program = self._program(function, config, per_run, num_padded, lanes)
        parts = [program.key, digest((config, variants)), str(num_seeds)]
        parts += [each.key if isinstance(each, Lazy) else digest(each) for each in jax.tree.leaves(inputs)]
        key = hashlib.sha256(" ".join(parts).encode()).hexdigest()
        self.times.setdefault(name, StageTime()).compile_s += time.perf_counter() - start
        if key in self._recent:
            self.times[name].kept += 1
            return self._recent[key]
        num_updates = getattr(config, "num_updates", None)
        title = f"{name} {detail}".strip()
        call = Call(name, title, key, program, config, inputs, num_seeds, variants, num_padded, num_updates)
        leading = (num_seeds,) if variants is None else (num_seeds, len(variants))
        like = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct((*leading, *leaf.shape[1:]), leaf.dtype), program.like)
        lazy = Lazy(key, like, functools.partial(self._result, call, like))
        self._recent[key] = lazy
        self.progress.plan()
        if not self.memo.has(name, key):
            self._compile(program)
            self._runner.submit(lambda: lazy.value)
        return lazy

    def _program(self, function: Callable, config: Any, shapes: Any, num_padded: int, lanes: int) -> Program:
        leaves, structure = jax.tree.flatten((config, shapes))
        identity = _identity(function), structure, tuple((leaf.shape, leaf.dtype) for leaf in leaves), num_padded, lanes
        if identity not in self._programs:
            args = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct((num_padded, *leaf.shape[1:]), leaf.dtype), shapes)
            traced = jax.jit(over_runs(function, num_padded, lanes)).trace(config, args)
            lowered, like = traced.lower(), traced.out_info
            # The program's text stands for the function, its static arguments, the code and the libraries' versions.
            parts = lowered.as_text(), str(jax.tree.structure(like)), environment()
            key = hashlib.sha256("\n".join(parts).encode()).hexdigest()
            self._programs[identity] = Program(lowered, like, key)
        return self._programs[identity]

    def _compile(self, program: Program) -> Future[Compiled]:
        if program.compiled is None:
            program.compiled = self._compiler.submit(program.lowered.compile)
        return program.compiled

    def _result(self, call: Call, like: Any) -> Any:
        """Find or compute a result, report it, and keep it."""
        times, start = self.times[call.name], time.perf_counter()
        self.progress.start(call.title, call.num_updates)
        result = self.memo.load(call.name, call.key, like)
        kept = result is not None
        compile_s = run_s = 0.0
        if not kept:
            inputs = jax.tree.map(lambda each: each.value if isinstance(each, Lazy) else each, call.inputs)
            start = time.perf_counter()
            compiled = self._compile(call.program).result()
            compile_s = time.perf_counter() - start
            result = _execute(compiled, call, inputs)
            run_s = time.perf_counter() - start - compile_s
            self._writes.append(self._writer.submit(self.memo.save, call.name, call.key, result))
        times.compile_s += compile_s
        times.run_s += run_s
        times.kept += kept
        returned = mean_return(result)
        self.progress.done(Done(call.title, call.num_runs, call.num_updates, returned, compile_s, run_s, kept))
        self._forget()
        return result

    def _forget(self) -> None:
        """Drop the oldest results beyond what may stay in memory. Whoever uses one still holds it."""
        sizes = {key: _num_bytes(lazy.like) for key, lazy in list(self._recent.items())}  # run() adds to it meanwhile
        while len(sizes) > 1 and sum(sizes.values()) > RECENT:
            oldest = next(iter(sizes))
            del sizes[oldest]
            self._recent.pop(oldest, None)


def _execute(compiled: Compiled, call: Call, inputs: tuple) -> Any:
    """Run a program on padded inputs; return its results without the padding."""
    if call.variants is None:
        args: tuple = inputs
    else:
        repeated = jax.tree.map(functools.partial(_repeat, len(call.variants)), inputs)
        args = *repeated, np.repeat(call.variants, call.num_seeds)
    if call.num_padded > call.num_runs:
        args = jax.tree.map(lambda leaf: np.take(leaf, np.arange(call.num_padded), axis=0, mode="wrap"), args)
    result = jax.block_until_ready(compiled(call.config, args))
    result = jax.tree.map(lambda leaf: np.asarray(leaf)[: call.num_runs], result)
    if call.variants is None:
        return result
    by_variant = len(call.variants), call.num_seeds
    return jax.tree.map(lambda leaf: leaf.reshape(*by_variant, *leaf.shape[1:]).swapaxes(0, 1), result)


def _repeat(times: int, leaf: np.ndarray) -> np.ndarray:
    """[S, ...] -> [times * S, ...]. For one seed this is a view: image observations are too large for copies."""
    return np.broadcast_to(leaf, (times, *leaf.shape)).reshape(-1, *leaf.shape[1:])


def _like(value: Any) -> Any:
    """Shapes and dtypes of an array or of another stage's result."""
    if isinstance(value, Lazy):
        return value.like
    return jax.ShapeDtypeStruct(np.shape(value), np.asarray(value).dtype)


def _num_bytes(like: Any) -> int:
    return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(like))


def _identity(function: Any) -> Any:
    """What tells functions apart within this process: a partial by its parts, which need not be hashable."""
    if isinstance(function, functools.partial):
        return _identity(function.func), repr(function.args), repr(function.keywords)
    return function
