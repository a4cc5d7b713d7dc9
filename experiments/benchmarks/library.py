"""Rollouts against gymnax's own loop, and the study's own trainers on more and more seeds."""

import dataclasses
import functools
import math
import tempfile
from pathlib import Path
from statistics import median
from typing import Any

import jax
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator

import jaxpref
from experiments.benchmarks.timing import Row, Settings, in_turns, timed
from experiments.harness.memo import Memo
from experiments.harness.stages import Stages
from experiments.pipeline import pipeline
from experiments.pipeline.settings import default_settings
from experiments.reporting import figures
from jaxpref import dpo, ppo, reinforce, reward_model
from jaxpref.analysis import plots
from jaxpref.networks import Network
from jaxpref.tasks import Task

TRAINERS: dict[str, Any] = {  # cut short
    # A score is the mean over one update. On CartPole it is the length of that update's episodes.
    "reinforce": reinforce.Config(num_updates=20, score_window=reinforce.Config().episodes_per_update),
    "dpo": dpo.Config(num_updates=30, eval_every=30),
    "reward_model": reward_model.Config(num_updates=40),
    "ppo": ppo.Config(num_updates=6),
}


def measure_rollouts(settings: Settings) -> list[Row]:
    """Whole episodes of an expert: `jaxpref.evaluate` against gymnax's `env.step` in a scan."""
    rows = []
    for name in jaxpref.TASKS:
        task, key = jaxpref.task(name), jax.random.key(0)
        expert = jax.jit(functools.partial(reinforce.train, task, reinforce.Config()))(key).pi1
        for num_envs in settings.num_envs:
            own = timed(jax.jit(functools.partial(jaxpref.evaluate, task, num_episodes=num_envs)), expert, key)
            others = timed(jax.jit(functools.partial(gymnax_returns, task)), expert, jax.random.split(key, num_envs))
            ours, theirs = map(median, in_turns(4 * settings.repeats, own, others))
            row = {"task": name, "num_envs": num_envs, "jaxpref_s": ours, "gymnax_s": theirs, "ratio": theirs / ours}
            rows.append(row)
    return rows


def gymnax_returns(task: Task, policy: Network, keys: jax.Array) -> jax.Array:
    """Play an episode for each key with gymnax's own loop: a new key and a categorical sample at each step."""
    from gymnax.experimental.rollout import RolloutWrapper  # gymnax uses JAX when it is imported

    def act(policy: Network, obs: jax.Array, key: jax.Array) -> jax.Array:
        return jax.random.categorical(key, jaxpref.apply_policy(policy, obs)[0].logits)

    rollout = RolloutWrapper(act, num_env_steps=task.horizon, env=task.env, env_params=task.env_params)
    return rollout.batch_rollout(keys, policy)[-1]


def measure_trainers(settings: Settings) -> list[Row]:
    """Each trainer on CartPole with 200 pairs, cut short. An environment step is one played (REINFORCE, PPO) or one
    of a pair that is learned from (DPO, the reward model).
    """
    # REINFORCE never reaches its target and trains to the last update.
    changes: Any = {"pi1_target": math.inf, "num_pairs": (200,), "num_heldout": 50, "reference": ("pi2",), **TRAINERS}
    runs = [dataclasses.replace(default_settings("cartpole", method), **changes) for method in ("dpo", "rlhf")]
    task, rows = pipeline.task_of(runs[0]), []
    for num_seeds in settings.num_seeds:
        turns = []
        with tempfile.TemporaryDirectory() as folder, Stages(Memo(Path(folder))) as stages:
            for turn in range(1 + settings.repeats):  # on other seeds: of the same ones, the results would be known
                seeds = tuple(range(turn * num_seeds, (turn + 1) * num_seeds))
                own = stages.of_run(stages.progress)
                outcome, _ = [pipeline.run(dataclasses.replace(run, seeds=seeds), task, own) for run in runs]
                turns.append(own.times)
        steps_per_pair = sum(returns.mean() for returns in outcome.returns.values())
        steps_per_update = {
            "reinforce": TRAINERS["reinforce"].episodes_per_update * outcome.experts.metrics.score.mean(),
            "dpo": TRAINERS["dpo"].batch_size * steps_per_pair,
            "reward_model": TRAINERS["reward_model"].batch_size * steps_per_pair,
            "ppo": TRAINERS["ppo"].num_envs * TRAINERS["ppo"].num_steps,
        }
        for name, num_steps in steps_per_update.items():
            first, *others = (turn[name.replace("_", " ")] for turn in turns)
            run_s = median(each.run_s for each in others)
            updates_per_s = TRAINERS[name].num_updates * num_seeds / run_s
            row = {"trainer": name, "seeds": num_seeds, "compile_s": first.compile_s, "run_s": run_s}
            row |= {"s_per_seed": run_s / num_seeds, "updates_per_s": updates_per_s}
            rows.append(row | {"env_steps_per_s": float(num_steps) * updates_per_s})
    return rows


@figures.style()
def draw(rows: list[Row]) -> Figure:
    """Draw seconds per seed against seeds, a line for each trainer."""
    figure, ((axes,),) = figures.panels(1)
    for name, colour, marker in zip(TRAINERS, plots.COLOURS, "osD^", strict=False):
        points = [(row["seeds"], 1000 * row["s_per_seed"]) for row in rows if row["trainer"] == name]
        axes.loglog(*zip(*points, strict=True), marker=marker, color=colour, label=name.replace("_", " "))
    axes.set(xlabel="seeds in one call", ylabel="milliseconds per seed")
    measured = sorted({row["seeds"] for row in rows})
    axes.set_xticks(measured, measured)
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.yaxis.set_major_formatter("{x:g}")
    axes.minorticks_off()
    return figures.finish(figure, "Shortened trainers, CartPole, compiled")
