"""A managed connection: one pooled connection, as its pool and its users see it."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from operator import attrgetter
from typing import Any

from ..audit.stream import Audit
from ..config import ConnectionConfig
from ..policy import LifecyclePolicy
from ..table import State
from . import mutex
from .facts import Seams
from .leases import Leases
from .lifecycle import Lifecycle
from .strategies import ConnectionStrategy

_ACTIVE = State.ACTIVE
_NOBODY: Any = object()


def _of(path: str, doc: str) -> Any:
    """A read-only property that stands at ``path``."""
    return property(attrgetter(path), doc=doc)


class ManagedConnection:
    """One pooled connection: it has a lifecycle, and leases of those who hold it.

    Public and read-only for users: ``handler``, ``config``, ``strategy``, ``state``,
    ``generation``, ``created_at`` and ``last_used_at`` (``time.monotonic()`` seconds),
    ``clients``, ``idle_time`` (seconds), ``has_clients``.
    """

    __slots__ = ("__weakref__", "face", "handler", "leases", "lifecycle", "owner")

    def __init__(
        self,
        config: ConnectionConfig,
        strategy: ConnectionStrategy,
        policy: LifecyclePolicy,
        audit: Audit,
        seams: Seams,
        *,
        dedicated: bool,
        on_lost: Callable[[ManagedConnection], object],
    ) -> None:
        self.leases = Leases(seams.clock, on_lost)
        self.leases.home = weakref.ref(self)
        self.lifecycle = Lifecycle(
            config, strategy, policy, audit, seams, self.leases, dedicated=dedicated
        )
        self.handler: Any = None
        #: the permanent channel object that the handler was built with
        self.face: Any = None
        #: whom a dedicated connection was made for
        self.owner: weakref.ref[object] | None = None

    id: str = _of("lifecycle.id", "What records call it; a forked child gives it another one.")
    config: ConnectionConfig = _of("lifecycle.config", "What it was made from.")
    strategy: ConnectionStrategy = _of("lifecycle.strategy", "Its endpoint's strategy.")
    state: State = _of("lifecycle.state", "Where its lifecycle is.")
    generation: int = _of("lifecycle.generation", "How many channels were swapped in so far.")
    address: str = _of("lifecycle.address", "The address in use, else the configured one.")
    dedicated: bool = _of("lifecycle.dedicated", "Does it end with those who hold it?")
    created_at: float = _of("lifecycle.created_at", "When it was made (monotonic seconds).")
    last_used_at: float = _of("lifecycle.last_used_at", "Its last checkout or RPC (likewise).")

    @property
    def clients(self) -> frozenset[object]:
        """The live clients that hold this connection."""
        return frozenset(self.leases.clients())

    @property
    def has_clients(self) -> bool:
        """Does anybody hold it (anonymous leases count)?"""
        return bool(self.leases)

    @property
    def idle_time(self) -> float:
        """Seconds since the last RPC or checkout; 0 while an RPC runs."""
        return self.lifecycle.idle_for(self.lifecycle.seams.clock())

    def __repr__(self) -> str:
        return (
            f"<ManagedConnection {self.id} {self.address} {self.state} "
            f"generation={self.generation} clients={len(self.leases)}>"
        )

    # -- leases ----------------------------------------------------------------------------

    def lease(self, client: object | None) -> bool:
        """Add ``client`` to those who hold the connection. False if it is closed.

        Raises TypeError (from ``weakref``) for a client that cannot be weakly referenced.
        """
        life = self.lifecycle
        with life.lock, life.section:
            if life.state is State.CLOSED:
                return False
            self.leases.add(client)
            return True

    def try_fast(self, client: object | None, now: float) -> bool:
        """The hit path: lease an ACTIVE connection that needs no probe, without a step."""
        life, leases = self.lifecycle, self.leases
        if life.state is not _ACTIVE:
            return False
        if now - life.last_used_at > life.idle_limit and life.stale(now):
            return False
        held = leases.held.get(0 if client is None else id(client), _NOBODY)
        if held is None or (held is not _NOBODY and held() is client):
            life.last_used_at = now  # a lease it has already: nothing to write under the mutex
            return True
        try:
            lease = leases.make(client)
        except TypeError:
            return False  # the long way says what is wrong with it
        locks, lock = mutex.here.locks, life.lock
        with lock:
            locks.append(lock)
            active = life.state is _ACTIVE
            if active:
                leases.held[0 if client is None else id(client)] = lease
                life.last_used_at = now
            locks.pop()
            return active

    def unlease(self, client: object | None) -> bool:
        """Give a lease back. True if nobody holds the connection any more.

        Without the mutex: it is one step of a dictionary, as when a client is collected.
        """
        if mutex.here.locks:
            mutex.check_outside()
        leases = self.leases
        leases.drop(client)
        return not leases.held
