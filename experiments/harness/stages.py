"""Stages: pure functions of one seed, run on many seeds, each computed once.

`Stages.run` traces a stage and returns a `Lazy` result at once. Its program compiles in the background, and a thread
runs the stages in their order, while the caller goes on to the next ones. A result in the memo is not computed.
"""

import copy
import dataclasses
import hashlib
import math
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager
from typing import Any

import jax
import numpy as np
from rich.console import Console

from experiments.harness.devices import num_cores, padded_size
from experiments.harness.memo import LARGEST, Memo, digest, num_bytes
from experiments.harness.programs import Program, Programs
from experiments.harness.progress import Progress, bar_on, mean_return

RECENT = 600_000_000
"""Bytes of results that stay in memory for a later run with the same stages."""


@dataclasses.dataclass
class StageTime:
    """Seconds of this run in all calls of a stage; `kept` counts the calls whose result was in the memo."""

    compile_s: float = 0.0
    """Tracing, and waiting for the compiled program."""
    run_s: float = 0.0
    kept: int = 0


class Lazy:
    """The result of a stage, with the seeds on the first axis, of the shapes of `like`."""

    def __init__(self, stages: "Stages", name: str, key: str, like: Any, program: Program, call: tuple):
        self.stages, self.name, self.key, self.like, self.program = stages, name, key, like, program
        self._call: tuple | None = call
        self._lock, self._axes = threading.RLock(), call[-1]
        self._runs, self._value = None, None

    def compile(self) -> None:
        """Compile in the background what the result takes, if the memo does not have it."""
        call = self._call  # another thread may finish it meanwhile
        if call and self.program.compiled is None and not self.stages.memo.has(self.name, self.key):
            for each in jax.tree.leaves(call[1]):
                if isinstance(each, INPUT):
                    each.compile()
            self.program.compiled = self.stages.compiler.submit(self.program.compile)

    @property
    def value(self) -> Any:
        """Await the result: NumPy arrays."""
        with self._lock:
            self.compute()
            if self._value is None:
                self._value = _by_seed(self._runs, self._axes)
            return self._value

    def field(self, name: str) -> Any:
        """Return a field of the result, as an input of other stages."""
        return Field(self, name)

    def runs(self, num_runs: int) -> Any:
        """Await the result, for a program of `num_runs`. If the devices hold arrays of as many runs, return these."""
        self.compute()
        as_it_is = self._runs is not None and len(self._axes) == 1 and self.program.num_runs == num_runs
        return self._runs if as_it_is else self.value

    def compute(self) -> None:
        """Find the result in the memo or compute it, once."""
        with self._lock:
            if self._call is not None:
                self._compute(*self._call)
                self._call = None  # the inputs may be large

    def _compute(self, config: Any, inputs: Any, variants: Any, axes: tuple[int, ...]) -> None:
        stages, times, program = self.stages, self.stages.times[self.name], self.program
        num_updates = getattr(config, "num_updates", None)
        stages.progress.start(self.name, num_updates)
        self._value, compile_s, run_s = stages.memo.load(self.name, self.key, self.like), 0.0, 0.0
        kept = self._value is not None
        if not kept:
            given = jax.tree.map(lambda each: each.runs(program.num_runs) if isinstance(each, INPUT) else each, inputs)
            start = time.perf_counter()
            program.compiled = program.compiled or stages.compiler.submit(program.compile)
            compiled = program.compiled.result()
            compile_s = time.perf_counter() - start
            self._runs = jax.block_until_ready(compiled(config, _by_run(given, variants, axes, program.num_runs)))
            run_s = time.perf_counter() - start - compile_s
            if num_bytes(self.like) <= LARGEST or hasattr(self.like, "metrics"):  # a dataset stays on the devices
                self._value = _by_seed(self._runs, axes)
                stages.writes.append(stages.writer.submit(stages.memo.save, self.name, self.key, self._value))
        times.compile_s, times.run_s, times.kept = times.compile_s + compile_s, times.run_s + run_s, times.kept + kept
        returned, num_runs = mean_return(self._value), math.prod(axes)
        stages.progress.done(self.name, num_runs, num_updates, returned, compile_s=compile_s, run_s=run_s, kept=kept)
        stages.forget()


@dataclasses.dataclass(frozen=True)
class Field:
    """A field of a result. The program of a stage that takes it does not depend on the other fields."""

    result: Lazy
    name: str

    @property
    def key(self) -> str:
        return f"{self.result.key} {self.name}"

    @property
    def like(self) -> Any:
        return getattr(self.result.like, self.name)

    def compile(self) -> None:
        self.result.compile()

    def runs(self, num_runs: int) -> Any:
        return getattr(self.result.runs(num_runs), self.name)


INPUT = Lazy | Field
"""An input of a stage that is not an array."""


class Stages(AbstractContextManager["Stages"]):
    """Run stages in their order; keep their programs, results and times. `most_devices`: None for all of them."""

    def __init__(self, memo: Memo, most_devices: int | None = None):
        self.memo, self.programs = memo, Programs(memo, most_devices)
        self.progress, self.times = Progress(bar_on(Console(quiet=True))), dict[str, StageTime]()
        self.compiler = ThreadPoolExecutor(num_cores())
        self._recent: dict[str, Lazy] = {}
        self._runner, self.writer = ThreadPoolExecutor(1), ThreadPoolExecutor(1)
        self.writes: list[Future] = []

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        for pool in (self._runner, self.compiler, self.writer):
            pool.shutdown(cancel_futures=kind is not None)
        if kind is None:
            for write in self.writes:
                write.result()
            self.memo.prune()

    def of_run(self, progress: Progress) -> "Stages":
        """Return the same stages for one run: they report to `progress`, and count times from zero."""
        own = copy.copy(self)
        own.progress, own.times = progress, {}
        return own

    def run(
        self,
        name: str,
        function: Callable,
        config: Any,
        *inputs: Any,
        lanes: int = 64,
        optimise: bool = False,
        variants: Any = None,
    ) -> Lazy:
        """Map `function(config, *inputs)` of one seed over the first axis of `inputs`.

        Inputs are arrays, other stages' results, or fields of these. The axis is as long as the first input's. Of
        longer inputs, only the beginning is used.

        With `variants` [V], `function(config, *inputs, variant)` runs on each seed with each of them: [S, V, ...].
        The floats of `config` are arguments of the program, so that another value does not compile it again. With
        `optimise`, it takes longer to compile, and runs faster if most of its time goes into large sums.
        """
        start, config = time.perf_counter(), jax.tree.map(np.float32, config)
        shapes = jax.tree.map(lambda each: each.like if isinstance(each, INPUT) else jax.typeof(each), inputs)
        axes: tuple[int, ...] = (jax.tree.leaves(shapes)[0].shape[0],)
        if variants is not None:
            shapes, axes = (*shapes, jax.ShapeDtypeStruct(axes, variants.dtype)), (*axes, len(variants))
        num_padded = padded_size(math.prod(axes), lanes, self.programs.most_devices)
        program = self.programs.find(name, function, config, shapes, num_padded, lanes, optimise)
        parts = [program.key, digest((config, variants)), str(axes)]
        parts += [each.key if isinstance(each, INPUT) else digest(each) for each in jax.tree.leaves(inputs)]
        key = hashlib.sha256(" ".join(parts).encode()).hexdigest()
        self.times.setdefault(name, StageTime()).compile_s += time.perf_counter() - start
        if key in self._recent:
            self.times[name].kept += 1
            return self._recent[key]

        like = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct((*axes, *leaf.shape[1:]), leaf.dtype), program.like)
        lazy = self._recent[key] = Lazy(self, name, key, like, program, (config, inputs, variants, axes))
        self.progress.plan()
        # A result that is too large for the memo may not be needed at all. It waits until another stage asks for it.
        if not self.memo.has(name, key) and num_bytes(like) <= LARGEST:
            lazy.compile()
            self._runner.submit(lazy.compute)
        return lazy

    def forget(self) -> None:
        """Drop the oldest results beyond what may stay in memory. Whoever uses one still holds it."""
        sizes = {key: num_bytes(lazy.like) for key, lazy in list(self._recent.items())}  # run() adds to it meanwhile
        for key in list(sizes)[:-1]:
            if sum(sizes.values()) > RECENT:
                del sizes[key]
                self._recent.pop(key, None)  # another thread may have dropped it


def _by_run(inputs: Any, variants: Any, axes: tuple[int, ...], num_runs: int) -> tuple[Any, ...]:
    """Return the inputs of each run [V * S, ...], padded with those of the first runs. JAX arrays stay as they are."""
    run = np.arange(num_runs) % math.prod(axes)
    by_run = jax.tree.map(lambda leaf: leaf if isinstance(leaf, jax.Array) else leaf[run % axes[0]], inputs)
    return by_run if variants is None else (*by_run, variants[run // axes[0]])


def _by_seed(runs: Any, axes: tuple[int, ...]) -> Any:
    """Return the results as NumPy arrays [S, ...] or [S, V, ...], without the padding."""

    def unpad(leaf: jax.Array) -> np.ndarray:
        own = np.asarray(leaf)[: math.prod(axes)]
        return own if len(axes) == 1 else own.reshape(*axes[::-1], *leaf.shape[1:]).swapaxes(0, 1)

    return jax.tree.map(unpad, runs)
