"""The permanent channel of the asyncio flavour: a grpc.aio.Channel whose inside can be swapped."""

from __future__ import annotations

import asyncio
import weakref
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import chain
from typing import Any, Protocol, TypeVar, cast

import grpc
import grpc.aio

from ..core.checkout import Checkout, hoping
from ..core.connection import ManagedConnection
from ..core.face import TELEMETRY, Face, Refused, Start, Status, UnavailableError
from ..core.pool import FACE, Pool
from ..core.requests import Procedure
from ..core.retry import Retry
from ..core.wire import Rpc, WireState
from ..errors import LifecycleError, RpcSummary, summarize
from ..policy import parse_timeout
from .rpc import Method

T = TypeVar("T")

#: So long (seconds) before a call's deadline the engine says why it was not served.
SAY_BEFORE = 0.05


class AsyncDriver(Protocol):
    """What the channel needs of its driver."""

    pool: Pool
    #: finds the manager of the running loop
    running: Callable[[], Any]

    @property
    def loop(self) -> asyncio.AbstractEventLoop | None:
        """The loop that it belongs to, while that exists."""

    async def drive(self, procedure: Procedure[T]) -> T:
        """Run a procedure to its end in this task."""


class _Interceptors(list[Any]):
    """The handler's interceptors, one list over all channels; none of them twice.

    pymilvus appends to its channel's own list, and again whenever it builds a stub anew.
    """

    def append(self, interceptor: Any) -> None:
        if not any(known is interceptor for known in self):
            super().append(interceptor)


#: where a channel of grpc.aio keeps the interceptors of its streaming methods
_STREAMING = {
    "_unary_stream_interceptors": grpc.aio.UnaryStreamClientInterceptor,
    "_stream_unary_interceptors": grpc.aio.StreamUnaryClientInterceptor,
    "_stream_stream_interceptors": grpc.aio.StreamStreamClientInterceptor,
}


def _of(kind: type, interceptors: tuple[Any, ...]) -> tuple[Any, ...]:
    return tuple(one for one in interceptors if isinstance(one, kind))


@dataclass(frozen=True)
class _Both:
    """The interceptors of a handler, those to come included, and others nearer to the wire."""

    outer: _Interceptors
    inner: tuple[Any, ...]

    def __iter__(self) -> Iterator[Any]:
        return chain(self.outer, self.inner)

    def __len__(self) -> int:
        return len(self.outer) + len(self.inner)


class AsyncLifecycleChannel(Face, grpc.aio.Channel):
    """What ``AsyncGrpcHandler`` takes for its channel, for as long as it lives."""

    def __init__(self, driver: AsyncDriver, connection: ManagedConnection) -> None:
        super().__init__(driver.pool, connection)
        self._driver = driver
        self._statuses: weakref.WeakKeyDictionary[asyncio.Task[Any], Status] = (
            weakref.WeakKeyDictionary()
        )
        self._unary_unary_interceptors = _Interceptors()
        #: the same client's connections in other event loops
        self._elsewhere: weakref.WeakKeyDictionary[Any, AsyncLifecycleChannel] = (
            weakref.WeakKeyDictionary()
        )

    def adopt(self, channel: Any, interceptors: tuple[Any, ...] = ()) -> Any:
        """Make a fresh channel use the handler's interceptors, those to come included, and then
        these."""
        own = self._unary_unary_interceptors
        unary = _of(grpc.aio.UnaryUnaryClientInterceptor, interceptors)
        channel._unary_unary_interceptors = _Both(own, unary) if unary else own
        if interceptors:
            for name, kind in _STREAMING.items():
                setattr(channel, name, [*getattr(channel, name), *_of(kind, interceptors)])
        return channel

    # -- RPCs ------------------------------------------------------------------------------

    async def begin(self, timeout: float | None) -> Start:
        """Let an RPC in, waiting for a flight if need be. Raises what the caller is to see."""
        rpc = Rpc()
        try:
            if timeout is not None:
                timeout = parse_timeout(timeout)
            start, began, until = self.quick(rpc, timeout)
            if start is None:
                if until is not None and timeout is not None:
                    # pymilvus cancels the call at its deadline: its caller would learn nothing.
                    # Once a call, however often it is tried again.
                    until = min(until, began + timeout - min(SAY_BEFORE, timeout / 10))
                checkout = Checkout(self.pool, began, until)
                return await self._driver.drive(checkout.admit(self, rpc, timeout))
            return start
        except LifecycleError as error:
            raise self.pool.transport.translate(error) from None

    def cancelled(self, start: Start) -> None:
        """A caller gave its RPC up. At its deadline this is how pymilvus ends it: a black hole
        shows itself by nothing else."""
        now = self.pool.seams.clock()
        generation = start.connection.lifecycle.ended(start.binding, now)
        if start.until is None or start.timeout is None:
            return
        if start.until - now <= start.timeout / 10:
            overdue = RpcSummary("DEADLINE_EXCEEDED", "cancelled at the deadline of its call")
            failure = summarize(overdue)
            self.pool.rpc_failed(start.connection, failure, generation, start.at)

    async def here(self, timeout: float | None = None) -> AsyncLifecycleChannel:
        """This channel, or in another event loop the same client's channel there."""
        if self._driver.loop is asyncio.get_running_loop():
            return self
        manager = self._driver.running()
        face = self._elsewhere.get(manager)
        if face is None:
            connection = self.connection
            clients = list(connection.clients)
            with hoping(self.pool.policy.recovery_budget):  # the client was connected before
                handler = await manager.get_or_create(
                    connection.config,
                    connection.dedicated,
                    clients[0] if clients else None,
                    timeout,
                )
            face = self._elsewhere[manager] = getattr(handler, FACE)
        return face

    def let_go_elsewhere(self, client: object | None) -> None:
        """Release what a client holds in other loops."""
        for face in list(self._elsewhere.values()):
            face.pool.release(face.connection, client)
        self._elsewhere.clear()

    # -- errors: the retry decorator asks here ---------------------------------------------

    async def on_rpc_error(self, error: Exception) -> bool:
        """``handler._on_rpc_error``: waits for a recovery; True if the call should be retried.

        Asked of the handler's own channel; answered by the one that the RPC went through.
        """
        if isinstance(error, Refused):
            raise error.reason from None
        there = self._driver.loop is not asyncio.get_running_loop()
        face = self._elsewhere.get(self._driver.running()) if there else self
        if face is None:
            return False  # in this loop there was no connection to be had: that has been waited for
        try:
            return await face._driver.drive(Retry(face).ask(error))
        except LifecycleError as failure:
            raise self.pool.transport.translate(failure) from None

    def note_status(self, status: Status) -> None:
        super().note_status(status)
        self._statuses[_this_task()] = status

    def take_status(self, error: Exception) -> Status | None:
        status = super().take_status(error)
        if status is not None:
            self._statuses.pop(_this_task(), None)
            return status
        # Up to Python 3.11 asyncio.wait_for runs an attempt in a task of its own, whose context
        # is lost; what that task ended with is the very error that the decorator asks about
        # (and whose traceback keeps the task).
        for task, noted in list(self._statuses.items()):
            if task.done() and not task.cancelled() and task.exception() is error:
                del self._statuses[task]
                return noted
        return None

    def method(self, kind: str, name: str, args: Any, kwargs: Any) -> Any:
        of_kind: type[Method[AsyncLifecycleChannel]] = (
            _UnaryUnary if kind == "unary_unary" else _Streaming
        )
        if TELEMETRY in name:
            of_kind = _Unnoticed
        return of_kind(self, kind, name, args, kwargs)

    # -- the rest of grpc.aio.Channel ------------------------------------------------------

    def _raw(self) -> Any:
        binding = self.connection.lifecycle.binding
        if binding is None:
            raise grpc.aio.UsageError("the connection has no channel at the moment")
        return binding.wire.channel

    def get_state(self, try_to_connect: bool = False) -> grpc.ChannelConnectivity:
        state: grpc.ChannelConnectivity = self._raw().get_state(try_to_connect)
        return state

    async def wait_for_state_change(self, last_observed_state: grpc.ChannelConnectivity) -> None:
        await self._raw().wait_for_state_change(last_observed_state)

    async def channel_ready(self) -> None:
        await self._raw().channel_ready()

    async def close(self, grace: float | None = None) -> None:
        """The handler was closed: so is its connection."""
        self.closed_by_handler()

    async def __aenter__(self) -> AsyncLifecycleChannel:
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self.close()


class _UnaryUnary(Method[AsyncLifecycleChannel]):
    __slots__ = ()

    async def __call__(
        self, request: Any, *, timeout: float | None = None, metadata: Any = None, **options: Any
    ) -> Any:
        try:
            face = await self._face.here(timeout)
            start = await face.begin(timeout)
        except LifecycleError as error:
            raise Refused(error) from None
        wire = start.binding.wire
        rpc, failure = start.rpc, None
        try:
            target, remaining, sent = self.prepare(start, metadata)
            rpc.call = target(request, timeout=remaining, metadata=sent, **options)
            response = await rpc.call
        except asyncio.CancelledError as cancelled:
            if not rpc.severed or _cancelling():
                face.cancelled(start)
                raise cancelled.with_traceback(None) from None
            failure = face.failed(start, grpc.FutureCancelledError())
        except grpc.aio.UsageError as error:
            if wire.state is not WireState.CLOSED:
                raise
            failure = face.failed(start, grpc.FutureCancelledError(str(error)))
        except grpc.RpcError as error:
            failure = face.failed(start, error.with_traceback(None))
        finally:
            try:
                rpc.call = None
                face.left(start)
            except BaseException:  # a signal handler's, before anything was counted
                face.left(start)
                raise
        if failure is not None:
            # Raised here, without traceback and context: their frames hold gRPC's call object,
            # and whoever keeps the error would keep the socket of a closed channel.
            try:
                raise failure
            finally:
                failure = None  # nor may this frame hold an error whose traceback holds it
        face.answered(start, self._method, request, metadata, response)
        return response


class _Unnoticed(Method[AsyncLifecycleChannel]):
    """Unary methods that leave no trace (see ``Face.unnoticed``)."""

    __slots__ = ()

    async def __call__(
        self, request: Any, *, timeout: float | None = None, metadata: Any = None, **options: Any
    ) -> Any:
        face = self._face
        start = face.unnoticed(timeout)
        if face._driver.loop is not asyncio.get_running_loop():
            raise UnavailableError("the connection belongs to another event loop")
        try:
            target, remaining, sent = self.prepare(start, metadata)
            return await target(request, timeout=remaining, metadata=sent, **options)
        except asyncio.CancelledError:
            # Whoever waits on a channel that is closed is cancelled by gRPC: not his task's end.
            if start.binding.wire.state is not WireState.CLOSED or _cancelling():
                raise
            failure: grpc.RpcError = UnavailableError("the channel was closed")
        except grpc.RpcError as error:
            failure = error.with_traceback(None)
        raise failure  # here, for the reason that ``_UnaryUnary`` has


class _Streaming(Method[AsyncLifecycleChannel]):
    """Streaming methods on the channel of the moment; their calls are grpc's own.

    Only once the connection is usable: a stream call object cannot wait before it exists.
    """

    __slots__ = ()

    def __call__(
        self,
        request: Any = None,
        timeout: float | None = None,
        metadata: Any = None,
        **options: Any,
    ) -> Any:
        face = self._face
        try:
            timeout = parse_timeout(timeout)
            start, _, _ = face.quick(Rpc(), timeout)
            if start is None:
                address = face.connection.address
                raise LifecycleError("the connection is not usable now", address=address)
        except LifecycleError as error:
            raise face.pool.transport.translate(error) from None
        target, remaining, sent = self.prepare(start, metadata)
        call = target(request, timeout=remaining, metadata=sent, **options)
        start.rpc.call = call

        def done(_: Any) -> None:
            start.rpc.call = None
            face.left(start)

        call.add_done_callback(done)
        return call


def _this_task() -> asyncio.Task[Any]:
    # Never None: an RPC is awaited, and whoever awaits is a task.
    return cast("asyncio.Task[Any]", asyncio.current_task())


def _cancelling() -> bool:
    """Has somebody asked this very task to end? (Known from Python 3.11 on.)"""
    task = asyncio.current_task()
    cancelling = getattr(task, "cancelling", None)
    return bool(cancelling is not None and cancelling() > 0)
