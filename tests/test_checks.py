"""A wrong argument is named in one sentence, where a user enters the library. Training that diverges is found.

The type checker of the other tests is off here: a user has none.
"""

from __future__ import annotations

import dataclasses
import functools

import jax
import jax.numpy as jnp
import jaxtyping
import numpy as np
import pytest
from flax import struct
from helpers import LEVER, SIGN, assert_same_bytes, keys, lane, random_preferences, random_trajectories, sign_reward
from hypothesis import given, settings
from hypothesis import strategies as st

import jaxpref
from jaxpref import (
    annotators,
    checks,
    dpo,
    evaluate,
    losses,
    networks,
    online,
    ppo,
    preferences,
    ranking,
    reinforce,
    returns,
    reward_model,
    sample_preferences,
    statistics,
    tasks,
)
from jaxpref.annotators import Label, bradley_terry
from jaxpref.divergence import LIMIT, WHAT, find_divergence, param_size
from jaxpref.networks import Ensemble, Network, init_policy, init_reward
from jaxpref.types import Scalar

KEY = jax.random.key(0)


@pytest.fixture(autouse=True)
def without_type_checker():
    before = jaxtyping.config.jaxtyping_disable
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", before)


# --- arguments --------------------------------------------------------------------------------------------------------

POLICY, REWARD = init_policy(KEY, LEVER), init_reward(KEY, LEVER)
CARTPOLE = init_policy(KEY, jaxpref.cartpole())
RNG = np.random.default_rng(0)
PAIRS = random_preferences(RNG, 4, LEVER.horizon, obs_size=1)
WIDE = random_preferences(RNG, 4, LEVER.horizon, obs_size=4)
EPISODES = random_trajectories(RNG, [3, 10, 5, 1], LEVER.horizon, obs_size=1)
LONGER = random_trajectories(RNG, [3, 12, 5, 1], 12, obs_size=1)
N, N1 = jnp.ones(4), jnp.ones((4, 1))
QUICK = {
    "dpo": dpo.Config(num_updates=1, eval_every=1, eval_episodes=1),
    "ppo": ppo.Config(num_updates=1, eval_every=1, eval_episodes=1, num_envs=1, num_steps=4),
    "reward_model": reward_model.Config(num_updates=1),
}


def train_dpo(pairs=PAIRS, init=POLICY, ref=POLICY, **changes):
    return dpo.train(LEVER, QUICK["dpo"].replace(**changes), KEY, pairs, init, ref)


def train_ppo(init=POLICY, ref=POLICY, reward=REWARD, config=QUICK["ppo"], **changes):
    return ppo.train(LEVER, dataclasses.replace(config, **changes), KEY, init, ref, reward)


def fit_reward(pairs=PAIRS, **changes):
    return reward_model.train(LEVER, QUICK["reward_model"].replace(**changes), KEY, pairs)


def train_reinforce(config=reinforce.Config(), task=LEVER, **changes):  # noqa: B008
    return reinforce.train(task, config.replace(**changes) if changes else config, KEY)


def label(annotator):
    return preferences.label_pairs(KEY, PAIRS.chosen, PAIRS.rejected, annotator)


def several(network):
    return jax.tree.map(lambda leaf: jnp.stack([leaf, leaf]), network)


REFUSED = {
    "an old key": (lambda: evaluate(LEVER, POLICY, jax.random.PRNGKey(0), 2), "key must be a typed key.*uint32"),
    "keys for a key": (lambda: evaluate(LEVER, POLICY, keys(1, 2), 2), r"key must be one key, got \[2\]"),
    "a key and a task in the wrong order": (lambda: init_policy(LEVER, KEY), "key must be a typed key.*got a Task"),
    "a name for a task": (lambda: evaluate("cartpole", POLICY, KEY, 2), "task must be a Task, got 'cartpole'"),
    "no episodes": (lambda: evaluate(LEVER, POLICY, KEY, 0), "num_episodes must be at least 1, got 0"),
    "True pairs": (lambda: sample_preferences(LEVER, POLICY, POLICY, KEY, True), "num_pairs must be a whole number"),
    "half a step": (lambda: jaxpref.cartpole(1.5), "horizon must be a whole number, got 1.5"),
    "no actions": (lambda: tasks.offline(4, 0, 10), "num_actions must be at least 1, got 0"),
    # networks
    "nested dicts": (
        lambda: evaluate(LEVER, {"params": POLICY.params}, KEY, 2),
        "params must be a Network, got a dict",
    ),
    "dicts to apply": (lambda: jaxpref.apply_policy(POLICY.params, N1), "policy must be a Network, got a dict"),
    "a result for its params": (
        lambda: evaluate(LEVER, EPISODES, KEY, 2),
        "must be a Network, got a Trajectory",
    ),
    "policies of many seeds": (
        lambda: evaluate(LEVER, several(POLICY), KEY, 2),
        "params, of .* does not fit task lever",
    ),
    "another task's policy": (
        lambda: sample_preferences(LEVER, POLICY, CARTPOLE, KEY, 2),
        "pi2_params, of module ActorCritic, does not fit task lever",
    ),
    "too many actions": (
        lambda: evaluate(dataclasses.replace(LEVER, num_actions=3), POLICY, KEY, 2),
        r"params must give outputs of shapes \[\(3,\), \(\)\] for task lever, got \[\(2,\), \(\)\]",
    ),
    "a reward model for a policy": (lambda: train_dpo(init=REWARD), "init_params, of module RewardModel, does not fit"),
    "a policy for a reward model": (lambda: train_ppo(reward=POLICY), "reward_params, of module ActorCritic, does not"),
    "another task's reward model": (
        lambda: train_ppo(reward=init_reward(KEY, dataclasses.replace(LEVER, num_actions=3))),
        "reward_params is of 3 actions, and task lever has 2",
    ),
    # preferences and trajectories
    "pairs of another task": (
        lambda: fit_reward(WIDE),
        "preferences must have observations of 1 numbers, as task lever",
    ),
    "a single pair": (lambda: train_dpo(preferences.take(PAIRS, 0)), r"preferences.chosen.mask must have the shape"),
    "zero pairs": (lambda: train_dpo(preferences.take(PAIRS, slice(0))), "the number of preferences must be at least 1, got 0"),
    "a tuple of pairs": (lambda: train_dpo((EPISODES, EPISODES)), "preferences must be a Preferences, got a tuple"),
    "pairs of two lengths": (lambda: train_dpo(PAIRS.replace(rejected=LONGER)), "must have the same shape"),
    "weights in a column": (lambda: fit_reward(PAIRS.replace(weight=N1)), r"preferences.weight must .*got \[4, 1\]"),
    "obs without features": (
        lambda: jaxpref.trajectory_kl(POLICY, POLICY, EPISODES.replace(obs=jnp.zeros((4, 10)))),
        r"trajectory.obs must have the shape \[4, 10, 10\], got \[4, 10\]",
    ),
    "one trajectory to label": (
        lambda: preferences.label_pairs(KEY, lane(EPISODES, 0), lane(EPISODES, 1), bradley_terry),
        r"first.mask must have the shape \[N, T\], got \[10\]",
    ),
    "an annotator that says yes": (lambda: label(lambda *_: True), "annotator's answer must be a Label, got True"),
    "an answer for every step": (
        lambda: label(lambda key, first, second: Label(first > second, 1.0, 1.0)),
        r"Label whose first_preferred is .*, got bool\[10\]",
    ),
    "a reversed range": (
        lambda: label(functools.partial(annotators.undecided, threshold=0.1, return_range=(5.0, 1.0))),
        r"return_range must be \(lowest, highest\), got \(5.0, 1.0\)",
    ),
    # arrays that would be broadcast
    "log-probabilities in a column": (lambda: losses.dpo(N, N1, N, N, 0.1), "must have the same shape"),
    "targets in a column": (lambda: losses.value(N, N1), r"prediction \[4\], target \[4, 1\]"),
    "values in a column": (lambda: returns.gae(N, N1, N, N > 0, N > 0, 0.9, 0.9), r"same shape.*value \[4, 1\]"),
    "rewards of many": (lambda: returns.discounted_returns(N1, 0.9), r"reward must have one axis, time, got \[4, 1\]"),
    "scores in a column": (lambda: ranking.negative_log_likelihood(N1, N1, PAIRS), r"weight \[4\]"),
    "no scores": (lambda: statistics.iqm([]), "scores must hold at least one seed"),
    # configs
    "a dict for a config": (lambda: train_reinforce({}), r"config must be a reinforce\.Config, got a dict"),
    "another trainer's config": (
        lambda: train_ppo(config=QUICK["dpo"]),
        r"config must be a ppo\.Config, got dpo\.Config",
    ),
    "a negative beta": (lambda: train_dpo(beta=-1), r"dpo\.Config: beta must be at least 0, got -1"),
    "a beta in words": (lambda: train_dpo(beta="0.1"), r"dpo\.Config: beta must be a number, got '0.1'"),
    "several betas": (lambda: train_dpo(beta=jnp.ones(2)), r"beta must be one number, got \[2\].*jax.vmap"),
    "half an update": (lambda: train_dpo(num_updates=1.5), r"dpo\.Config: num_updates must be a whole number, got 1.5"),
    "an unknown loss": (lambda: train_dpo(loss="slic"), r"dpo\.Config: loss must be one of .*, got 'slic'"),
    "an infinite float32": (
        lambda: train_ppo(learning_rate=1e39),
        "learning_rate must be a finite float32, got 1e",
    ),
    "a word for True": (lambda: train_reinforce(score_shaping="maybe"), "score_shaping must be True or False, got"),
    "a potential that is missing": (lambda: train_reinforce(shape_reward=True), "task lever has none"),
    "PPO's config for a reward model's": (
        lambda: online.train_rlhf(
            LEVER, online.Config(), QUICK["ppo"], QUICK["ppo"], KEY, bradley_terry, 5, POLICY, POLICY
        ),
        r"reward_config must be a reward_model\.Config, got ppo\.Config",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_wrong_argument_is_named_in_one_sentence(name):
    call, message = REFUSED[name]
    with pytest.raises((TypeError, ValueError), match=message) as caught:
        call()
    assert "\n" not in str(caught.value)


def test_an_ensemble_is_a_reward_model():
    networks.check_reward(LEVER, Network(Ensemble(REWARD.module), several(REWARD.params)))
    with pytest.raises(ValueError, match="reward_params, of module RewardModel, does not fit task lever"):
        networks.check_reward(LEVER, several(REWARD))


@settings(deadline=None, max_examples=25)
@given(
    st.sampled_from(["obs", "action", "reward", "next_obs", "mask"]),
    st.lists(st.integers(0, 4), max_size=4).map(tuple),
    st.sampled_from([np.float32, np.int32, np.bool_]),
)
def test_a_trajectory_is_accepted_if_and_only_if_its_fields_fit(field, shape, dtype):
    """One field of a trajectory [2, 3] of 2 features is replaced by any array."""
    good = random_trajectories(np.random.default_rng(1), [1, 3], 3, obs_size=2)
    kind = {"action": np.int32, "mask": np.bool_}.get(field, np.float32)
    changed = good.replace(**{field: np.zeros(shape, dtype)})
    if shape == getattr(good, field).shape and dtype == kind:
        checks.check_trajectory(changed, num_axes=1)
    else:
        with pytest.raises((TypeError, ValueError), match=r"trajectory\."):
            checks.check_trajectory(changed, num_axes=1)


# --- configs ----------------------------------------------------------------------------------------------------------


@struct.dataclass
class Config:
    rate: Scalar = checks.setting(0.5, low=0, high=1)
    scale: Scalar = checks.setting(2.0, low=0)
    steps: int = checks.setting(3, low=1)
    kind: str = checks.setting("a", choices=("a", "b"))
    flag: bool = checks.setting(True)
    maybe: bool | None = checks.setting(None)

    def problems(self):
        if self.steps > 10 * self.scale:
            yield "steps", "must be at most 10 * scale"


def test_only_floats_are_leaves():
    assert jax.tree.leaves(Config()) == [0.5, 2.0]
    assert hash(jax.tree.structure(Config())) == hash(jax.tree.structure(Config(rate=0.1)))


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, []),
        ({"rate": 0, "scale": np.float32(3), "maybe": False, "flag": np.bool_(False)}, []),
        ({"rate": jnp.float32(7)}, []),  # nobody looks at the values of arrays
        ({"rate": 1.5}, [("rate", "must be between 0 and 1, got 1.5")]),
        ({"rate": float("nan")}, [("rate", "must be a finite float32, got nan")]),
        ({"rate": True}, [("rate", "must be a number, got True")]),
        ({"scale": np.ones(3)}, [("scale", "must be one number, got [3] of them: use jax.vmap to sweep them")]),
        ({"steps": 0, "kind": "c"}, [("steps", "must be at least 1, got 0"), ("kind", "must be one of a, b, got 'c'")]),
        ({"steps": 2.0}, [("steps", "must be a whole number, got 2.0")]),
        ({"kind": len}, [("kind", f"must be one of a, b, got {len!r}")]),
        ({"flag": 1}, [("flag", "must be True or False, got 1")]),
        ({"maybe": "no"}, [("maybe", "must be True, False or None, got 'no'")]),
        ({"steps": 30}, [("steps", "must be at most 10 * scale")]),
        ({"steps": 30, "flag": 1}, [("flag", "must be True or False, got 1")]),  # its own rules come last
    ],
)
def test_problems_of_a_config(changes, expected):
    config = Config().replace(**changes)
    assert list(checks.problems(config)) == expected
    if expected:
        with pytest.raises(ValueError) as caught:  # noqa: PT011
            checks.check_config(config, Config)
        assert str(caught.value) == f"test_checks.Config: {' '.join(expected[0])}"
    else:
        checks.check_config(config, Config)


@pytest.mark.parametrize("leaf", [None, "0.1", True, np.ones(3), jax.ShapeDtypeStruct((), np.float32)])
def test_a_config_is_a_pytree_of_whatever_jax_puts_in_it(leaf):
    """JAX builds configs with axes, labels and placeholders: leaves are checked only where a config is used."""
    for config in (annotators.Config(), online.Config(), reinforce.Config(), *QUICK.values()):
        other = jax.tree.map(lambda _: leaf, config)
        assert type(other) is type(config)


def test_a_config_is_swept_by_vmap():
    axes = jax.tree.map(lambda _: None, QUICK["dpo"]).replace(beta=0, loss="ipo")
    swept = jax.vmap(lambda config: checks.check_config(config, dpo.Config) or config.beta, in_axes=(axes,))
    configs = QUICK["dpo"].replace(beta=jnp.arange(1.0, 4.0), loss="ipo")
    np.testing.assert_array_equal(swept(configs), [1, 2, 3])


# --- divergence -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("loss", "size", "last", "num_updates", "expected"),
    [
        ([1, 2, 3], [1, 1, 1], 1, 3, (0, "nothing")),
        ([1, np.nan, 3], [1, 1, 1], 1, 3, (2, "loss")),
        ([1, -np.inf, np.nan], [1, 1, 1], 1, 3, (2, "loss")),
        ([1, 2, 3], [1, 1, 1], np.nan, 3, (3, "parameters")),
        ([1, 2, 3], [1, 2 * LIMIT, 1], 1, 3, (1, "parameters")),  # before the second update is after the first
        ([1, 2, np.nan], [1, 1, 2 * LIMIT], np.nan, 3, (2, "parameters")),
        ([np.nan, 2, 3], [1, np.nan, 1], 1, 3, (1, "loss")),
        ([1, np.nan, np.nan], [1, np.nan, np.nan], 1, 1, (0, "nothing")),  # NaN after the last update
        ([1, np.nan, np.nan], [1, np.nan, np.nan], -np.inf, 1, (1, "parameters")),
    ],
)
def test_the_first_update_that_diverged_hand_worked(loss, size, last, num_updates, expected):
    loss, size = jnp.array(loss, jnp.float32), jnp.array(size, jnp.float32)
    found = find_divergence(loss, size, {"a": jnp.zeros(2), "b": jnp.array([[0.5, last]])}, num_updates)
    assert (int(found.update), WHAT[int(found.what)]) == expected


def test_the_size_of_parameters_is_that_of_the_largest():
    assert param_size({"a": jnp.array([1.0, -3.0]), "b": jnp.array(2.0)}) == 3
    assert np.isnan(param_size({"a": jnp.array([1.0, np.nan]), "b": jnp.array(2.0)}))


LEARNING_RATES = [jnp.array([0.01, 0.01, 0.01]), jnp.array([0.01, 1e3, 0.01])]
TRAINERS = {
    "dpo": lambda rate, key: dpo.train(
        SIGN,
        dpo.Config(num_updates=4, eval_every=4, eval_episodes=1, learning_rate=rate),
        key,
        SIGN_PAIRS,
        *[SIGNER] * 2,
    ),
    "reward_model": lambda rate, key: reward_model.train(
        SIGN, reward_model.Config(num_updates=4, learning_rate=rate), key, SIGN_PAIRS
    ),
    "ppo": lambda rate, key: ppo.train(
        SIGN,
        ppo.Config(num_updates=2, eval_every=2, eval_episodes=1, num_envs=2, num_steps=8, learning_rate=rate),
        key,
        *[SIGNER] * 2,
        sign_reward(),
    ),
    "reinforce": lambda rate, key: reinforce.train(
        SIGN, reinforce.Config(num_updates=3, episodes_per_update=2, learning_rate=rate), key
    ),
}
SIGNER, SIGN_PAIRS = init_policy(KEY, SIGN), random_preferences(RNG, 8, SIGN.horizon, obs_size=1)


@pytest.mark.parametrize("name", TRAINERS)
def test_a_learning_rate_of_1000_on_one_seed_of_three_is_found_and_leaves_the_others_as_they_were(name):
    train = jax.jit(jax.vmap(TRAINERS[name]))
    sound, spoilt = (train(rates, keys(3, 5, 8)) for rates in LEARNING_RATES)
    assert sound.divergence.update.tolist() == [0, 0, 0]
    assert (spoilt.divergence.update > 0).tolist() == [False, True, False]
    assert spoilt.divergence.what[1] > 0
    for seed in (0, 2):
        assert_same_bytes(lane(sound, seed), lane(spoilt, seed))
