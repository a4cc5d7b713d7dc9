"""Pytrees, preferences and tables to disk and back: npz and JSON, never pickle; a file is whole or not there."""

from __future__ import annotations

import contextlib
import json
import os
import tempfile
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

import jax
import numpy as np
from jax.tree_util import keystr, tree_flatten_with_path

from jaxpref.checks import check_preferences
from jaxpref.types import Preferences, Trajectory


@contextlib.contextmanager
def atomic_write(path: str | os.PathLike) -> Iterator[IO[bytes]]:
    """Open a temporary file beside `path`, and rename it to `path` once everything is written and on disk."""
    path = Path(path)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o644)  # mkstemp's own is private
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def save_json(path: str | os.PathLike, table: Any) -> None:
    """Write `table` as indented JSON. Raises ValueError for NaN or infinity, which JSON does not have."""
    text = json.dumps(table, indent=2, allow_nan=False) + "\n"
    with atomic_write(path) as file:
        file.write(text.encode())


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
        with np.load(path, allow_pickle=False) as file:
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


def load_preferences(path: str | os.PathLike) -> Preferences:
    """Read what `save_preferences` wrote. Raises ValueError if a field is missing, unknown, of the wrong kind, or does
    not fit the others.
    """
    tree = load_params(path)
    try:
        chosen, rejected = Trajectory(**tree.pop("chosen")), Trajectory(**tree.pop("rejected"))
        preferences = Preferences(chosen, rejected, **tree)
        check_preferences(preferences, num_axes=None)
        return preferences
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{path} does not hold preferences: {error}") from error
