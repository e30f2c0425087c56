"""Scripted transports for `testing`: handlers without pymilvus, channels without a network."""

from __future__ import annotations

import asyncio
from concurrent.futures import Future
from typing import TYPE_CHECKING, Any

import grpc

from .aio import AsyncConnectionManager
from .aio_channel import AsyncLifecycleChannel
from .channel import LifecycleChannel
from .face import FACE
from .manager import ConnectionManager

if TYPE_CHECKING:
    from .config import ConnectionConfig
    from .connection import ManagedConnection
    from .engine import Engine
    from .errors import LifecycleError
    from .readiness import Collection
    from .testing import Operation, Script
    from .wire import Wire

METHOD = "/milvus_lifecycle.testing/Rpc"


class ScriptedRpcError(grpc.RpcError):
    """An RPC's failure as gRPC raises it."""

    def __init__(self, code: grpc.StatusCode, details: str) -> None:
        super().__init__(f"{code.name}: {details}")
        self._code, self._details = code, details

    def code(self) -> grpc.StatusCode:
        return self._code

    def details(self) -> str:
        return self._details


def rpc_error(code: str, details: str = "scripted") -> ScriptedRpcError:
    """An RPC error by the name of its status, such as "UNAVAILABLE"."""
    return ScriptedRpcError(grpc.StatusCode[code], details)


class FakeChannel:
    """A channel that opens nothing, and remembers whether it was closed."""

    def __init__(self, script: Script, number: int, address: str, secure: bool | None) -> None:
        self.script = script
        #: 1 for the first channel of the script
        self.number = number
        self.address = address
        self.secure = secure
        self.closed = False

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
        channel = self

        class Method:
            def with_call(self, request: Any, timeout: float | None, **about: Any) -> Any:
                operation = channel.begin("rpc", timeout, request=request, **about)
                return operation.done.result(), operation

        return Method()

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
        setattr(self, FACE, face)
        self.face = face
        self._method = face.unary_unary(METHOD)

    def rpc(self, request: Any = None, timeout: float | None = None) -> Any:
        """One RPC. Raises grpc.RpcError or LifecycleError."""
        return self._method(request, timeout=timeout)

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
        setattr(self, FACE, face)
        self.face = face
        self._method = face.unary_unary(METHOD)

    async def rpc(self, request: Any = None, timeout: float | None = None) -> Any:
        """One RPC; see ``FakeHandler.rpc``."""
        return await self._method(request, timeout=timeout)

    async def call(self, request: Any = None, timeout: float | None = None) -> Any:
        """An RPC with retries; see ``FakeHandler.call``."""
        while True:
            try:
                return await self.rpc(request, timeout)
            except grpc.RpcError as error:
                if not await self.face.on_rpc_error(error):
                    raise


class _Scripted:
    channel_class: type[FakeChannel]

    def __init__(self, script: Script) -> None:
        self.script = script

    def check(self, config: ConnectionConfig) -> None:
        """Everything is usable."""

    def open(
        self,
        connection: ManagedConnection,
        address: str,
        secure: bool | None,
        window: tuple[float, float],
    ) -> FakeChannel:
        """A fake channel."""
        return self.script.open(self.channel_class, address, secure)

    def ask(
        self, connection: ManagedConnection, collection: Collection, timeout: float
    ) -> Future[Any]:
        """Begin a "load_state"."""
        return self.script.perform(
            "load_state", connection.address, timeout, request=collection
        ).done

    def translate(self, error: LifecycleError) -> Exception:
        """The engine's own error, as it is."""
        return error


class ScriptedTransport(_Scripted):
    """Transport of the threads flavour."""

    channel_class = _ThreadsChannel

    def equip(self, engine: Engine, connection: ManagedConnection) -> None:
        assert isinstance(engine, ConnectionManager)
        face = LifecycleChannel(engine, connection)
        connection.face, connection.handler = face, FakeHandler(face)

    def register(
        self, connection: ManagedConnection, wire: Wire, timeout: float, patient: bool
    ) -> Any:
        return wire.channel.begin("register", timeout).done.result()

    def ping(self, connection: ManagedConnection, wire: Wire, timeout: float) -> Any:
        return wire.channel.begin("ping", timeout).done.result()

    def load_state(
        self, connection: ManagedConnection, collection: Collection, timeout: float
    ) -> Any:
        return self.ask(connection, collection, timeout).result()


class AsyncScriptedTransport(_Scripted):
    """Transport of the asyncio flavour."""

    channel_class = _AsyncioChannel

    def equip(self, engine: Engine, connection: ManagedConnection) -> None:
        assert isinstance(engine, AsyncConnectionManager)
        face = AsyncLifecycleChannel(engine, connection)
        connection.face, connection.handler = face, AsyncFakeHandler(face)

    async def register(
        self, connection: ManagedConnection, wire: Wire, timeout: float, patient: bool
    ) -> Any:
        return await asyncio.wrap_future(wire.channel.begin("register", timeout).done)

    async def ping(self, connection: ManagedConnection, wire: Wire, timeout: float) -> Any:
        return await asyncio.wrap_future(wire.channel.begin("ping", timeout).done)

    async def load_state(
        self, connection: ManagedConnection, collection: Collection, timeout: float
    ) -> Any:
        return await asyncio.wrap_future(self.ask(connection, collection, timeout))
