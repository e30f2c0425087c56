"""pymilvus on the engine: install and uninstall."""

from __future__ import annotations

import sys
import threading
import warnings
from contextlib import suppress
from dataclasses import replace
from typing import Any

from ..audit import stream
from ..audit.jsonl import audit_path
from ..audit.logs import warn
from ..audit.stream import Listener
from ..config import ConnectionConfig
from ..drivers.pymilvus import require_supported, untested
from ..managers import (
    NO_HOOKS,
    AsyncConnectionManager,
    ConnectionManager,
    Hooks,
    Settings,
    choose_policy,
    hand_on,
)
from ..policy import LifecyclePolicy

_lock = threading.RLock()
_installed: tuple[object, ...] | None = None
#: whether `milvus-lifecycle run` has installed it: an install() of the program's own replaces that
_by_run = False
#: what every install() listens with besides its own listeners
_around: tuple[Listener, ...] = ()
_originals: list[tuple[Any, str, Any]] = []

_NO_GEVENT = """gevent has patched this process, but not gRPC: every call will stop all greenlets, \
and a server that is away the whole program. Before install():
    from grpc.experimental import gevent
    gevent.init_gevent()"""

#: said once of a process
_hints = [
    "this program uses pymilvus's ORM (connections, Collection, utility), which is not on "
    "milvus_lifecycle: its calls fail when their server restarts; those of MilvusClient and "
    "AsyncMilvusClient do not"
]


class _Used:
    """A method, and a hint for the first who asks an object for it.

    Not a function around it: pymilvus's own warning of the method names the line that called it.
    """

    def __init__(self, method: Any) -> None:
        self.method = method

    def __get__(self, instance: object, owner: type) -> Any:
        if instance is not None:
            with suppress(IndexError):  # it was said
                warn(_hints.pop())
        return self.method.__get__(instance, owner)


def install(
    policy: LifecyclePolicy | None = None, audit: str | None = None, hooks: Hooks = NO_HOOKS
) -> None:
    """Run every MilvusClient and AsyncMilvusClient of this process on the engine.

    ``audit``: path of a JSON lines file, by default what MILVUS_LIFECYCLE_AUDIT says; ``policy``
    by default what MILVUS_LIFECYCLE_POLICY says, as a JSON object, with the fields that have a
    variable of their own.
    Calling it again with equal arguments does nothing; with others it raises RuntimeError.
    Raises ImportError for an unsupported pymilvus and ConfigError for bad arguments. Warns
    (RuntimeWarning) of a pymilvus that is newer than those tested, and of gevent without gRPC's.
    """
    global _installed, _by_run
    own = (listener for listener in hooks.listeners if listener not in _around)
    hooks = replace(hooks, listeners=(*_around, *own))
    wanted = (*what_to_install(policy, audit), hooks)
    # Before the lock is taken: under `milvus-lifecycle run` this import installs the engine.
    from pymilvus.client import connection_manager  # noqa: F401

    with _lock:
        if _by_run and _installed != wanted:
            _put_back()
        _by_run = False
        if _installed is None:
            _warn()
            settings = Settings.make(*wanted)
            Settings.use(settings)
            settings.extend()
            _patch(settings)
            _installed = wanted
        elif _installed != wanted:
            raise RuntimeError(
                "milvus_lifecycle is installed with other arguments: call uninstall() first"
            )
    hand_on(*wanted[:2])


def _warn() -> None:
    monkey: Any = sys.modules.get("gevent.monkey")
    greenlets = monkey is not None and monkey.is_module_patched("socket")
    for complaint in (
        untested(),
        _NO_GEVENT if greenlets and "grpc.experimental.gevent" not in sys.modules else None,
    ):
        if complaint is not None:
            warnings.warn(complaint, RuntimeWarning, stacklevel=4)  # of ml.install()


def install_for_run() -> None:
    """What `milvus-lifecycle run` asks for, unless the program has installed something itself."""
    global _by_run
    with _lock:
        if _installed is None:
            install()
            _by_run = True


def install_around(listeners: tuple[Listener, ...]) -> None:
    """The same for what is around a program and listens: an install() of its own keeps that."""
    global _by_run, _around
    with _lock:
        if _installed is not None and not _by_run:
            raise RuntimeError(
                "milvus_lifecycle is installed: give this to its install(listeners=...) instead"
            )
        _around = listeners
    install()
    _by_run = True


def what_to_install(policy: object, audit: object) -> tuple[LifecyclePolicy | None, str | None]:
    """Policy and audit path of ``install(policy, audit)``; raises what that would raise."""
    require_supported()
    return choose_policy(policy), audit_path(audit)


def uninstall() -> None:
    """Put pymilvus back as it was and close the engine's connections. Idempotent."""
    global _around
    with _lock:
        _around = ()
        _put_back()


def _put_back() -> None:
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
        AsyncConnectionManager.drop_instances()
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
        with Settings.lock:
            if Settings.current() is settings:
                return AsyncConnectionManager.get_instance()
        return cls.get_instance()

    def from_uri(cls: type, uri: str, **kwargs: Any) -> ConnectionConfig:
        return ConnectionConfig.from_uri(uri, **kwargs)

    def reset(cls: Any) -> None:
        """For tests, as pymilvus says: its own close every connection by it."""
        ConnectionManager.drop_instance()

    def reset_async(cls: Any) -> None:
        AsyncConnectionManager.drop_instances()

    replacements = (
        (theirs.ConnectionManager, "get_instance", get_instance),
        (theirs.ConnectionManager, "_reset_instance", reset),
        (theirs.AsyncConnectionManager, "get_instance", get_async_instance),
        (theirs.AsyncConnectionManager, "_reset_instance", reset_async),
        (theirs.ConnectionConfig, "from_uri", from_uri),
    )
    for owner, name, replacement in replacements:
        # The class attribute itself: whoever imported the class sees the replacement.
        _replace(owner, name, classmethod(replacement))
    orm = getattr(sys.modules.get("pymilvus.orm.connections"), "Connections", None)
    for name in ("connect", "_fetch_handler"):
        if _hints and hasattr(orm, name):
            _replace(orm, name, _Used(vars(orm)[name]))


def _replace(owner: Any, name: str, replacement: object) -> None:
    _originals.append((owner, name, vars(owner)[name]))
    setattr(owner, name, replacement)
