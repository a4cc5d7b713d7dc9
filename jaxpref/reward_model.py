"""A reward model fitted to preferences: the first half of RLHF.

    loss = mean over pairs of -log sigmoid(sum_t r(chosen_t) - sum_t r(rejected_t))

(Christiano et al., 2017, https://arxiv.org/abs/1706.03741), r a reward per step, summed over whole episodes.

Preferences fix a reward's order, not its scale, and where all episodes last equally long not its offset either. Where
they end at different times the offset decides everything: a positive reward per step tells an agent to go on, a
negative one to come to an end. Four things hold it to what the pairs say. The head starts at zero
(`networks.RewardModel`), so that the reward's first and largest part, its bias, is the one that ranks episodes by their
length alone; kernels decay and biases do not, so that wrong labels are outvoted by the bias before the kernels have
learned them by heart; returns are summed, never averaged, over steps; and PPO measures the reward in units of its mean
magnitude (`ppo.reward_magnitude`) without moving its offset.
"""

from __future__ import annotations

import dataclasses
import functools
import math

import jax
import jax.numpy as jnp
import optax
from flax import struct
from jaxtyping import Array, Float, Int, Key

from jaxpref import losses
from jaxpref.checks import check_config, check_count, check_key, check_range
from jaxpref.divergence import Divergence, find_divergence, param_size
from jaxpref.fast import packed
from jaxpref.fit import check_pairs
from jaxpref.networks import init_reward
from jaxpref.tasks import Task
from jaxpref.training import draw_minibatch, weighted_mean
from jaxpref.types import Params, Preferences, Scalar, target_of

CHECK_EVERY = 10
"""Updates between two looks at the held-out pairs."""


@struct.dataclass
class Config:
    """How a reward model is fitted to preferences: the first half of RLHF."""

    num_updates: int = struct.field(pytree_node=False, default=200)
    """Gradient steps."""
    batch_size: int = struct.field(pytree_node=False, default=32)
    """Pairs per update; 0 takes all of them in every update."""
    holdout_every: int = struct.field(pytree_node=False, default=0)
    """Early stopping: every n-th pair is not trained on, and the parameters are kept at which the loss of those pairs
    was least; 0: train on all pairs to the end."""
    learning_rate: Scalar = 3e-3
    """Step size of AdamW."""
    weight_decay: Scalar = 10.0
    """Decoupled: each update takes learning_rate * weight_decay of every kernel off; biases, which alone rank episodes
    by their length, are left free."""

    def __post_init__(self):
        check_range(self, 1, math.inf, "num_updates")
        check_range(self, 0, math.inf, "batch_size", "learning_rate", "weight_decay")
        if self.holdout_every != 0:  # at 1 no pair would be left to train on
            check_range(self, 2, math.inf, "holdout_every")


@struct.dataclass
class Metrics:
    """Of the pairs of one update, before the step: means over the pairs; and the largest magnitude of a parameter."""

    loss: Float[Array, "*batch"]
    margin: Float[Array, "*batch"]
    accuracy: Float[Array, "*batch"]
    param_size: Float[Array, "*batch"]


@struct.dataclass
class Result:
    """The fitted reward model, and how it came about."""

    params: Params
    metrics: Metrics
    divergence: Divergence


@struct.dataclass
class TrainState:
    """What one update hands to the next."""

    params: Params
    opt_state: optax.OptState


def optimiser(config: Config) -> optax.GradientTransformation:
    """AdamW, whose decay leaves biases alone."""
    return optax.adamw(config.learning_rate, weight_decay=config.weight_decay, mask=_is_kernel)


def _is_kernel(params: Params) -> Params:
    return jax.tree.map_with_path(lambda path, _: path[-1].key == "kernel", params)


@struct.dataclass
class Dataset:
    """N pairs, ready for updates: trajectory i is the i-th chosen, N + i the i-th rejected."""

    rows: packed.Rows
    weight: Float[Array, " N"]
    target: Float[Array, " N"]


def prepare(preferences: Preferences) -> Dataset:
    """Cut the pairs into rows."""
    rows = packed.pack(jax.tree.map(lambda *both: jnp.concatenate(both), preferences.chosen, preferences.rejected))
    return Dataset(rows, preferences.weight, target_of(preferences))


def loss_fn(
    params: Params, data: Dataset, index: Int[Array, " B"], weight: Float[Array, " B"]
) -> tuple[Float[Array, ""], Metrics]:
    """Weighted mean Bradley–Terry loss of the pairs at `index`, and its metrics."""
    both = jnp.concatenate([index, data.weight.shape[0] + index])
    chosen_return, rejected_return = jnp.split(packed.reward(params, data.rows, both), 2)
    mean = functools.partial(weighted_mean, weight=weight)
    margin, target = chosen_return - rejected_return, data.target[index]
    as_labelled = losses.bradley_terry(chosen_return, rejected_return)
    swapped = losses.bradley_terry(rejected_return, chosen_return)
    loss = mean(target * as_labelled + (1 - target) * swapped)
    return loss, Metrics(
        loss=loss,
        margin=mean(margin),
        accuracy=mean(1.0 * (margin > 0)),
        param_size=param_size(params),
    )


def update(config: Config, data: Dataset, state: TrainState, key: Key[Array, ""]) -> tuple[TrainState, Metrics]:
    """One gradient step on a minibatch of pairs."""
    index, weight = draw_minibatch(key, data.weight, config.batch_size)
    grads, metrics = jax.grad(loss_fn, has_aux=True)(state.params, data, index, weight)
    updates, opt_state = optimiser(config).update(grads, state.opt_state, state.params)
    return TrainState(optax.apply_updates(state.params, updates), opt_state), metrics


@struct.dataclass
class Kept:
    """The parameters that were best on the held-out pairs so far, and the loss they had there."""

    params: Params
    loss: Float[Array, ""]


def train(task: Task, config: Config, key: Key[Array, ""], preferences: Preferences) -> Result:
    """Fit a fresh reward model to `preferences` of [N] pairs.

    Raises TypeError or ValueError for pairs that are not of the task, and if `config.holdout_every` is more than N: no
    pair would be held out.
    """
    check_config(config, Config)
    check_key(key)
    check_pairs(task, preferences)
    num_pairs = preferences.weight.shape[0]
    if config.holdout_every > num_pairs:
        raise ValueError(f"holdout_every must be at most the number of pairs, {num_pairs}, got {config.holdout_every}")
    key_init, key_train = jax.random.split(key)
    params = init_reward(key_init, task)
    start = TrainState(params, optimiser(config).init(params))
    data, keys = prepare(preferences), jax.random.split(key_train, config.num_updates)
    if config.holdout_every == 0:
        state, metrics = jax.lax.scan(functools.partial(update, config, data), start, keys)
        params = state.params
    else:
        kept, metrics = _train_and_keep_best(config, data, start, keys)
        params = kept.params
    return Result(params, metrics, find_divergence(metrics.loss, metrics.param_size, params, config.num_updates))


def _train_and_keep_best(
    config: Config, data: Dataset, start: TrainState, keys: Key[Array, " U"]
) -> tuple[Kept, Metrics]:
    """Train on the pairs that are not held out; look at those that are before every CHECK_EVERY updates and at the
    end. Where none of them has weight there is nothing to look at, and the last parameters are kept.
    """
    held_out = jnp.arange(config.holdout_every - 1, data.weight.shape[0], config.holdout_every)
    step = functools.partial(update, config, dataclasses.replace(data, weight=data.weight.at[held_out].set(0.0)))

    def look(kept: Kept, params: Params) -> Kept:
        loss, _ = loss_fn(params, data, held_out, data.weight[held_out])
        better = (loss < kept.loss) | (data.weight[held_out].sum() == 0)
        return jax.tree.map(functools.partial(jnp.where, better), Kept(params, loss), kept)

    def block(carry, keys):
        state, kept = carry
        kept = look(kept, state.params)
        state, metrics = jax.lax.scan(step, state, keys)
        return (state, kept), metrics

    num_blocks, rest = divmod(config.num_updates, CHECK_EVERY)
    keys_of_blocks = keys[rest:].reshape(num_blocks, CHECK_EVERY)
    kept = Kept(start.params, jnp.float32(jnp.inf))
    state, first_metrics = jax.lax.scan(step, start, keys[:rest])
    (state, kept), metrics = jax.lax.scan(block, (state, kept), keys_of_blocks)
    metrics = jax.tree.map(lambda leaf: leaf.reshape(-1), metrics)
    metrics = jax.tree.map(lambda *both: jnp.concatenate(both), first_metrics, metrics)
    return look(kept, state.params), metrics


def train_ensemble(
    task: Task, config: Config, key: Key[Array, ""], preferences: Preferences, num_members: int
) -> Result:
    """`num_members` reward models, each from a start and with weights of its own: leading axis M in the result.

    The weights are those of the pairs times Exponential(1) numbers: the Bayesian bootstrap (Rubin, 1981), which
    resamples also where most pairs have weight zero and leaves no pair out. Where the members disagree, the data do
    not decide. `apply_reward` takes their mean. Errors as in `train`, and for fewer than one member.
    """
    check_count(num_members, "num_members")
    check_key(key)
    check_pairs(task, preferences)
    key_weight, key_train = jax.random.split(key)
    weight = preferences.weight * jax.random.exponential(key_weight, (num_members, *preferences.weight.shape))
    members = jax.vmap(lambda key, weight: train(task, config, key, dataclasses.replace(preferences, weight=weight)))
    return members(jax.random.split(key_train, num_members), weight)
