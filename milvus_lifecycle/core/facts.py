"""What a trigger brings along, what a step returns, and the seams for time and chance."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime, timezone
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ..audit.stream import Emission
    from .flight import Flight
    from .strategies import Locator
    from .wire import Wire


@dataclass(frozen=True, slots=True)
class Located:
    """Where a locator says the connection has to go. ``version`` is a topology's, if any."""

    address: str
    secure: bool | None = None
    version: int | None = None
    #: the strategy's own material, committed together with the swap (a topology, say)
    detail: object = None


@dataclass(frozen=True, slots=True)
class Facts:
    """Everything a guard or an action may look at besides the connection itself."""

    #: time.monotonic() of the step
    now: float
    #: number of the flight whose outcome this is
    flight: int | None = None
    #: generation that the RPC started with; None: the current one
    generation: int | None = None
    #: time.monotonic() at which the RPC started
    started: float = 0.0
    error: BaseException | None = None
    #: how long the caller who acquires is ready to wait (monotonic); None: he did not say
    until: float | None = None
    #: the validated channel, with the identifier that its Connect call gave
    wire: Wire | None = None
    identifier: str | None = None
    located: Located | None = None
    #: the strategy found that there is nothing to change
    unchanged: bool = False
    reason: str = ""


@dataclass(slots=True)
class StepResult:
    """What is left to do once the mutex is free again. Nothing in it waits.

    Whoever is interrupted while he does it leaves it to somebody else, who begins anew: so
    nothing in it does harm if it is done twice.
    """

    #: the step has happened, whether or not it moved anything
    decided: bool = False
    moved: bool = False
    #: its record, and whether that is the one of its outage that people should notice
    emission: Emission | None = None
    alarm: bool = False
    #: a flight that somebody has to fly now
    launch: Flight | None = None
    #: wake-up calls of the waiters of a flight that has ended
    wakes: list[Callable[[], None]] = field(default_factory=list)
    #: channels out of service: to be closed once nothing runs on them, or cut after a while
    retired: list[Wire] = field(default_factory=list)
    #: channels to close now, whatever runs on them
    closing: list[Wire] = field(default_factory=list)
    #: what the strategy wants to be released, as the connection is closed
    locator: Locator | None = None

    def clear(self) -> None:
        """As if nothing had been decided."""
        self.moved, self.alarm = False, False
        self.emission, self.launch, self.locator = None, None, None
        self.wakes, self.retired, self.closing = [], [], []


def wait_until(event: threading.Event, until: float) -> None:
    """Wait until ``event`` is set, or until a ``time.monotonic()`` time."""
    # On Windows a lock waits for 49 days at most, and raises OverflowError for more.
    event.wait(min(max(0.0, until - time.monotonic()), threading.TIMEOUT_MAX))


@dataclass(frozen=True, slots=True)
class Seams:
    """Time and chance, injected. ``clock`` decides; ``wall`` is only written into records."""

    clock: Callable[[], float] = time.monotonic
    #: how a thread waits for an event, at most until a time of ``clock``. The asyncio driver
    #: waits by its loop, whose ``time()`` has to be ``clock`` too if that is replaced.
    wait: Callable[[threading.Event, float], object] = wait_until
    wall: Callable[[], datetime] = lambda: datetime.now(timezone.utc)
    chance: Callable[[], float] = random.random
