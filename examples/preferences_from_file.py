"""Preferences from files: recorded pairs and a person's answers as JSON lines. Training needs nothing else."""

import json
import tempfile
from pathlib import Path

import jax

import jaxpref


def record(folder, num_pairs):
    """Record episodes, and write down which one of each pair is longer, as a person might."""
    task, keys = jaxpref.cartpole(), jax.random.split(jax.random.key(0), 3)
    policy = jaxpref.init_policy(keys[0], task)
    first, second = (jaxpref.episodes(task, policy, key, num_pairs) for key in keys[1:])
    jaxpref.store.save_pairs(folder / "pairs.npz", first, second)
    longer = (first.mask.sum(-1) > second.mask.sum(-1)).tolist()
    lines = [json.dumps({"pair": i, "choice": "first" if longer[i] else "second"}) for i in range(num_pairs)]
    (folder / "labels.jsonl").write_text("\n".join(lines))


def main(folder, num_updates=150):
    """Train a policy and a reward model without an environment. Print and return their accuracies."""
    task = jaxpref.tasks.offline(obs_size=4, num_actions=2, horizon=200)
    pairs = jaxpref.store.load_labels(folder / "labels.jsonl", folder / "pairs.npz", task)
    start, key = jaxpref.init_policy(jax.random.key(0), task), jax.random.key(1)
    config = jaxpref.dpo.Config(num_updates=num_updates, eval_every=num_updates, eval_episodes=0)
    trained = jax.jit(lambda data: jaxpref.dpo.train(task, config, key, data, start, start))(pairs)
    fitted = jax.jit(lambda data: jaxpref.reward_model.train(task, jaxpref.reward_model.Config(), key, data))(pairs)
    accuracies = [float(result.metrics.accuracy[-30:].mean()) for result in (trained, fitted)]
    print("pairs ranked right in the last updates: DPO {:.0%}, reward model {:.0%}".format(*accuracies))
    return accuracies


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as name:
        record(Path(name), num_pairs=300)
        main(Path(name))
