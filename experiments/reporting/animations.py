"""What the policies of a run look like: an episode of each, from one initial state, as GIFs."""

import math
import operator
from typing import Any, NamedTuple

import jax
import numpy as np

from jaxpref.analysis import render
from jaxpref.tasks import Task
from jaxpref.types import Trajectory

FRAMES_PER_SECOND, MAX_FRAMES, SECONDS_AT_THE_END = 25, 200, 0.6


class Animation(NamedTuple):
    """One episode.

    path:   where summary.json has the policy, as in `rows.3.policy`.
    still:  moments of the episode in one PNG, for paper and for readers who want no movement.
    total:  the episode's true return.
    """

    path: str
    gif: bytes
    still: bytes
    steps_per_second: float
    total: float


def animate(task: Task, episodes: Trajectory | None, summary: dict[str, Any]) -> list[Animation]:
    """Animate the `episodes` [1, 2 + R] of pi2, pi1 and each reference's policy of most pairs; leave out empty ones."""
    if episodes is None:
        return []
    most = max(summary["config"]["num_pairs"])
    trained = [f"rows.{place}.policy" for place, row in enumerate(summary["rows"]) if row["num_pairs"] == most]
    num_steps = episodes.mask[0].sum(axis=-1)
    return [
        animation(task, path, jax.tree.map(operator.itemgetter((0, place)), episodes), int(num_steps.max()))
        for place, path in enumerate(["policies.pi2", "policies.pi1", *trained])
        if num_steps[place]
    ]


def animation(task: Task, path: str, episode: Trajectory, longest: int) -> Animation:
    """Draw an episode. Its GIF lasts as long as one of `longest` steps, so that all repeat at the same time.

    CartPole is shown at its natural speed, Acrobot five times as fast. An episode of another task takes some seconds.
    At the end the last picture becomes faint.
    """
    num_steps = int(episode.mask.sum())
    seconds_per_step = {"cartpole": 0.02, "acrobot": 0.04}.get(task.name, min(0.2, 8 / longest))
    stride = max(math.ceil(1 / FRAMES_PER_SECOND / seconds_per_step), math.ceil(longest / MAX_FRAMES))
    seconds = round(stride * seconds_per_step, 2)
    shown = [*range(0, num_steps, stride), num_steps]
    obs = np.concatenate([episode.obs[:num_steps], episode.next_obs[num_steps - 1 : num_steps]])
    pictures = render.draw(task, obs[shown])
    faded = (255 - (255 - pictures[-1:]) // 3).astype(np.uint8)
    wait = (longest - num_steps) / stride * seconds
    durations = [*np.diff(shown) / stride * seconds, SECONDS_AT_THE_END, SECONDS_AT_THE_END + wait]
    gif, still = render.gif(np.concatenate([pictures, faded]), durations), render.multiple_exposure(pictures)
    return Animation(path, gif, still, stride / seconds, float(episode.reward.sum()))
