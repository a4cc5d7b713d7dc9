"""The harness: stages over runs and devices, the memo, the folder's lock, progress."""

import functools
import gc
import io
import json
import os
import re
import signal
import subprocess
import sys
from types import SimpleNamespace
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import struct
from helpers import assert_same_bytes
from jax.extend.backend import get_backend
from rich.console import Console

import jaxpref
from experiments.harness import devices, folder, programs, progress
from experiments.harness import stages as harness_stages
from experiments.harness.errors import UsageError, exit_codes
from experiments.harness.memo import LIMIT, Memo, digest
from experiments.harness.stages import Stages
from jaxpref import dpo, losses, store

SEEDS = np.array([3, 5, 8], np.uint32)


@struct.dataclass
class Config:
    """Of the stages here."""

    num_updates: int = struct.field(pytree_node=False, default=4)
    rate: float = 0.5


class Metrics(NamedTuple):
    true_return: jax.Array


@struct.dataclass
class Result:
    params: dict
    metrics: Metrics
    reached: bool


TRACED = []


def first(offset, config, seed):
    TRACED.append("first")
    value = config.rate * jnp.float32(seed) + offset
    return Result({"w": value * jnp.ones(3)}, Metrics(value * jnp.arange(2.0)), seed > 4)


def second(config, seed, one, variant):
    return (one.params["w"] + jnp.float32(seed)).sum() * variant, {"steps": jnp.int32(seed)}


def run(path, *, seeds=SEEDS, offset=1.0, config=Config(), fresh=False):  # noqa: B008
    """(results, names of stages that were computed, what was printed): `second` works on what `first` returns."""
    printed = io.StringIO()
    memo = Memo(path, fresh)
    memo.console = Console(file=printed, width=300)
    with Stages(memo) as stages:
        one = stages.run("first", functools.partial(first, offset), config, seeds)
        two = stages.run("second", second, config, seeds, one, variants=np.array([1.0, -1.0], np.float32))
        results = one.value, two.value
    return results, [name for name, time in stages.times.items() if not time.kept], printed.getvalue()


# --- many runs in one program -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(("num_runs", "lanes"), [(1, 1), (2, 1), (4, 2), (12, 3), (6, 64)])
def test_over_runs_is_a_plain_loop(num_runs, lanes):
    x = np.arange(float(num_runs), dtype=np.float32)
    result = jax.jit(devices.over_runs(lambda config, x: config - x**2, num_runs, lanes))(jnp.float32(7), (x,))
    np.testing.assert_allclose(result, [7 - i**2 for i in range(num_runs)], rtol=1e-6)


@pytest.mark.parametrize(
    ("num_runs", "lanes", "expected"),
    [
        (1, 64, 1),  # one device is enough
        (3, 64, 4),
        (4, 2, 4),
        (5, 2, 8),  # three on a device are two lanes, twice
        (6, 4, 6),
        (7, 3, 8),
    ],
)
def test_padded_size_hand_worked(num_runs, lanes, expected):
    assert jax.device_count() == 2
    assert devices.padded_size(num_runs, lanes) == expected


def test_fewer_devices_can_be_asked_for(tmp_path):
    """With the same results, and with programs of their own: the number of runs is the same."""
    assert devices.devices_for(4, 1) == jax.local_devices()[:1]
    assert (devices.padded_size(5, 2, 1), devices.padded_size(5, 2, 2)) == (6, 8)
    numbers = np.arange(4, dtype=np.float32)
    for most_devices in (1, 2, None):
        with Stages(Memo(tmp_path, fresh=True), most_devices) as stages:
            lazy = stages.run("losses", losses.sigmoid, np.float32(0.5), numbers)
        np.testing.assert_allclose(lazy.value, np.log1p(np.exp(-0.5 * numbers)), rtol=1e-5)
        compiled = lazy.program.compiled.result()
        assert jax.tree.leaves(compiled.input_shardings)[-1].num_devices == (most_devices or 2)


@pytest.mark.parametrize(
    ("num_seeds", "num_processes", "expected"),
    [(4, 2, [[0, 1], [2, 3]]), (3, 2, [[0, 1], [2, 0]]), (1, 3, [[0], [0], [0]])],
)
def test_shares_of_seeds_hand_worked(num_seeds, num_processes, expected):
    shares = [devices.share(np.arange(num_seeds), num_processes, i).tolist() for i in range(num_processes)]
    assert shares == expected


def test_a_stage_is_a_plain_loop_over_seeds_and_variants(tmp_path):
    (one, two), computed, _ = run(tmp_path)
    value = 0.5 * SEEDS + 1
    np.testing.assert_allclose(one.params["w"], value[:, None] * np.ones(3))
    np.testing.assert_allclose(two[0], (3 * (value + SEEDS))[:, None] * [1, -1])  # [seeds, variants]
    np.testing.assert_array_equal(two[1]["steps"], np.stack([SEEDS, SEEDS], 1))
    assert computed == ["first", "second"]


def test_a_dataset_stays_on_the_devices(tmp_path, monkeypatch):
    monkeypatch.setattr(harness_stages, "LARGEST", 0)
    with Stages(Memo(tmp_path)) as stages:
        data = stages.run("data", lambda _, seed: seed * jnp.arange(3.0), None, SEEDS)
        total = stages.run("total", lambda _, data: data.sum(), None, data)
        np.testing.assert_array_equal(total.value, 3 * SEEDS)
        assert isinstance(data.runs(total.program.num_runs), jax.Array)
        assert isinstance(data.runs(total.program.num_runs + 1), np.ndarray)
        np.testing.assert_array_equal(data.value, SEEDS[:, None] * np.arange(3.0))


def test_another_number_is_not_another_program(tmp_path):
    with Stages(Memo(tmp_path)) as stages:
        TRACED.clear()
        values = [stages.run("first", functools.partial(first, 1.0), Config(rate=rate), SEEDS) for rate in (1.0, 2.0)]
        np.testing.assert_allclose(values[1].value.params["w"][:, 0], 2 * SEEDS + 1)
    assert TRACED == ["first"]


def test_what_a_stage_does_not_take_is_not_part_of_its_program(tmp_path):
    def with_metrics(length, _, seed):
        return Result({"w": 2.0 * seed}, Metrics(jnp.zeros(length)), seed > 4)

    with Stages(Memo(tmp_path)) as stages:
        results = [stages.run("first", functools.partial(with_metrics, length), None, SEEDS) for length in (2, 5)]
        late = [stages.run("late", lambda _, reached: 1 + reached, None, result.field("reached")) for result in results]
        for each in late:
            np.testing.assert_array_equal(each.value, [1, 2, 2])
        assert late[0].program.key == late[1].program.key
        assert late[0].key != late[1].key
        whole = [stages.run("whole", lambda _, one: 1 + one.reached, None, result) for result in results]
        assert whole[0].program.key != whole[1].program.key


def test_of_many_programs_the_oldest_are_unloaded_and_come_back(tmp_path, monkeypatch):
    monkeypatch.setattr(programs, "LOADED", 1)
    with Stages(Memo(tmp_path)) as stages:
        old = stages.run("losses", losses.sigmoid, np.float32(0.5), np.float32(SEEDS))
        np.testing.assert_allclose(old.value, np.log1p(np.exp(-0.5 * SEEDS)), rtol=1e-5)
        loaded = get_backend().live_executables
        (executable,) = [id(each) for each in loaded() if each is old.program.compiled.result().runtime_executable()]
        stages.run("double", lambda _, seed: 2 * seed, None, SEEDS).compute()
        gc.collect()
        assert executable not in map(id, loaded())
        again = stages.run("losses", losses.sigmoid, np.float32(0.7), np.float32(SEEDS))
        assert again.program is old.program
        np.testing.assert_allclose(again.value, np.log1p(np.exp(-0.7 * SEEDS)), rtol=1e-5)


# --- programs that earlier processes compiled -------------------------------------------------------------------------


def losses_of(path, function=losses.sigmoid, margin=0.5):
    """(a library function as a stage, what was printed); no result of an earlier call is used."""
    memo, printed = Memo(path, fresh=True), io.StringIO()
    memo.console = Console(file=printed, width=300)
    with Stages(memo) as stages:
        return stages.run("losses", function, np.float32(margin), np.float32(SEEDS)).value, printed.getvalue()


@pytest.fixture
def traced(monkeypatch):
    """Grows by one with every trace, and with every compilation."""
    counts = {"traced": 0, "compiled": 0}

    def counted(function, config, *rest):
        counts["traced"] += 1
        *found, lowered = trace(function, config, *rest)

        def compile(options):
            counts["compiled"] += 1
            return lowered.compile(options)

        return *found, SimpleNamespace(compile=compile)

    trace = programs._trace
    monkeypatch.setattr(programs, "_trace", counted)
    return counts


def test_a_program_is_traced_and_compiled_once_for_all_processes(tmp_path, traced):
    for margin in (0.5, 2.0):
        values, printed = losses_of(tmp_path, margin=margin)
        np.testing.assert_allclose(values, np.log1p(np.exp(-margin * SEEDS)), rtol=1e-5)
        assert printed == ""
    assert traced == {"traced": 1, "compiled": 1}
    losses_of(tmp_path, losses.hinge)
    assert traced == {"traced": 2, "compiled": 2}


def test_changed_code_is_traced_again_but_compiled_only_where_the_program_is_another(tmp_path, traced, monkeypatch):
    losses_of(tmp_path)
    monkeypatch.setattr(programs, "_code", lambda: b"changed")
    losses_of(tmp_path)
    assert traced == {"traced": 2, "compiled": 1}


@pytest.mark.parametrize("kind", ["trace", "program"])
def test_a_damaged_program_is_named_and_made_again(tmp_path, kind):
    values, _ = losses_of(tmp_path)
    (path,) = tmp_path.glob(f"losses-*.{kind}")
    flip(path)
    again, printed = losses_of(tmp_path)
    assert_same_bytes(again, values)
    assert printed.count("\n") == 1
    assert str(path) in printed
    assert losses_of(tmp_path)[1] == ""


def test_a_processor_that_cannot_load_programs_compiles_them_and_says_so_once(tmp_path, traced, monkeypatch):
    def refuse(*args, **options):
        raise jax.errors.JaxRuntimeError("Target machine feature +prefer-no-gather is not supported")

    values, _ = losses_of(tmp_path)
    monkeypatch.setattr(programs.serialize_executable, "deserialize_and_load", refuse)
    again, printed = losses_of(tmp_path)
    assert_same_bytes(again, values)
    assert "every run compiles them: Target machine feature" in printed
    assert traced["compiled"] == 2


def test_a_fingerprint_tells_programs_apart_and_lasts_for_known_code_only():
    def fingerprint(function, **config):
        return programs.fingerprint(function, dpo.Config(**config), ("shape", 2))

    assert fingerprint(losses.ipo) == fingerprint(losses.ipo)
    assert len({fingerprint(losses.ipo), fingerprint(losses.hinge), fingerprint(losses.ipo, num_updates=7)}) == 3
    assert fingerprint(losses.ipo)[1]
    assert fingerprint(second) == fingerprint(second)
    assert not fingerprint(second)[1]
    assert fingerprint(lambda: 1) != fingerprint(lambda: 1)


# --- the memo ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def memo(tmp_path):
    """The folder of a finished run, and its results."""
    results, _, _ = run(tmp_path)
    return tmp_path, results


def test_what_is_kept_is_the_result_itself(memo):
    results, computed, printed = run(memo[0])
    assert_same_bytes(results, memo[1])
    assert (computed, printed) == ([], "")


@pytest.mark.parametrize(
    "changed",
    [
        {"seeds": SEEDS[:2]},
        {"seeds": SEEDS + 1},
        {"offset": 2.0},
        {"config": Config(rate=0.25)},
        {"fresh": True},
    ],
    ids=str,
)
def test_whatever_a_result_depends_on_changes_its_key(memo, changed):
    assert run(memo[0], **changed)[1] == ["first", "second"]
    assert run(memo[0])[1] == []  # and the first result is still there


def flip(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 3] ^= 4
    path.write_bytes(content)


def exchange(path):
    (other,) = set(path.parent.glob("*.stage")) - {path}
    path.write_bytes(other.read_bytes())


DAMAGES = {
    "truncated": lambda path: path.write_bytes(path.read_bytes()[:-10]),
    "empty": lambda path: path.write_bytes(b""),
    "a bit": flip,
    "longer": lambda path: path.write_bytes(path.read_bytes() + b"x"),
    "another stage's": exchange,
}


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("stage", ["first", "second"])
def test_a_damaged_file_is_named_and_computed_again(memo, stage, damage):
    (path,) = memo[0].glob(f"{stage}-*.stage")
    DAMAGES[damage](path)
    results, computed, printed = run(memo[0])
    assert_same_bytes(results, memo[1])
    assert computed == [stage]
    assert printed.count("\n") == 1
    assert str(path) in printed
    assert run(memo[0])[1:] == ([], "")  # it was written again


def test_a_digest_sees_names_types_shapes_and_values():
    trees = [
        {"a": np.zeros(2)},
        {"b": np.zeros(2)},
        {"a": np.zeros(2, np.float32)},
        {"a": np.zeros((2, 1))},
        {"a": np.ones(2)},
    ]
    assert len({digest(tree) for tree in trees}) == len(trees)


def test_what_was_not_used_for_the_longest_time_goes_first(tmp_path, monkeypatch):
    for age, name in enumerate(("new", "old", "oldest")):
        path = tmp_path / f"{name}.stage"
        path.write_bytes(bytes(10))
        os.utime(path, (1e9 - age, 1e9 - age))
    monkeypatch.setattr("experiments.harness.memo.LIMIT", 20)
    Memo(tmp_path).prune()
    assert sorted(path.stem for path in tmp_path.iterdir()) == ["new", "old"]
    assert LIMIT > 1e9


# --- one process in a folder ------------------------------------------------------------------------------------------


def test_a_folder_belongs_to_one_process_for_as_long_as_that_lives(tmp_path):
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
        with pytest.raises(UsageError, match=rf"{tmp_path}: process {other.pid} "), folder.locked(tmp_path):
            raise AssertionError("went on")
        other.send_signal(signal.SIGKILL)
        other.wait()
    with folder.locked(tmp_path):
        assert (tmp_path / ".lock").read_text() == f"{os.getpid()}\n"


def test_only_what_a_killed_run_left_half_written_is_removed(tmp_path):
    for name in (".policies.npz.abc_1234.tmp", "policies.npz", ".mine", "notes.tmp"):
        (tmp_path / name).write_bytes(b"")
    with store.atomic_write(tmp_path / "other.npz"):
        assert len(list(tmp_path.glob(store.TEMPORARY))) == 2
    with folder.locked(tmp_path):
        assert {path.name for path in tmp_path.iterdir()} == {
            "policies.npz",
            "other.npz",
            ".mine",
            "notes.tmp",
            ".lock",
        }


def test_results_that_are_set_aside_are_whole_and_elsewhere(tmp_path):
    results = tmp_path / "results"
    for content in ("one", "two"):
        with folder.locked(results):
            (results / "summary.json").write_text(content)
            folder.set_aside(results)
            assert [path.name for path in results.iterdir()] == [".lock"]
    assert [(tmp_path / f"results.{i}" / "summary.json").read_text() for i in (1, 2)] == ["one", "two"]


# --- progress ---------------------------------------------------------------------------------------------------------


def lines_of(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.mark.parametrize("terminal", [False, True])
def test_progress_says_what_is_done(tmp_path, terminal):
    printed = io.StringIO()
    console = Console(file=printed, force_terminal=terminal, width=100, color_system=None)
    with progress.bar_on(console) as bar, progress.Progress(bar, tmp_path, title="a run") as shown:
        shown.begin(1, 2, SEEDS)
        for _ in range(2):
            shown.plan()
        shown.start("reinforce", 16)
        shown.done("reinforce", 3, 16, 195.25, compile_s=0.5, run_s=1.0, kept=False)
        shown.done("dpo", 6, 1, None, compile_s=1.5, run_s=0.5, kept=True)
    lines = [
        "a run\n",
        "batch 1 of 2, 3 seeds\n",
        "  reinforce                   3 runs    16 updates   return 195.2     1.5 s\n",
        "  dpo                         6 runs      1 update                     kept\n",
    ]
    if terminal:
        assert all(line.rstrip() in printed.getvalue() for line in lines)
        assert "2/2 stages" in printed.getvalue()
    else:
        assert printed.getvalue() == "".join(lines)
    start, batch, one, other, end = lines_of(tmp_path / "progress.jsonl")
    assert (start["event"], start["process"], end["event"], end["error"]) == ("start", os.getpid(), "end", None)
    assert batch["seeds"] == [3, 5, 8]
    row = {"stage": "reinforce", "runs": 3, "updates": 16, "mean_return": 195.25, "run_s": 1.0, "kept": False}
    assert {name: one[name] for name in row} == row
    assert other["kept"] is True
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\+00:00", end["time"])


@struct.dataclass
class Logged:
    """Metrics of two seeds: a loss of four updates, a return of every second one."""

    loss: np.ndarray
    true_return: np.ndarray


LOGGED = Logged(np.array([[1.0, 2.0, 3.0, np.nan], [3.0, 2.0, np.inf, np.nan]]), np.array([[10.0, 20.0], [30.0, 40.0]]))
ROWS = [
    {"update": 1, "loss": 2.0},
    {"update": 2, "loss": 2.0, "true_return": 20.0},
    {"update": 3, "loss": 3.0},
    {"update": 4, "loss": None, "true_return": 30.0},
]


def test_metrics_are_means_over_seeds_hand_worked(tmp_path):
    for _ in range(2):  # a run that is started again writes the file anew
        with progress.Progress(progress.bar_on(Console(quiet=True)), tmp_path) as shown:
            shown.log("dpo", LOGGED, reference="pi2", num_pairs=10)
    labels = {"batch": 1, "stage": "dpo", "reference": "pi2", "num_pairs": 10}
    assert lines_of(tmp_path / "metrics.jsonl") == [labels | row for row in ROWS]


def test_tensorboard_gets_the_same_numbers(tmp_path):
    """Read back from the event file: records of a length, its checksum, an event, its checksum."""
    event_pb2 = pytest.importorskip("tensorboardX.proto.event_pb2")
    for _ in range(2):
        with progress.Progress(progress.bar_on(Console(quiet=True)), tmp_path, tensorboard=True) as shown:
            shown.log("dpo", LOGGED, reference="pi2")
    (path,) = (tmp_path / "tensorboard").iterdir()
    content, scalars = path.read_bytes(), []
    while content:
        length = int.from_bytes(content[:8], "little")
        event = event_pb2.Event.FromString(content[12 : 12 + length])
        scalars += [(value.tag.replace("_", " "), event.step, value.simple_value) for value in event.summary.value]
        content = content[16 + length :]
    expected = [
        (f"dpo/batch 1/reference pi2/{name}".replace("_", " "), row["update"], value)
        for row in ROWS
        for name, value in row.items()
        if name != "update" and value is not None
    ]
    assert scalars == expected


@pytest.mark.parametrize(
    ("metrics", "expected"),
    [
        (Logged(None, np.array([[[1.0, 5.0]], [[2.0, 7.0]]])), 6.0),
        (Logged(None, np.array([[1.0, np.nan], [2.0, 7.0]])), None),
        (jaxpref.experts.Metrics(None, np.array([[1.0, 4.0, np.nan], [2.0, 3.0, 8.0]]), None), 6.0),
        (None, None),
    ],
)
def test_the_return_of_a_stage_is_that_of_its_last_updates(metrics, expected):
    class Returned(NamedTuple):
        metrics: object
        num_updates: object

    assert progress.mean_return(Returned(metrics, np.array([2, 3]))) == expected


# --- errors -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("error", "code", "part"),
    [
        (UsageError("--seeds: no"), 2, "error: --seeds: no"),
        (KeyboardInterrupt(), 130, "interrupted"),
        (OSError(28, "No space left on device", "x.npz"), 2, "x.npz: No space left on device"),
        (RuntimeError("RESOURCE_EXHAUSTED: 3 GB"), 2, "not enough memory"),
    ],
)
def test_what_a_user_can_correct_is_one_line(capsys, error, code, part):
    with pytest.raises(SystemExit) as exit, exit_codes():
        raise error
    assert exit.value.code == code
    message = capsys.readouterr().err
    assert part in message
    assert message.count("\n") == 1


def test_other_errors_keep_their_traceback():
    with pytest.raises(RuntimeError, match="a bug"), exit_codes():
        raise RuntimeError("a bug")
