"""Arms: variants of the study that are compared seed by seed. An arm is settings for the one pipeline.

An arm's name is its method and what differs from the plain case: 200 pairs, reference pi2, default settings.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import jax
import numpy as np
from flax import struct
from jaxtyping import Bool, Float

from experiments.claims.running import run_reported
from experiments.harness.progress import Progress
from experiments.harness.stages import Stages
from experiments.pipeline import pipeline
from experiments.pipeline.settings import Settings, StudyTask, default_settings, original_ppo
from experiments.reporting import summary
from jaxpref import annotators, dpo, online, reward_model
from jaxpref.analysis import ranking

BATCH = 20
"""Seeds that run at the same time: their largest dataset fits in memory."""
LOSSES = {
    # Each beta is the best of three on other seeds (700 to 719), one for both tasks.
    "sigmoid": dpo.Config(loss="sigmoid"),
    "robust": dpo.Config(loss="robust"),
    "hinge": dpo.Config(loss="hinge", beta=0.1),
    "ipo": dpo.Config(loss="ipo", beta=0.02),
    "sigmoid_per_step": dpo.Config(loss="sigmoid_per_step", beta=30.0),
    "ipo_per_step": dpo.Config(loss="ipo_per_step", beta=3.0),
}
"""The losses other than the default one, conservative DPO."""
MISTAKES = 0.2
NO_DECAY: dict[str, Any] = {"reward_model": reward_model.Config(weight_decay=0.0)}
ENSEMBLE: dict[str, Any] = {"reward_model": reward_model.Config(holdout_every=5), "num_members": 3}
"""Three reward models with bootstrap weights and early stopping."""


@dataclasses.dataclass(frozen=True)
class Arm:
    """One variant: the policy of `settings` that is evaluated. `num_pairs` is one of the settings' dataset sizes."""

    settings: Settings
    policy: Literal["trained", "pi1", "pi2"] = "trained"
    num_pairs: int = 200


@struct.dataclass
class Result:
    """What an arm reached on each of S seeds. NaN where the arm does not have the number.

    true_return, kl, quality, score_per_step: as in `pipeline.Row`.
    label_entropy, best_accuracy: of the held-out pairs' annotator, as in `functions.Labels`.
    diverged:  whether the experts, the reward model or the policy diverged.
    """

    true_return: Float[np.ndarray, " S"]
    kl: Float[np.ndarray, " S"]
    quality: ranking.Quality
    score_per_step: Float[np.ndarray, " S"]
    label_entropy: Float[np.ndarray, " S"]
    best_accuracy: Float[np.ndarray, " S"]
    diverged: Bool[np.ndarray, " S"]


Table = dict[str, Result]
"""Results by the arm's name, [S] each."""


def teachers(task: StudyTask) -> dict[str, annotators.Config]:
    """Return the annotators other than the plain one. The hesitant one's temperature is a tenth of the task's range."""
    return {
        "hesitant": annotators.Config(temperature={"cartpole": 20.0, "acrobot": 50.0}[task]),
        "mistakes-10%": annotators.Config(mistake_prob=0.1),
        "mistakes-20%": annotators.Config(mistake_prob=MISTAKES),
        "mistakes-40%": annotators.Config(mistake_prob=0.4),
        "ties": annotators.Config(tie_threshold=0.1),
        "skips": annotators.Config(skip_threshold=0.7),
        "myopic": annotators.Config(discount=0.98),
    }


def arms(task: StudyTask) -> dict[str, Arm]:
    """Return every arm by its name. Arms with the same pairs follow each other: their pairs are played once."""

    def arm(method: Any, reference: Any = "pi2", **changes: Any) -> Arm:
        settings = default_settings(task, method)
        plain: dict[str, Any] = {"num_pairs": (200,), "num_heldout": 200, "eval_episodes": 100}
        return Arm(dataclasses.replace(settings, reference=(reference,), **plain | changes))

    table = {name: dataclasses.replace(arm("dpo"), policy=name) for name in ("pi1", "pi2")}
    table["pi2-again"] = dataclasses.replace(arm("dpo", evaluation=1), policy="pi2")
    for reference, suffix in (("pi1", "-pi1"), ("pi2", "")):
        table |= {f"{method}{suffix}": arm(method, reference) for method in ("dpo", "rlhf")}
        for kind in ("zero", "random", "true"):
            table[f"rlhf{suffix}-{kind}"] = arm("rlhf", reference, reward=kind)
        original = f"rlhf{suffix}-original-ppo"
        table[original] = arm("rlhf", reference, ppo=original_ppo())
        table[f"{original}-zero"] = arm("rlhf", reference, ppo=original_ppo(), reward="zero")
    table |= {"rlhf-ensemble": arm("rlhf", **ENSEMBLE), "rlhf-no-decay": arm("rlhf", **NO_DECAY)}
    table["cloning"] = arm("dpo", dpo=dpo.Config(loss="cloning"))
    table |= {f"dpo-{loss}": arm("dpo", dpo=config) for loss, config in LOSSES.items()}
    for method in ("dpo", "rlhf"):
        sizes = arm(method, num_pairs=(10, 50, 1000))
        table |= {f"{method}-{size}": dataclasses.replace(sizes, num_pairs=size) for size in (10, 50, 1000)}
    for name, teacher in teachers(task).items():
        table |= {f"{method}-{name}": arm(method, annotator=teacher) for method in ("dpo", "rlhf")}
        if name == "mistakes-20%":
            for loss, config in LOSSES.items():
                table[f"dpo-{name}-{loss}"] = arm("dpo", annotator=teacher, dpo=_informed(config))
            table[f"rlhf-{name}-no-decay"] = arm("rlhf", annotator=teacher, **NO_DECAY)
            table[f"rlhf-{name}-ensemble"] = arm("rlhf", annotator=teacher, **ENSEMBLE)
    coin = annotators.Config(mistake_prob=0.5)
    for reference, suffix in (("pi1", "-pi1"), ("pi2", "")):
        table |= {f"{method}{suffix}-coin": arm(method, reference, annotator=coin) for method in ("dpo", "rlhf")}
    table["online-dpo"] = arm("online-dpo")
    for name, disagreement in (("online-rlhf", 0.0), ("online-rlhf-disagreement", 1.0)):
        asking = online.Config(num_candidates=4, disagreement=disagreement)
        # The ensemble is fitted in each round, with fewer updates than offline.
        table[name] = arm("online-rlhf", online=asking, reward_model=reward_model.Config(num_updates=50))
    return table


def _informed(config: dpo.Config) -> dpo.Config:
    # Robust DPO needs the share of wrong labels.
    return dataclasses.replace(config, label_smoothing=MISTAKES) if config.loss == "robust" else config


def result_of(arm: Arm, outcome: pipeline.Outcome) -> Result:
    """Take an arm's numbers from the outcome of its settings."""
    row = next(row for row in outcome.rows if row.num_pairs == arm.num_pairs)
    numbers: Any = row.quality, row.score_per_step, row.true_return, row.kl
    quality, score_per_step, true_return, kl = numbers
    of_run: Any = {"reference": row.reference, "num_pairs": row.num_pairs}
    unknown = np.full(kl.shape, np.nan)
    if arm.policy != "trained" or arm.settings.reward == "true":
        quality, score_per_step = jax.tree.map(lambda leaf: unknown, quality), unknown
    if arm.policy != "trained":
        true_return, kl = outcome.returns[arm.policy], np.zeros_like(kl) if arm.policy == "pi2" else outcome.pi1_kl
        of_run = {}
    lost = ~summary.sound(summary.diverged(arm.settings, outcome), arm.settings.seeds, **of_run)
    labels: Any = outcome.labels
    return Result(true_return, kl, quality, score_per_step, labels.entropy, labels.best_accuracy, lost)


def batches_of(seeds: Sequence[int]) -> list[tuple[int, ...]]:
    """Return the seeds that run at the same time."""
    return [tuple(seeds[start : start + BATCH]) for start in range(0, len(seeds), BATCH)]


def run_all(
    by_task: Mapping[StudyTask, dict[str, Arm]], seeds: Sequence[int], stages: Stages, progress: Progress
) -> dict[str, Table]:
    """Run the arms of each task on all seeds; return the results by task.

    All arms run on one batch of seeds before the next batch starts, so that its pairs stay in memory. Arms that follow
    each other with the same settings are one run of the pipeline.
    """
    tables: dict[str, Table] = {}
    for task, table in by_task.items():
        parts = [_run_batch(task, table, batch, stages, progress) for batch in batches_of(seeds)]
        joined = jax.tree.map(lambda *leaves: np.concatenate(leaves), *parts)
        tables[task] = {name: joined[name] for name in table}
    return tables


def _run_batch(task: str, table: dict[str, Arm], seeds: tuple[int, ...], stages: Stages, progress: Progress) -> Table:
    results = {}
    for settings, group in itertools.groupby(table, lambda name: table[name].settings):
        names, settings = list(group), dataclasses.replace(settings, seeds=seeds)
        title = f"{task} {', '.join(names)}, seeds {seeds[0]}-{seeds[-1]}"
        outcome = run_reported(title, settings, stages, progress)
        for name in names:
            results[name] = result_of(dataclasses.replace(table[name], settings=settings), outcome)
    return results
