"""What a user sees: lines of what happened, on a terminal the live states, and the summary."""

from __future__ import annotations

import bisect
import contextlib
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, final

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.markup import escape
from rich.table import Table
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

    def _build_connections(self) -> Table:
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
        if not table.row_count:
            table.add_row("-", "-", "pymilvus's manager has no states")
        return table


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

    console.print(_Summary(runs, worker_name).table)
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


class _Summary:
    """One table of figures with a column per run."""

    def __init__(self, runs: Sequence[Run], worker_name: str) -> None:
        self._runs = runs
        self._worker_name = worker_name
        self.table = Table(title="summary", title_justify="left")
        self.table.add_column("", overflow="fold")
        for run in runs:
            self.table.add_column(run.title, justify="right")
        self._add_totals()
        first = runs[0].figures
        for number, outage in enumerate(first.outages):
            self._add_heading(
                f"outage {number + 1}", f"killed, started again after {outage.asked_s:g} s"
            )
            self._add_outage(number)
        for number, move in enumerate(first.moves):
            self._add_heading(f"move {number + 1}", _MOVES[move.kind])
            self._add_move(number, move.kind)
        if first.placement is not None:
            self.table.add_section()
            self._add_placement()

    def _add_heading(self, name: str, text: str) -> None:
        self.table.add_section()
        self.table.add_row(f"[bold]{name}[/bold]: {text}")

    def _add(self, label: str, cell: Callable[[Figures], str]) -> None:
        self.table.add_row(label, *(cell(run.figures) for run in self._runs))

    def _add_totals(self) -> None:
        add = self._add
        add("calls", lambda run: f"{run.calls:,}")
        add("failed calls", lambda run: _mark(f"{run.failed_calls:,}", not run.faults))
        if any(run.figures.unended_calls for run in self._runs):
            add("calls that never ended", lambda run: f"{run.unended_calls:,}")
        add(f"calls/s of the slowest {self._worker_name}", _show_rate)
        add("longest call", lambda run: f"{run.longest_call_s:.2f} s")
        add("channels opened at the start", lambda run: f"{run.channels_at_start:,}")
        add("channels opened in all", lambda run: f"{run.channels:,}")
        logged = (f"{run.log_lines:,}" for run in self._runs)
        self.table.add_row("lines logged by pymilvus", *logged)

    def _add_outage(self, number: int) -> None:
        def add(label: str, cell: Callable[[OutageFigures], str]) -> None:
            self._add(f"  {label}", lambda run: cell(run.outages[number]))

        workers, name = self._runs[0].figures.workers, self._worker_name
        add("down, from the kill until it listened", lambda outage: f"{outage.down_s:.2f} s")
        add(
            "in flight at the kill",
            lambda outage: _mark(
                f"{outage.workers_in_flight} of {workers} {name}s",
                outage.workers_in_flight >= workers,
            ),
        )
        add("failed calls", lambda outage: _mark_count(outage.failed_calls))
        add("channels opened", lambda outage: _mark_count(outage.channels, CHANNEL_LIMIT))
        add(
            f"slowest {name}'s first good call after",
            lambda outage: _show(outage.first_good_call_s, FIRST_GOOD_LIMIT_S, never="none"),
        )

    def _add_move(self, number: int, kind: str) -> None:
        def add(label: str, cell: Callable[[MoveFigures], str]) -> None:
            self._add(f"  {label}", lambda run: cell(run.moves[number]))

        add("failed calls", lambda move: _mark_count(move.failed_calls))
        add("channels opened", lambda move: f"{move.channels:,}")
        add("client told, after the topology named it", lambda move: _show(move.refreshed_s))
        add("moved, after the topology named it", lambda move: _show(move.moved_s))
        add(
            "moved, after the client was told",
            lambda move: _show(move.after_refresh_s, MOVE_LIMIT_S),
        )
        if kind == "switch":
            add(
                "last write on the old primary, after the naming",
                lambda move: f"{move.late_s:.3f} s",
            )
            add("writes begun there, after the naming", lambda move: f"{move.late_writes:,}")
        else:
            add(
                "first good call, after it was named",
                lambda move: _show(move.first_good_s, MOVE_LIMIT_S),
            )
            add(
                f"slowest {self._worker_name}'s first good call",
                lambda move: _show(move.slowest_s),
            )

    def _add_placement(self) -> None:
        def add(label: str, cell: Callable[[Placement], str]) -> None:
            self._add(label, lambda run: "-" if run.placement is None else cell(run.placement))

        add("acknowledged writes", lambda place: f"{place.writes:,}")
        add("in the two databases", lambda place: " + ".join(map(str, place.by_server.values())))
        add("in both (sent again after a failure)", lambda place: f"{place.twice:,}")
        add("in neither", lambda place: _mark_count(place.lost))
        add(
            "taken by another than the client's primary",
            lambda place: "not known" if place.misplaced is None else _mark_count(place.misplaced),
        )


def _build_transitions(runs: Sequence[Run]) -> Table:
    table = Table(title="transitions by trigger", title_justify="left")
    table.add_column("trigger")
    table.add_column("transitions", justify="right")
    for run in runs:
        for trigger, count in run.figures.transitions_by_trigger.items():
            table.add_row(escape(trigger), f"{count:,}")
    return table


def _show_rate(run: Figures) -> str:
    return "-" if run.slowest_rate is None else _mark(f"{run.slowest_rate:.1f}", not run.too_slow)


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
