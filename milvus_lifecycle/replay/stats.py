"""Figures per endpoint and in all, folded from records in one pass."""

from __future__ import annotations

import heapq
from array import array
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from datetime import datetime

from ..table import TRANSITIONS, State, Trigger
from .incidents import Incident, IncidentBook
from .outages import FLAPPING, Life, Outage, is_failed_connect
from .recent import Recent
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
_RETRY, _GIVE_UP = str(Trigger.RETRY), str(Trigger.GIVE_UP)
_RECOVERED = str(Trigger.RECOVERED)


def quantile(ordered: Sequence[float], share: float) -> float | None:
    """The value that ``share`` of the values do not exceed (nearest rank); None without any."""
    if not ordered:
        return None
    return ordered[min(len(ordered) - 1, max(0, -int(-share * len(ordered) // 1) - 1))]


@dataclass
class Figures:
    """What was counted for one endpoint, or for all. Times are in seconds.

    Memory: eight bytes for each recovery, and a few small tables.
    """

    connections: int = 0
    transitions: int = 0
    recovery_times: array[float] = field(default_factory=lambda: array("d"))
    moves: int = 0
    attempts: int = 0
    give_ups: int = 0
    failed_connects: int = 0
    outages: int = 0
    outage_s: float = 0.0
    longest_outage_s: float = 0.0
    flapping: int = 0
    refused: int = 0
    #: waits for a collection that the server loaded again
    waits: int = 0
    waited_s: float = 0.0
    state_s: defaultdict[str, float] = field(default_factory=lambda: defaultdict(float))
    errors: Counter[str] = field(default_factory=Counter)

    def absorb(self, other: Figures) -> None:
        """Add the figures of another endpoint."""
        self.recovery_times.extend(other.recovery_times)
        for state, seconds in other.state_s.items():
            self.state_s[state] += seconds
        self.errors.update(other.errors)
        self.longest_outage_s = max(self.longest_outage_s, other.longest_outage_s)
        self.outage_s += other.outage_s
        self.waited_s += other.waited_s
        for name in _COUNTS:
            setattr(self, name, getattr(self, name) + getattr(other, name))

    def recovery_quantiles(self) -> dict[str, float | None]:
        """p50, p95, p99 (nearest rank) and max of the recoveries' durations in seconds."""
        ordered = sorted(self.recovery_times)
        shares = {"p50": 0.5, "p95": 0.95, "p99": 0.99, "max": 1.0}
        return {name: quantile(ordered, share) for name, share in shares.items()}

    def as_dict(self) -> dict[str, object]:
        """JSON-ready."""
        total = sum(self.state_s.values())
        return {
            **{name: getattr(self, name) for name in _COUNTS},
            "recoveries": len(self.recovery_times),
            "recovery_s": {
                name: None if value is None else round(value, 6)
                for name, value in self.recovery_quantiles().items()
            },
            "outage_s": round(self.outage_s, 6),
            "longest_outage_s": round(self.longest_outage_s, 6),
            "waited_s": round(self.waited_s, 6),
            "state_s": {state.value: round(self.state_s[state.value], 6) for state in State},
            "state_share": {
                state.value: round(self.state_s[state.value] / total, 6) if total else None
                for state in State
            },
            "errors": dict(self.errors.most_common()),
        }


_COUNTS = (
    "connections",
    "transitions",
    "moves",
    "attempts",
    "give_ups",
    "failed_connects",
    "outages",
    "flapping",
    "refused",
    "waits",
)


@dataclass(frozen=True)
class Flapper:
    """A connection that relapsed ``relapses`` times."""

    relapses: int
    connection_id: str
    address: str


@dataclass(frozen=True)
class Stats:
    """The result: figures by endpoint and in all, the worst outages, the edges' counts."""

    endpoints: dict[str, Figures]
    total: Figures
    edges: dict[Edge, int]
    incidents: list[Incident]
    longest_outages: list[Outage]
    flapping: list[Flapper]
    since: datetime | None
    until: datetime | None
    records: int
    lost_records: int
    forgotten: int

    @property
    def never_travelled(self) -> list[Edge]:
        """Rows of the table that no record took, in the table's order."""
        return [edge for edge in _EDGES if not self.edges.get(edge)]

    def as_dict(self) -> dict[str, object]:
        """JSON-ready."""
        return {
            "records": self.records,
            "lost_records": self.lost_records,
            "forgotten_connections": self.forgotten,
            "since": self.since.isoformat() if self.since else None,
            "until": self.until.isoformat() if self.until else None,
            "total": self.total.as_dict(),
            "endpoints": {name: one.as_dict() for name, one in self.endpoints.items()},
            "incidents": [incident.as_dict() for incident in self.incidents],
            "longest_outages": [outage.as_dict() for outage in self.longest_outages],
            "flapping_connections": [vars(flapper) for flapper in self.flapping],
            "edges": [
                {"trigger": on, "source": at, "dest": to, "count": self.edges.get((on, at, to), 0)}
                for on, at, to in _EDGES
            ],
            "never_travelled": [
                {"trigger": on, "source": at, "dest": to} for on, at, to in self.never_travelled
            ],
        }


class StatsFold:
    """Takes records in the order of the log; ``result`` may be asked once, at the end."""

    def __init__(self, longest: int = LONGEST) -> None:
        self.longest = longest
        self._endpoints: dict[str, Figures] = {}
        self._edges: Counter[Edge] = Counter()
        self._lives: Recent[str, Life] = Recent()
        self._outages: list[tuple[float, int, Outage]] = []
        self._incidents = IncidentBook()
        self._flapping: dict[str, Flapper] = {}
        self._since: datetime | None = None
        self._until: datetime | None = None
        self._records = self._lost = self._serial = 0

    def add(self, record: Record) -> None:
        """Fold one record."""
        self._records += 1
        moment = record.ts
        if self._since is None or moment < self._since:
            self._since = moment
        if self._until is None or moment > self._until:
            self._until = moment
        if type(record) is Transition:
            self._step(record)
        elif isinstance(record, RecordsLost):
            self._lost += max(0, record.count)
        elif isinstance(record, Refused):
            self._figures(record.address).refused += 1
        elif isinstance(record, Waiting):
            figures = self._figures(record.address)
            figures.waits += record.trigger == "loading"
            figures.waited_s += record.dwell_s or 0.0
        elif isinstance(record, Created):
            self._begin(record)

    def _begin(self, record: Created | Transition) -> Life:
        life = Life(record)
        self._lives.put(record.connection_id, life)
        self._figures(record.address).connections += 1
        return life

    def _figures(self, address: str) -> Figures:
        figures = self._endpoints.get(address)
        if figures is None:
            if len(self._endpoints) >= ENDPOINTS:
                address = OTHERS
            figures = self._endpoints.setdefault(address, Figures())
        return figures

    def _step(self, record: Transition) -> None:
        life = self._lives.find(record.connection_id) or self._begin(record)
        figures = self._figures(life.address)
        figures.transitions += 1
        figures.state_s[record.source] += record.dwell_s or 0.0
        self._edges[record.trigger, record.source, record.dest] += 1
        if record.error_code is not None:
            figures.errors[record.error_code] += 1
        if record.trigger in (_RETRY, _GIVE_UP, _RECOVERED):
            figures.attempts += 1
            figures.give_ups += int(record.trigger == _GIVE_UP)
        elif is_failed_connect(record):
            figures.failed_connects += 1
        landing, outage = life.add(record)
        if landing is not None:
            if landing.move:
                figures.moves += 1
            else:
                figures.recovery_times.append(landing.seconds)
        if outage is not None:
            self._suffer(life, outage)

    def _suffer(self, life: Life, outage: Outage) -> None:
        figures = self._figures(outage.address)
        figures.outages += 1
        figures.outage_s += outage.seconds
        figures.longest_outage_s = max(figures.longest_outage_s, outage.seconds)
        life.incident = self._incidents.add(outage, life.incident)
        self._serial += 1
        entry = (outage.seconds, -self._serial, outage)
        if len(self._outages) < self.longest:
            heapq.heappush(self._outages, entry)
        else:
            heapq.heappushpop(self._outages, entry)
        if outage.relapse and life.relapses >= FLAPPING:
            figures.flapping += int(life.relapses == FLAPPING)
            self._flap(Flapper(life.relapses, life.connection_id, outage.address))

    def _flap(self, flapper: Flapper) -> None:
        """Keep the connections that flap most."""
        self._flapping[flapper.connection_id] = flapper
        if len(self._flapping) > 2 * self.longest:
            self._flapping = {one.connection_id: one for one in self._worst_flappers()}

    def _worst_flappers(self) -> list[Flapper]:
        order = sorted(self._flapping.values(), key=lambda one: (-one.relapses, one.connection_id))
        return order[: self.longest]

    def result(self) -> Stats:
        """The figures. Outages that are still open when the log ends count as they are."""
        for life in self._lives.values():
            if life.outage is not None:
                self._suffer(life, life.outage)
                life.outage = None
        total = Figures()
        for figures in self._endpoints.values():
            total.absorb(figures)
        return Stats(
            endpoints=dict(sorted(self._endpoints.items())),
            total=total,
            edges=dict(self._edges),
            incidents=self._incidents.worst(self.longest),
            longest_outages=[outage for _, _, outage in sorted(self._outages, reverse=True)],
            flapping=self._worst_flappers(),
            since=self._since,
            until=self._until,
            records=self._records,
            lost_records=self._lost,
            forgotten=self._lives.forgotten,
        )


def fold_stats(records: Iterable[Record], longest: int = LONGEST) -> Stats:
    """The figures of ``records``."""
    fold = StatsFold(longest)
    for record in records:
        fold.add(record)
    return fold.result()
