"""Policies and reward models as safetensors files, for programs that know neither JAX nor pickle; and PyTorch's, read.

A file holds the layers of the default networks (`networks.ActorCritic`, `networks.RewardModel`) under flat names,
`torso.kernel`, `policy.bias`, ..., float32, kernels [in, out]. Its metadata has one entry, `jaxpref`: a JSON object of
what it is, its format and its sizes. A network of one's own has no such names: `store.save_pytree` writes any
parameters. docs/export.md runs a policy with NumPy alone.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from jaxpref.files.store import atomic_write, named_leaves
from jaxpref.tasks import Task
from jaxpref.types import Params

FORMAT = 1
"""Of the files that this module writes."""

POLICY, REWARD_MODEL = "policy", "reward model"
LAYERS = {POLICY: ("torso", "policy", "value"), REWARD_MODEL: ("torso", "reward")}
"""Every network's layers: a torso, and heads on what comes out of it."""

Names = Mapping[str, str | None]
"""A network's layer -> the name of PyTorch's module; None: a head that is not there, and becomes zero."""

TORCH_NAMES: dict[str, tuple[Names, ...]] = {
    POLICY: (
        {"torso": "torso", "policy": "policy", "value": "value"},
        {"torso": "affine1", "policy": "action_head", "value": "value_head"},  # pytorch/examples, actor_critic.py
        {"torso": "fc1", "policy": "fc_pi", "value": "fc_v"},  # seungeunrho/minimalRL, actor_critic.py
    ),
    REWARD_MODEL: (
        {"torso": "torso", "reward": "reward"},
        {"torso": "fc1", "reward": "fc2"},
        {"torso": "0", "reward": "2"},  # nn.Sequential(Linear, ReLU, Linear)
    ),
}
"""Names of modules that are recognised without being told."""


def save_policy(path: str | os.PathLike, params: Params, task: Task | None = None) -> None:
    """Write a policy of the default network; the same parameters give the same bytes. `task` goes into the metadata.

    Raises ValueError for parameters of any other network, of several seeds at once, or of sizes other than the task's.
    """
    _save(path, POLICY, params, task)


def load_policy(path: str | os.PathLike, task: Task | None = None) -> Params:
    """Read what `save_policy` wrote: parameters of `apply_policy`, NumPy arrays.

    Raises ValueError for a damaged file, naming the tensor for one that is missing, unknown or of a wrong shape or
    dtype, and for sizes other than the task's.
    """
    return _load(path, POLICY, task)


def save_reward_model(path: str | os.PathLike, params: Params, task: Task | None = None) -> None:
    """Write a reward model of the default network, or an ensemble, whose tensors have one leading axis [M] more.

    Raises ValueError as `save_policy` does.
    """
    _save(path, REWARD_MODEL, params, task)


def load_reward_model(path: str | os.PathLike, task: Task | None = None) -> Params:
    """Read what `save_reward_model` wrote: parameters of `apply_reward`. Raises ValueError as `load_policy` does."""
    return _load(path, REWARD_MODEL, task)


def load_torch_policy(path: str | os.PathLike, names: Names | None = None, task: Task | None = None) -> Params:
    """Read a PyTorch state dict, written by `safetensors.torch.save_file`, as parameters of `apply_policy`.

    The module has an nn.Linear torso, ReLU, and nn.Linear heads for logits and value. `names` says which is which, as
    in {"torso": "net.0", "policy": "net.2", "value": None}; without it those of TORCH_NAMES are recognised. PyTorch
    keeps weights [out, in]: they are transposed. Raises ValueError as `load_policy` does, in the file's own names.
    """
    return _load_torch(path, POLICY, names, task)


def load_torch_reward_model(path: str | os.PathLike, names: Names | None = None, task: Task | None = None) -> Params:
    """Read a PyTorch state dict as parameters of `apply_reward`, as `load_torch_policy` does for a policy.

    The module's input is the observation followed by the one-hot action; its layers are `torso` and `reward`. Errors as
    there.
    """
    return _load_torch(path, REWARD_MODEL, names, task)


def _save(path: str | os.PathLike, kind: str, params: Params, task: Task | None) -> None:
    leaves, names = named_leaves(params), _tensor_names(kind)
    if leaves.keys() != {f"params/{name.replace('.', '/')}" for name in names}:
        raise ValueError(
            f"only the default network's {kind} can be exported, with layers {', '.join(LAYERS[kind])}: "
            f"got {', '.join(sorted(leaves))}; store.save_pytree writes any parameters"
        )
    tensors = {name: np.ascontiguousarray(leaves[f"params/{name.replace('.', '/')}"]) for name in names}
    for name, tensor in tensors.items():
        if tensor.dtype != np.float32:
            raise ValueError(f"{name} is {tensor.dtype}, expected float32")
    _check_shapes(f"this {kind}", kind, tensors)
    _check_task(f"this {kind}", kind, tensors, task)
    input_size, hidden_size = tensors["torso.kernel"].shape[-2:]
    description = {"kind": kind, "format": FORMAT, "task": task.name if task else None}
    description |= {"input_size": input_size, "hidden_size": hidden_size, "activation": "relu"}
    # One entry of metadata only: several would be written in an order that changes from run to run.
    whole = save(tensors, metadata={"jaxpref": json.dumps(description)})
    with atomic_write(path) as file:
        file.write(whole)


def _load(path: str | os.PathLike, kind: str, task: Task | None) -> Params:
    with _open(path) as file:
        _check_format(path, (file.metadata() or {}).get("jaxpref", "{}"))
        tensors = _tensors(path, kind, file, {name: name for name in _tensor_names(kind)})
    _check_shapes(path, kind, tensors)
    _check_task(path, kind, tensors, task)
    return _params(tensors)


def _load_torch(path: str | os.PathLike, kind: str, names: Names | None, task: Task | None) -> Params:
    with _open(path) as file:
        called = _recognise(path, kind, set(file.keys())) if names is None else _torch_names(names, kind)
        tensors = {name: tensor.T for name, tensor in _tensors(path, kind, file, called).items()}
    _check_shapes(path, kind, tensors, called)
    _check_task(path, kind, tensors, task)
    if "value.bias" not in tensors and kind == POLICY:
        hidden_size = tensors["torso.kernel"].shape[-1]
        tensors |= {"value.kernel": np.zeros((hidden_size, 1), np.float32), "value.bias": np.zeros(1, np.float32)}
    return _params(tensors)


def _tensor_names(kind: str) -> list[str]:
    return [f"{layer}.{part}" for layer in LAYERS[kind] for part in ("kernel", "bias")]


def _torch_names(names: Names, kind: str) -> dict[str, str]:
    """Every tensor's name here -> its name in PyTorch."""
    modules = {layer: module for layer, module in names.items() if module is not None}
    without_value = kind == POLICY and "value" in names
    if modules.keys() | ({"value"} if without_value else set()) != set(LAYERS[kind]):
        raise ValueError(f"names must give the modules of {', '.join(LAYERS[kind])}, got {dict(names)}")
    parts = {"kernel": "weight", "bias": "bias"}
    return {f"{layer}.{part}": f"{module}.{parts[part]}" for layer, module in modules.items() for part in parts}


def _recognise(path: str | os.PathLike, kind: str, found: set[str]) -> dict[str, str]:
    for names in TORCH_NAMES[kind]:
        called = _torch_names(names, kind)
        if set(called.values()) == found:
            return called
    raise ValueError(
        f"{path}: {', '.join(sorted(found)) or 'no tensor at all'}: these are not the tensors of a {kind} of known "
        f"names; say in names which modules are its {', '.join(LAYERS[kind])}"
    )


@contextlib.contextmanager
def _open(path: str | os.PathLike) -> Iterator[Any]:
    try:
        with safe_open(path, framework="np") as file:
            yield file
    except SafetensorError as error:
        raise ValueError(f"{path} is not a whole safetensors file: {error}") from error


def _check_format(path: str | os.PathLike, description: str) -> None:
    try:
        found = json.loads(description).get("format", FORMAT)
    except (ValueError, AttributeError) as error:
        raise ValueError(f"{path}: its metadata under jaxpref is not a JSON object") from error
    if found != FORMAT:
        raise ValueError(f"{path} is of format {found}, and this version of jaxpref reads format {FORMAT}")


def _tensors(path: str | os.PathLike, kind: str, file: Any, called: Mapping[str, str]) -> dict[str, np.ndarray]:
    """The tensors of an open file by this module's names. They are as many as `called` says, and float32."""
    found, expected = set(file.keys()), set(called.values())
    if found != expected:
        differences = (("lacks", expected - found), ("has an unexpected", found - expected))
        text = " and ".join(f"{verb} {', '.join(sorted(names))}" for verb, names in differences if names)
        raise ValueError(f"{path} is not a {kind} in these names: it {text}")
    for name in called.values():
        if (dtype := file.get_slice(name).get_dtype()) != "F32":
            raise ValueError(f"{path}: {name} is {dtype}, expected F32: convert it to float32 before it is saved")
    return {name: file.get_tensor(other) for name, other in called.items()}


def _check_shapes(
    where: Any, kind: str, tensors: Mapping[str, np.ndarray], called: Mapping[str, str] | None = None
) -> None:
    """`called`: PyTorch's names of the tensors; their shapes are then told as PyTorch has them, the other way round."""

    def told(name: str, shape: tuple[int, ...]) -> str:
        return f"{where}: {called[name] if called else name} is {list(shape[::-1] if called else shape)}"

    torso = tensors["torso.kernel"].shape
    may_be_ensemble = kind == REWARD_MODEL and called is None
    if len(torso) != 2 and not (len(torso) == 3 and may_be_ensemble):
        raise ValueError(f"{told('torso.kernel', torso)}, expected two axes: one {kind}, without an axis of seeds")
    *members, input_size, hidden_size = torso
    inputs = {"torso": input_size}
    outputs = {"torso": torso[-1:], "value": (1,), "reward": (1,)}
    for name, tensor in tensors.items():
        layer, _, part = name.partition(".")
        kernel = inputs.get(layer, hidden_size), *outputs.get(layer, tensors[f"{layer}.kernel"].shape[-1:])
        expected = (*members, *(kernel if part == "kernel" else kernel[1:]))
        if tensor.shape != expected:
            raise ValueError(f"{told(name, tensor.shape)}, expected {list(expected[::-1] if called else expected)}")


def _check_task(where: Any, kind: str, tensors: Mapping[str, np.ndarray], task: Task | None) -> None:
    if task is None:
        return
    found, expected = {"inputs": tensors["torso.kernel"].shape[-2]}, {"inputs": task.obs_size + task.num_actions}
    if kind == POLICY:
        found["actions"] = tensors["policy.bias"].shape[-1]
        expected = {"inputs": task.obs_size, "actions": task.num_actions}
    if found != expected:
        raise ValueError(f"{where} does not fit task {task.name}: it has {found}, expected {expected}")


def _params(tensors: Mapping[str, np.ndarray]) -> Params:
    params: dict[str, dict[str, np.ndarray]] = {}
    for name, tensor in tensors.items():
        layer, _, part = name.partition(".")
        params.setdefault(layer, {})[part] = np.ascontiguousarray(tensor)
    return {"params": params}
