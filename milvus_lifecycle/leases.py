"""Leases: who holds a connection. A set of clients, held weakly; never a count."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, cast

from . import mutex
from .errors import ConfigError
from .ledger import Ledger
from .mutex import Mutex
from .table import State

if TYPE_CHECKING:
    from .connection import ManagedConnection
    from .facts import Seams
    from .policy import LifecyclePolicy

_ACTIVE = State.ACTIVE
_NOBODY: Any = object()


class Lease(weakref.ref[object]):
    """A client's hold on a connection. Ends with the client, at the latest."""

    __slots__ = ("home", "key")

    home: weakref.ref[ManagedConnection]
    key: int


def _lost(lease: weakref.ref[object]) -> None:
    # The collector runs this anywhere, inside critical sections of this very thread too: it may
    # do no more than post a note. The connection is not held strongly by its leases.
    lease = cast(Lease, lease)
    connection = lease.home()
    if connection is not None:
        connection.on_lost(connection, lease.key, lease)


class Leases(Ledger):
    """The part of a connection that knows its clients, and the mutex of its step."""

    __slots__ = ("__weakref__", "_home", "_lock", "_mutex", "idle_limit", "on_lost", "strict")

    def __init__(
        self,
        policy: LifecyclePolicy,
        seams: Seams,
        *,
        dedicated: bool,
        on_lost: Callable[[ManagedConnection, int, weakref.ref[object]], None],
    ) -> None:
        super().__init__(policy, seams, dedicated=dedicated)
        self.on_lost = on_lost
        #: ``idle_threshold`` as a number
        self.idle_limit = float("inf") if policy.idle_threshold is None else policy.idle_threshold
        #: the strategy has a ``needs_probe`` of its own: it is asked each time
        self.strict = False
        self._renew_mutex()
        self._home = cast("weakref.ref[ManagedConnection]", weakref.ref(self))

    def _renew_mutex(self) -> None:
        self._mutex = Mutex()
        self._lock = self._mutex.lock

    def is_held_by(self, client: object | None) -> bool:
        """Has ``client`` a lease (None: is there an anonymous one)?"""
        held = self.leases.get(0 if client is None else id(client), _NOBODY)
        return held is None or (held is not _NOBODY and held() is client)

    def holders(self) -> list[object | None]:
        """Everybody alive who has a lease; None stands for the anonymous ones."""
        with self._mutex:
            anonymous = 0 in self.leases
            held = [ref() for ref in self.leases.values() if ref is not None]
        return [client for client in held if client is not None] + [None] * anonymous

    def lease(self, client: object | None) -> bool:
        """Add ``client`` to those who hold the connection. False if it is closed.

        Raises TypeError (from ``weakref``) for a client that cannot be weakly referenced.
        """
        with self._mutex:
            if self.state is State.CLOSED:
                return False
            self._hold(client)
            return True

    def try_fast(self, client: object | None, now: float) -> bool:
        """The hit path: lease an ACTIVE connection that needs no probe, without a step."""
        if self.state is not _ACTIVE:
            return False
        if now - self.last_used_at > self.idle_limit and (self.strict or self.idle_too_long(now)):
            return False
        held = self.leases.get(0 if client is None else id(client), _NOBODY)
        if held is None or (held is not _NOBODY and held() is client):
            self.last_used_at = now  # a lease it has already: nothing to write under the mutex
            return True
        here = mutex.here
        with self._lock:
            here.depth += 1
            try:
                if self.state is not _ACTIVE:
                    return False
                self._hold(client)
            except TypeError:
                return False  # the long way says what is wrong with it
            finally:
                here.depth -= 1
            self.last_used_at = now
            return True

    def _hold(self, client: object | None) -> None:
        if client is None:
            self.leases[0] = None
            return
        key = id(client)
        held = self.leases.get(key)
        if held is None or held() is not client:
            lease = Lease(client, _lost)
            lease.home, lease.key = self._home, key
            self.leases[key] = lease

    def touch(self) -> None:
        """A checkout was served: a use, like an RPC."""
        self.last_used_at = self.seams.clock()

    def unlease(self, client: object | None) -> bool:
        """Give a lease back. True if nobody holds the connection any more."""
        return self._drop(0 if client is None else id(client), None)

    def lose(self, key: int, ref: weakref.ref[object]) -> bool:
        """The collector took a client. True if nobody holds the connection any more."""
        return self._drop(key, ref)

    def _drop(self, key: int, ref: weakref.ref[object] | None) -> bool:
        here, leases = mutex.here, self.leases
        if here.depth:
            raise mutex.Reentered
        with self._lock:
            here.depth += 1
            try:
                held = leases.get(key, _NOBODY)
                # By identity: weak references to dead clients compare equal to nothing else.
                if held is not _NOBODY and (ref is None or held is ref):
                    del leases[key]
                    if not leases:
                        self.unheld_since = self.seams.clock()
                return not leases
            finally:
                here.depth -= 1


def check_client(client: object | None) -> None:
    """Raise ConfigError for a client whose lease could never end by itself."""
    if client is None:
        return
    try:
        weakref.ref(client)
    except TypeError:
        raise ConfigError(
            f"client of type {type(client).__name__} cannot be weakly referenced, so its lease "
            "could never end by itself; pass an instance of an ordinary class (with __weakref__)",
            field="client",
        ) from None
