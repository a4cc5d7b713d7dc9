"""REINFORCE: from a random policy to two snapshots, pi1 (good) and pi2 (less good).

    gradient = mean over episodes of sum over steps of grad log pi(a_t | s_t) * A_t,
    A_t = rewards-to-go - baseline(s_t)

(Williams, 1992). The defaults are chosen so that training finds both snapshots on all seeds, not only on lucky ones: an
almost uniform first policy, several episodes per update, a learned baseline, advantages that are normalised over the
batch, and a small entropy bonus.
"""

import dataclasses
import functools
import math

import jax
import jax.numpy as jnp
import optax
from flax import struct
from jaxtyping import Array, Float, Int, Key

from jaxpref import losses, training
from jaxpref.checks import check_config, check_key, setting
from jaxpref.experts import Result, function_of, shaped_reward, train_to_targets
from jaxpref.fast.keys import fast_key
from jaxpref.networks import Network, apply_policy, check_policy, init_policy
from jaxpref.returns import discounted_returns, reward_scale
from jaxpref.rollout import episodes
from jaxpref.tasks import Task
from jaxpref.types import Optimiser, Scalar, Trajectory

BASELINES = ("value", "handmade")


@struct.dataclass
class Config:
    """How REINFORCE trains a policy on the true reward, until it has the snapshots pi1 and pi2."""

    num_updates: int = setting(600, low=1)
    """Largest number of gradient steps. Training ends earlier if both targets are reached."""
    episodes_per_update: int = setting(8, low=1)
    """Episodes averaged in one gradient."""
    score_window: int = setting(50, low=1)
    """The score is the mean return of this many last episodes. The targets are compared with it."""
    baseline: str = setting("value", choices=BASELINES)
    """"value": the value head; "handmade": the task's baseline, read at the next observation."""
    normalise_advantage: bool = setting(True)
    """Scale advantages to mean 0 and deviation 1 over all steps of the update."""
    shape_reward: bool | None = setting(None)
    """Learn from reward + gamma * potential(next_obs) - potential(obs). None: as the task says."""
    score_shaping: bool = setting(False)
    """Compute the score from the shaped rewards, as the original study does; otherwise it is the true return."""
    optimiser: Optimiser | None = setting(None)
    """A function of the learning rate, such as `optax.sgd`; None: Adam."""
    learning_rate: Scalar = setting(1e-2, low=0)
    """Step size of the optimiser."""
    gamma: Scalar = setting(0.99, low=0, high=1)
    """Discount per step."""
    ent_coef: Scalar = setting(0.04, low=0)
    """Weight of the entropy bonus, per step."""
    vf_coef: Scalar = setting(0.5, low=0)
    """Weight of the value head's loss, per step."""
    policy_scale: Scalar = setting(0.01, low=0)
    """Factor of the policy head's initial weights. Near 0 the first policy is uniform."""


@struct.dataclass
class TrainState(training.TrainState):
    """What one update passes to the next. `scores`: returns of the last episodes; NaN before there are enough."""

    scores: Float[Array, " window"]


def loss_fn(params: Network, task: Task, config: Config, played: Trajectory) -> Float[Array, ""]:
    """Compute policy gradient, value and entropy terms: summed over steps, averaged over episodes."""
    distribution, value = apply_policy(params, played.obs)
    # Scaled returns, which the value head predicts, are about 1 in size for every horizon.
    scale = reward_scale(config.gamma, task.horizon)
    returns = scale * jax.vmap(discounted_returns, (0, None))(played.reward, config.gamma)
    if config.baseline == "value":
        advantage = returns - value
        value_loss = config.vf_coef * losses.value(value, returns)
    else:
        advantage = returns - scale * function_of(task, "baseline")(played.next_obs)
        value_loss = jnp.zeros_like(value)
    if config.normalise_advantage:
        mean = jnp.mean(advantage, where=played.mask)
        advantage = (advantage - mean) / (jnp.std(advantage, where=played.mask) + 1e-6)
    per_step = losses.policy_gradient(distribution.log_prob(played.action), advantage)
    per_step += value_loss - config.ent_coef * distribution.entropy()
    return jnp.where(played.mask, per_step, 0.0).sum(-1).mean()


def update(
    task: Task, config: Config, key: Key[Array, ""], state: TrainState, number: Int[Array, ""]
) -> tuple[TrainState, Float[Array, ""], Float[Array, ""]]:
    """Make one gradient step on fresh episodes: (next state, loss, score)."""
    played = episodes(task, state.params, jax.random.fold_in(key, number), config.episodes_per_update)
    shaped = played
    shape_reward = task.shape_reward if config.shape_reward is None else config.shape_reward
    if shape_reward:
        reward = jnp.where(played.mask, shaped_reward(task, config.gamma, played), 0.0)
        shaped = dataclasses.replace(played, reward=reward)
    loss, grads = jax.value_and_grad(loss_fn)(state.params, task, config, shaped)
    updates, opt_state = training.make_optimiser(config).update(grads, state.opt_state, state.params)
    params = optax.apply_updates(state.params, updates)
    scored = shaped if config.score_shaping else played
    scores = jnp.concatenate([state.scores, scored.reward.sum(-1)])[-config.score_window :]
    return TrainState(params, opt_state, scores), loss, jnp.nanmean(scores)


def train(task: Task, config: Config, key: Key[Array, ""], init_params: Network | None = None) -> Result:
    """Train until both snapshots are taken, or until `config.num_updates` updates are made.

    init_params:  the first policy; None: a fresh one.
    """
    check_config(config, Config)
    check_key(key)
    key_init, key_train = jax.random.split(fast_key(key))
    if init_params is None:
        init_params = init_policy(key_init, task, config.policy_scale)
    check_policy(task, init_params, "init_params")
    opt_state = training.make_optimiser(config).init(init_params)
    start = TrainState(init_params, opt_state, jnp.full(config.score_window, jnp.nan))
    first_window = math.ceil(config.score_window / config.episodes_per_update)
    step = functools.partial(update, task, config, key_train)
    return train_to_targets(task, config.num_updates, start, step, first_window)
