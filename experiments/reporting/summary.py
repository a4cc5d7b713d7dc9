"""summary.json, and the table and the warnings that a run prints.

A seed whose training diverged is left out of the rows that depend on that training. Its numbers there are None, null in
JSON.
"""

from __future__ import annotations

import dataclasses
import importlib.metadata
import platform
from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Bool

from experiments.pipeline.pipeline import Outcome
from experiments.pipeline.settings import Settings
from jaxpref.analysis import statistics
from jaxpref.divergence import WHAT, Divergence

LABELS = {
    "dpo": "DPO",
    "rlhf": "PPO-RLHF",
    "online-dpo": "online DPO",
    "online-rlhf": "online RLHF",
    "cartpole": "CartPole",
    "acrobot": "Acrobot",
}
"""How methods and the study's tasks are written. A task of gymnax keeps its own name."""


# --- numbers ----------------------------------------------------------------------------------------------------------


def score(per_seed: Any) -> dict[str, Any]:
    """Return a policy's entry in summary.json. `ci95` is the bootstrap interval of the IQM over seeds.

    A seed that is NaN does not count. Without any seed every number is None.
    """
    per_seed = np.asarray(per_seed, np.float64)
    known = per_seed[~np.isnan(per_seed)]
    return {
        "mean": mean_or_none(per_seed),
        "iqm": statistics.iqm(known) if known.size else None,
        "ci95": list(statistics.bootstrap_interval(known)) if known.size else [None, None],
        "per_seed": null_for_nan(per_seed),
    }


def mean_or_none(per_seed: Any) -> float | None:
    """Return the mean over the seeds that are not NaN; None if all are."""
    known = np.asarray(per_seed)[~np.isnan(per_seed)]
    return float(known.mean()) if known.size else None


def null_for_nan(values: Any) -> Any:
    """Return an array as nested lists, with None for NaN."""
    numbers = np.asarray(values, np.float64)
    objects = numbers.astype(object)
    objects[np.isnan(numbers)] = None
    return objects.tolist()


def versions() -> dict[str, str]:
    """Return the versions of Python and of the libraries that results depend on."""
    names = ("jaxpref", "jax", "jaxlib", "flax", "optax", "gymnax", "numpy", "scipy")
    return {"python": platform.python_version()} | {name: importlib.metadata.version(name) for name in names}


def summarise(settings: Settings, outcome: Outcome) -> dict[str, Any]:
    """Return summary.json without its timing."""
    entries, experts, labels = diverged(settings, outcome), outcome.experts, outcome.labels

    def of_sound(per_seed: Any, reference: str | None = None, num_pairs: int | None = None) -> Any:
        return np.where(sound(entries, settings.seeds, reference, num_pairs), per_seed, np.float32(np.nan))

    rows = [
        {
            "num_pairs": row.num_pairs,
            "init": "pi2",
            "reference": row.reference,
            "policy": score(of_sound(row.true_return, row.reference, row.num_pairs)),
            "heldout_accuracy": mean_or_none(of_sound(row.quality.return_accuracy, row.reference, row.num_pairs)),
            "label_accuracy": mean_or_none(of_sound(row.quality.label_accuracy, row.reference, row.num_pairs)),
            "length_accuracy": mean_or_none(of_sound(labels.length_accuracy, row.reference, row.num_pairs)),
        }
        for row in outcome.rows
    ]
    reached = {"pi1": experts.pi1_reached, "pi2": experts.pi2_reached}
    targets = {"pi1": experts.pi1_target, "pi2": experts.pi2_target}  # infinite if none was found
    return {
        "experiment": settings.experiment,
        "task": settings.task,
        "method": settings.method,
        "seeds": list(settings.seeds),
        "config": dataclasses.asdict(settings) | {"out": str(settings.out)},
        "versions": versions(),
        "policies": {name: score(of_sound(returns)) for name, returns in outcome.returns.items()},
        **{f"{name}_target": null_for_nan(np.where(np.isfinite(x), x, np.nan)) for name, x in targets.items()},
        **{f"{name}_reached": np.asarray(flags).tolist() for name, flags in reached.items()},
        "not_reached": {name: _seeds_at(settings.seeds, ~np.asarray(flags)) for name, flags in reached.items()},
        "diverged": entries,
        "best_accuracy": mean_or_none(of_sound(labels.best_accuracy)),
        "rows": rows,
    }


def _seeds_at(seeds: Sequence[int], flags: Bool[np.ndarray, " S"]) -> list[int]:
    return [seed for seed, flag in zip(seeds, flags, strict=True) if flag]


# --- divergence -------------------------------------------------------------------------------------------------------


def diverged(settings: Settings, outcome: Outcome) -> list[dict[str, Any]]:
    """Return an entry for each seed and each stage that diverged, except where an earlier stage did.

    reference, num_pairs:  None if the stage is the same for all of them.
    what, update:          "loss" or "parameters" at an update, the first has number 1; "return" has no update.
    """
    stages: list[tuple[str, str | None, int | None, Any]] = [("reinforce", None, None, outcome.experts.divergence)]
    stages += [("evaluate", None, None, returns) for returns in outcome.returns.values()]
    for size, model in zip(settings.num_pairs, outcome.reward_models or [], strict=False):
        if model.divergence is not None:
            stages.append(("reward model", None, size, model.divergence))
    for row in outcome.rows:
        stages.append((settings.trainer, row.reference, row.num_pairs, row.divergence))
        stages.append(("evaluate", row.reference, row.num_pairs, row.true_return))

    entries: list[dict[str, Any]] = []
    for stage, reference, num_pairs, found in stages:
        trains = isinstance(found, Divergence)
        bad = np.asarray(found.update) > 0 if trains else ~np.isfinite(found)
        for place in np.flatnonzero(bad & sound(entries, settings.seeds, reference, num_pairs)):
            of = {"seed": settings.seeds[place], "stage": stage, "reference": reference, "num_pairs": num_pairs}
            at = {"update": int(found.update[place]), "what": WHAT[int(found.what[place])]} if trains else {}
            entries.append(of | {"update": None, "what": "return"} | at)
    return entries


def sound(
    entries: list[dict[str, Any]], seeds: Sequence[int], reference: str | None = None, num_pairs: int | None = None
) -> Bool[np.ndarray, " S"]:
    """Return which seeds have numbers in a row, given the entries of `diverged`.

    Without a reference or a size: in what is the same for all of them.
    """
    bad = {
        entry["seed"]
        for entry in entries
        if entry["reference"] in (None, reference) and entry["num_pairs"] in (None, num_pairs)
    }
    return np.array([seed not in bad for seed in seeds])
