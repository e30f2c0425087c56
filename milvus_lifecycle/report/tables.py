"""The figures of some logs as tables of text, for the terminal and the report.

On a terminal rich draws them, elsewhere they are plain columns.
"""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import TextIO

from ..diagram.drawing import show_seconds, show_share
from ..replay.findings import clean
from ..replay.outages import FLAPPING, RELAPSE, TOGETHER, Incident, Outage
from ..replay.stats import Figures, Stats
from ..table import State

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
    if out.isatty() and importlib.util.find_spec("rich") is not None:
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


def stats_tables(stats: Stats) -> list[Table]:
    """All tables of ``audit stats``; one without rows is left out when printed."""
    return [
        _outages(stats),
        _states(stats),
        _waits(stats),
        _errors(stats),
        incident_table(stats.incidents),
        outage_table(stats.longest_outages),
        _flapping(stats),
        _edges(stats),
    ]


def _figures(stats: Stats) -> list[tuple[str, Figures]]:
    rows = [(clean(name), figures) for name, figures in stats.endpoints.items()]
    return [*rows, (TOTAL, stats.total)] if len(rows) > 1 else rows


def _outages(stats: Stats) -> Table:
    rows = []
    for name, figures in _figures(stats):
        spent = figures.outage_quantiles()
        rows.append(
            (
                name,
                f"{figures.connections:,}",
                f"{figures.outages:,}",
                *(seconds(spent[which]) for which in ("p50", "p95", "p99", "max")),
                f"{figures.unfinished:,}",
                f"{figures.recoveries:,}",
                f"{figures.attempts:,}",
                f"{figures.give_ups:,}",
                f"{figures.failed_connects:,}",
                f"{figures.moves:,}",
                f"{figures.flapping:,}",
            )
        )
    counts = ("unfinished>", "recoveries>", "attempts>", "give_ups>", "failed connects>")
    lengths = ("p50>", "p95>", "p99>", "longest>")
    columns = ("endpoint", "connections>", "outages>", *lengths, *counts, "moves>", "flapping>")
    note = "p50 to longest: how long the outages were; moves: recoveries by reroute and recycle"
    return Table("Connections and outages", columns, rows, note)


def _states(stats: Stats) -> Table:
    rows = []
    for name, figures in _figures(stats):
        shares = figures.state_shares()
        cells = []
        for state in _LIVE:
            share = shares.get(state)
            cells += [seconds(figures.state_s[state]), show_share(share) if share else NONE]
        rows.append((name, *cells))
    columns = ["endpoint"]
    for state in _LIVE:
        columns += [f"{state}>", "share>"]
    note = "of each connection from its first record to its close, or to the end of the log"
    return Table("Time in each state", columns, rows, note)


_LIVE = tuple(state.value for state in State if state is not State.CLOSED)


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


def incident_table(incidents: list[Incident]) -> Table:
    """One row for each incident, in the order given."""
    rows = [
        (
            f"{one.began:%Y-%m-%d %H:%M:%S}",
            clean(one.address),
            f"{one.connections:,}",
            f"{one.outages:,}",
            seconds(one.seconds),
            seconds(one.suffered_s),
            ", ".join(clean(cause) for cause, _ in one.causes.most_common()),
            ", ".join(clean(error) for error, _ in one.errors.most_common()) or NONE,
            f"{one.attempts:,}",
            f"{one.give_ups:,}",
            f"{one.unfinished:,}",
        )
        for one in incidents
    ]
    columns = ("began (UTC)", "endpoint", "connections>", "outages>", "longest>", "sum>", "cause")
    counts = ("error code", "attempts>", "give_ups>", "unfinished>")
    note = f"outages of one endpoint that began within {TOGETHER.seconds} s of each other"
    return Table("Worst incidents", (*columns, *counts), rows, note)


def outage_table(outages: list[Outage], title: str = "Longest outages") -> Table:
    """One row for each outage, in the order given."""
    rows = [
        (
            f"{one.began:%Y-%m-%d %H:%M:%S}",
            clean(one.address),
            clean(one.connection_id),
            seconds(one.seconds),
            clean(one.cause),
            one.error_code or NONE,
            f"{one.attempts:,}",
            f"{one.give_ups:,}",
            f"{one.relapses:,}",
            clean(one.end),
        )
        for one in outages
    ]
    columns = ("began (UTC)", "endpoint", "connection", "duration>", "cause", "error code")
    return Table(title, (*columns, "attempts>", "give_ups>", "relapses>", "end"), rows)


def _flapping(stats: Stats) -> Table:
    rows = [
        (clean(one.address), clean(one.connection_id), f"{one.relapses:,}")
        for one in stats.flapping
    ]
    note = f"{FLAPPING} failures or more within {RELAPSE:g} s of the end of an outage"
    return Table("Flapping connections", ("endpoint", "connection", "relapses>"), rows, note)


def _edges(stats: Stats) -> Table:
    rows = [(trigger, source, dest) for trigger, source, dest in stats.never_travelled]
    return Table("Edges of the table never travelled", ("trigger", "from", "to"), rows)
