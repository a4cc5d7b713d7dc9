"""The one pipeline, from seeds to numbers: experts, preferences, training, evaluation.

Each stage is a pure function of one seed (`functions.py`). `Stages.run` maps it over the seeds and computes it
once. An experiment, an arm of the evidence and a point of a sweep are all settings that come through here.
"""

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple, get_args

import jax
import numpy as np
from flax import struct
from jaxtyping import Array, Float

from experiments.harness.devices import gather, share
from experiments.harness.progress import Progress
from experiments.harness.stages import Lazy, Stages
from experiments.pipeline import functions, recorded, results
from experiments.pipeline.settings import Policy, Settings
from jaxpref import dpo, networks, tasks, training
from jaxpref.divergence import Divergence
from jaxpref.experts import Result
from jaxpref.networks import Network
from jaxpref.preferences import check_segment
from jaxpref.tasks import Task
from jaxpref.types import Preferences, Trajectory

POLICIES = get_args(Policy)
BATCH_BYTES = 1e9
"""Preference data of one batch of seeds. A stage holds several copies of it: gathered, padded, cut into rows."""
LANES = 4
"""Trainings on preferences side by side on a device, of seeds and of dataset sizes: the activations of more of them do
not fit a core's cache."""


@struct.dataclass
class Row(results.Measures):
    """A policy trained on pairs of one size with one reference, and what is measured of it, for each of S seeds."""

    reference: str = struct.field(pytree_node=False)
    num_pairs: int = struct.field(pytree_node=False)
    params: Network
    metrics: Any
    divergence: Divergence


@struct.dataclass
class Outcome:
    """Results of S seeds: NumPy arrays with the seeds on the leading axis.

    returns:  mean true return of pi1 and pi2; errors: their standard errors.
    pi1_kl:   KL(pi1 || pi2), nats per episode.
    rows:     for each reference, for each dataset size.
    reward_models:  of each dataset size, the same for every reference; none for methods without one.
    labels:   of the held-out pairs, by the names in `results.LABEL_MEASURES`.
    pairs:    [S, N], if the settings ask for them.
    shown:    an episode of pi2, pi1 and each reference's policy of the largest size [1, 2 + R], of the first seed.
    """

    experts: Result
    returns: dict[str, Float[Array, " S"]]
    errors: dict[str, Float[Array, " S"]]
    pi1_kl: Float[Array, " S"]
    rows: list[Row]
    reward_models: list[training.Result]
    labels: dict[str, Float[Array, " S"]]
    pairs: Preferences | None
    shown: Trajectory | None


def task_of(settings: Settings) -> Task:
    """Return the task that the settings name. Raises ValueError if it does not exist or lacks what they use."""
    task = tasks.task(settings.task, settings.horizon, settings.fixed_horizon)
    names = ("pi1_target", "pi2_target", "return_range")
    given = {name: getattr(settings, name) for name in names if getattr(settings, name) is not None}
    if settings.network == "conv":
        if task.obs_shape is None or len(task.obs_shape) not in (2, 3) or min(task.obs_shape[:2]) < 3:
            raise ValueError(f"--network conv needs images of at least 3 x 3; {task.name} shows {task.obs_shape}")
        given["policy_network"] = networks.ConvActorCritic(task.num_actions, task.obs_shape)
        given["reward_network"] = networks.ConvRewardModel(
            task.num_actions, task.obs_shape, use_next_obs=settings.reward_model.use_next_obs
        )
    task = dataclasses.replace(task, **given)
    check_segment(task, settings.segment)
    if task.pi1_target is not None and task.pi2_target is not None and not task.pi1_target > task.pi2_target:
        raise ValueError(f"--pi1-target must be above --pi2-target, got {task.pi1_target} and {task.pi2_target}")
    # The library would refuse these, too. Here the message names the flag.
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
    """Run all stages and return their results."""
    return start(settings, task, stages)()


def start(settings: Settings, task: Task, stages: Stages, show: bool = False) -> Callable[[], Outcome]:
    """Start this process's share of the seeds in the background, and return a function that awaits all results.

    With `show`, the results have episodes to look at. Seeds run in as many batches as memory needs. Several batches
    start one after the other, when they are awaited.
    """
    seeds = share(np.asarray(settings.seeds, np.uint32), jax.process_count(), jax.process_index())
    num_batches = math.ceil(len(seeds) / (settings.batch_seeds or seeds_that_fit(settings, task)))
    # All batches have one size, so that one program serves all. The last repeats seeds of the first.
    batches = np.resize(seeds, (num_batches, math.ceil(len(seeds) / num_batches)))
    start_batch = functools.partial(_start_batch, settings, task, stages, show, batches)
    # Of several batches, each starts after the one before it is collected. An iterator does not hold what is collected.
    started = iter([start_batch(0)]) if num_batches == 1 else map(start_batch, range(num_batches))

    def finish() -> Outcome:
        outcomes = [collect() for collect in started]
        own = jax.tree.map(lambda *leaves: np.concatenate(leaves)[: len(seeds)], *outcomes)
        outcome = gather(own, len(settings.seeds))
        return dataclasses.replace(outcome, shown=jax.tree.map(lambda leaf: leaf[:1], outcome.shown))

    return finish


def seeds_that_fit(settings: Settings, task: Task) -> int:
    """Return how many seeds' preference data fit into `BATCH_BYTES`, at least one."""
    num_trajectories = 2 * (max(settings.num_pairs) + settings.num_heldout)
    bytes_per_step = 4 * (2 * task.obs_size + 3)
    num_steps = settings.segment or task.horizon
    return max(1, int(BATCH_BYTES / (num_trajectories * num_steps * bytes_per_step)))


def _start_batch(
    settings: Settings, task: Task, stages: Stages, show: bool, batches: np.ndarray, number: int
) -> Callable[[], Outcome]:
    """Define every stage, which starts it in the background. Returns a function that collects the results."""
    stages.progress.begin(number + 1, len(batches), batches[number])

    def stage(name: str, function: Callable, config: Any, *inputs: Any, **options: Any) -> Lazy:
        return stages.run(
            name, functools.partial(functions.with_keys, function), config, batches[number], *inputs, **options
        )

    people = [recorded.for_seeds(settings, task, len(batches[number]))] if settings.preferences else []
    num_played = settings.num_heldout + (0 if people else max(settings.num_pairs))
    train_experts = functools.partial(functions.train_experts, task)
    experts = stage(settings.expert_stage, train_experts, settings.expert_config, lanes=8)
    policies = results.Policies(experts.field("pi1"), experts.field("pi2"))
    play = functools.partial(functions.play_pairs, task, num_played, settings.num_heldout, settings.segment)
    pairs = stage("preferences", play, settings.annotator, policies, *people, lanes=4)
    groups = [_train(settings, task, stage, sizes, policies, pairs, show) for sizes in settings.size_groups]

    def collect() -> Outcome:
        evaluation, largest = groups[0].evaluation.value, max(groups, key=lambda group: max(group.sizes))
        outcome = Outcome(
            experts=experts.value,
            returns=dict(zip(POLICIES, evaluation.expert_return.T, strict=True)),
            errors=dict(zip(POLICIES, evaluation.expert_return_error.T, strict=True)),
            pi1_kl=evaluation.pi1_kl,
            rows=rows_of(settings, groups),
            reward_models=[_at(each.fitted.value, p) for each in groups if each.fitted for p in range(len(each.sizes))],
            labels=evaluation.labels,
            pairs=jax.tree.map(lambda *x: np.concatenate(x, 1), *pairs.value) if settings.save_preferences else None,
            shown=jax.tree.map(lambda leaf: leaf[:1], largest.evaluation.value.shown),
        )
        _log(settings, outcome, stages.progress)
        return outcome

    return collect


class Group(NamedTuple):
    """Stages of the dataset sizes that share a program: trained policies [S, R, P], and PPO's reward models [S, P]."""

    sizes: tuple[int, ...]
    trained: Lazy
    fitted: Lazy | None
    evaluation: Lazy


def _train(
    settings: Settings, task: Task, stage: Callable, sizes: tuple[int, ...], policies: Any, pairs: Lazy, show: bool
) -> Group:
    """Define the stages from pairs to evaluation."""
    setup = functions.Setup(
        task=task,
        sizes=sizes,
        references=tuple(POLICIES.index(name) for name in settings.reference),
        eval_episodes=settings.eval_episodes,
        per_step=dpo.loss_of(settings.dpo).per_step,
        reward=settings.reward,
        num_members=settings.num_members,
        segment=settings.segment,
        show=show,
    )
    detail = f" {sizes[0]} pairs" if len(settings.size_groups) > 1 else ""

    def stage_of_sizes(name: str, function: Callable, *args: Any, **options: Any) -> Lazy:
        return stage(f"{name}{detail}", functools.partial(function, setup), *args, **options)

    train = functools.partial(stage_of_sizes, settings.trainer, variants=np.array(setup.references, np.int32))
    train_pairs = pairs.field("train")
    fitted, lanes = None, max(1, LANES // len(sizes))
    if settings.method == "dpo":
        trained = train(functions.train_dpo, settings.dpo, policies, train_pairs, lanes=lanes, optimise=True)
    elif settings.method == "rlhf":
        if settings.reward in ("learned", "bias"):
            config = settings.reward_model_config(max(sizes))
            options = {"lanes": lanes, "optimise": True}
            fitted = stage_of_sizes("reward model", functions.fit_rewards, config, train_pairs, **options)
        else:
            fitted = stage_of_sizes("reward model", functions.control_reward, settings.reward_model, lanes=4)
        trained = train(functions.train_ppo, settings.ppo, policies, fitted.field("params"), lanes=8)
    else:
        trainers = (settings.dpo,) if settings.method == "online-dpo" else (settings.reward_model, settings.ppo)
        configs = settings.annotator, settings.online, *trainers
        trained = train(functions.train_online, configs, policies, lanes=1, optimise=True)
    learned = results.Networks(trained.field("params"), trained.field("reward_params"))
    of_stages = policies, pairs.field("heldout"), learned
    evaluation = stage_of_sizes("evaluate", functions.evaluate, settings.dpo.beta, *of_stages, lanes=4)
    return Group(sizes, trained, fitted, evaluation)


def rows_of(settings: Settings, groups: list[Group]) -> list[Row]:
    """Return a row for each reference, for each dataset size."""
    rows = []
    for r, reference in enumerate(settings.reference):
        for group in groups:
            for p, num_pairs in enumerate(group.sizes):
                run, measures = _at((group.trained.value, group.evaluation.value.measures), r, p)
                of_run = {name: getattr(run, name) for name in ("params", "metrics", "divergence")}
                rows.append(Row(**vars(measures), **of_run, reference=reference, num_pairs=num_pairs))
    return rows


def _at(tree: Any, *index: int) -> Any:
    return jax.tree.map(lambda leaf: leaf[:, *index], tree)


def _log(settings: Settings, outcome: Outcome, progress: Progress) -> None:
    progress.log(settings.expert_stage, outcome.experts.metrics)
    for num_pairs, model in zip(settings.num_pairs, outcome.reward_models, strict=False):
        if model.metrics is not None:
            progress.log("reward model", model.metrics, num_pairs=num_pairs)
    for row in outcome.rows:
        progress.log(settings.trainer, row.metrics, reference=row.reference, num_pairs=row.num_pairs)
