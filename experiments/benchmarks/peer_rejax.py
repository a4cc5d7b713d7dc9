"""rejax's side of `peer.measure`, in its own environment: it needs another version of gymnax.

Settings come as JSON on the command line. When the program is compiled, it answers the first line on stdin with JSON.
Each later line asks for one training of all seeds. At its end the answer is an empty line.
"""

import importlib.metadata
import json
import sys
import time
from typing import Any

import jax
import rejax


def main() -> None:
    """Compile, then train once for every line read."""
    settings = json.loads(sys.argv[1])
    agent = rejax.PPO.create(**settings["config"])
    # With a callback that does nothing, rejax leaves evaluation out altogether.
    silent = agent.replace(eval_callback=lambda algorithm, state, key: ())
    keys = jax.vmap(jax.random.PRNGKey)(jax.numpy.array(settings["seeds"]))

    begin = time.perf_counter()
    program = jax.jit(jax.vmap(silent.train)).lower(keys).compile()
    facts: dict[str, Any] = {"PPO": f"rejax {importlib.metadata.version('rejax')}", "devices": len(keys.devices())}
    facts["compile_s"] = time.perf_counter() - begin
    state, _ = jax.block_until_ready(program(keys))
    _, returns = jax.jit(jax.vmap(agent.eval_callback, (None, 0, 0)))(agent, state, keys)
    facts |= {"mean_return": float(returns.mean()), "env_steps": int(state.global_step.sum())}
    sys.stdin.readline()
    print(json.dumps(facts), flush=True)
    for _ in sys.stdin:
        jax.block_until_ready(program(keys))
        print(flush=True)


if __name__ == "__main__":
    main()
