"""Trainers: the study's own stages on CartPole, shortened, for more and more seeds in one call."""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable
from statistics import median
from typing import Any, NamedTuple

import jax
import numpy as np

import jaxpref
from experiments.benchmarks.timing import Row, Settings, compiled, in_turns
from experiments.harness.devices import over_runs, padded_size
from experiments.pipeline import functions
from jaxpref import annotators, dpo, ppo, reinforce, reward_model
from jaxpref.tasks import Task

NUM_PAIRS, NUM_HELDOUT = 200, 50


class Stage(NamedTuple):
    """A stage of the pipeline: `function(config, keys, *inputs)` of one seed.

    inputs: seeds, and whatever else, with the seeds on the leading axis.
    lanes:  seeds that a device computes side by side.
    """

    function: Callable
    config: Any
    inputs: tuple
    lanes: int

    def compile(self, num_seeds: int) -> tuple[Callable[[], Any], float]:
        """Return a call of the compiled program on the first seeds, and the seconds of tracing and compiling it."""
        size = padded_size(num_seeds, self.lanes)
        args = jax.tree.map(lambda leaf: np.asarray(leaf)[np.arange(size) % num_seeds], self.inputs)
        of_one = functools.partial(functions.with_keys, self.function)
        return compiled(over_runs(of_one, size, self.lanes), jax.tree.map(np.float32, self.config), args)

    def results(self) -> Any:
        """Run the stage on all seeds."""
        return self.compile(len(self.inputs[0]))[0]()


def shortened(task: Task, num_seeds: int) -> dict[str, tuple[Stage, float]]:
    """Return every trainer, cut short, with the environment steps of one seed.

    Steps are played by REINFORCE and PPO, and learned from by DPO and the reward model.
    """
    seeds, pi2 = np.arange(num_seeds, dtype=np.uint32), np.ones(num_seeds, np.int32)
    setup = functions.Setup(task, (NUM_PAIRS,), NUM_HELDOUT)
    # REINFORCE never reaches its target and trains to the last update. A window of one update makes its score the mean
    # return of that update's episodes. On CartPole this is their length.
    endless = dataclasses.replace(task, pi1_target=math.inf)
    config = reinforce.Config(num_updates=20, score_window=reinforce.Config().episodes_per_update)
    stages = {"reinforce": Stage(functools.partial(functions.train_experts, endless), config, (seeds,), lanes=32)}
    experts = stages["reinforce"].results()

    play = functools.partial(functions.play_pairs, task, NUM_PAIRS + NUM_HELDOUT)
    pairs = Stage(play, annotators.Config(), (seeds, experts), lanes=4).results()
    learn = functools.partial(functions.train_dpo, setup)
    stages["dpo"] = Stage(learn, dpo.Config(num_updates=30, eval_every=30), (seeds, experts, pairs, pi2), lanes=2)
    fit = functools.partial(functions.fit_rewards, setup)
    stages["reward_model"] = Stage(fit, reward_model.Config(num_updates=40), (seeds, pairs), lanes=4)
    fitted = stages["reward_model"].results()
    maximise = functools.partial(functions.train_ppo, setup)
    stages["ppo"] = Stage(maximise, ppo.Config(num_updates=6), (seeds, experts, fitted, pi2), lanes=8)

    steps_per_pair = float((pairs.chosen.mask.sum() + pairs.rejected.mask.sum()) / pairs.weight.size)
    steps_per_update = {
        "reinforce": float(experts.metrics.score.mean()) * config.episodes_per_update,
        "dpo": dpo.Config().batch_size * steps_per_pair,
        "reward_model": reward_model.Config().batch_size * steps_per_pair,
        "ppo": float(ppo.Config().num_envs * ppo.Config().num_steps),
    }
    return {name: (stage, stage.config.num_updates * steps_per_update[name]) for name, stage in stages.items()}


def measure(settings: Settings) -> list[Row]:
    """Each trainer on CartPole with 200 pairs, cut short. An environment step is one played (REINFORCE, PPO) or one
    of a pair that is learned from (DPO, the reward model).
    """
    trainers, rows = shortened(jaxpref.cartpole(), max(settings.num_seeds)), []
    for num_seeds in settings.num_seeds:
        for name, (stage, num_steps) in trainers.items():
            call, compile_s = stage.compile(num_seeds)
            run_s = median(in_turns(settings.repeats, call)[0])
            row = {"trainer": name, "seeds": num_seeds, "compile_s": compile_s, "run_s": run_s}
            row |= {"s_per_seed": run_s / num_seeds, "updates_per_s": stage.config.num_updates * num_seeds / run_s}
            rows.append(row | {"env_steps_per_s": num_steps * num_seeds / run_s})
    return rows
