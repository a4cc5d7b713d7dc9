"""PPO-RLHF: proximal policy optimisation of a learned reward under a KL penalty to a reference policy.

    reward_t = r(s_t, a_t, s_t+1) - kl_coef * [log pi(a_t|s_t) - log ref(a_t|s_t)]        (kl_penalty="reward")

(Ziegler et al., 2019, https://arxiv.org/abs/1909.08593; PPO: Schulman et al., 2017). With kl_penalty="loss" the exact
kl_coef * KL(ref || pi) at the visited states is in the loss, as in the original study.

A reward model of preferences has a unit: a difference of two returns is the log-odds of an answer. So `kl_coef` is in
log-odds per nat, as DPO's beta is. A reward model that knows little has small rewards (`reward_model.calibration`), and
then the policy stays near the reference. PPO learns from this sum in another unit (`returns.RewardUnit`): the best
policy is the same, and the value head has less to learn.
"""

import functools
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import struct
from jaxtyping import Array, Float, Key

from jaxpref import losses, training
from jaxpref.checks import check_config, check_key, setting
from jaxpref.distributions import Distribution
from jaxpref.divergence import find_divergence, param_size
from jaxpref.fast.keys import fast_key
from jaxpref.fast.shuffle import shuffled
from jaxpref.networks import Network, apply_policy, apply_reward, check_policy, check_reward, replace_layer
from jaxpref.returns import RewardUnit, gae, reward_scale, reward_unit
from jaxpref.rollout import StreamState, Transition, episodes, start_stream, stream
from jaxpref.tasks import Task
from jaxpref.training import Result, scan_updates
from jaxpref.types import Optimiser, Scalar, Trajectory, true_return

KL_PENALTIES = ("reward", "loss")
PerStep = Float[Array, "E T"]
"""One number for each environment and step."""
RewardFn = Callable[[Any, Transition | Trajectory], Float[Array, "*batch"]]
"""(reward_params, played steps) -> the reward of each step. PPO maximises it."""
RewardOf = Callable[[Transition | Trajectory], Float[Array, "*batch"]]
"""A `RewardFn` with its `reward_params`."""


def learned_reward(reward_params: Network, steps: Transition | Trajectory) -> Float[Array, "*batch"]:
    """Return the reward of a reward model or an ensemble, which RLHF maximises."""
    return apply_reward(reward_params, steps.obs, steps.action, steps.next_obs)


def true_reward(reward_params: Any, steps: Transition | Trajectory) -> Float[Array, "*batch"]:
    """Return the environment's own reward. Its result is the ceiling for a learned reward."""
    return steps.reward


@struct.dataclass
class Config:
    """How PPO trains a policy on a learned reward: the second half of RLHF."""

    num_updates: int = setting(60, low=1)
    """Rollouts, a multiple of eval_every. Each one is used for num_epochs."""
    num_envs: int = setting(16, low=1)
    """Environments played side by side."""
    num_steps: int = setting(128, low=1)
    """Steps of each environment per update."""
    num_epochs: int = setting(4, low=1)
    """Passes over the steps of an update."""
    num_minibatches: int = setting(8, low=1)
    """Gradient steps per pass. Each pass drops the remainder of num_envs * num_steps, at random."""
    eval_every: int = setting(6, low=1)
    """Updates between two evaluations of the true and the learned return."""
    eval_episodes: int = setting(16, low=1)
    """Episodes per evaluation."""
    kl_penalty: str = setting("reward", choices=KL_PENALTIES)
    """"reward": -kl_coef * log(pi/ref) in each step's reward; "loss": kl_coef * KL(ref || pi) in the loss."""
    normalise_advantage: bool = setting(True)
    """Scale advantages to mean 0 and deviation 1 over each minibatch."""
    reset_value: bool = setting(True)
    """Start with a value head of zero. The initial policy's was trained on the true reward. Its differences from step
    to step are a shaped version of that reward, and PPO would learn from more than the preferences."""
    optimiser: Optimiser | None = setting(None)
    """A function of the learning rate, such as `optax.sgd`; None: Adam."""
    learning_rate: Scalar = setting(1.5e-3, low=0)
    """Step size of the optimiser."""
    gamma: Scalar = setting(0.99, low=0, high=1)
    """Discount per step."""
    gae_lambda: Scalar = setting(0.95, low=0, high=1)
    """From 0, the one-step error, to 1, the whole return."""
    clip_eps: Scalar = setting(0.2, low=0)
    """How far the probability ratio may move per update."""
    vf_coef: Scalar = setting(1.0, low=0)
    """Weight of the value loss."""
    ent_coef: Scalar = setting(0.0, low=0)
    """Weight of the entropy bonus."""
    kl_coef: Scalar = setting(0.03, low=0)
    """Weight of the KL penalty. In the reward its unit is that of the reward, per nat."""
    max_grad_norm: Scalar = setting(0.5, low=0)
    """Gradients are clipped to this global norm."""

    def problems(self) -> Iterator[tuple[str, str]]:
        """Yield what is wrong with a combination of settings."""
        yield from training.schedule_problems(self)
        num_played = self.num_envs * self.num_steps
        if self.num_minibatches > num_played:
            yield "num_minibatches", f"must be at most num_envs * num_steps, {num_played}, got {self.num_minibatches}"


@struct.dataclass
class Metrics:
    """The metrics of every update [U], and mean returns after every `eval_every` updates [E], of the same episodes.

    loss:            mean over an update's gradient steps.
    entropy:         of the policy that played, mean over the states it played.
    kl:              exact KL(pi || ref), mean over the same states, in nats per step.
    learned_reward:  mean per played step, in the reward model's own unit.
    param_size:      largest magnitude of a parameter of the policy that played.
    """

    loss: Float[Array, "*batch"]
    entropy: Float[Array, "*batch"]
    kl: Float[Array, "*batch"]
    learned_reward: Float[Array, "*batch"]
    param_size: Float[Array, "*batch"]
    learned_return: Float[Array, "*batch E"] | None = None
    true_return: Float[Array, "*batch E"] | None = None


@struct.dataclass
class TrainState(training.TrainState):
    """What one update passes to the next."""

    streams: StreamState


@struct.dataclass
class Batch:
    """Played steps, with everything else that PPO's loss needs. `log_prob` is of the policy that played."""

    steps: Transition
    log_prob: Float[Array, "*batch"]
    reference: Distribution
    advantage: Float[Array, "*batch"]
    target: Float[Array, "*batch"]


def optimiser(config: Config) -> optax.GradientTransformation:
    """Make the config's optimiser on clipped gradients. One flat vector is faster than many small arrays."""
    clip = optax.clip_by_global_norm(config.max_grad_norm)
    return optax.flatten(optax.chain(clip, training.make_optimiser(config)))


def loss_fn(params: Network, config: Config, batch: Batch) -> Float[Array, ""]:
    """Compute the clipped surrogate, value, entropy and, for kl_penalty="loss", KL terms: mean over the steps."""
    distribution, value = apply_policy(params, batch.steps.obs)
    log_prob = distribution.log_prob(batch.steps.action)
    advantage = batch.advantage
    if config.normalise_advantage:
        advantage = (advantage - advantage.mean()) / (advantage.std() + 1e-8)
    per_step = (
        losses.clipped_surrogate(log_prob, batch.log_prob, advantage, config.clip_eps)
        + config.vf_coef * losses.value(value, batch.target)
        - config.ent_coef * distribution.entropy()
    )
    if config.kl_penalty == "loss":
        per_step += config.kl_coef * batch.reference.kl(distribution)
    return per_step.mean()


def penalised(
    config: Config, distribution: Distribution, reference: Distribution, reward: Float[Array, "*batch"], action: Array
) -> Float[Array, "*batch"]:
    """Return the reward with the KL penalty of kl_penalty="reward". The action was drawn from `distribution`."""
    if config.kl_penalty != "reward":
        return reward
    return reward - config.kl_coef * (distribution.log_prob(action) - reference.log_prob(action))


def advantages(
    config: Config, reward: PerStep, value: PerStep, next_value: PerStep, steps: Transition, horizon: int
) -> tuple[PerStep, PerStep]:
    """Compute (advantage, value target) by GAE. Scaled returns, and so the targets, are about 1 in size."""
    reward = reward_scale(config.gamma, horizon) * reward
    batched_gae = jax.vmap(gae, in_axes=(0, 0, 0, 0, 0, None, None))
    return batched_gae(reward, value, next_value, steps.terminated, steps.done, config.gamma, config.gae_lambda)


def learn(
    config: Config, key: Key[Array, ""], params: Network, opt_state: optax.OptState, batch: Batch
) -> tuple[Network, optax.OptState, Float[Array, ""]]:
    """Make all gradient steps on the N played steps of a batch. The loss is the mean over the gradient steps."""
    num_played = batch.advantage.shape[0]
    batch_size = num_played // config.num_minibatches

    def gradient_step(carry, index):
        params, opt_state = carry
        minibatch = jax.tree.map(lambda leaf: leaf[index], batch)
        loss, grads = jax.value_and_grad(loss_fn)(params, config, minibatch)
        updates, opt_state = optimiser(config).update(grads, opt_state, params)
        return (optax.apply_updates(params, updates), opt_state), loss

    shuffles = jax.vmap(functools.partial(shuffled, size=num_played))(jax.random.split(key, config.num_epochs))
    index = shuffles[:, : config.num_minibatches * batch_size].reshape(-1, batch_size)
    (params, opt_state), loss = jax.lax.scan(gradient_step, (params, opt_state), index)
    return params, opt_state, loss.mean()


def update(
    task: Task,
    config: Config,
    ref_params: Network,
    reward_of: RewardOf,
    unit: RewardUnit,
    state: TrainState,
    key: Key[Array, ""],
) -> tuple[TrainState, Metrics]:
    """Play, then learn from what was played."""
    key_play, key_learn = jax.random.split(key)
    play = functools.partial(stream, task, state.params, num_steps=config.num_steps)
    streams, steps = jax.vmap(play)(state.streams, jax.random.split(key_play, config.num_envs))
    # One axis for all steps: on a CPU, a network is slow on two.
    flat = jax.tree.map(lambda leaf: leaf.reshape(-1, *leaf.shape[2:]), steps)
    distribution, value = apply_policy(state.params, flat.obs)
    _, next_value = apply_policy(state.params, flat.next_obs)
    reference, _ = apply_policy(ref_params, flat.obs)
    reward = reward_of(flat)
    paid = penalised(config, distribution, reference, reward, flat.action)
    paid = unit.convert(paid, config.gamma, flat.terminated)
    paid, value, next_value = (leaf.reshape(steps.done.shape) for leaf in (paid, value, next_value))
    advantage, target = advantages(config, paid, value, next_value, steps, task.horizon)
    log_prob = distribution.log_prob(flat.action)
    batch = Batch(flat, log_prob, reference, advantage.reshape(-1), target.reshape(-1))
    params, opt_state, loss = learn(config, key_learn, state.params, state.opt_state, batch)
    return TrainState(params, opt_state, streams), Metrics(
        loss=loss,
        entropy=distribution.entropy().mean(),
        kl=distribution.kl(reference).mean(),
        learned_reward=reward.mean(),
        param_size=param_size(state.params),
    )


def without_value(params: Network) -> Network:
    """Return the same policy with a value head of zero."""
    return replace_layer(params, "value", jnp.zeros_like)


def find_unit(
    task: Task, config: Config, key: Key[Array, ""], params: Network, reward_of: RewardOf, streams: Any
) -> RewardUnit:
    """Play `task.horizon` steps of each stream [E], and find the unit of their reward."""
    play = functools.partial(stream, task, params, num_steps=task.horizon)
    _, steps = jax.vmap(play)(streams, jax.random.split(key, config.num_envs))
    _, value = apply_policy(params, steps.obs)
    _, next_value = apply_policy(params, steps.next_obs)
    return reward_unit(reward_of(steps), value, next_value, steps.terminated, config.gamma, task.horizon)


def train(
    task: Task,
    config: Config,
    key: Key[Array, ""],
    init_params: Network,
    ref_params: Network,
    reward_params: Any,
    reward_fn: RewardFn = learned_reward,
) -> Result:
    """Train a policy on the learned reward, from `init_params`, with `ref_params` as the reference."""
    check_config(config, Config)
    check_key(key)
    check_policy(task, init_params, "init_params")
    check_policy(task, ref_params, "ref_params")
    if reward_fn is learned_reward:
        check_reward(task, reward_params, "reward_params")
    key_unit, key_stream, key_train = jax.random.split(fast_key(key), 3)
    init_params = without_value(init_params) if config.reset_value else init_params
    reward_of = functools.partial(reward_fn, reward_params)
    streams = jax.vmap(functools.partial(start_stream, task))(jax.random.split(key_stream, config.num_envs))
    unit = find_unit(task, config, key_unit, init_params, reward_of, streams)
    start = TrainState(init_params, optimiser(config).init(init_params), streams)

    def returns(state: TrainState, key: Key[Array, ""]) -> tuple[Float[Array, ""], Float[Array, ""]]:
        played = episodes(task, state.params, key, config.eval_episodes)
        learned_return = jnp.where(played.mask, reward_of(played), 0.0).sum(-1)
        return learned_return.mean(), true_return(played).mean()

    step = functools.partial(update, task, config, ref_params, reward_of, unit)
    state, metrics, (learned, true) = scan_updates(step, returns, start, key_train, config)
    divergence = find_divergence(metrics, state.params, config.num_updates)
    return Result(state.params, metrics.replace(learned_return=learned, true_return=true), divergence)
