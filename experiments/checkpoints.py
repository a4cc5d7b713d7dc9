"""What is finished is kept: a run that was killed, started again, goes on from there.

The result of every stage is an npz file with a manifest beside it: a JSON file that says what the result depends on and
what the npz file's SHA-256 is. A result is used again where everything it depends on is the same; where something
differs the stage is run again, and where a file is not what was written it is named, too. The files that a finished
run leaves have a manifest of their own.
"""

from __future__ import annotations

import contextlib
import dataclasses
import fcntl
import functools
import hashlib
import json
import os
import re
import shutil
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import jax
import numpy as np
from rich.console import Console

import jaxpref
from experiments.command import UsageError
from jaxpref import store

FORMAT = 1
"""Of the manifests. One of another number is not read."""
STAGES = "stages"
"""Folder of the stages' results, in the folder of an experiment's results."""
LOCK = ".lock"
"""What the process that writes into a folder holds."""
MANIFEST = "manifest.json"
"""Of the files that a finished run leaves."""
AFTERWARDS = {"plots", "statistics", "store"}
"""Modules that only work on results."""
HERE = Path(__file__).parent
LIBRARY = [path for path in sorted(Path(jaxpref.__file__).parent.glob("*.py")) if path.stem not in AFTERWARDS]
"""The part of the library that results depend on."""
CODE = (HERE / "pipeline.py", HERE / "stages.py")
"""The same of the study."""


class Damaged(Exception):
    """A file is not what was written; the message says in what way."""


# --- who writes into a folder -----------------------------------------------------------------------------------------


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold a folder for this process alone, and remove what a killed one left half written.

    The lock is the kernel's: it ends with its process, however that ends. Raises UsageError, naming the process, where
    another one holds it.
    """
    with (folder / LOCK).open("a+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            owner = file.read().strip() or "of unknown number"
            raise UsageError(
                f"--out {folder}: process {owner} is writing into this folder; wait for it, or name another folder"
            ) from None
        file.truncate(0)
        file.write(f"{os.getpid()}\n")
        file.flush()
        for below in (".", f"{STAGES}/*", "arms/*/*"):
            for temporary in folder.glob(f"{below}/{store.TEMPORARY}"):
                temporary.unlink()
        yield


def remove_unused(folder: Path) -> None:
    """Remove a locked folder that has nothing but its lock in it."""
    if [path.name for path in folder.iterdir()] == [LOCK]:
        (folder / LOCK).unlink()
        folder.rmdir()


# --- what a result depends on -----------------------------------------------------------------------------------------


@functools.cache
def code(*paths: Path) -> str:
    """SHA-256 of some files."""
    return hashlib.sha256(b"".join(path.read_bytes() for path in paths)).hexdigest()


def of_run(settings: Any, versions: dict[str, str]) -> dict[str, Any]:
    """What the files of a finished run depend on: its settings, the versions of libraries, and all code."""
    how = ("fresh", "strict")  # to run, not what
    numbers = {name: value for name, value in describe(settings).items() if name not in how}
    sources = (*sorted(Path(jaxpref.__file__).parent.glob("*.py")), *sorted(HERE.glob("*.py")), *HERE.glob("*.jinja"))
    return {"settings": numbers, "versions": versions, "code": code(*sources)} | numerics()


def numerics() -> dict[str, Any]:
    """What else decides about digits: the devices, whose number and kind change how sums are rounded, and how JAX and
    XLA are told from outside to draw and to compute.
    """
    told = ("jax_default_prng_impl", "jax_threefry_partitionable", "jax_enable_x64", "jax_default_matmul_precision")
    return {
        "devices": [device.device_kind for device in jax.local_devices()],
        "XLA_FLAGS": os.environ.get("XLA_FLAGS", "").strip(),
    } | {name: describe(getattr(jax.config, name)) for name in told}


def describe(value: Any) -> Any:
    """A hyperparameter, a function with its bound arguments, a task: as JSON has it, the same in every process.

    Numbers and names stand as they are, functions as their names, large arrays as their digest, all else as its class
    and fields.
    """
    match value:
        case None | bool() | int() | str():
            return value
        case float():
            return value if np.isfinite(value) else str(value)
        case tuple() | list():
            return [describe(part) for part in value]
        case dict():
            return {str(name): describe(part) for name, part in value.items()}
        case Path() | np.generic():
            return str(value)
        case np.ndarray() | jax.Array():
            return describe(value.tolist()) if value.size <= 100 else digest(value)
        case functools.partial():
            return {"function": describe(value.func), "args": describe(value.args)} | describe(value.keywords)
    if hasattr(value, "__qualname__"):
        return f"{value.__module__}.{value.__qualname__}"
    if dataclasses.is_dataclass(value):
        fields = {field.name: getattr(value, field.name) for field in dataclasses.fields(value) if field.repr}
    else:
        fields = vars(value) if hasattr(value, "__dict__") else {}
    return {"class": type(value).__qualname__} | describe(fields)


def digest(tree: Any) -> str:
    """SHA-256 of a pytree of arrays: of every leaf's path, type, shape and bytes."""
    hasher = hashlib.sha256()
    for path, leaf in jax.tree.leaves_with_path(tree):
        array = np.asarray(leaf)
        hasher.update(f"{jax.tree_util.keystr(path)} {array.dtype} {array.shape}\n".encode())
        # Part by part, since to make a large view contiguous is to copy it.
        for part in [array] if array.flags.c_contiguous else array:
            hasher.update(np.ascontiguousarray(part).reshape(-1).view(np.uint8).data)
    return hasher.hexdigest()


def differences(before: Any, now: Any, name: str = "") -> list[str]:
    """What differs between two descriptions, a phrase each, as in `learning_rate was 0.005, is 0.01`."""
    if isinstance(before, dict) and isinstance(now, dict):
        names = [*now, *(key for key in before if key not in now)]
        return [phrase for key in names for phrase in differences(before.get(key), now.get(key), key)]
    if before == now:
        return []
    if _is_digest(before) and _is_digest(now):
        return [f"{name} changed"]
    return [f"{name} was {_shown(before)}, is {_shown(now)}"]


def _is_digest(value: Any) -> bool:
    return isinstance(value, str) and re.fullmatch("[0-9a-f]{64}", value) is not None


def _shown(value: Any) -> str:
    text = " ".join(map(str, value)) if isinstance(value, list) else str(value)
    return text if len(text) <= 60 else f"{text[:50]}..."


# --- JSON that knows whether it is whole ------------------------------------------------------------------------------


def save_sealed(path: Path, table: dict[str, Any]) -> None:
    """Write a JSON object together with its checksum."""
    store.save_json(path, {"format": FORMAT, "checksum": _checksum(table), **table})


def load_sealed(path: Path) -> dict[str, Any]:
    """Read what `save_sealed` wrote.

    Raises FileNotFoundError, and Damaged for a file with any other byte in it.
    """
    written = path.read_bytes()
    try:
        table = json.loads(written)
        number, checksum = table["format"], table["checksum"]
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise Damaged("is truncated, or no manifest at all") from error
    if number != FORMAT:
        raise Damaged(f"has format {number}, where {FORMAT} is read")
    content = {name: value for name, value in table.items() if name not in ("format", "checksum")}
    # Some changes of a byte leave the same numbers: 1e-05 and 1E-05.
    if checksum != _checksum(content) or written != store.to_json(table):
        raise Damaged("does not have the checksum that it was written with")
    return content


def _checksum(table: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(table, sort_keys=True).encode()).hexdigest()


def checksum_of(path: Path) -> str:
    """SHA-256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


# --- stages -----------------------------------------------------------------------------------------------------------

Seconds = dict[str, float]
"""That a stage took, by what it spent them on."""


class Checkpoints:
    """The stages' results in one folder of an experiment.

    A result is written behind the next stage's back, one at a time and in their order. `versions`: of the libraries
    that results depend on; `strict`: damaged files are refused; `fresh`: nothing that is kept is used; `sources`: code
    that results depend on, beside the library's.
    """

    def __init__(
        self,
        folder: Path,
        versions: dict[str, str],
        console: Console,
        strict: bool = False,
        fresh: bool = False,
        sources: Sequence[Path] = CODE,
    ):
        self.folder, self.console, self.strict, self.fresh = folder / STAGES, console, strict, fresh
        self.common = {"versions": versions, "code": code(*LIBRARY, *sources)} | numerics()
        self.batch, self.seeds = self.folder, list[int]()
        self._used: set[Path] = set()
        self._writer = ThreadPoolExecutor(max_workers=1)
        self._pending: Future | None = None

    def __enter__(self) -> Checkpoints:
        return self

    def __exit__(self, *error: object) -> None:
        # Also after Ctrl-C: nothing may still be written when the folder's lock is gone.
        self._writer.shutdown()

    def begin(self, batch: str, seeds: np.ndarray) -> None:
        """From now on, stages are those of this batch of seeds."""
        self.batch, self.seeds = self.folder / batch, seeds.tolist()
        self.batch.mkdir(parents=True, exist_ok=True)

    def wanted(self, stage: str, description: dict[str, Any]) -> dict[str, Any]:
        """What a stage's result must depend on to be used, but for the digest of its inputs."""
        return {"stage": stage, "seeds": self.seeds, **description, **self.common}

    def expects(self, stage: str, wanted: dict[str, Any]) -> bool:
        """Whether a result is likely to be used: all is as it should be but for what is not looked at, its bytes and
        its inputs.
        """
        try:
            manifest = self._manifest(stage)
        except (FileNotFoundError, Damaged):
            return False
        as_it_should_be = manifest["of"] == wanted | {"inputs": manifest["of"]["inputs"]}
        return as_it_should_be and not self.fresh and self._paths(stage)[0].exists()

    def seconds(self, stage: str) -> float | None:
        """What the stage took when it was last run, whatever its settings were then; None where it never was."""
        try:
            return sum(self._manifest(stage)["seconds"].values())
        except (FileNotFoundError, Damaged):
            return None

    def keep(
        self, stage: str, wanted: dict[str, Any], inputs: Any, like: Any, compute: Callable[[], tuple[Any, Seconds]]
    ) -> tuple[Any, Seconds, bool]:
        """(result, seconds that it took, whether it was kept): the kept one, or that of `compute`, which is then kept.

        `inputs`: what the stage works on; `like`: a result of the right shapes. Says in a line why a kept result is not
        used. Raises UsageError for a damaged file if strict.
        """
        checksum = self._writer.submit(digest, inputs)  # while the stage runs, if it does
        found = None if self.fresh else self._load(stage, wanted, checksum, like)
        if found is not None:
            return *found, True
        result, seconds = compute()
        self.join()
        self._pending = self._writer.submit(self._save, self._paths(stage), wanted, checksum, result, seconds)
        return result, seconds, False

    def _load(self, stage: str, wanted: dict[str, Any], inputs: Future[str], like: Any) -> tuple[Any, Seconds] | None:
        npz, path = self._paths(stage)
        try:
            manifest = self._manifest(stage)
            changes = differences(manifest["of"], wanted | {"inputs": inputs.result()})
            if changes:
                self.console.print(f"  {stage} is run again: {_few(changes)}", highlight=False, soft_wrap=True)
                return None
            path = npz
            return self._verified(npz, manifest["sha256"], like), manifest["seconds"]
        except FileNotFoundError:
            if path == npz:
                warn(self.console, npz, "is missing", f"{stage} is run again", self.strict)
        except Damaged as error:
            warn(self.console, path, str(error), f"{stage} is run again", self.strict)
        return None

    def _save(
        self, paths: tuple[Path, Path], wanted: dict[str, Any], inputs: Future[str], result: Any, seconds: Seconds
    ) -> None:
        npz, manifest = paths
        manifest.unlink(missing_ok=True)  # it speaks of the result that is now replaced
        store.save_pytree(npz, result)
        of = wanted | {"inputs": inputs.result()}
        save_sealed(manifest, {"of": of, "sha256": checksum_of(npz), "seconds": seconds})

    def _manifest(self, stage: str) -> dict[str, Any]:
        manifest = load_sealed(self._paths(stage)[1])
        if manifest.keys() != {"of", "sha256", "seconds"}:
            raise Damaged("is no manifest of a stage")
        if manifest["of"]["stage"] != stage:
            raise Damaged(f"is that of stage {manifest['of']['stage']}")
        return manifest

    def _verified(self, path: Path, checksum: str, like: Any) -> Any:
        if checksum_of(path) != checksum:
            raise Damaged("does not have the checksum that it was written with")
        try:
            return store.load_pytree(path, like)
        except ValueError as error:
            raise Damaged("does not hold what the stage returns") from error

    def drop(self, stage: str) -> None:
        """Remove a result that is large and quickly computed again."""
        self.join()
        for path in reversed(self._paths(stage)):
            path.unlink(missing_ok=True)

    def join(self) -> None:
        """Wait until everything is on disk. Raises UsageError where it cannot be written."""
        pending, self._pending = self._pending, None
        try:
            if pending is not None:
                pending.result()
        except OSError as error:
            raise UsageError(f"cannot write {error.filename or self.batch}: {error.strerror}") from error

    def tidy(self) -> None:
        """Remove what an earlier run kept and this one, now finished, had no use for."""
        self.join()
        for path in (*self.folder.glob("*/*"), *self.folder.glob("*")):
            if path.is_dir() and path not in {used.parent for used in self._used}:
                shutil.rmtree(path)
            elif path.is_file() and path not in self._used:
                path.unlink()

    def _paths(self, stage: str) -> tuple[Path, Path]:
        """(npz, manifest)."""
        paths = tuple(self.batch / f"{stage.replace(' ', '-')}.{suffix}" for suffix in ("npz", "json"))
        self._used.update(paths)
        return paths[0], paths[1]


def _few(phrases: list[str]) -> str:
    more = len(phrases) - 3
    return "; ".join([*phrases[:3], *([f"and {more} more"] if more > 0 else [])])


def warn(console: Console, path: Path, wrong: str, consequence: str, strict: bool = False) -> None:
    """Name a damaged file in one line. Raises UsageError with it if strict."""
    if strict:
        raise UsageError(f"{path} {wrong}: --strict refuses it; without --strict {consequence}")
    console.print(f"warning: {path} {wrong}; {consequence}", style="bold yellow", highlight=False, soft_wrap=True)


# --- finished runs ----------------------------------------------------------------------------------------------------


def seal_results(folder: Path, of: dict[str, Any], paths: Sequence[Path]) -> None:
    """Write the manifest of a finished run's files. `of`: what they depend on."""
    save_sealed(folder / MANIFEST, {"of": of, "sha256": {path.name: checksum_of(path) for path in paths}})


def unseal_results(folder: Path) -> None:
    """Before any of the files is written anew: what the manifest says no longer holds."""
    (folder / MANIFEST).unlink(missing_ok=True)


def finished(folder: Path, of: dict[str, Any], console: Console, strict: bool = False) -> list[Path] | None:
    """The files of a finished run that depends on the same things and is whole; None where there is no such run.

    Files that are not what was written are named in a warning, or refused if strict: UsageError.
    """
    try:
        manifest = load_sealed(folder / MANIFEST)
        if manifest.keys() != {"of", "sha256"} or not isinstance(manifest["sha256"], dict):
            raise Damaged("is no manifest of a finished run")
    except FileNotFoundError:
        return None
    except Damaged as error:
        warn(console, folder / MANIFEST, str(error), "it is written again", strict)
        return None
    paths = [folder / name for name in manifest["sha256"]]
    whole = True
    for path in paths:
        if not path.exists():
            warn(console, path, "is missing", "it is written again", strict)
        elif checksum_of(path) != manifest["sha256"][path.name]:
            warn(console, path, "does not have the checksum that it was written with", "it is written again", strict)
        else:
            continue
        whole = False
    return paths if whole and manifest["of"] == of else None
