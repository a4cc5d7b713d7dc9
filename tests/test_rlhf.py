"""RLHF in one call is a reward model, then PPO on it."""

import functools

import jax
import numpy as np
import pytest
from helpers import SIGN, assert_same_bytes, pairs, policy

from jaxpref import networks, ppo, reward_model, rlhf

REWARD = reward_model.Config(num_updates=6, num_folds=0, batch_size=8, learning_rate=0.02)
PPO = ppo.Config(num_updates=4, num_envs=4, num_steps=16, num_epochs=1, eval_every=2, eval_episodes=4)
# As in test_reward_model: for what is run once, most optimisations are not worth their time.
quick_jit = functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})
DATA = pairs(1), policy(1, SIGN), policy(2, SIGN)


@pytest.mark.parametrize("num_members", [1, 3])
def test_it_is_a_reward_model_and_then_ppo(num_members):
    """To the last bit, with the two keys of one split. More members are the ensemble of `train_ensemble`."""

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

    result = quick_jit(in_one_call)(jax.random.key(1), *DATA)
    assert_same_bytes(result, quick_jit(one_after_the_other)(jax.random.key(1), *DATA))
    assert result.metrics.loss.shape == (4,)
    assert np.isfinite(result.metrics.loss).all()
    is_ensemble = isinstance(result.reward.params.module, networks.Ensemble)
    assert (is_ensemble, result.reward.metrics.loss.shape) == ((False, (6,)) if num_members == 1 else (True, (3, 6)))


def test_without_a_reward_model_there_is_no_reward():
    with pytest.raises(ValueError, match="num_members must be at least 1, got 0"):
        rlhf.train(SIGN, REWARD, PPO, jax.random.key(1), *DATA, num_members=0)
