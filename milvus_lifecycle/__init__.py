"""Connection lifecycle engine for the Milvus Python SDK: the public names."""

from collections.abc import Callable, Iterable
from typing import Any

from .audit.records import TransitionRecord
from .config import ConnectionConfig
from .core.checkout import budget
from .core.connection import ManagedConnection
from .core.facts import Located
from .core.strategies import ConnectionStrategy, RegularStrategy
from .endpoints.global_cluster import GlobalStrategy
from .endpoints.local import LocalStrategy
from .errors import (
    ConfigError,
    ConnectFailed,
    ConnectionClosed,
    DeadlineExceeded,
    LifecycleError,
    LoopMismatch,
    PermanentFailure,
    RecoveryExhausted,
    TopologyError,
    UnknownHandler,
)
from .integrations.health import status, wait_ready, wait_ready_async
from .managers import AsyncConnectionManager, ConnectionManager, Hooks
from .policy import LifecyclePolicy
from .table import State, Trigger

__version__ = "0.1.0"

__all__ = [
    "AsyncConnectionManager",
    "ConfigError",
    "ConnectFailed",
    "ConnectionClosed",
    "ConnectionConfig",
    "ConnectionManager",
    "ConnectionStrategy",
    "DeadlineExceeded",
    "GlobalStrategy",
    "LifecycleError",
    "LifecyclePolicy",
    "LocalStrategy",
    "Located",
    "LoopMismatch",
    "ManagedConnection",
    "PermanentFailure",
    "RecoveryExhausted",
    "RegularStrategy",
    "State",
    "TopologyError",
    "TransitionRecord",
    "Trigger",
    "UnknownHandler",
    "budget",
    "install",
    "status",
    "uninstall",
    "wait_ready",
    "wait_ready_async",
]


def install(
    policy: LifecyclePolicy | None = None,
    audit: str | None = None,
    *,
    listeners: Iterable[Callable[[TransitionRecord], object]] = (),
    strategy_for: Callable[[ConnectionConfig], ConnectionStrategy | None] | None = None,
    interceptors: Iterable[Any] = (),
) -> None:
    """Run unmodified MilvusClient and AsyncMilvusClient on the engine. Idempotent.

    ``audit`` is a path for JSON lines. The environment variables MILVUS_LIFECYCLE_AUDIT and
    MILVUS_LIFECYCLE_POLICY (the policy's fields as a JSON object), or one for each field, such as
    MILVUS_LIFECYCLE_FIRST_CONNECT_PATIENCE, are the defaults.

    The rest is for every manager of ``get_instance``, of whichever loop: ``listeners`` are
    called with each record (and ``wait_ended``, if they have one, with each call that has waited:
    ``address``, ``seconds``, ``served``), ``strategy_for`` may choose a strategy for a
    configuration (None: the engine does), ``interceptors`` are gRPC's client interceptors, of
    either flavour, nearest to the wire. What a listener raises is counted; what ``strategy_for``
    raises fails the client that is made; what an interceptor raises fails its RPC. Raises
    ConfigError.
    """
    from .integrations.pymilvus import install as install_pymilvus

    install_pymilvus(policy, audit, Hooks(listeners, strategy_for, interceptors))


def uninstall() -> None:
    """Put pymilvus back and close the engine's connections. Idempotent."""
    from .integrations.pymilvus import uninstall as uninstall_pymilvus

    uninstall_pymilvus()
