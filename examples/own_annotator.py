"""A custom annotator, which sees both trajectories. This one looks at CartPole's pole, not at the reward."""

import jax
import jax.numpy as jnp

import jaxpref


def mean_angle(trajectory):
    """Return the pole's mean angle over the steps that were played, in radians. Negative is to the left."""
    return jnp.where(trajectory.mask, trajectory.obs[..., 2], 0).sum(-1) / trajectory.mask.sum(-1)


def leaning_left(key, first, second, temperature=0.01):
    """P(first preferred) = sigmoid((angle of the second - angle of the first) / temperature)."""
    logit = (mean_angle(second) - mean_angle(first)) / temperature
    first_preferred = jax.random.bernoulli(key, jax.nn.sigmoid(logit))
    prob = jax.nn.sigmoid(jnp.where(first_preferred, logit, -logit))
    return jaxpref.annotators.Label(first_preferred, prob, weight=jnp.float32(1))


def main(seed=0, num_pairs=500, num_updates=150):
    """Train an untrained policy by DPO. Print the mean angle and return, and return the angle, before and after."""
    task = jaxpref.cartpole()
    key_init, key_pairs, key_train, key_eval = jax.random.split(jax.random.key(seed), 4)
    start = jaxpref.init_policy(key_init, task)
    pairs = jaxpref.sample_preferences(task, start, start, key_pairs, num_pairs, leaning_left)
    config = jaxpref.dpo.Config(num_updates=num_updates, eval_every=num_updates)
    trained = jax.jit(jaxpref.dpo.train)(task, config, key_train, pairs, start, start).params
    played = [jaxpref.episodes(task, policy, key_eval, 100) for policy in (start, trained)]
    angles = [float(mean_angle(each).mean()) for each in played]
    for name, angle, each in zip(("before", "after"), angles, played, strict=True):
        print(f"{name}: mean angle {angle:.3f}, mean return {each.reward.sum(-1).mean():.1f}")
    return angles


if __name__ == "__main__":
    main()
