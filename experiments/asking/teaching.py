"""Teach a policy: it plays, a person says which clips are better, it learns, and plays again."""

from __future__ import annotations

import concurrent.futures
import contextlib
import dataclasses
import functools
import json
import threading
import time
from pathlib import Path
from typing import Any, Literal

import jax
import jax.numpy as jnp
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

NUM_EPISODES = 100
"""Episodes that a mean return is measured on."""


@dataclasses.dataclass(frozen=True)
class Teach(labelling.Page):
    """Who is taught, and in how many rounds. The trainers' numbers of updates are those of one round."""

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
    ppo: ppo.Config = dataclasses.field(default_factory=lambda: ppo.Config(num_updates=12, eval_every=12))
    dpo: dpo.Config = dataclasses.field(default_factory=lambda: dpo.Config(num_updates=30, eval_every=30))
    online: online.Config = dataclasses.field(default_factory=lambda: online.Config(num_candidates=4))

    @property
    def folder(self) -> Path:
        """The folder of all rounds and the report."""
        return self.out or Path("results") / f"teach-{self.task}"


def rounds_of(settings: Teach, task: Task, start: Network) -> online.Rounds:
    """Return the parts of a round, and the networks of the first one."""
    config = dataclasses.replace(settings.online, num_rounds=settings.num_rounds)
    rest = settings.num_rounds * settings.num_pairs, start, start, settings.segment
    if settings.method == "dpo":
        trainer = dataclasses.replace(settings.dpo, num_updates=settings.dpo.num_updates * settings.num_rounds)
        return online.dpo_rounds(task, config, trainer, *rest)
    player = dataclasses.replace(settings.ppo, num_updates=settings.ppo.num_updates * settings.num_rounds)
    return online.rlhf_rounds(task, config, settings.reward_model, player, jax.random.key(settings.seed), *rest)


def teach(settings: Teach, site: Site, start: Network, console: Console) -> list[float]:
    """Go through all rounds; return the mean true return before the first round and after each.

    Answers, pairs and networks of each round are in files, so the same call goes on where it was.
    """
    site.progress("Getting ready")
    key_evaluate, *keys = jax.random.split(jax.random.key(settings.seed), 1 + settings.num_rounds)
    rounds = rounds_of(settings, site.task, start)
    play, evaluate = jax.jit(rounds.play), jax.jit(functools.partial(_evaluate, site.task, key_evaluate))
    networks, results, seconds = rounds.networks, list[Any](), None
    with concurrent.futures.ThreadPoolExecutor(1) as background:  # while the person answers the first questions
        first_result, learn = background.submit(evaluate, start), background.submit(_compile_learn, settings, rounds)
        for number, key in enumerate(keys, start=1):
            of_round, (key_play, key_learn) = settings.folder / f"round-{number}", jax.random.split(key)
            of_round.mkdir(exist_ok=True)
            if not (of_round / "pairs.npz").exists():
                store.save_pairs(of_round / "pairs.npz", *play(jax.random.split(key_play, 4), networks))
            site.status["round"] = number
            site.ask(of_round / "pairs.npz", of_round / "labels.jsonl", settings.repeats)
            site.answered.wait()
            site.progress(f"Learning from {number * settings.num_pairs} pairs", seconds)
            begun, results = time.perf_counter(), results or [first_result.result()]
            if not (of_round / "networks.npz").exists():
                networks, _ = learn.result()(key_learn, networks, answers_so_far(settings, number))
                store.save_pytree(of_round / "policy.npz", networks[0])
                store.save_pytree(of_round / "networks.npz", networks)
            networks = jax.tree.map(jnp.asarray, store.load_pytree(of_round / "networks.npz", networks))
            results.append(evaluate(networks[0]))
            site.show(*(episode for _, episode in results[-2:]))
            seconds, (before, after) = time.perf_counter() - begun, [mean for mean, _ in results[-2:]]
            console.print(f"round {number}: mean return {before:.4g} before, {after:.4g} after; {seconds:.1f} s")
    site.progress("Writing the report")
    report(settings, site.task, start, results, console)
    site.status["phase"] = "done"
    return [float(mean) for mean, _ in results]


def _compile_learn(settings: Teach, rounds: online.Rounds) -> Any:
    """Compile `rounds.learn` for the preferences of all rounds."""
    key, num_pairs = jax.random.key(0), settings.num_rounds * settings.num_pairs
    sides = jax.eval_shape(rounds.play, jax.random.split(key, 4), rounds.networks)
    chosen, rejected = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct((num_pairs, *leaf.shape[1:]), leaf.dtype), sides)
    number: Any = jax.ShapeDtypeStruct((num_pairs,), jnp.float32)
    preferences = Preferences(chosen, rejected, weight=number, prob=number, target=number)
    return jax.jit(rounds.learn).lower(key, rounds.networks, preferences).compile()


def _evaluate(task: Task, key: jax.Array, policy: Network) -> tuple[jax.Array, Trajectory]:
    """Return a policy's mean true return, and its first episode. All policies have the same initial states."""
    played = episodes(task, policy, key, NUM_EPISODES)
    return true_return(played).mean(), jax.tree.map(lambda leaf: leaf[0], played)


def first_policy(settings: Teach, task: Task) -> Network:
    """Return the policy of round 1. Raises UsageError for a file that does not hold it."""
    untrained = init_policy(jax.random.key(settings.seed), task)
    if settings.start == "random":
        return untrained
    if settings.start == "pi2":
        study, seeds = default_settings(settings.task, "rlhf"), np.array([settings.seed], np.uint32)
        train = functools.partial(functions.with_keys, functools.partial(functions.train_experts, task))
        with Stages(Memo()) as stages:
            experts = stages.run(study.expert_stage, train, study.expert_config, seeds, lanes=8).value
        return jax.tree.map(lambda leaf: jnp.asarray(leaf[0]), experts.pi2)
    path, _, name = settings.start.partition(":")
    try:
        tree = store.load_params(path)
        stored = Network(untrained.module, (tree[name] if name else tree)["params"])
        # A run's policies have an axis of seeds, and trained ones an axis of sizes.
        places = jax.tree.map(lambda like, leaf: (0, -1)[: leaf.ndim - like.ndim], untrained, stored)
        policy = jax.tree.map(lambda leaf, place: jnp.asarray(leaf[place]), stored, places)
        if jax.tree.map(jnp.shape, policy) != jax.tree.map(jnp.shape, untrained):
            raise ValueError("its layers have other sizes")
    except (OSError, LookupError, ValueError, TypeError) as error:
        words = f"--start {settings.start} is neither pi2, random nor a policy of {task.name}"
        raise UsageError(f"{words}: {error}") from error
    return policy


def answers_so_far(settings: Teach, num_rounds: int) -> Preferences:
    """Read the answers of the first rounds, as preferences of all rounds: what is not asked yet has weight zero."""
    folders = [settings.folder / f"round-{number}" for number in range(1, num_rounds + 1)]
    parts = [store.load_labels(folder / "labels.jsonl", folder / "pairs.npz") for folder in folders]
    missing = (settings.num_rounds - num_rounds) * settings.num_pairs

    def join(*leaves: Any) -> jax.Array:
        joined = np.concatenate(leaves)
        return jnp.concatenate([joined, np.zeros((missing, *joined.shape[1:]), joined.dtype)])

    return jax.tree.map(join, *parts)


def report(settings: Teach, task: Task, start: Network, results: list, console: Console) -> None:
    """Write `report.html`: the policy round by round, and how far to trust the answers."""
    answers, gaps = {}, []
    for number in range(settings.num_rounds):
        of_round = settings.folder / f"round-{number + 1}"
        first, second = store.load_pairs(of_round / "pairs.npz")
        gaps.append(np.asarray(true_return(first) - true_return(second)))
        for (pair, repeat), answer in read_answers((of_round / "labels.jsonl").read_bytes().splitlines()).items():
            pair += number * settings.num_pairs
            answers[pair, repeat] = answer._replace(pair=pair)
    measures = quality.report(answers, np.concatenate(gaps), settings.checks)
    measures += quality.model_accuracy(task, answers_so_far(settings, settings.num_rounds), start)
    names = ["the first policy", *(f"after round {number}" for number in range(1, settings.num_rounds + 1))]
    shown = jax.device_get(results)
    longest = max(int(episode.mask.sum()) for _, episode in shown)
    rounds = [
        {"animation": animations.animation(task, name, episode, longest), "mean": float(mean)}
        for name, (mean, episode) in zip(names, shown, strict=True)
    ]
    labelling.report(console, settings.folder, settings.instruction, measures, rounds=rounds)


def run(settings: Teach, console: Console) -> None:
    """Teach a policy, with the page in a browser."""
    devices.set_up_jax(1)
    how = ("out", "host", "port", "instruction", "checks")
    own = {name: value for name, value in flat(settings).items() if name not in how}
    try:
        task = tasks.task(settings.task, fixed_horizon=settings.fixed_horizon)
        check_segment(task, settings.segment)
        with folder.locked(settings.folder):
            site = Site(task, settings.instruction, settings.num_rounds)
            with serving(site, settings.folder, settings.host, settings.port) as address:
                labelling.announce(console, address, settings)
                site.progress("Training the first policy" if settings.start == "pi2" else "Getting ready")
                start = first_policy(settings, task)
                labelling.check_same(settings.folder, json.loads(json.dumps(own, default=str)))
                teach(settings, site, start, console)
                console.print("Ctrl-C ends")
                with contextlib.suppress(KeyboardInterrupt):
                    threading.Event().wait()
    except ValueError as error:
        raise UsageError(str(error)) from error
