"""A custom annotator: a function of a key and the rewards of both episodes that returns a `Label`.

This annotator sees ratios (Weber's law): 10 and 20 are easier to tell apart than 110 and 120.
"""

import functools

import jax
import jax.numpy as jnp

import jaxpref


def weber(key, first_reward, second_reward, sensitivity=4.0):
    """P(first preferred) = sigmoid(sensitivity * ln(R1 / R2)), for positive returns R1 and R2."""
    logit = sensitivity * jnp.log(first_reward.sum() / second_reward.sum())
    first_preferred = jax.random.bernoulli(key, jax.nn.sigmoid(logit))
    prob = jax.nn.sigmoid(jnp.where(first_preferred, logit, -logit))
    return jaxpref.annotators.Label(first_preferred, prob, weight=jnp.float32(1))


def main(num_pairs=500, num_updates=150):
    """Label episodes of an untrained policy. Print and return the mean return before and after DPO."""
    task, annotator = jaxpref.cartpole(), functools.partial(weber, sensitivity=8.0)
    key_init, key_pairs, key_train, key_eval = jax.random.split(jax.random.key(0), 4)
    start = jaxpref.init_policy(key_init, task)
    pairs = jaxpref.sample_preferences(task, start, start, key_pairs, num_pairs, annotator)

    config = jaxpref.dpo.Config(num_updates=num_updates, eval_every=num_updates)
    train = jax.jit(lambda *data: jaxpref.dpo.train(task, config, *data))
    trained = train(key_train, pairs, start, start).params

    before, after = (float(jaxpref.evaluate(task, params, key_eval, 100).mean()) for params in (start, trained))
    print(f"mean return before {before:.1f}, after {after:.1f}")
    return before, after


if __name__ == "__main__":
    main()
