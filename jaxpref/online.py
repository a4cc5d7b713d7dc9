"""Online preferences: rounds in which the policy in training plays the pairs that the annotator labels.

    repeat: play pairs with the current policy, ask about some, learn from all answers so far

(Christiano et al., 2017, https://arxiv.org/abs/1706.03741, for RLHF; Guo et al., 2024,
https://arxiv.org/abs/2402.04792, for DPO). All rounds are one scan, so they jit and vmap like a trainer. Together they
ask `num_pairs` questions and make the trainer's `num_updates` updates. The number of rounds must divide both, the
updates into multiples of `eval_every`.

A person cannot answer inside a scan. For answers from outside, `rlhf_rounds` and `dpo_rounds` return the parts of a
round.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import struct
from jaxtyping import Array, Float, Int, Key

from jaxpref import dpo, ppo, reward_model, training
from jaxpref.annotators import Annotator
from jaxpref.checks import check_config, check_count, check_key, setting
from jaxpref.divergence import Divergence
from jaxpref.networks import Network, check_policy, init_reward, trajectory_reward
from jaxpref.preferences import check_segment, clip_pairs, label_pairs
from jaxpref.rollout import episodes
from jaxpref.tasks import Task
from jaxpref.types import Preferences, Scalar, Trajectory, true_return

Networks = tuple[Network, Network | None]
"""The policy, and the ensemble of reward models; None for DPO."""


@struct.dataclass
class Config:
    """How the questions are spread over rounds, and how they are chosen."""

    num_rounds: int = setting(5, low=1)
    """Rounds of playing, asking and learning. The trainer's updates are divided among them."""
    num_candidates: int = setting(1, low=1)
    """Pairs played for each pair that is labelled."""
    num_members: int = setting(3, low=1)
    """Reward models in the ensemble."""
    disagreement: Scalar = setting(1.0, low=0, high=1)
    """Share of the questions about the pairs on which the ensemble disagrees most. The others are drawn at random."""


@struct.dataclass
class Result(training.Result):
    """The trainer's result, whose metrics and divergence have a leading axis [rounds].

    preferences:        all labelled pairs, [N], in the order of the rounds.
    pair_return:        mean true return of each round's pairs, of what was compared, [rounds].
    reward_params:      the last round's ensemble; None for DPO.
    reward_divergence:  the ensemble's, [rounds, M]; None for DPO.
    """

    preferences: Preferences
    pair_return: Float[Array, "*batch rounds"]
    reward_params: Network | None = None
    reward_divergence: Divergence | None = None


class Rounds(NamedTuple):
    """The parts of a round, and the networks that the first one begins with.

    play:   (keys[4], networks) -> (first, second), the pairs to ask about, both [num_pairs / num_rounds].
    learn:  (key, networks, preferences) -> (networks, (metrics, divergence, reward_divergence)). It takes all
            preferences so far. Those that are not labelled yet have weight zero.
    """

    networks: Networks
    play: Callable[[Any, Networks], tuple[Trajectory, Trajectory]]
    learn: Callable[[Key[Array, ""], Networks, Preferences], tuple[Networks, Any]]


def rlhf_rounds(
    task: Task,
    config: Config,
    reward_config: reward_model.Config,
    ppo_config: ppo.Config,
    key: Key[Array, ""],
    num_pairs: int,
    init_params: Network,
    ref_params: Network,
    segment: int | None = None,
) -> Rounds:
    """Return the parts of `train_rlhf`. `key` draws the untrained ensemble."""
    check_config(reward_config, reward_model.Config, "reward_config")
    check_config(ppo_config, ppo.Config, "ppo_config")
    one_round = _one_round(task, config, ppo_config, num_pairs, init_params)
    check_segment(task, segment)
    # Later rounds keep the value head of earlier rounds, which was trained on a learned reward.
    one_round = dataclasses.replace(one_round, reset_value=False)
    if ppo_config.reset_value:
        init_params = ppo.without_value(init_params)

    def learn(key, networks, pairs):
        key_fit, key_train = jax.random.split(key)
        fitted = reward_model.train_ensemble(task, reward_config, key_fit, pairs, config.num_members)
        result = ppo.train(task, one_round, key_train, networks[0], ref_params, fitted.params)
        return (result.params, fitted.params), (result.metrics, result.divergence, fitted.divergence)

    untrained = jax.vmap(lambda key: init_reward(key, task, reward_config.use_next_obs))(
        jax.random.split(key, config.num_members)
    )
    play = functools.partial(_play, task, config, num_pairs // config.num_rounds, segment)
    return Rounds((init_params, reward_model.as_ensemble(untrained)), play, learn)


def dpo_rounds(
    task: Task,
    config: Config,
    dpo_config: dpo.Config,
    num_pairs: int,
    init_params: Network,
    ref_params: Network,
    segment: int | None = None,
) -> Rounds:
    """Return the parts of `train_dpo`."""
    check_config(dpo_config, dpo.Config, "dpo_config")
    one_round = _one_round(task, config, dpo_config, num_pairs, init_params)
    check_segment(task, segment)

    def learn(key, networks, pairs):
        result = dpo.train(task, one_round, key, pairs, networks[0], ref_params)
        return (result.params, None), (result.metrics, result.divergence, None)

    play = functools.partial(_play, task, config, num_pairs // config.num_rounds, segment)
    return Rounds((init_params, None), play, learn)


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
    segment: int | None = None,
) -> Result:
    """Train by PPO from `init_params`, on an ensemble of reward models that is fitted afresh in every round.

    segment: compare clips of this many steps (`preferences.clip_pairs`); None: whole episodes.
    """
    check_key(key)
    key_init, key_rounds = jax.random.split(key)
    rounds = rlhf_rounds(task, config, reward_config, ppo_config, key_init, num_pairs, init_params, ref_params, segment)
    return _train(rounds, config.num_rounds, num_pairs, key_rounds, annotator)


def train_dpo(
    task: Task,
    config: Config,
    dpo_config: dpo.Config,
    key: Key[Array, ""],
    annotator: Annotator,
    num_pairs: int,
    init_params: Network,
    ref_params: Network,
    segment: int | None = None,
) -> Result:
    """Train by DPO from `init_params`. Every round continues with all pairs so far.

    Of `config` only `num_rounds` is used. segment: compare clips of this many steps; None: whole episodes.
    """
    check_key(key)
    rounds = dpo_rounds(task, config, dpo_config, num_pairs, init_params, ref_params, segment)
    return _train(rounds, config.num_rounds, num_pairs, key, annotator)


def _one_round(task: Task, config: Config, trainer: Any, num_pairs: int, init_params: Network) -> Any:
    """Check what the trainers of the rounds do not see. Return a trainer's config with the updates of one round."""
    check_config(config, Config)
    check_count(num_pairs, "num_pairs")
    check_policy(task, init_params, "init_params")
    for name, number in {"num_pairs": num_pairs, "num_updates": trainer.num_updates}.items():
        if number % config.num_rounds:
            raise ValueError(f"num_rounds must divide {name}, got {config.num_rounds} and {number}")
    return dataclasses.replace(trainer, num_updates=trainer.num_updates // config.num_rounds)


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
    rank, num_best = jnp.argsort(jnp.argsort(-interest)), jnp.round(share * num_chosen)
    # Smaller comes first: the best have their rank minus N, below zero; the others a random number from 0 to 1.
    order = jnp.where(rank < num_best, rank - interest.shape[0], jax.random.uniform(key, interest.shape))
    return jnp.argsort(order)[:num_chosen]


def _play(
    task: Task,
    config: Config,
    num_asked: int,
    segment: int | None,
    keys: Any,
    networks: Networks,
) -> tuple[Trajectory, Trajectory]:
    """Play the candidates of a round, and choose `num_asked` of them."""
    (params, ensemble), (key_first, key_second, key_choice, key_clip) = networks, keys
    num_played = num_asked if ensemble is None else num_asked * config.num_candidates
    first = episodes(task, params, key_first, num_played)
    second = episodes(task, params, key_second, num_played)
    first, second = clip_pairs(key_clip, first, second, segment)
    if ensemble is not None and config.num_candidates > 1:
        asked = choose(key_choice, disagreement(ensemble, first, second), num_asked, config.disagreement)
        first, second = jax.tree.map(lambda leaf: leaf[asked], (first, second))
    return first, second


def _train(rounds: Rounds, num_rounds: int, num_pairs: int, key: Key[Array, ""], annotator: Annotator) -> Result:
    """Run the loop that both methods share. Pairs that are not labelled yet have weight zero."""

    def ask(key, networks):
        key_first, key_second, key_choice, key_label, key_clip = jax.random.split(key, 5)
        first, second = rounds.play((key_first, key_second, key_choice, key_clip), networks)
        return label_pairs(key_label, first, second, annotator)

    def play_round(carry, inputs):
        networks, pairs = carry
        key, first_pair = inputs
        key_ask, key_learn = jax.random.split(key)
        answers = ask(key_ask, networks)
        write = functools.partial(jax.lax.dynamic_update_slice_in_dim, start_index=first_pair, axis=0)
        pairs = jax.tree.map(write, pairs, answers)
        pair_return = (true_return(answers.chosen) + true_return(answers.rejected)).mean() / 2
        networks, learned = rounds.learn(key_learn, networks, pairs)
        return (networks, pairs), (pair_return, learned)

    shapes = jax.eval_shape(ask, key, rounds.networks)
    nothing = jax.tree.map(lambda leaf: jnp.zeros((num_pairs, *leaf.shape[1:]), leaf.dtype), shapes)
    inputs = jax.random.split(key, num_rounds), jnp.arange(num_rounds) * (num_pairs // num_rounds)
    (networks, pairs), (pair_return, learned) = jax.lax.scan(play_round, (rounds.networks, nothing), inputs)
    (params, ensemble), (metrics, divergence, reward_divergence) = networks, learned
    return Result(params, metrics, divergence, pairs, pair_return, ensemble, reward_divergence)
