"""Direct Preference Optimisation on whole trajectories: preferences straight to a policy, no reward model.

    loss = mean over pairs of -log sigmoid(beta * [log pi/ref (chosen) - log pi/ref (rejected)])

(Rafailov et al., 2023), with log pi of a trajectory the sum over its steps: the environment's own transition
probabilities are the same for policy and reference and cancel. Labels are smoothed a little by default: without it,
updates go on to widen the margins of pairs that are ranked right already, and the policy drifts off (see
`losses.conservative_dpo`).
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax
from flax import struct
from jaxtyping import Array, Float, Int, Key

from jaxpref import losses
from jaxpref.checks import check_choice, check_config, check_key, check_range, check_schedule
from jaxpref.divergence import Divergence, find_divergence, param_size
from jaxpref.fast import packed
from jaxpref.fit import check_pairs, check_policy
from jaxpref.rollout import evaluate
from jaxpref.tasks import Task
from jaxpref.training import draw_minibatch, scan_updates, weighted_mean
from jaxpref.types import Params, Preferences, Scalar, target_of

LOSSES = ("conservative", "sigmoid", "robust", "hinge", "ipo", "sigmoid_per_step", "ipo_per_step", "cloning")
"""Those of `losses`, by name."""
PER_STEP = ("sigmoid_per_step", "ipo_per_step")
"""Those of per-step means of the log-probabilities."""

LogProbs = Float[Array, " B"]
PairLoss = Callable[[LogProbs, LogProbs, LogProbs, LogProbs, Scalar], LogProbs]
"""(chosen_logp, rejected_logp, ref_chosen_logp, ref_rejected_logp, beta) -> one value per pair, all of them [B]."""
Loss = str | PairLoss


@struct.dataclass
class Config:
    """How DPO trains a policy on preferences."""

    num_updates: int = struct.field(pytree_node=False, default=150)
    """Gradient steps, a multiple of eval_every."""
    batch_size: int = struct.field(pytree_node=False, default=64)
    """Pairs per update; 0 takes all of them in every update."""
    eval_every: int = struct.field(pytree_node=False, default=15)
    """Updates between two evaluations of the true return."""
    eval_episodes: int = struct.field(pytree_node=False, default=16)
    """Episodes per evaluation; 0: none, so that nothing is ever played."""
    loss: Loss = struct.field(pytree_node=False, default="conservative")
    """What is minimised: "sigmoid" is plain DPO, "conservative" and "robust" allow for wrong labels, "hinge" and "ipo"
    bound the margin, "sigmoid_per_step" and "ipo_per_step" do not count an episode's length; "cloning", the control,
    never looks at the rejected trajectory. In Python also a function of one's own, a `PairLoss` of whole trajectories'
    log-probabilities."""
    learning_rate: Scalar = 5e-3
    """Step size of Adam."""
    beta: Scalar = 0.1
    """How strongly the policy is held to the reference: the scale of the implicit reward, per nat."""
    label_smoothing: Scalar = 0.05
    """Probability that a label is taken to be wrong; at 0 "conservative" and "robust" are "sigmoid"."""

    def __post_init__(self):
        check_schedule(self)
        if not callable(self.loss):
            check_choice(self, "loss", LOSSES)
        check_range(self, 0, math.inf, "eval_episodes", "batch_size", "learning_rate", "beta")
        if self.loss in ("ipo", "ipo_per_step"):
            check_range(self, 1e-6, math.inf, "beta")  # its aim is 1 / (2 * beta)
        check_range(self, 0, 0.49 if self.loss == "robust" else 0.5, "label_smoothing")


@struct.dataclass
class PairMetrics:
    """Of the pairs of one update, before the step: means over the pairs; and the largest magnitude of a parameter."""

    loss: Float[Array, "*batch"]
    chosen_reward: Float[Array, "*batch"]
    rejected_reward: Float[Array, "*batch"]
    margin: Float[Array, "*batch"]
    accuracy: Float[Array, "*batch"]
    param_size: Float[Array, "*batch"]


@struct.dataclass
class Metrics(PairMetrics):
    """Those of every update [U], and the mean true return every `eval_every` updates [E], None without evaluations."""

    true_return: Float[Array, "*batch E"] | None


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


@struct.dataclass
class Dataset:
    """N pairs, ready for updates: trajectory i is the i-th chosen, N + i the i-th rejected."""

    rows: packed.Rows
    ref_logp: Float[Array, " 2N"]
    num_steps: Float[Array, " 2N"]
    weight: Float[Array, " N"]
    target: Float[Array, " N"]


def prepare(preferences: Preferences, ref_params: Params) -> Dataset:
    """Cut the pairs into rows, and compute the reference's log-probabilities once and for all."""
    rows = packed.pack(jax.tree.map(lambda *both: jnp.concatenate(both), preferences.chosen, preferences.rejected))
    everything = jnp.arange(rows.mask.shape[0])
    return Dataset(
        rows=rows,
        ref_logp=packed.log_prob(ref_params, rows, everything),
        num_steps=1.0 * rows.mask.sum((-1, -2)),
        weight=preferences.weight,
        target=target_of(preferences),
    )


def pair_loss(
    config: Config,
    chosen_logp: Float[Array, " B"],
    rejected_logp: Float[Array, " B"],
    ref_chosen_logp: Float[Array, " B"],
    ref_rejected_logp: Float[Array, " B"],
) -> Float[Array, " B"]:
    """The config's loss of each pair.

    Raises ValueError if it is a function of the user's own that does not return one value per pair.
    """
    logps = chosen_logp, rejected_logp, ref_chosen_logp, ref_rejected_logp
    if not isinstance(config.loss, str):
        values = config.loss(*logps, config.beta)
        if jnp.shape(values) != chosen_logp.shape:
            raise ValueError(
                f"dpo.Config: loss must return one value per pair, {list(chosen_logp.shape)}, and not their mean; "
                f"got {list(jnp.shape(values))}"
            )
        return values
    match config.loss.removesuffix("_per_step"):
        case "sigmoid":
            return losses.dpo(*logps, config.beta)
        case "conservative":
            return losses.conservative_dpo(*logps, config.beta, config.label_smoothing)
        case "robust":
            return losses.robust_dpo(*logps, config.beta, config.label_smoothing)
        case "hinge":
            return losses.hinge_dpo(*logps, config.beta)
        case "ipo":
            return losses.ipo(*logps, config.beta)
        case _:
            return losses.cloning(chosen_logp)


def loss_fn(
    params: Params, config: Config, data: Dataset, index: Int[Array, " B"], weight: Float[Array, " B"]
) -> tuple[Float[Array, ""], PairMetrics]:
    """Weighted mean loss of the pairs at `index`, and its metrics.

    A pair's target t, 0.5 for a tie, mixes both orders: t * loss(chosen, rejected) + (1 - t) * loss(rejected, chosen).
    """
    both = jnp.concatenate([index, data.weight.shape[0] + index])
    logp, ref_logp, num_steps = packed.log_prob(params, data.rows, both), data.ref_logp[both], data.num_steps[both]
    if config.loss in (*PER_STEP, "cloning"):
        logp, ref_logp = losses.per_step(logp, num_steps), losses.per_step(ref_logp, num_steps)
    chosen_logp, rejected_logp = jnp.split(logp, 2)
    ref_chosen_logp, ref_rejected_logp = jnp.split(ref_logp, 2)
    mean = functools.partial(weighted_mean, weight=weight)
    as_labelled = pair_loss(config, chosen_logp, rejected_logp, ref_chosen_logp, ref_rejected_logp)
    swapped = pair_loss(config, rejected_logp, chosen_logp, ref_rejected_logp, ref_chosen_logp)
    target = data.target[index]
    loss = mean(target * as_labelled + (1 - target) * swapped)
    chosen_reward = losses.dpo_reward(chosen_logp, ref_chosen_logp, config.beta)
    rejected_reward = losses.dpo_reward(rejected_logp, ref_rejected_logp, config.beta)
    return loss, PairMetrics(
        loss=loss,
        chosen_reward=mean(chosen_reward),
        rejected_reward=mean(rejected_reward),
        margin=mean(chosen_reward - rejected_reward),
        accuracy=mean(1.0 * (chosen_reward > rejected_reward)),
        param_size=param_size(params),
    )


def update(config: Config, data: Dataset, state: TrainState, key: Key[Array, ""]) -> tuple[TrainState, PairMetrics]:
    """One gradient step on a minibatch of pairs."""
    index, weight = draw_minibatch(key, data.weight, config.batch_size)
    grads, metrics = jax.grad(loss_fn, has_aux=True)(state.params, config, data, index, weight)
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
    """Train a policy, from `init_params`, on `preferences` of [N] pairs with `ref_params` as the reference.

    The task is played only to report true returns: with `config.eval_episodes` 0 training is offline, and
    `tasks.offline` is task enough. Raises TypeError or ValueError for arguments that do not belong to the task or do
    not fit each other.
    """
    check_config(config, Config)
    check_key(key)
    check_pairs(task, preferences)
    check_policy(task, init_params, "init_params")
    check_policy(task, ref_params, "ref_params")
    data = prepare(preferences, ref_params)
    start = TrainState(init_params, optax.adam(config.learning_rate).init(init_params))

    def mean_return(state: TrainState, key: Key[Array, ""]) -> Float[Array, ""] | None:
        if config.eval_episodes == 0:
            return None
        return evaluate(task, state.params, key, config.eval_episodes).mean()

    state, metrics, true_return = scan_updates(
        functools.partial(update, config, data), mean_return, start, key, config.num_updates, config.eval_every
    )
    astray = find_divergence(metrics.loss, metrics.param_size, state.params, config.num_updates)
    return Result(state.params, Metrics(**vars(metrics), true_return=true_return), astray)
