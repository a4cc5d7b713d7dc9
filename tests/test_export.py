"""Policies and reward models as safetensors: the way out, the way back, and the way in from PyTorch."""

import json
import re
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import assert_same_bytes, numpy_policy, numpy_reward, stack
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

import jaxpref
from jaxpref import export

DOCS = Path(__file__).parents[1] / "docs" / "export.md"
CARTPOLE, ACROBOT = jaxpref.cartpole(), jaxpref.acrobot()
OBS = np.random.default_rng(0).normal(size=(5, 6)).astype(np.float32)


@pytest.fixture(scope="module")
def policy():
    return jaxpref.init_policy(jax.random.key(0), ACROBOT)


@pytest.fixture(scope="module")
def reward_model(policy):
    """With a head that is not zero."""
    params = jaxpref.init_reward(jax.random.key(1), ACROBOT)
    return jax.tree.map(lambda leaf: leaf + 0.1, params)


# --- out and back -----------------------------------------------------------------------------------------------------


def test_a_policy_comes_back_bit_for_bit(tmp_path, policy):
    export.save_policy(tmp_path / "policy", policy, ACROBOT)
    assert_same_bytes(export.load_policy(tmp_path / "policy", ACROBOT), policy)


def test_a_reward_model_and_an_ensemble_come_back_bit_for_bit(tmp_path, reward_model):
    for params in (reward_model, stack(reward_model, reward_model)):
        export.save_reward_model(tmp_path / "reward", params, ACROBOT)
        assert_same_bytes(export.load_reward_model(tmp_path / "reward", ACROBOT), params)


def test_the_file_holds_flat_names_and_says_what_it_is(tmp_path, policy):
    export.save_policy(tmp_path / "policy", policy, ACROBOT)
    tensors = load_file(tmp_path / "policy")
    names = {f"{layer}.{part}" for layer in ("torso", "policy", "value") for part in ("kernel", "bias")}
    assert set(tensors) == names
    np.testing.assert_array_equal(tensors["policy.kernel"], policy["params"]["policy"]["kernel"])
    with safe_open(tmp_path / "policy", framework="np") as file:
        assert json.loads(file.metadata()["jaxpref"]) == {
            "kind": "policy",
            "format": 1,
            "task": "acrobot",
            "input_size": 6,
            "hidden_size": 32,
            "activation": "relu",
        }


def test_the_same_policy_gives_the_same_bytes(tmp_path, policy):
    for name in ("one", "other"):
        export.save_policy(tmp_path / name, policy)
    assert (tmp_path / "one").read_bytes() == (tmp_path / "other").read_bytes()


def test_the_page_runs_a_policy_with_numpy_alone(tmp_path, monkeypatch, policy):
    """Its probabilities are the library's own, and it needs no more than NumPy and safetensors."""
    (program,) = re.findall(r"```python numpy-only\n(.*?)```", DOCS.read_text(), re.DOTALL)
    assert set(re.findall(r"^(?:from|import) (\w+)", program, re.MULTILINE)) == {"numpy", "safetensors"}
    assert len(program.splitlines()) < 15
    monkeypatch.chdir(tmp_path)
    export.save_policy("policy.safetensors", policy)
    names = {}
    exec(program, names)
    log_probs, _ = numpy_policy(policy, OBS)
    np.testing.assert_allclose(names["action_probabilities"](OBS), np.exp(log_probs), rtol=1e-5)
    np.testing.assert_allclose(names["action_probabilities"](OBS[0]), np.exp(log_probs[0]), rtol=1e-5)


# --- from PyTorch -----------------------------------------------------------------------------------------------------


def torch_linear(rng, num_inputs, num_outputs, name):
    """nn.Linear's state: x @ weight.T + bias."""
    weight, bias = rng.normal(size=(num_outputs, num_inputs)), rng.normal(size=num_outputs)
    return {f"{name}.weight": np.float32(weight), f"{name}.bias": np.float32(bias)}


def torch_policy(torso="torso", policy="policy", value="value"):
    """A state dict of 6 observations, 8 hidden units and 3 actions."""
    rng = np.random.default_rng(1)
    state = torch_linear(rng, 6, 8, torso) | torch_linear(rng, 8, 3, policy)
    return state if value is None else state | torch_linear(rng, 8, 1, value)


def torch_forward(state, torso, head, inputs):
    hidden = np.maximum(inputs @ state[f"{torso}.weight"].T + state[f"{torso}.bias"], 0)
    return hidden @ state[f"{head}.weight"].T + state[f"{head}.bias"]


@pytest.mark.parametrize("names", [*export.TORCH_NAMES["policy"], {"torso": "net.0", "policy": "pi", "value": "v"}])
def test_a_state_dict_plays_as_the_module_does(tmp_path, names):
    """Layers of known names are recognised, others are told."""
    state = torch_policy(**names)
    save_file(state, tmp_path / "torch")
    told = None if names in export.TORCH_NAMES["policy"] else names
    params = export.load_torch_policy(tmp_path / "torch", told, ACROBOT)
    logits, value = jaxpref.apply_policy(params, jnp.asarray(OBS))
    np.testing.assert_allclose(logits, torch_forward(state, names["torso"], names["policy"], OBS), rtol=1e-4, atol=1e-5)
    expected = torch_forward(state, names["torso"], names["value"], OBS)[:, 0]
    np.testing.assert_allclose(value, expected, rtol=1e-4, atol=1e-5)


def test_a_value_head_that_is_not_there_is_zero(tmp_path):
    save_file(torch_policy("0", "2", None), tmp_path / "torch")
    params = export.load_torch_policy(tmp_path / "torch", {"torso": "0", "policy": "2", "value": None})
    logits, value = jaxpref.apply_policy(params, jnp.asarray(OBS))
    np.testing.assert_allclose(logits, torch_forward(torch_policy("0", "2", None), "0", "2", OBS), rtol=1e-4, atol=1e-5)
    np.testing.assert_array_equal(value, np.zeros(5))
    # It is written and read like any other.
    export.save_policy(tmp_path / "policy", params)
    assert_same_bytes(export.load_policy(tmp_path / "policy"), params)


def test_a_reward_model_of_pytorchs_pays_as_the_module_does(tmp_path):
    """An nn.Sequential on the observation and the one-hot action."""
    rng, action = np.random.default_rng(2), np.array([0, 2, 1, 1, 0])
    state = torch_linear(rng, 9, 8, "0") | torch_linear(rng, 8, 1, "2")
    save_file(state, tmp_path / "torch")
    params = export.load_torch_reward_model(tmp_path / "torch", task=ACROBOT)
    expected = torch_forward(state, "0", "2", np.concatenate([OBS, np.eye(3)[action]], axis=1))[:, 0]
    np.testing.assert_allclose(
        jaxpref.apply_reward(params, jnp.asarray(OBS), jnp.asarray(action)), expected, rtol=1e-4, atol=1e-5
    )
    np.testing.assert_allclose(numpy_reward(params, OBS, action), expected, rtol=1e-4, atol=1e-5)


# --- what does not fit ------------------------------------------------------------------------------------------------


def test_parameters_of_another_network_are_not_exported(tmp_path, policy, reward_model):
    seeds = stack(policy, policy)
    half = jax.tree.map(lambda leaf: leaf.astype(jnp.float16), policy)
    for params, message in (
        (reward_model, "only the default network's policy can be exported, .* got params/reward/bias, .*save_pytree"),
        ({"params": policy["params"] | {"extra": jnp.zeros(1)}}, "got params/extra, params/policy/bias"),
        (seeds, r"this policy: torso.kernel is \[2, 6, 32\], expected two axes: one policy, without an axis of seeds"),
        (half, "torso.kernel is float16, expected float32"),
    ):
        with pytest.raises(ValueError, match=message):
            export.save_policy(tmp_path / "policy", params)
    with pytest.raises(
        ValueError, match=r"task cartpole: it has \{'inputs': 6, 'actions': 3\}, expected \{'inputs': 4"
    ):
        export.save_policy(tmp_path / "policy", policy, CARTPOLE)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"value.bias": None}, "it lacks value.bias$"),
        ({"extra": np.zeros(1, np.float32)}, "it has an unexpected extra$"),
        ({"policy.kernel": np.zeros((31, 3), np.float32)}, r"policy.kernel is \[31, 3\], expected \[32, 3\]"),
        ({"policy.bias": np.zeros(2, np.float32)}, r"policy.bias is \[2\], expected \[3\]"),
        ({"value.kernel": np.zeros((32, 2), np.float32)}, r"value.kernel is \[32, 2\], expected \[32, 1\]"),
        ({"torso.bias": np.zeros((), np.float32)}, r"torso.bias is \[\], expected \[32\]"),
        ({"policy.kernel": np.zeros((), np.float32)}, r"policy.kernel is \[\], expected \[32\]"),
        ({"torso.bias": np.zeros(32)}, "torso.bias is F64, expected F32: convert it to float32"),
    ],
)
def test_a_tensor_that_does_not_fit_is_named(tmp_path, policy, change, message):
    export.save_policy(tmp_path / "policy", policy)
    tensors = load_file(tmp_path / "policy") | change
    save_file({name: tensor for name, tensor in tensors.items() if tensor is not None}, tmp_path / "policy")
    with pytest.raises(ValueError, match=f"policy.*{message}"):
        export.load_policy(tmp_path / "policy")


@pytest.mark.parametrize(
    ("change", "names", "message"),
    [
        ({"policy.weight": np.zeros((3, 7), np.float32)}, None, r"policy.weight is \[3, 7\], expected \[3, 8\]"),
        ({"value.bias": np.zeros(2, np.float32)}, None, r"value.bias is \[2\], expected \[1\]"),
        (
            {"torso.weight": np.zeros((8, 3, 3, 3), np.float32)},
            None,
            r"torso.weight is \[8, 3, 3, 3\], expected two axes",
        ),
        (
            {"log_std": np.zeros(3, np.float32)},
            None,
            "log_std, .* not the tensors of a policy of known names; say in names",
        ),
        (
            {},
            {"torso": "fc", "policy": "policy", "value": "value"},
            "lacks fc.bias, fc.weight and has an unexpected torso.bias, torso.weight",
        ),
        ({}, {"torso": "torso", "policy": "policy"}, "names must give the modules of torso, policy, value, got"),
        ({}, {"torso": None, "policy": "policy", "value": "value"}, "names must give the modules of torso"),
    ],
)
def test_a_tensor_of_pytorchs_is_named_as_in_the_file(tmp_path, change, names, message):
    save_file(torch_policy() | change, tmp_path / "torch")
    with pytest.raises(ValueError, match=message):
        export.load_torch_policy(tmp_path / "torch", names)


def test_a_file_that_is_damaged_foreign_or_newer_is_refused(tmp_path, policy):
    path = tmp_path / "policy"
    export.save_policy(path, policy)
    whole = path.read_bytes()
    path.write_bytes(whole[:-1])
    with pytest.raises(ValueError, match=r"policy is not a whole safetensors file"):
        export.load_policy(path)
    path.write_bytes(b"PK\x03\x04 an npz file, say")
    with pytest.raises(ValueError, match=r"policy is not a whole safetensors file"):
        export.load_torch_policy(path)
    path.write_bytes(whole.replace(b'\\"format\\": 1', b'\\"format\\": 2'))
    with pytest.raises(ValueError, match=r"policy is of format 2, and this version of jaxpref reads format 1"):
        export.load_policy(path)
    path.write_bytes(whole.replace(b'{\\"kind', b'[\\"kind'))
    with pytest.raises(ValueError, match="its metadata under jaxpref is not a JSON object"):
        export.load_policy(path)
    with pytest.raises(FileNotFoundError):
        export.load_policy(tmp_path / "nowhere")
    path.write_bytes(whole)
    with pytest.raises(ValueError, match=r"is not a reward model in these names: it lacks reward.bias"):
        export.load_reward_model(path)
    with pytest.raises(ValueError, match=r"policy does not fit task cartpole: it has"):
        export.load_policy(path, CARTPOLE)
