"""The summary at the end: one table of figures with a column per run, and the verdict."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from milvus_lifecycle.demo.failover_measure import MoveFigures, Placement, find_move_faults
from milvus_lifecycle.demo.failover_summary import add_moves
from milvus_lifecycle.demo.measure import (
    CHANNEL_LIMIT,
    FIRST_GOOD_LIMIT_S,
    RATE_LIMIT,
    Figures,
    OutageFigures,
)


@dataclass(frozen=True)
class Run:
    """One finished run. `manager`: the module of the connection manager that was in use.
    `log_lines`: lines that pymilvus logged. `clean_exit`: the program's process ended by itself."""

    title: str
    on_engine: bool
    manager: str
    figures: Figures
    log_lines: int
    clean_exit: bool
    moves: tuple[MoveFigures, ...] = ()
    placement: Placement | None = None

    def with_failover(self, moves: Sequence[MoveFigures], placement: Placement) -> Run:
        """The same run, with what a failover showed besides."""
        return replace(self, moves=tuple(moves), placement=placement)

    @property
    def faults(self) -> list[str]:
        """Why the program did not get through unharmed; empty if it did."""
        found = [*self.figures.faults, *find_move_faults(self.moves, on_engine=self.on_engine)]
        if self.placement is not None:
            found += self.placement.faults
        if not self.clean_exit:
            found.append("the program's process had to be killed at the end")
        return found

    def as_json(self) -> dict[str, object]:
        """The run with JSON types; times in seconds."""
        return {
            "title": self.title,
            "on_engine": self.on_engine,
            "manager": self.manager,
            **self.figures.as_json(),
            "faults": self.faults,
            "log_lines": self.log_lines,
            "clean_exit": self.clean_exit,
            "moves": [asdict(move) for move in self.moves],
            "placement": None if self.placement is None else self.placement.as_json(),
        }


def print_summary(console: Console, runs: Sequence[Run], worker_name: str) -> None:
    """Print the figures of all runs side by side, the errors seen, and a verdict for each run."""
    console.print(_build_figures(runs, worker_name))
    if any(run.figures.transitions_by_trigger for run in runs):
        console.print(_build_transitions(runs))
    for run in runs:
        for error, count in run.figures.errors.items():
            console.print(
                f"{escape(run.title)}: {count:,} x {escape(error)}", highlight=False, soft_wrap=True
            )
    for run in runs:
        if run.figures.too_slow:
            console.print(
                f"{escape(run.title)}: a {worker_name} started fewer than {RATE_LIMIT:.0f} calls "
                f"a second while the server answered: try fewer {worker_name}s (--threads) or a "
                "machine with less else to do",
                style="yellow",
                soft_wrap=True,
            )
        verdict = "; ".join(run.faults) or _praise(run)
        console.print(
            f"[bold]{escape(run.title)}[/bold]: {_mark(escape(verdict), not run.faults)}",
            highlight=False,
            soft_wrap=True,
        )


def _build_figures(runs: Sequence[Run], worker_name: str) -> Table:
    table = Table(title="summary", title_justify="left")
    table.add_column("", overflow="fold")
    for run in runs:
        table.add_column(run.title, justify="right")

    def add(label: str, cell: Callable[[Figures], str], *, end_section: bool = False) -> None:
        table.add_row(label, *(cell(run.figures) for run in runs), end_section=end_section)

    add("calls", lambda figures: f"{figures.calls:,}")
    add("failed calls", lambda figures: _mark(f"{figures.failed_calls:,}", not figures.faults))
    if any(run.figures.unended_calls for run in runs):
        add("calls that never ended", lambda figures: f"{figures.unended_calls:,}")
    add(f"calls/s of the slowest {worker_name}", _show_rate)
    add("longest call", lambda figures: f"{figures.longest_call_s:.2f} s")
    add("channels opened at the start", lambda figures: f"{figures.channels_at_start:,}")
    add("channels opened in all", lambda figures: f"{figures.channels:,}")
    table.add_row("lines logged by pymilvus", *(f"{run.log_lines:,}" for run in runs))
    table.add_section()
    for number, outage in enumerate(runs[0].figures.outages):
        _add_outage(table, [run.figures for run in runs], number, outage.asked_s, worker_name)
    add_moves(table, [(run.moves, run.placement) for run in runs], worker_name)
    return table


def _add_outage(
    table: Table, runs: Sequence[Figures], number: int, asked: float, worker_name: str
) -> None:
    def add(label: str, cell: Callable[[OutageFigures], str]) -> None:
        table.add_row(
            f"  {label}",
            *(cell(run.outages[number]) if number < len(run.outages) else "-" for run in runs),
        )

    workers = runs[0].workers
    table.add_row(f"[bold]outage {number + 1}[/bold]: killed, started again after {asked:g} s")
    add("down, from the kill until it listened", lambda outage: f"{outage.down_s:.2f} s")
    add(
        "in flight at the kill",
        lambda outage: _mark(
            f"{outage.workers_in_flight} of {workers} {worker_name}s",
            outage.workers_in_flight >= workers,
        ),
    )
    add("failed calls", lambda outage: _mark(f"{outage.failed_calls:,}", not outage.failed_calls))
    add(
        "channels opened",
        lambda outage: _mark(f"{outage.channels:,}", outage.channels <= CHANNEL_LIMIT),
    )
    add(f"slowest {worker_name}'s first good call after", _show_first_good)
    table.add_section()


def _build_transitions(runs: Sequence[Run]) -> Table:
    table = Table(title="transitions by trigger", title_justify="left")
    table.add_column("trigger")
    table.add_column("transitions", justify="right")
    for run in runs:
        for trigger, count in run.figures.transitions_by_trigger.items():
            table.add_row(escape(trigger), f"{count:,}")
    return table


def _show_rate(figures: Figures) -> str:
    if figures.slowest_rate is None:
        return "-"
    return _mark(f"{figures.slowest_rate:.1f}", not figures.too_slow)


def _show_first_good(outage: OutageFigures) -> str:
    delay = outage.first_good_call_s
    if delay is None:
        return _mark("none", False)
    return _mark(f"{delay:.3f} s", delay <= FIRST_GOOD_LIMIT_S)


def _praise(run: Run) -> str:
    praise = f"no call failed, of {run.figures.calls:,}"
    if run.placement is not None and run.placement.misplaced is not None:
        praise += f"; each of {run.placement.writes:,} writes is where it belongs"
    return praise


def _mark(text: str, good: bool) -> str:
    return f"[{'green' if good else 'red'}]{text}[/]"
