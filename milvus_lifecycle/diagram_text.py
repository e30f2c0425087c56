"""A drawing of the lifecycle as text: Mermaid for Markdown pages, DOT for Graphviz.

Both are written here rather than by ``transitions``' diagram support, whose backends put all
of an edge's triggers into one line (a picture of 4,000 pixels), know no final state, no groups
and no figures, and whose Mermaid state diagrams cannot style an edge at all; a flowchart can.
The same drawing gives the same bytes everywhere.
"""

from __future__ import annotations

import html
from collections.abc import Iterator

from .diagram import DIM_TEXT, GROUP, START, Drawing, Edge, Line, Node

NOTICE = "Generated from milvus_lifecycle/table.py by `milvus-lifecycle diagram`; do not edit."
#: Measured by Graphviz where it draws, and used by whoever shows the SVG: the fallbacks are no
#: wider than the first, so that a label never outgrows its place.
FONTS = "DejaVu Sans,Verdana,Arial,sans-serif"
_GUARD_COLOR = "#595f69"
#: heat -> (fill, text) of the label's box: darker and darker, in grey too.
_HEAT = {1: ("#ffe7d6", "#7a3000"), 2: ("#ffb98a", "#5c2400"), 3: ("#a83f00", "#ffffff")}


# -- DOT --------------------------------------------------------------------------------------


def to_dot(drawing: Drawing) -> str:
    """The drawing in Graphviz' language; ``dot`` lays it out."""
    return "\n".join(("// " + NOTICE, "digraph lifecycle {", *_dot_body(drawing), "}", ""))


def _dot_body(drawing: Drawing) -> Iterator[str]:
    caption = "".join(f'<br align="left"/>{_markup(line)}' for line in drawing.caption)
    title = f'<b>{_markup(drawing.title)}</b>{caption}<br align="left"/>'
    yield (
        f"  graph [{_font(9)}, rankdir=TB, nodesep=0.3, ranksep=0.4, pad=0.2, bgcolor=white, "
        f"labelloc=b, labeljust=l, label=<{title}>, fontcolor={_quote(_GUARD_COLOR)}];"
    )
    yield f'  node [{_font(13)}, shape=box, style="rounded,filled", margin="0.22,0.1"];'
    yield f"  edge [{_font(10.5)}, arrowsize=0.8];"
    for node in drawing.nodes:
        yield f"  {_quote(node.id)} [{_dot_node(node)}];"
    for edge in drawing.edges:
        yield f"  {_quote(edge.source)} -> {_quote(edge.dest)} [{_dot_edge(edge)}];"


def _font(size: float) -> str:
    return f"fontname={_quote(FONTS)}, fontsize={size:g}"


def _dot_node(node: Node) -> str:
    common = f"id={_quote('state-' + node.id)}, color={_quote(node.look.color)}"
    if node.name == START:
        return (
            f'{common}, shape=circle, style=filled, fillcolor={_quote(node.look.color)}, label="", '
            'width=0.15, fixedsize=true, tooltip="a new connection"'
        )
    if node.name == GROUP:
        color = DIM_TEXT if node.dim else node.look.color
        return (
            f'{common}, style="rounded,dotted", fontsize=10, fontcolor={_quote(color)}, '
            f'label=<<i>{_markup(node.name)}</i>>, margin="0.1,0.05", height=0.28, '
            f"tooltip={_quote(node.name)}"
        )
    outline = (
        f"rounded,filled,{node.look.style}" if node.look.style != "solid" else "rounded,filled"
    )
    notes = "".join(f'<br/><font point-size="10">{_markup(note)}</font>' for note in node.notes)
    width = node.look.width + (2.5 if node.marked else 0)
    return (
        f"{common}, style={_quote(outline)}, fillcolor={_quote(node.look.fill)}, "
        f"penwidth={width:g}, peripheries={2 if node.look.final else 1}, "
        f"fontcolor={_quote(DIM_TEXT if node.dim else '#111111')}, "
        f"label=<<b>{_markup(node.name)}</b>{notes}>, tooltip={_quote(node.name)}"
    )


def _dot_edge(edge: Edge) -> str:
    look = edge.look
    parts = [
        f"id={_quote(f'edge-{edge.source}-{edge.dest}')}",
        f"color={_quote(look.color)}",
        f"penwidth={look.width:g}",
    ]
    if look.style != "solid":
        parts.append(f"style={look.style}")
    if look.final:
        parts.append("arrowhead=normaltee")
    if edge.lines:
        parts.append(f"label=<{_dot_label(edge)}>")
    hint = _quote("\n".join(edge.hints))
    parts += (f"edgetooltip={hint}", f"labeltooltip={hint}")
    return ", ".join(parts)


def _dot_label(edge: Edge) -> str:
    """A table with a row for each line, its left column a gap between the curve and the text."""
    columns = max(len(line.figures) for line in edge.lines)
    rows = "".join(_dot_line(line, edge.look.color, columns) for line in edge.lines)
    return f'<table border="0" cellborder="0" cellspacing="0" cellpadding="1">{rows}</table>'


def _dot_line(line: Line, color: str, columns: int) -> str:
    fill, text = _HEAT.get(line.heat, ("", DIM_TEXT if line.dim else color))
    box = f' bgcolor="{fill}"' if fill else ""

    def cell(content: str, more: str = "") -> str:
        return f'<td align="left"{more}{box}><font color="{text}">{content}</font></td>'

    words = _markup(line.trigger)
    if line.heat:
        words = f"<b>{words}</b>"
    if line.guard:
        guard = _markup(f"[{line.guard}]")
        words += f' <font point-size="9" color="{_GUARD_COLOR}">{guard}</font>'
    cells = [cell(words, f' colspan="{columns + 1}"' if columns and not line.figures else "")]
    if line.figures:
        cells += (cell(f"&#160;{_markup(figure)}") for figure in line.figures)
        cells += (cell("") for _ in range(columns - len(line.figures)))
    return f'<tr><td width="4"></td>{"".join(cells)}</tr>'


def _quote(text: str) -> str:
    escaped = text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
    return f'"{escaped}"'


def _markup(text: str) -> str:
    return html.escape(text, quote=False)


# -- Mermaid ----------------------------------------------------------------------------------

_ARROWS = {"solid": "-->", "dashed": "-.->", "dotted": "-.->"}


def to_mermaid(drawing: Drawing) -> str:
    """The drawing as a Mermaid flowchart, which GitHub and most documentation tools render."""
    head = (
        "---",
        f"title: {_yaml(drawing.title)}",
        "---",
        "%% " + NOTICE,
        *(f"%% {line}" for line in drawing.caption),
        "flowchart TD",
    )
    return "\n".join((*head, *("    " + line for line in _mermaid_body(drawing)), ""))


def _mermaid_body(drawing: Drawing) -> Iterator[str]:
    yield from map(_mermaid_node, drawing.nodes)
    yield from map(_mermaid_edge, drawing.edges)
    for node in drawing.nodes:
        yield f"style {node.id} {_mermaid_outline(node)}"
    for number, edge in enumerate(drawing.edges):
        yield f"linkStyle {number} {_mermaid_stroke(edge)}"


def _mermaid_node(node: Node) -> str:
    if node.name == START:
        return f'{node.id}((" "))'
    if node.name == GROUP:
        return f'{node.id}(["<i>{_entities(node.name)}</i>"])'
    label = "<br/>".join((f"<b>{_entities(node.name)}</b>", *map(_entities, node.notes)))
    return f'{node.id}((("{label}")))' if node.look.final else f'{node.id}("{label}")'


def _mermaid_edge(edge: Edge) -> str:
    arrow = _ARROWS[edge.look.style]
    label = "<br/>".join(_mermaid_line(line) for line in edge.lines)
    return f"{edge.source} {arrow}{f'|{chr(34)}{label}{chr(34)}|' if label else ''} {edge.dest}"


def _mermaid_line(line: Line) -> str:
    words = _entities(str(line))
    return f"<b>{words}</b>" if line.heat else words


def _mermaid_outline(node: Node) -> str:
    look = node.look
    if node.name == START:
        return f"fill:{look.color},stroke:{look.color}"
    if node.name == GROUP:
        return f"fill:transparent,stroke:{look.color},stroke-dasharray:2 3"
    dashes = ",stroke-dasharray:6 4" if look.style == "dashed" else ""
    text = DIM_TEXT if node.dim else "#111111"
    width = look.width + (2.5 if node.marked else 0)
    return f"fill:{look.fill},stroke:{look.color},stroke-width:{width:g}px,color:{text}{dashes}"


def _mermaid_stroke(edge: Edge) -> str:
    dashes = {"dashed": ",stroke-dasharray:6 4", "dotted": ",stroke-dasharray:2 3"}
    text = f",color:{DIM_TEXT}" if edge.dim else ""
    width = f"stroke-width:{edge.look.width:g}px"
    # No colour for the final state's lines: black would vanish on a dark page.
    stroke = "" if edge.look.final and not edge.dim else f"stroke:{edge.look.color},"
    return f"{stroke}{width}{dashes.get(edge.look.style, '')}{text}"


def _entities(text: str) -> str:
    """Mermaid's own escapes: what would end a label, or be taken for markup."""
    named = {'"': "#quot;", "<": "#lt;", ">": "#gt;", "&": "#amp;", "#": "#35;", "|": "#124;"}
    return "".join(named.get(letter, letter) for letter in text)


def _yaml(text: str) -> str:
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'
