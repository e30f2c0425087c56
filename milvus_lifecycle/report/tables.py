"""The figures of some logs as tables of text, for the terminal and the report.

On a terminal rich draws them, elsewhere they are plain columns.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import chain
from typing import TextIO

from ..diagram.drawing import show_seconds, show_share
from ..replay.findings import clean
from ..replay.outages import FLAPPING, RELAPSE, TOGETHER, Incident, Outage
from ..replay.stats import Figures, Stats
from ..table import LIVE

TOTAL = "all"
NONE = "\N{EN DASH}"


@dataclass(frozen=True)
class Table:
    """Rows of text under ``columns``; a column whose name ends in ``>`` is right-aligned."""

    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]] = field(default_factory=tuple)
    note: str = ""

    @property
    def heads(self) -> list[tuple[str, bool]]:
        """(name, right-aligned) of each column."""
        return [(name.removesuffix(">"), name.endswith(">")) for name in self.columns]


def print_tables(tables: Iterable[Table], stream: TextIO | None = None) -> None:
    """Print the tables that have rows; with lines and emphasis if a person looks."""
    out = sys.stdout if stream is None else stream
    shown = [table for table in tables if table.rows]
    if out.isatty():
        _print_rich(shown, out)
        return
    for table in shown:
        out.write("\n".join(_plain(table)) + "\n\n")


def _plain(table: Table) -> Iterable[str]:
    heads = table.heads
    widths = [
        max(len(name), *(len(row[index]) for row in table.rows))
        for index, (name, _) in enumerate(heads)
    ]
    yield table.title
    if table.note:
        yield f"({table.note})"
    for cells in ([name for name, _ in heads], ["-" * width for width in widths], *table.rows):
        yield "  ".join(
            cell.rjust(width) if right else cell.ljust(width)
            for cell, width, (_, right) in zip(cells, widths, heads, strict=True)
        ).rstrip()


def _print_rich(tables: Iterable[Table], out: TextIO) -> None:
    from rich import box
    from rich.console import Console
    from rich.table import Table as RichTable
    from rich.text import Text

    console = Console(file=out)
    for table in tables:
        drawn = RichTable(
            title=Text(table.title, style="bold"),
            caption=Text(table.note, style="dim") if table.note else None,
            title_justify="left",
            caption_justify="left",
            box=box.SIMPLE_HEAD,
        )
        for name, right in table.heads:
            drawn.add_column(Text(name), justify="right" if right else "left", overflow="fold")
        for row in table.rows:
            drawn.add_row(*(Text(cell) for cell in row))
        console.print(drawn)
        console.print()


# -- of figures ----------------------------------------------------------------------------------


def seconds(value: float | None) -> str:
    """A duration for people; a dash for none."""
    return NONE if value is None else show_seconds(value)


def share(value: float | None) -> str:
    """A fraction in percent; a dash for none."""
    return show_share(value) if value else NONE


def stats_tables(stats: Stats) -> list[Table]:
    """All tables of ``audit stats``; one without rows is left out when printed."""
    return [
        _outages(stats),
        _states(stats),
        _waits(stats),
        _errors(stats),
        _incident_table(stats.incidents),
        _outage_table(stats.longest_outages),
        _flapping(stats),
        _edges(stats),
    ]


def _figures(stats: Stats) -> list[tuple[str, Figures]]:
    rows = [(clean(name), figures) for name, figures in stats.endpoints.items()]
    return [*rows, (TOTAL, stats.total)] if len(rows) > 1 else rows


def _outages(stats: Stats) -> Table:
    rows = [
        (
            name,
            *_counts(figures, ("connections", "outages")),
            *map(seconds, figures.outage_quantiles().values()),
            *_counts(figures, _COUNTED),
        )
        for name, figures in _figures(stats)
    ]
    counted = (f"{name}>" for name in _COUNTED)
    columns = ("endpoint", "connections>", "outages>", "p50>", "p95>", "p99>", "longest>", *counted)
    note = "p50 to longest: how long the outages were; moves: recoveries by reroute and recycle"
    return Table("Connections and outages", columns, rows, note)


_COUNTED = (
    "unfinished",
    "recoveries",
    "attempts",
    "give_ups",
    "failed_connects",
    "moves",
    "flapping",
)


def _counts(one: Figures | Incident | Outage, names: Iterable[str]) -> Iterator[str]:
    return (f"{getattr(one, name):,}" for name in names)


def _states(stats: Stats) -> Table:
    rows = []
    for name, figures in _figures(stats):
        shares = figures.state_shares()
        cells = ((seconds(figures.state_s[state]), share(shares.get(state))) for state in LIVE)
        rows.append((name, *chain.from_iterable(cells)))
    columns = ("endpoint", *chain.from_iterable((f"{state}>", "share>") for state in LIVE))
    note = "of each connection from its first record to its close, or to the end of the log"
    return Table("Time in each state", columns, rows, note)


def _waits(stats: Stats) -> Table:
    rows = [
        (name, f"{figures.waits:,}", seconds(figures.waited_s))
        for name, figures in _figures(stats)
        if figures.waits
    ]
    return Table("Collections that were loaded again", ("endpoint", "waits>", "waited>"), rows)


def _errors(stats: Stats) -> Table:
    rows = [
        (name, clean(code), f"{count:,}")
        for name, figures in _figures(stats)
        for code, count in figures.errors.most_common()
        if name != TOTAL
    ]
    return Table("Error codes", ("endpoint", "error code", "records>"), rows)


def _incident_table(incidents: list[Incident]) -> Table:
    """One row for each incident, in the order given."""
    rows = [
        (
            f"{one.began:%Y-%m-%d %H:%M:%S}",
            clean(one.address),
            *_counts(one, ("connections", "outages")),
            seconds(one.seconds),
            seconds(one.suffered_s),
            ", ".join(clean(cause) for cause, _ in one.causes.most_common()),
            ", ".join(clean(error) for error, _ in one.errors.most_common()) or NONE,
            *_counts(one, ("attempts", "give_ups", "unfinished")),
        )
        for one in incidents
    ]
    columns = ("began (UTC)", "endpoint", "connections>", "outages>", "longest>", "sum>", "cause")
    counts = ("error code", "attempts>", "give_ups>", "unfinished>")
    note = f"outages of one endpoint that began within {TOGETHER.seconds} s of each other"
    return Table("Worst incidents", (*columns, *counts), rows, note)


def _outage_table(outages: list[Outage]) -> Table:
    """One row for each outage, in the order given."""
    rows = [
        (
            f"{one.began:%Y-%m-%d %H:%M:%S}",
            clean(one.address),
            clean(one.connection_id),
            seconds(one.seconds),
            clean(one.cause),
            one.error_code or NONE,
            *_counts(one, ("attempts", "give_ups", "relapses")),
            clean(one.end),
        )
        for one in outages
    ]
    columns = ("began (UTC)", "endpoint", "connection", "duration>", "cause", "error code")
    return Table("Longest outages", (*columns, "attempts>", "give_ups>", "relapses>", "end"), rows)


def _flapping(stats: Stats) -> Table:
    rows = [
        (clean(one.address), clean(one.connection_id), f"{one.relapses:,}")
        for one in stats.flapping
    ]
    note = f"{FLAPPING} failures or more within {RELAPSE:g} s of the end of an outage"
    return Table("Flapping connections", ("endpoint", "connection", "relapses>"), rows, note)


def _edges(stats: Stats) -> Table:
    columns = ("trigger", "from", "to")
    return Table("Edges of the table never travelled", columns, stats.never_travelled)
