"""Kill runs, damage files, and count how often that makes a difference: `python -m experiments.torture --help`.

A run is killed at a random moment of its life, started again, and what it leaves is compared with an undisturbed run,
byte by byte; but for seconds and memory, nothing may differ. Then files of a run that was killed half way are damaged,
and the next start has to name each and use none.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import json
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

from rich.console import Console

from experiments.checkpoints import LOCK, locked
from experiments.command import NOTHING_KEPT, UsageError, check_folder, exit_codes, read
from jaxpref import store

RUN = "torture-run"
"""Folder, in the folder of results, of the run that is tortured. It is removed again and again."""


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
    """Folder of the runs, for nothing else."""
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


def kill_and_resume(settings: Settings, seconds: float, expected: dict[str, bytes], rng: random.Random) -> str:
    """Kill a run within its first `seconds` and start it again; what is wrong with its end, nothing if it is ""."""
    out = settings.out / RUN
    killed = False
    while not killed:  # unless it was faster this time
        shutil.rmtree(out, ignore_errors=True)
        process = start(out, settings.flags)
        moment = rng.uniform(0, seconds)
        time.sleep(moment)
        process.send_signal(signal.SIGKILL)
        process.communicate()
        killed = process.returncode == -signal.SIGKILL
    finish(out, settings.flags)
    return "" if results(out) == expected else f"killed after {moment:.2f} s, other bytes in the end"


def damage_and_resume(settings: Settings, number: int, expected: dict[str, bytes], rng: random.Random) -> str:
    """Damage a file of a run that lacks its end, and start it again; what is wrong with that, nothing if it is ""."""
    out = settings.out / RUN
    (out / "manifest.json").unlink()
    files = sorted((out / "stages" / "1").iterdir())
    damaged = DAMAGES[number % len(DAMAGES)](rng.choice(files), files, rng)
    printed = finish(out, settings.flags)
    wrong = [f"{path} not named" for path in damaged if f"warning: {path} " not in printed]
    return "; ".join(wrong if results(out) == expected else [*wrong, "other bytes in the end"])


def count(console: Console, title: str, trials: list[Callable[[], str]]) -> bool:
    """Go through some trials, and say which went wrong and how many did not; returns whether none did."""
    wrongs = []
    for trial in trials:
        wrongs.append(trial())
        console.print(f"{title} {len(wrongs)} of {len(trials)}: {wrongs[-1] or 'the same bytes in the end'}")
    console.print(f"[bold]{title}: {wrongs.count('')} of {len(trials)} without a difference")
    return not any(wrongs)


def check(settings: Settings) -> None:
    """Raise UsageError for numbers that mean nothing, and for a folder that holds something else."""
    for name in ("kills", "damages"):
        if getattr(settings, name) < 0:
            raise UsageError(f"--{name} must not be negative, got {getattr(settings, name)}")
    check_folder(settings.out)
    if {path.name for path in settings.out.iterdir()} - {RUN, LOCK}:
        raise UsageError(f"--out {settings.out} holds other files, and runs are removed there: name an empty folder")


def main() -> None:
    """Both trials; exit code 1 if any made a difference."""
    with exit_codes(NOTHING_KEPT), contextlib.ExitStack() as held:
        settings = read(Settings, sys.argv[1:], __doc__ or "")
        check(settings)
        held.enter_context(locked(settings.out))
        console, rng = Console(highlight=False, soft_wrap=True), random.Random(settings.seed)
        out = settings.out / RUN
        shutil.rmtree(out, ignore_errors=True)
        finish(out, settings.flags)  # its programs are compiled from now on
        expected = results(out)
        shutil.rmtree(out)
        begun = time.perf_counter()
        finish(out, settings.flags)
        seconds = time.perf_counter() - begun
        same = results(out) == expected
        console.print(f"an undisturbed run takes {seconds:.1f} s; two of them leave the same bytes: {same}")
        kill = functools.partial(kill_and_resume, settings, seconds, expected, rng)
        well = count(console, "kill", [kill] * settings.kills)
        damage = functools.partial(damage_and_resume, settings, expected=expected, rng=rng)
        well &= count(console, "damage", [functools.partial(damage, number) for number in range(settings.damages)])
        if not (same and well):
            raise SystemExit(1)


if __name__ == "__main__":
    main()
