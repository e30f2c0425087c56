"""What is shown while the demo runs: lines of what happened and, on a terminal, the live states."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Mapping
from types import TracebackType
from typing import Any, final

from rich.console import Console, Group
from rich.live import Live
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from milvus_lifecycle.demo.child import Heard

_DRAW_GAP = 0.1
_CONNECTIONS_SHOWN = 12

_STATE_STYLES = {
    "IDLE": "blue",
    "ACTIVE": "green",
    "PROBING": "yellow",
    "RECOVERING": "bold red",
    "CLOSED": "dim",
}

#: Too many to be a line each; the live view and the final `recovered` line say how many.
_QUIET_TRIGGERS = frozenset({"retry"})


@final
class View:
    """Prints events as lines; on a terminal it also keeps a table of the connections below them.

    Anything that is not a terminal (a pipe, a file, CI, TERM=dumb) gets the lines only.
    """

    def __init__(self, console: Console) -> None:
        self._console = console
        self._began = time.monotonic()
        self._drawn_at = 0.0
        self._connections: dict[str, Mapping[str, Any]] = {}
        self._records_seen = 0
        self._rates: deque[tuple[float, int]] = deque(maxlen=20)
        self._live: Live | None = None
        if console.is_terminal and not console.is_dumb_terminal:
            self._live = Live(console=console, auto_refresh=False, transient=True)

    def __enter__(self) -> View:
        if self._live is not None:
            self._live.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._live is not None:
            self._live.update(Text(""))
            self._live.stop()

    def begin_run(self, title: str) -> None:
        """A new run starts: forget the connections of the last one."""
        self._connections.clear()
        self._records_seen = 0
        self._rates.clear()
        self._console.print(f"[bold]{escape(title)}[/bold]")

    def say(self, text: str) -> None:
        """Print one line about what happened."""
        self._print_line(escape(text))

    def draw(self, heard: Heard, status: str) -> None:
        """Show what is new; cheap to call often."""
        self._take_records(heard)
        now = time.monotonic()
        if self._live is None or now - self._drawn_at < _DRAW_GAP:
            return
        self._drawn_at = now
        self._rates.append((now, len(heard.calls)))
        self._live.update(
            Group(self._build_connections(heard), self._build_counts(heard, status)), refresh=True
        )

    def _take_records(self, heard: Heard) -> None:
        records = heard.records[self._records_seen :]
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

    def _build_connections(self, heard: Heard) -> Table:
        table = Table(title="connections", title_justify="left", expand=False)
        for heading in ("id", "address", "state", "generation", "attempt", "clients", "last step"):
            table.add_column(heading)
        for name, record in list(self._connections.items())[-_CONNECTIONS_SHOWN:]:
            state = record["dest"] or record["source"] or "IDLE"
            table.add_row(
                escape(_short(name)),
                escape(str(record["address"])),
                _style_state(state),
                *(_number(record[key]) for key in ("generation", "attempt", "clients")),
                str(record["trigger"] or ""),
            )
        if not self._connections and heard.calls:
            table.add_row("-", "-", "pymilvus's manager has no states", "", "", "", "")
        return table

    def _build_counts(self, heard: Heard, status: str) -> Text:
        failed = heard.failed_calls
        return Text.assemble(
            f"calls {len(heard.calls):,} ({self._rate():.0f}/s)   failed ",
            (f"{failed:,}", "bold red" if failed else "green"),
            f"   channels {len(heard.channels):,}   ",
            (status, "bold"),
        )

    def _rate(self) -> float:
        """Calls that ended per second, over the last two seconds."""
        (since, before), (now, after) = self._rates[0], self._rates[-1]
        return (after - before) / (now - since) if now > since else 0.0


def _style_state(state: object) -> str:
    return f"[{_STATE_STYLES.get(str(state), 'default')}]{escape(str(state))}[/]"


def _short(connection_id: str) -> str:
    return connection_id[-12:]


def _number(value: object) -> str:
    return "" if value is None else str(value)
