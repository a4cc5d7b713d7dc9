"""The folder of a program's results: one process writes into it at a time."""

import contextlib
import fcntl
import os
from collections.abc import Iterator
from pathlib import Path

from experiments.harness.errors import UsageError
from jaxpref.files import store

LOCK = ".lock"


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Make `folder` and hold it, also against other processes. Remove the temporary files of a killed one."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / LOCK).open("a+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            owner = (folder / LOCK).read_text().strip()
            words = f"--out {folder}: process {owner} is writing into this folder; wait for it, or name another folder"
            raise UsageError(words) from None
        file.truncate(0)
        print(os.getpid(), file=file, flush=True)
        for temporary in folder.glob(store.TEMPORARY):
            temporary.unlink()
        yield


def set_aside(folder: Path) -> Path:
    """Move the contents of a locked folder into a new folder beside it; return the new folder."""
    number = 1
    while (aside := folder.with_name(f"{folder.name}.{number}")).exists():
        number += 1
    aside.mkdir()
    for path in folder.iterdir():
        if path.name != LOCK:
            path.rename(aside / path.name)
    return aside
