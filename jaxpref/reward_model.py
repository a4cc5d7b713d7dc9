"""A reward model fitted to preferences: the first half of RLHF.

    loss = mean over pairs of -log sigmoid(sum_t r(chosen_t) - sum_t r(rejected_t))

(Christiano et al., 2017, https://arxiv.org/abs/1706.03741), with a reward r(obs, action, next_obs) per step, summed
over whole episodes.

Preferences fix the order of rewards and not their scale. Where all episodes have the same length they do not fix the
offset either. Where lengths differ, the offset decides everything: a positive reward per step tells an agent to go on,
a negative one tells it to end the episode. Four choices keep the offset to what the pairs say:

- The head's kernel starts at zero (`networks.RewardModel`). So its bias, a reward for every step, is learned first. It
  ranks episodes by their length alone, and the features explain only what length does not.
- Kernels decay and biases do not. So the model relies on its bias before the kernels can memorise wrong labels.
  Observations are normalised, so that the decay does not depend on their units.
- Returns are sums over steps, never means.
- PPO scales the reward and shapes it by a constant potential: `returns.RewardUnit`. The best policy stays the same.

The labels do fix the scale: a difference of returns is the log-odds of an answer. But a model that has memorised its
pairs is too sure of others. So the result is scaled by one number that is right for pairs it was not trained on: see
`calibration`. If the model knows nothing about these pairs, the number may be 0. Then PPO has only the KL penalty.
"""

import dataclasses
import functools
from collections.abc import Iterator

import jax
import jax.numpy as jnp
import optax
from flax import struct
from jaxtyping import Array, Float, Int, Key

from jaxpref import losses, training
from jaxpref.checks import check_config, check_count, check_key, setting
from jaxpref.divergence import find_divergence, param_size
from jaxpref.fast import packed
from jaxpref.fast.keys import fast_key
from jaxpref.networks import (
    Ensemble,
    Network,
    RewardModel,
    check_reward,
    fold_normalisation,
    init_reward,
    uses_next_obs,
)
from jaxpref.preferences import check_pairs
from jaxpref.tasks import Task
from jaxpref.training import Pairs, Result, TrainState, draw_minibatch, prepare, weighted_mean
from jaxpref.types import Optimiser, Preferences, Scalar, select

CHECK_EVERY = 10
"""Updates between two evaluations of the held-out pairs."""


@struct.dataclass
class Config:
    """How a reward model is fitted to preferences: the first half of RLHF."""

    num_updates: int = setting(100, low=1)
    """Gradient steps."""
    num_folds: int = setting(2, low=0)
    """Parts of the pairs for the calibration: a model is fitted without each of them. 0: no calibration. A part is
    every num_folds-th pair, so the order of the pairs must not say which labels are wrong."""
    use_next_obs: bool = setting(True)
    """Learn a reward of (obs, action, next_obs), not of (obs, action): see `networks.RewardModel`. A task's own reward
    network and `init_params` decide this themselves."""
    normalise_obs: bool = setting(True)
    """Scale observations, and their changes, to mean 0 and deviation 1 over the steps of the pairs, so that the decay
    is the same for all units. Only a `networks.RewardModel` does it. The result takes observations as they are."""
    batch_size: int = setting(32, low=0)
    """Pairs per update; 0: all pairs in every update."""
    holdout_every: int = setting(0, low=0)
    """Early stopping: every n-th pair is held out, and the result has the least loss on these pairs. 0: train on all
    pairs to the end."""
    optimiser: Optimiser | None = setting(None)
    """A function of the learning rate, such as `optax.sgd`; None: Adam. The decay does not follow its schedule."""
    learning_rate: Scalar = setting(6e-3, low=0)
    """Step size of the optimiser."""
    weight_decay: Scalar = setting(10.0, low=0)
    """Decoupled: each update subtracts learning_rate * weight_decay of every kernel. Biases do not decay."""

    def problems(self) -> Iterator[tuple[str, str]]:
        """Yield what is wrong with a combination of settings."""
        for name in ("holdout_every", "num_folds"):
            if getattr(self, name) == 1:
                yield name, "must be 0 or at least 2, got 1: no pair is left to train on"
        if self.num_folds > 1 and self.holdout_every > 1 and self.holdout_every % self.num_folds == 0:
            yield "holdout_every", f"must not be a multiple of num_folds, {self.num_folds}: all are in the same fold"


@struct.dataclass
class Metrics:
    """Means over the pairs of every update [U], before the step, and the largest magnitude of a parameter."""

    loss: Float[Array, "*batch"]
    margin: Float[Array, "*batch"]
    accuracy: Float[Array, "*batch"]
    param_size: Float[Array, "*batch"]


def optimiser(config: Config) -> optax.GradientTransformation:
    """Make AdamW, or the config's optimiser with the same decay. It applies to kernels only."""
    if config.optimiser is None:
        return optax.adamw(config.learning_rate, weight_decay=config.weight_decay, mask=_is_kernel)
    decay = optax.add_decayed_weights(-config.learning_rate * config.weight_decay, mask=_is_kernel)
    return optax.chain(training.make_optimiser(config), decay)


def _is_kernel(params: Network) -> Network:
    return jax.tree.map_with_path(lambda path, _: getattr(path[-1], "key", None) == "kernel", params)


def loss_fn(
    params: Network, data: Pairs, index: Int[Array, " B"], weight: Float[Array, " B"]
) -> tuple[Float[Array, ""], Metrics]:
    """Compute the weighted mean Bradley–Terry loss of the pairs at `index`, and their metrics."""
    chosen_return, rejected_return = _returns(params, data, index)
    mean = functools.partial(weighted_mean, weight=weight)
    margin, target = chosen_return - rejected_return, data.target[index]
    as_labelled = losses.bradley_terry(chosen_return, rejected_return)
    swapped = losses.bradley_terry(rejected_return, chosen_return)
    loss = mean(target * as_labelled + (1 - target) * swapped)
    return loss, Metrics(
        loss=loss, margin=mean(margin), accuracy=mean(1.0 * (margin > 0)), param_size=param_size(params)
    )


def _returns(params: Network, data: Pairs, index: Int[Array, " B"]) -> list[Float[Array, " B"]]:
    """Return the learned returns of the chosen and of the rejected trajectories of the pairs at `index`."""
    return jnp.split(packed.reward(params, data.rows, jnp.concatenate([index, data.weight.shape[0] + index])), 2)


def update(config: Config, data: Pairs, state: TrainState, key: Key[Array, ""]) -> tuple[TrainState, Metrics]:
    """Make one gradient step on a minibatch of pairs."""
    index, weight = draw_minibatch(key, data.weight, config.batch_size)
    grads, metrics = jax.grad(loss_fn, has_aux=True)(state.params, data, index, weight)
    updates, opt_state = optimiser(config).update(grads, state.opt_state, state.params)
    return TrainState(optax.apply_updates(state.params, updates), opt_state), metrics


def train(
    task: Task, config: Config, key: Key[Array, ""], preferences: Preferences, init_params: Network | None = None
) -> Result:
    """Fit a reward model to `preferences` of [N] pairs, from `init_params` or, without them, a fresh one."""
    check_config(config, Config)
    check_key(key)
    check_pairs(task, preferences)
    if init_params is not None:
        check_reward(task, init_params, "init_params")
    num_pairs = preferences.weight.shape[0]
    if config.holdout_every > num_pairs:
        raise ValueError(f"holdout_every must be at most the number of pairs, {num_pairs}, got {config.holdout_every}")
    key_init, key_train = jax.random.split(fast_key(key))
    params = init_reward(key_init, task, config.use_next_obs) if init_params is None else init_params
    if config.num_folds > 0 and not any(_is_head(path) for path, _ in jax.tree.leaves_with_path(params)):
        module = type(params.module).__name__
        raise ValueError(f'{module} needs a last, linear layer "reward" for the calibration, or num_folds=0')
    data = prepare(task, preferences, use_next_obs=uses_next_obs(params.module))
    normalise = config.normalise_obs and type(params.module) is RewardModel
    if normalise:
        rows, mean, deviation = packed.normalise(data.rows, jnp.tile(data.weight > 0, 2))
        data = dataclasses.replace(data, rows=rows)
        if init_params is not None:
            params = fold_normalisation(params, -mean / deviation, 1 / deviation)
    fit = _fit if config.num_folds == 0 else _fit_calibrated
    params, metrics = fit(config, key_train, params, data)
    params = fold_normalisation(params, mean, deviation) if normalise else params
    return Result(params, metrics, find_divergence(metrics, params, config.num_updates))


def _fit(config: Config, key: Key[Array, ""], params: Network, data: Pairs) -> tuple[Network, Metrics]:
    start, keys = TrainState(params, optimiser(config).init(params)), jax.random.split(key, config.num_updates)
    if config.holdout_every > 0:
        return _keep_best(config, data, start, keys)
    state, metrics = jax.lax.scan(functools.partial(update, config, data), start, keys)
    return state.params, metrics


def _fit_calibrated(config: Config, key: Key[Array, ""], params: Network, data: Pairs) -> tuple[Network, Metrics]:
    """Fit a model without each fold of the pairs, then one to all pairs, and scale it by what the folds say."""
    num_pairs = data.weight.shape[0]
    # Fold k is every K-th pair from the k-th one on. Index `num_pairs` stands for no pair. The last fold has none: its
    # model is fitted to all pairs.
    fold_size = -(-num_pairs // config.num_folds)
    folds = jnp.minimum(jnp.arange(fold_size * config.num_folds).reshape(fold_size, -1).T, num_pairs)
    folds = jnp.concatenate([folds, jnp.full((1, fold_size), num_pairs)])

    def fit(fold: Int[Array, " F"]) -> tuple[Network, Metrics, Float[Array, " F"]]:
        weight = data.weight.at[fold].set(0.0, mode="drop")
        fitted, metrics = _fit(config, key, params, dataclasses.replace(data, weight=weight))
        chosen_return, rejected_return = _returns(fitted, data, fold)
        return fitted, metrics, chosen_return - rejected_return

    models, metrics, margin = jax.lax.map(fit, folds)  # one program fits all of them
    weight = data.weight.at[folds].get(mode="fill", fill_value=0.0)
    scale = calibration(margin.reshape(-1), data.target[folds].reshape(-1), weight.reshape(-1))
    last = functools.partial(jax.tree.map, lambda leaf: leaf[-1])
    return scaled(last(models), scale), last(metrics)


def calibration(margin: Float[Array, " N"], target: Float[Array, " N"], weight: Float[Array, " N"]) -> Float[Array, ""]:
    """Find the scale under which held-out margins, in log-odds, best predict the labels: 0, or from 0.01 to 3.

    This is temperature scaling (Guo et al., 2017, https://arxiv.org/abs/1706.04599), on a grid. The scale is 0
    where the margins on the wrong side add up to at least those on the right side. Without any weight it is 1.
    """
    scales = jnp.append(0.0, jnp.geomspace(0.01, 3.0, 64))
    scaled_margin = scales[:, None] * margin
    loss = target * jax.nn.softplus(-scaled_margin) + (1 - target) * jax.nn.softplus(scaled_margin)
    best = scales[jnp.argmin(jax.vmap(weighted_mean, (0, None))(loss, weight))]
    return jnp.where(weight.sum() > 0, best, 1.0)


def scaled(reward: Network, scale: Float[Array, ""]) -> Network:
    """Return the reward model times `scale`: its last, linear layer, "reward", is multiplied."""
    return jax.tree.map_with_path(lambda path, leaf: scale * leaf if _is_head(path) else leaf, reward)


def _is_head(path: tuple) -> bool:
    return any(getattr(key, "key", None) == "reward" for key in path)


def _keep_best(config: Config, data: Pairs, start: TrainState, keys: Key[Array, " U"]) -> tuple[Network, Metrics]:
    """Train on the other pairs. Evaluate the held-out pairs before every CHECK_EVERY updates and at the end.

    Where no held-out pair has weight, the last parameters are kept.
    """
    held_out = jnp.arange(config.holdout_every - 1, data.weight.shape[0], config.holdout_every)
    step = functools.partial(update, config, dataclasses.replace(data, weight=data.weight.at[held_out].set(0.0)))

    def better(best, params):
        loss, _ = loss_fn(params, data, held_out, data.weight[held_out])
        is_better = (loss < best[1]) | (data.weight[held_out].sum() == 0)
        return select(is_better, (params, loss), best)

    def block(carry, keys):
        state, best = carry
        best = better(best, state.params)
        state, metrics = jax.lax.scan(step, state, keys)
        return (state, best), metrics

    num_blocks, rest = divmod(config.num_updates, CHECK_EVERY)
    keys_of_blocks = keys[rest:].reshape(num_blocks, CHECK_EVERY)
    best = start.params, jnp.float32(jnp.inf)
    state, first_metrics = jax.lax.scan(step, start, keys[:rest])
    (state, best), metrics = jax.lax.scan(block, (state, best), keys_of_blocks)
    metrics = jax.tree.map(lambda leaf: leaf.reshape(-1), metrics)
    metrics = jax.tree.map(lambda *both: jnp.concatenate(both), first_metrics, metrics)
    return better(best, state.params)[0], metrics


def train_ensemble(
    task: Task, config: Config, key: Key[Array, ""], preferences: Preferences, num_members: int
) -> Result:
    """Fit `num_members` reward models, each with its own start and its own weights of the pairs.

    The weights are those of the pairs times Exponential(1) numbers. This is the Bayesian bootstrap (Rubin, 1981). It
    also works where most pairs have weight zero, and it leaves no pair out. Where the members disagree, the data do not
    decide. The result's `params` are a `Network` of an `Ensemble`. Its metrics and divergence have a leading axis M.
    """
    check_count(num_members, "num_members")
    check_key(key)
    check_pairs(task, preferences)
    key_weight, key_train = jax.random.split(key)
    weight = preferences.weight * jax.random.exponential(key_weight, (num_members, *preferences.weight.shape))
    fit_member = jax.vmap(lambda key, weight: train(task, config, key, dataclasses.replace(preferences, weight=weight)))
    members = fit_member(jax.random.split(key_train, num_members), weight)
    return dataclasses.replace(members, params=as_ensemble(members.params))


def as_ensemble(members: Network) -> Network:
    """Make one network of the mean of M members, whose parameters have one leading axis M."""
    return Network(Ensemble(members.module), members.params)
