"""Losses: hand-worked values, symmetries, and gradients against calculus and enumeration."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxpref import losses

LN2 = np.log(2)
DIRECTIONS = np.array([1, -1, -1, 1])
"""Of the margin in (chosen, rejected, reference's chosen, reference's rejected)."""

logp = st.floats(-200, 0, width=32)
scores = st.floats(-30, 30, width=32)
# Sums and products of these are exact in float32.
quarters = st.integers(-800, 0).map(lambda n: n / 4)
powers_of_two = st.sampled_from([0.0625, 0.25, 0.5, 1.0, 2.0])

dpo = jax.jit(losses.dpo)
conservative_dpo = jax.jit(losses.conservative_dpo)
conservative_dpo_grad = jax.jit(jax.grad(losses.conservative_dpo, argnums=(0, 1)))
robust_dpo = jax.jit(losses.robust_dpo)
hinge_dpo = jax.jit(losses.hinge_dpo)
hinge_dpo_grad = jax.jit(jax.grad(losses.hinge_dpo, argnums=(0, 1, 2, 3)))
ipo = jax.jit(losses.ipo)
ipo_grad = jax.jit(jax.grad(losses.ipo, argnums=(0, 1, 2, 3)))
dpo_margin = jax.jit(losses.dpo_margin)
per_step = jax.jit(losses.per_step)
dpo_value_and_grad = jax.jit(jax.value_and_grad(losses.dpo, argnums=(0, 1, 2, 3)))
bradley_terry = jax.jit(losses.bradley_terry)
bradley_terry_grad = jax.jit(jax.grad(losses.bradley_terry, argnums=(0, 1)))
surrogate = jax.jit(losses.clipped_surrogate)
surrogate_grad = jax.jit(jax.grad(losses.clipped_surrogate))


def rounding(chosen, rejected, ref_chosen, ref_rejected, beta):
    """How far two programs for one loss may differ: each rounds two rewards, of which the margin is the difference."""
    return 1e-6 * (1 + beta * (abs(chosen - ref_chosen) + abs(rejected - ref_rejected)))


# --- Direct Preference Optimisation -----------------------------------------------------------------------------------


@settings(deadline=None, max_examples=50)
@given(logp, logp, st.floats(2**-6, 5, width=32))
def test_dpo_where_the_policy_is_the_reference(chosen, rejected, beta):
    """The loss is ln 2, its gradient -beta/2 in the chosen log-probability and beta/2 in the rejected one."""
    loss, grads = dpo_value_and_grad(chosen, rejected, chosen, rejected, beta)
    np.testing.assert_allclose(loss, LN2, rtol=1e-6)
    np.testing.assert_allclose(grads, [-beta / 2, beta / 2, beta / 2, -beta / 2], rtol=1e-6)


def test_dpo_hand_worked():
    """Log-ratios ln 9 and 0. beta 1: -ln sigmoid(ln 9) = -ln(9/10); beta 1/2: -ln(3/4)."""
    chosen, rejected = np.array([-1 + np.log(9), -2]), np.array([-4, -7 + np.log(9)])
    ref_chosen, ref_rejected = np.array([-1, -2]), np.array([-4, -7])
    args = [jnp.float32(array) for array in (chosen, rejected, ref_chosen, ref_rejected)]
    # In the second pair the rejected one became likelier: sigmoid(-ln 9) = 1/10, sigmoid(-ln 3) = 1/4.
    np.testing.assert_allclose(dpo(*args, 1.0), [-np.log(0.9), -np.log(0.1)], rtol=1e-5)
    np.testing.assert_allclose(dpo(*args, 0.5), [-np.log(0.75), -np.log(0.25)], rtol=1e-5)


@settings(deadline=None, max_examples=50)
@given(logp, logp, logp, logp, st.floats(2**-6, 2, width=32))
def test_dpo_with_the_label_swapped_has_the_opposite_margin(chosen, rejected, ref_chosen, ref_rejected, beta):
    """softplus(-m) - softplus(m) = -m."""
    margin = beta * ((chosen - ref_chosen) - (rejected - ref_rejected))
    swapped = dpo(rejected, chosen, ref_rejected, ref_chosen, beta)
    np.testing.assert_allclose(dpo(chosen, rejected, ref_chosen, ref_rejected, beta) - swapped, -margin, atol=1e-3)


@settings(deadline=None, max_examples=50)
@given(logp, logp, logp, logp, st.floats(2**-6, 2, width=32))
def test_dpo_is_bradley_terry_on_implicit_rewards(chosen, rejected, ref_chosen, ref_rejected, beta):
    """beta * (logp - ref_logp) is the reward; the loss is the negative log of the label's probability."""
    margin = np.float64(beta) * ((chosen - ref_chosen) - (rejected - ref_rejected))
    np.testing.assert_allclose(
        dpo(chosen, rejected, ref_chosen, ref_rejected, beta), np.logaddexp(0, -margin), rtol=1e-4, atol=1e-6
    )
    np.testing.assert_allclose(losses.dpo_reward(jnp.float32(-3), jnp.float32(-5), 0.5), 1.0)


def test_conservative_dpo_hand_worked():
    """A margin of ln 9 and labels wrong one time in five: -(4/5 ln(9/10) + 1/5 ln(1/10))."""
    args = [jnp.float32(x) for x in (-1 + 2 * np.log(9), -4, -1, -4)]
    np.testing.assert_allclose(conservative_dpo(*args, 0.5, 0.2), -0.8 * np.log(0.9) - 0.2 * np.log(0.1), rtol=1e-5)


@settings(deadline=None, max_examples=50)
@given(logp, logp, logp, logp, st.floats(2**-6, 2, width=32))
def test_conservative_dpo_goes_from_plain_dpo_to_indifference(chosen, rejected, ref_chosen, ref_rejected, beta):
    """label_smoothing 0 is DPO; at 1/2 the label says nothing, and swapping the pair changes nothing."""
    args = chosen, rejected, ref_chosen, ref_rejected, beta
    swapped = rejected, chosen, ref_rejected, ref_chosen, beta
    np.testing.assert_allclose(conservative_dpo(*args, 0.0), dpo(*args), atol=rounding(*args))
    np.testing.assert_allclose(conservative_dpo(*args, 0.5), conservative_dpo(*swapped, 0.5), rtol=1e-5)


@settings(deadline=None, max_examples=50)
@given(logp, logp, st.floats(2**-4, 5, width=32), st.floats(2**-6, 0.5, width=32))
def test_conservative_dpo_wants_the_margin_that_the_labels_odds_justify(chosen, rejected, beta, label_smoothing):
    """Its gradient is zero where the margin is ln((1 - eps) / eps), and pulls back from both sides: its slope in the
    margin m is sigmoid(m) - (1 - eps)."""
    eps = np.float64(label_smoothing)
    best = np.log((1 - eps) / eps)
    for margin in (best - 1, best, best + 1):
        # All of the margin in the reference of the chosen one.
        grads = conservative_dpo_grad(chosen, rejected, chosen - margin / beta, rejected, beta, label_smoothing)
        slope = beta * (1 / (1 + np.exp(-margin)) - (1 - eps))
        np.testing.assert_allclose(grads, [slope, -slope], atol=1e-3 * beta)


def test_conservative_dpo_is_the_expectation_of_dpo_over_wrong_labels():
    """Twenty labels of which k are wrong, for each of three pairs: the mean of their DPO losses is the loss with
    label_smoothing k / 20."""
    chosen, rejected = jnp.array([-3.0, -40.0, -7.5]), jnp.array([-5.0, -38.0, -7.5])
    ref_chosen, ref_rejected = jnp.array([-4.0, -41.0, -9.0]), jnp.array([-4.5, -44.0, -6.0])
    for num_wrong in (1, 7, 10):
        labels = [
            dpo(rejected, chosen, ref_rejected, ref_chosen, 0.4)
            if i < num_wrong
            else dpo(chosen, rejected, ref_chosen, ref_rejected, 0.4)
            for i in range(20)
        ]
        smoothed = conservative_dpo(chosen, rejected, ref_chosen, ref_rejected, 0.4, num_wrong / 20)
        np.testing.assert_allclose(smoothed, np.mean(labels, axis=0), rtol=1e-5)


# --- other losses of DPO's margin -------------------------------------------------------------------------------------


def test_dpo_margin_hand_worked():
    """(-3 + 5) - (-10 + 4) = 8: chosen likelier than under the reference by 2, rejected less likely by 6. The other
    way round in the second pair: (-9 + 5) - (-4 + 4.5) = -4.5."""
    args = [jnp.array(x) for x in ([-3.0, -9.0], [-10.0, -4.0], [-5.0, -5.0], [-4.0, -4.5])]
    np.testing.assert_array_equal(dpo_margin(*args), [8, -4.5])


@settings(deadline=None, max_examples=50)
@given(logp, logp, logp, logp)
def test_swapping_a_pair_negates_its_margin(chosen, rejected, ref_chosen, ref_rejected):
    """Exactly: rounding is symmetric."""
    margin = dpo_margin(chosen, rejected, ref_chosen, ref_rejected)
    np.testing.assert_array_equal(dpo_margin(rejected, chosen, ref_rejected, ref_chosen), -margin)
    expected = np.float64(chosen) - ref_chosen - rejected + ref_rejected
    np.testing.assert_allclose(margin, expected, rtol=1e-5, atol=1e-4)


def test_robust_dpo_hand_worked():
    """beta * margin = ln 9 and labels wrong one time in five: (-4/5 ln(9/10) + 1/5 ln(1/10)) / (3/5), below zero. At
    margin 0 both orders cost ln 2, and so does the pair."""
    args = [jnp.array(x, jnp.float32) for x in ([-1 + 2 * np.log(9), -3], [-4, -5], [-1, -3], [-4, -5])]
    expected = [(-0.8 * np.log(0.9) + 0.2 * np.log(0.1)) / 0.6, LN2]
    np.testing.assert_allclose(robust_dpo(*args, 0.5, 0.2), expected, rtol=1e-5)
    assert expected[0] < -0.6
    # A margin of 1,200: (0 - 0.2 * 600) / 0.6, with no end below.
    np.testing.assert_allclose(robust_dpo(-100.0, -900.0, -300.0, 100.0, 0.5, 0.2), -200, rtol=1e-5)


@settings(deadline=None, max_examples=50)
@given(logp, logp, logp, logp, st.floats(2**-6, 2, width=32), st.floats(0, 0.4375, width=32))
def test_robust_dpo_over_flipped_labels_is_dpo_of_the_clean_one(
    chosen, rejected, ref_chosen, ref_rejected, beta, label_smoothing
):
    """(1 - eps) * robust(pair) + eps * robust(swapped) = dpo(pair): the expectation over labels flipped with
    probability eps. Without flips, eps 0, robust is DPO itself."""
    args = chosen, rejected, ref_chosen, ref_rejected, beta
    swapped = rejected, chosen, ref_rejected, ref_chosen, beta
    eps = np.float64(label_smoothing)
    expectation = (1 - eps) * robust_dpo(*args, label_smoothing) + eps * robust_dpo(*swapped, label_smoothing)
    np.testing.assert_allclose(expectation, dpo(*args), atol=rounding(*args) / (1 - 2 * eps))
    np.testing.assert_allclose(robust_dpo(*args, 0.0), dpo(*args), atol=rounding(*args))


def test_hinge_dpo_hand_worked():
    """max(0, 1 - margin / 2) for margins -3, 0, 1, 2, 5."""
    chosen, others = jnp.array([-9.0, -6.0, -5.0, -4.0, -1.0]), jnp.zeros(5)
    np.testing.assert_array_equal(hinge_dpo(chosen, others - 7, others - 8, others - 9, 0.5), [2.5, 1, 0.5, 0, 0])


@settings(deadline=None, max_examples=50)
@given(quarters, quarters, quarters, quarters, powers_of_two)
def test_hinge_dpo_asks_for_a_margin_of_one_over_beta(chosen, rejected, ref_chosen, ref_rejected, beta):
    """Zero from there on, without a slope; a slope of -beta in the margin below it."""
    args = chosen, rejected, ref_chosen, ref_rejected, beta
    margin = chosen - ref_chosen - rejected + ref_rejected
    enough = margin >= 1 / beta
    np.testing.assert_array_equal(hinge_dpo(*args), 0 if enough else 1 - beta * margin)
    slope = 0 if enough else -beta
    np.testing.assert_array_equal(hinge_dpo_grad(*args), [slope, -slope, -slope, slope])


def test_ipo_hand_worked():
    """beta 1/4 aims at a margin of 2: (margin - 2)^2 for margins -1, 0, 2, 5."""
    chosen, others = jnp.array([-7.0, -6.0, -4.0, -1.0]), jnp.zeros(4)
    np.testing.assert_array_equal(ipo(chosen, others - 7, others - 8, others - 9, 0.25), [9, 4, 0, 9])


@settings(deadline=None, max_examples=50)
@given(quarters, quarters, quarters, powers_of_two, quarters)
def test_ipo_is_least_at_a_margin_of_one_over_two_beta(rejected, ref_chosen, ref_rejected, beta, short):
    """Exactly zero there, without a slope, and alike for as much too little as too much."""
    aim = 1 / (2 * beta) + ref_chosen + rejected - ref_rejected
    rest = rejected, ref_chosen, ref_rejected, beta
    assert ipo(aim, *rest) == 0
    np.testing.assert_array_equal(ipo_grad(aim, *rest), np.zeros(4))
    np.testing.assert_array_equal(ipo(aim + short, *rest), short**2)
    np.testing.assert_array_equal(ipo(aim - short, *rest), short**2)


def test_cloning_is_minus_the_chosen_log_probability():
    loss, grad = jax.value_and_grad(lambda logp: losses.cloning(logp).sum())(jnp.array([-2.5, 0.0, -40.0]))
    np.testing.assert_array_equal(loss, 42.5)
    np.testing.assert_array_equal(grad, -np.ones(3))


def test_per_step_hand_worked():
    """-6 over three steps, -5 over one, 0 over none, where 0 / 0 must not reach the gradient either: 1 over steps."""
    logp, num_steps = jnp.array([-6.0, -5.0, 0.0]), jnp.array([3.0, 1.0, 0.0])
    np.testing.assert_array_equal(per_step(logp, num_steps), [-2, -5, 0])
    slopes = jax.grad(lambda logp: per_step(logp, num_steps).sum())(logp)
    np.testing.assert_allclose(slopes, [1 / 3, 1, 1], rtol=1e-6)


@pytest.mark.parametrize(
    ("loss", "args", "slope_right", "slope_wrong"),
    [
        # beta (sigmoid(beta m) - 0.8), and for robust beta (-0.8 sigmoid(-beta m) - 0.2 sigmoid(beta m)) / 0.6.
        ("dpo", (0.5,), 0, -0.5),
        ("conservative_dpo", (0.5, 0.2), 0.1, -0.4),
        ("robust_dpo", (0.5, 0.2), -1 / 6, -2 / 3),
        ("hinge_dpo", (0.5,), 0, -0.5),
    ],
)
def test_extreme_margins_have_the_slopes_of_their_limits(loss, args, slope_right, slope_wrong):
    """beta 1/2, labels wrong one time in five where the loss knows of it; each of the four in its own direction."""
    grad = jax.jit(jax.grad(getattr(losses, loss), argnums=(0, 1, 2, 3)))
    for margin in (1e4, 1e8, 1e30):
        np.testing.assert_allclose(grad(-1.0, -margin, -1.0, -2.0, *args), slope_right * DIRECTIONS, rtol=1e-6)
        np.testing.assert_allclose(grad(-margin, -1.0, -2.0, -1.0, *args), slope_wrong * DIRECTIONS, rtol=1e-6)


@pytest.mark.parametrize("margin", [1e4, 1e8, 1e30])
def test_ipos_slope_grows_with_the_margin_and_stays_finite(margin):
    """2 (margin - 1), at beta 1/2, on either side."""
    np.testing.assert_allclose(ipo_grad(0.0, -margin, 0.0, 0.0, 0.5), 2 * (margin - 1) * DIRECTIONS, rtol=1e-6)
    np.testing.assert_allclose(ipo_grad(-margin, 0.0, 0.0, 0.0, 0.5), -2 * (margin + 1) * DIRECTIONS, rtol=1e-6)


# --- Bradley–Terry ----------------------------------------------------------------------------------------------------


def test_bradley_terry_hand_worked():
    """sigmoid(0) = 1/2, sigmoid(ln 3) = 3/4, sigmoid(-ln 3) = 1/4; only the difference counts."""
    chosen = jnp.array([5.0, np.log(3) + 2, 1.0])
    rejected = jnp.array([5.0, 2.0, 1 + np.log(3)])
    np.testing.assert_allclose(bradley_terry(chosen, rejected), [LN2, -np.log(0.75), -np.log(0.25)], rtol=1e-5)


@settings(deadline=None, max_examples=50)
@given(scores, scores)
def test_bradley_terrys_gradient_is_the_probability_of_the_other_label(chosen, rejected):
    """d/dm softplus(-m) = -sigmoid(-m): what the model gives to the label that was not drawn."""
    other = 1 / (1 + np.exp(np.float64(chosen) - rejected))
    grads = bradley_terry_grad(chosen, rejected)
    np.testing.assert_allclose(grads, [-other, other], rtol=1e-4, atol=1e-12)


@pytest.mark.parametrize("margin", [1e4, 1e8, 1e30])
def test_extreme_margins_stay_finite_in_value_and_gradient(margin):
    """The loss goes to 0 on the right side and to the margin on the wrong one; its slope to 0 and to 1."""
    right, wrong = bradley_terry(margin, 0.0), bradley_terry(0.0, margin)
    np.testing.assert_allclose([right, wrong], [0, margin], rtol=1e-6)
    np.testing.assert_allclose(bradley_terry_grad(margin, 0.0), [0, 0], atol=1e-30)
    np.testing.assert_allclose(bradley_terry_grad(0.0, margin), [-1, 1], rtol=1e-6)
    loss, grads = dpo_value_and_grad(-margin, 0.0, 0.0, 0.0, 0.5)
    np.testing.assert_allclose(loss, margin / 2, rtol=1e-6)
    np.testing.assert_allclose(grads, [-0.5, 0.5, 0.5, -0.5], rtol=1e-6)


# --- policy gradients -------------------------------------------------------------------------------------------------


def test_policy_gradient_is_that_of_the_expected_reward():
    """Three arms of a bandit: the expectation of the loss's gradient over the arms is minus the gradient of
    J = sum_a pi(a) R(a), which is pi(a) (R(a) - J) in the a-th logit; finite differences of J agree."""
    logits, reward = np.array([0.3, -1.0, 0.7]), jnp.array([1.0, -2.0, 4.0])

    def expected_loss(logits, arm_probabilities):
        per_arm = losses.policy_gradient(jax.nn.log_softmax(logits), reward)
        return jnp.vdot(arm_probabilities, per_arm)

    pi = np.exp(logits) / np.exp(logits).sum()
    gradient = jax.jit(jax.grad(expected_loss))(jnp.array(logits), jnp.array(pi))
    np.testing.assert_allclose(gradient, -pi * (np.asarray(reward) - pi @ np.asarray(reward)), rtol=1e-5)

    def objective(logits):
        return np.exp(logits) @ np.asarray(reward) / np.exp(logits).sum()

    steps = 1e-4 * np.eye(3)
    differences = [(objective(logits + step) - objective(logits - step)) / 2e-4 for step in steps]
    np.testing.assert_allclose(gradient, -np.array(differences), rtol=1e-4)


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


@settings(deadline=None, max_examples=50)
@given(st.floats(-3, 3, width=32), st.floats(-10, 10, width=32), st.floats(2**-4, 0.5, width=32))
def test_clipped_surrogate_never_promises_more_than_the_plain_one(log_ratio, advantage, clip_eps):
    """-min(r A, clip(r) A): a pessimistic bound on -r A, equal to it inside the clip range."""
    ratio = np.exp(np.float64(log_ratio))
    loss = surrogate(log_ratio, 0.0, advantage, clip_eps)
    assert loss >= -ratio * advantage - 1e-4
    if abs(ratio - 1) < clip_eps - 1e-3:
        np.testing.assert_allclose(loss, -ratio * advantage, rtol=1e-4, atol=1e-6)


def test_value_loss_hand_worked():
    """Half the squared error, (5 - 2)^2 / 2 = 4.5, with slope 3 in the prediction and none in the target."""
    loss, grads = jax.value_and_grad(losses.value, argnums=(0, 1))(5.0, 2.0)
    assert (loss, grads) == (4.5, (3.0, 0.0))
