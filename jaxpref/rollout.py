"""Play whole masked episodes, and the auto-resetting streams that PPO learns from.

For speed, all action noise is drawn before a loop, and a loop over episodes ends when the last of them has ended.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import struct
from jaxtyping import Array, Bool, Float, Int, Key

from jaxpref.checks import check_count, check_key, check_kind
from jaxpref.distributions import Distribution
from jaxpref.fast.keys import fast_key
from jaxpref.fast.loops import any_lane
from jaxpref.networks import Network, apply_policy, check_policy, no_action
from jaxpref.tasks import Task
from jaxpref.types import Trajectory, select, zero_beyond_mask

CHUNK = 50
"""Steps between two checks whether any episode is still running."""
GROUP = 256
"""The largest number of episodes side by side. A group ends with its longest one, and its arrays fit a core's cache."""


@struct.dataclass
class EnvStep:
    """An environment between two steps: what the agent observes, and the environment's state."""

    obs: Float[Array, "*batch O"]
    state: Any


def reset(task: Task, key: Key[Array, ""]) -> EnvStep:
    """Draw an initial state."""
    obs, state = task.env.reset_env(key, task.env_params)
    return EnvStep(_observe(task, obs), state)


def step(
    task: Task, key: Key[Array, ""], env_step: EnvStep, action: Array
) -> tuple[EnvStep, Float[Array, ""], Bool[Array, ""]]:
    """Take one step without reset and time limit, with a clipped action: (next, true reward, terminated)."""
    if task.action_range is not None:
        action = jnp.clip(action, *jnp.float32(task.action_range).T)
    obs, state, reward, terminated, _ = task.env.step_env(key, env_step.state, action, task.env_params)
    return EnvStep(_observe(task, obs), state), jnp.float32(reward).reshape(()), jnp.bool_(terminated)


def _observe(task: Task, obs: Array) -> Float[Array, " O"]:
    return jnp.float32(obs if task.observe is None else task.observe(obs)).reshape(-1)


def _step_keys(task: Task, key: Key[Array, ""], num_steps: int) -> Key[Array, " T"]:
    """Return a key for each step. A task that ignores keys gets the same one for all steps, which costs nothing."""
    if task.stochastic:
        return jax.random.split(key, num_steps)
    return jnp.broadcast_to(jax.random.key(0), (num_steps,))


def _distribution_shape(task: Task, policy: Network) -> Distribution:
    """Return the policy's distribution at an observation, as shapes. They are all that `noise` needs."""
    return jax.eval_shape(apply_policy, policy, jnp.zeros(task.obs_size))[0]


def episode(
    task: Task, params: Network, key: Key[Array, ""], start: EnvStep | None = None, *, greedy: bool = False
) -> Trajectory:
    """Play one episode with actions sampled from the policy: a `Trajectory` that is zero beyond its mask.

    start:   where the episode begins, from `reset`; None: in a fresh initial state.
    greedy:  take the most likely action in place of a sample.
    """
    check_policy(task, params)
    check_key(key)
    _check_start(task, start)
    key_reset, key_play = jax.random.split(fast_key(key))
    distribution_shape = _distribution_shape(task, params)
    num_chunks = -(-task.horizon // CHUNK)
    first = reset(task, key_reset) if start is None else start
    # (obs, action, reward, mask): a `Trajectory` without next_obs, which is obs shifted by one.
    one_step = jnp.zeros(task.obs_size), no_action(task), jnp.float32(0), jnp.bool_(False)
    record = jax.tree.map(lambda leaf: jnp.zeros((num_chunks * CHUNK, *leaf.shape), leaf.dtype), one_step)
    play_step = functools.partial(_play_step, task, params)

    def play_chunk(carry):
        chunk, current, alive, record = carry
        key_noise, key_step = jax.random.split(jax.random.fold_in(key_play, chunk))
        in_time = chunk * CHUNK + jnp.arange(CHUNK) < task.horizon
        noise = distribution_shape.noise(key_noise, CHUNK)
        if greedy:  # without noise, a sample is the mode
            noise = jax.tree.map(jnp.zeros_like, noise)
        inputs = noise, _step_keys(task, key_step, CHUNK), in_time
        (current, alive), steps = jax.lax.scan(play_step, (current, alive), inputs)
        write = functools.partial(jax.lax.dynamic_update_slice_in_dim, start_index=chunk * CHUNK, axis=0)
        return chunk + 1, current, alive, jax.tree.map(write, record, steps)

    def running(carry):
        chunk, _, alive, _ = carry
        return any_lane(alive) & (chunk < num_chunks)

    chunk, last, _, record = jax.lax.while_loop(running, play_chunk, (0, first, jnp.bool_(True), record))
    obs, actions, rewards, mask = record
    # One place more, for the observation after the last step.
    obs = jnp.pad(obs, ((0, 1), (0, 0)))
    obs = jax.lax.dynamic_update_slice_in_dim(obs, last.obs[None], chunk * CHUNK, axis=0)
    played = Trajectory(obs[:-1], actions, rewards, obs[1:], mask)
    return zero_beyond_mask(jax.tree.map(lambda leaf: leaf[: task.horizon], played))


def episodes(
    task: Task,
    params: Network,
    key: Key[Array, ""],
    num_episodes: int,
    start: EnvStep | None = None,
    *,
    greedy: bool = False,
) -> Trajectory:
    """Play `num_episodes` episodes: a `Trajectory` with a leading axis [K], as `start` has. See `episode`."""
    _check_start(task, start, num_episodes)
    return _of_episodes(functools.partial(episode, task, params, greedy=greedy), key, num_episodes, start)


def evaluate(
    task: Task, params: Network, key: Key[Array, ""], num_episodes: int, *, greedy: bool = False
) -> Float[Array, " K"]:
    """Return the true, unshaped, undiscounted return of each of `num_episodes` episodes. See `episode`."""
    play = functools.partial(episode, task, params, greedy=greedy)
    return _of_episodes(lambda key, start: play(key, start).reward.sum(-1), key, num_episodes)


def _of_episodes(function: Callable, key: Key[Array, ""], num_episodes: int, start: EnvStep | None = None) -> Any:
    """Map `function(key, start)` over episodes, group by group."""
    check_key(key)
    check_count(num_episodes, "num_episodes")
    inputs = jax.random.split(fast_key(key), num_episodes), start
    num_groups = -(-num_episodes // GROUP)
    if num_groups == 1:
        return jax.vmap(function)(*inputs)
    return jax.lax.map(lambda each: function(*each), inputs, batch_size=-(-num_episodes // num_groups))


def _check_start(task: Task, start: Any, *axes: int) -> None:
    """Check that `start` is None, or has one initial state of the task for each episode."""
    if start is not None:
        check_kind(start, EnvStep, "start")
        if start.obs.shape != (*axes, task.obs_size):
            raise ValueError(f"start.obs must have the shape {[*axes, task.obs_size]}, got {list(start.obs.shape)}")


def _play_step(task: Task, policy: Network, carry, inputs):
    current, alive = carry
    noise, key_step, in_time = inputs
    distribution, _ = apply_policy(policy, current.obs)
    action = distribution.sample_from(noise)
    following, reward, terminated = step(task, key_step, current, action)
    alive = alive & in_time
    # After the end, the state stays as it is. The observations lie beyond the mask and may change.
    following = EnvStep(following.obs, select(alive, following.state, current.state))
    return (following, alive & ~terminated), (current.obs, action, reward, alive)


@struct.dataclass
class Transition:
    """Steps of an auto-resetting stream. Consecutive steps may belong to different episodes.

    next_obs:    the true next observation, also where the episode ended and the stream was reset.
    terminated:  the environment ended the episode: the value of next_obs is zero.
    done:        the episode ended, by termination or by the time limit (truncation).
    """

    obs: Float[Array, "*batch O"]
    action: Array
    reward: Float[Array, "*batch"]
    next_obs: Float[Array, "*batch O"]
    terminated: Bool[Array, "*batch"]
    done: Bool[Array, "*batch"]


StreamState = tuple[EnvStep, Int[Array, ""]]
"""One environment's stream: where it stands, and the number of steps of the current episode."""


def start_stream(task: Task, key: Key[Array, ""]) -> StreamState:
    """Start a stream at the beginning of its first episode."""
    return reset(task, fast_key(key)), jnp.int32(0)


def stream(
    task: Task, policy: Network, start: StreamState, key: Key[Array, ""], num_steps: int
) -> tuple[StreamState, Transition]:
    """Play `num_steps` steps [T] of one environment. A new episode starts whenever one ends."""
    key_noise, key_step, key_reset = jax.random.split(fast_key(key), 3)
    resets = jax.vmap(functools.partial(reset, task))(jax.random.split(key_reset, num_steps))

    def stream_step(carry: StreamState, inputs):
        (current, time), (noise, key_step, fresh) = carry, inputs
        distribution, _ = apply_policy(policy, current.obs)
        action = distribution.sample_from(noise)
        following, reward, terminated = step(task, key_step, current, action)
        done = terminated | (time + 1 >= task.horizon)
        transition = Transition(current.obs, action, reward, following.obs, terminated, done)
        following = select(done, fresh, following)
        return (following, jnp.where(done, 0, time + 1)), transition

    noise = _distribution_shape(task, policy).noise(key_noise, num_steps)
    inputs = noise, _step_keys(task, key_step, num_steps), resets
    return jax.lax.scan(stream_step, start, inputs)
