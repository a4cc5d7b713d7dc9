"""The stages of the pipeline, each a pure function of one seed. P is the number of dataset sizes of a program.

A stage takes only those fields of other stages' results that it reads. So its program does not depend on the others,
such as metrics.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from experiments.pipeline.results import LABEL_MEASURES, Evaluation, Measures, Networks, Pairs, Policies, Trained
from jaxpref import annotators, dpo, expert_ppo, losses, online, ppo, preferences, reinforce, reward_model, training
from jaxpref.analysis import ranking
from jaxpref.divergence import Divergence
from jaxpref.experts import Result
from jaxpref.networks import Network, init_reward, trajectory_kl, trajectory_log_prob, trajectory_reward
from jaxpref.rollout import episodes
from jaxpref.tasks import Task
from jaxpref.types import Preferences, Scalar, Trajectory, select


class Keys(NamedTuple):
    """One key for each purpose. Methods, sizes and references share it, so that their results are compared in pairs."""

    experts: jax.Array
    preferences: jax.Array
    reward_model: jax.Array
    train: jax.Array
    evaluate: jax.Array


def with_keys(function: Callable, config: Any, seed: Int[Array, ""], *inputs: Any) -> Any:
    """Call a stage's function with the keys of its seed."""
    return function(config, Keys(*jax.random.split(jax.random.key(seed), len(Keys._fields))), *inputs)


class Setup(NamedTuple):
    """What is static in a stage. `references`: 0 for pi1 and 1 for pi2; `sizes`: of the datasets of one program."""

    task: Task
    sizes: tuple[int, ...]
    references: tuple[int, ...] = (1,)
    eval_episodes: int = 100
    per_step: bool = False
    reward: str = "learned"
    num_members: int = 1
    segment: int | None = None
    show: bool = False


# --- experts and pairs ------------------------------------------------------------------------------------------------


def train_experts(task: Task, config: reinforce.Config | ppo.Config, keys: Keys) -> Result:
    """Train pi1 and pi2."""
    if isinstance(config, ppo.Config):
        return expert_ppo.train(task, config, keys.experts)
    return reinforce.train(task, config, keys.experts)


def play_pairs(
    task: Task,
    num_pairs: int,
    num_heldout: int,
    segment: int | None,
    config: Any,
    keys: Keys,
    experts: Policies,
    *recorded: Preferences,
) -> Pairs:
    """Play and label `num_pairs` pairs. `recorded` ones come before them. The last pairs are held out."""
    annotator = annotators.teacher_of(task, config)
    played = preferences.sample_preferences(task, *experts, keys.preferences, num_pairs, annotator, segment)
    together = jax.tree.map(lambda *leaves: jnp.concatenate(leaves), *recorded, played)
    return Pairs(*preferences.split(together, num_heldout))


def _on_sizes(setup: Setup, pairs: Preferences, function: Callable[[Preferences], Any]) -> Any:
    """Map a function of the training pairs over all sizes of dataset [P]."""
    largest = preferences.take(pairs, slice(max(setup.sizes)))
    return _map(lambda size: function(preferences.prefix(largest, size)), jnp.array(setup.sizes))


def _map(function: Callable, inputs: Any) -> Any:
    """Map a function over the first axis of its inputs. Over a single one, `vmap` would take up to twice as long."""
    if jax.tree.leaves(inputs)[0].shape[0] > 1:
        return jax.vmap(function)(inputs)
    result = function(jax.tree.map(lambda leaf: leaf[0], inputs))
    return jax.tree.map(lambda leaf: leaf[None], result)


# --- training ---------------------------------------------------------------------------------------------------------


def train_dpo(
    setup: Setup, config: dpo.Config, keys: Keys, experts: Policies, pairs: Preferences, reference: Array
) -> Trained:
    """Train by DPO from pi2, on every size of dataset [P]."""
    ref_params = select(reference == 0, experts.pi1, experts.pi2)

    def on_pairs(some: Preferences) -> Trained:
        return Trained(**vars(dpo.train(setup.task, config, keys.train, some, experts.pi2, ref_params)))

    return _on_sizes(setup, pairs, on_pairs)


CONSTANTS = {"plus": 1.0, "minus": -1.0}
"""The reward of each step, for the controls that have the same one everywhere."""


class Bias(nn.Module):
    """A reward model that has nothing but its bias: all steps have the same reward. It is calibrated, too."""

    @nn.compact
    def __call__(self, obs, action):
        nothing = jnp.zeros((*obs.shape[:-1], 1))
        return nn.Dense(1, kernel_init=nn.initializers.zeros, name="reward")(nothing)[..., 0]


def fit_rewards(setup: Setup, config: reward_model.Config, keys: Keys, pairs: Preferences) -> training.Result:
    """Fit a reward model, an ensemble, or a bias alone, to every size of dataset [P]."""
    task = dataclasses.replace(setup.task, reward_network=Bias()) if setup.reward == "bias" else setup.task

    def on_pairs(some: Preferences) -> training.Result:
        if setup.num_members == 1:
            return reward_model.train(task, config, keys.reward_model, some)
        members = reward_model.train_ensemble(task, config, keys.reward_model, some, setup.num_members)
        metrics = jax.tree.map(lambda leaf: leaf.mean(0), members.metrics)
        return training.Result(members.params, metrics, _first(members.divergence))

    return _on_sizes(setup, pairs, on_pairs)


def control_reward(setup: Setup, config: reward_model.Config, keys: Keys) -> training.Result:
    """Make a reward model [P] without any pair.

    Its head is zero. For "random" the head's kernel is drawn instead. For "plus" and "minus" its bias is the reward of
    each step.
    """
    key_init, key_head = jax.random.split(keys.reward_model)
    reward = init_reward(key_init, setup.task, config.use_next_obs)  # its head is zero

    def head(path: tuple, leaf: Array) -> Array:
        name = jax.tree_util.keystr(path)
        if name.endswith("['reward']['kernel']") and setup.reward == "random":
            return jax.random.normal(key_head, leaf.shape)
        return leaf + CONSTANTS.get(setup.reward, 0.0) if name.endswith("['reward']['bias']") else leaf

    reward = jax.tree.map_with_path(head, reward)
    of_sizes = jax.tree.map(lambda leaf: jnp.broadcast_to(leaf, (len(setup.sizes), *leaf.shape)), reward)
    never = jnp.zeros(len(setup.sizes), jnp.int32)
    return training.Result(of_sizes, None, Divergence(never, never))


def train_ppo(
    setup: Setup, config: ppo.Config, keys: Keys, experts: Policies, rewards: Network, reference: Array
) -> Trained:
    """Train by PPO from pi2, on every reward model [P]."""
    ref_params = select(reference == 0, experts.pi1, experts.pi2)
    reward_fn = ppo.true_reward if setup.reward == "true" else ppo.learned_reward

    def on_reward(reward_params: Network) -> Trained:
        result = ppo.train(setup.task, config, keys.train, experts.pi2, ref_params, reward_params, reward_fn)
        return Trained(**vars(result), reward_params=reward_params)

    return _map(on_reward, rewards)


def train_online(setup: Setup, configs: tuple, keys: Keys, experts: Policies, reference: Array) -> Trained:
    """Train in rounds from pi2, by DPO or by a reward model and PPO. P is 1.

    configs:  of the annotator, of the rounds, then DPO's, or those of the reward model and PPO.
    """
    annotator, rounds, *trainers = configs
    ref_params, (num_pairs,) = select(reference == 0, experts.pi1, experts.pi2), setup.sizes
    args = keys.train, annotators.teacher_of(setup.task, annotator), num_pairs, experts.pi2, ref_params, setup.segment
    train = online.train_dpo if len(trainers) == 1 else online.train_rlhf
    result = train(setup.task, rounds, *trainers, *args)  # type: ignore[call-arg]
    metrics, divergence = jax.tree.map(lambda leaf: leaf.reshape(-1), result.metrics), result.divergence
    # The updates of all rounds are counted together.
    before = jnp.arange(rounds.num_rounds) * result.metrics.loss.shape[1]
    update = jnp.where(divergence.update > 0, divergence.update + before, 0)
    divergence = _first(dataclasses.replace(divergence, update=update))
    return jax.tree.map(lambda leaf: leaf[None], Trained(result.params, metrics, divergence, result.reward_params))


def _first(divergence: Divergence) -> Divergence:
    """Return the first divergence of several members or rounds [M]; none if none of them diverged."""
    return jax.tree.map(lambda leaf: leaf[jnp.argmax(divergence.update > 0)], divergence)


# --- evaluation -------------------------------------------------------------------------------------------------------


def learned_return(
    setup: Setup, beta: Scalar, trained: Networks, reference: Network, trajectory: Trajectory
) -> Float[Array, "*batch"]:
    """Return the reward model's return, or DPO's implicit one: beta times the log-ratio, or times its mean per step."""
    if trained.reward_params is not None:
        return trajectory_reward(trained.reward_params, trajectory)
    log_ratio = trajectory_log_prob(trained.params, trajectory) - trajectory_log_prob(reference, trajectory)
    return beta * (losses.per_step(log_ratio, 1.0 * trajectory.mask.sum(-1)) if setup.per_step else log_ratio)


def evaluate(
    setup: Setup, beta: Scalar, keys: Keys, experts: Policies, heldout: Preferences, trained: Networks
) -> Evaluation:
    """Play all policies from the same initial states, and measure the trained ones [R, P]."""
    runs = jax.tree.map(lambda leaf: leaf.reshape(-1, *leaf.shape[2:]), trained)
    policies = jax.tree.map(
        lambda pi1, pi2, others: jnp.concatenate([jnp.stack([pi1, pi2]), others]), experts.pi1, experts.pi2, runs.params
    )
    played = jax.vmap(lambda policy: episodes(setup.task, policy, keys.evaluate, setup.eval_episodes))(policies)
    of_episodes = played.reward.sum(-1)
    returns, errors = of_episodes.mean(-1), of_episodes.std(-1) / setup.eval_episodes**0.5
    both = jax.tree.map(lambda *leaves: jnp.stack(leaves), heldout.chosen, heldout.rejected)

    def measure(run: tuple[Networks, Array, Trajectory, Array, Array]) -> Measures:
        trained, reference, episodes, true_return, error = run
        ref_params = select(reference == 0, experts.pi1, experts.pi2)
        learned = functools.partial(learned_return, setup, beta, trained, ref_params)
        (chosen, rejected), own = learned(both), learned(episodes)
        return Measures(
            true_return=true_return,
            true_return_error=error,
            learned_return=own.mean(),
            kl=trajectory_kl(trained.params, ref_params, episodes).mean(),
            own_rank_correlation=ranking.rank_correlation(own, episodes.reward.sum(-1)),
            quality=ranking.quality(chosen, rejected, heldout),
        )

    references = jnp.repeat(jnp.array(setup.references, jnp.int32), len(setup.sizes))
    of_pi1, of_runs = (jax.tree.map(lambda leaf, which=which: leaf[which], played) for which in (0, slice(2, None)))
    # One policy after another: side by side, their activations would need gigabytes.
    measures = jax.lax.map(measure, (runs, references, of_runs, returns[2:], errors[2:]))
    shape = len(setup.references), len(setup.sizes)
    return Evaluation(
        shown=first_episodes(setup, policies, played) if setup.show else None,
        expert_return=returns[:2],
        expert_return_error=errors[:2],
        pi1_kl=trajectory_kl(experts.pi1, experts.pi2, of_pi1).mean(),
        measures=jax.tree.map(lambda leaf: leaf.reshape(shape), measures),
        labels={name: getattr(ranking, name)(heldout) for name in LABEL_MEASURES},
    )


def first_episodes(setup: Setup, policies: Network, played: Trajectory) -> Trajectory:
    """Return the first episode of pi2, of pi1 and of each reference's policy of the largest size [2 + R].

    All start in the same state and draw the same noise. A policy that is not finite has no steps.
    """
    trained = 2 + np.argmax(setup.sizes) + len(setup.sizes) * np.arange(len(setup.references))
    which = np.array([1, 0, *trained])
    leaves = [leaf[which] for leaf in jax.tree.leaves(policies)]
    finite = jnp.array([jnp.isfinite(leaf).all((*range(1, leaf.ndim),)) for leaf in leaves]).all(0)
    first = jax.tree.map(lambda leaf: leaf[which, 0], played)
    return dataclasses.replace(first, mask=first.mask & finite[:, None])
