"""A scripted person: answers over HTTP, from nothing but the pictures that the page shows.

`PYTHONPATH=. python tests/scripted_person.py --help` lets it teach CartPole on several seeds, and draws the result.
"""

from __future__ import annotations

import dataclasses
import io
import json
import sys
import threading
import time
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal
from urllib.parse import parse_qs, urlsplit

import jax
import numpy as np
from PIL import Image, ImageColor
from rich.console import Console
from rich.table import Table

from experiments.asking import teaching
from experiments.asking.server import serving
from experiments.asking.site import Site
from experiments.harness import devices
from experiments.harness.cli import read
from experiments.harness.errors import exit_codes
from experiments.reporting import figures
from jaxpref import tasks
from jaxpref.analysis import plots, statistics
from jaxpref.checks import setting
from jaxpref.files import store
from jaxpref.rollout import episodes

Judge = Callable[[np.ndarray, np.ndarray], str]
"""Pictures of the left and of the right clip [frames, height, width, 3] -> left, right, tie or skip."""


class Person:
    """Somebody who has the page open at this address."""

    def __init__(self, address: str, judge: Judge, name: str = "scripted"):
        parts = urlsplit(address)
        self.base, self.token = f"http://{parts.netloc}", parse_qs(parts.query)["token"][0]
        self.judge, self.name, self.page = judge, name, f"{name}-{time.monotonic_ns()}"

    def request(self, path: str, body: dict[str, Any] | None = None) -> bytes:
        """Send a request as the page does."""
        headers = {"Authorization": f"Bearer {self.token}", "Content-Type": "application/json"}
        data = None if body is None else json.dumps(body).encode()
        with urllib.request.urlopen(urllib.request.Request(f"{self.base}/{path}", data, headers), timeout=60) as reply:
            return reply.read()

    def act(self, action: str, **fields: Any) -> dict[str, Any]:
        """Do what the page can do; return what it would show."""
        return json.loads(self.request(action, {"page": self.page, **fields}))

    def pictures(self, question: dict[str, Any], side: str) -> np.ndarray:
        """Fetch the pictures of a clip."""
        sheet = np.asarray(Image.open(io.BytesIO(self.request(f"clip/{question['id']}/{side}"))).convert("RGB"))
        frames, columns = question["frames"][side == "right"], question["columns"]
        height, width = sheet.shape[0] // -(-frames // columns), sheet.shape[1] // columns
        rows = sheet.reshape(-1, height, columns, width, 3)
        return rows.swapaxes(1, 2).reshape(-1, height, width, 3)[:frames]

    def answer_all(self) -> None:
        """Answer until there is nothing left to ask."""
        while (view := self.act("state"))["phase"] != "done":
            for question in view["questions"][:1]:
                choice = self.judge(*(self.pictures(question, side) for side in ("left", "right")))
                self.act("answer", question=question["id"], choice=choice, seconds=1.0, person=self.name)
            if not view["questions"]:
                time.sleep(0.05)


# --- what it teaches --------------------------------------------------------------------------------------------------

LEFT = -0.5
"""Metres: further left than this is what the scripted person wishes."""
NUM_EPISODES = 100


def longer(left: np.ndarray, right: np.ndarray) -> str:
    """Prefer the clip with more pictures: the pole falls later."""
    return _larger(len(left), len(right), margin=0)


def leftward(left: np.ndarray, right: np.ndarray) -> str:
    """Prefer the clip that shows the cart further left than LEFT in more pictures."""
    return _larger(_pictures_left(left), _pictures_left(right), margin=2)


def _larger(left: int, right: int, margin: int) -> str:
    return "tie" if abs(left - right) <= margin else "left" if left > right else "right"


def _pictures_left(pictures: np.ndarray) -> int:
    """Find the cart by its colour. 5.2 m are the width of a picture of CartPole."""
    is_cart = np.abs(pictures.astype(int) - ImageColor.getrgb(plots.GREY)).sum(-1) < 30
    num_pixels, metres = is_cart.sum((1, 2)), (np.arange(pictures.shape[2]) / pictures.shape[2] - 0.5) * 5.2
    centre = (is_cart.sum(1) * metres).sum(1) / np.maximum(num_pixels, 1)
    return int(((num_pixels > 50) & (centre < LEFT)).sum())  # a faint cart is that of an episode that is over


@dataclasses.dataclass(frozen=True)
class Lesson:
    """What the scripted person wishes, and how often it is asked."""

    wish: Literal["left", "longer"] = "left"
    """left: the cart further left than half a metre, which no reward says; longer: the pole up for longer."""
    mistake_prob: float = setting(0.0, low=0, high=1)
    """Share of the answers that are the opposite of what was meant."""
    num_seeds: int = setting(10, low=1)
    num_rounds: int = setting(10, low=1)
    num_pairs: int = setting(20, low=2)
    """Of each round."""
    out: Path = Path("results/scripted")
    """Folder of every seed's rounds, and of the figure."""


def judge_of(lesson: Lesson, seed: int) -> Judge:
    """Return what the person answers, with its mistakes."""
    means, rng = {"left": leftward, "longer": longer}[lesson.wish], np.random.default_rng(seed)

    def judge(left: np.ndarray, right: np.ndarray) -> str:
        return means(right, left) if rng.random() < lesson.mistake_prob else means(left, right)

    return judge


def teach(lesson: Lesson, seed: int) -> np.ndarray:
    """Teach a policy over HTTP. Return (mean return, share of time on the left) before and after each round."""
    shape = {"num_rounds": lesson.num_rounds, "num_pairs": lesson.num_pairs, "repeats": 0.0}
    settings = teaching.Teach(**shape, seed=seed, out=lesson.out / f"{lesson.wish}-{lesson.mistake_prob:g}" / str(seed))
    task, console = tasks.cartpole(), Console(quiet=True)
    settings.folder.mkdir(parents=True, exist_ok=True)
    site = Site(task, lesson.wish, lesson.num_rounds)
    with serving(site, settings.folder, "127.0.0.1", 0) as address:
        person = threading.Thread(target=Person(address, judge_of(lesson, seed)).answer_all)
        person.start()
        first = teaching.first_policy(settings, task)
        teaching.teach(settings, site, first, console)
        person.join()
    paths = [settings.folder / f"round-{number}" / "policy.npz" for number in range(1, lesson.num_rounds + 1)]
    return np.array([_measure(policy) for policy in (first, *(store.load_pytree(path, first) for path in paths))]).T


@jax.jit
def _measure(policy: Any) -> tuple[jax.Array, jax.Array]:
    played = episodes(tasks.cartpole(), policy, jax.random.key(0), NUM_EPISODES)
    return played.reward.sum(-1).mean(), (played.mask & (played.obs[..., 0] < LEFT)).mean()


def main(lesson: Lesson, console: Console) -> None:
    """Teach on all seeds; print what has changed, and draw it."""
    devices.set_up_jax(1)
    measured = np.stack([teach(lesson, seed) for seed in range(lesson.num_seeds)])  # [S, 2, rounds + 1]
    table, names = Table("", "before", "after", box=None), ("return", "share of time on the left")
    lesson.out.mkdir(parents=True, exist_ok=True)
    with figures.style():
        figure, panels = figures.panels(2)
        for name, values, panel in zip(names, np.moveaxis(measured, 1, 0), panels.flat, strict=True):
            table.add_row(name, described(values[:, 0]), described(values[:, -1]))
            plots.curve(panel, lesson.num_pairs * np.arange(lesson.num_rounds + 1), values, "", plots.COLOURS[0])
            panel.set(xlabel="answers", ylabel=name)
        seeds = f"{lesson.num_seeds} seeds, mean and 10-90 % of seeds"
        figures.finish(figure, f"CartPole taught over HTTP by a scripted person, {seeds}")
        figures.save(figure, lesson.out / f"{lesson.wish}.png")
    console.print(f"IQM of {lesson.num_seeds} seeds (95 %), {lesson.num_rounds * lesson.num_pairs} answers each", table)


def described(scores: np.ndarray) -> str:
    """Return the interquartile mean with its interval, and the lowest score."""
    low, high = statistics.bootstrap_interval(scores)
    return f"{statistics.iqm(scores):.4g} ({low:.4g} to {high:.4g}), lowest {scores.min():.4g}"


if __name__ == "__main__":
    with exit_codes():
        main(read(Lesson, sys.argv[1:], "scripted", __doc__ or ""), Console())
