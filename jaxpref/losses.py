"""Every loss, as a function of arrays: no network, no config, one value per pair or per step.

The caller averages, because only it knows the weights and the masks. Arrays of different shapes raise ValueError:
[N] beside [N, 1] would be broadcast to [N, N], and its mean would look like a loss. So do coefficients that are out of
range.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxpref.checks import check_number, check_same_shape
from jaxpref.types import Scalar


def dpo(
    chosen_logp: Float[Array, "*batch"],
    rejected_logp: Float[Array, "*batch"],
    ref_chosen_logp: Float[Array, "*batch"],
    ref_rejected_logp: Float[Array, "*batch"],
    beta: Scalar,
) -> Float[Array, "*batch"]:
    """Direct Preference Optimisation (Rafailov et al., 2023, https://arxiv.org/abs/2305.18290, equation 7).

        -log sigmoid(beta * [(chosen_logp - ref_chosen_logp) - (rejected_logp - ref_rejected_logp)])

    All inputs are log-probabilities of whole trajectories, in nats. ln 2 where the policy is the reference.
    """
    chosen_reward = dpo_reward(chosen_logp, ref_chosen_logp, beta)
    rejected_reward = dpo_reward(rejected_logp, ref_rejected_logp, beta)
    return bradley_terry(chosen_reward, rejected_reward)


def conservative_dpo(
    chosen_logp: Float[Array, "*batch"],
    rejected_logp: Float[Array, "*batch"],
    ref_chosen_logp: Float[Array, "*batch"],
    ref_rejected_logp: Float[Array, "*batch"],
    beta: Scalar,
    label_smoothing: Scalar,
) -> Float[Array, "*batch"]:
    """DPO with smoothed labels, "conservative DPO" (Mitchell, 2023, https://ericmitchell.ai/cdpo.pdf, equation 2).

        (1 - label_smoothing) * dpo + label_smoothing * dpo with the pair swapped

    The cross-entropy to a label that is right with probability 1 - label_smoothing. Its minimum over the margin lies
    at the finite ln((1 - label_smoothing) / label_smoothing), where plain DPO (label_smoothing 0) pushes the margin
    of a pair that it already ranks right towards infinity.
    """
    check_number(label_smoothing, "label_smoothing", 0, 1)
    right = dpo(chosen_logp, rejected_logp, ref_chosen_logp, ref_rejected_logp, beta)
    wrong = dpo(rejected_logp, chosen_logp, ref_rejected_logp, ref_chosen_logp, beta)
    return (1 - label_smoothing) * right + label_smoothing * wrong


def robust_dpo(
    chosen_logp: Float[Array, "*batch"],
    rejected_logp: Float[Array, "*batch"],
    ref_chosen_logp: Float[Array, "*batch"],
    ref_rejected_logp: Float[Array, "*batch"],
    beta: Scalar,
    label_smoothing: Scalar,
) -> Float[Array, "*batch"]:
    """DPO made unbiased under flipped labels (Chowdhury et al., 2024, https://arxiv.org/abs/2403.00409, equation 12).

        [(1 - label_smoothing) * dpo - label_smoothing * dpo with the pair swapped] / (1 - 2 * label_smoothing)

    Its expectation over labels flipped with probability label_smoothing, below 0.5, is `dpo` of the clean label. It
    has no lower bound: as the margin grows, so does what the second term takes off.
    """
    check_number(label_smoothing, "label_smoothing", 0, 0.499999)
    right = dpo(chosen_logp, rejected_logp, ref_chosen_logp, ref_rejected_logp, beta)
    wrong = dpo(rejected_logp, chosen_logp, ref_rejected_logp, ref_chosen_logp, beta)
    return ((1 - label_smoothing) * right - label_smoothing * wrong) / (1 - 2 * label_smoothing)


def hinge_dpo(
    chosen_logp: Float[Array, "*batch"],
    rejected_logp: Float[Array, "*batch"],
    ref_chosen_logp: Float[Array, "*batch"],
    ref_rejected_logp: Float[Array, "*batch"],
    beta: Scalar,
) -> Float[Array, "*batch"]:
    """max(0, 1 - beta * margin): SLiC's rank calibration (Zhao et al., 2023, https://arxiv.org/abs/2305.10425) on
    DPO's margin, as in Liu et al., 2024, https://arxiv.org/abs/2309.06657, section 3.2.
    """
    check_number(beta, "beta", 0)
    return jax.nn.relu(1 - beta * dpo_margin(chosen_logp, rejected_logp, ref_chosen_logp, ref_rejected_logp))


def ipo(
    chosen_logp: Float[Array, "*batch"],
    rejected_logp: Float[Array, "*batch"],
    ref_chosen_logp: Float[Array, "*batch"],
    ref_rejected_logp: Float[Array, "*batch"],
    beta: Scalar,
) -> Float[Array, "*batch"]:
    """Identity preference optimisation (Azar et al., 2023, https://arxiv.org/abs/2310.12036, equation 17).

        (margin - 1 / (2 * beta)) ** 2

    A margin to aim at, in nats, where DPO's has no end. With per-step means of log-probabilities (`per_step`) the aim
    is one of nats per step.
    """
    check_number(beta, "beta", 1e-6)  # the aim is 1 / (2 * beta)
    return (dpo_margin(chosen_logp, rejected_logp, ref_chosen_logp, ref_rejected_logp) - 1 / (2 * beta)) ** 2


def cloning(chosen_logp: Float[Array, "*batch"]) -> Float[Array, "*batch"]:
    """Behaviour cloning of the chosen trajectory (Pomerleau, 1989): -chosen_logp, blind to the rejected one."""
    return -chosen_logp


def per_step(logp: Float[Array, "*batch"], num_steps: Float[Array, "*batch"]) -> Float[Array, "*batch"]:
    """A trajectory's log-probability as the mean over its steps; 0 for a trajectory without steps.

    A DPO loss of these is length-normalised (Meng et al., 2024, https://arxiv.org/abs/2405.14734, equation 3): an
    episode does not count more for being longer. `beta` is then per nat per step: larger by about an episode's length.
    """
    check_same_shape(logp=logp, num_steps=num_steps)
    return logp / jnp.maximum(num_steps, 1)


def dpo_margin(
    chosen_logp: Float[Array, "*batch"],
    rejected_logp: Float[Array, "*batch"],
    ref_chosen_logp: Float[Array, "*batch"],
    ref_rejected_logp: Float[Array, "*batch"],
) -> Float[Array, "*batch"]:
    """(chosen_logp - ref_chosen_logp) - (rejected_logp - ref_rejected_logp), in nats: swapping the pair negates it."""
    check_same_shape(
        chosen_logp=chosen_logp,
        rejected_logp=rejected_logp,
        ref_chosen_logp=ref_chosen_logp,
        ref_rejected_logp=ref_rejected_logp,
    )
    return (chosen_logp - ref_chosen_logp) - (rejected_logp - ref_rejected_logp)


def dpo_reward(logp: Float[Array, "*batch"], ref_logp: Float[Array, "*batch"], beta: Scalar) -> Float[Array, "*batch"]:
    """DPO's implicit reward of a trajectory, beta * (logp - ref_logp), up to a constant of the initial state."""
    check_same_shape(logp=logp, ref_logp=ref_logp)
    check_number(beta, "beta", 0)
    return beta * (logp - ref_logp)


def bradley_terry(
    chosen_return: Float[Array, "*batch"], rejected_return: Float[Array, "*batch"]
) -> Float[Array, "*batch"]:
    """Negative log-likelihood of the label, -log sigmoid(chosen_return - rejected_return) (Bradley & Terry, 1952)."""
    check_same_shape(chosen_return=chosen_return, rejected_return=rejected_return)
    return jax.nn.softplus(rejected_return - chosen_return)


def policy_gradient(log_prob: Float[Array, "*batch"], advantage: Float[Array, "*batch"]) -> Float[Array, "*batch"]:
    """REINFORCE (Williams, 1992): -log pi(a|s) * A, whose gradient is minus the policy gradient's sample."""
    check_same_shape(log_prob=log_prob, advantage=advantage)
    return -log_prob * jax.lax.stop_gradient(advantage)


def clipped_surrogate(
    log_prob: Float[Array, "*batch"],
    old_log_prob: Float[Array, "*batch"],
    advantage: Float[Array, "*batch"],
    clip_eps: Scalar,
) -> Float[Array, "*batch"]:
    """PPO's policy loss (Schulman et al., 2017, https://arxiv.org/abs/1707.06347, equation 7).

    -min(ratio * A, clip(ratio, 1 - clip_eps, 1 + clip_eps) * A), with ratio = pi(a|s) / pi_old(a|s).
    """
    check_same_shape(log_prob=log_prob, old_log_prob=old_log_prob, advantage=advantage)
    check_number(clip_eps, "clip_eps", 0)
    ratio = jnp.exp(log_prob - old_log_prob)
    clipped = jnp.clip(ratio, 1 - clip_eps, 1 + clip_eps)
    return -jnp.minimum(ratio * advantage, clipped * advantage)


def value(prediction: Float[Array, "*batch"], target: Float[Array, "*batch"]) -> Float[Array, "*batch"]:
    """Half the squared error of a value prediction."""
    check_same_shape(prediction=prediction, target=target)
    return 0.5 * (prediction - jax.lax.stop_gradient(target)) ** 2
