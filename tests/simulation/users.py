"""The users of a schedule: threads or tasks that check out, call, release, vanish and close.

What a user does is a generator that both flavours follow: it yields how long to wait (seconds),
or a ``Call`` to make, and is sent what came of it.
"""

from __future__ import annotations

from collections.abc import Callable, Generator
from functools import partial
from random import Random
from typing import Any, NamedTuple

from milvus_lifecycle import ConnectionConfig
from tests.simulation import laws
from tests.simulation.actors import CONFIG, Client
from tests.simulation.weather import GAPS

# A revived connection does not know of an anonymous lease beside those of clients.
GUESTS = ConnectionConfig.from_uri("http://guests:19530")
OTHER = ConnectionConfig.from_uri("http://other:19530")
_ACTS = (
    *("rpc",) * 3,
    *("call",) * 6,
    *("release",) * 3,
    *("vanish",) * 2,
    "checkout",
    "borrow",
    "close",
    "close_all",
    "stats",
)
_PAUSES = (0.0, 0.0, *GAPS)
_LIMITS = (None, None, 0.25, 0.5, 1.0, 2.0)


class Call(NamedTuple):
    """Something that may wait. ``limit`` (seconds) is the deadline that its caller set."""

    what: str
    make: Callable[[], Any]
    limit: float | None = None


Life = Generator[float | Call, Any, None]


class User:
    """One thread or task. Notes what it expects to hold, for the laws."""

    def __init__(self, world: Any, name: str, number: int, rng: Random) -> None:
        self.world, self.name, self.rng = world, name, rng
        self.number = number
        #: at most one: an anonymous lease has no name of its own
        self.anonymous = number == 0 and rng.random() < 0.2
        #: ... given back by its client's finalizer, if that forgets to release
        self.finalizer = self.anonymous and rng.random() < 0.5
        self.dedicated = rng.random() < 0.15
        self.config = OTHER if rng.random() < 0.1 else CONFIG
        if self.anonymous:
            self.config = GUESTS
        self.acts = [rng.choice(_ACTS) for _ in range(rng.choice((1, 2, 2, 3, 4)))]
        self.client: Client | None = None
        self.handler: Any = None
        self.face: Any = None
        self.holds = False
        self.busy = False
        self.done = False

    @property
    def lease(self) -> int:
        """Under which key a connection knows it."""
        return 0 if self.anonymous else id(self.client)

    def live(self) -> Life:
        """Everything that it does."""
        yield self.rng.choice(_PAUSES)
        yield from self._act("checkout")
        for act in self.acts:
            yield self.rng.choice(_PAUSES)
            yield from self._act(act if self.holds else "checkout")
        self.done = True

    def leave(self) -> Life:
        """At the end, whoever holds something lets go of it."""
        if self.holds:
            yield from self._act("release")

    def _act(self, act: str) -> Life:
        self.busy = True
        yield from getattr(self, "do_" + act)()
        self.busy = False

    def do_checkout(self) -> Life:
        if self.holds and self.anonymous:
            yield from self.do_release()  # nobody could tell a second lease from the first
        manager, client = self.world.manager, self.client
        if self.anonymous:
            self.world.collect()  # a finalizer that comes later would give this lease back
        if client is None:
            self.client = client = Client(self.number)
            if self.finalizer:
                client.on_end = self.world.finalize
        holder = None if self.anonymous else client
        del client  # this frame lives on while the client may be collected
        limit = self.rng.choice(_LIMITS)
        get = partial(manager.get_or_create, self.config, self.dedicated, holder, limit)
        del holder
        handler = yield Call("checkout", get, limit)
        if handler is None:
            if not self.holds:
                self._forget()
            return
        laws.check_identity(self.world, self, handler)  # type: ignore[arg-type]
        self.handler, self.face, self.holds = handler, handler.face, True

    def _forget(self) -> None:
        if self.client is not None:
            self.client.on_end = None
        self.holds = False
        self.client = self.handler = self.face = None

    def do_rpc(self) -> Life:
        limit = self.rng.choice(_LIMITS)
        yield Call("rpc", partial(self.handler.rpc, None, limit), limit)

    def do_call(self) -> Life:
        limit = self.rng.choice(_LIMITS)
        yield Call("call", partial(self.handler.call, None, limit), limit)

    def do_borrow(self) -> Life:
        """An RPC through somebody else's handler."""
        lenders = [user for user in self.world.actors if user.holds and not user.anonymous]
        limit = self.rng.choice(_LIMITS)
        if lenders:
            lender = self.rng.choice(lenders)
            yield Call("borrowed call", partial(lender.handler.call, None, limit), limit)

    def do_release(self) -> Life:
        manager, handler = self.world.manager, self.handler
        holder = None if self.anonymous else self.client
        if self.client is not None:
            self.client.on_end = None
        yield Call("release", partial(manager.release, handler, holder))
        del holder
        self._forget()

    def do_vanish(self) -> Life:
        """Its client is dropped: now, or in somebody's critical section by the collector."""
        yield 0.0
        if self.anonymous and not self.finalizer:
            return  # such a lease is never given back
        self.holds = False
        self.handler = self.face = None
        if self.rng.random() < 0.5:
            self.world.garbage.append(self.client)
        self.client = None

    def do_close(self) -> Life:
        yield Call("close of its handler", self.face.close)

    def do_close_all(self) -> Life:
        pooled = self.world.pool.registry.all()
        yield Call("close_all", self.world.manager.close_all)
        laws.check_closed(pooled)

    def do_stats(self) -> Life:
        yield 0.0
        stats = self.world.manager.get_stats()
        rows = stats["connections"]
        if stats["total_connections"] != len(rows):
            raise laws.Broken(8, "get_stats does not add up")
        if any(row["in_flight"] < 0 or row["age"] < 0 for row in rows):
            raise laws.Broken(8, f"get_stats counts below zero: {rows}")
