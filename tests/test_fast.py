"""Functions of `jaxpref.fast` against the plain ones, where no other test file has them."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxpref.fast.dense import narrow_product
from jaxpref.fast.keys import fast_key


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


@pytest.mark.parametrize("shape", [(8,), (5, 8), (2, 5, 8)])
def test_a_narrow_product_is_a_matrix_product_with_its_gradients(shape):
    inputs, bias = jax.random.normal(jax.random.key(0), shape), jnp.arange(3.0)
    params = {"params": {"kernel": jax.random.normal(jax.random.key(1), (8, 3)), "bias": bias}}

    def loss(params, inputs, **options):
        return (nn.Dense(3, **options).apply(params, inputs) ** 3).sum()

    got = jax.jit(jax.value_and_grad(lambda *args: loss(*args, dot_general=narrow_product), (0, 1)))(params, inputs)
    expected = jax.value_and_grad(loss, (0, 1))(params, inputs)
    jax.tree.map(lambda one, other: np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-4), got, expected)
