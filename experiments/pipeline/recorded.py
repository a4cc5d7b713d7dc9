"""People's answers in place of the annotator's."""

import dataclasses
from typing import Any

import jax
import numpy as np

from experiments.pipeline.settings import Settings
from jaxpref.files import store
from jaxpref.tasks import Task
from jaxpref.types import Preferences


def answered(settings: Settings, task: Task | None = None) -> Preferences:
    """Read the pairs that have an answer, in the order of their file. With a task, check that they fit it."""
    preferences = store.load_labels(settings.preferences, settings.pairs, task)
    counts = np.flatnonzero(np.asarray(preferences.weight) > 0)
    return jax.tree.map(lambda leaf: np.asarray(leaf)[counts], preferences)


def with_sizes(settings: Settings) -> Settings:
    """Return the settings with the number of answers as the number of pairs, if the user has not chosen another."""
    if not settings.preferences:
        return settings
    num_answered = len(answered(settings).weight)
    if settings.num_pairs == settings.defaults.num_pairs:
        settings = dataclasses.replace(settings, num_pairs=(num_answered,))
    if not 0 < max(settings.num_pairs) <= num_answered:
        raise ValueError(f"--num-pairs must be at most {num_answered}, the number of answers in {settings.preferences}")
    return settings


def for_seeds(settings: Settings, task: Task, num_seeds: int) -> Preferences:
    """Return these pairs, the same for all seeds [S, N, T, ...], with the T of the pairs that are played."""
    preferences, num_steps = answered(settings, task), settings.segment or task.horizon
    missing = num_steps - preferences.chosen.mask.shape[1]
    if missing < 0:
        words = f"--pairs {settings.pairs} has trajectories of {num_steps - missing} steps"
        raise ValueError(f"{words}, more than the {num_steps} of the held-out pairs")

    def of_leaf(leaf: Any) -> np.ndarray:
        padded = leaf if leaf.ndim == 1 else np.pad(leaf, [(0, 0), (0, missing), *[(0, 0)] * (leaf.ndim - 2)])
        return np.broadcast_to(padded, (num_seeds, *padded.shape))

    return jax.tree.map(of_leaf, preferences)
