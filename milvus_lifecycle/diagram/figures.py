"""The figures of an annotated diagram: what some audit logs say of the table's rows.

They are those of ``replay.stats``, the one fold, as a drawing wants them.
"""

from __future__ import annotations

import difflib
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from datetime import datetime

from ..replay.outages import Life
from ..replay.records import Record, Transition
from ..replay.stats import Edge, Stats, StatsFold
from ..table import Row, State

#: Step numbers of a highlighted path that are kept for each row; a label has room for a few.
STEPS_KEPT = 4
#: Distinct ids remembered for the "did you mean" of an unknown connection.
_IDS_KEPT = 1000


class UnknownConnection(LookupError):
    """The log has no transition of the connection that was asked for."""


@dataclass(frozen=True)
class RowFigure:
    """How often a row was taken, and the median time in its source state before (seconds).

    ``median_s`` is None where no record of the row carried a usable ``dwell_s``. ``steps`` are
    the first numbers (from 1) of the highlighted connection's steps that took the row.
    """

    count: int
    median_s: float | None = None
    steps: tuple[int, ...] = ()


@dataclass(frozen=True)
class Figures:
    """What an annotated diagram shows.

    ``rows`` holds only rows that were taken. ``shares`` are fractions of the connections'
    time, by state; they add up to 1, or ``shares`` is empty if no time passed. ``strays``
    counts transitions that no row of the table allows (``audit verify`` says where they are),
    ``recoveries`` those that retries and give_ups are measured against. ``since`` and ``until``
    bound the time that the shares are of. ``connection`` is the highlighted one, and then all
    figures are of it alone; ``last_state`` is where it ended.
    """

    rows: Mapping[Edge, RowFigure]
    shares: Mapping[str, float]
    connections: int = 0
    transitions: int = 0
    created: int = 0
    recoveries: int = 0
    strays: int = 0
    since: datetime | None = None
    until: datetime | None = None
    connection: str | None = None
    last_state: str | None = None

    def count(self, rows: Iterable[Row]) -> int:
        """How often any of ``rows`` was taken."""
        return sum(self.rows[key].count for key in map(row_key, rows) if key in self.rows)


def row_key(row: Row) -> Edge:
    """The key under which the log knows a row of the table."""
    return row.trigger.value, row.source.value, row.dest.value


def figures_of(stats: Stats) -> Figures:
    """What the fold found, for a drawing."""
    return Figures(
        rows={
            edge: RowFigure(count, stats.medians[edge])
            for edge, count in sorted(stats.edges.items())
        },
        shares=stats.total.state_shares(),
        connections=stats.total.connections,
        transitions=sum(stats.edges.values()),
        created=stats.total.created,
        recoveries=stats.total.recoveries,
        strays=stats.strays,
        since=stats.since,
        until=stats.until,
    )


def annotate(records: Iterable[Record], connection: str | None = None) -> Figures:
    """Fold ``records`` (in the order of the log) into figures; of one ``connection``, if given.

    Raises UnknownConnection if ``connection`` has no transition in the log.
    """
    fold = StatsFold()
    if connection is None:
        for record in records:
            fold.add(record)
        return figures_of(fold.result())
    life: Life | None = None
    steps: defaultdict[Edge, list[int]] = defaultdict(list)
    taken = 0
    ids: dict[str, None] = {}
    for record in records:
        if record.connection_id == connection:
            life = fold.add(record) or life
            if isinstance(record, Transition):
                taken += 1
                numbers = steps[record.trigger, record.source, record.dest]
                if len(numbers) < STEPS_KEPT:
                    numbers.append(taken)
        elif life is not None and life.state != State.CLOSED:
            fold.reach(record.ts)
        elif record.connection_id is not None and len(ids) < _IDS_KEPT:
            ids[record.connection_id] = None
    if life is None or not taken:
        raise UnknownConnection(_unknown(connection, ids))
    figures = figures_of(fold.result())
    rows = {edge: replace(row, steps=tuple(steps[edge])) for edge, row in figures.rows.items()}
    return replace(figures, rows=rows, connection=connection, last_state=life.state)


def _unknown(wanted: str, ids: Iterable[str]) -> str:
    near = difflib.get_close_matches(wanted, ids, n=3)
    hint = f"; did you mean {' or '.join(map(repr, near))}?" if near else ""
    return f"no transition of connection {wanted!r} in the log{hint}"
