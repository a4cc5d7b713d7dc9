"""DPO: its loss, its metrics and the updates of a whole run.

`LEVER` pays 1 for one of two actions, ten times: a policy's mean return is ten times that action's probability.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from helpers import (
    LEVER,
    assert_close,
    assert_same_bytes,
    binomial_bound,
    constant_policy,
    lane,
    numpy_policy,
    pairs,
    policy,
)

import jaxpref
from jaxpref import dpo, losses, networks
from jaxpref.types import Preferences, Trajectory

LN2 = np.log(2)
NUM_PAIRS, HORIZON = 12, 30
CONFIG = dpo.Config(num_updates=6, batch_size=8, eval_every=2, eval_episodes=64, learning_rate=0.05, beta=0.3)
FULL_BATCH = dataclasses.replace(CONFIG, batch_size=0)

train = jax.jit(dpo.train)
prepare = jax.jit(dpo.prepare)
loss = jax.jit(dpo.loss_fn)
loss_grad = jax.jit(jax.grad(dpo.loss_fn, has_aux=True))

EVERYTHING = jnp.arange(NUM_PAIRS)
ALIKE = jnp.ones(NUM_PAIRS)


def lever_pairs():
    """Ten steps each, the good action chosen and the bad one rejected."""
    first_ten = jnp.broadcast_to(jnp.arange(HORIZON) < 10, (NUM_PAIRS, HORIZON))
    nothing = jnp.zeros((NUM_PAIRS, HORIZON, 1))
    good = Trajectory(nothing, jnp.int32(first_ten), jnp.float32(first_ten), nothing, first_ten)
    bad = good.replace(action=jnp.zeros_like(good.action), reward=jnp.zeros_like(good.reward))
    return Preferences(good, bad, ALIKE, ALIKE)


# --- the loss ---------------------------------------------------------------------------------------------------------


def numpy_logp(params, trajectory, i):
    """Log-probability of the i-th trajectory, step by step."""
    total = 0.0
    for t in range(trajectory.mask.shape[1]):
        if trajectory.mask[i, t]:
            log_probs, _ = numpy_policy(params, np.float64(trajectory.obs[i, t]))
            total += log_probs[int(trajectory.action[i, t])]
    return total


def test_the_reference_is_prepared_once_for_chosen_and_rejected():
    """Pairs without targets have targets of one."""
    data = prepare(LEVER, pairs(1), policy(1))
    np.testing.assert_array_equal(data.target, ALIKE)
    for half, side in ((slice(None, NUM_PAIRS), pairs(1).chosen), (slice(NUM_PAIRS, None), pairs(1).rejected)):
        plain = jaxpref.trajectory_log_prob(policy(1), side)
        np.testing.assert_allclose(data.ref_logp[half], plain, rtol=1e-5)
        np.testing.assert_allclose(data.ref_logp[half][3], numpy_logp(policy(1), side, 3), rtol=1e-5)


def test_the_loss_and_its_metrics_are_a_plain_loop_over_pairs_and_steps():
    """Weights that differ, a pair of weight zero, a pair named twice; beta 0.7, labels wrong one time in five, and 0.4
    of minus the chosen trajectory's mean log-ratio, mixed with the other order like the rest."""
    task = jaxpref.cartpole()
    config = dpo.Config(beta=0.7, label_smoothing=0.2, nll_coef=0.4)
    data, params, ref_params = pairs(5, obs_size=4), policy(2, task), policy(3, task)
    index, weight = [4, 0, 7, 7, 11], [1.0, 0.5, 2.0, 0.25, 0.0]
    total = dict.fromkeys(["loss", "chosen_reward", "rejected_reward", "margin", "accuracy"], 0.0)
    for i, w in zip(index, weight, strict=True):
        chosen, rejected = (
            0.7 * (numpy_logp(params, side, i) - numpy_logp(ref_params, side, i))
            for side in (data.chosen, data.rejected)
        )
        right = 1 / (1 + np.exp(-(chosen - rejected)))
        total["loss"] -= w * (0.8 * np.log(right) + 0.2 * np.log(1 - right))
        per_step = chosen / data.chosen.mask[i].sum(), rejected / data.rejected.mask[i].sum()
        total["loss"] -= w * 0.4 / 0.7 * (0.8 * per_step[0] + 0.2 * per_step[1])
        total["chosen_reward"] += w * chosen
        total["rejected_reward"] += w * rejected
        total["margin"] += w * (chosen - rejected)
        total["accuracy"] += w * (chosen > rejected)
    value, metrics = loss(params, config, prepare(LEVER, data, ref_params), jnp.array(index), jnp.array(weight))
    np.testing.assert_allclose(value, total["loss"] / 3.75, rtol=1e-4)
    for name, expected in total.items():
        np.testing.assert_allclose(getattr(metrics, name), expected / 3.75, rtol=1e-4, err_msg=name)
    assert 0 < total["accuracy"] < 3.75


# --- losses by name ---------------------------------------------------------------------------------------------------


def test_a_name_means_a_function_of_the_margin():
    """At beta * margins ln 9 and -1.5, beta 1/2, labels wrong one time in five, targets 1 and 1/4; or, without a
    reference, of the log-probabilities themselves."""
    logps = tuple(jnp.array(x, jnp.float32) for x in ([-1 + 2 * np.log(9), -7], [-4, -3], [-1, -5], [-4, -4]))
    margin, target = np.array([2 * np.log(9), -3]), np.array([1, 0.25])

    def of(loss, target=target):
        return target * loss(margin) + (1 - target) * loss(-margin)

    def sigmoid(margin):
        return np.log1p(np.exp(-0.5 * margin))

    def cpl(chosen, rejected):
        return -np.log(np.exp(chosen / 2) / (np.exp(chosen / 2) + np.exp(0.75 * rejected / 2)))

    chosen, rejected, *reference = np.float64(logps)
    ratios, smoothed = (chosen - reference[0], rejected - reference[1]), 0.8 * target + 0.2 * (1 - target)
    expected = {
        "sigmoid": of(sigmoid),
        "conservative": of(sigmoid, smoothed),
        # 2, 4 steps: minus the mean log-ratio of a step, times 0.3, of the chosen and of the rejected one.
        "rpo": of(sigmoid, smoothed) - 0.3 * (smoothed * ratios[0] / 2 + (1 - smoothed) * ratios[1] / 4),
        # Robust: [(1 - eps) loss - eps swapped loss] / (1 - 2 eps), by target.
        "robust": (0.8 * of(sigmoid) - 0.2 * of(sigmoid, 1 - target)) / 0.6,
        "hinge": of(lambda margin: np.maximum(0, 1 - 0.5 * margin)),
        "ipo": of(lambda margin: (margin - 1) ** 2),
        "cpl": target * cpl(chosen, rejected) + (1 - target) * cpl(rejected, chosen),
        "cloning": -np.array(logps[0]),
    }
    assert len({tuple(values.round(3)) for values in expected.values()}) == len(expected)
    expected |= {"sigmoid_per_step": expected["sigmoid"], "ipo_per_step": expected["ipo"]}
    assert expected.keys() == set(dpo.LOSSES)
    for name, values in expected.items():
        config = dpo.Config(loss=name, beta=0.5, label_smoothing=0.2, nll_coef=0.3, contrastive_bias=0.75)
        steps = jnp.full(2, 2.0), jnp.full(2, 4.0)
        found = dpo.pair_loss(config, dpo.PairLogProbs(*logps, *steps, jnp.float32(target)))
        np.testing.assert_allclose(found, values, rtol=1e-5, err_msg=name)


@pytest.fixture(scope="module")
def per_step_pairs():
    """(pairs, params, ref_params) of different lengths, the third of the rejected ones without a single step."""
    data = pairs(30)
    nothing = data.rejected.mask.at[2].set(False)
    return data.replace(rejected=data.rejected.replace(mask=nothing)), policy(30), policy(31)


def numpy_means(params, side):
    """Mean log-probability of a step, 0 without steps."""
    total = np.float64(networks.trajectory_log_prob(params, side))
    return total / np.maximum(np.asarray(side.mask).sum(-1), 1)


@pytest.mark.parametrize("name", ["sigmoid_per_step", "ipo_per_step"])
def test_per_step_losses_compare_mean_log_probabilities(per_step_pairs, name):
    data, params, ref_params = per_step_pairs
    chosen, rejected = (
        numpy_means(params, side) - numpy_means(ref_params, side) for side in (data.chosen, data.rejected)
    )
    margin = chosen - rejected
    per_pair = {"sigmoid_per_step": np.log1p(np.exp(-3 * margin)), "ipo_per_step": (margin - 1 / 6) ** 2}[name]
    weight = jnp.array([2.0, 0.5, 1.0] * 4)
    value, metrics = loss(params, dpo.Config(loss=name, beta=3.0), prepare(LEVER, data, ref_params), EVERYTHING, weight)
    np.testing.assert_allclose(value, np.average(per_pair, weights=weight), rtol=1e-4)
    np.testing.assert_allclose(metrics.margin, np.average(3 * margin, weights=weight), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(metrics.chosen_reward, np.average(3 * chosen, weights=weight), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("target", [1.0, 0.5])
def test_cloning_is_the_whole_chosen_trajectory_and_blind_to_the_rejected(per_step_pairs, target):
    """Loss and gradient keep their bits whatever was rejected, even in a tie."""
    data, params, ref_params = per_step_pairs
    data, weight = data.replace(target=target * ALIKE), jnp.array([2.0, 0.5, 1.0] * 4)
    config = dpo.Config(loss="cloning")
    grads, metrics = loss_grad(params, config, prepare(LEVER, data, ref_params), EVERYTHING, weight)
    logp = networks.trajectory_log_prob(params, data.chosen)
    np.testing.assert_allclose(metrics.loss, np.average(-logp, weights=weight), rtol=1e-5)
    rejected = data.rejected
    garbage = rejected.replace(obs=1e3 - rejected.obs, action=1 - rejected.action, mask=pairs(32).chosen.mask)
    other = loss_grad(params, config, prepare(LEVER, data.replace(rejected=garbage), ref_params), EVERYTHING, weight)
    assert_same_bytes(other[0], grads)
    assert_same_bytes(other[1].loss, metrics.loss)
    assert abs(other[1].rejected_reward - metrics.rejected_reward) > 1e-2


def test_swapping_pairs_exchanges_chosen_and_rejected():
    """And what was right with probability 1/4 is now right with 3/4. Twice changes nothing."""
    fields = [jnp.full(2, value) for value in (-1.0, -2.0, -3.0, -4.0, 5.0, 6.0, 0.25)]
    swapped = dpo.PairLogProbs(*fields).swap()
    one_each = [leaf[0] for leaf in jax.tree.leaves(swapped)]
    np.testing.assert_array_equal(one_each, [-2, -1, -4, -3, 6, 5, 0.75])
    np.testing.assert_array_equal(swapped.margin(), -dpo.PairLogProbs(*fields).margin())
    assert_same_bytes(swapped.swap(), dpo.PairLogProbs(*fields))


def squared_hinge(pairs, beta):
    return jnp.maximum(0, 1 - beta * pairs.margin()) ** 2


def smoothed_by_hand(pairs, beta):
    """The conservative loss, with the target and labels wrong one time in twenty, whichever trajectory comes first."""
    target = 0.95 * pairs.target + 0.05 * (1 - pairs.target)
    return target * losses.sigmoid(pairs.margin(), beta) + (1 - target) * losses.sigmoid(-pairs.margin(), beta)


def test_a_loss_that_uses_the_target_itself_is_not_changed_by_the_rule():
    """It is the same for the swapped pairs, so any mixture of both is the loss."""
    params, data = policy(35), prepare(LEVER, pairs(35), policy(36))
    data = data.replace(target=jnp.array([1.0, 0.5, 0.25, 0.0] * 3))
    config = dpo.Config(loss="conservative", beta=0.5)
    by_hand, _ = loss(params, config.replace(loss=smoothed_by_hand), data, EVERYTHING, ALIKE)
    np.testing.assert_allclose(by_hand, loss(params, config, data, EVERYTHING, ALIKE)[0], rtol=1e-6)


def test_a_custom_loss_sees_steps_and_targets():
    """1 + 2 chosen_steps + 30 rejected_steps + target * (1 - target); of the swapped pair the steps are exchanged."""
    data = pairs(37)
    chosen, rejected = (np.asarray(side.mask).sum(-1) for side in (data.chosen, data.rejected))

    def numbers(pairs, beta):
        return 1 + 2 * pairs.chosen_steps + 30 * pairs.rejected_steps + pairs.target * (1 - pairs.target)

    prepared = prepare(LEVER, data, policy(37)).replace(target=0.25 * ALIKE)
    value, _ = loss(policy(37), dpo.Config(loss=numbers), prepared, EVERYTHING, ALIKE)
    expected = 1 + 0.25 * (2 * chosen + 30 * rejected) + 0.75 * (2 * rejected + 30 * chosen) + 3 / 16
    np.testing.assert_allclose(value, expected.mean(), rtol=1e-6)


def test_a_loss_may_be_a_custom_function():
    """Of whole trajectories' log-probabilities. Ten good actions chosen and ten bad ones rejected, by a policy of 2/3
    and 1/3 where the reference has 1/2 and 1/2: a margin of 10 ln 2; at beta 1/20, (1 - ln 2 / 2) ** 2."""
    even, likely = constant_policy(LEVER, [0.5, 0.5]), constant_policy(LEVER, [1 / 3, 2 / 3])
    config = dpo.Config(loss=squared_hinge, beta=0.05)
    value, metrics = loss(likely, config, prepare(LEVER, lever_pairs(), even), EVERYTHING, ALIKE)
    np.testing.assert_allclose(value, (1 - LN2 / 2) ** 2, rtol=1e-5)
    np.testing.assert_allclose(metrics.margin, LN2 / 2, rtol=1e-5)
    # A tie's other order is the user's function of the swapped pair: (1 + ln 2 / 2) ** 2.
    tied = prepare(LEVER, lever_pairs(), even).replace(target=0.5 * ALIKE)
    value, _ = loss(likely, config, tied, EVERYTHING, ALIKE)
    np.testing.assert_allclose(value, 1 + LN2**2 / 4, rtol=1e-5)


# --- targets ----------------------------------------------------------------------------------------------------------


def test_each_pair_has_a_target_of_its_own():
    """Also where pairs are named out of their order. Labels wrong one time in ten; softplus(-m) is -ln sigmoid(m)."""
    params, ref_params, data = policy(33), policy(34), pairs(33)
    target, order = np.array([1.0, 0.5, 0.25, 0.0] * 3), np.array([4, 0, 7, 7, 0, 4, 0, 4, 11, 2, 1, 0])
    chosen, rejected = (
        np.float64(networks.trajectory_log_prob(params, side) - networks.trajectory_log_prob(ref_params, side))
        for side in (data.chosen, data.rejected)
    )
    right, wrong = np.log1p(np.exp(-0.5 * (chosen - rejected))), np.log1p(np.exp(0.5 * (chosen - rejected)))
    per_pair = target * (0.9 * right + 0.1 * wrong) + (1 - target) * (0.9 * wrong + 0.1 * right)
    labelled = prepare(LEVER, data, ref_params).replace(target=jnp.array(target, jnp.float32))
    config = dpo.Config(loss="conservative", beta=0.5, label_smoothing=0.1)
    value, _ = loss(params, config, labelled, jnp.array(order), ALIKE)
    np.testing.assert_allclose(value, per_pair[order].mean(), rtol=1e-4)
    assert abs(per_pair[order].mean() - per_pair.mean()) > 1e-2


# --- optimisers -------------------------------------------------------------------------------------------------------


def halving(learning_rate):
    """Gradient descent with half of the step after every update."""
    return optax.sgd(optax.exponential_decay(learning_rate, 1, 0.5))


def test_an_optimiser_is_a_function_of_the_learning_rate():
    """Three updates by hand, with steps of 0.2, 0.1 and 0.05 times the gradient; a second learning rate by vmap."""
    data, start = prepare(LEVER, pairs(38), policy(39)), policy(38)
    config = dataclasses.replace(FULL_BATCH, num_updates=3, eval_every=3, eval_episodes=0, optimiser=halving)
    expected = start
    for step in (0.2, 0.1, 0.05):
        grads, _ = loss_grad(expected, config, data, EVERYTHING, ALIKE)
        expected = jax.tree.map(lambda leaf, grad, step=step: leaf - step * grad, expected, grads)

    def params_of(learning_rate):
        of_rate = config.replace(learning_rate=learning_rate)
        return dpo.train(LEVER, of_rate, jax.random.key(38), pairs(38), start, policy(39)).params

    swept = jax.jit(jax.vmap(params_of))(jnp.array([0.2, 0.0]))
    assert_close(lane(swept, 0), expected, rtol=1e-4, atol=1e-6)
    assert_close(lane(swept, 1), start, rtol=1e-6)
    moved = jax.tree.map(lambda leaf, before: abs(leaf - before).max(), expected, start)
    assert moved.params["policy"]["kernel"] > 1e-3


# --- a run ------------------------------------------------------------------------------------------------------------


def test_full_batch_training_is_an_adam_loop_over_all_pairs():
    """The parameters after the last update, and in every update the metrics from before the step."""
    weight = jnp.array([2.0, 0.5, 0.0, 1.0] * 3)
    data, ref_params = pairs(6).replace(weight=weight), policy(7)
    adam = optax.adam(CONFIG.learning_rate)

    def plain_loss(params):
        def reward(side):
            return CONFIG.beta * (
                networks.trajectory_log_prob(params, side) - networks.trajectory_log_prob(ref_params, side)
            )

        chosen, rejected = reward(data.chosen), reward(data.rejected)
        right, wrong = jax.nn.log_sigmoid(chosen - rejected), jax.nn.log_sigmoid(rejected - chosen)
        per_step = [
            each / CONFIG.beta / side.mask.sum(-1) for each, side in ((chosen, data.chosen), (rejected, data.rejected))
        ]
        right, wrong = right + CONFIG.nll_coef * per_step[0], wrong + CONFIG.nll_coef * per_step[1]
        per_pair = -(1 - CONFIG.label_smoothing) * right - CONFIG.label_smoothing * wrong
        mean = [(weight * leaf).sum() / weight.sum() for leaf in (per_pair, chosen, rejected, chosen > rejected)]
        return mean[0], jnp.stack(mean)

    @jax.jit
    def step(params, opt_state):
        grads, before = jax.grad(plain_loss, has_aux=True)(params)
        updates, opt_state = adam.update(grads, opt_state)
        return optax.apply_updates(params, updates), opt_state, before

    params = policy(6)
    opt_state, expected = adam.init(params), []
    for _ in range(6):
        params, opt_state, before = step(params, opt_state)
        expected.append(before)
    result = train(LEVER, FULL_BATCH, jax.random.key(6), data, policy(6), ref_params)
    assert_close(result.params, params, rtol=1e-3, atol=1e-4)
    metrics = result.metrics
    reported = [metrics.loss, metrics.chosen_reward, metrics.rejected_reward, metrics.accuracy]
    np.testing.assert_allclose(np.transpose(reported), expected, rtol=1e-3, atol=1e-4)
    np.testing.assert_allclose(metrics.margin, metrics.chosen_reward - metrics.rejected_reward, rtol=1e-3, atol=1e-4)


def test_a_policy_learns_what_was_preferred_and_its_true_return_is_reported():
    """From 5 of 10, evaluated after updates 2, 4 and 6; the last evaluation, 640 steps, is of the policy returned."""
    start = constant_policy(LEVER, [0.5, 0.5])
    start.params["torso"] = policy(8).params["torso"]
    result = train(LEVER, CONFIG, jax.random.key(8), lever_pairs(), start, start)
    metrics = result.metrics
    assert {leaf.shape for leaf in jax.tree.leaves(dataclasses.replace(metrics, true_return=metrics.loss))} == {(6,)}
    assert metrics.true_return.shape == (3,)
    # Before the first step the policy is the reference: nothing has been learned.
    np.testing.assert_allclose(metrics.loss[0], LN2, rtol=1e-5)
    np.testing.assert_allclose([metrics.margin[0], metrics.chosen_reward[0]], 0, atol=1e-5)
    # Every pair is ranked right after one update, ten good actions having become likelier than ten bad ones.
    assert (metrics.accuracy[1:] == 1).all()
    assert (metrics.margin[1:] > metrics.margin[:-1]).all()
    assert (metrics.chosen_reward[1:] > 0).all()
    assert (metrics.rejected_reward[1:] < 0).all()
    good = np.exp(numpy_policy(result.params, np.zeros(1))[0][1])
    assert 5.5 < metrics.true_return[0] < metrics.true_return[-1]
    assert abs(metrics.true_return[-1] - 10 * good) < 10 * binomial_bound(good, 640)
    assert good > 0.85


def test_without_evaluations_no_environment_is_needed_and_training_is_the_same():
    """On a task that cannot be played at all; with evaluations it says so."""
    task, args = jaxpref.tasks.offline(1, 2, HORIZON), (jax.random.key(9), pairs(9), policy(9), policy(10))
    played = train(LEVER, CONFIG, *args)
    result = train(task, dataclasses.replace(CONFIG, eval_episodes=0), *args)
    assert result.metrics.true_return is None
    assert_close(result.params, played.params, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(result.metrics.loss, played.metrics.loss, rtol=1e-5)
    with pytest.raises(ValueError, match="cannot be played: train with eval_episodes=0"):
        train(task, CONFIG, *args)


def test_ipos_beta_may_be_an_axis_number():
    """`vmap` builds a config whose beta is an axis number, 0, which would be no beta for IPO."""
    config = dataclasses.replace(CONFIG, loss="ipo", beta=jnp.array([0.3, 1.0]))
    axes = jax.tree.map(lambda _: None, config).replace(beta=0)
    args = jax.random.key(20), pairs(20), policy(20), policy(21)
    swept = jax.eval_shape(jax.vmap(lambda config: dpo.train(LEVER, config, *args), in_axes=(axes,)), config)
    assert swept.metrics.loss.shape == (2, 6)
