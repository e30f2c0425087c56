"""Leases: who holds a connection. A set of clients, held weakly; never a count."""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, cast

from ..errors import ConfigError
from ..table import State
from . import mutex
from .ledger import Ledger
from .mutex import Section

if TYPE_CHECKING:
    from ..policy import LifecyclePolicy
    from .connection import ManagedConnection
    from .facts import Seams

_ACTIVE = State.ACTIVE
_NOBODY: Any = object()


class Lease(weakref.ref[object]):
    """A client's hold on a connection. Ends with the client, at the latest."""

    __slots__ = ("home", "key")

    home: weakref.ref[ManagedConnection]
    key: int


def _lost(lease: weakref.ref[object]) -> None:
    # The collector runs this anywhere, inside critical sections of this very thread too: it may
    # do no more than take the lease away, by single steps of a dictionary, and post a note. The
    # connection is not held strongly by its leases.
    lease = cast(Lease, lease)
    connection = lease.home()
    if connection is None or connection.leases.get(lease.key) is not lease:
        return
    connection.leases.pop(lease.key, None)
    if not connection.leases and not connection.loss_noted:
        # One note at a time: clients may come and go faster than anybody reads notes.
        connection.loss_noted = True
        connection.unheld_since = connection.seams.clock()
        connection.on_lost(connection)


class Leases(Ledger):
    """The part of a connection that knows its clients, and the mutex of its step."""

    __slots__ = (
        "__weakref__",
        "_home",
        "_lock",
        "_section",
        "idle_limit",
        "loss_noted",
        "on_lost",
        "strict",
    )

    def __init__(
        self,
        policy: LifecyclePolicy,
        seams: Seams,
        *,
        dedicated: bool,
        on_lost: Callable[[ManagedConnection], None],
    ) -> None:
        super().__init__(policy, seams, dedicated=dedicated)
        #: posts a note that the last client was collected
        self.on_lost = on_lost
        #: is there a note that was not read yet?
        self.loss_noted = False
        #: ``idle_threshold`` as a number
        self.idle_limit = float("inf") if policy.idle_threshold is None else policy.idle_threshold
        #: the strategy has a ``needs_probe`` of its own: it is asked each time
        self.strict = False
        self._renew_mutex()
        self._home = cast("weakref.ref[ManagedConnection]", weakref.ref(self))

    def _renew_mutex(self) -> None:
        self._lock = threading.RLock()
        self._section = Section(self._lock)

    def is_held_by(self, client: object | None) -> bool:
        """Has ``client`` a lease (None: is there an anonymous one)?"""
        held = self.leases.get(0 if client is None else id(client), _NOBODY)
        return held is None or (held is not _NOBODY and held() is client)

    def holders(self) -> list[object | None]:
        """Everybody alive who has a lease; None stands for the anonymous ones."""
        with self._lock, self._section:
            anonymous = 0 in self.leases
            held = [ref() for ref in list(self.leases.values()) if ref is not None]
        return [client for client in held if client is not None] + [None] * anonymous

    def lease(self, client: object | None) -> bool:
        """Add ``client`` to those who hold the connection. False if it is closed.

        Raises TypeError (from ``weakref``) for a client that cannot be weakly referenced.
        """
        with self._lock, self._section:
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
        locks = mutex.here.locks
        with self._lock:
            locks.append(self._lock)
            if self.state is not _ACTIVE:
                locks.pop()
                return False
            try:
                self._hold(client)
            except TypeError:
                locks.pop()
                return False  # the long way says what is wrong with it
            locks.pop()
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
        mutex.check_outside()
        leases, locks = self.leases, mutex.here.locks
        with self._lock:
            locks.append(self._lock)
            if leases.pop(0 if client is None else id(client), _NOBODY) is not _NOBODY:
                self.unheld_since = self.seams.clock()
            locks.pop()
            return not leases


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
