"""The arrays of a run: policies, reward models, metrics and, on request, preferences, as npz files without pickle."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from experiments.pipeline.pipeline import Outcome
from experiments.pipeline.settings import Settings
from jaxpref.files import store
from jaxpref.networks import init_policy
from jaxpref.preferences import take
from jaxpref.tasks import Task


def policies(outcome: Outcome) -> dict[str, Any]:
    """Return pi1 and pi2 [S, ...], and the trained policies of each reference [S, sizes, ...]."""
    return {"pi1": outcome.experts.pi1, "pi2": outcome.experts.pi2} | _by_reference(outcome, "params")


def _by_reference(outcome: Outcome, name: str) -> dict[str, Any]:
    references = dict.fromkeys(row.reference for row in outcome.rows)
    return {
        f"trained_{reference}": _stack([getattr(row, name) for row in outcome.rows if row.reference == reference])
        for reference in references
    }


def _stack(trees: Sequence[Any]) -> Any:
    """[S, ...] of each size -> [S, sizes, ...]. Metrics of sizes with fewer updates end in NaN."""

    def join(*leaves):
        shape = np.max([leaf.shape for leaf in leaves], axis=0)
        joined = np.full((shape[0], len(leaves), *shape[1:]), np.nan, leaves[0].dtype)
        for place, leaf in enumerate(leaves):
            joined[:, place][tuple(map(slice, leaf.shape))] = leaf
        return joined

    return jax.tree.map(join, *trees)


def load_policies(path: Path, task: Task, settings: Settings) -> dict[str, Any]:
    """Read what `policies` returned. Raises OSError or ValueError if the file does not hold it."""
    policy = jax.eval_shape(init_policy, jax.random.key(0), task)
    num_seeds, num_sizes = len(settings.seeds), len(settings.num_pairs)
    leading: dict[str, tuple[int, ...]] = {"pi1": (num_seeds,), "pi2": (num_seeds,)}
    leading |= {f"trained_{reference}": (num_seeds, num_sizes) for reference in settings.reference}

    def zeros(axes: tuple[int, ...]) -> Any:
        return jax.tree.map(lambda leaf: np.broadcast_to(leaf.dtype.type(), (*axes, *leaf.shape)), policy)

    return store.load_pytree(path, {name: zeros(axes) for name, axes in leading.items()})


def save_arrays(settings: Settings, outcome: Outcome, folder: Path) -> list[Path]:
    """Write every array of a run into `folder`; return the paths."""
    metrics = {"reinforce": outcome.experts.metrics} | _by_reference(outcome, "metrics")
    trees = {"policies.npz": policies(outcome), "metrics.npz": metrics}
    models = outcome.reward_models or []
    if models:
        trees["reward_models.npz"] = _stack([model.params for model in models])
        if all(model.metrics is not None for model in models):
            metrics["reward_model"] = _stack([model.metrics for model in models])
    for name, tree in trees.items():
        store.save_pytree(folder / name, tree)
    paths = [folder / name for name in trees]
    if outcome.pairs is not None:
        for place, seed in enumerate(settings.seeds):
            paths.append(folder / f"preferences_seed{seed}.npz")
            store.save_preferences(paths[-1], take(outcome.pairs, place))
    return paths
