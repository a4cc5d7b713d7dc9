"""The memo of finished stages: one file for each, named by the hash of all that its result depends on.

A file starts with a line of two SHA-256 digests: the key, as in its name, and that of the rest, an npz archive or a
compiled program. Files are written whole or not at all, so several processes share the folder, and a killed run
continues from it.
"""

import contextlib
import hashlib
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
from rich.console import Console

from experiments import ROOT
from jaxpref.files import store

FOLDER = Path(os.environ.get("JAXPREF_STAGES", ROOT / ".cache" / "stages"))
KINDS = ("stage", "trace", "program")
"""Results of stages, and what `programs` keeps."""
LARGEST = 100_000_000
"""Bytes of the largest result that is kept. Larger ones are datasets, which are faster to play again than to read."""
LIMIT = 2_000_000_000
"""Bytes of the folder. If it is larger, the files that were not used for the longest time are removed."""


def digest(tree: Any) -> str:
    """Return the SHA-256 of a pytree of arrays: of every leaf's path, dtype, shape and bytes."""
    return hashlib.sha256(store.to_npz(tree)).hexdigest()


def num_bytes(tree: Any) -> int:
    """Return the size of a pytree of arrays, or of their shapes."""
    return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))


class Memo:
    """Finished stages on disk. `fresh`: write them, but use none."""

    def __init__(self, folder: Path = FOLDER, fresh: bool = False):
        self.folder, self.fresh, self.console = folder, fresh, Console()
        folder.mkdir(parents=True, exist_ok=True)

    def has(self, name: str, key: str) -> bool:
        """Return whether a result of this key is there."""
        return not self.fresh and self._path(name, key).exists()

    def load(self, name: str, key: str, like: Any) -> Any | None:
        """Return the result of this key, in the structure of `like`; None if it is not there."""
        return None if self.fresh else self.read(name, key, lambda archive: store.from_npz(archive, like, name))

    def save(self, name: str, key: str, result: Any) -> None:
        """Write a result, unless it is larger than `LARGEST`."""
        if num_bytes(result) <= LARGEST:
            self.write(name, key, store.to_npz(result))

    def read(self, name: str, key: str, decode: Callable[[bytes], Any], kind: str = "stage") -> Any | None:
        """Return what the file of this key holds; None without one, and a warning for a damaged one."""
        path = self._path(name, key, kind)
        try:
            head, _, archive = path.read_bytes().partition(b"\n")
            if head != f"{key} {hashlib.sha256(archive).hexdigest()}".encode():
                raise ValueError("is damaged, or holds the result of another stage")
            result = decode(archive)
            os.utime(path)
        except FileNotFoundError:  # perhaps another process has removed it
            return None
        except ValueError as error:
            self.warn(f"{path} {error}; it is computed again")
            return None
        return result

    def write(self, name: str, key: str, archive: bytes, kind: str = "stage") -> None:
        """Write the file of this key. `kind`: one of KINDS."""
        with store.atomic_write(self._path(name, key, kind)) as file:
            file.write(f"{key} {hashlib.sha256(archive).hexdigest()}\n".encode())
            file.write(archive)

    def warn(self, message: str) -> None:
        """Print a warning."""
        self.console.print(f"warning: {message}", style="bold yellow", highlight=False, soft_wrap=True)

    def prune(self) -> None:
        """Remove the files that were not used for the longest time, also what killed processes left half written."""
        patterns = (store.TEMPORARY, *(f"*.{kind}" for kind in KINDS))
        with contextlib.suppress(FileNotFoundError):  # another process removes them at this moment
            total, kept = 0, [path for pattern in patterns for path in self.folder.glob(pattern)]
            for path in sorted(kept, key=lambda path: path.stat().st_mtime, reverse=True):
                total += path.stat().st_size
                if total > LIMIT:
                    path.unlink()

    def _path(self, name: str, key: str, kind: str = "stage") -> Path:
        return self.folder / f"{name.replace(' ', '-')}-{key}.{kind}"
