"""The figures of some logs as tables of text, for the terminal and the report."""

from __future__ import annotations

import textwrap
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from itertools import chain
from math import inf
from operator import attrgetter
from typing import TextIO

from ..diagram.drawing import show_seconds, show_share
from ..replay.findings import clean
from ..replay.outages import FLAPPING, RELAPSE, TOGETHER
from ..replay.stats import Figures, Stats
from ..table import LIVE

TOTAL = "all"
NONE = "\N{EN DASH}"


@dataclass(frozen=True)
class Table:
    """Rows of text under ``columns``; a column whose name ends in ``>`` is right-aligned."""

    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]] = ()
    note: str = ""

    @property
    def heads(self) -> list[tuple[str, bool]]:
        """(name, right-aligned) of each column."""
        return [(name.removesuffix(">"), name.endswith(">")) for name in self.columns]


def print_tables(tables: Iterable[Table], stream: TextIO | None = None, width: float = inf) -> None:
    """Print the tables that have rows; one that is wider than ``width`` has a paragraph a row."""
    for table in tables:
        if table.rows:
            lines = list(_lines(table))
            if max(map(len, lines)) > width:
                lines = list(_paragraphs(table, int(width)))
            print(*lines, "", sep="\n", file=stream)


def _paragraphs(table: Table, width: int) -> Iterable[str]:
    """A row is its texts on a line, and below them its figures by name."""
    yield table.title
    yield from textwrap.wrap(f"({table.note})", width) if table.note else ()
    for row in table.rows:
        cells = list(zip(row, table.heads, strict=True))
        yield from textwrap.wrap("  ".join(cell for cell, (_, right) in cells if not right), width)
        figures = (f"{name} {cell}".replace(" ", "\xa0") for cell, (name, right) in cells if right)
        for line in textwrap.wrap(", ".join(figures), width - 4):
            yield "    " + line.replace("\xa0", " ")


def _lines(table: Table) -> Iterable[str]:
    names = [name for name, _ in table.heads]
    widths = [max(map(len, column)) for column in zip(names, *table.rows, strict=True)]
    yield table.title
    if table.note:
        yield f"({table.note})"
    for cells in (names, ["-" * width for width in widths], *table.rows):
        yield "  ".join(
            cell.rjust(width) if right else cell.ljust(width)
            for cell, width, (_, right) in zip(cells, widths, table.heads, strict=True)
        ).rstrip()


def show(value: object) -> str:
    """A cell: a count, seconds, a moment, texts with how often they came, or a dash for none."""
    if isinstance(value, Counter):
        value = ", ".join(text for text, _ in value.most_common()) or None
    if value is None:
        return NONE
    if isinstance(value, float):
        return show_seconds(value)
    if isinstance(value, datetime):
        return f"{value:%Y-%m-%d %H:%M:%S}"
    return f"{value:,}" if isinstance(value, int) else clean(str(value), 200)


def make_table(
    title: str, columns: Sequence[str], rows: Iterable[Iterable[object]], note: str = ""
) -> Table:
    """A table of anything that can be shown."""
    return Table(title, columns, [[show(value) for value in row] for row in rows], note)


def _list(title: str, items: Iterable[object], columns: Mapping[str, str], note: str = "") -> Table:
    """A row for each of ``items``; ``columns`` says which of its attributes stands under what."""
    rows = ([getattr(item, name) for name in columns.values()] for item in items)
    return make_table(title, tuple(columns), rows, note)


# -- of figures ----------------------------------------------------------------------------------


def stats_tables(stats: Stats) -> list[Table]:
    """All tables of ``audit stats``; one without rows is left out when printed."""
    endpoints = stats.endpoints.items()
    figures = [*endpoints, (TOTAL, stats.total)] if len(endpoints) > 1 else list(endpoints)
    errors = (
        (name, code, count) for name, one in endpoints for code, count in one.errors.most_common()
    )
    waits = ((name, one.waits, one.waited_s) for name, one in figures if one.waits)
    never = stats.never_travelled
    return [
        _outages(figures),
        _states(figures),
        make_table("Collections that were loaded again", ("endpoint", "waits>", "waited>"), waits),
        make_table("Error codes", ("endpoint", "error code", "records>"), errors),
        _list(
            "Worst incidents",
            stats.incidents,
            _INCIDENT,
            f"outages of one endpoint that began within {TOGETHER.seconds} s of each other",
        ),
        _list("Longest outages", stats.longest_outages, _OUTAGE),
        _list(
            "Flapping connections",
            stats.flapping,
            {"endpoint": "address", "connection": "connection_id", "relapses>": "relapses"},
            f"{FLAPPING} failures or more within {RELAPSE:g} s of the end of an outage",
        ),
        make_table("Edges of the table never travelled", ("trigger", "from", "to"), never),
    ]


_INCIDENT = {
    "began (UTC)": "began",
    "endpoint": "address",
    "connections>": "connections",
    "outages>": "outages",
    "longest>": "seconds",
    "sum>": "suffered_s",
    "cause": "causes",
    "error code": "errors",
    "attempts>": "attempts",
    "give_ups>": "give_ups",
    "unfinished>": "unfinished",
    "calls waited>": "waited",
    "failed>": "failed",
}
_OUTAGE = {
    "began (UTC)": "began",
    "endpoint": "address",
    "connection": "connection_id",
    "duration>": "seconds",
    "cause": "cause",
    "error code": "error_code",
    "attempts>": "attempts",
    "give_ups>": "give_ups",
    "relapses>": "relapses",
    "calls waited>": "waited",
    "failed>": "failed",
    "end": "end",
}


def _outages(figures: Iterable[tuple[str, Figures]]) -> Table:
    counts = ("unfinished", "recoveries", "attempts", "give_ups", "failed_connects", "moves")
    counted = attrgetter(*counts, "flapping")
    rows = (
        (name, one.connections, one.outages, *one.outage_quantiles().values(), *counted(one))
        for name, one in figures
    )
    lengths = ("connections>", "outages>", "p50>", "p95>", "p99>", "longest>")
    columns = ("endpoint", *lengths, *(f"{count}>" for count in counts), "flapping>")
    note = "p50 to longest: how long the outages were; moves: recoveries by reroute and recycle"
    return make_table("Connections and outages", columns, rows, note)


def _states(figures: Iterable[tuple[str, Figures]]) -> Table:
    rows = []
    for name, one in figures:
        shares = one.state_shares()
        percents = {state: show_share(share) for state, share in shares.items() if share}
        cells = ((one.state_s[state], percents.get(state)) for state in LIVE)
        rows.append((name, *chain.from_iterable(cells)))
    columns = ("endpoint", *chain.from_iterable((f"{state}>", "share>") for state in LIVE))
    note = "of each connection from its first record to its close, or to the end of the log"
    return make_table("Time in each state", columns, rows, note)
