"""Teach a policy: it plays, a person says which clips are better, it learns, and plays again."""

from __future__ import annotations

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
    networks, preferences = rounds.networks, unanswered(settings, rounds)
    results, seconds, learn = list[Any](), None, None
    for number, key in enumerate(keys, start=1):
        of_round, (key_play, key_learn) = settings.folder / f"round-{number}", jax.random.split(key)
        of_round.mkdir(exist_ok=True)
        pairs, labels = of_round / "pairs.npz", of_round / "labels.jsonl"
        if not pairs.exists():
            store.save_pairs(pairs, *play(jax.random.split(key_play, 4), networks))
        site.status["round"] = number
        site.ask(pairs, labels, settings.repeats)
        if learn is None:  # the person answers the first questions meanwhile
            results.append(evaluate(start))
            learn = jax.jit(rounds.learn).lower(key_learn, networks, preferences).compile()
        site.answered.wait()
        site.progress(f"Learning from {number * settings.num_pairs} pairs", seconds)
        begun = time.perf_counter()
        start_index = (number - 1) * settings.num_pairs
        write = functools.partial(jax.lax.dynamic_update_slice_in_dim, start_index=start_index, axis=0)
        preferences = jax.tree.map(write, preferences, store.load_labels(labels, pairs))
        if not (of_round / "networks.npz").exists():
            networks, _ = learn(key_learn, networks, preferences)
            store.save_pytree(of_round / "policy.npz", networks[0])
            store.save_pytree(of_round / "networks.npz", networks)
        networks = jax.tree.map(jnp.asarray, store.load_pytree(of_round / "networks.npz", networks))
        results.append(evaluate(networks[0]))
        (before, first), (after, last) = results[-2:]
        site.show(first, last)
        seconds = time.perf_counter() - begun
        console.print(f"round {number}: mean return {before:.4g} before, {after:.4g} after; {seconds:.1f} s")
    site.progress("Writing the report")
    report(settings, site.task, start, results, console)
    site.status["phase"] = "done"
    return [float(mean) for mean, _ in results]


def unanswered(settings: Teach, rounds: online.Rounds) -> Preferences:
    """Return the preferences of all rounds before the first answer: their weights are zero."""
    num_pairs = settings.num_rounds * settings.num_pairs
    sides = jax.eval_shape(rounds.play, jax.random.split(jax.random.key(0), 4), rounds.networks)
    first, second = jax.tree.map(lambda leaf: jnp.zeros((num_pairs, *leaf.shape[1:]), leaf.dtype), sides)
    return Preferences(first, second, *jnp.zeros((3, num_pairs)))


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
        policy = jax.tree.map(lambda like, leaf: jnp.asarray(leaf[(0, -1)[: leaf.ndim - like.ndim]]), untrained, stored)
        if jax.tree.map(jnp.shape, policy) != jax.tree.map(jnp.shape, untrained):
            raise ValueError("its layers have other sizes")
    except (OSError, LookupError, ValueError, TypeError) as error:
        words = f"--start {settings.start} is neither pi2, random nor a policy of {task.name}"
        raise UsageError(f"{words}: {error}") from error
    return policy


def report(settings: Teach, task: Task, start: Network, results: list, console: Console) -> None:
    """Write `report.html`: the policy round by round, and how far to trust the answers."""
    folders = [settings.folder / f"round-{number}" for number in range(1, settings.num_rounds + 1)]
    files = [(each / "pairs.npz", each / "labels.jsonl") for each in folders]
    measures = quality.describe(task, files, settings.checks, start)
    longest, rounds = max(int(episode.mask.sum()) for _, episode in results), []
    for number, (mean, episode) in enumerate(jax.device_get(results)):
        name = f"after round {number}" if number else "the first policy"
        rounds.append({"animation": animations.animation(task, name, episode, longest), "mean": float(mean)})
    labelling.report(console, settings.folder, settings.instruction, measures, rounds)


def run(settings: Teach, console: Console) -> None:
    """Teach a policy, with the page in a browser."""
    devices.set_up_jax(1)
    how = ("out", "host", "port", "instruction", "checks")
    chosen = {name: value for name, value in flat(settings).items() if name not in how}
    own = json.loads(json.dumps(chosen, default=str))  # as the file has them
    try:
        task = tasks.task(settings.task, fixed_horizon=settings.fixed_horizon)
        check_segment(task, settings.segment)
        with folder.locked(settings.folder):
            labelling.check_same(settings.folder, own)
            site = Site(task, settings.instruction, settings.num_rounds)
            with serving(site, settings.folder, settings.host, settings.port) as address:
                labelling.announce(console, address, settings)
                site.progress("Training the first policy" if settings.start == "pi2" else "Getting ready")
                start = first_policy(settings, task)
                store.save_json(settings.folder / labelling.SETTINGS, own)
                teach(settings, site, start, console)
                console.print("Ctrl-C ends")
                with contextlib.suppress(KeyboardInterrupt):
                    threading.Event().wait()
    except ValueError as error:
        raise UsageError(str(error)) from error
