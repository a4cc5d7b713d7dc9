"""rejax's side of `experiments.bench_peer`, in an environment of its own: rejax needs a gymnax that jaxpref cannot use.

Settings come as JSON on the command line. One line of JSON on stdout tells that the program is compiled; then every
line on stdin is answered with the seconds of one training of all seeds.
"""

from __future__ import annotations

import importlib.metadata
import json
import sys
import time

import jax
import rejax

VERSIONS = ("rejax", "jax", "jaxlib", "flax", "optax", "distrax", "gymnax", "numpy")


def main() -> None:
    """Compile, then train once for every line read."""
    settings = json.loads(sys.argv[1])
    agent = rejax.PPO.create(**settings["config"])
    # A callback that does nothing is rejax's way to leave evaluation out altogether.
    silent = agent.replace(eval_callback=lambda algorithm, state, key: ())
    keys = jax.vmap(jax.random.PRNGKey)(jax.numpy.array(settings["seeds"]))

    begin = time.perf_counter()
    program = jax.jit(jax.vmap(silent.train)).lower(keys).compile()
    facts = {"compile_s": time.perf_counter() - begin}
    state, _ = jax.block_until_ready(program(keys))
    _, returns = jax.jit(jax.vmap(agent.eval_callback, (None, 0, 0)))(agent, state, keys)
    facts |= {"num_devices": len(keys.devices()), "mean_return": float(returns.mean())}
    facts["env_steps"] = int(state.global_step.sum())
    versions = {name: importlib.metadata.version(name) for name in VERSIONS}
    print(json.dumps(facts | {"versions": versions}), flush=True)

    for _ in sys.stdin:
        begin = time.perf_counter()
        jax.block_until_ready(program(keys))
        print(json.dumps({"seconds": time.perf_counter() - begin}), flush=True)


if __name__ == "__main__":
    main()
