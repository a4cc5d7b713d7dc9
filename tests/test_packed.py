"""Packed sums against the plain ones of networks.py: same values, same gradients."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import assert_close, assert_same_bytes, lane, random_trajectories, spoil, stack
from hypothesis import given, settings
from hypothesis import strategies as st

import jaxpref
from jaxpref import networks, packed
from jaxpref.fast.perceptron import Perceptron

SIZES = {"obs_size": 6, "num_actions": 3}
CONTINUOUS = SIZES | {"continuous": True}
DISCRETE_TASK = jaxpref.acrobot()
CONTINUOUS_TASK = DISCRETE_TASK.replace(action_range=((-1.0, 1.0), (0.0, 2.0), (-0.5, 0.5)))
NUM, BATCH = 6, 24  # up to 96 rows: more than one pass of the loop holds

LOG_PROB = packed.log_prob, networks.trajectory_log_prob, networks.init_policy
REWARD = packed.reward, networks.trajectory_reward, functools.partial(networks.init_reward, use_next_obs=False)
REWARD_OF_CHANGES = packed.reward, networks.trajectory_reward, networks.init_reward
SUMS = {
    "log_prob": (*LOG_PROB, DISCRETE_TASK, SIZES),
    "reward": (*REWARD, DISCRETE_TASK, SIZES),
    "reward_of_changes": (*REWARD_OF_CHANGES, DISCRETE_TASK, SIZES),
    "log_density": (*LOG_PROB, CONTINUOUS_TASK, CONTINUOUS),
    "reward_of_continuous_actions": (*REWARD, CONTINUOUS_TASK, CONTINUOUS),
    "reward_of_changes_and_continuous_actions": (*REWARD_OF_CHANGES, CONTINUOUS_TASK, CONTINUOUS),
}
"""{name: (packed, plain, fresh parameters, task, sizes of trajectories)}."""


def random_params(name, seed):
    """Parameters without a zero among them."""
    *_, init, task, _ = SUMS[name]
    network = init(jax.random.key(seed), task)
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda leaf: jnp.array(rng.normal(size=leaf.shape) / 3, jnp.float32), network)


def on_grid(tree):
    """Round all numbers to sixteenths. Layers then have no rounding error, so both forms agree on which units are on:
    where a unit's input is 0 but for rounding, they need not."""
    return jax.tree.map(
        lambda leaf: jnp.round(16 * leaf) / 16 if jnp.issubdtype(leaf.dtype, jnp.floating) else leaf, tree
    )


def gradients(sum_of, params, cotangent):
    """The sums, and the gradient of their dot product with the cotangent."""
    sums, vjp = jax.vjp(sum_of, params)
    return sums, vjp(cotangent)[0]


@functools.cache
def both(name):
    """(packed, plain): functions of (params, trajectories [N, T], index [B], cotangent [B])."""
    packed_sum, plain_sum, *_ = SUMS[name]

    def packed_all(params, trajectories, index, cotangent):
        rows = packed.pack(trajectories, SIZES["num_actions"], networks.uses_next_obs(params.module))
        return gradients(lambda params: packed_sum(params, rows, index), params, cotangent)

    def plain_all(params, trajectories, index, cotangent):
        return gradients(lambda params: plain_sum(params, lane(trajectories, index)), params, cotangent)

    return jax.jit(packed_all), jax.jit(plain_all)


@pytest.mark.parametrize(("name", "horizon"), [*((name, 60) for name in SUMS), ("log_prob", 7)])
def test_packed_sums_and_gradients_are_the_plain_ones(name, horizon):
    """Horizons below and above a row of 16 steps; lengths, indices and weights drawn by hypothesis."""
    packed_all, plain_all = both(name)
    params, sizes = on_grid(random_params(name, seed=1)), SUMS[name][-1]

    @settings(deadline=None, max_examples=12)
    @given(
        lengths=st.lists(st.integers(1, horizon), min_size=NUM, max_size=NUM),
        index=st.lists(st.integers(0, NUM - 1), min_size=BATCH, max_size=BATCH),
        seed=st.integers(0, 2**32 - 1),
    )
    def holds(lengths, index, seed):
        rng = np.random.default_rng(seed)
        trajectories = on_grid(random_trajectories(rng, lengths, horizon, **sizes))
        args = params, trajectories, jnp.array(index), jnp.array(rng.normal(size=BATCH), jnp.float32)
        assert_close(packed_all(*args), plain_all(*args), rtol=1e-4, atol=5e-4)

    holds()


@pytest.mark.parametrize("name", SUMS)
def test_under_vmap_every_lane_is_what_the_plain_function_gives(name):
    """Lanes with their own parameters and trajectories: one has long episodes, the other short ones, so that one is
    done passes before the other."""
    rng, args, sizes = np.random.default_rng(5), [], SUMS[name][-1]
    for seed, lengths in ((6, [60] * NUM), (7, [1, 2, 3, 4, 5, 6])):
        index, cotangent = jnp.array(rng.integers(NUM, size=BATCH)), jnp.array(rng.normal(size=BATCH), jnp.float32)
        args.append((random_params(name, seed), random_trajectories(rng, lengths, 60, **sizes), index, cotangent))
    packed_all, plain_all = both(name)
    result = jax.vmap(packed_all)(*stack(*args))
    for i in range(2):
        assert_close(lane(result, i), plain_all(*args[i]), rtol=1e-4, atol=5e-4)


@pytest.mark.parametrize("name", SUMS)
def test_garbage_beyond_the_mask_changes_not_a_bit(name):
    rng = np.random.default_rng(11)
    clean = random_trajectories(rng, [7, 30, 60, 1, 25, 26], 60, **SUMS[name][-1])
    params, index, ones = random_params(name, 12), jnp.arange(BATCH) % NUM, jnp.ones(BATCH)
    packed_all, _ = both(name)
    assert_same_bytes(packed_all(params, clean, index, ones), packed_all(params, spoil(clean), index, ones))


@pytest.mark.parametrize("sizes", [SIZES, CONTINUOUS], ids=["discrete", "continuous"])
def test_pack_puts_every_step_in_its_place(sizes):
    """Step t of a trajectory stands in row t // 16, place t % 16: a one, the observation, and the action as a one-hot
    vector without its first entry, or as its numbers. What the last row has over is zero."""
    trajectories = random_trajectories(np.random.default_rng(13), [60, 30], 70, **sizes)
    rows = packed.pack(trajectories, 3)
    action = trajectories.action if "continuous" in sizes else np.eye(3)[trajectories.action][..., 1:]
    assert rows.steps.shape == (2, 5, 1 + 6 + action.shape[-1], 16)
    assert rows.num_rows.tolist() == [4, 2]
    for t in range(60):
        step = rows.steps[:, t // 16, :, t % 16]
        np.testing.assert_array_equal(step[:, 1:7], trajectories.obs[:, t])
        np.testing.assert_array_equal(step[:, 7:], action[:, t])
    assert rows.steps[:, :, 0].sum((1, 2)).tolist() == [60, 30]
    assert not rows.steps[1, 1, :, 30 - 16 :].any()


def test_a_batch_names_the_rows_with_steps_and_their_trajectories():
    """Lengths 45, 1 and 20 fill 3, 1 and 2 of the 4 rows that each may have: [2, 0] has rows 8, 9, 0, 1 and 2."""
    trajectories = random_trajectories(np.random.default_rng(14), [45, 1, 20], 60, **SIZES)
    batch = packed.find(packed.pack(trajectories, SIZES["num_actions"]), jnp.array([2, 0]))
    assert batch.num_rows == 5
    assert batch.owner.shape == batch.source.shape == (1, packed.CHUNK)
    assert batch.source[0, :5].tolist() == [8, 9, 0, 1, 2]
    assert batch.owner[0, :6].tolist() == [0, 0, 1, 1, 1, 2]


@pytest.mark.parametrize("num_outputs", [1, 2])
@pytest.mark.parametrize("num_inputs", [5, 30])
def test_a_perceptron_and_its_gradient_are_the_plain_formula(num_inputs, num_outputs):
    """Few inputs and many, one output and several, each of which has its own way."""
    rng = np.random.default_rng(num_inputs)
    shapes = (num_inputs, 8), (8, num_outputs), (num_outputs,), (num_inputs, 40), (num_outputs, 40)
    *params, inputs, cotangent = (jnp.array(rng.normal(size=shape), jnp.float32) for shape in shapes)

    def plain(params):
        return params.head.T @ jax.nn.relu(params.kernel.T @ inputs) + params.bias[:, None]

    params = Perceptron(*params)
    assert_close(*(gradients(f, params, cotangent) for f in (lambda params: params.apply(inputs), plain)), rtol=1e-4)
