"""Online preferences: which pairs are asked about, what every round is made of, and what the rounds learn.

`SHOW` is a lever that anyone can learn to press, beside a display of random numbers: what a reward model says of an
episode differs from that of any other. Policies with a dead torso (`constant_policy`) cannot see the display.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import (
    assert_close,
    assert_same_bytes,
    binomial_bound,
    constant_policy,
    keys,
    lane,
    random_reward,
    random_trajectories,
    stack,
)
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxpref import annotators, dpo, networks, online, ppo, preferences, reward_model
from jaxpref.rollout import episodes
from jaxpref.tasks import Task

LN2 = np.log(2)

# --- which candidates are asked about ---------------------------------------------------------------------------------

NUM_CANDIDATES = 8

choose = jax.jit(online.choose, static_argnums=2)
disagreement = jax.jit(online.disagreement)
choose_many = jax.jit(jax.vmap(online.choose, in_axes=(0, None, None, None)), static_argnums=2)


@settings(deadline=None, max_examples=30)
@given(
    st.integers(0, 2**32 - 1),
    st.lists(st.sampled_from([0.0, 0.1, 0.2, 0.2, 0.5, -3.0]), min_size=NUM_CANDIDATES, max_size=NUM_CANDIDATES),
    st.sampled_from([1, 3, 5, 8]),
    st.sampled_from([0.0, 0.25, 0.5, 0.7, 1.0]),
)
def test_the_most_interesting_ones_are_chosen_and_others_at_random(seed, interest, num_chosen, share):
    """Always different places; the best ones, as many as the share says, are NumPy's, also where some are equally
    interesting: then those that come first. The others come in an order that only the key decides."""
    places = np.asarray(choose(jax.random.key(seed), jnp.float32(interest), num_chosen, share))
    assert places.shape == (num_chosen,)
    assert len(set(places)) == num_chosen
    assert set(places) <= set(range(NUM_CANDIDATES))
    num_best = round(share * num_chosen)
    best = np.argsort(-np.float32(interest), kind="stable")[:num_best]
    np.testing.assert_array_equal(places[:num_best], best)
    drawn = np.asarray(choose(jax.random.key(seed), jnp.zeros(NUM_CANDIDATES), NUM_CANDIDATES, 0.0))
    np.testing.assert_array_equal(places[num_best:], [i for i in drawn if i not in best][: num_chosen - num_best])


@pytest.mark.parametrize("share", [0.0, 0.5])
def test_what_is_left_to_chance_is_uniform(share):
    """Four of eight: with a share of 1/2 two are sure, and two of the other six come by chance, 1/3 each."""
    interest = jnp.array([0.3, 5.0, 0.1, 0.2, 4.0, 0.0, 0.25, -1.0])
    places = np.asarray(choose_many(jax.random.split(jax.random.key(1), 4000), interest, 4, share))
    frequency = np.bincount(places.ravel(), minlength=NUM_CANDIDATES) / 4000
    sure = [1, 4] if share else []
    by_chance = [i for i in range(NUM_CANDIDATES) if i not in sure]
    probability = (4 - len(sure)) / len(by_chance)
    np.testing.assert_array_equal(frequency[sure], np.ones(len(sure)))
    assert np.abs(frequency[by_chance] - probability).max() < binomial_bound(probability, 4000)


def ensemble(*members):
    """One network of the mean of these."""
    return reward_model.as_ensemble(stack(*members))


def test_disagreement_is_the_spread_of_the_members_probabilities():
    """Of P(first preferred); it is the same for both orders of a pair, and zero where all members are equal."""
    rng, members = np.random.default_rng(2), [random_reward(seed, SHOW) for seed in range(3)]
    first, second = (random_trajectories(rng, [1, 4, 6, 6], 6, obs_size=2) for _ in range(2))
    gaps = [networks.trajectory_reward(each, first) - networks.trajectory_reward(each, second) for each in members]
    found = disagreement(ensemble(*members), first, second)
    np.testing.assert_allclose(found, np.std(1 / (1 + np.exp(-np.float64(gaps))), axis=0), rtol=1e-3)
    assert found.min() > 1e-2
    np.testing.assert_allclose(disagreement(ensemble(*members), second, first), found, rtol=1e-4)
    np.testing.assert_allclose(disagreement(ensemble(*members[:1] * 3), first, second), np.zeros(4), atol=1e-6)


# --- rounds -----------------------------------------------------------------------------------------------------------


class Show:
    """Pays 1 for action 1 and 0 for action 0, for as long as the horizon allows; shows two random numbers."""

    def reset_env(self, key, params):
        obs = jax.random.uniform(key, (2,), minval=-1, maxval=1)
        return obs, obs

    def step_env(self, key, state, action, params):
        obs = jax.random.uniform(key, (2,), minval=-1, maxval=1)
        return obs, obs, jnp.float32(action), jnp.bool_(False), {}


SHOW = Task("show", Show(), None, horizon=10, obs_size=2, num_actions=2, pi1_target=jnp.inf, pi2_target=jnp.inf)
NUM_ROUNDS, NUM_PAIRS, NUM_ASKED, NUM_MEMBERS = 3, 12, 4, 2
ONLINE = online.Config(num_rounds=NUM_ROUNDS, num_candidates=3, num_members=NUM_MEMBERS)
REWARD = reward_model.Config(num_updates=12, num_folds=0, batch_size=0, learning_rate=0.02, weight_decay=0.0)
SLOW = dataclasses.replace(REWARD, learning_rate=5e-3)  # fast steps make a difference in rounding larger
SIZES = {"num_updates": 12, "num_envs": 4, "num_steps": 16, "num_minibatches": 2, "eval_every": 2, "eval_episodes": 32}
PPO = ppo.Config(**SIZES, learning_rate=0.05, gamma=0.9, vf_coef=4.0, kl_coef=0.0)
DPO = dpo.Config(
    beta=0.1,
    nll_coef=0.0,
    num_updates=12,
    batch_size=0,
    eval_every=2,
    eval_episodes=32,
    learning_rate=0.3,
    label_smoothing=0.0,
)
COIN = constant_policy(SHOW, [0.5, 0.5])
STILL = {"learning_rate": 0.0}


def content(key, first, second):
    """Prefers the higher return, and skips pairs that are good enough: together 15 of 20."""
    label = annotators.noiseless(key, first, second)
    return label.replace(weight=jnp.where(first.reward.sum() + second.reward.sum() >= 15, 0.0, 1.0))


# Compiled without the slower half of the optimisations: what is run only a few times is not worth their time.
quick_jit = functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})


def rlhf_run(config, reward_config, ppo_config, key, init_params, ref_params, segment=None):
    args = config, reward_config, ppo_config, key, content, NUM_PAIRS, init_params, ref_params, segment
    return online.train_rlhf(SHOW, *args)


def dpo_run(config, dpo_config, key, init_params, ref_params, segment=None):
    args = config, dpo_config, key, annotators.noiseless, NUM_PAIRS, init_params, ref_params, segment
    return online.train_dpo(SHOW, *args)


over_seeds = functools.partial(jax.vmap, in_axes=(None, None, None, 0, None, None))
train_rlhf_over_seeds = quick_jit(over_seeds(rlhf_run))
train_dpo = quick_jit(dpo_run)
train_ensemble = quick_jit(reward_model.train_ensemble, static_argnums=4)
label_pairs = quick_jit(functools.partial(preferences.label_pairs, annotator=content))
play = quick_jit(episodes, static_argnums=3)


@pytest.fixture(scope="module")
def two_rlhf():
    """Of two seeds."""
    return train_rlhf_over_seeds(ONLINE, REWARD, PPO, keys(10, 14), COIN, COIN)


@pytest.fixture(scope="module")
def rlhf(two_rlhf):
    return lane(two_rlhf, 0)


@pytest.fixture(scope="module")
def from_dpo():
    return train_dpo(ONLINE, DPO, jax.random.key(11), COIN, COIN)


@pytest.fixture(scope="module")
def two_still():
    """Of two seeds, with a policy that does not learn, some of the questions left to chance, about clips of 6 steps."""
    config = dataclasses.replace(ONLINE, disagreement=0.7)
    train = quick_jit(over_seeds(functools.partial(rlhf_run, segment=6)))
    return train(config, SLOW, dataclasses.replace(PPO, **STILL), keys(13, 16), COIN, COIN)


def returns_by_round(result):
    """True returns of the pairs that were asked about, [rounds, trajectories]."""
    pairs = result.preferences
    returns = np.concatenate([pairs.chosen.reward.sum(-1), pairs.rejected.reward.sum(-1)]).reshape(2, NUM_ROUNDS, -1)
    return np.moveaxis(returns, 1, 0).reshape(NUM_ROUNDS, 2 * NUM_ASKED)


@pytest.mark.parametrize("method", ["rlhf", "from_dpo"])
def test_every_round_asks_about_pairs_of_the_policy_that_it_begins_with(method, request):
    """The first about those of a coin, 5 of 10; the later ones about better and better ones. They stand in the order of
    the rounds, and all of them are there."""
    result = request.getfixturevalue(method)
    returns = returns_by_round(result)
    assert result.preferences.weight.shape == (NUM_PAIRS,)
    assert result.preferences.chosen.mask.all()
    assert result.preferences.rejected.mask.all()
    np.testing.assert_allclose(result.pair_return, returns.mean(1), rtol=1e-6)
    assert (result.preferences.chosen.reward.sum(-1) >= result.preferences.rejected.reward.sum(-1)).all()
    assert abs(returns[0].mean() - 5) < 10 * binomial_bound(0.5, 10 * 2 * NUM_ASKED)
    # The evaluation at the end of a round is of the policy that plays the next round's pairs.
    assert (np.abs(returns[1:].mean(1) - result.metrics.true_return[:-1, -1]) < 1.5).all()
    assert returns[1].mean() > 6.5
    assert returns[2].mean() > 8
    final = np.exp(networks.apply_policy(result.params, jnp.zeros(2))[0].logits)
    assert abs(10 * final[1] / final.sum() - result.metrics.true_return[-1, -1]) < 0.8


def test_updates_and_evaluations_are_divided_among_the_rounds(rlhf, from_dpo):
    """Twelve updates, four a round, and an evaluation after every second."""
    for result in (rlhf, from_dpo):
        assert result.metrics.loss.shape == (NUM_ROUNDS, 4)
        assert result.metrics.true_return.shape == (NUM_ROUNDS, 2)
        assert result.pair_return.shape == (NUM_ROUNDS,)
        assert not result.divergence.update.any()
        assert result.divergence.update.shape == (NUM_ROUNDS,)
    assert from_dpo.reward_params is None
    assert from_dpo.reward_divergence is None
    assert rlhf.reward_divergence.update.shape == (NUM_ROUNDS, NUM_MEMBERS)
    assert not rlhf.reward_divergence.update.any()
    assert rlhf.reward_params.params["reward"]["kernel"].shape == (NUM_MEMBERS, 64, 1)


def test_a_learning_rate_of_10000_diverges_in_the_first_update_of_every_round():
    """Adam's first step is as long as the learning rate."""
    result = train_dpo(ONLINE, dataclasses.replace(DPO, learning_rate=1e4), jax.random.key(11), COIN, COIN)
    np.testing.assert_array_equal(result.divergence.update, [1] * NUM_ROUNDS)


def test_a_round_goes_on_where_the_last_one_stopped(rlhf, from_dpo):
    """In the first update of the first round the policy is the reference; in that of later rounds it is no more."""
    np.testing.assert_allclose(from_dpo.metrics.loss[0, 0], LN2, rtol=1e-6)
    np.testing.assert_allclose(from_dpo.metrics.margin[0, 0], 0, atol=1e-6)
    assert (from_dpo.metrics.loss[1:, 0] < 0.9 * LN2).all()
    np.testing.assert_allclose(rlhf.metrics.kl[0, 0], 0, atol=1e-6)
    assert (rlhf.metrics.kl[1:, 0] > 0.05).all()
    assert rlhf.metrics.kl[2, 0] > rlhf.metrics.kl[1, 0]


def test_a_round_learns_from_all_answers_so_far(rlhf):
    """The last round's pairs are all good enough, and skipped: what it knows, it knows from the rounds before."""
    weight = np.asarray(rlhf.preferences.weight).reshape(NUM_ROUNDS, NUM_ASKED)
    together = rlhf.preferences.chosen.reward.sum(-1) + rlhf.preferences.rejected.reward.sum(-1)
    np.testing.assert_array_equal(weight.ravel(), together < 15)
    assert weight[0].sum() >= 3
    assert weight[2].sum() == 0
    obs = jnp.zeros((2, 2))
    idle, pressing = networks.apply_reward(rlhf.reward_params, obs, jnp.array([0, 1]), obs)
    assert pressing > idle + 1


def test_dpo_in_rounds_learns_from_clips():
    """Of 4 of 10 steps. What the annotator compares is what it sees: noiseless returns of the clips."""
    train = quick_jit(functools.partial(dpo_run, segment=4))
    result = train(ONLINE, DPO, jax.random.key(11), COIN, COIN)
    chosen, rejected = (side.reward.sum(-1) for side in (result.preferences.chosen, result.preferences.rejected))
    assert result.preferences.chosen.mask.shape == (NUM_PAIRS, 4)
    assert (chosen >= rejected).all()
    np.testing.assert_allclose(result.pair_return, ((chosen + rejected) / 2).reshape(NUM_ROUNDS, -1).mean(1), rtol=1e-6)
    assert result.metrics.true_return[-1, -1] > 8


def test_the_loss_of_a_round_is_that_of_all_answers_so_far():
    """DPO of a policy that stands still, by hand: an action 1 more in the chosen than in the rejected is a margin of
    beta (ln 0.5/0.7 - ln 0.5/0.3). The means are over 4, 8 and 12 pairs; no episode is played twice."""
    reference = constant_policy(SHOW, [0.3, 0.7])
    config = dataclasses.replace(DPO, beta=0.5, **STILL)
    result = train_dpo(ONLINE, config, jax.random.key(19), COIN, reference)
    assert_same_bytes(result.params, COIN)
    pairs = result.preferences
    margin = 0.5 * np.log(3 / 7) * np.float64(pairs.chosen.action.sum(-1) - pairs.rejected.action.sum(-1))
    loss = np.log1p(np.exp(-margin))
    for i in range(NUM_ROUNDS):
        np.testing.assert_allclose(result.metrics.loss[i], np.full(4, loss[: 4 * (i + 1)].mean()), rtol=1e-5)
    assert len(set(loss.reshape(NUM_ROUNDS, -1).mean(1).round(5))) == NUM_ROUNDS
    starts = np.concatenate([pairs.chosen.obs[:, 0, 0], pairs.rejected.obs[:, 0, 0]])
    assert len(set(starts)) == 2 * NUM_PAIRS


@jax.jit
def margins(reward_params, pairs):
    """Of every member of an ensemble and every pair. Episodes are equally long: a reward's offset means nothing."""
    returns = jax.vmap(networks.trajectory_reward, in_axes=(0, None))
    members = networks.Network(reward_params.module.member, reward_params.params)
    return returns(members, pairs.chosen) - returns(members, pairs.rejected)


@pytest.mark.parametrize("seed", [0, 1])
def test_two_seeds_side_by_side_are_plain_loops_over_rounds(two_still, seed):
    """Of a policy that stands still. Three candidates for every question, cut to clips. Of a round's four questions
    three go to those that the ensemble of the round before disagrees on most (0.7 * 4, rounded), one to chance. The
    ensemble is fitted afresh to all answers so far; those to come have no weight."""
    result = lane(two_still, seed)
    assert_same_bytes(result.params, COIN)
    key_init, key_rounds = jax.random.split(jax.random.key([13, 16][seed]))
    reward_params = ensemble(*(networks.init_reward(key, SHOW) for key in jax.random.split(key_init, NUM_MEMBERS)))
    pairs = jax.tree.map(jnp.zeros_like, result.preferences)
    for i, key_round in enumerate(jax.random.split(key_rounds, NUM_ROUNDS)):
        key_ask, key_learn = jax.random.split(key_round)
        key_first, key_second, key_choice, key_label, key_clip = jax.random.split(key_ask, 5)
        first, second = play(SHOW, COIN, key_first, 12), play(SHOW, COIN, key_second, 12)
        first, second = preferences.clip_pairs(key_clip, first, second, 6)
        assert first.mask.shape == (12, 6)
        asked = choose(key_choice, disagreement(reward_params, first, second), NUM_ASKED, 0.7)
        answers = label_pairs(key_label, lane(first, asked), lane(second, asked))
        pairs = jax.tree.map(lambda leaf, new, place=4 * i: leaf.at[place : place + 4].set(new), pairs, answers)
        key_fit, _ = jax.random.split(key_learn)
        reward_params = train_ensemble(SHOW, SLOW, key_fit, pairs, NUM_MEMBERS).params
    assert_close(result.preferences, pairs, rtol=1e-5)
    np.testing.assert_allclose(
        margins(result.reward_params, pairs), margins(reward_params, pairs), rtol=1e-3, atol=1e-3
    )


def test_the_value_head_is_forgotten_at_the_start(rlhf):
    """One of NaN is as good as one of zeros."""
    unknown = networks.replace_layer(COIN, "value", lambda leaf: jnp.full_like(leaf, np.nan))
    assert_same_bytes(lane(train_rlhf_over_seeds(ONLINE, REWARD, PPO, keys(10, 17), unknown, COIN), 0), rlhf)


def test_the_value_head_is_kept_from_round_to_round(rlhf):
    """A round with a learning rate of zero leaves it as it is."""
    still = dataclasses.replace(PPO, **STILL)
    rounds = online.rlhf_rounds(SHOW, ONLINE, REWARD, still, jax.random.key(19), NUM_PAIRS, COIN, COIN)
    trained = networks.replace_layer(COIN, "value", lambda leaf: jnp.full_like(leaf, 0.3))
    (policy, _), _ = quick_jit(rounds.learn)(jax.random.key(20), (trained, rounds.networks[1]), rlhf.preferences)
    assert_same_bytes(policy, trained)
