"""Losses: hand-worked values, symmetries, and gradients against calculus and enumeration."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxpref import losses

LN2 = np.log(2)
MARGINS = jnp.array([-3.0, 0.0, 1.0, 2.0, 5.0])

logp = st.floats(-200, 0, width=32)
scores = st.floats(-30, 30, width=32)
probabilities = st.floats(0, 0.4375, width=32)

dpo = jax.jit(losses.dpo)
dpo_value_and_grad = jax.jit(jax.value_and_grad(losses.dpo, argnums=(0, 1, 2, 3)))
margin = jax.jit(losses.margin)
per_step = jax.jit(losses.per_step)
smoothed = jax.jit(losses.smoothed_target)
robust = jax.jit(losses.robust_target)
cpl = jax.jit(losses.cpl)
bradley_terry = jax.jit(losses.bradley_terry)
bradley_terry_grad = jax.jit(jax.grad(losses.bradley_terry, argnums=(0, 1)))
surrogate = jax.jit(losses.clipped_surrogate)
surrogate_grad = jax.jit(jax.grad(losses.clipped_surrogate))


def of_target(loss, margin, beta, target):
    """A pair's loss: target * loss(margin) + (1 - target) * loss(-margin)."""
    return target * loss(margin, beta) + (1 - target) * loss(-margin, beta)


# --- margins and their losses -----------------------------------------------------------------------------------------


def test_margin_hand_worked():
    """(-3 + 5) - (-10 + 4) = 8; and (-9 + 5) - (-4 + 4.5) = -4.5."""
    args = [jnp.array(x) for x in ([-3.0, -9.0], [-10.0, -4.0], [-5.0, -5.0], [-4.0, -4.5])]
    np.testing.assert_array_equal(margin(*args), [8, -4.5])


@settings(deadline=None, max_examples=30)
@given(logp, logp, logp, logp)
def test_swapping_a_pair_negates_its_margin(chosen, rejected, ref_chosen, ref_rejected):
    """Exactly, because rounding is symmetric."""
    np.testing.assert_array_equal(
        margin(rejected, chosen, ref_rejected, ref_chosen), -margin(chosen, rejected, ref_chosen, ref_rejected)
    )


def test_dpo_hand_worked():
    """Margins ln 9 and -ln 9. beta 1: -ln(9/10) and -ln(1/10); beta 1/2: -ln(3/4) and -ln(1/4)."""
    chosen, rejected = np.array([-1 + np.log(9), -2]), np.array([-4, -7 + np.log(9)])
    ref_chosen, ref_rejected = np.array([-1, -2]), np.array([-4, -7])
    args = [jnp.float32(array) for array in (chosen, rejected, ref_chosen, ref_rejected)]
    np.testing.assert_allclose(dpo(*args, 1.0), [-np.log(0.9), -np.log(0.1)], rtol=1e-5)
    np.testing.assert_allclose(dpo(*args, 0.5), [-np.log(0.75), -np.log(0.25)], rtol=1e-5)


@settings(deadline=None, max_examples=30)
@given(logp, logp, st.floats(2**-6, 5, width=32))
def test_dpo_where_the_policy_is_the_reference(chosen, rejected, beta):
    """The loss is ln 2. Its gradient is -beta/2 in the chosen log-probability and beta/2 in the rejected one."""
    loss, grads = dpo_value_and_grad(chosen, rejected, chosen, rejected, beta)
    np.testing.assert_allclose(loss, LN2, rtol=1e-6)
    np.testing.assert_allclose(grads, [-beta / 2, beta / 2, beta / 2, -beta / 2], rtol=1e-6)


@settings(deadline=None, max_examples=30)
@given(logp, logp, logp, logp, st.floats(2**-6, 2, width=32))
def test_dpo_is_bradley_terry_on_implicit_rewards(chosen, rejected, ref_chosen, ref_rejected, beta):
    """Up to rounding: the reward is beta * (logp - ref_logp)."""
    rewards = [
        losses.dpo_reward(jnp.float32(x), jnp.float32(y), beta)
        for x, y in ((chosen, ref_chosen), (rejected, ref_rejected))
    ]
    rounding = 1e-6 * (1 + beta * (abs(chosen - ref_chosen) + abs(rejected - ref_rejected)))
    loss = dpo(chosen, rejected, ref_chosen, ref_rejected, beta)
    np.testing.assert_allclose(loss, bradley_terry(*rewards), rtol=1e-5, atol=rounding)


def test_hinge_hand_worked():
    """max(0, 1 - margin / 2), with slope -1/2 below a margin of 2 and no slope above it."""
    np.testing.assert_array_equal(losses.hinge(MARGINS, 0.5), [2.5, 1, 0.5, 0, 0])
    slopes = jax.vmap(jax.grad(losses.hinge), (0, None))(jnp.array([-1e30, 1.0, 3.0, 1e30]), 0.5)
    np.testing.assert_array_equal(slopes, [-0.5, -0.5, 0, 0])


def test_ipo_hand_worked():
    """beta 1/4 aims at a margin of 2: (margin - 2)^2, with slope 2 (margin - 2)."""
    np.testing.assert_array_equal(losses.ipo(MARGINS, 0.25), [25, 4, 1, 0, 9])
    slopes = jax.vmap(jax.grad(losses.ipo), (0, None))(jnp.array([2.0, 5.0, 1e30]), 0.25)
    np.testing.assert_allclose(slopes, [0, 6, 2e30], rtol=1e-6)


def test_cpl_hand_worked():
    """alpha 1/2, logps ln 16 and ln 4: exp(alpha * logp) is 4 and 2, so -ln(4 / 6) and, the other way, -ln(2 / 6).
    With a bias of 1/2 the rejected one counts sqrt 2 and 2: -ln(4 / (4 + sqrt 2)) and -ln(2 / (2 + 2))."""
    high, low = np.log(16), np.log(4)
    chosen, rejected = jnp.array([high, low]), jnp.array([low, high])
    np.testing.assert_allclose(cpl(chosen, rejected, 0.5, 1.0), -np.log([4 / 6, 2 / 6]), rtol=1e-6)
    expected = -np.log([4 / (4 + np.sqrt(2)), 2 / 4])
    np.testing.assert_allclose(cpl(chosen, rejected, 0.5, 0.5), expected, rtol=1e-6)


@settings(deadline=None, max_examples=30)
@given(logp, logp, st.floats(2**-6, 2, width=32), st.floats(0, 1, width=32))
def test_cpl_is_the_papers_fraction_and_without_a_bias_dpo_without_a_reference(chosen, rejected, alpha, bias):
    chosen, rejected = jnp.float32(chosen), jnp.float32(rejected)
    a, b = np.float64(alpha) * np.float64(chosen), np.float64(bias) * alpha * np.float64(rejected)
    rounding = 1e-6 * (1 + abs(a) + abs(b))
    np.testing.assert_allclose(cpl(chosen, rejected, alpha, bias), np.logaddexp(a, b) - a, rtol=1e-5, atol=rounding)
    nothing = jnp.zeros(())
    np.testing.assert_array_equal(cpl(chosen, rejected, alpha, 1.0), dpo(chosen, rejected, nothing, nothing, alpha))


def test_a_bias_of_cpl_makes_likely_trajectories_better():
    """With equal logps x, the loss is ln(1 + exp(-alpha (1 - bias) x)): without a bias ln 2 for every x."""
    x = jnp.array([0.0, -10.0, -40.0])
    np.testing.assert_allclose(cpl(x, x, 0.1, 1.0), [LN2] * 3, rtol=1e-6)
    np.testing.assert_allclose(cpl(x, x, 0.1, 0.5), np.log1p(np.exp([0, 0.5, 2])), rtol=1e-6)


def test_cloning_is_minus_the_chosen_log_probability():
    np.testing.assert_array_equal(losses.cloning(jnp.array([-2.5, 0.0, -40.0])), [2.5, 0, 40])


def test_per_step_hand_worked():
    """-6 over three steps, -5 over one, 0 over none. 0 / 0 must not reach the gradient either: it is 1 over steps."""
    logp, num_steps = jnp.array([-6.0, -5.0, 0.0]), jnp.array([3.0, 1.0, 0.0])
    np.testing.assert_array_equal(per_step(logp, num_steps), [-2, -5, 0])
    slopes = jax.grad(lambda logp: per_step(logp, num_steps).sum())(logp)
    np.testing.assert_allclose(slopes, [1 / 3, 1, 1], rtol=1e-6)


# --- targets ----------------------------------------------------------------------------------------------------------


def test_targets_hand_worked():
    """Labels wrong one time in five. Smoothed: 4/5 t + 1/5 (1 - t). Robust: (t - 1/5) / (3/5). Neither moves a tie."""
    target = jnp.array([1.0, 0.5, 0.0])
    np.testing.assert_allclose(losses.smoothed_target(target, 0.2), [0.8, 0.5, 0.2], rtol=1e-6)
    np.testing.assert_allclose(losses.robust_target(target, 0.2), [4 / 3, 0.5, -1 / 3], rtol=1e-6)


@settings(deadline=None, max_examples=30)
@given(st.floats(0, 1, width=32), probabilities)
def test_a_robust_target_is_unbiased_under_flipped_labels(target, eps):
    """(1 - eps) * robust(t) + eps * robust(1 - t) = t: robust undoes the smoothing that wrong labels do."""
    expectation = (1 - eps) * robust(target, eps) + eps * robust(1 - target, eps)
    np.testing.assert_allclose(expectation, target, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(robust(smoothed(target, eps), eps), target, atol=1e-5)


@jax.jit
@jax.grad
def smoothed_slope(margin, beta, eps):
    """The slope of a right label's smoothed loss in its margin."""
    return of_target(losses.sigmoid, margin, beta, losses.smoothed_target(jnp.float32(1), eps))


@settings(deadline=None, max_examples=30)
@given(st.floats(2**-4, 5, width=32), st.floats(2**-6, 0.5, width=32))
def test_a_smoothed_label_wants_the_margin_of_its_odds(beta, eps):
    """The slope in m = beta * margin is sigmoid(m) - (1 - eps): zero at ln((1 - eps) / eps)."""
    best = np.log((1 - eps) / eps)
    for m in (best - 1, best, best + 1):
        slope = smoothed_slope(m / beta, beta, eps)
        np.testing.assert_allclose(slope / beta, 1 / (1 + np.exp(-m)) - (1 - eps), atol=1e-4)


@pytest.mark.parametrize(
    ("target", "slope_right", "slope_wrong"),
    [(1.0, 0, -0.5), (0.8, 0.1, -0.4), (4 / 3, -1 / 6, -2 / 3)],
    ids=["plain", "smoothed", "robust"],
)
def test_extreme_margins_have_the_slopes_of_their_limits(target, slope_right, slope_wrong):
    """beta ((1 - t) sigmoid(beta m) - t sigmoid(-beta m)) at beta 1/2: finite far on either side."""
    slope = jax.jit(jax.grad(lambda margin: of_target(losses.sigmoid, margin, 0.5, target)))
    for size in (1e4, 1e30):
        np.testing.assert_allclose(slope(size), slope_right, rtol=1e-5, atol=1e-7)
        np.testing.assert_allclose(slope(-size), slope_wrong, rtol=1e-5)


# --- Bradley–Terry ----------------------------------------------------------------------------------------------------


def test_bradley_terry_hand_worked():
    """sigmoid(0) = 1/2, sigmoid(ln 3) = 3/4, sigmoid(-ln 3) = 1/4; only the difference counts."""
    chosen = jnp.array([5.0, np.log(3) + 2, 1.0])
    rejected = jnp.array([5.0, 2.0, 1 + np.log(3)])
    np.testing.assert_allclose(bradley_terry(chosen, rejected), [LN2, -np.log(0.75), -np.log(0.25)], rtol=1e-5)


@settings(deadline=None, max_examples=30)
@given(scores, scores)
def test_bradley_terrys_gradient_is_the_probability_of_the_other_label(chosen, rejected):
    """d/dm softplus(-m) = -sigmoid(-m): what the model gives to the label that was not drawn."""
    other = 1 / (1 + np.exp(np.float64(chosen) - rejected))
    grads = bradley_terry_grad(chosen, rejected)
    np.testing.assert_allclose(grads, [-other, other], rtol=1e-4, atol=1e-12)


@pytest.mark.parametrize("size", [1e4, 1e30])
def test_extreme_margins_stay_finite_in_value_and_gradient(size):
    """The loss goes to 0 on the right side and to the margin on the wrong one; its slope to 0 and to 1."""
    right, wrong = bradley_terry(size, 0.0), bradley_terry(0.0, size)
    np.testing.assert_allclose([right, wrong], [0, size], rtol=1e-6)
    np.testing.assert_allclose(bradley_terry_grad(size, 0.0), [0, 0], atol=1e-30)
    np.testing.assert_allclose(bradley_terry_grad(0.0, size), [-1, 1], rtol=1e-6)


# --- policy gradients -------------------------------------------------------------------------------------------------


def test_policy_gradient_is_that_of_the_expected_reward():
    """Three arms of a bandit: the expectation of the loss's gradient over the arms is minus the gradient of
    J = sum_a pi(a) R(a), which is pi(a) (R(a) - J) in the a-th logit."""
    logits, reward = np.array([0.3, -1.0, 0.7]), jnp.array([1.0, -2.0, 4.0])

    def expected_loss(logits, arm_probabilities):
        per_arm = losses.policy_gradient(jax.nn.log_softmax(logits), reward)
        return jnp.vdot(arm_probabilities, per_arm)

    pi = np.exp(logits) / np.exp(logits).sum()
    gradient = jax.jit(jax.grad(expected_loss))(jnp.array(logits), jnp.array(pi))
    np.testing.assert_allclose(gradient, -pi * (np.asarray(reward) - pi @ np.asarray(reward)), rtol=1e-5)


def test_policy_gradient_does_not_follow_the_advantage():
    """A baseline inside the advantage is not trained by the policy's loss."""
    gradient = jax.jit(jax.grad(lambda advantage: losses.policy_gradient(jnp.float32(-2.0), advantage)))(3.0)
    assert gradient == 0
    np.testing.assert_allclose(losses.policy_gradient(jnp.float32(-2.0), jnp.float32(3.0)), 6.0)


@pytest.mark.parametrize(
    ("ratio", "advantage", "expected", "slope"),
    [
        # Inside the clip range: -ratio * A, and d(-ratio * A)/dlog_prob is the same number.
        (1.0, 2.0, -2.0, -2.0),
        (1.1, 2.0, -2.2, -2.2),
        (0.9, -2.0, 1.8, 1.8),
        # A > 0: clipped above only. A ratio too small is pulled back in full.
        (1.5, 2.0, -2.4, 0.0),
        (0.5, 2.0, -1.0, -1.0),
        # A < 0: clipped below only. A ratio too large is pushed back in full.
        (0.5, -2.0, 1.6, 0.0),
        (1.5, -2.0, 3.0, 3.0),
    ],
)
def test_clipped_surrogate_hand_worked(ratio, advantage, expected, slope):
    """clip_eps 0.2; where the clip is what counts, the gradient is zero."""
    old_log_prob = jnp.float32(-1.5)
    log_prob = old_log_prob + jnp.log(jnp.float32(ratio))
    np.testing.assert_allclose(surrogate(log_prob, old_log_prob, advantage, 0.2), expected, rtol=1e-5)
    np.testing.assert_allclose(surrogate_grad(log_prob, old_log_prob, advantage, 0.2), slope, rtol=1e-5)


def test_value_loss_hand_worked():
    """Half the squared error, (5 - 2)^2 / 2 = 4.5, with slope 3 in the prediction and none in the target."""
    loss, grads = jax.value_and_grad(losses.value, argnums=(0, 1))(5.0, 2.0)
    assert (loss, grads) == (4.5, (3.0, 0.0))
