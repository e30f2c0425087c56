"""The network of a schedule: one server that comes and goes, and what becomes of each I/O."""

from __future__ import annotations

from random import Random
from typing import Any

from milvus_lifecycle.core.facts import Located
from milvus_lifecycle.testing import rpc_error
from tests.simulation import laws
from tests.simulation.actors import AWAY, HOME, Died
from tests.simulation.kernel import NEVER

#: Moments fall on few points, so that things happen at the same time.
GAPS = (0.0, 0.25, 0.5, 0.5, 1.0, 1.5)
LATENCIES = (0.0, 0.0, 0.0, 0.01, 0.25, 0.5)
#: No answer, for as long as the server stays as it is.
SILENCE = "silence"
PENDING = object()


class Server:
    """Up, down (refuses connections) or hung; what it does when is drawn in advance."""

    def __init__(self, rng: Random) -> None:
        self.rng = rng
        self.mode = "up"
        self.changes = 0
        #: how often something goes wrong although it is up
        self.faults = rng.choice((0.0, 0.1, 0.3))
        #: does it refuse credentials now and then?
        self.refuses = rng.random() < 0.1
        #: does what kills a worker happen in here?
        self.kills = rng.random() < 0.1
        #: (seconds until then, what it is from then on)
        self.forecast: list[tuple[float, str]] = []
        for _ in range(rng.choice((0, 0, 1, 1, 2))):
            self.forecast.append((rng.choice(GAPS), rng.choice(("down", "down", "hung"))))
            self.forecast.append((rng.choice(GAPS), "up"))

    def become(self, mode: str) -> None:
        """What waits for an answer notices."""
        self.mode = mode
        self.changes += 1

    def fate(self, kind: str, patient: bool) -> tuple[float, str]:
        """(latency in seconds, "ok", a status, "died" or silence) of one piece of I/O."""
        rng = self.rng
        latency = rng.choice(LATENCIES)
        if self.mode == "hung" or (self.mode == "down" and patient):
            return 0.0, SILENCE
        if self.mode == "down":
            return latency, "UNAVAILABLE"
        if rng.random() >= self.faults:
            return latency, "ok"
        if kind != "rpc" and self.kills and rng.random() < 0.3:
            return latency, "died"
        if kind != "rpc" and self.refuses and rng.random() < 0.5:
            return latency, "UNAUTHENTICATED"
        if patient or rng.random() < 0.2:
            return latency, SILENCE
        return latency, "UNAVAILABLE"


class Operation:
    """One piece of I/O under way. ``at``: when it goes on by itself (seconds)."""

    __slots__ = ("at", "changes", "channel", "due", "kind", "outcome", "patient", "world")

    def __init__(
        self, world: Any, kind: str, channel: Channel | None, timeout: float | None, patient: bool
    ) -> None:
        self.world, self.kind, self.channel, self.patient = world, kind, channel, patient
        self.due = NEVER if timeout is None else world.now + timeout
        self._ask()

    def _ask(self) -> None:
        server = self.world.server
        latency, self.outcome = server.fate(self.kind, self.patient)
        if self.outcome is SILENCE and self.due == NEVER and server.mode == "up":
            self.outcome = "UNAVAILABLE"  # its caller waits as long as it takes: that ends some day
        self.changes = server.changes
        self.at = self.due if self.outcome is SILENCE else min(self.world.now + latency, self.due)

    def moved(self) -> bool:
        """Did its channel or its server change, so that it must not wait for its time?"""
        if self.channel is not None and self.channel.closed:
            return True
        return self.outcome is SILENCE and self.world.server.changes != self.changes

    def verdict(self) -> Any:
        """Its time has come: the result, an exception, or PENDING if it goes on."""
        channel, world = self.channel, self.world
        if channel is not None and channel.closed:
            return rpc_error("CANCELLED", "Channel closed!")
        if world.now >= self.due:
            return rpc_error("DEADLINE_EXCEEDED")
        if self.outcome is SILENCE:
            if self.kind == "rpc" and world.rng.random() < 0.5:
                return rpc_error("UNAVAILABLE", "Connection reset by peer")
            self._ask()
            return PENDING
        if self.outcome == "died":
            return Died()
        if self.outcome != "ok":
            return rpc_error(self.outcome)
        if self.kind == "locate":
            return Located(world.target)
        return f"identifier of channel {channel.number}" if channel is not None else None

    @property
    def label(self) -> str:
        """What it is, for the trace."""
        return (
            self.kind if self.channel is None else f"{self.kind} on channel {self.channel.number}"
        )


class Channel:
    """A gRPC channel without a network. The flavours add how their callers wait."""

    def __init__(self, world: Any, number: int, address: str) -> None:
        self.world, self.number, self.address = world, number, address
        self.closed = False
        #: RPCs of users that run on it
        self.rpcs = 0

    def unary_unary(self, method: str, *args: Any, **kwargs: Any) -> Any:
        return self

    def begin(self, kind: str, timeout: float | None, patient: bool = False) -> Operation:
        """Start some I/O on it. Raises ValueError if it is closed, as gRPC does."""
        laws.check_no_lock(self.world, kind)
        if self.closed:
            raise ValueError("Cannot invoke RPC on closed channel!")
        return Operation(self.world, kind, self, timeout, patient)

    def shut(self) -> None:
        """Close it. Twice does no harm in gRPC: whoever was told to may have been interrupted."""
        laws.check_no_lock(self.world, "close of a channel")
        if self.closed:
            return
        laws.check_channel_close(self.world, self)  # type: ignore[arg-type]
        self.closed = True


def elsewhere(address: str) -> str:
    """The other one of the two places."""
    return AWAY if address == HOME else HOME
