"""A page to look at: `report.html` in the folder of a run's results, one file that needs nothing else.

Every run writes it. `python -m experiments.reporting.page [FOLDER ...]` writes it again from the files of finished
runs, by default in each folder of `results`.
"""

from __future__ import annotations

import argparse
import base64
import functools
import json
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from jinja2 import Environment, FileSystemLoader, StrictUndefined, TemplateError
from markupsafe import Markup

from experiments import python
from experiments.harness.errors import UsageError, exit_codes
from experiments.pipeline import pipeline
from experiments.pipeline.settings import changes, default_settings, flag, from_config, to_flags
from experiments.reporting import arrays
from experiments.reporting.animations import Animation, animate
from experiments.reporting.summary import LABELS
from experiments.reporting.table import accuracies_explained, decimals, interval_name, warnings
from jaxpref.files import store

PIXELS = 1.6
"""Pixels of a figure for one of the page: figures are sharp on dense screens."""
FIGURES = {
    "policies": "Every policy: points are seeds, diamonds the IQM with its interval.",
    "returns": "True return during training: the mean over seeds, and the band from their 10th to 90th percentile.",
    "loss": "The loss of training. A low loss is no promise of a high return.",
    "margins": "DPO's implicit rewards: by how much, and how often, they rank the chosen episode above the rejected.",
    "kl": "How far PPO moves from its reference, and the learned return that it gains.",
}
"""What the figures show, in their order on the page. Other pictures of the folder follow under their names."""


class Policy(NamedTuple):
    """One line of the table, with the paths of its score and of its row in summary.json, as in `rows.3.policy`.

    Only trained policies have a reference, a number of pairs, a row, and words for their training.
    """

    path: str
    name: str
    reference: str = ""
    num_pairs: int = 0
    row: str = ""
    training: str = ""


def policies(summary: dict[str, Any]) -> dict[str, Policy]:
    """Return every policy of a summary by its path, in the order of the table."""
    table = [Policy(f"policies.{name}", name) for name in ("pi2", "pi1")]
    for place, row in enumerate(summary["rows"]):
        reference, num_pairs, path = row["reference"], row["num_pairs"], f"rows.{place}"
        training = f"{num_pairs:,} pair{'s' if num_pairs > 1 else ''}, reference {reference}"
        table.append(Policy(f"{path}.policy", LABELS[summary["method"]], reference, num_pairs, path, training))
    return {policy.path: policy for policy in table}


def number(summary: dict[str, Any], path: str, digits: int | None = None) -> Markup:
    """Return the number at `path`, rounded, as an element; its attributes have the path and all digits.

    path:    keys of dicts and places in lists, joined by dots. Below a None it is None.
    digits:  decimals; by default those of returns.
    """
    value: Any = summary
    for part in path.split("."):
        if value is not None:
            value = value[int(part)] if isinstance(value, list) else value[part]
    digits = decimals(summary) if digits is None else digits
    text = "none" if value is None else f"{value:.{digits}f}".replace("-", "−")
    return Markup('<span data-path="{}" data-value="{}">{}</span>').format(path, json.dumps(value), text)


def headline(summary: dict[str, Any]) -> dict[str, Any]:
    """Return the policy of the page's first sentence, and on how many seeds its return is higher than pi1's.

    It is the one trained on most pairs, with reference pi2 if there is one: then it learned from preferences alone.
    """
    place, row = max(enumerate(summary["rows"]), key=lambda item: (item[1]["reference"] == "pi2", item[1]["num_pairs"]))
    pairs = list(zip(row["policy"]["per_seed"], summary["policies"]["pi1"]["per_seed"], strict=True))
    known = [(trained, pi1) for trained, pi1 in pairs if trained is not None and pi1 is not None]
    wins = sum(trained > pi1 for trained, pi1 in known)
    return {"path": f"rows.{place}.policy", "wins": wins, "num_seeds": len(known)}


def figures(folder: Path) -> list[tuple[bytes, int, str]]:
    """Return every PNG file of the folder, the known ones first: (image, width on the page, what it shows)."""
    images = {path.stem: path.read_bytes() for path in sorted(folder.glob("*.png"))}
    ordered = [name for name in FIGURES if name in images] + [name for name in images if name not in FIGURES]
    widths = {name: int.from_bytes(image[16:20], "big") for name, image in images.items()}  # by PNG's header
    return [(images[name], int(widths[name] / PIXELS), FIGURES.get(name, name)) for name in ordered]


def data_uri(image: bytes, kind: str) -> str:
    """Return an address that holds the image itself."""
    return f"data:image/{kind};base64,{base64.b64encode(image).decode()}"


def flat(config: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return settings by their flags, as in `dpo.learning-rate`."""
    table: dict[str, Any] = {}
    for name, value in config.items():
        path = flag(prefix + name)
        table |= flat(value, f"{path}.") if isinstance(value, dict) else {path: value}
    return table


def shown(value: Any) -> str:
    """Return a setting as text."""
    if isinstance(value, list | tuple):
        return " ".join(map(str, value))
    if isinstance(value, bool):
        return "yes" if value else "no"
    return "none" if value in (None, "") else str(value)


def html(folder: Path, summary: dict[str, Any], animations: Sequence[Animation]) -> str:
    """Return the page about `summary` with the figures of `folder`. All its text is escaped."""
    settings = from_config(summary["config"])
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template("page.html.jinja").render(
        summary=summary,
        title=f"{LABELS.get(summary['task'], summary['task'])}, {LABELS[summary['method']]}",
        policies=policies(summary),
        headline=headline(summary),
        number=functools.partial(number, summary),
        interval_name=interval_name(len(summary["seeds"])),
        accuracies=accuracies_explained(summary),
        warnings=warnings(summary),
        animations=animations,
        figures=figures(folder),
        data_uri=data_uri,
        changes=list(changes(settings, default_settings(settings.task, settings.method)).items()),
        settings=[(name, [value]) for name, value in flat(summary["config"]).items()],
        shown=shown,
        command=f"{python()} -m experiments.run {shlex.join(to_flags(settings))}",
    )


def write(folder: Path, summary: dict[str, Any], animations: Sequence[Animation]) -> Path:
    """Write `report.html` beside the figures; return its path."""
    path = folder / "report.html"
    text = html(folder, summary, animations)
    with store.atomic_write(path) as file:
        file.write(text.encode(errors="xmlcharrefreplace"))  # a folder's name need not be Unicode
    return path


def rewrite(folder: Path) -> Path:
    """Write the page of a finished run again, from its files. Raises UsageError, naming the folder, if it cannot."""
    try:
        summary = store.load_json(folder / "summary.json")
        settings = from_config(summary["config"])
        task = pipeline.task_of(settings)
        played = animate(task, arrays.load_policies(folder / "policies.npz", task, settings), summary)
        return write(folder, summary, played)
    except (OSError, ValueError, TypeError, LookupError, AttributeError, TemplateError) as error:
        raise UsageError(f"{folder} does not hold the results of an experiment: {error}") from error


def main(argv: Sequence[str]) -> None:
    """Write pages again: of the folders named, or of those in `results` that hold an experiment."""
    from experiments.harness.devices import set_up_jax

    with exit_codes():
        parser = argparse.ArgumentParser("python -m experiments.reporting.page", description=main.__doc__)
        parser.add_argument("folders", nargs="*", type=Path, metavar="FOLDER", help="results of an experiment")
        held = [path.parent for path in sorted(Path("results").glob("*/policies.npz"))]
        folders = parser.parse_args(argv).folders or [path for path in held if (path / "summary.json").exists()]
        if not folders:
            raise UsageError("there are no results: run an experiment first, for example make cartpole-dpo")
        set_up_jax(num_cpu_devices=0)
        for folder in folders:
            print(rewrite(folder))


if __name__ == "__main__":
    main(sys.argv[1:])
