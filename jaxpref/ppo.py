"""PPO-RLHF: proximal policy optimisation of a learned reward under a KL penalty to a reference policy.

    reward_t = r(s_t, a_t) / size(r) - kl_coef * [log pi(a_t|s_t) - log ref(a_t|s_t)]        (kl_penalty="reward")

(Ziegler et al., 2019, https://arxiv.org/abs/1909.08593; PPO: Schulman et al., 2017), or with the exact
kl_coef * KL(ref || pi) at the visited states in the loss (kl_penalty="loss"), as in the original study.

The size of a learned reward is arbitrary: the preferences fix its order, and its scale only as far as training
went. It is therefore measured in units of its own mean magnitude, which makes `kl_coef` mean the same for every
reward model and the result independent of a reward's scale.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import struct
from jaxtyping import Array, Float, Key

from jaxpref import losses
from jaxpref.checks import check_choice, check_config, check_flag, check_key, check_range, check_schedule
from jaxpref.divergence import Divergence, find_divergence, param_size
from jaxpref.fast.shuffle import shuffled
from jaxpref.fit import check_policy, check_reward
from jaxpref.networks import (
    apply_policy,
    apply_reward,
    categorical_entropy,
    categorical_kl,
    categorical_log_prob,
    replace_layer,
)
from jaxpref.returns import gae
from jaxpref.rollout import StreamState, Transition, episodes, start_stream, stream
from jaxpref.tasks import Task
from jaxpref.training import scan_updates
from jaxpref.types import Params, Scalar, Trajectory, true_return

KL_PENALTIES = ("reward", "loss")

RewardFn = Callable[[Any, Transition | Trajectory], Float[Array, "*batch"]]
"""(reward_params, played steps) -> the reward of each that PPO maximises."""


def learned_reward(reward_params: Params, steps: Transition | Trajectory) -> Float[Array, "*batch"]:
    """What RLHF maximises: the reward model's, or an ensemble's mean."""
    return apply_reward(reward_params, steps.obs, steps.action)


def true_reward(reward_params: Any, steps: Transition | Trajectory) -> Float[Array, "*batch"]:
    """The environment's own: the ceiling that a learned reward is measured against."""
    return steps.reward


@struct.dataclass
class Config:
    """How PPO trains a policy on a learned reward: the second half of RLHF."""

    num_updates: int = struct.field(pytree_node=False, default=60)
    """Rollouts, a multiple of eval_every; each is learned from for num_epochs."""
    num_envs: int = struct.field(pytree_node=False, default=16)
    """Environments played side by side."""
    num_steps: int = struct.field(pytree_node=False, default=128)
    """Steps of each environment per update."""
    num_epochs: int = struct.field(pytree_node=False, default=4)
    """Passes over the steps of an update."""
    num_minibatches: int = struct.field(pytree_node=False, default=4)
    """Gradient steps per pass; what num_envs * num_steps leaves over is dropped, other steps in every pass."""
    eval_every: int = struct.field(pytree_node=False, default=6)
    """Updates between two evaluations of true and learned return."""
    eval_episodes: int = struct.field(pytree_node=False, default=16)
    """Episodes per evaluation."""
    kl_penalty: str = struct.field(pytree_node=False, default="reward")
    """"reward": -kl_coef * log(pi/ref) in each step's reward; "loss": kl_coef * KL(ref || pi) in the loss."""
    reset_value: bool = struct.field(pytree_node=False, default=True)
    """Start with a value head of zero. The initial policy's was trained on the true reward, and its differences from
    step to step are a shaped version of it: PPO would learn from more than the preferences, also from a reward of
    zero."""
    learning_rate: Scalar = 1.5e-3
    """Step size of Adam."""
    gamma: Scalar = 0.99
    """Discount per step."""
    gae_lambda: Scalar = 0.95
    """From 0, the one-step error, to 1, the whole return."""
    clip_eps: Scalar = 0.2
    """How far the probability ratio may move per update."""
    vf_coef: Scalar = 1.0
    """Weight of the value loss."""
    ent_coef: Scalar = 0.0
    """Weight of the entropy bonus."""
    kl_coef: Scalar = 0.1
    """Weight of the KL penalty, in units of the learned reward's mean magnitude per step."""
    max_grad_norm: Scalar = 0.5
    """Gradients are clipped to this global norm."""

    def __post_init__(self):
        check_schedule(self)
        check_choice(self, "kl_penalty", KL_PENALTIES)
        check_flag(self, "reset_value")
        check_range(self, 1, math.inf, "num_envs", "num_steps", "num_epochs", "num_minibatches", "eval_episodes")
        check_range(self, 0, math.inf, "learning_rate", "clip_eps", "vf_coef", "ent_coef", "kl_coef", "max_grad_norm")
        check_range(self, 0, 1, "gamma", "gae_lambda")
        if self.num_minibatches > self.num_envs * self.num_steps:
            raise ValueError(
                f"ppo.Config: {self.num_minibatches} minibatches do not fit into "
                f"{self.num_envs} environments * {self.num_steps} steps"
            )


@struct.dataclass
class UpdateMetrics:
    """Of one update.

    loss:            mean over its gradient steps.
    entropy:         of the policy that played, mean over the states it played.
    kl:              exact KL(pi || ref), mean over the same states, in nats per step.
    learned_reward:  mean per played step, as the reward model gives it.
    param_size:      largest magnitude of a parameter of the policy that played.
    """

    loss: Float[Array, "*batch"]
    entropy: Float[Array, "*batch"]
    kl: Float[Array, "*batch"]
    learned_reward: Float[Array, "*batch"]
    param_size: Float[Array, "*batch"]


@struct.dataclass
class Metrics(UpdateMetrics):
    """Those of every update [U], and two returns every `eval_every` updates [E], means over the same episodes."""

    learned_return: Float[Array, "*batch E"]
    true_return: Float[Array, "*batch E"]


@struct.dataclass
class Result:
    """The trained policy, and how it came about."""

    params: Params
    metrics: Metrics
    divergence: Divergence


@struct.dataclass
class TrainState:
    """What one update hands to the next."""

    params: Params
    opt_state: optax.OptState
    streams: StreamState


@struct.dataclass
class Batch:
    """Played steps with what PPO's loss needs to know of them."""

    steps: Transition
    ref_logits: Float[Array, "*batch A"]
    advantage: Float[Array, "*batch"]
    target: Float[Array, "*batch"]


def optimiser(config: Config) -> optax.GradientTransformation:
    """Adam on clipped gradients; on one flat vector, which is faster than many small arrays."""
    return optax.flatten(optax.chain(optax.clip_by_global_norm(config.max_grad_norm), optax.adam(config.learning_rate)))


def loss_fn(params: Params, config: Config, batch: Batch) -> Float[Array, ""]:
    """Clipped surrogate, value, entropy and, where the config puts it here, KL terms: mean over the steps."""
    logits, value = apply_policy(params, batch.steps.obs)
    log_prob = categorical_log_prob(logits, batch.steps.action)
    advantage = (batch.advantage - batch.advantage.mean()) / (batch.advantage.std() + 1e-8)
    per_step = (
        losses.clipped_surrogate(log_prob, batch.steps.log_prob, advantage, config.clip_eps)
        + config.vf_coef * losses.value(value, batch.target)
        - config.ent_coef * categorical_entropy(logits)
    )
    if config.kl_penalty == "loss":
        per_step += config.kl_coef * categorical_kl(batch.ref_logits, logits)
    return per_step.mean()


def advantages(
    config: Config, params: Params, ref_logits: Float[Array, "E T A"], reward: Float[Array, "E T"], steps: Transition
) -> tuple[Float[Array, "E T"], Float[Array, "E T"]]:
    """GAE of the rewards, with the KL penalty in them where the config puts it there: (advantage, value target)."""
    logits, value = apply_policy(params, steps.obs)
    if config.kl_penalty == "reward":
        # Not steps.log_prob, which is rounded differently: where policy and reference are the same, the penalty is zero
        # to the last bit. Else rounding errors would be all there is to a reward of zero, and normalised advantages.
        log_prob, ref_log_prob = (categorical_log_prob(each, steps.action) for each in (logits, ref_logits))
        reward = reward - config.kl_coef * (log_prob - ref_log_prob)
    # Rewards of size 1 - gamma make returns, and so the value head's targets, about 1 in size.
    reward = (1 - config.gamma) * reward
    _, next_value = apply_policy(params, steps.next_obs)
    batched_gae = jax.vmap(gae, in_axes=(0, 0, 0, 0, 0, None, None))
    return batched_gae(reward, value, next_value, steps.terminated, steps.done, config.gamma, config.gae_lambda)


def update(
    task: Task,
    config: Config,
    ref_params: Params,
    reward_fn: Callable[[Transition | Trajectory], Float[Array, "*batch"]],
    reward_size: Float[Array, ""],
    state: TrainState,
    key: Key[Array, ""],
) -> tuple[TrainState, UpdateMetrics]:
    """Play, then learn from what was played."""
    key_play, key_learn = jax.random.split(key)
    play = functools.partial(stream, task, state.params, num_steps=config.num_steps)
    streams, steps = jax.vmap(play)(state.streams, jax.random.split(key_play, config.num_envs))
    ref_logits, _ = apply_policy(ref_params, steps.obs)
    reward = reward_fn(steps)
    advantage, target = advantages(config, state.params, ref_logits, reward / reward_size, steps)

    num_played = config.num_envs * config.num_steps
    batch = Batch(steps, ref_logits, advantage, target)
    batch = jax.tree.map(lambda leaf: leaf.reshape(num_played, *leaf.shape[2:]), batch)
    batch_size = num_played // config.num_minibatches

    def learn(carry, index):
        params, opt_state = carry
        minibatch = jax.tree.map(lambda leaf: leaf[index], batch)
        loss, grads = jax.value_and_grad(loss_fn)(params, config, minibatch)
        updates, opt_state = optimiser(config).update(grads, opt_state)
        return (optax.apply_updates(params, updates), opt_state), loss

    shuffles = jax.vmap(functools.partial(shuffled, size=num_played))(jax.random.split(key_learn, config.num_epochs))
    index = shuffles[:, : config.num_minibatches * batch_size].reshape(-1, batch_size)
    (params, opt_state), loss = jax.lax.scan(learn, (state.params, state.opt_state), index)

    logits, _ = apply_policy(state.params, steps.obs)
    return TrainState(params, opt_state, streams), UpdateMetrics(
        loss=loss.mean(),
        entropy=categorical_entropy(logits).mean(),
        kl=categorical_kl(logits, ref_logits).mean(),
        learned_reward=reward.mean(),
        param_size=param_size(state.params),
    )


def without_value(params: Params) -> Params:
    """The same policy with a value head of zero."""
    return replace_layer(params, "value", jnp.zeros_like)


def reward_magnitude(
    task: Task,
    config: Config,
    key: Key[Array, ""],
    params: Params,
    reward_fn: Callable[[Transition | Trajectory], Float[Array, "*batch"]],
) -> Float[Array, ""]:
    """Mean |reward| per step over `config.eval_episodes` episodes of the policy; 1 for a reward that is zero."""
    played = episodes(task, params, key, config.eval_episodes)
    magnitude = jnp.mean(jnp.abs(reward_fn(played)), where=played.mask)
    return jnp.where(magnitude > 0, magnitude, 1.0)


def train(
    task: Task,
    config: Config,
    key: Key[Array, ""],
    init_params: Params,
    ref_params: Params,
    reward_params: Any,
    reward_fn: RewardFn = learned_reward,
) -> Result:
    """Train a policy, from `init_params`, on the learned reward with `ref_params` as the reference.

    Raises TypeError or ValueError for parameters that do not belong to the task.
    """
    check_config(config, Config)
    check_key(key)
    check_policy(task, init_params, "init_params")
    check_policy(task, ref_params, "ref_params")
    if reward_fn is learned_reward:
        check_reward(task, reward_params)
    key_size, key_stream, key_train = jax.random.split(key, 3)
    init_params = without_value(init_params) if config.reset_value else init_params
    reward_of = functools.partial(reward_fn, reward_params)
    reward_size = reward_magnitude(task, config, key_size, init_params, reward_of)
    streams = jax.vmap(functools.partial(start_stream, task))(jax.random.split(key_stream, config.num_envs))
    start = TrainState(init_params, optimiser(config).init(init_params), streams)

    def returns(state: TrainState, key: Key[Array, ""]) -> tuple[Float[Array, ""], Float[Array, ""]]:
        played = episodes(task, state.params, key, config.eval_episodes)
        learned_return = jnp.where(played.mask, reward_of(played), 0.0).sum(-1)
        return learned_return.mean(), true_return(played).mean()

    step = functools.partial(update, task, config, ref_params, reward_of, reward_size)
    state, metrics, (learned, true) = scan_updates(
        step, returns, start, key_train, config.num_updates, config.eval_every
    )
    astray = find_divergence(metrics.loss, metrics.param_size, state.params, config.num_updates)
    return Result(state.params, Metrics(**vars(metrics), learned_return=learned, true_return=true), astray)
