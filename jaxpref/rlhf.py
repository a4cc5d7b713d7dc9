"""RLHF in one call: a reward model fitted to preferences, then PPO on it (Ziegler et al., 2019)."""

import jax
from flax import struct
from jaxtyping import Array, Key

from jaxpref import ppo, reward_model, training
from jaxpref.checks import check_config, check_key
from jaxpref.networks import Network
from jaxpref.tasks import Task
from jaxpref.types import Preferences


@struct.dataclass
class Result(training.Result):
    """PPO's result, with that of the reward model or the ensemble as `reward`."""

    reward: training.Result


def train(
    task: Task,
    reward_config: reward_model.Config,
    ppo_config: ppo.Config,
    key: Key[Array, ""],
    preferences: Preferences,
    init_params: Network,
    ref_params: Network,
    num_members: int = 1,
) -> Result:
    """Fit a reward model to `preferences`, then train a policy on it by PPO.

    More than one member is an ensemble, `reward_model.train_ensemble`. Under `jit`, `num_members` is static.
    The keys are `key_reward, key_ppo = jax.random.split(key)`.
    """
    check_config(reward_config, reward_model.Config, "reward_config")
    check_config(ppo_config, ppo.Config, "ppo_config")
    check_key(key)
    key_reward, key_ppo = jax.random.split(key)
    if num_members == 1:
        reward = reward_model.train(task, reward_config, key_reward, preferences)
    else:
        reward = reward_model.train_ensemble(task, reward_config, key_reward, preferences, num_members)
    result = ppo.train(task, ppo_config, key_ppo, init_params, ref_params, reward.params)
    return Result(result.params, result.metrics, result.divergence, reward)
