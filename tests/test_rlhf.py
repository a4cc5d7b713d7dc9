"""RLHF in one call is a reward model, then PPO on it."""

import jax
import pytest
from helpers import SIGN, pairs, policy

from jaxpref import networks, ppo, reward_model, rlhf

REWARD = reward_model.Config(num_updates=6, batch_size=8)
PPO = ppo.Config(num_updates=4, num_envs=4, num_steps=16, eval_every=2, eval_episodes=4)
DATA = pairs(1), policy(1, SIGN), policy(2, SIGN)


@pytest.mark.parametrize("num_members", [1, 3])
def test_it_is_a_reward_model_and_then_ppo(num_members):
    """The same program, with the two keys of one split. More members are the ensemble of `train_ensemble`."""

    def in_one_call(key, preferences, init_params, ref_params):
        return rlhf.train(SIGN, REWARD, PPO, key, preferences, init_params, ref_params, num_members)

    def one_after_the_other(key, preferences, init_params, ref_params):
        key_reward, key_ppo = jax.random.split(key)
        if num_members == 1:
            reward = reward_model.train(SIGN, REWARD, key_reward, preferences)
        else:
            reward = reward_model.train_ensemble(SIGN, REWARD, key_reward, preferences, num_members)
        result = ppo.train(SIGN, PPO, key_ppo, init_params, ref_params, reward.params)
        return rlhf.Result(result.params, result.metrics, result.divergence, reward)

    programs, results = zip(
        *(
            jax.make_jaxpr(function, return_shape=True)(jax.random.key(1), *DATA)
            for function in (in_one_call, one_after_the_other)
        ),
        strict=True,
    )
    assert str(programs[0]) == str(programs[1])
    assert jax.tree.structure(results[0]) == jax.tree.structure(results[1])
    is_ensemble = isinstance(results[0].reward.params.module, networks.Ensemble)
    shapes = results[0].metrics.loss.shape, results[0].reward.metrics.loss.shape
    assert (is_ensemble, *shapes) == ((False, (4,), (6,)) if num_members == 1 else (True, (4,), (3, 6)))


def test_without_a_reward_model_there_is_no_reward():
    with pytest.raises(ValueError, match="num_members must be at least 1, got 0"):
        rlhf.train(SIGN, REWARD, PPO, jax.random.key(1), *DATA, num_members=0)
