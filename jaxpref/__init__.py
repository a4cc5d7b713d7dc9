"""Preference-based reinforcement learning as pure JAX functions: vmap them over seeds.

`import jaxpref` makes every submodule an attribute (`plots` and `render` when first used: they load matplotlib); the
functions used most stand at the top.
"""

import importlib
import sys
from typing import Any

from jaxpref import (
    annotators,
    checks,
    divergence,
    dpo,
    fit,
    losses,
    networks,
    online,
    ppo,
    preferences,
    reinforce,
    returns,
    reward_model,
    rollout,
    tasks,
    training,
    types,
)
from jaxpref.analysis import ranking, statistics
from jaxpref.fast import packed
from jaxpref.files import export, labels, schema, store
from jaxpref.networks import (
    apply_policy,
    apply_reward,
    init_policy,
    init_reward,
    trajectory_kl,
    trajectory_log_prob,
    trajectory_reward,
)
from jaxpref.preferences import sample_preferences
from jaxpref.rollout import episode, episodes, evaluate
from jaxpref.tasks import TASKS, Task, acrobot, cartpole, task
from jaxpref.types import Preferences, Trajectory, true_return

__all__ = [
    "TASKS",
    "Preferences",
    "Task",
    "Trajectory",
    "acrobot",
    "annotators",
    "apply_policy",
    "apply_reward",
    "cartpole",
    "checks",
    "divergence",
    "dpo",
    "episode",
    "episodes",
    "evaluate",
    "export",
    "fit",
    "init_policy",
    "init_reward",
    "labels",
    "losses",
    "networks",
    "online",
    "packed",
    "plots",
    "ppo",
    "preferences",
    "ranking",
    "reinforce",
    "render",
    "returns",
    "reward_model",
    "rollout",
    "sample_preferences",
    "schema",
    "statistics",
    "store",
    "task",
    "tasks",
    "training",
    "trajectory_kl",
    "trajectory_log_prob",
    "trajectory_reward",
    "true_return",
    "types",
]


# A module of a room also has a short name: `from jaxpref.store import save_preferences`.
for _module in (ranking, statistics, packed, export, labels, schema, store):
    sys.modules[f"jaxpref.{_module.__name__.rpartition('.')[2]}"] = _module


def __getattr__(name: str) -> Any:
    if name in {"plots", "render"}:
        return importlib.import_module(f"jaxpref.analysis.{name}")
    raise AttributeError(f"module 'jaxpref' has no attribute {name!r}")
