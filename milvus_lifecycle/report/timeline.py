"""The report's timeline: for each connection, the stays in its states; a large log is thinned.

A *stay* lasts from the record that entered a state to the connection's next record. The rule
of thinning, which the report states with its figures:

1. All stays are shown, as long as there are no more than ``STAYS``.
2. Beyond, a stay that is shorter than the *grain* is merged with the one before it. A merged
   stay has the colour and the record of the worst of them (RECOVERING, then PROBING, CLOSED,
   ACTIVE, IDLE) and says how many it stands for. The grain is the smallest of 1, 2, 4, ... ms
   that is enough, but at most a thousandth of the log's time: finer than a screen shows.
3. Where that is not enough, the connections with the least time in outages (then with the
   fewest records) are left out.

Outages and figures are not made of what is shown: they count every record.

The page reads columns of small integers, packed into text: a stay is a row over all columns of
``stays``; lanes name their first stay. Texts are numbered in one table. The whole is JSON,
compressed, in base64: 50,000 stays take about 1 MB.
"""

from __future__ import annotations

import base64
import gzip
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from itertools import accumulate, pairwise
from operator import attrgetter

from ..replay.outages import Life
from ..replay.records import Created, Record, Transition
from ..replay.stats import Stats
from ..table import State

STAYS = 60_000
_FINEST = 1000

_WORST_LAST = (State.IDLE, State.ACTIVE, State.CLOSED, State.PROBING, State.RECOVERING)
_RANK: dict[str, int] = {state: rank for rank, state in enumerate(_WORST_LAST)}


@dataclass(slots=True)
class Stay:
    """``records`` changes of state, drawn as one stay in ``state`` from ``start`` on.

    ``record`` is the one that entered the state; None: the time before a log that starts late.
    """

    start: datetime
    state: str
    record: Transition | Created | None
    records: int = 1

    def merge(self, other: Stay) -> None:
        """Take over the stay that follows."""
        self.records += other.records
        if _RANK.get(other.state, 0) > _RANK.get(self.state, 0):
            self.state, self.record = other.state, other.record


@dataclass
class Lane:
    """One connection: its stays in order, each up to the start of the next."""

    life: Life
    first: Transition | Created
    stays: list[Stay] = field(default_factory=list)

    def thin(self, grain: timedelta) -> None:
        """Merge stays shorter than ``grain`` into the ones before them."""
        last, twice = self.stays[0], 2 * grain
        kept = [last]
        for stay, after in pairwise(self.stays[1:]):
            start = stay.start
            if after.start - start < grain and start - last.start < twice:
                last.merge(stay)
            else:
                kept.append(last := stay)
        # The last stay shows what became of the connection; it is never merged away.
        self.stays = [*kept, *self.stays[1:][-1:]]


class TimelineFold:
    """Folds the figures of records, and collects stays, thinning as they become too many."""

    def __init__(self, stats: Stats, limit: int = STAYS) -> None:
        self.limit = limit
        self.grain = timedelta(0)
        #: were connections left out, to keep to ``limit``?
        self.left_out = False
        self.records = 0
        #: once it is finished: those with the most time in outages first
        self.lanes: list[Lane] = []
        self._stats = stats
        self._lanes: dict[str, Lane] = {}
        self._stays = 0

    def add(self, record: Record) -> None:
        """Take one record."""
        life = self._stats.add(record)
        if life is None or not isinstance(record, (Transition, Created)):
            return
        self.records += 1
        lane = self._lanes.get(record.connection_id) or self._begin(record, life)
        lane.life = life
        lane.stays.append(Stay(record.ts, record.dest, record))
        self._stays += 1
        if self._stays > 2 * self.limit:
            self._shrink()

    def finish(self) -> None:
        """The log ends: thin for the last time, and sort."""
        self._shrink()
        self.lanes = self._sorted()

    def _sorted(self) -> list[Lane]:
        def rank(lane: Lane) -> tuple[float, int, str]:
            life = lane.life
            return -life.suffered(self._stats.until), -life.records, life.connection_id

        return sorted(self._lanes.values(), key=rank)

    def _begin(self, record: Transition | Created, life: Life) -> Lane:
        lane = self._lanes[record.connection_id] = Lane(life, record)
        if isinstance(record, Transition) and record.seq > 1 and record.dwell_s:
            # What went before is not shown, but known by its end and its length.
            began = record.ts - timedelta(seconds=min(record.dwell_s, 86_400.0))
            lane.stays.append(Stay(max(began, self._stats.since), record.source, None, records=0))
            self._stays += 1
        return lane

    def _shrink(self) -> None:
        """Rules 2 and 3, until no more than ``limit`` stays are left."""
        coarsest = (self._stats.until - self._stats.since) / _FINEST
        grain = max(self.grain, timedelta(milliseconds=1))
        while self._stays > self.limit and grain <= coarsest:
            for lane in self._lanes.values():
                lane.thin(grain)
            self._count()
            self.grain, grain = grain, 2 * grain
        if self._stays <= self.limit:
            return
        order = self._sorted()
        needed = accumulate(len(lane.stays) for lane in order)
        kept = max(1, sum(stays <= self.limit for stays in needed))
        self.left_out = self.left_out or kept < len(order)
        self._lanes = {lane.life.connection_id: lane for lane in order[:kept]}
        self._count()

    def _count(self) -> None:
        self._stays = sum(len(lane.stays) for lane in self._lanes.values())


# -- as the page reads it ------------------------------------------------------------------------

#: The states in the order of their numbers in the data.
STATES = tuple(state.value for state in State)


def _number(texts: dict[str, int], text: str | None) -> int:
    """A text's number; 0 is no text."""
    return texts.setdefault(text or "", len(texts))


def timeline_data(lanes: Sequence[Lane], since: datetime, until: datetime) -> dict[str, object]:
    """The columns. Times are milliseconds, of stays since ``since``, and of that since 1970."""
    texts = {"": 0}
    lane_rows: list[dict[str, object]] = []
    stay_rows: list[tuple[object, ...]] = []
    for lane in lanes:
        lane_rows.append(
            {
                "id": lane.life.connection_id,
                "address": _number(texts, lane.life.address),
                "strategy": _number(texts, lane.first.strategy),
                "flavour": _number(texts, lane.first.flavour),
                "pid": lane.first.pid,
                "outage_s": round(lane.life.outage_s, 3),
                "outages": lane.life.outages,
                "records": lane.life.records,
                "first": len(stay_rows),
            }
        )
        stay_rows += (_stay_row(stay, since, texts) for stay in lane.stays)
    return {
        "since": since.timestamp() * 1000,
        "span": max(1.0, (until - since).total_seconds() * 1000),
        "states": STATES,
        "texts": list(texts),
        "lanes": _columns(lane_rows),
        "stays": {
            name: list(column)
            for name, column in zip(_COLUMNS, zip(*stay_rows, strict=True), strict=False)
        },
    }


def _columns(rows: Sequence[Mapping[str, object]]) -> dict[str, list[object]]:
    return {name: [row[name] for row in rows] for name in rows[0]} if rows else {}


def _stay_row(stay: Stay, since: datetime, texts: dict[str, int]) -> tuple[object, ...]:
    record = stay.record
    if isinstance(record, Transition):
        trigger, *told = _READ(record)
    else:
        trigger = "created" if record is not None else None
        told = [getattr(record, name, None) for name in (*_NUMBERS, *_TEXTS)]
    return (
        round((stay.start - since).total_seconds() * 1000, 3),
        _INDEX.get(stay.state, -1),
        stay.records if record is not None else 0,
        _number(texts, trigger),
        *told[: len(_NUMBERS)],
        *[texts.setdefault(text or "", len(texts)) for text in told[len(_NUMBERS) :]],
    )


_INDEX: dict[str, int] = {state: number for number, state in enumerate(STATES)}
_NUMBERS = (
    *("seq", "generation", "attempt", "clients", "in_flight", "dwell_s", "topology_version"),
    *("waiting", "waited", "failed"),
)
_TEXTS = ("source", "reason", "error_code", "address", "thread_name")
_COLUMNS = ("start", "state", "merged", "trigger", *_NUMBERS, *_TEXTS)
_READ = attrgetter("trigger", *_NUMBERS, *_TEXTS)


def pack(data: object) -> str:
    """``data`` as compressed JSON in base64."""
    text = json.dumps(data, separators=(",", ":")).encode()
    return base64.b64encode(gzip.compress(text, 6, mtime=0)).decode()
