"""How far to trust a person's answers: agreement, habits, and what models learn from them."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import krippendorff
import numpy as np
from scipy.stats import binomtest

from experiments.asking.answers import Answer, QuestionKey, read_answers
from jaxpref import dpo, reward_model
from jaxpref.analysis import ranking
from jaxpref.files import store
from jaxpref.networks import Network, init_policy, trajectory_log_prob, trajectory_reward
from jaxpref.preferences import take
from jaxpref.tasks import Task
from jaxpref.types import Preferences, true_return

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


def krippendorffs_alpha(items: Sequence[Sequence[str]]) -> float:
    """Compute Krippendorff's alpha of the nominal ratings of each item. NaN without variation."""
    rated = [item for item in items if len(item) > 1]
    kinds = sorted({choice for item in rated for choice in item})
    if len(kinds) < 2:
        return float("nan")
    counts = [[item.count(kind) for kind in kinds] for item in rated]
    return float(krippendorff.alpha(value_counts=counts, level_of_measurement="nominal"))


def describe(task: Task, files: Sequence[tuple[Path, Path]], checks: float, policy: Network | None) -> list[Measure]:
    """Describe the answers in files, (pairs, labels) of each round, and what models learn from all of them."""
    answers: dict[QuestionKey, Answer] = {}
    gaps, parts = np.zeros(0), []
    for pairs, labels in files:
        parts.append(store.load_labels(labels, pairs))  # it names a line that is no answer
        for (pair, repeat), answer in read_answers(labels.read_bytes().splitlines()).items():
            answers[len(gaps) + pair, repeat] = answer
        first, second = store.load_pairs(pairs)
        gaps = np.append(gaps, true_return(first) - true_return(second))
    preferences = jax.tree.map(lambda *leaves: jnp.concatenate(leaves), *parts)
    return report(answers, gaps, checks) + model_accuracy(task, preferences, policy)


def report(answers: dict[QuestionKey, Answer], gaps: np.ndarray, checks: float) -> list[Measure]:
    """Describe the answers.

    gaps:    true return of each pair's first trajectory minus the second's [N]; NaN if unknown.
    checks:  share of the pairs, those with the largest gaps, whose answer is clear.
    """
    every, gaps = list(answers.values()), np.nan_to_num(gaps)
    pairs, people = {pair for pair, _ in answers}, sorted({_person(each) for each in every})
    own = _same_person_twice(answers)
    for_a_side = {key: each for key, each in answers.items() if each.choice in ("first", "second")}
    left = [each.choice == each.note["left"] for each in for_a_side.values() if "left" in each.note]
    largest = np.argsort(-np.abs(gaps), kind="stable")[: round(checks * len(gaps))].tolist()
    better = {pair: "first" if gaps[pair] > 0 else "second" for pair in largest if gaps[pair] != 0}
    missed = [each.choice != better[pair] for (pair, _), each in for_a_side.items() if pair in better]
    seconds = [each.note["seconds"] for each in every if isinstance(each.note.get("seconds"), int | float)]
    return [
        Measure("answers", len(every), f"pairs: {len(pairs)}; people: {', '.join(people) or 'none'}"),
        _share("the same again", [one == again for one, again in own], "pairs that came again, sides exchanged"),
        _number("Cohen's kappa, with oneself", cohens_kappa(own)),
        _number("Krippendorff's alpha, between people", krippendorffs_alpha(_by_pair(answers))),
        _share("left side", left, "answers for a side"),
        _share("checks missed", missed, "clear pairs"),
        _share(f"faster than {TOO_FAST_S} s", [each < TOO_FAST_S for each in seconds], "answers"),
        _share("ties", [each.choice == "tie" for each in every], "answers"),
        _share("skips", [each.choice == "skip" for each in every], "answers"),
    ]


def _person(answer: Answer) -> str:
    return str(answer.note.get("person") or "somebody")


def _same_person_twice(answers: dict[QuestionKey, Answer]) -> list[tuple[str, str]]:
    """Return both choices about each pair that came again to the same person."""
    own = []
    for (pair, repeat), again in answers.items():
        first = answers.get((pair, False))
        if repeat and first and _person(first) == _person(again):
            own.append((first.choice, again.choice))
    return own


def _by_pair(answers: dict[QuestionKey, Answer]) -> list[list[str]]:
    """Return the choices about each pair: each person's last one that is no skip."""
    choices: dict[int, dict[str, str]] = {}
    for (pair, _), each in answers.items():
        if each.choice != "skip":
            choices.setdefault(pair, {})[_person(each)] = each.choice
    return [list(of_pair.values()) for of_pair in choices.values()]


def _share(name: str, hits: list[bool], what: str) -> Measure:
    if not hits:
        return Measure(name, None, f"no {what}")
    num_hits, num_all = sum(hits), len(hits)
    low, high = binomtest(num_hits, num_all).proportion_ci(method="wilson")
    return Measure(name, num_hits / num_all, f"{num_hits} of {num_all} {what}; 95 %: {low:.2f} to {high:.2f}")


def _number(name: str, value: float, text: str = "1: always the same, 0: as by chance") -> Measure:
    return Measure(name, value, text) if np.isfinite(value) else Measure(name, None, "not known yet")


def model_accuracy(task: Task, preferences: Preferences, policy: Network | None = None) -> list[Measure]:
    """Return how often a reward model and DPO rank answered pairs as people did, by cross-validation in five folds.

    policy:  what DPO starts from; None: an untrained one.
    """
    answered, names = take(preferences, jnp.flatnonzero(preferences.weight > 0)), ("reward model", "DPO")
    num_pairs = len(answered.weight)
    if num_pairs < 2 * FOLDS:
        return [Measure(name, None, f"needs {2 * FOLDS} answers") for name in names]
    policy = init_policy(jax.random.key(0), task) if policy is None else policy

    def fold(number: jax.Array) -> list[jax.Array]:
        held = jnp.arange(num_pairs) % FOLDS == number
        train, test = (
            dataclasses.replace(answered, weight=jnp.where(part, answered.weight, 0.0)) for part in (~held, held)
        )
        rewards = reward_model.train(task, reward_model.Config(), jax.random.key(1), train).params
        trained = dpo.train(task, dpo.Config(eval_episodes=0), jax.random.key(2), train, policy, policy).params
        sides = test.chosen, test.rejected
        learned = [trajectory_reward(rewards, side) for side in sides]
        implicit = [trajectory_log_prob(trained, side) - trajectory_log_prob(policy, side) for side in sides]
        return [ranking.label_accuracy(chosen, rejected, test) for chosen, rejected in (learned, implicit)]

    accuracies = jax.jit(lambda: jax.lax.map(fold, jnp.arange(FOLDS)))()
    text = f"of {num_pairs} answered pairs ranked as answered, each by a model that has not seen it"
    return [_number(name, float(jnp.nanmean(each)), text) for name, each in zip(names, accuracies, strict=True)]
