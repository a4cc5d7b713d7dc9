"""Preference datasets: how pairs are made, divided, drawn and scored."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import (
    LEVER,
    assert_same_bytes,
    binomial_bound,
    clock,
    constant_policy,
    keys,
    lane,
    play,
    random_preferences,
    random_trajectories,
    rewarded,
)
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxpref import annotators, dpo, networks, preferences, reward_model
from jaxpref.networks import ActorCritic, init_policy

CLOCK = clock(shortest=1, longest=20, horizon=25)
NUM_PAIRS = 400
ONES, ZEROS = constant_policy(CLOCK, [1e-30, 1]), constant_policy(CLOCK, [1, 1e-30])

draw_index = jax.jit(preferences.draw_index, static_argnums=2)
label_pairs = jax.jit(preferences.label_pairs, static_argnums=3)


# --- sampling ---------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def pairs():
    """pi1 always takes action 1, pi2 always action 0, so that an episode shows who played it. An episode's return
    is n (n + 1) / 2, up to 210: at temperature 50 the annotator errs often."""
    sample = jax.jit(
        functools.partial(
            preferences.sample_preferences,
            num_pairs=NUM_PAIRS,
            annotator=functools.partial(annotators.bradley_terry, temperature=50.0),
        )
    )
    return jax.tree.map(np.asarray, sample(CLOCK, ONES, ZEROS, jax.random.key(1)))


def played_by_pi1(trajectory):
    """Whether pi1 played each episode; both policies in one episode would be neither."""
    ones = (trajectory.action * trajectory.mask).sum(-1)
    assert (ones == np.where(trajectory.action[:, 0] == 1, trajectory.mask.sum(-1), 0)).all()
    return trajectory.action[:, 0] == 1


def test_a_pair_is_one_whole_episode_of_each_policy(pairs):
    """Each from an initial state of its own: the original study started all of them in the same one."""
    names = np.concatenate([pairs.chosen.obs[:, 0, 1], pairs.rejected.obs[:, 0, 1]])
    assert len(set(names)) == 2 * NUM_PAIRS
    np.testing.assert_array_equal(played_by_pi1(pairs.chosen), ~played_by_pi1(pairs.rejected))
    for side in (pairs.chosen, pairs.rejected):
        lengths = side.mask.sum(-1)
        np.testing.assert_array_equal(side.reward.sum(-1), lengths * (lengths + 1) / 2)
        np.testing.assert_array_equal(side.next_obs[np.arange(NUM_PAIRS), lengths - 1, 0], lengths)


def test_labels_are_the_annotators(pairs):
    """prob = sigmoid(+-(R1 - R2) / 50) of the label that was drawn, and labels are drawn with it."""
    gap = pairs.chosen.reward.sum(-1) - pairs.rejected.reward.sum(-1)
    prob = 1 / (1 + np.exp(-gap / 50))
    np.testing.assert_allclose(pairs.prob, prob, rtol=1e-5)
    np.testing.assert_array_equal(pairs.weight, np.ones(NUM_PAIRS))
    pi1_chosen = played_by_pi1(pairs.chosen)
    pi1_prob = np.where(pi1_chosen, prob, 1 - prob)
    assert abs(pi1_chosen.mean() - pi1_prob.mean()) < 5 * np.sqrt((pi1_prob * (1 - pi1_prob)).sum()) / NUM_PAIRS
    # And better ones are indeed preferred more often, but not always.
    assert 0.6 < (gap[gap != 0] > 0).mean() < 0.99


@pytest.fixture(scope="module")
def contrary_pairs():
    """Eight pairs with the key of `pairs`, labelled by someone who prefers whoever plays second, calls it certain, and
    weighs a pair by the return of its first episode."""

    def contrary(key, first, second):
        return annotators.Label(jnp.bool_(False), jnp.float32(1), first.reward.sum())

    sample = jax.jit(functools.partial(preferences.sample_preferences, num_pairs=8, annotator=contrary))
    return jax.tree.map(np.asarray, sample(CLOCK, ONES, ZEROS, jax.random.key(1)))


def test_an_annotator_is_any_function_of_key_and_trajectories(contrary_pairs):
    """It need not know of targets: its answers are meant, 1. The episodes are those of the first two keys."""
    key_pi1, key_pi2, _ = jax.random.split(jax.random.key(1), 3)
    assert_same_bytes(contrary_pairs.rejected, jax.tree.map(np.asarray, play(CLOCK, ONES, key_pi1, 8)))
    assert_same_bytes(contrary_pairs.chosen, jax.tree.map(np.asarray, play(CLOCK, ZEROS, key_pi2, 8)))
    np.testing.assert_array_equal(contrary_pairs.weight, contrary_pairs.rejected.reward.sum(-1))
    np.testing.assert_array_equal([contrary_pairs.prob, contrary_pairs.target], np.ones((2, 8)))


def test_fewer_pairs_are_the_first_of_more(pairs, contrary_pairs):
    """Eight pairs and four hundred with the same key: the same episodes, whoever labels them."""
    first_preferred = played_by_pi1(pairs.chosen)[:8]
    assert 0 < first_preferred.sum() < 8
    for i, swapped in enumerate(~first_preferred):
        sides = (pairs.rejected, pairs.chosen) if swapped else (pairs.chosen, pairs.rejected)
        for few, many in zip((contrary_pairs.rejected, contrary_pairs.chosen), sides, strict=True):
            assert_same_bytes(lane(few, i), lane(many, i))


# --- labelling --------------------------------------------------------------------------------------------------------


def opinionated(key, first, second):
    """Prefers the higher return. Weight and target are functions of what was seen and done; prob of the key."""
    gap = first.reward.sum() - second.reward.sum()
    weight = abs(first.obs[0, 1]) + second.action.sum() + first.mask.sum()
    return annotators.Label(gap > 0, jax.random.uniform(key), weight, 1 / (2 + abs(second.next_obs[0, 2])))


NINE_AND_NINE = jax.tree.map(
    np.asarray, [random_trajectories(np.random.default_rng(seed), range(1, 10), 9) for seed in (10, 11)]
)


def test_label_pairs_is_a_loop_over_pairs():
    """Every leaf of the preferred one goes to chosen, of the other to rejected; each pair has a key of its own."""
    first, second = NINE_AND_NINE
    result = jax.tree.map(np.asarray, label_pairs(jax.random.key(12), first, second, opinionated))
    swapped = []
    for i, key in enumerate(jax.random.split(jax.random.key(12), 9)):
        one, other = lane(first, i), lane(second, i)
        gap = one.reward.sum() - other.reward.sum()
        swapped.append(gap <= 0)
        chosen, rejected = (other, one) if gap <= 0 else (one, other)
        assert_same_bytes(lane(result.chosen, i), chosen)
        assert_same_bytes(lane(result.rejected, i), rejected)
        np.testing.assert_allclose(result.prob[i], jax.random.uniform(key), rtol=1e-6)
        weight = abs(one.obs[0, 1]) + other.action.sum() + (i + 1)
        np.testing.assert_allclose(result.weight[i], weight, rtol=1e-6)
        np.testing.assert_allclose(result.target[i], 1 / (2 + abs(other.next_obs[0, 2])), rtol=1e-6)
    assert 0 < sum(swapped) < 9
    assert len(set(result.target)) > 3


# --- clips ------------------------------------------------------------------------------------------------------------


def first_is_better(key, first, second):
    """Always prefers the first, so that it is `chosen`. The weight is the return that it sees."""
    return annotators.Label(jnp.bool_(True), jnp.float32(1), first.reward.sum())


@functools.partial(jax.jit, static_argnames=("task", "num_pairs", "segment", "same_start"))
def sample_in_order(policies, seed, task=CLOCK, num_pairs=100, segment=None, same_start=False):
    """Pairs in which the chosen one is the first."""
    options = {"segment": segment, "others": policies[2:], "same_start": same_start}
    key = jax.random.key(seed)
    return preferences.sample_preferences(task, *policies[:2], key, num_pairs, first_is_better, **options)


def test_a_clip_is_a_slice_of_its_episode():
    """The clock shows where a clip starts. NumPy's slice of the whole episode, which the same key plays; all of it
    where it is shorter than 5. The annotator saw the clip."""
    whole, clips = (jax.tree.map(np.asarray, sample_in_order((ONES, ZEROS), 2, segment=each)) for each in (None, 5))
    for episode, part in ((whole.chosen, clips.chosen), (whole.rejected, clips.rejected)):
        lengths, starts = episode.mask.sum(-1), np.int32(part.obs[:, 0, 0])
        assert part.mask.shape == (100, 5)
        assert 10 < (lengths < 5).sum() < 40
        for i in range(100):
            assert 0 <= starts[i] <= max(0, lengths[i] - 5)
            assert_same_bytes(lane(part, i), lane(episode, (i, slice(starts[i], starts[i] + 5))))
            assert part.mask[i].sum() == min(5, lengths[i])
        assert (starts == lengths - 5).sum() >= 5  # the last observation is there, too
    np.testing.assert_array_equal(clips.weight, clips.chosen.reward.sum(-1))
    assert (clips.weight < whole.weight).any()


def test_a_clip_of_the_horizon_is_the_episode():
    assert_same_bytes(*(sample_in_order((ONES, ZEROS), 2, segment=each) for each in (None, 25)))


@pytest.mark.parametrize(("length", "num_starts"), [(12, 8), (6, 2), (5, 1), (3, 1)])
def test_clips_start_everywhere_with_the_same_probability(length, num_starts):
    """Clips of 5 steps of an episode of 12: eight places."""
    one = rewarded(np.ones(15)).replace(mask=jnp.arange(15) < length)
    draw = jax.jit(jax.vmap(lambda key: preferences.draw_start(key, one, 5)))
    counts = np.bincount(draw(jax.random.split(jax.random.key(4), 20_000)))
    assert len(counts) == num_starts
    assert np.abs(counts / 20_000 - 1 / num_starts).max() <= binomial_bound(1 / num_starts, 20_000)


def test_both_clips_of_a_pair_start_where_they_like():
    """Of 12 steps, clips of 9: the 16 combinations of four places are equally likely."""
    twelve = rewarded(np.tile(np.arange(12), (8000, 1)))
    first, second = preferences.clip_pairs(jax.random.key(5), twelve, twelve, 9)
    counts = np.bincount(np.int32(4 * first.reward[:, 0] + second.reward[:, 0]), minlength=16)
    assert len(counts) == 16
    assert np.abs(counts / 8000 - 1 / 16).max() <= binomial_bound(1 / 16, 8000)


def test_clips_of_a_lever_teach_to_press_it():
    """Five of ten steps say enough: both methods learn from 100 clips of a coin's episodes that action 1 is better."""
    coin = constant_policy(LEVER, [0.5, 0.5])
    config = dpo.Config(loss="sigmoid", num_updates=40, learning_rate=0.1, eval_every=40, eval_episodes=0)

    @jax.jit
    def learn(key_pairs, key_dpo, key_reward):
        pairs = preferences.sample_preferences(LEVER, coin, coin, key_pairs, 100, annotators.noiseless, segment=5)
        trained = dpo.train(LEVER, config, key_dpo, pairs, coin, coin).params
        fitted = reward_model.train(LEVER, reward_model.Config(num_updates=60), key_reward, pairs).params
        log_prob = networks.apply_policy(trained, jnp.zeros((2, 1)))[0].log_prob(jnp.array([0, 1]))
        obs = jnp.zeros((2, 1))
        return pairs, jnp.exp(log_prob), networks.apply_reward(fitted, obs, jnp.array([0, 1]), obs)

    pairs, prob, reward = learn(*keys(6, 7, 8))
    assert (pairs.chosen.reward.sum(-1) >= pairs.rejected.reward.sum(-1)).all()
    assert prob[1] > 0.75
    assert reward[1] > reward[0] + 0.3


# --- many policies, shared starts -------------------------------------------------------------------------------------

TWENTY = clock(shortest=20, longest=20, horizon=20)
UNLIKE = tuple(constant_policy(TWENTY, [1 - p, p]) for p in (0.02, 0.5, 0.98))


def players(policies, pairs):
    """Which policy makes each trajectory most likely, [N, 2]."""
    log_prob = jax.jit(networks.trajectory_log_prob)
    sides = pairs.chosen, pairs.rejected
    return np.stack([np.argmax([log_prob(each, side) for each in policies], axis=0) for side in sides], axis=1)


@pytest.mark.parametrize("num_pairs", [30, 4])
def test_pairs_cycle_through_all_combinations_of_policies(num_pairs):
    """Ten times 0 and 1, 0 and 2, 1 and 2, seen in this order. Every trajectory is most likely under the policy that
    played it, and no episode is used twice."""
    pairs = sample_in_order(UNLIKE, 9, TWENTY, num_pairs)
    np.testing.assert_array_equal(players(UNLIKE, pairs), [[[0, 1], [0, 2], [1, 2]][i % 3] for i in range(num_pairs)])
    names = np.concatenate([pairs.chosen.obs[:, 0, 1], pairs.rejected.obs[:, 0, 1]])
    assert len(set(names.tolist())) == 2 * num_pairs


def test_policies_of_other_networks_join_in():
    """One of eight hidden units, which is near uniform, as a third policy and as a second one."""
    other = init_policy(jax.random.key(0), TWENTY.replace(policy_network=ActorCritic(2, 8)))
    pairs = sample_in_order((*UNLIKE[1:], other), 9, TWENTY, 12)
    by_ones = players(UNLIKE, pairs) == 2
    np.testing.assert_array_equal(by_ones, [[[0, 1], [0, 0], [1, 0]][i % 3] for i in range(12)])
    pairs = sample_in_order((UNLIKE[2], other), 9, TWENTY, 12)
    np.testing.assert_array_equal(players(UNLIKE, pairs) == 2, [[1, 0]] * 12)


@pytest.mark.parametrize("num_policies", [2, 3])
def test_both_episodes_of_a_pair_can_start_alike(num_policies):
    """A clock's initial state holds its name and the length of the episode to come. Actions are each policy's own."""
    policies = tuple(constant_policy(CLOCK, [1 - p, p]) for p in (0.02, 0.5, 0.98))[:num_policies]
    pairs = sample_in_order(policies, 10, num_pairs=50, same_start=True)
    np.testing.assert_array_equal(pairs.chosen.obs[:, 0], pairs.rejected.obs[:, 0])
    np.testing.assert_array_equal(pairs.chosen.mask, pairs.rejected.mask)
    assert len(set(pairs.chosen.obs[:, 0, 1].tolist())) == 50
    assert (pairs.chosen.action != pairs.rejected.action).any(-1).sum() > 25


# --- parts ------------------------------------------------------------------------------------------------------------


def test_split_holds_out_the_last_pairs():
    some = random_preferences(np.random.default_rng(3), 10, 5)
    train, heldout = preferences.split(some, 3)
    assert_same_bytes(train, jax.tree.map(lambda leaf: leaf[:7], some))
    assert_same_bytes(heldout, jax.tree.map(lambda leaf: leaf[7:], some))
    for num_heldout in (0, 10, 11, -1):
        with pytest.raises(ValueError, match=rf"between 1 and 9 for 10 pairs, got {num_heldout}"):
            preferences.split(some, num_heldout)


def test_take_is_indexing():
    some = random_preferences(np.random.default_rng(4), 6, 5)
    taken = preferences.take(some, jnp.array([4, 4, 0]))
    for place, i in enumerate([4, 4, 0]):
        assert_same_bytes(lane(taken, place), lane(some, i))
    assert_same_bytes(preferences.take(some, slice(2, 4)), preferences.take(some, jnp.array([2, 3])))
    for index in (6, -7, jnp.array([0, 6])):
        with pytest.raises(IndexError):
            preferences.take(some, index)


def test_prefix_takes_later_pairs_out_by_their_weight():
    """Shapes stay and the size may be traced, so sizes can be vmapped."""
    some = random_preferences(np.random.default_rng(5), 4, 5).replace(weight=jnp.array([0.5, 2.0, 1.0, 3.0]))
    weights = jax.jit(jax.vmap(lambda size: preferences.prefix(some, size).weight))(jnp.arange(6))
    expected = [[0, 0, 0, 0], [0.5, 0, 0, 0], [0.5, 2, 0, 0], [0.5, 2, 1, 0], [0.5, 2, 1, 3], [0.5, 2, 1, 3]]
    np.testing.assert_array_equal(weights, expected)
    assert_same_bytes(preferences.prefix(some, 2).chosen, some.chosen)


# --- drawing ----------------------------------------------------------------------------------------------------------

WEIGHTS = st.lists(st.sampled_from([0.0, 0.0, 0.25, 1.0, 1.0, 7.0]), min_size=9, max_size=9).filter(any)


@settings(deadline=None, max_examples=30)
@given(WEIGHTS, st.integers(0, 2**32 - 1))
def test_pairs_are_drawn_in_proportion_to_their_weight(weight, seed):
    """A share p of the weight is p * 64 of 64 draws, give or take two; no share is no draw."""
    index = draw_index(jax.random.key(seed), jnp.array(weight), 64)
    counts = np.bincount(index, minlength=9)
    share = np.array(weight) / sum(weight)
    assert len(counts) == 9
    assert not counts[share == 0].any()
    assert np.abs(counts - 64 * share).max() <= 2


def test_draws_have_no_bias_within_the_strata():
    """Over many minibatches each pair's mean count is its share of the draws: weights 1 : 2 : 0 : 5, 4 draws."""
    weight, num_batches = jnp.array([1.0, 2.0, 0.0, 5.0]), 20_000
    many = jax.jit(jax.vmap(lambda key: preferences.draw_index(key, weight, 4)))
    index = np.asarray(many(jax.random.split(jax.random.key(7), num_batches)))
    for pair, share in enumerate(np.array([1, 2, 0, 5]) / 8):
        frequency = (index == pair).mean()
        # Stratified draws vary less than independent ones, to which the bound belongs.
        assert abs(frequency - share) <= binomial_bound(share, index.size)


@pytest.mark.parametrize("weight", [[1e-30, 0, 0], [0, 0, 3e30], [0, 1e-3, 0], [1e-8, 0, 1]])
def test_no_rounding_draws_a_pair_of_weight_zero(weight):
    many = jax.jit(jax.vmap(lambda key: preferences.draw_index(key, jnp.array(weight, jnp.float32), 64)))
    index = many(jax.random.split(jax.random.key(8), 200))
    assert set(np.unique(index)) <= set(np.flatnonzero(weight))


def test_no_rounding_of_the_cumulative_weight_draws_a_pair_of_weight_zero():
    """100,000 pairs, every other without weight: of a million places in the cumulative sum about thirty lie between two
    of its roundings."""
    counts = np.arange(100_000) % 2 == 1
    weight = jnp.float32(np.where(counts, np.random.default_rng(0).exponential(size=100_000), 0))
    cumulative = np.asarray(jax.jit(jnp.cumsum)(weight))
    assert (np.diff(cumulative)[~counts[1:]] > 0).any()  # the sum rises where nothing is added
    assert counts[draw_index(jax.random.key(9), weight, 1_000_000)].all()
