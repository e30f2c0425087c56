"""The core without a driver: connections that are stepped by hand, on a fake clock."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from milvus_lifecycle import ConnectionConfig, LifecyclePolicy, ManagedConnection, RegularStrategy
from milvus_lifecycle.audit.records import TransitionRecord
from milvus_lifecycle.audit.stream import Audit, Emission
from milvus_lifecycle.core.facts import Facts
from milvus_lifecycle.core.lifecycle import StepResult
from milvus_lifecycle.core.strategies import ConnectionStrategy
from milvus_lifecycle.core.wire import Wire
from milvus_lifecycle.errors import summarize
from milvus_lifecycle.table import State, Trigger
from milvus_lifecycle.testing import FakeClock, rpc_error

CONFIG = ConnectionConfig.from_uri("http://home:19530")


class Tap:
    """Reads records at once, where real readers have a queue and a thread."""

    failures = 0
    hears_waits = False

    def __init__(self, read: Callable[[TransitionRecord], object]) -> None:
        self.read = read
        self.outlet = self

    def wants(self, level: int = 0) -> bool:
        return True

    def put(self, emission: Emission) -> None:
        self.read(emission.record)

    def serve(self) -> None:
        """Nothing waits."""

    def flush(self, limit: float) -> bool:
        return True


class Core:
    """One connection, its clock, its records, and steps in short words."""

    def __init__(
        self,
        *,
        dedicated: bool = False,
        strategy: ConnectionStrategy | None = None,
        **policy: Any,
    ) -> None:
        self.clock = FakeClock()
        self.audit = Audit("threads")
        self.records: list[TransitionRecord] = []
        self.audit.readers = (Tap(self.records.append),)  # type: ignore[assignment]
        self.lost: list[Any] = []
        self.connection = ManagedConnection(
            CONFIG,
            strategy or RegularStrategy(CONFIG),
            LifecyclePolicy(**policy),
            self.audit,
            self.clock.seams(),
            dedicated=dedicated,
            on_lost=self.lost.append,
        )

        self.life = self.connection.lifecycle

    def step(
        self, trigger: Trigger, error: BaseException | None = None, **facts: Any
    ) -> StepResult:
        if error is not None:
            facts["failure"] = summarize(error)
        return self.connection.lifecycle.step(trigger, Facts(now=self.clock(), **facts))

    def wire(self) -> Wire:
        return Wire(object(), "home:19530", self.clock())

    def land(self, trigger: Trigger) -> Wire:
        """End the flight under way with a fresh channel."""
        flight = self.connection.lifecycle.flight
        assert flight is not None
        wire = self.wire()
        assert self.connection.lifecycle.offer(flight, wire)
        self.step(trigger, flight=flight.number, wire=wire, identifier="i")
        return wire

    # -- the five states, by the shortest way ------------------------------------------------

    def to(self, state: State) -> Core:
        """Bring a new connection into ``state``; anonymously held but in IDLE."""
        ways: dict[State, Callable[[], object]] = {
            State.IDLE: lambda: None,
            State.ACTIVE: self._connect,
            State.PROBING: self._probe,
            State.RECOVERING: self._fail,
            State.CLOSED: lambda: self.step(Trigger.CLOSE),
        }
        ways[state]()
        assert self.connection.state is state
        return self

    def _connect(self) -> None:
        self.connection.lease(None)
        self.step(Trigger.ACQUIRE)
        self.land(Trigger.PROBE_PASSED)

    def _probe(self) -> None:
        self._connect()
        self.clock.advance(31)
        self.step(Trigger.ACQUIRE)

    def _fail(self) -> None:
        self._connect()
        self.step(Trigger.FAIL, error=rpc_error("UNAVAILABLE"), generation=1)
