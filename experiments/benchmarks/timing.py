"""Settings of the benchmark, seconds of functions that run in turns, and tables of what was measured and changed."""

import dataclasses
import timeit
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import jax
from rich import box
from rich.table import Table

from experiments.harness.errors import UsageError
from experiments.pipeline.settings import Method, Settings, default_settings
from jaxpref import dpo, ppo, reward_model
from jaxpref.checks import setting
from jaxpref.files import store

Row = dict[str, Any]
Experiment = Literal["cartpole_dpo", "cartpole_rlhf", "acrobot_dpo", "acrobot_rlhf"]
Section = Literal["rollouts", "trainers", "experiments", "memory", "devices", "peer", "imitation"]


@dataclasses.dataclass(frozen=True)
class Bench:
    """What is measured."""

    sections: tuple[Section, ...] = ("rollouts", "trainers", "experiments", "memory", "devices")
    """Parts of the table. "peer" and "imitation" need environments of their own: make bench-peer, bench-imitation."""
    num_envs: tuple[int, ...] = setting((16, 2048), low=1)  # Environments side by side in a rollout.
    num_seeds: tuple[int, ...] = setting((1, 16), low=1)  # Seeds in one call of a trainer; the most also on one device.
    experiments: tuple[Experiment, ...] = ("cartpole_dpo",)  # Run with and without compiled programs.
    memory_seeds: tuple[int, ...] = setting((16, 48), low=1)  # Seeds of the runs whose peak memory is compared.
    imitation_s: int = setting(1200, low=1)  # Seconds for imitation's side: its seeds in them, one more at the end.
    repeats: int = setting(3, low=1)  # Repeats of every measurement, in turns; the median counts.
    against: Path | None = None  # summary.json to compare with; None: the one that is in --out.
    out: Path = Path("results/bench")  # Folder for summary.json; the one before it becomes previous.json.


def short_run(method: Method, num_seeds: int) -> Settings:
    """Return CartPole with 200 pairs and reference pi2. What learns from the pairs has 20 % of the usual updates."""
    changes: Any = {"seeds": tuple(range(num_seeds)), "num_pairs": (200,), "reference": ("pi2",)}
    rlhf = {"reward_model": reward_model.Config(num_updates=40), "ppo": ppo.Config(num_updates=12)}
    changes |= {"num_heldout": 50, "eval_episodes": 20}
    changes |= rlhf if method == "rlhf" else {"dpo": dpo.Config(num_updates=30)}
    return dataclasses.replace(default_settings("cartpole", method), **changes)


def timed(function: Callable, *args: Any) -> Callable[[], float]:
    """Return a function that calls this one and returns the seconds."""
    return lambda: timeit.timeit(lambda: jax.block_until_ready(function(*args)), number=1)


def in_turns(repeats: int, *functions: Callable[[], Any]) -> list[list[Any]]:
    """Return what each function returns. They run in turns, after one call of each that does not count."""
    turns = [[function() for function in functions] for _ in range(1 + repeats)]
    return [list(spent) for spent in zip(*turns[1:], strict=True)]


def table(rows: list[Row]) -> Table:
    """Return a table of the rows as they are, with a column for every key."""
    result = Table(box=box.SIMPLE_HEAD, pad_edge=False, collapse_padding=True)
    for column, value in rows[0].items():
        style: Any = {"no_wrap": True} if isinstance(value, str) else {"justify": "right", "overflow": "fold"}
        result.add_column(column.replace("_", " "), **style)  # a narrow terminal breaks the line between words
    for row in rows:
        result.add_row(*map(_cell, row.values()))
    return result


def earlier(path: Path) -> dict[str, Any]:
    """Read summary.json of an earlier benchmark. Raises UsageError for another file."""
    try:
        result = store.load_json(path)
    except ValueError:
        result = None
    if not isinstance(result, dict) or not {"device", "num_devices"} <= result.keys():
        raise UsageError(f"{path} is not a result of this benchmark")
    return result


def changes(rows: list[Row], before: list[Row]) -> list[str]:
    """Return a line for each row that is about the same as one of `before`: how much each measured number changed."""
    known, lines = {_about(row): row for row in before}, []
    for row in rows:
        old = known.get(_about(row), {})
        measured = [name for name, value in row.items() if isinstance(value, float) and old.get(name)]
        if measured:
            numbers = ", ".join(f"{name} {row[name] / old[name]:.2f}x" for name in measured)
            lines.append(f"{_about(row)}: {numbers} of before")
    return lines


def _about(row: Row) -> str:
    """Name the row by its words and whole numbers. What was measured is a float."""
    return ", ".join(f"{name} {value}" for name, value in row.items() if not isinstance(value, float))


def _cell(value: Any) -> str:
    if not isinstance(value, float):
        return str(value)
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"
