"""The code blocks of README.md and docs/*.md, as they stand there."""

from __future__ import annotations

import re
from dataclasses import dataclass

from tests.processes import REPOSITORY


@dataclass(frozen=True)
class Block:
    """What stands between two fences: ``title`` is the heading above, ``language`` may be empty."""

    page: str
    line: int
    title: str
    language: str
    text: str

    def __str__(self) -> str:
        return f"{self.page}:{self.line} ({self.title})"


def blocks() -> list[Block]:
    """All of them, in order."""
    pages = [REPOSITORY / "README.md", *sorted((REPOSITORY / "docs").glob("*.md"))]
    return [block for page in pages for block in _read(page.name, page.read_text("utf-8"))]


def _read(page: str, text: str) -> list[Block]:
    found, title, fence, body = list[Block](), "", None, list[str]()
    for number, line in enumerate(text.splitlines(), 1):
        if line.startswith("```") and fence is None:
            fence, body = (number, line[3:].strip()), []
        elif line.startswith("```") and fence is not None:
            found.append(Block(page, fence[0], title, fence[1], "".join(body)))
            fence = None
        elif fence is not None:
            body.append(line + "\n")
        elif heading := re.fullmatch("#+ (.+)", line):
            title = heading[1]
    assert fence is None, f"{page}:{fence} has no end"
    return found


def program(page: str, title: str, language: str = "python") -> str:
    """The one block of that language under that heading."""
    here = (page, title, language)
    (text,) = (b.text for b in blocks() if (b.page, b.title, b.language) == here)
    return text
