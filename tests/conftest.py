"""Before JAX or jaxpref is used: two CPU devices, as the experiments have, and every annotation checked."""

import os

# XLA's newer generator of CPU code takes twice as long, and what it makes runs no faster here.
os.environ.setdefault("XLA_FLAGS", "--xla_cpu_use_fusion_emitters=false")

import jax
import pytest
from jaxtyping import install_import_hook

jax.config.update("jax_num_cpu_devices", 2)
# Most programs of the tests run once: compiling them well is not worth the time. `optimised` is for modules
# whose programs run long.
jax.config.update("jax_disable_most_optimizations", True)
install_import_hook("jaxpref", "typechecking.check")


@pytest.fixture(scope="module")
def optimised():
    """Programs of this module are compiled with all optimisations, as a user's are."""
    jax.config.update("jax_disable_most_optimizations", False)
    yield
    jax.config.update("jax_disable_most_optimizations", True)
