"""The figures of an annotated diagram: what a stream of audit records did to the table's rows.

One pass, and memory that does not grow with the log: a fixed-size tally for each row of the
table, and one small entry for each connection that is not CLOSED. The records are plain
mappings with the fields of the audit schema; whoever reads and checks a log hands them over,
and whatever is not a transition that can be understood is counted and left out.
"""

from __future__ import annotations

import difflib
import math
import statistics
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import datetime, timezone

from .table import TRANSITIONS, Row, State

TRANSITION = "connection.transition"
CREATED = "connection.created"
_OTHER_EVENTS = ("connection.refused", "connection.waiting", "connection.records_lost")

#: (trigger, source, dest): what a record says of the row that was taken.
RowKey = tuple[str, str, str]

#: Step numbers of a highlighted path that are kept for each row; a label has room for a few.
STEPS_KEPT = 4
#: Dwell times of a row up to this many are kept as they are: their median is exact.
EXACT_DWELLS = 1024
#: Beyond, they are counted in buckets of this growth: the median is right within 1 %.
_BUCKET_GROWTH = 1.02
#: Seconds (30 years). A longer dwell time is damage, and would drown the shares of time.
_LONGEST_DWELL = 1e9
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
    ``skipped`` records that were no transition one could read. ``since`` and ``until`` bound
    the time that the shares are of. ``connection`` is the highlighted one, and then all figures
    are of it alone; ``last_state`` is where it ended.
    """

    rows: Mapping[RowKey, RowFigure]
    shares: Mapping[str, float]
    connections: int = 0
    transitions: int = 0
    created: int = 0
    strays: int = 0
    skipped: int = 0
    since: datetime | None = None
    until: datetime | None = None
    connection: str | None = None
    last_state: str | None = None

    def count(self, rows: Iterable[Row]) -> int:
        """How often any of ``rows`` was taken."""
        return sum(self.rows[key].count for key in map(row_key, rows) if key in self.rows)

    @property
    def recoveries(self) -> int:
        """Recoveries begun: what retries and give_ups are measured against."""
        recovering = State.RECOVERING.value
        return sum(
            figure.count
            for (_, source, dest), figure in self.rows.items()
            if dest == recovering and source != recovering
        )


def row_key(row: Row) -> RowKey:
    """The key under which the log knows a row of the table."""
    return row.trigger.value, row.source.value, row.dest.value


def annotate(
    records: Iterable[Mapping[str, object]],
    connection: str | None = None,
    rows: Iterable[Row] = TRANSITIONS,
) -> Figures:
    """Fold ``records`` (in the order of the log) into figures; of one ``connection``, if given.

    A connection that is still open when the log ends is taken to stay in its last state until
    the log's last moment; otherwise healthy connections, which write nothing, would not count.
    Raises UnknownConnection if ``connection`` has no transition in the log.
    """
    fold = _Fold(frozenset(map(row_key, rows)), connection)
    for record in records:
        fold.add(record)
    return fold.figures()


class DwellTally:
    """Durations in seconds, for their median: exact for the first ones, then in buckets."""

    def __init__(self) -> None:
        self.count = 0
        self._values: list[float] = []
        self._buckets: Counter[int] = Counter()

    def add(self, seconds: float) -> None:
        """Count one duration; it must be finite and not negative."""
        self.count += 1
        if self._buckets:
            self._buckets[_bucket(seconds)] += 1
            return
        self._values.append(seconds)
        if len(self._values) > EXACT_DWELLS:
            self._buckets.update(map(_bucket, self._values))
            self._values.clear()

    def median(self) -> float | None:
        """The median in seconds, within 1 % beyond `EXACT_DWELLS` values; None without any."""
        if self._values:
            return statistics.median(self._values)
        seen = 0
        for bucket in sorted(self._buckets):
            seen += self._buckets[bucket]
            if 2 * seen >= self.count:
                return _middle(bucket)
        return None


_ZERO_BUCKET = -(10**6)


def _bucket(seconds: float) -> int:
    if seconds <= 0:
        return _ZERO_BUCKET
    return math.floor(math.log(seconds) / math.log(_BUCKET_GROWTH))


def _middle(bucket: int) -> float:
    return 0.0 if bucket == _ZERO_BUCKET else float(_BUCKET_GROWTH ** (bucket + 0.5))


@dataclass
class _Taken:
    """The tally of one row."""

    count: int = 0
    dwells: DwellTally = field(default_factory=DwellTally)
    steps: list[int] = field(default_factory=list)


class _Fold:
    """The running totals of one pass."""

    def __init__(self, known: frozenset[RowKey], connection: str | None) -> None:
        self._known = known
        self._wanted = connection
        self._taken: dict[RowKey, _Taken] = {}
        self._time: defaultdict[str, float] = defaultdict(float)
        #: connection id -> (state, since when) of every connection that is not CLOSED
        self._open: dict[str, tuple[str, datetime | None]] = {}
        self._ended = 0
        self._ids: dict[str, None] = {}
        self._created = self._strays = self._skipped = self._steps = 0
        #: of what is counted, and of the whole log
        self._since: datetime | None = None
        self._until: datetime | None = None
        self._end: datetime | None = None
        self._last_state: str | None = None

    def add(self, record: Mapping[str, object]) -> None:
        event, identity = record.get("event"), record.get("connection_id")
        if event not in (TRANSITION, CREATED) or not isinstance(identity, str):
            # A refused trigger changed nothing: it is no step, and no damage either.
            if not (isinstance(event, str) and event in _OTHER_EVENTS):
                self._skipped += 1
            return
        moment = _moment(record.get("ts"))
        if moment is not None and (self._end is None or moment > self._end):
            self._end = moment
        if self._wanted is not None and identity != self._wanted:
            if len(self._ids) < _IDS_KEPT:
                self._ids[identity] = None
            return
        if moment is not None:
            self._since = moment if self._since is None else min(self._since, moment)
            self._until = moment if self._until is None else max(self._until, moment)
        if event == CREATED:
            self._created += 1
            self._open[identity] = (State.IDLE.value, moment)
        else:
            self._step(record, identity, moment)

    def _step(self, record: Mapping[str, object], identity: str, moment: datetime | None) -> None:
        trigger, source, dest = record.get("trigger"), record.get("source"), record.get("dest")
        if not (isinstance(trigger, str) and isinstance(source, str) and isinstance(dest, str)):
            self._skipped += 1
            return
        key = (trigger, source, dest)
        if key not in self._known:
            self._strays += 1
            return
        taken = self._taken.get(key)
        if taken is None:
            taken = self._taken[key] = _Taken()
        taken.count += 1
        self._steps += 1
        self._last_state = dest
        if self._wanted is not None and len(taken.steps) < STEPS_KEPT:
            taken.steps.append(self._steps)
        dwell = record.get("dwell_s")
        if isinstance(dwell, (int, float)) and 0 <= dwell <= _LONGEST_DWELL:
            taken.dwells.add(float(dwell))
            self._time[source] += dwell
        if dest == State.CLOSED.value:
            self._open.pop(identity, None)
            self._ended += 1
        else:
            self._open[identity] = (dest, moment)

    def figures(self) -> Figures:
        if self._wanted is not None and not self._steps:
            raise UnknownConnection(self._unknown(self._wanted))
        for state, moment in self._open.values():
            if moment is not None and self._end is not None:
                self._time[state] += (self._end - moment).total_seconds()
        total = math.fsum(self._time.values())
        return Figures(
            rows={
                key: RowFigure(taken.count, taken.dwells.median(), tuple(taken.steps))
                for key, taken in sorted(self._taken.items())
            },
            shares={state.value: self._time[state.value] / total for state in State if total > 0},
            connections=len(self._open) + self._ended,
            transitions=self._steps,
            created=self._created,
            strays=self._strays,
            skipped=self._skipped,
            since=self._since,
            until=self._end if self._open else self._until,
            connection=self._wanted,
            last_state=self._last_state,
        )

    def _unknown(self, wanted: str) -> str:
        near = difflib.get_close_matches(wanted, self._ids, n=3)
        hint = f"; did you mean {' or '.join(map(repr, near))}?" if near else ""
        return f"no transition of connection {wanted!r} in the log{hint}"


def _moment(text: object) -> datetime | None:
    """A record's ``ts`` in UTC; None if it is no time. One without a zone is taken as UTC."""
    if not isinstance(text, str):
        return None
    try:
        # Python 3.10 does not know the suffix Z.
        moment = datetime.fromisoformat(text[:-1] + "+00:00" if text.endswith("Z") else text)
        if moment.tzinfo is None:
            return moment.replace(tzinfo=timezone.utc)
        return moment.astimezone(timezone.utc)
    except (ValueError, OverflowError):
        return None
