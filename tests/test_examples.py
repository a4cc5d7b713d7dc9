"""The examples run, teach what they say, and stay short."""

import runpy
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parents[1] / "examples"


def example(name):
    return runpy.run_path(str(EXAMPLES / f"{name}.py"))


@pytest.mark.parametrize("path", sorted(EXAMPLES.glob("*.py")), ids=lambda path: path.stem)
def test_an_example_is_under_40_lines(path):
    assert len(path.read_text().splitlines()) < 40


def test_a_custom_loss_teaches(capsys):
    """An untrained policy, which holds the pole for some 20 steps, is better after 40 updates."""
    before, after = example("own_loss")["main"](num_pairs=100, num_updates=40)
    assert after > before + 10
    assert capsys.readouterr().out == f"mean return before {before:.1f}, after {after:.1f}\n"


def test_a_custom_annotator_gets_what_it_likes(capsys):
    """The pole of an untrained policy leans to neither side, and after 40 updates to the left: 0.04 are 2 degrees."""
    before, after = example("own_annotator")["main"](num_pairs=100, num_updates=40)
    assert abs(before) < 0.04
    assert after < before - 0.04
    lines = capsys.readouterr().out.splitlines()
    assert [line.rpartition(" ")[0] for line in lines] == [
        f"before: mean angle {before:.3f}, mean return",
        f"after: mean angle {after:.3f}, mean return",
    ]


def test_preferences_from_a_file_are_learned_without_an_environment(tmp_path, capsys):
    """Both rank most of the pairs that they are trained on as the person did."""
    functions = example("preferences_from_file")
    functions["record"](tmp_path, num_pairs=50)
    accuracies = functions["main"](tmp_path, num_updates=60)
    assert min(accuracies) > 0.6
    assert "pairs ranked right" in capsys.readouterr().out
