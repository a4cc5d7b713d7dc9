"""Settings from the command line. Help, suggestions, and messages about unknown flags and wrong values are tyro's."""

import argparse
import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any, TypeVar

import tyro
from tyro.constructors import ConstructorRegistry, PrimitiveConstructorSpec

from experiments.harness.errors import UsageError
from jaxpref import checks
from jaxpref.dpo import Loss
from jaxpref.types import Scalar

REGISTRY = ConstructorRegistry()
Kind = TypeVar("Kind")


@REGISTRY.primitive_rule
def _library_types(info: Any) -> PrimitiveConstructorSpec | None:
    """Tell tyro how to read a config's float and its loss.

    In the library a float may be a traced array, and a loss a function. Here they are a number and a name.
    """
    if info.type not in (Scalar, Loss):
        return None
    kind = float if info.type == Scalar else str
    return PrimitiveConstructorSpec(
        nargs=1,
        metavar=kind.__name__.upper(),
        instance_from_str=lambda words: kind(words[0]),
        is_instance=lambda value: isinstance(value, int | float | str),
        str_from_instance=lambda value: [str(value)],
    )


def read(
    kind: type[Kind], argv: Sequence[str], script: str, description: str, default: Any = tyro.MISSING_NONPROP
) -> Kind:
    """Return an instance of the dataclass `kind` from the words of a command line. A wrong one exits with code 2."""
    settings = tyro.cli(
        kind,
        args=argv,
        default=default,
        registry=REGISTRY,
        config=(tyro.conf.SuppressFixed,),  # a config's optimiser is a function: it has no flag
        prog=f"python -m experiments.{script}",
        description=description,
    )
    for problem in problems(settings):
        raise UsageError(problem)
    return settings


def problems(settings: Any, group: str = "") -> Iterator[str]:
    """Yield what is wrong with a value of the settings or of the configs in them, after its flag."""
    for name, problem in checks.problems(settings):
        yield f"--{group}{name}".replace("_", "-") + f" {problem}"
    for name, value in vars(settings).items():
        if dataclasses.is_dataclass(value):
            yield from problems(value, f"{name}.")


def given(argv: Sequence[str], flag: str) -> str | None:
    """Return the value of `--flag` among the words of a command line, before they are read; None without it."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument(f"--{flag}", dest="value", nargs="?")
    return parser.parse_known_args(argv)[0].value
