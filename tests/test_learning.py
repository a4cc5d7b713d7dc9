"""The whole chain, small: experts by REINFORCE, or by PPO on Pendulum, a hundred labelled pairs, then DPO and PPO-RLHF
from pi2 with pi2 as the reference. Preferences alone must carry the policy past pi2.

Over 8 seeds the smallest gains were 48 (CartPole), 77 (Acrobot) and 204 (Pendulum) for DPO, and 31, 108 and 366 for
PPO; the smallest accuracy was 0.96.
"""

import functools
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any, NamedTuple

import jax
import numpy as np
import pytest
from helpers import keys, optimised_jit, stack

import jaxpref
from jaxpref import dpo, expert_ppo, ppo, preferences, ranking, reinforce, reward_model
from jaxpref.tasks import Task

SEEDS = (1, 2)


class Chain(NamedTuple):
    """A task, what trains its experts, and the numbers of each stage; `margin` is what a policy must gain on pi2."""

    task: Task
    train_experts: Callable
    experts: Any
    dpo: dpo.Config
    reward_model: reward_model.Config
    ppo: ppo.Config
    margin: float


STUDY = {
    "train_experts": reinforce.train,
    "experts": reinforce.Config(),
    "dpo": dpo.Config(num_updates=60, eval_every=60, eval_episodes=1),
    "reward_model": reward_model.Config(num_updates=100),
    "ppo": ppo.Config(num_updates=30, eval_every=30, eval_episodes=8),
}
# Actions are numbers, all episodes have 200 steps, and the returns of pi1 and pi2 are hundreds apart.
PENDULUM = STUDY | {
    "train_experts": expert_ppo.train,
    "experts": expert_ppo.DEFAULTS.replace(num_updates=60, num_epochs=4, num_minibatches=8, eval_episodes=32),
    "reward_model": reward_model.Config(),
    "ppo": ppo.Config(eval_every=60, eval_episodes=8),
}
CHAINS = {
    "cartpole": Chain(jaxpref.cartpole(), **STUDY, margin=20),
    "acrobot": Chain(jaxpref.acrobot(), **STUDY, margin=25),
    "Pendulum-v1": Chain(
        jaxpref.task("Pendulum-v1").replace(pi1_target=-250.0, pi2_target=-700.0), **PENDULUM, margin=100
    ),
}


@functools.cache
def chain(name):
    """Everything that the chain leaves behind, each with a leading axis of seeds."""
    task, train_experts, *configs, _ = CHAINS[name]
    of_experts, of_dpo, of_reward_model, of_ppo = configs
    stage = jax.vmap(lambda key: jax.random.split(key, 6))(keys(*SEEDS))
    experts = jax.jit(jax.vmap(train_experts, (None, None, 0)))(task, of_experts, stage[:, 0])

    @jax.jit
    @jax.vmap
    def sample(pi1, pi2, key):
        return preferences.split(jaxpref.sample_preferences(task, pi1, pi2, key, 150), 50)

    train_pairs, heldout = sample(experts.pi1, experts.pi2, stage[:, 1])
    by_dpo = optimised_jit(jax.vmap(dpo.train, (None, None, 0, 0, 0, 0)))(
        task, of_dpo, stage[:, 2], train_pairs, experts.pi2, experts.pi2
    )
    reward = optimised_jit(jax.vmap(reward_model.train, (None, None, 0, 0)))(
        task, of_reward_model, stage[:, 3], train_pairs
    )
    by_ppo = jax.jit(jax.vmap(ppo.train, (None, None, 0, 0, 0, 0)))(
        task, of_ppo, stage[:, 4], experts.pi2, experts.pi2, reward.params
    )
    policies = stack(experts.pi2, by_dpo.params, by_ppo.params)

    @jax.jit
    @functools.partial(jax.vmap, in_axes=(0, None))
    @jax.vmap
    def mean_return(params, key):
        return jaxpref.evaluate(task, params, key, 100).mean()

    @jax.jit
    @jax.vmap
    def judge(params, pairs):
        scores = [jaxpref.trajectory_reward(params, side) for side in (pairs.chosen, pairs.rejected)]
        num_steps = pairs.chosen.mask.sum() + pairs.rejected.mask.sum()
        return ranking.return_accuracy(*scores, pairs), (scores[0].sum() + scores[1].sum()) / num_steps

    pi2, after_dpo, after_ppo = np.asarray(mean_return(policies, stage[:, 5]))
    accuracy, per_step = judge(reward.params, heldout)
    return SimpleNamespace(
        experts=experts, pi2=pi2, dpo=after_dpo, ppo=after_ppo, accuracy=accuracy, reward_per_step=per_step
    )


@pytest.mark.parametrize("name", CHAINS)
def test_both_experts_are_trained(name):
    experts = chain(name).experts
    assert experts.pi1_reached.all()
    assert experts.pi2_reached.all()


@pytest.mark.parametrize("name", CHAINS)
def test_dpo_carries_every_seed_past_pi2(name):
    result = chain(name)
    assert (result.dpo > result.pi2 + CHAINS[name].margin).all(), (result.dpo, result.pi2)


@pytest.mark.parametrize("name", CHAINS)
def test_the_reward_model_ranks_episodes_that_it_has_not_seen(name):
    """50 fresh pairs of each seed, ranked as their true returns are."""
    assert (chain(name).accuracy > 0.8).all(), chain(name).accuracy


def test_a_step_costs_where_episodes_should_end_and_pays_where_they_should_go_on():
    """A reward model that had the offset wrong would teach Acrobot never to finish, and CartPole to fall."""
    assert (chain("acrobot").reward_per_step < 0).all()
    assert (chain("cartpole").reward_per_step > 0).all()


@pytest.mark.parametrize("name", CHAINS)
def test_ppo_on_the_learned_reward_carries_every_seed_past_pi2(name):
    result = chain(name)
    assert (result.ppo > result.pi2 + CHAINS[name].margin).all(), (result.ppo, result.pi2)
