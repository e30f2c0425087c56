"""What the shared procedures ask a driver to do: the only things in the engine that wait.

A procedure is a generator. It yields one of these and is sent the result, or has the error
thrown in. The threads driver performs a request by blocking, the asyncio driver by awaiting;
neither decides anything.
"""

from __future__ import annotations

from collections.abc import Callable, Generator
from dataclasses import dataclass
from typing import Any, TypeVar

from ..errors import FailureSummary
from .connection import ManagedConnection
from .facts import Located
from .flight import Flight
from .readiness import Collection
from .strategies import AnyLocator, Locator
from .wire import Wire


@dataclass(frozen=True, slots=True)
class Wait:
    """Wait until the flight has ended, or until a monotonic time. Result: None.

    ``until`` is the patience that the flight is told; the wait itself may last ``grace``
    seconds longer, so that the flight's own verdict comes first. ``leads``: it is the leader who
    waits, to begin the next attempt, and who may be told to begin it now.
    """

    connection: ManagedConnection
    flight: Flight
    until: float
    grace: float = 0.0
    leads: bool = False


@dataclass(frozen=True, slots=True)
class Locate:
    """Ask a locator that blocks, or is awaited, where to connect. Result: Located."""

    connection: ManagedConnection
    locator: Locator
    failure: FailureSummary | None
    timeout: float


@dataclass(frozen=True, slots=True)
class Join:
    """Wait for something that others wait for, too, until a ``time.monotonic()`` time at most.

    ``join`` is given a call that wakes whoever waits. Leaving ends nothing. Result: None.
    """

    join: Callable[[Callable[[], object]], object]
    until: float


@dataclass(frozen=True, slots=True)
class Open:
    """Open a channel that reconnects by itself within ``window`` (seconds). Result: the channel."""

    connection: ManagedConnection
    address: str
    secure: bool | None
    window: tuple[float, float]


@dataclass(frozen=True, slots=True)
class Register:
    """Validate a channel by a Connect call. Result: the identifier, as a string.

    ``patient``: wait for the channel to become ready, up to ``timeout`` seconds; otherwise fail
    as soon as it cannot connect.
    """

    connection: ManagedConnection
    wire: Wire
    timeout: float
    patient: bool


@dataclass(frozen=True, slots=True)
class Ping:
    """Ask the current channel whether it is alive. Result: None."""

    connection: ManagedConnection
    wire: Wire
    timeout: float


@dataclass(frozen=True, slots=True)
class AskLoadState:
    """Ask the server how far a collection is, by an RPC like a user's own. Result: LoadState."""

    connection: ManagedConnection
    collection: Collection
    timeout: float


@dataclass(frozen=True, slots=True)
class Pause:
    """Wait for a short time that no flight ends. Result: None."""

    seconds: float


Request = Wait | Locate | Join | Open | Register | Ping | AskLoadState | Pause
Result = TypeVar("Result")
#: A procedure: yields requests, is sent their results, returns ``Result``.
Procedure = Generator[Request, Any, Result]


def locate(
    connection: ManagedConnection,
    locator: AnyLocator,
    failure: FailureSummary | None,
    timeout: float,
) -> Procedure[Located]:
    """Where to connect to, by whichever of its ways the locator has."""
    if hasattr(locator, "steps"):
        return (yield from locator.steps(connection.lifecycle, failure, timeout))
    located: Located = yield Locate(connection, locator, failure, timeout)
    return located
