"""Rollouts: whole episodes of an expert, with this library and in the idiom of gymnax's examples."""

from __future__ import annotations

import functools
from statistics import median

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

import jaxpref
from experiments.benchmarks.timing import Row, Settings, compiled, in_turns
from jaxpref.networks import Network
from jaxpref.tasks import Task


def jaxpref_returns(task: Task, num_envs: int, policy: Network, key: jax.Array) -> Float[Array, " num_envs"]:
    """Play one episode in each environment."""
    return jaxpref.evaluate(task, policy, key, num_envs)


def gymnax_returns(task: Task, num_envs: int, policy: Network, key: jax.Array) -> Float[Array, " num_envs"]:
    """Play the same with steps that reset by themselves, and with a new key and a categorical sample at each step."""
    step_all = jax.vmap(task.env.step, in_axes=(0, 0, 0, None))

    def step(carry, _):
        obs, state, key, alive, returns = carry
        key, key_action, key_step = jax.random.split(key, 3)
        distribution, _ = jaxpref.apply_policy(policy, obs)
        action = jax.random.categorical(key_action, distribution.logits)
        keys = jax.random.split(key_step, num_envs)
        obs, state, reward, terminated, truncated, _ = step_all(keys, state, action, task.env_params)
        returns = returns + jnp.where(alive, reward, 0.0)
        return (obs, state, key, alive & ~terminated & ~truncated, returns), None

    key, key_reset = jax.random.split(key)
    obs, state = jax.vmap(task.env.reset, in_axes=(0, None))(jax.random.split(key_reset, num_envs), task.env_params)
    start = obs, state, key, jnp.ones(num_envs, bool), jnp.zeros(num_envs)
    return jax.lax.scan(step, start, None, task.horizon)[0][-1]


def measure(settings: Settings) -> list[Row]:
    """Whole episodes of an expert: `jaxpref.evaluate` against gymnax's `env.step` in a scan."""
    rows = []
    for name in jaxpref.TASKS:
        task = jaxpref.task(name)
        expert = jax.jit(functools.partial(jaxpref.reinforce.train, task, jaxpref.reinforce.Config()))
        args = expert(jax.random.key(0)).pi1, jax.random.key(1)
        for num_envs in settings.num_envs:
            plays = (functools.partial(play, task, num_envs) for play in (jaxpref_returns, gymnax_returns))
            calls = [compiled(play, *args)[0] for play in plays]
            ours, peer = map(median, in_turns(4 * settings.repeats, *calls))
            row = {"task": name, "num_envs": num_envs, "jaxpref_s": ours, "gymnax_s": peer, "ratio": peer / ours}
            rows.append(row)
    return rows
