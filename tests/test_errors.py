"""What is wrong is said in one sentence: arguments of the library, flags of the programs, training that diverges.

The type checker of the other tests is off here: a user has none, and the library's own words are what is tested.
"""

import contextlib
import dataclasses
import functools
import io
import itertools
import re
import shlex
import signal
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import jaxtyping
import numpy as np
import pytest
from helpers import LEVER, SIGN, assert_same_bytes, keys, lane, random_preferences, random_trajectories, sign_reward
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console

import experiments
import jaxpref
from experiments import animations, bench, command, evidence, pipeline, report, stages, study, sweep
from experiments.settings import Settings
from jaxpref import (
    acrobot,
    annotators,
    apply_policy,
    apply_reward,
    cartpole,
    checks,
    dpo,
    episode,
    evaluate,
    fit,
    losses,
    online,
    ppo,
    preferences,
    ranking,
    reinforce,
    returns,
    reward_model,
    sample_preferences,
    statistics,
    store,
    tasks,
    trajectory_kl,
    trajectory_log_prob,
    trajectory_reward,
)
from jaxpref.annotators import Label, bradley_terry
from jaxpref.divergence import LIMIT, WHAT, Divergence, find_divergence, param_size
from jaxpref.networks import init_policy, init_reward

ROOT = Path(__file__).parents[1]
KEY = jax.random.key(0)


@pytest.fixture(autouse=True)
def without_type_checker():
    before = jaxtyping.config.jaxtyping_disable
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", before)


# --- arguments of the library -----------------------------------------------------------------------------------------

POLICY, REWARD = init_policy(KEY, LEVER), init_reward(KEY, LEVER)
CARTPOLE, ACROBOT = (init_policy(KEY, make()) for make in (cartpole, acrobot))
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


def train_dpo(pairs=PAIRS, init=POLICY, ref=POLICY, key=KEY, config=QUICK["dpo"]):
    return dpo.train(LEVER, config, key, pairs, init, ref)


def train_ppo(init=POLICY, ref=POLICY, reward=REWARD, key=KEY, config=QUICK["ppo"], task=LEVER):
    return ppo.train(task, config, key, init, ref, reward)


def fit_reward(pairs=PAIRS, key=KEY, config=QUICK["reward_model"]):
    return reward_model.train(LEVER, config, key, pairs)


def train_online(num_pairs=5, init=POLICY, key=KEY, config=online.Config()):  # noqa: B008
    return online.train_dpo(LEVER, config, QUICK["dpo"], key, bradley_terry, num_pairs, init, POLICY)


def label(annotator):
    return preferences.label_pairs(KEY, PAIRS.chosen, PAIRS.rejected, annotator)


def several(params):
    return jax.tree.map(lambda leaf: jnp.stack([leaf, leaf]), params)


catch = functools.partial(tasks.from_gymnax, "Catch-bsuite")

LIBRARY = {
    "an old key": (lambda: evaluate(LEVER, POLICY, jax.random.PRNGKey(0), 2), "key must be a typed key.*uint32"),
    "a number for a key": (lambda: evaluate(LEVER, POLICY, 0, 2), "key must be a typed key.*got 0"),
    "keys for a key": (lambda: evaluate(LEVER, POLICY, keys(1, 2), 2), r"key must be a single key, got \[2\]"),
    "no episodes": (lambda: evaluate(LEVER, POLICY, KEY, 0), "num_episodes must be at least 1, got 0"),
    "half an episode": (lambda: evaluate(LEVER, POLICY, KEY, 0.5), "num_episodes must be a whole number, got 0.5"),
    "a result for its params": (lambda: evaluate(LEVER, EPISODES, KEY, 2), "params must be the parameters of a policy"),
    "no parameters": (lambda: evaluate(LEVER, None, KEY, 2), "params must be the parameters of a policy.*lever"),
    "parameters of many seeds": (lambda: evaluate(LEVER, several(POLICY), KEY, 2), "params must be .* task lever"),
    "another task's policy": (
        lambda: sample_preferences(cartpole(), CARTPOLE, ACROBOT, KEY, 2),
        "pi2_params must be the parameters of a policy for task cartpole, whose observations are 4 numbers",
    ),
    "too many actions": (
        lambda: evaluate(dataclasses.replace(LEVER, num_actions=3), POLICY, KEY, 2),
        r"params must belong to task lever, giving 3 logits and one value, got logits \[2\]",
    ),
    "no pairs": (lambda: sample_preferences(LEVER, POLICY, POLICY, KEY, 0), "num_pairs must be at least 1, got 0"),
    "True pairs": (lambda: sample_preferences(LEVER, POLICY, POLICY, KEY, True), "num_pairs must be a whole number"),
    "2.0 pairs": (lambda: sample_preferences(LEVER, POLICY, POLICY, KEY, 2.0), "num_pairs must be a whole number"),
    "one trajectory to label": (
        lambda: preferences.label_pairs(KEY, lane(EPISODES, 0), lane(EPISODES, 1), bradley_terry),
        r"first.mask must have the shape \[N, T\], got \[10\]",
    ),
    "episodes of two lengths": (
        lambda: preferences.label_pairs(KEY, EPISODES, LONGER, bradley_terry),
        r"first, second must have the same shape, got first \[4, 10, 1\], second \[4, 12, 1\]",
    ),
    "a pair beyond the last": (lambda: preferences.take(PAIRS, 4), "index must lie between -4 and 3 for 4 pairs"),
    "half an index": (lambda: preferences.take(PAIRS, jnp.array([0.5])), "index must be an array of integers"),
    "half a prefix": (lambda: preferences.prefix(PAIRS, 1.5), "num_pairs must be a whole number, got 1.5"),
    "a negative prefix": (lambda: preferences.prefix(PAIRS, -1), "num_pairs must be at least 0, got -1"),
    "half a split": (lambda: preferences.split(PAIRS, 1.5), "num_heldout must be a whole number, got 1.5"),
    "a single pair": (lambda: train_dpo(preferences.take(PAIRS, 0)), r"preferences.chosen.mask must have the shape"),
    "zero pairs": (lambda: train_dpo(preferences.take(PAIRS, slice(0))), "preferences must hold at least one pair"),
    "pairs of two lengths": (
        lambda: train_dpo(PAIRS.replace(rejected=LONGER)),
        "preferences.chosen and preferences.rejected must have the same shape",
    ),
    "pairs of another task": (lambda: fit_reward(WIDE), "preferences must belong to task lever.*1 numbers, got 4"),
    "weights in a column": (lambda: fit_reward(PAIRS.replace(weight=N1)), r"preferences.weight must .*got \[4, 1\]"),
    "an action that is a float": (
        lambda: train_dpo(PAIRS.replace(chosen=PAIRS.chosen.replace(action=jnp.zeros((4, 10))))),
        "preferences.chosen.action must be an array of integers, got float32",
    ),
    "a mask of numbers": (
        lambda: trajectory_log_prob(POLICY, EPISODES.replace(mask=jnp.ones((4, 10), jnp.int32))),
        "trajectory.mask must be an array of booleans, got int32",
    ),
    "obs without features": (
        lambda: trajectory_kl(POLICY, POLICY, EPISODES.replace(obs=jnp.zeros((4, 10)))),
        "trajectory.obs must have the shape",
    ),
    "obs as a list": (
        lambda: trajectory_reward(REWARD, EPISODES.replace(obs=[[0.0]])),
        "trajectory.obs must be an array of floats, got a list",
    ),
    "rewards of fewer steps": (
        lambda: trajectory_reward(REWARD, EPISODES.replace(reward=jnp.zeros((4, 9)))),
        r"trajectory.reward must have the mask's shape \[4, 10\], got \[4, 9\]",
    ),
    "pairs that are a tuple": (lambda: train_dpo((EPISODES, EPISODES)), "preferences must be Preferences, got a tuple"),
    "a reward model for a policy": (
        lambda: train_dpo(init=REWARD),
        "init_params must be a policy's parameters, got a reward model's",
    ),
    "a policy for a reward model": (
        lambda: train_ppo(reward=POLICY),
        "reward_params must be a reward model's parameters, got a policy's",
    ),
    "another task's reward model": (
        lambda: train_ppo(reward=init_reward(KEY, dataclasses.replace(LEVER, num_actions=3))),
        "reward_params must belong to task lever.*4 inputs in place of 3",
    ),
    "another task's reference": (lambda: train_ppo(ref=CARTPOLE), "ref_params must be .* for task lever"),
    "another trainer's config": (
        lambda: train_ppo(config=QUICK["dpo"]),
        r"config must be a ppo\.Config, got dpo\.Config",
    ),
    "a dict for a config": (lambda: reinforce.train(LEVER, {}, KEY), r"config must be a reinforce\.Config"),
    "no members": (
        lambda: reward_model.train_ensemble(LEVER, QUICK["reward_model"], KEY, PAIRS, 0),
        "num_members must be at least 1, got 0",
    ),
    "no questions": (lambda: train_online(num_pairs=0), "num_pairs must be at least 1, got 0"),
    "an old key online": (lambda: train_online(key=jax.random.PRNGKey(0)), "key must be a typed key"),
    "half an update": (lambda: dpo.Config(num_updates=1.5, eval_every=1), r"dpo\.Config: num_updates .* whole number"),
    "half a minibatch": (lambda: reward_model.Config(batch_size=2.5), "batch_size must be a whole number, got 2.5"),
    "infinite as a float32": (lambda: ppo.Config(learning_rate=1e39), "learning_rate must be between 0 and 3.4"),
    "rewards of many": (lambda: returns.discounted_returns(N1, 0.9), r"reward must have one axis.*got \[4, 1\]"),
    "values in a column": (lambda: returns.gae(N, N1, N, N > 0, N > 0, 0.9, 0.9), r"same shape.*value \[4, 1\]"),
    "log-probabilities in a column": (lambda: losses.dpo(N, N1, N, N, 0.1), "must have the same shape"),
    "returns in a column": (lambda: losses.bradley_terry(N, N1), r"chosen_return \[4\], rejected_return \[4, 1\]"),
    "targets in a column": (lambda: losses.value(N, N1), r"prediction \[4\], target \[4, 1\]"),
    "advantages in a column": (lambda: losses.clipped_surrogate(N, N, N1, 0.2), r"advantage \[4, 1\]"),
    "scores in a column": (lambda: ranking.accuracy(N1, N1, PAIRS), r"weight \[4\]"),
    "no bins": (lambda: ranking.calibration_error(N, N, PAIRS, 0), "num_bins must be at least 1"),
    "NaN in scores": (lambda: statistics.bootstrap_interval([1.0, np.nan]), "scores must be numbers, not NaN"),
    "no scores": (lambda: statistics.iqm([]), "scores must hold at least one seed"),
    "scores of three axes": (lambda: statistics.bootstrap_interval(np.ones((2, 2, 2))), r"\[tasks, seeds\], got \[2"),
    "no resamples": (lambda: statistics.bootstrap_interval([1.0], num_resamples=0), "num_resamples must be at least 1"),
    # a task, a key or a network where another is wanted
    "a name for a task": (lambda: evaluate("cartpole", POLICY, KEY, 2), "task must be a Task, got 'cartpole'"),
    "no task": (
        lambda: dpo.train(None, QUICK["dpo"], KEY, PAIRS, POLICY, POLICY),
        "task must be a Task, got None",
    ),
    "no task for REINFORCE": (lambda: reinforce.train(None, reinforce.Config(), KEY), "task must be a Task, got None"),
    "a task for a key": (lambda: init_policy(LEVER, KEY), "key must be a typed key.*got a Task"),
    "a number for a policy's key": (lambda: init_policy(0, LEVER), "key must be a typed key.*got 0"),
    "keys for a reward model": (lambda: init_reward(keys(1, 2), LEVER), r"key must be a single key, got \[2\]"),
    "a number for a task": (lambda: jaxpref.task(3), "name must be a word, as 'cartpole', got 3"),
    "an episode of a reward model": (lambda: episode(LEVER, REWARD, KEY), "params must be a policy's parameters"),
    "an episode of many policies": (lambda: episode(LEVER, several(POLICY), KEY), "params must be .* task lever"),
    "a policy of other observations": (
        lambda: apply_policy(POLICY, jnp.zeros((3, 4))),
        r"params must be a policy's parameters for observations of size 4, got kernels \[1, 32\], \[32, 2\]",
    ),
    "a reward model to choose actions": (
        lambda: trajectory_log_prob(REWARD, EPISODES),
        "params must have the layers torso, policy, value, got .*reward",
    ),
    "another task's policy on a trajectory": (
        lambda: trajectory_log_prob(CARTPOLE, EPISODES),
        "params must be a policy's parameters for observations of size 1",
    ),
    "another task's reference on a trajectory": (
        lambda: trajectory_kl(POLICY, CARTPOLE, EPISODES),
        "ref_params must be a policy's parameters for observations of size 1",
    ),
    "policies of many seeds": (lambda: apply_policy(several(POLICY), N1), r"got kernels \[2, 1, 32\]"),
    "a list of parameters": (lambda: apply_policy([POLICY], N1), "params must be a network's parameters.*got a list"),
    "an observation without features": (lambda: apply_policy(POLICY, 0.5), "obs must be an array"),
    "a policy that pays": (lambda: trajectory_reward(POLICY, EPISODES), "params must have the layers torso, reward"),
    "an observation that leaves no room for an action": (  # 1 observed number and 2 actions are 3 inputs
        lambda: apply_reward(REWARD, jnp.zeros((4, 3)), jnp.zeros(4, jnp.int32)),
        "params must be a reward model's parameters for observations of size 3 and at least one action",
    ),
    # annotators
    "an annotator's name": (lambda: label("bradley_terry"), "annotator must be a function.*got 'bradley_terry'"),
    "an annotator that says yes": (lambda: label(lambda *_: True), "annotator's answer must be a Label, got True"),
    "an answer for every step": (
        lambda: label(lambda key, first, second: Label(first > second, 1.0, 1.0)),
        r"annotator's answer must be a Label whose first_preferred is a single boolean, got bool\[10\]",
    ),
    "an answer that is a number": (lambda: label(lambda *_: Label(1, 1.0, 1.0)), "first_preferred is a single boolean"),
    "an answer without a probability": (
        lambda: label(lambda *_: Label(True, None, 1.0)),
        "prob is a single float, got a NoneType",
    ),
    "a weight that is whole": (lambda: label(lambda *_: Label(True, 1.0, 1)), r"weight is a single float, got int32"),
    "a range the wrong way round": (
        lambda: label(functools.partial(annotators.undecided, threshold=0.1, return_range=(5.0, 1.0))),
        r"return_range must be \(lowest, highest\), got \(5.0, 1.0\)",
    ),
    "a temperature in words": (
        lambda: label(functools.partial(bradley_terry, temperature="1")),
        r"annotators\.Config: temperature must be a number, got '1'",
    ),
    # numbers out of range
    "labels that are coin tosses": (lambda: losses.robust_dpo(N, N, N, N, 0.1, 0.5), "label_smoothing must be between"),
    "two of one label wrong": (lambda: losses.conservative_dpo(N, N, N, N, 0.1, 2), "label_smoothing must be .*got 2"),
    "a margin without end": (lambda: losses.ipo(N, N, N, N, 0), "beta must be at least 1e-06, got 0"),
    "a negative beta": (lambda: losses.dpo(N, N, N, N, -0.1), "beta must be at least 0, got -0.1"),
    "a negative beta for a hinge": (lambda: losses.hinge_dpo(N, N, N, N, -1), "beta must be at least 0, got -1"),
    "beta in words": (lambda: losses.dpo(N, N, N, N, "0.1"), "beta must be a number, got '0.1'"),
    "a negative ratio": (lambda: losses.clipped_surrogate(N, N, N, -1), "clip_eps must be at least 0, got -1"),
    "a return that explodes": (lambda: returns.discounted_returns(N, 2), "gamma must be between 0 and 1, got 2"),
    "advantages that explode": (lambda: returns.gae(N, N, N, N > 0, N > 0, 2, 0.9), "gamma must be between 0 and 1"),
    "a lambda beyond 1": (lambda: returns.gae(N, N, N, N > 0, N > 0, 0.9, 1.1), "gae_lambda must be between 0 and 1"),
    "half a step": (lambda: cartpole(1.5), "horizon must be a whole number, got 1.5"),
    "half a step of one's own": (lambda: catch(horizon=2.5), "horizon must be a whole number, got 2.5"),
    "a worse policy that is better": (
        lambda: catch(pi1_target=1, pi2_target=5),
        "pi1_target must not be below pi2_target, got 1 and 5",
    ),
    "a highest return below the lowest": (
        lambda: catch(return_range=(5, 1)),
        r"return_range must be \(lowest, highest\), got \(5, 1\)",
    ),
    "a highest return alone": (lambda: catch(return_range=5), r"return_range must be a pair, .* got 5"),
    "fewer than no observations": (lambda: tasks.offline(-4, 2, 10), "obs_size must be at least 1, got -4"),
    "no actions": (lambda: tasks.offline(4, 0, 10), "num_actions must be at least 1, got 0"),
    "no steps": (lambda: tasks.offline(4, 2, 0), "horizon must be at least 1, got 0"),
    "more pairs than there are": (lambda: preferences.prefix(PAIRS, 500), "at most the number of pairs, 4, got 500"),
    "NumPy's 4th pair": (lambda: preferences.take(PAIRS, np.int64(4)), "index must lie between -4 and 3.*got 4"),
    "pairs beyond the last": (lambda: preferences.take(PAIRS, jnp.array([0, 9])), "index must lie between.*got 9"),
    "True for an index": (lambda: preferences.take(PAIRS, True), "index must be an array of integers, got True"),
    # configs
    "a learning rate in words": (
        lambda: train_dpo(config=QUICK["dpo"].replace(learning_rate="0.1")),
        r"dpo\.Config: learning_rate must be a number, got '0.1'",
    ),
    "no learning rate": (
        lambda: train_dpo(config=QUICK["dpo"].replace(learning_rate=None)),
        "must be a number, got None",
    ),
    "a list of learning rates": (
        lambda: fit_reward(config=QUICK["reward_model"].replace(learning_rate=[0.1])),
        r"reward_model\.Config: learning_rate must be a number, got a list",
    ),
    "learning rates without vmap": (
        lambda: train_ppo(config=QUICK["ppo"].replace(learning_rate=jnp.ones(2))),
        r"learning_rate must be a single number, got \[2\] of them: use jax.vmap",
    ),
    "True for a coefficient": (
        lambda: train_ppo(config=QUICK["ppo"].replace(kl_coef=True)),
        "kl_coef must be a number",
    ),
    "no for False": (lambda: ppo.Config(reset_value="no"), "reset_value must be True or False, got 'no'"),
    "1 for True": (lambda: reinforce.Config(shape_reward=1), "shape_reward must be True or False, got 1"),
    "no normalising": (lambda: reinforce.Config(normalise_advantage="no"), "normalise_advantage must be True or False"),
    "DPO's config for PPO's": (
        lambda: online.train_rlhf(
            LEVER, online.Config(), QUICK["reward_model"], QUICK["dpo"], KEY, bradley_terry, 5, POLICY, POLICY
        ),
        r"ppo_config must be a ppo\.Config, got dpo\.Config",
    ),
    "PPO's config for a reward model's": (
        lambda: online.train_rlhf(
            LEVER, online.Config(), QUICK["ppo"], QUICK["ppo"], KEY, bradley_terry, 5, POLICY, POLICY
        ),
        r"reward_config must be a reward_model\.Config, got ppo\.Config",
    ),
    "no config for DPO": (
        lambda: online.train_dpo(LEVER, online.Config(), None, KEY, bradley_terry, 5, POLICY, POLICY),
        r"dpo_config must be a dpo\.Config, got None",
    ),
    "a confidence of 95": (lambda: statistics.bootstrap_interval([1.0, 2.0], confidence=95), "confidence must lie"),
}


@pytest.mark.parametrize("name", LIBRARY)
def test_an_argument_that_does_not_fit_is_named_in_one_sentence(name):
    call, message = LIBRARY[name]
    with pytest.raises((TypeError, ValueError, IndexError), match=message) as caught:
        call()
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("wrap", [jax.jit, jax.eval_shape], ids=["jit", "eval_shape"])
def test_arguments_are_checked_when_a_function_is_traced(wrap):
    """So a check costs nothing when the program runs: it has no values to look at."""
    with pytest.raises(ValueError, match="key must be a single key"):
        _ = (lambda key: wrap(lambda key: evaluate(LEVER, POLICY, key, 2), *([key] if wrap is jax.eval_shape else [])))(
            keys(1, 2)
        )(keys(1, 2))


@pytest.mark.parametrize("leaf", [None, "0.1", object(), True, np.ones(3), jax.ShapeDtypeStruct((), np.float32)])
@pytest.mark.parametrize(
    "config", [annotators.Config(), online.Config(), *QUICK.values(), reinforce.Config()], ids=repr
)
def test_a_config_is_a_pytree_of_whatever_jax_puts_in_it(config, leaf):
    """jax rebuilds it with axes, labels and placeholders: only where it is used must its leaves be numbers."""
    other = jax.tree.map(lambda _: leaf, config)
    assert type(other) is type(config)
    assert jax.tree.structure(jax.tree.map(lambda _: 0.5, config)) == jax.tree.structure(config)


def test_a_config_of_arrays_of_no_axis_is_used_as_it_is():
    for number in (np.float32(0.5), np.array(0.5), jnp.float32(0.5), np.int64(1), 1):
        checks.check_config(QUICK["dpo"].replace(beta=number), dpo.Config)
    axes = jax.tree.map(lambda _: None, QUICK["dpo"]).replace(beta=0)
    swept = jax.vmap(lambda config: checks.check_config(config, dpo.Config) or config.beta, in_axes=(axes,))
    np.testing.assert_array_equal(swept(QUICK["dpo"].replace(beta=jnp.arange(3.0))), [0, 1, 2])


def test_numbers_that_are_traced_are_let_through():
    """There is nothing to look at: beta 0 and gamma 2 are computed with."""
    assert jax.jit(losses.dpo)(0.0, 0.0, 0.0, 0.0, -1.0) == np.float32(np.log(2))
    np.testing.assert_array_equal(jax.jit(returns.discounted_returns)(jnp.ones(3), 2.0), [7, 3, 1])
    taken = jax.jit(preferences.take)(PAIRS, jnp.array([9]))  # the last, as jax has it
    assert_same_bytes(taken, preferences.take(PAIRS, np.array([-1])))
    assert_same_bytes(jax.jit(preferences.prefix)(PAIRS, 9), PAIRS)


def test_an_ensemble_is_a_reward_model():
    fit.check_reward(LEVER, several(REWARD))


def test_damaged_preferences_are_refused_by_their_file(tmp_path):
    """A file of arrays that do not fit each other, as another program may write it."""
    store.save_preferences(tmp_path / "pairs.npz", PAIRS.replace(weight=np.ones(3, np.float32)))
    with pytest.raises(ValueError, match=r"pairs\.npz does not hold preferences: weight is float32\[3\]"):
        store.load_preferences(tmp_path / "pairs.npz")


FIELDS = ["obs", "action", "reward", "next_obs", "mask"]


@settings(deadline=None, max_examples=25)
@given(
    st.sampled_from(FIELDS),
    st.lists(st.integers(0, 4), max_size=4).map(tuple),
    st.sampled_from([np.float32, np.int32, np.bool_]),
)
def test_a_trajectory_is_accepted_if_and_only_if_its_fields_fit(field, shape, dtype):
    """One field of a trajectory [2, 3] of 2 features is replaced by any array."""
    good = random_trajectories(np.random.default_rng(1), [1, 3], 3, obs_size=2)
    other = np.zeros(shape, dtype)
    kind = {"action": np.int32, "mask": np.bool_}.get(field, np.float32)
    right = shape == getattr(good, field).shape and dtype == kind
    if right:
        checks.check_trajectory(good.replace(**{field: other}), num_axes=1)
    else:
        with pytest.raises((TypeError, ValueError)) as caught:
            checks.check_trajectory(good.replace(**{field: other}), num_axes=1)
        assert "trajectory." in str(caught.value)


# --- flags ------------------------------------------------------------------------------------------------------------


def refusal(call):
    """The message of a UsageError: one line."""
    with contextlib.redirect_stdout(io.StringIO()) as out, pytest.raises(command.UsageError) as caught:
        call()
    assert out.getvalue() == ""
    message = str(caught.value)
    assert len(message.splitlines()) == 1
    assert not re.search("Traceback|───|│|Error parsing|literal", message)
    return message


def parse(*words, method="dpo"):
    return command.parse(words, "cartpole", method)


@pytest.mark.parametrize(
    ("words", "method", "parts"),
    [
        (["--sede", "3"], "dpo", ["--sede", "perhaps", "--seeds"]),
        (["--DPO.BETA", "1"], "dpo", ["--DPO.BETA", "perhaps", "--dpo.beta"]),
        (["--num_pair=3"], "dpo", ["perhaps", "--num-pairs"]),
        (["--learning-rate", "1"], "dpo", ["--learning-rate", "perhaps", ".learning-rate"]),
        (["--qqqqqq"], "dpo", ["--qqqqqq", "--help"]),
        (["--seeds", "1,2"], "dpo", ["--seeds", "'1,2'", "numbers"]),
        (["--seeds="], "dpo", ["--seeds is empty"]),
        (["--out", ""], "dpo", ["--out is empty"]),
        (["--dpo.num-updates", "1.5"], "dpo", ["--dpo.num-updates", "whole number", "1.5"]),
        (["--dpo.beta", "x"], "dpo", ["--dpo.beta", "number", "x"]),
        (["--dpo.learning-rate", "1e39"], "dpo", ["--dpo.learning-rate", "3.4"]),
        (["--dpo.learning-rate", "inf"], "dpo", ["--dpo.learning-rate", "inf"]),
        (["--dpo.loss", "slic"], "dpo", ["--dpo.loss", "slic", "conservative"]),
        (["--dpo.loss", "ipo", "--dpo.beta", "0"], "dpo", ["--dpo.beta", "0"]),
        (["--dpo.beta", "1", "2"], "dpo", ["2"]),
        (["--num-pairs", "1000001"], "dpo", ["--num-pairs", "1,000,000"]),
        (["--num-heldout", "99999999999"], "dpo", ["--num-heldout", "1,000,000"]),
        (["--eval-episodes", "99999999999"], "dpo", ["--eval-episodes", "1,000,000"]),
        (["--devices", "99999999"], "dpo", ["--devices", "1,024"]),
        (["--dpo.batch-size", "99999999999"], "dpo", ["--dpo.batch-size", "1,000,000"]),
        (["--coordinator", "localhost:1"], "dpo", ["--coordinator", "--processes"]),
        (["--coordinator", "localhost", "--processes", "2"], "dpo", ["--coordinator", "HOST:PORT", "localhost"]),
        (
            ["--reward-model.holdout-every", "11", "--num-pairs", "10"],
            "rlhf",
            ["--reward-model.holdout-every", "10", "11"],
        ),
        (["--ppo.gae-lambda", "1.1"], "rlhf", ["--ppo.gae-lambda", "0", "1", "1.1"]),
        (["--ppo.reset-value", "maybe"], "rlhf", ["maybe"]),
    ],
)
def test_flags_that_cannot_be_meant(words, method, parts):
    message = refusal(lambda: parse(*words, method=method))
    for part in parts:
        assert part in message


def test_a_holdout_that_some_sizes_are_too_small_for_is_let_through_where_one_program_trains_on_all():
    """In it a size is weights; where each size has a program, each must have a pair to hold out."""
    words = ["--num-pairs", "10", "200", "--reward-model.holdout-every", "20"]
    assert parse(*words, method="rlhf").reward_model.holdout_every == 20
    assert "the number of pairs, 10, got 20" in refusal(
        lambda: parse(*words, "--reward-model-epochs", "1", method="rlhf")
    )


NUMBERS = ["seeds", "num-pairs", "num-heldout", "eval-episodes", "dpo.num-updates", "dpo.beta", "ppo.gamma"]


@settings(deadline=None, max_examples=25)
@given(
    st.sampled_from(NUMBERS),
    st.text(st.characters(codec="utf-8", exclude_categories=["Nd", "Cc", "Cs"]), min_size=1).filter(
        lambda text: text.strip().lower() not in {"nan", "inf", "infinity", ""} and not text.startswith("-")
    ),
)
def test_words_where_a_number_is_wanted(name, word):
    jaxtyping.config.update("jaxtyping_disable", True)
    message = refusal(lambda: parse(f"--{name}", word))
    assert f"--{name}" in message or word in message


@settings(deadline=None, max_examples=25)
@given(
    st.sampled_from(["--seeds", "--num-pairs", "--dpo.num-updates", "--ppo.num-envs", "--dpo.batch-size"]),
    st.integers(max_value=-1),
)
def test_negative_numbers_where_none_is_wanted(name, number):
    assert name in refusal(lambda: parse(name, str(number)))


@pytest.mark.parametrize(
    ("main", "line", "parts"),
    [
        (evidence, "--num-seeds ten", ["--num-seeds", "whole number", "ten"]),
        (evidence, "--tasks pong", ["--tasks", "pong"]),
        (evidence, "--clams gain", ["--clams", "perhaps --claims"]),
        (sweep, "--temperatures x", ["--temperatures", "x"]),
        (sweep, "--temperatures inf", ["--temperatures", "finite"]),
        (sweep, "--methods sft", ["--methods", "sft"]),
        (sweep, "--bta 1", ["--bta", "perhaps --beta"]),
        (bench, "--repeats 0", ["--repeats", "0"]),
        (bench, "--num-envs 4 0", ["--num-envs", "0"]),
        (bench, "--repeats x", ["--repeats", "whole number", "x"]),
        (study, "--sede 3", ["--sede", "perhaps --seeds"]),
    ],
)
def test_every_program_refuses_in_one_line_with_exit_code_2(capsys, monkeypatch, main, line, parts):
    monkeypatch.setattr(sys, "argv", [main.__name__, *shlex.split(line)])
    monkeypatch.setattr(stages, "set_up_jax", lambda *_: pytest.fail("went on"))
    with pytest.raises(SystemExit) as exit:
        main.main()
    out, err = capsys.readouterr()
    assert (exit.value.code, out, len(err.splitlines())) == (2, "", 1)
    for part in parts:
        assert part in err


@pytest.mark.parametrize(
    ("error", "code", "part"),
    [
        (KeyboardInterrupt(), 130, "the same command again goes on from there"),
        (MemoryError("Unable to allocate 582. TiB"), 2, "not enough memory"),
        (RuntimeError("RESOURCE_EXHAUSTED: Out of memory"), 2, "not enough memory"),
    ],
)
def test_what_ends_a_run_is_one_line(capsys, error, code, part):
    with pytest.raises(SystemExit) as exit, command.exit_codes():
        raise error
    err = capsys.readouterr().err
    assert (exit.value.code, len(err.splitlines())) == (code, 1)
    assert part in err


def test_an_interruption_while_modules_load_is_one_line():
    program = "import experiments\nraise KeyboardInterrupt"
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode in (-signal.SIGINT, 128 + signal.SIGINT)
    assert (done.stdout, done.stderr) == ("", experiments.INTERRUPTED + "\n")


def test_other_errors_keep_their_traceback():
    with pytest.raises(RuntimeError, match="a bug"), command.exit_codes():
        raise RuntimeError("a bug")


def test_a_mistake_in_a_whole_program_touches_nothing(tmp_path):
    (tmp_path / "summary.json").write_bytes(b"precious")
    words = ["--dpo.learning-rate", "1e39", "--out"]
    program = [sys.executable, "-m", "experiments.cartpole_dpo", *words, str(tmp_path)]
    done = subprocess.run(program, cwd=ROOT, capture_output=True, text=True)
    assert (done.returncode, done.stdout, len(done.stderr.splitlines())) == (2, "", 1)
    assert "--dpo.learning-rate" in done.stderr
    assert [path.read_bytes() for path in tmp_path.iterdir()] == [b"precious"]


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
        ([1, np.nan, np.nan], [1, np.nan, np.nan], 1, 1, (0, "nothing")),  # NaN behind the last update made
        ([1, np.nan, np.nan], [1, np.nan, np.nan], -np.inf, 1, (1, "parameters")),
    ],
)
def test_the_first_update_that_went_astray_hand_worked(loss, size, last, num_updates, expected):
    loss, size = jnp.array(loss, jnp.float32), jnp.array(size, jnp.float32)
    found = find_divergence(loss, size, {"a": jnp.zeros(2), "b": jnp.array([[0.5, last]])}, num_updates)
    assert (int(found.update), WHAT[int(found.what)]) == expected


def test_the_size_of_parameters_is_that_of_the_largest():
    assert param_size({"a": jnp.array([1.0, -3.0]), "b": jnp.array(2.0)}) == 3
    assert np.isnan(param_size({"a": jnp.array([1.0, np.nan]), "b": jnp.array(2.0)}))


LEARNING_RATES = {"sound": jnp.array([0.01, 0.01, 0.01]), "spoilt": jnp.array([0.01, 1e3, 0.01])}
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
    sound, spoilt = (train(rates, keys(3, 5, 8)) for rates in LEARNING_RATES.values())
    assert sound.divergence.update.tolist() == [0, 0, 0]
    assert (spoilt.divergence.update > 0).tolist() == [False, True, False]
    assert spoilt.divergence.what[1] > 0
    for seed in (0, 2):
        assert_same_bytes(lane(sound, seed), lane(spoilt, seed))


# --- diverged seeds in a report ---------------------------------------------------------------------------------------

STUDY = Settings("cartpole", "rlhf", Path("unused"), seeds=(3, 5, 8), num_pairs=(4, 9))
NAN = np.float32(np.nan)


def divergence(**at):
    """Of every seed and size; `at` names the (update, what) of some, as s1n0."""
    found = np.zeros((2, 3, 2), np.int32)
    for place, values in at.items():
        found[:, int(place[1]), int(place[3])] = values
    return Divergence(*found)


def outcome(experts=(0, 0, 0), rewards=None, pi1=None, pi2=None, trained_returns=None):
    """A study of three seeds and two sizes, made up: returns are 100, 101, 102 and so on."""
    metrics = ppo.Metrics(*np.ones((5, 3, 2, 4), np.float32), *np.ones((2, 3, 2, 2), np.float32))
    reward_metrics = reward_model.Metrics(*np.ones((4, 3, 2, 6), np.float32))
    trained = {
        name: pipeline.Trained(
            None,
            np.full((3, 2), 0.5, np.float32),
            metrics,
            found or divergence(),
            {"a": np.ones(3)},
            reward_metrics,
            rewards or divergence(),
        )
        for name, found in (("pi1", pi1), ("pi2", pi2))
    }
    flags = np.ones(3, bool)
    targets = np.array([9.0, np.inf, 8.0])
    experts = reinforce.Result(
        *({}, {}, targets, targets, flags, flags, np.ones(3), None),
        divergence=Divergence(np.array(experts), np.sign(experts)),
    )
    plain = 100 + np.arange(6, dtype=np.float32).reshape(3, 2)
    scores = {"pi1": plain[:, 0], "pi2": plain[:, 1]}
    return pipeline.Outcome(experts, scores, trained, {"pi1": plain, "pi2": plain} | (trained_returns or {}), None)


def rows_of(summary):
    return {(row["reference"], row["num_pairs"]): row for row in summary["rows"]}


def test_where_all_is_well_nothing_is_left_out():
    summary = report.summarise(STUDY, outcome())
    assert summary["diverged"] == []
    assert rows_of(summary)["pi2", 9]["policy"]["per_seed"] == [101, 103, 105]
    assert report.warnings(summary) == []
    assert summary["pi1_target"] == summary["pi2_target"] == [9, None, 8]  # none was found for the second seed


def test_a_seed_is_left_out_of_the_rows_that_its_divergence_concerns_and_named():
    """PPO with reference pi1 on 9 pairs: one row is over the two others, and every other row over all."""
    summary = report.summarise(STUDY, outcome(pi1=divergence(s1n1=(3, 2))))
    entry = {"seed": 5, "stage": "ppo", "reference": "pi1", "num_pairs": 9, "update": 3, "what": "parameters"}
    assert summary["diverged"] == [entry]
    row = rows_of(summary).pop(("pi1", 9))
    assert row["policy"]["per_seed"] == [101, None, 105]
    assert (row["policy"]["mean"], row["heldout_accuracy"]) == (103, 0.5)
    for key in (("pi1", 4), ("pi2", 4), ("pi2", 9)):
        assert None not in rows_of(summary)[key]["policy"]["per_seed"]
    (line,) = report.warnings(summary)
    for word in ("ppo", "reference pi1", "9 pairs", "5 (parameters, update 3)"):
        assert word in line


def test_a_reward_model_that_diverged_concerns_its_size_with_both_references_and_is_named_once():
    found = outcome(rewards=divergence(s0n0=(2, 1)), pi2=divergence(s0n0=(1, 1)))
    summary = report.summarise(STUDY, found)
    assert [(entry["stage"], entry["reference"], entry["num_pairs"]) for entry in summary["diverged"]] == [
        ("reward model", None, 4)
    ]
    for reference, size in itertools.product(("pi1", "pi2"), (4, 9)):
        first = rows_of(summary)[reference, size]["policy"]["per_seed"][0]
        assert (first is None) == (size == 4)


def test_experts_that_diverged_take_their_seed_out_of_everything():
    summary = report.summarise(STUDY, outcome(experts=(0, 7, 0)))
    assert [(entry["seed"], entry["stage"], entry["update"]) for entry in summary["diverged"]] == [(5, "reinforce", 7)]
    for score in [*summary["policies"].values(), *(row["policy"] for row in summary["rows"])]:
        assert [value is None for value in score["per_seed"]] == [False, True, False]


def test_a_return_that_is_not_a_number_is_named_as_such():
    summary = report.summarise(STUDY, outcome(trained_returns={"pi2": np.array([[1, 2], [3, 4], [NAN, 6]])}))
    (entry,) = summary["diverged"]
    assert entry == {
        "seed": 8, "stage": "evaluate", "reference": "pi2", "num_pairs": 4, "update": None, "what": "return"
    }  # fmt: skip
    assert "8 (return)" in report.warnings(summary)[0]


def test_where_every_seed_diverged_the_row_says_none_and_everything_is_written(tmp_path, monkeypatch, capsys):
    """The whole program after a pipeline of which one row has no seed left: files, figures, warning, exit code 3."""
    nothing_left = outcome(pi1=divergence(s0n0=(1, 1), s1n0=(1, 1), s2n0=(1, 1)))
    monkeypatch.setattr(pipeline, "run", lambda *_: nothing_left)
    monkeypatch.setattr(report, "save_arrays", lambda *_: [])
    monkeypatch.setattr(command, "set_up", lambda _: Console(width=200))
    monkeypatch.setattr(animations, "animate", lambda *_: [])
    words = ["--seeds", "3", "5", "8", "--num-pairs", "4", "9", "--out", str(tmp_path)]
    with pytest.raises(SystemExit) as exit:
        command.main("cartpole", "rlhf", words)
    assert exit.value.code == 3
    summary = store.load_json(tmp_path / "summary.json")
    score = rows_of(summary)["pi1", 4]["policy"]
    assert score == {"mean": None, "iqm": None, "ci95": [None, None], "per_seed": [None] * 3}
    assert rows_of(summary)["pi1", 4]["heldout_accuracy"] is None
    assert len(summary["diverged"]) == 3
    assert {path.suffix for path in tmp_path.iterdir()} == {".png", ".json", ".jsonl", ".html"}
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert ["PPO-RLHF", "pi1", "4", "none", "none", "none", "none", "0", "of", "3"] in lines
    assert any(line[-3:] == ["3", "of", "3"] for line in lines)


def test_a_study_with_a_diverged_seed_runs_to_its_end_and_exits_with_3(monkeypatch):
    ran = []
    monkeypatch.setattr(command, "set_up", lambda _: Console(quiet=True))
    monkeypatch.setattr(command, "run", lambda settings, *_: bool(ran.append(settings) or len(ran) != 2))
    monkeypatch.setattr(sys, "argv", ["study"])
    with pytest.raises(SystemExit) as exit:
        study.main()
    assert (exit.value.code, len(ran)) == (3, 4)
