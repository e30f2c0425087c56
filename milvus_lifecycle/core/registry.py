"""The registry: pool key -> shared connection, and the dedicated ones."""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable

from .connection import ManagedConnection


class Registry:
    """Every live connection of one manager. Holds its lock for a dictionary access, no longer."""

    def __init__(self) -> None:
        self._shared: dict[str, ManagedConnection] = {}
        #: The shared connection of a pool key. No lock: a dictionary read is atomic.
        self.find: Callable[[str], ManagedConnection | None] = self._shared.get
        self._dedicated: dict[int, ManagedConnection] = {}
        #: (id of the client, pool key) -> its dedicated connection
        self._owned: dict[tuple[int, str], ManagedConnection] = {}
        #: id of a dedicated connection -> where it stands in ``_owned``
        self._places: dict[int, tuple[int, str]] = {}
        self._retired = False
        # Re-entrant: the collector may run a finalizer that releases while we insert.
        self._lock = threading.RLock()

    def find_dedicated(self, key: str, client: object | None) -> ManagedConnection | None:
        """The dedicated connection that ``client`` has, or is just getting. None for nobody's."""
        if client is None:
            return None
        connection = self._owned.get((id(client), key))
        if connection is None or connection.owner is None or connection.owner() is not client:
            return None
        return connection

    def add(self, connection: ManagedConnection) -> ManagedConnection:
        """Insert; for a shared key that is taken, the connection that was there wins."""
        with self._lock:
            if self._retired and not connection.dedicated:
                # It ends with those who hold it. Calls that revive it at once find each other.
                connection.owner = weakref.ref(connection.face)
                connection.lifecycle.dedicated = True
            if connection.dedicated:
                client = connection.owner() if connection.owner is not None else None
                if client is not None:
                    known = self.find_dedicated(connection.config.key, client)
                    if known is not None:
                        return known
                    place = (id(client), connection.config.key)
                    self._owned[place], self._places[id(connection)] = connection, place
                self._dedicated[id(connection)] = connection
                return connection
            return self._shared.setdefault(connection.config.key, connection)

    def add_member(self, connection: ManagedConnection) -> None:
        """Insert one that nobody looks up: its handler leads to it."""
        with self._lock:
            self._dedicated[id(connection)] = connection

    def remove(self, connection: ManagedConnection) -> None:
        """Forget a closed connection (and only this one: its key may be taken anew)."""
        with self._lock:
            self._dedicated.pop(id(connection), None)
            place = self._places.pop(id(connection), None)
            if place is not None and self._owned.get(place) is connection:
                del self._owned[place]
            if self._shared.get(connection.config.key) is connection:
                del self._shared[connection.config.key]

    def unshare(self, connection: ManagedConnection) -> None:
        """Take a connection out of the shared pool; it lives on for those who hold it."""
        with self._lock:
            if self._shared.get(connection.config.key) is connection:
                del self._shared[connection.config.key]
                self._dedicated[id(connection)] = connection
                # Nobody else can find it: it ends with those who hold it.
                connection.lifecycle.dedicated = True

    def retire(self) -> list[ManagedConnection]:
        """Share nothing from now on. Returns every connection that there is."""
        with self._lock:
            self._retired = True
            return self.all()

    def all(self) -> list[ManagedConnection]:
        """Every connection, shared ones first."""
        with self._lock:
            return [*self._shared.values(), *self._dedicated.values()]

    def __len__(self) -> int:
        return len(self._shared) + len(self._dedicated)

    def reset_after_fork(self) -> None:
        """In the child: another thread of the parent may have held the lock."""
        self._lock = threading.RLock()
