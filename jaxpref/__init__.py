"""Preference-based reinforcement learning as pure JAX functions: vmap them over seeds.

`import jaxpref` makes every submodule an attribute (`plots` and `render` when first used: they load matplotlib); the
functions used most stand at the top.
"""

import importlib
from typing import Any

from jaxpref import (
    annotators,
    checks,
    divergence,
    dpo,
    export,
    fit,
    labels,
    losses,
    networks,
    online,
    packed,
    ppo,
    preferences,
    ranking,
    reinforce,
    returns,
    reward_model,
    rollout,
    schema,
    statistics,
    store,
    tasks,
    training,
    types,
)
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


def __getattr__(name: str) -> Any:
    if name in {"plots", "render"}:
        return importlib.import_module(f"jaxpref.{name}")
    raise AttributeError(f"module 'jaxpref' has no attribute {name!r}")
