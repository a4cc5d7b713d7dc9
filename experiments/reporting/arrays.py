"""The arrays of a run: policies, reward models, metrics and, on request, preferences, as npz files without pickle."""

from pathlib import Path
from typing import Any

import jax
import numpy as np

from experiments.pipeline.pipeline import Outcome
from experiments.pipeline.settings import Settings
from jaxpref.files import store
from jaxpref.preferences import take


def save_arrays(settings: Settings, outcome: Outcome, folder: Path) -> list[Path]:
    """Write every array of a run into `folder`; return the paths. What was trained on pairs is [S, sizes, ...]."""
    experts, models = outcome.experts, outcome.reward_models
    policies: dict[str, Any] = {"pi1": experts.pi1, "pi2": experts.pi2}
    metrics: dict[str, Any] = {settings.expert_stage.replace(" ", "_"): experts.metrics}
    for reference in settings.reference:
        rows = [row for row in outcome.rows if row.reference == reference]
        policies[f"trained_{reference}"] = _stack([row.params for row in rows])
        metrics[f"trained_{reference}"] = _stack([row.metrics for row in rows])
    trees: dict[str, Any] = {"policies.npz": policies, "metrics.npz": metrics}
    if outcome.shown is not None:
        trees["episodes.npz"] = outcome.shown
    if models:
        trees["reward_models.npz"] = _stack([model.params for model in models])
        metrics["reward_model"] = _stack([model.metrics for model in models])
    if outcome.pairs is not None:
        for place, seed in enumerate(settings.seeds):
            trees[f"preferences_seed{seed}.npz"] = take(outcome.pairs, place)
    for name, tree in trees.items():
        store.save_pytree(folder / name, tree)
    return [folder / name for name in trees]


def _stack(trees: list[Any]) -> Any:
    """[S, ...] of each size -> [S, sizes, ...]. Metrics of sizes with fewer updates end in NaN."""

    def join(*leaves):
        most = np.max([leaf.shape for leaf in leaves], axis=0)
        padded = [np.pad(leaf, [(0, n) for n in most - leaf.shape], constant_values=np.nan) for leaf in leaves]
        return np.stack(padded, axis=1)

    return jax.tree.map(join, *trees)
