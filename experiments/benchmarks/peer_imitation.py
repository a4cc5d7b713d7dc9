"""imitation's side of `against_imitation.measure`, in its own environment: it needs an older NumPy.

The job comes as JSON on the command line. Each seed is answered with a line of JSON.
"""

import contextlib
import io
import itertools
import json
import sys
import time
from typing import Any

import gymnasium
import numpy as np
import torch
from gymnasium.envs.classic_control import CartPoleEnv
from imitation.algorithms import preference_comparisons
from imitation.policies.base import FeedForward32Policy, NormalizeFeaturesExtractor
from imitation.rewards.reward_nets import BasicRewardNet
from imitation.util.networks import RunningNorm
from imitation.util.util import make_vec_env
from seals.util import AbsorbAfterDoneWrapper
from stable_baselines3 import PPO
from stable_baselines3.common.evaluation import evaluate_policy

# Episodes go on after their end, in the last state, with reward 0, as jaxpref's do at a fixed horizon.
gymnasium.register("cartpole-v0", lambda: AbsorbAfterDoneWrapper(CartPoleEnv()), max_episode_steps=200)


def train(
    job: Any, seed: int, timesteps: int = 50_000, num_iterations: int = 5, fragment_length: int = 100,
    reward_epochs: int = 10, learning_rate: float = 2e-3, gamma: float = 0.97, n_epochs: int = 10,
) -> tuple[float, float, int, float]:  # fmt: skip
    """Train as in the example of imitation's page "Preference Comparisons". All defaults are from there.

    Returns (mean true return before, after, environment steps, CPU seconds).
    """
    begin, rng = time.process_time(), np.random.default_rng(seed)
    torch.manual_seed(seed)
    name = "cartpole-v0" if job["task"] == "cartpole" else job["task"]
    venv, test_venv = make_vec_env(name, rng=rng), make_vec_env(name, rng=rng)
    reward_net = BasicRewardNet(venv.observation_space, venv.action_space, normalize_input_layer=RunningNorm)
    features = {"features_extractor_class": NormalizeFeaturesExtractor}
    features |= {"features_extractor_kwargs": {"normalize_class": RunningNorm}}
    agent = PPO(
        FeedForward32Policy, venv, policy_kwargs=features, seed=seed, n_steps=2048 // venv.num_envs, clip_range=0.1,
        ent_coef=0.01, gae_lambda=0.95, n_epochs=n_epochs, gamma=gamma, learning_rate=learning_rate,
    )  # fmt: skip
    # The first policy plays as in training, the last one as in the example: the most likely action.
    first_return, _ = evaluate_policy(agent.policy, test_venv, job["num_episodes"], deterministic=False)
    model, loss = preference_comparisons.PreferenceModel(reward_net), preference_comparisons.CrossEntropyRewardLoss()
    preference_comparisons.PreferenceComparisons(
        preference_comparisons.AgentTrainer(agent, reward_net, venv, rng, exploration_frac=0.05),
        reward_net,
        num_iterations,
        preference_comparisons.RandomFragmenter(rng, warning_threshold=0),
        preference_comparisons.SyntheticGatherer(rng=rng),
        preference_comparisons.BasicRewardTrainer(model, loss, rng, epochs=reward_epochs),
        fragment_length=fragment_length,
        initial_epoch_multiplier=4,
        initial_comparison_frac=0.1,
        query_schedule="hyperbolic",
    ).train(timesteps, job["num_pairs"])
    last_return, _ = evaluate_policy(agent.policy, test_venv, job["num_episodes"])
    env_steps = sum(venv.env_method("get_total_steps"))
    return first_return, last_return, env_steps, time.process_time() - begin


def main() -> None:
    """Train seed after seed until the time is over."""
    job, begin = json.loads(sys.argv[1]), time.monotonic()
    torch.set_num_threads(1)  # every core has a process
    for seed in itertools.count(*job["seeds"]):
        with contextlib.redirect_stdout(io.StringIO()):
            result = train(job, seed, **job["changes"])
        print(json.dumps(result), flush=True)
        if time.monotonic() - begin > job["seconds"]:
            break


if __name__ == "__main__":
    main()
