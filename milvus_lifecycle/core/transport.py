"""What managers need of the SDK and of gRPC: handlers, channels and three raw RPCs.

The protocol is the seam between the engine and the world: the pymilvus integration implements
it for both flavours, ``testing`` implements it without any network.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

import grpc

from ..config import load_tls

if TYPE_CHECKING:
    from ..config import ConnectionConfig
    from ..errors import LifecycleError
    from .connection import ManagedConnection
    from .engine import Engine
    from .readiness import Collection
    from .wire import Wire


class Transport(Protocol):
    """I/O and object construction. ``register``, ``ping`` and ``load_state`` wait; the rest must
    not. Closing a channel ends what waits on it, with any error."""

    def check(self, config: ConnectionConfig) -> None:
        """Raise ConfigError for what can be seen to be unusable before anything is opened."""
        ...

    def equip(self, engine: Engine, connection: ManagedConnection) -> None:
        """Give a new connection its permanent channel (``face``) and its ``handler``."""
        ...

    def open(
        self,
        connection: ManagedConnection,
        address: str,
        secure: bool | None,
        window: tuple[float, float],
    ) -> Any:
        """A channel to ``address``, not connected yet. ``window``: its reconnect backoff (s)."""
        ...

    def register(
        self, connection: ManagedConnection, wire: Wire, timeout: float, patient: bool
    ) -> Any:
        """Validate a channel with a Connect call: its identifier, or an awaitable of it."""
        ...

    def ping(self, connection: ManagedConnection, wire: Wire, timeout: float) -> Any:
        """Ask a channel whether it is alive; raises if not. None, or an awaitable of it."""
        ...

    def load_state(
        self, connection: ManagedConnection, collection: Collection, timeout: float
    ) -> Any:
        """Ask the server, through the permanent channel, how far ``collection`` is: a LoadState,
        or an awaitable of it. Raises what it answers instead."""
        ...

    def translate(self, error: LifecycleError) -> Exception:
        """The error as the SDK's users know errors."""
        ...


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


def open_channel(
    module: Any,
    config: ConnectionConfig,
    address: str,
    secure: bool | None,
    window: tuple[float, float],
    connect_timeout: float,
    calm: int = 1,
) -> Any:
    """A channel by ``module``'s factories (``grpc`` or ``grpc.aio``). Raises ConfigError.

    TLS files are read anew each time: a rotated certificate is picked up by a recovery.
    """
    options = channel_options(config, window, connect_timeout, calm)
    if not (config.secure if secure is None else secure):
        return module.insecure_channel(address, options=options)
    tls = load_tls(config)
    root = tls.root if tls is not None else None
    key = tls.key if tls is not None else None
    chain = tls.chain if tls is not None else None
    if tls is not None and tls.server_name:
        options.append(("grpc.ssl_target_name_override", tls.server_name))
    credentials = grpc.ssl_channel_credentials(
        root_certificates=root, private_key=key, certificate_chain=chain
    )
    return module.secure_channel(address, credentials, options=options)
