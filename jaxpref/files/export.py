"""Write policies and reward models as safetensors files, which need neither JAX nor pickle; read PyTorch's.

A file holds the layers of an `ActorCritic` or a `RewardModel` under flat names, `torso.kernel`, `policy.bias`, ...,
float32, kernels [in, out]. Its metadata has one entry, `jaxpref`, a JSON object: docs/export.md. Networks of other
modules are written by `store.save_pytree`.
"""

import json
import os
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
from flax.traverse_util import unflatten_dict
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from jaxpref.files.schema import check_array
from jaxpref.files.store import atomic_write, named_leaves
from jaxpref.networks import ActorCritic, Ensemble, Network, RewardModel, check_policy, check_reward, uses_next_obs
from jaxpref.tasks import Task
from jaxpref.types import ActionRange

FORMAT = 1
POLICY, REWARD_MODEL = "policy", "reward model"
KINDS: dict[str, Any] = {POLICY: (ActorCritic, check_policy), REWARD_MODEL: (RewardModel, check_reward)}
LAYERS = {POLICY: ("torso", "policy", "value"), REWARD_MODEL: ("torso", "reward")}
"""The layers of both networks: a torso, and heads on its output."""
LOG_STD = "log_std"
"""One tensor more of a policy with continuous actions."""

Names = Mapping[str, str | None]
"""The name of PyTorch's module for each layer. None: PyTorch has no value head, and it becomes zero."""
Tensors = dict[str, np.ndarray]


def save_policy(path: str | os.PathLike, policy: Network, task: Task | None = None) -> None:
    """Write one policy, an `ActorCritic`. The metadata names the task. The same policy gives the same bytes."""
    _save(path, POLICY, policy, task)


def load_policy(path: str | os.PathLike, task: Task | None = None) -> Network:
    """Read a file of `save_policy`.

    Raises ValueError for a damaged file, for a tensor that is missing, unknown, or of another shape or dtype, and for a
    policy that does not fit the task.
    """
    return _load(path, POLICY, task)


def save_reward_model(path: str | os.PathLike, reward: Network, task: Task | None = None) -> None:
    """Write one `RewardModel`, or an `Ensemble` of M, whose tensors have a leading axis [M]."""
    _save(path, REWARD_MODEL, reward, task)


def load_reward_model(path: str | os.PathLike, task: Task | None = None) -> Network:
    """Read a file of `save_reward_model`. Errors are those of `load_policy`."""
    return _load(path, REWARD_MODEL, task)


def load_torch_policy(path: str | os.PathLike, names: Names, task: Task | None = None) -> Network:
    """Read a PyTorch state dict, written by `safetensors.torch.save_file`, as a policy.

    The actions are discrete. The PyTorch module has a linear torso, ReLU, and linear heads for logits and value.
    `names` says which is which, such as {"torso": "net.0", "policy": "net.2", "value": None}. Errors are those of
    `load_policy`.
    """
    return _load(path, POLICY, task, names)


def load_torch_reward_model(path: str | os.PathLike, names: Names, task: Task) -> Network:
    """Read a PyTorch state dict as a reward model, as `load_torch_policy` reads a policy.

    The PyTorch module's input is the observation followed by the one-hot action, or by a continuous action in units of
    half its range. `names` has "torso" and "reward".
    """
    return _load(path, REWARD_MODEL, task, names)


def _save(path: str | os.PathLike, kind: str, network: Network, task: Task | None) -> None:
    module_type, check_network = KINDS[kind]
    if task is not None:
        check_network(task, network)
    is_ensemble = isinstance(network.module, Ensemble)
    module: Any = network.module.member if is_ensemble else network.module
    if type(module) is not module_type:  # a subclass may compute something else
        got, text = type(module).__name__, "store.save_pytree writes any network"
        raise ValueError(f"a {kind} must be of module {module_type.__name__}, got {got}: {text}")
    leaves = named_leaves(network.params)
    tensors = {name.replace("/", "."): np.ascontiguousarray(leaf) for name, leaf in leaves.items()}
    _check(f"this {kind}", kind, tensors, module.action_range, num_axes=(2 + is_ensemble,))
    input_size, hidden_size = tensors["torso.kernel"].shape[-2:]
    observe = task and task.observe
    description = {
        "kind": kind,
        "format": FORMAT,
        "task": task and task.name,
        "observe": None if observe is None else getattr(observe, "__name__", type(observe).__name__),
        "input_size": input_size,
        "hidden_size": hidden_size,
        "num_actions": module.num_actions,
        "action_range": module.action_range,
        "use_next_obs": uses_next_obs(module),
        "activation": "relu",
    }
    # One entry of metadata only: safetensors writes several in an order that changes from run to run.
    with atomic_write(path) as file:
        file.write(save(tensors, metadata={"jaxpref": json.dumps(description)}))


def _load(path: str | os.PathLike, kind: str, task: Task | None, names: Names | None = None) -> Network:
    tensors, description = _read(path)
    if names is not None:
        tensors = _from_torch(path, kind, tensors, names)
    action_range = _action_range(path, description, task)
    _check(path, kind, tensors, action_range, num_axes=(2,) if kind == POLICY else (2, 3))
    num_actions = description.get("num_actions") if task is None else task.num_actions
    if kind == POLICY:
        num_actions = len(tensors["policy.bias"])
    elif num_actions is None:
        raise ValueError(f"{path} does not say how many of its inputs are actions: pass the task")
    module_type, check_network = KINDS[kind]
    *members, _, hidden_size = tensors["torso.kernel"].shape
    module = module_type(num_actions, hidden_size, action_range=action_range)
    if description.get("use_next_obs"):
        module = module.clone(use_next_obs=True)
    network = Network(Ensemble(module) if members else module, unflatten_dict(tensors, sep="."))
    if task is not None:
        check_network(task, network, str(path))
    return network


def _action_range(path: str | os.PathLike, description: Mapping[str, Any], task: Task | None) -> ActionRange | None:
    """Return the range of the network's actions; None: they are discrete."""
    stored = description.get("action_range") and tuple(map(tuple, description["action_range"]))
    if task is None:
        return stored
    if description and stored != task.action_range:
        of_file, of_task = (f"in the range {each}" if each else "discrete" for each in (stored, task.action_range))
        raise ValueError(f"{path}: its actions are {of_file}, those of task {task.name} are {of_task}")
    return task.action_range


def _read(path: str | os.PathLike) -> tuple[Tensors, dict[str, Any]]:
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


def _from_torch(path: str | os.PathLike, kind: str, stored: Tensors, names: Names) -> Tensors:
    """Return the tensors of a state dict under the names of this library. PyTorch keeps weights [out, in]."""
    known = {layer: module for layer, module in names.items() if module is not None}
    absent = names.keys() - known
    if names.keys() != set(LAYERS[kind]) or absent - {"value"}:
        raise ValueError(f"names must give the modules of {', '.join(LAYERS[kind])}, got {dict(names)}")
    own = {f"{module}.weight": f"{layer}.kernel" for layer, module in known.items()}
    own |= {f"{module}.bias": f"{layer}.bias" for layer, module in known.items()}
    _check_names(path, kind, stored, own)
    tensors = {own[name]: np.ascontiguousarray(tensor.T) for name, tensor in stored.items()}
    if absent:
        hidden_size = tensors["torso.bias"].shape[-1]
        tensors |= {"value.kernel": np.zeros((hidden_size, 1), np.float32), "value.bias": np.zeros(1, np.float32)}
    return tensors


def _check_names(where: Any, kind: str, found: Mapping[str, Any], expected: Iterable[str]) -> None:
    differences = (("lacks", set(expected) - found.keys()), ("has an unexpected", found.keys() - set(expected)))
    text = " and ".join(f"{verb} {', '.join(sorted(names))}" for verb, names in differences if names)
    if text:
        raise ValueError(f"{where} is not a {kind} with these names: it {text}")


def _check(
    where: Any, kind: str, tensors: Tensors, action_range: ActionRange | None, num_axes: tuple[int, ...]
) -> None:
    """Check the names, dtypes and shapes of all layers. `num_axes` are those that a kernel may have."""
    names = {f"{layer}.{part}": layer for layer in LAYERS[kind] for part in ("kernel", "bias")}
    if action_range is None or kind != POLICY:
        _check_names(where, kind, tensors, names)
    else:
        _check_names(where, kind, tensors, {*names, LOG_STD})
        check_array(f"{where}: {LOG_STD}", tensors[LOG_STD], "float32", tensors["policy.bias"].shape)
    torso = tensors["torso.kernel"].shape
    if len(torso) not in num_axes:
        raise ValueError(f"{where}: torso.kernel is {list(torso)}, expected {min(num_axes)} axes: save one {kind}")
    *members, input_size, hidden_size = torso
    for name, layer in names.items():
        outputs = tensors["policy.bias"].shape[-1:] if layer == "policy" else (1,)
        sizes = (input_size, hidden_size) if layer == "torso" else (hidden_size, *outputs)
        shape = (*members, *(sizes if name.endswith("kernel") else sizes[1:]))
        check_array(f"{where}: {name}", tensors[name], "float32", shape)
