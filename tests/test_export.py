"""Policies and reward models as safetensors: the way out, the way back, and the way in from PyTorch."""

import json
import re
from pathlib import Path

import gymnasium
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import assert_same_bytes, stack
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

import jaxpref
from jaxpref import export
from jaxpref.networks import ActorCritic, Ensemble, Network

PAGE = (Path(__file__).parents[1] / "docs" / "export.md").read_text()
CARTPOLE, ACROBOT = jaxpref.cartpole(), jaxpref.acrobot()
OBS = np.random.default_rng(0).normal(size=(5, 6)).astype(np.float32)


@pytest.fixture(scope="module")
def policy():
    return jaxpref.init_policy(jax.random.key(0), ACROBOT)


@pytest.fixture(scope="module")
def reward():
    """With a head that is not zero."""
    return jax.tree.map(lambda leaf: leaf + 0.1, jaxpref.init_reward(jax.random.key(1), ACROBOT))


def description(path):
    with safe_open(path, framework="np") as file:
        return json.loads(file.metadata()["jaxpref"])


def test_networks_come_back_bit_for_bit(tmp_path, policy, reward):
    ensemble = Network(Ensemble(reward.module), stack(reward.params, reward.params))
    for save, load, network in (
        (export.save_policy, export.load_policy, policy),
        (export.save_reward_model, export.load_reward_model, reward),
        (export.save_reward_model, export.load_reward_model, ensemble),
    ):
        save(tmp_path / "network", network, ACROBOT)
        for task in (ACROBOT, None):
            loaded = load(tmp_path / "network", task)
            assert_same_bytes(loaded, network)
            assert loaded.module == network.module
    export.save_policy(tmp_path / "network", policy)
    assert_same_bytes(export.load_policy(tmp_path / "network"), policy)
    export.save_policy(tmp_path / "again", policy)
    assert (tmp_path / "network").read_bytes() == (tmp_path / "again").read_bytes()


def test_the_file_holds_flat_names_and_says_what_it_is(tmp_path, policy):
    export.save_policy(tmp_path / "policy", policy, ACROBOT)
    tensors = load_file(tmp_path / "policy")
    assert set(tensors) == {f"{layer}.{part}" for layer in ("torso", "policy", "value") for part in ("kernel", "bias")}
    np.testing.assert_array_equal(tensors["policy.kernel"], policy.params["policy"]["kernel"])
    expected = {"kind": "policy", "format": 1, "task": "acrobot", "observe": None, "activation": "relu"}
    sizes = {"input_size": 6, "hidden_size": 32, "num_actions": 3, "action_range": None, "use_next_obs": False}
    assert description(tmp_path / "policy") == expected | sizes


BOXED = jaxpref.tasks.offline(6, 2, horizon=10, action_range=((-2.0, 1 / 3), (0.1, 4.0)))


@pytest.fixture(scope="module")
def gaussian():
    """A policy whose deviations are exp(0.1) and exp(1.1) halves of the range."""
    network = jaxpref.init_policy(jax.random.key(2), BOXED)
    return network.replace(params=network.params | {"log_std": jnp.array([0.1, 1.1])})


@pytest.fixture(scope="module")
def reward_of_numbers():
    return jax.tree.map(lambda leaf: leaf + 0.1, jaxpref.init_reward(jax.random.key(3), BOXED))


def test_networks_of_continuous_actions_come_back_bit_for_bit(tmp_path, gaussian, reward_of_numbers):
    """With the range of the actions, also where no task says it: so the same distribution and the same rewards."""
    for save, load, network in (
        (export.save_policy, export.load_policy, gaussian),
        (export.save_reward_model, export.load_reward_model, reward_of_numbers),
    ):
        save(tmp_path / "network", network, BOXED)
        for task in (BOXED, None):
            loaded = load(tmp_path / "network", task)
            assert_same_bytes(loaded, network)
            assert loaded.module == network.module
        assert description(tmp_path / "network")["action_range"] == [[-2, 1 / 3], [0.1, 4]]
    export.save_policy(tmp_path / "policy", gaussian)
    names = {f"{layer}.{part}" for layer in ("torso", "policy", "value") for part in ("kernel", "bias")}
    assert set(load_file(tmp_path / "policy")) == names | {"log_std"}


def test_a_network_of_other_actions_is_refused_in_one_sentence(tmp_path, policy, gaussian, reward, reward_of_numbers):
    """Another range would give other actions, silently. Of a file without a description, the tensors say the kind."""
    continuous = jaxpref.tasks.offline(6, 3, horizon=10, action_range=((-1.0, 1.0),) * 3)
    wider = BOXED.replace(action_range=((-2.0, 1.0), (0.1, 4.0)))
    of_policies, of_rewards = (
        (export.save_policy, export.load_policy),
        (export.save_reward_model, export.load_reward_model),
    )
    stated = r"in the range \(\(-2.0, 0.333.*\), \(0.1, 4.0\)\)"
    for (save, load), network, task, message, without_description in (
        (of_policies, gaussian, ACROBOT, f"{stated}, those of task acrobot are discrete", "an unexpected log_std"),
        (of_policies, gaussian, wider, f"{stated}, those of task offline are in the range", None),
        (of_policies, policy, continuous, "discrete, those of task offline are in the range", "it lacks log_std"),
        (of_rewards, reward, continuous, "discrete, those of task offline are in the range", None),
        (of_rewards, reward_of_numbers, wider, f"{stated}, those of task offline are in the range", None),
    ):
        save(tmp_path / "network", network)
        with pytest.raises(ValueError, match=rf"network: its actions are {message}") as caught:
            load(tmp_path / "network", task)
        assert "\n" not in str(caught.value)
        if without_description:
            save_file(load_file(tmp_path / "network"), tmp_path / "network")
            with pytest.raises(ValueError, match=f"is not a policy with these names: .*{without_description}"):
                load(tmp_path / "network", task)


def test_log_std_is_there_for_continuous_actions_only(tmp_path, policy, gaussian, reward):
    """And has the shape of an action."""
    log_std = gaussian.params["log_std"]
    without = gaussian.replace(params={name: leaf for name, leaf in gaussian.params.items() if name != "log_std"})
    for save, network, message in (
        (export.save_policy, without, "this policy is not a policy with these names: it lacks log_std"),
        (export.save_policy, policy.replace(params=policy.params | {"log_std": log_std}), "has an unexpected log_std"),
        (export.save_reward_model, reward.replace(params=reward.params | {"log_std": log_std}), "unexpected log_std"),
        (
            export.save_policy,
            gaussian.replace(params=gaussian.params | {"log_std": jnp.zeros(3)}),
            r"this policy: log_std is float32\[3\], expected float32\[2\]",
        ),
    ):
        with pytest.raises(ValueError, match=message):
            save(tmp_path / "network", network)
    assert not (tmp_path / "network").exists()


def program(kind):
    (found,) = re.findall(rf"```python {kind}\n(.*?)```", PAGE, re.DOTALL)
    return found


def test_the_page_runs_a_policy_with_numpy_alone(tmp_path, monkeypatch, policy):
    """Its probabilities are the library's own, and it needs no more than NumPy and safetensors."""
    assert set(re.findall(r"^(?:from|import) (\w+)", program("numpy-only"), re.MULTILINE)) == {"numpy", "safetensors"}
    monkeypatch.chdir(tmp_path)
    export.save_policy("policy.safetensors", policy)
    names = {}
    exec(program("numpy-only"), names)
    expected = jax.nn.softmax(jaxpref.apply_policy(policy, jnp.asarray(OBS))[0].logits)
    np.testing.assert_allclose(names["action_probabilities"](OBS), expected, rtol=1e-5)
    np.testing.assert_allclose(names["action_probabilities"](OBS[0]), expected[0], rtol=1e-5)


def test_the_page_draws_a_continuous_action_with_numpy_alone(tmp_path, monkeypatch, gaussian):
    """Its mean and deviation are the library's own."""
    monkeypatch.chdir(tmp_path)
    export.save_policy("policy.safetensors", gaussian)
    names = {}
    exec(program("numpy-only"), names)
    exec(program("numpy-gaussian"), names)
    expected, _ = jaxpref.apply_policy(gaussian, jnp.asarray(OBS))
    mean, std = names["action_mean_and_std"](OBS)
    np.testing.assert_allclose(mean, expected.mean, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(np.broadcast_to(std, mean.shape), np.exp(expected.log_std), rtol=1e-5)


def pushing_with_its_velocity():
    """A policy of MountainCar, almost certain where the velocity is in the task's scale: logits -20 v, -20, 20 v."""
    params = {"torso": {"kernel": [[0, 0], [1, -1]], "bias": [0, 0]}}
    params |= {"policy": {"kernel": [[-20, 0, 20], [20, 0, -20]], "bias": [0, -20, 0]}}
    params |= {"value": {"kernel": [[0], [0]], "bias": [0]}}
    return Network(ActorCritic(3, 2), jax.tree.map(jnp.float32, params, is_leaf=lambda x: isinstance(x, list)))


def test_the_page_plays_mountain_car_as_the_library_does(tmp_path, monkeypatch):
    """In gymnasium. Episodes have a deviation of 27 steps: the means of 30 and 1000 agree within 4 of its errors, 20.
    Without `observe` the same policy hardly ever gets to the flag."""
    task = jaxpref.task("MountainCar-v0")
    monkeypatch.chdir(tmp_path)
    export.save_policy("policy.safetensors", pushing_with_its_velocity(), task)
    assert description("policy.safetensors")["observe"] == "mountain_car_observe"
    names = {"obs": np.zeros(2)}
    exec(program("numpy-only"), names)
    exec(program("mountain-car"), names)
    seen, expected = names["mountain_car_observe"](OBS[:, :2]), task.observe(jnp.asarray(OBS[:, :2]))
    np.testing.assert_allclose(seen, expected, rtol=1e-6)

    env, rng = gymnasium.make("MountainCar-v0").unwrapped, np.random.default_rng(0)

    def steps(observe):
        obs, _ = env.reset(seed=int(rng.integers(1000)))
        for step in range(1, 201):
            action = rng.choice(3, p=names["action_probabilities"](observe(obs)))
            obs, _, terminated, _, _ = env.step(int(action))
            if terminated:
                return step
        return 200

    ours = -jaxpref.evaluate(task, pushing_with_its_velocity(), jax.random.key(0), 1000).mean()
    theirs = np.mean([steps(names["mountain_car_observe"]) for _ in range(30)])
    np.testing.assert_allclose(theirs, ours, atol=20)
    assert np.mean([steps(lambda obs: obs) for _ in range(4)]) > 190 > 150 > theirs


def torch_linear(num_inputs, num_outputs, name):
    """nn.Linear's state: x @ weight.T + bias."""
    rng = np.random.default_rng(num_outputs)
    weight, bias = rng.normal(size=(num_outputs, num_inputs)), rng.normal(size=num_outputs)
    return {f"{name}.weight": np.float32(weight), f"{name}.bias": np.float32(bias)}


TORCH = torch_linear(6, 8, "net.0") | torch_linear(8, 3, "pi") | torch_linear(8, 1, "v")
NAMES = {"torso": "net.0", "policy": "pi", "value": "v"}


def torch_forward(state, torso, head, inputs):
    hidden = np.maximum(inputs @ state[f"{torso}.weight"].T + state[f"{torso}.bias"], 0)
    return hidden @ state[f"{head}.weight"].T + state[f"{head}.bias"]


@pytest.mark.parametrize("has_value", [True, False])
def test_a_state_dict_plays_as_the_module_does(tmp_path, has_value):
    """A value head that is not there is zero."""
    save_file({name: leaf for name, leaf in TORCH.items() if has_value or name[0] != "v"}, tmp_path / "torch")
    policy = export.load_torch_policy(tmp_path / "torch", NAMES | ({} if has_value else {"value": None}), ACROBOT)
    distribution, value = jaxpref.apply_policy(policy, jnp.asarray(OBS))
    expected = torch_forward(TORCH, "net.0", "pi", OBS), has_value * torch_forward(TORCH, "net.0", "v", OBS)[:, 0]
    np.testing.assert_allclose(distribution.logits, expected[0], rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(value, expected[1], rtol=1e-4, atol=1e-5)
    export.save_policy(tmp_path / "policy", policy)
    assert_same_bytes(export.load_policy(tmp_path / "policy"), policy)


def test_a_reward_model_of_pytorchs_pays_as_the_module_does(tmp_path):
    """An nn.Sequential on the observation and the one-hot action."""
    state, action = torch_linear(9, 8, "0") | torch_linear(8, 1, "2"), np.array([0, 2, 1, 1, 0])
    save_file(state, tmp_path / "torch")
    reward = export.load_torch_reward_model(tmp_path / "torch", {"torso": "0", "reward": "2"}, ACROBOT)
    expected = torch_forward(state, "0", "2", np.concatenate([OBS, np.eye(3)[action]], axis=1))[:, 0]
    paid = jaxpref.apply_reward(reward, jnp.asarray(OBS), jnp.asarray(action))
    np.testing.assert_allclose(paid, expected, rtol=1e-4, atol=1e-5)


def test_other_networks_are_not_exported(tmp_path, policy, reward):
    half = jax.tree.map(lambda leaf: leaf.astype(jnp.float16), policy)
    for network, task, message in (
        (reward, None, "a policy must be of module ActorCritic, got RewardModel: store.save_pytree"),
        (stack(policy, policy), None, r"torso.kernel is \[2, 6, 32\], expected 2 axes: save one policy"),
        (half, None, "torso.kernel is float16"),
        (policy, CARTPOLE, "does not fit task cartpole"),
    ):
        with pytest.raises(ValueError, match=message):
            export.save_policy(tmp_path / "policy", network, task)
    with pytest.raises(ValueError, match="expected 2 axes: save one reward model"):
        export.save_reward_model(tmp_path / "policy", stack(reward, reward))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"value.bias": None}, "it lacks value.bias$"),
        ({"extra": np.zeros(1, np.float32)}, "it has an unexpected extra$"),
        ({"policy.kernel": np.zeros((31, 3), np.float32)}, r"policy.kernel is float32\[31, 3\], .*float32\[32, 3\]"),
        ({"policy.bias": np.zeros(2, np.float32)}, r"policy.kernel is float32\[32, 3\], expected float32\[32, 2\]"),
        ({"torso.bias": np.zeros((), np.float32)}, r"torso.bias is float32\[\], expected float32\[32\]"),
        ({"torso.bias": np.zeros(32)}, "torso.bias is F64, expected F32: convert it"),
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
        ({"pi.weight": np.zeros((3, 7), np.float32)}, NAMES, r"policy.kernel is float32\[7, 3\], .*\[8, 3\]"),
        ({"net.0.weight": np.zeros((8, 3, 3, 3), np.float32)}, NAMES, r"torso.kernel is \[3, 3, 3, 8\], expected 2"),
        ({}, NAMES | {"torso": "fc"}, "lacks fc.bias, fc.weight and has an unexpected net.0.bias, net.0.weight"),
        ({}, {"torso": "net.0", "policy": "pi"}, "names must give the modules of torso, policy, value, got"),
        ({}, NAMES | {"torso": None}, "names must give the modules of torso"),
    ],
)
def test_a_state_dict_that_does_not_fit_is_refused(tmp_path, change, names, message):
    save_file(TORCH | change, tmp_path / "torch")
    with pytest.raises(ValueError, match=message):
        export.load_torch_policy(tmp_path / "torch", names)


def test_a_file_that_is_damaged_foreign_or_newer_is_refused(tmp_path, policy, reward):
    path = tmp_path / "policy"
    export.save_policy(path, policy)
    whole = path.read_bytes()
    newer = whole.replace(b'\\"format\\": 1', b'\\"format\\": 2')
    for damaged, message in (
        (whole[:-1], "policy is not a whole safetensors file"),
        (b"PK\x03\x04 an npz file, say", "policy is not a whole safetensors file"),
        (whole.replace(b'{\\"kind', b'[\\"kind'), "policy is not a whole safetensors file"),
        (newer, "policy has format 2, and this version of jaxpref reads 1"),
    ):
        path.write_bytes(damaged)
        with pytest.raises(ValueError, match=message):
            export.load_policy(path)
    path.write_bytes(whole)
    with pytest.raises(ValueError, match=r"is not a reward model with these names: it lacks reward.bias"):
        export.load_reward_model(path)
    with pytest.raises(ValueError, match=r"policy.* does not fit task cartpole"):
        export.load_policy(path, CARTPOLE)
    export.save_reward_model(path, reward)
    save_file(load_file(path), path)  # without the description
    with pytest.raises(ValueError, match="does not say how many of its inputs are actions: pass the task"):
        export.load_reward_model(path)
