"""A drawing of the lifecycle as Mermaid, DOT and SVG, and the checked-in drawings of the table.

The texts are written here rather than by ``transitions``' diagram support, whose backends put all
of an edge's triggers into one line (a picture of 4,000 pixels), know no final state, no groups
and no figures, and whose Mermaid state diagrams cannot style an edge at all; a flowchart can.

An SVG carries a stamp of what it was drawn from: coordinates depend on Graphviz' release and on
the fonts of the machine, so two good drawings of one table differ in their bytes, but never in
their stamp. Checking compares stamps, and Mermaid byte by byte. Only a picture that is drawn
needs pygraphviz (extra ``diagram``), whose wheel brings Graphviz with it.
"""

from __future__ import annotations

import contextlib
import hashlib
import html
import json
import os
import re
import tempfile
from collections.abc import Iterable, Iterator
from functools import partial
from pathlib import Path

from ..table import TRANSITIONS, Row
from .drawing import DIM_TEXT, GROUP, START, Drawing, Edge, Line, Look, Node, draw

NOTICE = "Generated from milvus_lifecycle/table.py by `milvus-lifecycle diagram`; do not edit."
#: Measured by Graphviz where it draws, and used by whoever shows the SVG: the fallbacks are no
#: wider than the first, so that a label never outgrows its place.
FONTS = "DejaVu Sans,Verdana,Arial,sans-serif"
#: The states from left to right (DOT) and from top to bottom (Mermaid): of all orders those in
#: which fewest lines cross and no labels collide. States not named here come last.
DOT_ORDER = ("IDLE", "RECOVERING", "CLOSED", "ACTIVE", "PROBING")
MERMAID_ORDER = ("IDLE", "PROBING", "RECOVERING", "ACTIVE", "CLOSED")
_GUARD_COLOR = "#57606a"
#: heat -> (fill, text) of the label's box: darker and darker, in grey too.
_HEAT = {1: ("#ffe7d6", "#7a3000"), 2: ("#ffb98a", "#5c2400"), 3: ("#a83f00", "#ffffff")}
#: JSON's way of quoting is DOT's and YAML's, too.
_quote = partial(json.dumps, ensure_ascii=False)
_markup = partial(html.escape, quote=False)


def _arranged(drawing: Drawing, order: tuple[str, ...]) -> tuple[list[Node], list[Edge]]:
    """Nodes and edges in the order in which a layout engine shall meet them."""
    rank = {name: index for index, name in enumerate((START, *order))}
    last = len(rank)
    # Sorting is stable: what is not ranked keeps the order of the table.
    nodes = sorted(drawing.nodes, key=lambda node: rank.get(node.id, last + bool(node.target)))
    place = {node.id: index for index, node in enumerate(nodes)}
    return nodes, sorted(drawing.edges, key=lambda edge: (place[edge.source], place[edge.dest]))


# -- DOT --------------------------------------------------------------------------------------


def to_dot(drawing: Drawing) -> str:
    """The drawing in Graphviz' language; ``dot`` lays it out."""
    return "\n".join(("// " + NOTICE, "digraph lifecycle {", *_dot_body(drawing), "}", ""))


def _dot_body(drawing: Drawing) -> Iterator[str]:
    words = (f"<b>{_markup(drawing.title)}</b>", *map(_markup, drawing.caption))
    caption = "".join(f'{line}<br align="left"/>' for line in words)
    yield (
        f"  graph [{_font(9)}, fontcolor={_quote(_GUARD_COLOR)}, rankdir=LR, nodesep=0.3, "
        f"ranksep=0.3, pad=0.2, bgcolor=white, labelloc=b, labeljust=l, label=<{caption}>];"
    )
    yield f'  node [{_font(13)}, shape=box, margin="0.2,0.1"];'
    yield f"  edge [{_font(10.5)}, arrowsize=0.8];"
    nodes, edges = _arranged(drawing, DOT_ORDER)
    for node in nodes:
        yield f"  {_quote(node.id)} [{', '.join(_dot_node(node))}];"
    place = {node.id: index for index, node in enumerate(nodes)}
    first = nodes[0].target
    for node in nodes:
        if node.name == GROUP and node.target == first:
            place[node.id] = -1
        elif node.name == GROUP:
            yield f"  {{rank=same; {_quote(node.id)}; {_quote(node.target)};}}"
    for edge in reversed(edges):
        # Every edge is written from left to right, so that dot ranks the states in their
        # order; what leads back is told by its arrow. Last first: dot breaks ties by it, and
        # this way lines keep clear of each other at IDLE.
        back = place[edge.source] > place[edge.dest]
        tail, head = (edge.dest, edge.source) if back else (edge.source, edge.dest)
        yield f"  {_quote(tail)} -> {_quote(head)} [{', '.join(_dot_edge(edge, back))}];"


def _font(size: float) -> str:
    return f"fontname={_quote(FONTS)}, fontsize={size:g}"


def _dot_node(node: Node) -> Iterator[str]:
    look = node.look
    yield f"id={_quote('state-' + node.id)}"
    yield f"color={_quote(look.color)}"
    if node.name == START:
        yield f'label="", shape=circle, style=filled, fillcolor={_quote(look.color)}'
        yield 'width=0.15, fixedsize=true, tooltip="a new connection"'
        return
    text = DIM_TEXT if node.dim else "#111111" if node.name != GROUP else look.color
    outline = "rounded,filled" + (f",{look.style}" if look.style != "solid" else "")
    yield f"style={_quote(outline)}, fontcolor={_quote(text)}, tooltip={_quote(node.name)}"
    if node.name == GROUP:
        words = "<br/>".join((*map(_markup, map(str, node.lines)), f"<i>{_markup(node.name)}</i>"))
        yield f'fillcolor=white, fontsize=10, margin="0.1,0.06", label=<{words}>'
        return
    notes = "".join(f'<br/><font point-size="10">{_markup(note)}</font>' for note in node.notes)
    yield f"fillcolor={_quote(look.fill)}, penwidth={look.width:g}, width=1.1"
    yield f"peripheries={2 if look.final else 1}, label=<<b>{_markup(node.name)}</b>{notes}>"


def _dot_edge(edge: Edge, back: bool) -> Iterator[str]:
    look = edge.look
    yield f"id={_quote(f'edge-{edge.source}-{edge.dest}')}"
    yield f"color={_quote(look.color)}, penwidth={look.width:g}"
    if look.style != "solid":
        yield f"style={look.style}"
    if back:
        yield "dir=back"
    if look.final:
        yield f"{'arrowtail' if back else 'arrowhead'}=teenormal"
    if edge.lines:
        # A column for each figure; before them a gap between the curve and the text.
        columns = max(len(line.figures) for line in edge.lines)
        rows = "".join(_dot_line(line, look.color, columns) for line in edge.lines)
        frame = 'border="0" cellborder="0" cellspacing="0" cellpadding="1"'
        yield f"label=<<table {frame}>{rows}</table>>"
    hint = _quote("\n".join(edge.hints))
    yield f"edgetooltip={hint}, labeltooltip={hint}"


def _dot_line(line: Line, color: str, columns: int) -> str:
    fill, text = _HEAT.get(line.heat, ("", DIM_TEXT if line.dim else color))
    box = f' bgcolor="{fill}"' if fill else ""

    def cell(content: str) -> str:
        return f'<td align="left"{box}><font color="{text}">{content}</font></td>'

    words = _markup(line.trigger)
    if line.heat:
        words = f"<b>{words}</b>"
    if line.guard:
        guard = _markup(f"[{line.guard}]")
        words += f' <font point-size="9" color="{_GUARD_COLOR}">{guard}</font>'
    cells = [cell(words)]
    cells += (cell(f"&#160;{_markup(figure)}") for figure in line.figures)
    # Graphviz takes an empty <font> for a syntax error.
    cells += [f"<td{box}></td>"] * (columns - len(line.figures))
    return f'<tr><td width="4"></td>{"".join(cells)}</tr>'


# -- Mermaid ----------------------------------------------------------------------------------

_MERMAID_CONFIG = ("config:", "  flowchart:", "    nodeSpacing: 60", "    rankSpacing: 60")
_DASHES = {"solid": "", "dashed": ",stroke-dasharray:6 4", "dotted": ",stroke-dasharray:2 3"}


def to_mermaid(drawing: Drawing) -> str:
    """The drawing as a Mermaid flowchart, which GitHub and most documentation tools render."""
    head = ("---", f"title: {_quote(drawing.title)}", *_MERMAID_CONFIG, "---")
    remarks = (f"%% {line}" for line in (NOTICE, *drawing.caption))
    body = ("    " + line for line in _mermaid_body(drawing))
    return "\n".join((*head, *remarks, "flowchart TD", *body, ""))


def _mermaid_body(drawing: Drawing) -> Iterator[str]:
    nodes, edges = _arranged(drawing, MERMAID_ORDER)
    yield from map(_mermaid_node, nodes)
    yield from map(_mermaid_edge, edges)
    for node in nodes:
        yield f"style {node.id} {_mermaid_outline(node)}"
    for number, edge in enumerate(edges):
        yield f"linkStyle {number} {_mermaid_stroke(edge)}"


def _mermaid_node(node: Node) -> str:
    if node.name == START:
        return f'{node.id}((" "))'
    if node.name == GROUP:
        label = "<br/>".join((*map(_mermaid_line, node.lines), f"<i>{_entities(node.name)}</i>"))
        return f'{node.id}(["{label}"])'
    label = "<br/>".join((f"<b>{_entities(node.name)}</b>", *map(_entities, node.notes)))
    return f'{node.id}((("{label}")))' if node.look.final else f'{node.id}("{label}")'


def _mermaid_edge(edge: Edge) -> str:
    arrow = "-->" if edge.look.style == "solid" else "-.->"
    label = "<br/>".join(map(_mermaid_line, edge.lines))
    return f"{edge.source} {arrow}{f'|{chr(34)}{label}{chr(34)}|' if label else ''} {edge.dest}"


def _mermaid_line(line: Line) -> str:
    # Unbreakable: Mermaid wraps an edge's label at 200 pixels.
    words = _entities(str(line)).replace(" ", "\u00a0")
    return f"<b>{words}</b>" if line.heat else words


def _mermaid_outline(node: Node) -> str:
    look = node.look
    if node.name == START:
        return f"fill:{look.color},stroke:{look.color}"
    if node.name == GROUP:
        return f"fill:transparent,stroke:{Look().color}{_DASHES['dotted']}"
    text = f"color:{DIM_TEXT if node.dim else '#111111'}{_DASHES[look.style]}"
    return f"fill:{look.fill},stroke:{look.color},stroke-width:{look.width:g}px,{text}"


def _mermaid_stroke(edge: Edge) -> str:
    text = f",color:{DIM_TEXT}" if edge.dim else ""
    width = f"stroke-width:{edge.look.width:g}px"
    # Black and grey are left to the page's theme: they would vanish on a dark one.
    neutral = edge.look.final or edge.look.color == Look().color
    stroke = "" if neutral and not edge.dim else f"stroke:{edge.look.color},"
    return f"{stroke}{width}{_DASHES[edge.look.style]}{text}"


def _entities(text: str) -> str:
    """Mermaid's own escapes: what would end a label, or be taken for markup."""
    named = {'"': "#quot;", "<": "#lt;", ">": "#gt;", "&": "#amp;", "#": "#35;", "|": "#124;"}
    return "".join(named.get(letter, letter) for letter in text)


# -- SVG ----------------------------------------------------------------------------------------

_STAMP_ID = "milvus-lifecycle"
_DESC_END = "</desc>"


class RendererMissing(ImportError):
    """An SVG was asked for, and pygraphviz is not installed or does not load."""


def render_svg(drawing: Drawing, rows: Iterable[Row] = TRANSITIONS) -> str:
    """The drawing as a self-contained SVG, stamped. Raises RendererMissing."""
    dot = to_dot(drawing)
    body = _tidy(_render(dot, "svg").decode("utf-8"), drawing)
    content = f"table={table_digest(rows)} dot={digest(dot)} body={digest(body)}"
    place = body.index(_DESC_END) + len(_DESC_END)
    return f'{body[:place]}\n<metadata id="{_STAMP_ID}">{content}</metadata>{body[place:]}'


def render_png(drawing: Drawing) -> bytes:
    """The drawing as a PNG. Raises RendererMissing."""
    return _render(to_dot(drawing), "png", "-Gdpi=144")


def read_stamp(svg: str) -> tuple[str, str, bool] | None:
    """What an SVG was drawn from: digests of the rows as drawn, and of the whole DOT text with
    look, words and figures. Is the file as it was written? None: it carries no stamp."""
    found = re.search(
        rf'\n<metadata id="{_STAMP_ID}">table=(\w+) dot=(\w+) body=(\w+)</metadata>', svg
    )
    if found is None:
        return None
    table, dot, body = found.groups()
    return table, dot, digest(svg[: found.start()] + svg[found.end() :]) == body


def table_digest(rows: Iterable[Row] = TRANSITIONS) -> str:
    """One digest of what every drawing shows of a table: its arrows and their guards."""
    drawn = ((row.trigger.value, row.source.value, row.dest.value, row.guard) for row in rows)
    return digest("\x1e".join(map("\x1f".join, drawn)))


def digest(text: str) -> str:
    """SHA-256, whatever line ends a checkout gave the file."""
    return hashlib.sha256(text.replace("\r\n", "\n").encode()).hexdigest()


def _render(dot: str, form: str, args: str = "") -> bytes:
    try:
        import pygraphviz
    except ImportError as error:
        raise RendererMissing(
            "SVG and PNG need pygraphviz, which brings Graphviz with it: pip install "
            f"'milvus_lifecycle[diagram]' ({error}). Mermaid and DOT need nothing."
        ) from error
    with contextlib.closing(pygraphviz.AGraph(string=dot)) as graph, _without_fontconfig():
        picture: bytes = graph.draw(None, format=form, prog="dot", args=args)
        return picture


@contextlib.contextmanager
def _without_fontconfig() -> Iterator[None]:
    """Drop what Fontconfig says on standard error; everything else is said afterwards.

    The wheel's Fontconfig reads the machine's configuration and complains of every element in
    it that is newer than itself. The C code writes to the descriptor, so that is replaced.
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


_NOISE = re.compile(r"<!(?:--.*?--|DOCTYPE.*?)>\n?", re.DOTALL)
_TOOLTIP = re.compile(r'<g id="a_[^"]*"><a xlink:title="[^"]*">\n(.*?)</a>\n</g>\n', re.DOTALL)
_TITLE = re.compile(r'(<g id="([^"]*)" class="(?:node|edge)">\s*)<title>.*?</title>')


def _tidy(svg: str, drawing: Drawing) -> str:
    """Drop what names Graphviz' release or points to the network, and name things rightly."""
    svg = _NOISE.sub("", svg.replace("\r\n", "\n"))
    svg = svg.replace(' standalone="no"', "", 1).replace("<title>lifecycle</title>\n", "", 1)
    # Graphviz gives tooltips as links, which not every browser shows, and its titles would lie
    # where an edge was laid out against its direction. A group's own title serves for both.
    titles = {f"state-{node.id}": node.name for node in drawing.nodes}
    for edge in drawing.edges:
        words = "\n".join((f"{edge.source} to {edge.dest}", *edge.hints))
        titles[f"edge-{edge.source}-{edge.dest}"] = words

    def name(found: re.Match[str]) -> str:
        title = titles.get(html.unescape(found[2]), "")
        return f"{found[1]}<title>{_markup(title)}</title>"

    svg = _TITLE.sub(name, _TOOLTIP.sub(r"\1", svg))
    said = _markup(" ".join((*drawing.caption, NOTICE)))
    opening = svg.index(">", svg.index("<svg"))
    return (
        f'{svg[:opening]} role="img" style="max-width:100%;height:auto">\n'
        f"<title>{_markup(drawing.title)}</title>\n<desc>{said}{_DESC_END}{svg[opening + 1 :]}"
    )


# -- the checked-in drawings ---------------------------------------------------------------------

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
    found = []
    kept = (folder / MERMAID_NAME, folder / SVG_NAME)
    for path in dict.fromkeys((*kept, *sorted(folder.glob("*.svg")))):
        if not path.is_file():
            found.append(f"{path} is missing: {REMEDY}")
            continue
        text = path.read_text(encoding="utf-8", errors="replace")
        if path.name != MERMAID_NAME:
            plain = drawing if path.name == SVG_NAME else None
            found += (f"{path} {problem}" for problem in _svg_drift(text, table, plain))
        elif digest(text) != digest(to_mermaid(drawing)):
            found.append(f"{path} does not show the table: {REMEDY}")
    return found


def _svg_drift(text: str, table: tuple[Row, ...], plain: Drawing | None) -> Iterator[str]:
    """``plain`` is the drawing that the file must show; None for an annotated one."""
    stamp = read_stamp(text)
    if stamp is None:
        if plain is not None:
            yield f"carries no stamp: it was not drawn by milvus-lifecycle diagram; {REMEDY}"
        return
    rows, dot, intact = stamp
    if not intact:
        yield "was changed by hand since it was drawn"
    if rows != table_digest(table):
        yield f"was drawn from another table: {REMEDY if plain else 'draw it anew'}"
    elif plain is not None and dot != digest(to_dot(plain)):
        yield f"was drawn by another version of the drawing code: {REMEDY}"
