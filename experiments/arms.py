"""Arms: variants of the study that are compared seed by seed.

An arm is everything that is done to one seed between its experts and its evaluation, as one pure function: ask the
annotator, train, evaluate. All arms of a seed share its experts, its keys and, before labels differ, its pairs.
"""

from __future__ import annotations

import dataclasses
import functools
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from jaxtyping import Array, Float
from rich.console import Console

from experiments import checkpoints, pipeline, report
from experiments.progress import Done, Progress
from experiments.settings import Policy
from experiments.stages import Stages
from jaxpref import annotators, dpo, losses, online, ppo, ranking, reinforce, reward_model, store
from jaxpref.divergence import is_sound
from jaxpref.networks import init_reward, trajectory_kl, trajectory_log_prob, trajectory_reward
from jaxpref.preferences import sample_preferences
from jaxpref.rollout import episodes
from jaxpref.tasks import Task
from jaxpref.types import Params, Preferences, Scalar, Trajectory, true_return

NUM_HELDOUT = 200
"""Fresh pairs that scores are judged on, labelled by the same annotator."""
EVAL_EPISODES = 100
"""Episodes that a trained policy is evaluated on."""

Method = Literal["pi1", "pi2", "pi2-again", "dpo", "rlhf", "online-dpo", "online-rlhf"]
Reward = Literal["learned", "zero", "random", "true"]
"""What PPO maximises."""


@struct.dataclass
class Hyperparameters:
    """Of every part of an arm; floats are leaves, so arms that differ in floats share a compiled program."""

    annotator: annotators.Config = annotators.Config()
    dpo: dpo.Config = dpo.Config()
    reward_model: reward_model.Config = reward_model.Config()
    ppo: ppo.Config = ppo.Config()
    online: online.Config = online.Config()


@dataclasses.dataclass(frozen=True)
class Arm:
    """One variant: who is trained how, on what."""

    method: Method
    """"pi1" and "pi2" are evaluated as they are, "pi2-again" on other episodes: how far noise alone carries."""
    reference: Policy = "pi2"
    num_pairs: int = 200
    pool: int = 0
    """Pairs that are sampled, of which the first `num_pairs` count: arms with one pool share pairs and programs; 0: as
    many as count."""
    reward: Reward = "learned"
    num_members: int = 1
    """Reward models in the ensemble of "rlhf"."""
    hyper: Hyperparameters = dataclasses.field(default_factory=Hyperparameters)


@struct.dataclass
class Result:
    """Of one seed. NaN where an arm has no such thing.

    true_return:      mean over EVAL_EPISODES episodes.
    kl:               of the trained policy from the reference, nats per episode.
    quality:          of the arm's scores on fresh pairs: the reward model's, or DPO's implicit reward.
    score_per_step:   mean of those scores over the steps of the fresh pairs.
    label_entropy, best_accuracy: of the held-out pairs' annotator.
    diverged:         1 where the training of the policy, of its experts or of its reward model went astray, else 0.
    """

    true_return: Float[Array, "*batch"]
    kl: Float[Array, "*batch"]
    quality: ranking.Quality
    score_per_step: Float[Array, "*batch"]
    label_entropy: Float[Array, "*batch"]
    best_accuracy: Float[Array, "*batch"]
    diverged: Float[Array, "*batch"]


# --- what is done to one seed -----------------------------------------------------------------------------------------


def ask(task: Task, num_pairs: int, config: annotators.Config, seed: Array, pi1: Params, pi2: Params) -> Preferences:
    """The pairs of one seed: an arm with fewer of them has the first ones of an arm with more."""
    key, annotator = pipeline.keys_of(seed).preferences, annotators.teacher_of(task, config)
    return sample_preferences(task, pi1, pi2, key, num_pairs, annotator)


def train_dpo(task: Task, config: dpo.Config, seed: Array, pi2: Params, ref_params: Params, pairs: Preferences):
    """DPO from pi2."""
    return dpo.train(task, config, pipeline.keys_of(seed).train, pairs, pi2, ref_params).params


def fit_reward(task: Task, num_members: int, config: reward_model.Config, seed: Array, pairs: Preferences) -> Params:
    """A reward model, or an ensemble."""
    key = pipeline.keys_of(seed).reward_model
    if num_members == 1:
        return reward_model.train(task, config, key, pairs).params
    return reward_model.train_ensemble(task, config, key, pairs, num_members).params


def zero_reward(task: Task, shared: None, seed: Array) -> Params:
    """A reward model that says zero."""
    return jax.tree.map(jnp.zeros_like, init_reward(pipeline.keys_of(seed).reward_model, task))


def random_reward(task: Task, shared: None, seed: Array) -> Params:
    """A reward model that was never trained. A fresh head is zero: this one is drawn."""
    key_init, key_head = jax.random.split(pipeline.keys_of(seed).reward_model)
    params = init_reward(key_init, task)["params"]
    head = params["reward"] | {"kernel": jax.random.normal(key_head, params["reward"]["kernel"].shape)}
    return {"params": params | {"reward": head}}


def train_ppo(
    task: Task,
    reward_fn: ppo.RewardFn,
    config: ppo.Config,
    seed: Array,
    pi2: Params,
    ref_params: Params,
    reward: Params,
) -> Params:
    """PPO from pi2."""
    return ppo.train(task, config, pipeline.keys_of(seed).train, pi2, ref_params, reward, reward_fn).params


def train_online(
    task: Task, method: Method, num_pairs: int, hyper: Hyperparameters, seed: Array, pi2: Params, ref_params: Params
) -> tuple[Params, Params | None]:
    """(policy, reward models) of online RLHF or DPO from pi2; pi1 has no part in it, unless it is the reference."""
    args = pipeline.keys_of(seed).train, annotators.teacher_of(task, hyper.annotator), num_pairs, pi2, ref_params
    if method == "online-dpo":
        result = online.train_dpo(task, hyper.online, hyper.dpo, *args)
    else:
        result = online.train_rlhf(task, hyper.online, hyper.reward_model, hyper.ppo, *args)
    return result.params, result.reward_params


@struct.dataclass
class Scores:
    """How a trajectory is scored: by DPO's implicit reward, beta times the log-ratio, or by a reward model. 1 is yes,
    0 no: all arms are judged by one program.
    """

    implicit: Scalar
    per_step: Scalar
    beta: Scalar


def judge(
    task: Task,
    hyper: tuple[annotators.Config, Scores, Scalar],
    seed: Array,
    pi1: Params,
    pi2: Params,
    params: Params,
    ref_params: Params,
    reward_params: Params,
) -> Result:
    """Evaluate a policy, and its scores on fresh pairs. `hyper`: of the annotator, the scores, and which evaluation it
    is: every number stands for other episodes.
    """
    (config, scores, number), keys = hyper, pipeline.keys_of(seed)
    played = episodes(task, params, jax.random.fold_in(keys.evaluate, jnp.int32(number)), EVAL_EPISODES)
    key_heldout = jax.random.fold_in(keys.preferences, 0)
    heldout = sample_preferences(task, pi1, pi2, key_heldout, NUM_HELDOUT, annotators.teacher_of(task, config))

    def score(trajectory: Trajectory) -> Array:
        num_steps = jnp.where(scores.per_step > 0, trajectory.mask.sum(-1), 1.0)
        log_ratio = trajectory_log_prob(params, trajectory) - trajectory_log_prob(ref_params, trajectory)
        implicit = scores.beta * losses.per_step(log_ratio, num_steps)
        return jnp.where(scores.implicit > 0, implicit, trajectory_reward(reward_params, trajectory))

    chosen_score, rejected_score = score(heldout.chosen), score(heldout.rejected)
    num_steps = heldout.chosen.mask.sum() + heldout.rejected.mask.sum()
    return Result(
        true_return=true_return(played).mean(),
        kl=trajectory_kl(params, ref_params, played).mean(),
        quality=ranking.quality(chosen_score, rejected_score, heldout),
        score_per_step=(chosen_score + rejected_score).sum() / num_steps,
        label_entropy=ranking.label_entropy(heldout),
        best_accuracy=ranking.best_accuracy(heldout),
        diverged=jnp.where(is_sound((pi1, pi2, params, reward_params)), 0.0, 1.0),
    )


# --- many arms, many seeds, kept on disk ------------------------------------------------------------------------------

Table = dict[str, Result]
"""Results by the arm's name, [S] each."""
BATCH = 20
"""Seeds that are run at once: as many as have their largest dataset in memory."""


def batches_of(seeds: Sequence[int]) -> list[tuple[int, ...]]:
    """The seeds that are run at once."""
    return [tuple(seeds[start : start + BATCH]) for start in range(0, len(seeds), BATCH)]


def plan(task: Task, arms: Iterable[str], seeds: Sequence[int], progress: Progress) -> None:
    """Say what `run` is going to do."""
    for batch in batches_of(seeds):
        for name in arms:
            progress.plan(_title(task, name, batch), None)


def run(task: Task, arms: dict[str, Arm], seeds: Sequence[int], folder: Path, progress: Progress) -> Table:
    """Run all arms on all seeds; those whose results already lie in `folder`, from the same code, are read."""
    stages = Stages(Console(quiet=True))
    tables = [_run_batch(task, arms, batch, folder, stages, progress) for batch in batches_of(seeds)]
    return {name: jax.tree.map(lambda *parts: np.concatenate(parts), *(t[name] for t in tables)) for name in arms}


def _run_batch(
    task: Task, arms: dict[str, Arm], seeds: Sequence[int], folder: Path, stages: Stages, progress: Progress
) -> Table:
    batch, console = _name_of(seeds), progress.console
    paths = {name: folder / batch / f"{name}.json" for name in arms}
    kept = {name: _kept(task, arm, seeds, paths[name], console) for name, arm in arms.items()}
    missing = {name: arm for name, arm in arms.items() if kept[name] is None}

    def note(name: str, result: Result, seconds: float, reused: bool) -> None:
        known = report.mean_or_none(result.true_return)
        progress.done(Done(_title(task, name, seeds), len(seeds), None, known, 0.0, seconds, reused))

    def go_through() -> None:
        run_arm = Runner(task, seeds, stages)
        for arm in missing.values():
            run_arm(arm)

    for name, result in kept.items():
        if result is not None:
            progress.start(_title(task, name, seeds))
            note(name, result, 0.0, reused=True)
    if missing:
        stages.rehearse(go_through)
        run_arm = Runner(task, seeds, stages)
        for name, arm in missing.items():
            start = time.perf_counter()
            progress.start(_title(task, name, seeds))
            kept[name] = result = run_arm(arm)
            save(paths[name], specification(task, arm, seeds), result)
            took = time.perf_counter() - start
            console.print(f"  {task.name:<9} {name:<26} seeds {batch:<9} {took:6.1f} s", highlight=False)
            note(name, result, took, reused=False)
    return {name: result for name, result in kept.items() if result is not None}


def _name_of(batch: Sequence[int]) -> str:
    return f"{batch[0]}-{batch[-1]}"


def _title(task: Task, arm: str, batch: Sequence[int]) -> str:
    return f"{task.name} {arm}, seeds {_name_of(batch)}"


def _kept(task: Task, arm: Arm, seeds: Sequence[int], path: Path, console: Console) -> Result | None:
    try:
        return load(path, specification(task, arm, seeds))
    except checkpoints.Damaged as error:
        checkpoints.warn(console, path, str(error), "the arm is run again")
        return None


class Runner:
    """Runs arms on some seeds: their experts are trained once; pairs and reward models are kept for the next arm."""

    def __init__(self, task: Task, seeds: Sequence[int], stages: Stages):
        self.task, self.seeds, self.stages = task, np.asarray(seeds, np.uint32), stages
        self._kept: dict[str, tuple[Any, Any]] = {}
        experts = self._map("experts", pipeline.train_experts, (), reinforce.Config(), lanes=32)
        self.pi = {"pi1": experts.pi1, "pi2": experts.pi2}

    def __call__(self, arm: Arm) -> Result:
        """Results of the arm on every seed."""
        params, reward_params = self._train(arm)
        implicit = arm.method in ("dpo", "online-dpo")
        has_scores = implicit or (reward_params is not None and arm.reward != "true")
        if reward_params is None:
            reward_params = self._map("zero reward", zero_reward, (), None)
        per_step = implicit and arm.hyper.dpo.loss in dpo.PER_STEP
        scores = Scores(float(implicit), float(per_step), arm.hyper.dpo.beta)
        hyper = arm.hyper.annotator, scores, float(arm.method == "pi2-again")
        args = *self.pi.values(), params, self.pi[arm.reference], reward_params
        result = self._map("judge", judge, (), hyper, *args, lanes=1)
        if has_scores:
            return result
        unknown = jax.tree.map(lambda leaf: np.full_like(leaf, np.nan), result.quality)
        return dataclasses.replace(result, quality=unknown, score_per_step=np.full_like(result.score_per_step, np.nan))

    def _train(self, arm: Arm) -> tuple[Params, Params | None]:
        """(policy, what PPO maximised: None where it is not PPO's)."""
        pi2, ref_params, hyper = self.pi["pi2"], self.pi[arm.reference], arm.hyper
        match arm.method:
            case "pi1" | "pi2" | "pi2-again":
                return self.pi[arm.method[:3]], None
            case "dpo":
                return self._map("dpo", train_dpo, (), hyper.dpo, pi2, ref_params, self._pairs(arm), lanes=2), None
            case "rlhf":
                reward_params = self._reward(arm)
                reward_fn = ppo.true_reward if arm.reward == "true" else ppo.learned_reward
                args = pi2, ref_params, reward_params
                return self._map("ppo", train_ppo, (reward_fn,), hyper.ppo, *args, lanes=2), reward_params
            case _:
                static = arm.method, arm.num_pairs
                return self._map(arm.method, train_online, static, hyper, pi2, ref_params, lanes=1)

    def _reward(self, arm: Arm) -> Params:
        if arm.reward == "random":
            return self._map("random reward", random_reward, (), None)
        if arm.reward in ("zero", "true"):
            return self._map("zero reward", zero_reward, (), None)

        def fit() -> Params:
            static = (arm.num_members,)
            return self._map("reward model", fit_reward, static, arm.hyper.reward_model, self._pairs(arm), lanes=1)

        return self._keep("reward", (self._pairs_of(arm), arm.num_members, arm.hyper.reward_model), fit)

    def _pairs(self, arm: Arm) -> Preferences:
        num_sampled, config = arm.pool or arm.num_pairs, arm.hyper.annotator

        def sample() -> Preferences:
            return self._map("pairs", ask, (num_sampled,), config, *self.pi.values(), lanes=2)

        pairs = self._keep("pairs", (num_sampled, config), sample)
        counts = np.arange(num_sampled) < arm.num_pairs
        return dataclasses.replace(pairs, weight=np.where(counts, pairs.weight, np.float32(0)))

    def _pairs_of(self, arm: Arm) -> tuple:
        return arm.num_pairs, arm.pool, arm.hyper.annotator

    def _keep(self, kind: str, wanted: Any, make: Callable[[], Any]) -> Any:
        """The last thing of its kind, if it is the one that is wanted."""
        if kind not in self._kept or self._kept[kind][0] != wanted:
            self._kept.pop(kind, None)  # what it held may go before the new one comes
            self._kept[kind] = wanted, make()
        return self._kept[kind][1]

    def _map(self, name: str, function: Callable, static: tuple, shared: Any, *args: Any, lanes: int = 64) -> Any:
        """`function(task, *static, shared, seed, *args)` of every seed."""
        program = self.task.name, function, static, jax.tree.structure(shared)
        part = functools.partial(function, self.task, *static)
        return self.stages.run(name, part, shared, self.seeds, *args, lanes=lanes, program=program)


CODE = [*checkpoints.LIBRARY, Path(pipeline.__file__), Path(__file__)]
"""The code that results depend on."""


def specification(task: Task, arm: Arm, seeds: Sequence[int]) -> dict[str, Any]:
    """Everything that an arm's results depend on, as JSON has it."""
    return {
        "task": task.name,
        "seeds": list(seeds),
        "arm": dataclasses.asdict(arm),
        "versions": report.versions(),
        "code": checkpoints.code(*CODE),
    }


def save(path: Path, spec: dict[str, Any], result: Result) -> None:
    """Write an arm's results beside what they depend on; NaN is null."""
    path.parent.mkdir(parents=True, exist_ok=True)
    numbers = store.named_leaves(result)
    lists = {name: report.null_for_nan(leaf) for name, leaf in numbers.items()}
    checkpoints.save_sealed(path, {"specification": spec, "results": lists})


def load(path: Path, spec: dict[str, Any]) -> Result | None:
    """What `save` wrote; None where there is nothing, or where it depends on something else.

    Raises checkpoints.Damaged where it is not what was written.
    """
    try:
        stored = checkpoints.load_sealed(path)
    except FileNotFoundError:
        return None
    if stored.get("specification") != spec:
        return None
    lists = {name: np.array(values, np.float64) for name, values in stored["results"].items()}
    quality: Any = {name: lists.pop(f"quality/{name}") for name in ranking.Quality.__dataclass_fields__}
    rest: Any = lists
    return Result(quality=ranking.Quality(**quality), **rest)
