"""Functions of `jaxpref.fast` against the plain ones, where no other test file has them."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from gymnax.environments.classic_control import acrobot

from jaxpref.fast.dense import narrow_product, short_product
from jaxpref.fast.keys import fast_key
from jaxpref.fast.physics import Acrobot, sin_cos


def numbers(key):
    """Everything that is done with a key, with several dtypes and shapes."""
    first, second = jax.random.split(key)
    shapes = [jax.random.bits(first, shape) for shape in ((), (3,), (2, 5), (4, 0))]
    widths = [jax.random.bits(first, (7,), dtype) for dtype in (jnp.uint8, jnp.uint16)]
    folded = [jax.random.normal(jax.random.fold_in(second, number), (5,)) for number in (0, 1, 2**32 - 1)]
    keys = jax.random.split(second, (2, 3))
    return shapes, widths, folded, jax.random.permutation(first, 9), jax.random.key_data(keys)


def test_a_fast_keys_numbers_are_those_of_the_key():
    """Threefry, bit by bit: for one key, and for several under vmap."""
    key = jax.random.key(7)
    jax.tree.map(np.testing.assert_array_equal, jax.jit(numbers)(fast_key(key)), jax.jit(numbers)(key))
    keys, of_several = jax.random.split(key, 4), jax.jit(jax.vmap(numbers))
    jax.tree.map(np.testing.assert_array_equal, of_several(fast_key(keys)), of_several(keys))


@pytest.mark.parametrize("impl", ["rbg", "unsafe_rbg"])
def test_other_kinds_of_keys_stay_what_they_are(impl):
    key = jax.random.key(1, impl=impl)
    assert fast_key(key) is key
    fast = fast_key(jax.random.key(1))
    assert fast_key(fast) is fast


@pytest.mark.parametrize("product", [narrow_product, short_product])
@pytest.mark.parametrize("shape", [(8,), (5, 8), (2, 5, 8), (4, 17)])
def test_a_fast_product_is_a_matrix_product_with_its_gradients(product, shape):
    inputs, bias = jax.random.normal(jax.random.key(0), shape), jnp.arange(3.0)
    params = {"params": {"kernel": jax.random.normal(jax.random.key(1), (shape[-1], 3)), "bias": bias}}

    def loss(params, inputs, **options):
        return (nn.Dense(3, **options).apply(params, inputs) ** 3).sum()

    got = jax.jit(jax.value_and_grad(lambda *args: loss(*args, dot_general=product), (0, 1)))(params, inputs)
    expected = jax.value_and_grad(loss, (0, 1))(params, inputs)
    jax.tree.map(lambda one, other: np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-4), got, expected)


def test_sines_and_cosines():
    angles = np.concatenate([np.linspace(-1000, 1000, 200_001), np.pi / 4 * np.arange(-8, 9)]).astype(np.float32)
    sin, cos = jax.jit(sin_cos)(angles)
    np.testing.assert_allclose(sin, np.sin(angles.astype(np.float64)), atol=2e-7)
    np.testing.assert_allclose(cos, np.cos(angles.astype(np.float64)), atol=2e-7)


@pytest.mark.parametrize("noise", [0.0, 0.3])
def test_fast_acrobot_is_gymnaxs(noise):
    """From the same keys: initial states, and steps with other links, torques and noise than the default's."""
    fast, plain = Acrobot(), acrobot.Acrobot()
    links = {"link_length_1": 1.2, "link_mass_1": 0.9, "link_mass_2": 1.1, "link_com_pos_1": 0.4, "link_com_pos_2": 0.6}
    params = plain.default_params.replace(torque_noise_max=noise, link_moi=0.8, dt=0.1, max_vel_1=1.0, **links)
    params = params.replace(available_torque=jnp.array([-2.0, 0.5, 1.0]))

    def first_steps(env):
        keys = jax.random.split(jax.random.key(3), 500)
        start = obs, state = jax.vmap(env.reset_env, (0, None))(keys, params)
        state = state.replace(joint_angle1=30 * obs[:, 1], joint_angle2=30 * obs[:, 3], velocity_1=20 * obs[:, 4])
        return start, jax.vmap(env.step_env, (0, 0, 0, None))(keys, state, jnp.arange(500) % 3, params)

    first, second = jax.jit(first_steps, static_argnums=0)(fast), jax.jit(first_steps, static_argnums=0)(plain)
    jax.tree.map(lambda one, two: np.testing.assert_allclose(one, two, rtol=1e-5, atol=5e-6), first, second)
    assert 0.05 < second[1][3].mean() < 0.95
