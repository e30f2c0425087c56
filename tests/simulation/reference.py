"""The reference model: what a user expects of a pool of connections, without saying how.

It knows who holds what, which calls are waiting, what the servers did, and when something was
last used. It knows no states, flights, channels or threads. Where a user cannot know (when did
the last attempt of a call that failed end?) it keeps the earliest and the latest answer.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from milvus_lifecycle import LifecyclePolicy
from milvus_lifecycle.core.flight import FIRST_SLICE
from tests.simulation.fleet import Fleet, Mode

#: the name of whoever holds an anonymous lease
ANYBODY = "anybody"
#: waiters of a first connect may stay this much (seconds) past their limit, to learn the cause
GRACE = 0.5
#: an asyncio caller is told so much (seconds) before its deadline
EARLY = 0.05


@dataclass(frozen=True)
class Place:
    """A configuration as far as it matters on the wire."""

    address: str
    token: str = ""


@dataclass(eq=False)
class Pooled:
    """One connection."""

    place: Place
    dedicated: bool
    #: whom a dedicated one was made for: a client's name, or the handler that revived it
    owner: object
    #: between these times it was last held or used
    rested: float
    rested_late: float
    id: str = ""
    handler: Any = None
    holders: set[str] = field(default_factory=set)
    calls: list[Call] = field(default_factory=list)
    connected: bool = False
    alive: bool = True
    #: closed by its own client: its handler is of no use any more
    final: bool = False
    #: made for a handler whose connection was closed: it may wait for a server that is away
    revived: bool = False

    def touch(self, now: float) -> None:
        """It was used, or let go, at this very time."""
        self.rested = self.rested_late = now

    def drop(self, client: str, now: float) -> None:
        """``client`` does not hold it any more."""
        if client in self.holders:
            self.holders.discard(client)
            if not self.holders:
                self.touch(now)

    def guests(self) -> int:
        """How many may hold it besides: calls that wait for it, and who moves over with them."""
        moving = [call.old for call in self.calls if call.old is not None]
        waiting = len(moving) + sum(call.kind == "checkout" for call in self.calls)
        return waiting + len(set[str]().union(*(old.holders for old in moving)))


@dataclass(eq=False)
class Call:
    """A call under way. ``kind``: checkout, rpc (one RPC) or call (retried as pymilvus does)."""

    name: str
    kind: str
    client: str
    conn: Pooled
    began: float
    timeout: float | None
    #: how many modes its server had been in
    mark: int
    #: was everything fine when it began?
    calm: bool
    connected: bool
    #: of an RPC: through which handler, and the closed connection that this one led to
    handler: Any = None
    old: Pooled | None = None
    #: answered only by hand, and answered so
    slow: bool = False
    answered: bool = False

    def story(self, now: float) -> str:
        """Who did what, for the message of a failure."""
        how = "slow " * self.slow + "moving " * (self.old is not None) + "calm" * self.calm
        waited = f"waited {now - self.began:.2f} of {self.timeout} s"
        return f"{self.kind} {self.name} of {self.client} to {self.conn.place} ({how}; {waited})"


class Reference:
    """The pool as its users see it."""

    def __init__(self, policy: LifecyclePolicy, fleet: Fleet) -> None:
        self.policy, self.fleet = policy, fleet
        self.live: list[Pooled] = []
        self.all: list[Pooled] = []
        #: handler -> the connection that it leads to
        self.leads: dict[Any, Pooled] = {}
        self.calls: list[Call] = []
        self.clients: set[str] = set()

    @property
    def now(self) -> float:
        return self.fleet.clock()

    def calm(self, address: str) -> bool:
        """Is the server up, for so long that nobody still waits before he tries it again?"""
        return self.fleet.calm(address, self.policy.backoff_ceiling)

    # -- looking up --------------------------------------------------------------------------

    def find(self, place: Place, owner: object | None) -> Pooled | None:
        """The live connection: a dedicated one of ``owner``, or (None) the shared one."""
        for conn in self.live:
            if conn.place == place and (conn.dedicated, conn.owner) == (owner is not None, owner):
                return conn
        return None

    def _new(self, place: Place, dedicated: bool, owner: object) -> Pooled:
        conn = Pooled(place, dedicated, owner, self.now, self.now)
        self.live.append(conn)
        self.all.append(conn)
        return conn

    # -- calls begin -------------------------------------------------------------------------

    def _begin(self, call: Call) -> Call:
        call.conn.calls.append(call)
        self.calls.append(call)
        return call

    def _facts(self, conn: Pooled) -> dict[str, Any]:
        address = conn.place.address
        return {
            "conn": conn,
            "began": self.now,
            "mark": len(self.fleet.history[address]) - 1,
            "calm": self.calm(address),
            "connected": conn.connected,
        }

    def check_out(
        self, name: str, client: str, place: Place, dedicated: bool, timeout: float | None
    ) -> Call:
        """``client`` asks for a handler: of the connection that there is, or of a new one."""
        owner: object = None
        if dedicated:
            owner = client if client != ANYBODY else object()
        conn = self.find(place, owner) or self._new(place, dedicated, owner)
        return self._begin(Call(name, "checkout", client, timeout=timeout, **self._facts(conn)))

    def call(self, name: str, kind: str, client: str, handler: Any, timeout: float | None) -> Call:
        """An RPC through ``handler``; if its connection was closed, through a successor."""
        conn, old = self.leads[handler], None
        if not conn.alive and conn.dedicated and not conn.holders:
            conn.final = True  # its client let go of it after it was closed
        if not conn.alive and not conn.final:
            old, conn = conn, self._successor(conn, handler)
        facts = self._facts(conn)
        return self._begin(
            Call(name, kind, client, timeout=timeout, handler=handler, old=old, **facts)
        )

    def _successor(self, old: Pooled, handler: Any) -> Pooled:
        owner: object = None
        if old.dedicated:
            owner = old.owner if old.owner in self.clients else handler
        conn = self.find(old.place, owner)
        if conn is None:
            conn = self._new(old.place, old.dedicated, owner)
            conn.handler, conn.revived = handler, True
        return conn

    def arrive(self) -> None:
        """Calls that moved over from a closed connection have taken its holders along."""
        for call in self.calls:
            if call.old is not None and call.name in self.fleet.admitted:
                self.leads[call.handler] = call.conn
                call.conn.holders |= call.old.holders
                call.conn.touch(self.now)
                call.old = None

    # -- calls end ---------------------------------------------------------------------------

    def end(self, call: Call, result: Any, code: str | None) -> None:
        """A call is over: with ``result``, or with an error of that code."""
        codes = self.allowed(call)
        assert code in codes, f"{call.story(self.now)} ended with {code}, not {codes}"
        conn = call.conn
        conn.calls.remove(call)
        self.calls.remove(call)
        conn.rested_late = self.now
        if call.kind == "checkout":
            if code is None:
                self._checked_out(conn, call.client, result)
        elif call.name in self.fleet.admitted:
            conn.connected = True
            if code is None or code.isupper():  # its RPC ended now, not an attempt before
                conn.rested = self.now

    def _checked_out(self, conn: Pooled, client: str, handler: Any) -> None:
        assert conn.handler in (None, handler), "another handler for the same connection"
        others = [c for c in self.live if c is not conn and c.handler is handler]
        assert not others, "one handler for two connections"
        conn.handler, conn.connected = handler, True
        conn.holders.add(client)
        self.leads[handler] = conn

    def allowed(self, call: Call) -> set[str | None]:
        """The codes that ``call`` may end with now; None stands for success."""
        conn, waited = call.conn, self.now - call.began
        modes = set(self.fleet.history[conn.place.address][call.mark :])
        trouble = not call.calm or modes != {Mode.UP}
        if not conn.alive:
            return {"ConnectionClosed"}
        codes: set[str | None] = set()
        if Mode.UP in modes or call.answered or (call.kind == "checkout" and call.connected):
            codes.add(None)
        if conn.dedicated and not conn.holders:
            codes.add("ConnectionClosed")  # its client let go of it meanwhile
        if not trouble and not call.slow:
            return codes
        limit = self.policy.recovery_budget
        if call.timeout is not None:
            limit = min(limit, call.timeout)
            if waited >= call.timeout - EARLY:
                codes |= {"DeadlineExceeded"}
                codes |= {"DEADLINE_EXCEEDED"} if call.kind != "checkout" else set()
        one_try = self.policy.probe_timeout + FIRST_SLICE  # enough where a recovery has given up
        if trouble and waited >= min(limit, one_try) - EARLY:
            codes |= {"RecoveryExhausted"}
        if Mode.DENIES in modes:
            codes |= {"PermanentFailure"}
            codes |= {"UNAUTHENTICATED"} if call.kind != "checkout" else set()
        if trouble and not call.connected:
            codes |= {"ConnectFailed"}
        if call.kind == "rpc" and (call.slow or Mode.REFUSES in modes):
            codes |= {"UNAVAILABLE"}
        return codes

    def overdue(self, running: set[str]) -> list[Call]:
        """Calls that should not wait any more; ``running``: those whose RPC is at its server."""
        late = []
        for call in self.calls:
            conn, limit = call.conn, self.policy.recovery_budget
            calm = self.calm(conn.place.address)
            if call.name in running:
                calm, limit = calm and not call.slow, float("inf")
            elif call.kind == "checkout" and not conn.connected and not conn.revived:
                limit = self.policy.connect_timeout if call.timeout is None else limit
            limit = limit if call.timeout is None else min(limit, call.timeout)
            if calm or self.now - call.began > limit + GRACE or not conn.alive:
                late.append(call)
        return late

    # -- letting go --------------------------------------------------------------------------

    def release(self, handler: Any, client: str) -> None:
        """``client`` gives ``handler`` back; a dedicated one is given back by anybody."""
        conn = self.leads[handler]
        everybody = conn.dedicated and client == ANYBODY
        for name in list(conn.holders) if everybody else [client]:
            conn.drop(name, self.now)

    def vanish(self, client: str) -> None:
        """``client`` was collected."""
        self.clients.discard(client)
        for conn in self.all:
            conn.drop(client, self.now)

    def about_to_expire(self, handler: Any) -> bool:
        """Might a call through ``handler``, which nobody holds, see its connection expire?"""
        conn, linger = self.leads[handler], self.policy.linger
        if linger is None or conn.holders or not conn.alive:
            return False
        return self.now + self.policy.recovery_budget >= conn.rested + linger

    def close_all(self) -> None:
        """Every connection is closed; handlers live on."""
        for conn in list(self.live):
            self.close(conn)

    def close(self, conn: Pooled, final: bool = False) -> None:
        """It is in the pool no more; ``final``: its handler is of no use either."""
        conn.alive, conn.final = False, final
        self.live.remove(conn)

    # -- what departures and time do -----------------------------------------------------------

    def desert(self, busy: set[str]) -> None:
        """Dedicated connections end with their clients, once nobody is mending them (``busy``)."""
        for conn in list(self.live):
            held = conn.holders or conn.guests()
            if conn.dedicated and conn.connected and not held and conn.id not in busy:
                self.close(conn, final=True)

    def expire(self, busy: set[str]) -> set[str]:
        """Connections that nobody uses end. Returns the ids of those that may have, or not."""
        unsure = set()
        for conn in list(self.live):
            if conn.calls:
                conn.rested_late = self.now
            elif not conn.connected:
                self.close(conn)  # a first connect ends with the last who waits for it
            elif not conn.holders and conn.id not in busy and self.policy.linger is not None:
                if self.now >= conn.rested_late + self.policy.linger:
                    self.close(conn)
                elif self.now >= conn.rested + self.policy.linger:
                    unsure.add(conn.id)
        return unsure
