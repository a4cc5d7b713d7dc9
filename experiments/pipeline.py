"""The study's way from seeds to numbers: experts, preferences, training, evaluation.

Every stage is a pure function of one seed; `Stages.run` maps it over all of them. Between stages results are NumPy
arrays with seeds S on the leading axis, so a stage can be looked at, saved or replaced.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from jaxtyping import Array, Float

from experiments.settings import Settings
from experiments.stages import Stages, gather, share
from jaxpref import annotators, dpo, networks, ppo, preferences, ranking, reinforce, reward_model, tasks
from jaxpref.divergence import Divergence
from jaxpref.networks import trajectory_log_prob, trajectory_reward
from jaxpref.rollout import evaluate
from jaxpref.tasks import Task
from jaxpref.types import Params, Preferences

BATCH_BYTES = 1e9
"""Preference data of one batch of seeds. A stage holds several copies of it: gathered, padded, cut into rows."""


class Keys(NamedTuple):
    """One key for each stage of one seed."""

    reinforce: jax.Array
    preferences: jax.Array
    reward_model: jax.Array
    train: jax.Array
    evaluate: jax.Array


def keys_of(seed: jax.Array) -> Keys:
    """The keys of a seed: the same for every method, size and reference, so that these are compared in pairs."""
    return Keys(*jax.random.split(jax.random.key(seed), len(Keys._fields)))


@struct.dataclass
class Trained:
    """What a method made of one reference's runs. Leading axes [S, sizes]; metrics have updates behind them."""

    params: Params
    heldout_accuracy: Float[Array, "*batch"]
    metrics: Any  # dpo.Metrics or ppo.Metrics
    divergence: Divergence
    reward_params: Params | None = None
    reward_metrics: reward_model.Metrics | None = None
    reward_divergence: Divergence | None = None


@struct.dataclass
class Outcome:
    """All results. Leading axis S everywhere; `trained` and `trained_returns` by reference."""

    experts: reinforce.Result
    returns: dict[str, np.ndarray]
    trained: dict[str, Trained]
    trained_returns: dict[str, np.ndarray]
    preferences: Preferences | None


def task_of(settings: Settings) -> Task:
    """The task that the settings name, with what they change about it.

    Raises ValueError for a task that is none, for what REINFORCE is to use and the task lacks, for targets that are in
    the wrong order, and for a convolution of observations that are no images.
    """
    task = tasks.task(settings.task, settings.horizon)
    names = ("pi1_target", "pi2_target", "return_range")
    given = {name: getattr(settings, name) for name in names if getattr(settings, name) is not None}
    if settings.network == "conv":
        if task.obs_shape is None or len(task.obs_shape) not in (2, 3) or min(task.obs_shape[:2]) < 3:
            raise ValueError(f"--network conv needs images of at least 3 x 3, {task.name} shows {task.obs_shape}")
        given["policy_network"] = networks.ConvActorCritic(task.num_actions, task.obs_shape)
        given["reward_network"] = networks.ConvRewardModel(task.num_actions, task.obs_shape)
    task = dataclasses.replace(task, **given)
    if task.pi1_target is not None and task.pi2_target is not None and not task.pi1_target > task.pi2_target:
        raise ValueError(f"--pi1-target must be above --pi2-target, got {task.pi1_target} and {task.pi2_target}")
    for wanted, words, name in (
        (settings.reinforce.baseline == "handmade", "--reinforce.baseline handmade", "baseline"),
        (settings.reinforce.shape_reward, "--reinforce.shape-reward", "potential"),
    ):
        if wanted and getattr(task, name) is None:
            raise ValueError(f"{words} needs a task with a {name} of its own, which {task.name} is not")
    return task


def run(settings: Settings, task: Task, stages: Stages) -> Outcome:
    """The whole experiment: this process's share of the seeds, in as many batches as memory asks for."""
    seeds = share(np.asarray(settings.seeds, np.uint32), jax.process_count(), jax.process_index())
    num_batches = math.ceil(len(seeds) / (settings.batch_seeds or batch_seeds(settings, task)))
    # All of one size, the last filled up with seeds of the first: one program serves all.
    batches = np.resize(seeds, (num_batches, math.ceil(len(seeds) / num_batches)))
    outcomes = []
    for number, batch in enumerate(batches, 1):
        through_all_stages = functools.partial(run_batch, settings, task, stages, batch)
        stages.begin(number, num_batches, batch)
        stages.rehearse(through_all_stages)
        outcomes.append(through_all_stages())
        if not settings.save_preferences:
            stages.drop("preferences")
    own = jax.tree.map(lambda *leaves: np.concatenate(leaves)[: len(seeds)], *outcomes)
    return gather(own, len(settings.seeds))


def batch_seeds(settings: Settings, task: Task) -> int:
    """Seeds whose preference data, of each a few copies, fit into `BATCH_BYTES`; at least one."""
    num_trajectories = 2 * (max(settings.num_pairs) + settings.num_heldout)
    bytes_per_step = 4 * (2 * task.obs_size + 3)
    return max(1, int(BATCH_BYTES / (num_trajectories * task.horizon * bytes_per_step)))


def run_batch(settings: Settings, task: Task, stages: Stages, seeds: np.ndarray) -> Outcome:
    """Experts, preferences, training and evaluation of some seeds."""
    experts = stages.run("reinforce", functools.partial(train_experts, task), settings.reinforce, seeds, lanes=32)
    stages.log("reinforce", experts.metrics)
    pi = {"pi1": experts.pi1, "pi2": experts.pi2}
    label = functools.partial(label_pairs, task, max(settings.num_pairs) + settings.num_heldout)
    pairs = stages.run("preferences", label, settings.annotator, seeds, pi["pi1"], pi["pi2"], lanes=4)

    train = {"dpo": train_dpo, "rlhf": train_rlhf}[settings.method]
    trained = train(settings, task, stages, seeds, pi, pairs)
    log_metrics(settings, stages, trained)

    stacked = [_stack([pi["pi1"], pi["pi2"]]), *(part.params for part in trained.values())]
    policies = jax.tree.map(lambda *leaves: np.concatenate(leaves, axis=1), *stacked)
    returns = stages.run(
        "evaluate", functools.partial(evaluate_policies, task, settings.eval_episodes), None, seeds, policies, lanes=8
    )
    return Outcome(
        experts=experts,
        returns={"pi1": returns[:, 0], "pi2": returns[:, 1]},
        trained=trained,
        trained_returns=dict(zip(trained, np.split(returns[:, 2:], len(trained), axis=1), strict=True)),
        preferences=pairs if settings.save_preferences else None,
    )


def log_metrics(settings: Settings, stages: Stages, trained: dict[str, Trained]) -> None:
    """Log what was trained, run by run: each reference's policies, and the reward models, which have no reference."""
    first = next(iter(trained.values()))
    for place, num_pairs in enumerate(settings.num_pairs):
        if first.reward_metrics is not None:
            metrics = jax.tree.map(lambda leaf, place=place: leaf[:, place], first.reward_metrics)
            stages.log("reward model", metrics, num_pairs=num_pairs)
        for reference, part in trained.items():
            metrics = jax.tree.map(lambda leaf, place=place: leaf[:, place], part.metrics)
            stages.log("ppo" if settings.method == "rlhf" else "dpo", metrics, reference=reference, num_pairs=num_pairs)


def train_experts(task: Task, config: reinforce.Config, seed: jax.Array) -> reinforce.Result:
    """pi1 and pi2 of one seed."""
    return reinforce.train(task, config, keys_of(seed).reinforce)


def label_pairs(
    task: Task, num_pairs: int, config: annotators.Config, seed: jax.Array, pi1: Params, pi2: Params
) -> Preferences:
    """The largest dataset, and behind it the held-out pairs."""
    annotator = annotators.teacher_of(task, config)
    return preferences.sample_preferences(task, pi1, pi2, keys_of(seed).preferences, num_pairs, annotator)


def evaluate_policies(task: Task, num_episodes: int, shared: None, seed: jax.Array, policies: Params) -> jax.Array:
    """Mean true return of each of the stacked policies, all from the same initial states."""
    key = keys_of(seed).evaluate
    return jax.vmap(lambda params: evaluate(task, params, key, num_episodes).mean())(policies)


def train_dpo(
    settings: Settings, task: Task, stages: Stages, seeds: np.ndarray, pi: dict[str, Params], pairs: Preferences
) -> dict[str, Trained]:
    """DPO from pi2, for every reference and size."""
    parts = []
    for sizes in _size_groups(settings):
        function = functools.partial(dpo_run, task, sizes, settings.num_heldout)
        args = _for_references(settings, pi, seeds, pi["pi2"], pairs)
        parts.append(stages.run("dpo", function, settings.dpo, *args, lanes=2, detail=_detail(settings, sizes)))
    return _by_reference(settings, _join_sizes(parts))


def dpo_run(
    task: Task,
    sizes: Sequence[int],
    num_heldout: int,
    config: dpo.Config,
    ref_params: Params,
    seed: jax.Array,
    init_params: Params,
    pairs: Preferences,
) -> Trained:
    """DPO with one reference, on every size of dataset at once."""
    training_pairs, heldout = preferences.split(pairs, num_heldout)
    training_pairs = preferences.take(training_pairs, slice(max(sizes)))

    def on_size(num_pairs):
        some = preferences.prefix(training_pairs, num_pairs)
        result = dpo.train(task, config, keys_of(seed).train, some, init_params, ref_params)

        def score(trajectory):
            return trajectory_log_prob(result.params, trajectory) - trajectory_log_prob(ref_params, trajectory)

        accuracy = ranking.accuracy(score(heldout.chosen), score(heldout.rejected), heldout)
        return Trained(result.params, accuracy, result.metrics, result.divergence)

    return jax.vmap(on_size)(jnp.array(sizes))


def train_rlhf(
    settings: Settings, task: Task, stages: Stages, seeds: np.ndarray, pi: dict[str, Params], pairs: Preferences
) -> dict[str, Trained]:
    """A reward model for every size, then PPO from pi2 on each, for every reference."""
    parts = []
    for sizes in _size_groups(settings):
        config = _reward_model_config(settings, sizes)
        function = functools.partial(reward_model_run, task, sizes, settings.num_heldout)
        parts.append(
            stages.run("reward model", function, config, seeds, pairs, lanes=4, detail=_detail(settings, sizes))
        )
    rewards, accuracy = _join_sizes(parts)

    args = _for_references(settings, pi, seeds, pi["pi2"], rewards.params)
    policies = stages.run("ppo", functools.partial(ppo_run, task), settings.ppo, *args, lanes=8)
    return {
        name: Trained(
            result.params,
            accuracy,
            result.metrics,
            result.divergence,
            rewards.params,
            rewards.metrics,
            rewards.divergence,
        )
        for name, result in _by_reference(settings, policies).items()
    }


def _reward_model_config(settings: Settings, sizes: Sequence[int]) -> reward_model.Config:
    config = settings.reward_model
    if not settings.reward_model_epochs:
        return config
    num_updates = settings.reward_model_epochs * max(sizes) // (config.batch_size or max(sizes))
    return dataclasses.replace(config, num_updates=max(1, num_updates))


def reward_model_run(
    task: Task,
    sizes: Sequence[int],
    num_heldout: int,
    config: reward_model.Config,
    seed: jax.Array,
    pairs: Preferences,
) -> tuple[reward_model.Result, jax.Array]:
    """Reward models of every size of dataset at once, and their held-out accuracy."""
    training_pairs, heldout = preferences.split(pairs, num_heldout)
    training_pairs = preferences.take(training_pairs, slice(max(sizes)))

    def on_size(num_pairs):
        some = preferences.prefix(training_pairs, num_pairs)
        result = reward_model.train(task, config, keys_of(seed).reward_model, some)
        score = functools.partial(trajectory_reward, result.params)
        return result, ranking.accuracy(score(heldout.chosen), score(heldout.rejected), heldout)

    return jax.vmap(on_size)(jnp.array(sizes))


def ppo_run(
    task: Task,
    config: ppo.Config,
    ref_params: Params,
    seed: jax.Array,
    init_params: Params,
    reward_params: Params,
) -> ppo.Result:
    """PPO with one reference, on the reward model of every size."""
    train = functools.partial(ppo.train, task, config, keys_of(seed).train, init_params, ref_params)
    return jax.vmap(train)(reward_params)


def _size_groups(settings: Settings) -> list[tuple[int, ...]]:
    """Sizes of dataset that are trained on by one program."""
    return [settings.num_pairs] if settings.shares_program else [(size,) for size in settings.num_pairs]


def _detail(settings: Settings, sizes: Sequence[int]) -> str:
    return "" if settings.shares_program else f"{sizes[0]} pairs"


def _join_sizes(parts: list[Any]) -> Any:
    # The metrics of different sizes may have different lengths: shorter ones end in NaN.
    def join(*leaves):
        shape = np.max([leaf.shape for leaf in leaves], axis=0)
        padded = [
            np.pad(
                leaf,
                [(0, 0)] * 2 + [(0, n - m) for n, m in zip(shape[2:], leaf.shape[2:], strict=True)],
                constant_values=np.nan,
            )
            if leaf.shape[2:] != tuple(shape[2:])
            else leaf
            for leaf in leaves
        ]
        return np.concatenate(padded, axis=1)

    return jax.tree.map(join, *parts)


def _for_references(settings: Settings, pi: dict[str, Params], *per_seed: Any) -> tuple[Any, ...]:
    """(ref_params, *per_seed) with references and seeds in one leading axis [R * S].

    Devices share it evenly more often than they do seeds alone.
    """
    ref_params = jax.tree.map(lambda *leaves: np.concatenate(leaves), *(pi[name] for name in settings.reference))

    def repeat(leaf):
        # Of a single seed's data this is a view: image observations are too many to be copied for nothing.
        every = np.broadcast_to(leaf, (len(settings.reference), *leaf.shape))
        return every.reshape(-1, *leaf.shape[1:])

    return ref_params, *jax.tree.map(repeat, per_seed)


def _by_reference(settings: Settings, runs: Any) -> dict[str, Any]:
    """Results [R * S, ...] by reference, [S, ...] each."""
    leaves, structure = jax.tree.flatten(runs)
    by_reference = zip(*(np.split(leaf, len(settings.reference)) for leaf in leaves), strict=True)
    return {
        name: jax.tree.unflatten(structure, part) for name, part in zip(settings.reference, by_reference, strict=True)
    }


def _stack(trees: list[Any]) -> Any:
    return jax.tree.map(lambda *leaves: np.stack(leaves, axis=1), *trees)
