"""summary.json: every number of a run.

A seed whose training diverged is left out of the rows that depend on that training. Its numbers there are null.
"""

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

TITLES = {
    "dpo": "DPO",
    "rlhf": "PPO-RLHF",
    "online-dpo": "online DPO",
    "online-rlhf": "online RLHF",
    "cartpole": "CartPole",
    "acrobot": "Acrobot",
}
"""How methods and the study's tasks are written. A task of gymnax keeps its own name."""


def title(summary: dict[str, Any]) -> str:
    """Return task and method."""
    return f"{TITLES.get(summary['task'], summary['task'])}, {TITLES[summary['method']]}"


def over_seeds(per_seed: Any) -> dict[str, Any]:
    """Return a policy's entry in summary.json. A seed that is NaN does not count. If all are, every number is None."""
    per_seed = np.asarray(per_seed, np.float64)
    known = per_seed[~np.isnan(per_seed)]
    iqm, ends = (statistics.iqm(known), statistics.bootstrap_interval(known)) if known.size else (None, (None, None))
    return {"mean": mean_or_none(known), "iqm": iqm, "ci95": list(ends), "per_seed": null_for_nan(per_seed)}


def mean_or_none(per_seed: Any) -> float | None:
    """Return the mean over the seeds that are not NaN; None if all are."""
    known = np.asarray(per_seed)[~np.isnan(per_seed)]
    return float(known.mean()) if known.size else None


def below(returns: Any, errors: Any, baseline: Any, baseline_errors: Any) -> Any:
    """Return where mean returns are below a baseline's by more than two standard errors of the difference."""
    return returns < baseline - 2 * np.hypot(errors, baseline_errors)


def null_for_nan(values: Any) -> Any:
    """Return an array as nested lists, with None for NaN and infinity, which JSON does not have."""
    numbers = np.asarray(values, np.float64)
    objects = numbers.astype(object)
    objects[~np.isfinite(numbers)] = None
    return objects.tolist()


def versions() -> dict[str, str]:
    """Return the versions of Python and of the libraries that results depend on."""
    names = ("jaxpref", "jax", "jaxlib", "flax", "optax", "gymnax", "numpy", "scipy")
    return {"python": platform.python_version()} | {name: importlib.metadata.version(name) for name in names}


def summarise(settings: Settings, outcome: Outcome) -> dict[str, Any]:
    """Return summary.json without its timing."""
    entries, seeds, labels = diverged(settings, outcome), settings.seeds, outcome.labels
    for_all, experts = sound(entries, seeds), vars(outcome.experts)
    rows = []
    for row in outcome.rows:
        known = sound(entries, seeds, row.reference, row.num_pairs)
        failed = known & below(row.true_return, row.true_return_error, outcome.returns["pi2"], outcome.errors["pi2"])
        rows.append(
            {
                "num_pairs": row.num_pairs,
                "init": "pi2",
                "reference": row.reference,
                "policy": over_seeds(np.where(known, row.true_return, np.nan)),
                "failed": np.array(seeds)[failed].tolist(),
                "no_reward": np.array(seeds)[known & (row.learned_return == 0)].tolist(),
                "heldout_accuracy": mean_or_none(row.quality.return_accuracy[known]),
                "label_accuracy": mean_or_none(row.quality.label_accuracy[known]),
                "length_accuracy": mean_or_none(labels["length_accuracy"][known]),
            }
        )
    return {
        "experiment": settings.experiment,
        "task": settings.task,
        "method": settings.method,
        "seeds": list(seeds),
        "config": dataclasses.asdict(settings) | {"out": str(settings.out)},
        "versions": versions(),
        "policies": {name: over_seeds(np.where(for_all, returns, np.nan)) for name, returns in outcome.returns.items()},
        **{f"{name}_target": null_for_nan(experts[f"{name}_target"]) for name in outcome.returns},
        **{f"{name}_reached": experts[f"{name}_reached"].tolist() for name in outcome.returns},
        "not_reached": {name: np.array(seeds)[~experts[f"{name}_reached"]].tolist() for name in outcome.returns},
        "diverged": entries,
        "best_accuracy": mean_or_none(labels["best_accuracy"][for_all]),
        "equal_return_share": mean_or_none(labels["equal_return_share"][for_all]),
        "rows": rows,
    }


def diverged(settings: Settings, outcome: Outcome) -> list[dict[str, Any]]:
    """Return an entry for each seed and each stage that diverged, except where an earlier stage did.

    reference, num_pairs:  None if the stage is the same for all of them.
    what, update:          "loss" or "parameters" at an update, the first has number 1; "return" has no update.
    """
    entries: list[dict[str, Any]] = []

    def add(stage: str, found: Any, reference: str | None = None, num_pairs: int | None = None) -> None:
        trains = isinstance(found, Divergence)
        bad = found.update > 0 if trains else ~np.isfinite(found)
        for place in np.flatnonzero(bad & sound(entries, settings.seeds, reference, num_pairs)):
            of = {"seed": settings.seeds[place], "stage": stage, "reference": reference, "num_pairs": num_pairs}
            update, what = (int(found.update[place]), WHAT[found.what[place]]) if trains else (None, "return")
            entries.append(of | {"update": update, "what": what})

    add(settings.expert_stage, outcome.experts.divergence)
    for returns in outcome.returns.values():
        add("evaluate", returns)
    for size, model in zip(settings.num_pairs, outcome.reward_models, strict=False):
        add("reward model", model.divergence, num_pairs=size)
    for row in outcome.rows:
        add(settings.trainer, row.divergence, row.reference, row.num_pairs)
        add("evaluate", row.true_return, row.reference, row.num_pairs)
    return entries


def sound(
    entries: list[dict[str, Any]], seeds: Sequence[int], reference: str | None = None, num_pairs: int | None = None
) -> Bool[np.ndarray, " S"]:
    """Return which seeds have numbers in a row, or in what all rows share, given the entries of `diverged`."""
    rows = (None, reference), (None, num_pairs)
    bad = {entry["seed"] for entry in entries if entry["reference"] in rows[0] and entry["num_pairs"] in rows[1]}
    return np.array([seed not in bad for seed in seeds])
