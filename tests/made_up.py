"""Made-up but legal logs, of any size: connections that walk over the rows of the table.

Legal by construction, since every step is a row. Nothing here is measured on a real server.
"""

from __future__ import annotations

import heapq
import random
from collections.abc import Iterator
from datetime import datetime, timedelta, timezone

from milvus_lifecycle.table import TRANSITIONS, Row, State, Trigger

#: How often a trigger comes where it may come, and how long one waits for it (seconds).
_TRIGGERS = {
    Trigger.ACQUIRE: (60, 4.0),
    Trigger.RELEASE: (60, 6.0),
    Trigger.PROBE_PASSED: (200, 0.004),
    Trigger.RECOVERED: (30, 0.3),
    Trigger.RETRY: (60, 0.5),
    Trigger.GIVE_UP: (1, 5.0),
}
_ROWS = {state: [row for row in TRANSITIONS if row.source is state] for state in State}
_WEIGHTS = {
    state: [
        1 if row.dest is State.CLOSED else _TRIGGERS.get(row.trigger, (1, 0))[0] for row in rows
    ]
    for state, rows in _ROWS.items()
}
_ERRORS = {Trigger.FAIL, Trigger.RETRY, Trigger.PROBE_FAILED, Trigger.DOUBT, Trigger.GIVE_UP}


class _Walker:
    """One connection on its walk."""

    def __init__(self, chance: random.Random, number: int, addresses: int) -> None:
        self.chance = chance
        self.flavour = chance.choice(("threads", "asyncio"))
        self.strategy = "global" if number % 4 == 2 else "regular"
        self.address = f"milvus-{number % addresses}.example:19530"
        self.topology = 1 if self.strategy == "global" else None
        self.generation = self.attempt = 0
        self.state = State.IDLE
        self.begin(chance.randrange(1000, 1000 + max(2, addresses)))

    def begin(self, pid: int) -> None:
        """A new id: at the start, and again in a forked child, whose parent falls silent."""
        self.id, self.pid, self.seq = f"{self.chance.getrandbits(64):016x}", pid, 0

    def plan(self) -> float:
        """Choose the next step; returns the seconds until then."""
        (self.row,) = self.chance.choices(_ROWS[self.state], _WEIGHTS[self.state])
        mean = _TRIGGERS.get(self.row.trigger, (0, 10.0))[1]
        self.dwell = round(self.chance.expovariate(1 / mean) + 1e-4, 6)
        return self.dwell

    def step(self, moment: datetime) -> dict[str, object]:
        """Take the planned step; returns its record."""
        row, source = self.row, self.state
        if row.trigger is Trigger.FORKED:
            self.begin(self.chance.randrange(10_000, 60_000))
        self.seq, self.state = self.seq + 1, row.dest
        self.generation += row.trigger in (Trigger.RECOVERED, Trigger.PROBE_PASSED)
        self.attempt = self.attempt + 1 if row.trigger is Trigger.RETRY else 0
        if row.trigger is Trigger.REROUTE and self.topology is not None:
            self.topology += 1
        return self.record("connection.transition", moment, row, source, self.dwell)

    def record(
        self,
        event: str,
        moment: datetime,
        row: Row | None = None,
        source: State | None = None,
        dwell: float = 0.0,
    ) -> dict[str, object]:
        """A record of it, as it stands now."""
        failed = row is not None and row.trigger in _ERRORS
        return {
            "event": event,
            "ts": moment.isoformat(timespec="microseconds"),
            "seq": self.seq,
            "connection_id": self.id,
            "address": self.address,
            "strategy": self.strategy,
            "flavour": self.flavour,
            "trigger": None if row is None else str(row.trigger),
            "source": None if source is None else str(source),
            "dest": str(self.state),
            "reason": "shared" if row is None else row.why,
            "error_code": "UNAVAILABLE" if failed else None,
            "generation": self.generation,
            "attempt": self.attempt,
            "clients": self.chance.randint(0, 3) if self.state is not State.CLOSED else 0,
            "in_flight": 0,
            "dwell_s": dwell,
            "topology_version": self.topology,
            "pid": self.pid,
            "thread_name": "MainThread",
            "schema": 1,
        }


def synthetic_records(
    count: int,
    *,
    seed: int = 1,
    connections: int = 40,
    addresses: int = 4,
    start: datetime = datetime(2026, 3, 1, 9, 0, tzinfo=timezone.utc),
) -> Iterator[dict[str, object]]:
    """``count`` records of so many connections, in order of time. One that closes is replaced.

    The same arguments give the same records.
    """
    chance = random.Random(seed)
    heap: list[tuple[float, int, _Walker | None]] = []
    for number in range(connections):
        heapq.heappush(heap, (chance.uniform(0.0, 2.0), number, None))
    for _ in range(count):
        now, number, walker = heap[0]
        moment = start + timedelta(seconds=now)
        if walker is None:
            walker = _Walker(chance, number, addresses)
            yield walker.record("connection.created", moment)
        else:
            yield walker.step(moment)
        if walker.state is State.CLOSED:
            heapq.heapreplace(heap, (now + chance.expovariate(0.5), number, None))
        else:
            heapq.heapreplace(heap, (now + walker.plan(), number, walker))
