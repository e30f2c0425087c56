"""Leases: who holds a connection. A set of clients, held weakly; never a count."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Any, cast

from ..errors import ConfigError

_NOBODY: Any = object()


class Lease(weakref.ref[object]):
    """A client's hold on a connection. Ends with the client, at the latest."""

    __slots__ = ("home", "key")

    home: weakref.ref[Any]
    key: int


def _lost(lease: weakref.ref[object]) -> None:
    # The collector runs this anywhere, inside critical sections of this very thread too: it may
    # do no more than take the lease away, by single steps of a dictionary, and post a note. The
    # connection is not held strongly by its leases.
    lease = cast(Lease, lease)
    connection = lease.home()
    if connection is None:
        return
    leases: Leases = connection.leases
    if leases.held.get(lease.key) is not lease:
        return
    leases.held.pop(lease.key, None)
    if not leases.held and not leases.loss_noted:
        # One note at a time: clients may come and go faster than anybody reads notes.
        leases.loss_noted = True
        leases.unheld_since = leases.clock()
        leases.on_lost(connection)


class Leases:
    """The leases of one connection. Whoever adds one holds its mutex."""

    __slots__ = ("clock", "held", "home", "loss_noted", "on_lost", "unheld_since")

    #: the connection
    home: weakref.ref[Any]

    def __init__(self, clock: Callable[[], float], on_lost: Callable[[Any], object]) -> None:
        self.clock = clock
        #: id of a client -> its lease; 0 -> None for the anonymous one
        self.held: dict[int, weakref.ref[object] | None] = {}
        self.unheld_since = clock()
        #: posts a note that the last client of a connection was collected
        self.on_lost = on_lost
        #: is there a note that was not read yet?
        self.loss_noted = False

    def __len__(self) -> int:
        return len(self.held)

    def is_held_by(self, client: object | None) -> bool:
        """Has ``client`` a lease (None: is there an anonymous one)?"""
        held = self.held.get(0 if client is None else id(client), _NOBODY)
        return held is None or (held is not _NOBODY and held() is client)

    def clients(self) -> list[object]:
        """Everybody alive who has a lease in his own name."""
        held = [ref() for ref in list(self.held.values()) if ref is not None]
        return [client for client in held if client is not None]

    def holders(self) -> list[object | None]:
        """Everybody alive who has a lease; None stands for the anonymous ones."""
        return [*self.clients(), *([None] if 0 in self.held else ())]

    def make(self, client: object | None) -> Lease | None:
        """A lease of ``client`` that is not among those held yet.

        Raises TypeError (from ``weakref``) for one that cannot be weakly referenced.
        """
        if client is None:
            return None
        lease = Lease(client, _lost)
        lease.home, lease.key = self.home, id(client)
        return lease

    def add(self, client: object | None) -> None:
        """Lease it to ``client``, unless it has it already. Raises as ``make``."""
        if not self.is_held_by(client):
            self.held[0 if client is None else id(client)] = self.make(client)

    def drop(self, client: object | None) -> None:
        """End the lease of ``client``, if there is one."""
        key = 0 if client is None else id(client)
        if self.held.pop(key, _NOBODY) is not _NOBODY and not self.held:
            self.unheld_since = self.clock()


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
