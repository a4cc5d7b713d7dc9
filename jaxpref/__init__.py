"""Preference-based reinforcement learning as pure JAX functions: vmap them over seeds.

`import jaxpref` makes every submodule an attribute (`plots` when first used: it loads matplotlib); the functions
used most stand at the top.
"""

import importlib
from typing import Any

from jaxpref import (
    annotators,
    checks,
    dpo,
    export,
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
    "dpo",
    "episode",
    "episodes",
    "evaluate",
    "export",
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
    if name == "plots":
        return importlib.import_module("jaxpref.plots")
    raise AttributeError(f"module 'jaxpref' has no attribute {name!r}")
