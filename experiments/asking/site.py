"""What the page shows at the moment: questions, or how far the training is, or that all is done."""

import functools
import re
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, cast

import jax

from experiments.asking.answers import Questions
from experiments.asking.clips import Clips
from jaxpref.files import store
from jaxpref.tasks import Task
from jaxpref.types import Trajectory

AHEAD = 3
"""Questions that a page has: one on the screen, and the next ones, loaded already."""


class Site:
    """The state behind the page, for all who have it open.

    status:    goes to the page as it is. Its "phase" is "ask", "train" or "done".
    answered:  set when all questions have an answer.
    """

    def __init__(self, task: Task, instruction: str, rounds: int = 0):
        self.task, self.questions, self.answered = task, cast(Questions | None, None), threading.Event()
        self.status: dict[str, Any] = {"instruction": instruction, "rounds": rounds, "round": 0, "shown": None}
        self._painter, self._comparisons = ThreadPoolExecutor(1), list[Clips]()
        self.progress("Getting ready")

    def ask(self, pairs: Path, labels: Path, repeats: float = 0.0) -> Questions:
        """Ask about the pairs in a file."""
        self._pairs = first, _ = jax.device_get(store.load_pairs(pairs, self.task))
        self.questions = questions = Questions(pairs, len(first.mask), labels, repeats)
        self.draw.cache_clear()
        self._update()
        for question in list(questions.all.values())[: 10 * AHEAD]:  # before somebody waits for them
            self._painter.submit(self.draw, question.id)
        return questions

    def show(self, before: Trajectory, after: Trajectory) -> None:
        """Let the page show what a round of training has changed."""
        self._comparisons.append(Clips(self.task, (before, after)))
        self.status["shown"] = self.describe(f"shown-{len(self._comparisons)}")

    def clips(self, name: str) -> Clips:
        """Return the clips of a question or of a comparison. Raises LookupError if there are none."""
        if number := re.fullmatch(r"shown-([1-9]\d{0,5})", name):
            return self._comparisons[int(number[1]) - 1]
        question = self._asked.by_id[name]
        first, second = (jax.tree.map(lambda leaf: leaf[question.pair], side) for side in self._pairs)
        return Clips(self.task, (first, second) if question.left == "first" else (second, first))

    @functools.lru_cache(maxsize=256)  # noqa: B019  (a program has one site)
    def draw(self, name: str) -> list[bytes]:
        """Draw the clips of that name: a PNG for each side."""
        return self.clips(name).draw()

    def describe(self, name: str) -> dict[str, Any]:
        """Return what the page needs to show these clips."""
        return {"id": name} | self.clips(name).describe()

    def progress(self, stage: str, expected_s: float | None = None) -> None:
        """Let the page show a stage of training, and how long it is expected to take."""
        self.status |= {"phase": "train", "stage": stage, "since": time.monotonic(), "expected": expected_s}

    def _update(self) -> None:
        if self._asked.complete:
            self.status["phase"] = "train" if self.status["rounds"] else "done"
            self.answered.set()
        else:
            self.status["phase"] = "ask"
            self.answered.clear()

    @property
    def _asked(self) -> Questions:
        if self.questions is None:
            raise LookupError("nothing is asked yet")
        return self.questions

    def view(self, page: str, have: list[str]) -> dict[str, Any]:
        """Return what a page needs: the status, how much is done, and questions beside those that it has."""
        view = self.status | {"questions": []}
        view["seconds"] = time.monotonic() - view.pop("since")
        if self.questions:
            view |= {"total": len(self.questions.all), "answered": len(self.questions.answers)}
        if self.questions and view["phase"] == "ask":
            given = self.questions.give(page, have, AHEAD)
            view["questions"] = [self.describe(question.id) for question in given]
        return view

    def answer(self, page: str, question: str, choice: str, seconds: float, name: str) -> None:
        """Write an answer. Raises LookupError for a question that does not exist."""
        self._asked.answer(question, choice, seconds, name, page)
        if self.status["phase"] == "ask":
            self._update()

    def undo(self, page: str) -> dict[str, Any] | None:
        """Take a page's last answer back. Return its question, None if there is none."""
        question = self._asked.undo(page) if self.status["phase"] != "train" else None
        if question is None:
            return None
        self._update()
        return self.describe(question.id)
