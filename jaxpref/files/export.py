"""Write policies and reward models as safetensors files, which need neither JAX nor pickle; read PyTorch's.

A file holds the layers of an `ActorCritic` or a `RewardModel` under flat names, `torso.kernel`, `policy.bias`, ...,
float32, kernels [in, out]. Its metadata has one entry, `jaxpref`, a JSON object: docs/export.md. Networks of other
modules are written by `store.save_pytree`.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from typing import Any

import numpy as np
from flax.traverse_util import unflatten_dict
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from jaxpref.files.store import atomic_write, named_leaves
from jaxpref.networks import ActorCritic, Ensemble, Network, RewardModel, check_policy, check_reward
from jaxpref.tasks import Task

FORMAT = 1
POLICY, REWARD_MODEL = "policy", "reward model"
LAYERS = {POLICY: ("torso", "policy", "value"), REWARD_MODEL: ("torso", "reward")}
"""The layers of both networks: a torso, and heads on its output."""

Names = Mapping[str, str | None]
"""The name of PyTorch's module for each layer. None: PyTorch has no value head, and it becomes zero."""


def save_policy(path: str | os.PathLike, policy: Network, task: Task | None = None) -> None:
    """Write one policy, an `ActorCritic`. The metadata names the task. The same policy gives the same bytes."""
    if task is not None:
        check_policy(task, policy)
    _save(path, POLICY, policy, ActorCritic, task)


def load_policy(path: str | os.PathLike, task: Task | None = None) -> Network:
    """Read a file of `save_policy`.

    Raises ValueError for a damaged file, for a tensor that is missing, unknown, or of another shape or dtype, and for a
    policy that does not fit the task.
    """
    tensors, _ = _read(path)
    return _policy(path, tensors, task)


def save_reward_model(path: str | os.PathLike, reward: Network, task: Task | None = None) -> None:
    """Write one `RewardModel`, or an `Ensemble` of M, whose tensors have a leading axis [M]."""
    if task is not None:
        check_reward(task, reward)
    _save(path, REWARD_MODEL, reward, RewardModel, task)


def load_reward_model(path: str | os.PathLike, task: Task | None = None) -> Network:
    """Read a file of `save_reward_model`. Errors are those of `load_policy`."""
    tensors, description = _read(path)
    return _reward(path, tensors, description.get("num_actions") if task is None else task.num_actions, task)


def load_torch_policy(path: str | os.PathLike, names: Names, task: Task | None = None) -> Network:
    """Read a PyTorch state dict, written by `safetensors.torch.save_file`, as a policy.

    The PyTorch module has a linear torso, ReLU, and linear heads for logits and value. `names` says which is which,
    such as {"torso": "net.0", "policy": "net.2", "value": None}. Errors are those of `load_policy`.
    """
    tensors = _read_torch(path, POLICY, names)
    if names["value"] is None:
        hidden_size = tensors["torso.bias"].shape[-1]
        tensors |= {"value.kernel": np.zeros((hidden_size, 1), np.float32), "value.bias": np.zeros(1, np.float32)}
    return _policy(path, tensors, task)


def load_torch_reward_model(path: str | os.PathLike, names: Names, task: Task) -> Network:
    """Read a PyTorch state dict as a reward model, as `load_torch_policy` reads a policy.

    The PyTorch module's input is the observation followed by the one-hot action. `names` has "torso" and "reward".
    """
    return _reward(path, _read_torch(path, REWARD_MODEL, names), task.num_actions, task)


def _save(path: str | os.PathLike, kind: str, network: Network, module_type: Any, task: Task | None) -> None:
    is_ensemble = isinstance(network.module, Ensemble)
    module: Any = network.module.member if is_ensemble else network.module
    if type(module) is not module_type:  # a subclass may compute something else
        got, text = type(module).__name__, "store.save_pytree writes any network"
        raise ValueError(f"a {kind} must be of module {module_type.__name__}, got {got}: {text}")
    leaves = named_leaves(network.params)
    tensors = {name.replace("/", "."): np.ascontiguousarray(leaf) for name, leaf in leaves.items()}
    _check(f"this {kind}", kind, tensors, num_axes=(2 + is_ensemble,))
    input_size, hidden_size = tensors["torso.kernel"].shape[-2:]
    observe = None if task is None else task.observe
    description = {
        "kind": kind,
        "format": FORMAT,
        "task": task and task.name,
        "observe": None if observe is None else getattr(observe, "__name__", type(observe).__name__),
        "input_size": input_size,
        "hidden_size": hidden_size,
        "num_actions": module.num_actions,
        "activation": "relu",
    }
    # One entry of metadata only: safetensors writes several in an order that changes from run to run.
    data = save(tensors, metadata={"jaxpref": json.dumps(description)})
    with atomic_write(path) as file:
        file.write(data)


def _read(path: str | os.PathLike) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """Return the tensors of a file, and its description, which is empty in a file of another program."""
    try:
        with safe_open(path, framework="np") as file:
            for name in file.keys():  # noqa: SIM118  (a file cannot be iterated)
                if (dtype := file.get_slice(name).get_dtype()) != "F32":
                    raise ValueError(f"{path}: {name} is {dtype}, expected F32: convert it before it is saved")
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            description = json.loads((file.metadata() or {}).get("jaxpref", "{}"))
    except (SafetensorError, json.JSONDecodeError) as error:
        raise ValueError(f"{path} is not a whole safetensors file: {error}") from error
    if description.get("format", FORMAT) != FORMAT:
        raise ValueError(f"{path} has format {description['format']}, and this version of jaxpref reads {FORMAT}")
    return tensors, description


def _read_torch(path: str | os.PathLike, kind: str, names: Names) -> dict[str, np.ndarray]:
    """Return the tensors of a state dict under the names of this library. PyTorch keeps weights [out, in]."""
    optional = {"value"} & set(LAYERS[kind])
    if set(names) != set(LAYERS[kind]) or {layer for layer, module in names.items() if module is None} - optional:
        raise ValueError(f"names must give the modules of {', '.join(LAYERS[kind])}, got {dict(names)}")
    stored, _ = _read(path)
    own: dict[str, str] = {}
    for layer, module in names.items():
        if module is not None:
            own |= {f"{module}.weight": f"{layer}.kernel", f"{module}.bias": f"{layer}.bias"}
    _check_names(path, kind, stored, own)
    return {own[name]: np.ascontiguousarray(tensor.T) for name, tensor in stored.items()}


def _policy(path: str | os.PathLike, tensors: dict[str, np.ndarray], task: Task | None) -> Network:
    _check(path, POLICY, tensors, num_axes=(2,))
    hidden_size, num_actions = tensors["policy.kernel"].shape
    policy = Network(ActorCritic(num_actions, hidden_size), unflatten_dict(tensors, sep="."))
    if task is not None:
        check_policy(task, policy, str(path))
    return policy


def _reward(path: str | os.PathLike, tensors: dict[str, np.ndarray], num_actions: Any, task: Task | None) -> Network:
    _check(path, REWARD_MODEL, tensors, num_axes=(2, 3))
    if num_actions is None:
        raise ValueError(f"{path} does not say how many of its inputs are actions: pass the task")
    module: Any = RewardModel(num_actions, tensors["torso.kernel"].shape[-1])
    is_ensemble = tensors["torso.kernel"].ndim == 3
    reward = Network(Ensemble(module) if is_ensemble else module, unflatten_dict(tensors, sep="."))
    if task is not None:
        check_reward(task, reward, str(path))
    return reward


def _check_names(where: Any, kind: str, found: Mapping[str, Any], expected: Mapping[str, Any]) -> None:
    differences = (("lacks", expected.keys() - found.keys()), ("has an unexpected", found.keys() - expected.keys()))
    text = " and ".join(f"{verb} {', '.join(sorted(names))}" for verb, names in differences if names)
    if text:
        raise ValueError(f"{where} is not a {kind} with these names: it {text}")


def _check(where: Any, kind: str, tensors: Mapping[str, np.ndarray], num_axes: tuple[int, ...]) -> None:
    """Check the names, dtypes and shapes of all layers. `num_axes` are those that a kernel may have."""
    names = {f"{layer}.{part}": part for layer in LAYERS[kind] for part in ("kernel", "bias")}
    _check_names(where, kind, tensors, names)
    torso = tensors["torso.kernel"].shape
    if len(torso) not in num_axes:
        raise ValueError(f"{where}: torso.kernel is {list(torso)}, expected {min(num_axes)} axes: save one {kind}")
    *members, input_size, hidden_size = torso
    for name, part in names.items():
        layer = name.partition(".")[0]
        outputs = tensors["policy.bias"].shape[-1:] if layer == "policy" else (1,)
        shape = (input_size, hidden_size) if layer == "torso" else (hidden_size, *outputs)
        expected, tensor = (*members, *(shape if part == "kernel" else shape[1:])), tensors[name]
        if tensor.shape != expected or tensor.dtype != np.float32:
            raise ValueError(f"{where}: {name} is {tensor.dtype}{list(tensor.shape)}, expected float32{list(expected)}")
