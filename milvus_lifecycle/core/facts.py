"""What a trigger brings along, and the seams for time and chance."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, timezone

from ..errors import FailureSummary
from .wire import Wire


@dataclass(frozen=True, slots=True)
class Located:
    """Where a locator says the connection has to go. ``version`` is a topology's, if any."""

    address: str
    secure: bool | None = None
    version: int | None = None
    #: the strategy's own material, committed together with the swap (a topology, say)
    detail: object = None


@dataclass(slots=True)
class Facts:
    """Everything a guard or an action may look at besides the connection itself.

    Nobody changes one. It is not frozen, as that would take three times as long, in every step.
    """

    #: time.monotonic() of the step
    now: float
    #: number of the flight whose outcome this is
    flight: int | None = None
    #: generation that the RPC started with; None: the current one
    generation: int | None = None
    #: time.monotonic() at which the RPC started
    started: float = 0.0
    failure: FailureSummary | None = None
    #: how long the caller who acquires is ready to wait (monotonic); None: he did not say
    until: float | None = None
    #: until when he waits for a server that refuses a first connect (monotonic)
    hope: float = 0.0
    #: the validated channel, with the identifier that its Connect call gave
    wire: Wire | None = None
    identifier: str | None = None
    located: Located | None = None
    #: the strategy found that there is nothing to change
    unchanged: bool = False
    #: the TLS files are not those any more with which the current channel was opened
    outdated: bool = False
    reason: str = ""


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
    #: not the module's own generator, whose order a program may count on
    chance: Callable[[], float] = random.SystemRandom().random
