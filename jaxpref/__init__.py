"""Preference-based reinforcement learning as pure JAX functions: vmap them over seeds.

`import jaxpref` makes every submodule an attribute. `plots` and `render` load matplotlib when they are first used. The
functions used most are attributes of `jaxpref` itself.
"""

# ruff: noqa: F401
import importlib
import sys
from typing import Any

from jaxpref import (
    annotators,
    checks,
    distributions,
    divergence,
    dpo,
    expert_ppo,
    experts,
    gymnax_tasks,
    losses,
    networks,
    online,
    ppo,
    preferences,
    reinforce,
    returns,
    reward_model,
    rlhf,
    rollout,
    tasks,
    training,
    types,
)
from jaxpref.analysis import ranking, statistics
from jaxpref.fast import packed
from jaxpref.files import export, labels, schema, store
from jaxpref.networks import (
    ActorCritic,
    Network,
    RewardModel,
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

# A module in a folder also has a short name: `from jaxpref.store import save_preferences`.
for _module in (ranking, statistics, packed, export, labels, schema, store):
    sys.modules[f"jaxpref.{_module.__name__.rpartition('.')[2]}"] = _module


def __getattr__(name: str) -> Any:
    if name in {"plots", "render"}:
        return importlib.import_module(f"jaxpref.analysis.{name}")
    raise AttributeError(f"module 'jaxpref' has no attribute {name!r}")
