"""A person's answers: what every line means, and which lines are no answers."""

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxpref.files.labels import read_labels

NUM_PAIRS = 6


def read(*lines, **known):
    """As NumPy: (first_preferred, weight, target) of six pairs."""
    label = read_labels([line if isinstance(line, bytes) else line.encode() for line in lines], NUM_PAIRS, **known)
    np.testing.assert_array_equal(label.prob, np.ones(NUM_PAIRS))
    return tuple(np.asarray(leaf) for leaf in (label.first_preferred, label.weight, label.target))


def test_every_choice_hand_worked():
    """Pair 4 has no answer; the order of the lines means nothing, nor do blank ones."""
    first_preferred, weight, target = read(
        '{"pair": 3, "choice": "skip", "weight": 7}',
        '{"pair": 0, "choice": "first"}',
        "",
        '{"pair": 1, "choice": "second", "note": {"by": "Ana"}}',
        '{"choice": "tie", "pair": 2}\r\n',
        '{"pair": 5, "choice": "second", "weight": 0.25}',
    )
    np.testing.assert_array_equal(first_preferred, [True, False, True, True, True, False])
    np.testing.assert_array_equal(weight, np.float32([1, 1, 1, 0, 0, 0.25]))
    np.testing.assert_array_equal(target, np.float32([1, 1, 0.5, 1, 1, 1]))
    assert (weight.dtype, target.dtype) == (np.float32, np.float32)
    np.testing.assert_array_equal(read()[1], np.zeros(NUM_PAIRS))  # no lines are no answers


answers = st.fixed_dictionaries(
    {"pair": st.integers(0, NUM_PAIRS - 1), "choice": st.sampled_from(["first", "second", "tie", "skip"])},
    optional={"weight": st.floats(0, 1e6, width=32), "note": st.sampled_from(["", "both fall"])},
)


@given(st.lists(answers))
def test_the_last_answer_about_a_pair_is_the_one_that_counts(written):
    """Reading all lines is reading each pair's last one."""
    last = {answer["pair"]: answer for answer in written}
    everything, the_last = (read(*map(json.dumps, lines)) for lines in (written, last.values()))
    for one, other in zip(everything, the_last, strict=True):
        np.testing.assert_array_equal(one, other)
    for pair, answer in last.items():
        assert everything[1][pair] == (0 if answer["choice"] == "skip" else np.float32(answer.get("weight", 1)))


def test_answers_name_the_pairs_they_are_about():
    line = '{"pairs": "ab12"}'
    assert read(line, '{"pair": 5, "choice": "tie"}', sha256="ab12")[2][5] == 0.5
    with pytest.raises(ValueError, match="line 1: these are answers to other pairs: to SHA-256 ab12, not cd"):
        read(line, sha256="cd")


GOOD = '{"pair": 1, "choice": "first"}'


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"pair": 2, "cho', "this is not JSON, or is cut off"),
        ("first", "this is not JSON"),
        (b'{"pair": 2, "choice": "\xff\xfe"}', "this is not JSON"),
        ("[" * 100_000, "this is not JSON"),
        ('{"pair": 2, "choice": "first"} {}', "this is not JSON"),
        ('[2, "first"]', 'an answer is an object such as {"pair": 0, "choice": "first"}, got '),
        ("null", "an answer is an object"),
        ('{"pairs": "ab12"}', "unknown field pairs"),  # only the first line may say so
        ('{"pair": 2, "choice": "first", "wieght": 2}', "unknown field wieght: an answer has pair, choice, weight"),
        ('{"choice": "first"}', "pair must be a whole number from 0 to 5, got None"),
        ('{"pair": 6, "choice": "first"}', "pair must be a whole number from 0 to 5, got 6"),
        ('{"pair": -1, "choice": "first"}', "pair must be a whole number from 0 to 5, got -1"),
        ('{"pair": 2.0, "choice": "first"}', "pair must be a whole number from 0 to 5, got 2.0"),
        ('{"pair": true, "choice": "first"}', "pair must be a whole number from 0 to 5, got True"),
        ('{"pair": 2}', "choice must be one of first, second, tie, skip, got None"),
        ('{"pair": 2, "choice": "left"}', "choice must be one of first, second, tie, skip, got 'left'"),
        ('{"pair": 2, "choice": "first", "weight": -1}', "weight must be a number from 0 to 1000000, got -1"),
        ('{"pair": 2, "choice": "first", "weight": NaN}', "weight must be a number from 0 to 1000000, got nan"),
        ('{"pair": 2, "choice": "first", "weight": 1e999}', "weight must be a number from 0 to 1000000, got inf"),
        ('{"pair": 2, "choice": "first", "weight": "2"}', "weight must be a number from 0 to 1000000, got '2'"),
    ],
)
def test_a_damaged_line_is_named_by_its_number(line, message):
    """Counted in the file, blank lines included."""
    with pytest.raises(ValueError, match=r"^line 3: ") as error:
        read(GOOD, "", line, GOOD)
    assert message in str(error.value)
