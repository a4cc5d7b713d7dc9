"""What the trainers share: datasets and minibatches of pairs, and updates in a scan with evaluations between them."""

from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import struct
from jaxtyping import Array, Float, Int, Key

from jaxpref.divergence import Divergence
from jaxpref.fast import packed
from jaxpref.fast.keys import fast_key
from jaxpref.networks import Network
from jaxpref.preferences import draw_index
from jaxpref.tasks import Task
from jaxpref.types import Preferences


@struct.dataclass
class Result:
    """What was trained, with its metrics: a policy, or a reward model."""

    params: Network
    metrics: Any
    divergence: Divergence


@struct.dataclass
class TrainState:
    """What one update passes to the next."""

    params: Network
    opt_state: optax.OptState


@struct.dataclass
class Pairs:
    """N pairs, ready for updates: trajectory i is the i-th chosen one, N + i the i-th rejected one.

    ref_logp:  [2N], the reference's log-probability of each trajectory; None where there is no reference.
    """

    rows: packed.Rows
    num_steps: Float[Array, " 2N"]
    weight: Float[Array, " N"]
    target: Float[Array, " N"]
    ref_logp: Any = None


def prepare(
    task: Task, preferences: Preferences, ref_params: Network | None = None, use_next_obs: bool = False
) -> Pairs:
    """Cut the pairs into rows, and compute a reference's log-probabilities, once for all updates."""
    both = jax.tree.map(lambda *leaves: jnp.concatenate(leaves), preferences.chosen, preferences.rejected)
    rows, num_steps = packed.pack(both, task.num_actions, use_next_obs), 1.0 * both.mask.sum(-1)
    target = jnp.ones_like(preferences.weight) if preferences.target is None else preferences.target
    ref_logp = None if ref_params is None else packed.log_prob(ref_params, rows, jnp.arange(num_steps.shape[0]))
    return Pairs(rows, num_steps, preferences.weight, target, ref_logp)


def scan_updates(update: Callable, evaluate: Callable, state: Any, key: Key[Array, ""], config: Any) -> tuple:
    """Make `config.num_updates` updates, with an evaluation after every `config.eval_every` of them.

    `update` is (state, key) -> (state, metrics), and `evaluate` is (state, key) -> evaluation. Returns the last state,
    the metrics of every update [U, ...] and the evaluations [U / eval_every, ...], the last one of the last state.
    """

    def block(state, key):
        key_update, key_eval = jax.random.split(key)
        state, metrics = jax.lax.scan(update, state, jax.random.split(key_update, config.eval_every))
        return state, (metrics, evaluate(state, key_eval))

    keys = jax.random.split(fast_key(key), config.num_updates // config.eval_every)
    state, (metrics, evaluation) = jax.lax.scan(block, state, keys)
    return state, jax.tree.map(lambda leaf: leaf.reshape(-1, *leaf.shape[2:]), metrics), evaluation


def schedule_problems(config: Any) -> Iterator[tuple[str, str]]:
    """Yield the problem of a config whose `eval_every` does not divide its `num_updates`."""
    if config.num_updates % config.eval_every:
        yield "num_updates", f"must be a multiple of eval_every, got {config.num_updates} and {config.eval_every}"


def make_optimiser(config: Any) -> optax.GradientTransformation:
    """Make the config's optimiser of its learning rate; Adam, if it has none."""
    return (config.optimiser or optax.adam)(config.learning_rate)


def draw_minibatch(
    key: Key[Array, ""], weight: Float[Array, " N"], batch_size: int
) -> tuple[Int[Array, " B"], Float[Array, " B"]]:
    """Draw (index, weight) of the pairs of one update.

    `batch_size` pairs are drawn in proportion to their weight and then count alike. `batch_size` 0 takes all pairs
    with their own weights. Where no pair has weight, the minibatch has none either.
    """
    if batch_size == 0:
        return jnp.arange(weight.shape[0]), weight
    any_answer = 1.0 * (weight.sum() > 0)
    return draw_index(key, weight, batch_size), jnp.broadcast_to(any_answer, batch_size)


def weighted_mean(values: Float[Array, " B"], weight: Float[Array, " B"]) -> Float[Array, ""]:
    """Compute sum(w x) / sum(w). It is 0 where there is no weight: nothing is learned from no answers."""
    total = weight.sum()
    return jnp.where(weight > 0, weight * values, 0.0).sum() / jnp.where(total > 0, total, 1.0)
