"""What every trainer promises of seeds, hyperparameters and pairs: on one program of two configs and two seeds."""

import functools
import itertools

import helpers
import jax
import numpy as np
import optax
import pytest
from helpers import LEVER, SIGN, assert_close, assert_same_bytes, keys, lane, pairs, policy, stack

from jaxpref import dpo, expert_ppo, ppo, preferences, reinforce, reward_model


def policies_and_reward(seed):
    return (
        policy(seed, SIGN),
        policy(100 + seed, SIGN),
        jax.tree.map(lambda leaf: leaf + seed / 200, helpers.sign_reward()),
    )


DPO = dpo.Config(num_updates=6, batch_size=8, eval_every=2, eval_episodes=0, learning_rate=0.05, beta=0.3)
REWARD = reward_model.Config(num_updates=6, batch_size=8, learning_rate=0.02, weight_decay=0.1)
PPO = ppo.Config(
    num_updates=6,
    num_envs=4,
    num_steps=16,
    num_epochs=2,
    num_minibatches=4,
    eval_every=3,
    learning_rate=0.02,
    kl_coef=0.0,
)
REINFORCE = reinforce.Config(num_updates=12, episodes_per_update=4, score_window=8, learning_rate=0.1)
EXPERT_PPO = PPO.replace(num_updates=12, num_steps=20, eval_every=1, eval_episodes=8)
TRAINERS = {
    dpo.train: (LEVER, DPO, {"beta": 1.0}, lambda seed: (pairs(seed), policy(seed), policy(100 + seed))),
    reward_model.train: (LEVER, REWARD, {"learning_rate": 0.05, "weight_decay": 0.0}, lambda seed: (pairs(seed),)),
    ppo.train: (SIGN, PPO, {"kl_coef": 1.0, "gamma": 0.5}, policies_and_reward),
    reinforce.train: (LEVER, REINFORCE, {"learning_rate": 5e-3, "ent_coef": 0.01}, lambda seed: ()),
    expert_ppo.train: (LEVER, EXPERT_PPO, {"learning_rate": 3e-3, "ent_coef": 0.01}, lambda seed: ()),
}
"""{trainer: (task, config, changes of another config, what follows the key for each seed)}."""
EXPERTS = reinforce.train, expert_ppo.train


def name_of(trainer):
    return f"{trainer.__module__.rpartition('.')[2]}.{trainer.__name__}"


every_trainer = pytest.mark.parametrize("trainer", TRAINERS, ids=name_of)


@functools.cache
def programs(trainer):
    """(of one run, of two configs and two seeds)."""

    def train(config, key, data):
        return trainer(TRAINERS[trainer][0], config, key, *data)

    return jax.jit(train), jax.jit(jax.vmap(jax.vmap(train, in_axes=(None, 0, 0)), in_axes=(0, None, None)))


def inputs(trainer, changes, seeds):
    """(configs, keys, data): the trainer's config and one with changes; of these seeds."""
    _, config, _, data = TRAINERS[trainer]
    return stack(config, config.replace(**changes)), keys(*seeds), stack(*map(data, seeds))


@functools.cache
def two_by_two(trainer):
    return programs(trainer)[1](*inputs(trainer, TRAINERS[trainer][2], (20, 21)))


@every_trainer
def test_an_optimiser_may_use_the_parameters(trainer):
    """As optax.adamw does, for its decay. Traced, not run."""
    task, config, _, data = TRAINERS[trainer]
    train = functools.partial(trainer, task, config.replace(optimiser=optax.adamw))
    _ = jax.eval_shape(train, keys(7)[0], *data(7))


@every_trainer
def test_the_same_seeds_give_the_same_bytes(trainer):
    again = programs(trainer)[1](*inputs(trainer, TRAINERS[trainer][2], (20, 21)))
    assert_same_bytes(again, two_by_two(trainer))


@every_trainer
def test_vmap_over_configs_and_seeds_is_one_run_after_the_other(trainer):
    """Also where experts are found after different numbers of updates."""
    configs, *of_seeds = inputs(trainer, TRAINERS[trainer][2], (20, 21))
    together = two_by_two(trainer)
    for c, s in itertools.product(range(2), range(2)):
        alone = programs(trainer)[0](lane(configs, c), *lane(of_seeds, s))
        assert_close(lane(lane(together, c), s), alone, rtol=1e-3, atol=1e-3)
    assert np.nanmax(abs(together.metrics.loss[0] - together.metrics.loss[1])) > 1e-2
    assert trainer not in EXPERTS or len(np.unique(together.num_updates)) > 1


@every_trainer
def test_a_run_does_not_depend_on_its_neighbours_and_divergence_is_found(trainer):
    """Neither on the other seed, with other data, nor on the other config: here on its learning rate of 1000."""
    other = programs(trainer)[1](*inputs(trainer, {"learning_rate": 1e3}, (20, 22)))
    assert_same_bytes(lane(lane(other, 0), 0), lane(lane(two_by_two(trainer), 0), 0))
    for c, s in ((0, 1), (1, 0)):
        assert not np.allclose(other.metrics.loss[c, s], two_by_two(trainer).metrics.loss[c, s], equal_nan=True)
    assert not two_by_two(trainer).divergence.update.any()
    np.testing.assert_array_equal(other.divergence.update > 0, [[False, False], [True, True]])
    np.testing.assert_array_equal(other.divergence.what > 0, [[False, False], [True, True]])


@pytest.mark.parametrize("batch_size", [8, 0])
@pytest.mark.parametrize("trainer", [dpo.train, reward_model.train], ids=name_of)
def test_only_steps_that_were_played_and_pairs_of_some_weight_are_learned_from(trainer, batch_size):
    """Garbage beyond the masks changes not a bit. Seven pairs of twelve, the others with weight zero, are a dataset of
    seven, whatever the others contain."""
    config = lane(
        stack(TRAINERS[trainer][1].replace(batch_size=batch_size)), 0
    )  # arrays: the program of the other tests
    data, *policies = TRAINERS[trainer][3](9)

    def train(data):
        return programs(trainer)[0](config, jax.random.key(9), (data, *policies))

    whole, cut = train(data), train(preferences.take(data, slice(7)))
    assert_same_bytes(train(helpers.spoil_pairs(data)), whole)
    assert np.isfinite(whole.metrics.loss).all()
    assert abs(whole.metrics.loss[1:] - cut.metrics.loss[1:]).max() > 1e-2
    others = jax.tree.map(lambda leaf, other: leaf.at[7:].set(other[7:]), data, pairs(10))
    for some in (data, others):
        assert_close(train(preferences.prefix(some, 7)), cut, rtol=1e-3, atol=1e-4)
