"""Stages: pure functions of one seed, run on many seeds, each computed once.

`Stages.run` traces a stage and returns a `Lazy` result at once. Its program compiles in the background, and a thread
runs the stages in their order, while the caller goes on to the next ones. A result in the memo is not computed.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import math
import os
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import jax
import numpy as np
from jax.stages import Compiled, Lowered
from rich.console import Console

from experiments.harness.devices import over_runs, padded_size
from experiments.harness.memo import LARGEST, Memo, digest, environment, num_bytes
from experiments.harness.progress import Done, Progress, mean_return

RECENT = 600_000_000
"""Bytes of results that stay in memory for a later run with the same stages."""


@dataclasses.dataclass
class StageTime:
    """Seconds of this run in all calls of a stage; `kept` counts the calls whose result was in the memo."""

    compile_s: float = 0.0
    """Tracing, and waiting for the compiled program."""
    run_s: float = 0.0
    kept: int = 0


@dataclasses.dataclass
class Program:
    """A stage's program, compiled when it is needed. `like`: shapes of its results, with all runs on the first axis."""

    lowered: Lowered
    like: Any
    key: str
    num_padded: int
    compiled: Future[Compiled] | None = None


class Lazy:
    """The result of a stage: NumPy arrays with the seeds on the first axis."""

    def __init__(self, key: str, like: Any, prepare: Callable[[], Any], compute: Callable[[], Any]):
        self.key, self.like, self.prepare = key, like, prepare
        self._compute: Callable[[], Any] | None = compute
        self._lock, self._value = threading.Lock(), None

    @property
    def value(self) -> Any:
        """Find, compute or await the result."""
        with self._lock:
            if self._compute is not None:
                self._value, self._compute = self._compute(), None
        return self._value


class Stages:
    """Run stages in their order; keep their programs, results and times."""

    def __init__(self, memo: Memo, progress: Progress | None = None):
        self.memo = memo
        self.follow(progress or Progress(Console(quiet=True)))
        self._programs: dict[Any, Program] = {}
        self._recent: dict[str, Lazy] = {}
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
        self, name: str, function: Callable, config: Any, *inputs: Any, lanes: int = 64, variants: Any = None
    ) -> Lazy:
        """Map `function(config, *inputs)` of one seed over the first axis of `inputs`, arrays or other stages' results.

        With `variants` [V], `function(config, *inputs, variant)` runs on each seed with each of them: [S, V, ...].
        The floats of `config` are arguments of the program, so that another value does not compile it again.
        """
        start, config = time.perf_counter(), jax.tree.map(np.float32, config)
        shapes = jax.tree.map(lambda each: each.like if isinstance(each, Lazy) else _shape(each), inputs)
        axes: tuple[int, ...] = (jax.tree.leaves(shapes)[0].shape[0],)
        if variants is not None:
            shapes, axes = (*shapes, jax.ShapeDtypeStruct(axes, variants.dtype)), (*axes, len(variants))
        program = self._program(function, config, shapes, padded_size(math.prod(axes), lanes), lanes)
        parts = [program.key, digest((config, variants)), str(axes)]
        parts += [each.key if isinstance(each, Lazy) else digest(each) for each in jax.tree.leaves(inputs)]
        key = hashlib.sha256(" ".join(parts).encode()).hexdigest()
        self.times.setdefault(name, StageTime()).compile_s += time.perf_counter() - start
        if key in self._recent:
            self.times[name].kept += 1
            return self._recent[key]

        like = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct((*axes, *leaf.shape[1:]), leaf.dtype), program.like)
        prepare = functools.partial(self._prepare, name, key, program, inputs)
        compute = functools.partial(self._compute, name, key, like, program, (config, inputs, variants, axes))
        lazy = self._recent[key] = Lazy(key, like, prepare, compute)
        self.progress.plan()
        # A result that is too large for the memo may not be needed at all. It waits until another stage asks for it.
        if not self.memo.has(name, key) and num_bytes(like) <= LARGEST:
            prepare()
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
            self._programs[identity] = Program(lowered, like, key, num_padded)
        return self._programs[identity]

    def _prepare(self, name: str, key: str, program: Program, inputs: Any) -> None:
        """Compile in the background what a result takes, if the memo does not have it."""
        if program.compiled is None and not self.memo.has(name, key):
            for each in jax.tree.leaves(inputs):
                if isinstance(each, Lazy):
                    each.prepare()
            program.compiled = self._compiler.submit(program.lowered.compile)

    def _compute(self, name: str, key: str, like: Any, program: Program, call: tuple) -> Any:
        """Find a result in the memo or compute it; report it and keep it."""
        config, inputs, variants, axes = call
        num_updates = getattr(config, "num_updates", None)
        self.progress.start(name, num_updates)
        result, compile_s, run_s = self.memo.load(name, key, like), 0.0, 0.0
        kept = result is not None
        if not kept:
            inputs = jax.tree.map(lambda each: each.value if isinstance(each, Lazy) else each, inputs)
            start = time.perf_counter()
            program.compiled = program.compiled or self._compiler.submit(program.lowered.compile)
            compiled = program.compiled.result()
            compile_s = time.perf_counter() - start
            result = _execute(compiled, config, inputs, variants, axes, program.num_padded)
            run_s = time.perf_counter() - start - compile_s
            self._writes.append(self._writer.submit(self.memo.save, name, key, result))
        times = self.times[name]
        times.compile_s, times.run_s, times.kept = times.compile_s + compile_s, times.run_s + run_s, times.kept + kept
        self.progress.done(Done(name, math.prod(axes), num_updates, mean_return(result), compile_s, run_s, kept))
        self._forget()
        return result

    def _forget(self) -> None:
        """Drop the oldest results beyond what may stay in memory. Whoever uses one still holds it."""
        sizes = {key: num_bytes(lazy.like) for key, lazy in list(self._recent.items())}  # run() adds to it meanwhile
        for key in list(sizes)[:-1]:
            if sum(sizes.values()) > RECENT:
                del sizes[key], self._recent[key]


def _execute(
    compiled: Compiled, config: Any, inputs: Any, variants: Any, axes: tuple[int, ...], num_padded: int
) -> Any:
    """Run a program on all runs, padded with copies of the first ones; return its results without the padding."""
    if variants is not None:
        # [S, ...] -> [V * S, ...]. Of one seed this is a view: image observations are too large for copies.
        def repeat(leaf: np.ndarray) -> np.ndarray:
            return np.broadcast_to(leaf, (len(variants), *leaf.shape)).reshape(-1, *leaf.shape[1:])

        inputs = *jax.tree.map(repeat, inputs), np.repeat(variants, axes[0])
    num_runs = math.prod(axes)
    if num_padded > num_runs:
        inputs = jax.tree.map(lambda leaf: np.take(leaf, np.arange(num_padded), axis=0, mode="wrap"), inputs)
    result = jax.block_until_ready(compiled(config, inputs))
    result = jax.tree.map(lambda leaf: np.asarray(leaf)[:num_runs], result)
    if variants is None:
        return result
    return jax.tree.map(lambda leaf: leaf.reshape(*axes[::-1], *leaf.shape[1:]).swapaxes(0, 1), result)


def _shape(array: Any) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(np.shape(array), np.asarray(array).dtype)


def _identity(function: Any) -> Any:
    """What tells functions apart in this process: a partial by its parts, which need not be hashable."""
    if isinstance(function, functools.partial):
        return _identity(function.func), repr(function.args), repr(function.keywords)
    return function
