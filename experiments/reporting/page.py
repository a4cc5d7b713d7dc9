"""A page to look at: `report.html` in the folder of a run's results, one file that needs nothing else.

Every run writes it. `python -m experiments.reporting.page [FOLDER ...]` writes it again from the files of finished
runs, by default in each folder of `results`.
"""

import argparse
import base64
import functools
import json
import shlex
import sys
from pathlib import Path
from typing import Any

from jinja2 import StrictUndefined, Template, TemplateError
from markupsafe import Markup

from experiments import python
from experiments.harness.errors import UsageError, exit_codes
from experiments.pipeline import pipeline
from experiments.pipeline.settings import changes, default_settings, flat, from_config, to_flags
from experiments.reporting import table
from experiments.reporting.animations import Animation, animate
from experiments.reporting.summary import title
from jaxpref.files import store
from jaxpref.types import Trajectory

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


def number(summary: dict[str, Any], path: str, digits: int | None = None) -> Markup:
    """Return an HTML element for the number at a path, as in `rows.3.policy.mean`. It shows the number rounded, and its
    attribute has all digits.
    """
    value: Any = summary
    for part in path.split("."):
        value = value[int(part)] if isinstance(value, list) else value[part]
    text = table.number(value, table.decimals(summary) if digits is None else digits).replace("-", "−")
    return Markup('<span data-path="{}" data-value="{}">{}</span>').format(path, json.dumps(value), text)


def headline(summary: dict[str, Any]) -> dict[str, Any]:
    """Return the policy of the page's first sentence, and for each seed whether its return is higher than pi1's.

    It is the one trained on most pairs, with reference pi2 if there is one: then it learned from preferences alone.
    """
    best = max(table.rows(summary)[2:], key=lambda row: (row["reference"] == "pi2", row["num_pairs"]))
    pairs = zip(best["policy"]["per_seed"], summary["policies"]["pi1"]["per_seed"], strict=True)
    return {"best": best, "wins": [trained > pi1 for trained, pi1 in pairs if None not in (trained, pi1)]}


def figures(folder: Path) -> list[tuple[bytes, int, str]]:
    """Return every PNG file of the folder, the known ones first: (image, width on the page, what it shows)."""
    images = {path.stem: path.read_bytes() for path in sorted(folder.glob("*.png"))}
    ordered = [(images[name], FIGURES.get(name, name)) for name in FIGURES | images if name in images]
    return [(image, int(int.from_bytes(image[16:20]) / PIXELS), text) for image, text in ordered]  # by PNG's header


def data_uri(image: bytes, kind: str) -> str:
    """Return an address that holds the image itself."""
    return f"data:image/{kind};base64,{base64.b64encode(image).decode()}"


def shown(value: Any) -> str:
    """Return a setting as text."""
    if isinstance(value, list | tuple):
        return " ".join(map(str, value))
    if isinstance(value, bool):
        return "yes" if value else "no"
    return "none" if value in (None, "") else str(value)


def write(folder: Path, summary: dict[str, Any], animations: list[Animation]) -> Path:
    """Write `report.html` beside the figures; return its path."""
    settings = from_config(summary["config"])
    return write_html(
        Path(__file__).with_name("page.html.jinja"),
        folder / "report.html",
        summary=summary,
        title=title(summary),
        rows=table.rows(summary),
        **headline(summary),
        number=functools.partial(number, summary),
        interval_name=table.interval_name(len(summary["seeds"])),
        accuracies=table.accuracies_explained(summary),
        warnings=table.warnings(summary),
        animations=animations,
        figures=figures(folder),
        changes=changes(settings, default_settings(settings.task, settings.method)),
        settings=flat(settings),
        shown=shown,
        command=f"{python()} -m experiments.run {shlex.join(to_flags(settings))}",
    )


def write_html(source: Path, path: Path, **values: Any) -> Path:
    """Fill the template `source` and write it to `path`; return `path`. Values are escaped, except Markup."""
    template = Template(
        source.read_text(), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    style = Markup(Path(__file__).with_name("style.css").read_text())
    text = template.render(style=style, data_uri=data_uri, **values)
    with store.atomic_write(path) as file:
        file.write(text.encode(errors="xmlcharrefreplace"))  # a folder's name need not be Unicode
    return path


def rewrite(folder: Path) -> Path:
    """Write the page of a finished run again, from its files. Raises UsageError, naming the folder, if it cannot."""
    try:
        summary = store.load_json(folder / "summary.json")
        settings = from_config(summary["config"])
        episodes = Trajectory(**store.load_params(folder / "episodes.npz"))
        return write(folder, summary, animate(pipeline.task_of(settings), episodes, summary))
    except (OSError, ValueError, TypeError, LookupError, AttributeError, TemplateError) as error:
        raise UsageError(f"{folder} does not hold the results of an experiment: {error}") from error


def main(argv: list[str]) -> None:
    """Write pages again: of the folders named, or of those in `results` that hold an experiment."""
    with exit_codes():
        parser = argparse.ArgumentParser("python -m experiments.reporting.page", description=main.__doc__)
        parser.add_argument("folders", nargs="*", type=Path, metavar="FOLDER", help="results of an experiment")
        held = [path.parent for path in sorted(Path("results").glob("*/policies.npz"))]
        folders = parser.parse_args(argv).folders or [path for path in held if (path / "summary.json").exists()]
        if not folders:
            raise UsageError("there are no results: run an experiment first, for example make cartpole-dpo")
        for folder in folders:
            print(rewrite(folder))


if __name__ == "__main__":
    main(sys.argv[1:])
