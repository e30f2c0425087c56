"""Checkout: the procedures of callers: checking out, starting an RPC, riding out a flight.

Each is a generator that decides in memory and yields what has to be waited for (see
``requests``). There is one copy of each; a driver only performs the requests.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import replace
from functools import partial
from math import inf
from typing import Any

from ..audit.records import Waited
from ..config import ConnectionConfig, ForeignConfig
from ..errors import (
    ConfigError,
    ConnectFailed,
    ConnectionClosed,
    DeadlineExceeded,
    Failure,
    FailureSummary,
    LifecycleError,
    PermanentFailure,
    RecoveryExhausted,
    shown,
)
from ..policy import parse_timeout
from ..table import State, Trigger
from .connection import ManagedConnection
from .face import Face, Start
from .flight import STOPPED, Flight, FlightKind, Outcome, may_pass
from .leases import check_client
from .pool import Pool
from .requests import Pause, Procedure, Wait
from .wire import Rpc

#: How much longer (seconds) than their limit the waiters of a first connect wait for its own
#: verdict, which names the cause.
VERDICT_GRACE = 0.5
#: A checkout may take this long (seconds) however short its timeout is: pymilvus leaves it to gRPC
#: whether a connect with a timeout of 0 succeeds (here 38 of 40 did). A connect takes 3 to 14 ms.
SHORTEST_CHECKOUT = 0.2
#: Gap (seconds) between two tries of a caller whose flights cannot even be started.
NO_WORKER_PAUSE = 0.1

_budget: ContextVar[float] = ContextVar("milvus_lifecycle_budget", default=inf)
_hope: ContextVar[float] = ContextVar("milvus_lifecycle_hope", default=0.0)


@contextmanager
def budget(seconds: float) -> Iterator[None]:
    """Have each call in the block wait for the engine no longer than that, whatever the policy
    says: for services that have a fallback. It holds for this thread, or this task and those that
    it makes. Raises ConfigError."""
    limit = parse_timeout(seconds, "budget")
    token = _budget.set(min(_budget.get(), inf if limit is None else limit))
    try:
        yield
    finally:
        _budget.reset(token)


@contextmanager
def hoping(seconds: float) -> Iterator[None]:
    """Have first connects in the block wait that long for a server that refuses them."""
    token = _hope.set(seconds)
    try:
        yield
    finally:
        _hope.reset(token)


class Checkout:
    """One caller's wait: since when, and until when. Times are monotonic seconds."""

    def __init__(self, pool: Pool, began: float, until: float | None) -> None:
        self.pool = pool
        self.clock = pool.seams.clock
        #: when the caller began to wait
        self.began = began
        #: its own deadline; None: it has none
        self.until = until
        #: how long it waits for the engine, at most
        self.budget = _budget.get()
        #: how long it waits for a server that refuses a first connect
        self.hope = max(pool.policy.first_connect_patience, _hope.get())
        #: has its call been counted among those that waited in this outage?
        self.counted = False
        #: since when it has waited for a connection, and has it raised because that took too long?
        self.joined: float | None = None
        self.too_long = False

    @classmethod
    def within(cls, pool: Pool, timeout: float | None) -> Checkout:
        """A checkout that begins now and may take ``timeout`` seconds."""
        began = pool.seams.clock()
        until = None if timeout is None else began + max(timeout, SHORTEST_CHECKOUT)
        return cls(pool, began, until)

    def obtain(
        self, config: ConnectionConfig | ForeignConfig, dedicated: bool, client: object | None
    ) -> Procedure[Any]:
        """A handler on a usable connection, pooled or new. Nothing is left behind on failure."""
        own = ConnectionConfig.coerce(config)
        check_client(client)
        while True:
            connection = self.pool.find_or_create(own, client, dedicated=dedicated)
            try:
                usable = yield from self.check_out(connection, client)
            except LifecycleError:
                raise
            except BaseException:  # a signal handler's: perhaps before anybody held it
                self.pool.leave_to_others(partial(self.pool.settle, connection))
                raise
            if usable:
                return connection.handler

    def check_out(self, connection: ManagedConnection, client: object | None) -> Procedure[bool]:
        """Lease ``connection`` and see it usable. False if it is closed: look it up anew.

        If this raises, the client has the lease that it had before, or none.
        """
        # While it waits, the call has a lease of its own: another call of the same client may
        # give up meanwhile, and must not take this one's lease away.
        caller = _Caller()
        if not connection.lease(caller):
            self.pool.step(connection, Trigger.ACQUIRE)
            self.pool.registry.remove(connection)
            return False
        try:
            budget_end = self.began + self.pool.policy.recovery_budget
            limit, hope = self._first_limits(self.began, budget_end)
            self.pool.step(connection, Trigger.ACQUIRE, until=limit, hope=hope)
            yield from self.ride_out(connection)
            usable = not _deserted(connection) and connection.lease(client)
        finally:
            self.pool.give_back(connection, caller)
        connection.lifecycle.last_used_at = self.clock()
        if usable:
            self._tell_wait(connection)
        return usable

    def admit(self, face: Face, rpc: Rpc, timeout: float | None) -> Procedure[Start]:
        """``rpc`` wants to start and the quick way refused: acquire, or join what is under way.

        A connection that close_all, linger or a failed reconnect in a child closed is looked up
        again or created anew, for the handler that the client already has.
        """
        self.counted = face.waited(self.began)
        while True:
            connection = face.connection
            if connection.state is State.CLOSED:
                yield from self._revive(face)
            else:
                self.pool.step(
                    connection, Trigger.ACQUIRE, until=self.until, reason="an RPC wants to start"
                )
                yield from self.ride_out(connection)
            now = self.clock()
            connection = face.pick(now)
            if self.until is not None and now >= self.until:
                connection.lifecycle.suffer(failed=1)
                self._tell_wait(connection, served=False)
                raise DeadlineExceeded(address=connection.address, elapsed=now - self.began)
            binding = connection.lifecycle.enter(rpc, now, trusted=True)
            if binding is not None:
                self._tell_wait(connection)
                start = Start(connection, binding, rpc, now, self.began, self.until, timeout)
                return replace(start, waited=self.counted)
            if connection.lifecycle.flight is None and connection.state is not State.CLOSED:
                yield self._no_worker(connection)

    def _no_worker(self, connection: ManagedConnection) -> Pause:
        """There is no channel, and nobody could be found to fly (no thread to be had): pause."""
        now = self.clock()
        if now >= self.began + min(self.budget, connection.lifecycle.budget(now)):
            raise RecoveryExhausted(
                address=connection.address,
                elapsed=now - self.began,
                last_error=shown(connection.lifecycle.last_failure),
            )
        left = NO_WORKER_PAUSE if self.until is None else self.until - now
        return Pause(min(NO_WORKER_PAUSE, left))

    def _revive(self, face: Face) -> Procedure[None]:
        old = face.connection
        let_go = old.lifecycle.closed_by is Trigger.RELEASE or (old.dedicated and not old.leases)
        if let_go or not face.revivable:
            raise ConnectionClosed(address=old.address)
        self.pool.step(old, Trigger.ACQUIRE)  # refused, and on record as such
        if self.until is not None and self.clock() >= self.until:
            last = shown(old.lifecycle.last_failure)
            raise DeadlineExceeded(address=old.address, last_error=last)
        caller, closed = _Caller(), [old]
        anew = Checkout(self.pool, self.clock(), self.until)
        while True:
            connection = None if old.dedicated else self.pool.registry.find(old.config.key)
            if connection is None:
                connection = self.pool.register(self.pool.renew(old, face))
            usable = yield from anew.check_out(connection, caller)
            # Those who hold the old one now: somebody may have let go while this call waited.
            # Clients only: a call that waits there gives its lease back there.
            holders = [holder for each in closed for holder in each.leases.holders()]
            heirs = [holder for holder in holders if not isinstance(holder, _Caller)]
            added = [heir for heir in heirs if not connection.leases.is_held_by(heir)]
            if usable and all(connection.lease(heir) for heir in added):
                break
            if connection.face is face:  # closed again: who came to it meanwhile moves on, too
                closed.append(connection)
        face.connection = connection
        self.pool.plan_fill(face, self.clock())
        self.pool.give_back(connection, caller)
        if not face.revivable:  # closed by its handler meanwhile, and that is for good
            if connection.face is face:
                self.pool.close(connection, "its handler was closed")
            face.connection = old
            for heir in added:
                self.pool.give_back(connection, heir)
            raise ConnectionClosed(address=old.address)

    def _first_limits(self, began: float, budget_end: float) -> tuple[float, float]:
        """Until when it waits for a first connect, and for a server that refuses one."""
        end = min(budget_end, began + self.budget)
        if self.until is None:
            end = min(end, began + self.pool.policy.connect_timeout)
        hope = self._hope_ends(began)
        end = max(end, hope)
        return (end if self.until is None else min(self.until, end)), hope

    def ride_out(self, connection: ManagedConnection, *, tell: bool = False) -> Procedure[None]:
        """Join flights until none stands between the caller and its RPC; ``tell`` of the wait.

        Raises what the caller is to see: closed, connect failed, permanent, deadline or budget.
        """
        try:
            yield from self._ride_out(connection)
        except LifecycleError:
            connection.lifecycle.suffer(failed=1)
            if self.too_long:
                self._tell_wait(connection, served=False)
            raise
        if tell:
            self._tell_wait(connection)

    def _tell_wait(self, connection: ManagedConnection, *, served: bool = True) -> None:
        """Tell of the wait that is over, if there was one."""
        if self.joined is not None:
            waited = Waited(connection.address, self.clock() - self.joined, served)
            self.pool.audit.tell_wait(waited)

    def _ride_out(self, connection: ManagedConnection) -> Procedure[None]:
        life, began, until = connection.lifecycle, self.began, self.until
        allowed, thawed = life.budget(self.clock()), False
        budget_end = began + min(self.budget, allowed)
        while True:
            flight, end = life.flight, budget_end
            if life.state is State.CLOSED:
                if _deserted(connection) or self._hopes(connection):
                    return
                raise self._closed(connection, began)
            if flight is None or (flight.kind is FlightKind.RECOVERY and not flight.mandatory):
                return
            self._see_it_flown(connection, flight)
            if connection.face.has_other(connection):
                return
            first = flight.kind is FlightKind.CONNECT and life.connecting()
            if first:
                end, hope = self._first_limits(began, budget_end)
                flight.hope = max(flight.hope, hope)
            else:
                self._check_room(connection, flight)
            limit = end if until is None else min(until, end)
            self.counted = self.counted or life.suffer(waited=1)
            self.joined = self.clock() if self.joined is None else self.joined
            # Even if there is no time left: whoever leaves a first connect last ends it.
            yield Wait(connection, flight, limit, VERDICT_GRACE if first else 0.0)
            if flight.outcome is Outcome.LANDED:
                return
            now = self.clock()
            stopped = now > limit + STOPPED and not thawed
            if flight.outcome is None and stopped and (until is None or now < until):
                # The process did not run when its time ran out: the flight tries once more.
                thawed, began = True, now
                budget_end = now + self.pool.policy.connect_timeout
                continue
            left_last = flight.outcome is Outcome.ABANDONED and self.clock() >= limit
            if flight.outcome is None or left_last:
                self._see_it_flown(connection, flight)  # perhaps nobody else comes
                own = until is not None and until < end
                raise self._late(connection, flight, began, first, own, allowed)
            self._next_flight(connection, flight, began, limit, allowed)

    def _hope_ends(self, began: float) -> float:
        """Until when a server that refuses is waited for; 0: not at all."""
        return began + min(self.budget, self.hope) if self.hope else 0.0

    def _hopes(self, connection: ManagedConnection) -> bool:
        """Has a first connect failed too early, before this caller joined it with his hope?"""
        life = connection.lifecycle
        failure, by = life.last_failure, life.closed_by
        refused = by in (Trigger.PROBE_FAILED, Trigger.ABANDONED)
        hopeful = refused and failure is not None and may_pass(failure)
        return hopeful and self.clock() < self._hope_ends(self.began)

    def _check_room(self, connection: ManagedConnection, flight: Flight) -> None:
        """Raises if ``max_waiting`` calls wait for the end of an outage already. One that races in
        is let in."""
        most, waiting = self.pool.policy.max_waiting, flight.waiting
        outage = connection.lifecycle.outage
        if most is not None and outage is not None and waiting >= most:
            now = self.clock()
            age = now - outage.began
            raise RecoveryExhausted(
                f"{waiting} calls wait for this connection already (max_waiting={most}); it is "
                f"{connection.state.value}, in an outage since {age:.1f} s",
                address=connection.address,
                attempts=flight.attempts,
                elapsed=now - self.began,
                last_error=shown(flight.failure or connection.lifecycle.last_failure),
            )

    def _see_it_flown(self, connection: ManagedConnection, flight: Flight) -> None:
        """Launch a flight that nobody leads: whoever was to do it, or to lead it, was interrupted
        or had no memory."""
        if flight.lost(self.clock()):
            self.pool.launch(connection, flight)

    def _next_flight(
        self,
        connection: ManagedConnection,
        flight: Flight,
        began: float,
        limit: float,
        allowed: float,
    ) -> None:
        """The flight ended without landing: start the next one, or raise what the caller sees."""
        outcome, failure = flight.outcome, flight.failure
        spent = self.clock() - began
        permanent = failure is not None and failure.kind is Failure.PERMANENT
        kind: type[LifecycleError] | None = None
        message = ""
        if outcome is Outcome.FAILED and self._hopes(connection):
            return
        if outcome is Outcome.FAILED:
            kind = ConnectFailed
            message = self._waited_for() if flight.attempts > 1 else ""
            # Its verdict names the cause, and comes before its waiters go: theirs was the time.
            patient = failure is not None and bool(self.hope) and may_pass(failure)
            self.too_long = patient or (failure is not None and failure.kind is Failure.DEADLINE)
        elif connection.state is State.CLOSED:
            if _deserted(connection):
                return
            raise self._closed(connection, began)
        elif outcome is Outcome.GAVE_UP and (permanent or self.clock() >= limit):
            kind, message = RecoveryExhausted, self._spent(allowed)
            self.too_long = not permanent
        if kind is not None:
            raise _verdict(kind, connection, max(1, flight.attempts), spent, failure, message)
        if outcome is Outcome.GAVE_UP:
            self.pool.step(connection, Trigger.FAIL, reason="a caller has budget left")
        elif outcome is Outcome.ABANDONED:
            self.pool.step(connection, Trigger.ACQUIRE, reason="the last flight was abandoned")

    def _closed(self, connection: ManagedConnection, began: float) -> LifecycleError:
        """Why the connection is closed: a first connect may have failed before anybody joined."""
        failure, by = connection.lifecycle.last_failure, connection.lifecycle.closed_by
        if by not in (Trigger.PROBE_FAILED, Trigger.ABANDONED) or failure is None:
            return ConnectionClosed(address=connection.address)
        return _verdict(ConnectFailed, connection, 1, self.clock() - began, failure)

    def _late(
        self,
        connection: ManagedConnection,
        flight: Flight,
        began: float,
        first: bool,
        own: bool,
        allowed: float,
    ) -> LifecycleError:
        """What a caller sees whose time (``own``, or the budget) ends before the flight."""
        self.too_long = True
        kind: type[LifecycleError] = DeadlineExceeded if own else RecoveryExhausted
        message = "" if own else self._spent(allowed)
        if first:
            kind, message = ConnectFailed, self._waited_for()
        return kind(
            message,
            address=connection.address,
            attempts=flight.attempts + 1,
            elapsed=self.clock() - began,
            last_error=shown(flight.failure or connection.lifecycle.last_failure),
        )

    def _spent(self, allowed: float) -> str:
        """What the error of a spent budget begins with, if it was less than ``recovery_budget``."""
        if self.budget < allowed:
            return f"could not reconnect within budget({self.budget:g})"
        if allowed < self.pool.policy.recovery_budget:
            return f"could not reconnect within {allowed:g} s: after a give_up calls wait no longer"
        return ""

    def _waited_for(self) -> str:
        """What the error of a first connect begins with; "" for its own headline."""
        if not self.hope:
            return ""
        own = inf if self.until is None else self.until - self.began
        longest = round(min(self.hope, self.budget, own), 2)
        return f"could not connect, and a server that is away was waited for up to {longest:g} s"


class _Caller:
    """Holds a connection for one call, while that waits."""

    __slots__ = ("__weakref__",)


def _verdict(
    kind: type[LifecycleError],
    connection: ManagedConnection,
    attempts: int,
    elapsed: float,
    failure: FailureSummary | None,
    message: str = "",
) -> LifecycleError:
    """What the waiters of a flight see of its error: a permanent one is called so.

    A first connect that could not even be tried (Milvus Lite is missing) was refused by no server.
    """
    error = shown(failure)
    if kind is ConnectFailed and isinstance(error, ConfigError):
        return ConfigError(error.detail, field=error.field, address=connection.address)
    if failure is not None and failure.kind is Failure.PERMANENT:
        kind, message = PermanentFailure, ""
    address = connection.address
    return kind(message, address=address, attempts=attempts, elapsed=elapsed, last_error=error)


def _deserted(connection: ManagedConnection) -> bool:
    """Did the last waiter leave its first connect, in the very moment in which we came?"""
    life = connection.lifecycle
    return life.closed_by is Trigger.ABANDONED and life.last_failure is None
