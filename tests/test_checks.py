"""A wrong argument is named in one sentence, where a user enters the library. Training that diverges is found."""

from __future__ import annotations

import dataclasses
import functools
import re
from types import SimpleNamespace

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
    online,
    ppo,
    preferences,
    ranking,
    reinforce,
    returns,
    reward_model,
)
from jaxpref.annotators import Label
from jaxpref.divergence import LIMIT, WHAT, find_divergence
from jaxpref.networks import init_policy, init_reward
from jaxpref.preferences import sample_preferences
from jaxpref.rollout import evaluate
from jaxpref.types import Scalar

KEY = jax.random.key(0)


@pytest.fixture(autouse=True)
def without_type_checker():
    """A user has none."""
    before = jaxtyping.config.jaxtyping_disable
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", before)


POLICY, REWARD = init_policy(KEY, LEVER), init_reward(KEY, LEVER)
CARTPOLE = init_policy(KEY, jaxpref.cartpole())
RNG = np.random.default_rng(0)
PAIRS = random_preferences(RNG, 4, LEVER.horizon, obs_size=1)
LONGER = random_trajectories(RNG, [3, 12, 5, 1], 12, obs_size=1)
N, N1 = jnp.ones(4), jnp.ones((4, 1))
DPO, PPO, REWARD_MODEL = dpo.Config(), ppo.Config(eval_episodes=1), reward_model.Config()
THREE = dataclasses.replace(LEVER, num_actions=3)


def train_dpo(pairs=PAIRS, init=POLICY, **changes):
    return dpo.train(LEVER, DPO.replace(**changes), KEY, pairs, init, POLICY)


label = functools.partial(preferences.label_pairs, KEY, PAIRS.chosen, PAIRS.rejected)
SEVERAL = jax.tree.map(lambda leaf: jnp.stack([leaf, leaf]), POLICY)
REVERSED = functools.partial(annotators.undecided, threshold=0.1, return_range=(5.0, 1.0))
REFUSED = [
    (lambda: evaluate(LEVER, POLICY, jax.random.PRNGKey(0), 2), "key must be a typed key.*uint32"),
    (lambda: evaluate(LEVER, POLICY, keys(1, 2), 2), r"key must be one key, got \[2\]"),
    (lambda: evaluate("cartpole", POLICY, KEY, 2), "task must be a Task, got 'cartpole'"),
    (lambda: evaluate(LEVER, POLICY, KEY, 0), "num_episodes must be at least 1, got 0"),
    (lambda: sample_preferences(LEVER, POLICY, POLICY, KEY, True), "num_pairs must be a whole number, got True"),
    # networks
    (lambda: evaluate(LEVER, {"params": POLICY.params}, KEY, 2), "params must be a Network, got a dict"),
    (lambda: evaluate(LEVER, SEVERAL, KEY, 2), "params, of module ActorCritic, does not fit task lever"),
    (lambda: sample_preferences(LEVER, POLICY, CARTPOLE, KEY, 2), "pi2_params, of module ActorCritic, does not fit"),
    (lambda: evaluate(THREE, POLICY, KEY, 2), r"must give outputs of shapes \[\(3,\), \(\)\].*got \[\(2,\), \(\)\]"),
    (lambda: train_dpo(init=REWARD), "init_params, of module RewardModel, does not fit"),
    (lambda: ppo.train(LEVER, PPO, KEY, POLICY, POLICY, init_reward(KEY, THREE)), "is of 3 actions"),
    # preferences and trajectories
    (lambda: train_dpo(random_preferences(RNG, 4, 10)), "preferences must have observations of 1 numbers, as task"),
    (lambda: train_dpo(preferences.take(PAIRS, 0)), r"preferences.chosen.mask must have the shape \[N, T\], got"),
    (lambda: train_dpo(preferences.take(PAIRS, slice(0))), "the number of preferences must be at least 1"),
    (lambda: train_dpo(PAIRS.replace(rejected=LONGER)), "must have the same shape"),
    (lambda: train_dpo(PAIRS.replace(weight=N1)), r"preferences.weight must have the shape \[4\], got \[4, 1\]"),
    (lambda: label(lambda key, first, second: Label(first > second, 1.0, 1.0)), r"whose first_preferred.*bool\[10\]"),
    (lambda: label(REVERSED), r"return_range must be \(lowest, highest\), got \(5.0, 1.0\)"),
    # arrays that would be broadcast
    (lambda: returns.gae(N, N1, N, N > 0, N > 0, 0.9, 0.9), r"same shape.*value \[4, 1\]"),
    (lambda: returns.discounted_returns(N1, 0.9), r"reward must have one axis, time, got \[4, 1\]"),
    (lambda: ranking.negative_log_likelihood(N1, N1, PAIRS), r"weight \[4\]"),
    # configs
    (lambda: reinforce.train(LEVER, {}, KEY), r"config must be a reinforce\.Config, got a dict"),
    (lambda: train_dpo(beta=-1), r"dpo\.Config: beta must be at least 0, got -1"),
    (lambda: train_dpo(loss="slic"), r"dpo\.Config: loss must be one of .*, got 'slic'"),
    (lambda: reinforce.train(LEVER, reinforce.Config(shape_reward=True), KEY), "task lever has none"),
]


@pytest.mark.parametrize(("call", "message"), REFUSED, ids=[message for _, message in REFUSED])
def test_a_wrong_argument_is_named_in_one_sentence(call, message):
    with pytest.raises((TypeError, ValueError), match=message) as caught:
        call()
    assert "\n" not in str(caught.value)


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
        ({"rate": jnp.float32(7)}, []),  # nobody looks at the values of arrays
        ({"rate": 1.5}, [("rate", "must be between 0 and 1, got 1.5")]),
        ({"rate": float("nan")}, [("rate", "must be a finite float32, got nan")]),
        ({"rate": True}, [("rate", "must be a number, got True")]),
        ({"scale": np.ones(3)}, [("scale", "must be one number, got [3] of them: use jax.vmap to sweep them")]),
        ({"steps": 0, "kind": "c"}, [("steps", "must be at least 1, got 0"), ("kind", "must be one of a, b, got 'c'")]),
        ({"steps": 2.0}, [("steps", "must be a whole number, got 2.0")]),
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
        with pytest.raises(ValueError, match=re.escape(f"test_checks.Config: {' '.join(expected[0])}")):
            checks.check_config(config, Config)


@pytest.mark.parametrize("leaf", [None, "0.1", np.ones(3), jax.ShapeDtypeStruct((), np.float32)])
def test_a_config_is_a_pytree_of_whatever_jax_puts_in_it(leaf):
    """JAX builds configs with axes, labels and placeholders: leaves are checked only where a config is used."""
    for config in (annotators.Config(), online.Config(), reinforce.Config(), DPO, PPO, REWARD_MODEL):
        assert type(jax.tree.map(lambda _: leaf, config)) is type(config)


def test_a_config_is_swept_by_vmap():
    axes = jax.tree.map(lambda _: None, DPO).replace(beta=0)
    swept = jax.vmap(lambda config: checks.check_config(config, dpo.Config) or config.beta, in_axes=(axes,))
    np.testing.assert_array_equal(swept(DPO.replace(beta=jnp.arange(1.0, 4.0))), [1, 2, 3])


@pytest.mark.parametrize(
    ("loss", "size", "last", "num_updates", "expected"),
    [
        ([1, 2, 3], [1, 1, 1], 1, 3, (0, "nothing")),
        ([1, np.nan, 3], [1, 1, 1], 1, 3, (2, "loss")),
        ([1, 2, 3], [1, 1, 1], np.nan, 3, (3, "parameters")),
        ([1, 2, 3], [1, 2 * LIMIT, 1], 1, 3, (1, "parameters")),  # before the second update is after the first
        ([np.nan, 2, 3], [1, np.nan, 1], 1, 3, (1, "loss")),
        ([1, np.nan, np.nan], [1, np.nan, np.nan], 1, 1, (0, "nothing")),  # NaN after the last update
    ],
)
def test_the_first_update_that_diverged_hand_worked(loss, size, last, num_updates, expected):
    metrics = SimpleNamespace(loss=jnp.float32(loss), param_size=jnp.float32(size))
    found = find_divergence(metrics, {"a": jnp.zeros(2), "b": jnp.array([[0.5, last]])}, num_updates)
    assert (int(found.update), WHAT[int(found.what)]) == expected


SIGNER, SIGN_PAIRS = init_policy(KEY, SIGN), random_preferences(RNG, 8, SIGN.horizon, obs_size=1)
QUICK = {
    dpo: (dpo.Config(num_updates=4, eval_every=4, eval_episodes=0), SIGN_PAIRS, SIGNER, SIGNER),
    reward_model: (reward_model.Config(num_updates=4), SIGN_PAIRS),
    ppo: (PPO.replace(num_updates=2, eval_every=2, num_envs=2, num_steps=8), SIGNER, SIGNER, sign_reward()),
    reinforce: (reinforce.Config(num_updates=3, episodes_per_update=2),),
}
"""{trainer: (config, *what follows the key)}."""


@pytest.mark.parametrize("trainer", QUICK, ids=lambda trainer: trainer.__name__)
def test_a_learning_rate_of_1000_on_one_seed_of_three_is_found_and_leaves_the_others_as_they_were(trainer):
    config, *data = QUICK[trainer]
    train = jax.jit(jax.vmap(lambda rate, key: trainer.train(SIGN, config.replace(learning_rate=rate), key, *data)))
    sound, spoilt = (train(jnp.array([0.01, rate, 0.01]), keys(3, 5, 8)) for rate in (0.01, 1e3))
    assert sound.divergence.update.tolist() == [0, 0, 0]
    assert (spoilt.divergence.update > 0).tolist() == [False, True, False]
    assert spoilt.divergence.what[1] > 0
    for seed in (0, 2):
        assert_same_bytes(lane(sound, seed), lane(spoilt, seed))
