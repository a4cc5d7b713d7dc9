"""What the policies of a finished experiment look like: an episode of each, from one initial state, as GIFs."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from experiments.pipeline import keys_of
from experiments.settings import Settings, from_config
from jaxpref import render, rollout, store
from jaxpref.networks import init_policy
from jaxpref.tasks import Task
from jaxpref.types import Params, Trajectory

FRAMES_PER_SECOND, MAX_FRAMES = 25, 200
SECONDS_AT_THE_END = 0.6


class Animation(NamedTuple):
    """One episode."""

    path: str
    """Where summary.json has the policy, as in `rows.3.policy`."""
    gif: bytes
    still: bytes
    """Moments of the episode in one picture, PNG: for paper, and for those who want no movement."""
    steps_per_second: float
    total: float
    """The episode's return."""


def animate(task: Task, summary: dict[str, Any], folder: Path) -> list[Animation]:
    """pi2, pi1 and, for each reference, the policy trained on most pairs: the first seed's.

    All start in the same state and draw the same noise, those of the first episode in the seed's evaluation. A policy
    that is not made of numbers, because its training diverged, is left out.
    Raises OSError or ValueError if `folder` does not hold the policies of `summary`.
    """
    settings = from_config(summary["config"])
    policies = _first_seeds(settings, _load_policies(settings, task, folder / "policies.npz"))
    stacked = jax.tree.map(lambda *leaves: np.stack(leaves), *policies.values())
    episodes = jax.tree.map(np.asarray, _play(task, stacked, np.uint32(settings.seeds[0])))
    longest = int(episodes.mask.sum(axis=-1).max())
    return [
        _animation(task, path, jax.tree.map(lambda leaf, i=i: leaf[i], episodes), longest)
        for i, (path, params) in enumerate(policies.items())
        if all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(params))
    ]


def _load_policies(settings: Settings, task: Task, path: Path) -> dict[str, Params]:
    """policies.npz as `report.save_arrays` writes it; shapes are checked against the settings."""
    policy = jax.eval_shape(init_policy, jax.random.key(0), task)
    num_seeds, num_sizes = len(settings.seeds), len(settings.num_pairs)
    leading: dict[str, tuple[int, ...]] = {"pi1": (num_seeds,), "pi2": (num_seeds,)}
    leading |= {f"trained_{reference}": (num_seeds, num_sizes) for reference in settings.reference}
    like = {
        name: jax.tree.map(lambda leaf, axes=axes: np.broadcast_to(leaf.dtype.type(), (*axes, *leaf.shape)), policy)
        for name, axes in leading.items()
    }
    return store.load_pytree(path, like)


def _first_seeds(settings: Settings, policies: dict[str, Params]) -> dict[str, Params]:
    """The policies to show, by their place in summary.json."""
    most = settings.num_pairs.index(max(settings.num_pairs))
    shown = {f"policies.{name}": jax.tree.map(lambda leaf: leaf[0], policies[name]) for name in ("pi2", "pi1")}
    for place, reference in enumerate(settings.reference):
        row = place * len(settings.num_pairs) + most
        shown[f"rows.{row}.policy"] = jax.tree.map(lambda leaf: leaf[0, most], policies[f"trained_{reference}"])
    return shown


@jax.jit
def _play(task: Task, policies: Params, seed: jax.Array) -> Trajectory:
    """An episode of each of the stacked policies, all with one key."""
    key = jax.random.split(keys_of(seed).evaluate, 1)[0]
    return jax.vmap(rollout.episode, in_axes=(None, 0, None))(task, policies, key)


def _animation(task: Task, path: str, episode: Trajectory, longest: int) -> Animation:
    """The GIF lasts as long as that of an episode of `longest` steps, so that they repeat side by side.

    Its last picture fades: the episode is over.
    """
    num_steps = int(episode.mask.sum())
    stride, seconds = _pace(task.name, longest)
    shown = [*range(0, num_steps, stride), num_steps]
    obs = np.concatenate([episode.obs[:num_steps], episode.next_obs[num_steps - 1 : num_steps]])
    seen = obs[shown].reshape(-1, *(task.obs_shape or (task.obs_size,)))
    pictures = render.frames(task.name, seen)
    faded = (255 - (255 - pictures[-1:]) // 3).astype(np.uint8)
    wait = (longest - num_steps) / stride * seconds
    durations = [*np.diff(shown) / stride * seconds, SECONDS_AT_THE_END, SECONDS_AT_THE_END + wait]
    return Animation(
        path,
        gif=render.gif(np.concatenate([pictures, faded]), durations),
        still=render.multiple_exposure(pictures),
        steps_per_second=stride / seconds,
        total=float(episode.reward.sum()),
    )


def _pace(task_name: str, longest: int) -> tuple[int, float]:
    """(steps, seconds) from one picture to the next.

    CartPole moves at its natural speed, Acrobot at five times its own; an episode of another task takes some seconds.
    """
    seconds_per_step = {"cartpole": 0.02, "acrobot": 0.04}.get(task_name, min(0.2, 8 / longest))
    stride = max(math.ceil(1 / FRAMES_PER_SECOND / seconds_per_step), math.ceil(longest / MAX_FRAMES))
    return stride, round(stride * seconds_per_step, 2)
