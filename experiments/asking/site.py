"""What the page shows at the moment: questions, or how far the training is, or that everything is answered."""

import functools
import operator
import threading
import time
from pathlib import Path
from typing import Any

import jax
import numpy as np

from experiments.asking.answers import Questions
from experiments.asking.clips import Clips
from jaxpref.files import store
from jaxpref.tasks import Task
from jaxpref.types import Trajectory


class Site:
    """The state behind the page, for all who have it open.

    rounds:    0 if there is nothing to do after the last answer.
    status:    goes to the page as it is. Its "phase" is "ask", "train" or "done".
    answered:  set when all questions have an answer.
    """

    def __init__(self, task: Task, instruction: str, rounds: int = 0):
        self.task, self.answered, self._lock = task, threading.Event(), threading.Lock()
        self.status: dict[str, Any] = {"instruction": instruction, "rounds": rounds, "round": 0, "shown": None}
        self.questions: Questions | None = None
        self._clips: dict[str, Clips] = {}
        self.progress("Getting ready")

    def ask(self, pairs: Path, labels: Path, repeats: float = 0.0) -> Questions:
        """Ask about the pairs in a file."""
        first, second = jax.device_get(store.load_pairs(pairs, self.task))
        if empty := np.flatnonzero(~(first.mask.any(-1) & second.mask.any(-1))).tolist():
            raise ValueError(f"{pairs}: pair {empty[0]} has a trajectory without a step")
        questions, sides = Questions(pairs, len(first.mask), labels, repeats), {"first": first, "second": second}
        for each in questions.all.values():
            take = operator.itemgetter(each.pair)
            left, right = (jax.tree.map(take, sides[side]) for side in (each.left, each.right))
            self._clips[each.id] = Clips(self.task, (left, right))
        with self._lock:
            self.questions = questions
            self._update(questions)
        return questions

    def show(self, before: Trajectory, after: Trajectory) -> None:
        """Let the page show what a round of training has changed."""
        name = f"shown-{self.status['round']}"
        self._clips[name] = Clips(self.task, jax.device_get((before, after)))
        self.status["shown"] = self.describe(name)

    @functools.lru_cache(maxsize=256)  # noqa: B019  (a program has one site)
    def draw(self, name: str) -> list[bytes]:
        """Draw the clips of that name: a PNG for each side. Raises KeyError if there are none."""
        return self._clips[name].draw()

    def describe(self, name: str) -> dict[str, Any]:
        """Return what the page needs to show these clips."""
        return {"id": name} | self._clips[name].describe()

    def progress(self, stage: str, expected_s: float | None = None) -> None:
        """Let the page show a stage of training, and how long it is expected to take."""
        self.status |= {"phase": "train", "stage": stage, "since": time.monotonic(), "expected": expected_s}

    def _update(self, questions: Questions) -> None:
        if questions.num_answered < len(questions.all):
            self.status["phase"] = "ask"
            self.answered.clear()
        else:
            self.status["phase"] = "train" if self.status["rounds"] else "done"
            self.answered.set()

    def view(self, page: str) -> dict[str, Any]:
        """Return what a page shows: the status, how much is done, and its questions."""
        with self._lock:
            view = self.status | {"questions": [], "last": None, "seconds": time.monotonic() - self.status["since"]}
            if self.questions:
                last = self.questions.last(page)
                view |= {"total": len(self.questions.all), "answered": self.questions.num_answered}
                view |= {"last": last and last.id}
                if view["phase"] == "ask":
                    view["questions"] = [self.describe(question.id) for question in self.questions.give(page)]
        return view

    def answer(self, page: str, question: str, choice: str, seconds: float, person: str) -> None:
        """Write an answer. Raises KeyError for a question that is not asked now."""
        with self._lock:
            if self.questions is None or self.status["phase"] != "ask":
                raise KeyError(question)
            self.questions.answer(question, choice, seconds, person, page)
            self._update(self.questions)

    def undo(self, page: str, question: str) -> None:
        """Take a page's last answer back, if it is to this question."""
        with self._lock:
            # After the last answer of a round, the training has begun.
            if self.questions and (self.status["phase"] == "ask" or not self.status["rounds"]):
                self.questions.undo(question, page)
                self._update(self.questions)
