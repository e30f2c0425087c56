"""The lifecycle as a drawing: what is shown of the table (and of a log's figures), and its look.

    TRANSITIONS (+ Stats) --draw()--> Drawing --formats--> Mermaid, DOT, SVG

Nothing here is known of the lifecycle beyond the table, except the states' colours: a changed
row changes the drawing, and a state without a colour of its own is drawn in a plain one. All
rows of one (source, dest) share one edge, a line each; a trigger that leads from every live
state to the same place is drawn once.

To be read in black and white as well: a line looks like the outline of the state it leads to
(thick, dashed, ...), and nothing is said by colour alone. The colours are those of Okabe and
Ito, darkened until text in them has a contrast of 4.5 on white (WCAG AA).
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from ..replay.findings import clean
from ..table import TRANSITIONS, Row, State

if TYPE_CHECKING:  # reading logs asks for an extra, and drawing the table does not
    from ..replay.stats import Edge as Key
    from ..replay.stats import Stats

INITIAL = State.IDLE.value
START = "start"
GROUP = "any live state"

#: What never happened: faint, and dotted besides.
DIM = "#a3a3a3"
DIM_TEXT = "#8c8c8c"
#: Figures of this many per recovery raise the heat from 1 to 2, and from 2 to 3.
HEAT = {"retry": (0.5, 2.0), "give_up": (0.05, 0.25)}


@dataclass(frozen=True)
class Look:
    """A state's outline, and the line of every edge that leads there. ``width`` in points."""

    color: str = "#57606a"
    fill: str = "#f1f2f4"
    width: float = 1.0
    style: str = "solid"
    final: bool = False


_LOOKS = {
    "IDLE": Look(),
    "ACTIVE": Look("#00734d", "#d8f0e6", 1.6),
    "PROBING": Look("#0067a3", "#dcedf9", 1.4, "dashed"),
    "RECOVERING": Look("#b34700", "#fde4d2", 2.6),
    "CLOSED": Look("#1f1f1f", "#ffffff"),
}


@dataclass(frozen=True)
class Line:
    """One trigger in a label. ``figures``: e.g. times taken, median time before it."""

    trigger: str
    guard: str = ""
    figures: tuple[str, ...] = ()
    heat: int = 0
    dim: bool = False

    def __str__(self) -> str:
        guard = f" [{self.guard}]" if self.guard else ""
        return f"{self.trigger}{guard}{''.join('  ' + figure for figure in self.figures)}"


@dataclass(frozen=True)
class Node:
    """A state, or a mark beside one: the ``START``, or a ``GROUP`` of states and what leads on.

    ``lines`` are the triggers of a group's only edge; ``target`` is the state beside which a
    mark stands.
    """

    id: str
    name: str
    look: Look
    notes: tuple[str, ...] = ()
    lines: tuple[Line, ...] = ()
    target: str = ""
    dim: bool = False


@dataclass(frozen=True)
class Edge:
    """One arrow between the nodes ``source`` and ``dest`` (their ids), with its label.

    ``hints`` say each row in words, for whoever points at the line.
    """

    source: str
    dest: str
    lines: tuple[Line, ...]
    hints: tuple[str, ...]
    look: Look
    dim: bool = False


@dataclass(frozen=True)
class Drawing:
    """Everything that the texts and pictures show, in the order of the table."""

    title: str
    nodes: tuple[Node, ...]
    edges: tuple[Edge, ...]
    caption: tuple[str, ...]


def draw(rows: Iterable[Row] = TRANSITIONS, stats: Stats | None = None) -> Drawing:
    """The drawing of a table, annotated with the figures of some logs if there are ``stats``.

    If these are of one connection, its way is marked.
    """
    table = tuple(rows)
    ends = (name for row in table for name in (row.source.value, row.dest.value))
    names = list(dict.fromkeys((INITIAL, *ends)))
    final = set(names) - {row.source.value for row in table}
    looks = {name: replace(_LOOKS.get(name, Look()), final=name in final) for name in names}
    edges = list(_edges(table, looks, stats))
    start = Node(START, START, Look(), target=INITIAL)
    return Drawing(
        title=_title(stats),
        nodes=(
            start,
            *(_state_node(name, looks[name], stats) for name in names),
            *(_group_node(edge) for edge in edges if edge.source not in looks),
        ),
        edges=(
            Edge(START, INITIAL, (), ("a new connection",), start.look),
            *(edge if edge.source in looks else replace(edge, lines=()) for edge in edges),
        ),
        caption=tuple(_caption(stats)),
    )


def _count(rows: Iterable[Row], stats: Stats) -> int:
    """How often any of ``rows`` was taken."""
    return sum(stats.edges[_key(row)] for row in rows)


def _key(row: Row) -> Key:
    return row.trigger.value, row.source.value, row.dest.value


# -- edges ------------------------------------------------------------------------------------


def _grouped(table: tuple[Row, ...], live: set[str]) -> set[tuple[str, str]]:
    """(trigger, dest) of rows that lead from every live state to one place, unconditionally."""
    sources: defaultdict[tuple[str, str], set[str]] = defaultdict(set)
    for row in table:
        if not (row.conditions or row.unless or row.guard):
            sources[row.trigger.value, row.dest.value].add(row.source.value)
    return {key for key, found in sources.items() if found == live and len(live) > 1}


def _edges(table: tuple[Row, ...], looks: dict[str, Look], stats: Stats | None) -> Iterable[Edge]:
    grouped = _grouped(table, {name for name, look in looks.items() if not look.final})
    bundles: defaultdict[tuple[str, str], list[Row]] = defaultdict(list)
    for row in table:
        dest = row.dest.value
        group = (row.trigger.value, dest) in grouped
        bundles[f"any_{dest}" if group else row.source.value, dest].append(row)
    for (source, dest), rows in bundles.items():
        look = looks[dest] if source in looks else replace(looks[dest], style="dotted")
        lines = tuple(_lines(rows, stats))
        edge = Edge(source, dest, lines, tuple(dict.fromkeys(map(_hint, rows))), look)
        yield edge if stats is None else _weighted(edge, _count(rows, stats), stats)


def _lines(rows: list[Row], stats: Stats | None) -> Iterable[Line]:
    """One line for each (trigger, guard) of an edge's rows, in the order of the table."""
    merged: defaultdict[tuple[str, str], list[Row]] = defaultdict(list)
    for row in rows:
        # A record names trigger, source and dest, not the guard: annotated lines drop it.
        merged[row.trigger.value, "" if stats else row.guard].append(row)
    for (trigger, guard), same in merged.items():
        line = Line(trigger, guard)
        yield line if stats is None else _annotated(line, same, stats)


def _annotated(line: Line, rows: list[Row], stats: Stats) -> Line:
    count = _count(rows, stats)
    if not count:
        return replace(line, dim=True)
    found = [stats.medians.get(_key(row)) for row in rows]
    medians = [median for median in found if median is not None]
    parts = ["\u00d7" + show_count(count)]
    if len(medians) == 1:
        # Several rows (from every live state) have no common median.
        parts.append(show_seconds(medians[0]))
    if stats.path is not None:
        steps = sorted(step for row in rows for step in stats.path.steps.get(_key(row), ()))
        more = ", \u2026" if count > len(steps) else ""
        parts.append("#" + ", ".join(map(str, steps)) + more)
    return replace(line, figures=tuple(parts), heat=_heat(line.trigger, count, stats))


def _heat(trigger: str, count: int, stats: Stats) -> int:
    """0: not a trigger that hurts. 1 to 3: how often it came for each recovery."""
    if trigger not in HEAT:
        return 0
    rate = count / max(1, stats.total.recoveries)
    return 1 + sum(rate >= limit for limit in HEAT[trigger])


def _weighted(edge: Edge, count: int, stats: Stats) -> Edge:
    """Line width by the count, or dim if nothing ever travelled there."""
    if not count:
        look = replace(edge.look, color=DIM, width=0.8, style="dotted")
        return replace(edge, dim=True, look=look)
    # A group's dots say "never" here; that it is a group its mark says.
    style = "solid" if edge.look.style == "dotted" else edge.look.style
    width = 3.0 if stats.path else min(5.0, round(1.0 + 0.5 * len(str(count)), 1))
    return replace(edge, look=replace(edge.look, width=width, style=style))


def _hint(row: Row) -> str:
    conditions = [*row.conditions, *(f"not {name}" for name in row.unless)]
    only = f" (if {', '.join(conditions)})" if conditions else ""
    return f"{row.trigger.value}: {row.why}{only}"


# -- nodes and words --------------------------------------------------------------------------


def _state_node(name: str, look: Look, stats: Stats | None) -> Node:
    if stats is None:
        return Node(name, name, look)
    notes = []
    share = stats.total.state_shares().get(name, 0.0)
    if share > 0:
        notes.append(f"{show_share(share)} of the time")
    if stats.path is not None and stats.path.last_state == name:
        notes.append("the path ends here")
        look = replace(look, width=look.width + 2.5)
    reached = any(name in (source, dest) for _, source, dest in stats.edges)
    return Node(name, name, look, tuple(notes), dim=not (reached or share))


def _group_node(edge: Edge) -> Node:
    look = Look(DIM if edge.dim else edge.look.color, style="dotted")
    return Node(edge.source, GROUP, look, lines=edge.lines, target=edge.dest, dim=edge.dim)


def _title(stats: Stats | None) -> str:
    if stats is None:
        return "The lifecycle of a pooled connection"
    if stats.path is None:
        return "What the connections did"
    # An id comes from a log: it may hold anything, and must not break the picture.
    return f"What connection {clean(stats.path.connection)} did"


def _caption(stats: Stats | None) -> Iterable[str]:
    """How to read it, and what was counted."""
    if stats is None:
        look = "A line looks like the outline of the state it leads to"
        yield f"{look}. [guard]: taken only if it holds."
        return
    total = stats.total
    many = plural(sum(stats.edges.values()), "transition")
    if stats.path is None:
        created = f" ({total.created:,} of them created)" if total.created else ""
        many = f"{plural(total.connections, 'connection')}{created}, {many}"
    span = f", {show_span(stats)}" if stats.records else ""
    numbered = "" if stats.path is None else ", then the numbers of its steps"
    yield f"{many}{span}."
    median = "then the median time in the state before it"
    yield f"\u00d7: how often; {median}{numbered}. Grey and dotted: never."
    if any(trigger in HEAT for trigger, _, _ in stats.edges):
        each = f"each of the {plural(total.recoveries, 'recovery', 'recoveries')}"
        boxed = "Boxed: failed attempts and recoveries given up; the darker, the more of them"
        yield f"{boxed} for {each}."
    if stats.strays:
        strays = f"{plural(stats.strays, 'transition')} left out that no row of the table allows"
        yield f"{strays}: see milvus-lifecycle audit verify."


def plural(count: int, word: str, words: str = "") -> str:
    """``1 record``, ``2,000 records``; ``words`` is the plural where that is another one."""
    return f"{count:,} {word if count == 1 else words or word + 's'}"


def show_span(stats: Stats) -> str:
    """From when to when a log tells."""
    return f"{stats.since:%Y-%m-%d %H:%M:%S} to {stats.until:%Y-%m-%d %H:%M:%S} UTC"


def show_count(count: int) -> str:
    """A count in at most seven characters: 99,999 and 1.2 M."""
    if count < 100_000:
        return f"{count:,}"
    if count < 1_000_000:
        return f"{count // 1000} k"
    return f"{count / 1e6:,.1f} M"


#: (below this many seconds, seconds of a unit, unit): the first one whose limit is not reached.
_UNITS = (
    (1e-3, 1e-6, "\u00b5s"),
    (1.0, 1e-3, "ms"),
    (100.0, 1.0, "s"),
    (6000.0, 60.0, "min"),
    (172_800.0, 3600.0, "h"),
    (math.inf, 86_400.0, "d"),
)


def show_seconds(seconds: float) -> str:
    """A duration with two digits or three, in the unit that suits it: 4.2 ms, 61 s, 5.0 min."""
    size, unit = next((size, unit) for limit, size, unit in _UNITS if seconds < limit)
    value = seconds / size
    return f"{value:.1f} {unit}" if 0 < value < 9.95 else f"{value:.0f} {unit}"


def show_share(share: float) -> str:
    """A fraction in percent; small ones do not become 0, nor large ones 100."""
    if share < 0.001:
        return "< 0.1 %"
    if 0.999 < share < 1:
        return "> 99.9 %"
    return f"{100 * share:.2g} %" if share < 0.0995 else f"{100 * share:.1f} %"
