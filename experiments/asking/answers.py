"""Which pair is asked next, and the file of answers: docs/preferences-format.md.

All follows from the file of pairs and the file of answers, so a killed server continues when it is started again. A
restart forgets only which page was given which pair.
"""

import hashlib
import json
import os
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from jaxpref.files.labels import read_labels

LEASE_S = 120.0
"""Seconds in which nobody else is asked about a pair that somebody was given."""
HELD = 3
"""Questions that a page holds: one on the screen, and the next ones, loaded already."""
LATER = 5
"""Other questions between a pair and its repetition, if there are so many."""


class Question(NamedTuple):
    """A pair to ask about. `left` and `right` are the trajectories on the sides: "first" and "second", or exchanged."""

    id: str
    pair: int
    repeat: bool
    left: str
    right: str


class Answer(NamedTuple):
    """An answer that counts. `note` has its time, seconds, sides, person and page."""

    choice: str
    note: dict[str, Any]


QuestionKey = tuple[int, bool]
"""A pair, and whether it is its repetition."""


class Lease(NamedTuple):
    """Who was given a pair last, by which question, and until when nobody else gets it."""

    question: str
    page: str
    end: float


def questions_of(num_pairs: int, sha256: str, repeats: float) -> dict[QuestionKey, Question]:
    """Return all questions, in the order in which they are asked. A share `repeats` comes again, sides exchanged."""
    rng = np.random.default_rng(int(sha256, 16))
    pairs, swapped = rng.permutation(num_pairs).tolist(), rng.random(num_pairs) < 0.5
    num_repeats = round(repeats * num_pairs)
    again = rng.uniform(np.arange(num_repeats) + LATER, num_pairs + LATER)
    times: dict[QuestionKey, float] = {(pair, False): time for time, pair in enumerate(pairs)}
    times |= {(pair, True): time for pair, time in zip(pairs[:num_repeats], again, strict=True)}
    questions = {}
    for pair, repeat in sorted(times, key=times.__getitem__):
        name = hashlib.sha256(f"{sha256} {pair} {repeat}".encode()).hexdigest()[:16]
        sides = ("second", "first") if swapped[pair] ^ repeat else ("first", "second")
        questions[pair, repeat] = Question(name, pair, repeat, *sides)
    return questions


def read_answers(lines: list[bytes]) -> dict[QuestionKey, Answer]:
    """Return the answers that count, in their order: the last one to each question, without those that were undone."""
    answers: dict[QuestionKey, Answer] = {}
    for line in filter(bytes.strip, lines):
        _apply(answers, json.loads(line))
    return answers


def _apply(answers: dict[QuestionKey, Answer], entry: dict[str, Any]) -> None:
    """Let one more line of the file count."""
    if "pair" in entry:
        note = entry["note"] if isinstance(entry.get("note"), dict) else {}
        key = entry["pair"], bool(note.get("repeat"))
        answers.pop(key, None)  # a new answer is the last one, also in the order
        if not note.get("undo"):
            answers[key] = Answer(entry["choice"], note)


def read_and_repair(labels: Path) -> list[bytes]:
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
    """The questions about a file of pairs, and their answers in the file `labels`. One thread at a time may use it."""

    def __init__(self, pairs: Path, num_pairs: int, labels: Path, repeats: float = 0.0):
        sha256 = hashlib.sha256(pairs.read_bytes()).hexdigest()
        self.all = questions_of(num_pairs, sha256, repeats)
        self.by_id = {question.id: question for question in self.all.values()}
        self._labels = labels
        self._leases: dict[int, Lease] = {}
        lines = read_and_repair(labels)
        read_labels(lines, num_pairs, sha256)  # raises ValueError for answers to other pairs
        self.answers = read_answers(lines)
        if not lines:
            self._append({"pairs": sha256})

    @property
    def num_answered(self) -> int:
        """How many questions have an answer."""
        return len(self.answers.keys() & self.all.keys())

    def give(self, page: str) -> list[Question]:
        """Return the questions of a page: those that it was given earlier, and new ones up to HELD."""
        now, held, new = time.time(), [], []
        self._leases = {pair: lease for pair, lease in self._leases.items() if lease.end > now}
        for key, question in self.all.items():
            lease = self._leases.get(question.pair)
            if key in self.answers or (lease and lease.page != page):
                continue
            if lease and lease.question == question.id:
                held.append(question)
            elif not question.repeat or (question.pair, False) in self.answers:
                new.append(question)
        held += new[: max(0, HELD - len(held))]
        self._lease(held, page)
        return held

    def _lease(self, questions: list[Question], page: str) -> None:
        end = time.time() + LEASE_S
        self._leases |= {each.pair: Lease(each.id, page, end) for each in questions}

    def answer(self, name: str, choice: str, seconds: float, person: str, page: str) -> None:
        """Write an answer: left, right, tie or skip. A page may send the same one again. KeyError: no such question."""
        question = self.by_id[name]
        choice = {"left": question.left, "right": question.right}.get(choice, choice)
        before = self.answers.get((question.pair, question.repeat))
        if before and (before.choice, before.note.get("page")) == (choice, page):
            return
        when = datetime.now(UTC).isoformat(timespec="seconds")
        note = {"time": when, "seconds": round(seconds, 3), "left": question.left, "repeat": question.repeat}
        self._append({"pair": question.pair, "choice": choice, "note": note | {"person": person, "page": page}})

    def last(self, page: str) -> Question | None:
        """Return the question that a page has answered last; None if there is none."""
        own = [key for key, answer in self.answers.items() if answer.note.get("page") == page and key in self.all]
        return self.all[own[-1]] if own else None

    def undo(self, name: str, page: str) -> None:
        """Take back a page's answer to this question, with one more line, if it is still its last one."""
        question = self.last(page)
        if question and question.id == name:
            other = self.answers.get((question.pair, not question.repeat))  # it counts from now on
            note = {"undo": True, "repeat": question.repeat, "page": page}
            self._append({"pair": question.pair, "choice": other.choice if other else "skip", "note": note})
            self._lease([question], page)

    def _append(self, entry: dict[str, Any]) -> None:
        """Add a line. It is on disk when this returns; if that fails, none of it is left."""
        line = json.dumps(entry).encode() + b"\n"
        with self._labels.open("ab", buffering=0) as file:
            size = file.tell()
            try:
                while line:  # the system may write a part of it
                    line = line[file.write(line) :]
                os.fsync(file.fileno())
            except OSError:
                file.truncate(size)
                raise
        _apply(self.answers, entry)
