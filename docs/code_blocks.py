"""Runs the Python blocks of a Markdown page from top to bottom, and writes below each what it prints.

    python docs/code_blocks.py docs/tutorial.md

All blocks share one namespace. What a block prints stands in the `text` block right after it. A test runs the pages
and compares.
"""

from __future__ import annotations

import contextlib
import dataclasses
import io
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from markdown_it import MarkdownIt
from markdown_it.token import Token


@dataclasses.dataclass(frozen=True)
class Block:
    """A Python block, and the text block after it; lines are counted from 0."""

    code: str
    line: int
    """The first one of the code."""
    output: str = ""
    output_lines: tuple[int, int] | None = None
    """Of the text block, from its opening fence to behind its closing one; None if there is none."""


def blocks(page: str) -> list[Block]:
    """The Python blocks of a page."""
    tokens = [token for token in MarkdownIt().parse(page) if token.level == 0]
    found = []
    for token, following in zip(tokens, [*tokens[1:], None], strict=True):
        if _is_fence(token, "python"):
            block = Block(token.content, _lines(token)[0] + 1)
            if following is not None and _is_fence(following, "text"):
                block = dataclasses.replace(block, output=following.content, output_lines=_lines(following))
            found.append(block)
    return found


def _is_fence(token: Token, info: str) -> bool:
    return token.type == "fence" and token.info == info


def _lines(token: Token) -> tuple[int, int]:
    assert token.map is not None
    return token.map[0], token.map[1]


def run(page: str, path: Path) -> Iterator[tuple[Block, str]]:
    """(block, what it printed) of every block of a page, in order. `path` and line stand in tracebacks."""
    namespace: dict[str, Any] = {"__name__": "__main__"}
    for block in blocks(page):
        printed = io.StringIO()
        with contextlib.redirect_stdout(printed):
            exec(compile("\n" * block.line + block.code, str(path), "exec"), namespace)
        yield block, printed.getvalue()


def with_outputs(page: str, path: Path) -> str:
    """The page with every text block as its code prints it now."""
    lines = page.splitlines()
    for block, printed in reversed(list(run(page, path))):
        text_block = ["```text", *printed.splitlines(), "```"] if printed else []
        behind_code = block.line + block.code.count("\n") + 1
        if block.output_lines:
            lines[slice(*block.output_lines)] = text_block
        elif printed:
            lines[behind_code:behind_code] = ["", *text_block]
    return "\n".join(lines) + "\n"


def main() -> None:
    """Write the pages named on the command line."""
    for path in map(Path, sys.argv[1:]):
        path.write_text(with_outputs(path.read_text(), path))


if __name__ == "__main__":
    main()
