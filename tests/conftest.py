"""Before JAX or jaxpref is used: two CPU devices, as the experiments have, and every annotation checked."""

import jax
from jaxtyping import install_import_hook

jax.config.update("jax_num_cpu_devices", 2)
install_import_hook("jaxpref", "typechecking.check")
