"""A reward model fitted to preferences: the first half of RLHF.

    loss = mean over pairs of -log sigmoid(sum_t r(chosen_t) - sum_t r(rejected_t))

(Christiano et al., 2017, https://arxiv.org/abs/1706.03741), r a reward per step, summed over whole episodes.
"""

from __future__ import annotations

import functools
import math

import jax
import jax.numpy as jnp
import optax
from flax import struct
from jaxtyping import Array, Float, Int, Key

from jaxpref import losses, packed
from jaxpref.networks import init_reward
from jaxpref.tasks import Task
from jaxpref.training import check_range, draw_minibatch
from jaxpref.types import Params, Preferences, Scalar


@struct.dataclass
class Config:
    """How to train."""

    num_updates: int = struct.field(pytree_node=False, default=200)
    """Gradient steps."""
    batch_size: int = struct.field(pytree_node=False, default=32)
    """Pairs per update; 0 takes all of them in every update."""
    learning_rate: Scalar = 3e-3
    """Of AdamW."""
    weight_decay: Scalar = 0.0
    """Decoupled, on kernels and biases."""

    def __post_init__(self):
        check_range(self, 1, math.inf, "num_updates")
        check_range(self, 0, math.inf, "batch_size", "learning_rate", "weight_decay")


@struct.dataclass
class Metrics:
    """Of the pairs of one update, before the step: means over the pairs."""

    loss: Float[Array, "*batch"]
    margin: Float[Array, "*batch"]
    accuracy: Float[Array, "*batch"]


@struct.dataclass
class Result:
    """The fitted reward model, and how it came about."""

    params: Params
    metrics: Metrics


@struct.dataclass
class TrainState:
    """What one update hands to the next."""

    params: Params
    opt_state: optax.OptState


def optimiser(config: Config) -> optax.GradientTransformation:
    """AdamW."""
    return optax.adamw(config.learning_rate, weight_decay=config.weight_decay)


@struct.dataclass
class Dataset:
    """N pairs, ready for updates: trajectory i is the i-th chosen, N + i the i-th rejected."""

    rows: packed.Rows
    weight: Float[Array, " N"]


def prepare(preferences: Preferences) -> Dataset:
    """Cut the pairs into rows."""
    rows = packed.pack(jax.tree.map(lambda *both: jnp.concatenate(both), preferences.chosen, preferences.rejected))
    return Dataset(rows, preferences.weight)


def loss_fn(
    params: Params, data: Dataset, index: Int[Array, " B"], weight: Float[Array, " B"]
) -> tuple[Float[Array, ""], Metrics]:
    """Weighted mean Bradley–Terry loss of the pairs at `index`, and its metrics."""
    both = jnp.concatenate([index, data.weight.shape[0] + index])
    chosen_return, rejected_return = jnp.split(packed.reward(params, data.rows, both), 2)
    mean = functools.partial(jnp.average, weights=weight)
    loss = mean(losses.bradley_terry(chosen_return, rejected_return))
    margin = chosen_return - rejected_return
    return loss, Metrics(loss=loss, margin=mean(margin), accuracy=mean(1.0 * (margin > 0)))


def update(config: Config, data: Dataset, state: TrainState, key: Key[Array, ""]) -> tuple[TrainState, Metrics]:
    """One gradient step on a minibatch of pairs."""
    index, weight = draw_minibatch(key, data.weight, config.batch_size)
    grads, metrics = jax.grad(loss_fn, has_aux=True)(state.params, data, index, weight)
    updates, opt_state = optimiser(config).update(grads, state.opt_state, state.params)
    return TrainState(optax.apply_updates(state.params, updates), opt_state), metrics


def train(task: Task, config: Config, key: Key[Array, ""], preferences: Preferences) -> Result:
    """Fit a fresh reward model to `preferences` of [N] pairs."""
    key_init, key_train = jax.random.split(key)
    params = init_reward(key_init, task)
    start = TrainState(params, optimiser(config).init(params))
    step = functools.partial(update, config, prepare(preferences))
    state, metrics = jax.lax.scan(step, start, jax.random.split(key_train, config.num_updates))
    return Result(state.params, metrics)
