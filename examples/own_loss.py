"""A custom preference loss, SimPO: a function of pairs and beta, with one value per pair.

The pairs are episodes of an untrained policy, so only the preferences can teach.
"""

import jax

import jaxpref
from jaxpref.losses import per_step

TARGET_MARGIN = 0.5


def simpo(pairs, beta):
    """SimPO (Meng et al., 2024, https://arxiv.org/abs/2405.14734, equation 6): no reference, means over steps."""
    chosen = beta * per_step(pairs.chosen_logp, pairs.chosen_steps)
    rejected = beta * per_step(pairs.rejected_logp, pairs.rejected_steps)
    return -jax.nn.log_sigmoid(chosen - rejected - TARGET_MARGIN)


def main(num_pairs=500, num_updates=150):
    """Train with this loss. Print and return the mean return before and after."""
    task = jaxpref.cartpole()
    key_init, key_pairs, key_train, key_eval = jax.random.split(jax.random.key(0), 4)
    start = jaxpref.init_policy(key_init, task)
    pairs = jaxpref.sample_preferences(task, start, start, key_pairs, num_pairs)

    config = jaxpref.dpo.Config(loss=simpo, beta=2.0, num_updates=num_updates, eval_every=num_updates)
    train = jax.jit(lambda *data: jaxpref.dpo.train(task, config, *data))
    trained = train(key_train, pairs, start, start).params

    before, after = (float(jaxpref.evaluate(task, params, key_eval, 100).mean()) for params in (start, trained))
    print(f"mean return before {before:.1f}, after {after:.1f}")
    return before, after


if __name__ == "__main__":
    main()
