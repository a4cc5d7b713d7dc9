import jax
from jaxtyping import install_import_hook

jax.config.update("jax_num_cpu_devices", 2)
install_import_hook("jaxpref", "typechecking.check")
