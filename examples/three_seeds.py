"""Learn from preferences, on three seeds in one compiled call: `python examples/three_seeds.py`."""

import jax
import jax.numpy as jnp

import jaxpref


def study(key, task, expert_config, dpo_config):
    """One seed, from nothing to a policy trained on 200 preferences: mean returns, and whether pi1 was reached."""
    key_experts, key_pairs, key_train, key_eval = jax.random.split(key, 4)
    experts = jaxpref.reinforce.train(task, expert_config, key_experts)
    pairs = jaxpref.sample_preferences(task, experts.pi1, experts.pi2, key_pairs, num_pairs=200)
    # From pi2, and with pi2 as the reference: the preferences alone say what is better.
    trained = jaxpref.dpo.train(task, dpo_config, key_train, pairs, experts.pi2, experts.pi2).params

    policies = jax.tree.map(lambda *leaves: jnp.stack(leaves), experts.pi1, experts.pi2, trained)
    returns = jax.vmap(lambda policy: jaxpref.evaluate(task, policy, key_eval, num_episodes=100))(policies)
    return returns.mean(-1), experts.pi1_reached


def main(seeds=(35, 42, 100), horizon=200, num_updates=150):
    """Run the seeds side by side, and print and return each seed's mean returns."""
    task = jaxpref.cartpole(horizon)
    expert_config = jaxpref.reinforce.Config()
    dpo_config = jaxpref.dpo.Config(num_updates=num_updates, eval_episodes=0)
    keys = jax.vmap(jax.random.key)(jnp.array(seeds))
    run = jax.jit(jax.vmap(lambda key: study(key, task, expert_config, dpo_config)))
    returns, pi1_reached = run(keys)

    print(" seed      pi1      pi2  trained")
    for seed, row, reached in zip(seeds, returns, pi1_reached, strict=True):
        end = "\n" if reached else "  pi1 did not reach its target\n"
        print(f"{seed:5}", *(f"{number:8.1f}" for number in row), end=end)
    return returns


if __name__ == "__main__":
    main()
