"""The scripts of experiments: what is wrong with a command is one line and exit code 2, and nothing is touched."""

import itertools
import os
import runpy
import shlex
import sys
from pathlib import Path

import pytest

from experiments.benchmarks import against_imitation, library, peer, timing
from experiments.harness import devices
from experiments.harness.errors import UsageError
from experiments.pipeline import command
from jaxpref import ppo, store

ROOT = Path(__file__).parents[1]


def run(monkeypatch, script, line, *more):
    """Run a script as `python -m experiments.SCRIPT LINE` does; return its exit code."""
    monkeypatch.setattr(sys, "argv", [script, *shlex.split(line), *more])
    monkeypatch.setattr(devices, "set_up_jax", lambda *_: pytest.fail("went on"))
    with pytest.raises(SystemExit) as exit:
        runpy.run_path(str(ROOT / "experiments" / f"{script}.py"), run_name="__main__")
    return exit.value.code


@pytest.mark.parametrize(
    ("script", "line", "message"),
    [
        ("evidence", "--num-seeds 0", "--num-seeds must be at least 1, got 0"),
        ("evidence", "--claims", "--claims needs at least one value"),
        ("sweep", "--beta", "--beta needs at least one value"),
        ("sweep", "--kl-coef=-1", "--kl-coef must be at least 0, got -1.0"),
        ("sweep", "--temperatures inf", "--temperatures must be a finite float32, got inf"),
        ("sweep", "--num-pairs 0 5", "--num-pairs must be at least 1, got 0"),
        ("sweep", "--num-seeds 0", "--num-seeds must be at least 1, got 0"),
        ("bench", "--repeats 0", "--repeats must be at least 1, got 0"),
        ("bench", "--num-envs 4 0", "--num-envs must be at least 1, got 0"),
        ("bench", "--num-seeds", "--num-seeds needs at least one value"),
    ],
)
def test_a_mistake_is_one_line_with_exit_code_2(capsys, monkeypatch, script, line, message):
    assert run(monkeypatch, script, line) == 2
    assert capsys.readouterr() == ("", f"error: {message}\n")


@pytest.mark.parametrize(
    ("script", "line", "parts"),
    [
        ("evidence", "--clams gain", ["--clams", "--claims"]),
        ("evidence", "--tasks pong", ["--tasks", "pong", "acrobot"]),
        ("sweep", "--num-seeds ten", ["--num-seeds", "ten"]),
        ("bench", "--repeats x", ["--repeats", "x"]),
        ("bench", "--sections trainer", ["--sections", "trainer"]),
        ("bench", "--experiments pong", ["--experiments", "pong", "cartpole_dpo"]),
    ],
)
def test_what_cannot_be_read_has_exit_code_2(capsys, monkeypatch, script, line, parts):
    code = run(monkeypatch, script, line)
    out, err = capsys.readouterr()
    assert (code, out) == (2, "")
    assert all(part in err for part in parts), err


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "{}: No such file or directory"),
        ("", "{} is not a result of this benchmark"),
        ("{", "{} is not a result of this benchmark"),
        ("[1]", "{} is not a result of this benchmark"),
        ('{"experiment": "cartpole-dpo", "rows": []}', "{} is not a result of this benchmark"),
    ],
)
@pytest.mark.parametrize("named", [True, False])
def test_a_file_that_is_not_a_bench_result_is_named_and_stays(capsys, monkeypatch, tmp_path, text, message, named):
    """With --against, and as the earlier result in the folder of the new one. There, no file is no mistake."""
    if text is None and not named:
        return
    path = tmp_path / "summary.json"
    if text is not None:
        path.write_text(text)
    words = ["--against", str(path), "--out", str(tmp_path / "new")] if named else ["--out", str(tmp_path)]
    assert run(monkeypatch, "bench", "", *words) == 2
    assert capsys.readouterr() == ("", f"error: {message.format(path)}\n")
    assert text is None or path.read_text() == text


def test_a_mistake_in_an_experiment_touches_nothing(capsys, monkeypatch, tmp_path):
    (tmp_path / "summary.json").write_bytes(b"precious")
    assert run(monkeypatch, "cartpole_dpo", "--dpo.learning-rate 1e39 --out", str(tmp_path)) == 2
    assert "--dpo.learning-rate" in capsys.readouterr().err
    assert [path.read_bytes() for path in tmp_path.iterdir()] == [b"precious"]


@pytest.mark.parametrize(("module", "target"), [(peer, "bench-peer"), (against_imitation, "bench-imitation")])
def test_the_peers_environment_is_named_where_it_is_missing(monkeypatch, module, target):
    monkeypatch.setattr(module, "PYTHON", Path("no such python"))
    with pytest.raises(UsageError, match=rf"no such python is missing, .*: make {target} makes it"):
        module.measure(timing.Bench())


def test_the_other_sides_seeds_are_shared_by_two_processes_and_make_one_row(monkeypatch, tmp_path):
    """It trains nothing here: a seed ends with its own number as its return, after 100 steps and 3 seconds."""
    (tmp_path / "script.py").write_text(
        "import json, sys\n"
        "first, step = json.loads(sys.argv[1])['seeds']\n"
        "for seed in range(first, 4, step):\n"
        "    print(json.dumps([-1, seed, 100, 3.0]))\n"
    )
    monkeypatch.setattr(against_imitation, "PYTHON", sys.executable)
    monkeypatch.setattr(against_imitation, "SCRIPT", tmp_path / "script.py")
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1})
    row = against_imitation.theirs("cartpole", "tuned", {}, 60)
    # The middle half of 0, 2, 1, 3 is 1 and 2.
    expected = {"seeds": 4, "start_return": -1.0, "return": 1.5, "worst": 0.0, "env_steps": 100.0, "s_per_seed": 3.0}
    assert row | expected == row
    assert 0 <= row["low"] <= 1.5 <= row["high"] <= 3


def test_steps_of_ppo_are_those_of_its_updates_and_evaluations():
    config = ppo.Config(num_updates=6, num_envs=4, num_steps=10, eval_every=3, eval_episodes=5)
    assert against_imitation.steps_of(config, 6, 200) == 6 * 4 * 10 + 2 * 5 * 200


def test_functions_run_in_turns_and_the_first_turn_does_not_count():
    numbers = itertools.count()
    assert timing.in_turns(2, lambda: next(numbers), lambda: next(numbers)) == [[2, 4], [3, 5]]


def test_changes_are_of_rows_about_the_same():
    rows = [
        {"task": "cartpole", "devices": 1, "run_s": 2.16, "ratio": 3.0},
        {"task": "cartpole", "devices": 2, "run_s": 1.0, "ratio": 6.0},
        {"task": "acrobot", "devices": 1, "run_s": 9.0, "ratio": 1.0},
    ]
    before = [
        {"task": "acrobot", "devices": 2, "run_s": 9.0, "ratio": 1.0},
        {"task": "cartpole", "devices": 2, "run_s": 0.0, "peak": 5.0},  # 0 and a number that is gone have no ratio
        {"task": "cartpole", "devices": 1, "run_s": 2.0, "ratio": 4.0},
    ]
    assert timing.changes(rows, before) == ["task cartpole, devices 1: run_s 1.08x, ratio 0.75x of before"]
    assert timing.changes(rows, []) == []


def run_bench(monkeypatch, tmp_path, rows, *words):
    """Run the script with a section that returns `rows`; return the written result."""

    def section(settings):
        """Some numbers."""
        return rows

    monkeypatch.setattr(library, "measure_memory", section)
    monkeypatch.setattr(sys, "argv", ["bench", "--sections", "memory", "--out", str(tmp_path), *words])
    monkeypatch.setattr(devices, "set_up_jax", lambda *_: None)
    runpy.run_path(str(ROOT / "experiments" / "bench.py"), run_name="__main__")
    return store.load_json(tmp_path / "summary.json")


def test_a_benchmark_keeps_the_result_before_it_and_compares_with_it(capsys, monkeypatch, tmp_path):
    results = [run_bench(monkeypatch, tmp_path, [{"seeds": 16, "gib": gib}]) for gib in (1.0, 2.0)]
    assert "seeds 16: gib 2.00x of before" in capsys.readouterr().out
    assert store.load_json(tmp_path / "previous.json") == results[0]
    (tmp_path / "previous.json").rename(tmp_path / "first.json")
    run_bench(monkeypatch, tmp_path, [{"seeds": 16, "gib": 3.0}], "--against", str(tmp_path / "first.json"))
    assert "seeds 16: gib 3.00x of before" in capsys.readouterr().out
    assert store.load_json(tmp_path / "previous.json") == results[1]


def test_ratios_of_trainers_are_of_seeds_per_second(monkeypatch):
    """1 seed in 2 s against 16 seeds in 8 s: 4 times as many per second. The first turn does not count."""
    monkeypatch.setattr(library, "TRAINERS", ("dpo",))
    turns = {1: iter([9.0, 1.0, 2.0, 3.0]), 16: iter([9.0, 8.0, 70.0, 7.0])}
    monkeypatch.setattr(
        library, "train_all", lambda *args: dict.fromkeys(("dpo", library.WHOLE), next(turns[args[-1]]))
    )
    rows = [row for row in library.compare_trainers([(1, 2), (16, 2)], 3) if row["trainer"] == "dpo"]
    assert rows == [
        {"trainer": "dpo", "seeds": 1, "devices": 2, "run_s": 2.0, "seeds_per_s": 0.5, "ratio": 1.0},
        {"trainer": "dpo", "seeds": 16, "devices": 2, "run_s": 8.0, "seeds_per_s": 2.0, "ratio": 4.0},
    ]


def test_cold_runs_have_an_empty_folder_and_warm_ones_find_their_programs(monkeypatch):
    """Cold 8, 10 and 90 s, warm 2, 5 and 4 s: medians 10 and 4."""
    seconds = iter([8.0, 2.0, 10.0, 5.0, 90.0, 4.0])
    found = []

    def run_program(module, programs):
        found.append(len(list(Path(programs).iterdir())))
        (Path(programs) / "a.program").touch()
        return {"timing": {"total_s": next(seconds)}}

    monkeypatch.setattr(library, "run_program", run_program)
    rows = library.measure_experiments(timing.Bench())
    assert rows == [{"experiment": "cartpole_dpo", "cold_s": 10.0, "warm_s": 4.0, "ratio": 2.5}]
    assert found == [0, 1] * 3


def test_memory_is_compared_with_the_first_number_of_seeds(monkeypatch):
    def run_program(module, *words):
        command.check_unused(command.parse(words, module))
        return {"peak_memory_gib": 0.5 if "15" in words and "47" not in words else 0.75}

    monkeypatch.setattr(library, "run_program", run_program)
    assert [row["ratio"] for row in library.measure_memory(timing.Bench())] == [1.0, 1.5]
