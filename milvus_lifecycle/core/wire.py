"""One gRPC channel and the count of the RPCs on it; a binding names the one in use.

A wire is candidate, current, draining or closed. RPCs are counted in and out in the same
critical section that decides closing, so a channel is never closed under an RPC by accident:
only by ``close`` of the whole connection, or when ``drain_timeout`` has run out.
"""

from __future__ import annotations

import threading
import weakref
from dataclasses import dataclass, field
from enum import Enum
from typing import Any


class WireState(Enum):
    """What a channel is to its connection."""

    CANDIDATE = "candidate"
    CURRENT = "current"
    DRAINING = "draining"
    CLOSED = "closed"


class Rpc:
    """One RPC under way. It counts as long as it exists, at most: whatever interrupts whom.

    ``call`` is gRPC's own object, where the driver has to end it itself (asyncio).
    """

    __slots__ = ("__weakref__", "call", "counted", "severed")

    def __init__(self) -> None:
        self.call: Any = None
        self.counted: weakref.ref[Rpc] | None = None
        self.severed = False

    def sever(self) -> None:
        """End the RPC; its task sees an error, not a cancellation."""
        self.severed = True
        if self.call is not None:
            self.call.cancel()


@dataclass(slots=True, eq=False, repr=False)
class Wire:
    """A gRPC channel (sync or asyncio) with its in-flight count.

    ``channel`` is opaque here: only drivers and the permanent channel call it. ``methods`` caches
    the channel's multi-callables by their signature. Times are ``time.monotonic()`` seconds.
    """

    channel: Any
    address: str
    opened_at: float
    #: the channel was closed
    gone: bool = False
    #: closed under running RPCs because ``drain_timeout`` ran out
    cut: bool = False
    #: it has answered the flight that asks it
    validated: bool = False
    #: taken away before that, because the process forks or the target moved: no fault of it
    recalled: bool = False
    #: a signal handler raised inside gRPC: perhaps a lock of the channel is held for good
    interrupted: bool = False
    state: WireState = WireState.CANDIDATE
    methods: dict[Any, Any] = field(default_factory=dict)
    #: the RPCs under way. Each reference takes itself out when its RPC is gone, and the
    #: interpreter does that in C: no exception can come in between.
    running: set[weakref.ref[Rpc]] = field(default_factory=set)
    # Re-entrant: a finalizer that the collector runs right here may start an RPC of its own.
    _lock: Any = field(init=False, default_factory=threading.RLock)

    @property
    def in_flight(self) -> int:
        """How many RPCs are under way."""
        return len(self.running)

    def rpcs(self) -> list[Rpc]:
        """The RPCs under way."""
        return [rpc for rpc in (ref() for ref in list(self.running)) if rpc is not None]

    def enter(self, rpc: Rpc) -> bool:
        """Count an RPC in. False if the wire takes no new RPCs (retired or closed)."""
        with self._lock:
            if self.state is not WireState.CURRENT:
                return False
            rpc.counted = weakref.ref(rpc, self.running.discard)
            self.running.add(rpc.counted)
            return True

    def leave(self, rpc: Rpc) -> bool:
        """Count an RPC out. True if it was the last one of a draining wire: close it now."""
        with self._lock:
            if rpc.counted is not None:
                self.running.discard(rpc.counted)
            return self.close_if_drained()

    def promote(self) -> None:
        """Candidate becomes current."""
        with self._lock:
            if self.state is WireState.CANDIDATE:
                self.state = WireState.CURRENT

    def demote(self) -> None:
        """Current becomes candidate again: it will be validated anew; running RPCs go on."""
        with self._lock:
            if self.state is WireState.CURRENT:
                self.state = WireState.CANDIDATE
                self.validated = False

    def retire(self) -> bool:
        """No new RPCs from here on. True if some are under way."""
        with self._lock:
            if self.state is not WireState.CLOSED:
                self.state = WireState.DRAINING
            return bool(self.running)

    def close_now(self, *, cut: bool) -> bool:
        """Take it out of service, whatever runs. True if the channel is to be closed now."""
        with self._lock:
            if self.state is not WireState.CLOSED:
                self.state = WireState.CLOSED
                self.cut = cut and bool(self.running)
            return not self.gone

    def close_if_drained(self) -> bool:
        """True if the channel is to be closed now: it is retired, and nothing runs on it.

        It says so until the channel is gone: who was told may have been interrupted.
        """
        with self._lock:
            if self.state is WireState.DRAINING and not self.running:
                self.state = WireState.CLOSED
            return self.state is WireState.CLOSED and not self.gone


@dataclass(frozen=True, slots=True)
class Binding:
    """What an RPC needs to start: read once, replaced as a whole at every swap.

    ``identifier`` is the value of the header of the same name; the server gave it out in the
    Connect call that validated this channel (None: this channel was not validated yet).
    """

    generation: int
    wire: Wire
    identifier: str | None
