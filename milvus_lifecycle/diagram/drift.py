"""The checked-in drawings of the table: write them, and tell when they no longer show it.

Mermaid is compared byte by byte. An SVG cannot be: its coordinates depend on Graphviz' release
and on the fonts of the machine that drew it. Its stamp says what it was drawn from, and its
arrows and labels are read back and compared with the table's, so that a patch release of
Graphviz changes nothing here and a changed row does. Checking needs no pygraphviz.
"""

from __future__ import annotations

import re
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterable, Iterator
from pathlib import Path

from ..table import TRANSITIONS, Row
from .drawing import START, Drawing, draw
from .formats import Stamp, digest, read_stamp, render_svg, table_digest
from .text import to_dot, to_mermaid

MERMAID_NAME = "lifecycle.mmd"
SVG_NAME = "lifecycle.svg"
REMEDY = "milvus-lifecycle diagram --write DIR draws it anew"

_SVG = "{http://www.w3.org/2000/svg}"
#: Less than the distance of two lines of a label, in points.
_LINE = 4.0


def write_diagrams(folder: Path, rows: Iterable[Row] = TRANSITIONS) -> list[Path]:
    """Write the table's Mermaid text and SVG into ``folder``; the files written.

    Raises RendererMissing before anything is written, and OSError.
    """
    table = tuple(rows)
    drawing = draw(table)
    texts = {SVG_NAME: render_svg(drawing, table), MERMAID_NAME: to_mermaid(drawing)}
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in texts.items():
        # The same bytes on every system: line ends are not the platform's.
        (folder / name).write_bytes(text.encode())
    return [folder / name for name in texts]


def find_drift(folder: Path, rows: Iterable[Row] = TRANSITIONS) -> list[str]:
    """What in ``folder`` does not show the table, a sentence each; none if all of it does.

    Looks at the two files that `write_diagrams` writes, and at every other SVG that carries a
    stamp: an annotated one must show the table of today as well, whatever its figures are.
    """
    table = tuple(rows)
    drawing = draw(table)
    found = [*_mermaid_drift(folder / MERMAID_NAME, drawing)]
    if not (folder / SVG_NAME).is_file():
        found.append(f"{folder / SVG_NAME} is missing: {REMEDY}")
    for path in sorted(folder.glob("*.svg")):
        text = path.read_text(encoding="utf-8", errors="replace")
        stamp = read_stamp(text)
        if path.name == SVG_NAME or stamp is not None:
            plain = drawing if path.name == SVG_NAME else None
            found += (f"{path} {problem}" for problem in _svg_drift(text, stamp, table, plain))
    return found


def _mermaid_drift(path: Path, drawing: Drawing) -> Iterator[str]:
    if not path.is_file():
        yield f"{path} is missing: {REMEDY}"
    elif digest(path.read_text(encoding="utf-8", errors="replace")) != digest(to_mermaid(drawing)):
        yield f"{path} does not show the table: {REMEDY}"


def _svg_drift(
    text: str, stamp: Stamp | None, table: tuple[Row, ...], plain: Drawing | None
) -> Iterator[str]:
    """``plain`` is the drawing that the file must show; None for an annotated one."""
    if stamp is None:
        yield f"carries no stamp: it was not drawn by milvus-lifecycle diagram; {REMEDY}"
        return
    if not stamp.body:
        yield "was changed by hand since it was drawn"
    if stamp.table != table_digest(table):
        yield f"was drawn from another table: {REMEDY if plain else 'draw it anew'}"
    elif plain is not None and stamp.dot != digest(to_dot(plain)):
        yield f"was drawn by another version of the drawing code: {REMEDY}"
    if plain is not None:
        try:
            missing = sorted(drawn_texts(plain) - svg_texts(text))
        except ElementTree.ParseError as error:
            yield f"is not well-formed: {error}"
            return
        if missing:
            yield f"lacks {', '.join(repr(entry) for entry in missing)}"


def drawn_texts(drawing: Drawing) -> set[str]:
    """Every state and every label line of a drawing, as `svg_texts` finds them in an SVG."""
    texts = {
        _words(words)
        for node in drawing.nodes
        if node.name != START
        for words in (node.name, *node.notes, *map(str, node.lines))
    }
    return texts | {
        f"{edge.source} to {edge.dest}: {_words(str(line))}"
        for edge in drawing.edges
        for line in edge.lines
    }


def svg_texts(svg: str) -> set[str]:
    """What an SVG says: the words in each node, and ``SOURCE to DEST: label`` for each edge."""
    found: set[str] = set()
    for group in ElementTree.fromstring(svg.encode()).iter(f"{_SVG}g"):
        kind, title = group.get("class"), group.findtext(f"{_SVG}title", "")
        if kind == "node":
            found.update(_lines_of(group))
        elif kind == "edge":
            name = title.partition("\n")[0]
            found.update(f"{name}: {line}" for line in _lines_of(group))
    return found


def _lines_of(group: ElementTree.Element) -> Iterator[str]:
    """The text lines of a node or edge: pieces of about one height, from left to right."""
    lines: list[tuple[float, list[tuple[float, str]]]] = []
    for text in group.iter(f"{_SVG}text"):
        x, y = float(text.get("x", "0")), float(text.get("y", "0"))
        # Bold and small letters of one line stand a fraction of a point higher or lower.
        line = next((pieces for height, pieces in lines if abs(height - y) < _LINE), None)
        if line is None:
            lines.append((y, line := []))
        line.append((x, text.text or ""))
    for _, pieces in lines:
        yield _words(" ".join(words for _, words in sorted(pieces)))


def _words(text: str) -> str:
    return re.sub(r"\s+", " ", text).strip()
