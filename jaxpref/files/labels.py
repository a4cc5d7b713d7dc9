"""A person's answers about numbered pairs, one JSON object a line: docs/preferences-format.md is their schema.

    {"pair": 3, "choice": "second"}

Lines are only ever added to such a file, so that nothing is lost when labelling is broken off: a second answer about a
pair takes the place of the first, and a pair without an answer has weight zero.
"""

from __future__ import annotations

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
    """The last answer about each of `num_pairs` pairs, from lines in UTF-8.

    A person's probability of an answer is not known: `prob` is 1 throughout. `sha256` is that of the file of pairs,
    in hexadecimal digits; a first line {"pairs": "..."} is compared with it. Raises ValueError, naming the line, for
    one that is not an answer, and for answers to other pairs.
    """
    first_preferred, weight, target = np.ones(num_pairs, bool), np.zeros(num_pairs), np.ones(num_pairs)
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            answer = _parse(line)
            if number == 1 and answer.keys() == {"pairs"}:
                _check_identity(answer["pairs"], sha256)
                continue
            pair, choice, counts = _check_answer(answer, num_pairs)
        except ValueError as error:
            raise ValueError(f"line {number}: {error}") from error
        first_preferred[pair] = choice != "second"
        weight[pair] = 0 if choice == "skip" else counts
        target[pair] = 0.5 if choice == "tie" else 1
    return Label(jnp.asarray(first_preferred), jnp.ones(num_pairs), jnp.float32(weight), jnp.float32(target))


def _parse(line: bytes) -> dict[str, Any]:
    try:
        answer = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise ValueError("this is not JSON, or not all of it") from error
    if not isinstance(answer, dict):
        raise ValueError(f'an answer is an object such as {{"pair": 0, "choice": "first"}}, got {answer!r}')
    return answer


def _check_identity(named: Any, sha256: str | None) -> None:
    if sha256 is not None and named != sha256:
        raise ValueError(f"these are answers to other pairs: to a file of SHA-256 {named}, not {sha256}")


def _check_answer(answer: dict[str, Any], num_pairs: int) -> tuple[int, str, float]:
    if unknown := sorted(answer.keys() - set(FIELDS)):
        raise ValueError(f"unknown field {', '.join(unknown)}: an answer has {', '.join(FIELDS)}")
    pair, choice, weight = answer.get("pair"), answer.get("choice"), answer.get("weight", 1)
    if type(pair) is not int or not 0 <= pair < num_pairs:
        raise ValueError(f"pair must be a whole number from 0 to {num_pairs - 1}, got {pair!r}")
    if choice not in CHOICES:
        raise ValueError(f"choice must be one of {', '.join(CHOICES)}, got {choice!r}")
    if type(weight) not in (int, float) or not 0 <= weight <= MAX_WEIGHT:
        raise ValueError(f"weight must be a number from 0 to {MAX_WEIGHT}, got {weight!r}")
    return pair, choice, float(weight)
