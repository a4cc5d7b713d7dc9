"""Direct Preference Optimisation on whole trajectories: preferences straight to a policy, no reward model.

    loss = mean over pairs of -log sigmoid(beta * [log pi/ref (chosen) - log pi/ref (rejected)])

(Rafailov et al., 2023), with log pi of a trajectory the sum over its steps: the environment's own transition
probabilities are the same for policy and reference and cancel.
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import optax
from flax import struct
from jaxtyping import Array, Float, Key

from jaxpref import losses
from jaxpref.networks import trajectory_log_prob
from jaxpref.rollout import evaluate
from jaxpref.tasks import Task
from jaxpref.training import check_batch_size, check_schedule, draw_minibatch, scan_updates
from jaxpref.types import Params, Preferences, Scalar

LOGP_CHUNK = 50
"""Pairs whose reference log-probabilities are computed at once: bounds the memory of a large dataset."""


@struct.dataclass
class Config:
    """
    num_updates:    gradient steps, a multiple of `eval_every`.
    batch_size:     pairs per update; 0 takes all of them in every update.
    eval_every:     updates between two evaluations of the true return.
    eval_episodes:  episodes per evaluation.
    beta:           how strongly the policy is held to the reference: the scale of the implicit reward.
    """

    num_updates: int = struct.field(pytree_node=False, default=300)
    batch_size: int = struct.field(pytree_node=False, default=64)
    eval_every: int = struct.field(pytree_node=False, default=30)
    eval_episodes: int = struct.field(pytree_node=False, default=16)
    learning_rate: Scalar = 3e-3
    beta: Scalar = 0.1

    def __post_init__(self):
        check_schedule(self.num_updates, self.eval_every)
        check_batch_size(self.batch_size)


@struct.dataclass
class Metrics:
    """One entry per update, of the minibatch before the step; `true_return` every `eval_every` updates."""

    loss: Float[Array, "*batch U"]
    chosen_reward: Float[Array, "*batch U"]
    rejected_reward: Float[Array, "*batch U"]
    margin: Float[Array, "*batch U"]
    accuracy: Float[Array, "*batch U"]
    true_return: Float[Array, "*batch E"]


@struct.dataclass
class Result:
    params: Params
    metrics: Metrics


@struct.dataclass
class TrainState:
    params: Params
    opt_state: optax.OptState


@struct.dataclass
class Batch:
    """The pairs of one update, with what never changes computed once: the reference's log-probabilities."""

    preferences: Preferences
    ref_chosen_logp: Float[Array, " B"]
    ref_rejected_logp: Float[Array, " B"]


def loss_fn(params: Params, config: Config, batch: Batch) -> tuple[Float[Array, ""], Metrics]:
    """Weighted mean DPO loss of a batch of pairs, and its metrics."""
    pairs = batch.preferences
    chosen_logp = trajectory_log_prob(params, pairs.chosen)
    rejected_logp = trajectory_log_prob(params, pairs.rejected)
    per_pair = losses.dpo(chosen_logp, rejected_logp, batch.ref_chosen_logp, batch.ref_rejected_logp, config.beta)
    mean = functools.partial(jnp.average, weights=pairs.weight)
    chosen_reward = losses.dpo_reward(chosen_logp, batch.ref_chosen_logp, config.beta)
    rejected_reward = losses.dpo_reward(rejected_logp, batch.ref_rejected_logp, config.beta)
    loss = mean(per_pair)
    return loss, Metrics(
        loss=loss,
        chosen_reward=mean(chosen_reward),
        rejected_reward=mean(rejected_reward),
        margin=mean(chosen_reward - rejected_reward),
        accuracy=mean(1.0 * (chosen_reward > rejected_reward)),
        true_return=None,
    )


def update(config: Config, data: Batch, state: TrainState, key: Key[Array, ""]) -> tuple[TrainState, Metrics]:
    """One gradient step on a minibatch of pairs."""
    index, weight = draw_minibatch(key, data.preferences.weight, config.batch_size)
    batch = jax.tree.map(lambda leaf: leaf[index], data)
    batch = batch.replace(preferences=batch.preferences.replace(weight=weight))
    grads, metrics = jax.grad(loss_fn, has_aux=True)(state.params, config, batch)
    updates, opt_state = optax.adam(config.learning_rate).update(grads, state.opt_state)
    return TrainState(optax.apply_updates(state.params, updates), opt_state), metrics


def train(
    task: Task,
    config: Config,
    key: Key[Array, ""],
    preferences: Preferences,
    init_params: Params,
    ref_params: Params,
) -> Result:
    """Train a policy, from `init_params`, on `preferences` of [N] pairs with `ref_params` as the reference."""
    logp = functools.partial(trajectory_log_prob, ref_params)
    data = Batch(
        preferences,
        ref_chosen_logp=jax.lax.map(logp, preferences.chosen, batch_size=LOGP_CHUNK),
        ref_rejected_logp=jax.lax.map(logp, preferences.rejected, batch_size=LOGP_CHUNK),
    )
    start = TrainState(init_params, optax.adam(config.learning_rate).init(init_params))

    def mean_return(state: TrainState, key: Key[Array, ""]) -> Float[Array, ""]:
        return evaluate(task, state.params, key, config.eval_episodes).mean()

    state, metrics, true_return = scan_updates(
        functools.partial(update, config, data), mean_return, start, key, config.num_updates, config.eval_every
    )
    return Result(state.params, metrics.replace(true_return=true_return))
