"""REINFORCE: from a random policy to two snapshots, pi1 (good) and pi2 (less good).

    gradient = mean over episodes of sum over steps of grad log pi(a_t | s_t) * A_t,
    A_t = rewards-to-go - baseline(s_t)

(Williams, 1992). The defaults are chosen so that every seed becomes an expert, not only the lucky ones: a uniform first
policy, several episodes per update, a learned baseline, advantages normalised over the batch, and a little entropy.
"""

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
from jaxpref.checks import check_config, check_key, check_kind, setting
from jaxpref.divergence import Divergence, find_divergence, param_size
from jaxpref.fast.keys import fast_key
from jaxpref.fast.loops import any_lane
from jaxpref.networks import Network, apply_policy, init_policy
from jaxpref.returns import discounted_returns, reward_scale
from jaxpref.rollout import episodes
from jaxpref.tasks import Task
from jaxpref.types import Scalar, Trajectory

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
    learning_rate: Scalar = setting(1e-2, low=0)
    """Step size of Adam."""
    gamma: Scalar = setting(0.99, low=0, high=1)
    """Discount per step."""
    ent_coef: Scalar = setting(0.04, low=0)
    """Weight of the entropy bonus, per step."""
    vf_coef: Scalar = setting(0.5, low=0)
    """Weight of the value head's loss, per step."""
    policy_scale: Scalar = setting(0.01, low=0)
    """Factor of the policy head's initial weights. Near 0 the first policy is uniform."""


@struct.dataclass
class Metrics:
    """One entry per update; NaN after training ended.

    loss:        of the update's episodes.
    score:       after the update.
    param_size:  largest magnitude of a parameter before the update.
    """

    loss: Float[Array, "*batch U"]
    score: Float[Array, "*batch U"]
    param_size: Float[Array, "*batch U"]


@struct.dataclass
class Result:
    """The snapshots: the policies right after the first update whose score reaches a target.

    pi1, pi2:        the policies. Where a target was not reached, the policy is the last one.
    pi1_target, pi2_target:    the task's targets, or those that were found.
    pi1_reached, pi2_reached:  whether the score reached them.
    num_updates:     number of updates made.
    """

    pi1: Network
    pi2: Network
    pi1_target: Float[Array, "*batch"]
    pi2_target: Float[Array, "*batch"]
    pi1_reached: Bool[Array, "*batch"]
    pi2_reached: Bool[Array, "*batch"]
    num_updates: Int[Array, "*batch"]
    metrics: Metrics
    divergence: Divergence


@struct.dataclass
class TrainState:
    """What one update passes to the next.

    update:  number of the next update.
    scores:  returns of the last episodes; NaN before there are enough.
    """

    update: Int[Array, ""]
    params: Network
    opt_state: optax.OptState
    scores: Float[Array, " window"]
    result: Result


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
        advantage = returns - scale * _function_of(task, "baseline")(played.next_obs)
        value_loss = jnp.zeros_like(value)
    if config.normalise_advantage:
        mean = jnp.mean(advantage, where=played.mask)
        advantage = (advantage - mean) / (jnp.std(advantage, where=played.mask) + 1e-6)
    per_step = losses.policy_gradient(distribution.log_prob(played.action), advantage)
    per_step += value_loss - config.ent_coef * distribution.entropy()
    return jnp.where(played.mask, per_step, 0.0).sum(-1).mean()


def _function_of(task: Task, name: str) -> Callable[[Float[Array, "*batch O"]], Float[Array, "*batch"]]:
    """Return the task's potential or baseline."""
    function = getattr(task, name)
    if function is None:
        raise ValueError(f"reinforce.Config uses the task's {name}, and task {task.name} has none")
    return function


def _shaped(task: Task, config: Config, played: Trajectory) -> Trajectory:
    """Return the episodes with the rewards that are learned from."""
    shape_reward = task.shape_reward if config.shape_reward is None else config.shape_reward
    if not shape_reward:
        return played
    potential = _function_of(task, "potential")
    shaping = config.gamma * potential(played.next_obs) - potential(played.obs)
    return dataclasses.replace(played, reward=jnp.where(played.mask, played.reward + shaping, 0.0))


def update(task: Task, config: Config, key: Key[Array, ""], state: TrainState) -> TrainState:
    """Make one gradient step on fresh episodes, then take the snapshots that are due."""
    played = episodes(task, state.params, jax.random.fold_in(key, state.update), config.episodes_per_update)
    shaped = _shaped(task, config, played)
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
    """Train until both snapshots are taken, or until `config.num_updates` updates are made.

    Where the task lacks a target, a first run of all updates shows how far training comes (`targets_of_curve`). A
    second run repeats the same updates and takes the snapshots.
    """
    check_kind(task, Task, "task")
    check_config(config, Config)
    check_key(key)
    if task.pi1_target is not None and task.pi2_target is not None:
        return _train_to_targets(task, config, key)

    def run(found, _):
        pi1_target = found[0] if task.pi1_target is None else task.pi1_target
        pi2_target = found[1] if task.pi2_target is None else task.pi2_target
        with_targets = dataclasses.replace(task, pi1_target=pi1_target, pi2_target=pi2_target)
        result = _train_to_targets(with_targets, config, key)
        return targets_of_curve(config, result.metrics.score), result

    # A scan makes one program of both runs. Two programs could round differently, and the runs would drift apart.
    _, results = jax.lax.scan(run, (jnp.float32(jnp.inf), jnp.float32(jnp.inf)), length=2)
    return jax.tree.map(lambda leaf: leaf[1], results)


def targets_of_curve(config: Config, score: Float[Array, " U"]) -> tuple[Float[Array, ""], Float[Array, ""]]:
    """Find (pi1_target, pi2_target) on a curve of scores: 90 % and 50 % of the way from the start to the best score.

    The start is the best score of the first window, whose means are of few episodes. The targets are infinite where
    training never got past the start.
    """
    first_window = math.ceil(config.score_window / config.episodes_per_update)
    first, best = jnp.nanmax(score[:first_window]), jnp.nanmax(score)
    pi1_target, pi2_target = (jnp.where(best > first, first + share * (best - first), jnp.inf) for share in (0.9, 0.5))
    return pi1_target, pi2_target


def _train_to_targets(task: Task, config: Config, key: Key[Array, ""]) -> Result:
    key_init, key_train = jax.random.split(fast_key(key))
    params = init_policy(key_init, task, config.policy_scale)
    nothing = jnp.full(config.num_updates, jnp.nan)
    result = Result(
        pi1=params,
        pi2=params,
        pi1_target=jnp.float32(task.pi1_target),
        pi2_target=jnp.float32(task.pi2_target),
        pi1_reached=jnp.bool_(False),
        pi2_reached=jnp.bool_(False),
        num_updates=jnp.int32(0),
        metrics=Metrics(nothing, nothing, nothing),
        divergence=Divergence(jnp.int32(0), jnp.int32(0)),
    )
    opt_state = optax.adam(config.learning_rate).init(params)
    start = TrainState(jnp.int32(0), params, opt_state, jnp.full(config.score_window, jnp.nan), result)

    def training(state: TrainState):
        return ~(state.result.pi1_reached & state.result.pi2_reached)

    def guarded_update(state: TrainState) -> TrainState:
        following = update(task, config, key_train, state)
        advanced = _select(training(state), following, state)
        return dataclasses.replace(advanced, update=following.update)

    def running(state: TrainState):
        return any_lane(training(state)) & (state.update < config.num_updates)

    result = jax.lax.while_loop(running, guarded_update, start).result
    last = result.pi1, result.pi2  # the last update made one of them
    return dataclasses.replace(result, divergence=find_divergence(result.metrics, last, result.num_updates))
