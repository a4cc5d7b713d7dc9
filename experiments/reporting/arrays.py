"""The arrays of a run: policies, reward models, metrics and, on request, preferences, as npz files without pickle."""

from pathlib import Path
from typing import Any

import jax
import numpy as np

from experiments.pipeline.pipeline import Outcome
from experiments.pipeline.settings import Settings
from jaxpref.files import store
from jaxpref.preferences import take
from jaxpref.types import Trajectory


def policies(outcome: Outcome) -> dict[str, Any]:
    """Return pi1 and pi2 [S, ...], and the trained policies of each reference [S, sizes, ...]."""
    return {"pi1": outcome.experts.pi1, "pi2": outcome.experts.pi2} | _by_reference(outcome, "params")


def _by_reference(outcome: Outcome, name: str) -> dict[str, Any]:
    trees: dict[str, list[Any]] = {}
    for row in outcome.rows:
        trees.setdefault(f"trained_{row.reference}", []).append(getattr(row, name))
    return {key: _stack(each) for key, each in trees.items()}


def _stack(trees: list[Any]) -> Any:
    """[S, ...] of each size -> [S, sizes, ...]. Metrics of sizes with fewer updates end in NaN."""

    def join(*leaves):
        most = np.max([leaf.shape for leaf in leaves], axis=0)
        padded = [np.pad(leaf, [(0, n) for n in most - leaf.shape], constant_values=np.nan) for leaf in leaves]
        return np.stack(padded, axis=1)

    return jax.tree.map(join, *trees)


def load_episodes(path: Path) -> Trajectory:
    """Read the episodes of a run. Raises OSError, ValueError or TypeError if the file does not hold them."""
    return Trajectory(**store.load_params(path))


def save_arrays(settings: Settings, outcome: Outcome, folder: Path) -> list[Path]:
    """Write every array of a run into `folder`; return the paths."""
    metrics = {settings.expert_stage.replace(" ", "_"): outcome.experts.metrics} | _by_reference(outcome, "metrics")
    trees: dict[str, Any] = {"policies.npz": policies(outcome), "metrics.npz": metrics}
    if outcome.shown is not None:
        trees["episodes.npz"] = outcome.shown
    if models := outcome.reward_models:
        trees["reward_models.npz"] = _stack([model.params for model in models])
        if models[0].metrics is not None:
            metrics["reward_model"] = _stack([model.metrics for model in models])
    if outcome.pairs is not None:
        for place, seed in enumerate(settings.seeds):
            trees[f"preferences_seed{seed}.npz"] = take(outcome.pairs, place)
    for name, tree in trees.items():
        store.save_pytree(folder / name, tree)
    return [folder / name for name in trees]
