"""The stages of the pipeline, each a pure function of one seed. P is the number of dataset sizes of a program."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, NamedTuple, cast

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
from jaxpref.types import Preferences, Scalar, Trajectory


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


class Setup(NamedTuple):
    """What is static in a stage. `references`: 0 for pi1 and 1 for pi2; `sizes`: of the datasets of one program."""

    task: Task
    sizes: tuple[int, ...]
    num_heldout: int
    references: tuple[int, ...] = (1,)
    eval_episodes: int = 100
    evaluation: int = 0
    per_step: bool = False


@struct.dataclass
class Judged:
    """What scores of trajectories are worth on held-out pairs, and their mean per step."""

    quality: ranking.Quality
    score_per_step: Float[Array, "*batch"]


@struct.dataclass
class Trained:
    """A trained policy. `judged` and `reward_params` are None where the reward model is a stage of its own."""

    params: Network
    metrics: Any
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
    """The held-out labels; see the functions of `ranking`."""

    entropy: Float[Array, "*batch"]
    best_accuracy: Float[Array, "*batch"]
    length_accuracy: Float[Array, "*batch"]


@struct.dataclass
class Evaluation:
    """Means over episodes: of pi1 and pi2 [2], and of the trained policies [R, P]. kl is nats per episode."""

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
    return jax.tree.map(lambda pi1, pi2: jnp.where(reference == 0, pi1, pi2), experts.pi1, experts.pi2)


def _judge(setup: Setup, score: Callable[[Trajectory], Float[Array, " N"]], pairs: Preferences) -> Judged:
    _, heldout = preferences.split(pairs, setup.num_heldout)
    chosen_score, rejected_score = score(heldout.chosen), score(heldout.rejected)
    num_steps = heldout.chosen.mask.sum() + heldout.rejected.mask.sum()
    quality = ranking.quality(chosen_score, rejected_score, heldout)
    return Judged(quality, (chosen_score + rejected_score).sum() / num_steps)


def _on_sizes(setup: Setup, pairs: Preferences, function: Callable[[Preferences], Any]) -> Any:
    """Map a function of the training pairs over all sizes of dataset [P]."""
    training, _ = preferences.split(pairs, setup.num_heldout)
    training = preferences.take(training, slice(max(setup.sizes)))
    return jax.vmap(lambda size: function(preferences.prefix(training, size)))(jnp.array(setup.sizes))


# --- training ---------------------------------------------------------------------------------------------------------


def is_per_step(config: dpo.Config) -> bool:
    """Whether a loss takes means per step, so that its scores are such means."""
    return str(config.loss).endswith("_per_step")


def implicit_reward(per_step: bool, beta: Scalar, policy: Network, reference: Network, trajectory: Trajectory) -> Any:
    """Score a trajectory by DPO: beta times the log-ratio, or times its mean per step."""
    log_ratio = trajectory_log_prob(policy, trajectory) - trajectory_log_prob(reference, trajectory)
    return beta * (losses.per_step(log_ratio, 1.0 * trajectory.mask.sum(-1)) if per_step else log_ratio)


def train_dpo(
    setup: Setup, config: dpo.Config, keys: Keys, experts: reinforce.Result, pairs: Preferences, reference: Array
) -> Trained:
    """Train by DPO from pi2, on every size of dataset [P]."""
    ref_params = _reference(experts, reference)

    def on_pairs(some: Preferences) -> Trained:
        result = dpo.train(setup.task, config, keys.train, some, experts.pi2, ref_params)
        score = functools.partial(implicit_reward, is_per_step(config), config.beta, result.params, ref_params)
        return Trained(result.params, result.metrics, result.divergence, _judge(setup, score, pairs))

    return _on_sizes(setup, pairs, on_pairs)


def fit_rewards(setup: Setup, num_members: int, config: reward_model.Config, keys: Keys, pairs: Preferences) -> Fitted:
    """Fit a reward model, or an ensemble, to every size of dataset [P]."""

    def on_pairs(some: Preferences) -> Fitted:
        if num_members == 1:
            result = reward_model.train(setup.task, config, keys.reward_model, some)
        else:
            members = reward_model.train_ensemble(setup.task, config, keys.reward_model, some, num_members)
            metrics = jax.tree.map(lambda leaf: leaf.mean(0), members.metrics)
            result = dataclasses.replace(members, metrics=metrics, divergence=_first(members.divergence))
        judged = _judge(setup, functools.partial(trajectory_reward, result.params), pairs)
        return Fitted(result.params, judged, result.metrics, result.divergence)

    return _on_sizes(setup, pairs, on_pairs)


def control_reward(setup: Setup, kind: str, config: None, keys: Keys, pairs: Preferences) -> Fitted:
    """Make a reward model [P] that no pair was used for. Its head is drawn for "random", and zero for other kinds."""
    key_init, key_head = jax.random.split(keys.reward_model)
    reward = init_reward(key_init, setup.task)  # its head is zero
    if kind == "random":
        head = reward.params["reward"]
        drawn = head | {"kernel": jax.random.normal(key_head, head["kernel"].shape)}
        reward = dataclasses.replace(reward, params=reward.params | {"reward": drawn})
    fitted = Fitted(reward, _judge(setup, functools.partial(trajectory_reward, reward), pairs))
    return jax.tree.map(lambda leaf: jnp.broadcast_to(leaf, (len(setup.sizes), *leaf.shape)), fitted)


def train_ppo(
    setup: Setup,
    reward_fn: ppo.RewardFn,
    config: ppo.Config,
    keys: Keys,
    experts: reinforce.Result,
    fitted: Fitted,
    reference: Array,
) -> Trained:
    """Train by PPO from pi2, on every reward model [P]."""

    def on_reward(reward_params: Network) -> Trained:
        ref_params = _reference(experts, reference)
        result = ppo.train(setup.task, config, keys.train, experts.pi2, ref_params, reward_params, reward_fn)
        return Trained(result.params, result.metrics, result.divergence)

    return jax.vmap(on_reward)(fitted.params)


def train_online(
    setup: Setup, configs: tuple, keys: Keys, experts: reinforce.Result, pairs: Preferences, reference: Array
) -> Trained:
    """Train in rounds from pi2, by DPO or by a reward model and PPO. P is 1; `pairs` only judge the result.

    configs:  of the annotator, of the rounds, then DPO's, or those of the reward model and PPO.
    """
    annotator, rounds, *trainers = configs
    ref_params, teacher = _reference(experts, reference), annotators.teacher_of(setup.task, annotator)
    (num_pairs,) = setup.sizes
    args = keys.train, teacher, num_pairs, experts.pi2, ref_params
    if len(trainers) == 1:
        (config,) = trainers
        result = online.train_dpo(setup.task, rounds, config, *args)
        score = functools.partial(implicit_reward, is_per_step(config), config.beta, result.params, ref_params)
    else:
        fit_config, ppo_config = trainers
        result = online.train_rlhf(setup.task, rounds, fit_config, ppo_config, *args)
        score = functools.partial(trajectory_reward, cast(Network, result.reward_params))
    metrics, divergence = jax.tree.map(lambda leaf: leaf.reshape(-1), result.metrics), _first(result.divergence)
    trained = Trained(result.params, metrics, divergence, _judge(setup, score, pairs), result.reward_params)
    return jax.tree.map(lambda leaf: leaf[None], trained)


def _first(divergence: Divergence) -> Divergence:
    """Return the first divergence of several members or rounds [M]; none if none of them diverged."""
    return jax.tree.map(lambda leaf: leaf[jnp.argmax(divergence.update > 0)], divergence)


# --- evaluation -------------------------------------------------------------------------------------------------------


def evaluate(
    setup: Setup,
    beta: Scalar,
    keys: Keys,
    experts: reinforce.Result,
    pairs: Preferences,
    trained: tuple[Trained, ...],
    fitted: tuple[Fitted, ...],
) -> Evaluation:
    """Play all policies from the same initial states. `trained` [R, P] and `fitted` [P] come in groups of sizes."""
    key = jax.random.fold_in(keys.evaluate_again, setup.evaluation) if setup.evaluation else keys.evaluate
    params = _join([each.params for each in trained], 1)
    num_references, num_sizes = jax.tree.leaves(params)[0].shape[:2]
    policies = jax.tree.map(
        lambda *leaves: jnp.concatenate([jnp.stack(leaves[:2]), _flat(leaves[2])]), experts.pi1, experts.pi2, params
    )
    played = jax.vmap(lambda policy: episodes(setup.task, policy, key, setup.eval_episodes))(policies)
    returns = played.reward.sum(-1).mean(-1)
    each_run = jnp.repeat(jnp.array(setup.references, jnp.int32), num_sizes)
    ref_params = jax.vmap(functools.partial(_reference, experts))(each_run)

    def measure(run: Any) -> tuple[Float[Array, ""], Float[Array, ""]]:
        (policy, trajectory), reference, reward = run
        if reward is None:
            learned = implicit_reward(setup.per_step, beta, policy, reference, trajectory)
        else:
            learned = trajectory_reward(reward, trajectory)
        return learned.mean(), trajectory_kl(policy, reference, trajectory).mean()

    # One policy after another: side by side, their activations would need gigabytes.
    runs = jax.tree.map(lambda leaf: leaf[2:], (policies, played)), ref_params, _rewards(trained, fitted, setup)
    learned, kl = jax.lax.map(measure, runs)
    pi1_kl = trajectory_kl(experts.pi1, experts.pi2, jax.tree.map(lambda leaf: leaf[0], played)).mean()
    true_return, learned, kl = (each.reshape(num_references, num_sizes) for each in (returns[2:], learned, kl))
    _, heldout = preferences.split(pairs, setup.num_heldout)
    of_labels = ranking.label_entropy(heldout), ranking.best_accuracy(heldout), ranking.length_accuracy(heldout)
    return Evaluation(returns[:2], pi1_kl, true_return, learned, kl, Labels(*of_labels))


def _rewards(trained: tuple[Trained, ...], fitted: tuple[Fitted, ...], setup: Setup) -> Network | None:
    """Return the reward model of each run [R * P]; None for DPO."""
    if fitted:
        of_sizes = _join([each.params for each in fitted], 0)
        return jax.tree.map(lambda leaf: jnp.concatenate([leaf] * len(setup.references)), of_sizes)
    if trained[0].reward_params is None:
        return None
    return jax.tree.map(_flat, _join([each.reward_params for each in trained], 1))


def _flat(leaf: Array) -> Array:
    return leaf.reshape(-1, *leaf.shape[2:])


def _join(trees: list[Any], axis: int) -> Any:
    return jax.tree.map(lambda *leaves: jnp.concatenate(leaves, axis), *trees)
