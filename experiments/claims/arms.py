"""Arms: variants of the study that are compared seed by seed. An arm is settings for the one pipeline.

An arm's name is its method and what differs from the plain case: 200 pairs, reference pi2, default settings.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from typing import Any, NamedTuple, get_args

from experiments.pipeline.settings import Method, Settings, StudyTask, default_settings, original_ppo
from jaxpref import annotators, dpo, online, reward_model

TEMPERATURES = {"cartpole": 20.0, "acrobot": 50.0}
"""Of the hesitant annotator: a tenth of the task's range of returns."""
SIZES = (10, 50, 1000)
PARTS: dict[str, dict[str, Any]] = {
    "pi2-again": {"evaluation": 1},
    "-pi1": {"reference": ("pi1",)},
    "-original-ppo": {"ppo": original_ppo()},
    **{f"-{kind}": {"reward": kind} for kind in ("zero", "random", "true")},
    **{f"-{size}": {"num_pairs": SIZES} for size in SIZES},
    "-coin": {"annotator": annotators.Config(mistake_prob=0.5)},
    "-mistakes-10%": {"annotator": annotators.Config(mistake_prob=0.1)},
    "-mistakes-20%": {"annotator": annotators.Config(mistake_prob=0.2)},
    "-mistakes-40%": {"annotator": annotators.Config(mistake_prob=0.4)},
    "-ties": {"annotator": annotators.Config(tie_threshold=0.1)},
    "-skips": {"annotator": annotators.Config(skip_threshold=0.7)},
    "-myopic": {"annotator": annotators.Config(discount=0.98)},
    # Three reward models with bootstrap weights and early stopping. Online, an ensemble is fitted in each round.
    "-ensemble": {"num_members": 3, "reward_model": reward_model.Config(holdout_every=5)},
    "-no-decay": {"reward_model": reward_model.Config(weight_decay=0.0)},
    "online-rlhf": {
        "online": online.Config(num_candidates=4, disagreement=0.0),
        "reward_model": reward_model.Config(num_updates=50),
    },
    "-disagreement": {"online": online.Config(num_candidates=4, disagreement=1.0)},
    # Each beta is the best of three on other seeds (700 to 719), one for both tasks.
    "cloning": {"dpo": dpo.Config(loss="cloning")},
    "-sigmoid": {"dpo": dpo.Config(loss="sigmoid")},
    "-robust": {"dpo": dpo.Config(loss="robust")},
    "-mistakes-20%-robust": {"dpo": dpo.Config(loss="robust", label_smoothing=0.2)},  # it needs the share of mistakes
    "-hinge": {"dpo": dpo.Config(loss="hinge", beta=0.1)},
    "-ipo": {"dpo": dpo.Config(loss="ipo", beta=0.02)},
    "-sigmoid_per_step": {"dpo": dpo.Config(loss="sigmoid_per_step", beta=30.0)},
    "-ipo_per_step": {"dpo": dpo.Config(loss="ipo_per_step", beta=3.0)},
}
"""What the parts of an arm's name change."""


class Arm(NamedTuple):
    """The policy of `settings` that is evaluated: "pi1", "pi2", or the one "trained" on `num_pairs`."""

    settings: Settings
    policy: str
    num_pairs: int


def arm(task: StudyTask, name: str) -> Arm:
    """Return the arm of this name."""
    parts = PARTS | {"-hesitant": {"annotator": annotators.Config(temperature=TEMPERATURES[task])}}
    changes: dict[str, Any] = {"reference": ("pi2",), "num_pairs": (200,), "num_heldout": 200, "eval_episodes": 100}
    for part in parts:
        # A part ends where a word of the name does.
        if f"{part}-" in f"{name}-":
            changes |= parts[part]
    method: Any = next((method for method in get_args(Method) if name.startswith(method)), "dpo")
    settings = dataclasses.replace(default_settings(task, method), **changes)
    size = name.rpartition("-")[2]
    return Arm(settings, name[:3] if name.startswith("pi") else "trained", int(size) if size.isdigit() else 200)


def arms(task: StudyTask, names: Iterable[str]) -> dict[str, Arm]:
    """Return arms by their names. Arms with the same pairs follow each other: their pairs are played once."""
    table = {name: arm(task, name) for name in names}

    def pairs(name: str) -> str:
        settings = table[name].settings
        return repr((settings.annotator, settings.num_pairs, settings))

    return {name: table[name] for name in sorted(table, key=pairs)}
