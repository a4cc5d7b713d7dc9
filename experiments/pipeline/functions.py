"""The stages of the pipeline, each a pure function of one seed: `function(static parts, config, keys, *inputs)`.

P is the number of dataset sizes, which one program trains on.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import struct
from jaxtyping import Array, Float, Int

from jaxpref import annotators, dpo, losses, online, ppo, preferences, reinforce, reward_model
from jaxpref.analysis import ranking
from jaxpref.divergence import Divergence
from jaxpref.networks import Network, init_reward, trajectory_kl, trajectory_log_prob, trajectory_reward
from jaxpref.rollout import episodes
from jaxpref.tasks import Task
from jaxpref.types import Preferences, Trajectory


class Keys(NamedTuple):
    """One key for each purpose, the same for every method, size and reference: their results are compared in pairs."""

    reinforce: jax.Array
    preferences: jax.Array
    reward_model: jax.Array
    train: jax.Array
    evaluate: jax.Array
    evaluate_again: jax.Array


def with_keys(function: Callable, config: Any, seed: Int[Array, ""], *inputs: Any) -> Any:
    """Call a stage's function with the keys of its seed."""
    return function(config, Keys(*jax.random.split(jax.random.key(seed), len(Keys._fields))), *inputs)


@struct.dataclass
class Judged:
    """What scores of trajectories are worth on held-out pairs, and their mean per step."""

    quality: ranking.Quality
    score_per_step: Float[Array, "*batch"]


@struct.dataclass
class Trained:
    """A trained policy. `judged` and `reward_params` are None where the reward model is a stage of its own."""

    params: Network
    metrics: Any  # dpo.Metrics or ppo.Metrics
    divergence: Divergence
    judged: Judged | None = None
    reward_params: Network | None = None


@struct.dataclass
class Fitted:
    """A reward model. A control was not fitted: it has no metrics and no divergence."""

    params: Network
    judged: Judged
    metrics: reward_model.Metrics | None = None
    divergence: Divergence | None = None


@struct.dataclass
class Labels:
    """Of the held-out pairs: how sure their annotator is, the most that any score can rank as labelled, and the share
    that the better of "longer" and "shorter" ranks right.
    """

    entropy: Float[Array, "*batch"]
    best_accuracy: Float[Array, "*batch"]
    length_accuracy: Float[Array, "*batch"]


@struct.dataclass
class Evaluation:
    """Means over the evaluation's episodes: returns of pi1 and pi2 [2] and KL(pi1 || pi2); and of the trained policies
    [R, P], with KL(policy || reference), in nats per episode.
    """

    expert_return: Float[Array, "*batch 2"]
    pi1_kl: Float[Array, "*batch"]
    true_return: Float[Array, "*batch R P"]
    learned_return: Float[Array, "*batch R P"]
    kl: Float[Array, "*batch R P"]
    labels: Labels


# --- experts and pairs ------------------------------------------------------------------------------------------------


def train_experts(task: Task, config: reinforce.Config, keys: Keys) -> reinforce.Result:
    """Train pi1 and pi2."""
    return reinforce.train(task, config, keys.reinforce)


def play_pairs(
    task: Task, num_pairs: int, config: annotators.Config, keys: Keys, experts: reinforce.Result
) -> Preferences:
    """Play and label the largest dataset, followed by the held-out pairs."""
    annotator = annotators.teacher_of(task, config)
    return preferences.sample_preferences(task, experts.pi1, experts.pi2, keys.preferences, num_pairs, annotator)


def _reference(experts: reinforce.Result, reference: Int[Array, ""]) -> Network:
    """Return pi1 for 0 and pi2 for 1."""
    return jax.tree.map(lambda pi1, pi2: jnp.where(reference == 0, pi1, pi2), experts.pi1, experts.pi2)


def _judge(score: Callable[[Trajectory], Float[Array, " N"]], heldout: Preferences) -> Judged:
    chosen_score, rejected_score = score(heldout.chosen), score(heldout.rejected)
    num_steps = heldout.chosen.mask.sum() + heldout.rejected.mask.sum()
    quality = ranking.quality(chosen_score, rejected_score, heldout)
    return Judged(quality, (chosen_score + rejected_score).sum() / num_steps)


# --- DPO --------------------------------------------------------------------------------------------------------------


def implicit_reward(per_step: bool, beta: Scalar, policy: Network, reference: Network, trajectory: Trajectory) -> Any:
    """Score a trajectory by DPO: beta times the log-ratio, or beta times its mean per step."""
    log_ratio = trajectory_log_prob(policy, trajectory) - trajectory_log_prob(reference, trajectory)
    return beta * (losses.per_step(log_ratio, 1.0 * trajectory.mask.sum(-1)) if per_step else log_ratio)


def is_per_step(config: dpo.Config) -> bool:
    """Whether a loss takes means per step, so that its scores are such means."""
    return str(config.loss).endswith("_per_step")


def train_dpo(
    task: Task,
    sizes: tuple[int, ...],
    num_heldout: int,
    config: dpo.Config,
    keys: Keys,
    experts: reinforce.Result,
    pairs: Preferences,
    reference: Int[Array, ""],
) -> Trained:
    """Train by DPO from pi2, on every size of dataset [P]."""
    ref_params = _reference(experts, reference)
    pairs, heldout = preferences.split(pairs, num_heldout)
    pairs = preferences.take(pairs, slice(max(sizes)))

    def on_size(num_pairs: Int[Array, ""]) -> Trained:
        some = preferences.prefix(pairs, num_pairs)
        result = dpo.train(task, config, keys.train, some, experts.pi2, ref_params)
        score = functools.partial(implicit_reward, is_per_step(config), config.beta, result.params, ref_params)
        return Trained(result.params, result.metrics, result.divergence, _judge(score, heldout))

    return jax.vmap(on_size)(jnp.array(sizes))


# --- RLHF -------------------------------------------------------------------------------------------------------------


def fit_rewards(
    task: Task,
    sizes: tuple[int, ...],
    num_heldout: int,
    num_members: int,
    config: reward_model.Config,
    keys: Keys,
    pairs: Preferences,
) -> Fitted:
    """Fit a reward model, or an ensemble, to every size of dataset [P]."""
    pairs, heldout = preferences.split(pairs, num_heldout)
    pairs = preferences.take(pairs, slice(max(sizes)))

    def on_size(num_pairs: Int[Array, ""]) -> Fitted:
        some = preferences.prefix(pairs, num_pairs)
        if num_members == 1:
            result = reward_model.train(task, config, keys.reward_model, some)
        else:
            members = reward_model.train_ensemble(task, config, keys.reward_model, some, num_members)
            metrics = jax.tree.map(lambda leaf: leaf.mean(0), members.metrics)
            result = dataclasses.replace(members, metrics=metrics, divergence=_first(members.divergence))
        judged = _judge(functools.partial(trajectory_reward, result.params), heldout)
        return Fitted(result.params, judged, result.metrics, result.divergence)

    return jax.vmap(on_size)(jnp.array(sizes))


def control_reward(
    task: Task, sizes: tuple[int, ...], num_heldout: int, kind: str, config: None, keys: Keys, pairs: Preferences
) -> Fitted:
    """Make a reward model [P] that no pair was used for. Its head is drawn for "random", and zero for other kinds."""
    key_init, key_head = jax.random.split(keys.reward_model)
    reward = init_reward(key_init, task)  # its head is zero
    if kind == "random":
        head = reward.params["reward"]
        drawn = head | {"kernel": jax.random.normal(key_head, head["kernel"].shape)}
        reward = dataclasses.replace(reward, params=reward.params | {"reward": drawn})
    _, heldout = preferences.split(pairs, num_heldout)
    fitted = Fitted(reward, _judge(functools.partial(trajectory_reward, reward), heldout))
    return jax.tree.map(lambda leaf: jnp.broadcast_to(leaf, (len(sizes), *leaf.shape)), fitted)


def train_ppo(
    task: Task,
    reward_fn: ppo.RewardFn,
    config: ppo.Config,
    keys: Keys,
    experts: reinforce.Result,
    fitted: Fitted,
    reference: Int[Array, ""],
) -> Trained:
    """Train by PPO from pi2, on every reward model [P]."""

    def on_reward(reward_params: Network) -> Trained:
        ref_params = _reference(experts, reference)
        result = ppo.train(task, config, keys.train, experts.pi2, ref_params, reward_params, reward_fn)
        return Trained(result.params, result.metrics, result.divergence)

    return jax.vmap(on_reward)(fitted.params)


# --- online -----------------------------------------------------------------------------------------------------------


def train_online(
    task: Task,
    sizes: tuple[int],
    num_heldout: int,
    configs: tuple[Any, ...],
    keys: Keys,
    experts: reinforce.Result,
    pairs: Preferences,
    reference: Int[Array, ""],
) -> Trained:
    """Train in rounds from pi2, by DPO or by a reward model and PPO.

    configs: of the annotator, of the rounds, then dpo's, or those of the reward model and PPO. Leading axis P = 1.
    """
    annotator, online_config, *trainers = configs
    ref_params, teacher = _reference(experts, reference), annotators.teacher_of(task, annotator)
    args = keys.train, teacher, *sizes, experts.pi2, ref_params
    if len(trainers) == 1:
        result = online.train_dpo(task, online_config, *trainers, *args)
        score = functools.partial(
            implicit_reward, is_per_step(trainers[0]), trainers[0].beta, result.params, ref_params
        )
    else:
        result = online.train_rlhf(task, online_config, *trainers, *args)
        score = functools.partial(trajectory_reward, result.reward_params)
    _, heldout = preferences.split(pairs, num_heldout)
    metrics = jax.tree.map(lambda leaf: leaf.reshape(-1), result.metrics)
    divergence = _first(result.divergence)
    trained = Trained(result.params, metrics, divergence, _judge(score, heldout), result.reward_params)
    return jax.tree.map(lambda leaf: leaf[None], trained)


def _first(divergence: Divergence) -> Divergence:
    """Return the first divergence of several members or rounds [M]; none if none of them diverged."""
    return jax.tree.map(lambda leaf: leaf[jnp.argmax(divergence.update > 0)], divergence)


# --- evaluation -------------------------------------------------------------------------------------------------------


def evaluate(
    task: Task,
    num_episodes: int,
    evaluation: int,
    num_heldout: int,
    references: tuple[int, ...],
    per_step: bool,
    beta: Scalar,
    keys: Keys,
    experts: reinforce.Result,
    pairs: Preferences,
    trained: tuple[Trained, ...],
    fitted: tuple[Fitted, ...],
) -> Evaluation:
    """Play all policies from the same initial states. `trained` [R, P] and `fitted` [P] come in groups of sizes."""
    key = jax.random.fold_in(keys.evaluate_again, evaluation) if evaluation else keys.evaluate
    params = _join([each.params for each in trained], 1)
    num_references, num_sizes = jax.tree.leaves(params)[0].shape[:2]
    policies = jax.tree.map(
        lambda pi1, pi2, leaf: jnp.concatenate([jnp.stack([pi1, pi2]), _flat(leaf)]), experts.pi1, experts.pi2, params
    )
    played = jax.vmap(lambda policy: episodes(task, policy, key, num_episodes))(policies)
    returns = played.reward.sum(-1).mean(-1)
    each_run = jnp.repeat(jnp.array(references, jnp.int32), num_sizes)
    ref_params = jax.vmap(functools.partial(_reference, experts))(each_run)
    rewards = _rewards(trained, fitted, num_references)

    def measure(run: Any) -> tuple[Float[Array, ""], Float[Array, ""]]:
        policy, reference, reward, trajectory = run
        if reward is None:
            learned = implicit_reward(per_step, beta, policy, reference, trajectory)
        else:
            learned = trajectory_reward(reward, trajectory)
        return learned.mean(), trajectory_kl(policy, reference, trajectory).mean()

    # One policy after another: side by side, their activations would need gigabytes.
    runs = (
        jax.tree.map(lambda leaf: leaf[2:], policies),
        ref_params,
        rewards,
        jax.tree.map(lambda leaf: leaf[2:], played),
    )
    learned, kl = jax.lax.map(measure, runs)
    pi1_kl = trajectory_kl(experts.pi1, experts.pi2, jax.tree.map(lambda leaf: leaf[0], played)).mean()
    by_row = [each.reshape(num_references, num_sizes) for each in (returns[2:], learned, kl)]
    return Evaluation(returns[:2], pi1_kl, *by_row, _labels(pairs, num_heldout))


def _rewards(trained: tuple[Trained, ...], fitted: tuple[Fitted, ...], num_references: int) -> Network | None:
    """Return the reward model of each run [R * P]; None for DPO."""
    if fitted:
        of_sizes = _join([each.params for each in fitted], 0)
        return jax.tree.map(lambda leaf: jnp.tile(leaf, (num_references,) + (1,) * (leaf.ndim - 1)), of_sizes)
    if trained[0].reward_params is None:
        return None
    return jax.tree.map(_flat, _join([each.reward_params for each in trained], 1))


def _flat(leaf: Float[Array, "R P ..."]) -> Float[Array, "RP ..."]:
    return leaf.reshape(-1, *leaf.shape[2:])


def _labels(pairs: Preferences, num_heldout: int) -> Labels:
    _, heldout = preferences.split(pairs, num_heldout)
    return Labels(ranking.label_entropy(heldout), ranking.best_accuracy(heldout), ranking.length_accuracy(heldout))


def _join(trees: list[Any], axis: int) -> Any:
    return jax.tree.map(lambda *leaves: jnp.concatenate(leaves, axis), *trees)
