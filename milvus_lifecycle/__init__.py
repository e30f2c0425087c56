"""Connection lifecycle engine for the Milvus Python SDK: the public names."""

from .audit.records import TransitionRecord
from .config import ConnectionConfig
from .core.connection import ManagedConnection
from .core.strategies import ConnectionStrategy, RegularStrategy
from .endpoints.global_cluster import GlobalStrategy
from .endpoints.local import LocalStrategy
from .managers import AsyncConnectionManager, ConnectionManager
from .policy import LifecyclePolicy
from .table import State, Trigger

__version__ = "0.1.0"

__all__ = [
    "AsyncConnectionManager",
    "ConnectionConfig",
    "ConnectionManager",
    "ConnectionStrategy",
    "GlobalStrategy",
    "LifecyclePolicy",
    "LocalStrategy",
    "ManagedConnection",
    "RegularStrategy",
    "State",
    "TransitionRecord",
    "Trigger",
    "install",
    "uninstall",
]


def install(policy: LifecyclePolicy | None = None, audit: str | None = None) -> None:
    """Run unmodified MilvusClient and AsyncMilvusClient on the engine. Idempotent.

    ``audit`` is a path for JSON lines. The environment variables MILVUS_LIFECYCLE_AUDIT and
    MILVUS_LIFECYCLE_POLICY (the policy's fields as a JSON object) are the defaults.
    """
    from .integrations.pymilvus import install as install_pymilvus

    install_pymilvus(policy, audit)


def uninstall() -> None:
    """Put pymilvus back and close the engine's connections. Idempotent."""
    from .integrations.pymilvus import uninstall as uninstall_pymilvus

    uninstall_pymilvus()
