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
from concurrent.futures import Future
from concurrent.futures import TimeoutError as FutureTimeout
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from .config import ConnectionConfig, load_tls, parse_endpoint
from .errors import Failure, LifecycleError, TopologyError, TopologyReason, brief, classify
from .facts import Facts, Located
from .flight import FlightKind
from .forking import on_fork_in_child, renew_in_child
from .strategies import ConnectionStrategy
from .table import State
from .topology import Topology, newer

if TYPE_CHECKING:
    from .connection import ManagedConnection
    from .engine import Engine

#: Fetches of one cluster's topology start at least this far apart (seconds), whoever asks.
FETCH_SPACING = 1.0
#: With a known primary to fall back on, a recovery waits no longer for the topology (seconds).
FETCH_LIMIT = 3.0
#: Tries within one fetch: a first connect and a refresh are patient, a recovery comes back itself.
PATIENT_TRIES, RECOVERY_TRIES = 3, 1


class _LeaderLeft(Exception):
    """The leader was cancelled, or its own time was over: who has time left fetches anew."""


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
        #: when the last fetch was started, and the last one that brought something
        self._started = self._heard = float("-inf")
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
        self._lock = threading.Lock()
        self._fetch = None

    def attach(self, engine: Engine) -> None:
        """Have ``engine`` compare its connections whenever there is news."""
        with self._lock:
            self.engines.add(engine)

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
            # One that failed will do for those who have something to fall back on.
            if (self._heard if self.latest is None else self._started) >= since:
                return None
            if now < self._started + FETCH_SPACING:
                return Turn(None, pause=self._started + FETCH_SPACING - now)
            self._started = now
            self._fetch = Future()
            return Turn(self._fetch, leads=True)

    def settle(self, fetch: Future[Topology], outcome: Topology | BaseException) -> None:
        """The leader's fetch has ended: note what it brought, wake who joined."""
        news: list[Engine] = []
        with self._lock:
            try:
                if isinstance(outcome, Topology):
                    found = newer(self.latest, outcome)
                    if found is not self.latest:
                        news = list(self.engines)
                    self.latest, self.complained, self._heard = found, False, self._started
            except TopologyError as error:
                outcome = TopologyError(error.reason, error.detail, address=self.config.address)
            if self._fetch is fetch:
                self._fetch = None
        if isinstance(outcome, Topology):
            fetch.set_result(outcome)
        else:
            fetch.set_exception(self._for_joiners(outcome))
            if isinstance(outcome, LifecycleError):
                self._complain(outcome)
        for engine in news:
            engine.post(engine.reroute_all)

    def _for_joiners(self, outcome: BaseException) -> BaseException:
        late = isinstance(outcome, TopologyError) and outcome.reason is TopologyReason.DEADLINE
        if not isinstance(outcome, Exception) or (late and self.latest is None):
            return _LeaderLeft()
        return outcome

    def _complain(self, error: LifecycleError) -> None:
        """One line, at the first failure since the service last answered."""
        if self.latest is None or self.complained:
            return
        self.complained = True
        from .logs import complain

        complain(f"{brief(error)} (connections stay on {self.latest.primary.endpoint})")


def _after_fork_in_child() -> None:
    TopologyBook._books_lock = threading.Lock()


renew_in_child(_after_fork_in_child)


class TopologyLocator:
    """Finds the primary; joins a fetch that is under way; falls back on the last known one."""

    def __init__(
        self, book: TopologyBook, since: float, *, fresh: bool = True, patient: bool = False
    ) -> None:
        self.book = book
        self.since = since
        #: False: what the book says will do (a reroute moves to what a fetch has just brought)
        self.fresh = fresh
        #: nobody waits for this: a refresh in the background
        self.patient = patient

    def locate(
        self, connection: ManagedConnection, last_error: BaseException | None, timeout: float
    ) -> Located:
        """Blocks for ``timeout`` seconds at most. Raises LifecycleError if nothing is known."""
        until, allowance = self._until(timeout)
        while (turn := self._turn(connection, until)) is not None:
            left = max(0.0, until - time.monotonic())
            try:
                if turn.fetch is None:
                    pause = min(turn.pause, left)
                    time.sleep(pause)
                    # What the wait for its turn took is not taken from the fetch.
                    until, allowance = until + min(pause, allowance), 0.0
                    continue
                if turn.leads:
                    self._lead(turn.fetch, left)
                else:
                    turn.fetch.result(left)
            except _LeaderLeft:
                continue
            except Exception as error:
                return self._known(error)
            break
        return self._known(None)

    async def alocate(
        self, connection: ManagedConnection, last_error: BaseException | None, timeout: float
    ) -> Located:
        """As ``locate``, without blocking the loop."""
        until, allowance = self._until(timeout)
        while (turn := self._turn(connection, until)) is not None:
            left = max(0.0, until - time.monotonic())
            try:
                if turn.fetch is None:
                    pause = min(turn.pause, left)
                    await asyncio.sleep(pause)
                    until, allowance = until + min(pause, allowance), 0.0
                    continue
                if turn.leads:
                    await self._alead(turn.fetch, left)
                else:
                    await _join(turn.fetch, left)
            except _LeaderLeft:
                continue
            except Exception as error:
                return self._known(error)
            break
        return self._known(None)

    def _lead(self, fetch: Future[Topology], timeout: float) -> None:
        from .topology_fetch import fetch_topology

        config = self.book.config
        try:
            tls = load_tls(config)
            found = fetch_topology(
                config.uri, config.token, tls=tls, timeout=timeout, tries=self._tries()
            )
        except BaseException as error:
            self.book.settle(fetch, error)
            raise
        self.book.settle(fetch, found)

    async def _alead(self, fetch: Future[Topology], timeout: float) -> None:
        from .topology_fetch import afetch_topology

        config = self.book.config
        try:
            tls = await asyncio.to_thread(load_tls, config)
            found = await afetch_topology(
                config.uri, config.token, tls=tls, timeout=timeout, tries=self._tries()
            )
        except BaseException as error:
            self.book.settle(fetch, error)
            raise
        self.book.settle(fetch, found)

    def release(self, connection: ManagedConnection) -> None:
        """Nothing is held."""

    def _until(self, timeout: float) -> tuple[float, float]:
        """When to stop, and by how much waiting for a turn may put that off (once)."""
        if self.book.latest is not None and not self.patient:
            timeout = min(timeout, FETCH_LIMIT)
        return time.monotonic() + timeout, min(timeout, FETCH_SPACING)

    def _tries(self) -> int:
        patient = self.patient or self.book.latest is None
        return PATIENT_TRIES if patient else RECOVERY_TRIES

    def _turn(self, connection: ManagedConnection, until: float) -> Turn | None:
        if self.book.latest is not None and not self.fresh:
            return None
        if connection.state is State.CLOSED or time.monotonic() >= until:
            return None
        return self.book.turn(self.since)

    def _known(self, error: BaseException | None) -> Located:
        place = self.book.primary()
        if place is None:
            if isinstance(error, LifecycleError):
                raise error
            reason, detail = TopologyReason.DEADLINE, "the topology did not arrive in time"
            if error is not None and not isinstance(error, FutureTimeout):
                reason, detail = TopologyReason.UNREACHABLE, brief(error)
            raise TopologyError(reason, detail, address=self.book.config.address)
        address, secure = place
        latest = self.book.latest
        return Located(
            address,
            secure,
            latest.version if latest is not None else None,
            latest,
            revisit=self.book.next_fetch(),
        )


async def _join(fetch: Future[Topology], timeout: float) -> None:
    """Wait for somebody else's fetch; leaving does not cancel it. Raises what it failed with."""
    joined = asyncio.wrap_future(fetch)
    joined.add_done_callback(_retrieve)
    done, _ = await asyncio.wait({joined}, timeout=timeout)
    if not done:
        raise FutureTimeout
    joined.result()


def _retrieve(future: asyncio.Future[Topology]) -> None:
    """Look at an outcome that nobody waits for any more, so that asyncio does not complain."""
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
        self.book.attach(engine)

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
        flight, now = connection.flight, connection.seams.clock()
        if flight is None:
            # One refresh serves all connections of the cluster.
            since = now - (connection.policy.topology_refresh or 0.0) / 2
            return TopologyLocator(self.book, since, patient=True)
        if flight.attempts > 0:
            return TopologyLocator(self.book, now)
        if flight.kind is FlightKind.CONNECT:
            # Nothing has failed yet: what another connection has just heard will do.
            return TopologyLocator(self.book, flight.began - FETCH_SPACING)
        return TopologyLocator(self.book, flight.began, fresh=flight.mandatory)

    def refresh_every(self, connection: ManagedConnection) -> float | None:
        """``topology_refresh`` seconds after the last fetch, whichever connection led it."""
        every = connection.policy.topology_refresh
        if every is None:
            return None
        since_last = connection.seams.clock() - (self.book.next_fetch() - FETCH_SPACING)
        return min(every, max(every - since_last, every / 2))

    def version(self, connection: ManagedConnection) -> int | None:
        """Version of the topology as last heard: what a reroute follows."""
        return self.book.latest.version if self.book.latest is not None else None
