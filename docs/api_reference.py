"""Writes docs/api/ from the docstrings and signatures of jaxpref: a page for each module, and an index.

    python docs/api_reference.py

The sources are read, never imported. A test compares the pages with them.
"""

from __future__ import annotations

import ast
import re
from pathlib import Path

import griffe

ROOT = Path(__file__).parents[1]
PAGES = ROOT / "docs" / "api"
NOTE = "<!-- Written by `make docs` from the docstrings: change those. -->"
FIELD = re.compile(r"(?P<names>\w+(?:, \w+)*): +(?P<text>.+)")
NAME = re.compile(r"`([\w.]+)`")


def load() -> griffe.Module:
    """The package as its sources describe it."""
    package = griffe.load("jaxpref", search_paths=[ROOT], allow_inspection=False)
    assert isinstance(package, griffe.Module)
    return package


def pages(package: griffe.Module) -> dict[str, str]:
    """Every page by its file name."""
    written = {f"{name}.md": module_page(module) for name, module in package.modules.items()}
    return written | {"README.md": index_page(package)}


def index_page(package: griffe.Module) -> str:
    """What the package has at its top, and the modules with their first sentence."""
    top = (
        f"| `jaxpref.{name}` | {reference(package, path, path)} |"
        for name, path in re_exported(package).items()
        if path.count(".") == 1
    )
    modules = (
        f"| [`{name}`]({name}.md) | {paragraphs(module)[0]} |" for name, module in sorted(package.modules.items())
    )
    return join(
        NOTE,
        "# API reference",
        *paragraphs(package),
        "\n".join(["| module | |", "|---|---|", *modules]),
        "Axes in the signatures: T steps of an episode, up to the task's horizon; O numbers of an observation; A "
        "actions; N pairs; B pairs of a minibatch; K episodes; U updates; E evaluations; M members of an ensemble; S "
        "seeds, in statistics and figures only. `*batch` is whatever the caller puts before, an empty string a scalar.",
        "A config that is made with a value out of range raises a ValueError that names it.",
        "\n".join(["| at the top | is |", "|---|---|", *top]),
    )


def described(module: griffe.Module) -> dict[str, griffe.Object]:
    """What has a section, in the order of the source: public functions and classes, and constants with a docstring."""
    return {
        name: member
        for name, member in module.members.items()
        if isinstance(member, griffe.Function | griffe.Class | griffe.Attribute) and not name.startswith("_")
        if member.docstring or not isinstance(member, griffe.Attribute)
    }


def re_exported(package: griffe.Module) -> dict[str, str]:
    """`module` or `module.name` of what the package has at its top, by its name there."""
    aliases = {name: of.target_path for name, of in package.members.items() if isinstance(of, griffe.Alias)}
    return {name: path.removeprefix("jaxpref.") for name, path in aliases.items() if path.startswith("jaxpref.")}


def module_page(module: griffe.Module) -> str:
    """Everything public of one module."""
    return join(NOTE, f"# jaxpref.{module.name}", text(module, set()), *map(section, described(module).values()))


def section(member: griffe.Object) -> str:
    """One heading of a page."""
    if isinstance(member, griffe.Class):
        return class_section(member)
    if isinstance(member, griffe.Function):
        return join(f"## {member.name}", code(header(member)), text(member, names_of(member)))
    assert isinstance(member, griffe.Attribute)
    return join(f"## {member.name}", code(member.source), text(member, set()))


def class_section(cls: griffe.Class) -> str:
    """A class with its fields: a field's text stands below it in the source, or in the list of the docstring."""
    fields = {name: field for name, field in cls.members.items() if isinstance(field, griffe.Attribute)}
    listed: dict[str, str] = {}
    prose = []
    for paragraph in paragraphs(cls):
        found, rest = split_fields(paragraph, fields.keys())
        listed |= found
        prose += [rest] if rest else []
    lines = []
    for name, field in fields.items():
        meaning = inline(field.docstring.value) if field.docstring else listed.get(name, "")
        default = f" = {default_of(field)}" if default_of(field) else ""
        lines.append(
            f"- `{name}: {double_quoted(str(field.annotation))}{default}`" + (f": {meaning}" if meaning else "")
        )
    methods = [
        join(f"### {cls.name}.{name}", code(header(method)), text(method, names_of(method)))
        for name, method in cls.members.items()
        if isinstance(method, griffe.Function) and not name.startswith("_")
    ]
    bases = f"({', '.join(map(str, cls.bases))})" if cls.bases else ""
    body = link(cls, join(*prose, "\n".join(lines)))
    return join(f"## {cls.name}", code(f"class {cls.name}{bases}"), body, *methods)


def default_of(field: griffe.Attribute) -> str | None:
    """The default of a dataclass's field, also where it is an argument of `struct.field`."""
    if isinstance(field.value, griffe.ExprCall):
        arguments = [each for each in field.value.arguments if isinstance(each, griffe.ExprKeyword)]
        return next((double_quoted(str(each.value)) for each in arguments if each.name == "default"), None)
    return double_quoted(str(field.value)) if field.value is not None else None


def header(function: griffe.Function) -> str:
    """A function's signature as the source has it, without `def` and without its body."""
    source = griffe_source(function)
    node = ast.parse(source).body[0]
    assert isinstance(node, ast.FunctionDef)
    lines = source.splitlines()[node.lineno - 1 : node.body[0].lineno - 1]
    return "\n".join(lines).removeprefix("def ").removesuffix(":")


def griffe_source(function: griffe.Function) -> str:
    """The lines of a function, those of a method without the class's indentation."""
    lines = function.source.splitlines()
    indent = len(lines[0]) - len(lines[0].lstrip())
    return "\n".join(line[indent:] for line in lines)


def names_of(function: griffe.Function) -> set[str]:
    """Its parameters."""
    return {parameter.name for parameter in function.parameters}


def text(of: griffe.Object, names: set[str]) -> str:
    """A docstring as Markdown: lines as `name: meaning` become a list, names of jaxpref links."""
    parts = []
    for paragraph in paragraphs(of):
        fields, rest = split_fields(paragraph, names)
        parts += ["\n".join(f"- `{name}`: {meaning}" for name, meaning in fields.items())] if fields else []
        parts += [rest] if rest else []
    return link(of, join(*parts))


def paragraphs(of: griffe.Object) -> list[str]:
    """Those of a docstring; equations, which are indented, keep their lines."""
    if not of.docstring:
        return []
    parts = re.split(r"\n\s*\n", of.docstring.value.strip("\n"))
    return [part if part.startswith(" ") else part.strip() for part in parts]


def split_fields(paragraph: str, names: object) -> tuple[dict[str, str], str]:
    """(meanings by name, the rest) of a paragraph that may begin with lines as `name: meaning`.

    A meaning goes on in lines that are indented. `names` are those that can stand there.
    """
    fields: dict[str, str] = {}
    lines = paragraph.splitlines()
    while lines:
        match = FIELD.match(lines[0])
        if match and set(match["names"].split(", ")) <= set(names):  # type: ignore[call-overload]
            fields[match["names"]] = match["text"].strip()
        elif fields and lines[0].startswith(" "):
            fields[list(fields)[-1]] += " " + lines[0].strip()
        else:
            break
        lines.pop(0)
    return fields, "\n".join(lines)


def link(of: griffe.Object, markdown: str) -> str:
    """Names of the library in backticks become links to their sections; code blocks stay."""

    def to_link(match: re.Match[str]) -> str:
        module, _, name = match[1].removeprefix("jaxpref.").rpartition(".")
        path = f"{module or of.module.name}.{name}"
        return match[0] if of.path == f"jaxpref.{path}" else reference(of.package, path, match[1])

    parts = re.split(r"(```.*?```)", markdown, flags=re.DOTALL)
    return "".join(part if part.startswith("```") else NAME.sub(to_link, part) for part in parts)


def reference(package: griffe.Module, path: str, shown: str) -> str:
    """`shown` as a link to the section of `module.name`; without a link where there is none."""
    module, _, name = path.partition(".")
    headings = list(described(package.modules[module])) if module in package.modules else []
    if name not in headings:
        return f"`{shown}`"
    # GitHub numbers headings that differ in nothing but case.
    before = [heading.lower() for heading in headings[: headings.index(name)]].count(name.lower())
    return f"[`{shown}`]({module}.md#{name.lower()}{f'-{before}' if before else ''})"


def inline(docstring: str) -> str:
    """One line of Markdown."""
    return " ".join(docstring.split())


def double_quoted(expression: str) -> str:
    """What griffe writes with single quotes, as the sources have it."""
    return expression.replace("'", '"')


def code(source: str) -> str:
    """A block of Python."""
    return f"```python\n{source}\n```"


def join(*parts: str) -> str:
    """Parts with an empty line between; empty parts are left out."""
    return "\n\n".join(part.strip("\n") for part in parts if part)


def main() -> None:
    """Write the pages; those of modules that are no more are removed."""
    written = pages(load())
    PAGES.mkdir(exist_ok=True)
    for path in PAGES.glob("*.md"):
        if path.name not in written:
            path.unlink()
    for name, page in written.items():
        (PAGES / name).write_text(page + "\n")


if __name__ == "__main__":
    main()
