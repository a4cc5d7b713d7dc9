"""Write pytrees, preferences and tables to files, and read them back: npz and JSON, never pickle.

A file is written whole or not at all. docs/preferences-format.md describes the files of preferences and of answers.
"""

import contextlib
import hashlib
import io
import json
import os
import secrets
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import IO, Any

import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import unflatten_dict
from jax.tree_util import keystr, tree_flatten_with_path

from jaxpref.files.labels import read_labels
from jaxpref.files.schema import check_array, read_pairs
from jaxpref.networks import Network
from jaxpref.preferences import apply_labels
from jaxpref.tasks import Task
from jaxpref.types import Preferences, Trajectory

TEMPORARY = ".*.????????.tmp"
"""Pattern of the names of temporary files. A process that is killed while it writes leaves one behind."""


@contextlib.contextmanager
def atomic_write(path: str | os.PathLike) -> Iterator[IO[bytes]]:
    """Open a temporary file beside `path`. Rename it to `path` when everything is written and on disk."""
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
    try:
        with temporary.open("xb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def save_json(path: str | os.PathLike, table: Any) -> None:
    """Write `table` as indented JSON. Raises ValueError for NaN and infinity, which JSON does not have."""
    with atomic_write(path) as file:
        file.write((json.dumps(table, indent=2, allow_nan=False) + "\n").encode())


def load_json(path: str | os.PathLike) -> Any:
    """Read a JSON file."""
    return json.loads(Path(path).read_text())


def named_leaves(tree: Any) -> dict[str, np.ndarray]:
    """List the leaves of a pytree by their paths, such as `pi1/params/torso/kernel`.

    Raises ValueError for two leaves of one path, and for a leaf that is not an array of numbers or booleans.
    """
    leaves, _ = tree_flatten_with_path(tree)
    named = {keystr(path, simple=True, separator="/"): np.asarray(leaf) for path, leaf in leaves}
    if len(named) < len(leaves):
        raise ValueError(f"two leaves have the same path: {', '.join(named)}")
    for name, leaf in named.items():
        if leaf.dtype.kind not in "biufc":
            raise ValueError(f"{name} is {leaf.dtype}, which npz cannot hold without pickle")
    return named


def to_npz(tree: Any) -> bytes:
    """Encode a pytree of arrays as npz. The same tree gives the same bytes."""
    data = io.BytesIO()
    # numpy.savez would write the time of day, and it reads some names as its own arguments.
    with zipfile.ZipFile(data, "w") as archive:
        for name, leaf in named_leaves(tree).items():
            with archive.open(zipfile.ZipInfo(f"{name}.npy"), "w", force_zip64=True) as member:
                np.lib.format.write_array(member, leaf, allow_pickle=False)
    return data.getvalue()


def from_npz(data: bytes, like: Any, name: str) -> Any:
    """Decode the bytes of `to_npz` into the structure of `like`. Leaves are NumPy arrays; `name` is for errors.

    `like` holds arrays, or the shapes of `jax.eval_shape`. Raises ValueError for damaged data, and for a leaf that is
    missing, unknown, or of another shape or dtype.
    """
    leaves, structure = tree_flatten_with_path(like)
    expected = {keystr(path, simple=True, separator="/"): leaf for path, leaf in leaves}
    stored = _read(data, name)
    if different := sorted(stored.keys() ^ expected.keys()):
        raise ValueError(f"{name}: leaves differ from the expected ones: {', '.join(different)}")
    for path, leaf in expected.items():
        leaf = leaf if hasattr(leaf, "dtype") else np.asarray(leaf)
        check_array(f"{name}: {path}", stored[path], leaf.dtype, leaf.shape)
    return jax.tree.unflatten(structure, [stored[path] for path in expected])


def _read(data: bytes, name: str) -> dict[str, np.ndarray]:
    try:
        with np.load(io.BytesIO(data), allow_pickle=False) as file:
            return dict(file)
    except (zipfile.BadZipFile, zlib.error, EOFError, ValueError, TypeError, AttributeError, NotImplementedError) as e:
        raise ValueError(f"{name} is not a whole npz file of arrays: {e}") from e


def save_pytree(path: str | os.PathLike, tree: Any) -> None:
    """Write a pytree of arrays as npz; see `to_npz`."""
    with atomic_write(path) as file:
        file.write(to_npz(tree))


def load_pytree(path: str | os.PathLike, like: Any) -> Any:
    """Read a file of `save_pytree` into the structure of `like`; see `from_npz`."""
    return from_npz(Path(path).read_bytes(), like, str(path))


def load_params(path: str | os.PathLike) -> dict[str, Any]:
    """Read a file of `save_pytree` as nested dicts of NumPy arrays, of any sizes."""
    return unflatten_dict(_read(Path(path).read_bytes(), str(path)), sep="/")


def load_networks(path: str | os.PathLike, module: Any) -> dict[str, Network]:
    """Read a file that holds a dict of `Network`s of one module, as policies.npz of a finished run does.

    The networks of all seeds have one leading axis more: `jax.tree.map(lambda leaf: leaf[0], network)` is the first.
    """
    return {name: Network(module, tree["params"]) for name, tree in load_params(path).items()}


def save_preferences(path: str | os.PathLike, preferences: Preferences) -> None:
    """Write a preference dataset as npz."""
    save_pytree(path, preferences)


def load_preferences(path: str | os.PathLike, task: Task | None = None) -> Preferences:
    """Read a preference dataset of N pairs. Raises ValueError, naming the array, if it does not fit format or task."""
    highest = {"weight": float(jnp.finfo(jnp.float32).max), "prob": 1.0, "target": 1.0}
    chosen, rejected, numbers = _read_pairs(path, "preferences", ("chosen", "rejected"), task, highest)
    ones = jnp.ones(len(chosen.mask))
    return Preferences(chosen, rejected, **{"weight": ones, "prob": ones, **numbers})


def save_pairs(path: str | os.PathLike, first: Trajectory, second: Trajectory) -> None:
    """Write the pairs (first[i], second[i]) as npz, for a person to answer which one is better."""
    save_pytree(path, {"first": first, "second": second})


def load_pairs(path: str | os.PathLike, task: Task | None = None) -> tuple[Trajectory, Trajectory]:
    """Read a file of `save_pairs`: (first, second), both [N, T, ...]. Errors are those of `load_preferences`."""
    return _read_pairs(path, "pairs", ("first", "second"), task, {})[:2]


def _read_pairs(
    path: str | os.PathLike, kind: str, sides: tuple[str, str], task: Task | None, highest: Mapping[str, float]
) -> Any:
    arrays = _read(Path(path).read_bytes(), str(path))
    try:
        return read_pairs(arrays, sides, task, highest)
    except ValueError as error:
        raise ValueError(f"{path} does not hold {kind}: {error}") from error


def load_labels(path: str | os.PathLike, pairs: str | os.PathLike, task: Task | None = None) -> Preferences:
    """Read a person's answers, JSON lines in `path`, about the pairs in the file `pairs`.

    Every pair becomes a preference, in the order of the pairs. A pair that was skipped or not answered has weight
    zero; a tie has target 0.5. Raises ValueError, naming the line or the array that does not follow the format.
    """
    first, second = load_pairs(pairs, task)
    sha256 = hashlib.sha256(Path(pairs).read_bytes()).hexdigest()
    try:
        label = read_labels(Path(path).read_bytes().splitlines(), first.mask.shape[0], sha256)
    except ValueError as error:
        raise ValueError(f"{path}, {error}") from error
    return apply_labels(first, second, label)
