"""Arms: variants of the study that are compared seed by seed.

An arm is everything that is done to one seed between its experts and its evaluation, as one pure function: ask the
annotator, train, evaluate. All arms of a seed share its experts, its keys and, before labels differ, its pairs.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from jaxtyping import Array, Float, Key

from experiments import pipeline, report
from experiments.settings import Policy
from experiments.stages import Stages
from jaxpref import annotators, dpo, losses, online, ppo, ranking, reinforce, reward_model, store
from jaxpref.networks import init_reward, trajectory_kl, trajectory_log_prob, trajectory_reward
from jaxpref.preferences import sample_preferences
from jaxpref.rollout import episodes
from jaxpref.tasks import Task
from jaxpref.types import Params, Preferences, Trajectory, true_return

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
    """"pi1" and "pi2" are only evaluated, "pi2-again" on other episodes: what noise alone looks like."""
    reference: Policy = "pi2"
    num_pairs: int = 200
    reward: Reward = "learned"
    num_members: int = 1
    """Reward models in the ensemble of "rlhf"."""
    hyper: Hyperparameters = dataclasses.field(default_factory=Hyperparameters)

    @property
    def is_trained(self) -> bool:
        """Whether there is more to it than evaluating an expert."""
        return self.method not in ("pi1", "pi2", "pi2-again")


@struct.dataclass
class Result:
    """Of one seed. NaN where an arm has no such thing.

    true_return:      mean over EVAL_EPISODES episodes.
    kl:               of the trained policy from the reference, nats per episode.
    quality:          of the arm's scores on held-out pairs: the reward model's, or DPO's implicit reward.
    reward_per_step:  mean learned reward of the steps in the held-out pairs.
    label_entropy, best_accuracy: of the held-out pairs' annotator.
    """

    true_return: Float[Array, "*batch"]
    kl: Float[Array, "*batch"]
    quality: ranking.Quality
    reward_per_step: Float[Array, "*batch"]
    label_entropy: Float[Array, "*batch"]
    best_accuracy: Float[Array, "*batch"]


def run_seed(task: Task, arm: Arm, hyper: Hyperparameters, seed: Array, pi1: Params, pi2: Params) -> Result:
    """The whole arm on one seed; `hyper` is `arm.hyper` with its floats traced."""
    keys = pipeline.keys_of(seed)
    annotator = annotators.teacher_of(task, hyper.annotator)
    key_heldout, key_train = jax.random.split(keys.preferences)
    heldout = sample_preferences(task, pi1, pi2, key_heldout, NUM_HELDOUT, annotator)
    ref_params = {"pi1": pi1, "pi2": pi2}[arm.reference]

    def ask() -> Preferences:
        return sample_preferences(task, pi1, pi2, key_train, arm.num_pairs, annotator)

    reward_params, key_eval = None, keys.evaluate
    match arm.method:
        case "pi1" | "pi2":
            params = {"pi1": pi1, "pi2": pi2}[arm.method]
        case "pi2-again":
            params, key_eval = pi2, keys.train
        case "dpo":
            params = dpo.train(task, hyper.dpo, keys.train, ask(), pi2, ref_params).params
        case "rlhf":
            reward_params, reward_fn = _reward(task, arm, hyper, keys.reward_model, ask)
            params = ppo.train(task, hyper.ppo, keys.train, pi2, ref_params, reward_params, reward_fn).params
        case "online-dpo":
            args = keys.train, annotator, arm.num_pairs, pi2, ref_params
            params = online.train_dpo(task, hyper.online, hyper.dpo, *args).params
        case "online-rlhf":
            args = keys.train, annotator, arm.num_pairs, pi2, ref_params
            trained = online.train_rlhf(task, hyper.online, hyper.reward_model, hyper.ppo, *args)
            params, reward_params = trained.params, trained.reward_params

    played = episodes(task, params, key_eval, EVAL_EPISODES)
    nothing = jnp.full((), jnp.nan)
    quality, reward_per_step = ranking.Quality(nothing, nothing, nothing, nothing), nothing
    if arm.method in ("dpo", "online-dpo"):
        quality = _quality(functools.partial(_implicit_reward, hyper.dpo, params, ref_params), heldout)
    elif reward_params is not None:
        learned_return = functools.partial(trajectory_reward, reward_params)
        quality = _quality(learned_return, heldout)
        num_steps = heldout.chosen.mask.sum() + heldout.rejected.mask.sum()
        reward_per_step = (learned_return(heldout.chosen) + learned_return(heldout.rejected)).sum() / num_steps
    return Result(
        true_return=true_return(played).mean(),
        kl=trajectory_kl(params, ref_params, played).mean(),
        quality=quality,
        reward_per_step=reward_per_step,
        label_entropy=ranking.label_entropy(heldout),
        best_accuracy=ranking.best_accuracy(heldout),
    )


def _reward(task: Task, arm: Arm, hyper: Hyperparameters, key: Key[Array, ""], ask) -> tuple[Any, ppo.RewardFn]:
    """(reward_params, reward_fn) for PPO."""
    match arm.reward:
        case "learned" if arm.num_members > 1:
            fitted = reward_model.train_ensemble(task, hyper.reward_model, key, ask(), arm.num_members)
            return fitted.params, ppo.learned_reward
        case "learned":
            return reward_model.train(task, hyper.reward_model, key, ask()).params, ppo.learned_reward
        case "zero":
            return jax.tree.map(jnp.zeros_like, init_reward(key, task)), ppo.learned_reward
        case "random":
            key_init, key_head = jax.random.split(key)
            params = init_reward(key_init, task)
            head = params["params"]["reward"]
            # A fresh head is zero: this one is drawn, so that the reward is one of some random features.
            params["params"]["reward"] = head | {"kernel": jax.random.normal(key_head, head["kernel"].shape)}
            return params, ppo.learned_reward
        case _:
            return None, ppo.true_reward


def _implicit_reward(config: dpo.Config, params: Params, ref_params: Params, trajectory: Trajectory) -> Array:
    logp, ref_logp = (trajectory_log_prob(p, trajectory) for p in (params, ref_params))
    if config.loss.endswith("_per_step"):
        num_steps = trajectory.mask.sum(-1)
        logp, ref_logp = losses.per_step(logp, num_steps), losses.per_step(ref_logp, num_steps)
    return losses.dpo_reward(logp, ref_logp, config.beta)


def _quality(score, heldout: Preferences) -> ranking.Quality:
    return ranking.quality(score(heldout.chosen), score(heldout.rejected), heldout)


# --- many arms, many seeds, kept on disk ------------------------------------------------------------------------------

Table = dict[str, Result]
"""Results by the arm's name, [S] each."""

LANES = {"dpo": 2, "online-dpo": 2, "rlhf": 4, "online-rlhf": 1}
"""Seeds side by side on a device, by method."""


def run(task: Task, arms: dict[str, Arm], seeds: Sequence[int], folder: Path, stages: Stages) -> Table:
    """Run all arms on all seeds; those whose results already lie in `folder`, from the same code, are read."""
    kept = {name: load(folder / f"{name}.json", specification(task, arm, seeds)) for name, arm in arms.items()}
    missing = {name: arm for name, arm in arms.items() if kept[name] is None}
    if missing:
        seed_array = np.asarray(seeds, np.uint32)
        train_experts = functools.partial(pipeline.train_experts, task)

        def experts() -> reinforce.Result:
            return stages.run("experts", train_experts, reinforce.Config(), seed_array, lanes=32, detail=task.name)

        def rehearsal():
            results = experts()
            for arm in missing.values():
                _run_arm(task, arm, seed_array, results, stages)

        stages.rehearse(rehearsal)
        results = experts()
        for name, arm in missing.items():
            kept[name] = result = _run_arm(task, arm, seed_array, results, stages, name)
            save(folder / f"{name}.json", specification(task, arm, seeds), result)
    return {name: result for name, result in kept.items() if result is not None}


def _run_arm(
    task: Task, arm: Arm, seeds: np.ndarray, experts: reinforce.Result, stages: Stages, title: str = ""
) -> Result:
    static = dataclasses.replace(arm, hyper=jax.tree.map(lambda _: 0.0, arm.hyper))
    return stages.run(
        f"{task.name} {title}".strip(),
        functools.partial(run_seed, task, static),
        arm.hyper,
        seeds,
        experts.pi1,
        experts.pi2,
        lanes=LANES.get(arm.method, 8),
        program=(task.name, repr(static)),
    )


AFTERWARDS = {"plots", "statistics", "store"}
"""Modules that only work on results."""
LIBRARY = [path for path in sorted(Path(ppo.__file__).parent.glob("*.py")) if path.stem not in AFTERWARDS]
SOURCES = [*LIBRARY, Path(pipeline.__file__), Path(__file__)]
"""The code that results depend on."""


@functools.cache
def _code() -> str:
    return hashlib.sha256(b"".join(path.read_bytes() for path in SOURCES)).hexdigest()


def specification(task: Task, arm: Arm, seeds: Sequence[int]) -> dict[str, Any]:
    """Everything that an arm's results depend on, as JSON has it."""
    return {
        "task": task.name,
        "seeds": list(seeds),
        "arm": dataclasses.asdict(arm),
        "versions": report.versions(),
        "code": _code(),
    }


def save(path: Path, spec: dict[str, Any], result: Result) -> None:
    """Write an arm's results beside what they depend on; NaN is null."""
    path.parent.mkdir(parents=True, exist_ok=True)
    numbers = store.named_leaves(result)
    lists = {name: [None if np.isnan(x) else float(x) for x in leaf] for name, leaf in numbers.items()}
    store.save_json(path, {"specification": spec, "results": lists})


def load(path: Path, spec: dict[str, Any]) -> Result | None:
    """What `save` wrote; None where there is nothing, or where it depends on something else."""
    try:
        stored = store.load_json(path)
    except (FileNotFoundError, ValueError):
        return None
    if stored.get("specification") != spec:
        return None
    lists = {name: np.array(values, np.float64) for name, values in stored["results"].items()}
    quality: Any = {name: lists.pop(f"quality/{name}") for name in ranking.Quality.__dataclass_fields__}
    rest: Any = lists
    return Result(quality=ranking.Quality(**quality), **rest)
