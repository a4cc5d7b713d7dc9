"""Compute losses: functions of arrays that know no network and no config, with one value per pair or per step.

The caller averages, because only the caller knows the weights and the masks. Arrays of different shapes raise
ValueError: [N] and [N, 1] would broadcast to [N, N].

The losses of the DPO family are functions of one number per pair, the margin, and of beta. The margin of a swapped
pair is minus the margin. A pair's target t is the probability that its label is right. The loss of a pair is

    t * loss(pair) + (1 - t) * loss(swapped pair)

Label smoothing and robustness to wrong labels are changes of the target, not other losses.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxpref.checks import check_same_shape
from jaxpref.types import Scalar

Values = Float[Array, "*batch"]
"""One number per pair or per step."""


def margin(chosen_logp: Values, rejected_logp: Values, ref_chosen_logp: Values, ref_rejected_logp: Values) -> Values:
    """Compute (chosen_logp - ref_chosen_logp) - (rejected_logp - ref_rejected_logp), in nats."""
    check_same_shape(
        chosen_logp=chosen_logp,
        rejected_logp=rejected_logp,
        ref_chosen_logp=ref_chosen_logp,
        ref_rejected_logp=ref_rejected_logp,
    )
    return (chosen_logp - ref_chosen_logp) - (rejected_logp - ref_rejected_logp)


def sigmoid(margin: Values, beta: Scalar) -> Values:
    """Compute DPO's loss (Rafailov et al., 2023, https://arxiv.org/abs/2305.18290, equation 7).

    -log sigmoid(beta * margin)
    """
    return jax.nn.softplus(-beta * margin)


def hinge(margin: Values, beta: Scalar) -> Values:
    """Compute SLiC's loss (Zhao et al., 2023, https://arxiv.org/abs/2305.10425) of DPO's margin.

    max(0, 1 - beta * margin), as in Liu et al., 2024, https://arxiv.org/abs/2309.06657, section 3.2.
    """
    return jax.nn.relu(1 - beta * margin)


def ipo(margin: Values, beta: Scalar) -> Values:
    """Compute IPO's loss (Azar et al., 2023, https://arxiv.org/abs/2310.12036, equation 17).

    (margin - 1 / (2 * beta)) ** 2. IPO aims at a finite margin. DPO's loss falls for ever as the margin grows.
    """
    return (margin - 1 / (2 * beta)) ** 2


def cpl(chosen_logp: Values, rejected_logp: Values, alpha: Scalar, bias: Scalar = 1.0) -> Values:
    """Compute CPL's loss (Hejna et al., 2024, https://arxiv.org/abs/2310.13639, equation 5), which has no reference.

    -log [exp(alpha * chosen_logp) / (exp(alpha * chosen_logp) + exp(bias * alpha * rejected_logp))]

    A `bias` below 1, the paper's lambda, is its regularised form CPL(lambda): making both trajectories unlikely raises
    the loss. The paper's sums are over segments and discounted by gamma. A logp is not discounted.
    """
    check_same_shape(chosen_logp=chosen_logp, rejected_logp=rejected_logp)
    return jax.nn.softplus(alpha * (bias * rejected_logp - chosen_logp))


def smoothed_target(target: Values, label_smoothing: Scalar) -> Values:
    """Compute (1 - label_smoothing) * target + label_smoothing * (1 - target).

    With `sigmoid` this is "conservative DPO" (Mitchell, 2023, https://ericmitchell.ai/cdpo.pdf, equation 2): the
    cross-entropy to a label that is wrong with probability `label_smoothing`. The loss is least at the finite
    beta * margin = ln((1 - label_smoothing) / label_smoothing).
    """
    return (1 - label_smoothing) * target + label_smoothing * (1 - target)


def robust_target(target: Values, label_smoothing: Scalar) -> Values:
    """Compute (target - label_smoothing) / (1 - 2 * label_smoothing), for a label_smoothing below 0.5.

    With `sigmoid` this is "robust DPO" (Chowdhury et al., 2024, https://arxiv.org/abs/2403.00409, equation 12). Its
    expectation over labels that are flipped with probability `label_smoothing` is the loss of the right label. It has
    no lower bound.
    """
    return (target - label_smoothing) / (1 - 2 * label_smoothing)


def dpo(
    chosen_logp: Values, rejected_logp: Values, ref_chosen_logp: Values, ref_rejected_logp: Values, beta: Scalar
) -> Values:
    """Compute the DPO loss of log-probabilities of whole trajectories: `sigmoid` of their `margin`."""
    return sigmoid(margin(chosen_logp, rejected_logp, ref_chosen_logp, ref_rejected_logp), beta)


def dpo_reward(logp: Values, ref_logp: Values, beta: Scalar) -> Values:
    """Compute DPO's implicit reward of a trajectory, beta * (logp - ref_logp).

    It is the reward up to a constant that depends on the initial state only.
    """
    check_same_shape(logp=logp, ref_logp=ref_logp)
    return beta * (logp - ref_logp)


def per_step(logp: Values, num_steps: Values) -> Values:
    """Compute the mean log-probability of a step; 0 for a trajectory without steps.

    A margin of these means is length-normalised (Meng et al., 2024, https://arxiv.org/abs/2405.14734, equation 3):
    long episodes do not count more. beta is then per nat per step, larger by about the length of an episode.
    """
    check_same_shape(logp=logp, num_steps=num_steps)
    return logp / jnp.maximum(num_steps, 1)


def cloning(chosen_logp: Values) -> Values:
    """Compute -chosen_logp: behaviour cloning of the chosen trajectory (Pomerleau, 1989)."""
    return -chosen_logp


def bradley_terry(chosen_return: Values, rejected_return: Values) -> Values:
    """Compute -log sigmoid(chosen_return - rejected_return), the label's negative log-likelihood (Bradley & Terry)."""
    check_same_shape(chosen_return=chosen_return, rejected_return=rejected_return)
    return jax.nn.softplus(rejected_return - chosen_return)


def policy_gradient(log_prob: Values, advantage: Values) -> Values:
    """Compute -log pi(a|s) * A, whose gradient is minus a sample of the policy gradient (Williams, 1992)."""
    check_same_shape(log_prob=log_prob, advantage=advantage)
    return -log_prob * jax.lax.stop_gradient(advantage)


def clipped_surrogate(log_prob: Values, old_log_prob: Values, advantage: Values, clip_eps: Scalar) -> Values:
    """Compute PPO's policy loss (Schulman et al., 2017, https://arxiv.org/abs/1707.06347, equation 7).

    -min(ratio * A, clip(ratio, 1 - clip_eps, 1 + clip_eps) * A), with ratio = pi(a|s) / pi_old(a|s).
    """
    check_same_shape(log_prob=log_prob, old_log_prob=old_log_prob, advantage=advantage)
    ratio = jnp.exp(log_prob - old_log_prob)
    clipped = jnp.clip(ratio, 1 - clip_eps, 1 + clip_eps)
    return -jnp.minimum(ratio * advantage, clipped * advantage)


def value(prediction: Values, target: Values) -> Values:
    """Compute half the squared error of a value prediction."""
    check_same_shape(prediction=prediction, target=target)
    return 0.5 * (prediction - jax.lax.stop_gradient(target)) ** 2
