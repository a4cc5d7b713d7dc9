"""Experts by PPO on the true reward, for tasks that REINFORCE fails on: images, continuous actions, rare rewards."""

import functools

import jax
import jax.numpy as jnp
from flax import struct
from jaxtyping import Array, Float, Int, Key

from jaxpref import ppo
from jaxpref.checks import check_config, check_key
from jaxpref.experts import Result, shaped_reward, train_to_targets
from jaxpref.fast.keys import fast_key
from jaxpref.networks import Network, check_policy, init_policy
from jaxpref.returns import RewardUnit
from jaxpref.rollout import Transition, episodes, start_stream
from jaxpref.tasks import Task
from jaxpref.types import Trajectory, true_return

DEFAULTS = ppo.Config(
    num_updates=400,
    num_epochs=8,
    num_minibatches=16,
    eval_every=1,
    eval_episodes=128,
    learning_rate=1e-3,
    gamma=0.97,
    clip_eps=0.1,
    kl_coef=0.0,
)
"""The default config."""


@struct.dataclass
class TrainState(ppo.TrainState):
    """What one update passes to the next. `reward_size`: mean |reward| per step, over all evaluations so far."""

    reward_size: Float[Array, ""]


def learned_from(task: Task, config: ppo.Config, steps: Transition | Trajectory) -> Float[Array, "*batch"]:
    """Return what PPO maximises here: the true reward, shaped if the task asks for it."""
    return shaped_reward(task, config.gamma, steps) if task.shape_reward else steps.reward


def update(
    task: Task,
    config: ppo.Config,
    key: Key[Array, ""],
    ref_params: Network,
    state: TrainState,
    number: Int[Array, ""],
) -> tuple[TrainState, Float[Array, ""], Float[Array, ""]]:
    """Make an update, then play episodes for its score and for the reward's size: (next state, loss, score)."""
    key_update, key_eval = jax.random.split(jax.random.fold_in(key, number))
    reward_of = functools.partial(learned_from, task, config)
    size = jnp.where(state.reward_size > 0, state.reward_size, 1.0)
    following, metrics = ppo.update(task, config, ref_params, reward_of, RewardUnit(size), state, key_update)
    played = episodes(task, following.params, key_eval, config.eval_episodes)
    size = jnp.mean(jnp.abs(reward_of(played)), where=played.mask)
    size = state.reward_size + (size - state.reward_size) / (number + 1)
    return TrainState(**vars(following), reward_size=size), metrics.loss, true_return(played).mean()


def train(task: Task, config: ppo.Config, key: Key[Array, ""], init_params: Network | None = None) -> Result:
    """Train on the true reward until pi1 and pi2 are found, or until `config.num_updates` updates are made.

    The score is the mean return of `config.eval_episodes` episodes after each update. PPO learns from the shaped reward
    if the task asks for it. The reference of the KL penalty is the first policy; `DEFAULTS` has no penalty.

    init_params:  the first policy; None: a fresh, almost uniform one.
    """
    check_config(config, ppo.Config)
    check_key(key)
    key_init, key_stream, key_train = jax.random.split(fast_key(key), 3)
    if init_params is None:
        init_params = init_policy(key_init, task, policy_scale=0.01)
    check_policy(task, init_params, "init_params")
    streams = jax.vmap(functools.partial(start_stream, task))(jax.random.split(key_stream, config.num_envs))
    start = TrainState(init_params, ppo.optimiser(config).init(init_params), streams, jnp.float32(0))
    step = functools.partial(update, task, config, key_train, init_params)
    return train_to_targets(task, config.num_updates, start, step, first_window=1)
