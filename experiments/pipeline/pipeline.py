"""The one pipeline, from seeds to numbers: experts, preferences, training, evaluation.

Each stage is a pure function of one seed (`functions.py`). `Stages.run` maps it over the seeds and computes it
once. An experiment, an arm of the evidence and a point of a sweep are all settings that come through here.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Any, get_args

import jax
import numpy as np
from flax import struct
from jaxtyping import Array, Float

from experiments.harness.devices import gather, share
from experiments.harness.stages import Lazy, Stages
from experiments.pipeline import functions
from experiments.pipeline.settings import Policy, Settings
from jaxpref import networks, ppo, reinforce, tasks
from jaxpref.analysis import ranking
from jaxpref.divergence import Divergence
from jaxpref.networks import Network
from jaxpref.tasks import Task
from jaxpref.types import Preferences

BATCH_BYTES = 1e9
"""Preference data of one batch of seeds. A stage holds several copies of it: gathered, padded, cut into rows."""


@struct.dataclass
class Row:
    """A policy trained on pairs of one size with one reference, for each of S seeds.

    reward:  the reward model that PPO maximised; None for other methods.
    quality, score_per_step: of the learned score on held-out pairs, DPO's or the reward model's;
        score_per_step is its mean over their steps.
    true_return, learned_return: means over the evaluation's episodes; learned is what training maximised.
    kl:      of the policy from its reference, mean over those episodes, in nats per episode.
    """

    reference: str = struct.field(pytree_node=False)
    num_pairs: int = struct.field(pytree_node=False)
    params: Network
    metrics: Any
    divergence: Divergence
    reward: functions.Fitted | None
    quality: ranking.Quality
    score_per_step: Float[Array, " S"]
    true_return: Float[Array, " S"]
    learned_return: Float[Array, " S"]
    kl: Float[Array, " S"]


@struct.dataclass
class Outcome:
    """Results of S seeds: NumPy arrays with the seeds on the leading axis.

    returns:  mean true return of pi1 and pi2; pi1_kl: KL(pi1 || pi2), nats per episode.
    rows:     for each reference, for each dataset size.
    labels:   of the held-out pairs.
    pairs:    [S, N], if the settings ask for them.
    """

    experts: reinforce.Result
    returns: dict[str, Float[Array, " S"]]
    pi1_kl: Float[Array, " S"]
    rows: list[Row]
    labels: functions.Labels
    pairs: Preferences | None

    @property
    def reward_models(self) -> list[functions.Fitted] | None:
        """The reward model of each dataset size, the same for every reference; None for methods without one."""
        models = [row.reward for row in self.rows if row.reference == self.rows[0].reference]
        return [model for model in models if model is not None] or None


def task_of(settings: Settings) -> Task:
    """Return the task that the settings name, with what they change about it.

    Raises ValueError for a task that does not exist or lacks what the settings use.
    """
    task = tasks.task(settings.task, settings.horizon)
    names = ("pi1_target", "pi2_target", "return_range")
    given = {name: getattr(settings, name) for name in names if getattr(settings, name) is not None}
    if settings.network == "conv":
        if task.obs_shape is None or len(task.obs_shape) not in (2, 3) or min(task.obs_shape[:2]) < 3:
            raise ValueError(f"--network conv needs images of at least 3 x 3; {task.name} shows {task.obs_shape}")
        given["policy_network"] = networks.ConvActorCritic(task.num_actions, task.obs_shape)
        given["reward_network"] = networks.ConvRewardModel(task.num_actions, task.obs_shape)
    task = dataclasses.replace(task, **given)
    if task.pi1_target is not None and task.pi2_target is not None and not task.pi1_target > task.pi2_target:
        raise ValueError(f"--pi1-target must be above --pi2-target, got {task.pi1_target} and {task.pi2_target}")
    for used, flag, name in (
        (settings.reinforce.baseline == "handmade", "--reinforce.baseline handmade", "baseline"),
        (bool(settings.reinforce.shape_reward), "--reinforce.shape-reward", "potential"),
    ):
        if used and getattr(task, name) is None:
            raise ValueError(f"{flag} needs a task with its own {name}; {task.name} has none")
    for name in ("tie_threshold", "skip_threshold"):
        if getattr(settings.annotator, name) > 0 and task.return_range is None:
            flag = f"--annotator.{name.replace('_', '-')}"
            raise ValueError(f"{flag} is a share of the range of returns, which {task.name} lacks: give --return-range")
    return task


def run(settings: Settings, task: Task, stages: Stages) -> Outcome:
    """Run this process's share of the seeds, in as many batches as memory needs, and gather all results."""
    seeds = share(np.asarray(settings.seeds, np.uint32), jax.process_count(), jax.process_index())
    num_batches = math.ceil(len(seeds) / (settings.batch_seeds or seeds_that_fit(settings, task)))
    # All batches have one size, so that one program serves all. The last repeats seeds of the first.
    batches = np.resize(seeds, (num_batches, math.ceil(len(seeds) / num_batches)))
    outcomes = []
    for number, batch in enumerate(batches, 1):
        stages.progress.begin(number, num_batches, batch)
        outcomes.append(_run_batch(settings, task, stages, batch))
    own = jax.tree.map(lambda *leaves: np.concatenate(leaves)[: len(seeds)], *outcomes)
    return gather(own, len(settings.seeds))


def seeds_that_fit(settings: Settings, task: Task) -> int:
    """Return how many seeds' preference data fit into `BATCH_BYTES`, at least one."""
    num_trajectories = 2 * (max(settings.num_pairs) + settings.num_heldout)
    bytes_per_step = 4 * (2 * task.obs_size + 3)
    return max(1, int(BATCH_BYTES / (num_trajectories * task.horizon * bytes_per_step)))


def _run_batch(settings: Settings, task: Task, stages: Stages, seeds: np.ndarray) -> Outcome:
    """Define every stage, which starts it in the background; then collect the results in the order of the stages."""

    def stage(name: str, function: Callable, config: Any, *inputs: Any, **options: Any) -> Lazy:
        return stages.run(name, functools.partial(functions.with_keys, function), config, seeds, *inputs, **options)

    num_played = max(settings.num_pairs) + settings.num_heldout
    experts = stage("reinforce", functools.partial(functions.train_experts, task), settings.reinforce, lanes=32)
    play = functools.partial(functions.play_pairs, task, num_played)
    pairs = stage("preferences", play, settings.annotator, experts, lanes=4)
    setup = functions.Setup(
        task,
        settings.num_pairs,
        settings.num_heldout,
        tuple(POLICIES.index(name) for name in settings.reference),
        settings.eval_episodes,
        settings.evaluation,
        functions.is_per_step(settings.dpo),
    )
    trained, fitted = _train(settings, setup, stage, experts, pairs)
    evaluate = functools.partial(functions.evaluate, setup)
    evaluation = stage("evaluate", evaluate, settings.dpo.beta, experts, pairs, trained, fitted, lanes=4)

    log = stages.progress.log
    log("reinforce", experts.value.metrics)
    rows = rows_of(settings, trained, fitted, evaluation.value)
    for row in rows[: len(settings.num_pairs)]:
        if row.reward is not None and row.reward.metrics is not None:
            log("reward model", row.reward.metrics, num_pairs=row.num_pairs)
    for row in rows:
        log(settings.trainer, row.metrics, reference=row.reference, num_pairs=row.num_pairs)
    returns = dict(zip(POLICIES, evaluation.value.expert_return.T, strict=True))
    kept_pairs = pairs.value if settings.save_preferences else None
    return Outcome(experts.value, returns, evaluation.value.pi1_kl, rows, evaluation.value.labels, kept_pairs)


POLICIES = get_args(Policy)
Groups = tuple[tuple[Lazy, ...], tuple[Lazy, ...]]
"""What was trained [S, R, P] and the reward models [S, P], a stage for each group of dataset sizes."""


def _train(settings: Settings, setup: functions.Setup, stage: Callable, experts: Lazy, pairs: Lazy) -> Groups:
    trained, fitted = [], []
    for sizes in settings.size_groups:
        detail = f" {sizes[0]} pairs" if len(settings.size_groups) > 1 else ""
        config: Any = settings.dpo
        setup, data = setup._replace(sizes=sizes), pairs
        function: Callable = functools.partial(functions.train_dpo, setup)
        lanes = {"dpo": 2, "rlhf": 8}.get(settings.method, 1)
        if settings.method == "rlhf":
            if settings.reward == "learned":
                fit = functools.partial(functions.fit_rewards, setup, settings.num_members)
            else:
                fit = functools.partial(functions.control_reward, setup, settings.reward)
            fit_config = settings.reward_model_config(max(sizes)) if settings.reward == "learned" else None
            data = stage(f"reward model{detail}", fit, fit_config, pairs, lanes=4)
            fitted.append(data)
            reward_fn = ppo.true_reward if settings.reward == "true" else ppo.learned_reward
            function, config = functools.partial(functions.train_ppo, setup, reward_fn), settings.ppo
        elif settings.method != "dpo":
            trainers = (settings.dpo,) if settings.method == "online-dpo" else (settings.reward_model, settings.ppo)
            config = settings.annotator, settings.online, *trainers
            function = functools.partial(functions.train_online, setup)
        options = {"lanes": lanes, "variants": np.array(setup.references, np.int32)}
        trained.append(stage(f"{settings.trainer}{detail}", function, config, experts, data, **options))
    return tuple(trained), tuple(fitted)


def rows_of(settings: Settings, trained: tuple[Lazy, ...], fitted: tuple[Lazy, ...], evaluation: Any) -> list[Row]:
    """Return a row for each reference, for each dataset size, from runs [S, R, P] in groups of sizes."""
    rows = []
    places = [(group, place) for group, sizes in enumerate(settings.size_groups) for place in range(len(sizes))]
    for r, reference in enumerate(settings.reference):
        for p, (num_pairs, (group, place)) in enumerate(zip(settings.num_pairs, places, strict=True)):
            run = jax.tree.map(lambda leaf, r=r, place=place: leaf[:, r, place], trained[group].value)
            reward, judged = None, run.judged
            if fitted:
                reward = jax.tree.map(lambda leaf, place=place: leaf[:, place], fitted[group].value)
                judged = reward.judged
            ends = (evaluation.true_return, evaluation.learned_return, evaluation.kl)
            of_row = judged.quality, judged.score_per_step, *(end[:, r, p] for end in ends)
            rows.append(Row(reference, num_pairs, run.params, run.metrics, run.divergence, reward, *of_row))
    return rows
