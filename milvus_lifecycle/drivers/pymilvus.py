"""pymilvus's handlers and channels on the engine: what both transports make, and three raw RPCs."""

from __future__ import annotations

import importlib.metadata
import re
import socket
from contextlib import suppress
from typing import Any
from weakref import WeakKeyDictionary

import grpc
import grpc.aio

from ..config import ConnectionConfig
from ..core.connection import ManagedConnection
from ..core.readiness import Collection, LoadState
from ..core.requests import Open
from ..core.transport import Transport
from ..core.wire import Wire
from ..errors import ConfigError, FailureSummary, LifecycleError, error_code
from ..tls import TlsMaterial, fingerprint, load_tls

#: pymilvus has a connection manager to replace from 2.6.10 on; later minor versions are not
#: known to work until they were tested.
OLDEST, NEWEST = (2, 6, 10), (3, 0)
SUPPORTED = "2.6.10 and later, up to 3.0.x"
#: the newest patch of each that was tested
TESTED: dict[tuple[int, ...], int] = {(2, 6): 17, (3, 0): 2}


def require_supported() -> str:
    """The installed pymilvus's version. Raises ImportError if it is missing or unsupported."""
    try:
        version = importlib.metadata.version("pymilvus")
    except importlib.metadata.PackageNotFoundError:
        raise ImportError(
            f"milvus_lifecycle needs pymilvus {SUPPORTED}: pip install 'milvus_lifecycle[pymilvus]'"
        ) from None
    numbers = _numbers(version)
    if numbers < OLDEST or numbers[:2] > NEWEST:
        raise ImportError(
            f"pymilvus {version} is not supported; milvus_lifecycle works with pymilvus {SUPPORTED}"
        )
    return version


def load_pymilvus() -> None:
    """Import it now, which takes most of a second, and not with the first connection."""
    require_supported()
    import pymilvus  # noqa: F401


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in re.findall(r"\d+", version)[:3])


def untested() -> str | None:
    """What is to be said of a supported pymilvus that is newer than any that was tested."""
    version = require_supported()
    numbers = _numbers(version)
    if numbers[2:] <= (TESTED.get(numbers[:2], -1),):
        return None
    tested = " and ".join(".".join(map(str, (*minor, patch))) for minor, patch in TESTED.items())
    return (
        f"pymilvus {version} is newer than those that milvus_lifecycle was tested with, {tested}: "
        "what it does with connections of its own accord may be missing"
    )


#: What gRPC says of a server that closed the connection because of its keepalive pings.
_TOO_MANY_PINGS = re.compile("too.many.pings", re.IGNORECASE)
#: What a server that is alive may answer to a probe. Anything else says that it is not well.
_ALIVE = ("UNIMPLEMENTED", "RESOURCE_EXHAUSTED", "INVALID_ARGUMENT", "NOT_FOUND")


#: what pymilvus gives its own channels, and two more; the user's grpc_options override these
_DEFAULT_OPTIONS: dict[str, int] = {
    "grpc.max_send_message_length": -1,
    "grpc.max_receive_message_length": -1,
    "grpc.enable_retries": 1,
    "grpc.keepalive_time_ms": 10_000,
    "grpc.keepalive_timeout_ms": 5_000,
    "grpc.keepalive_permit_without_calls": 1,
    # Not pymilvus's. grpcio 1.85.1 lets its pings time out after this (60 s by default) and not
    # after keepalive_timeout_ms: a half-open connection held its calls for a minute.
    "grpc.http2.ping_timeout_ms": 20_000,
    # Not pymilvus's either. gRPC asks for a name's address at most every 30 s, and an outage may
    # be over because the name has another one. A channel that is connected asks for nothing.
    "grpc.dns_min_time_between_resolutions_ms": 500,
}


#: gRPC's servers stand a ping every five minutes, by default; twice that is calm enough.
_CALMEST_MS = 600_000


def channel_options(
    config: ConnectionConfig, window: tuple[float, float], connect_timeout: float, calm: int = 1
) -> list[tuple[str, Any]]:
    """Channel arguments: pymilvus's, the engine's reconnect backoff, the user's over both.

    ``calm``: how many times longer than that the pause between two keepalive pings is.
    The local subchannel pool is not negotiable: without it a fresh channel shares the old one's
    TCP connection and its backoff (ready 1 to 16 s late after an outage; with it, 2 to 6 ms).
    """
    options: dict[str, Any] = dict(_DEFAULT_OPTIONS)
    initial, maximum = window
    options["grpc.initial_reconnect_backoff_ms"] = max(1, round(initial * 1000))
    options["grpc.max_reconnect_backoff_ms"] = max(1, round(maximum * 1000))
    # How long one TCP connect with its handshakes may take; gRPC's own default is 20 s.
    options["grpc.min_reconnect_backoff_ms"] = max(1, round(connect_timeout * 1000))
    options.update(config.get_handler_kwargs().get("grpc_options") or {})
    if calm > 1:
        pause = options["grpc.keepalive_time_ms"]
        options["grpc.keepalive_time_ms"] = max(pause, min(pause * calm, _CALMEST_MS))
    options["grpc.use_local_subchannel_pool"] = 1
    return list(options.items())


class _PymilvusTransport:
    """What both flavours share."""

    #: the gRPC module whose channel factories are called (their attributes, at call time)
    factories: Any

    def __init__(self) -> None:
        require_supported()
        self.interceptors: tuple[Any, ...] = ()
        # By permanent channel, which a connection has in common with the one that it was before.
        self._calmed: WeakKeyDictionary[Any, tuple[int, FailureSummary]] = WeakKeyDictionary()
        #: channel -> fingerprint of the TLS files that it was opened with, if it was with any
        self._seen: WeakKeyDictionary[Any, object] = WeakKeyDictionary()

    def open(self, request: Open) -> Any:
        """A channel by grpc's own factories, with interceptors. Raises ConfigError.

        TLS files are read anew each time; a change while they are read is one for `outdated`.
        """
        connection, config = request.connection, request.connection.config
        timeout = connection.lifecycle.policy.connect_timeout
        options = channel_options(config, request.window, timeout, self._calm(connection))
        secure = config.secure if request.secure is None else request.secure
        if not secure or connection.face.unused:
            channel = self.factories.insecure_channel(request.address, options=options)
            return self._intercepted(channel, connection)
        seen = fingerprint(config)
        tls = load_tls(config) or TlsMaterial()
        if tls.server_name:
            options.append(("grpc.ssl_target_name_override", tls.server_name))
        credentials = grpc.ssl_channel_credentials(
            root_certificates=tls.root, private_key=tls.key, certificate_chain=tls.chain
        )
        channel = self.factories.secure_channel(request.address, credentials, options=options)
        channel = self._intercepted(channel, connection)
        if seen:
            self._seen[channel] = seen
        return channel

    def _intercepted(self, channel: Any, connection: ManagedConnection) -> Any:
        """The channel that is used."""
        raise NotImplementedError

    def outdated(self, connection: ManagedConnection, wire: Wire) -> bool:
        """Have the TLS files changed since the channel was opened? No while they are unusable."""
        config, seen = connection.config, self._seen.get(wire.channel)
        if seen is None or seen == fingerprint(config):
            return False
        try:
            load_tls(config)
        except ConfigError:
            return False  # half written, or the key is not there yet
        return True

    def _calm(self, connection: ManagedConnection) -> int:
        """How many times more seldom than configured to ping.

        A server to which pings come too often cuts the connection, and with it the call that lasts
        so long. gRPC doubles the pause then, but a fresh channel would not know of it.
        """
        calm, counted = self._calmed.get(connection.face, (1, None))
        failure = connection.lifecycle.last_failure
        if failure is None or failure is counted:
            return calm
        if _TOO_MANY_PINGS.search(failure.text):
            calm *= 2
            self._calmed[connection.face] = calm, failure
        return calm

    def translate(self, error: LifecycleError) -> Exception:
        """As a MilvusException."""
        from .pymilvus_errors import translate

        return translate(error)

    def _build(self, connection: ManagedConnection, handler_class: Any, channel: Any) -> Any:
        from pymilvus.client import connection_manager

        config = connection.config
        # Newer than 3.0.2: what pymilvus's own manager says besides to a handler that is pooled.
        options = getattr(
            connection_manager, "_pooled_handler_kwargs", type(config).get_handler_kwargs
        )
        try:
            handler = handler_class(
                uri=config.uri,
                channel=channel,
                address=config.address,
                token=config.token,
                db_name=config.db_name,
                **options(config),
            )
        except (TypeError, ValueError) as error:
            raise ConfigError(f"pymilvus refuses the connection's options: {error}") from error
        if any(each.__module__.startswith("pymilvus.") for each in type(handler).__mro__):
            load_tls(config)
            handler._on_rpc_error = channel.on_rpc_error
        else:
            channel.unused = True  # a mock, in somebody's tests
        return handler

    def _connect_request(self, connection: ManagedConnection) -> Any:
        from pymilvus.client.prepare import Prepare

        kwargs = connection.config.get_handler_kwargs()
        reserved = kwargs.get("option") or {}
        return Prepare.register_request(kwargs.get("user"), socket.gethostname(), **reserved)


def _registered(connection: ManagedConnection, response: Any) -> str:
    """The identifier that a Connect call was answered. The handler's telemetry hears of it."""
    from pymilvus.client.utils import check_status

    check_status(response.status)
    # Newer than 3.0.2. pymilvus calls it wherever a handler connects: an asyncio handler has no
    # stub before, and what is still awaited of the server before this one counts no more.
    rebind = getattr(connection.handler, "_rebind_telemetry_stub", None)
    if rebind is not None:
        from pymilvus.grpc_gen.milvus_pb2_grpc import ClientTelemetryServiceStub

        with suppress(Exception):  # no connection fails because of its telemetry
            rebind(ClientTelemetryServiceStub(connection.handler._final_channel))
    return str(response.identifier)


class ThreadsTransport(_PymilvusTransport):
    """GrpcHandler and grpc.Channel."""

    factories = grpc

    def _intercepted(self, channel: Any, connection: ManagedConnection) -> Any:
        """With the interceptors of ``install``."""
        return grpc.intercept_channel(channel, *self.interceptors) if self.interceptors else channel

    def make_handler(self, connection: ManagedConnection, channel: Any) -> Any:
        """A GrpcHandler; builds no connection."""
        from pymilvus.client.grpc_handler import GrpcHandler

        handler = self._build(connection, GrpcHandler, channel)
        if not channel.unused:
            _watch_credentials(handler, channel)
        return handler

    def register(
        self, connection: ManagedConnection, wire: Wire, timeout: float, patient: bool
    ) -> str:
        """A Connect call with the handler's own credentials of the moment."""
        if connection.face.unused:
            connection.handler._wait_for_channel_ready(timeout=timeout)  # as pymilvus does
            return ""
        call, _ = _raw(self._authorized(connection, wire.channel), "Connect")
        request = self._connect_request(connection)
        response = call(request, timeout=timeout, wait_for_ready=patient)
        return _registered(connection, response)

    def ping(self, connection: ManagedConnection, wire: Wire, timeout: float) -> None:
        """GetVersion, raw: no decorator, no retry. Any answer is a sign of life."""
        if connection.face.unused:
            return
        try:
            call, request = _raw(self._authorized(connection, wire.channel), "GetVersion")
            call(request(), timeout=timeout)
        except grpc.RpcError as error:
            if error_code(error) not in _ALIVE:
                raise

    def load_state(
        self, connection: ManagedConnection, collection: Collection, timeout: float
    ) -> LoadState:
        """GetLoadState, without decorator and retry."""
        call, request = _raw(self._authorized(connection, connection.face), "GetLoadState")
        return _load_state(call(**_load_state_request(request, collection), timeout=timeout))

    def _authorized(self, connection: ManagedConnection, channel: Any) -> Any:
        # After update_password(reset_connection=True) the handler has a new interceptor.
        interceptor = connection.handler._authorization_interceptor
        return grpc.intercept_channel(channel, interceptor) if interceptor else channel


class AsyncioTransport(_PymilvusTransport):
    """AsyncGrpcHandler and grpc.aio.Channel."""

    factories = grpc.aio

    def make_handler(self, connection: ManagedConnection, channel: Any) -> Any:
        """An AsyncGrpcHandler; builds no connection."""
        from pymilvus.client.async_grpc_handler import AsyncGrpcHandler

        handler = self._build(connection, AsyncGrpcHandler, channel)
        # The engine makes the Connect call, and adds the identifier that it gives.
        handler._is_channel_ready = True
        return handler

    def _intercepted(self, channel: Any, connection: ManagedConnection) -> Any:
        """With the handler's interceptors and, nearer to the wire, those of ``install``."""
        return connection.face.adopt(channel, self.interceptors)

    async def register(
        self, connection: ManagedConnection, wire: Wire, timeout: float, patient: bool
    ) -> str:
        """A Connect call; the interceptors add the credentials."""
        if connection.face.unused:
            await connection.handler.ensure_channel_ready(timeout=timeout)  # as pymilvus does
            return ""
        call, _ = _raw(wire.channel, "Connect")
        request = self._connect_request(connection)
        response = await call(request, timeout=timeout, wait_for_ready=patient)
        return _registered(connection, response)

    async def ping(self, connection: ManagedConnection, wire: Wire, timeout: float) -> None:
        """GetVersion, raw: no decorator, no retry. Any answer is a sign of life."""
        if connection.face.unused:
            return
        try:
            call, request = _raw(wire.channel, "GetVersion")
            await call(request(), timeout=timeout)
        except grpc.RpcError as error:
            if error_code(error) not in _ALIVE:
                raise

    async def load_state(
        self, connection: ManagedConnection, collection: Collection, timeout: float
    ) -> LoadState:
        """GetLoadState, without decorator and retry."""
        call, request = _raw(connection.face, "GetLoadState")
        return _load_state(await call(**_load_state_request(request, collection), timeout=timeout))


#: by flavour
TRANSPORTS: dict[str, type[Transport]] = {"threads": ThreadsTransport, "asyncio": AsyncioTransport}


def _raw(channel: Any, method: str) -> tuple[Any, Any]:
    """A method of Milvus without the stub's hundred others, and the class of its requests."""
    from pymilvus.grpc_gen import milvus_pb2

    request = getattr(milvus_pb2, f"{method}Request")
    response = getattr(milvus_pb2, f"{method}Response")
    call = channel.unary_unary(
        f"/milvus.proto.milvus.MilvusService/{method}",
        request_serializer=request.SerializeToString,
        response_deserializer=response.FromString,
    )
    return call, request


def _load_state_request(request: Any, collection: Collection) -> dict[str, Any]:
    """Request and metadata: the database travels in both, as servers differ in where they look."""
    asked = request(
        db_name=collection.database,
        collection_name=collection.name,
        partition_names=collection.partitions,
    )
    return {"request": asked, "metadata": (("dbname", collection.database),)}


def _load_state(response: Any) -> LoadState:
    from pymilvus.client.utils import check_status

    check_status(response.status)
    return LoadState(response.state)


def _watch_credentials(handler: Any, channel: Any) -> None:
    """New credentials on a handler take its connection out of the shared pool."""
    original = handler._setup_authorization_interceptor

    def changed(user: Any, password: Any, token: Any) -> None:
        original(user, password, token)
        channel.credentials_changed()

    handler._setup_authorization_interceptor = changed
