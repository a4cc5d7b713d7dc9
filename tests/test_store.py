"""Files: what is written comes back bit for bit, needs no pickle, and is whole or not there."""

import hashlib
import io
import json
import os
import signal
import subprocess
import sys
import zipfile
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import assert_same_bytes, lane, random_preferences

import jaxpref
from jaxpref import store

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def policies():
    """Two untrained policies."""
    return {f"pi{i}": jaxpref.init_policy(jax.random.key(i), jaxpref.cartpole()) for i in (1, 2)}


@pytest.fixture(scope="module")
def pairs():
    return random_preferences(np.random.default_rng(1), 5, 7)


def test_networks_come_back_bit_for_bit_under_their_paths(tmp_path, policies):
    store.save_pytree(tmp_path / "policies.npz", policies)
    assert_same_bytes(store.load_networks(tmp_path / "policies.npz", policies["pi1"].module), policies)
    assert_same_bytes(store.load_pytree(tmp_path / "policies.npz", like=policies), policies)
    params = store.load_params(tmp_path / "policies.npz")
    assert_same_bytes(params, {name: {"params": policy.params} for name, policy in policies.items()})
    with np.load(tmp_path / "policies.npz", allow_pickle=False) as file:
        np.testing.assert_array_equal(file["pi2/params/torso/kernel"], policies["pi2"].params["torso"]["kernel"])


def test_any_pytree_comes_back_into_the_structure_of_one_like_it():
    """Tuples and lists, NaN, empty arrays, scalars and every dtype in use; a structure of shapes is enough."""
    tree = {"tuple": (np.float32([np.nan, np.inf, -0.0]), [np.int32(3), np.bool_(True)]), "wide": np.float64([0.1])}
    tree |= {"empty": np.zeros((0, 4), np.float32), "seeds": np.uint32([2**32 - 1])}
    data = store.to_npz(tree)
    shapes = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(np.shape(leaf), leaf.dtype), tree)
    for like in (tree, shapes):
        assert_same_bytes(store.from_npz(data, like, "data"), tree)
    assert store.to_npz(tree) == data
    other_order = io.BytesIO()
    np.savez(other_order, b=np.float64([2.0]), a=np.float64([1.0]))
    assert store.from_npz(other_order.getvalue(), {"a": np.zeros(1), "b": np.zeros(1)}, "data") == {"a": [1], "b": [2]}


KERNEL, BIAS = np.zeros((2, 3)), np.zeros(3)


@pytest.mark.parametrize(
    ("stored", "message"),
    [
        ({"layer": {"kernel": KERNEL}}, "leaves differ from the expected ones: layer/bias$"),
        ({"layer": {"kernel": KERNEL, "bias": BIAS}, "extra": BIAS}, "leaves differ from the expected ones: extra$"),
        ({"layer": {"kernel": KERNEL.T, "bias": BIAS}}, r"layer/kernel is float64\[3, 2\], expected float64\[2, 3\]"),
        ({"layer": {"kernel": KERNEL, "bias": np.float32(BIAS)}}, r"layer/bias is float32\[3\], expected float64\[3\]"),
    ],
    ids=["missing", "unknown", "shape", "dtype"],
)
def test_a_leaf_that_does_not_fit_is_named(stored, message):
    with pytest.raises(ValueError, match=f"tree.npz: {message}"):
        store.from_npz(store.to_npz(stored), {"layer": {"kernel": KERNEL, "bias": BIAS}}, "tree.npz")


def test_what_npz_cannot_hold_is_refused_and_leaves_no_file(tmp_path):
    """Nor is it read."""
    objects = {"a": np.array([{}, None], dtype=object)}
    same_path = {"a/b": np.zeros(1), "a": {"b": np.ones(2)}}
    for tree, message in ((objects, "a is object"), (same_path, "two leaves have the same path")):
        with pytest.raises(ValueError, match=message):
            store.save_pytree(tmp_path / "tree.npz", tree)
    assert list(tmp_path.iterdir()) == []
    np.savez(tmp_path / "bad.npz", **objects, allow_pickle=True)
    with pytest.raises(ValueError, match="allow_pickle"):
        store.load_params(tmp_path / "bad.npz")


def test_damaged_bytes_are_named_or_change_nothing(policies):
    """A flipped bit in the zip's dates, say, changes no number."""
    data, rng = store.to_npz(policies), np.random.default_rng(0)
    damaged = [data[:length] for length in (0, 10, len(data) // 2, len(data) - 1)]
    for place in rng.integers(len(data), size=60):
        damaged.append(data[:place] + bytes([data[place] ^ 1 << rng.integers(8)]) + data[place + 1 :])
    num_named = 0
    for each in damaged:
        try:
            assert_same_bytes(store.from_npz(each, policies, "name of the file"), policies)
        except ValueError as error:
            assert str(error).startswith("name of the file")  # noqa: PT017
            num_named += 1
    assert num_named > 30


def test_preferences_come_back_bit_for_bit(tmp_path, pairs):
    """Types, and what lies beyond the masks, included. A reader in any language can parse the 12 arrays."""
    store.save_preferences(tmp_path / "pairs.npz", pairs)
    assert_same_bytes(store.load_preferences(tmp_path / "pairs.npz"), pairs)
    with zipfile.ZipFile(tmp_path / "pairs.npz") as archive:
        members = [np.lib.format.read_array(archive.open(name), allow_pickle=False) for name in archive.namelist()]
    assert sorted(member.dtype.kind for member in members) == sorted("f" * 8 + "i" * 2 + "b" * 2)


BOXED = jaxpref.tasks.offline(4, 3, horizon=7, action_range=((-1.0, 1.0),) * 3)


@pytest.fixture(scope="module")
def continuous():
    """Pairs whose actions are three numbers."""
    return random_preferences(np.random.default_rng(2), 5, 7, num_actions=3, continuous=True)


def test_continuous_actions_come_back_bit_for_bit(tmp_path, continuous):
    """With a task and without one; and as pairs for a person."""
    store.save_preferences(tmp_path / "pairs.npz", continuous)
    first, second = continuous.chosen, continuous.rejected
    store.save_pairs(tmp_path / "shown.npz", first, second)
    for task in (None, BOXED):
        assert_same_bytes(store.load_preferences(tmp_path / "pairs.npz", task), continuous)
        assert_same_bytes(store.load_pairs(tmp_path / "shown.npz", task), (first, second))


def test_preferences_of_another_program_need_only_what_is_trained_on(tmp_path, pairs):
    """Where the file has none, weights and probabilities are one, and rewards unknown. A step's next observation is
    that of the next step. That of the last step is not known, and is its own."""
    kept = {name: leaf for name, leaf in store.named_leaves(pairs).items() if name.endswith(("/obs", "action", "mask"))}
    np.savez(tmp_path / "pairs.npz", **kept, allow_pickle=False)
    loaded = store.load_preferences(tmp_path / "pairs.npz", jaxpref.cartpole())
    assert_same_bytes((loaded.weight, loaded.prob), (np.ones(5, np.float32), np.ones(5, np.float32)))
    assert loaded.target is None
    assert np.isnan(loaded.chosen.reward).all()
    for i, length in enumerate(np.asarray(pairs.chosen.mask.sum(-1))):
        after = [min(t + 1, length - 1) for t in range(length)]
        np.testing.assert_array_equal(loaded.chosen.next_obs[i, :length], pairs.chosen.obs[i, after])
    unknown = {"reward": pairs.chosen.reward, "next_obs": pairs.chosen.next_obs}
    assert_same_bytes(loaded.chosen.replace(**unknown), pairs.chosen)


def test_answers_and_pairs_become_preferences(tmp_path, pairs):
    """In the order of the pairs: the first of pair 0 was chosen, the second of pair 1, 2 is a tie, 3 has no answer."""
    first, second = pairs.chosen, pairs.rejected
    store.save_pairs(tmp_path / "pairs.npz", first, second)
    assert_same_bytes(store.load_pairs(tmp_path / "pairs.npz"), (first, second))
    with pytest.raises(ValueError, match="does not hold pairs: observations have 4 features, those of task acrobot 6"):
        store.load_pairs(tmp_path / "pairs.npz", jaxpref.acrobot())
    sha256 = hashlib.sha256((tmp_path / "pairs.npz").read_bytes()).hexdigest()
    choices = {4: "skip", 1: "second", 0: "first", 2: "tie"}
    lines = [{"pairs": sha256}] + [{"pair": pair, "choice": choice} for pair, choice in choices.items()]
    (tmp_path / "labels.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    labelled = store.load_labels(tmp_path / "labels.jsonl", tmp_path / "pairs.npz", jaxpref.cartpole())
    np.testing.assert_array_equal(labelled.weight, [1, 1, 1, 0, 0])
    np.testing.assert_array_equal(labelled.target, [1, 1, 0.5, 1, 1])
    assert_same_bytes((lane(labelled.chosen, 0), lane(labelled.rejected, 0)), (lane(first, 0), lane(second, 0)))
    assert_same_bytes((lane(labelled.chosen, 1), lane(labelled.rejected, 1)), (lane(second, 1), lane(first, 1)))
    store.save_preferences(tmp_path / "labelled.npz", labelled)
    assert_same_bytes(store.load_preferences(tmp_path / "labelled.npz"), labelled)

    (tmp_path / "labels.jsonl").write_text('{"pairs": "0123"}\n')
    with pytest.raises(ValueError, match=r"labels\.jsonl, line 1: these are answers to other pairs"):
        store.load_labels(tmp_path / "labels.jsonl", tmp_path / "pairs.npz")


def at(place, value):
    """Set another value there, in a copy of an array."""
    return lambda array: np.asarray(jnp.asarray(array).at[place].set(value))


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("chosen/mask", None, "chosen/mask is missing"),
        ("temperature", lambda _: np.float32(1), "temperature is not part of the format"),
        ("chosen/obs", lambda x: x[0], r"chosen/obs is \[7, 4\], expected \[pairs, steps, features\]"),
        ("chosen/obs", lambda x: x[:0], r"chosen/obs is \[0, 7, 4\], expected .* none of them 0"),
        ("rejected/obs", np.float64, r"rejected/obs is float64\[5, 7, 4\], expected float32\[5, 7, 4\]"),
        ("rejected/obs", lambda x: x[:, :6], r"rejected/obs is float32\[5, 6, 4\], expected float32\[5, 7, 4\]"),
        ("chosen/action", np.int64, r"chosen/action is int64\[5, 7\], expected int32\[5, 7\]"),
        ("weight", lambda x: x[:4], r"weight is float32\[4\], expected float32\[5\]"),
        ("weight", at(2, -1), "weight is not a number from 0 to 3.40282e\\+38 at pair 2"),
        ("prob", at(4, 1.5), "prob is not a number from 0 to 1 at pair 4"),
        ("prob", at(4, np.nan), "prob is not a number from 0 to 1 at pair 4"),
        ("chosen/mask", at((3, slice(2)), [False, True]), "chosen/mask goes on after .* pair 3, step 0"),
        ("chosen/obs", at((1, 0, 2), np.inf), "chosen/obs is not finite at pair 1, step 0"),
        ("chosen/next_obs", at((1, 0, 2), np.inf), "chosen/next_obs is not finite at pair 1, step 0"),
        ("rejected/action", at((1, 0), -1), "rejected/action is negative at pair 1, step 0"),
        ("rejected/action", at((1, 0), 2), "rejected/action is not one of the 2 actions of task cartpole"),
    ],
)
def test_an_array_that_does_not_follow_the_format_is_named(tmp_path, pairs, name, change, message):
    arrays = store.named_leaves(pairs)
    if change is None:
        del arrays[name]
    else:
        arrays[name] = change(arrays.get(name))
    np.savez(tmp_path / "pairs.npz", **arrays, allow_pickle=False)
    with pytest.raises(ValueError, match=rf"pairs\.npz does not hold preferences: {message}"):
        store.load_preferences(tmp_path / "pairs.npz", jaxpref.cartpole())


def whole_numbers(action):
    return np.int32(action[..., 0])


@pytest.mark.parametrize(
    ("name", "task", "change", "message"),
    [
        (
            "chosen/action",
            BOXED,
            lambda x: x[..., :2],
            r"chosen/action is float32\[5, 7, 2\], expected float32\[5, 7, 3\]",
        ),
        ("rejected/action", None, lambda x: x[..., :2], r"rejected/.* float32\[5, 7, 2\], expected float32\[5, 7, 3\]"),
        ("chosen/action", None, lambda x: x[..., 0], r"chosen/action is float32\[5, 7\], expected float32\[5, 7, 1\]"),
        ("chosen/action", None, lambda x: x[..., :0], r"chosen/.* float32\[5, 7, 0\], expected float32\[5, 7, 1\]"),
        ("chosen/action", None, np.float64, r"chosen/action is float64\[5, 7, 3\], expected float32\[5, 7, 3\]"),
        (
            "rejected/action",
            None,
            lambda x: np.int32(x[..., 0]),
            r"rejected/.* int32\[5, 7\], expected float32\[5, 7, 3\]",
        ),
        (
            "chosen/action",
            BOXED,
            lambda x: np.int32(x[..., 0]),
            r"chosen/.* int32\[5, 7\], expected float32\[5, 7, 3\]",
        ),
        (None, jaxpref.cartpole(), None, r"chosen/action is float32\[5, 7, 3\], expected int32\[5, 7\]"),
        ("chosen/action", BOXED, at((1, 0, 2), np.inf), "chosen/action is not finite at pair 1, step 0"),
        ("rejected/action", None, at((3, 0, 0), np.nan), "rejected/action is not finite at pair 3, step 0"),
    ],
)
def test_an_array_of_continuous_actions_that_does_not_fit_is_named(tmp_path, continuous, name, task, change, message):
    arrays = store.named_leaves(continuous)
    if name is not None:
        arrays[name] = change(arrays[name])
    np.savez(tmp_path / "pairs.npz", **arrays, allow_pickle=False)
    with pytest.raises(ValueError, match=rf"pairs\.npz does not hold preferences: {message}"):
        store.load_preferences(tmp_path / "pairs.npz", task)


def test_json_comes_back_and_has_no_nan_and_no_infinity(tmp_path, monkeypatch):
    """Also under a name without a folder."""
    monkeypatch.chdir(tmp_path)
    table = {"name": "π – ½", "seeds": [35, 42, 2**40], "mean": 0.1 + 0.2, "nested": {"ok": True, "none": None}}
    store.save_json("table.json", table)
    for value in (np.nan, np.inf):
        with pytest.raises(ValueError, match="not JSON compliant"):
            store.save_json("table.json", {"rows": [{"mean": value}]})
    assert store.load_json(tmp_path / "table.json") == json.loads(Path("table.json").read_text()) == table


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_a_write_that_fails_midway_leaves_the_old_file_and_nothing_else(tmp_path, error):
    (tmp_path / "file").write_bytes(b"old")
    for name in ("file", "new"):
        with pytest.raises(error), store.atomic_write(tmp_path / name) as file:  # noqa: PT012
            file.write(b"new and larger than any buffer" * 10_000)
            file.flush()
            raise error
    assert (tmp_path / "file").read_bytes() == b"old"
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


KILLED = """
import os, signal, sys
from jaxpref import store
with store.atomic_write(sys.argv[1]) as file:
    file.write(b"half of it")
    file.flush()
    os.kill(os.getpid(), signal.SIGKILL)
"""


def test_a_process_killed_midway_leaves_the_old_file(tmp_path):
    (tmp_path / "file").write_bytes(b"old")
    done = subprocess.run([sys.executable, "-c", KILLED, str(tmp_path / "file")], cwd=ROOT, capture_output=True)
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert (tmp_path / "file").read_bytes() == b"old"
    (left,) = tmp_path.glob(store.TEMPORARY)  # it was indeed killed between the two
    assert left.read_bytes() == b"half of it"


def test_a_finished_write_replaces_the_file_and_has_the_usual_permissions(tmp_path):
    """A reader of the old file goes on reading it."""
    (tmp_path / "usual").touch()
    usual = (tmp_path / "usual").stat().st_mode
    (tmp_path / "usual").unlink()
    (tmp_path / "file").write_bytes(b"something old and longer")
    with (tmp_path / "file").open("rb") as reader:
        with store.atomic_write(tmp_path / "file") as file:
            file.write(b"new")
        assert reader.read() == b"something old and longer"
    assert (tmp_path / "file").read_bytes() == b"new"
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
    assert (tmp_path / "file").stat().st_mode == usual


def test_a_file_is_on_disk_before_its_name(tmp_path, monkeypatch):
    events, fsync, replace = [], os.fsync, Path.replace
    monkeypatch.setattr(os, "fsync", lambda fd: (events.append("on disk"), fsync(fd)))
    monkeypatch.setattr(Path, "replace", lambda *paths: (events.append("renamed"), replace(*paths)))
    store.save_json(tmp_path / "file", [])
    assert events == ["on disk", "renamed"]
