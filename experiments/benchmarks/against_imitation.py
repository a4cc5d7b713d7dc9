"""RLHF of this library, and the preference comparisons of `imitation`, with the same number of answers."""

import dataclasses
import json
import os
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments.benchmarks.timing import Bench, Row
from experiments.harness.devices import num_cores, over_runs, padded_size
from experiments.harness.errors import UsageError
from experiments.harness.memo import Memo
from experiments.harness.stages import Stages
from experiments.pipeline import pipeline
from experiments.pipeline.settings import default_settings
from jaxpref import networks, online, ppo, reinforce, reward_model, rollout
from jaxpref.analysis import statistics
from jaxpref.annotators import bradley_terry

PYTHON, SCRIPT = Path(".venv-imitation/bin/python"), Path(__file__).with_name("peer_imitation.py")
SEEDS, NUM_PAIRS, SEGMENT, NUM_EPISODES = tuple(range(20)), 200, 100, 100  # our seeds; imitation's are from 0, too
TASKS = ("cartpole", "Pendulum-v1")
SEARCHED: Row = {"num_iterations": 20, "fragment_length": 25, "learning_rate": 1e-3, "gamma": 0.99, "n_epochs": 5}
"""What a small random search on seeds 700 and 701 chose, the same on both tasks: docs/experiments.md."""


def row(task: str, method: str, start: str, returns: Any, env_steps: Any, cpu_s: float) -> Row:
    """Return a row about S seeds. `returns` are their mean true returns before and after training [2, S]."""
    first, last = np.asarray(returns, np.float64)
    low, high = statistics.bootstrap_interval(last)
    result: Row = {"task": task, "method": method, "start": start, "seeds": len(last)}
    result |= {"env_steps": float(np.mean(env_steps)), "start_return": statistics.iqm(first)}
    result |= {"return": statistics.iqm(last), "low": low, "high": high, "worst": float(last.min())}
    return result | {"s_per_seed": cpu_s / len(last)}


def theirs(task: str, method: str, changes: Row, seconds: float) -> Row:
    """Train with imitation, in a process for each core, which starts new seeds for so many seconds."""
    num_processes, peers = num_cores(), []
    job = {"task": task, "changes": changes, "seconds": seconds, "num_pairs": NUM_PAIRS, "num_episodes": NUM_EPISODES}
    for first in range(num_processes):
        words = [str(PYTHON), "-W", "ignore", str(SCRIPT), json.dumps(job | {"seeds": [first, num_processes]})]
        peers.append(subprocess.Popen(words, stdout=subprocess.PIPE, text=True, env=os.environ | {"TQDM_DISABLE": "1"}))
    seeds = [json.loads(line) for peer in peers for line in peer.communicate()[0].splitlines()]
    if any(peer.returncode for peer in peers):
        raise RuntimeError("imitation's side has failed")
    *returns, env_steps, cpu_s = zip(*seeds, strict=True)
    return row(task, method, "random", returns, env_steps, sum(cpu_s))


def steps_of(config: ppo.Config, num_updates: Any, horizon: int) -> Any:
    """Count the environment steps of PPO's updates and evaluations."""
    evaluated = num_updates // config.eval_every * config.eval_episodes * horizon
    return num_updates * config.num_envs * config.num_steps + evaluated


def from_pi2(name: str) -> Row:
    """Train experts, and PPO-RLHF from pi2 on clips of both: the pipeline of `experiments.run` at its defaults."""
    changes: Row = {"seeds": SEEDS, "num_pairs": (NUM_PAIRS,), "reference": ("pi2",), "segment": SEGMENT}
    changes |= {"fixed_horizon": name == "cartpole", "eval_episodes": NUM_EPISODES}
    run = dataclasses.replace(default_settings(name, "rlhf"), **changes)
    begin, task = time.process_time(), pipeline.task_of(run)
    with tempfile.TemporaryDirectory() as empty, Stages(Memo(Path(empty))) as stages:
        outcome = pipeline.run(run, task, stages)
    cpu_s, num_updates, config = time.process_time() - begin, outcome.experts.num_updates, run.expert_config
    if isinstance(config, reinforce.Config):
        env_steps = num_updates * config.episodes_per_update * task.horizon
    else:  # the task has no targets: all updates are made once to find them
        env_steps = steps_of(config, config.num_updates + num_updates, task.horizon)
    env_steps += 2 * NUM_PAIRS * task.horizon + steps_of(run.ppo, run.ppo.num_updates, task.horizon)
    returns = outcome.returns["pi2"], outcome.rows[0].true_return
    return row(name, "PPO-RLHF", "pi2", returns, env_steps, cpu_s)


def from_random(name: str) -> Row:
    """Train online RLHF from a fresh policy, at the library's defaults."""
    task = pipeline.task_of(
        dataclasses.replace(default_settings(name, "online-rlhf"), fixed_horizon=name == "cartpole")
    )
    configs = online.Config(), reward_model.Config(), ppo.Config()

    def study(_: None, seed: jax.Array) -> tuple[jax.Array, ...]:
        key_init, key_train, key_eval = jax.random.split(jax.random.key(seed), 3)
        first = networks.init_policy(key_init, task)
        last = online.train_rlhf(task, *configs, key_train, bradley_terry, NUM_PAIRS, first, first, SEGMENT).params
        return tuple(rollout.evaluate(task, policy, key_eval, NUM_EPISODES).mean() for policy in (first, last))

    begin, size = time.process_time(), padded_size(len(SEEDS), lanes=4)
    seeds = jnp.resize(jnp.array(SEEDS, jnp.uint32), (size,))
    returns = np.array(jax.jit(over_runs(study, size, lanes=4))(None, (seeds,)))[:, : len(SEEDS)]
    env_steps = 2 * NUM_PAIRS * task.horizon + steps_of(configs[-1], configs[-1].num_updates, task.horizon)
    return row(name, "online RLHF", "random", returns, env_steps, time.process_time() - begin)


def measure(settings: Bench) -> list[Row]:
    """RLHF with 200 answers on clips of 100 steps, and imitation's. pi2 comes from experts on the true reward.

    s_per_seed are seconds of one core, with experts, compilation and evaluation. env_steps are of a seed, with the
    experts'. The ratio compares with imitation's documented settings; those that a search chose have clips of 25 steps.
    """
    if not PYTHON.exists():
        raise UsageError(f"{PYTHON} is missing, the Python of imitation's environment: make bench-imitation makes it")
    seconds, rows = settings.imitation_s / len(TASKS) / 2, []
    for task in TASKS:
        first = theirs(task, "imitation, documented", {}, seconds)
        others = theirs(task, "imitation, searched", SEARCHED, seconds), from_pi2(task), from_random(task)
        rows += [each | {"ratio": first["s_per_seed"] / each["s_per_seed"]} for each in (first, *others)]
    return rows
