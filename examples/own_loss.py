"""A custom preference loss: a function of four log-probabilities and beta, one value per pair.

The pairs are episodes of an untrained policy, so only the preferences can teach.
"""

import jax

import jaxpref


def squared_hinge(chosen_logp, rejected_logp, ref_chosen_logp, ref_rejected_logp, beta):
    """max(0, 1 - beta * margin) ** 2: zero for a pair with a margin of 1 / beta or more."""
    margin = jaxpref.losses.margin(chosen_logp, rejected_logp, ref_chosen_logp, ref_rejected_logp)
    return jax.nn.relu(1 - beta * margin) ** 2


def main(num_pairs=500, num_updates=150):
    """Train with this loss. Print and return the mean return before and after."""
    task = jaxpref.cartpole()
    key_init, key_pairs, key_train, key_eval = jax.random.split(jax.random.key(0), 4)
    start = jaxpref.init_policy(key_init, task)
    pairs = jaxpref.sample_preferences(task, start, start, key_pairs, num_pairs)

    config = jaxpref.dpo.Config(loss=squared_hinge, num_updates=num_updates, eval_every=num_updates)
    train = jax.jit(lambda *data: jaxpref.dpo.train(task, config, *data))
    trained = train(key_train, pairs, start, start).params

    before, after = (float(jaxpref.evaluate(task, params, key_eval, 100).mean()) for params in (start, trained))
    print(f"mean return before {before:.1f}, after {after:.1f}")
    return before, after


if __name__ == "__main__":
    main()
