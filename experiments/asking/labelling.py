"""Let people label pairs in a browser, and report how far to trust their answers."""

import contextlib
import dataclasses
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import jax
import jax.numpy as jnp
import numpy as np
import tyro
from jinja2 import StrictUndefined, Template
from markupsafe import Markup
from rich.console import Console
from rich.table import Table

from experiments import ROOT
from experiments.asking import quality
from experiments.asking.answers import read_answers
from experiments.asking.server import HERE, serving
from experiments.asking.site import Site
from experiments.harness import devices, folder
from experiments.harness.errors import UsageError
from experiments.pipeline import pipeline
from experiments.pipeline.settings import MOST, from_config
from experiments.reporting.page import data_uri
from jaxpref import tasks
from jaxpref.checks import setting
from jaxpref.files import store
from jaxpref.networks import Network, init_policy
from jaxpref.preferences import check_segment, clip_pairs
from jaxpref.rollout import episodes
from jaxpref.tasks import Task
from jaxpref.types import Trajectory, true_return

INSTRUCTION = "Which one does the task better?"
REPORT, PAGE_STYLE = Path(__file__).with_name("report.html.jinja"), ROOT / "experiments" / "reporting" / "style.css"


@dataclasses.dataclass(frozen=True)
class Page:
    """How the page is served, and what it asks for."""

    instruction: str = INSTRUCTION
    """What to prefer, in words for the person who answers."""
    repeats: float = setting(0.1, low=0, high=1)
    """Share of the pairs that come again, with their sides exchanged."""
    checks: float | None = setting(None, low=0, high=1)
    """Share of the pairs that count as clear: those whose true returns differ most. None: 0.05, but 0 with a custom
    instruction."""
    host: str = "127.0.0.1"
    """Address to listen on. 0.0.0.0 lets other machines in that have the token of the printed address."""
    port: int = setting(8777, low=0, high=65535)
    """0: any free one."""

    @property
    def share_of_checks(self) -> float:
        """The share of checks that is meant."""
        return (0.05 if self.instruction == INSTRUCTION else 0.0) if self.checks is None else self.checks


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
    """Task of the pairs in the file, as in `experiments.run`: it says how to draw them. Without it, or for another task
    than these, a clip shows the features of the observations."""
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
    labels = settings.folder / "labels.jsonl"
    with folder.locked(settings.folder):
        try:
            task, pairs, policy = _of_run(settings) if settings.pairs is None else _of_file(settings, settings.pairs)
            if settings.report:
                lines = describe(task, pairs, labels, settings.share_of_checks, policy)
                report(console, settings.folder, settings.instruction, lines)
                return
            site = Site(task, settings.instruction)
            questions = site.ask(pairs, labels, settings.repeats)
        except ValueError as error:
            raise UsageError(f"{error}; --out names another folder") from error
        with serving(site, settings.folder, settings.host, settings.port) as address:
            announce(console, address, settings)
            console.print(f"answers: {labels}; Ctrl-C ends, and the same command goes on", highlight=False)
            with contextlib.suppress(KeyboardInterrupt):
                site.answered.wait()
                console.print("all is answered; Ctrl-C ends")
                threading.Event().wait()
        console.print(f"{len(questions.answers)} answers. The same command with --report says how far to trust them.")


def announce(console: Console, address: str, page: Page) -> None:
    """Print where the page is."""
    console.print(f"open {address}", highlight=False, soft_wrap=True)
    if page.host not in HERE:
        words = "warning: whoever has this address can answer, from any machine that reaches this one"
        console.print(words, style="bold yellow", soft_wrap=True)


def _of_file(settings: Label, pairs: Path) -> tuple[Task, Path, None]:
    """Return the task of a file of pairs: the named one, or one that has nothing but the sizes of the data."""
    if settings.task:
        return tasks.task(settings.task), pairs, None
    first, second = store.load_pairs(pairs)
    continuous = first.action.ndim == 3
    most = max(int(np.where(each.mask, each.action, 0).max()) for each in (first, second)) if not continuous else 0
    num_actions = first.action.shape[-1] if continuous else 1 + most
    action_range = ((-1.0, 1.0),) * num_actions if continuous else None
    return tasks.offline(first.obs.shape[-1], num_actions, first.mask.shape[-1], action_range), pairs, None


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
    path = settings.folder / "pairs.npz"
    if path.exists():  # from an earlier start
        if (number := len(store.load_pairs(path, task)[0].mask)) != settings.num_pairs:
            raise ValueError(f"{path} holds {number} pairs, and --num-pairs is {settings.num_pairs}")
        return task, path, pi2

    @jax.jit
    def play(key: jax.Array) -> tuple[Trajectory, Trajectory]:
        key_first, key_second, key_clip = jax.random.split(key, 3)
        first = episodes(task, pi1, key_first, settings.num_pairs)
        second = episodes(task, pi2, key_second, settings.num_pairs)
        return clip_pairs(key_clip, first, second, segment)

    store.save_pairs(path, *play(jax.random.key(config.seeds[0])))
    return task, path, pi2


# --- the report -------------------------------------------------------------------------------------------------------


def describe(task: Task, pairs: Path, labels: Path, checks: float, policy: Network | None) -> list[quality.Line]:
    """Describe the answers in a file, and what models learn from them."""
    first, second = store.load_pairs(pairs)
    preferences = store.load_labels(labels, pairs)
    gaps = np.asarray(true_return(first) - true_return(second))
    answers = read_answers(labels.read_bytes().splitlines())
    return [*quality.report(answers, gaps, checks), *quality.of_models(task, preferences, policy)]


def report(console: Console, out: Path, title: str, lines: Sequence[quality.Line], **more: Any) -> None:
    """Print the lines, and write them into `report.html`. `more` is for the page alone."""
    table = Table("", "", "", box=None, show_header=False)
    for line in lines:
        table.add_row(line.name, line.shown, line.text)
    console.print(table)
    source, style = (path.read_text() for path in (REPORT, PAGE_STYLE))
    text = Template(source, autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True).render(
        title=title, lines=lines, style=Markup(style), data_uri=data_uri, **{"rounds": [], **more}
    )
    with store.atomic_write(out / "report.html") as file:
        file.write(text.encode())
    console.print(f"written to {out / 'report.html'}", highlight=False, soft_wrap=True)
