"""One gRPC channel and the count of the RPCs on it; a binding names the one in use.

A wire is candidate, current, draining or closed. RPCs are counted in and out in the same
critical section that decides closing, so a channel is never closed under an RPC by accident:
only by ``close`` of the whole connection, or when ``drain_timeout`` has run out.
"""

from __future__ import annotations

import threading
from dataclasses import dataclass
from enum import Enum
from typing import Any


class WireState(Enum):
    """What a channel is to its connection."""

    CANDIDATE = "candidate"
    CURRENT = "current"
    DRAINING = "draining"
    CLOSED = "closed"


class Wire:
    """A gRPC channel (sync or asyncio) with its in-flight count.

    ``channel`` is opaque here: only drivers and the permanent channel call it. ``methods`` caches
    the channel's multi-callables by their signature. Times are ``time.monotonic()`` seconds.
    """

    __slots__ = (
        "_lock",
        "address",
        "calls",
        "channel",
        "cut",
        "in_flight",
        "methods",
        "opened_at",
        "recalled",
        "slow",
        "state",
        "validated",
    )

    def __init__(self, channel: Any, address: str, opened_at: float, *, slow: bool) -> None:
        self.channel = channel
        self.address = address
        self.opened_at = opened_at
        #: opened after ``backoff_patience``: reconnects by itself at the pace of the ceiling
        self.slow = slow
        #: closed under running RPCs because ``drain_timeout`` ran out
        self.cut = False
        #: it has answered the flight that asks it
        self.validated = False
        #: taken away before that, because the process forks or the target moved: no fault of it
        self.recalled = False
        self.in_flight = 0
        self.state = WireState.CANDIDATE
        self.methods: dict[Any, Any] = {}
        #: the RPCs under way, where the driver has to end them itself (asyncio)
        self.calls: set[Any] = set()
        # Re-entrant: a finalizer that the collector runs right here may start an RPC of its own.
        self._lock = threading.RLock()

    def enter(self) -> bool:
        """Count an RPC in. False if the wire takes no new RPCs (retired or closed)."""
        with self._lock:
            if self.state is not WireState.CURRENT:
                return False
            self.in_flight += 1
            return True

    def leave(self) -> bool:
        """Count an RPC out. True if it was the last one of a draining wire: close it now."""
        with self._lock:
            self.in_flight -= 1
            return self._close_if_drained()

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
        """No new RPCs from here on. True if nothing runs on it: close it now."""
        with self._lock:
            if self.state is not WireState.CLOSED:
                self.state = WireState.DRAINING
            return self._close_if_drained()

    def sever(self, *, cut: bool) -> bool:
        """Close whatever runs. True for the one caller who is to close the channel."""
        with self._lock:
            if self.state is WireState.CLOSED:
                return False
            self.state = WireState.CLOSED
            self.cut = cut and self.in_flight > 0
            return True

    def _close_if_drained(self) -> bool:
        if self.state is WireState.DRAINING and self.in_flight == 0:
            self.state = WireState.CLOSED
            return True
        return False


@dataclass(frozen=True, slots=True)
class Binding:
    """What an RPC needs to start: read once, replaced as a whole at every swap.

    ``identifier`` is the value of the header of the same name; the server gave it out in the
    Connect call that validated this channel (None: this channel was not validated yet).
    """

    generation: int
    wire: Wire
    identifier: str | None
    version: int | None = None
