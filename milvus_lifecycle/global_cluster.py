"""Global clusters: a connection that follows the primary.

The topology that a process knows of a cluster is in one book, shared by all connections to it;
the topology that a connection *uses* is the one that was committed with its last swap. Guards
compare the address in use with the book's primary, so it does not matter who learns first that
the primary has moved: a failure, a refresh, or another connection.
"""

from __future__ import annotations

import asyncio
import threading
import time
import weakref
from concurrent.futures import CancelledError, Future
from concurrent.futures import TimeoutError as FutureTimeout
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from .config import ConnectionConfig, load_tls, parse_endpoint
from .errors import Failure, TopologyError, TopologyReason, brief, classify
from .facts import Facts, Located
from .forking import on_fork_in_child
from .strategies import ConnectionStrategy
from .topology import Topology, newer

if TYPE_CHECKING:
    from .connection import ManagedConnection
    from .engine import Engine

#: Fetches of one cluster's topology start at least this far apart (seconds), whoever asks.
FETCH_SPACING = 1.0
#: With a known primary to fall back on, a recovery waits no longer for the topology (seconds).
FETCH_LIMIT = 3.0


@dataclass(frozen=True, slots=True)
class Turn:
    """What a caller who wants the topology has to do now."""

    #: the fetch to lead (``leads``) or to join; None: wait, or use what is known
    fetch: Future[Topology] | None
    leads: bool = False
    #: seconds until the next fetch may start
    pause: float = 0.0


class TopologyBook:
    """What this process knows of one cluster. One fetch at a time, at most one a second."""

    _books: ClassVar[weakref.WeakValueDictionary[str, TopologyBook]] = weakref.WeakValueDictionary()
    _books_lock: ClassVar[threading.Lock] = threading.Lock()

    def __init__(self, config: ConnectionConfig) -> None:
        self.config = config
        self.latest: Topology | None = None
        #: managers whose connections have to move when the primary does
        self.engines: weakref.WeakSet[Engine] = weakref.WeakSet()
        #: has the trouble with the topology service been reported since it last answered?
        self.complained = False
        self._fetch: Future[Topology] | None = None
        self._started = float("-inf")
        self._lock = threading.Lock()
        on_fork_in_child(self)

    @classmethod
    def of(cls, config: ConnectionConfig) -> TopologyBook:
        """The process's book of the cluster behind ``config``."""
        with cls._books_lock:
            book = cls._books.get(config.key)
            if book is None:
                book = cls._books[config.key] = cls(config)
            return book

    def fork_child(self) -> None:
        """In the child: nobody fetches here yet."""
        TopologyBook._books_lock = threading.Lock()
        self._lock = threading.Lock()
        self._fetch = None

    def primary(self) -> tuple[str, bool] | None:
        """(address, secure) of the primary as last heard; None if nothing was heard."""
        if self.latest is None:
            return None
        config = self.config
        address, secure = parse_endpoint(self.latest.primary.endpoint, secure=config.secure)
        return address, secure or config.secure

    def next_fetch(self) -> float:
        """When the next fetch may start (monotonic seconds)."""
        return self._started + FETCH_SPACING

    def turn(self, since: float) -> Turn | None:
        """Take part in a fetch that started at ``since`` or later. None: one has ended already."""
        with self._lock:
            if self._fetch is not None:
                return Turn(self._fetch)
            now = time.monotonic()
            if self._started >= since:
                return None
            if now < self._started + FETCH_SPACING:
                return Turn(None, pause=self._started + FETCH_SPACING - now)
            self._started = now
            self._fetch = Future()
            return Turn(self._fetch, leads=True)

    def settle(self, fetch: Future[Topology], outcome: Topology | BaseException) -> None:
        """The leader's fetch has ended: note what it brought, wake who joined."""
        news = False
        try:
            if isinstance(outcome, Topology):
                found = newer(self.latest, outcome)
                news, self.latest, self.complained = found is not self.latest, found, False
        except TopologyError as error:
            outcome = error
        with self._lock:
            if self._fetch is fetch:
                self._fetch = None
        if isinstance(outcome, BaseException):
            if isinstance(outcome, TopologyError):
                self._complain(outcome)
            fetch.set_exception(outcome)
        else:
            fetch.set_result(outcome)
        if news:
            for engine in list(self.engines):
                engine.post(engine.reroute_all)

    def _complain(self, error: TopologyError) -> None:
        if self.latest is None or self.complained:
            return
        self.complained = True
        from .logs import complain

        complain(f"{brief(error)} (connections stay on {self.latest.primary.endpoint})")


class TopologyLocator:
    """Finds the primary; joins a fetch that is under way; falls back on the last known one."""

    def __init__(self, book: TopologyBook, since: float, fresh: bool) -> None:
        self.book = book
        self.since = since
        #: False: what the book says will do (a reroute moves to what a fetch has just brought)
        self.fresh = fresh

    def locate(
        self, connection: ManagedConnection, last_error: BaseException | None, timeout: float
    ) -> Located:
        """Blocks for ``timeout`` seconds at most. Raises TopologyError if nothing is known."""
        until = self._until(timeout)
        while (turn := self._turn(until)) is not None:
            left = max(0.0, until - time.monotonic())
            if turn.fetch is None:
                time.sleep(min(turn.pause, left))
            elif not turn.leads:
                try:
                    turn.fetch.result(left)
                except (TopologyError, FutureTimeout, CancelledError) as error:
                    return self._known(error)
            else:
                outcome: Topology | BaseException
                try:
                    from .topology_fetch import fetch_topology

                    config = self.book.config
                    outcome = fetch_topology(
                        config.uri, config.token, tls=load_tls(config), timeout=left
                    )
                except BaseException as error:
                    self.book.settle(turn.fetch, error)
                    return self._known(error)
                self.book.settle(turn.fetch, outcome)
        return self._known(None)

    async def alocate(
        self, connection: ManagedConnection, last_error: BaseException | None, timeout: float
    ) -> Located:
        """As ``locate``, without blocking the loop."""
        until = self._until(timeout)
        while (turn := self._turn(until)) is not None:
            left = max(0.0, until - time.monotonic())
            if turn.fetch is None:
                await asyncio.sleep(min(turn.pause, left))
            elif not turn.leads:
                joined = asyncio.wrap_future(turn.fetch)
                try:
                    # Shielded: who joins must not cancel the leader's future.
                    await asyncio.wait_for(asyncio.shield(joined), left)
                except (TopologyError, asyncio.TimeoutError) as error:
                    joined.add_done_callback(_retrieve)
                    return self._known(error)
                except asyncio.CancelledError:
                    joined.add_done_callback(_retrieve)
                    raise
            else:
                outcome: Topology | BaseException
                try:
                    from .topology_fetch import afetch_topology

                    config = self.book.config
                    tls = await asyncio.to_thread(load_tls, config)
                    outcome = await afetch_topology(config.uri, config.token, tls=tls, timeout=left)
                except asyncio.CancelledError:
                    self.book.settle(turn.fetch, _left(self.book))
                    raise
                except BaseException as error:
                    self.book.settle(turn.fetch, error)
                    return self._known(error)
                self.book.settle(turn.fetch, outcome)
        return self._known(None)

    def release(self, connection: ManagedConnection) -> None:
        """Nothing is held."""

    def _until(self, timeout: float) -> float:
        if self.book.latest is not None:
            timeout = min(timeout, FETCH_LIMIT)
        return time.monotonic() + timeout

    def _turn(self, until: float) -> Turn | None:
        if (self.book.latest is not None and not self.fresh) or time.monotonic() >= until:
            return None
        return self.book.turn(self.since)

    def _known(self, error: BaseException | None) -> Located:
        place = self.book.primary()
        if place is None:
            if isinstance(error, (TopologyError, KeyboardInterrupt, SystemExit)):
                raise error
            raise TopologyError(
                TopologyReason.DEADLINE,
                "the topology did not arrive in time" if error is None else brief(error),
                address=self.book.config.address,
            )
        address, secure = place
        latest = self.book.latest
        return Located(
            address,
            secure,
            latest.version if latest is not None else None,
            latest,
            revisit=self.book.next_fetch(),
        )


def _left(book: TopologyBook) -> TopologyError:
    return TopologyError(
        TopologyReason.UNREACHABLE, "the fetch was cancelled", address=book.config.address
    )


def _retrieve(future: asyncio.Future[Topology]) -> None:
    """Look at an outcome that nobody waits for any more, so that asyncio does not complain."""
    if not future.cancelled():
        future.exception()


class GlobalStrategy(ConnectionStrategy):
    """A global cluster's endpoint: connections go to the primary, and move with it."""

    name = "global"
    keeps_current = True

    def __init__(self, config: ConnectionConfig) -> None:
        super().__init__(config)
        self.book = TopologyBook.of(config)
        #: the topology that was committed with the last swap
        self.topology: Topology | None = None

    def attached(self, engine: Engine) -> None:
        self.book.engines.add(engine)

    def may_recover(self, connection: ManagedConnection, facts: Facts) -> bool:
        """UNAVAILABLE, or the server says that we wrote to a secondary."""
        error = facts.error
        return error is None or classify(error) in (Failure.TRANSIENT, Failure.REPLICATE_VIOLATION)

    def target_changed(self, connection: ManagedConnection, facts: Facts) -> bool:
        """The primary, as last heard, is not the address in use."""
        place = self.book.primary()
        return place is not None and connection.has_channel and place[0] != connection.address

    def committed(self, connection: ManagedConnection, located: Located | None) -> None:
        if located is not None and isinstance(located.detail, Topology):
            self.topology = located.detail

    def locator(self, connection: ManagedConnection) -> TopologyLocator:
        """A fetch after the flight began; for a reroute what the book says."""
        flight = connection.flight
        now = connection.seams.clock()
        if flight is None:
            return TopologyLocator(self.book, now, fresh=True)
        first = flight.attempts == 0
        return TopologyLocator(
            self.book,
            flight.began if first else now,
            fresh=flight.mandatory or not first,
        )

    def refresh_every(self, connection: ManagedConnection) -> float | None:
        """``topology_refresh`` seconds."""
        return connection.policy.topology_refresh

    def version(self, connection: ManagedConnection) -> int | None:
        """Version of the topology as last heard: what a reroute follows."""
        return self.book.latest.version if self.book.latest is not None else None
