"""PPO of this library against rejax's, at the same settings and in turns: `make bench-peer`.

What `ppo` does and rejax's PPO does not stays in: the reference policy's logits, a learned reward and the next
observation's value for every step, the metrics, one episode a seed to measure the reward's size and one to evaluate.
rejax is timed without any evaluation. It also clips the value loss, which `ppo` does not.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from experiments import report, stages
from experiments.command import NOTHING_KEPT, UsageError, exit_codes, read
from experiments.settings import flag
from jaxpref import networks, ppo, rollout, store, tasks

PEER = (".venv-peer/bin/python", str(Path(__file__).with_name("peer_rejax.py")))
OUT = Path("results/bench-peer")
SEEDS = [0, 1, 2]
SHARED: dict[str, Any] = {"num_envs": 4, "num_steps": 128, "num_epochs": 4, "num_minibatches": 4, "gamma": 0.99}
SHARED |= {"learning_rate": 7.5e-4, "gae_lambda": 0.95, "clip_eps": 0.2, "vf_coef": 0.5, "ent_coef": 0.01}
SHARED |= {"max_grad_norm": 0.5}  # of the whole gradient here, of each of its entries in rejax
NETWORK = {"activation": "tanh", "hidden_layer_sizes": [64, 64]}


class TwoMLPs(nn.Module):
    """rejax's networks: actor and critic apart, two tanh layers of 64 units each."""

    num_actions: int

    @nn.compact
    def __call__(self, obs):
        def features():
            return nn.tanh(nn.Dense(64)(nn.tanh(nn.Dense(64)(obs))))

        logits = nn.Dense(self.num_actions, name="policy")(features())
        return logits, nn.Dense(1, name="value")(features()).squeeze(-1)


@dataclasses.dataclass(frozen=True)
class Settings:
    """How long it is measured."""

    num_updates: int = 200
    """Updates of every training."""
    repeats: int = 9
    """Trainings of each side, in turns."""


def start(task: tasks.Task, seed: Array) -> tuple[Any, ...]:
    """What one seed's training starts from. The learned reward is, and so stays, CartPole's own: 1 a step."""
    key_policy, key_reward = jax.random.split(jax.random.key(seed))
    params = networks.init_policy(key_policy, task)
    reward_params = networks.init_reward(key_reward, task)
    reward_params["params"]["reward"]["bias"] += 1.0
    return seed, params, params, reward_params


def ours(num_updates: int, sharded: bool) -> tuple[dict[str, Any], Callable[[], float]]:
    """(facts, seconds of training all seeds), sharded over the devices as in the experiments or on the first one."""
    task = dataclasses.replace(tasks.cartpole(horizon=500), policy_network=TwoMLPs(num_actions=2))
    # With kl_coef 0 the aim is rejax's. It is an argument of the program, so the penalty is computed all the same.
    config = ppo.Config(num_updates=num_updates, eval_every=num_updates, eval_episodes=1, kl_coef=0.0, **SHARED)
    config = jax.tree.map(np.float32, config)

    def train(config, seed, *params):
        return ppo.train(task, config, jax.random.key(seed), *params)

    def side_by_side(config, args):
        return jax.vmap(functools.partial(train, config))(*args)

    size = stages.padded_size(len(SEEDS), lanes=8) if sharded else len(SEEDS)
    starts = jax.vmap(functools.partial(start, task))(jnp.resize(jnp.array(SEEDS), (size,)))
    args = jax.tree.map(np.asarray, starts)
    function = jax.jit(stages.over_runs(train, size, lanes=8) if sharded else side_by_side)
    begin = time.perf_counter()
    program = function.lower(config, args).compile()
    compile_s = time.perf_counter() - begin
    params = jax.tree.map(lambda leaf: np.asarray(leaf)[: len(SEEDS)], program(config, args).params)
    returns = jax.vmap(lambda params: rollout.evaluate(task, params, jax.random.key(0), 128))(params)

    def seconds() -> float:
        begin = time.perf_counter()
        jax.block_until_ready(program(config, args))
        return time.perf_counter() - begin

    facts = {"num_devices": jax.device_count() if sharded else 1, "mean_return": float(returns.mean())}
    return facts | {"compile_s": compile_s}, seconds


def measure(num_updates: int, repeats: int) -> dict[str, Any]:
    """Both sides in turns, each idle while the other is timed: what summary.json holds."""
    env_steps = len(SEEDS) * num_updates * SHARED["num_envs"] * SHARED["num_steps"]
    config = SHARED | {"env": "CartPole-v1", "agent_kwargs": NETWORK, "skip_initial_evaluation": True}
    config |= {name: env_steps // len(SEEDS) for name in ("total_timesteps", "eval_freq")}
    words = [*PEER, json.dumps({"seeds": SEEDS, "config": config})]
    with subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as peer:
        assert peer.stdin is not None
        assert peer.stdout is not None
        theirs = json.loads(peer.stdout.readline())
        if theirs.pop("env_steps") != env_steps:
            raise RuntimeError("the two sides do not count the same steps")
        versions = {"jaxpref": report.versions(), "rejax": theirs.pop("versions")}
        sharded, sharded_seconds = ours(num_updates, sharded=True)
        single, single_seconds = ours(num_updates, sharded=False)
        turns = []
        for _ in range(repeats):
            first = sharded_seconds()
            print("run", file=peer.stdin, flush=True)
            turns.append((first, json.loads(peer.stdout.readline())["seconds"], single_seconds()))
    sides: dict[str, dict[str, Any]] = {"jaxpref": sharded, "rejax": theirs, "jaxpref, one device": single}
    seconds = np.array(turns)
    medians = np.median(seconds, axis=0)
    for i, side in enumerate(sides.values()):
        side["seconds"] = seconds[:, i].tolist()
        side |= {"env_steps_per_s": env_steps / medians[i], "ratio_to_rejax": medians[1] / medians[i]}
    facts = {"config": SHARED | NETWORK, "seeds": SEEDS, "num_updates": num_updates, "env_steps": env_steps}
    return facts | {"sides": sides, "versions": versions}


def check(settings: Settings) -> None:
    """Raise UsageError for what cannot be measured."""
    for name, value in vars(settings).items():
        if value < 1:
            raise UsageError(f"--{flag(name)} must be at least 1, got {value}")
    if not Path(PEER[0]).exists():
        raise UsageError(f"{PEER[0]} is missing, rejax's own environment: make bench-peer builds it")


def main() -> None:
    """Measure, print the table and write it down."""
    with exit_codes(NOTHING_KEPT):
        settings = read(Settings, sys.argv[1:], __doc__ or "")
        check(settings)
        run(settings)


def run(settings: Settings) -> None:
    """The measurement."""
    OUT.mkdir(parents=True, exist_ok=True)
    machine: dict[str, Any] = {"cores": len(os.sched_getaffinity(0)), "load_before": os.getloadavg()[0]}
    stages.set_up_jax(0)
    jax.config.update("jax_enable_compilation_cache", False)  # compile_s is to be that of a first run
    machine["platform"] = jax.default_backend()
    summary = machine | measure(settings.num_updates, settings.repeats)
    store.save_json(OUT / "summary.json", summary)

    print(f"{'PPO':<20} devices  compile s  train s (range)      env-steps/s  ratio  return")
    for name, side in summary["sides"].items():
        median, low, high = (f(side["seconds"]) for f in (np.median, min, max))
        times = f"{side['num_devices']:7}  {side['compile_s']:9.1f}  {median:7.2f} ({low:.2f} to {high:.2f})"
        print(f"{name:<20} {times}  {side['env_steps_per_s']:11,.0f}", end="")
        print(f"  {side['ratio_to_rejax']:5.2f}  {side['mean_return']:6.0f}")
    print(f"CartPole, {len(SEEDS)} seeds, {settings.num_updates} updates; train s: median of {settings.repeats} turns")
    print(f"{machine['cores']} cores, load {machine['load_before']:.2f}; jaxpref's experiments use a device per core")
    print("jaxpref's time includes a learned reward, a reference policy and other work that rejax's PPO does not do")
    print(f"written to {OUT / 'summary.json'}")


if __name__ == "__main__":
    main()
