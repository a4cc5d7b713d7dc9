"""REINFORCE: from a random policy to two snapshots, pi1 (good) and pi2 (less good).

    gradient = mean over episodes of sum over steps of grad log pi(a_t | s_t) * A_t,
    A_t = rewards-to-go - baseline(s_t)

(Williams, 1992). The defaults make every seed an expert, not the lucky ones: a uniform first policy, several
episodes per update, a learned baseline, advantages normalised over the batch and a little entropy.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax
from flax import struct
from jaxtyping import Array, Bool, Float, Int, Key

from jaxpref import losses
from jaxpref.checks import check_choice, check_config, check_flag, check_key, check_range
from jaxpref.divergence import Divergence, find_divergence, no_divergence, param_size
from jaxpref.fast.loops import any_lane
from jaxpref.networks import apply_policy, categorical_entropy, categorical_log_prob, init_policy
from jaxpref.returns import discounted_returns
from jaxpref.rollout import episodes
from jaxpref.tasks import Task, check_task
from jaxpref.types import Params, Scalar, Trajectory

BASELINES = ("value", "handmade")


@struct.dataclass
class Config:
    """How REINFORCE trains a policy on the true reward, up to its snapshots pi1 and pi2."""

    num_updates: int = struct.field(pytree_node=False, default=600)
    """Gradient steps at most: training ends once both targets are reached."""
    episodes_per_update: int = struct.field(pytree_node=False, default=8)
    """Episodes averaged in one gradient."""
    score_window: int = struct.field(pytree_node=False, default=50)
    """The score, which targets are compared with, is the mean return of this many last episodes."""
    baseline: str = struct.field(pytree_node=False, default="value")
    """"value", the value head; "handmade", the task's own, read at the next observation."""
    normalise_advantage: bool = struct.field(pytree_node=False, default=True)
    """To mean 0 and deviation 1 over all steps of the update."""
    shape_reward: bool = struct.field(pytree_node=False, default=False)
    """Add gamma * potential(next_obs) - potential(obs) to what is learned from."""
    score_shaping: bool = struct.field(pytree_node=False, default=False)
    """The score counts that, too, as in the original study; without it, it is the true return."""
    learning_rate: Scalar = 1e-2
    """Step size of Adam."""
    gamma: Scalar = 0.99
    """Discount per step."""
    ent_coef: Scalar = 0.04
    """Weight of the entropy bonus, per step."""
    vf_coef: Scalar = 0.5
    """Weight of the value head's loss, per step."""
    policy_scale: Scalar = 0.01
    """Of the policy head's initial weights; near 0 the first policy is uniform."""

    def __post_init__(self):
        check_choice(self, "baseline", BASELINES)
        check_flag(self, "normalise_advantage", "shape_reward")
        check_range(self, 1, math.inf, "num_updates", "episodes_per_update", "score_window")
        check_range(self, 0, math.inf, "learning_rate", "ent_coef", "vf_coef", "policy_scale")
        check_range(self, 0, 1, "gamma")


@struct.dataclass
class Metrics:
    """One entry per update, `param_size` the largest magnitude of a parameter before it; NaN after training ended."""

    loss: Float[Array, "*batch U"]
    score: Float[Array, "*batch U"]
    param_size: Float[Array, "*batch U"]


@struct.dataclass
class Result:
    """The snapshots: parameters right after the first update at which the score reached a target.

    Where it never did, `reached` is False and the parameters are the last. The targets are the task's, or were found in
    place of them. `num_updates` were made.
    """

    pi1: Params
    pi2: Params
    pi1_target: Float[Array, "*batch"]
    pi2_target: Float[Array, "*batch"]
    pi1_reached: Bool[Array, "*batch"]
    pi2_reached: Bool[Array, "*batch"]
    num_updates: Int[Array, "*batch"]
    metrics: Metrics
    divergence: Divergence


@struct.dataclass
class TrainState:
    """`update` is the number of the next one; `scores` the last returns, NaN before there are that many."""

    update: Int[Array, ""]
    params: Params
    opt_state: optax.OptState
    scores: Float[Array, " window"]
    result: Result


def loss_fn(params: Params, task: Task, config: Config, played: Trajectory) -> Float[Array, ""]:
    """Policy gradient, value and entropy terms: summed over steps, averaged over episodes.

    Raises ValueError for the hand-made baseline of a task that has none.
    """
    logits, value = apply_policy(params, played.obs)
    # The value head predicts (1 - gamma) * return: about 1 in size, whatever the horizon.
    returns = (1 - config.gamma) * jax.vmap(discounted_returns, (0, None))(played.reward, config.gamma)
    if config.baseline == "value":
        advantage = returns - value
        value_loss = config.vf_coef * losses.value(value, returns)
    else:
        advantage = returns - (1 - config.gamma) * _of_task(task, "baseline")(played.next_obs)
        value_loss = jnp.zeros_like(value)
    if config.normalise_advantage:
        mean = jnp.mean(advantage, where=played.mask)
        advantage = (advantage - mean) / (jnp.std(advantage, where=played.mask) + 1e-6)
    per_step = losses.policy_gradient(categorical_log_prob(logits, played.action), advantage)
    per_step += value_loss - config.ent_coef * categorical_entropy(logits)
    return jnp.where(played.mask, per_step, 0.0).sum(-1).mean()


def _of_task(task: Task, name: str) -> Callable[[Float[Array, "*batch O"]], Float[Array, "*batch"]]:
    """One of the task's own functions of observations. Raises ValueError where it has none."""
    function = getattr(task, name)
    if function is None:
        raise ValueError(f"config asks for the task's {name}, and {task.name} has none")
    return function


def update(task: Task, config: Config, key: Key[Array, ""], state: TrainState) -> TrainState:
    """One gradient step on fresh episodes, then the latches.

    Raises ValueError for a baseline or a shaping that the task does not have.
    """
    played = episodes(task, state.params, jax.random.fold_in(key, state.update), config.episodes_per_update)
    shaped = played
    if config.shape_reward:
        potential = _of_task(task, "potential")
        shaping = config.gamma * potential(played.next_obs) - potential(played.obs)
        shaped = dataclasses.replace(played, reward=jnp.where(played.mask, played.reward + shaping, 0.0))
    loss, grads = jax.value_and_grad(loss_fn)(state.params, task, config, shaped)
    updates, opt_state = optax.adam(config.learning_rate).update(grads, state.opt_state)
    params = optax.apply_updates(state.params, updates)

    scored = shaped if config.score_shaping else played
    scores = jnp.concatenate([state.scores, scored.reward.sum(-1)])[-config.score_window :]
    score = jnp.nanmean(scores)
    result = state.result
    following = dataclasses.replace(
        result,
        pi1=_select(result.pi1_reached, result.pi1, params),
        pi2=_select(result.pi2_reached, result.pi2, params),
        pi1_reached=result.pi1_reached | (score >= result.pi1_target),
        pi2_reached=result.pi2_reached | (score >= result.pi2_target),
        num_updates=state.update + 1,
        metrics=Metrics(
            loss=result.metrics.loss.at[state.update].set(loss),
            score=result.metrics.score.at[state.update].set(score),
            param_size=result.metrics.param_size.at[state.update].set(param_size(state.params)),
        ),
    )
    return TrainState(state.update + 1, params, opt_state, scores, following)


def _select(condition: Bool[Array, ""], one, other):
    return jax.tree.map(functools.partial(jnp.where, condition), one, other)


def train(task: Task, config: Config, key: Key[Array, ""]) -> Result:
    """Train until both snapshots are taken or `config.num_updates` are made.

    Where the task lacks a target, a first run of all updates shows how far training comes, and a second one, the same
    update by update, takes the snapshots on the way (`targets_of_curve`). Raises TypeError for a config of another
    trainer, TypeError or ValueError for what is not one typed key, and ValueError for a baseline or a shaping that the
    task does not have.
    """
    check_task(task)
    check_config(config, Config)
    check_key(key)
    if task.pi1_target is not None and task.pi2_target is not None:
        return _train_to_targets(task, config, key)

    def run(targets, _):
        found = dataclasses.replace(
            task,
            pi1_target=targets[0] if task.pi1_target is None else task.pi1_target,
            pi2_target=targets[1] if task.pi2_target is None else task.pi2_target,
        )
        result = _train_to_targets(found, config, key)
        return targets_of_curve(config, result.metrics.score), result

    # A scan makes one program of both runs: compiled apart, they could be rounded differently and drift apart.
    _, results = jax.lax.scan(run, (jnp.float32(jnp.inf), jnp.float32(jnp.inf)), length=2)
    return jax.tree.map(lambda leaf: leaf[1], results)


def targets_of_curve(config: Config, score: Float[Array, " U"]) -> tuple[Float[Array, ""], Float[Array, ""]]:
    """(pi1_target, pi2_target) of a task that has none: 90 % and 50 % of the way from the best score of the first
    window, while the mean is of few episodes still, to the best of all. Infinite where training never got beyond that.
    """
    first_window = math.ceil(config.score_window / config.episodes_per_update)
    first, best = jnp.nanmax(score[:first_window]), jnp.nanmax(score)
    pi1_target, pi2_target = (jnp.where(best > first, first + share * (best - first), jnp.inf) for share in (0.9, 0.5))
    return pi1_target, pi2_target


def _train_to_targets(task: Task, config: Config, key: Key[Array, ""]) -> Result:
    key_init, key_train = jax.random.split(key)
    params = init_policy(key_init, task, config.policy_scale)
    nothing = jnp.full(config.num_updates, jnp.nan)
    metrics = Metrics(nothing, nothing, nothing)
    result = Result(
        pi1=params,
        pi2=params,
        pi1_target=jnp.float32(task.pi1_target),
        pi2_target=jnp.float32(task.pi2_target),
        pi1_reached=jnp.bool_(False),
        pi2_reached=jnp.bool_(False),
        num_updates=jnp.int32(0),
        metrics=metrics,
        divergence=no_divergence(),
    )
    start = TrainState(
        jnp.int32(0),
        params,
        optax.adam(config.learning_rate).init(params),
        jnp.full(config.score_window, jnp.nan),
        result,
    )

    def training(state: TrainState):
        return ~(state.result.pi1_reached & state.result.pi2_reached)

    def guarded_update(state: TrainState) -> TrainState:
        following = update(task, config, key_train, state)
        advanced = _select(training(state), following, state)
        return dataclasses.replace(advanced, update=following.update)

    def running(state: TrainState):
        return any_lane(training(state)) & (state.update < config.num_updates)

    result = jax.lax.while_loop(running, guarded_update, start).result
    last = result.pi1, result.pi2  # one of them is what the last update made
    astray = find_divergence(result.metrics.loss, result.metrics.param_size, last, result.num_updates)
    return dataclasses.replace(result, divergence=astray)
