"""Whether parameters and data belong to a task: said before anything is computed, from shapes alone."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from jaxpref.checks import check_preferences
from jaxpref.networks import apply_policy, apply_reward
from jaxpref.tasks import Task, check_task


def check_policy(task: Task, params: Any, name: str = "params") -> None:
    """Raise ValueError unless `params` give logits over the task's actions, and a value, at its observations."""
    check_task(task)
    try:
        logits, value = jax.eval_shape(apply_policy, params, _obs(task))
    except Exception as error:  # whatever a network raises that meets other parameters or inputs
        if _gives_reward(task, params):
            raise ValueError(f"{name} must be a policy's parameters, got a reward model's") from error
        raise _unfit(task, name, "a policy", error) from error
    if logits.shape != (task.num_actions,) or value.shape != ():
        raise ValueError(
            f"{name} must belong to task {task.name}, giving {task.num_actions} logits and one value, "
            f"got logits {list(logits.shape)} and value {list(value.shape)}"
        )


def check_reward(task: Task, params: Any, name: str = "reward_params") -> None:
    """Raise ValueError unless `params`, of a reward model or an ensemble, give a reward for the task's steps."""
    check_task(task)
    try:
        reward = jax.eval_shape(apply_reward, params, _obs(task), _action())
    except Exception as error:
        if _gives_logits(task, params):
            raise ValueError(f"{name} must be a reward model's parameters, got a policy's") from error
        raise _unfit(task, name, "a reward model", error) from error
    if reward.shape != ():
        raise ValueError(f"{name} must give one reward for each step, got {list(reward.shape)} for one")
    wanted = task.obs_size + task.num_actions
    if isinstance(params, Mapping) and params["params"]["torso"]["kernel"].shape[-2] != wanted:
        # The default network takes for actions whatever its inputs leave beside the observation.
        raise ValueError(
            f"{name} must belong to task {task.name}, {task.obs_size} observed numbers and {task.num_actions} actions, "
            f"got those of a network with {params['params']['torso']['kernel'].shape[-2]} inputs in place of {wanted}"
        )


def check_pairs(task: Task, preferences: Any) -> None:
    """Raise TypeError or ValueError unless `preferences` are [N] pairs of the task's episodes."""
    check_task(task)
    check_preferences(preferences)
    obs_size = preferences.chosen.obs.shape[-1]
    if obs_size != task.obs_size:
        raise ValueError(
            f"preferences must belong to task {task.name}, whose observations are {task.obs_size} numbers, got "
            f"{obs_size}"
        )


def _obs(task: Task) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct((task.obs_size,), jnp.float32)


def _action() -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct((), jnp.int32)


def _gives_reward(task: Task, params: Any) -> bool:
    try:
        return jax.eval_shape(apply_reward, params, _obs(task), _action()).shape == ()
    except Exception:
        return False


def _gives_logits(task: Task, params: Any) -> bool:
    try:
        return len(jax.eval_shape(apply_policy, params, _obs(task))) == 2
    except Exception:
        return False


def _unfit(task: Task, name: str, network: str, error: Exception) -> ValueError:
    reason = f"{type(error).__name__}: {error}".splitlines()[0]
    return ValueError(
        f"{name} must be the parameters of {network} for task {task.name}, whose observations are {task.obs_size} "
        f"numbers; applying them fails with {reason}"
    )
