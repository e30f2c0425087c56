"""The one fold: figures per endpoint and in all, from records in one pass.

``audit stats``, the report and the annotated diagram show what it found; what the figures mean
is defined in ``docs/audit.md``.
"""

from __future__ import annotations

import difflib
import heapq
import math
import statistics
from array import array
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from datetime import datetime, timezone

from ..table import LIVE, TRANSITIONS, State, Trigger
from .findings import Recent, as_json
from .outages import ATTEMPTS, FAILURES, FLAPPING, UNFINISHED, IncidentBook, Life, Outage
from .records import Created, Record, RecordsLost, Refused, Transition, Waiting

#: How many of the longest outages, and of the connections that flap most, are kept.
LONGEST = 20
#: Endpoints with figures of their own; further ones share the last line.
ENDPOINTS = 10_000
OTHERS = "(other endpoints)"

Edge = tuple[str, str, str]
_EDGES: tuple[Edge, ...] = tuple(
    dict.fromkeys((str(row.trigger), str(row.source), str(row.dest)) for row in TRANSITIONS)
)
_GIVE_UP = str(Trigger.GIVE_UP)
_MOVES = frozenset({str(Trigger.REROUTE), str(Trigger.RECYCLE)})
_PROBING, _RECOVERING, _CLOSED = map(str, (State.PROBING, State.RECOVERING, State.CLOSED))
_STATES = frozenset(map(str, LIVE))

#: Dwell times of an edge up to this many are kept as they are: their median is exact.
EXACT_DWELLS = 1024
#: Beyond, they are counted in buckets of this growth: the median is right within 1 %.
_BUCKET_GROWTH = 1.02
_ZERO_BUCKET = -(10**6)


class DwellTally:
    """Durations in seconds, for their median: exact for the first ones, then in buckets."""

    def __init__(self) -> None:
        self._values: list[float] = []
        self._buckets: Counter[int] = Counter()

    def add(self, seconds: float) -> None:
        """Count one duration; it must be finite and not negative."""
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
        middle = self._buckets.total() / 2
        seen = 0
        for bucket in sorted(self._buckets):
            seen += self._buckets[bucket]
            if seen >= middle:
                return 0.0 if bucket == _ZERO_BUCKET else float(_BUCKET_GROWTH ** (bucket + 0.5))
        return None


def _bucket(seconds: float) -> int:
    growth = math.log(_BUCKET_GROWTH)
    return math.floor(math.log(seconds) / growth) if seconds > 0 else _ZERO_BUCKET


@dataclass
class Figures:
    """What was counted for one endpoint, or for all. Times are in seconds.

    Memory: eight bytes for each outage, and a few small tables.
    """

    connections: int = 0
    created: int = 0
    transitions: int = 0
    outage_times: array[float] = field(default_factory=lambda: array("d"))
    unfinished: int = 0
    recoveries: int = 0
    moves: int = 0
    attempts: int = 0
    give_ups: int = 0
    failed_connects: int = 0
    flapping: int = 0
    refused: int = 0
    #: waits for a collection that the server loaded again
    waits: int = 0
    waited_s: float = 0.0
    state_s: defaultdict[str, float] = field(default_factory=lambda: defaultdict(float))
    errors: Counter[str] = field(default_factory=Counter)

    def absorb(self, other: Figures) -> None:
        """Add the figures of another endpoint."""
        self.outage_times.extend(other.outage_times)
        for state, seconds in other.state_s.items():
            self.state_s[state] += seconds
        self.errors.update(other.errors)
        self.waited_s += other.waited_s
        for name in _COUNTS:
            setattr(self, name, getattr(self, name) + getattr(other, name))

    @property
    def outages(self) -> int:
        """How many outages there were."""
        return len(self.outage_times)

    def outage_quantiles(self) -> dict[str, float | None]:
        """p50, p95, p99 (nearest rank) and max of the outages' seconds; None without any."""
        ordered: list[float | None] = [*sorted(self.outage_times)] or [None]
        shares = {"p50": 0.5, "p95": 0.95, "p99": 0.99, "max": 1.0}
        return {name: ordered[math.ceil(part * len(ordered)) - 1] for name, part in shares.items()}

    def state_shares(self) -> dict[str, float]:
        """Each state's fraction of the time; empty if no time passed."""
        total = math.fsum(self.state_s.values())
        return {state.value: self.state_s[state.value] / total for state in State if total > 0}

    def as_dict(self) -> dict[str, object]:
        """JSON-ready."""
        shares = self.state_shares()
        return {
            **{name: getattr(self, name) for name in _COUNTS},
            "outages": self.outages,
            "outage_s": {**self.outage_quantiles(), "sum": math.fsum(self.outage_times)},
            "waited_s": self.waited_s,
            "state_s": {state: self.state_s[state] for state in State},
            "state_share": {state: shares.get(state) for state in State},
            "errors": self.errors,
        }


_COUNTS = tuple(each.name for each in fields(Figures) if each.type == "int")


@dataclass(frozen=True)
class Flapper:
    """A connection that relapsed ``relapses`` times."""

    relapses: int
    connection_id: str
    address: str


@dataclass(frozen=True)
class Path:
    """The way of one connection, to ``last_state``.

    ``steps`` has for each edge the first numbers (from 1) of the steps that took it.
    """

    connection: str
    steps: Mapping[Edge, Sequence[int]]
    last_state: str


class Stats:
    """Takes records in the order of the log; once it is finished, it has the figures.

    By endpoint and in all; ``edges`` counts how often each row of the table was taken, and
    ``medians`` are those of the times in the source state before, in seconds; ``strays`` counts
    transitions that no row allows. Without ``records`` there is no ``since`` and ``until``.
    """

    def __init__(self, longest: int = LONGEST) -> None:
        self.records = self.lost_records = self.strays = 0
        self.since = datetime.max.replace(tzinfo=timezone.utc)
        self.until = datetime.min.replace(tzinfo=timezone.utc)
        self.endpoints: dict[str, Figures] = {}
        self.total = Figures()
        self.edges: Counter[Edge] = Counter()
        #: of one connection, if the figures are of one alone
        self.path: Path | None = None
        self._longest = longest
        self._dwells = {edge: DwellTally() for edge in _EDGES}
        self._lives: Recent[str, Life] = Recent(forget=Life.settle)
        self._outages: list[tuple[float, int, Outage]] = []
        self._book = IncidentBook()
        self._flappers: dict[str, Flapper] = {}
        self._settled = 0

    @property
    def never_travelled(self) -> list[Edge]:
        """Rows of the table that no record took, in the table's order."""
        return [edge for edge in _EDGES if not self.edges[edge]]

    def as_dict(self) -> dict[str, object]:
        """JSON-ready."""
        rows = [_named(edge) | {"count": self.edges[edge]} for edge in _EDGES]
        found = {
            "records": self.records,
            "lost_records": self.lost_records,
            "forgotten_connections": self._lives.forgotten,
            "since": self.since if self.records else None,
            "until": self.until if self.records else None,
            "total": self.total.as_dict(),
            "endpoints": {name: one.as_dict() for name, one in self.endpoints.items()},
            "incidents": self.incidents,
            "longest_outages": self.longest_outages,
            "flapping_connections": self.flapping,
            "edges": rows,
            "never_travelled": [_named(edge) for edge in self.never_travelled],
        }
        told: dict[str, object] = as_json(found)
        return told

    def add(self, record: Record) -> Life | None:
        """Fold one record; returns what is known of its connection, if it is about one's life."""
        self.records += 1
        self.reach(record.ts)
        if type(record) is Transition:
            return self._step(record)
        if isinstance(record, RecordsLost):
            self.lost_records += max(0, record.count)
        elif isinstance(record, Refused):
            self._figures(record.address).refused += 1
        elif isinstance(record, Waiting):
            figures = self._figures(record.address)
            figures.waits += record.trigger == "loading"
            figures.waited_s += record.dwell_s or 0.0
        elif isinstance(record, Created):
            self._figures(record.address).created += 1
            return self._begin(record)
        return None

    def reach(self, moment: datetime) -> None:
        """The log has something of ``moment``: it lasts at least from or until then."""
        if moment < self.since:
            self.since = moment
        if moment > self.until:
            self.until = moment

    def _begin(self, record: Created | Transition) -> Life:
        life = Life.of(record, self._suffer)
        self._lives.put(record.connection_id, life)
        self._figures(record.address).connections += 1
        return life

    def _figures(self, address: str) -> Figures:
        figures = self.endpoints.get(address)
        if figures is None:
            if len(self.endpoints) >= ENDPOINTS:
                address = OTHERS
            figures = self.endpoints.setdefault(address, Figures())
        return figures

    def _step(self, record: Transition) -> Life:
        life = self._lives.find(record.connection_id) or self._begin(record)
        figures = self._figures(life.address)
        self._count(figures, record)
        state, outage, relapses = life.state, life.outage, life.relapses
        dwell = life.add(record)
        edge = record.trigger, record.source, record.dest
        if edge not in self._dwells:
            self.strays += 1
        else:
            self.edges[edge] += 1
            if dwell is not None:
                self._dwells[edge].add(dwell)
        if state and dwell is not None and record.source in _STATES:
            # Time before a connection's first record is another log's, or a parent process's.
            figures.state_s[record.source] += dwell
        if life.outage is not None and life.outage is not outage:
            life.incident = self._book.begin(life.outage, life.incident)
        if life.relapses > relapses and life.relapses >= FLAPPING:
            self._flap(life)
        if life.state == _CLOSED:
            self._lives.drop(life.connection_id)
        return life

    def _count(self, figures: Figures, record: Transition) -> None:
        figures.transitions += 1
        if record.error_code is not None:
            figures.errors[record.error_code] += 1
        if record.trigger in ATTEMPTS:
            figures.attempts += 1
            figures.give_ups += int(record.trigger == _GIVE_UP)
        elif record.dest == _RECOVERING != record.source:
            figures.recoveries += 1
            figures.moves += int(record.trigger in _MOVES)
        elif record.source == _PROBING and record.dest == _CLOSED and record.trigger in FAILURES:
            figures.failed_connects += 1

    def _suffer(self, life: Life, outage: Outage) -> None:
        """Count an outage, now that nothing can change it any more."""
        figures = self._figures(outage.address)
        figures.outage_times.append(outage.seconds)
        figures.unfinished += int(outage.end == UNFINISHED)
        if life.incident is not None:
            life.incident.end(outage)
        self._settled += 1
        heapq.heappush(self._outages, (outage.seconds, -self._settled, outage))
        if len(self._outages) > self._longest:
            heapq.heappop(self._outages)

    def _flap(self, life: Life) -> None:
        """Keep the connections that flap most."""
        self._figures(life.address).flapping += int(life.relapses == FLAPPING)
        flapper = Flapper(life.relapses, life.connection_id, life.address)
        self._flappers[life.connection_id] = flapper
        if len(self._flappers) > 2 * self._longest:
            self._flappers = {one.connection_id: one for one in self._worst_flappers()}

    def _worst_flappers(self) -> list[Flapper]:
        order = sorted(self._flappers.values(), key=lambda one: (-one.relapses, one.connection_id))
        return order[: self._longest]

    def finish(self) -> Stats:
        """The log ends, once: what still lasts counts up to its last moment."""
        for life in self._lives.values():
            left = life.finish(self.until)
            if life.state in _STATES:
                self._figures(life.address).state_s[life.state] += left
        self.endpoints = dict(sorted(self.endpoints.items()))
        for figures in self.endpoints.values():
            self.total.absorb(figures)
        self.medians = {edge: dwells.median() for edge, dwells in self._dwells.items()}
        self.incidents = self._book.worst(self._longest)
        self.longest_outages = [outage for _, _, outage in sorted(self._outages, reverse=True)]
        self.flapping = self._worst_flappers()
        return self


def _named(edge: Edge) -> dict[str, object]:
    return dict(zip(("trigger", "source", "dest"), edge, strict=True))


def fold_stats(records: Iterable[Record], longest: int = LONGEST) -> Stats:
    """The figures of ``records``."""
    stats = Stats(longest)
    for record in records:
        stats.add(record)
    return stats.finish()


# -- one connection alone ------------------------------------------------------------------------

#: Step numbers of a connection's path that are kept for each edge; a label has room for a few.
STEPS_KEPT = 4
#: Distinct ids remembered for the "did you mean" of an unknown connection.
_IDS_KEPT = 1000


class UnknownConnection(LookupError):
    """The log has no transition of the connection that was asked for."""


def fold_connection(records: Iterable[Record], connection: str) -> Stats:
    """The figures of one connection alone, with its path. Raises UnknownConnection."""
    stats = Stats()
    life: Life | None = None
    steps: defaultdict[Edge, list[int]] = defaultdict(list)
    taken = 0
    ids: dict[str, None] = {}
    for record in records:
        if record.connection_id == connection:
            life = stats.add(record) or life
            if isinstance(record, Transition):
                taken += 1
                numbers = steps[record.trigger, record.source, record.dest]
                if len(numbers) < STEPS_KEPT:
                    numbers.append(taken)
        elif life is not None and life.state != _CLOSED:
            stats.reach(record.ts)
        elif record.connection_id is not None and len(ids) < _IDS_KEPT:
            ids[record.connection_id] = None
    if life is None or not taken:
        near = difflib.get_close_matches(connection, ids, n=3)
        hint = f"; did you mean {' or '.join(map(repr, near))}?" if near else ""
        raise UnknownConnection(f"no transition of connection {connection!r} in the log{hint}")
    stats.path = Path(connection, steps, life.state)
    return stats.finish()
