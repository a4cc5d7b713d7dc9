"""Kill runs, damage files, and count how often that makes a difference: `python -m experiments.torture --help`.

A run is killed at a random moment of its life, started again, and what it leaves is compared with an undisturbed run,
byte by byte; but for seconds and memory, nothing may differ. Then files of a run that was killed half way are damaged,
and the next start has to name each and use none.
"""

from __future__ import annotations

import dataclasses
import json
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import tyro
from rich.console import Console

from experiments.command import UsageError, check_folder, exit_codes
from jaxpref import store


@dataclasses.dataclass(frozen=True)
class Settings:
    """How often, and to what."""

    kills: int = 20
    """Runs that are killed."""
    damages: int = 20
    """Files that are damaged, one at a time."""
    seed: int = 0
    """Of the moments, files and bits."""
    out: Path = Path("results/torture")
    """Folder of the runs."""
    flags: tuple[str, ...] = ()
    """Of the experiment, CartPole with DPO."""


def start(out: Path, flags: tuple[str, ...]) -> subprocess.Popen:
    """Start the experiment."""
    words = [sys.executable, "-m", "experiments.cartpole_dpo", "--out", str(out), *flags]
    return subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def finish(out: Path, flags: tuple[str, ...]) -> str:
    """Run the experiment to its end, and return what it printed. Raises UsageError where it failed."""
    process = start(out, flags)
    printed, _ = process.communicate()
    if process.returncode:
        raise UsageError(f"the experiment ended with exit code {process.returncode}: {printed.strip()}")
    return printed


def results(out: Path) -> dict[str, bytes]:
    """What an experiment leaves: the bytes of every file, without seconds and memory."""
    summary = store.load_json(out / "summary.json")
    kept = {name: value for name, value in summary.items() if name not in ("timing", "peak_memory_gib")}
    files = [path for path in out.iterdir() if path.suffix in (".npz", ".png") or path.name == "metrics.jsonl"]
    return {path.name: path.read_bytes() for path in files} | {"summary.json": json.dumps(kept).encode()}


# --- damage -----------------------------------------------------------------------------------------------------------


def truncate(path: Path, others: list[Path], rng: random.Random) -> list[Path]:
    """Cut off the end; returns the damaged files, as all of these do."""
    content = path.read_bytes()
    path.write_bytes(content[: rng.randrange(len(content))])
    return [path]


def flip(path: Path, others: list[Path], rng: random.Random) -> list[Path]:
    """Flip one bit."""
    content = bytearray(path.read_bytes())
    content[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
    path.write_bytes(bytes(content))
    return [path]


def swap(path: Path, others: list[Path], rng: random.Random) -> list[Path]:
    """Exchange two files of a kind."""
    other = rng.choice([other for other in others if other.suffix == path.suffix and other != path])
    one, two = path.read_bytes(), other.read_bytes()
    path.write_bytes(two)
    other.write_bytes(one)
    return [path, other]


def replace(path: Path, others: list[Path], rng: random.Random) -> list[Path]:
    """Put a file of the same kind there that something else has written."""
    if path.suffix == ".npz":
        store.save_pytree(path, {"w": [rng.random()]})
    else:
        store.save_json(path, {"w": rng.random()})
    return [path]


def age(path: Path, others: list[Path], rng: random.Random) -> list[Path]:
    """Make it a file of another format's version."""
    manifest = path.with_suffix(".json")
    store.save_json(manifest, store.load_json(manifest) | {"format": rng.randrange(2, 100)})
    return [manifest]


DAMAGES: tuple[Callable[[Path, list[Path], random.Random], list[Path]], ...] = (truncate, flip, swap, replace, age)


# --- the two trials ---------------------------------------------------------------------------------------------------


def kill_and_resume(settings: Settings, seconds: float, expected: dict[str, bytes], rng: random.Random) -> bool:
    """Kill a run within its first `seconds`, start it again; whether the results are the expected ones."""
    out = settings.out / "cartpole-dpo"
    shutil.rmtree(out, ignore_errors=True)
    process = start(out, settings.flags)
    time.sleep(rng.uniform(0, seconds))
    process.send_signal(signal.SIGKILL)
    process.communicate()
    finish(out, settings.flags)
    return results(out) == expected


def damage_and_resume(settings: Settings, number: int, expected: dict[str, bytes], rng: random.Random) -> bool:
    """Damage a file of a run that lacks its end, start it again; whether all is named, and the results are the
    expected ones.
    """
    out = settings.out / "cartpole-dpo"
    (out / "manifest.json").unlink(missing_ok=True)
    files = sorted((out / "stages" / "1").iterdir())
    damaged = DAMAGES[number % len(DAMAGES)](rng.choice(files), files, rng)
    printed = finish(out, settings.flags)
    named = all(f"warning: {path} " in printed for path in damaged)
    return named and results(out) == expected


def main() -> None:
    """Both trials."""
    with exit_codes():
        settings = tyro.cli(Settings, description=__doc__)
        check_folder(settings.out)
        console, rng = Console(highlight=False), random.Random(settings.seed)
        out = settings.out / "cartpole-dpo"
        shutil.rmtree(out, ignore_errors=True)
        finish(out, settings.flags)
        expected = results(out)
        shutil.rmtree(out)
        begun = time.perf_counter()
        finish(out, settings.flags)
        seconds = time.perf_counter() - begun
        same = results(out) == expected
        console.print(f"an undisturbed run takes {seconds:.1f} s; a second one leaves the same bytes: {same}")
        survived = sum(kill_and_resume(settings, seconds, expected, rng) for _ in range(settings.kills))
        console.print(f"killed and started again: {survived} of {settings.kills} ended with the same bytes")
        found = sum(damage_and_resume(settings, number, expected, rng) for number in range(settings.damages))
        console.print(f"files damaged: {found} of {settings.damages} were named, with the same bytes in the end")


if __name__ == "__main__":
    main()
