"""Strategies: the guards and callbacks in which kinds of endpoints differ.

A strategy is asked by the table's conditions (``strategy.needs_probe`` ...: pure, no I/O, called
under the connection's mutex) and told when a state is entered (``on_probing``,
``on_recovering``, ``on_closed``: it returns an effect, which the driver performs outside every
lock). Nothing else decides. To write your own, derive from ``ConnectionStrategy`` and pass
``strategy_for`` to the manager; docs/integration.md has a tested example.
"""

from __future__ import annotations

from collections.abc import Callable, Generator
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol

from ..config import ConnectionConfig
from ..errors import Failure, FailureSummary
from ..policy import LifecyclePolicy
from ..table import State
from .facts import Facts, Located, Seams
from .flight import Flight


class View(Protocol):
    """What a strategy and its locator see of a connection: look, and change nothing."""

    state: State
    policy: LifecyclePolicy
    seams: Seams
    #: has the channel in use answered since it was opened?
    validated: bool
    #: is there a doubt about it?
    suspect: bool
    #: where in the jitter window of ``max_age`` the connection stands (0 to 1)
    unit: float

    @property
    def address(self) -> str:
        """The address in use, else the configured one."""

    @property
    def flight(self) -> Flight | None:
        """The probe or recovery under way."""

    @property
    def has_channel(self) -> bool:
        """Is there a current channel that takes RPCs?"""

    def idle_too_long(self, now: float) -> bool:
        """Longer than ``idle_threshold``?"""

    def channel_age(self, now: float) -> float:
        """Seconds since the current channel was opened."""

    def linger_due(self) -> float | None:
        """When it may be closed if nobody uses it (monotonic seconds); None: not as it is."""


class Locator(Protocol):
    """I/O that finds out where to connect: starts a local server, asks for a topology.

    The driver calls ``locate`` before each attempt to connect, on the flight's worker thread.
    A locator that also has ``async def alocate`` with the same signature is awaited by the
    asyncio driver; without it the call runs on a thread of its own there.
    """

    def locate(self, connection: View, failure: FailureSummary | None, timeout: float) -> Located:
        """The place to connect to, within ``timeout`` seconds. Raises any exception.

        ``failure``: what the last attempt ended with, if there was one.
        """

    def release(self, connection: View) -> None:
        """The connection is closed: give back what ``locate`` took. Must not wait long."""


class SteppedLocator(Protocol):
    """One whose waiting is a procedure, which either driver runs (see ``requests``)."""

    def steps(
        self, connection: View, failure: FailureSummary | None, timeout: float
    ) -> Generator[Any, Any, Located]:
        """As ``Locator.locate``."""

    def release(self, connection: View) -> None:
        """As ``Locator.release``."""


AnyLocator = Locator | SteppedLocator


@dataclass(frozen=True)
class Connect:
    """Open a first channel and validate it."""

    locator: AnyLocator | None = None


@dataclass(frozen=True)
class Probe:
    """Ask the current channel whether it is alive."""


@dataclass(frozen=True)
class Recover:
    """Open a fresh channel where the locator says, validate it, swap it in."""

    locator: AnyLocator | None = None


@dataclass(frozen=True)
class Dispose:
    """Give back what the locator holds."""

    locator: AnyLocator | None = None


@dataclass(frozen=True)
class Broken:
    """The strategy raised this instead of saying what to do: the flight fails with it."""

    error: Exception


Effect = Connect | Probe | Recover | Dispose | Broken


class ConnectionStrategy:
    """The protocol, with the behaviour of a single fixed endpoint as its defaults."""

    #: stands in every record
    name: ClassVar[str] = "custom"
    #: may a failed channel turn out to be good? Then a recovery asks it before it opens another
    keeps_current: ClassVar[bool] = False

    def __init__(self, config: ConnectionConfig) -> None:
        self.config = config

    def attached(self, policy: LifecyclePolicy, moved: Callable[[], object]) -> None:
        """A pool is about to use this strategy for a connection.

        ``moved`` has all of its connections compare where they are; it may be called from any
        thread, at any time.
        """

    # -- guards: pure, called under the connection's mutex -------------------------------

    def needs_probe(self, connection: View, facts: Facts) -> bool:
        """Is there a reason not to trust the channel right now?"""
        return (
            not connection.validated
            or connection.suspect
            or connection.idle_too_long(facts.now)
            or not connection.has_channel
        )

    def may_recover(self, connection: View, facts: Facts) -> bool:
        """Can a new channel mend what ``facts.failure`` says?"""
        return facts.failure is None or facts.failure.kind is Failure.TRANSIENT

    def target_changed(self, connection: View, facts: Facts) -> bool:
        """Should the connection be somewhere else than where it is?"""
        return False

    def misdirected(self, address: str) -> bool:
        """Is ``address``, to which a flight connects, not where the connection should be?"""
        return False

    def awaits_news(self) -> bool:
        """May the next attempt of a first connect be led somewhere else than where it failed?"""
        return False

    def aged(self, connection: View, facts: Facts) -> bool:
        """Is the current channel older than ``max_age`` (shortened by jitter), or its TLS files?"""
        age = connection.channel_age(facts.now)
        return facts.outdated or connection.policy.aged(age, connection.unit)

    def expired(self, connection: View, facts: Facts) -> bool:
        """Has nobody held or used the connection for ``linger``?"""
        due = connection.linger_due()
        return due is not None and facts.now >= due

    # -- callbacks: return what to do, do nothing ----------------------------------------

    def on_probing(self, connection: View, facts: Facts) -> Effect:
        """PROBING was entered."""
        return Probe() if connection.has_channel else Connect(self.locator(connection))

    def on_recovering(self, connection: View, facts: Facts) -> Effect:
        """RECOVERING was entered (or a retry begins)."""
        return Recover(self.locator(connection))

    def on_closed(self, connection: View, facts: Facts) -> Effect:
        """CLOSED was entered."""
        return Dispose(self.locator(connection))

    def committed(self, connection: View, located: Located | None) -> None:
        """A channel to ``located`` was swapped in: what belongs to it holds from now on."""

    def locator(self, connection: View) -> AnyLocator | None:
        """Who finds the place to connect to. None: the configured address, always."""
        return None

    def refresh_every(self, connection: View) -> float | None:
        """Seconds between calls of the locator while clients hold the connection; None: never."""
        return None

    def version(self, connection: View) -> int | None:
        """Version of what the strategy last heard, for the records of a reroute."""
        return None


class RegularStrategy(ConnectionStrategy):
    """One Milvus endpoint at a fixed address. UNAVAILABLE recovers; nothing else does."""

    name = "regular"
