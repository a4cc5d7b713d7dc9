"""The reward model: its loss, the updates of a whole run, and what it learns."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from helpers import (
    LEVER,
    assert_close,
    assert_same_bytes,
    lane,
    numpy_reward,
    optimised_jit,
    pairs,
    random_reward,
    random_trajectories,
    swap,
)

import jaxpref
from jaxpref import annotators, networks, preferences, ranking, reward_model
from jaxpref.types import Preferences

LN2 = np.log(2)
NUM_PAIRS, HORIZON = 12, 30
CONFIG = reward_model.Config(
    num_updates=6, num_folds=0, normalise_obs=False, batch_size=8, learning_rate=0.02, weight_decay=0.1
)
FULL_BATCH = dataclasses.replace(CONFIG, batch_size=0)

train = jax.jit(reward_model.train)
optimised_train = optimised_jit(reward_model.train)
prepare = jax.jit(functools.partial(reward_model.prepare, use_next_obs=True))
loss = jax.jit(reward_model.loss_fn)
loss_grad = jax.jit(jax.grad(reward_model.loss_fn, has_aux=True))

EVERYTHING = jnp.arange(NUM_PAIRS)
ALIKE = jnp.ones(NUM_PAIRS)


# --- the loss ---------------------------------------------------------------------------------------------------------


def numpy_return(params, trajectory, i):
    """Learned return of the i-th trajectory, step by step."""
    total = 0.0
    for t in range(trajectory.mask.shape[1]):
        if trajectory.mask[i, t]:
            obs, next_obs = np.float64(trajectory.obs[i, t]), np.float64(trajectory.next_obs[i, t])
            total += numpy_reward(params, obs, int(trajectory.action[i, t]), next_obs)
    return total


def test_the_loss_and_its_metrics_are_a_plain_loop_over_pairs_and_steps():
    """Weights that differ, a pair of weight zero, a pair named twice."""
    data, params = pairs(3, obs_size=4), random_reward(1, jaxpref.cartpole())
    index, weight = [4, 0, 7, 7, 11], [1.0, 0.5, 2.0, 0.25, 0.0]
    total = dict.fromkeys(["loss", "margin", "accuracy"], 0.0)
    for i, w in zip(index, weight, strict=True):
        margin = numpy_return(params, data.chosen, i) - numpy_return(params, data.rejected, i)
        total["loss"] -= w * np.log(1 / (1 + np.exp(-margin)))
        total["margin"] += w * margin
        total["accuracy"] += w * (margin > 0)
    value, metrics = loss(params, prepare(LEVER, data), jnp.array(index), jnp.array(weight))
    np.testing.assert_allclose(value, total["loss"] / 3.75, rtol=1e-4)
    for name, expected in total.items():
        np.testing.assert_allclose(getattr(metrics, name), expected / 3.75, rtol=1e-4, err_msg=name)
    assert 0 < total["accuracy"] < 3.75


def test_a_tie_mixes_both_orders():
    """Target 1/2: half the loss of either order, and which of the two is called chosen means nothing; 1 is the label,
    0 its opposite."""
    params, data = random_reward(2), pairs(2)
    one_way, other_way = (loss(params, prepare(LEVER, some), EVERYTHING, ALIKE)[0] for some in (data, swap(data)))
    for target, expected in ((1.0, one_way), (0.0, other_way), (0.5, (one_way + other_way) / 2)):
        data_of_target = prepare(LEVER, data.replace(target=jnp.full(NUM_PAIRS, target)))
        np.testing.assert_allclose(loss(params, data_of_target, EVERYTHING, ALIKE)[0], expected, rtol=1e-5)


def test_a_fresh_model_is_undecided_and_learns_lengths_first():
    """Its head is zero, so the loss is ln 2 and its slope in each margin -1/2. In the head's bias that is -1/2 for
    every step of the chosen and +1/2 for every step of the rejected; in the torso, behind a head of zero, nothing."""
    data, weight = pairs(3), jnp.array([2.0, 0.5, 0.0] * 4)
    fresh = jaxpref.init_reward(jax.random.key(3), LEVER)
    grads, metrics = loss_grad(fresh, prepare(LEVER, data), EVERYTHING, weight)
    np.testing.assert_allclose(metrics.loss, LN2, rtol=1e-6)
    assert (metrics.margin, metrics.accuracy) == (0, 0)
    longer = np.asarray(data.chosen.mask.sum(-1) - data.rejected.mask.sum(-1))
    np.testing.assert_allclose(grads.params["reward"]["bias"], [-0.5 * np.average(longer, weights=weight)], rtol=1e-5)
    assert not np.asarray(grads.params["torso"]["kernel"]).any()
    np.testing.assert_allclose(train(LEVER, CONFIG, jax.random.key(3), data).metrics.loss[0], LN2, rtol=1e-6)


# --- a run ------------------------------------------------------------------------------------------------------------


def test_full_batch_training_is_an_adamw_loop_over_all_pairs():
    """The parameters after the last update, and in every update the metrics from before the step. Where training
    starts is what it returns at a learning rate of zero."""
    weight = jnp.array([2.0, 0.5, 0.0, 1.0] * 3)
    data, key = pairs(4).replace(weight=weight), jax.random.key(4)
    params = train(LEVER, dataclasses.replace(FULL_BATCH, learning_rate=0.0), key, data).params
    no_decay_of_biases = params.replace(params={layer: {"kernel": True, "bias": False} for layer in params.params})
    adamw = optax.adamw(0.02, weight_decay=0.1, mask=no_decay_of_biases)

    def plain_loss(params):
        margin = networks.trajectory_reward(params, data.chosen) - networks.trajectory_reward(params, data.rejected)
        mean = [(weight * leaf).sum() / weight.sum() for leaf in (-jax.nn.log_sigmoid(margin), margin, margin > 0)]
        return mean[0], jnp.stack(mean)

    @jax.jit
    def step(params, opt_state):
        grads, before = jax.grad(plain_loss, has_aux=True)(params)
        updates, opt_state = adamw.update(grads, opt_state, params)
        return optax.apply_updates(params, updates), opt_state, before

    opt_state, expected = adamw.init(params), []
    for _ in range(6):
        params, opt_state, before = step(params, opt_state)
        expected.append(before)
    result = train(LEVER, FULL_BATCH, key, data)
    assert_close(result.params, params, rtol=1e-3, atol=1e-4)
    metrics = result.metrics
    reported = np.transpose([metrics.loss, metrics.margin, metrics.accuracy])
    np.testing.assert_allclose(reported, expected, rtol=1e-3, atol=1e-4)
    assert metrics.loss.shape == (6,)


def test_gradient_descent_decays_the_kernels():
    """One update by hand: p - 0.02 * gradient, and of kernels - 0.02 * 0.1 * p, too."""
    data, params = prepare(LEVER, pairs(8)), random_reward(8)
    config = FULL_BATCH.replace(optimiser=optax.sgd)
    grads, _ = loss_grad(params, data, EVERYTHING, ALIKE)
    state = reward_model.TrainState(params, reward_model.optimiser(config).init(params))
    state, _ = update(config, data, state, jax.random.key(8))
    for layer, arrays in params.params.items():
        for name, before in arrays.items():
            expected = before - 0.02 * grads.params[layer][name] - (0.002 * before if name == "kernel" else 0)
            np.testing.assert_allclose(state.params.params[layer][name], expected, rtol=1e-5, atol=1e-7)


def test_adam_as_the_configs_optimiser_is_adamw():
    """The same decay, after six updates."""
    result = train(LEVER, FULL_BATCH.replace(optimiser=optax.adam), jax.random.key(4), pairs(4))
    assert_close(result.params, train(LEVER, FULL_BATCH, jax.random.key(4), pairs(4)).params, rtol=1e-4, atol=1e-5)


def test_training_continues_from_given_parameters():
    """Their loss is the first one, and without a learning rate they are the result. Another task's are refused."""
    start, data, key = random_reward(9), pairs(9), jax.random.key(9)
    _, metrics = loss(start, prepare(LEVER, data), EVERYTHING, ALIKE)
    result = train(LEVER, FULL_BATCH, key, data, start)
    np.testing.assert_allclose(result.metrics.loss[0], metrics.loss, rtol=1e-5)
    assert result.metrics.loss[-1] < metrics.loss
    assert_same_bytes(train(LEVER, FULL_BATCH.replace(learning_rate=0.0), key, data, start).params, start)
    with pytest.raises(ValueError, match="init_params, of module RewardModel, does not fit task lever"):
        train(LEVER, FULL_BATCH, key, data, random_reward(9, jaxpref.cartpole()))


def labelled_by_a_linear_reward(seed, num_pairs):
    """Pairs that a reward of obs_0 - 2 next_obs_1 + (1 for action 1, -1 for action 0) ranks without an error."""
    rng = np.random.default_rng(seed)
    sides = [random_trajectories(rng, rng.integers(1, 11, num_pairs), horizon=10) for _ in range(2)]
    rewards = [side.obs[..., 0] - 2 * side.next_obs[..., 1] + 2 * side.action - 1.0 for side in sides]
    sides = [
        side.replace(reward=jnp.where(side.mask, reward, 0.0)) for side, reward in zip(sides, rewards, strict=True)
    ]
    return preferences.label_pairs(jax.random.key(0), *sides, annotators.noiseless)


def test_it_ranks_pairs_that_it_has_not_seen():
    """300 pairs of a linear reward to learn from, 500 others to rank. It ranks fewer of them right if it does not see
    the next observations."""

    def accuracy(use_next_obs):
        config = reward_model.Config(num_updates=100, learning_rate=1e-2, use_next_obs=use_next_obs)
        params = train(jaxpref.cartpole(), config, jax.random.key(5), labelled_by_a_linear_reward(5, 300)).params
        scores = [trajectory_reward(params, side) for side in (heldout.chosen, heldout.rejected)]
        return ranking.return_accuracy(*scores, heldout)

    heldout = labelled_by_a_linear_reward(6, 500)
    assert accuracy(True) > 0.87
    assert accuracy(False) < 0.8


def test_wrong_labels_are_outvoted():
    """200 pairs whose shorter episode is the better one; a quarter of the labels is wrong. Random observations would
    let the kernels learn by heart which. Decay of the kernels, and not of the bias, keeps the sign of the reward per
    step, and so the ranking of pairs that it has not seen."""
    task = jaxpref.cartpole()

    def shorter_is_better(seed, num_pairs):
        rng = np.random.default_rng(seed)
        shorter = rng.integers(60, 100, num_pairs)
        short, long = (random_trajectories(rng, length, horizon=110) for length in (shorter, shorter + 10))
        short, long = (side.replace(reward=jnp.where(side.mask, -1.0, 0.0)) for side in (short, long))
        return Preferences(short, long, jnp.ones(num_pairs), jnp.ones(num_pairs))

    data, heldout = shorter_is_better(7, 200), shorter_is_better(8, 200)
    wrong = swap(preferences.take(data, slice(50)))  # as many in each fold of the calibration
    noisy = jax.tree.map(lambda leaf, flipped: leaf.at[:50].set(flipped), data, wrong)

    def accuracy(weight_decay):
        config = reward_model.Config(num_updates=200, weight_decay=weight_decay)
        params = optimised_train(task, config, jax.random.key(7), noisy).params
        scores = [trajectory_reward(params, side) for side in (heldout.chosen, heldout.rejected)]
        return ranking.return_accuracy(*scores, heldout)

    decayed, not_decayed = accuracy(10.0), accuracy(0.0)
    assert decayed > 0.9, (decayed, not_decayed)
    assert not_decayed < decayed - 0.05, (decayed, not_decayed)


# --- calibration ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("right", "wrong", "scale"), [(3, 1, np.log(3) / 2), (1, 1, 0.0), (1, 2, 0.0), (5, 0, 3.0)])
def test_a_calibration_makes_margins_log_odds(right, wrong, scale):
    """Margins of 2, of which three in four are right: log-odds of ln 3. A coin's are 0, and so are those of a model
    that is more often wrong. Certainty's have no end: there the scale is the largest. Neighbours on the grid differ by
    9.5 %. A pair without weight, with a huge margin on the wrong side, says nothing."""
    margin = jnp.array([2.0] * right + [-2.0] * wrong + [-100.0])
    weight = jnp.ones_like(margin).at[-1].set(0.0)
    found = reward_model.calibration(margin, jnp.ones_like(margin), weight)
    np.testing.assert_allclose(found, scale, rtol=0.05)
    # A swapped pair has minus the margin and the target 0.
    np.testing.assert_array_equal(reward_model.calibration(-margin, jnp.zeros_like(margin), weight), found)
    assert reward_model.calibration(margin, jnp.ones_like(margin), jnp.zeros_like(margin)) == 1


@pytest.mark.parametrize(("wrong", "is_zero"), [(-3.0, True), (-1.5, False)])
def test_margins_on_the_wrong_side_count_by_their_size(wrong, is_zero):
    """Two right margins of 1 add up to 2. At scale 0 the loss falls only if this is more than the wrong margin."""
    scale = reward_model.calibration(jnp.array([1.0, 1.0, wrong]), jnp.ones(3), jnp.ones(3))
    assert (scale == 0) == is_zero


def test_the_result_is_the_model_of_all_pairs_times_what_the_folds_say():
    """Fold k is every third pair from the k-th one on; its margins are those of a model that never saw it."""
    weight = jnp.array([1.0, 0.5, 2.0, 1.0, 0.0, 0.25, 2.0, 1.0, 0.0, 0.5, 1.0, 1.0])
    data, key = pairs(10).replace(weight=weight), jax.random.key(10)
    config = FULL_BATCH.replace(num_updates=40)
    margins = np.zeros(NUM_PAIRS)
    for fold in range(3):
        others = data.replace(weight=weight.at[fold::3].set(0.0))
        fitted = train(LEVER, config, key, others).params
        margin = trajectory_reward(fitted, data.chosen) - trajectory_reward(fitted, data.rejected)
        margins[fold::3] = margin[fold::3]
    scale = reward_model.calibration(jnp.float32(margins), ALIKE, weight)
    assert abs(scale - 1) > 0.1
    uncalibrated = train(LEVER, config, key, data)
    result = train(LEVER, config.replace(num_folds=3), key, data)
    expected = uncalibrated.params.params | {
        "reward": jax.tree.map(lambda leaf: scale * leaf, uncalibrated.params.params["reward"])
    }
    assert_close(result.params.params, expected, rtol=1e-3, atol=1e-5)
    assert_close(result.metrics, uncalibrated.metrics, rtol=1e-4, atol=1e-6)


# --- normalised observations ------------------------------------------------------------------------------------------


def with_obs(data, of_obs, of_change):
    """The same pairs with other observations and other changes of them."""

    def of_side(side):
        obs, change = of_obs(np.float64(side.obs)), of_change(np.float64(side.next_obs) - np.float64(side.obs))
        return side.replace(obs=jnp.float32(obs), next_obs=jnp.float32(obs + change))

    return data.replace(chosen=of_side(data.chosen), rejected=of_side(data.rejected))


def unit_of(numbers):
    """A function to the unit in which these have mean 0 and deviation 1."""
    return lambda others: (others - numbers.mean(0)) / numbers.std(0)


def test_normalised_training_is_training_on_normalised_observations():
    """Mean and deviation are of the played steps of the pairs that have weight. The result takes raw observations."""
    data, key = preferences.prefix(pairs(20), 7), jax.random.key(20)
    seen, seen_next = (
        np.concatenate([np.float64(getattr(side, name)[:7][side.mask[:7]]) for side in (data.chosen, data.rejected)])
        for name in ("obs", "next_obs")
    )
    unit = with_obs(data, unit_of(seen), unit_of(seen_next - seen))
    expected = train(LEVER, CONFIG, key, unit)
    result = train(LEVER, CONFIG.replace(normalise_obs=True), key, data)
    assert_close(result.metrics, expected.metrics, rtol=1e-4, atol=1e-5)
    returns = trajectory_reward(expected.params, unit.chosen)
    np.testing.assert_allclose(trajectory_reward(result.params, data.chosen), returns, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(("scale", "offset"), [(1e-3, 0.1), (40.0, -1e3)])
def test_units_of_observations_do_not_matter(scale, offset):
    """A second model starts from the first one, which has units of its own."""
    config = CONFIG.replace(normalise_obs=True)
    data = pairs(21)
    in_units = with_obs(data, lambda obs: scale * obs + offset, lambda change: scale * change)
    params = in_params = None
    for seed in (21, 22):
        params = train(LEVER, config, jax.random.key(seed), data, params).params
        in_params = train(LEVER, config, jax.random.key(seed), in_units, in_params).params
        learned = trajectory_reward(params, data.chosen)
        assert np.std(learned) > 0.05
        np.testing.assert_allclose(trajectory_reward(in_params, in_units.chosen), learned, rtol=0.02, atol=0.02)


def test_rounding_is_not_taken_for_a_change():
    """Observations near 1000, with changes of one unit in their last place: they are not scaled up to deviation 1."""
    unit = np.spacing(np.float32(1e3))
    data = with_obs(pairs(22), lambda obs: 0 * obs + 1e3, lambda change: unit * np.sign(change))
    params = train(LEVER, CONFIG.replace(normalise_obs=True), jax.random.key(22), data).params
    assert np.abs(params.params["torso"]["kernel"]).max() < 10


def test_pairs_of_another_kind_of_reward_model_are_refused():
    prepared = reward_model.prepare(LEVER, pairs(24))
    with pytest.raises(ValueError, match=r"needs pairs of prepare\(..., use_next_obs=True\)"):
        reward_model.loss_fn(random_reward(24), prepared, EVERYTHING, ALIKE)


def test_an_observation_that_never_changes_is_harmless():
    """It has no deviation to be divided by."""
    data = with_obs(pairs(23), lambda obs: 0 * obs + 1e3, lambda change: 0 * change)
    params = train(LEVER, CONFIG.replace(normalise_obs=True), jax.random.key(23), data).params
    assert np.isfinite(trajectory_reward(params, data.chosen)).all()


# --- early stopping ---------------------------------------------------------------------------------------------------

STOPPING = reward_model.Config(
    num_updates=25,
    num_folds=0,
    use_next_obs=False,
    normalise_obs=False,
    batch_size=0,
    holdout_every=3,
    learning_rate=0.02,
    weight_decay=0.1,
)
"""Of twelve pairs numbers 2, 5, 8 and 11 are held out; looks after 5, 15 and 25 updates."""
HELD_OUT = np.array([2, 5, 8, 11])
LOOKS = (5, 15, 25)
WEIGHT = jnp.array([1.0, 0.5, 2.0, 1.0, 0.0, 0.25, 2.0, 1.0, 0.0, 0.5, 1.0, 1.0])

# Without the slower half of the optimisations: for what is run a few times they are not worth their time.
quick_jit = functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})
train_and_stop, update = quick_jit(reward_model.train), quick_jit(reward_model.update)
trajectory_reward = jax.jit(networks.trajectory_reward)


def one_after_the_other(key, data):
    """The parameters at the looks, from full-batch updates on the pairs that are not held out. Where training starts is
    what it returns at a learning rate of zero."""
    params = train_and_stop(LEVER, dataclasses.replace(STOPPING, learning_rate=0.0), key, data).params
    state = reward_model.TrainState(params, reward_model.optimiser(STOPPING).init(params))
    seen, dataset = {}, reward_model.prepare(LEVER, data.replace(weight=data.weight.at[HELD_OUT].set(0.0)))
    for number in range(1, LOOKS[-1] + 1):
        state, _ = update(STOPPING, dataset, state, jax.random.key(0))
        seen[number] = state.params
    return [seen[number] for number in LOOKS]


def held_out_loss(params, data):
    """Weighted mean of -log sigmoid(margin)."""
    margin = np.float64(trajectory_reward(params, data.chosen)) - np.float64(trajectory_reward(params, data.rejected))
    return np.average(np.logaddexp(0, -margin)[HELD_OUT], weights=data.weight[HELD_OUT])


@pytest.mark.parametrize(("seed", "best"), [(41, 0), (64, 1), (53, 2)])
def test_early_stopping_keeps_the_look_that_is_best_on_the_held_out_pairs(seed, best):
    """The first, the one between and the last, by a clear margin; every update has metrics."""
    key, data = jax.random.key(seed), pairs(seed).replace(weight=WEIGHT)
    at_looks = one_after_the_other(key, data)
    held_out = np.array([held_out_loss(params, data) for params in at_looks])
    assert held_out.argmin() == best
    assert np.sort(held_out)[1] > held_out.min() + 0.01
    result = train_and_stop(LEVER, STOPPING, key, data)
    assert_close(result.params, at_looks[best], rtol=1e-3, atol=1e-4)
    assert {leaf.shape for leaf in jax.tree.leaves(result.metrics)} == {(25,)}


def test_held_out_pairs_decide_which_parameters_are_kept_and_nothing_else():
    """With their labels turned round, updates are the same and another look is kept; without weight they decide
    nothing, and the last parameters are kept."""
    key, data = jax.random.key(50), pairs(50).replace(weight=WEIGHT)
    first, _, last = one_after_the_other(key, data)
    turned = jax.tree.map(lambda leaf, other: leaf.at[HELD_OUT].set(other[HELD_OUT]), data, swap(data))
    without_weight = data.replace(weight=WEIGHT.at[HELD_OUT].set(0.0))
    results = [train_and_stop(LEVER, STOPPING, key, some) for some in (data, turned, without_weight)]
    for result, expected in zip(results, (first, last, last), strict=True):
        assert_close(result.metrics, results[0].metrics, rtol=1e-4, atol=1e-5)
        assert_close(result.params, expected, rtol=1e-3, atol=1e-4)
    # The metrics are of the pairs that are trained on, in the order of the updates, also of those whose parameters were
    # not kept.
    np.testing.assert_allclose(results[0].metrics.loss[0], LN2, rtol=1e-6)
    assert results[0].metrics.loss[-1] < 0.5 * LN2


# --- ensembles --------------------------------------------------------------------------------------------------------

train_ensemble = quick_jit(reward_model.train_ensemble, static_argnums=4)


def test_an_ensembles_members_are_models_with_starts_and_bootstrap_weights_of_their_own():
    """Three members, on seven pairs of twelve. They differ on other pairs; the ensemble says the mean."""
    ensemble = train_ensemble(LEVER, CONFIG, jax.random.key(60), preferences.prefix(pairs(60), 7), 3)
    assert ensemble.metrics.loss.shape == (3, 6)
    key_weight, key_train = jax.random.split(jax.random.key(60))
    weight, scores = jax.random.exponential(key_weight, (3, NUM_PAIRS)).at[:, 7:].set(0.0), []
    members = ensemble.replace(params=networks.Network(ensemble.params.module.member, ensemble.params.params))
    for member, key in enumerate(jax.random.split(key_train, 3)):
        alone = train(LEVER, CONFIG, key, pairs(60).replace(weight=weight[member]))
        assert_close(lane(members, member), alone, rtol=1e-3, atol=2e-4)
        scores.append(trajectory_reward(alone.params, pairs(61).chosen))
    assert (np.std(scores, axis=0) > 1e-2).all()
    mean = trajectory_reward(ensemble.params, pairs(61).chosen)
    np.testing.assert_allclose(mean, np.mean(scores, axis=0), rtol=1e-3, atol=1e-3)
