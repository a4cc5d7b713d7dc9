"""People's answers in place of the annotator's."""

import dataclasses
from typing import Any

import jax
import numpy as np

from experiments.pipeline.settings import Settings
from jaxpref.files import store
from jaxpref.tasks import Task
from jaxpref.types import Preferences


def with_sizes(settings: Settings, task: Task) -> Settings:
    """Return the settings with the number of answers as the number of pairs, if the user has not chosen another.

    Raises:
        ValueError: the answers do not fit the task, or are too few.
    """
    if not settings.preferences:
        return settings
    num_answered = for_seeds(settings, task, 1).weight.shape[1]
    if settings.num_pairs == settings.defaults.num_pairs:
        settings = dataclasses.replace(settings, num_pairs=(num_answered,))
    if not 0 < max(settings.num_pairs) <= num_answered:
        raise ValueError(f"--num-pairs must be at most {num_answered}, the number of answers in {settings.preferences}")
    return settings


def for_seeds(settings: Settings, task: Task, num_seeds: int) -> Preferences:
    """Read the pairs that have an answer, the same for all seeds [S, N, T, ...]. T is that of pairs that are played."""
    preferences = store.load_labels(settings.preferences, settings.pairs, task)
    num_steps = settings.segment or task.horizon
    counts = np.flatnonzero(np.asarray(preferences.weight) > 0)
    missing = num_steps - preferences.chosen.mask.shape[1]
    if missing < 0:
        words = f"--pairs {settings.pairs} has trajectories of {num_steps - missing} steps"
        raise ValueError(f"{words}, more than the {num_steps} of the held-out pairs")

    def of_leaf(leaf: Any) -> np.ndarray:
        leaf = np.asarray(leaf)[counts]
        padded = leaf if leaf.ndim == 1 else np.pad(leaf, [(0, 0), (0, missing), *[(0, 0)] * (leaf.ndim - 2)])
        return np.broadcast_to(padded, (num_seeds, *padded.shape))

    return jax.tree.map(of_leaf, preferences)
