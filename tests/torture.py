"""Kill runs, damage their files, and count what goes wrong: `PYTHONPATH=. python tests/torture.py --help`.

A run of CartPole with DPO is killed at a random moment and started again. Its results must have the bytes of an
undisturbed run, except seconds and memory. Then files in the memo of an unfinished run are damaged: the next start must
name each of them and use none. Then the program for labelling is killed while four clients answer: every answer that it
has confirmed must be in its file, and no line of the file may be spoiled.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from helpers import random_trajectories
from scripted_person import Person
from test_asking import free_port, start_program

from jaxpref import store
from jaxpref.files.labels import read_labels

ROOT = Path(__file__).parents[1]
MEASURED = {"report.html", "progress.jsonl", ".lock"}
"""Files with seconds and process numbers."""


class Run:
    """An experiment with its own folders of results and of finished stages."""

    def __init__(self, folder: Path, flags: list[str]):
        self.out, self.stages = folder / "results", folder / "stages"
        self.words = [sys.executable, "-m", "experiments.cartpole_dpo", "--out", str(self.out), *flags]

    def clear(self) -> None:
        """Remove all results and finished stages."""
        for folder in (self.out, self.stages):
            shutil.rmtree(folder, ignore_errors=True)

    def start(self) -> subprocess.Popen[str]:
        """Start it."""
        own = os.environ | {"JAXPREF_STAGES": str(self.stages)}
        pipe, same = subprocess.PIPE, subprocess.STDOUT
        return subprocess.Popen(self.words, text=True, cwd=ROOT, env=own, stdout=pipe, stderr=same)

    def finish(self) -> str:
        """Run it to its end; return what it printed."""
        process = self.start()
        printed, _ = process.communicate()
        if process.returncode:
            raise SystemExit(f"the experiment ended with exit code {process.returncode}: {printed.strip()}")
        return printed

    def results(self) -> dict[str, bytes]:
        """Return the bytes of every file, without what is measured."""
        files = {str(path.relative_to(self.out)): path for path in self.out.rglob("*") if path.is_file()}
        found = {name: path.read_bytes() for name, path in files.items() if name not in MEASURED}
        summary = json.loads(found["summary.json"])
        del summary["timing"], summary["peak_memory_gib"]
        return found | {"summary.json": json.dumps(summary).encode()}


DAMAGES = "truncate", "flip", "exchange", "empty"


def damaged(kind: str, content: bytes, other: bytes, rng: random.Random) -> tuple[bytes, bytes]:
    """Return what two files hold after one is cut short, gets a wrong bit, is exchanged with the other or emptied."""
    place, bit = rng.randrange(len(content)), 1 << rng.randrange(8)
    flipped = content[:place] + bytes([content[place] ^ bit]) + content[place + 1 :]
    return {
        "truncate": (content[:place], other),
        "flip": (flipped, other),
        "exchange": (other, content),
        "empty": (b"", other),
    }[kind]


def kills(run: Run, expected: dict[str, bytes], seconds: float, rng: random.Random) -> Iterator[str]:
    """Kill a run within its first `seconds` and start it again. Yield what went wrong; "" if nothing."""
    while True:
        run.clear()
        start, process, moment = time.perf_counter(), run.start(), rng.uniform(0, seconds)
        try:
            process.communicate(timeout=moment)
        except subprocess.TimeoutExpired:
            process.kill()
            process.communicate()
        else:  # it was faster this time
            seconds = time.perf_counter() - start
            continue
        num_kept = len(list(run.stages.glob("*.stage")))
        printed = run.finish()
        wrong = [] if run.results() == expected else ["other bytes"]
        wrong += ["a damaged file"] if "warning: " in printed and str(run.stages) in printed else []
        yield f"killed after {moment:.2f} s with {num_kept} stages: {', '.join(wrong)}" if wrong else ""


def damages(run: Run, expected: dict[str, bytes], rng: random.Random) -> Iterator[str]:
    """Damage a file of a run without its last stage and start it again. Yield what went wrong; "" if nothing."""
    for kind in itertools.cycle(DAMAGES):
        for last in run.stages.glob("evaluate-*.stage"):
            last.unlink()
        one, two = rng.sample(sorted(run.stages.glob("*.stage")), 2)
        before = one.read_bytes(), two.read_bytes()
        after = damaged(kind, *before, rng)
        for path, content in zip((one, two), after, strict=True):
            path.write_bytes(content)
        changed = [path for path, old, new in zip((one, two), before, after, strict=True) if old != new]
        printed = run.finish()
        lines = [line for line in printed.splitlines() if line.startswith("warning: ")]
        wrong = [f"{path.name} not named" for path in changed if sum(str(path) in line for line in lines) != 1]
        wrong += [] if run.results() == expected else ["other bytes"]
        yield f"{kind} {one.name}: {', '.join(wrong)}" if wrong else ""


class Client(threading.Thread):
    """Somebody who answers in haste, and sends an answer again until it is confirmed."""

    def __init__(self, address: str, name: str, rng: random.Random):
        super().__init__(daemon=True)
        self.person, self.rng = Person(address, None, name), rng
        self.confirmed: list[str] = []

    def run(self) -> None:
        """Answer until nothing is left."""
        pending: dict[str, Any] = {}
        while True:
            try:
                if not pending:
                    view = self.person.act("state")
                    if view["phase"] == "done":
                        return
                    for question in view["questions"][:1]:
                        choice = self.rng.choice(["left", "right", "tie", "skip"])
                        pending = {
                            "question": question["id"],
                            "choice": choice,
                            "seconds": 1,
                            "person": self.person.name,
                        }
                if pending:
                    self.person.act("answer", **pending)
                    self.confirmed.append(pending["choice"])
                    pending = {}
            except OSError:  # killed: it comes back
                time.sleep(0.05)


def answers(folder: Path, rng: random.Random) -> Iterator[str]:
    """Kill the program for labelling at random moments. Yield what went wrong; "" if nothing."""
    pairs, number = folder / "pairs.npz", 6000
    numbers = np.random.default_rng(0)
    store.save_pairs(pairs, *(random_trajectories(numbers, [3] * number, 3) for _ in range(2)))
    port = free_port()
    process, address = start_program(pairs, port)
    clients = [Client(address, f"client{place}", rng) for place in range(4)]
    for client in clients:
        client.start()
    while True:
        time.sleep(rng.uniform(0.05, 1.0))
        process.kill()
        process.communicate()
        confirmed = [list(client.confirmed) for client in clients]
        lines = (folder / "labels.jsonl").read_bytes().splitlines()
        try:
            read_labels(lines[:-1], number)  # the last one may be cut off
            wrong = [] if all(map(len, lines)) else ["an empty line"]
        except ValueError as error:
            wrong = [str(error)]
        for client, choices in zip(clients, confirmed, strict=True):
            written = [json.loads(line) for line in lines[1:] if client.person.page.encode() in line]
            sides = [{each["note"]["left"]: "left"}.get(each["choice"], each["choice"]) for each in written]
            found = ["right" if side in ("first", "second") else side for side in sides]
            wrong += [] if found[: len(choices)] == choices else [f"an answer of {client.person.name} is lost"]
        print(f"{sum(map(len, confirmed))} answers are confirmed", flush=True)
        yield ", ".join(wrong)
        process, _ = start_program(pairs, port)


def count(title: str, trials: Iterator[str], number: int) -> bool:
    """Go through so many trials and print the result of each. Returns whether nothing went wrong."""
    wrongs = []
    for _ in range(number):
        wrongs.append(next(trials))
        print(f"{title} {len(wrongs)} of {number}: {wrongs[-1] or 'nothing wrong'}", flush=True)
    print(f"{title}: {wrongs.count('')} of {number} with nothing wrong", flush=True)
    return not any(wrongs)


def main() -> None:
    """Run all trials; exit with code 1 if one made a difference."""
    parser = argparse.ArgumentParser(description=__doc__, epilog="All other flags go to the experiment.")
    for name, default in (("kills", 20), ("damages", 20), ("answers", 50), ("seed", 0)):
        parser.add_argument(f"--{name}", type=int, default=default, help="default: %(default)s")
    args, flags = parser.parse_known_args()
    rng, well = random.Random(args.seed), True
    with tempfile.TemporaryDirectory() as folder:
        well &= count("kill while people answer", answers(Path(folder), rng), args.answers)
        if not args.kills + args.damages:
            raise SystemExit(not well)
        run = Run(Path(folder), flags)
        run.finish()  # its programs are compiled from now on
        expected = run.results()
        run.clear()
        start = time.perf_counter()
        run.finish()
        seconds, same = time.perf_counter() - start, run.results() == expected
        print(f"an undisturbed run takes {seconds:.1f} s; two of them leave the same bytes: {same}", flush=True)
        well &= same
        well &= count("kill", kills(run, expected, seconds, rng), args.kills)
        run.clear()
        run.finish()
        well &= count("damage", damages(run, expected, rng), args.damages)
    if not well:
        raise SystemExit(1)


if __name__ == "__main__":
    main()
