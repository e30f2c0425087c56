"""The rows of the summary that a failover adds."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from rich.table import Table

from milvus_lifecycle.demo.failover_measure import MOVE_LIMIT_S, MoveFigures, Placement

Shown = tuple[Sequence[MoveFigures], "Placement | None"]

_KINDS = {
    "switch": "the other server becomes primary, the old one lives on",
    "death": "the primary dies, the other server follows",
}


def add_moves(table: Table, runs: Sequence[Shown], worker_name: str) -> None:
    """Add a section for each move, and one for where the writes went; nothing without moves."""
    for number, move in enumerate(runs[0][0]):
        table.add_row(f"[bold]move {number + 1}[/bold]: {_KINDS[move.kind]}")
        for label, cell in _list_rows(move.kind, worker_name):
            table.add_row(
                f"  {label}",
                *(cell(moves[number]) if number < len(moves) else "-" for moves, _ in runs),
            )
        table.add_section()
    if runs[0][1] is not None:
        _add_placement(table, [placement for _, placement in runs])


def _list_rows(kind: str, worker_name: str) -> list[tuple[str, Callable[[MoveFigures], str]]]:
    rows: list[tuple[str, Callable[[MoveFigures], str]]] = [
        ("failed calls", lambda move: _mark(f"{move.failed_calls:,}", not move.failed_calls)),
        ("channels opened", lambda move: f"{move.channels:,}"),
        ("client told, after the topology named it", lambda move: _show(move.refreshed_s)),
        ("moved, after the topology named it", lambda move: _show(move.moved_s)),
        ("moved, after the client was told", lambda move: _show(move.after_refresh_s, True)),
    ]
    if kind == "switch":
        rows += [
            (
                "last write on the old primary, after the naming",
                lambda move: f"{move.late_s:.3f} s",
            ),
            ("writes begun there, after the naming", lambda move: f"{move.late_writes:,}"),
        ]
    else:
        rows += [
            ("first good call, after it was named", lambda move: _show(move.first_good_s, True)),
            (f"slowest {worker_name}'s first good call", lambda move: _show(move.slowest_s)),
        ]
    return rows


def _add_placement(table: Table, placements: Sequence[Placement | None]) -> None:
    def add(label: str, cell: Callable[[Placement], str]) -> None:
        table.add_row(label, *("-" if place is None else cell(place) for place in placements))

    add("acknowledged writes", lambda place: f"{place.writes:,}")
    add("in the two databases", lambda place: " + ".join(map(str, place.by_server.values())))
    add("in both (sent again after a failure)", lambda place: f"{place.twice:,}")
    add("in neither", lambda place: _mark(f"{place.lost:,}", not place.lost))
    add("taken by another than the client's primary", _show_misplaced)
    table.add_section()


def _show_misplaced(placement: Placement) -> str:
    if placement.misplaced is None:
        return "not known"
    return _mark(f"{placement.misplaced:,}", not placement.misplaced)


def _show(seconds: float | None, promised: bool = False) -> str:
    if seconds is None:
        return _mark("never", False)
    text = f"{seconds:.3f} s"
    return _mark(text, seconds <= MOVE_LIMIT_S) if promised else text


def _mark(text: str, good: bool) -> str:
    return f"[{'green' if good else 'red'}]{text}[/]"
