"""Playing the game: whole masked episodes, and the auto-resetting stream that PPO learns from.

Two habits make these loops fast on a CPU and leave their results as they were. All action noise is drawn before
a loop instead of splitting a key in each step: argmax(logits + Gumbel noise) is a sample of softmax(logits). And
a loop over episodes ends when the last of them has ended.
"""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
from flax import struct
from jaxtyping import Array, Bool, Float, Int, Key

from jaxpref.checks import check_count, check_key
from jaxpref.fast.loops import any_lane
from jaxpref.fit import check_policy
from jaxpref.networks import apply_policy, categorical_log_prob
from jaxpref.tasks import Task
from jaxpref.types import Params, Trajectory, zero_beyond_mask

CHUNK = 50
"""Steps between two looks at whether any episode is still running."""


@struct.dataclass
class EnvStep:
    """An environment between two steps: what the agent sees, and what the environment remembers."""

    obs: Float[Array, " O"]
    state: Any


def reset(task: Task, key: Key[Array, ""]) -> EnvStep:
    """A fresh initial state."""
    obs, state = task.env.reset_env(key, task.env_params)
    return EnvStep(_observe(task, obs), state)


def step(
    task: Task, key: Key[Array, ""], env_step: EnvStep, action: Int[Array, ""]
) -> tuple[EnvStep, Float[Array, ""], Bool[Array, ""]]:
    """One step without reset and without time limit: (next, true reward, terminated)."""
    obs, state, reward, terminated, _ = task.env.step_env(key, env_step.state, action, task.env_params)
    return EnvStep(_observe(task, obs), state), jnp.float32(reward).reshape(()), jnp.bool_(terminated)


def _observe(task: Task, obs: Array) -> Float[Array, " O"]:
    """What networks and trajectories see of the environment's observation, whatever its shape and type."""
    return jnp.float32(obs if task.observe is None else task.observe(obs)).reshape(-1)


def _step_keys(task: Task, key: Key[Array, ""], num_steps: int) -> Key[Array, " T"]:
    """A key for every step; a constant one where the task ignores it, which costs nothing in the loop."""
    if task.stochastic:
        return jax.random.split(key, num_steps)
    return jnp.broadcast_to(jax.random.key(0), (num_steps,))


@struct.dataclass
class Record:
    """What an episode leaves while it is played: a `Trajectory` without next_obs, which is obs shifted by one."""

    obs: Float[Array, "T O"]
    action: Int[Array, " T"]
    reward: Float[Array, " T"]
    mask: Bool[Array, " T"]


def episode(task: Task, params: Params, key: Key[Array, ""]) -> Trajectory:
    """Play one episode with actions sampled from the policy. vmap over `key` for a batch.

    Returns a `Trajectory` of the task's horizon, zero beyond its mask. Raises TypeError or ValueError for parameters
    that are no policy of the task, and for what is not one typed key.
    """
    check_policy(task, params)
    check_key(key)
    key_reset, key_play = jax.random.split(key)
    num_chunks = -(-task.horizon // CHUNK)
    first = reset(task, key_reset)
    record = Record(
        obs=jnp.zeros((num_chunks * CHUNK, task.obs_size)),
        action=jnp.zeros(num_chunks * CHUNK, jnp.int32),
        reward=jnp.zeros(num_chunks * CHUNK),
        mask=jnp.zeros(num_chunks * CHUNK, bool),
    )

    def play_step(carry, noise):
        current, alive = carry
        gumbel, key_step, in_time = noise
        logits, _ = apply_policy(params, current.obs)
        action = jnp.argmax(logits + gumbel).astype(jnp.int32)
        following, reward, terminated = step(task, key_step, current, action)
        alive = alive & in_time
        # An ended episode's environment stands still. What it would observe is beyond the mask and need not.
        state = jax.tree.map(functools.partial(jnp.where, alive), following.state, current.state)
        following = EnvStep(following.obs, state)
        return (following, alive & ~terminated), Record(current.obs, action, reward, alive)

    def play_chunk(carry):
        chunk, current, alive, record = carry
        key_gumbel, key_step = jax.random.split(jax.random.fold_in(key_play, chunk))
        gumbel = jax.random.gumbel(key_gumbel, (task.num_actions, CHUNK)).T  # an odd last axis is slow to draw
        in_time = chunk * CHUNK + jnp.arange(CHUNK) < task.horizon
        noise = gumbel, _step_keys(task, key_step, CHUNK), in_time
        (current, alive), steps = jax.lax.scan(play_step, (current, alive), noise)
        write = functools.partial(jax.lax.dynamic_update_slice_in_dim, start_index=chunk * CHUNK, axis=0)
        return chunk + 1, current, alive, jax.tree.map(write, record, steps)

    def running(carry):
        chunk, _, alive, _ = carry
        return any_lane(alive) & (chunk < num_chunks)

    chunk, last, _, record = jax.lax.while_loop(running, play_chunk, (0, first, jnp.bool_(True), record))
    # One place more, for the observation after the last step.
    obs = jnp.pad(record.obs, ((0, 1), (0, 0)))
    obs = jax.lax.dynamic_update_slice_in_dim(obs, last.obs[None], chunk * CHUNK, axis=0)
    played = Trajectory(obs[:-1], record.action, record.reward, obs[1:], record.mask)
    return zero_beyond_mask(jax.tree.map(lambda leaf: leaf[: task.horizon], played))


def episodes(task: Task, params: Params, key: Key[Array, ""], num_episodes: int) -> Trajectory:
    """Play `num_episodes` episodes from fresh initial states: a `Trajectory` with a leading axis [K].

    Raises TypeError or ValueError for parameters that are no policy of the task, for what is not one typed key, and for
    fewer than one episode.
    """
    check_policy(task, params)
    check_key(key)
    check_count(num_episodes, "num_episodes")
    return jax.vmap(functools.partial(episode, task, params))(jax.random.split(key, num_episodes))


def evaluate(task: Task, params: Params, key: Key[Array, ""], num_episodes: int) -> Float[Array, " K"]:
    """True, unshaped, undiscounted return of each of `num_episodes` episodes, actions sampled from the policy.

    Errors as in `episodes`.
    """
    return episodes(task, params, key, num_episodes).reward.sum(-1)


@struct.dataclass
class Transition:
    """Steps of an auto-resetting stream: consecutive steps may belong to different episodes.

    next_obs:    the true next observation, also where the episode ended and the stream went on from a reset.
    terminated:  the environment ended the episode: nothing follows, the value of next_obs is zero.
    done:        the episode ended, by termination or by the time limit (truncation).
    log_prob:    of the action under the policy that played.
    """

    obs: Float[Array, "*batch O"]
    action: Int[Array, "*batch"]
    reward: Float[Array, "*batch"]
    next_obs: Float[Array, "*batch O"]
    terminated: Bool[Array, "*batch"]
    done: Bool[Array, "*batch"]
    log_prob: Float[Array, "*batch"]


@struct.dataclass
class StreamState:
    """Where one environment's stream stands: `time` counts the steps of the running episode."""

    env_step: EnvStep
    time: Int[Array, ""]


def start_stream(task: Task, key: Key[Array, ""]) -> StreamState:
    """A stream at the beginning of its first episode."""
    return StreamState(reset(task, key), jnp.int32(0))


def stream(
    task: Task, params: Params, start: StreamState, key: Key[Array, ""], num_steps: int
) -> tuple[StreamState, Transition]:
    """Play `num_steps` steps of one environment, starting a new episode whenever one ends.

    Returns where the stream stands afterwards, and the steps with a leading axis [num_steps].
    """
    key_gumbel, key_step, key_reset = jax.random.split(key, 3)
    gumbel = jax.random.gumbel(key_gumbel, (task.num_actions, num_steps)).T
    resets = jax.vmap(functools.partial(reset, task))(jax.random.split(key_reset, num_steps))

    def play_step(carry: StreamState, noise):
        gumbel, key_step, fresh = noise
        obs = carry.env_step.obs
        logits, _ = apply_policy(params, obs)
        action = jnp.argmax(logits + gumbel).astype(jnp.int32)
        following, reward, terminated = step(task, key_step, carry.env_step, action)
        time = carry.time + 1
        done = terminated | (time >= task.horizon)
        transition = Transition(
            obs, action, reward, following.obs, terminated, done, categorical_log_prob(logits, action)
        )
        env_step = jax.tree.map(functools.partial(jnp.where, done), fresh, following)
        return StreamState(env_step, jnp.where(done, 0, time)), transition

    return jax.lax.scan(play_step, start, (gumbel, _step_keys(task, key_step, num_steps), resets))
