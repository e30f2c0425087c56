"""The procedures of callers, in both flavours: checking out, starting an RPC, riding out a flight.

Each is a generator that decides in memory and yields what has to be waited for (see
``requests``). There is one copy of each; a driver only performs the requests.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

from ..config import ConnectionConfig, ForeignConfig
from ..errors import (
    ConfigError,
    ConnectFailed,
    ConnectionClosed,
    DeadlineExceeded,
    Failure,
    LifecycleError,
    PermanentFailure,
    RecoveryExhausted,
    UnknownHandler,
    classify,
)
from ..table import State, Trigger
from .face import DEADLINE_MARGIN, FACE, Face, Start, stamp_of
from .flight import Flight, FlightKind, Outcome
from .flights import STOPPED, Flights
from .leases import check_client
from .readiness import NEWS, LoadState, Reload, Status
from .requests import AskLoadState, Locate, Pause, Procedure, Wait
from .wire import WireState

if TYPE_CHECKING:
    from .connection import ManagedConnection
    from .wire import Rpc

#: How much longer (seconds) than their limit the waiters of a first connect wait for its own
#: verdict, which names the cause.
VERDICT_GRACE = 0.5
#: A checkout may take this long (seconds) however short its timeout is: pymilvus leaves it to gRPC
#: whether a connect with a timeout of 0 succeeds (here 38 of 40 did). A connect takes 3 to 14 ms.
SHORTEST_CHECKOUT = 0.2
#: How long (seconds) a refresh in the background may take.
REFRESH_LIMIT = 10.0
#: Gap (seconds) between two looks at how far a server is with loading a collection.
ASK_PAUSE = 0.25
#: Gap (seconds) between two tries of a caller whose flights cannot even be started.
NO_WORKER_PAUSE = 0.1


class Procedures(Flights):
    """What managers do for their callers, written once."""

    # -- callers -----------------------------------------------------------------------------

    def find_face(self, handler: Any) -> Any:
        """The permanent channel behind a handler; None if this manager did not hand it out."""
        face = getattr(handler, FACE, None)
        return face if isinstance(face, Face) and face.engine is self else None

    def face_of(self, handler: Any) -> Any:
        """The same, but raises UnknownHandler."""
        face = self.find_face(handler)
        if face is None:
            unknown = UnknownHandler(f"unknown handler of type {type(handler).__name__}")
            raise self.transport.translate(unknown)
        return face

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
        began = self.seams.clock()
        until = None if timeout is None else began + max(timeout, SHORTEST_CHECKOUT)
        while True:
            connection = self.find_or_create(own, client, dedicated=dedicated)
            try:
                usable = yield from self.check_out(connection, client, began, until)
            except LifecycleError:
                raise
            except BaseException:  # a signal handler's: perhaps before anybody held it
                self._leave(partial(self.settle, connection))
                raise
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
        self, face: Face, rpc: Rpc, timeout: float | None, began: float, until: float | None
    ) -> Procedure[Start]:
        """``rpc`` wants to start and the quick way refused: acquire, or join what is under way.

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
            binding = connection.enter(rpc, now, trusted=True)
            if binding is not None:
                return Start(connection, binding, rpc, now, began, until, timeout)
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
            status = face.take_status(error)
            if classify(error) is Failure.NOT_READY:
                if status is None or not (yield from self._wait_loaded(face, status)):
                    return False
                face.expect_retry(status.start)
                return True
            start = None if status is None else status.start
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

    def _wait_loaded(self, face: Face, status: Status) -> Procedure[bool]:
        """What was read before the outage is not loaded: wait while the server loads it again.

        True: the call is to be tried again. Ends in time for the caller's own deadline.
        """
        start, now = status.start, self.seams.clock()
        budget = self.policy.recovery_budget
        reload = face.readiness.reload(status, now, budget)
        limit = min(reload.until, start.began + budget)
        if start.until is not None:
            limit = min(limit, start.until - DEADLINE_MARGIN)
        while reload.ended > now and _in_use(start):
            if limit - now < ASK_PAUSE:
                if reload.until - now < ASK_PAUSE:
                    self._end_wait(status, reload, "overdue")
                return False
            pause = reload.asked_at + ASK_PAUSE - now
            if reload.loading and pause > 0:  # another call has just asked
                yield Pause(pause)
            else:
                yield from self._ask_loaded(status, reload, limit - now)
            now = self.seams.clock()
        if not _in_use(start):
            self._end_wait(status, reload, "interrupted")
            return True
        return reload.news == "loaded"

    def _ask_loaded(self, status: Status, reload: Reload, left: float) -> Procedure[None]:
        start, reload.asked_at = status.start, self.seams.clock()
        timeout = min(left, self.policy.probe_timeout)
        try:
            state = yield AskLoadState(start.connection, reload.collection, timeout)
        except Exception as error:
            if classify(error) is Failure.DEADLINE or not _in_use(start):
                return  # no news
            state = LoadState.NOT_LOAD
        if state is not LoadState.LOADING:
            self._end_wait(status, reload, "loaded" if state is LoadState.LOADED else "not_loaded")
        elif reload.first("loading"):
            self._tell_wait(status, reload, "loading", 0.0)

    def _end_wait(self, status: Status, reload: Reload, news: str) -> None:
        if reload.first("end"):
            reload.news, reload.ended = news, self.seams.clock()
            if not reload.first("loading"):  # else nobody has waited
                self._tell_wait(status, reload, news, reload.ended - reload.began)

    def _tell_wait(self, status: Status, reload: Reload, news: str, seconds: float) -> None:
        code = None if news == "loaded" else str(status.code)
        reason = NEWS[news].format(reload.collection)
        status.start.connection.report_wait(news, reason, code, seconds)

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
        budget_end, thawed = began + self.policy.recovery_budget, False
        while True:
            limit = budget_end if until is None else min(until, budget_end)
            flight = connection.flight
            if connection.state is State.CLOSED:
                if _deserted(connection):
                    return
                raise self._closed(connection, began)
            if flight is None or (flight.kind is FlightKind.RECOVERY and not flight.mandatory):
                return
            self._see_it_flown(connection, flight)
            first = connection.connecting()
            patience = limit
            if first and until is None:
                patience = min(limit, began + self.policy.connect_timeout)
            if self.seams.clock() < patience:
                grace = VERDICT_GRACE if first else 0.0
                yield Wait(connection, flight, patience, grace)
            if flight.outcome is Outcome.LANDED:
                return
            now = self.seams.clock()
            stopped = now > patience + STOPPED and not thawed
            if flight.outcome is None and stopped and (until is None or now < until):
                # The process did not run when its time ran out: the flight tries once more.
                thawed, began = True, now
                budget_end = now + self.policy.connect_timeout
                continue
            left_last = flight.outcome is Outcome.ABANDONED and self.seams.clock() >= patience
            if flight.outcome is None or left_last:
                self._see_it_flown(connection, flight)  # perhaps nobody else comes
                own = until is not None and until < budget_end
                raise self._late(connection, flight, began, first, not own)
            self._next_flight(connection, flight, began, limit)

    def _see_it_flown(self, connection: ManagedConnection, flight: Flight) -> None:
        """Launch a flight that nobody leads: whoever was to do it, or to lead it, was interrupted
        or had no memory."""
        if flight.leader is None and self.seams.clock() > flight.launched + STOPPED:
            self._launch(connection, flight)

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
            raise _verdict(kind, connection, max(1, flight.attempts), spent, error)
        if outcome is Outcome.GAVE_UP:
            self.step(connection, Trigger.FAIL, reason="a caller has budget left")
        elif outcome is Outcome.ABANDONED:
            self.step(connection, Trigger.ACQUIRE, reason="the last flight was abandoned")

    def _closed(self, connection: ManagedConnection, began: float) -> LifecycleError:
        """Why the connection is closed: a first connect may have failed before anybody joined."""
        error = connection.last_error
        if connection.closed_by not in (Trigger.PROBE_FAILED, Trigger.ABANDONED) or error is None:
            return ConnectionClosed(address=connection.address)
        return _verdict(ConnectFailed, connection, 1, self.seams.clock() - began, error)

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
        """A waiter goes. Nobody left for a first connect: it is abandoned.

        Not if the process was stopped: whoever waited comes back for one more attempt.
        """
        alone = connection.part(flight, wake)
        first = flight.kind is FlightKind.CONNECT and not connection.validated
        if alone and first and not self._thaw(flight):
            self.step(connection, Trigger.ABANDONED, flight=flight.number)


class _Caller:
    """Holds a connection for one call, while that waits."""

    __slots__ = ("__weakref__",)


def _verdict(
    kind: type[LifecycleError],
    connection: ManagedConnection,
    attempts: int,
    elapsed: float,
    error: BaseException | None,
) -> LifecycleError:
    """What the waiters of a flight see of its error: a permanent one is called so.

    A first connect that could not even be tried (Milvus Lite is missing) was refused by no server.
    """
    if kind is ConnectFailed and isinstance(error, ConfigError):
        return ConfigError(error.detail, field=error.field, address=connection.address)
    if error is not None and classify(error) is Failure.PERMANENT:
        kind = PermanentFailure
    address = connection.address
    return kind(address=address, attempts=attempts, elapsed=elapsed, last_error=error)


def _in_use(start: Start) -> bool:
    """Is the channel of this RPC still the one in use?"""
    return start.binding.wire.state is WireState.CURRENT


def _deserted(connection: ManagedConnection) -> bool:
    """Did the last waiter leave its first connect, in the very moment in which we came?"""
    return connection.closed_by is Trigger.ABANDONED and connection.last_error is None
