"""What a user sees: lines of what happened, on a terminal the live states, and the summary."""

from __future__ import annotations

import bisect
import time
from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.markup import escape
from rich.table import Column, Table
from rich.text import Text

from milvus_lifecycle.demo.figures import RATE_LIMIT, Run, Seen

#: Calls per second are those of so many seconds.
_RATE_WINDOW_S = 2.0

_STATE_STYLES = {
    "IDLE": "blue",
    "ACTIVE": "green",
    "PROBING": "yellow",
    "RECOVERING": "bold red",
    "CLOSED": "dim",
}


class View:
    """Prints what happens in a run as lines; on a terminal with a table of the connections below.

    Anything that is not a terminal (a pipe, a file, CI, TERM=dumb) gets the lines only.
    """

    def __init__(self, console: Console, title: str, seen: Seen) -> None:
        self._console = console
        self._seen = seen
        self._began = time.monotonic()
        self._connections: dict[str, Mapping[str, Any]] = {}
        self._records_shown = 0
        self._status = ""
        console.print(f"[bold]{escape(title)}[/bold]")

    def live(self) -> Live:
        """Context manager: draw the table while the body runs."""
        return Live(
            console=self._console, get_renderable=self._draw, refresh_per_second=10, transient=True
        )

    def say(self, text: str) -> None:
        """Print one line about what happened."""
        self._print_line(escape(text))

    def show(self, status: str) -> None:
        """Show what is new; cheap to call often."""
        self._status = status
        records = self._seen.records[self._records_shown :]
        self._records_shown += len(records)
        for record in records:
            self._connections[record["connection_id"]] = record
            # Retries are too many to be a line each.
            if record["event"] == "connection.transition" and record["trigger"] != "retry":
                self._print_transition(record)

    def _print_transition(self, record: Mapping[str, Any]) -> None:
        because = record["reason"] or record["error_code"] or ""
        self._print_line(
            f"  {escape(record['connection_id'][-12:])} "
            f"{_style_state(record['source'])} -> {_style_state(record['dest'])} "
            f"[bold]{record['trigger']}[/bold] {escape(str(because))}"
        )

    def _print_line(self, markup: str) -> None:
        elapsed = f"[dim]{time.monotonic() - self._began:6.1f} s[/dim]"
        self._console.print(f"{elapsed}  {markup}", soft_wrap=True, highlight=False)

    def _draw(self) -> RenderableType:
        """What stands below the lines now; rich's thread calls this."""
        calls, failed = self._seen.calls, self._seen.failed_calls
        since = time.monotonic() - _RATE_WINDOW_S
        lately = len(calls) - bisect.bisect_left(calls, since, key=lambda call: call.end)
        counts = Text.assemble(
            f"calls {len(calls):,} ({lately / _RATE_WINDOW_S:.0f}/s)   failed ",
            (f"{failed:,}", "bold red" if failed else "green"),
            f"   channels {len(self._seen.channels):,}   ",
            (self._status, "bold"),
        )
        return Group(self._build_connections(), counts) if calls else counts

    def _build_connections(self) -> RenderableType:
        # No lines: seven columns of the longest address, state and step have room in 80.
        columns = ("id", "address", "state", "generation", "attempt", "clients", "last step")
        table = Table(*columns, title="connections", box=None, pad_edge=False, padding=(0, 1, 0, 0))
        table.title_justify = "left"
        for name, record in list(self._connections.items()):
            numbers = (record[key] for key in ("generation", "attempt", "clients"))
            table.add_row(
                escape(name[-12:]),
                escape(str(record["address"])),
                _style_state(record["dest"] or record["source"] or "IDLE"),
                *("" if number is None else str(number) for number in numbers),
                record["trigger"] or "",
            )
        return table if table.row_count else Text("pymilvus's manager has no states")


def _style_state(state: object) -> str:
    return f"[{_STATE_STYLES.get(str(state), 'default')}]{escape(str(state))}[/]"


def print_summary(console: Console, runs: Sequence[Run]) -> None:
    """Print the figures of all runs side by side, the errors seen, and a verdict for each run."""

    def say(run: Run, text: str) -> None:
        console.print(f"[bold]{escape(run.title)}[/bold]: {text}", highlight=False, soft_wrap=True)

    console.print(_build_summary(runs))
    counts = Column("transitions", justify="right")
    table = Table("trigger", counts, title="transitions by trigger", title_justify="left")
    for run in runs:
        for trigger, count in run.transitions_by_trigger.items():
            table.add_row(escape(trigger), f"{count:,}")
    if table.row_count:
        console.print(table)
    for run in runs:
        for error, count in run.errors.items():
            say(run, f"{count:,} x {escape(error)}")
        if run.too_slow:
            slow = f"a worker started fewer than {RATE_LIMIT:.0f} calls a second while the server"
            cure = "try fewer workers (--threads) or a machine with less else to do"
            say(run, f"[yellow]{slow} answered: {cure}[/yellow]")
        praise = "; ".join(section.praise for section in run.sections if section.praise)
        say(run, _mark("; ".join(run.faults) or praise, not run.faults))


def _build_summary(runs: Sequence[Run]) -> Table:
    table = Table("", *(Column(run.title, justify="right") for run in runs), title="summary")
    table.title_justify, table.columns[0].overflow = "left", "fold"
    for sections in zip(*(run.sections for run in runs), strict=True):
        table.add_section()
        if sections[0].text:
            table.add_row(f"[bold]{sections[0].name}[/bold]: {sections[0].text}")
        for figures in zip(*(section.figures for section in sections), strict=True):
            table.add_row(
                figures[0].label, *(_mark(figure.text, figure.good) for figure in figures)
            )
    return table


def _mark(text: str, good: bool | None) -> str:
    return escape(text) if good is None else f"[{'green' if good else 'red'}]{escape(text)}[/]"
