"""Maintenance: what a pool does by itself, later: expiry, rotation, refresh, the end of a drain.

A job looks at its connection when it comes due and asks the table by a trigger; so a job that
comes too early or too late does nothing.
"""

from __future__ import annotations

import heapq
import itertools
import threading
import weakref
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import partial
from typing import Any, Protocol

from ..audit.stream import complain
from ..errors import LifecycleError, brief
from ..policy import LifecyclePolicy
from ..table import State, Trigger
from ..tls import tls_files
from .connection import ManagedConnection
from .facts import Seams
from .flight import Flight
from .lifecycle import StepResult
from .registry import Registry
from .requests import Procedure, locate
from .transport import Driver, Transport
from .wire import Wire

Job = Callable[[], object]

#: How long (seconds) a refresh in the background may take.
REFRESH_LIMIT = 10.0
#: How often (seconds) TLS files are looked at while a connection is held.
TLS_LOOK = 10.0


class Schedule:
    """A heap of (due, job), times in ``time.monotonic()`` seconds. Nothing is taken off early."""

    def __init__(self) -> None:
        self._heap: list[tuple[float, int, Job]] = []
        self._count = itertools.count()
        self._lock = threading.RLock()

    def push(self, due: float, job: Job) -> bool:
        """Note ``job``. True if it is now the next one due (whoever waits must look again)."""
        with self._lock:
            entry = (due, next(self._count), job)
            heapq.heappush(self._heap, entry)
            return self._heap[0] is entry

    def due(self, now: float) -> Iterator[Job]:
        """What is due, each job until the next one is asked for; not what is noted meanwhile.

        A job is taken off once it is done: one that was interrupted is done again.
        """
        mark = next(self._count)
        while True:
            with self._lock:
                entry = self._heap[0] if self._heap else None
            if entry is None or entry[0] > now or entry[1] > mark:
                return
            yield entry[2]
            with self._lock:
                if self._heap and self._heap[0] is entry:
                    heapq.heappop(self._heap)
                elif entry in self._heap:  # an earlier one has come
                    self._heap.remove(entry)
                    heapq.heapify(self._heap)

    def next_due(self) -> float | None:
        """When the next job is due; None if there is none."""
        with self._lock:
            return self._heap[0][0] if self._heap else None

    def __len__(self) -> int:
        return len(self._heap)

    def reset_after_fork(self) -> None:
        """In the child: start with an empty schedule."""
        self._lock = threading.RLock()
        self._heap = []


class Steps(Protocol):
    """What maintenance needs of its pool."""

    policy: LifecyclePolicy
    seams: Seams
    registry: Registry
    driver: Driver
    transport: Transport

    def step(self, connection: ManagedConnection, trigger: Trigger, **facts: Any) -> bool:
        """Step the machine and do what the step leaves to do. True if a row was taken."""

    def finish(self, connection: ManagedConnection, result: StepResult) -> None:
        """Wake, close and note what a step leaves to do."""

    def close_channel(self, wire: Wire) -> None:
        """Close a channel that nothing uses any more."""

    def launch(self, connection: ManagedConnection, flight: Flight) -> None:
        """Have a flight flown."""


class Maintenance:
    """The jobs of one pool, and the schedule on which they stand."""

    def __init__(self, pool: Steps) -> None:
        self.pool = pool
        self.schedule = Schedule()

    def plan(self, due: float, job: Job) -> None:
        """Have ``job`` run once it is ``due`` (monotonic seconds)."""
        if self.schedule.push(due, job):
            self.pool.driver.reschedule()

    def _look_at(
        self, connection: ManagedConnection, due: float, job: Callable[..., object], *args: Any
    ) -> None:
        # Weakly: a closed connection is not kept for as long as its next timer was away.
        self.plan(due, partial(_if_it_is_there, weakref.ref(connection), job, *args))

    def plan_expiry(self, connection: ManagedConnection) -> None:
        """Close the connection once it has lingered unused."""
        life = connection.lifecycle
        if life.expiry_planned:
            return  # one entry a connection: it is moved on when it comes due too early
        due = life.linger_due()
        if due is not None and life.state is State.IDLE:
            life.expiry_planned = True
            try:
                self._look_at(connection, due, self._expire)
            except BaseException:  # a signal handler's: twice is better than never
                life.expiry_planned = False
                raise

    def _expire(self, connection: ManagedConnection) -> None:
        connection.lifecycle.expiry_planned = False
        if connection.state is State.IDLE and not self.pool.step(connection, Trigger.EXPIRE):
            self.plan_expiry(connection)

    def plan_recycle(self, connection: ManagedConnection, not_before: float = 0.0) -> None:
        """Look at the channel's age once it is due, and at TLS files; one entry a generation."""
        life, policy = connection.lifecycle, self.pool.policy
        binding, generation = life.binding, life.generation
        if binding is None or life.recycle_planned == generation:
            return
        looks = [self.pool.seams.clock() + TLS_LOOK] if tls_files(life.config) else []
        if policy.max_age is not None:
            age = policy.max_age * (1.0 - policy.backoff_jitter * life.unit)
            # A moment later than due: the guard wants "older than", not "as old as".
            looks.append(max(binding.wire.opened_at + age + 0.001, not_before))
        if looks:
            life.recycle_planned = generation
            self._look_at(connection, min(looks), self._recycle, generation)

    def _recycle(self, connection: ManagedConnection, generation: int) -> None:
        if connection.lifecycle.recycle_planned == generation:
            connection.lifecycle.recycle_planned = 0
        if connection.generation != generation or connection.state is State.CLOSED:
            return
        binding, facts = connection.lifecycle.binding, dict[str, Any]()
        if binding is not None and self.pool.transport.outdated(connection, binding.wire):
            facts = {"outdated": True, "reason": "the TLS files have changed"}
        if not self.pool.step(connection, Trigger.RECYCLE, **facts):
            # Not held, suspect or in a flight just now.
            self.plan_recycle(connection, self._not_too_soon())

    def _not_too_soon(self) -> float:
        return self.pool.seams.clock() + max(1.0, (self.pool.policy.max_age or 0.0) / 10)

    def plan_second_try(self, connection: ManagedConnection) -> None:
        """A move stood down: look again, but not at once, or a refusal would make us spin."""
        self.plan_recycle(connection, self._not_too_soon())
        again = self.pool.seams.clock() + max(1.0, self.pool.policy.backoff_ceiling)
        self._look_at(connection, again, self.pool.step, Trigger.REROUTE)

    def plan_refresh(self, connection: ManagedConnection) -> None:
        """Ask the locator anew every so often, with jitter; one entry a connection."""
        every = connection.strategy.refresh_every(connection.lifecycle)
        if every is None or connection.lifecycle.refresh_planned:
            return
        connection.lifecycle.refresh_planned = True
        jitter = self.pool.policy.backoff_jitter * (2.0 * self.pool.seams.chance() - 1.0)
        due = self.pool.seams.clock() + every * (1.0 + jitter)
        self._look_at(connection, due, self._refresh)

    def _refresh(self, connection: ManagedConnection) -> None:
        if connection.state is State.CLOSED:
            return
        connection.lifecycle.refresh_planned = False
        if connection.leases and connection.lifecycle.flight is None:
            # No thread to be had, or a loop that is closing: the next one is planned anyway.
            with suppress(RuntimeError, LifecycleError):
                self.pool.driver.refresh_in_background(connection)
        self.plan_refresh(connection)

    def refresh(self, connection: ManagedConnection) -> Procedure[None]:
        """Ask the locator where to be, with nobody waiting; then let the connections compare."""
        locator = connection.strategy.locator(connection.lifecycle)
        if locator is not None:
            # The locator says itself, once, what is wrong; the connection goes on as it is.
            with suppress(Exception):
                yield from locate(connection, locator, None, REFRESH_LIMIT)
            self.reroute_all()

    def reroute_all(self) -> None:
        """A target may have moved: let every connection compare."""
        for connection in self.pool.registry.all():
            if connection.state in (State.IDLE, State.ACTIVE):
                self.pool.step(connection, Trigger.REROUTE)
            else:
                self.pool.finish(connection, connection.lifecycle.redirect())
                flight = connection.lifecycle.flight
                if flight is not None and flight.put_off:
                    self.pool.launch(connection, flight)

    def cut(self, connection: ManagedConnection, wire: Wire) -> None:
        """``drain_timeout`` is over: what still runs on the retired channel is cut."""
        if wire.close_now(cut=True):
            self.pool.close_channel(wire)
        connection.lifecycle.drained(wire)

    def plan_reroutes(self) -> None:
        """Have every connection compare soon; again, if that is interrupted. From any thread."""
        self.schedule.push(self.pool.seams.clock(), self.reroute_all)
        self.pool.driver.post(self.pool.driver.reschedule)

    def plan_cut(self, connection: ManagedConnection, wire: Wire, timeout: float) -> None:
        """Cut what still runs on a retired channel after ``timeout`` seconds."""
        self.plan(self.pool.seams.clock() + timeout, partial(self.cut, connection, wire))

    def run_due(self) -> float | None:
        """Run what is due. Returns when to come again (monotonic seconds), None for never."""
        for job in self.schedule.due(self.pool.seams.clock()):
            attempt(job)
        return self.schedule.next_due()


def _if_it_is_there(
    ref: weakref.ref[ManagedConnection], job: Callable[..., object], *args: Any
) -> None:
    connection = ref()
    if connection is not None:
        job(connection, *args)


def attempt(job: Callable[[], object]) -> None:
    """Run a job of the engine's own. What a strategy raises there must not stop time."""
    try:
        job()
    except Exception as error:
        complain(f"a job of the timekeeper raised {brief(error)}")
