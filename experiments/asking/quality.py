"""How far to trust a person's answers: agreement, habits, and what models learn from them."""

import dataclasses
import functools
import itertools
from collections import defaultdict
from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import krippendorff
import numpy as np
from scipy.stats import binomtest

from experiments.asking.answers import Answer, Asked
from jaxpref import dpo, reward_model
from jaxpref.analysis import ranking
from jaxpref.networks import Network, init_policy, trajectory_log_prob, trajectory_reward
from jaxpref.preferences import take
from jaxpref.tasks import Task
from jaxpref.types import Preferences, Trajectory

TOO_FAST_S = 0.5
"""Seconds: nobody sees two clips in less."""
FOLDS = 5


class Line(NamedTuple):
    """A line of the report. `value` is None where the answers cannot say it."""

    name: str
    value: float | None
    text: str

    @property
    def shown(self) -> str:
        """The value as text."""
        return "–" if self.value is None else f"{self.value:.0f}" if self.name == "answers" else f"{self.value:.2f}"


def cohens_kappa(first: Sequence[str], second: Sequence[str]) -> float:
    """Compute Cohen's kappa of two ratings of the same items: (p_observed - p_chance) / (1 - p_chance); NaN if all are
    the same (Cohen, 1960, https://doi.org/10.1177/001316446002000104).
    """
    if not first:
        return float("nan")
    one, other = np.asarray(first), np.asarray(second)
    chance = sum((one == choice).mean() * (other == choice).mean() for choice in {*first, *second})
    return float(((one == other).mean() - chance) / (1 - chance)) if chance < 1 else float("nan")


def krippendorffs_alpha(ratings: list[list[str | None]]) -> float:
    """Compute Krippendorff's alpha of nominal ratings [annotators][items], None if not asked; NaN without variation."""
    kinds = sorted({choice for row in ratings for choice in row if choice is not None})
    if len(kinds) < 2:
        return float("nan")
    table = [[np.nan if choice is None else kinds.index(choice) for choice in row] for row in ratings]
    return float(krippendorff.alpha(np.array(table, float), level_of_measurement="nominal"))


def _share(name: str, hits: int, num: int, what: str, interval: bool = True) -> Line:
    if num == 0:
        return Line(name, None, f"no {what}")
    low, high = binomtest(hits, num).proportion_ci(method="wilson")
    return Line(name, hits / num, f"{hits} of {num} {what}" + (f" (95 %: {low:.0%} to {high:.0%})" if interval else ""))


def report(answers: dict[Asked, Answer], gaps: np.ndarray, checks: float) -> list[Line]:
    """Describe the answers.

    gaps:    true return of each pair's first trajectory minus the second's [N]; NaN if unknown.
    checks:  share of the pairs, those with the largest gaps, whose answer is clear.
    """
    everything = list(answers.values())
    decided = [each for each in everything if each.choice in ("first", "second")]
    twice = [pair for pair, repeat in answers if repeat and (pair, False) in answers]
    both = [[answers[pair, repeat] for pair in twice] for repeat in (False, True)]
    same_person = [_name(one) == _name(other) for one, other in zip(*both, strict=True)]
    own = [[each.choice for each in itertools.compress(side, same_person)] for side in both]
    agree = sum(one == other for one, other in zip(*own, strict=True))
    known = [each for each in decided if np.isfinite(gaps[each.pair]) and gaps[each.pair] != 0]
    num_checks = round(checks * np.isfinite(gaps).sum())
    clear = set(np.argsort(-np.abs(np.nan_to_num(gaps)), kind="stable")[:num_checks].tolist())
    asked = [each for each in everything if each.pair in clear and gaps[each.pair] != 0]
    missed = sum(each.choice != ("first" if gaps[each.pair] > 0 else "second") for each in asked)
    sided = [each for each in decided if "left" in each.note]
    timed = [each.note["seconds"] for each in everything if "seconds" in each.note]
    return [
        Line("answers", len(everything), f"of {len({pair for pair, _ in answers})} pairs"),
        _share("agree with themselves", agree, len(own[0]), "pairs that came again, sides exchanged"),
        _number("Cohen's kappa, with themselves", cohens_kappa(*own), "1: always the same answer, 0: as by chance"),
        _number("Krippendorff's alpha, between annotators", _alpha(everything), f"of {_names(everything)}"),
        _share("left side chosen", sum(_left(each) for each in sided), len(sided), "answers for a side"),
        _share("checks missed", missed, len(asked), "pairs whose true returns differ most", interval=False),
        _share(
            f"faster than {TOO_FAST_S} s", sum(s < TOO_FAST_S for s in timed), len(timed), "answers", interval=False
        ),
        _share("ties", sum(each.choice == "tie" for each in everything), len(everything), "answers", interval=False),
        _share("skips", sum(each.choice == "skip" for each in everything), len(everything), "answers", interval=False),
        _share(
            "as the true return", sum((gaps[e.pair] > 0) == (e.choice == "first") for e in known), len(known), "answers"
        ),
    ]


def _number(name: str, value: float, text: str) -> Line:
    return Line(name, value if np.isfinite(value) else None, text if np.isfinite(value) else "not known yet")


def _name(answer: Answer) -> str:
    return str(answer.note.get("annotator", ""))


def _names(answers: list[Answer]) -> str:
    return ", ".join(sorted({_name(each) or "no name" for each in answers}))


def _left(answer: Answer) -> bool:
    return answer.choice == answer.note["left"]


def _alpha(answers: list[Answer]) -> float:
    """Of the last answer of each annotator about each pair, except skips."""
    table: dict[str, dict[int, str]] = defaultdict(dict)
    for each in answers:
        if each.choice != "skip":
            table[_name(each)][each.pair] = each.choice
    pairs = sorted({each.pair for each in answers})
    rows: list[list[str | None]] = [[of.get(pair) for pair in pairs] for of in table.values()]
    return (
        krippendorffs_alpha(rows) if any(sum(map(bool, column)) > 1 for column in zip(*rows, strict=True)) else np.nan
    )


def of_models(task: Task, preferences: Preferences, policy: Network | None = None) -> list[Line]:
    """Return how often a reward model and DPO rank answered pairs as people did, by cross-validation in five folds.

    policy:  what DPO starts from; None: an untrained one.
    """
    answered = take(jax.tree.map(jnp.asarray, preferences), jnp.flatnonzero(jnp.asarray(preferences.weight) > 0))
    num_pairs = len(answered.weight)
    if num_pairs < 2 * FOLDS:
        return [Line(name, None, f"needs {2 * FOLDS} answers") for name in ("reward model", "DPO")]
    policy = init_policy(jax.random.key(0), task) if policy is None else policy
    config = dpo.Config(eval_episodes=0)

    def fold(number: jax.Array) -> dict[str, jax.Array]:
        held = jnp.arange(num_pairs) % FOLDS == number
        train, test = (
            dataclasses.replace(answered, weight=jnp.where(part, answered.weight, 0.0)) for part in (~held, held)
        )
        rewards = reward_model.train(task, reward_model.Config(), jax.random.key(1), train).params
        trained = dpo.train(task, config, jax.random.key(2), train, policy, policy).params

        def log_ratio(side: Trajectory) -> jax.Array:
            return trajectory_log_prob(trained, side) - trajectory_log_prob(policy, side)

        scores: dict[str, Callable] = {"reward model": functools.partial(trajectory_reward, rewards), "DPO": log_ratio}
        return {
            name: ranking.label_accuracy(score(test.chosen), score(test.rejected), test)
            for name, score in scores.items()
        }

    accuracies = jax.jit(lambda: jax.lax.map(fold, jnp.arange(FOLDS)))()
    text = f"of {num_pairs} answered pairs ranked as answered, each by a model that has not seen it"
    return [_number(name, float(jnp.nanmean(values)), text) for name, values in accuracies.items()]
