"""What is wrong is said in one sentence by the programs: flags, and training that diverges.

The type checker of the other tests is off here: a user has none.
"""

import contextlib
import io
import itertools
import re
import shlex
import signal
import subprocess
import sys
from pathlib import Path

import jax
import jaxtyping
import numpy as np
import pytest
from experiments.settings import Settings
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console

import experiments
from experiments import animations, bench, command, evidence, pipeline, report, stages, study, sweep
from jaxpref import (
    ppo,
    reinforce,
    reward_model,
    store,
)
from jaxpref.divergence import Divergence

ROOT = Path(__file__).parents[1]
KEY = jax.random.key(0)


@pytest.fixture(autouse=True)
def without_type_checker():
    before = jaxtyping.config.jaxtyping_disable
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", before)


# --- flags ------------------------------------------------------------------------------------------------------------


def refusal(call):
    """The message of a UsageError: one line."""
    with contextlib.redirect_stdout(io.StringIO()) as out, pytest.raises(command.UsageError) as caught:
        call()
    assert out.getvalue() == ""
    message = str(caught.value)
    assert len(message.splitlines()) == 1
    assert not re.search("Traceback|───|│|Error parsing|literal", message)
    return message


def parse(*words, method="dpo"):
    return command.parse(words, "cartpole", method)


@pytest.mark.parametrize(
    ("words", "method", "parts"),
    [
        (["--sede", "3"], "dpo", ["--sede", "perhaps", "--seeds"]),
        (["--DPO.BETA", "1"], "dpo", ["--DPO.BETA", "perhaps", "--dpo.beta"]),
        (["--num_pair=3"], "dpo", ["perhaps", "--num-pairs"]),
        (["--learning-rate", "1"], "dpo", ["--learning-rate", "perhaps", ".learning-rate"]),
        (["--qqqqqq"], "dpo", ["--qqqqqq", "--help"]),
        (["--seeds", "1,2"], "dpo", ["--seeds", "'1,2'", "numbers"]),
        (["--seeds="], "dpo", ["--seeds is empty"]),
        (["--out", ""], "dpo", ["--out is empty"]),
        (["--dpo.num-updates", "1.5"], "dpo", ["--dpo.num-updates", "whole number", "1.5"]),
        (["--dpo.beta", "x"], "dpo", ["--dpo.beta", "number", "x"]),
        (["--dpo.learning-rate", "1e39"], "dpo", ["--dpo.learning-rate", "3.4"]),
        (["--dpo.learning-rate", "inf"], "dpo", ["--dpo.learning-rate", "inf"]),
        (["--dpo.loss", "slic"], "dpo", ["--dpo.loss", "slic", "conservative"]),
        (["--dpo.loss", "ipo", "--dpo.beta", "0"], "dpo", ["--dpo.beta", "0"]),
        (["--dpo.beta", "1", "2"], "dpo", ["2"]),
        (["--num-pairs", "1000001"], "dpo", ["--num-pairs", "1,000,000"]),
        (["--num-heldout", "99999999999"], "dpo", ["--num-heldout", "1,000,000"]),
        (["--eval-episodes", "99999999999"], "dpo", ["--eval-episodes", "1,000,000"]),
        (["--devices", "99999999"], "dpo", ["--devices", "1,024"]),
        (["--dpo.batch-size", "99999999999"], "dpo", ["--dpo.batch-size", "1,000,000"]),
        (["--coordinator", "localhost:1"], "dpo", ["--coordinator", "--processes"]),
        (["--coordinator", "localhost", "--processes", "2"], "dpo", ["--coordinator", "HOST:PORT", "localhost"]),
        (
            ["--reward-model.holdout-every", "11", "--num-pairs", "10"],
            "rlhf",
            ["--reward-model.holdout-every", "10", "11"],
        ),
        (["--ppo.gae-lambda", "1.1"], "rlhf", ["--ppo.gae-lambda", "0", "1", "1.1"]),
        (["--ppo.reset-value", "maybe"], "rlhf", ["maybe"]),
    ],
)
def test_flags_that_cannot_be_meant(words, method, parts):
    message = refusal(lambda: parse(*words, method=method))
    for part in parts:
        assert part in message


def test_a_holdout_that_some_sizes_are_too_small_for_is_let_through_where_one_program_trains_on_all():
    """In it a size is weights; where each size has a program, each must have a pair to hold out."""
    words = ["--num-pairs", "10", "200", "--reward-model.holdout-every", "20"]
    assert parse(*words, method="rlhf").reward_model.holdout_every == 20
    assert "the number of pairs, 10, got 20" in refusal(
        lambda: parse(*words, "--reward-model-epochs", "1", method="rlhf")
    )


NUMBERS = ["seeds", "num-pairs", "num-heldout", "eval-episodes", "dpo.num-updates", "dpo.beta", "ppo.gamma"]


@settings(deadline=None, max_examples=25)
@given(
    st.sampled_from(NUMBERS),
    st.text(st.characters(codec="utf-8", exclude_categories=["Nd", "Cc", "Cs"]), min_size=1).filter(
        lambda text: text.strip().lower() not in {"nan", "inf", "infinity", ""} and not text.startswith("-")
    ),
)
def test_words_where_a_number_is_wanted(name, word):
    jaxtyping.config.update("jaxtyping_disable", True)
    message = refusal(lambda: parse(f"--{name}", word))
    assert f"--{name}" in message or word in message


@settings(deadline=None, max_examples=25)
@given(
    st.sampled_from(["--seeds", "--num-pairs", "--dpo.num-updates", "--ppo.num-envs", "--dpo.batch-size"]),
    st.integers(max_value=-1),
)
def test_negative_numbers_where_none_is_wanted(name, number):
    assert name in refusal(lambda: parse(name, str(number)))


@pytest.mark.parametrize(
    ("main", "line", "parts"),
    [
        (evidence, "--num-seeds ten", ["--num-seeds", "whole number", "ten"]),
        (evidence, "--tasks pong", ["--tasks", "pong"]),
        (evidence, "--clams gain", ["--clams", "perhaps --claims"]),
        (sweep, "--temperatures x", ["--temperatures", "x"]),
        (sweep, "--temperatures inf", ["--temperatures", "finite"]),
        (sweep, "--methods sft", ["--methods", "sft"]),
        (sweep, "--bta 1", ["--bta", "perhaps --beta"]),
        (bench, "--repeats 0", ["--repeats", "0"]),
        (bench, "--num-envs 4 0", ["--num-envs", "0"]),
        (bench, "--repeats x", ["--repeats", "whole number", "x"]),
        (study, "--sede 3", ["--sede", "perhaps --seeds"]),
    ],
)
def test_every_program_refuses_in_one_line_with_exit_code_2(capsys, monkeypatch, main, line, parts):
    monkeypatch.setattr(sys, "argv", [main.__name__, *shlex.split(line)])
    monkeypatch.setattr(stages, "set_up_jax", lambda *_: pytest.fail("went on"))
    with pytest.raises(SystemExit) as exit:
        main.main()
    out, err = capsys.readouterr()
    assert (exit.value.code, out, len(err.splitlines())) == (2, "", 1)
    for part in parts:
        assert part in err


@pytest.mark.parametrize(
    ("error", "code", "part"),
    [
        (KeyboardInterrupt(), 130, "the same command again goes on from there"),
        (MemoryError("Unable to allocate 582. TiB"), 2, "not enough memory"),
        (RuntimeError("RESOURCE_EXHAUSTED: Out of memory"), 2, "not enough memory"),
    ],
)
def test_what_ends_a_run_is_one_line(capsys, error, code, part):
    with pytest.raises(SystemExit) as exit, command.exit_codes():
        raise error
    err = capsys.readouterr().err
    assert (exit.value.code, len(err.splitlines())) == (code, 1)
    assert part in err


def test_an_interruption_while_modules_load_is_one_line():
    program = "import experiments\nraise KeyboardInterrupt"
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode in (-signal.SIGINT, 128 + signal.SIGINT)
    assert (done.stdout, done.stderr) == ("", experiments.INTERRUPTED + "\n")


def test_other_errors_keep_their_traceback():
    with pytest.raises(RuntimeError, match="a bug"), command.exit_codes():
        raise RuntimeError("a bug")


def test_a_mistake_in_a_whole_program_touches_nothing(tmp_path):
    (tmp_path / "summary.json").write_bytes(b"precious")
    words = ["--dpo.learning-rate", "1e39", "--out"]
    program = [sys.executable, "-m", "experiments.cartpole_dpo", *words, str(tmp_path)]
    done = subprocess.run(program, cwd=ROOT, capture_output=True, text=True)
    assert (done.returncode, done.stdout, len(done.stderr.splitlines())) == (2, "", 1)
    assert "--dpo.learning-rate" in done.stderr
    assert [path.read_bytes() for path in tmp_path.iterdir()] == [b"precious"]


# --- diverged seeds in a report ---------------------------------------------------------------------------------------

STUDY = Settings("cartpole", "rlhf", Path("unused"), seeds=(3, 5, 8), num_pairs=(4, 9))
NAN = np.float32(np.nan)


def divergence(**at):
    """Of every seed and size; `at` names the (update, what) of some, as s1n0."""
    found = np.zeros((2, 3, 2), np.int32)
    for place, values in at.items():
        found[:, int(place[1]), int(place[3])] = values
    return Divergence(*found)


def outcome(experts=(0, 0, 0), rewards=None, pi1=None, pi2=None, trained_returns=None):
    """A study of three seeds and two sizes, made up: returns are 100, 101, 102 and so on."""
    metrics = ppo.Metrics(*np.ones((5, 3, 2, 4), np.float32), *np.ones((2, 3, 2, 2), np.float32))
    reward_metrics = reward_model.Metrics(*np.ones((4, 3, 2, 6), np.float32))
    trained = {
        name: pipeline.Trained(
            None,
            np.full((3, 2), 0.5, np.float32),
            metrics,
            found or divergence(),
            {"a": np.ones(3)},
            reward_metrics,
            rewards or divergence(),
        )
        for name, found in (("pi1", pi1), ("pi2", pi2))
    }
    flags = np.ones(3, bool)
    targets = np.array([9.0, np.inf, 8.0])
    experts = reinforce.Result(
        *({}, {}, targets, targets, flags, flags, np.ones(3), None),
        divergence=Divergence(np.array(experts), np.sign(experts)),
    )
    plain = 100 + np.arange(6, dtype=np.float32).reshape(3, 2)
    scores = {"pi1": plain[:, 0], "pi2": plain[:, 1]}
    return pipeline.Outcome(experts, scores, trained, {"pi1": plain, "pi2": plain} | (trained_returns or {}), None)


def rows_of(summary):
    return {(row["reference"], row["num_pairs"]): row for row in summary["rows"]}


def test_where_all_is_well_nothing_is_left_out():
    summary = report.summarise(STUDY, outcome())
    assert summary["diverged"] == []
    assert rows_of(summary)["pi2", 9]["policy"]["per_seed"] == [101, 103, 105]
    assert report.warnings(summary) == []
    assert summary["pi1_target"] == summary["pi2_target"] == [9, None, 8]  # none was found for the second seed


def test_a_seed_is_left_out_of_the_rows_that_its_divergence_concerns_and_named():
    """PPO with reference pi1 on 9 pairs: one row is over the two others, and every other row over all."""
    summary = report.summarise(STUDY, outcome(pi1=divergence(s1n1=(3, 2))))
    entry = {"seed": 5, "stage": "ppo", "reference": "pi1", "num_pairs": 9, "update": 3, "what": "parameters"}
    assert summary["diverged"] == [entry]
    row = rows_of(summary).pop(("pi1", 9))
    assert row["policy"]["per_seed"] == [101, None, 105]
    assert (row["policy"]["mean"], row["heldout_accuracy"]) == (103, 0.5)
    for key in (("pi1", 4), ("pi2", 4), ("pi2", 9)):
        assert None not in rows_of(summary)[key]["policy"]["per_seed"]
    (line,) = report.warnings(summary)
    for word in ("ppo", "reference pi1", "9 pairs", "5 (parameters, update 3)"):
        assert word in line


def test_a_reward_model_that_diverged_concerns_its_size_with_both_references_and_is_named_once():
    found = outcome(rewards=divergence(s0n0=(2, 1)), pi2=divergence(s0n0=(1, 1)))
    summary = report.summarise(STUDY, found)
    assert [(entry["stage"], entry["reference"], entry["num_pairs"]) for entry in summary["diverged"]] == [
        ("reward model", None, 4)
    ]
    for reference, size in itertools.product(("pi1", "pi2"), (4, 9)):
        first = rows_of(summary)[reference, size]["policy"]["per_seed"][0]
        assert (first is None) == (size == 4)


def test_experts_that_diverged_take_their_seed_out_of_everything():
    summary = report.summarise(STUDY, outcome(experts=(0, 7, 0)))
    assert [(entry["seed"], entry["stage"], entry["update"]) for entry in summary["diverged"]] == [(5, "reinforce", 7)]
    for score in [*summary["policies"].values(), *(row["policy"] for row in summary["rows"])]:
        assert [value is None for value in score["per_seed"]] == [False, True, False]


def test_a_return_that_is_not_a_number_is_named_as_such():
    summary = report.summarise(STUDY, outcome(trained_returns={"pi2": np.array([[1, 2], [3, 4], [NAN, 6]])}))
    (entry,) = summary["diverged"]
    assert entry == {
        "seed": 8, "stage": "evaluate", "reference": "pi2", "num_pairs": 4, "update": None, "what": "return"
    }  # fmt: skip
    assert "8 (return)" in report.warnings(summary)[0]


def test_where_every_seed_diverged_the_row_says_none_and_everything_is_written(tmp_path, monkeypatch, capsys):
    """The whole program after a pipeline of which one row has no seed left: files, figures, warning, exit code 3."""
    nothing_left = outcome(pi1=divergence(s0n0=(1, 1), s1n0=(1, 1), s2n0=(1, 1)))
    monkeypatch.setattr(pipeline, "run", lambda *_: nothing_left)
    monkeypatch.setattr(report, "save_arrays", lambda *_: [])
    monkeypatch.setattr(command, "set_up", lambda _: Console(width=200))
    monkeypatch.setattr(animations, "animate", lambda *_: [])
    words = ["--seeds", "3", "5", "8", "--num-pairs", "4", "9", "--out", str(tmp_path)]
    with pytest.raises(SystemExit) as exit:
        command.main("cartpole", "rlhf", words)
    assert exit.value.code == 3
    summary = store.load_json(tmp_path / "summary.json")
    score = rows_of(summary)["pi1", 4]["policy"]
    assert score == {"mean": None, "iqm": None, "ci95": [None, None], "per_seed": [None] * 3}
    assert rows_of(summary)["pi1", 4]["heldout_accuracy"] is None
    assert len(summary["diverged"]) == 3
    assert {path.suffix for path in tmp_path.iterdir()} == {".png", ".json", ".jsonl", ".html"}
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert ["PPO-RLHF", "pi1", "4", "none", "none", "none", "none", "0", "of", "3"] in lines
    assert any(line[-3:] == ["3", "of", "3"] for line in lines)


def test_a_study_with_a_diverged_seed_runs_to_its_end_and_exits_with_3(monkeypatch):
    ran = []
    monkeypatch.setattr(command, "set_up", lambda _: Console(quiet=True))
    monkeypatch.setattr(command, "run", lambda settings, *_: bool(ran.append(settings) or len(ran) != 2))
    monkeypatch.setattr(sys, "argv", ["study"])
    with pytest.raises(SystemExit) as exit:
        study.main()
    assert (exit.value.code, len(ran)) == (3, 4)
