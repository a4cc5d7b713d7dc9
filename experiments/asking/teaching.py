"""Teach a policy: it plays, a person says which clips are better, it learns, and plays again."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import json
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, NamedTuple

import jax
import numpy as np
from rich.console import Console

from experiments.asking import labelling, quality
from experiments.asking.answers import read_answers
from experiments.asking.server import serving
from experiments.asking.site import Site
from experiments.harness import devices, folder
from experiments.harness.errors import UsageError
from experiments.harness.memo import Memo
from experiments.harness.stages import Stages
from experiments.pipeline import functions
from experiments.pipeline.settings import default_settings, flat
from experiments.reporting import animations
from jaxpref import dpo, online, ppo, reward_model, tasks
from jaxpref.checks import setting
from jaxpref.files import store
from jaxpref.networks import Network, init_policy
from jaxpref.preferences import check_segment
from jaxpref.rollout import episodes
from jaxpref.tasks import Task
from jaxpref.types import Preferences, Trajectory, true_return

EPISODES = 100
"""That a policy's return is the mean of."""


@dataclasses.dataclass(frozen=True)
class Teach(labelling.Page):
    """Who is taught, and in how many rounds."""

    task: str = "cartpole"
    """cartpole, acrobot, or any gymnax id."""
    fixed_horizon: bool = False
    """Let all episodes go on to the horizon."""
    start: str = "pi2"
    """The first policy: pi2, trained a little on the true reward; random; or a file, the policy.npz of a round, or
    FILE:NAME for a policy of a run's policies.npz, of its first seed and its most pairs."""
    method: Literal["rlhf", "dpo"] = "rlhf"
    """How it learns: a reward model and PPO, or DPO."""
    num_rounds: int = setting(5, low=1, high=100)
    num_pairs: int = setting(20, low=2, high=1000)
    """Pairs of each round."""
    segment: int | None = setting(None, low=1)
    """Compare clips of this many steps; None: whole episodes."""
    seed: int = setting(0, low=0, high=2**32 - 1)
    out: Path | None = None
    """Folder of all rounds and the report; None: results/teach-TASK."""
    reward_model: reward_model.Config = dataclasses.field(default_factory=reward_model.Config)
    ppo: ppo.Config = dataclasses.field(default_factory=ppo.Config)
    dpo: dpo.Config = dataclasses.field(default_factory=dpo.Config)
    online: online.Config = dataclasses.field(default_factory=lambda: online.Config(num_candidates=4))

    @property
    def folder(self) -> Path:
        """The folder of all rounds and the report."""
        return self.out or Path("results") / f"teach-{self.task}"

    @property
    def configs(self) -> tuple:
        """What the stages of a round need: the config of the rounds, and those of the trainers."""
        rounds = dataclasses.replace(self.online, num_rounds=self.num_rounds)
        return (rounds, self.dpo) if self.method == "dpo" else (rounds, self.reward_model, self.ppo)


class Setup(NamedTuple):
    """What is static in the stages of a round."""

    task: Task
    num_pairs: int
    segment: int | None


def _parts(setup: Setup, configs: tuple, seed: jax.Array, start: Network) -> online.Rounds:
    rounds, *trainers = configs
    rest = setup.num_pairs, start, start, setup.segment
    if len(trainers) == 1:
        return online.dpo_rounds(setup.task, rounds, trainers[0], *rest)
    return online.rlhf_rounds(setup.task, rounds, trainers[0], trainers[1], jax.random.key(seed), *rest)


def begin(setup: Setup, configs: tuple, seed: jax.Array, start: Network) -> online.Networks:
    """Return the networks of the first round."""
    return _parts(setup, configs, seed, start).networks


def play(
    setup: Setup, configs: tuple, seed: jax.Array, number: jax.Array, start: Network, networks: online.Networks
) -> tuple[Trajectory, Trajectory]:
    """Play the pairs of a round."""
    key = jax.random.fold_in(jax.random.key(seed), 2 * number)
    return _parts(setup, configs, seed, start).play(jax.random.split(key, 4), networks)


def learn(
    setup: Setup,
    configs: tuple,
    seed: jax.Array,
    number: jax.Array,
    start: Network,
    networks: online.Networks,
    preferences: Preferences,
) -> online.Networks:
    """Learn from all answers so far."""
    key = jax.random.fold_in(jax.random.key(seed), 2 * number + 1)
    return _parts(setup, configs, seed, start).learn(key, networks, preferences)[0]


def evaluate(setup: Setup, _: Any, seed: jax.Array, policy: Network) -> tuple[jax.Array, Trajectory]:
    """Return a policy's mean true return, and one of its episodes. All policies have the same initial states."""
    played = episodes(setup.task, policy, jax.random.key(seed), EPISODES)
    return true_return(played).mean(), jax.tree.map(lambda leaf: leaf[0], played)


def teach(settings: Teach, site: Site, stages: Stages, console: Console) -> list[float]:
    """Go through all rounds; return the mean true return before the first round and after each.

    Finished stages are in the memo and answers in their files, so the same call goes on where it was.
    """
    setup = Setup(site.task, settings.num_rounds * settings.num_pairs, settings.segment)
    seeds, seconds = np.array([settings.seed], np.uint32), None

    def stage(name: str, function: Callable, *inputs: Any) -> Any:
        return stages.run(name, functools.partial(function, setup), settings.configs, seeds, *inputs, lanes=1).value

    site.progress("Training the first policy" if settings.start == "pi2" else "Getting ready")
    start = first_policy(settings, site.task, stages)
    networks, results = stage("begin", begin, start), [stage("evaluate", evaluate, start)]
    for number in range(1, settings.num_rounds + 1):
        of_round, rounds = settings.folder / f"round-{number}", np.array([number], np.int32)
        of_round.mkdir(exist_ok=True)
        pairs, labels = of_round / "pairs.npz", of_round / "labels.jsonl"
        if not pairs.exists():
            store.save_pairs(pairs, *_first(stage("play", play, rounds, start, networks)))
        site.status["round"] = number
        site.ask(pairs, labels, settings.repeats)
        site.answered.wait()
        site.progress(f"Learning from {number * settings.num_pairs} pairs", seconds)
        begun, preferences = time.perf_counter(), answers_so_far(settings, number)
        preferences = jax.tree.map(lambda leaf: leaf[None], preferences)
        networks = stage("learn", learn, rounds, start, networks, preferences)
        results.append(stage("evaluate", evaluate, networks[0]))
        store.save_pytree(of_round / "policy.npz", _first(networks[0]))
        site.show(*(_first(episode) for _, episode in results[-2:]))
        means, seconds = [float(mean[0]) for mean, _ in results], time.perf_counter() - begun
        console.print(f"round {number}: mean return {means[-2]:.4g} before, {means[-1]:.4g} after; {seconds:.1f} s")
    report(settings, site.task, _first(start), [_first(result) for result in results], console)
    site.status["phase"] = "done"
    return means


def _first(tree: Any) -> Any:
    return jax.tree.map(lambda leaf: leaf[0], tree)


def first_policy(settings: Teach, task: Task, stages: Stages) -> Network:
    """Return the policy of round 1 [1, ...]. Raises UsageError for a file that does not hold it."""
    seeds, untrained = np.array([settings.seed], np.uint32), init_policy(jax.random.key(settings.seed), task)
    if settings.start == "random":
        return jax.tree.map(lambda leaf: np.asarray(leaf)[None], untrained)
    if settings.start == "pi2":
        study = default_settings(settings.task, "rlhf")
        train = functools.partial(functions.with_keys, functools.partial(functions.train_experts, task))
        return stages.run(study.expert_stage, train, study.expert_config, seeds, lanes=8).value.pi2
    path, _, name = settings.start.partition(":")
    try:
        tree = store.load_params(path)
        params = (tree[name] if name else tree)["params"]
        # A run's policies have an axis of seeds, and trained ones an axis of sizes.
        return jax.tree.map(
            lambda like, leaf: np.asarray(leaf)[(0, -1)[: leaf.ndim - like.ndim]].reshape(1, *like.shape),
            untrained,
            Network(untrained.module, params),
        )
    except (OSError, LookupError, ValueError, TypeError) as error:
        raise UsageError(
            f"--start {settings.start} is neither pi2, random nor a policy of {task.name}: {error}"
        ) from error


def answers_so_far(settings: Teach, num_rounds: int) -> Preferences:
    """Read the answers of the first rounds, as preferences of all rounds: what is not asked yet has weight zero."""
    folders = [settings.folder / f"round-{number}" for number in range(1, num_rounds + 1)]
    parts = [store.load_labels(folder / "labels.jsonl", folder / "pairs.npz") for folder in folders]
    missing = (settings.num_rounds - num_rounds) * settings.num_pairs

    def join(*leaves: Any) -> np.ndarray:
        joined = np.concatenate(leaves)
        return np.concatenate([joined, np.zeros((missing, *joined.shape[1:]), joined.dtype)])

    return jax.tree.map(join, *parts)


def report(settings: Teach, task: Task, start: Network, results: list, console: Console) -> None:
    """Write `report.html`: the policy round by round, and how far to trust the answers."""
    answers, gaps = {}, []
    for number in range(settings.num_rounds):
        folder = settings.folder / f"round-{number + 1}"
        first, second = store.load_pairs(folder / "pairs.npz")
        gaps.append(np.asarray(true_return(first) - true_return(second)))
        for (pair, repeat), answer in read_answers((folder / "labels.jsonl").read_bytes().splitlines()).items():
            pair += number * settings.num_pairs
            answers[pair, repeat] = answer._replace(pair=pair)
    lines = quality.report(answers, np.concatenate(gaps), settings.share_of_checks)
    lines += quality.of_models(task, answers_so_far(settings, settings.num_rounds), start)
    longest = max(int(episode.mask.sum()) for _, episode in results)
    names = ["the first policy", *(f"after round {number}" for number in range(1, settings.num_rounds + 1))]
    rounds = [
        {"animation": animations.animation(task, name, episode, longest), "mean": float(mean)}
        for name, (mean, episode) in zip(names, results, strict=True)
    ]
    labelling.report(console, settings.folder, settings.instruction, lines, rounds=rounds)


def run(settings: Teach, console: Console) -> None:
    """Teach a policy, with the page in a browser."""
    devices.set_up_jax(1)
    try:
        task = tasks.task(settings.task, fixed_horizon=settings.fixed_horizon)
        check_segment(task, settings.segment)
    except ValueError as error:
        raise UsageError(str(error)) from error
    with folder.locked(settings.folder), Stages(Memo()) as stages:
        check_same(settings)
        site = Site(task, settings.instruction, settings.num_rounds)
        with serving(site, settings.folder, settings.host, settings.port) as address:
            labelling.announce(console, address, settings)
            try:
                teach(settings, site, stages, console)
            except ValueError as error:
                raise UsageError(str(error)) from error
            console.print("Ctrl-C ends")
            with contextlib.suppress(KeyboardInterrupt):
                threading.Event().wait()


def check_same(settings: Teach) -> None:
    """Keep the settings in the folder. Raises UsageError if it holds rounds with other ones."""
    own, path = flat(settings), settings.folder / "settings.json"
    own = {name: value for name, value in own.items() if name not in ("out", "host", "port", "instruction", "checks")}
    own = json.loads(json.dumps(own, default=str))
    earlier = store.load_json(path) if path.exists() else own
    if differing := [name for name in own if own[name] != earlier.get(name)]:
        words = ", ".join(f"--{name}" for name in differing)
        raise UsageError(f"{settings.folder} holds rounds with another {words}: name another folder with --out")
    store.save_json(path, own)
