"""Online preferences: rounds in which the policy in training plays the pairs that the annotator labels.

    repeat: play pairs with the current policy, ask about some, learn from all answers so far

(Christiano et al., 2017, https://arxiv.org/abs/1706.03741, for RLHF; Guo et al., 2024,
https://arxiv.org/abs/2402.04792, for DPO). All rounds are one scan, so they jit and vmap like a trainer.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import struct
from jaxtyping import Array, Float, Int, Key

from jaxpref import dpo, ppo, reward_model
from jaxpref.annotators import Annotator
from jaxpref.checks import check_config, check_count, check_key, setting
from jaxpref.divergence import Divergence
from jaxpref.networks import Network, check_policy, init_reward, trajectory_reward
from jaxpref.preferences import label_pairs
from jaxpref.rollout import play_episodes
from jaxpref.tasks import Task
from jaxpref.types import Preferences, Scalar, Trajectory, true_return


@struct.dataclass
class Config:
    """How many questions are asked when, and which."""

    num_rounds: int = setting(5, low=1)
    """Rounds of playing, asking and learning. The trainer's updates are divided among them."""
    num_candidates: int = setting(1, low=1)
    """Pairs played for each pair that is labelled."""
    num_members: int = setting(3, low=1)
    """Reward models in the ensemble."""
    disagreement: Scalar = setting(1.0, low=0, high=1)
    """Share of the questions about the pairs on which the ensemble disagrees most. The others are drawn at random."""


@struct.dataclass
class Result:
    """The trained policy, with its metrics.

    preferences:        all labelled pairs, [N], in the order of the rounds.
    pair_return:        mean true return of each round's pairs, [rounds].
    metrics:            the trainer's, [rounds, ...].
    divergence:         the trainer's, [rounds].
    reward_params:      the last round's ensemble; None for DPO.
    reward_divergence:  the ensemble's, [rounds, M]; None for DPO.
    """

    params: Network
    preferences: Preferences
    pair_return: Float[Array, "*batch rounds"]
    metrics: ppo.Metrics | dpo.Metrics
    divergence: Divergence
    reward_params: Network | None = None
    reward_divergence: Divergence | None = None


def train_rlhf(
    task: Task,
    config: Config,
    reward_config: reward_model.Config,
    ppo_config: ppo.Config,
    key: Key[Array, ""],
    annotator: Annotator,
    num_pairs: int,
    init_params: Network,
    ref_params: Network,
) -> Result:
    """Train by PPO from `init_params`, on an ensemble of reward models that is fitted afresh in every round.

    All rounds together ask `num_pairs` questions and make `ppo_config.num_updates` updates. `config.num_rounds` must
    divide both, the updates into multiples of `ppo_config.eval_every`.
    """
    check_config(reward_config, reward_model.Config, "reward_config")
    check_config(ppo_config, ppo.Config, "ppo_config")
    _check(task, config, key, num_pairs, init_params)
    key_init, key_rounds = jax.random.split(key)
    # Later rounds keep the value head of earlier rounds, which was trained on a learned reward.
    config_of_round = dataclasses.replace(_one_round(ppo_config, config), reset_value=False)
    if ppo_config.reset_value:
        init_params = ppo.without_value(init_params)

    def learn(key, params, reward_params, pairs):
        key_fit, key_train = jax.random.split(key)
        fitted = reward_model.train_ensemble(task, reward_config, key_fit, pairs, config.num_members)
        result = ppo.train(task, config_of_round, key_train, params, ref_params, fitted.params)
        return result.params, fitted.params, (result.metrics, result.divergence, fitted.divergence)

    untrained = jax.vmap(lambda key: init_reward(key, task))(jax.random.split(key_init, config.num_members))
    ensemble = reward_model.as_ensemble(untrained)
    return _rounds(task, config, key_rounds, annotator, num_pairs, init_params, ensemble, learn)


def train_dpo(
    task: Task,
    config: Config,
    dpo_config: dpo.Config,
    key: Key[Array, ""],
    annotator: Annotator,
    num_pairs: int,
    init_params: Network,
    ref_params: Network,
) -> Result:
    """Train by DPO from `init_params`. Every round continues with all pairs so far.

    All rounds together ask `num_pairs` questions and make `dpo_config.num_updates` updates. `config.num_rounds` must
    divide both, the updates into multiples of `dpo_config.eval_every`. The other fields of `config` are not used.
    """
    check_config(dpo_config, dpo.Config, "dpo_config")
    _check(task, config, key, num_pairs, init_params)
    config_of_round = _one_round(dpo_config, config)

    def learn(key, params, _, pairs):
        result = dpo.train(task, config_of_round, key, pairs, params, ref_params)
        return result.params, None, (result.metrics, result.divergence, None)

    every_pair = dataclasses.replace(config, num_candidates=1)
    return _rounds(task, every_pair, key, annotator, num_pairs, init_params, None, learn)


def _check(task: Task, config: Any, key: Any, num_pairs: Any, init_params: Any) -> None:
    """Check what the trainers of the rounds do not see."""
    check_config(config, Config)
    check_key(key)
    check_count(num_pairs, "num_pairs")
    check_policy(task, init_params, "init_params")


def _one_round(config: Any, online: Config) -> Any:
    """Return a trainer's config with the updates of one round."""
    num_updates, rest = divmod(config.num_updates, online.num_rounds)
    if rest:
        raise ValueError(f"num_rounds must divide num_updates, got {online.num_rounds} and {config.num_updates}")
    return dataclasses.replace(config, num_updates=num_updates)


def disagreement(reward_params: Network, first: Trajectory, second: Trajectory) -> Float[Array, " N"]:
    """Compute the standard deviation over an ensemble's members of P(first preferred), for each pair."""

    def prob(member: Network) -> Float[Array, " N"]:
        return jax.nn.sigmoid(trajectory_reward(member, first) - trajectory_reward(member, second))

    return jax.vmap(prob)(Network(reward_params.module.member, reward_params.params)).std(0)


def choose(
    key: Key[Array, ""], interest: Float[Array, " N"], num_chosen: int, share: Scalar = 1.0
) -> Int[Array, " num_chosen"]:
    """Choose `num_chosen` of N candidates, as indices: a `share` of them, rounded, are the most interesting ones, and
    the others are drawn at random.
    """
    by_interest = jnp.argsort(-interest)
    num_best = jnp.round(share * num_chosen)
    rank = jnp.zeros(interest.shape).at[by_interest].set(jnp.arange(interest.shape[0]))
    # Smaller comes first: the best have their rank minus N, below zero; the others a random number from 0 to 1.
    order = jnp.where(rank < num_best, rank - interest.shape[0], jax.random.uniform(key, interest.shape))
    return jnp.argsort(order)[:num_chosen]


def _ask(
    task: Task,
    config: Config,
    annotator: Annotator,
    num_asked: int,
    key: Key[Array, ""],
    params: Network,
    reward_params: Network | None,
) -> Preferences:
    """Play the candidates of a round, and label `num_asked` of them."""
    key_first, key_second, key_choice, key_label = jax.random.split(key, 4)
    num_played = num_asked * config.num_candidates
    first = play_episodes(task, params, key_first, num_played)
    second = play_episodes(task, params, key_second, num_played)
    if reward_params is not None and config.num_candidates > 1:
        asked = choose(key_choice, disagreement(reward_params, first, second), num_asked, config.disagreement)
        first, second = jax.tree.map(lambda leaf: leaf[asked], (first, second))
    return label_pairs(key_label, first, second, annotator)


def _rounds(
    task: Task,
    config: Config,
    key: Key[Array, ""],
    annotator: Annotator,
    num_pairs: int,
    init_params: Network,
    init_reward_params: Network | None,
    learn: Callable,
) -> Result:
    """Run the loop that both methods share.

    The dataset has its full size from the start. Pairs that are not labelled yet have weight zero.
    """
    num_asked, rest = divmod(num_pairs, config.num_rounds)
    if rest:
        raise ValueError(f"num_rounds must divide num_pairs, got {config.num_rounds} and {num_pairs}")

    ask = functools.partial(_ask, task, config, annotator, num_asked)

    def play_round(carry, inputs):
        params, reward_params, pairs = carry
        key, first_pair = inputs
        key_ask, key_learn = jax.random.split(key)
        answers = ask(key_ask, params, reward_params)
        write = functools.partial(jax.lax.dynamic_update_slice_in_dim, start_index=first_pair, axis=0)
        pairs = jax.tree.map(write, pairs, answers)
        pair_return = (true_return(answers.chosen) + true_return(answers.rejected)).mean() / 2
        params, reward_params, learned = learn(key_learn, params, reward_params, pairs)
        return (params, reward_params, pairs), (pair_return, learned)

    shapes = jax.eval_shape(ask, key, init_params, init_reward_params)
    nothing = jax.tree.map(lambda leaf: jnp.zeros((num_pairs, *leaf.shape[1:]), leaf.dtype), shapes)
    rounds = jax.random.split(key, config.num_rounds), jnp.arange(config.num_rounds) * num_asked
    start = init_params, init_reward_params, nothing
    (params, reward_params, pairs), (pair_return, learned) = jax.lax.scan(play_round, start, rounds)
    metrics, divergence, reward_divergence = learned
    return Result(params, pairs, pair_return, metrics, divergence, reward_params, reward_divergence)
