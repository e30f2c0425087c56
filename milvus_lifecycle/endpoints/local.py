"""Milvus Lite inside this process: one server per path, counted across flavours and tokens."""

from __future__ import annotations

import os
import socket
import threading
from contextlib import suppress
from typing import Any

from ..core.facts import Located
from ..core.strategies import ConnectionStrategy, Locator, View
from ..errors import ConfigError, ConnectionClosed, Failure, FailureSummary
from ..fork import leak, renew_in_child
from ..table import State
from ..uri import LITE_MISSING, parse_endpoint


class _Servers:
    """Who uses which path. The lock is held while a server starts: only users of Milvus Lite
    wait for it, on threads of their own, and two starts of one path must not race."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.users: dict[str, set[int]] = {}
        #: path -> port of the parent's server: only one process may have a file open
        self.inherited: dict[str, int] = {}

    def reset_after_fork(self) -> None:
        """The parent's servers have no threads here and are not this process's to stop."""
        self.lock = threading.Lock()
        paths, self.users = list(self.users), {}
        if paths:
            known = getattr(_lite(), "_servers", {})
            for path in paths:
                entry = known.pop(path, None)
                leak(entry)
                if isinstance(entry, tuple):
                    self.inherited[path] = entry[-1]
                    _let_go_of_lock(entry[1])


_SERVERS = _Servers()
renew_in_child(_SERVERS.reset_after_fork)


def _lite() -> Any:
    try:
        from milvus_lite.server_manager import server_manager_instance
    except ImportError as error:
        raise ConfigError(LITE_MISSING, field="uri") from error
    return server_manager_instance


def _let_go_of_lock(database: Any) -> None:
    """Close the inherited descriptor: with it the file stays locked when the parent has ended."""
    descriptor = getattr(database, "_lock_fd", None)
    if descriptor is not None:
        database._lock_fd = None
        with suppress(OSError):
            os.close(descriptor)


def _answers(lite: Any, path: str) -> bool:
    """Does the server that Milvus Lite remembers for ``path`` still listen?"""
    entry = getattr(lite, "_servers", {}).get(os.path.abspath(path))
    # Not a tuple: a subprocess of an older Milvus Lite, start_and_get_uri knows better.
    return isinstance(entry, tuple) and _listens(entry[-1])


def _listens(port: int) -> bool:
    try:
        with socket.create_connection(("127.0.0.1", port), timeout=0.5):
            return True
    except OSError:
        return False


class LocalStrategy(ConnectionStrategy):
    """Milvus Lite inside this process, for a path ending in ``.db``, whose locator it is, too.

    The server starts when the first channel is opened, is restarted in a recovery if it died,
    and is released when the last connection of this process to that path is CLOSED.
    """

    name = "local"

    def locator(self, connection: View) -> Locator:
        """The process-wide server of this path."""
        return self

    def locate(self, connection: View, failure: FailureSummary | None, timeout: float) -> Located:
        """The address of the running server; starts it if it does not run or does not answer."""
        path = self.config.address
        with _SERVERS.lock:
            port = _SERVERS.inherited.get(path)
            if port is not None:
                if _listens(port):
                    return Located(f"127.0.0.1:{port}", False)
                del _SERVERS.inherited[path]
            users = _SERVERS.users.setdefault(path, set())
            silent = (Failure.TRANSIENT, Failure.DEADLINE)
            dead = failure is not None and failure.kind in silent
            lite = _lite()
            if dead and not _answers(lite, path):
                lite.release_server(path)
            uri = lite.start_and_get_uri(path)
            if uri is None:
                if not users:
                    del _SERVERS.users[path]
                # Not an error of the engine: what is raised to the caller has this for its cause.
                raise OSError("Milvus Lite cannot open it; another process may have it open")
            users.add(id(connection))
        if connection.state is State.CLOSED:
            self.release(connection)  # closed while its server started: nobody else will
            raise ConnectionClosed(address=path)
        address, secure = parse_endpoint(uri)
        return Located(address, secure)

    def release(self, connection: View) -> None:
        """Stop the server when its last connection is closed. On a thread: stopping takes time."""
        users = _SERVERS.users.get(self.config.address)
        if users is None or id(connection) not in users:
            return
        stopper = threading.Thread(
            target=self._stop_if_unused, args=(id(connection),), name="milvus-lite-stop"
        )
        try:
            stopper.start()
        except RuntimeError:  # no thread to be had, or the interpreter is ending
            self._stop_if_unused(id(connection))

    def _stop_if_unused(self, user: int) -> None:
        path = self.config.address
        with _SERVERS.lock:
            users = _SERVERS.users.get(path, set())
            users.discard(user)
            if users:
                return
            _SERVERS.users.pop(path, None)
            with suppress(Exception):
                _lite().release_server(path)
