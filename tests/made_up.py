"""Made-up but legal logs: to try the tools on, to load a collector with, to test the reader.

A seeded simulation of a fleet: processes hold connections to a few endpoints, endpoints go
down and come back, connections walk over the rows of the table and react to that. Legal by
construction, since every step is a row. Nothing here is measured on a real server.
"""

from __future__ import annotations

import copy
import heapq
import itertools
import random
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime, timedelta, timezone

from milvus_lifecycle.table import TRANSITIONS, Row, State, Trigger

#: Relative frequency of what a healthy connection does next, and the mean wait for it (s).
_HEALTHY: dict[tuple[State, Trigger], tuple[float, float]] = {
    (State.IDLE, Trigger.ACQUIRE): (60, 4.0),
    (State.IDLE, Trigger.EXPIRE): (1.5, 300.0),
    (State.IDLE, Trigger.CLOSE): (0.3, 20.0),
    (State.IDLE, Trigger.RECYCLE): (0.1, 30.0),
    (State.IDLE, Trigger.REROUTE): (0.1, 30.0),
    (State.IDLE, Trigger.SERVED): (2, 1.0),
    (State.IDLE, Trigger.RELEASE): (0.5, 5.0),
    (State.IDLE, Trigger.FORKED): (0.1, 5.0),
    (State.ACTIVE, Trigger.RELEASE): (50, 6.0),
    (State.ACTIVE, Trigger.ACQUIRE): (25, 35.0),
    (State.ACTIVE, Trigger.DOUBT): (1, 10.0),
    (State.ACTIVE, Trigger.RECYCLE): (1, 60.0),
    (State.ACTIVE, Trigger.REROUTE): (0.5, 60.0),
    (State.ACTIVE, Trigger.CLOSE): (0.5, 10.0),
    (State.ACTIVE, Trigger.FORKED): (0.1, 5.0),
    (State.ACTIVE, Trigger.FAIL): (0.5, 5.0),
    (State.PROBING, Trigger.PROBE_PASSED): (200, 0.004),
    (State.PROBING, Trigger.ABANDONED): (0.5, 0.5),
    (State.PROBING, Trigger.FORKED): (0.1, 0.01),
    (State.PROBING, Trigger.CLOSE): (0.2, 0.01),
    (State.PROBING, Trigger.FAIL): (0.2, 0.01),
    (State.RECOVERING, Trigger.RECOVERED): (100, 0.03),
    (State.RECOVERING, Trigger.ABANDONED): (0.5, 0.5),
    (State.RECOVERING, Trigger.STAND_DOWN): (1, 0.02),
    (State.RECOVERING, Trigger.FORKED): (0.1, 0.01),
    (State.RECOVERING, Trigger.CLOSE): (0.2, 0.05),
}
_ROWS: dict[tuple[State, Trigger], list[Row]] = {}
for _row in TRANSITIONS:
    _ROWS.setdefault((_row.source, _row.trigger), []).append(_row)
_CHOICES = {
    state: [(on, *_HEALTHY[at, on]) for at, on in _HEALTHY if at is state] for state in State
}
_BUDGET = 60.0
#: How often an acquire needs a probe, and how often a flight's end finds a client waiting.
_SUSPECT, _HELD = 0.1, 0.95
_ERRORS = {
    Trigger.FAIL: "UNAVAILABLE",
    Trigger.RETRY: "UNAVAILABLE",
    Trigger.PROBE_FAILED: "DEADLINE_EXCEEDED",
    Trigger.DOUBT: "DEADLINE_EXCEEDED",
    Trigger.GIVE_UP: "UNAVAILABLE",
}
#: After these nobody holds the connection when it is IDLE.
_LETS_GO = (Trigger.RELEASE, Trigger.PROBE_PASSED, Trigger.RECOVERED, Trigger.STAND_DOWN)


@dataclass
class Endpoint:
    """An address and when it is down: (start, end) in seconds since the log's beginning."""

    address: str
    strategy: str
    outages: list[tuple[float, float]]

    def outage_at(self, moment: float) -> tuple[float, float] | None:
        """The outage that is on at ``moment``."""
        return next((one for one in self.outages if one[0] <= moment < one[1]), None)

    def next_start(self, moment: float) -> float:
        """When the next outage begins; infinity if there is none."""
        return min((one[0] for one in self.outages if one[0] > moment), default=float("inf"))


class _Walker:
    """One connection on its walk: it knows when it moves next, and then says how."""

    def __init__(self, chance: random.Random, endpoint: Endpoint, pid: int, now: float) -> None:
        self.chance = chance
        self.endpoint = endpoint
        self.pid = pid
        self.flavour = chance.choice(("threads", "threads", "asyncio"))
        self.dedicated = chance.random() < 0.05
        self.begin(State.IDLE, now)
        self.created = False
        self.next_at, self.row = now, TRANSITIONS[0]

    def begin(self, state: State, now: float) -> None:
        """A new id in ``state``: at the start, and again in a forked child."""
        self.id = f"{self.chance.getrandbits(64):016x}"
        self.state, self.since, self.seq = state, now, 0
        self.generation, self.attempt, self.clients = 0, 0, 0
        self.validated = False
        self.topology = 1 if self.endpoint.strategy == "global" else None
        self.flight_began = now

    def plan(self) -> None:
        """Choose the next step and its time."""
        now = self.since
        if self.state is State.RECOVERING and self.endpoint.outage_at(now):
            self._plan_recovery(now)
            return
        choices = _CHOICES[self.state]
        if self.state is State.IDLE and not self.dedicated:
            choices = [one for one in choices if one[0] is not Trigger.RELEASE]
        if not self.validated:
            choices = [one for one in choices if (self.state, one[0]) in _FIRST]
        if self.endpoint.outage_at(now):
            choices = [one for one in choices if one[0] is not Trigger.SERVED]
        weights = [weight for _, weight, _ in choices]
        trigger, _, mean = self.chance.choices(choices, weights)[0]
        at = now + self.chance.expovariate(1 / mean) + 1e-4
        struck = self.endpoint.next_start(now) + self.chance.uniform(0.0, 0.4)
        failing = (self.state, Trigger.FAIL) in _ROWS and self.validated
        if failing and struck < at:
            at, trigger = struck, Trigger.FAIL
        elif self.state is State.PROBING and self.endpoint.outage_at(at):
            at, trigger = now + self.chance.uniform(0.5, 5.0), Trigger.PROBE_FAILED
        self.next_at, self.row = at, self._row(trigger)

    def _plan_recovery(self, now: float) -> None:
        outage = self.endpoint.outage_at(now)
        gap = min(10.0, 0.05 * 1.6 ** min(self.attempt, 20)) * self.chance.uniform(0.8, 1.2)
        spent = now + gap - self.flight_began
        at, trigger = now + gap, Trigger.RETRY
        if outage is not None and now + gap > outage[1]:
            at, trigger = outage[1] + self.chance.uniform(0.01, 0.4), Trigger.RECOVERED
        elif spent > _BUDGET:
            trigger = Trigger.GIVE_UP
        self.next_at, self.row = at, self._row(trigger)

    def _row(self, trigger: Trigger) -> Row:
        """The row for ``trigger`` that fits what this connection is."""
        rows = _ROWS[self.state, trigger]
        if trigger in (Trigger.PROBE_FAILED, Trigger.ABANDONED):
            # The last row is the one of a first connect.
            return rows[0] if self.validated else rows[-1]
        if trigger is Trigger.RELEASE:
            return rows[0] if self.dedicated else rows[-1]
        if trigger is Trigger.ACQUIRE:
            down = self.endpoint.outage_at(self.since) is not None
            wary = down or not self.validated or self.chance.random() < _SUSPECT
            return rows[0] if wary else rows[-1]
        return rows[0] if self.chance.random() < _HELD else rows[-1]

    def step(self) -> dict[str, object]:
        """Take the planned step; returns its record."""
        row, now, source = self.row, self.next_at, self.state
        if row.trigger is Trigger.FORKED:
            self.begin(source, self.since)
            self.pid = self.chance.randrange(1000, 60000)
        dwell, self.since, self.state = now - self.since, now, row.dest
        self.seq += 1
        if source not in (State.RECOVERING, State.PROBING):
            self.attempt = 0
        if row.dest is State.RECOVERING and source is not State.RECOVERING:
            self.flight_began, self.attempt = now, 0
        if row.trigger in (Trigger.RETRY, Trigger.GIVE_UP):
            self.attempt += 1
        if row.trigger is Trigger.RECOVERED or (
            row.trigger is Trigger.PROBE_PASSED and not self.validated
        ):
            self.generation += 1
            self.validated = True
        if row.trigger is Trigger.REROUTE and self.topology is not None:
            self.topology += 1
        if row.dest is State.ACTIVE:
            self.clients = max(1, self.clients)
        elif row.dest is State.CLOSED or row.trigger in _LETS_GO:
            self.clients = 0
        if row.trigger is Trigger.ACQUIRE:
            self.clients += self.chance.randint(1, 3)
        return self._record("connection.transition", now, row, source, dwell)

    def _record(
        self, event: str, now: float, row: Row | None, source: State | None, dwell: float
    ) -> dict[str, object]:
        error = None if row is None else _ERRORS.get(row.trigger)
        reason = ("dedicated" if self.dedicated else "shared") if row is None else row.why
        if error is not None:
            reason = f"{reason}: {error}: failed to connect to all addresses"
        return {
            "event": event,
            "ts": now,
            "seq": self.seq,
            "connection_id": self.id,
            "address": self.endpoint.address,
            "strategy": self.endpoint.strategy,
            "flavour": self.flavour,
            "trigger": None if row is None else str(row.trigger),
            "source": None if source is None else str(source),
            "dest": str(self.state),
            "reason": reason,
            "error_code": error,
            "generation": self.generation,
            "attempt": self.attempt,
            "clients": self.clients,
            "in_flight": self.chance.randint(0, 3) if self.clients else 0,
            "dwell_s": round(dwell, 6),
            "topology_version": self.topology,
            "pid": self.pid,
            "thread_name": "MainThread" if self.flavour == "asyncio" else "worker-1",
            "schema": 1,
        }

    def create(self) -> dict[str, object]:
        """The record of the connection's creation."""
        return self._record("connection.created", self.since, None, None, 0.0)


#: What a connection that was never validated may do.
_FIRST = {
    (State.IDLE, Trigger.ACQUIRE),
    (State.PROBING, Trigger.PROBE_PASSED),
    (State.PROBING, Trigger.ABANDONED),
    (State.PROBING, Trigger.CLOSE),
}


def endpoints(chance: random.Random, count: int, span: float) -> list[Endpoint]:
    """``count`` endpoints whose outages (some short, some long) fall into ``span`` seconds."""
    result = []
    for number in range(count):
        outages = []
        for _ in range(chance.choice((0, 1, 1, 2, 3))):
            start = chance.uniform(0.05, 0.9) * span
            outages.append((start, start + chance.choice((1.8, 1.8, 4.0, 4.0, 9.0, 25.0, 150.0))))
        if number % 4 == 2:
            address, strategy = f"in01-{number:04x}.global-cluster.example.com:443", "global"
        else:
            address, strategy = f"milvus-{number}.search.internal:19530", "regular"
        result.append(Endpoint(address, strategy, outages))
    return result


def synthetic_records(
    count: int,
    *,
    seed: int = 1,
    connections: int = 40,
    addresses: int = 4,
    start: datetime = datetime(2026, 3, 1, 9, 0, tzinfo=timezone.utc),
) -> Iterator[dict[str, object]]:
    """``count`` records of a fleet that keeps ``connections`` connections, in order of time.

    A closed connection is followed by a new one. The same arguments give the same records.
    """
    chance = random.Random(seed)
    span = max(60.0, count / max(1, connections) * 4.0)
    fleet = endpoints(chance, addresses, span)
    pids = [chance.randrange(1000, 60000) for _ in range(max(1, connections // 8))]
    heap: list[tuple[float, int, _Walker]] = []
    for number in range(connections):
        first = chance.uniform(0.0, 2.0)
        walker = _Walker(chance, fleet[number % addresses], pids[number % len(pids)], first)
        heap.append((first, number, walker))
    heapq.heapify(heap)
    written = 0
    numbers = itertools.count(connections)
    while written < count:
        now, number, walker = heap[0]
        if walker.created and walker.row.trigger is Trigger.FORKED:
            # The child takes the step; its parent goes on as if nothing had happened.
            child = copy.copy(walker)
            walker.plan()
            walker.next_at = max(walker.next_at, now + 1e-4)
            heapq.heapreplace(heap, (walker.next_at, number, walker))
            walker, number = child, next(numbers)
            heapq.heappush(heap, (now, number, walker))
        if not walker.created:
            record = walker.create()
            walker.created = True
        else:
            record = walker.step()
        moment = start + timedelta(seconds=now)
        record["ts"] = moment.isoformat(timespec="microseconds")
        yield record
        written += 1
        if walker.state is State.CLOSED:
            pid = walker.pid if walker.pid in pids else chance.choice(pids)
            walker = _Walker(chance, walker.endpoint, pid, now + chance.expovariate(0.5))
            heapq.heapreplace(heap, (walker.next_at, number, walker))
        else:
            walker.plan()
            heapq.heapreplace(heap, (walker.next_at, number, walker))
