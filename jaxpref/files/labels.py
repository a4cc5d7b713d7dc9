"""Read a person's answers about numbered pairs, one JSON object in each line: docs/preferences-format.md.

    {"pair": 3, "choice": "second"}

A second answer about a pair replaces the first. A pair without an answer has weight zero.
"""

import json
from collections.abc import Iterable
from typing import Any

import jax.numpy as jnp
import numpy as np

from jaxpref.annotators import Label

CHOICES = ("first", "second", "tie", "skip")
FIELDS = ("pair", "choice", "weight", "note")
MAX_WEIGHT = 1_000_000


def read_labels(lines: Iterable[bytes], num_pairs: int, sha256: str | None = None) -> Label:
    """Read the last answer about each of `num_pairs` pairs.

    The probability of a person's answer is unknown: `prob` is 1. `sha256` is that of the file of pairs, in hexadecimal
    digits; a first line {"pairs": "..."} must name the same. Raises ValueError, naming the line, for any other line.
    """
    first_preferred, weight, target = np.ones(num_pairs, bool), np.zeros(num_pairs), np.ones(num_pairs)
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            answer = _parse(line)
            if number == 1 and answer.keys() == {"pairs"}:
                if sha256 not in (None, answer["pairs"]):
                    raise ValueError(f"these are answers to other pairs: to SHA-256 {answer['pairs']}, not {sha256}")
                continue
            _check_answer(answer, num_pairs)
        except ValueError as error:
            raise ValueError(f"line {number}: {error}") from error
        pair, choice = answer["pair"], answer["choice"]
        first_preferred[pair] = choice != "second"
        weight[pair] = 0 if choice == "skip" else answer.get("weight", 1)
        target[pair] = 0.5 if choice == "tie" else 1
    return Label(jnp.asarray(first_preferred), jnp.ones(num_pairs), jnp.float32(weight), jnp.float32(target))


def _parse(line: bytes) -> dict[str, Any]:
    try:
        answer = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise ValueError("this is not JSON, or is cut off") from error
    if not isinstance(answer, dict):
        raise ValueError(f'an answer is an object such as {{"pair": 0, "choice": "first"}}, got {answer!r}')
    return answer


def _check_answer(answer: dict[str, Any], num_pairs: int) -> None:
    if unknown := sorted(answer.keys() - set(FIELDS)):
        raise ValueError(f"unknown field {', '.join(unknown)}: an answer has {', '.join(FIELDS)}")
    pair, choice, weight = answer.get("pair"), answer.get("choice"), answer.get("weight", 1)
    if type(pair) is not int or not 0 <= pair < num_pairs:
        raise ValueError(f"pair must be a whole number from 0 to {num_pairs - 1}, got {pair!r}")
    if choice not in CHOICES:
        raise ValueError(f"choice must be one of {', '.join(CHOICES)}, got {choice!r}")
    if type(weight) not in (int, float) or not 0 <= weight <= MAX_WEIGHT:
        raise ValueError(f"weight must be a number from 0 to {MAX_WEIGHT}, got {weight!r}")
