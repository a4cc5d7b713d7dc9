"""PPO of this library and rejax's, at the same settings and in turns.

`ppo` also computes the reference policy's logits, a learned reward, the next observation's value for every step and
metrics, and plays two episodes for each seed. rejax is timed without any evaluation. It clips the value loss.
"""

import dataclasses
import functools
import json
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from experiments.benchmarks.timing import Bench, Row, in_turns, timed
from experiments.harness.devices import over_runs, padded_size
from experiments.harness.errors import UsageError
from jaxpref import networks, ppo, rollout, tasks

PYTHON, SCRIPT = Path(".venv-peer/bin/python"), Path(__file__).with_name("peer_rejax.py")  # of rejax
SEEDS, NUM_UPDATES = [0, 1, 2], 200
SHARED: dict[str, Any] = {"num_envs": 4, "num_steps": 128, "num_epochs": 4, "num_minibatches": 4, "gamma": 0.99}
SHARED |= {"learning_rate": 7.5e-4, "gae_lambda": 0.95, "clip_eps": 0.2, "vf_coef": 0.5, "ent_coef": 0.01}
SHARED |= {"max_grad_norm": 0.5}  # of the whole gradient here, of each of its entries in rejax


class TwoMLPs(nn.Module):
    """rejax's networks: actor and critic apart, two tanh layers of 64 units each."""

    num_actions: int

    @nn.compact
    def __call__(self, obs):
        def features():
            return nn.tanh(nn.Dense(64)(nn.tanh(nn.Dense(64)(obs))))

        logits = nn.Dense(self.num_actions, name="policy")(features())
        return logits, nn.Dense(1, name="value")(features()).squeeze(-1)


def start(task: tasks.Task, seed: jax.Array) -> tuple[Any, ...]:
    """Return one seed, its first policy, the same as its reference, and its reward model: about 1 for each step."""
    key_policy, key_reward = jax.random.split(jax.random.key(seed))
    policy, reward = networks.init_policy(key_policy, task), networks.init_reward(key_reward, task)
    head = reward.params["reward"]
    params = reward.params | {"reward": head | {"bias": head["bias"] + 1.0}}
    return seed, policy, policy, dataclasses.replace(reward, params=params)


def ours(num_devices: int) -> tuple[Row, Callable[[], float]]:
    """Compile the training of all seeds. Returns facts, and a function that trains once and returns its seconds."""
    task = dataclasses.replace(tasks.cartpole(horizon=500), policy_network=TwoMLPs(num_actions=2))
    # With kl_coef 0, both maximise the same. It is an argument of the program, so the penalty is computed.
    config = ppo.Config(num_updates=NUM_UPDATES, eval_every=NUM_UPDATES, eval_episodes=1, kl_coef=0.0, **SHARED)

    def train(config, seed, *networks):
        return ppo.train(task, config, jax.random.key(seed), *networks)

    size = padded_size(len(SEEDS), 8, num_devices)
    starts = jax.vmap(functools.partial(start, task))(jnp.resize(jnp.array(SEEDS, jnp.uint32), (size,)))
    args = jax.tree.map(np.float32, config), jax.tree.map(np.asarray, starts)
    begin = time.perf_counter()
    program = jax.jit(over_runs(train, size, 8, num_devices)).lower(*args).compile()
    facts: Row = {"PPO": "jaxpref", "devices": num_devices, "compile_s": time.perf_counter() - begin}
    policies = jax.tree.map(lambda leaf: np.asarray(leaf)[: len(SEEDS)], program(*args).params)
    returns = jax.vmap(lambda policy: rollout.evaluate(task, policy, jax.random.key(0), 128))(policies)
    return facts | {"mean_return": float(returns.mean())}, timed(program, *args)


def ask(peer: subprocess.Popen) -> str:
    """Send a line to rejax's side and return its answer."""
    print(file=peer.stdin, flush=True)
    return peer.stdout.readline() if peer.stdout else ""


def measure(settings: Bench) -> list[Row]:
    """PPO on CartPole and rejax's, at the same settings, in turns. jaxpref's has a learned reward and a reference."""
    if not PYTHON.exists():
        raise UsageError(f"{PYTHON} is missing, the Python of rejax's environment: make bench-peer makes it")
    env_steps = len(SEEDS) * NUM_UPDATES * SHARED["num_envs"] * SHARED["num_steps"]
    config = SHARED | {"env": "CartPole-v1", "skip_initial_evaluation": True}
    config["agent_kwargs"] = {"activation": "tanh", "hidden_layer_sizes": [64, 64]}
    config |= {name: env_steps // len(SEEDS) for name in ("total_timesteps", "eval_freq")}
    words = [str(PYTHON), str(SCRIPT), json.dumps({"seeds": SEEDS, "config": config})]
    with subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as peer:
        theirs = json.loads(ask(peer))
        if theirs.pop("env_steps") != env_steps:
            raise RuntimeError("the two sides do not count the same steps")
        (sharded, train_sharded), (single, train_single) = map(ours, (jax.device_count(), 1))
        turns = in_turns(settings.repeats, train_sharded, timed(ask, peer), train_single)
    rows = []
    for facts, seconds in zip((sharded, theirs, single), turns, strict=True):
        row = facts | {"train_s": median(seconds), "env_steps_per_s": env_steps / median(seconds)}
        rows.append(row | {"ratio": median(turns[1]) / median(seconds)})
    return rows
