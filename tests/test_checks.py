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
from helpers import AIM, LEVER, keys, random_preferences, random_trajectories
from hypothesis import given, settings
from hypothesis import strategies as st

import jaxpref
from jaxpref import (
    annotators,
    checks,
    dpo,
    expert_ppo,
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
from jaxpref.tasks import offline
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


def of_actions(action):
    return PAIRS.replace(chosen=PAIRS.chosen.replace(action=action))


def train_ppo(**changes):
    return ppo.train(LEVER, PPO.replace(**changes), KEY, POLICY, POLICY, REWARD)


def fit(**changes):
    return reward_model.train(LEVER, REWARD_MODEL.replace(**changes), KEY, PAIRS)


def train_reinforce(**changes):
    return reinforce.train(LEVER, reinforce.Config(**changes), KEY)


def experts_by_ppo(task=LEVER, config=PPO, init_params=None):
    return expert_ppo.train(task, config, KEY, init_params)


def online_dpo(num_pairs=12, segment=None, **changes):
    config, dpo_config = online.Config(**changes), DPO.replace(num_updates=12, eval_every=2)
    return online.train_dpo(LEVER, config, dpo_config, KEY, annotators.noiseless, num_pairs, POLICY, POLICY, segment)


def online_rlhf(num_pairs=12, segment=None, **changes):
    configs = online.Config(**changes), REWARD_MODEL, PPO.replace(num_updates=12, eval_every=2)
    return online.train_rlhf(LEVER, *configs, KEY, annotators.noiseless, num_pairs, POLICY, POLICY, segment)


label = functools.partial(preferences.label_pairs, KEY, PAIRS.chosen, PAIRS.rejected)
SEVERAL = jax.tree.map(lambda leaf: jnp.stack([leaf, leaf]), POLICY)
TIES = annotators.Config(0.0, tie_threshold=0.1)
REVERSED = functools.partial(annotators.teacher, config=TIES, return_range=(5.0, 1.0))
MYOPIC = functools.partial(annotators.teacher, config=annotators.Config(discount=-0.5))
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
    (lambda: evaluate(AIM, POLICY, KEY, 2), r"of shapes \[\(1,\), \(1,\), \(\)\] for task aim, got \[\(2,\), \(\)\]"),
    (lambda: train_dpo(init=REWARD), "init_params, of module RewardModel, does not fit"),
    (lambda: ppo.train(LEVER, PPO, KEY, POLICY, POLICY, init_reward(KEY, THREE)), "is of 3 actions"),
    # preferences and trajectories
    (lambda: train_dpo(random_preferences(RNG, 4, 10)), "preferences must have observations of 1 numbers, as task"),
    (
        lambda: train_dpo(of_actions(jnp.zeros((4, 10)))),
        r"chosen.action must have the shape \[4, 10, 1\], got \[4, 10\]",
    ),
    (lambda: train_dpo(preferences.take(PAIRS, 0)), r"preferences.chosen.mask must have the shape \[N, T\], got"),
    (lambda: train_dpo(preferences.take(PAIRS, slice(0))), "the number of preferences must be at least 1"),
    (lambda: train_dpo(PAIRS.replace(rejected=LONGER)), "must have the same shape"),
    (lambda: train_dpo(PAIRS.replace(weight=N1)), r"preferences.weight must have the shape \[4\], got \[4, 1\]"),
    (lambda: label(lambda key, first, second: Label(first.mask, 1.0, 1.0)), r"whose first_preferred.*bool\[10\]"),
    (lambda: sample_preferences(LEVER, POLICY, POLICY, KEY, 2, segment=0), "segment must be at least 1, got 0"),
    (lambda: sample_preferences(LEVER, POLICY, POLICY, KEY, 2, segment=11), "segment must be at most 10, .* got 11"),
    (lambda: sample_preferences(LEVER, POLICY, POLICY, KEY, 2, others=[CARTPOLE]), "one of others, of module"),
    (lambda: label(REVERSED), r"return_range must be \(lowest, highest\), got \(5.0, 1.0\)"),
    # arrays that would be broadcast
    (lambda: returns.gae(N, N1, N, N > 0, N > 0, 0.9, 0.9), r"same shape.*value \[4, 1\]"),
    (lambda: returns.discounted_returns(N1, 0.9), r"reward must have one axis, time, got \[4, 1\]"),
    (lambda: ranking.negative_log_likelihood(N1, N1, PAIRS), r"weight \[4\]"),
    # configs
    (lambda: reinforce.train(LEVER, {}, KEY), r"config must be a reinforce\.Config, got a dict"),
    (lambda: train_dpo(beta=-1), r"^dpo\.Config: beta must be at least 0, got -1"),
    (lambda: train_dpo(loss="slic"), r"^dpo\.Config: loss must be one of rpo, .*, got 'slic'"),
    (lambda: train_dpo(loss=lambda pairs, beta: beta), r"^dpo\.Config: loss .*per pair, \[64\], got \[\]"),
    (lambda: train_dpo(num_updates=10, eval_every=3), "num_updates must be a multiple of eval_every, got 10 and 3"),
    (lambda: train_dpo(beta=0.0, loss="ipo"), "beta must be at least 1e-06 for loss ipo"),
    (lambda: train_dpo(label_smoothing=0.51), "label_smoothing must be between 0 and 0.5, got 0.51"),
    (lambda: train_dpo(loss="robust", label_smoothing=0.5), "label_smoothing must be at most 0.49 for loss robust"),
    (lambda: train_ppo(num_updates=10, eval_every=3), r"^ppo\.Config: num_updates must be a multiple of eval_every"),
    (lambda: train_ppo(num_steps=-1), "num_steps must be at least 1, got -1"),
    (lambda: train_ppo(num_envs=2, num_steps=3, num_minibatches=7), "num_minibatches must be at most num_envs"),
    (lambda: train_ppo(kl_penalty="both"), "kl_penalty must be one of reward, loss, got 'both'"),
    (lambda: fit(num_updates=0), r"^reward_model\.Config: num_updates must be at least 1, got 0"),
    (lambda: fit(holdout_every=1), "holdout_every must be 0 or at least 2, got 1"),
    (lambda: fit(holdout_every=4, num_folds=2), "holdout_every must not be a multiple of num_folds, 2"),
    (lambda: fit(holdout_every=5), "holdout_every must be at most the number of pairs, 4, got 5"),
    (lambda: train_reinforce(num_updates=0), r"^reinforce\.Config: num_updates must be at least 1, got 0"),
    (lambda: train_reinforce(baseline="none"), "baseline must be one of value, handmade, got 'none'"),
    (lambda: train_reinforce(score_shaping="maybe"), "score_shaping must be True or False, got 'maybe'"),
    (lambda: train_reinforce(shape_reward=True), "the task's potential, and task lever has none"),
    (lambda: train_reinforce(baseline="handmade"), "the task's baseline, and task lever has none"),
    (lambda: label(MYOPIC), r"annotators\.Config: discount .* got -0.5"),
    (lambda: experts_by_ppo(init_params=CARTPOLE), "init_params, of module ActorCritic, does not fit task lever"),
    (lambda: experts_by_ppo(config={}), r"config must be a ppo\.Config, got a dict"),
    (lambda: experts_by_ppo(LEVER.replace(shape_reward=True)), "the task's potential, and task lever has none"),
    (lambda: offline(3, 2, 10, ((-1.0, 1.0),)), "action_range must have 2 pairs, as many as num_actions, got 1"),
    # rounds
    (lambda: online_dpo(10, num_rounds=3), "num_rounds must divide num_pairs, got 3 and 10"),
    (lambda: online_dpo(num_rounds=4), "num_updates must be a multiple of eval_every, got 3 and 2"),
    (lambda: online_rlhf(10, num_rounds=5), "num_rounds must divide num_updates, got 5 and 12"),
    (lambda: online_rlhf(0), "num_pairs must be at least 1, got 0"),
    (lambda: online_dpo(num_rounds=3, segment=11), "segment must be at most 10, the horizon of task lever, got 11"),
    (lambda: online_rlhf(num_rounds=3, segment=2.5), "segment must be a whole number, got 2.5"),
    (lambda: online_rlhf(disagreement=1.5), r"^online\.Config: disagreement must be between 0 and 1, got 1.5"),
]


@pytest.mark.parametrize(("call", "message"), REFUSED, ids=[message for _, message in REFUSED])
def test_a_wrong_argument_is_named_in_one_sentence(call, message):
    with pytest.raises((TypeError, ValueError), match=message) as caught:
        call()
    assert "\n" not in str(caught.value)


@settings(deadline=None, max_examples=25)
@given(
    st.sampled_from(["obs", "action", "reward", "next_obs", "mask"]),
    st.one_of(st.lists(st.integers(0, 4), max_size=4).map(tuple), st.just((2, 3)), st.just((2, 3, 4))),
    st.sampled_from([np.float32, np.int32, np.bool_]),
)
def test_a_trajectory_is_accepted_if_and_only_if_its_fields_fit(field, shape, dtype):
    """One field of a trajectory [2, 3] of 2 features is replaced by any array. An action may also be some numbers."""
    good = random_trajectories(np.random.default_rng(1), [1, 3], 3, obs_size=2)
    kind = {"action": np.int32, "mask": np.bool_}.get(field, np.float32)
    changed = good.replace(**{field: np.zeros(shape, dtype)})
    is_continuous = field == "action" and dtype == np.float32 and shape[:2] == (2, 3) and len(shape) == 3 and shape[2]
    if (shape == getattr(good, field).shape and dtype == kind) or is_continuous:
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
