"""Results of the pipeline made from random numbers, for the tests of what is written and drawn from them."""

import dataclasses

import jax
import numpy as np

import jaxpref
from experiments.pipeline.pipeline import Outcome, Row
from experiments.pipeline.results import LABEL_MEASURES
from experiments.pipeline.settings import default_settings
from jaxpref import dpo, experts, ppo, ranking, reward_model, training
from jaxpref.divergence import Divergence

SEEDS, SIZES = (7, 3, 11), (4, 8)


def settings_of(method="dpo", **changes):
    return dataclasses.replace(default_settings("cartpole", method), **{"seeds": SEEDS, "num_pairs": SIZES} | changes)


def divergence(num_seeds, **at):
    """Of every seed; `s1=(3, 2)` is the second seed's (update, what)."""
    found = np.zeros((2, num_seeds), np.int32)
    for name, values in at.items():
        found[:, int(name[1:])] = values
    return Divergence(*found)


def _metrics(kind, rng, num_seeds):
    """12 updates, and 3 evaluations."""
    lengths = {field.name: 3 if field.name.endswith("_return") else 12 for field in dataclasses.fields(kind)}
    return kind(**{name: rng.random((num_seeds, length), np.float32) for name, length in lengths.items()})


def outcome_of(settings, rng):
    """Draw an outcome: accuracies are below 1, nothing diverged, and pi1 of the second seed missed its target."""
    num_seeds, rhlf = len(settings.seeds), settings.method.endswith("rlhf")
    shapes = jax.eval_shape(jaxpref.init_policy, jax.random.key(0), jaxpref.cartpole())

    def policy():
        return jax.tree.map(lambda leaf: rng.normal(size=(num_seeds, *leaf.shape)).astype(np.float32), shapes)

    def quality():
        return ranking.Quality(*(rng.random(num_seeds, np.float32) for _ in dataclasses.fields(ranking.Quality)))

    def returns():
        return rng.normal(scale=100, size=num_seeds).astype(np.float32)

    reward_models = [
        training.Result({"scale": returns()}, _metrics(reward_model.Metrics, rng, num_seeds), divergence(num_seeds))
        for _ in settings.num_pairs
        if settings.method == "rlhf"
    ]
    rows, no_error = [], np.full(num_seeds, 1e3)  # so large that no seed has failed
    for reference in settings.reference:
        for size in settings.num_pairs:
            metrics = _metrics(ppo.Metrics if rhlf else dpo.Metrics, rng, num_seeds)
            others = {name: rng.random(num_seeds) for name in ("kl", "own_rank_correlation")}
            returned = {"true_return": returns(), "true_return_error": no_error, "learned_return": returns()}
            of_run = {"params": policy(), "metrics": metrics, "divergence": divergence(num_seeds)}
            rows.append(Row(**returned, **others, quality=quality(), reference=reference, num_pairs=size, **of_run))
    missed = np.arange(num_seeds) != 1
    targets = np.full(num_seeds, 190.0), np.where(missed, 95, np.inf)
    trained = experts.Result(
        pi1=policy(),
        pi2=policy(),
        pi1_target=targets[0],
        pi2_target=targets[1],
        pi1_reached=missed,
        pi2_reached=missed | True,
        num_updates=np.full(num_seeds, 12),
        metrics=_metrics(experts.Metrics, rng, num_seeds),
        divergence=divergence(num_seeds),
    )
    labels = {name: rng.random(num_seeds, np.float32) for name in LABEL_MEASURES}
    expert_returns, pi1_kl = {"pi1": returns(), "pi2": returns()}, rng.random(num_seeds)
    errors = dict.fromkeys(expert_returns, no_error)
    return Outcome(trained, expert_returns, errors, pi1_kl, rows, reward_models, labels, None, None)


TIMING = {
    "import_s": 1.7039,
    "compile_s": 2.5,
    "run_s": 7.127,
    "total_s": 13.398,
    "stages": {
        "reinforce": {"compile_s": 1.0, "run_s": 0.0, "kept": 1},
        "dpo": {"compile_s": 1.5, "run_s": 7.127, "kept": 0},
    },
}
