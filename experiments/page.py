"""A page to look at: `report.html` in the folder of an experiment's results, one file that needs nothing else.

Every experiment ends with it. `python -m experiments.page [FOLDER ...]` writes it anew from what the folders hold
(summary.json, policies.npz and the figures), without training; by default in each folder of `results`.
"""

from __future__ import annotations

import argparse
import base64
import functools
import json
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from jinja2 import Environment, FileSystemLoader, StrictUndefined, TemplateError
from markupsafe import Markup

from experiments import command, pipeline, python, report
from experiments.animations import Animation, animate
from experiments.settings import changes, default_settings, flag, from_config, to_flags
from jaxpref import store

TEMPLATE = "page.html.jinja"
FIGURES = {
    "policies": "Every policy: points are seeds, diamonds the IQM with its 95 % interval.",
    "returns": "True return during training: the mean over seeds, and the band from their 10th to 90th percentile.",
    "loss": "What training minimises. A low loss is no promise of a high return.",
    "margins": "DPO's implicit rewards: by how much, and how often, they rank the chosen episode above the rejected.",
    "kl": "How far PPO moves from its reference, and the learned return that it gains by moving.",
}
"""What the figures show, in their order on the page; other pictures of the folder follow under their names."""


class Policy(NamedTuple):
    """One line of the table. Paths say where summary.json has the numbers, as in `rows.3.policy`."""

    path: str
    name: str
    reference: str = ""
    num_pairs: int = 0
    accuracy_path: str = ""

    @property
    def training(self) -> str:
        """What it was trained on; nothing for pi1 and pi2."""
        pairs = f"{self.num_pairs:,} pair{'s' if self.num_pairs > 1 else ''}"
        return f"{pairs}, reference {self.reference}" if self.num_pairs else ""


def policies(summary: dict[str, Any]) -> dict[str, Policy]:
    """Every policy of a summary by its path, in the order of the table."""
    method = report.LABELS[summary["method"]]
    table = [Policy(f"policies.{name}", name) for name in ("pi2", "pi1")]
    for place, row in enumerate(summary["rows"]):
        path, accuracy_path = f"rows.{place}.policy", f"rows.{place}.heldout_accuracy"
        table.append(Policy(path, method, row["reference"], row["num_pairs"], accuracy_path))
    return {policy.path: policy for policy in table}


def look_up(summary: dict[str, Any], path: str) -> Any:
    """What stands at `path`, keys of dicts and places in lists joined by dots; None below a None."""
    found: Any = summary
    for part in path.split("."):
        if found is not None:
            found = found[int(part)] if isinstance(found, list) else found[part]
    return found


def number(summary: dict[str, Any], path: str, digits: int | None = None) -> Markup:
    """The number at `path`, rounded for the eye, as returns are by default; in its attributes, where it is from and all
    of its digits.
    """
    value = look_up(summary, path)
    digits = report.decimals(summary) if digits is None else digits
    text = "none" if value is None else f"{value:.{digits}f}".replace("-", "−")
    return Markup('<span data-path="{}" data-value="{}">{}</span>').format(path, json.dumps(value), text)


def headline(summary: dict[str, Any]) -> dict[str, Any]:
    """The policy that the page's first sentence is about, and on how many seeds it returns more than the seed's pi1.

    It is the one trained on most pairs, with reference pi2 if there is one: then preferences are all it learned from.
    """
    place, row = max(enumerate(summary["rows"]), key=lambda item: (item[1]["reference"] == "pi2", item[1]["num_pairs"]))
    pairs = list(zip(row["policy"]["per_seed"], summary["policies"]["pi1"]["per_seed"], strict=True))
    known = [(trained, pi1) for trained, pi1 in pairs if trained is not None and pi1 is not None]
    wins = sum(trained > pi1 for trained, pi1 in known)
    return {"path": f"rows.{place}.policy", "wins": wins, "num_seeds": len(known)}


def figures(folder: Path) -> list[tuple[Path, str]]:
    """Every PNG file of the folder and what it shows, the known ones first."""
    paths = {path.stem: path for path in sorted(folder.glob("*.png"))}
    ordered = [name for name in FIGURES if name in paths] + [name for name in paths if name not in FIGURES]
    return [(paths[name], FIGURES.get(name, name)) for name in ordered]


def data_uri(image: bytes, kind: str) -> str:
    """The image itself in place of an address."""
    return f"data:image/{kind};base64,{base64.b64encode(image).decode()}"


def flat(config: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Settings by their names on the command line, as in `dpo.learning-rate`."""
    table: dict[str, Any] = {}
    for name, value in config.items():
        path = flag(prefix + name)
        table |= flat(value, f"{path}.") if isinstance(value, dict) else {path: value}
    return table


def shown(value: Any) -> str:
    """A setting as one would write it."""
    if isinstance(value, list | tuple):
        return " ".join(map(str, value))
    if isinstance(value, bool):
        return "yes" if value else "no"
    return "none" if value in (None, "") else str(value)


def html(folder: Path, summary: dict[str, Any], animations: Sequence[Animation]) -> str:
    """The page about `summary` with the figures of `folder`. Whatever it shows is escaped.

    Raises ValueError if the summary's settings are not settings of this version.
    """
    settings = from_config(summary["config"])
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template(TEMPLATE).render(
        summary=summary,
        title=f"{report.LABELS.get(summary['task'], summary['task'])}, {report.LABELS[summary['method']]}",
        policies=policies(summary),
        headline=headline(summary),
        number=functools.partial(number, summary),
        warnings=report.warnings(summary),
        animations=animations,
        figures=figures(folder),
        data_uri=data_uri,
        changes=list(changes(settings, default_settings(settings.task, settings.method)).items()),
        settings=[(name, [value]) for name, value in flat(summary["config"]).items()],
        shown=shown,
        command=f"{python()} -m experiments.run {shlex.join(to_flags(settings))}",
    )


def write(folder: Path, summary: dict[str, Any], animations: Sequence[Animation]) -> Path:
    """Write `report.html` beside the figures."""
    path = folder / "report.html"
    text = html(folder, summary, animations)
    with store.atomic_write(path) as file:
        file.write(text.encode(errors="xmlcharrefreplace"))  # a folder's name need not be Unicode
    return path


def rewrite(folder: Path) -> Path:
    """The page of a finished experiment, from its files. Raises UsageError, naming the folder, if it cannot be."""
    try:
        summary = store.load_json(folder / "summary.json")
        return write(folder, summary, animate(pipeline.task_of(from_config(summary["config"])), summary, folder))
    except (OSError, ValueError, TypeError, LookupError, AttributeError, TemplateError) as error:
        raise command.UsageError(f"{folder} does not hold the results of an experiment: {error}") from error


def experiments(results: Path) -> list[Path]:
    """The folders of `results` that hold a finished experiment; other programs keep no policies."""
    return [path.parent for path in sorted(results.glob("*/policies.npz")) if (path.parent / "summary.json").exists()]


def main(argv: Sequence[str] | None = None) -> None:
    """Write the pages anew."""
    with command.exit_codes():
        parser = argparse.ArgumentParser(prog="python -m experiments.page", description=__doc__)
        parser.add_argument("folders", nargs="*", type=Path, metavar="FOLDER", help="results of one experiment each")
        known, unknown = parser.parse_known_args(argv)
        if unknown:
            raise command.UsageError(f"unknown flag {unknown[0]}: folders are all that can be given")
        folders = known.folders or experiments(Path("results"))
        if not folders:
            raise command.UsageError("no results yet: run an experiment first, for example make cartpole-dpo")
        from experiments import stages

        stages.set_up_jax(num_cpu_devices=0)
        for folder in folders:
            print(rewrite(folder))


if __name__ == "__main__":
    main()
