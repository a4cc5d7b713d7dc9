"""Pytrees, preferences and tables to disk and back: npz and JSON, never pickle; a file is whole or not there.

docs/preferences-format.md says what a file of preferences or of answers holds, so that others can write one.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import tempfile
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import keystr, tree_flatten_with_path

from jaxpref.files.labels import read_labels
from jaxpref.files.schema import read_numbers, read_sides
from jaxpref.preferences import apply_labels
from jaxpref.tasks import Task
from jaxpref.types import Preferences, Trajectory

TEMPORARY = ".*.????????.tmp"
"""Pattern of the names of files that are being written; one that no process writes was left by a killed one."""


@contextlib.contextmanager
def atomic_write(path: str | os.PathLike) -> Iterator[IO[bytes]]:
    """Open a temporary file beside `path`, and rename it to `path` once everything is written and on disk."""
    path = Path(path)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".tmp")
    try:
        with os.fdopen(handle, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o644)  # mkstemp's own is private
        os.replace(temporary, path)
        _sync_folder(path.parent)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def _sync_folder(folder: Path) -> None:
    # The new name is an entry of the folder, which is on disk only once the folder is.
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def to_json(table: Any) -> bytes:
    """`table` as indented JSON. Raises ValueError for NaN or infinity, which JSON does not have."""
    return (json.dumps(table, indent=2, allow_nan=False) + "\n").encode()


def save_json(path: str | os.PathLike, table: Any) -> None:
    """Write `table` as indented JSON. Raises ValueError for NaN or infinity, which JSON does not have."""
    text = to_json(table)
    with atomic_write(path) as file:
        file.write(text)


def load_json(path: str | os.PathLike) -> Any:
    """Read a JSON file."""
    return json.loads(Path(path).read_text())


def named_leaves(tree: Any) -> dict[str, np.ndarray]:
    """The leaves of a pytree by their paths, as in `params/torso/kernel`.

    Raises ValueError for leaves that are no arrays of numbers or of booleans, and for paths that do not tell leaves
    apart.
    """
    leaves, _ = tree_flatten_with_path(tree)
    named = {keystr(path, simple=True, separator="/"): np.asarray(leaf) for path, leaf in leaves}
    parents = {"/".join(parts[:i]) for parts in (name.split("/") for name in named) for i in range(1, len(parts))}
    if len(named) < len(leaves) or parents & named.keys():
        raise ValueError(f"two leaves would share a name: {', '.join(sorted(parents & named.keys() or named))}")
    for name, leaf in named.items():
        if leaf.dtype.kind not in "biufc":
            raise ValueError(f"{name} is {leaf.dtype}, which npz does not hold without pickle")
    return named


def _read(path: str | os.PathLike) -> dict[str, np.ndarray]:
    try:
        # NumPy leaves a file that it opened itself open where the archive in it is broken.
        with open(path, "rb") as opened, np.load(opened, allow_pickle=False) as file:
            return {name: file[name] for name in file.files}
    except (zipfile.BadZipFile, zlib.error, EOFError, ValueError, TypeError, AttributeError) as error:
        raise ValueError(f"{path} is not a whole npz file of arrays: {error}") from error


def save_pytree(path: str | os.PathLike, tree: Any) -> None:
    """Write a pytree of arrays as npz; a leaf's name is its path, as in `params/torso/kernel`.

    The same tree gives the same bytes. Raises ValueError for leaves that are no arrays of numbers or of booleans,
    and for paths that do not tell leaves apart.
    """
    named = named_leaves(tree)
    # Not numpy.savez: it writes the time of day into the file, and takes some names for its own arguments.
    with atomic_write(path) as file, zipfile.ZipFile(file, "w") as archive:
        for name, leaf in named.items():
            with archive.open(zipfile.ZipInfo(f"{name}.npy"), "w", force_zip64=True) as member:
                np.lib.format.write_array(member, leaf, allow_pickle=False)


def load_pytree(path: str | os.PathLike, like: Any) -> Any:
    """Read what `save_pytree` wrote into the structure of `like`.

    Raises ValueError, naming the leaf, where names, shapes or dtypes are not those of `like`, and for a damaged file.
    """
    expected, stored = named_leaves(like), _read(path)
    if stored.keys() != expected.keys():
        different = sorted(stored.keys() ^ expected.keys())
        raise ValueError(f"{path}: leaves differ from the expected ones: {', '.join(different)}")
    for name, leaf in expected.items():
        if stored[name].shape != leaf.shape or stored[name].dtype != leaf.dtype:
            raise ValueError(
                f"{path}: {name} is {stored[name].dtype}{list(stored[name].shape)}, "
                f"expected {leaf.dtype}{list(leaf.shape)}"
            )
    return jax.tree.unflatten(jax.tree.structure(like), [stored[name] for name in expected])


def load_params(path: str | os.PathLike) -> dict[str, Any]:
    """Read what `save_pytree` wrote as nested dicts: parameters, whatever their sizes.

    Raises ValueError for a damaged file.
    """
    tree: dict[str, Any] = {}
    for name, leaf in _read(path).items():
        *parents, last = name.split("/")
        node = tree
        for parent in parents:
            node = node.setdefault(parent, {})
        node[last] = leaf
    return tree


def save_preferences(path: str | os.PathLike, preferences: Preferences) -> None:
    """Write a preference dataset as npz."""
    save_pytree(path, preferences)


def load_preferences(path: str | os.PathLike, task: Task | None = None) -> Preferences:
    """Read a preference dataset of [N] pairs: what `save_preferences` wrote, or another program to the same schema.

    Raises ValueError, naming the array, where the file is not to the schema, and where its sizes are not the task's.
    """
    arrays = _read(path)
    try:
        chosen, rejected = read_sides(arrays, ("chosen", "rejected"), ("weight", "prob", "target"), task)
        num_pairs = chosen.mask.shape[0]
        weight = jnp.asarray(read_numbers(arrays, "weight", num_pairs))
        prob, target = (jnp.asarray(read_numbers(arrays, name, num_pairs, 1.0)) for name in ("prob", "target"))
    except ValueError as error:
        raise ValueError(f"{path} does not hold preferences: {error}") from error
    return Preferences(chosen, rejected, weight, prob, target if "target" in arrays else None)


def save_pairs(path: str | os.PathLike, first: Trajectory, second: Trajectory) -> None:
    """Write the pairs (first[i], second[i]) as npz, for somebody to say which is better. Their order stays."""
    save_pytree(path, {"first": first, "second": second})


def load_pairs(path: str | os.PathLike, task: Task | None = None) -> tuple[Trajectory, Trajectory]:
    """Read what `save_pairs` wrote: (first, second), both [N, T, ...]. Raises ValueError as `load_preferences` does."""
    try:
        first, second = read_sides(_read(path), ("first", "second"), task=task)
    except ValueError as error:
        raise ValueError(f"{path} does not hold pairs: {error}") from error
    return first, second


def load_labels(path: str | os.PathLike, pairs: str | os.PathLike, task: Task | None = None) -> Preferences:
    """A person's answers, JSON lines at `path`, about the pairs that `save_pairs` wrote to the file `pairs`.

    A preference for every pair, in the order of the pairs: of weight zero where it was skipped or not answered, of
    target 0.5 where both are equal. Raises ValueError, naming the line or the array, for what is not to the schema.
    """
    first, second = load_pairs(pairs, task)
    with open(pairs, "rb") as file:
        sha256 = hashlib.file_digest(file, "sha256").hexdigest()
    try:
        label = read_labels(Path(path).read_bytes().splitlines(), first.mask.shape[0], sha256)
    except ValueError as error:
        raise ValueError(f"{path}, {error}") from error
    return apply_labels(first, second, label)
