"""The scripts of experiments: what is wrong with a command is one line and exit code 2, and nothing is touched."""

import itertools
import runpy
import shlex
import signal
import subprocess
import sys
from pathlib import Path

import pytest

import experiments
from experiments.benchmarks import peer, timing
from experiments.harness import devices
from experiments.harness.errors import UsageError

ROOT = Path(__file__).parents[1]
NEEDED = "--num-seeds must be at least 1; {} need at least one name each"


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
        ("evidence", "--num-seeds 0", NEEDED.format("--claims and --tasks")),
        ("evidence", "--claims", NEEDED.format("--claims and --tasks")),
        ("sweep", "--beta", "--beta needs finite numbers of at least 0, got none"),
        ("sweep", "--kl-coef=-1", "--kl-coef needs finite numbers of at least 0, got -1.0"),
        ("sweep", "--temperatures inf", "--temperatures needs finite numbers of at least 0, got inf"),
        ("sweep", "--num-pairs 0 5", "--num-pairs needs finite numbers of at least 1, got 0 5"),
        ("sweep", "--num-seeds 0", NEEDED.format("--tasks and --methods")),
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
    ],
)
def test_what_cannot_be_read_has_exit_code_2(capsys, monkeypatch, script, line, parts):
    code = run(monkeypatch, script, line)
    out, err = capsys.readouterr()
    assert (code, out) == (2, "")
    assert all(part in err for part in parts), err


def test_a_mistake_in_an_experiment_touches_nothing(capsys, monkeypatch, tmp_path):
    (tmp_path / "summary.json").write_bytes(b"precious")
    assert run(monkeypatch, "cartpole_dpo", "--dpo.learning-rate 1e39 --out", str(tmp_path)) == 2
    assert "--dpo.learning-rate" in capsys.readouterr().err
    assert [path.read_bytes() for path in tmp_path.iterdir()] == [b"precious"]


def test_an_interruption_while_modules_load_is_one_line():
    program = "import experiments\nraise KeyboardInterrupt"
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode in (-signal.SIGINT, 128 + signal.SIGINT)
    assert (done.stdout, done.stderr) == ("", experiments.INTERRUPTED + "\n")


def test_the_peers_environment_is_named_where_it_is_missing(monkeypatch):
    monkeypatch.setattr(peer, "PYTHON", Path("no such python"))
    with pytest.raises(UsageError, match=r"no such python is missing, .*: make bench-peer makes it"):
        peer.measure(timing.Settings())


def test_functions_run_in_turns_and_the_first_turn_does_not_count():
    numbers = itertools.count()
    assert timing.in_turns(2, lambda: next(numbers), lambda: next(numbers)) == [[2, 4], [3, 5]]
