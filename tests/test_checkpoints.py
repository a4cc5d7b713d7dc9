"""What is kept, when it is used, and what happens to files that are not what was written; progress beside it.

The stages here are two lines of arithmetic; killed runs of a whole experiment are in test_experiments.py.
"""

import dataclasses
import functools
import io
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import struct
from helpers import assert_same_bytes
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

import jaxpref
from experiments import checkpoints, progress, stages, torture
from experiments.command import UsageError
from jaxpref import store

QUIET = Console(quiet=True)
VERSIONS = {"jax": "1.0", "numpy": "2.0"}
SEEDS = np.array([3, 5, 8], np.uint32)


@struct.dataclass
class Config:
    """Of the stages here."""

    num_updates: int = struct.field(pytree_node=False, default=4)
    rate: float = 0.5


class Metrics(NamedTuple):
    true_return: np.ndarray


@struct.dataclass
class Result:
    params: dict
    metrics: Metrics
    reached: bool


def first(offset, config, seed):
    value = config.rate * jnp.float32(seed) + offset
    return Result({"w": value * jnp.ones(3)}, Metrics(value * jnp.arange(2.0)), seed > 4)


def second(config, seed, params):
    return (params["w"] + jnp.float32(seed)).sum(), {"steps": jnp.int32(seed)}


PROGRAMS: dict = {}
"""Compiled ones, for all tests."""


class Study:
    """Two stages, of which the second works on what the first returns."""

    def __init__(self, folder):
        self.folder = folder

    def run(self, *, seeds=SEEDS, offset=1.0, config=Config(), scale=1.0, lanes=64, versions=VERSIONS, **how):  # noqa: B008
        """(results, stages that were computed, what was printed)."""
        printed = io.StringIO()
        console = Console(file=printed, width=300)
        kept = checkpoints.Checkpoints(self.folder, versions, console, **how)
        runner = stages.Stages(console, kept)
        runner._programs = PROGRAMS
        program = offset, config.num_updates, lanes

        def pipeline():
            part = functools.partial(first, offset)
            one = runner.run("first", part, config, seeds, lanes=lanes, program=(1, *program))
            scaled = {"w": np.float32(scale) * one.params["w"]}
            return one, runner.run("second", second, config, seeds, scaled, detail="part", program=(2, *program))

        runner.begin(1, 1, seeds)
        runner.rehearse(pipeline)
        result = pipeline()
        kept.join()
        computed = [name for name, time in runner.times.items() if not time.reused]
        return result, computed, printed.getvalue()

    def path(self, name):
        return self.folder / "stages" / "1" / name


@pytest.fixture
def study(tmp_path):
    """A study that was run once."""
    study = Study(tmp_path)
    study.run()
    return study


# --- what is used again -----------------------------------------------------------------------------------------------


def test_what_is_kept_is_the_result_itself(study):
    """Types, structure and bytes; the line says that it was kept, and nothing is compiled for it."""
    fresh, computed, _ = Study(study.folder / "other").run()
    assert computed == ["first", "second"]
    PROGRAMS.clear()
    again, computed, printed = study.run()
    assert [program.compiled for program in PROGRAMS.values()] == [None, None]
    assert computed == []
    assert_same_bytes(again, fresh)
    assert [line.split()[-1] for line in printed.splitlines()] == ["kept", "kept"]


@pytest.mark.parametrize(
    ("changed", "runs", "says"),
    [
        ({"config": Config(rate=0.25)}, ["first", "second"], "rate was 0.5, is 0.25"),
        ({"config": Config(num_updates=5)}, ["first", "second"], "num_updates was 4, is 5"),
        ({"offset": 2.0}, ["first", "second"], "args was 1.0, is 2.0"),
        ({"seeds": np.array([3, 5, 9], np.uint32)}, ["first", "second"], "seeds was 3 5 8, is 3 5 9"),
        ({"seeds": np.array([5, 3, 8], np.uint32)}, ["first", "second"], "seeds was 3 5 8, is 5 3 8"),
        ({"lanes": 1}, ["first"], "lanes was 64, is 1"),
        ({"versions": VERSIONS | {"jax": "1.1"}}, ["first", "second"], "jax was 1.0, is 1.1"),
        ({"sources": [Path(__file__)]}, ["first", "second"], "code changed"),
        ({"scale": 2.0}, ["second"], "inputs changed"),
        ({"fresh": True}, ["first", "second"], ""),
    ],
)
def test_whatever_a_result_depends_on_is_said_when_it_changed(study, changed, runs, says):
    """And then the old result is not used: the new one is that of a folder where nothing was."""
    result, computed, printed = study.run(**changed)
    assert computed == runs
    told = [line for line in printed.splitlines() if "run again" in line]
    assert len(told) == (len(runs) if says else 0)
    assert not told or (told[0].startswith(f"  {runs[0]}") and says in told[0])
    assert_same_bytes(result, Study(study.folder / "other").run(**changed)[0])
    changed.pop("fresh", None)
    assert study.run(**changed)[1] == []


def test_a_description_is_the_same_in_every_process_and_tells_functions_and_numbers_apart():
    for name in jaxpref.TASKS:
        text = json.dumps(checkpoints.describe(jaxpref.task(name)))
        assert "0x" not in text
        assert name in text
    assert checkpoints.describe(functools.partial(first, 1.0)) != checkpoints.describe(functools.partial(first, 2.0))
    assert checkpoints.describe(first) != checkpoints.describe(second)
    assert checkpoints.describe(jaxpref.cartpole()) != checkpoints.describe(jaxpref.cartpole(horizon=500))
    assert checkpoints.describe(float("inf")) == "inf"


def test_a_digest_sees_names_types_shapes_and_values():
    trees = [
        {"a": np.zeros(4, np.float32)},
        {"b": np.zeros(4, np.float32)},
        {"a": np.zeros(4, np.int32)},
        {"a": np.zeros((2, 2), np.float32)},
        {"a": np.array([0, 0, 0, -0.0], np.float32)},
        {"a": np.zeros(2, np.float32), "b": np.zeros(2, np.float32)},
    ]
    assert len({checkpoints.digest(tree) for tree in trees}) == len(trees)
    assert checkpoints.digest(trees[0]) == checkpoints.digest({"a": jnp.zeros(4)})


def test_what_jax_is_told_from_outside_is_no_less_a_reason_to_compute_again(monkeypatch):
    monkeypatch.setenv("XLA_FLAGS", "--one")
    before = checkpoints.numerics()
    monkeypatch.setenv("XLA_FLAGS", "--other")
    assert checkpoints.differences(before, checkpoints.numerics()) == ["XLA_FLAGS was --one, is --other"]
    monkeypatch.setenv("XLA_FLAGS", "--one")
    with jax.threefry_partitionable(not jax.config.jax_threefry_partitionable):
        (difference,) = checkpoints.differences(before, checkpoints.numerics())
    assert difference == "jax_threefry_partitionable was True, is False"


def test_another_sealed_file_is_no_manifest_of_a_run(tmp_path):
    checkpoints.save_sealed(tmp_path / "manifest.json", {"of": {}, "sha256": "0" * 64, "seconds": {}})
    printed = io.StringIO()
    assert checkpoints.finished(tmp_path, {}, Console(file=printed, width=200)) is None
    assert "is no manifest of a finished run" in printed.getvalue()


def test_when_the_lock_is_released_nothing_is_written_any_more(tmp_path, monkeypatch):
    """Also where the run is interrupted while a result is on its way to the disk."""
    written = []

    def slowly(path, tree):
        time.sleep(0.2)
        written.append(path.name)

    monkeypatch.setattr(store, "save_pytree", slowly)

    def interrupted():
        with checkpoints.Checkpoints(tmp_path, {}, Console(quiet=True)) as kept:
            kept.begin("1", np.arange(2))
            kept.keep("stage", {"stage": "stage"}, np.zeros(2), np.zeros(2), lambda: (np.zeros(2), {}))
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert written == ["stage.npz"]


@pytest.mark.parametrize("view", [lambda x: np.broadcast_to(x, (2, *x.shape)), np.transpose, lambda x: x[::2, 1]])
def test_a_digest_of_a_view_is_that_of_its_copy(view):
    x = np.arange(12.0).reshape(3, 4)
    assert checkpoints.digest(view(x)) == checkpoints.digest(view(x).copy(order="C"))


# --- damaged files ----------------------------------------------------------------------------------------------------


def truncate(path):
    path.write_bytes(path.read_bytes()[:-7])


def flip(path, place=0.6, bit=3):
    content = bytearray(path.read_bytes())
    content[int(place * len(content))] ^= 1 << bit
    path.write_bytes(bytes(content))


def swap(study, *suffixes):
    for suffix in suffixes:
        one, other = study.path(f"first.{suffix}"), study.path(f"second-part.{suffix}")
        content = one.read_bytes()
        one.write_bytes(other.read_bytes())
        other.write_bytes(content)


def put_another_result(study):
    """Of the same stage and shapes, whole, from elsewhere."""
    elsewhere = Study(study.folder / "elsewhere")
    elsewhere.run(offset=7.0)
    study.path("first.npz").write_bytes(elsewhere.path("first.npz").read_bytes())


def put_another_format(study):
    table = store.load_json(study.path("first.json"))
    store.save_json(study.path("first.json"), table | {"format": checkpoints.FORMAT + 1})


FIRST, SECOND = "first", "second"
DAMAGE = {
    "a truncated result": (lambda study: truncate(study.path("first.npz")), {FIRST}, "checksum"),
    "an empty result": (lambda study: study.path("first.npz").write_bytes(b""), {FIRST}, "checksum"),
    "a flipped bit": (lambda study: flip(study.path("first.npz")), {FIRST}, "checksum"),
    "a flipped bit in the file's last bytes": (lambda study: flip(study.path("first.npz"), 0.999), {FIRST}, "checksum"),
    "two swapped results": (lambda study: swap(study, "npz"), {FIRST, SECOND}, "checksum"),
    "two swapped results with their manifests": (lambda study: swap(study, "npz", "json"), {FIRST, SECOND}, "stage"),
    "two swapped manifests": (lambda study: swap(study, "json"), {FIRST, SECOND}, "stage"),
    "another study's result": (put_another_result, {FIRST}, "checksum"),
    "a truncated manifest": (lambda study: truncate(study.path("first.json")), {FIRST}, "manifest"),
    "a flipped bit in the manifest": (lambda study: flip(study.path("first.json"), 0.3, 1), {FIRST}, ""),
    "some other JSON": (lambda study: store.save_json(study.path("first.json"), [1, 2]), {FIRST}, "manifest"),
    "a sealed file of something else": (
        lambda study: checkpoints.save_sealed(study.path("first.json"), {"of": 1}),
        {FIRST},
        "manifest",
    ),
    "a manifest of another format": (put_another_format, {FIRST}, "format 2"),
    "a missing result": (lambda study: study.path("second-part.npz").unlink(), {SECOND}, "missing"),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_file_is_named_and_what_it_held_computed_again(study, damage):
    expected = study.run()[0]
    spoil, stages_hit, reason = DAMAGE[damage]
    spoil(study)
    with pytest.raises(UsageError, match=r"stages/1/.*--strict refuses it"):
        study.run(strict=True)
    result, computed, printed = study.run()
    assert set(computed) == stages_hit
    assert_same_bytes(result, expected)
    warnings = [line for line in printed.splitlines() if line.startswith("warning: ")]
    assert len(warnings) == len(stages_hit)
    for stage, line in zip(sorted(stages_hit), warnings, strict=True):
        assert str(study.path(stage)) in line
        assert reason in line
    assert study.run()[1] == []


@given(place=st.floats(0, 1, exclude_max=True), bit=st.integers(0, 7))
def test_no_flipped_bit_of_a_sealed_file_goes_unseen(tmp_path_factory, place, bit):
    path = tmp_path_factory.getbasetemp() / "sealed.json"
    table = {"rate": 1e-05, "names": ["a", None, True], "text": "\u03b2 1E-05"}
    checkpoints.save_sealed(path, table)
    assert checkpoints.load_sealed(path) == table
    flip(path, place, bit)
    with pytest.raises(checkpoints.Damaged):
        checkpoints.load_sealed(path)


def test_a_run_killed_between_a_result_and_its_manifest_computes_it_again_without_alarm(study, monkeypatch):
    def killed(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(checkpoints, "save_sealed", killed)
        with pytest.raises(KeyboardInterrupt):
            study.run(offset=2.0)
    result, computed, printed = study.run()
    assert computed == ["first"]
    assert "warning" not in printed
    assert_same_bytes(result, Study(study.folder / "other").run()[0])


def test_a_disk_without_room_is_one_sentence(study, monkeypatch):
    def full(path, tree):
        raise OSError(28, "No space left on device", str(path))

    monkeypatch.setattr(store, "save_pytree", full)
    with pytest.raises(UsageError, match=r"cannot write .*first.npz: No space left on device"):
        study.run(offset=2.0)


def test_what_is_dropped_and_what_nobody_used_is_gone(study):
    kept = checkpoints.Checkpoints(study.folder, VERSIONS, QUIET)
    kept.begin("1", SEEDS)
    kept.seconds("first")
    kept.drop("second part")
    assert sorted(path.name for path in study.path("").iterdir()) == ["first.json", "first.npz"]
    (study.folder / "stages" / "2").mkdir()
    study.path("old.npz").write_bytes(b"")
    kept.tidy()
    names = [str(path.relative_to(study.folder)) for path in sorted(study.folder.rglob("*")) if path.is_file()]
    assert names == ["stages/1/first.json", "stages/1/first.npz"]


# --- the files of a finished run --------------------------------------------------------------------------------------


@pytest.fixture
def results(tmp_path):
    """(folder, files, what they depend on)."""
    paths = [tmp_path / "summary.json", tmp_path / "policies.npz"]
    store.save_json(paths[0], {"mean": 1.0})
    store.save_pytree(paths[1], {"w": np.arange(3.0)})
    checkpoints.seal_results(tmp_path, {"settings": {"rate": 0.5}}, paths)
    return tmp_path, paths, {"settings": {"rate": 0.5}}


def finished(folder, of, **how):
    printed = io.StringIO()
    return checkpoints.finished(folder, of, Console(file=printed, width=300), **how), printed.getvalue()


def test_a_finished_run_is_known_by_what_it_depends_on(results):
    folder, paths, of = results
    assert finished(folder, of) == (paths, "")
    assert finished(folder, {"settings": {"rate": 0.25}}) == (None, "")
    assert finished(folder.parent, of) == (None, "")
    checkpoints.unseal_results(folder)
    assert finished(folder, of) == (None, "")


@pytest.mark.parametrize("name", ["summary.json", "policies.npz", "manifest.json"])
@pytest.mark.parametrize("damage", [truncate, flip, Path.unlink])
def test_a_damaged_file_of_a_finished_run_is_named(results, name, damage):
    folder, _, of = results
    damage(folder / name)
    found, printed = finished(folder, of)
    assert found is None
    if (name, damage) == ("manifest.json", Path.unlink):
        return  # what has no manifest is not vouched for, and made again
    assert printed.startswith(f"warning: {folder / name} ")
    assert len(printed.splitlines()) == 1
    with pytest.raises(UsageError, match=re.escape(str(folder / name))):
        finished(folder, of, strict=True)


def test_all_that_may_change_a_run_is_part_of_what_it_depends_on():
    from experiments.settings import default_settings

    settings = default_settings("cartpole", "dpo")
    of = checkpoints.of_run(settings, VERSIONS)
    assert of == json.loads(json.dumps(of))
    names = set(vars(settings)) - {"fresh", "strict"}
    assert set(of["settings"]) == names | {"class"}
    assert of["devices"] == ["cpu", "cpu"]


# --- one process in a folder ------------------------------------------------------------------------------------------


def test_a_folder_belongs_to_one_process_for_as_long_as_that_lives(tmp_path):
    """The other one takes the lock, says so, and is killed."""
    program = (
        "import fcntl, os, sys, time\n"
        "file = open(sys.argv[1], 'w')\n"
        "fcntl.flock(file, fcntl.LOCK_EX)\n"
        "print(os.getpid(), file=file, flush=True)\n"
        "print('held', flush=True)\n"
        "time.sleep(60)\n"
    )
    words = [sys.executable, "-c", program, str(tmp_path / ".lock")]
    with subprocess.Popen(words, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout.readline() == "held\n"
        with pytest.raises(UsageError) as error, checkpoints.locked(tmp_path):
            raise AssertionError("went on")
        assert str(tmp_path) in str(error.value)
        assert f"process {other.pid} " in str(error.value)
        assert [path.name for path in tmp_path.iterdir()] == [".lock"]
        other.send_signal(signal.SIGKILL)
        other.wait()
    with checkpoints.locked(tmp_path):
        assert (tmp_path / ".lock").read_text() == f"{os.getpid()}\n"
    with checkpoints.locked(tmp_path):  # and it was given back
        pass


def test_what_a_killed_run_left_half_written_is_removed_and_nothing_else(tmp_path):
    for folder in (tmp_path, tmp_path / "stages" / "1", tmp_path / "arms" / "cartpole" / "0-19"):
        folder.mkdir(parents=True, exist_ok=True)
        for name in (".policies.npz.abc_1234.tmp", "policies.npz", ".mine", "notes.tmp"):
            (folder / name).write_bytes(b"")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / ".policies.npz.abc_1234.tmp").write_bytes(b"")
    with checkpoints.locked(tmp_path):
        left = [path for path in tmp_path.rglob("*") if path.name.endswith(".tmp")]
    assert sorted(path.name for path in left) == [".policies.npz.abc_1234.tmp", *["notes.tmp"] * 3]
    assert len(list(tmp_path.rglob("policies.npz"))) == len(list(tmp_path.rglob(".mine"))) == 3


def test_a_file_that_is_being_written_has_a_name_that_is_known_as_such(tmp_path):
    with store.atomic_write(tmp_path / "policies.npz"):
        assert len(list(tmp_path.glob(store.TEMPORARY))) == 1


# --- progress ---------------------------------------------------------------------------------------------------------


def lines_of(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def go_through(shown):
    """A batch of two stages."""
    shown.begin(1, 2, SEEDS)
    shown.plan("reinforce", None)
    shown.plan("dpo", 30.0)
    shown.start("reinforce")
    shown.done(progress.Done("reinforce", 3, 16, 195.25, 0.5, 1.0, False))
    shown.start("dpo")
    shown.done(progress.Done("dpo", 6, 1, None, 1.5, 0.5, True))


def test_progress_in_a_file_is_plain_lines(tmp_path):
    printed = io.StringIO()
    with progress.Progress(Console(file=printed), tmp_path) as shown:
        go_through(shown)
    assert printed.getvalue() == (
        "batch 1 of 2, 3 seeds\n"
        "  reinforce                   3 runs    16 updates   return 195.2     1.5 s\n"
        "  dpo                         6 runs      1 update                     kept\n"
    )
    start, one, other, end = lines_of(tmp_path / "progress.jsonl")
    assert (start["event"], start["process"], end["event"], end["error"]) == ("start", os.getpid(), "end", None)
    row = {"stage": "reinforce", "runs": 3, "updates": 16, "mean_return": 195.25, "run_s": 1.0, "reused": False}
    assert {name: one[name] for name in row} == row
    assert (one["batch"], one["seeds"]) == (1, [3, 5, 8])
    assert other["reused"] is True
    assert all(re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\+00:00", line["time"]) for line in (start, one, end))


def test_progress_on_a_terminal_moves(tmp_path):
    printed = io.StringIO()
    with progress.Progress(Console(file=printed, force_terminal=True, width=120), tmp_path) as shown:
        go_through(shown)
        shown._bar.refresh()
    assert "\x1b[" in printed.getvalue()
    assert "batch 1 of 2: dpo" in printed.getvalue()
    assert "2/4 stages" in re.sub(r"\x1b\[[0-9;]*m", "", printed.getvalue())


def test_the_bar_names_updates_and_below_it_stand_time_left_seeds_and_the_last_return(monkeypatch):
    """Five seeds in two batches of three: the last is filled up with a seed of the first. No time goes by."""
    monkeypatch.setattr(progress.time, "perf_counter", lambda: 100.0)
    shown = progress.Progress(QUIET)
    assert shown.details() == ""
    shown.begin(1, 2, np.array([3, 5, 8]))
    shown.plan("reinforce", None)
    shown.plan("evaluate", None)
    shown.start("reinforce", 16)
    assert shown._bar.tasks[0].description == "batch 1 of 2: reinforce, 16 updates"
    assert shown.details() == "0 of up to 6 seeds done"
    shown.done(progress.Done("reinforce", 3, 16, 195.25, 0.5, 1.0, False))
    shown.start("evaluate")
    assert shown._bar.tasks[0].description == "batch 1 of 2: evaluate"
    shown.done(progress.Done("evaluate", 3, None, None, 0.5, 1.0, False))
    assert shown.details() == "about 2 s left, 3 of up to 6 seeds done, mean return 195.2 (reinforce)"
    shown.begin(2, 2, np.array([9, 10, 3]))
    shown.plan("reinforce", 120.0)
    shown.start("reinforce")  # the number of its updates is known from the first batch
    assert shown._bar.tasks[0].description == "batch 2 of 2: reinforce, 16 updates"
    assert shown.details() == "about 1 s left, 3 of 5 seeds done, mean return 195.2 (reinforce)"
    shown.done(progress.Done("reinforce", 3, 16, -1.256, 0.5, 1.0, False))
    assert shown.details() == "5 of 5 seeds done, mean return -1.26 (reinforce)"


def test_whoever_counts_something_else_prints_its_own_lines_and_guesses_the_time_left(tmp_path, monkeypatch):
    clock, printed = [100.0], io.StringIO()
    monkeypatch.setattr(progress.time, "perf_counter", lambda: clock[0])
    with progress.Progress(Console(file=printed), tmp_path, unit="arms") as shown:
        for arm in "abcd":
            shown.plan(arm, None)
        shown.start("a")
        shown.done(progress.Done("a", 20, None, 7.5, 0.0, 0.0, True))
        shown.start("b")
        assert shown.seconds_left() is None  # a was kept: it says nothing of b, c and d
        shown.done(progress.Done("b", 20, None, 8.5, 2.0, 4.0, False))
        shown.start("c")
        clock[0] += 1
        assert shown.seconds_left() == 6 - 1 + 6
        assert shown.details() == "about 11 s left, mean return 8.50 (b)"
    assert printed.getvalue() == ""
    assert {path.name for path in tmp_path.iterdir()} == {"progress.jsonl"}
    assert [line["event"] for line in lines_of(tmp_path / "progress.jsonl")] == ["start", "arm", "arm", "end"]


def test_an_interrupted_run_says_so_and_the_next_one_adds_its_lines(tmp_path):
    with pytest.raises(KeyboardInterrupt), progress.Progress(QUIET, tmp_path):
        raise KeyboardInterrupt
    with progress.Progress(QUIET, tmp_path):
        pass
    assert [line.get("error") for line in lines_of(tmp_path / "progress.jsonl")] == [
        None,
        "KeyboardInterrupt",
        None,
        None,
    ]


def test_time_left_is_that_of_the_stages_to_come_hand_worked(monkeypatch):
    clock = [100.0]
    monkeypatch.setattr(progress.time, "perf_counter", lambda: clock[0])
    shown = progress.Progress(QUIET)
    shown.begin(1, 3, SEEDS)
    for stage, seconds in (("a", 5.0), ("b", None), ("c", 1.0)):
        shown.plan(stage, seconds)
    shown.start("a")
    assert shown.seconds_left() is None  # nobody knows how long b takes
    shown.done(progress.Done("a", 3, None, None, 9.0, 4.0, False))
    shown.start("b")
    clock[0] += 2
    assert shown.seconds_left() is None
    shown.done(progress.Done("b", 3, None, None, 9.0, 10.0, False))
    # c, and two batches of 4 + 10 + 1, whose programs are there.
    assert shown.seconds_left() == 1 + 2 * 15
    shown.start("c")
    clock[0] += 0.25
    assert shown.seconds_left() == 0.75 + 30
    clock[0] += 60
    assert shown.seconds_left() == 30


@struct.dataclass
class Logged:
    loss: np.ndarray
    true_return: np.ndarray


LOGGED = Logged(
    np.array([[1, 2, np.nan, np.nan], [3, 6, 8, np.nan]], np.float32), np.array([[10, 30], [20, 50]], np.float32)
)
"""Two seeds, four updates, an evaluation after each second one; the first seed ended after two updates."""
ROWS = [
    {"update": 1, "loss": 2.0},
    {"update": 2, "loss": 4.0, "true_return": 15.0},
    {"update": 3, "loss": 8.0},
    {"update": 4, "loss": None, "true_return": 40.0},
]


def test_metrics_are_means_over_seeds_an_update_a_line_hand_worked(tmp_path):
    for _ in range(2):  # a run that is started again writes the file anew
        with progress.Progress(QUIET, tmp_path) as shown:
            shown.begin(1, 1, SEEDS)
            shown.log("dpo", LOGGED, {"reference": "pi2", "num_pairs": 10})
            assert len(lines_of(tmp_path / "metrics.jsonl")) == 4  # at once, not at the end
    where = {"batch": 1, "stage": "dpo", "reference": "pi2", "num_pairs": 10}
    assert lines_of(tmp_path / "metrics.jsonl") == [where | row for row in ROWS]


def test_tensorboard_gets_the_same_numbers(tmp_path):
    """Read back from the event file: records of a length, its checksum, an event, its checksum."""
    event_pb2 = pytest.importorskip("tensorboardX.proto.event_pb2")
    for _ in range(2):
        with progress.Progress(QUIET, tmp_path, tensorboard=True) as shown:
            shown.begin(1, 1, SEEDS)
            shown.log("dpo", LOGGED, {"reference": "pi2", "num_pairs": 10})
    (path,) = (tmp_path / "tensorboard").iterdir()
    content, scalars = path.read_bytes(), []
    while content:
        length = int.from_bytes(content[:8], "little")
        event = event_pb2.Event.FromString(content[12 : 12 + length])
        scalars += [(value.tag, event.step, value.simple_value) for value in event.summary.value]
        content = content[16 + length :]
    tag = "dpo/reference pi2/num_pairs 10"
    expected = [
        (f"{tag}/{name}", row["update"], value)
        for row in ROWS
        for name, value in row.items()
        if name != "update" and value is not None
    ]
    assert [(name.replace("_", " "), step, value) for name, step, value in scalars] == [
        (name.replace("_", " "), step, value) for name, step, value in expected
    ]


@pytest.mark.parametrize(
    ("metrics", "expected"),
    [
        (Logged(None, np.array([[[1.0, 5.0]], [[2.0, 7.0]]])), 6.0),
        (Logged(None, np.array([[1.0, np.nan], [2.0, 7.0]])), None),
        (jaxpref.reinforce.Metrics(None, np.array([[1.0, 4.0, np.nan], [2.0, 3.0, 8.0]]), None), 6.0),
        (None, None),
    ],
)
def test_the_return_of_a_stage_is_that_of_its_last_updates(metrics, expected):
    class Returned(NamedTuple):
        metrics: object

    assert progress.mean_return(Returned(metrics)) == expected


# --- torture ----------------------------------------------------------------------------------------------------------


def test_torture_removes_nothing_that_is_not_its_own(tmp_path):
    settings = torture.Settings(out=tmp_path)
    torture.check(settings)
    (tmp_path / torture.RUN).mkdir()
    torture.check(settings)
    (tmp_path / "cartpole-dpo").mkdir()
    with pytest.raises(UsageError, match=f"--out {tmp_path} holds other files"):
        torture.check(settings)
    with pytest.raises(UsageError, match="--kills must not be negative, got -1"):
        torture.check(dataclasses.replace(settings, kills=-1))


@pytest.mark.parametrize("wrongs", [["", ""], ["", "other bytes"]])
def test_torture_counts_what_went_wrong(wrongs):
    printed = io.StringIO()
    console = Console(file=printed, width=200)
    assert torture.count(console, "kill", [lambda wrong=wrong: wrong for wrong in wrongs]) == (wrongs[1] == "")
    assert f"kill: {wrongs.count('')} of 2 without a difference" in printed.getvalue()
