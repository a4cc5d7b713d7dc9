"""A custom environment with gymnax's interface: `python examples/own_task.py`."""

import jax
import jax.numpy as jnp
import tyro
from gymnax.environments.spaces import Discrete

import jaxpref


class Corridor:
    """Nine places in a row. Walk from the middle to the door at the right end; each step costs 1."""

    def action_space(self, params):
        return Discrete(2)  # left, right

    def reset_env(self, key, params):
        return jax.nn.one_hot(4, 9), jnp.int32(4)  # observation, state

    def step_env(self, key, state, action, params):
        state = jnp.clip(state + 2 * action - 1, 0, 8)
        return jax.nn.one_hot(state, 9), state, -1.0, state == 8, {}  # observation, state, reward, terminated, info


def main(seed: int = 0, num_pairs: int = 200, expert_updates: int = 100, dpo_updates: int = 150) -> dict[str, float]:
    """Train in the corridor by DPO. Return the mean true returns of pi1, pi2 and the trained policy."""
    task = jaxpref.tasks.from_gymnax(Corridor(), name="corridor", horizon=50)
    key_experts, key_pairs, key_train, key_eval = jax.random.split(jax.random.key(seed), 4)
    config = jaxpref.reinforce.Config(num_updates=expert_updates)  # it finds the targets, which the task does not have
    experts = jax.jit(jaxpref.reinforce.train)(task, config, key_experts)
    pairs = jaxpref.sample_preferences(task, experts.pi1, experts.pi2, key_pairs, num_pairs)
    config = jaxpref.dpo.Config(num_updates=dpo_updates)
    trained = jax.jit(jaxpref.dpo.train)(task, config, key_train, pairs, experts.pi2, experts.pi2).params
    policies = {"pi1": experts.pi1, "pi2": experts.pi2, "trained": trained}
    return {name: float(jaxpref.evaluate(task, params, key_eval, 100).mean()) for name, params in policies.items()}


if __name__ == "__main__":
    print(tyro.cli(main))
