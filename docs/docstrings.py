"""Prepare the docstrings for the site: lists of fields become sections, and a missing docstring fails the build."""

import logging
import re
from collections.abc import Iterator
from typing import Any

import griffe

log = logging.getLogger("mkdocs.hooks.docstrings")
logging.getLogger("mkdocs.plugins.api-autonav").setLevel(logging.WARNING)  # it has a line for each module
FIELD = re.compile(r"(?P<names>\w+(?:, \w+)*): +(?P<text>.*)")


class FieldLists(griffe.Extension):
    """Turn the lines `name:  meaning` of a docstring into a section that the site shows as a list."""

    def on_package(self, *, pkg: griffe.Module, **kwargs: Any) -> None:
        """Rewrite every docstring of the package."""
        for of in objects(pkg):
            if of.docstring:
                of.docstring.value = with_sections(of, of.docstring.value)


def objects(of: griffe.Object) -> Iterator[griffe.Object]:
    """Yield `of` and everything that is defined in it."""
    yield of
    for member in of.members.values():
        if isinstance(member, griffe.Object):
            yield from objects(member)


def with_sections(of: griffe.Object, docstring: str) -> str:
    """Return the docstring with a heading, in Google's form, above each list of fields or parameters."""
    heading = "Args:" if isinstance(of, griffe.Function) else "Attributes:"
    names = {parameter.name for parameter in of.parameters} if isinstance(of, griffe.Function) else set(of.members)
    lines: list[str] = []
    inside = False
    for line in docstring.splitlines():
        field = FIELD.fullmatch(line)
        if field and names.issuperset(field["names"].split(", ")):
            lines += [] if inside else ["", heading]
            lines += [f"    {name}: {field['text']}" for name in field["names"].split(", ")]
            inside = True
        else:
            inside = inside and line.startswith(" ")
            lines.append(f"    {line}" if inside else line)
    return "\n".join(lines)


def undocumented(package: griffe.Object) -> Iterator[str]:
    """Yield the paths of public modules, classes, functions, methods, properties and settings without a docstring."""
    for of in objects(package):
        if of.is_attribute and "property" not in of.labels:
            needed = of.parent is not None and of.parent.is_class and of.parent.name == "Config"
        else:
            needed = not any(part.startswith("_") for part in of.path.split("."))
        if needed and not of.docstring:
            yield of.path


def on_pre_build(config: object) -> None:
    """Look at the whole package before the first page is written."""
    package = griffe.load("jaxpref", search_paths=["."])
    assert isinstance(package, griffe.Object)
    for path in undocumented(package):
        log.warning("%s has no docstring", path)
