"""The permanent channel's common half: what a handler sees of its connection, in both flavours.

A handler is built once, with this object as its channel. Each RPC asks it for the binding of
the moment, so a swap is one reference that changes under the handler. The sync and asyncio
channels derive from it and add only how they call and wait.
"""

from __future__ import annotations

import contextvars
import re
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import grpc

from ..errors import (
    NOT_READY_CODES,
    REPLICATE_VIOLATION_MARK,
    ConnectionClosed,
    DeadlineExceeded,
    Failure,
    FailureSummary,
    LifecycleError,
    RpcSummary,
    error_code,
    not_up,
    shown,
    summarize,
)
from ..table import State, Trigger
from .readiness import READS, Collection, Readiness
from .wire import Binding, Rpc, WireState

if TYPE_CHECKING:
    # Generic in its stubs only.
    GrpcFuture = grpc.Future[Any]
    from .connection import ManagedConnection
    from .pool import Pool
else:
    GrpcFuture = grpc.Future

#: stands for an RPC that has ended
_ENDED = Rpc()
#: attribute of an RPC's error that carries its Start (an attribute survives both flavours)
STAMP = "_milvus_lifecycle_start"
#: A retry decorator comes back within its own backoff (3 s at most). A later RPC with the
#: same timeout is another call.
RETRY_WINDOW = 3.5
#: The decorator's first pause, by what it grows, and the longest (seconds).
_PAUSE, _GROWTH, _LONGEST_PAUSE = 0.01, 3, 3.0
#: RPCs that change nothing.
_HARMLESS = re.compile(
    "/milvus.proto.milvus.MilvusService/(Search|HybridSearch|Query|Describe|Show|Has|Get|List)"
)
#: How the reason of a proxy begins that has not even looked at a request. Further on it may be what
#: another proxy said to whoever was already at work.
NOTHING_DONE = "service not ready[proxy="
#: With so little time left (seconds) a retry is pointless; the deadline is raised instead.
DEADLINE_MARGIN = 0.02
#: Whatever pymilvus's telemetry does on a channel, its user has not asked for it.
TELEMETRY = "/milvus.proto.milvus.ClientTelemetryService/"


@dataclass(frozen=True, slots=True)
class Start:
    """One RPC that has been let in. Times are monotonic seconds."""

    connection: ManagedConnection
    binding: Binding
    rpc: Rpc
    #: when the RPC itself started
    at: float
    #: when the user's call began: at its first attempt
    began: float
    until: float | None
    timeout: float | None
    #: what it ended with
    failure: FailureSummary | None = None
    #: has its call been counted among those that waited in an outage?
    waited: bool = False


@dataclass(frozen=True, slots=True)
class Status:
    """An answer that carries a status which the retry decorator may ask about."""

    start: Start
    code: int
    reason: str
    #: what has to be loaded; None: the status is about something else
    collection: Collection | None
    #: is it harmless to send the request again?
    harmless: bool


@dataclass(slots=True)
class _Call:
    """What ``_on_rpc_error`` knows of a call that the decorator is about to retry."""

    face: int
    began: float
    until: float | None
    timeout: float | None
    noted_at: float
    #: how often it has been tried again
    retries: int
    #: has it been counted among those that waited?
    waited: bool
    #: its next RPC has started
    taken: bool = False


# The decorator does not pass a call's deadline on, and gives every attempt the full timeout
# again. The error callback runs in the call's own thread or task, so its context carries it.
_call: contextvars.ContextVar[_Call | None] = contextvars.ContextVar("milvus_call", default=None)
_status: contextvars.ContextVar[Status | None] = contextvars.ContextVar(
    "milvus_status", default=None
)


class UnavailableError(RpcSummary, grpc.Call, GrpcFuture):
    """UNAVAILABLE, as the engine says it itself.

    Also a call and a finished future, as the errors of grpc's interceptors have to be.
    """

    def __init__(self, details: str) -> None:
        super().__init__("UNAVAILABLE", details)

    def debug_error_string(self) -> str:
        return ""

    def _nothing(self) -> tuple[()]:
        return ()

    def _no(self, callback: Any = None) -> bool:
        return False

    initial_metadata = trailing_metadata = _nothing
    is_active = add_callback = cancel = cancelled = running = _no

    def time_remaining(self) -> float:
        return 0.0

    def done(self) -> bool:
        return True

    def result(self, timeout: float | None = None) -> Any:
        raise self

    def exception(self, timeout: float | None = None) -> Exception:
        return self

    def traceback(self, timeout: float | None = None) -> Any:
        return self.__traceback__

    def add_done_callback(self, fn: Any) -> None:
        fn(self)


class Refused(UnavailableError):
    """An RPC that cannot begin, as an error of gRPC's.

    Of a MilvusException whose time is up pymilvus's retry decorator makes another one; of gRPC's it
    asks ``on_rpc_error`` first, which raises what this one carries.
    """

    def __init__(self, reason: LifecycleError) -> None:
        super().__init__(str(reason.args[0]))
        self.reason = reason


def _factory(kind: str) -> Any:
    """One of a channel's four factories of multi-callables."""
    return lambda face, method, *args, **kwargs: face.method(kind, method, args, kwargs)


class Face:
    """State and bookkeeping of a permanent channel."""

    #: its handler is a mock, which does not call it: no RPC of the engine's own goes out either
    unused = False

    def __init__(self, pool: Pool, connection: ManagedConnection) -> None:
        self.pool = pool
        self.connection = connection
        #: more connections of this handler (``LifecyclePolicy.channels``)
        self.members: tuple[ManagedConnection, ...] = ()
        #: False once the handler itself was closed: then CLOSED is the caller's answer
        self.revivable = True
        self.readiness = Readiness()

    def method(self, kind: str, name: str, args: Any, kwargs: Any) -> Any:
        """The multi-callable ``name`` of this channel; ``kind`` is gRPC's factory for it."""
        raise NotImplementedError

    unary_unary, unary_stream = _factory("unary_unary"), _factory("unary_stream")
    stream_unary, stream_stream = _factory("stream_unary"), _factory("stream_stream")

    def __repr__(self) -> str:
        return f"<{type(self).__name__} of {self.connection!r}>"

    # -- a call's deadline over its retries --------------------------------------------------

    def call_window(self, timeout: float | None, now: float) -> tuple[float, float | None]:
        """(began, until) of the call that an RPC starting now belongs to."""
        call = _call.get()
        if call is not None and not call.taken:
            # Marked, not unset: asyncio.wait_for may run an attempt in a copy of the context.
            call.taken = True
            retried = (
                call.face == id(self)
                and call.timeout == timeout
                and now - call.noted_at <= RETRY_WINDOW
            )
            if retried:
                return call.began, call.until
        return now, (None if timeout is None else now + timeout)

    def quick(self, rpc: Rpc, timeout: float | None) -> tuple[Start | None, float, float | None]:
        """Start ``rpc`` without waiting, if nothing stands in its way. (start, began, until)."""
        now = self.pool.seams.clock()
        began, until = self.call_window(timeout, now)
        connection = self.pick(now) if self.members else self.connection
        # A timeout of 0 is for gRPC to judge, as it is without the engine: it often lets an answer
        # through that comes within a millisecond. Only a retry is not begun without time.
        if until is None or now < until or began == now:
            binding = connection.lifecycle.enter(rpc, now)
            if binding is not None:
                return Start(connection, binding, rpc, now, began, until, timeout), began, until
        return None, began, until

    def pick(self, now: float) -> ManagedConnection:
        """Of the connections that are well, the one with the fewest RPCs; else the first of all.

        A member that is not well and that nobody mends is mended in the background.
        """
        well = []
        for connection in (self.connection, *self.members):
            life = connection.lifecycle
            stale = now - life.last_used_at > life.idle_limit and life.stale(now)
            if life.state is State.ACTIVE and not stale:
                well.append(connection)
            elif life.flight is None and connection is not self.connection:
                until = now + life.policy.connect_timeout
                self.pool.step(
                    connection, Trigger.ACQUIRE, until=until, reason="an RPC could use it"
                )
        return min(well, key=_load, default=self.connection)

    def has_other(self, connection: ManagedConnection) -> bool:
        """Is there another connection that takes RPCs while ``connection`` does not?"""
        others = (self.connection, *self.members) if self.members else ()
        return any(c is not connection and c.state is State.ACTIVE for c in others)

    def unnoticed(self, timeout: float | None) -> Start:
        """An RPC that leaves no trace: it runs on the channel in use now, or not at all.

        It is no activity and no sign of life or death, waits for nothing, and is not counted: the
        channel may be closed under it. Raises UnavailableError.
        """
        life = self.connection.lifecycle
        binding = life.binding
        probing = life.state is State.PROBING
        if binding is None or binding.wire.state is not WireState.CURRENT or probing:
            raise UnavailableError(f"no channel to {life.address} is in use now")
        return Start(self.connection, binding, _ENDED, 0.0, 0.0, timeout, timeout)

    def expect_retry(self, start: Start, *, waited: bool = False) -> None:
        """The decorator will retry this call: its next RPC gets only what is left.

        Raises DeadlineExceeded if nothing worth a retry is left.
        """
        now = self.pool.seams.clock()
        if start.until is not None and start.until - now <= DEADLINE_MARGIN:
            start.connection.lifecycle.suffer(failed=1)
            raise DeadlineExceeded(
                address=start.connection.address,
                elapsed=now - start.began,
                last_error=shown(start.connection.lifecycle.last_failure),
            )
        retries = self.retries(start.began) + 1
        waited = waited or start.waited or self.waited(start.began)
        _call.set(_Call(id(self), start.began, start.until, start.timeout, now, retries, waited))

    def retries(self, began: float) -> int:
        """How often the call that began then was tried again before."""
        call = _call.get()
        known = call is not None and call.face == id(self) and call.began == began
        return call.retries if call is not None and known else 0

    def waited(self, began: float) -> bool:
        """Has the call that began then been counted among those that waited?"""
        call = _call.get()
        known = call is not None and call.face == id(self) and call.began == began
        return call is not None and known and call.waited

    def pause(self, start: Start) -> float:
        """For how long the decorator will pause if it is told to retry the call of ``start``."""
        return float(min(_PAUSE * _GROWTH ** min(self.retries(start.began), 9), _LONGEST_PAUSE))

    # -- outcomes ----------------------------------------------------------------------------

    def answered(
        self, start: Start, method: str, request: Any, metadata: Any, response: Any
    ) -> None:
        """An RPC succeeded: the connection hears of it; a status in the answer is noted."""
        connection, binding = start.connection, start.binding
        if connection.lifecycle.succeeded(binding, self.pool.seams.clock()):
            self.pool.step(connection, Trigger.SERVED, generation=binding.generation)
        if self.pool.notices.troubles and connection.lifecycle.outage is None:
            self.pool.notices.look(connection.lifecycle, self.pool.seams.clock())
        status = getattr(response, "status", response)
        code = getattr(status, "code", 0)
        if code == 0:
            if method in READS:
                self.readiness.answered(start.binding, metadata, request, self.pool.seams.clock)
            return
        reason = getattr(status, "reason", "")
        collection = None
        if code in NOT_READY_CODES:
            collection = self.readiness.lost(start.binding, start.at, metadata, request)
        later = not_up(code, reason, getattr(status, "retriable", False))
        if later or collection is not None or REPLICATE_VIOLATION_MARK in reason:
            harmless = _HARMLESS.match(method) is not None or reason.startswith(NOTHING_DONE)
            self.note_status(Status(start, code, reason, collection, harmless))

    def note_status(self, status: Status) -> None:
        """The retry decorator may ask about ``status``, and will not say which RPC it ended."""
        _status.set(status)

    def take_status(self, error: Exception) -> Status | None:
        """The noted status that ``error`` tells of, if there is one."""
        status = _status.get()
        _status.set(None)
        told = getattr(error, "code", None), getattr(error, "message", None)
        return status if status is not None and (status.code, status.reason) == told else None

    def failed(self, start: Start, error: Exception) -> Exception:
        """An RPC failed: report it, stamp it. Returns what its caller is to see."""
        wire, connection = start.binding.wire, start.connection
        if wire.state is WireState.CLOSED and _is_cancellation(error):
            if wire.cut or connection.state is not State.CLOSED:
                limit = connection.lifecycle.policy.drain_timeout
                error = UnavailableError(
                    f"the channel to {wire.address} was replaced, and this call did not end within "
                    f"drain_timeout={limit} s"
                )
            else:
                return self.pool.transport.translate(ConnectionClosed(address=connection.address))
        life, failure = connection.lifecycle, summarize(error)
        generation = life.ended(start.binding, self.pool.seams.clock())
        # Sent without any time: its deadline says nothing about the connection.
        hopeless = start.until is not None and start.until <= start.at
        if not (failure.kind is Failure.DEADLINE and hopeless):
            self.pool.rpc_failed(connection, failure, generation, start.at)
        # Without the RPC: whoever keeps the error would have it count for ever, if ``left`` is
        # interrupted.
        setattr(error, STAMP, replace(start, rpc=_ENDED, failure=failure))
        return error

    def left(self, start: Start) -> None:
        """An RPC is over, however: count it out."""
        connection, wire = start.connection, start.binding.wire
        if wire.leave(start.rpc):
            self.pool.drained(connection, wire)
        if not connection.leases.held and connection.lifecycle.state is State.IDLE:
            self.pool.maintenance.plan_expiry(connection)

    def credentials_changed(self) -> None:
        """The handler has others than its pool key says: nobody else is to find its connection."""
        self.pool.registry.unshare(self.connection)

    def closed_by_handler(self) -> None:
        """The handler's own close(): for good."""
        self.revivable = False
        for connection in (self.connection, *self.members):
            self.pool.close(connection, "its handler was closed")


def _load(connection: ManagedConnection) -> tuple[int, float]:
    """The least loaded first; of those, the one that was used longest ago."""
    return connection.lifecycle.in_flight, connection.lifecycle.last_used_at


def stamp_of(error: BaseException) -> Start | None:
    """The Start of the RPC that ``error`` ended, if it was one of ours."""
    stamp = getattr(error, STAMP, None)
    return stamp if isinstance(stamp, Start) else None


def _is_cancellation(error: BaseException) -> bool:
    """What grpc raises for RPCs on a channel that was closed under them."""
    closed = isinstance(error, (grpc.FutureCancelledError, ValueError))
    return closed or error_code(error) == "CANCELLED"
