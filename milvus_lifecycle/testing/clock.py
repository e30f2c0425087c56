"""Time that passes only when a test says so."""

from __future__ import annotations

import asyncio
import heapq
import itertools
import threading
import time
import weakref
from collections.abc import Callable
from datetime import datetime, timedelta, timezone

from ..core.facts import Seams
from ..core.pool import Pool
from ..managers import AsyncConnectionManager, ConnectionManager

Manager = ConnectionManager | AsyncConnectionManager

#: Polls end after this many real seconds.
LIMIT = 10.0


class FakeClock:
    """Time that passes only by ``advance``. Call it for ``time.monotonic()`` seconds."""

    def __init__(self, start: float = 1000.0) -> None:
        self._now = start
        self._started = start
        self._alarms: list[tuple[float, int, Callable[[], object]]] = []
        self._count = itertools.count()
        self._waiting: list[threading.Event] = []
        self._pools: weakref.WeakSet[Pool] = weakref.WeakSet()
        self._loops: weakref.WeakSet[asyncio.AbstractEventLoop] = weakref.WeakSet()
        self._lock = threading.Lock()

    def __call__(self) -> float:
        return self._now

    def wall(self) -> datetime:
        """The fake date: 2030-01-01 UTC when the clock was made."""
        day = datetime(2030, 1, 1, tzinfo=timezone.utc)
        return day + timedelta(seconds=self._now - self._started)

    def seams(self, chance: float = 0.5) -> Seams:
        """What managers take. ``chance`` is every random draw; 0.5 means: no jitter."""
        return Seams(clock=self, wait=self.wait, wall=self.wall, chance=lambda: chance)

    def advance(self, seconds: float) -> None:
        """Let time pass: whatever is due wakes. For asyncio, call it in the loop's thread."""
        with self._lock:
            self._now += seconds
            due = []
            while self._alarms and self._alarms[0][0] <= self._now:
                due.append(heapq.heappop(self._alarms)[2])
        for ring in due:
            ring()
        for loop in list(self._loops):
            if not loop.is_closed():
                loop.call_soon_threadsafe(lambda: None)  # it looks at the time again
        for pool in list(self._pools):
            pool.driver.post(pool.maintenance.run_due)

    def at(self, due: float, ring: Callable[[], object]) -> None:
        """Call ``ring`` once it is ``due``; at once if it is already."""
        with self._lock:
            if due > self._now:
                heapq.heappush(self._alarms, (due, next(self._count), ring))
                return
        ring()

    def wait(self, event: threading.Event, until: float) -> None:
        """Block until ``event`` is set, or until the clock says ``until`` (it is set then)."""
        with self._lock:
            self._waiting.append(event)
        self.at(until, event.set)
        event.wait()
        with self._lock:
            self._waiting.remove(event)

    def sleeping(self) -> int:
        """How many threads wait for this clock now."""
        with self._lock:
            return sum(not event.is_set() for event in self._waiting)

    def attach(self, manager: Manager) -> None:
        """Have a manager's timers (linger, max_age, drain_timeout) look at each ``advance``."""
        self._pools.add(manager._pool)  # which lives as long as a handler of it, too

    def new_event_loop(self) -> asyncio.AbstractEventLoop:
        """A real event loop whose time is this clock's. Close it."""
        loop = _ClockLoop(self)
        self._loops.add(loop)
        return loop


class _ClockLoop(asyncio.SelectorEventLoop):
    def __init__(self, clock: FakeClock) -> None:
        self._clock = clock
        super().__init__()

    def time(self) -> float:
        return self._clock()


def until(condition: Callable[[], object], limit: float, complaint: str) -> None:
    """Poll (in real time) until ``condition`` holds. Raises TimeoutError with the complaint."""
    deadline = time.monotonic() + limit
    while not condition():
        if time.monotonic() >= deadline:
            raise TimeoutError(f"{complaint} within {limit} s")
        time.sleep(0.001)
