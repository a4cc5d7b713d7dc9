"""Experts, by REINFORCE and by PPO: when the snapshots are taken, from which policy, and of which targets.

`LEVER` pays for one of two actions, ten times: a policy's return rises from 5 to 10 within a few updates.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import LEVER, assert_close, assert_same_bytes, policy

import jaxpref
from jaxpref import expert_ppo, experts, reinforce

REINFORCE = reinforce.Config(num_updates=12, episodes_per_update=4, score_window=8, learning_rate=0.1)
PPO = expert_ppo.DEFAULTS.replace(
    num_updates=12, num_envs=4, num_steps=20, num_epochs=2, num_minibatches=2, eval_episodes=8
)
TRAINERS = {
    "reinforce": (jax.jit(reinforce.train), REINFORCE, 2),
    "ppo": (jax.jit(expert_ppo.train), PPO.replace(learning_rate=0.01), 1),
}
"""{name: (train, config, updates whose scores are means of few episodes)}."""
every_trainer = pytest.mark.parametrize("name", TRAINERS)
KEY = jax.random.key(3)


def run(name, pi1_target, pi2_target, **changes):
    train, config, _ = TRAINERS[name]
    return train(LEVER.replace(pi1_target=pi1_target, pi2_target=pi2_target), config.replace(**changes), KEY)


@functools.cache
def whole_run(name):
    """All updates, because no target is ever reached."""
    return run(name, 1e9, 1e9)


def first_update_reaching(scores, target):
    """Number of updates made when the score first reached the target."""
    return 1 + int(np.flatnonzero(np.asarray(scores) >= target)[0])


def params_after(name, num_updates):
    """Parameters after that many updates, of a run that makes no more."""
    return run(name, 1e9, 1e9, num_updates=num_updates).pi1


# --- snapshots --------------------------------------------------------------------------------------------------------


@every_trainer
def test_an_unreached_target_gives_the_last_parameters_and_says_so(name):
    result = whole_run(name)
    assert not result.pi1_reached
    assert not result.pi2_reached
    assert result.num_updates == 12
    assert_same_bytes(result.pi1, result.pi2)
    assert np.isfinite(result.metrics.score).all()
    assert np.isfinite(result.metrics.loss).all()
    # They are the last and not the first: what they play has improved, from 5 of 10.
    assert result.metrics.score[0] < 7
    assert result.metrics.score[-1] > 8


@every_trainer
def test_a_snapshot_is_taken_right_after_the_first_update_that_reaches_its_target(name):
    """pi2 stays what it was while training goes on to pi1, and then training ends."""
    whole = whole_run(name).metrics
    at_pi2, at_pi1 = first_update_reaching(whole.score, 7.0), first_update_reaching(whole.score, 8.5)
    assert 1 < at_pi2 < at_pi1 < 12
    result = run(name, pi1_target=8.5, pi2_target=7.0)
    assert result.pi1_reached
    assert result.pi2_reached
    assert (result.num_updates, result.pi1_target, result.pi2_target) == (at_pi1, 8.5, 7)
    assert_close(result.pi2, params_after(name, at_pi2), rtol=1e-5, atol=1e-6)
    assert_close(result.pi1, params_after(name, at_pi1), rtol=1e-5, atol=1e-6)
    for metric, of_whole in ((result.metrics.score, whole.score), (result.metrics.loss, whole.loss)):
        np.testing.assert_array_equal(metric[:at_pi1], of_whole[:at_pi1])
        assert np.isnan(metric[at_pi1:]).all()


@every_trainer
def test_one_target_reached_and_the_other_not(name):
    """Training goes on to the last update; pi2 keeps its snapshot, pi1 has the last parameters."""
    result = run(name, pi1_target=1e9, pi2_target=-1e9)
    assert result.pi2_reached
    assert not result.pi1_reached
    assert result.num_updates == 12
    assert_same_bytes(result.pi1, whole_run(name).pi1)
    assert_close(result.pi2, params_after(name, 1), rtol=1e-5, atol=1e-6)


def test_snapshots_by_ppo_are_as_good_as_their_targets():
    """Their scores are returns of the very policies, over 8 episodes. Here are 400, to a standard error of 0.08.
    REINFORCE's scores are of the last updates, and its snapshots are better than they say."""
    result = run("ppo", pi1_target=8.5, pi2_target=7.0)
    pi1, pi2 = (jaxpref.evaluate(LEVER, each, jax.random.key(1), 400).mean() for each in (result.pi1, result.pi2))
    np.testing.assert_allclose([pi1, pi2], [8.5, 7], atol=1)
    assert pi1 > pi2 + 0.5


# --- the first policy -------------------------------------------------------------------------------------------------


@every_trainer
def test_training_starts_from_the_policy_that_is_given(name):
    """At a learning rate of zero it is what comes out; without one, a fresh and almost uniform policy is."""
    train, config, _ = TRAINERS[name]
    still = config.replace(num_updates=1, learning_rate=0.0)
    given = policy(5)
    from_given = train(LEVER, still, KEY, given)
    assert_same_bytes(from_given.pi1, given)
    results = [train(LEVER, still, key) for key in (KEY, KEY, jax.random.key(4))]
    fresh = [result.pi1 for result in results]
    assert_same_bytes(fresh[0], fresh[1])
    assert not np.allclose(fresh[0].params["torso"]["kernel"], fresh[2].params["torso"]["kernel"])
    assert 0 < np.abs(fresh[0].params["policy"]["kernel"]).max() <= 0.01 / np.sqrt(32)
    # The weights that are given play and learn, too: the loss of the first update is another one.
    assert not np.allclose(from_given.metrics.loss, results[0].metrics.loss)


# --- targets ----------------------------------------------------------------------------------------------------------


def test_targets_lie_between_the_first_scores_and_the_best():
    """The first two scores are the start. 2 + 0.9 * (12 - 2) = 11, and 7."""
    pi1, pi2 = experts.targets_of_curve(jnp.array([2.0, 1.0, 5.0, 12.0, 8.0, jnp.nan]), first_window=2)
    np.testing.assert_allclose([pi1, pi2], [11, 7], rtol=1e-6)
    assert np.isinf(experts.targets_of_curve(jnp.array([2.0, 1.0, 1.5, 2.0]), first_window=2)).all()


@every_trainer
@pytest.mark.parametrize("known", [{}, {"pi2_target": 6.5}])
def test_the_targets_that_a_task_lacks_are_found(name, known):
    """As if they had been known: the second run is the first again, up to the snapshots. What a task has stays."""
    found = run(name, **{"pi1_target": None, "pi2_target": None} | known)
    whole = whole_run(name).metrics.score
    first, second = experts.targets_of_curve(whole, first_window=TRAINERS[name][2])
    second = known.get("pi2_target", second)
    np.testing.assert_allclose([found.pi1_target, found.pi2_target], [first, second], rtol=1e-6)
    at_pi1, at_pi2 = (first_update_reaching(whole, target) for target in (found.pi1_target, found.pi2_target))
    assert at_pi2 < at_pi1 == found.num_updates
    np.testing.assert_allclose(found.metrics.score[:at_pi1], whole[:at_pi1], rtol=1e-5)
