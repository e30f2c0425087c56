"""pymilvus on the engine: install and uninstall, handlers, and the three raw RPCs."""

from __future__ import annotations

import importlib.metadata
import re
import socket
import threading
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

import grpc

from ..audit import stream
from ..audit.jsonl import audit_path
from ..config import ConnectionConfig, load_tls
from ..core.face import FACE
from ..core.readiness import Collection, LoadState
from ..core.transport import open_channel
from ..drivers.threads import ConnectionManager
from ..drivers.threads_channel import LifecycleChannel
from ..errors import ConfigError, LifecycleError, brief
from ..policy import LifecyclePolicy
from ..settings import Settings, choose_policy, hand_on

if TYPE_CHECKING:
    from ..core.connection import ManagedConnection
    from ..core.engine import Engine
    from ..core.wire import Wire

#: pymilvus has a connection manager to replace from 2.6.10 on; later minor versions are not
#: known to work until they were tested.
OLDEST, NEWEST = (2, 6, 10), (3, 0)
SUPPORTED = "2.6.10 and later, up to 3.0.x"

#: What gRPC says of a server that closed the connection because of its keepalive pings.
_TOO_MANY_PINGS = re.compile("too.many.pings", re.IGNORECASE)
#: What a server that is alive may answer to a probe. Anything else says that it is not well.
_ALIVE = ("UNIMPLEMENTED", "RESOURCE_EXHAUSTED", "INVALID_ARGUMENT", "NOT_FOUND")


def require_supported() -> str:
    """The installed pymilvus's version. Raises ImportError if it is missing or unsupported."""
    try:
        version = importlib.metadata.version("pymilvus")
    except importlib.metadata.PackageNotFoundError:
        raise ImportError(
            f"milvus_lifecycle needs pymilvus {SUPPORTED}: pip install 'milvus_lifecycle[pymilvus]'"
        ) from None
    numbers = tuple(int(part) for part in re.findall(r"\d+", version)[:3])
    if numbers < OLDEST or numbers[:2] > NEWEST:
        raise ImportError(
            f"pymilvus {version} is not supported; milvus_lifecycle works with pymilvus {SUPPORTED}"
        )
    return version


class _PymilvusTransport:
    """What both flavours share."""

    #: the gRPC module whose channel factories are called (their attributes, at call time)
    factories: Any

    def __init__(self) -> None:
        require_supported()
        self._calmed: WeakKeyDictionary[ManagedConnection, tuple[int, BaseException]] = (
            WeakKeyDictionary()
        )

    def check(self, config: ConnectionConfig) -> None:
        """TLS files are looked at before anything is opened."""
        load_tls(config)

    def open(
        self,
        connection: ManagedConnection,
        address: str,
        secure: bool | None,
        window: tuple[float, float],
    ) -> Any:
        """A channel by grpc's own factories."""
        timeout, calm = connection.policy.connect_timeout, self._calm(connection)
        return open_channel(
            self.factories, connection.config, address, secure, window, timeout, calm
        )

    def _calm(self, connection: ManagedConnection) -> int:
        """How many times more seldom than configured to ping.

        A server to which pings come too often cuts the connection, and with it the call that lasts
        so long. gRPC doubles the pause then, but a fresh channel would not know of it.
        """
        calm, counted = self._calmed.get(connection, (1, None))
        error = connection.last_error
        if error is not None and error is not counted and _TOO_MANY_PINGS.search(brief(error)):
            calm *= 2
            self._calmed[connection] = calm, error
        return calm

    def translate(self, error: LifecycleError) -> Exception:
        """As a MilvusException."""
        from ..drivers.pymilvus_errors import translate

        return translate(error)

    def _build(self, connection: ManagedConnection, handler_class: Any, face: Any) -> Any:
        config = connection.config
        arguments = config.get_handler_kwargs()
        arguments.pop("channel", None)
        try:
            handler = handler_class(
                uri=config.uri,
                channel=face,
                address=config.address,
                token=config.token,
                db_name=config.db_name,
                **arguments,
            )
        except (TypeError, ValueError) as error:
            raise ConfigError(f"pymilvus refuses the connection's options: {error}") from error
        setattr(handler, FACE, face)
        handler._on_rpc_error = face.on_rpc_error
        connection.handler, connection.face = handler, face
        return handler

    def _connect_request(self, connection: ManagedConnection) -> Any:
        from pymilvus.client.prepare import Prepare

        kwargs = connection.config.get_handler_kwargs()
        reserved = kwargs.get("option") or {}
        return Prepare.register_request(kwargs.get("user"), socket.gethostname(), **reserved)


def _identifier(response: Any) -> str:
    from pymilvus.client.utils import check_status

    check_status(response.status)
    return str(response.identifier)


def _says_alive(error: BaseException) -> bool:
    code = getattr(error, "code", None)
    name = getattr(code() if callable(code) else code, "name", "")
    return name in _ALIVE


class ThreadsTransport(_PymilvusTransport):
    """GrpcHandler and grpc.Channel."""

    def __init__(self) -> None:
        super().__init__()
        self.factories = grpc

    def equip(self, engine: Engine, connection: ManagedConnection) -> None:
        """A GrpcHandler on a permanent channel; builds no connection."""
        from pymilvus.client.grpc_handler import GrpcHandler

        assert isinstance(engine, ConnectionManager)
        face = LifecycleChannel(engine, connection)
        handler = self._build(connection, GrpcHandler, face)
        _watch_credentials(engine, face, handler)

    def register(
        self, connection: ManagedConnection, wire: Wire, timeout: float, patient: bool
    ) -> str:
        """A Connect call with the handler's own credentials of the moment."""
        call = _raw(self._authorized(connection, wire.channel), "Connect")
        request = self._connect_request(connection)
        return _identifier(call(request, timeout=timeout, wait_for_ready=patient))

    def ping(self, connection: ManagedConnection, wire: Wire, timeout: float) -> None:
        """GetVersion, raw: no decorator, no retry. Any answer is a sign of life."""
        try:
            call = _raw(self._authorized(connection, wire.channel), "GetVersion")
            call(_version_request(), timeout=timeout)
        except grpc.RpcError as error:
            if not _says_alive(error):
                raise

    def load_state(
        self, connection: ManagedConnection, collection: Collection, timeout: float
    ) -> LoadState:
        """GetLoadState, without decorator and retry."""
        call = _raw(self._authorized(connection, connection.face), "GetLoadState")
        return _load_state(call(**_load_state_request(collection), timeout=timeout))

    def _authorized(self, connection: ManagedConnection, channel: Any) -> Any:
        # After update_password(reset_connection=True) the handler has a new interceptor.
        interceptor = connection.handler._authorization_interceptor
        return grpc.intercept_channel(channel, interceptor) if interceptor else channel


class AsyncioTransport(_PymilvusTransport):
    """AsyncGrpcHandler and grpc.aio.Channel."""

    def __init__(self) -> None:
        super().__init__()
        import grpc.aio

        self.factories = grpc.aio

    def equip(self, engine: Engine, connection: ManagedConnection) -> None:
        """An AsyncGrpcHandler on a permanent channel; builds no connection."""
        from pymilvus.client.async_grpc_handler import AsyncGrpcHandler

        from ..drivers.aio import AsyncConnectionManager
        from ..drivers.aio_channel import AsyncLifecycleChannel

        assert isinstance(engine, AsyncConnectionManager)
        handler = self._build(
            connection, AsyncGrpcHandler, AsyncLifecycleChannel(engine, connection)
        )
        # The engine makes the Connect call, and adds the identifier that it gives.
        handler._is_channel_ready = True

    def open(
        self,
        connection: ManagedConnection,
        address: str,
        secure: bool | None,
        window: tuple[float, float],
    ) -> Any:
        """A channel by grpc.aio's own factories, with the handler's interceptors."""
        return connection.face.adopt(super().open(connection, address, secure, window))

    async def register(
        self, connection: ManagedConnection, wire: Wire, timeout: float, patient: bool
    ) -> str:
        """A Connect call; the interceptors add the credentials."""
        call = _raw(wire.channel, "Connect")
        request = self._connect_request(connection)
        return _identifier(await call(request, timeout=timeout, wait_for_ready=patient))

    async def ping(self, connection: ManagedConnection, wire: Wire, timeout: float) -> None:
        """GetVersion, raw: no decorator, no retry. Any answer is a sign of life."""
        try:
            await _raw(wire.channel, "GetVersion")(_version_request(), timeout=timeout)
        except grpc.RpcError as error:
            if not _says_alive(error):
                raise

    async def load_state(
        self, connection: ManagedConnection, collection: Collection, timeout: float
    ) -> LoadState:
        """GetLoadState, without decorator and retry."""
        call = _raw(connection.face, "GetLoadState")
        return _load_state(await call(**_load_state_request(collection), timeout=timeout))


def _raw(channel: Any, method: str) -> Any:
    """A method of Milvus without the stub's hundred others."""
    from pymilvus.grpc_gen import milvus_pb2

    request = getattr(milvus_pb2, f"{method}Request")
    response = getattr(milvus_pb2, f"{method}Response")
    return channel.unary_unary(
        f"/milvus.proto.milvus.MilvusService/{method}",
        request_serializer=request.SerializeToString,
        response_deserializer=response.FromString,
    )


def _version_request() -> Any:
    from pymilvus.grpc_gen import milvus_pb2

    return milvus_pb2.GetVersionRequest()


def _load_state_request(collection: Collection) -> dict[str, Any]:
    """Request and metadata: the database travels in both, as servers differ in where they look."""
    from pymilvus.grpc_gen import milvus_pb2

    request = milvus_pb2.GetLoadStateRequest(
        db_name=collection.database,
        collection_name=collection.name,
        partition_names=collection.partitions,
    )
    return {"request": request, "metadata": (("dbname", collection.database),)}


def _load_state(response: Any) -> LoadState:
    from pymilvus.client.utils import check_status

    check_status(response.status)
    return LoadState(response.state)


def _watch_credentials(engine: Engine, face: LifecycleChannel, handler: Any) -> None:
    """New credentials on a handler take its connection out of the shared pool."""
    original = handler._setup_authorization_interceptor

    def changed(user: Any, password: Any, token: Any) -> None:
        original(user, password, token)
        engine.registry.unshare(face.connection)

    handler._setup_authorization_interceptor = changed


# -- install --------------------------------------------------------------------------------------

_lock = threading.RLock()
_installed: tuple[object, ...] | None = None
#: whether `milvus-lifecycle run` has installed it: an install() of the program's own replaces that
_by_run = False
_originals: list[tuple[Any, str, Any]] = []


def install(policy: LifecyclePolicy | None = None, audit: str | None = None) -> None:
    """Run every MilvusClient and AsyncMilvusClient of this process on the engine.

    ``audit``: path of a JSON lines file, by default what MILVUS_LIFECYCLE_AUDIT says; ``policy``
    by default what MILVUS_LIFECYCLE_POLICY says, as a JSON object.
    Calling it again with equal arguments does nothing; with others it raises RuntimeError.
    Raises ImportError for an unsupported pymilvus and ConfigError for bad arguments.
    """
    global _installed, _by_run
    wanted = what_to_install(policy, audit)
    # Before the lock is taken: under `milvus-lifecycle run` this import installs the engine.
    from pymilvus.client import connection_manager  # noqa: F401

    with _lock:
        if _by_run and _installed != wanted:
            uninstall()
        _by_run = False
        if _installed is None:
            settings = Settings.make(*wanted)
            Settings.use(settings)
            _patch(settings)
            _installed = wanted
        elif _installed != wanted:
            raise RuntimeError(
                "milvus_lifecycle is installed with other arguments: call uninstall() first"
            )
    hand_on(*wanted)


def install_for_run() -> None:
    """What `milvus-lifecycle run` asks for, unless the program has installed something itself."""
    global _by_run
    with _lock:
        if _installed is None:
            install()
            _by_run = True


def what_to_install(policy: object, audit: object) -> tuple[LifecyclePolicy | None, str | None]:
    """Policy and audit path of ``install(policy, audit)``; raises what that would raise."""
    require_supported()
    return choose_policy(policy), audit_path(audit)


def uninstall() -> None:
    """Put pymilvus back as it was and close the engine's connections. Idempotent."""
    global _installed
    with _lock:
        if _installed is None:
            return
        for owner, name, original in reversed(_originals):
            setattr(owner, name, original)
        _originals.clear()
        _installed = None
        sinks = Settings.current().sinks
        Settings.use(None)  # first: nobody makes a manager with them after those are dropped
        ConnectionManager.drop_instance()
        _drop_async_instances()
        # Clients that the application still has keep their manager, and so its sinks.
        for sink in sinks:
            stream.end(sink, stream.EXIT_LIMIT)


def _patch(settings: Settings) -> None:
    from pymilvus.client import connection_manager as theirs

    def get_instance(cls: Any) -> Any:
        with Settings.lock:
            if Settings.current() is settings:
                return ConnectionManager.get_instance()
        return cls.get_instance()  # it was uninstalled since the caller looked this function up

    def get_async_instance(cls: Any) -> Any:
        from ..drivers.aio import AsyncConnectionManager

        with Settings.lock:
            if Settings.current() is settings:
                return AsyncConnectionManager.get_instance()
        return cls.get_instance()

    def from_uri(cls: type, uri: str, **kwargs: Any) -> ConnectionConfig:
        return ConnectionConfig.from_uri(uri, **kwargs)

    replacements = (
        (theirs.ConnectionManager, "get_instance", get_instance),
        (theirs.AsyncConnectionManager, "get_instance", get_async_instance),
        (theirs.ConnectionConfig, "from_uri", from_uri),
    )
    for owner, name, replacement in replacements:
        # The class attribute itself: whoever imported the class sees the replacement.
        _originals.append((owner, name, vars(owner)[name]))
        setattr(owner, name, classmethod(replacement))


def _drop_async_instances() -> None:
    import sys

    aio = sys.modules.get("milvus_lifecycle.drivers.aio")
    if aio is not None:
        aio.AsyncConnectionManager.drop_instances()
