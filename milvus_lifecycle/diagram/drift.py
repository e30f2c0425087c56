"""The checked-in drawings of the table: write them, and tell when they no longer show it.

Mermaid is compared byte by byte. An SVG cannot be: its coordinates depend on Graphviz' release
and on the fonts of the machine that drew it. Its stamp says what it was drawn from, so that a
patch release of Graphviz changes nothing here and a changed row does. Checking needs no
pygraphviz.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path

from ..table import TRANSITIONS, Row
from .drawing import Drawing, draw
from .formats import Stamp, digest, read_stamp, render_svg, table_digest, to_dot, to_mermaid

MERMAID_NAME = "lifecycle.mmd"
SVG_NAME = "lifecycle.svg"
REMEDY = "milvus-lifecycle diagram --write DIR draws it anew"


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
