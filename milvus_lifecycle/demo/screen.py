"""What a user sees: lines of what happened, on a terminal the live states, and the summary."""

from __future__ import annotations

import bisect
import contextlib
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, TypeVar, final

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.markup import escape
from rich.table import Column, Table
from rich.text import Text

from milvus_lifecycle.demo.child import Heard
from milvus_lifecycle.demo.figures import (
    CHANNEL_LIMIT,
    FIRST_GOOD_LIMIT_S,
    MOVE_LIMIT_S,
    RATE_LIMIT,
    Figures,
    MoveFigures,
    OutageFigures,
    Placement,
    Run,
)

T = TypeVar("T")

#: Rows of the summary: (label, what a run's part has in that row).
Rows = Sequence[tuple[str, Callable[[T], str]]]

_DRAWN_PER_SECOND = 10
_CONNECTIONS_SHOWN = 12

#: Calls per second are those of so many seconds.
_RATE_WINDOW_S = 2.0

_STATE_STYLES = {
    "IDLE": "blue",
    "ACTIVE": "green",
    "PROBING": "yellow",
    "RECOVERING": "bold red",
    "CLOSED": "dim",
}

#: Too many to be a line each; the live view and the final `recovered` line say how many.
_QUIET_TRIGGERS = frozenset({"retry"})

_MOVES = {
    "switch": "the other server becomes primary, the old one lives on",
    "death": "the primary dies, the other server follows",
}


@final
class View:
    """Prints events as lines; on a terminal it also keeps a table of the connections below them.

    Anything that is not a terminal (a pipe, a file, CI, TERM=dumb) gets the lines only.
    """

    def __init__(self, console: Console) -> None:
        self._console = console
        self._began = time.monotonic()
        self._heard = Heard()
        self._connections: dict[str, Mapping[str, Any]] = {}
        self._records_seen = 0
        self._status = ""

    @contextlib.contextmanager
    def live(self) -> Iterator[None]:
        """Draw the table while the body runs."""
        with Live(
            console=self._console,
            get_renderable=self._draw,
            refresh_per_second=_DRAWN_PER_SECOND,
            transient=True,
        ):
            try:
                yield
            finally:
                self._status = ""

    def begin_run(self, title: str, heard: Heard) -> None:
        """A new run starts: forget the connections of the last one."""
        self._heard, self._connections, self._records_seen = heard, {}, 0
        self._console.print(f"[bold]{escape(title)}[/bold]")

    def say(self, text: str) -> None:
        """Print one line about what happened."""
        self._print_line(escape(text))

    def show(self, status: str) -> None:
        """Show what is new; cheap to call often."""
        self._status = status
        records = self._heard.records[self._records_seen :]
        self._records_seen += len(records)
        for record in records:
            self._connections[record["connection_id"]] = record
            if record["event"] == "connection.transition":
                self._print_transition(record)

    def _print_transition(self, record: Mapping[str, Any]) -> None:
        if record["trigger"] in _QUIET_TRIGGERS:
            return
        because = record["reason"] or record["error_code"] or ""
        self._print_line(
            f"  {escape(_short(record['connection_id']))} "
            f"{_style_state(record['source'])} -> {_style_state(record['dest'])} "
            f"[bold]{record['trigger']}[/bold] {escape(str(because))}"
        )

    def _print_line(self, markup: str) -> None:
        elapsed = time.monotonic() - self._began
        self._console.print(
            f"[dim]{elapsed:6.1f} s[/dim]  {markup}", soft_wrap=True, highlight=False
        )

    def _draw(self) -> RenderableType:
        """What stands below the lines now; rich's thread calls this."""
        if not self._status:
            return ""
        heard = self._heard
        failed = heard.failed_calls
        counts = Text.assemble(
            f"calls {len(heard.calls):,} ({_find_rate(heard):.0f}/s)   failed ",
            (f"{failed:,}", "bold red" if failed else "green"),
            f"   channels {len(heard.channels):,}   ",
            (self._status, "bold"),
        )
        return Group(self._build_connections(), counts) if heard.calls else counts

    def _build_connections(self) -> RenderableType:
        # No lines: seven columns of the longest address, state and step have room in 80.
        table = Table(
            *("id", "address", "state", "generation", "attempt", "clients", "last step"),
            title="connections",
            title_justify="left",
            box=None,
            pad_edge=False,
            padding=(0, 1, 0, 0),
        )
        for name, record in list(self._connections.items())[-_CONNECTIONS_SHOWN:]:
            numbers = (record[key] for key in ("generation", "attempt", "clients"))
            table.add_row(
                escape(_short(name)),
                escape(str(record["address"])),
                _style_state(record["dest"] or record["source"] or "IDLE"),
                *("" if number is None else str(number) for number in numbers),
                record["trigger"] or "",
            )
        return table if table.row_count else Text("pymilvus's manager has no states")


def _find_rate(heard: Heard) -> float:
    """Calls per second that have ended lately."""
    since = time.monotonic() - _RATE_WINDOW_S
    older = bisect.bisect_left(heard.calls, since, key=lambda call: call.end or math.inf)
    return (len(heard.calls) - older) / _RATE_WINDOW_S


def _style_state(state: object) -> str:
    return f"[{_STATE_STYLES.get(str(state), 'default')}]{escape(str(state))}[/]"


def _short(connection_id: str) -> str:
    return connection_id[-12:]


def print_summary(console: Console, runs: Sequence[Run], worker_name: str) -> None:
    """Print the figures of all runs side by side, the errors seen, and a verdict for each run."""

    def say(run: Run, text: str) -> None:
        console.print(f"[bold]{escape(run.title)}[/bold]: {text}", highlight=False, soft_wrap=True)

    console.print(_build_summary(runs, worker_name))
    if any(run.figures.transitions_by_trigger for run in runs):
        console.print(_build_transitions(runs))
    for run in runs:
        for error, count in run.figures.errors.items():
            say(run, f"{count:,} x {escape(error)}")
    for run in runs:
        if run.figures.too_slow:
            say(
                run,
                f"[yellow]a {worker_name} started fewer than {RATE_LIMIT:.0f} calls a second "
                f"while the server answered: try fewer {worker_name}s (--threads) or a machine "
                "with less else to do[/yellow]",
            )
        faults = run.figures.faults
        say(run, _mark(escape("; ".join(faults) or _praise(run.figures)), not faults))


def _build_summary(runs: Sequence[Run], worker: str) -> Table:
    """One table of figures with a column per run."""
    table = Table("", *(Column(run.title, justify="right") for run in runs), title="summary")
    table.title_justify, table.columns[0].overflow = "left", "fold"
    figures = [run.figures for run in runs]
    workers = figures[0].workers
    _add_rows(table, runs, _list_totals(worker, any(run.unended_calls for run in figures)))
    for number, outages in enumerate(zip(*(run.outages for run in figures), strict=True), 1):
        text = f"killed, started again after {outages[0].asked_s:g} s"
        _add_rows(
            table, outages, _list_outage(worker, workers), f"[bold]outage {number}[/bold]: {text}"
        )
    for number, moves in enumerate(zip(*(run.moves for run in figures), strict=True), 1):
        heading = f"[bold]move {number}[/bold]: {_MOVES[moves[0].kind]}"
        _add_rows(table, moves, _list_move(worker, moves[0].kind), heading)
    _add_rows(table, [run.placement for run in figures if run.placement], _PLACEMENT)
    return table


def _add_rows(table: Table, parts: Sequence[T], rows: Rows[T], heading: str = "") -> None:
    """Add a section; nothing if the runs have no such part."""
    table.add_section()
    if heading:
        table.add_row(heading)
    for label, cell in rows if parts else ():
        table.add_row("  " * bool(heading) + label, *map(cell, parts))


def _list_totals(worker: str, unended: bool) -> Rows[Run]:
    def show_rate(run: Run) -> str:
        rate = run.figures.slowest_rate
        return "-" if rate is None else _mark(f"{rate:.1f}", not run.figures.too_slow)

    return [
        ("calls", lambda run: f"{run.figures.calls:,}"),
        (
            "failed calls",
            lambda run: _mark(f"{run.figures.failed_calls:,}", not run.figures.faults),
        ),
        *[("calls that never ended", lambda run: f"{run.figures.unended_calls:,}")] * unended,
        (f"calls/s of the slowest {worker}", show_rate),
        ("longest call", lambda run: f"{run.figures.longest_call_s:.2f} s"),
        ("channels opened at the start", lambda run: f"{run.figures.channels_at_start:,}"),
        ("channels opened in all", lambda run: f"{run.figures.channels:,}"),
        ("lines logged by pymilvus", lambda run: f"{run.log_lines:,}"),
    ]


def _list_outage(worker: str, workers: int) -> Rows[OutageFigures]:
    def show_in_flight(it: OutageFigures) -> str:
        text = f"{it.workers_in_flight} of {workers} {worker}s"
        return _mark(text, it.workers_in_flight >= workers)

    return [
        ("down, from the kill until it listened", lambda it: f"{it.down_s:.2f} s"),
        ("in flight at the kill", show_in_flight),
        ("failed calls", lambda it: _mark_count(it.failed_calls)),
        ("channels opened", lambda it: _mark_count(it.channels, CHANNEL_LIMIT)),
        (
            f"slowest {worker}'s first good call after",
            lambda it: _show(it.first_good_call_s, FIRST_GOOD_LIMIT_S, never="none"),
        ),
    ]


def _list_move(worker: str, kind: str) -> Rows[MoveFigures]:
    rows: Rows[MoveFigures] = [
        ("failed calls", lambda it: _mark_count(it.failed_calls)),
        ("channels opened", lambda it: f"{it.channels:,}"),
        ("client told, after the topology named it", lambda it: _show(it.refreshed_s)),
        ("moved, after the topology named it", lambda it: _show(it.moved_s)),
        ("moved, after the client was told", lambda it: _show(it.after_refresh_s, MOVE_LIMIT_S)),
    ]
    if kind == "switch":
        return [
            *rows,
            ("last write on the old primary, after the naming", lambda it: f"{it.late_s:.3f} s"),
            ("writes begun there, after the naming", lambda it: f"{it.late_writes:,}"),
        ]
    return [
        *rows,
        ("first good call, after it was named", lambda it: _show(it.first_good_s, MOVE_LIMIT_S)),
        (f"slowest {worker}'s first good call", lambda it: _show(it.slowest_s)),
    ]


_PLACEMENT: Rows[Placement] = [
    ("acknowledged writes", lambda it: f"{it.writes:,}"),
    ("in the two databases", lambda it: " + ".join(map(str, it.by_server.values()))),
    ("in both (sent again after a failure)", lambda it: f"{it.twice:,}"),
    ("in neither", lambda it: _mark_count(it.lost)),
    (
        "taken by another than the client's primary",
        lambda it: "not known" if it.misplaced is None else _mark_count(it.misplaced),
    ),
]


def _build_transitions(runs: Sequence[Run]) -> Table:
    table = Table(title="transitions by trigger", title_justify="left")
    table.add_column("trigger")
    table.add_column("transitions", justify="right")
    for run in runs:
        for trigger, count in run.figures.transitions_by_trigger.items():
            table.add_row(escape(trigger), f"{count:,}")
    return table


def _praise(run: Figures) -> str:
    praise = f"no call failed, of {run.calls:,}"
    if run.placement is not None and run.placement.misplaced is not None:
        praise += f"; each of {run.placement.writes:,} writes is where it belongs"
    return praise


def _show(seconds: float | None, promised: float | None = None, never: str = "never") -> str:
    if seconds is None:
        return _mark(never, False)
    text = f"{seconds:.3f} s"
    return text if promised is None else _mark(text, seconds <= promised)


def _mark_count(count: int, most: int = 0) -> str:
    return _mark(f"{count:,}", count <= most)


def _mark(text: str, good: bool) -> str:
    return f"[{'green' if good else 'red'}]{text}[/]"
