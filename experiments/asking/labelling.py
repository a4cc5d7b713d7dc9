"""Let people label pairs in a browser, and report how far to trust their answers."""

import contextlib
import dataclasses
import functools
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import jax
import jax.numpy as jnp
import numpy as np
import tyro
from rich.console import Console
from rich.table import Table
from rich.text import Text

from experiments.asking import quality
from experiments.asking.server import LOOPBACK, serving
from experiments.asking.site import Site
from experiments.harness import devices, folder
from experiments.harness.errors import UsageError
from experiments.pipeline import pipeline
from experiments.pipeline.settings import MOST, flag, from_config
from experiments.reporting.page import write_html
from jaxpref import tasks
from jaxpref.checks import setting
from jaxpref.files import store
from jaxpref.networks import Network, init_policy
from jaxpref.preferences import check_segment, clip_pairs
from jaxpref.rollout import episodes
from jaxpref.tasks import Task

TEMPLATE = Path(__file__).with_name("report.html.jinja")
SETTINGS = "settings.json"
"""The file in a folder of answers that says which settings it was made with."""


@dataclasses.dataclass(frozen=True)
class Page:
    """How the page is served, and what it asks for."""

    instruction: str = "Which one does the task better?"
    """What to prefer, in words for the person who answers."""
    repeats: float = setting(0.1, low=0, high=1)
    """Share of the pairs that come again, with their sides exchanged."""
    checks: float = setting(0.05, low=0, high=1)
    """Share of the pairs that have a clear answer: those whose true returns differ most. 0 if the instruction means
    something else."""
    host: str = "127.0.0.1"
    """Address to listen on. With 0.0.0.0, other machines may open the page, too; they need the printed token."""
    port: int = setting(8777, low=0, high=65535)
    """0: any free one."""


@dataclasses.dataclass(frozen=True)
class Label(Page):
    """What is asked about: a file of pairs, or pairs that pi1 and pi2 of a finished run play."""

    pairs: Annotated[Path | None, tyro.conf.Positional] = None
    """A file of `store.save_pairs`."""
    run: Path = Path("results/cartpole-dpo")
    """Without a file: a run's folder of results. Its first seed's pi1 and pi2 play the pairs."""
    num_pairs: int = setting(50, low=1, high=MOST)
    """How many pairs they play."""
    segment: int | None = setting(None, low=1)
    """They play clips of this many steps; None: as the run did."""
    task: str = ""
    """Task of the pairs in the file, as in `experiments.run`: it says how to draw them. Without it, a clip shows the
    features of the observations."""
    out: Path | None = None
    """Folder of answers and report; None: that of the file, or results/label-RUN."""
    report: bool = False
    """Do not ask. Print how far to trust the answers, and write report.html."""

    @property
    def folder(self) -> Path:
        """The folder of answers and report."""
        return self.out or (self.pairs.parent if self.pairs else Path("results") / f"label-{self.run.name}")


def run(settings: Label, console: Console) -> None:
    """Ask about the pairs until the program is interrupted, or report the answers."""
    devices.set_up_jax(1)
    try:
        task, pairs, policy = _of_file(settings, settings.pairs) if settings.pairs else _of_run(settings)
        if settings.report:
            measures = quality.describe(task, [(pairs, settings.folder / "labels.jsonl")], settings.checks, policy)
            report(console, settings.folder, settings.instruction, measures)
        else:
            ask(task, pairs, settings.folder, settings, console)
    except ValueError as error:
        raise UsageError(str(error)) from error


def ask(task: Task, pairs: Path, out: Path, page: Page, console: Console) -> None:
    """Ask about a file of pairs until the program is interrupted. The answers are in `out`, in labels.jsonl.

    Raises ValueError for a file that does not hold pairs of this task, or for answers to other pairs.
    """
    with folder.locked(out):
        site, labels = Site(task, page.instruction), out / "labels.jsonl"
        questions = site.ask(pairs, labels, page.repeats)
        with serving(site, out, page.host, page.port) as address:
            announce(console, address, page)
            console.print(f"answers: {labels}; Ctrl-C ends, and the same command goes on", highlight=False)
            with contextlib.suppress(KeyboardInterrupt):
                site.answered.wait()
                console.print("everything is answered; Ctrl-C ends")
                threading.Event().wait()
        console.print(f"{questions.num_answered} answers. The same command with --report says how far to trust them.")


def announce(console: Console, address: str, page: Page) -> None:
    """Print where the page is."""
    console.print(f"open {address}", highlight=False, soft_wrap=True, markup=False)
    if page.host not in LOOPBACK:
        words = "warning: whoever has this address can answer, from any machine that reaches this one"
        console.print(words, style="bold yellow", soft_wrap=True)


def check_same(out: Path, settings: dict[str, Any]) -> None:
    """Check that the folder was made with these settings, if it has some. UsageError names those that differ."""
    path = out / SETTINGS
    earlier = store.load_json(path) if path.exists() else settings
    if differing := [f"--{flag(name)}" for name in settings if settings[name] != earlier.get(name)]:
        raise UsageError(f"{out} was made with another {', '.join(differing)}: name another folder with --out")


def _of_file(settings: Label, pairs: Path) -> tuple[Task, Path, None]:
    """Return the task of a file of pairs: the named one, or one that has nothing but the sizes of the data."""
    if settings.task:
        return tasks.task(settings.task), pairs, None
    sides = store.load_pairs(pairs)
    (*_, horizon, obs_size), action = sides[0].obs.shape, sides[0].action
    if action.ndim == 3:
        return tasks.offline(obs_size, action.shape[-1], horizon, ((-1.0, 1.0),) * action.shape[-1]), pairs, None
    num_actions = 1 + max(int(np.where(side.mask, side.action, 0).max()) for side in sides)
    return tasks.offline(obs_size, num_actions, horizon), pairs, None


def _of_run(settings: Label) -> tuple[Task, Path, Network]:
    """Return a run's task, a file of pairs that its first seed's pi1 and pi2 have played, and that pi2."""
    try:
        config = from_config(store.load_json(settings.run / "summary.json")["config"])
    except FileNotFoundError:
        words = f"--run {settings.run} is no finished run: make cartpole-dpo makes one. Or name a file of pairs"
        raise UsageError(words) from None
    task, segment = pipeline.task_of(config), settings.segment or config.segment
    check_segment(task, segment)
    networks = store.load_networks(settings.run / "policies.npz", init_policy(jax.random.key(0), task).module)
    pi1, pi2 = (jax.tree.map(lambda leaf: jnp.asarray(leaf[0]), networks[name]) for name in ("pi1", "pi2"))
    own = {"run": str(settings.run), "num_pairs": settings.num_pairs, "segment": segment}
    check_same(settings.folder, own)
    settings.folder.mkdir(parents=True, exist_ok=True)
    store.save_json(settings.folder / SETTINGS, own)
    pairs = settings.folder / "pairs.npz"
    if not pairs.exists():
        key_first, key_second, key_clip = jax.random.split(jax.random.key(config.seeds[0]), 3)
        play = jax.jit(functools.partial(episodes, task, num_episodes=settings.num_pairs))
        first, second = play(pi1, key_first), play(pi2, key_second)
        store.save_pairs(pairs, *clip_pairs(key_clip, first, second, segment))
    return task, pairs, pi2


def report(console: Console, out: Path, title: str, measures: Sequence[quality.Measure], rounds: Any = ()) -> None:
    """Print the measures, and write them into `report.html`, with an animation of the policy after each round."""
    table = Table(box=None, show_header=False)
    for measure in measures:
        table.add_row(measure.name, measure.shown, Text(measure.text))
    console.print(table)
    path = write_html(TEMPLATE, out / "report.html", title=title, measures=measures, rounds=rounds)
    console.print(f"written to {path}", highlight=False, soft_wrap=True)
