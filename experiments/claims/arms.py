"""Arms: variants of the study that are compared seed by seed. An arm is settings for the one pipeline.

An arm's name is its method and what differs from the plain case: 200 pairs, reference pi2, default settings.
"""

import contextlib
import dataclasses
import itertools
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple, get_args

import numpy as np
from rich.console import Console

from experiments.harness import devices, folder
from experiments.harness.memo import Memo
from experiments.harness.progress import Progress, bar_on
from experiments.harness.stages import Stages
from experiments.pipeline import pipeline
from experiments.pipeline.settings import Method, Settings, StudyTask, default_settings, original_ppo
from experiments.reporting.summary import diverged, mean_or_none, sound
from jaxpref import annotators, dpo, online, reward_model

BATCH = 20  # seeds of the evidence that run at the same time: their largest dataset fits in memory
TEMPERATURES = {"cartpole": 20.0, "acrobot": 50.0}  # of the hesitant annotator: a tenth of the range of returns
PARTS: dict[str, dict[str, Any]] = {
    "pi2-again": {"evaluation": 1},
    "-pi1": {"reference": ("pi1",)},
    "-original-ppo": {"ppo": original_ppo()},
    **{f"-{kind}": {"reward": kind} for kind in ("zero", "random", "true")},
    **{f"-{size}": {"num_pairs": (10, 50, 1000)} for size in (10, 50, 1000)},
    "-coin": {"annotator": annotators.Config(mistake_prob=0.5)},
    **{f"-mistakes-{share}%": {"annotator": annotators.Config(mistake_prob=share / 100)} for share in (10, 20, 40)},
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
    "-sigmoid": {"dpo": dpo.Config(loss="sigmoid", beta=0.1)},
    "-robust": {"dpo": dpo.Config(loss="robust", beta=0.1)},
    # It needs the share of mistakes.
    "-mistakes-20%-robust": {"dpo": dpo.Config(loss="robust", beta=0.1, label_smoothing=0.2)},
    "-hinge": {"dpo": dpo.Config(loss="hinge", beta=0.1)},
    "-ipo": {"dpo": dpo.Config(loss="ipo", beta=0.02)},
    "-sigmoid_per_step": {"dpo": dpo.Config(loss="sigmoid_per_step", beta=30.0)},
    "-ipo_per_step": {"dpo": dpo.Config(loss="ipo_per_step", beta=3.0)},
}
"""What the parts of an arm's name change."""


Run = Callable[[str, Settings], pipeline.Outcome]  # runs settings under a title
Table = dict[str, dict[str, Any]]  # numbers [S] by the arm's name and by their names in summary.json


class Arm(NamedTuple):
    """The policy of `settings` that is evaluated: pi1, pi2, or the one that was trained on this number of pairs."""

    settings: Settings
    policy: str | int


def arm(task: StudyTask, name: str) -> Arm:
    """Return the arm of this name."""
    parts = PARTS | {"-hesitant": {"annotator": annotators.Config(temperature=TEMPERATURES[task])}}
    changes: dict[str, Any] = {"reference": ("pi2",), "num_pairs": (200,), "num_heldout": 200, "eval_episodes": 100}
    for part, change in parts.items():
        if f"{part}-" in f"{name}-":  # a part ends where a word of the name does
            changes |= change
    method: Any = next((method for method in get_args(Method) if name.startswith(method)), "dpo")
    size = name.rpartition("-")[2]
    policy = name[:3] if name.startswith("pi") else int(size) if size.isdigit() else 200
    return Arm(dataclasses.replace(default_settings(task, method), **changes), policy)


@contextlib.contextmanager
def opened(out: Path, num_devices: int) -> Iterator[tuple[Run, Console]]:
    """Hold the folder of results, with JAX set up; give a function that runs settings, and a console."""
    with folder.locked(out):
        devices.set_up_jax(num_devices)
        with bar_on(Console()) as bar, Stages(Memo()) as stages, Progress(bar, out) as progress:

            def run(title: str, settings: Settings) -> pipeline.Outcome:
                progress.plan()
                progress.start(title, None)
                own = stages.of_run(Progress(bar_on(Console(quiet=True))))
                outcome = pipeline.run(settings, pipeline.task_of(settings), own)
                times, mean = own.times.values(), mean_or_none(outcome.rows[-1].true_return)
                compile_s, run_s = sum(time.compile_s for time in times), sum(time.run_s for time in times)
                progress.done(title, len(settings.seeds), None, mean, compile_s=compile_s, run_s=run_s, kept=run_s == 0)
                return outcome

            yield run, progress.console


def run_arms(task: StudyTask, names: Iterable[str], seeds: range, run: Run) -> Table:
    """Run arms on all seeds, one batch of seeds after another. Arms with the same settings are one run."""
    arms = {name: arm(task, name) for name in names}
    # Arms with the same pairs follow each other, so that pairs stay in memory.
    order = sorted(
        arms, key=lambda name: repr((arms[name].settings.annotator, arms[name].settings.num_pairs, arms[name].settings))
    )
    parts: dict[str, list[dict[str, Any]]] = {name: [] for name in arms}
    for batch in (seeds[start : start + BATCH] for start in range(0, len(seeds), BATCH)):
        for settings, group in itertools.groupby(order, lambda name: arms[name].settings):
            together, settings = list(group), dataclasses.replace(settings, seeds=tuple(batch))
            outcome = run(f"{task} {', '.join(together)}, seeds {batch[0]}-{batch[-1]}", settings)
            for name in together:
                parts[name].append(numbers(settings, outcome, arms[name].policy))
    return {name: {key: np.concatenate([part[key] for part in of]) for key in of[0]} for name, of in parts.items()}


def numbers(settings: Settings, outcome: pipeline.Outcome, policy: str | int) -> dict[str, Any]:
    """Return an arm's numbers [S]: NaN on seeds that diverged, and where there is no learned score to judge."""
    row = next((row for row in outcome.rows if row.num_pairs == policy), outcome.rows[0])
    returns: dict[str, Any] = {"true_return": row.true_return, "learned_return": row.learned_return, "kl": row.kl}
    labels = {name: outcome.labels[name] for name in ("label_entropy", "best_accuracy")}
    judged: dict[str, Any] = {
        "heldout_accuracy": row.quality.return_accuracy,
        "label_accuracy": row.quality.label_accuracy,
        "heldout_negative_log_likelihood": row.quality.negative_log_likelihood,
        "heldout_calibration_error": row.quality.calibration_error,
        "heldout_rank_correlation": row.quality.rank_correlation,
        "score_per_step": row.score_per_step,
    }
    training: Any = row.reference, policy
    if isinstance(policy, str):
        returns = {"true_return": outcome.returns[policy], "kl": outcome.pi1_kl if policy == "pi1" else 0.0}
        training = ()
    if isinstance(policy, str) or settings.reward == "true":
        judged = dict.fromkeys(judged, np.nan)
    known = sound(diverged(settings, outcome), settings.seeds, *training)
    return {name: np.where(known, values, np.float32(np.nan)) for name, values in (returns | labels | judged).items()}
