"""Arms: variants of the study that are compared seed by seed. An arm is settings for the one pipeline.

An arm's name is its method and what differs from the plain case: 200 pairs, reference pi2, default settings.
"""

import contextlib
import dataclasses
import itertools
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, Literal, NamedTuple, get_args

import numpy as np
from rich.console import Console

from experiments.harness import devices, folder
from experiments.harness.memo import Memo
from experiments.harness.progress import Progress, bar_on
from experiments.harness.stages import Stages
from experiments.pipeline import pipeline
from experiments.pipeline.settings import Method, Settings, StudyTask, from_config, original_ppo, original_settings
from experiments.reporting.summary import below, diverged, mean_or_none, sound

BATCH = 20  # seeds of the evidence that run at the same time: their largest dataset fits in memory
TaskName = Literal[
    "cartpole", "acrobot", "mountain-car", "cartpole-fixed", "acrobot-fixed", "pendulum", "catch"
]  # as the command line has them
TASKS: dict[TaskName, tuple[str, dict[str, Any]]] = {
    "cartpole": ("CartPole", {"task": "cartpole"}),
    "acrobot": ("Acrobot", {"task": "acrobot"}),
    "mountain-car": ("MountainCar", {"task": "MountainCar-v0"}),
    "cartpole-fixed": ("CartPole, fixed horizon", {"task": "cartpole", "fixed_horizon": True}),
    "acrobot-fixed": ("Acrobot, fixed horizon", {"task": "acrobot", "fixed_horizon": True}),
    "pendulum": ("Pendulum", {"task": "Pendulum-v1", "return_range": (-1600.0, 0.0)}),
    "catch": ("Catch", {"task": "Catch-bsuite"}),
}
"""The tasks of the evidence: how they are written, and their settings."""
PLAIN: dict[str, Any] = {"reference": ("pi2",), "num_pairs": (200,), "num_heldout": 200, "eval_episodes": 100}
"""The settings of every arm, except those that its name or its task changes."""
PARTS: dict[str, dict[str, Any]] = {
    "-pi1": {"reference": ("pi1",)},
    "-original-ppo": {"ppo": vars(original_ppo())},
    "-ppo-experts": {"experts": "ppo"},
    **{f"-{kind}": {"reward": kind} for kind in ("bias", "plus", "minus", "zero", "random", "true")},
    **{f"-{size}": {"num_pairs": (size,)} for size in (10, 50, 1000)},
    "-clips": {"segment": 25},
    "-coin": {"annotator": {"mistake_prob": 0.5}},
    **{f"-mistakes-{share}%": {"annotator": {"mistake_prob": share / 100}} for share in (20, 40)},
    "-ties": {"annotator": {"tie_threshold": 0.1}},
    "-myopic": {"annotator": {"discount": 0.98}},
    # Three reward models with bootstrap weights and early stopping.
    "-ensemble": {"num_members": 3, "reward_model": {"holdout_every": 5}},
    "-no-decay": {"reward_model": {"weight_decay": 0.0}},
    "-kept-critic": {"ppo": {"reset_value": False}},
    "-short": {"ppo": {"num_updates": 6, "eval_every": 1}},  # a tenth of the steps
    "online-rlhf": {"reward_model": {"num_updates": 50}},
    "-long": {"dpo": {"num_updates": 600, "eval_every": 60}},
    "cloning": {"dpo": {"loss": "cloning"}},
    # Each beta is the best of three on CartPole and Acrobot, on other seeds (700 to 719), one for all tasks.
    "-conservative": {"dpo": {"loss": "conservative", "beta": 0.1}},
    "-sigmoid": {"dpo": {"loss": "sigmoid", "beta": 0.1}},
    "-robust": {"dpo": {"loss": "robust", "beta": 0.1, "label_smoothing": 0.2}},  # the share of mistakes
    "-hinge": {"dpo": {"loss": "hinge", "beta": 0.1}},
    "-ipo": {"dpo": {"loss": "ipo", "beta": 0.02}},
    "-sigmoid_per_step": {"dpo": {"loss": "sigmoid_per_step", "beta": 30.0}},
    "-ipo_per_step": {"dpo": {"loss": "ipo_per_step", "beta": 3.0}},
}
"""The settings that each part of an arm's name changes."""
TEMPERATURES = {"cartpole-fixed": 20.0, "pendulum": 160.0}
"""Of the hesitant annotator: a tenth of the range of returns."""
EQUAL_KL = {"cartpole": 0.035, "acrobot": 0.4, "cartpole-fixed": 0.045, "acrobot-fixed": 0.017, "pendulum": 0.1}
"""PPO's kl_coef with which its KL is near DPO's with 200 pairs: found on seeds 700 to 719."""


Job = tuple[str, Settings]  # settings with a title
Run = Callable[[Iterable[Job]], Iterator[pipeline.Outcome]]  # runs jobs in their order
Table = dict[str, dict[str, Any]]  # numbers [S] by the arm's name and by their names in summary.json


class Arm(NamedTuple):
    """The policy of `settings` that is evaluated: pi1, pi2, or the one that was trained on this number of pairs."""

    settings: Settings
    policy: str | int


def arm(task: TaskName, name: str) -> Arm:
    """Return the arm of this name."""
    _, of_task = TASKS[task]
    method = next((method for method in get_args(Method) if name.startswith(method)), "dpo")
    config = PLAIN | of_task | {"method": method}
    for part, changes in parts_of(task).items():
        if f"{part}-" in f"{name}-":  # a part ends where a word of the name does
            for key, value in changes.items():
                config[key] = config.get(key, {}) | value if isinstance(value, dict) else value
    (num_pairs,) = config["num_pairs"]
    return Arm(from_config(config), name[:3] if name.startswith("pi") else num_pairs)


def parts_of(task: TaskName) -> dict[str, dict[str, Any]]:
    """Return PARTS, and the parts whose settings depend on the task."""
    parts = dict(PARTS)
    if task in TEMPERATURES:
        parts["-hesitant"] = {"annotator": {"temperature": TEMPERATURES[task]}}
    if task in EQUAL_KL:
        parts["-equal-kl"] = {"ppo": {"kl_coef": EQUAL_KL[task]}}
    if task in get_args(StudyTask):
        parts["-original-experts"] = {"reinforce": vars(original_settings(task, "dpo").reinforce)}
    return parts


@contextlib.contextmanager
def opened(out: Path, num_devices: int) -> Iterator[tuple[Run, Console]]:
    """Hold the folder of results, with JAX set up; give a function that runs jobs, and a console."""
    with folder.locked(out):
        devices.set_up_jax(num_devices)
        with bar_on(Console()) as bar, Stages(Memo()) as stages, Progress(bar, out) as progress:

            def start(title: str, settings: Settings) -> Callable[[], pipeline.Outcome]:
                progress.plan()
                own = stages.of_run(Progress(bar_on(Console(quiet=True))))
                collect = pipeline.start(settings, pipeline.task_of(settings), own)

                def finish() -> pipeline.Outcome:
                    progress.start(title, None)
                    outcome, times = collect(), own.times.values()
                    compile_s, run_s = sum(time.compile_s for time in times), sum(time.run_s for time in times)
                    how = {"compile_s": compile_s, "run_s": run_s, "kept": run_s == 0}
                    progress.done(title, len(settings.seeds), None, mean_or_none(outcome.rows[-1].true_return), **how)
                    return outcome

                return finish

            def run(jobs: Iterable[Job]) -> Iterator[pipeline.Outcome]:
                # Each job starts before the previous one is awaited, so that its programs are compiled in the meantime.
                finish = None
                for following in itertools.starmap(start, jobs):
                    if finish:
                        yield finish()
                    finish = following
                if finish:
                    yield finish()

            yield run, progress.console


def run_arms(task: TaskName, names: Iterable[str], seeds: range, run: Run) -> Table:
    """Run arms on all seeds, in batches of seeds.

    Arms with the same settings are one run. So are arms that differ only in their number of pairs. Those with 200 pairs
    are separate, so that they all share the same pairs.
    """
    arms = {name: arm(task, name) for name in names}

    def shared(name: str) -> Settings:
        settings = arms[name].settings
        return settings if settings.num_pairs == (200,) else dataclasses.replace(settings, num_pairs=())

    runs = list[tuple[Settings, list[str]]]()
    for settings, group in itertools.groupby(sorted(arms, key=lambda name: repr(shared(name))), shared):
        together = list(group)
        sizes = sorted({size for name in together for size in arms[name].settings.num_pairs})
        for batch in (seeds[start : start + BATCH] for start in range(0, len(seeds), BATCH)):
            runs.append((dataclasses.replace(settings, num_pairs=tuple(sizes), seeds=tuple(batch)), together))
    runs.sort(key=_order)
    jobs = [(f"{task} {', '.join(group)}, seeds {each.seeds[0]}-{each.seeds[-1]}", each) for each, group in runs]
    parts: dict[str, list[dict[str, Any]]] = {name: [] for name in arms}
    for (settings, together), outcome in zip(runs, run(jobs), strict=True):
        for name in together:
            parts[name].append(numbers(settings, outcome, arms[name].policy))
    return {name: {key: np.concatenate([part[key] for part in of]) for key in of[0]} for name, of in parts.items()}


def _order(run: tuple[Settings, list[str]]) -> tuple:
    """Return a key to sort by: runs of the same pairs follow each other, so that their pairs are played once."""
    settings, _ = run
    return repr((settings.expert_config, settings.annotator, settings.segment)), settings.num_pairs, settings.seeds


def numbers(settings: Settings, outcome: pipeline.Outcome, policy: str | int) -> dict[str, Any]:
    """Return an arm's numbers [S]: NaN on seeds that diverged, and where there is no learned reward to judge."""
    row = next((row for row in outcome.rows if row.num_pairs == policy), outcome.rows[0])
    returns: dict[str, Any] = {"true_return": row.true_return, "learned_return": row.learned_return, "kl": row.kl}
    error = row.true_return_error
    labels = {name: outcome.labels[name] for name in ("label_entropy", "best_accuracy", "length_accuracy")}
    judged: dict[str, Any] = {
        "heldout_accuracy": row.quality.return_accuracy,
        "label_accuracy": row.quality.label_accuracy,
        "heldout_negative_log_likelihood": row.quality.negative_log_likelihood,
        "heldout_calibration_error": row.quality.calibration_error,
        "heldout_rank_correlation": row.quality.rank_correlation,
        "own_rank_correlation": row.own_rank_correlation,
    }
    training: Any = row.reference, policy
    if isinstance(policy, str):
        returns = {"true_return": outcome.returns[policy], "kl": outcome.pi1_kl if policy == "pi1" else 0.0}
        error, training = outcome.errors[policy], ()
    if isinstance(policy, str) or settings.reward == "true":
        judged = dict.fromkeys(judged, np.nan)
    returns["failed"] = below(returns["true_return"], error, outcome.returns["pi2"], outcome.errors["pi2"])
    known = sound(diverged(settings, outcome), settings.seeds, *training)
    return {name: np.where(known, values, np.float32(np.nan)) for name, values in (returns | labels | judged).items()}
