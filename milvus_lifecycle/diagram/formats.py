"""A drawing of the lifecycle as a picture: SVG and PNG, through the Graphviz of pygraphviz.

The wheel of pygraphviz (extra ``diagram``) brings Graphviz with it; no system binary is asked
for. It is imported only when a picture is drawn. An SVG carries a stamp of what it was drawn
from: coordinates depend on Graphviz' release and on the fonts of the machine, so two good
drawings of one table differ in their bytes, but never in their stamp.
"""

from __future__ import annotations

import contextlib
import hashlib
import html
import importlib
import os
import re
import tempfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Protocol, cast

from ..table import TRANSITIONS, Row
from .drawing import Drawing, Edge
from .text import NOTICE, to_dot

EXTRA = "milvus_lifecycle[diagram]"
#: Pixels per inch of a PNG: sharp on today's screens.
_PNG_DPI = 144
_STAMP_ID = "milvus-lifecycle"
_DESC_END = "</desc>"


class RendererMissing(ImportError):
    """SVG or PNG was asked for, and pygraphviz is not installed or does not load."""


class _Graph(Protocol):
    """The part of ``pygraphviz.AGraph`` that is used here (the package has no types)."""

    def draw(self, path: None, *, format: str, prog: str, args: str) -> bytes:
        """Lay out and render; the picture's bytes."""

    def close(self) -> None:
        """Free the C graph."""


@dataclass(frozen=True)
class Stamp:
    """What an SVG was drawn from, as SHA-256 digests in hexadecimal.

    ``table``: the rows as drawn. ``dot``: the whole DOT text, with look, words and figures.
    ``body``: the SVG itself, the stamp aside: whoever edits the file by hand breaks it.
    """

    table: str
    dot: str
    body: str


def render_svg(drawing: Drawing, rows: Iterable[Row] = TRANSITIONS) -> str:
    """The drawing as a self-contained SVG, stamped. Raises RendererMissing."""
    dot = to_dot(drawing)
    body = _tidy(_render(dot, "svg").decode("utf-8"), drawing)
    stamp = Stamp(table_digest(rows), digest(dot), digest(body))
    content = f"table={stamp.table} dot={stamp.dot} body={stamp.body}"
    place = body.index(_DESC_END) + len(_DESC_END)
    return f'{body[:place]}\n<metadata id="{_STAMP_ID}">{content}</metadata>{body[place:]}'


def render_png(drawing: Drawing) -> bytes:
    """The drawing as a PNG. Raises RendererMissing."""
    return _render(to_dot(drawing), "png", f"-Gdpi={_PNG_DPI}")


def finds_fonts() -> bool:
    """Has this machine a font to draw letters with? Bare containers have none, and Graphviz
    draws boxes of one width instead. Raises RendererMissing."""
    probe = "graph { node [shape=plain]; narrow [label=iiiiiiii]; wide [label=WWWWWWWW]; }"
    lines = _render(probe, "plain").decode().splitlines()
    widths = [line.split()[4] for line in lines if line.startswith("node ")]
    return len(set(widths)) > 1


def read_stamp(svg: str) -> Stamp | None:
    """The stamp of an SVG; None if it has none. ``body`` is computed from what is there now
    if it equals the digest that was written, else it is empty."""
    found = re.search(
        rf'\n<metadata id="{_STAMP_ID}">table=(\w+) dot=(\w+) body=(\w+)</metadata>', svg
    )
    if found is None:
        return None
    table, dot, body = found.groups()
    intact = digest(svg[: found.start()] + svg[found.end() :]) == body
    return Stamp(table, dot, body if intact else "")


def table_digest(rows: Iterable[Row] = TRANSITIONS) -> str:
    """One digest of what every drawing shows of a table: its arrows and their guards."""
    drawn = (
        "\x1f".join((row.trigger.value, row.source.value, row.dest.value, row.guard))
        for row in rows
    )
    return digest("\x1e".join(drawn))


def digest(text: str) -> str:
    """SHA-256, whatever line ends a checkout gave the file."""
    return hashlib.sha256(text.replace("\r\n", "\n").encode()).hexdigest()


def _render(dot: str, form: str, args: str = "") -> bytes:
    graph = _load(dot)
    try:
        with _without_fontconfig():
            return graph.draw(None, format=form, prog="dot", args=args)
    finally:
        graph.close()


@contextlib.contextmanager
def _without_fontconfig() -> Iterator[None]:
    """Drop what Fontconfig says on standard error; everything else is said afterwards.

    The wheel's Fontconfig reads the machine's configuration and complains of every element in
    it that is newer than itself. Whether there are fonts at all, ``finds_fonts`` tells. The C
    code writes to the descriptor, so that is what is replaced.
    """
    with contextlib.ExitStack() as stack:
        try:
            said = stack.enter_context(tempfile.TemporaryFile())
            stderr = stack.enter_context(os.fdopen(os.dup(2), "wb"))
        except OSError:  # no standard error, or nowhere to keep what is said
            yield
            return
        os.dup2(said.fileno(), 2)
        try:
            yield
        finally:
            os.dup2(stderr.fileno(), 2)
            said.seek(0)
            stderr.writelines(line for line in said if not line.startswith(b"Fontconfig "))


def _load(dot: str) -> _Graph:
    try:
        pygraphviz = importlib.import_module("pygraphviz")
    except ImportError as error:
        raise RendererMissing(
            f"SVG and PNG need pygraphviz, which brings Graphviz with it: pip install '{EXTRA}' "
            f"({error}). Mermaid and DOT need nothing."
        ) from error
    return cast(_Graph, pygraphviz.AGraph(string=dot))


_COMMENT = re.compile(r"<!--.*?-->\n?", re.DOTALL)
_DOCTYPE = re.compile(r"<!DOCTYPE.*?>\n?", re.DOTALL)
_TOOLTIP = re.compile(r'<g id="a_[^"]*"><a xlink:title="[^"]*">\n(.*?)</a>\n</g>\n', re.DOTALL)
_TITLE = re.compile(r'(<g id="([^"]*)" class="(?:node|edge)">\s*)<title>.*?</title>')


def _tidy(svg: str, drawing: Drawing) -> str:
    """Drop what names Graphviz' release or points to the network, and name things rightly."""
    svg = _DOCTYPE.sub("", _COMMENT.sub("", svg.replace("\r\n", "\n")))
    svg = svg.replace(' standalone="no"', "", 1).replace("<title>lifecycle</title>\n", "", 1)
    # Graphviz gives tooltips as links, which not every browser shows, and its titles would lie
    # where an edge was laid out against its direction. A group's own title serves for both.
    titles = {f"state-{node.id}": node.name for node in drawing.nodes}
    titles |= {f"edge-{edge.source}-{edge.dest}": edge_title(edge) for edge in drawing.edges}

    def name(found: re.Match[str]) -> str:
        title = titles.get(html.unescape(found[2]), "")
        return f"{found[1]}<title>{html.escape(title, quote=False)}</title>"

    svg = _TITLE.sub(name, _TOOLTIP.sub(r"\1", svg))
    title = html.escape(drawing.title, quote=False)
    words = html.escape(" ".join((*drawing.caption, NOTICE)), quote=False)
    opening = svg.index(">", svg.index("<svg"))
    return (
        f'{svg[:opening]} role="img" style="max-width:100%;height:auto">\n'
        f"<title>{title}</title>\n<desc>{words}{_DESC_END}{svg[opening + 1 :]}"
    )


def edge_title(edge: Edge) -> str:
    """What an edge of an SVG says when one points at it; its first line is its name."""
    return "\n".join((f"{edge.source} to {edge.dest}", *edge.hints))
