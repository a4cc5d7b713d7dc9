"""Settings from the command line. tyro speaks for itself: help, unknown flags, wrong values, suggestions."""

import argparse
import math
from collections.abc import Sequence
from typing import Any, TypeVar

import tyro
from tyro.constructors import ConstructorRegistry, PrimitiveConstructorSpec

from experiments.harness.errors import UsageError
from jaxpref.dpo import Loss
from jaxpref.types import Scalar

REGISTRY = ConstructorRegistry()
Kind = TypeVar("Kind")


@REGISTRY.primitive_rule
def _library_types(info: Any) -> PrimitiveConstructorSpec | None:
    """A config's float may be a traced array in the library, a loss a function. Here they are a number and a name."""
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
    return tyro.cli(
        kind,
        args=argv,
        default=default,
        registry=REGISTRY,
        config=(tyro.conf.SuppressFixed,),  # a config's optimiser is a function: it has no flag
        prog=f"python -m experiments.{script}",
        description=description,
    )


def check_values(settings: Any, **least: float) -> None:
    """Check that no list is empty, and that the numbers of the settings in `least` are finite and at least so large."""
    for name, value in vars(settings).items():
        flag, values = f"--{name.replace('_', '-')}", value if isinstance(value, tuple) else (value,)
        if not values:
            raise UsageError(f"{flag} needs at least one value")
        for number in values:
            if name in least and not least[name] <= number < math.inf:
                raise UsageError(f"{flag} must be finite and at least {least[name]}, got {number}")


def given(argv: Sequence[str], flag: str) -> str | None:
    """Return the value of `--flag` among the words of a command line, before they are read; None without it."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument(f"--{flag}", dest="value", nargs="?")
    return parser.parse_known_args(argv)[0].value
