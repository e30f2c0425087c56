"""The procedures of callers, in both flavours: checking out, starting an RPC, riding out a flight.

Each is a generator that decides in memory and yields what has to be waited for (see
``requests``). There is one copy of each; a driver only performs the requests.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from .config import ConnectionConfig, ForeignConfig
from .errors import (
    ConnectFailed,
    ConnectionClosed,
    DeadlineExceeded,
    Failure,
    LifecycleError,
    PermanentFailure,
    RecoveryExhausted,
    classify,
)
from .face import Face, Start, stamp_of
from .flight import Flight, FlightKind, Outcome
from .flights import Flights
from .leases import check_client, check_timeout
from .requests import Locate, Pause, Procedure, Wait
from .table import State, Trigger

if TYPE_CHECKING:
    from .connection import ManagedConnection

#: How much longer (seconds) than their limit the waiters of a first connect wait for its own
#: verdict, which names the cause.
VERDICT_GRACE = 0.5
#: How long (seconds) a refresh in the background may take.
REFRESH_LIMIT = 10.0
#: Gap (seconds) between two tries while a server is up but says that it is not ready.
NOT_READY_PAUSE = 0.25
#: Gap (seconds) between two tries of a caller whose flights cannot even be started.
NO_WORKER_PAUSE = 0.1


class Procedures(Flights):
    """What managers do for their callers, written once."""

    # -- callers -----------------------------------------------------------------------------

    def obtain(
        self,
        config: ConnectionConfig | ForeignConfig,
        dedicated: bool,
        client: object | None,
        timeout: float | None,
    ) -> Procedure[Any]:
        """A handler on a usable connection, pooled or new. Nothing is left behind on failure."""
        own = ConnectionConfig.coerce(config)
        check_client(client)
        check_timeout(timeout)
        began = self.seams.clock()
        until = None if timeout is None else began + timeout
        while True:
            connection = self.find_or_create(own, client, dedicated=dedicated)
            usable = yield from self.check_out(connection, client, began, until)
            if usable:
                return connection.handler

    def check_out(
        self,
        connection: ManagedConnection,
        client: object | None,
        began: float,
        until: float | None,
    ) -> Procedure[bool]:
        """Lease ``connection`` and see it usable. False if it is closed: look it up anew.

        If this raises, the client has the lease that it had before, or none.
        """
        # While it waits, the call has a lease of its own: another call of the same client may
        # give up meanwhile, and must not take this one's lease away.
        caller = _Caller()
        if not connection.lease(caller):
            self.step(connection, Trigger.ACQUIRE)
            self.registry.remove(connection)
            return False
        try:
            self.step(connection, Trigger.ACQUIRE, until=until)
            yield from self.ride_out(connection, began, until)
            usable = not _deserted(connection) and connection.lease(client)
        finally:
            self.give_back(connection, caller)
        connection.touch()
        return usable

    def admit(
        self, face: Face, timeout: float | None, began: float, until: float | None
    ) -> Procedure[Start]:
        """An RPC wants to start and the quick way refused: acquire, or join what is under way.

        A connection that close_all, linger or a failed reconnect in a child closed is looked up
        again or created anew, for the handler that the client already has.
        """
        while True:
            connection = face.connection
            if connection.state is State.CLOSED:
                yield from self._revive(face, until)
            else:
                self.step(connection, Trigger.ACQUIRE, until=until, reason="an RPC wants to start")
                yield from self.ride_out(connection, began, until)
            connection, now = face.connection, self.seams.clock()
            if until is not None and now >= until:
                raise DeadlineExceeded(address=connection.address, elapsed=now - began)
            binding = connection.enter(now, trusted=True)
            if binding is not None:
                return Start(connection, binding, now, began, until, timeout)
            if connection.flight is None and connection.state is not State.CLOSED:
                yield self._no_worker(connection, began, until)

    def _no_worker(self, connection: ManagedConnection, began: float, until: float | None) -> Pause:
        """There is no channel, and nobody could be found to fly (no thread to be had): pause."""
        now = self.seams.clock()
        if now >= began + self.policy.recovery_budget:
            raise RecoveryExhausted(
                address=connection.address, elapsed=now - began, last_error=connection.last_error
            )
        left = NO_WORKER_PAUSE if until is None else until - now
        return Pause(min(NO_WORKER_PAUSE, left))

    def _revive(self, face: Face, until: float | None) -> Procedure[None]:
        old = face.connection
        let_go = old.closed_by is Trigger.RELEASE or (old.dedicated and not old.leases)
        if let_go or not face.revivable:
            raise ConnectionClosed(address=old.address)
        self.step(old, Trigger.ACQUIRE)  # refused, and on record as such
        began = self.seams.clock()
        if until is not None and began >= until:
            raise DeadlineExceeded(address=old.address, last_error=old.last_error)
        caller, closed = _Caller(), [old]
        while True:
            connection = None if old.dedicated else self.registry.find(old.config.key)
            if connection is None:
                connection = self.register(self.renew(old, face))
            usable = yield from self.check_out(connection, caller, began, until)
            # Those who hold the old one now: somebody may have let go while this call waited.
            heirs = [holder for each in closed for holder in each.holders()]
            added = [heir for heir in heirs if not connection.is_held_by(heir)]
            if usable and all(connection.lease(heir) for heir in added):
                break
            if connection.face is face:  # closed again: who came to it meanwhile moves on, too
                closed.append(connection)
        face.connection = connection
        self.give_back(connection, caller)
        if not face.revivable:  # closed by its handler meanwhile, and that is for good
            if connection.face is face:
                self.shut(connection, "its handler was closed")
            face.connection = old
            for heir in added:
                self.give_back(connection, heir)
            raise ConnectionClosed(address=old.address)

    def on_error(self, face: Face, error: Exception) -> Procedure[bool]:
        """The retry decorator asks whether to retry: waits until a retry makes sense."""
        start, now = stamp_of(error), self.seams.clock()
        if start is None:
            # A status instead of an RPC error, or an error that somebody brought in by hand.
            start = face.take_status(error)
            if classify(error) is Failure.NOT_READY:
                if start is None:
                    return False
                handled = yield from self._wait_ready(start.began, start.until)
                if handled:
                    face.expect_retry(start)
                return handled
        else:
            # The budget is for waiting. A call may have run for longer than that when its server
            # goes away, or into a connection whose loss nobody noticed.
            start = replace(start, began=start.began + (now - start.at))
        if start is None:
            return (yield from self._settle(face.connection, error, None, now, None))
        generation = start.connection.generation_of(start.binding)
        handled = yield from self._settle(
            start.connection, error, generation, start.began, start.until
        )
        if handled:
            face.expect_retry(start)
        return handled

    def _settle(
        self,
        connection: ManagedConnection,
        error: Exception,
        generation: int | None,
        began: float,
        until: float | None,
    ) -> Procedure[bool]:
        if classify(error) not in (Failure.TRANSIENT, Failure.REPLICATE_VIOLATION):
            return False
        if not self.recoverable(connection, error):
            return False
        if generation is not None and generation < connection.generation:
            return True
        # An RPC reports its own failure when it fails (a status is not one); a connection that is
        # ACTIVE was validated since: a channel that answers again keeps its generation.
        if stamp_of(error) is None or connection.state is not State.ACTIVE:
            self.report_failure(connection, error, generation)
        yield from self.ride_out(connection, began, until)
        return True

    def _wait_ready(self, began: float, until: float | None) -> Procedure[bool]:
        """The server answers "not ready" for what it served before the outage: wait a little."""
        now = self.seams.clock()
        limit = began + self.policy.recovery_budget
        limit = limit if until is None else min(limit, until)
        if now + NOT_READY_PAUSE >= limit:
            return False
        yield Pause(NOT_READY_PAUSE)
        return True

    def refresh(self, connection: ManagedConnection) -> Procedure[None]:
        """Ask the locator where to be, with nobody waiting; then let the connections compare."""
        locator = connection.strategy.locator(connection)
        if locator is not None:
            # The locator says itself, once, what is wrong; the connection goes on as it is.
            with suppress(Exception):
                yield Locate(connection, locator, None, REFRESH_LIMIT)
            self.reroute_all()

    def ride_out(
        self, connection: ManagedConnection, began: float, until: float | None
    ) -> Procedure[None]:
        """Join flights until none stands between the caller and its RPC.

        ``began`` is when the caller began to wait, ``until`` its own deadline. Raises what the
        caller is to see: closed, connect failed, permanent, deadline or budget.
        """
        budget_end = began + self.policy.recovery_budget
        limit = budget_end if until is None else min(until, budget_end)
        while True:
            flight = connection.flight
            if connection.state is State.CLOSED:
                if _deserted(connection):
                    return
                raise self._closed(connection, began)
            if flight is None or (flight.kind is FlightKind.RECOVERY and not flight.mandatory):
                return
            first = connection.connecting()
            patience = limit
            if first and until is None:
                patience = min(limit, began + self.policy.connect_timeout)
            if self.seams.clock() < patience:
                grace = VERDICT_GRACE if first else 0.0
                yield Wait(connection, flight, patience, grace)
            if flight.outcome is Outcome.LANDED:
                return
            left_last = flight.outcome is Outcome.ABANDONED and self.seams.clock() >= patience
            if flight.outcome is None or left_last:
                own = until is not None and until < budget_end
                raise self._late(connection, flight, began, first, not own)
            self._next_flight(connection, flight, began, limit)

    def _next_flight(
        self, connection: ManagedConnection, flight: Flight, began: float, limit: float
    ) -> None:
        """The flight ended without landing: start the next one, or raise what the caller sees."""
        outcome, error = flight.outcome, flight.error
        spent = self.seams.clock() - began
        permanent = error is not None and classify(error) is Failure.PERMANENT
        kind: type[LifecycleError] | None = None
        if outcome is Outcome.FAILED:
            kind = ConnectFailed
        elif connection.state is State.CLOSED:
            if _deserted(connection):
                return
            raise self._closed(connection, began)
        elif outcome is Outcome.GAVE_UP and (permanent or self.seams.clock() >= limit):
            kind = RecoveryExhausted
        if kind is not None:
            kind = PermanentFailure if permanent else kind
            raise kind(
                address=connection.address,
                attempts=max(1, flight.attempts),
                elapsed=spent,
                last_error=error,
            )
        if outcome is Outcome.GAVE_UP:
            self.step(connection, Trigger.FAIL, reason="a caller has budget left")
        elif outcome is Outcome.ABANDONED:
            self.step(connection, Trigger.ACQUIRE, reason="the last flight was abandoned")

    def _closed(self, connection: ManagedConnection, began: float) -> LifecycleError:
        """Why the connection is closed: a first connect may have failed before anybody joined."""
        error = connection.last_error
        if connection.closed_by not in (Trigger.PROBE_FAILED, Trigger.ABANDONED) or error is None:
            return ConnectionClosed(address=connection.address)
        permanent = classify(error) is Failure.PERMANENT
        kind = PermanentFailure if permanent else ConnectFailed
        elapsed = self.seams.clock() - began
        return kind(address=connection.address, attempts=1, elapsed=elapsed, last_error=error)

    def _late(
        self,
        connection: ManagedConnection,
        flight: Flight,
        began: float,
        first: bool,
        budget_spent: bool,
    ) -> LifecycleError:
        """What a caller sees whose own time is over while the flight goes on."""
        kind: type[LifecycleError] = RecoveryExhausted if budget_spent else DeadlineExceeded
        if first:
            kind = ConnectFailed
        return kind(
            address=connection.address,
            attempts=flight.attempts + 1,
            elapsed=self.seams.clock() - began,
            last_error=flight.error or connection.last_error,
        )

    def parted(
        self, connection: ManagedConnection, flight: Flight, wake: Callable[[], None]
    ) -> None:
        """A waiter goes. Nobody left for a first connect: it is abandoned."""
        alone = connection.part(flight, wake)
        if alone and flight.kind is FlightKind.CONNECT and not connection.validated:
            self.step(connection, Trigger.ABANDONED, flight=flight.number)


class _Caller:
    """Holds a connection for one call, while that waits."""

    __slots__ = ("__weakref__",)


def _deserted(connection: ManagedConnection) -> bool:
    """Did the last waiter leave its first connect, in the very moment in which we came?"""
    return connection.closed_by is Trigger.ABANDONED and connection.last_error is None
