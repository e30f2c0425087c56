"""Scripted I/O: what the world answers, handlers without pymilvus, channels without a network."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import threading
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, InvalidStateError
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import grpc

from ..core.connection import ManagedConnection
from ..core.face import Refused
from ..core.facts import Located
from ..core.readiness import Collection, LoadState
from ..core.requests import Open
from ..core.wire import Wire
from ..drivers.aio_channel import AsyncLifecycleChannel
from ..drivers.threads_channel import LifecycleChannel
from ..errors import LifecycleError, RpcSummary
from .clock import LIMIT, until

METHOD = "/milvus_lifecycle.testing/Rpc"


class ScriptedRpcError(RpcSummary):
    """An RPC's failure as gRPC raises it."""

    def __init__(self, code: grpc.StatusCode, details: str) -> None:
        super().__init__(code.name, f"{code.name}: {details}")


def rpc_error(code: str, details: str = "scripted") -> ScriptedRpcError:
    """An RPC error by the name of its status, such as "UNAVAILABLE"."""
    return ScriptedRpcError(grpc.StatusCode[code], details)


class Operation:
    """One piece of I/O that the engine asked for. It ends when its script says how.

    ``kind`` is "register" (the Connect call), "ping", "locate", "open", "load_state" (of the
    collection in ``request``) or "rpc". ``timeout``
    (seconds) is what the engine or the caller allowed; the script alone decides whether it holds.
    """

    def __init__(self, kind: str, address: str, timeout: float | None, **about: Any) -> None:
        self.kind = kind
        self.address = address
        self.timeout = timeout
        #: the channel that it runs on, if any
        self.channel: FakeChannel | None = about.get("channel")
        #: the request and the metadata of an RPC
        self.request: Any = about.get("request")
        self.metadata: Any = about.get("metadata")
        self.done: Future[Any] = Future()

    def succeed(self, result: Any = None) -> None:
        """End well. ``register`` results in an identifier, ``locate`` in a ``Located``,
        ``load_state`` in a ``LoadState``."""
        if not self.done.done():
            self.done.set_result(result)

    def fail(self, error: BaseException) -> None:
        """End by raising ``error``; a BaseException kills whoever leads the flight."""
        with contextlib.suppress(InvalidStateError):  # its caller is gone
            self.done.set_exception(error)

    def __repr__(self) -> str:
        return f"<Operation {self.kind} {self.address} timeout={self.timeout}>"


class Script:
    """What the world answers: all I/O succeeds at once, unless it is planned or held."""

    def __init__(self) -> None:
        #: every piece of I/O so far, and every channel opened, in order
        self.operations: list[Operation] = []
        self.channels: list[FakeChannel] = []
        #: those whose TLS files have changed since
        self.outdated: list[FakeChannel] = []
        self._held: set[str] = set()
        self._planned: dict[str, deque[object]] = {}
        self._identifiers = itertools.count(1)
        self._lock = threading.Lock()

    def hold(self, *kinds: str) -> None:
        """From now on, operations of these kinds wait for ``succeed`` or ``fail``."""
        self._held.update(kinds)

    def let_go(self) -> None:
        """Hold nothing any more; what is held succeeds."""
        self._held.clear()
        for operation in self.held():
            self.finish(operation)

    def plan(self, kind: str, *outcomes: object) -> None:
        """Let the next operations of ``kind`` end so: an exception, or the result."""
        self._planned.setdefault(kind, deque()).extend(outcomes)

    def held(self, kind: str | None = None) -> list[Operation]:
        """What waits for its outcome, oldest first."""
        with self._lock:
            known = list(self.operations)
        return [op for op in known if kind in (None, op.kind) and not op.done.done()]

    def wait_held(self, kind: str, limit: float = LIMIT) -> Operation:
        """The oldest held operation of ``kind``, waited for in real time."""
        until(lambda: self.held(kind), limit, f"no {kind} is held")
        return self.held(kind)[0]

    def perform(self, kind: str, address: str, timeout: float | None, **about: Any) -> Operation:
        """Begin an operation; called by the transports, and by locators of your own."""
        operation = Operation(kind, address, timeout, **about)
        with self._lock:
            self.operations.append(operation)
            planned = self._planned.get(kind)
            outcome = planned.popleft() if planned else self
        if isinstance(outcome, BaseException):
            operation.fail(outcome)
        elif outcome is not self:
            operation.succeed(outcome)
        elif kind not in self._held:
            self.finish(operation)
        return operation

    def finish(self, operation: Operation) -> None:
        """End an operation well, with a result of its kind."""
        result: Any = None
        if operation.kind == "register":
            result = f"identifier-{next(self._identifiers)}"
        elif operation.kind == "locate":
            result = Located(operation.address)
        elif operation.kind == "load_state":
            result = LoadState.LOADED
        operation.succeed(result)

    def open(self, make: type[FakeChannel], address: str, secure: bool | None) -> FakeChannel:
        """Open a channel; a planned exception for "open" is raised."""
        with self._lock:
            channel = make(self, len(self.channels) + 1, address, secure)
        self.perform("open", address, None, channel=channel).done.result(0)
        self.channels.append(channel)
        return channel

    def threads(self) -> ScriptedTransport:
        """The transport for a ``ConnectionManager``."""
        return ScriptedTransport(self, _ThreadsChannel, FakeHandler, Future.result)

    def asyncio(self) -> ScriptedTransport:
        """The transport for an ``AsyncConnectionManager``."""
        return ScriptedTransport(self, _AsyncioChannel, AsyncFakeHandler, _await)


@dataclass(eq=False, repr=False)
class FakeChannel:
    """A channel that opens nothing, and remembers whether it was closed."""

    script: Script
    #: 1 for the first channel of the script
    number: int
    address: str
    secure: bool | None
    closed: bool = False

    def begin(self, kind: str, timeout: float | None, **about: Any) -> Operation:
        """Begin an operation on this channel. Raises ValueError if it is closed, as gRPC does."""
        if self.closed:
            raise ValueError("Cannot invoke RPC on closed channel!")
        return self.script.perform(kind, self.address, timeout, channel=self, **about)

    def shut(self) -> None:
        """Close: what runs on it is cancelled."""
        self.closed = True
        for operation in self.script.held():
            if operation.channel is self:
                operation.fail(rpc_error("CANCELLED", "Channel closed!"))


class _ThreadsChannel(FakeChannel):
    def unary_unary(self, method: str, *args: Any, **kwargs: Any) -> Any:
        def with_call(request: Any, timeout: float | None, **about: Any) -> Any:
            operation = self.begin("rpc", timeout, request=request, **about)
            return operation.done.result(), operation

        return SimpleNamespace(with_call=with_call)

    def close(self) -> None:
        self.shut()


class _AsyncioChannel(FakeChannel):
    def unary_unary(self, method: str, *args: Any, **kwargs: Any) -> Any:
        def call(request: Any, timeout: float | None, **about: Any) -> Any:
            operation = self.begin("rpc", timeout, request=request, **about)
            return asyncio.wrap_future(operation.done)

        return call

    async def close(self, grace: float | None = None) -> None:
        self.shut()


class FakeHandler:
    """What clients of the threads flavour get instead of a ``GrpcHandler``."""

    def __init__(self, face: LifecycleChannel) -> None:
        self.face = face
        self._method = face.unary_unary(METHOD)

    def rpc(self, request: Any = None, timeout: float | None = None) -> Any:
        """One RPC. Raises grpc.RpcError or LifecycleError."""
        try:
            return self._method(request, timeout=timeout)
        except Refused as refused:
            raise refused.reason from None

    def call(self, request: Any = None, timeout: float | None = None) -> Any:
        """An RPC that is retried, as pymilvus's decorator does, while the engine says so."""
        while True:
            try:
                return self.rpc(request, timeout)
            except grpc.RpcError as error:
                if not self.face.on_rpc_error(error):
                    raise


class AsyncFakeHandler:
    """What clients of the asyncio flavour get instead of an ``AsyncGrpcHandler``."""

    def __init__(self, face: AsyncLifecycleChannel) -> None:
        self.face = face
        self._method = face.unary_unary(METHOD)

    async def rpc(self, request: Any = None, timeout: float | None = None) -> Any:
        """One RPC; see ``FakeHandler.rpc``."""
        try:
            return await self._method(request, timeout=timeout)
        except Refused as refused:
            raise refused.reason from None

    async def call(self, request: Any = None, timeout: float | None = None) -> Any:
        """An RPC with retries; see ``FakeHandler.call``."""
        while True:
            try:
                return await self.rpc(request, timeout)
            except grpc.RpcError as error:
                if not await self.face.on_rpc_error(error):
                    raise


async def _await(outcome: Future[Any]) -> Any:
    return await asyncio.wrap_future(outcome)


@dataclass(eq=False, repr=False)
class ScriptedTransport:
    """The transport of either flavour, which ``wait`` is all about: for an outcome, or awaited."""

    script: Script
    _make_channel: type[FakeChannel]
    _make_handler: type[FakeHandler | AsyncFakeHandler]
    _wait: Callable[[Future[Any]], Any]
    interceptors: tuple[Any, ...] = ()

    def make_handler(self, connection: ManagedConnection, channel: Any) -> Any:
        """A fake handler."""
        return self._make_handler(channel)

    def open(self, request: Open) -> FakeChannel:
        """A fake channel."""
        return self.script.open(self._make_channel, request.address, request.secure)

    def outdated(self, connection: ManagedConnection, wire: Wire) -> bool:
        """As the script says."""
        return wire.channel in self.script.outdated

    def register(
        self, connection: ManagedConnection, wire: Wire, timeout: float, patient: bool
    ) -> Any:
        """Begin a "register" on the channel."""
        return self._wait(wire.channel.begin("register", timeout).done)

    def ping(self, connection: ManagedConnection, wire: Wire, timeout: float) -> Any:
        """Begin a "ping" on the channel."""
        return self._wait(wire.channel.begin("ping", timeout).done)

    def load_state(
        self, connection: ManagedConnection, collection: Collection, timeout: float
    ) -> Any:
        """Begin a "load_state"."""
        asked = self.script.perform("load_state", connection.address, timeout, request=collection)
        return self._wait(asked.done)

    def translate(self, error: LifecycleError) -> Exception:
        """The engine's own error, as it is."""
        return error
