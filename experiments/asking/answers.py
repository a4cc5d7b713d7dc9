"""Which pair is asked next, and the file of answers: docs/preferences-format.md.

Everything follows from the file of pairs and the file of answers, so a server that was killed goes on where it was.
"""

import contextlib
import hashlib
import json
import os
import threading
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from jaxpref.files.labels import read_labels

LEASE_S = 120.0
"""Seconds in which nobody else is asked about a pair that somebody was given."""
LATER = 5
"""Other questions between a pair and its repetition, at least."""


class Question(NamedTuple):
    """A pair to ask about. `left` is the trajectory on the left side: "first" or "second"."""

    id: str
    pair: int
    repeat: bool
    left: str


class Answer(NamedTuple):
    """An answer that counts. `note` has its time, seconds, sides, annotator and page."""

    pair: int
    choice: str
    note: dict[str, Any]


Asked = tuple[int, bool]
"""A pair, and whether it is its repetition."""


def questions_of(num_pairs: int, sha256: str, repeats: float) -> dict[Asked, Question]:
    """Return all questions, in the order in which they are asked. A share `repeats` comes again, sides exchanged."""
    rng = np.random.default_rng(int(sha256, 16))
    pairs, swapped = rng.permutation(num_pairs).tolist(), rng.random(num_pairs) < 0.5
    num_repeats = round(repeats * num_pairs)
    again = rng.uniform(np.arange(num_repeats) + LATER, num_pairs + LATER)
    order = np.argsort(np.concatenate([np.arange(num_pairs), again]), kind="stable")
    asked = [(pair, False) for pair in pairs] + [(pair, True) for pair in pairs[:num_repeats]]
    questions = {}
    for pair, repeat in (asked[place] for place in order):
        name = hashlib.sha256(f"{sha256} {pair} {repeat}".encode()).hexdigest()[:16]
        questions[pair, repeat] = Question(name, pair, repeat, ("first", "second")[int(swapped[pair] ^ repeat)])
    return questions


def read_answers(lines: list[bytes]) -> dict[Asked, Answer]:
    """Return the answers that count, in their order: the last one to each question, without those that were undone."""
    answers: dict[Asked, Answer] = {}
    for line in filter(bytes.strip, lines):
        entry = json.loads(line)
        if "pair" in entry:
            note = entry.get("note") if isinstance(entry.get("note"), dict) else {}
            key = entry["pair"], bool(note.get("repeat"))
            answers.pop(key, None)
            if not note.get("undo"):
                answers[key] = Answer(entry["pair"], entry["choice"], note)
    return answers


def _mended(labels: Path) -> list[bytes]:
    """Return the lines of the file. A last line that a crash cut off was never confirmed: remove it."""
    data = labels.read_bytes() if labels.exists() else b""
    *lines, last = data.split(b"\n")
    if last:
        try:
            json.loads(last)
        except ValueError:
            os.truncate(labels, len(data) - len(last))
        else:
            with labels.open("ab") as file:
                file.write(b"\n")
            lines.append(last)
    return lines


class Questions:
    """The questions about a file of pairs, and their answers in the file `labels`. Several threads may use it."""

    def __init__(self, pairs: Path, num_pairs: int, labels: Path, repeats: float = 0.0):
        sha256 = hashlib.sha256(pairs.read_bytes()).hexdigest()
        self.all = questions_of(num_pairs, sha256, repeats)
        self.by_id = {question.id: question for question in self.all.values()}
        self._lock, self._leases_path = threading.RLock(), labels.with_name(f".{labels.name}.leases")
        self._leases: dict[int, tuple[str, float]] = {}
        with contextlib.suppress(FileNotFoundError, ValueError):
            self._leases = {int(pair): lease for pair, lease in json.loads(self._leases_path.read_text()).items()}
        self._labels = labels
        lines = _mended(labels)
        if not lines:
            self._append({"pairs": sha256})
        read_labels(lines, num_pairs, sha256)  # raises ValueError for answers to other pairs
        self.answers = read_answers(lines)

    def _append(self, entry: dict[str, Any]) -> None:
        """Add a line. It is on disk when this returns; if that fails, none of it is left."""
        with self._labels.open("ab", buffering=0) as file:
            size = file.tell()
            try:
                file.write(json.dumps(entry).encode() + b"\n")
                os.fsync(file.fileno())
            except OSError:
                file.truncate(size)
                raise

    @property
    def complete(self) -> bool:
        """Whether every question has its answer."""
        return len(self.answers.keys() & self.all.keys()) == len(self.all)

    def give(self, page: str, have: list[str], most: int) -> list[Question]:
        """Return questions for a page beside those that it has. First come those that it was given earlier."""
        with self._lock:
            now, open_ = time.time(), [each for key, each in self.all.items() if key not in self.answers]
            has = [question for question in open_ if question.id in have]
            free = [question for question in open_ if question not in has and not self._taken(question, page, now)]
            given = sorted(free, key=lambda question: question.pair not in self._leases)[: max(0, most - len(has))]
            for question in (*has, *given):
                self._leases[question.pair] = page, now + LEASE_S
            self._leases_path.write_text(json.dumps(self._leases))  # not synced: it outlives this process, no more
            return given

    def _taken(self, question: Question, page: str, now: float) -> bool:
        owner, end = self._leases.get(question.pair, (page, 0.0))
        return (owner != page and now < end) or (question.repeat and (question.pair, False) not in self.answers)

    def answer(self, name: str, choice: str, seconds: float, annotator: str, page: str) -> None:
        """Write an answer: left, right, tie or skip. A page may send the same one again. KeyError: no such question."""
        with self._lock:
            question = self.by_id[name]
            sides = {"left": question.left, "right": "second" if question.left == "first" else "first"}
            choice, key = sides.get(choice, choice), (question.pair, question.repeat)
            before = self.answers.get(key)
            if before and (before.choice, before.note.get("page")) == (choice, page):
                return
            when = datetime.now(UTC).isoformat(timespec="seconds")
            note = {"time": when, "seconds": round(seconds, 3), "left": question.left, "repeat": question.repeat}
            note |= {"annotator": annotator, "page": page}
            self._append({"pair": question.pair, "choice": choice, "note": note})
            self.answers.pop(key, None)
            self.answers[key] = Answer(question.pair, choice, note)

    def undo(self, page: str) -> Question | None:
        """Take a page's last answer back, with one more line, and return its question; None if there is none."""
        with self._lock:
            own = [key for key, answer in self.answers.items() if answer.note.get("page") == page and key in self.all]
            if not own:
                return None
            pair, repeat = own[-1]
            counts = self.answers.get((pair, not repeat))  # the answer that counts from now on
            choice = counts.choice if counts else "skip"
            self._append({"pair": pair, "choice": choice, "note": {"undo": True, "repeat": repeat, "page": page}})
            del self.answers[pair, repeat]
            return self.all[pair, repeat]
