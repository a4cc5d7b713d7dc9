"""How far to trust a person's answers: agreement, habits, and what models learn from them."""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import krippendorff
import numpy as np
from scipy.stats import binomtest

from experiments.asking.answers import Answer, QuestionKey
from jaxpref import dpo, reward_model
from jaxpref.analysis import ranking
from jaxpref.networks import Network, init_policy, trajectory_log_prob, trajectory_reward
from jaxpref.preferences import take
from jaxpref.tasks import Task
from jaxpref.types import Preferences, Trajectory

TOO_FAST_S = 0.5
"""Seconds: nobody sees two clips in less."""
FOLDS = 5


class Measure(NamedTuple):
    """A line of the report. `value` is None where the answers cannot say it."""

    name: str
    value: float | None
    text: str

    @property
    def shown(self) -> str:
        """The value as text."""
        return "–" if self.value is None else f"{self.value:.0f}" if self.name == "answers" else f"{self.value:.2f}"


def cohens_kappa(pairs: Sequence[tuple[str, str]]) -> float:
    """Compute Cohen's kappa of two ratings of each item: (p_observed - p_chance) / (1 - p_chance). NaN if all are the
    same (Cohen, 1960, https://doi.org/10.1177/001316446002000104).
    """
    ratings = np.array(pairs, str).reshape(-1, 2)
    if len(np.unique(ratings)) < 2:
        return float("nan")
    observed = (ratings[:, 0] == ratings[:, 1]).mean()
    chance = sum(np.prod((ratings == choice).mean(0)) for choice in np.unique(ratings))
    return float((observed - chance) / (1 - chance))


def krippendorffs_alpha(items: Sequence[Sequence[str | None]]) -> float:
    """Compute Krippendorff's alpha of nominal ratings [items][annotators], None if not asked. NaN without variation."""
    rated = [item for item in items if sum(choice is not None for choice in item) > 1]
    kinds = sorted({choice for item in rated for choice in item if choice is not None})
    if len(kinds) < 2:
        return float("nan")
    table = [[np.nan if choice is None else kinds.index(choice) for choice in item] for item in rated]
    return float(krippendorff.alpha(np.array(table, float).T, level_of_measurement="nominal"))


def report(answers: dict[QuestionKey, Answer], gaps: np.ndarray, checks: float) -> list[Measure]:
    """Describe the answers.

    gaps:    true return of each pair's first trajectory minus the second's [N]; NaN if unknown.
    checks:  share of the pairs, those with the largest gaps, whose answer is clear.
    """
    every, gaps = list(answers.values()), np.nan_to_num(gaps)
    better = np.where(gaps > 0, "first", "second")
    largest = np.argsort(-np.abs(gaps), kind="stable")[: round(checks * len(gaps))]
    clear = {pair for pair in largest.tolist() if gaps[pair] != 0}
    sides = [each for each in every if each.choice in ("first", "second")]
    twice = [
        (answers[pair, False], again)
        for (pair, repeat), again in answers.items()
        if repeat and (pair, False) in answers
    ]
    own = [(one.choice, again.choice) for one, again in twice if _person(one) == _person(again)]
    people = sorted({_person(each) for each in every})
    table: dict[int, dict[str, str]] = {each.pair: {} for each in every}
    for each in every:
        if each.choice != "skip":
            table[each.pair][_person(each)] = each.choice
    alpha = krippendorffs_alpha([[of_pair.get(person) for person in people] for of_pair in table.values()])
    seconds = [each.note["seconds"] for each in every if isinstance(each.note.get("seconds"), int | float)]
    return [
        Measure("answers", len(every), f"pairs: {len(table)}; people: {', '.join(people) or 'none'}"),
        _share("the same again", [one == again for one, again in own], "pairs that came again, sides exchanged"),
        _number("Cohen's kappa, with oneself", cohens_kappa(own)),
        _number("Krippendorff's alpha, between people", alpha),
        _share(
            "left side",
            [each.choice == each.note["left"] for each in sides if "left" in each.note],
            "answers for a side",
        ),
        _share(
            "checks missed", [each.choice != better[each.pair] for each in sides if each.pair in clear], "clear pairs"
        ),
        _share(f"faster than {TOO_FAST_S} s", [each < TOO_FAST_S for each in seconds], "answers"),
        _share("ties", [each.choice == "tie" for each in every], "answers"),
        _share("skips", [each.choice == "skip" for each in every], "answers"),
    ]


def _person(answer: Answer) -> str:
    return str(answer.note.get("person") or "somebody")


def _share(name: str, hits: list[bool], what: str) -> Measure:
    if not hits:
        return Measure(name, None, f"no {what}")
    low, high = binomtest(sum(map(bool, hits)), len(hits)).proportion_ci(method="wilson")
    return Measure(name, float(np.mean(hits)), f"{sum(hits)} of {len(hits)} {what}; 95 %: {low:.2f} to {high:.2f}")


def _number(name: str, value: float) -> Measure:
    known = bool(np.isfinite(value))
    return Measure(name, value if known else None, "1: always the same, 0: as by chance" if known else "not known yet")


def model_accuracy(task: Task, preferences: Preferences, policy: Network | None = None) -> list[Measure]:
    """Return how often a reward model and DPO rank answered pairs as people did, by cross-validation in five folds.

    policy:  what DPO starts from; None: an untrained one.
    """
    answered = take(jax.tree.map(jnp.asarray, preferences), jnp.flatnonzero(jnp.asarray(preferences.weight) > 0))
    num_pairs = len(answered.weight)
    if num_pairs < 2 * FOLDS:
        return [Measure(name, None, f"needs {2 * FOLDS} answers") for name in ("reward model", "DPO")]
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
    return [Measure(name, float(jnp.nanmean(accuracies[name])), text) for name in ("reward model", "DPO")]
