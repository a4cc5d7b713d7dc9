"""Before JAX or jaxpref is used: two CPU devices, as the experiments have, and every annotation checked."""

import gc
import os
import signal

# XLA's newer generator of CPU code takes twice as long, and what it makes runs no faster here. Splitting a program
# among threads takes an eighth more time, and pytest's workers keep all cores busy anyway.
os.environ.setdefault("XLA_FLAGS", "--xla_cpu_use_fusion_emitters=false --xla_cpu_parallel_codegen_split_count=1")
# Most programs of the tests run once: compiling them well is not worth the time.
os.environ["JAX_DISABLE_MOST_OPTIMIZATIONS"] = "1"

import jax
from jaxtyping import install_import_hook

jax.config.update("jax_num_cpu_devices", 2)
# A shell starts background jobs with Ctrl-C ignored. Programs that the tests start would inherit that.
signal.signal(signal.SIGINT, signal.default_int_handler)
gc.set_threshold(50_000)  # as the experiments do: tracing makes many objects
install_import_hook("jaxpref", "typechecking.check")


def pytest_collection_finish():
    """The garbage collector passes over all that the imports made."""
    gc.freeze()
