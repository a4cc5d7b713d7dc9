"""What the policies of a run look like: an episode of each, from one initial state, as GIFs."""

import functools
import math
from typing import Any, NamedTuple

import jax
import numpy as np

from experiments.pipeline.functions import Keys, with_keys
from jaxpref import rollout
from jaxpref.analysis import render
from jaxpref.networks import Network
from jaxpref.tasks import Task
from jaxpref.types import Trajectory

FRAMES_PER_SECOND, MAX_FRAMES, SECONDS_AT_THE_END = 25, 200, 0.6


class Animation(NamedTuple):
    """One episode.

    path:   where summary.json has the policy, as in `rows.3.policy`.
    still:  moments of the episode in one PNG, for paper and for readers who want no movement.
    total:  the episode's return.
    """

    path: str
    gif: bytes
    still: bytes
    steps_per_second: float
    total: float


def animate(task: Task, policies: dict[str, Any], summary: dict[str, Any]) -> list[Animation]:
    """Animate pi2, pi1 and, for each reference, the policy trained on most pairs, all of the first seed.

    All start in the same state and draw the same noise, those of the first episode in the seed's evaluation. A policy
    whose parameters are not all finite is left out. `policies` is what `arrays.policies` returns.
    """
    shown = {f"policies.{name}": _at(policies[name], 0) for name in ("pi2", "pi1")}
    sizes = list(summary["config"]["num_pairs"])
    for place, row in enumerate(summary["rows"]):
        if row["num_pairs"] == max(sizes):
            shown[f"rows.{place}.policy"] = _at(policies[f"trained_{row['reference']}"], (0, sizes.index(max(sizes))))
    stacked = jax.tree.map(lambda *leaves: np.stack(leaves), *shown.values())
    episodes = jax.tree.map(np.asarray, _play(task, np.uint32(summary["seeds"][0]), stacked))
    longest = int(episodes.mask.sum(axis=-1).max())
    return [
        _animation(task, path, _at(episodes, place), longest)
        for place, (path, policy) in enumerate(shown.items())
        if all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(policy))
    ]


def _at(tree: Any, place: Any) -> Any:
    return jax.tree.map(lambda leaf: leaf[place], tree)


def _episodes(task: Task, keys: Keys, policies: Network) -> Trajectory:
    key = jax.random.split(keys.evaluate, 1)[0]
    return jax.vmap(rollout.episode, in_axes=(None, 0, None))(task, policies, key)


_play = jax.jit(functools.partial(with_keys, _episodes))
"""(task, seed, stacked policies) -> an episode of each, all with one key."""


def _animation(task: Task, path: str, episode: Trajectory, longest: int) -> Animation:
    """Draw an episode. Its GIF lasts as long as one of `longest` steps, so that all repeat at the same time.

    CartPole has its natural speed, Acrobot five times its own. An episode of another task takes some seconds. The last
    picture fades: the episode is over.
    """
    num_steps = int(episode.mask.sum())
    seconds_per_step = {"cartpole": 0.02, "acrobot": 0.04}.get(task.name, min(0.2, 8 / longest))
    stride = max(math.ceil(1 / FRAMES_PER_SECOND / seconds_per_step), math.ceil(longest / MAX_FRAMES))
    seconds = round(stride * seconds_per_step, 2)
    shown = [*range(0, num_steps, stride), num_steps]
    obs = np.concatenate([episode.obs[:num_steps], episode.next_obs[num_steps - 1 : num_steps]])
    pictures = render.frames(task.name, obs[shown].reshape(-1, *(task.obs_shape or (task.obs_size,))))
    faded = (255 - (255 - pictures[-1:]) // 3).astype(np.uint8)
    wait = (longest - num_steps) / stride * seconds
    durations = [*np.diff(shown) / stride * seconds, SECONDS_AT_THE_END, SECONDS_AT_THE_END + wait]
    gif, still = render.gif(np.concatenate([pictures, faded]), durations), render.multiple_exposure(pictures)
    return Animation(path, gif, still, stride / seconds, float(episode.reward.sum()))
