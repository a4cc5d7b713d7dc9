"""Direct Preference Optimisation on whole trajectories: from preferences to a policy, without a reward model.

    loss = mean over pairs of -log sigmoid(beta * [log pi/ref (chosen) - log pi/ref (rejected)])

(Rafailov et al., 2023). log pi of a trajectory is the sum over its steps. The environment's transition probabilities
are the same for policy and reference, so they cancel.

With this loss alone, the policy moves too far from the reference. The default loss prevents two causes of this:

- The margins of pairs that are already ranked right grow for ever. So the labels are smoothed a little.
- Both trajectories of a pair may become less likely. So the loss has a second term: minus the mean
  log-probability of the chosen steps.
"""

import functools
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from flax import struct
from jaxtyping import Array, Float, Int, Key

from jaxpref import losses, training
from jaxpref.checks import check_config, check_key, setting
from jaxpref.divergence import find_divergence, param_size
from jaxpref.fast import packed
from jaxpref.networks import Network, check_policy
from jaxpref.preferences import check_pairs
from jaxpref.rollout import evaluate
from jaxpref.tasks import Task
from jaxpref.training import Pairs, Result, TrainState, draw_minibatch, prepare, scan_updates, weighted_mean
from jaxpref.types import Optimiser, Preferences, Scalar

PerPair = Float[Array, " B"]


@struct.dataclass
class PairLogProbs:
    """The inputs of a loss of B pairs: log-probabilities of whole trajectories, in nats, or means of their steps.

    chosen_steps, rejected_steps:  how many steps were played.
    target:  the probability that the label is right.
    """

    chosen_logp: PerPair
    rejected_logp: PerPair
    ref_chosen_logp: PerPair
    ref_rejected_logp: PerPair
    chosen_steps: PerPair
    rejected_steps: PerPair
    target: PerPair

    def margin(self) -> PerPair:
        """Compute `losses.margin` of each pair."""
        return losses.margin(self.chosen_logp, self.rejected_logp, self.ref_chosen_logp, self.ref_rejected_logp)

    def chosen_nll(self) -> PerPair:
        """Compute minus the mean log-ratio of a chosen step: its negative log-likelihood, 0 for the reference.

        It is the second term of RPO (Pang et al., 2024, https://arxiv.org/abs/2404.19733, equation 1; Liu et al., 2024,
        https://arxiv.org/abs/2405.16436), which keeps the chosen trajectory likely. The reference only shifts it.
        """
        return losses.cloning(losses.per_step(self.chosen_logp - self.ref_chosen_logp, self.chosen_steps))

    def swap(self) -> "PairLogProbs":
        """Return the same pairs with the opposite labels."""
        logps = self.rejected_logp, self.chosen_logp, self.ref_rejected_logp, self.ref_chosen_logp
        return PairLogProbs(*logps, self.rejected_steps, self.chosen_steps, 1 - self.target)


PairLoss = Callable[[PairLogProbs, Scalar], PerPair]
"""(pairs, beta) -> one value per pair."""
Loss = str | PairLoss


class NamedLoss(NamedTuple):
    """What DPO needs to know about a loss.

    value:     (pairs, config) -> one value per pair.
    target:    (target, label_smoothing) -> the target that this loss learns.
    per_step:  whether it gets mean log-probabilities of a step (`losses.per_step`), not those of whole trajectories.
    """

    value: Callable[[PairLogProbs, Any], PerPair]
    target: Callable[[PerPair, Scalar], PerPair] = lambda target, label_smoothing: target
    per_step: bool = False


def of_margin(loss: Callable[[PerPair, Scalar], PerPair]) -> Callable[[PairLogProbs, Any], PerPair]:
    """Make a loss of pairs from a loss of their margins."""
    return lambda pairs, config: loss(pairs.margin(), config.beta)


SIGMOID = of_margin(losses.sigmoid)
LOSSES = {
    "rpo": NamedLoss(
        lambda pairs, config: SIGMOID(pairs, config) + config.nll_coef * pairs.chosen_nll(), losses.smoothed_target
    ),
    "conservative": NamedLoss(SIGMOID, losses.smoothed_target),
    "sigmoid": NamedLoss(SIGMOID),
    "robust": NamedLoss(SIGMOID, losses.robust_target),
    "hinge": NamedLoss(of_margin(losses.hinge)),
    "ipo": NamedLoss(of_margin(losses.ipo)),
    "sigmoid_per_step": NamedLoss(SIGMOID, per_step=True),
    "ipo_per_step": NamedLoss(of_margin(losses.ipo), per_step=True),
    "cpl": NamedLoss(lambda pairs, c: losses.cpl(pairs.chosen_logp, pairs.rejected_logp, c.beta, c.contrastive_bias)),
    "cloning": NamedLoss(lambda pairs, _: losses.cloning(pairs.chosen_logp), lambda target, _: jnp.ones_like(target)),
}
"""The losses that a config can name."""


@struct.dataclass
class Config:
    """How DPO trains a policy on preferences."""

    num_updates: int = setting(150, low=1)
    """Gradient steps, a multiple of eval_every."""
    batch_size: int = setting(64, low=0)
    """Pairs per update; 0: all pairs in every update."""
    eval_every: int = setting(15, low=1)
    """Updates between two evaluations of the true return."""
    eval_episodes: int = setting(16, low=0)
    """Episodes per evaluation; 0: no evaluation, the task is never played."""
    loss: Loss = setting("rpo", choices=tuple(LOSSES))
    """What is minimised. "sigmoid" is plain DPO. "conservative" and "robust" allow for wrong labels. "rpo" is
    "conservative" and keeps the chosen trajectory likely. "hinge" and "ipo" bound the margin. "sigmoid_per_step" and
    "ipo_per_step" ignore the length of an episode. "cpl" has no reference. "cloning", the control, ignores the rejected
    trajectory. In Python a loss may also be a function, a `PairLoss`."""
    optimiser: Optimiser | None = setting(None)
    """A function of the learning rate, such as `optax.sgd`; None: Adam."""
    learning_rate: Scalar = setting(5e-3, low=0)
    """Step size of the optimiser."""
    beta: Scalar = setting(0.03, low=0)
    """How strongly the policy is held to the reference: the scale of the implicit reward, per nat."""
    label_smoothing: Scalar = setting(0.05, low=0, high=0.5)
    """Assumed probability of a wrong label, for "conservative", "rpo" and "robust"."""
    nll_coef: Scalar = setting(1.0, low=0)
    """Weight of the mean negative log-probability of the chosen steps, for "rpo"; at 0 it is "conservative"."""
    contrastive_bias: Scalar = setting(1.0, low=0, high=1)
    """Weight of the rejected log-probability in "cpl". Below 1, likely trajectories have a smaller loss."""

    def problems(self) -> Iterator[tuple[str, str]]:
        """Yield what is wrong with a combination of settings."""
        yield from training.schedule_problems(self)
        if self.loss in ("ipo", "ipo_per_step") and isinstance(self.beta, int | float) and self.beta < 1e-6:
            yield "beta", f"must be at least 1e-06 for loss {self.loss}, which aims at 1 / (2 * beta), got {self.beta}"
        if self.loss == "robust" and isinstance(self.label_smoothing, int | float) and self.label_smoothing > 0.49:
            yield "label_smoothing", f"must be at most 0.49 for loss robust, got {self.label_smoothing}"


@struct.dataclass
class Metrics:
    """Means over the pairs of every update [U], before the step. Rewards are `losses.dpo_reward`, whatever the loss.

    param_size:   largest magnitude of a parameter.
    true_return:  mean true return after every `eval_every` updates [E]; None without evaluations.
    """

    loss: Float[Array, "*batch"]
    chosen_reward: Float[Array, "*batch"]
    rejected_reward: Float[Array, "*batch"]
    margin: Float[Array, "*batch"]
    accuracy: Float[Array, "*batch"]
    param_size: Float[Array, "*batch"]
    true_return: Float[Array, "*batch E"] | None = None


def loss_of(config: Config) -> NamedLoss:
    """Return the config's loss, a custom one, too."""
    return NamedLoss(lambda pairs, c: c.loss(pairs, c.beta)) if callable(config.loss) else LOSSES[config.loss]


def pair_loss(config: Config, pairs: PairLogProbs) -> PerPair:
    """Compute each pair's loss: target * loss(pairs) + (1 - target) * loss(swapped pairs).

    This rule holds for every loss, also for a custom one. So a loss need not use the target. If a loss uses it and has
    the same value for the swapped pairs, the rule changes nothing.
    """
    loss = loss_of(config)
    as_labelled, swapped = loss.value(pairs, config), loss.value(pairs.swap(), config)
    if jnp.shape(as_labelled) != pairs.target.shape:
        got = list(jnp.shape(as_labelled))
        raise ValueError(f"dpo.Config: loss must return one value per pair, {list(pairs.target.shape)}, got {got}")
    target = loss.target(pairs.target, config.label_smoothing)
    return target * as_labelled + (1 - target) * swapped


def pair_log_probs(params: Network, config: Config, data: Pairs, index: Int[Array, " B"]) -> PairLogProbs:
    """Compute the inputs of the loss for the pairs at `index`."""
    both = jnp.concatenate([index, data.weight.shape[0] + index])
    logp, ref_logp, num_steps = packed.log_prob(params, data.rows, both), data.ref_logp[both], data.num_steps[both]
    if loss_of(config).per_step:
        logp, ref_logp = losses.per_step(logp, num_steps), losses.per_step(ref_logp, num_steps)
    (chosen_logp, rejected_logp), (ref_chosen_logp, ref_rejected_logp) = jnp.split(logp, 2), jnp.split(ref_logp, 2)
    chosen_steps, rejected_steps = jnp.split(num_steps, 2)
    logps = chosen_logp, rejected_logp, ref_chosen_logp, ref_rejected_logp
    return PairLogProbs(*logps, chosen_steps, rejected_steps, data.target[index])


def loss_fn(
    params: Network, config: Config, data: Pairs, index: Int[Array, " B"], weight: Float[Array, " B"]
) -> tuple[Float[Array, ""], Metrics]:
    """Compute the weighted mean loss of the pairs at `index`, and their metrics."""
    pairs = pair_log_probs(params, config, data, index)
    mean = functools.partial(weighted_mean, weight=weight)
    loss = mean(pair_loss(config, pairs))
    chosen_reward = losses.dpo_reward(pairs.chosen_logp, pairs.ref_chosen_logp, config.beta)
    rejected_reward = losses.dpo_reward(pairs.rejected_logp, pairs.ref_rejected_logp, config.beta)
    return loss, Metrics(
        loss=loss,
        chosen_reward=mean(chosen_reward),
        rejected_reward=mean(rejected_reward),
        margin=mean(chosen_reward - rejected_reward),
        accuracy=mean(1.0 * (chosen_reward > rejected_reward)),
        param_size=param_size(params),
    )


def update(config: Config, data: Pairs, state: TrainState, key: Key[Array, ""]) -> tuple[TrainState, Metrics]:
    """Make one gradient step on a minibatch of pairs."""
    index, weight = draw_minibatch(key, data.weight, config.batch_size)
    grads, metrics = jax.grad(loss_fn, has_aux=True)(state.params, config, data, index, weight)
    updates, opt_state = training.make_optimiser(config).update(grads, state.opt_state, state.params)
    return TrainState(optax.apply_updates(state.params, updates), opt_state), metrics


def train(
    task: Task, config: Config, key: Key[Array, ""], preferences: Preferences, init_params: Network, ref_params: Network
) -> Result:
    """Train a policy on `preferences` of [N] pairs, from `init_params`, with `ref_params` as the reference.

    The task is played only to report true returns. With `config.eval_episodes` 0 it is never played, and a task of
    `tasks.offline` is enough.
    """
    check_config(config, Config)
    check_key(key)
    check_pairs(task, preferences)
    check_policy(task, init_params, "init_params")
    check_policy(task, ref_params, "ref_params")
    data = prepare(task, preferences, ref_params)
    start = TrainState(init_params, training.make_optimiser(config).init(init_params))

    def mean_return(state: TrainState, key: Key[Array, ""]) -> Float[Array, ""] | None:
        if config.eval_episodes == 0:
            return None
        return evaluate(task, state.params, key, config.eval_episodes).mean()

    step = functools.partial(update, config, data)
    state, metrics, true_return = scan_updates(step, mean_return, start, key, config)
    divergence = find_divergence(metrics, state.params, config.num_updates)
    return Result(state.params, metrics.replace(true_return=true_return), divergence)
