"""Files: what is written comes back bit for bit, needs no pickle, and is whole or not there."""

import hashlib
import json
import os
import signal
import stat
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
SIDES_AND_FIELDS = [(side, field) for side in ("chosen", "rejected") for field in ("obs", "action", "mask")]
"""What a file of preferences cannot do without."""


@pytest.fixture
def params():
    """Of an untrained policy."""
    return jaxpref.init_policy(jax.random.key(0), jaxpref.cartpole())


@pytest.fixture
def pairs():
    return random_preferences(np.random.default_rng(1), 5, 7)


# --- round trips ------------------------------------------------------------------------------------------------------


def test_parameters_come_back_bit_for_bit(tmp_path, params):
    store.save_pytree(tmp_path / "policy.npz", params)
    assert_same_bytes(store.load_params(tmp_path / "policy.npz"), params)
    assert_same_bytes(store.load_pytree(tmp_path / "policy.npz", like=params), params)


def test_a_leafs_name_in_the_file_is_its_path(tmp_path, params):
    store.save_pytree(tmp_path / "policy.npz", params)
    layers = ("policy", "torso", "value")
    expected = {f"params/{layer}/{array}" for layer in layers for array in ("bias", "kernel")}
    with np.load(tmp_path / "policy.npz", allow_pickle=False) as file:
        assert set(file.files) == expected
        np.testing.assert_array_equal(file["params/torso/kernel"], params["params"]["torso"]["kernel"])


def test_loaded_parameters_play_as_the_saved_ones(tmp_path, params):
    store.save_pytree(tmp_path / "policy.npz", params)
    obs = jnp.array([[0.1, -0.2, 0.3, -0.4]])
    assert_same_bytes(
        jaxpref.apply_policy(store.load_params(tmp_path / "policy.npz"), obs), jaxpref.apply_policy(params, obs)
    )


def test_preferences_come_back_bit_for_bit(tmp_path, pairs):
    """Including what lies beyond the masks, and the types: int32 actions and boolean masks."""
    store.save_preferences(tmp_path / "pairs.npz", pairs)
    loaded = store.load_preferences(tmp_path / "pairs.npz")
    assert_same_bytes(loaded, pairs)
    assert isinstance(loaded, jaxpref.Preferences)
    assert isinstance(loaded.rejected, jaxpref.Trajectory)
    assert_same_bytes(store.load_pytree(tmp_path / "pairs.npz", like=pairs), pairs)


def test_preferences_of_another_program_need_only_what_is_trained_on(tmp_path, pairs):
    """Weights and probabilities are one, rewards and next observations unknown, where the file has none."""
    written = {f"{side}/{field}": getattr(getattr(pairs, side), field) for side, field in SIDES_AND_FIELDS}
    np.savez(tmp_path / "pairs.npz", **written, allow_pickle=False)
    loaded = store.load_preferences(tmp_path / "pairs.npz", jaxpref.cartpole())
    assert_same_bytes((loaded.weight, loaded.prob), (np.ones(5, np.float32), np.ones(5, np.float32)))
    assert loaded.target is None
    assert np.isnan(loaded.chosen.reward).all()
    unknown = {"reward": pairs.chosen.reward, "next_obs": pairs.chosen.next_obs}
    assert_same_bytes(loaded.chosen.replace(**unknown), pairs.chosen)


def test_answers_and_pairs_become_preferences(tmp_path, pairs):
    """In the order of the pairs: the first of pair 0 was chosen, the second of pair 1, 2 is a tie, 3 has no answer."""
    first, second = pairs.chosen, pairs.rejected
    store.save_pairs(tmp_path / "pairs.npz", first, second)
    assert_same_bytes(store.load_pairs(tmp_path / "pairs.npz"), (first, second))
    identity = hashlib.sha256((tmp_path / "pairs.npz").read_bytes()).hexdigest()
    choices = {4: "skip", 1: "second", 0: "first", 2: "tie"}
    lines = [{"pairs": identity}] + [{"pair": pair, "choice": choice} for pair, choice in choices.items()]
    (tmp_path / "labels.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    labelled = store.load_labels(tmp_path / "labels.jsonl", tmp_path / "pairs.npz", jaxpref.cartpole())
    np.testing.assert_array_equal(labelled.weight, [1, 1, 1, 0, 0])
    np.testing.assert_array_equal(labelled.target, [1, 1, 0.5, 1, 1])
    assert_same_bytes(lane(labelled.chosen, 0), lane(first, 0))
    assert_same_bytes(lane(labelled.rejected, 0), lane(second, 0))
    assert_same_bytes(lane(labelled.chosen, 1), lane(second, 1))
    assert_same_bytes(lane(labelled.rejected, 1), lane(first, 1))
    # And they are preferences like any others.
    store.save_preferences(tmp_path / "labelled.npz", labelled)
    assert_same_bytes(store.load_preferences(tmp_path / "labelled.npz"), labelled)


def test_answers_to_other_pairs_are_refused(tmp_path, pairs):
    store.save_pairs(tmp_path / "pairs.npz", pairs.chosen, pairs.rejected)
    (tmp_path / "labels.jsonl").write_text('{"pairs": "0123"}\n')
    with pytest.raises(ValueError, match=r"labels\.jsonl, line 1: these are answers to other pairs"):
        store.load_labels(tmp_path / "labels.jsonl", tmp_path / "pairs.npz")


def test_any_pytree_comes_back_into_the_structure_of_one_like_it(tmp_path):
    """Tuples and lists, NaN, empty arrays, scalars and every dtype in use."""
    tree = {
        "tuple": (np.float32([np.nan, np.inf, -0.0]), [np.int32(3), np.bool_(True)]),
        "empty": np.zeros((0, 4), np.float32),
        "wide": np.float64([0.1]),
        "seeds": np.uint32([2**32 - 1]),
    }
    store.save_pytree(tmp_path / "tree.npz", tree)
    like = jax.tree.map(lambda leaf: np.zeros_like(leaf), tree)
    assert_same_bytes(store.load_pytree(tmp_path / "tree.npz", like), tree)


def test_json_comes_back(tmp_path):
    table = {"name": "π – ½", "seeds": [35, 42, 2**40], "mean": 0.1 + 0.2, "nested": {"ok": True, "none": None}}
    store.save_json(tmp_path / "table.json", table)
    assert store.load_json(tmp_path / "table.json") == table
    text = (tmp_path / "table.json").read_text()
    assert json.loads(text) == table
    assert text.endswith("}\n")


# --- no pickle --------------------------------------------------------------------------------------------------------


def test_every_array_in_a_file_is_readable_without_pickle(tmp_path, pairs):
    """As plain .npy members, whose headers a reader in any language can parse, and no object arrays."""
    store.save_preferences(tmp_path / "pairs.npz", pairs)
    with zipfile.ZipFile(tmp_path / "pairs.npz") as archive:
        assert len(archive.namelist()) == len(jax.tree.leaves(pairs)) == 12
        for name in archive.namelist():
            assert name.endswith(".npy")
            with archive.open(name) as member:
                array = np.lib.format.read_array(member, allow_pickle=False)
            assert array.dtype.kind in "fib"


def test_an_array_of_objects_is_refused_and_leaves_no_file(tmp_path):
    with pytest.raises(ValueError, match=r"[Oo]bject"):
        store.save_pytree(tmp_path / "objects.npz", {"a": np.array([{}, None], dtype=object)})
    assert list(tmp_path.iterdir()) == []


def test_a_file_with_a_pickle_in_it_is_not_read(tmp_path):
    np.savez(tmp_path / "bad.npz", a=np.array([{}, None], dtype=object), allow_pickle=True)
    with pytest.raises(ValueError, match="allow_pickle"):
        store.load_params(tmp_path / "bad.npz")
    with pytest.raises(ValueError, match="allow_pickle"):
        store.load_pytree(tmp_path / "bad.npz", {"a": np.zeros(2)})


# --- what does not fit ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("stored", "message"),
    [
        ({"layer": {"kernel": np.zeros((2, 3))}}, "leaves differ from the expected ones: layer/bias$"),
        (
            {"layer": {"kernel": np.zeros((2, 3)), "bias": np.zeros(3)}, "extra": np.zeros(1)},
            "leaves differ from the expected ones: extra$",
        ),
        (
            {"layer": {"kernel": np.zeros((3, 2)), "bias": np.zeros(3)}},
            r"layer/kernel is float64\[3, 2\], expected float64\[2, 3\]",
        ),
        (
            {"layer": {"kernel": np.zeros((2, 3)), "bias": np.zeros(3, np.float32)}},
            r"layer/bias is float32\[3\], expected float64\[3\]",
        ),
    ],
    ids=["missing", "unknown", "shape", "dtype"],
)
def test_a_leaf_that_does_not_fit_is_named(tmp_path, stored, message):
    store.save_pytree(tmp_path / "tree.npz", stored)
    like = {"layer": {"kernel": np.ones((2, 3)), "bias": np.ones(3)}}
    with pytest.raises(ValueError, match=f"tree.npz: {message}"):
        store.load_pytree(tmp_path / "tree.npz", like)


def test_leaves_that_swapped_their_names_are_not_taken_for_each_other(tmp_path):
    """Two leaves of one shape: each comes back under its own name, whatever the order in the file."""
    np.savez(tmp_path / "tree.npz", b=np.full(2, 2.0), a=np.full(2, 1.0))
    loaded = store.load_pytree(tmp_path / "tree.npz", {"a": np.zeros(2), "b": np.zeros(2)})
    assert_same_bytes(loaded, {"a": np.full(2, 1.0), "b": np.full(2, 2.0)})


def test_two_leaves_of_one_name_are_not_silently_made_one(tmp_path):
    """`a/b` is a key, and also the path to `b` in `a`: refused, or else both are there again."""
    tree = {"a/b": np.zeros(1), "a": {"b": np.ones(2)}}
    try:
        store.save_pytree(tmp_path / "tree.npz", tree)
    except ValueError:
        assert list(tmp_path.iterdir()) == []
    else:
        assert_same_bytes(store.load_pytree(tmp_path / "tree.npz", like=tree), tree)


@pytest.mark.parametrize("broken", ["without a side", "without a field", "with a field too many", "parameters"])
def test_a_file_of_something_else_is_not_taken_for_preferences(tmp_path, pairs, params, broken):
    tree = {
        "chosen": vars(pairs.chosen).copy(),
        "rejected": vars(pairs.rejected).copy(),
        "weight": pairs.weight,
        "prob": pairs.prob,
    }
    if broken == "without a side":
        del tree["rejected"]
    elif broken == "without a field":
        del tree["chosen"]["mask"]
    elif broken == "with a field too many":
        tree["temperature"] = np.float32(1)
    else:
        tree = params
    store.save_pytree(tmp_path / "foreign.npz", tree)
    with pytest.raises(ValueError, match=r"foreign\.npz does not hold preferences"):
        store.load_preferences(tmp_path / "foreign.npz")


def at(array, place, value):
    """A copy of the array with another value there."""
    copy = np.array(array)
    copy[place] = value
    return copy


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("chosen/obs", lambda x: x[0], r"chosen/obs is \[7, 4\], expected \[pairs, steps, features\]"),
        ("chosen/obs", lambda x: x[:0], r"chosen/obs is \[0, 7, 4\], expected .* at least one of each"),
        ("rejected/obs", np.float64, r"rejected/obs is float64\[5, 7, 4\], expected float32\[5, 7, 4\]"),
        ("rejected/obs", lambda x: x[:, :6], r"rejected/obs is float32\[5, 6, 4\], expected float32\[5, 7, 4\]"),
        ("chosen/action", np.int64, r"chosen/action is int64\[5, 7\], expected int32\[5, 7\]"),
        ("chosen/mask", np.uint8, r"chosen/mask is uint8\[5, 7\], expected bool\[5, 7\]"),
        ("chosen/reward", lambda x: x[:4], r"chosen/reward is float32\[4, 7\], expected float32\[5, 7\]"),
        ("weight", lambda x: x[:4], r"weight is float32\[4\], expected float32\[5\]"),
        ("weight", lambda x: at(x, 2, -1), "weight is not a number from 0 to 3.40282e\\+38 at pair 2"),
        ("weight", lambda x: at(x, 2, np.nan), "weight is not a number from 0 .* at pair 2"),
        ("prob", lambda x: at(x, 4, 1.5), "prob is not a number from 0 to 1 at pair 4"),
        (
            "chosen/mask",
            lambda x: at(at(x, (3, 0), False), (3, 1), True),
            "chosen/mask goes on after .* pair 3, step 0",
        ),
        ("chosen/obs", lambda x: at(x, (1, 0, 2), np.inf), "chosen/obs is not finite at pair 1, step 0"),
        ("rejected/action", lambda x: at(x, (1, 0), -1), "rejected/action is negative at pair 1, step 0"),
        ("rejected/action", lambda x: at(x, (1, 0), 2), "rejected/action is not one of the 2 actions of task cartpole"),
    ],
)
def test_an_array_that_is_not_to_the_schema_is_named(tmp_path, pairs, name, change, message):
    arrays = store.named_leaves(pairs)
    np.savez(tmp_path / "pairs.npz", **(arrays | {name: change(arrays[name])}), allow_pickle=False)
    with pytest.raises(ValueError, match=rf"pairs\.npz does not hold preferences: {message}"):
        store.load_preferences(tmp_path / "pairs.npz", jaxpref.cartpole())


def test_pairs_of_another_task_are_refused(tmp_path, pairs):
    store.save_pairs(tmp_path / "pairs.npz", pairs.chosen, pairs.rejected)
    message = "does not hold pairs: observations have 4 features, those of task acrobot 6"
    with pytest.raises(ValueError, match=message):
        store.load_pairs(tmp_path / "pairs.npz", jaxpref.acrobot())
    with pytest.raises(ValueError, match=r"does not hold preferences: chosen/action, .* is missing"):
        store.load_preferences(tmp_path / "pairs.npz")


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_json_has_no_nan_and_no_infinity(tmp_path, value):
    store.save_json(tmp_path / "table.json", {"mean": 1.0})
    with pytest.raises(ValueError, match="not JSON compliant"):
        store.save_json(tmp_path / "table.json", {"rows": [{"mean": value}]})
    assert store.load_json(tmp_path / "table.json") == {"mean": 1.0}
    assert [path.name for path in tmp_path.iterdir()] == ["table.json"]


# --- whole or not there -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_a_write_that_fails_midway_leaves_the_old_file_and_nothing_else(tmp_path, error):
    (tmp_path / "file").write_bytes(b"old")
    with pytest.raises(error), store.atomic_write(tmp_path / "file") as file:  # noqa: PT012
        file.write(b"new and larger than any buffer" * 10_000)
        file.flush()
        assert (tmp_path / "file").read_bytes() == b"old"
        raise error
    assert (tmp_path / "file").read_bytes() == b"old"
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_a_write_that_fails_midway_makes_no_new_file(tmp_path):
    with pytest.raises(RuntimeError), store.atomic_write(tmp_path / "file") as file:  # noqa: PT012
        file.write(b"half")
        raise RuntimeError
    assert list(tmp_path.iterdir()) == []


def test_a_process_killed_midway_leaves_the_old_file(tmp_path):
    (tmp_path / "file").write_bytes(b"old")
    program = (
        "import os, signal, sys\n"
        "from jaxpref import store\n"
        "with store.atomic_write(sys.argv[1]) as file:\n"
        "    file.write(b'half of it')\n"
        "    file.flush()\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    done = subprocess.run([sys.executable, "-c", program, str(tmp_path / "file")], cwd=ROOT, capture_output=True)
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert (tmp_path / "file").read_bytes() == b"old"
    # And it was indeed killed between the two.
    assert sorted(path.read_bytes() for path in tmp_path.iterdir()) == [b"half of it", b"old"]


def test_a_finished_write_replaces_the_whole_file(tmp_path):
    (tmp_path / "file").write_bytes(b"something old and longer")
    with store.atomic_write(tmp_path / "file") as file:
        file.write(b"new")
    assert (tmp_path / "file").read_bytes() == b"new"
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_a_reader_of_the_old_file_goes_on_reading_it(tmp_path):
    """The new file takes the old one's name; nobody sees a mixture."""
    (tmp_path / "file").write_bytes(b"old")
    with (tmp_path / "file").open("rb") as reader:
        with store.atomic_write(tmp_path / "file") as file:
            file.write(b"new")
        assert reader.read() == b"old"


def test_a_name_without_a_folder_is_written_where_the_program_stands(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    store.save_json("table.json", [1, 2])
    assert store.load_json(tmp_path / "table.json") == [1, 2]


def test_everybody_may_read_a_saved_file(tmp_path, params):
    """As any file that a program opens for writing under the usual umask: rw-r--r--, not the temporary file's rw."""
    before = os.umask(0o022)
    try:
        store.save_json(tmp_path / "table.json", {})
        store.save_pytree(tmp_path / "policy.npz", params)
    finally:
        os.umask(before)
    for path in tmp_path.iterdir():
        assert stat.S_IMODE(path.stat().st_mode) == 0o644


def test_a_folder_that_does_not_exist_is_not_made(tmp_path):
    with pytest.raises(FileNotFoundError):
        store.save_json(tmp_path / "nowhere" / "table.json", {})
    assert list(tmp_path.iterdir()) == []
