"""Global clusters: a connection that follows the primary.

The topology that a process knows of a cluster is in one book, shared by all connections to it;
the topology that a connection *uses* is the one that was committed with its last swap. Guards
compare the address in use with the book's primary, so it does not matter who learns first that
the primary has moved: a failure, a refresh, or another connection.
"""

from __future__ import annotations

import math
import queue
import random
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from typing import ClassVar

from ..audit.stream import complain
from ..config import ConnectionConfig, load_tls, parse_endpoint
from ..core.facts import Facts, Located
from ..core.flight import Flight, FlightKind
from ..core.requests import Join, Procedure
from ..core.strategies import ConnectionStrategy, View
from ..errors import (
    Failure,
    FailureSummary,
    LifecycleError,
    TopologyError,
    TopologyReason,
    brief,
    summarize,
)
from ..fork import on_fork_in_child, renew_in_child
from ..policy import LifecyclePolicy
from ..table import State
from .topology import Topology, newer

#: Fetches of one cluster's topology start at least this far apart (seconds), whoever asks.
FETCH_SPACING = 1.0
#: ... and, while connections of it are down, at least this share of their outage apart.
OUTAGE_SHARE = 0.1
#: So much longer (share) a pause between two fetches may be: clients that lost their primary
#: together do not go on asking in step.
PAUSE_JITTER = 0.2
#: A fetch lasts this long at most (seconds), or as long as a recovery may.
FETCH_LIMIT = 10.0
#: What a fetch is given (seconds) before the last known primary is tried beside it: half of what
#: a call may come late after that primary is back.
HEAD_START = 0.25
#: So many fetches are made for one that is wanted, where another one may bring more.
TRIES = 3
#: What another fetch may cure. A refusal, a redirect or a wrong topology is the same next time.
_PASSING = (
    *(TopologyReason.UNREACHABLE, TopologyReason.HTTP_STATUS, TopologyReason.GARBAGE),
    TopologyReason.DEADLINE,
)


@dataclass(slots=True, eq=False, repr=False)
class Fetch:
    """One answer of the topology service, and those who wait for it.

    Takes no lock: whoever waits may be interrupted by a signal handler wherever Python code runs.
    """

    outcome: Topology | LifecycleError | None = None
    _wakes: list[Callable[[], object]] = field(default_factory=list)

    def join(self, wake: Callable[[], object]) -> None:
        """Call ``wake`` once it has ended, perhaps twice: it does no harm if it is too late."""
        self._wakes.append(wake)
        if self.outcome is not None:
            wake()

    def end(self, outcome: Topology | LifecycleError) -> None:
        """Everybody wakes."""
        self.outcome = outcome
        for wake in list(self._wakes):
            wake()


class TopologyBook:
    """What this process knows of one cluster, and the fetch under way that will tell it more.

    A fetch belongs to the book, not to whoever asked for it: it runs on a thread of the book's,
    those who want it wait for as long as they may, and the next attempt finds it where it is.
    There is one at a time. While connections are down one follows another; what it brings is
    told to every connection at once (``GlobalStrategy.moved``).
    """

    _books: ClassVar[weakref.WeakValueDictionary[str, TopologyBook]] = weakref.WeakValueDictionary()
    _books_lock: ClassVar[threading.Lock] = threading.Lock()

    def __init__(self, config: ConnectionConfig) -> None:
        self.config = config
        self.latest: Topology | None = None
        #: of the connections that have to move when the primary does
        self._strategies: weakref.WeakSet[GlobalStrategy] = weakref.WeakSet()
        #: has the trouble with the topology service been reported since it last answered?
        self.complained = False
        #: when the last fetch was started (time.monotonic() seconds)
        self.started = -math.inf
        #: ... the last one that brought something, and when the last one ended
        self._heard = self._ended = -math.inf
        #: how many in a row have failed
        self._failed = 0
        self._limit = FETCH_LIMIT
        self._jitter = 0.0
        self._fetch: Fetch | None = None
        #: flights of connections that are down
        self._watchers: list[Flight] = []
        #: the thread that looks at ``_fetch`` and ``_watchers`` before it ends
        self._worker: threading.Thread | None = None
        # Not a Condition, which is Python code: whoever is interrupted in there keeps the lock.
        self._lock = threading.RLock()
        #: wakes the worker
        self._wanted: queue.SimpleQueue[None] = queue.SimpleQueue()
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
        self._lock, self._wanted = threading.RLock(), queue.SimpleQueue()
        self._fetch, self._watchers, self._worker = None, [], None

    def attach(self, strategy: GlobalStrategy, budget: float) -> None:
        """Tell ``strategy`` whenever there is news. ``budget``: of its recoveries (seconds)."""
        with self._lock:
            self._strategies.add(strategy)
            self._limit = max(self._limit, budget)

    def place(self, topology: Topology) -> tuple[str, bool]:
        """(address, secure) of the primary of ``topology``."""
        config = self.config
        address, secure = parse_endpoint(topology.primary.endpoint, secure=config.secure)
        return address, secure or config.secure

    def is_asking(self) -> bool:
        """Is a fetch under way?"""
        return self._fetch is not None

    def fetch(self, since: float, watcher: Flight | None = None) -> Fetch | None:
        """The fetch under way, else a new one; None if one that started at ``since`` has ended.

        ``watcher``: fetch again and again until that flight is over.
        """
        with self._lock:
            if watcher is not None and watcher not in self._watchers:
                self._watchers.append(watcher)
            # One that failed will do for those who have something to fall back on.
            asked = self._heard if self.latest is None else self.started
            if self._fetch is None and asked < since:
                self._fetch, self._failed = Fetch(), 0
                self._wanted.put(None)
            fetch, worker = self._fetch, self._worker
            if (fetch or self._watchers) and (worker is None or not worker.is_alive()):
                self._start()
            return fetch

    def _start(self) -> None:
        worker = threading.Thread(target=self._work, name="milvus-lifecycle-topology", daemon=True)
        # Noted first: whoever is interrupted here may have started it.
        self._worker = worker
        try:
            worker.start()
        except RuntimeError as error:  # no thread to be had, or the interpreter is ending
            fetch, self._fetch = self._fetch, None
            if fetch is not None:
                fetch.end(self._unreachable(error))

    def _work(self) -> None:
        while (fetch := self._next()) is not None:
            self._settle(fetch, self._ask())

    def _next(self) -> Fetch | None:
        """Wait until the next fetch is due. None: nobody wants one, the thread ends."""
        while True:
            with self._lock:
                if self._worker is not threading.current_thread():
                    return None
                now = time.monotonic()
                self._watchers = [each for each in self._watchers if _is_down(each, now)]
                due = self._due(now)
                if due is None:
                    self._worker = None
                    return None
                if due <= now:
                    self.started, self._fetch = now, self._fetch or Fetch()
                    return self._fetch
            with suppress(queue.Empty):
                # No longer than that: the flights may be over by then.
                self._wanted.get(timeout=min(due - now, FETCH_SPACING))

    def _due(self, now: float) -> float | None:
        if self._fetch is not None:
            return self.started + FETCH_SPACING
        if not self._watchers:
            return None
        pause = OUTAGE_SHARE * max(now - flight.began for flight in self._watchers)
        return self._ended + max(FETCH_SPACING, pause) * (1.0 + PAUSE_JITTER * self._jitter)

    def _ask(self) -> Topology | LifecycleError:
        config = self.config
        try:
            from .topology_fetch import fetch_topology

            tls = load_tls(config)
            return fetch_topology(config.uri, config.token, tls=tls, timeout=self._limit)
        except LifecycleError as error:
            return error
        except BaseException as error:
            return self._unreachable(error)

    def _unreachable(self, error: BaseException) -> TopologyError:
        reason = TopologyReason.UNREACHABLE
        return TopologyError(reason, brief(error), address=self.config.address)

    def _settle(self, fetch: Fetch, outcome: Topology | LifecycleError) -> None:
        """A fetch has ended: note what it brought, wake those who wait, tell the connections."""
        told: list[GlobalStrategy] = []
        with self._lock:
            self._fetch, self._ended = None, time.monotonic()
            self._jitter = random.SystemRandom().random()
            try:
                if isinstance(outcome, Topology):
                    found = newer(self.latest, outcome)
                    if found is not self.latest:
                        told = list(self._strategies)
                    self.latest, self.complained, self._heard = found, False, self.started
            except TopologyError as error:
                outcome = TopologyError(error.reason, error.detail, address=self.config.address)
            self._failed = self._failed + 1 if isinstance(outcome, LifecycleError) else 0
            passing = isinstance(outcome, TopologyError) and outcome.reason in _PASSING
            if passing and self._failed < TRIES:
                self._fetch = Fetch()
        fetch.end(outcome)
        if isinstance(outcome, LifecycleError):
            self._complain(outcome)
        for moved in {strategy.moved for strategy in told}:  # one for each pool
            moved()

    def _complain(self, error: LifecycleError) -> None:
        """One line, at the first failure since the service last answered."""
        if self.latest is None or self.complained:
            return
        self.complained = True
        complain(f"{brief(error)} (connections stay on {self.latest.primary.endpoint})")


def _is_down(flight: Flight, now: float) -> bool:
    # By time, too: the flight of a loop that was stopped and forgotten never ends.
    return flight.outcome is None and now < max(flight.deadline, flight.patience)


def _after_fork_in_child() -> None:
    TopologyBook._books_lock = threading.Lock()


renew_in_child(_after_fork_in_child)


@dataclass(eq=False)
class TopologyLocator:
    """Finds the primary: by a fetch, for as long as may be waited for it, else as last known.

    A fetch that started at ``since`` or later will do. Whose ``flight`` has stopped waiting is
    told of another primary all the same (``GlobalStrategy.moved``). None: a refresh.
    """

    book: TopologyBook
    since: float
    flight: Flight | None = None

    def steps(
        self, connection: View, failure: FailureSummary | None, timeout: float
    ) -> Procedure[Located]:
        """Waits for ``timeout`` seconds at most. Raises LifecycleError if nothing is known."""
        for fetch, until in self._fetches(connection, failure, timeout):
            yield Join(fetch.join, until)
        return self._known()

    def release(self, connection: View) -> None:
        """Nothing is held."""

    def _fetches(
        self, connection: View, failure: FailureSummary | None, timeout: float
    ) -> Iterator[tuple[Fetch, float]]:
        """What to wait for, and until when (``time.monotonic()`` seconds)."""
        flight = self.flight
        if flight is not None and not flight.mandatory and self.book.latest is not None:
            return  # a move goes where the book says
        down = flight is not None and (flight.kind is FlightKind.RECOVERY or flight.attempts > 0)
        until = time.monotonic() + min(timeout, self._patience(failure))
        error: BaseException | None = None
        while connection.state is not State.CLOSED:
            fetch = self.book.fetch(self.since, flight if down else None)
            if fetch is None or time.monotonic() >= until:
                break
            yield fetch, until
            if self.book.latest is not None:
                return
            if not isinstance(fetch.outcome, LifecycleError):
                break
            error = summarize(fetch.outcome).error
            if not self.book.is_asking():
                break
        if self.book.latest is None:
            detail = "the topology did not arrive in time"
            raise error or TopologyError(
                TopologyReason.DEADLINE, detail, address=self.book.config.address
            )

    def _patience(self, failure: FailureSummary | None) -> float:
        """How long to wait before the last known primary is tried."""
        flight = self.flight
        if self.book.latest is None:
            return math.inf
        if flight is None:
            return 0.0  # nobody waits for a refresh: its news come by themselves
        if failure is not None and failure.kind is Failure.REPLICATE_VIOLATION:
            return math.inf  # that one says it is not the primary
        if flight.attempts == 0:
            return HEAD_START
        # A recovery goes on knocking; a first connect that was refused has nothing else to do.
        return math.inf if flight.kind is FlightKind.CONNECT else 0.0

    def _known(self) -> Located:
        latest = self.book.latest
        assert latest is not None, "else waiting for it has raised"
        address, secure = self.book.place(latest)
        return Located(address, secure, latest.version, latest)


class GlobalStrategy(ConnectionStrategy):
    """A global cluster's endpoint: connections go to the primary, and move with it."""

    name = "global"
    keeps_current = True

    def __init__(self, config: ConnectionConfig) -> None:
        super().__init__(config)
        self.book = TopologyBook.of(config)
        #: has the connections of its pool compare where they are
        self.moved: Callable[[], object] = lambda: None
        #: the topology that was committed with the last swap
        self.topology: Topology | None = None

    def attached(self, policy: LifecyclePolicy, moved: Callable[[], object]) -> None:
        self.moved = moved
        self.book.attach(self, policy.recovery_budget)

    def may_recover(self, connection: View, facts: Facts) -> bool:
        """UNAVAILABLE, or the server says that we wrote to a secondary."""
        kinds = (Failure.TRANSIENT, Failure.REPLICATE_VIOLATION)
        return facts.failure is None or facts.failure.kind in kinds

    def target_changed(self, connection: View, facts: Facts) -> bool:
        """The primary, as last heard, is not the address in use."""
        return connection.has_channel and self.misdirected(connection.address)

    def misdirected(self, address: str) -> bool:
        """The primary, as last heard, is somewhere else."""
        latest = self.book.latest
        return latest is not None and self.book.place(latest)[0] != address

    def awaits_news(self) -> bool:
        """A fetch is under way: it may name another primary than the one that refused."""
        return self.book.is_asking()

    def committed(self, connection: View, located: Located | None) -> None:
        if located is not None and isinstance(located.detail, Topology):
            self.topology = located.detail

    def locator(self, connection: View) -> TopologyLocator:
        """What was heard since the flight began; for a move what the book says."""
        flight = connection.flight
        if flight is None:
            # One refresh serves all connections of the cluster.
            every = connection.policy.topology_refresh or 0.0
            return TopologyLocator(self.book, connection.seams.clock() - every / 2)
        # Nothing has failed before a first connect: what another one has just heard will do.
        early = FETCH_SPACING if flight.kind is FlightKind.CONNECT else 0.0
        return TopologyLocator(self.book, flight.began - early, flight)

    def refresh_every(self, connection: View) -> float | None:
        """``topology_refresh`` seconds after the last fetch, whoever asked for it."""
        every = connection.policy.topology_refresh
        if every is None:
            return None
        since_last = connection.seams.clock() - self.book.started
        return min(every, max(every - since_last, every / 2))

    def version(self, connection: View) -> int | None:
        """Version of the topology as last heard: what a reroute follows."""
        return self.book.latest.version if self.book.latest is not None else None
