"""Arms: variants of the study that are compared seed by seed. An arm is settings for the one pipeline.

An arm's name is its method and what differs from the plain case: 200 pairs, reference pi2, default settings.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any, Literal

import jax
import numpy as np
from flax import struct
from jaxtyping import Array, Bool, Float

from experiments.harness.stages import Stages
from experiments.study import pipeline
from experiments.study.settings import Policy, Settings, StudyTask, default_settings, original_ppo
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
NO_DECAY = {"reward_model": reward_model.Config(weight_decay=0.0)}
ENSEMBLE = {"reward_model": reward_model.Config(holdout_every=5), "num_members": 3}
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
    diverged:  whether the training of the experts, of the reward model or of the policy diverged.
    """

    true_return: Float[Array, " S"]
    kl: Float[Array, " S"]
    quality: ranking.Quality
    score_per_step: Float[Array, " S"]
    label_entropy: Float[Array, " S"]
    best_accuracy: Float[Array, " S"]
    diverged: Bool[Array, " S"]


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

    def arm(method: Any, reference: Policy = "pi2", **changes: Any) -> Arm:
        settings = default_settings(task, method)
        changes = {"num_pairs": (200,), "num_heldout": 200, "eval_episodes": 100, "batch_seeds": BATCH} | changes
        return Arm(dataclasses.replace(settings, reference=(reference,), **changes))

    plain, again = arm("dpo"), arm("dpo", evaluation=1)
    table = {name: dataclasses.replace(plain, policy=name) for name in ("pi1", "pi2")}
    table["pi2-again"] = dataclasses.replace(again, policy="pi2")
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
    unknown = np.full(row.kl.shape, np.nan)
    quality, score_per_step = row.quality, row.score_per_step
    if arm.policy != "trained" or arm.settings.reward == "true":
        quality, score_per_step = jax.tree.map(lambda leaf: unknown, quality), unknown
    kl = row.kl if arm.policy == "trained" else outcome.kl[arm.policy]
    true_return = row.true_return if arm.policy == "trained" else outcome.returns[arm.policy]
    trained = [outcome.experts.divergence, row.divergence, row.reward and row.reward.divergence]
    if arm.policy != "trained":
        trained = trained[:1]
    diverged = np.any([part.update > 0 for part in trained if part is not None], axis=0) | ~np.isfinite(true_return)
    labels = outcome.labels
    return Result(true_return, kl, quality, score_per_step, labels.entropy, labels.best_accuracy, diverged)


def run(table: dict[str, Arm], seeds: Sequence[int], stages: Stages) -> Iterator[tuple[Sequence[int], str, Result]]:
    """Run all arms on all seeds; yield (seeds of the batch, name, result) when an arm is done on a batch.

    All arms run on one batch before the next batch starts: the pairs of a batch stay in memory from arm to arm.
    """
    for start in range(0, len(seeds), BATCH):
        batch = tuple(seeds[start : start + BATCH])
        last, outcome = None, None
        for name, arm in table.items():
            settings = dataclasses.replace(arm.settings, seeds=batch)
            if settings != last:
                last, outcome = settings, pipeline.run(settings, pipeline.task_of(settings), stages)
            yield batch, name, result_of(arm, outcome)
