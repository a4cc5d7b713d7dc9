"""A custom network with two tanh layers: `python examples/own_network.py`."""

import dataclasses

import flax.linen as nn
import jax
import tyro

import jaxpref


class TwoLayers(nn.Module):
    """obs -> two layers -> logits and value. The heads must be named "policy" and "value"."""

    num_actions: int

    @nn.compact
    def __call__(self, obs):
        features = nn.tanh(nn.Dense(32)(nn.tanh(nn.Dense(32)(obs))))
        return nn.Dense(self.num_actions, name="policy")(features), nn.Dense(1, name="value")(features).squeeze(-1)


def main(seed: int = 0, num_pairs: int = 200, expert_updates: int = 600, dpo_updates: int = 150) -> dict[str, float]:
    """Train on CartPole by DPO. Return the mean true returns of pi1, pi2 and the trained policy."""
    task = jaxpref.cartpole()
    task = dataclasses.replace(task, policy_network=TwoLayers(task.num_actions))
    key_experts, key_pairs, key_train, key_eval = jax.random.split(jax.random.key(seed), 4)
    config = jaxpref.reinforce.Config(num_updates=expert_updates, learning_rate=3e-3)
    experts = jax.jit(jaxpref.reinforce.train)(task, config, key_experts)
    pairs = jaxpref.sample_preferences(task, experts.pi1, experts.pi2, key_pairs, num_pairs)
    config = jaxpref.dpo.Config(num_updates=dpo_updates)
    trained = jax.jit(jaxpref.dpo.train)(task, config, key_train, pairs, experts.pi2, experts.pi2).params
    policies = {"pi1": experts.pi1, "pi2": experts.pi2, "trained": trained}
    return {name: float(jaxpref.evaluate(task, params, key_eval, 100).mean()) for name, params in policies.items()}


if __name__ == "__main__":
    print(tyro.cli(main))
