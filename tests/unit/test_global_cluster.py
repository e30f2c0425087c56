"""A cluster's book: one fetch for everybody, who waits for it, and which version holds."""

from __future__ import annotations

import asyncio
import gc
import logging
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from itertools import pairwise
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from milvus_lifecycle.audit.stream import flush_all
from milvus_lifecycle.config import ConnectionConfig
from milvus_lifecycle.core.facts import Located
from milvus_lifecycle.core.flight import Flight, FlightKind, Outcome
from milvus_lifecycle.endpoints import global_cluster, topology_fetch
from milvus_lifecycle.endpoints.global_cluster import (
    FETCH_SPACING,
    Fetch,
    TopologyBook,
    TopologyLocator,
)
from milvus_lifecycle.endpoints.topology import Cluster, Topology
from milvus_lifecycle.errors import (
    REPLICATE_VIOLATION_MARK,
    ConfigError,
    TopologyError,
    TopologyReason,
    summarize,
)
from milvus_lifecycle.table import State
from tests.global_clusters import GlobalCluster, alocate, locate
from tests.inside import waiting_for_topology
from tests.looping import Doing, until
from tests.observe import Call, LogLines, wait_until
from tests.processes import REPOSITORY
from tests.topology_service import reply

URI = "http://x.global-cluster.localhost:1"


class Endpoint:
    """A server that is only named, never dialled."""

    def __init__(self, uri: str) -> None:
        self.uri = uri


A, B = Endpoint("http://127.0.0.1:1001"), Endpoint("http://127.0.0.1:1002")


def config(uri: str = URI, token: str = "root:pw", **options: Any) -> ConnectionConfig:
    return ConnectionConfig.from_uri(uri, token=token, **options)


def topology(version: int, primary: str = "a") -> Topology:
    return Topology(version, (Cluster(primary, f"{primary}:1", 3),))


def connection(state: State = State.RECOVERING) -> Any:
    """All that a locator looks at."""
    return SimpleNamespace(state=state)


def flight(kind: FlightKind = FlightKind.RECOVERY, attempts: int = 0) -> Flight:
    """One that has just begun, of a connection that is down."""
    now = time.monotonic()
    made = Flight(1, kind, now, now + 60)
    made.attempts = attempts
    return made


@pytest.fixture(params=["threads", "asyncio"])
def find(request: pytest.FixtureRequest) -> Callable[..., Call]:
    """Begin to locate, in a thread of its own, by either flavour's method."""

    def begin(
        locator: TopologyLocator, error: Exception | None = None, timeout: float = 20
    ) -> Call:
        failure = None if error is None else summarize(error)
        if request.param == "threads":
            return Call(locate, locator, connection(), failure, timeout)
        return Call(lambda: asyncio.run(alocate(locator, connection(), failure, timeout)))

    return begin


def workers() -> int:
    """How many threads fetch, or are about to."""
    return sum(each.name == "milvus-lifecycle-topology" for each in threading.enumerate())


@pytest.fixture
def cluster(monkeypatch: pytest.MonkeyPatch) -> Iterator[GlobalCluster]:
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    with GlobalCluster(A, B) as service:
        yield service


def test_a_cluster_has_one_book_for_the_process() -> None:
    """Equal configurations share it; other credentials have another; nobody's is forgotten."""
    book = TopologyBook.of(config())
    assert TopologyBook.of(config()) is book
    assert TopologyBook.of(config(token="root:other")) is not book
    book.latest = topology(7)
    del book
    gc.collect()
    assert TopologyBook.of(config()).latest is None


class Moved:
    """A strategy that only counts how often it is told."""

    def __init__(self) -> None:
        self.told = 0

    def moved(self) -> None:
        self.told += 1


outcomes = st.tuples(st.integers(0, 5), st.sampled_from("ab")) | st.sampled_from(
    [TopologyReason.UNREACHABLE, TopologyReason.GARBAGE, TopologyReason.DEADLINE]
)


def test_a_thread_that_was_replaced_asks_nothing() -> None:
    """Whoever started it was interrupted, and has started another."""
    assert TopologyBook(config())._next() is None


@given(st.lists(outcomes, min_size=1, max_size=12))
def test_a_book_never_goes_back(answers: list[tuple[int, str] | TopologyReason]) -> None:
    """Whatever comes in whatever order: the version grows, managers hear of news and of nothing
    else, and an outage of the service is one line."""
    book, engine = TopologyBook(config()), Moved()
    book.attach(engine, 60.0)  # type: ignore[arg-type]  # all of it that a book needs
    news = complaints = 0
    in_trouble = False
    with LogLines(logging.DEBUG) as lines:
        for answer in answers:
            known, fetch = book.latest, Fetch()
            if isinstance(answer, TopologyReason):
                book._settle(fetch, TopologyError(answer, "no"))
                failed = True
            else:
                book._settle(fetch, topology(*answer))
                failed = known is not None and answer[0] < known.version
                news += known is None or answer[0] > known.version
            complaints += failed and known is not None and not in_trouble
            in_trouble = failed and known is not None
            assert fetch.outcome is not None
            assert known is None or (
                book.latest is not None and book.latest.version >= known.version
            )
        assert engine.told == news
        flush_all(20)
        assert len(lines.at_least(logging.WARNING, "milvus_lifecycle")) == complaints


def known(cluster: GlobalCluster) -> TopologyBook:
    """A book that has just heard of its cluster, and may ask again."""
    book = TopologyBook.of(config(cluster.uri))
    assert locate(TopologyLocator(book, time.monotonic()), connection(), None, 10).version == 1
    book.started -= FETCH_SPACING
    return book


def test_everybody_shares_a_fetch_that_began_before_he_asked(
    cluster: GlobalCluster, find: Callable[..., Call]
) -> None:
    """Joining is enough: nobody starts another fetch because his failure is a moment younger."""
    book = TopologyBook.of(config(cluster.uri))
    cluster.hold()
    first = find(TopologyLocator(book, time.monotonic()))
    wait_until(lambda: cluster.asked, 10)
    calls = [find(TopologyLocator(book, time.monotonic())) for _ in range(8)]
    wait_until(lambda: waiting_for_topology() == [9], 10)
    cluster.heal()
    places = {call.value(10).address for call in [first, *calls]}
    assert places == {"127.0.0.1:1001"}
    assert len(cluster.asked) == 1


def test_a_fetch_outlives_whoever_asked(cluster: GlobalCluster, find: Callable[..., Call]) -> None:
    """His time is over, the fetch goes on; the next attempt finds it where it is."""
    book = TopologyBook.of(config(cluster.uri))
    cluster.hold()
    hasty = find(TopologyLocator(book, time.monotonic()), timeout=0.2)
    wait_until(lambda: cluster.asked, 10)
    with pytest.raises(TopologyError) as caught:
        hasty.value(10)
    assert caught.value.reason is TopologyReason.DEADLINE
    asking = workers()
    patient = find(TopologyLocator(book, time.monotonic()))
    wait_until(lambda: waiting_for_topology() == [2], 10)
    assert not patient.done
    assert workers() <= asking
    cluster.heal()
    assert patient.value(20).address == "127.0.0.1:1001"
    assert len(cluster.asked) == 1


def test_a_cancelled_task_leaves_alone(cluster: GlobalCluster) -> None:
    """Who asked first is cancelled, who joined is cancelled: the fetch goes on for the others."""
    book = TopologyBook.of(config(cluster.uri))
    cluster.hold()

    def locating() -> Doing:
        locator = TopologyLocator(book, time.monotonic())
        return Doing(alocate(locator, connection(), None, 20))

    async def main() -> Located:
        calls = [locating()]
        await until(lambda: cluster.asked, 10)
        calls += [locating() for _ in range(2)]
        await until(lambda: waiting_for_topology() == [3], 10)
        for call in calls[:2]:
            call.cancel()
        await until(lambda: all(call.cancelled for call in calls[:2]), 10)
        cluster.heal()
        found: Located = await calls[2].value(20)
        return found

    assert asyncio.run(main()).address == "127.0.0.1:1001"
    assert len(cluster.asked) == 1


def test_a_loop_that_is_over_is_not_told(cluster: GlobalCluster) -> None:
    """Its task left when it ended; the fetch ends well for the next who asks."""
    book = TopologyBook.of(config(cluster.uri))
    cluster.hold()
    with pytest.raises(asyncio.TimeoutError):
        asyncio.run(
            asyncio.wait_for(
                alocate(TopologyLocator(book, time.monotonic()), connection(), None, 20), 0.1
            )
        )
    cluster.heal()
    assert locate(TopologyLocator(book, 0.0), connection(), None, 20).version == 1


def test_the_next_fetch_is_a_second_later(cluster: GlobalCluster) -> None:
    """However many ask, and whatever the last one came to."""
    book = TopologyBook.of(config(cluster.uri))
    cluster.behave(reply(b"", status=401))
    begun = []  # not when they arrived: on a busy machine one is on its way for longer
    for _ in range(2):
        with pytest.raises(TopologyError, match="refuses the token"):
            locate(TopologyLocator(book, time.monotonic()), connection(), None, 10)
        begun.append(book.started)
    cluster.heal()
    assert locate(TopologyLocator(book, time.monotonic()), connection(), None, 10).version == 1
    begun.append(book.started)
    assert len(cluster.asked) == 3
    assert min(later - sooner for sooner, later in pairwise(begun)) >= FETCH_SPACING


def test_a_fetch_serves_those_who_asked_before_it_began(cluster: GlobalCluster) -> None:
    """One that brought something, and for those who know something one that failed, too."""
    book = known(cluster)
    since = book.started
    assert book.fetch(since) is None
    cluster.behave(reply(b"", status=401))
    locate(TopologyLocator(book, time.monotonic(), flight()), connection(), None, 10)
    wait_until(lambda: not book.is_asking() and book.started > since, 10)
    asked = len(cluster.asked)
    assert locate(TopologyLocator(book, since, flight()), connection(), None, 10).version == 1
    assert len(cluster.asked) == asked


def test_passing_trouble_is_bridged(cluster: GlobalCluster, find: Callable[..., Call]) -> None:
    """Without anything known one answer that fails is not the end, nor are two."""
    book = TopologyBook.of(config(cluster.uri))
    bad = [reply(b"busy", 503), reply(b"<html>")]
    cluster.behave(lambda handler: (bad.pop() if bad else reply(cluster.body()))(handler))
    assert find(TopologyLocator(book, time.monotonic())).value(20).address == "127.0.0.1:1001"
    assert len(cluster.asked) == 3


def test_lasting_trouble_is_told(cluster: GlobalCluster, find: Callable[..., Call]) -> None:
    """After three fetches, or when the time is over, and always by its last cause."""
    book = TopologyBook.of(config(cluster.uri))
    cluster.behave(reply(b"", 503))
    hasty = find(TopologyLocator(book, time.monotonic()), timeout=0.5)
    patient = find(TopologyLocator(book, time.monotonic()))
    for call in (hasty, patient):
        with pytest.raises(TopologyError, match="HTTP 503"):
            call.value(20)
    assert len(cluster.asked) == 3


def test_a_fetch_that_ended_at_its_limit_is_followed_by_another(
    cluster: GlobalCluster, find: Callable[..., Call], monkeypatch: pytest.MonkeyPatch
) -> None:
    """It may have begun long before: a first connect that has time left asks again."""
    monkeypatch.setattr(global_cluster, "FETCH_LIMIT", 0.3)
    book = TopologyBook.of(config(cluster.uri))
    cluster.hold()
    call = find(TopologyLocator(book, time.monotonic()))
    wait_until(lambda: len(cluster.asked) == 2, 20)
    cluster.heal()
    assert call.value(20).address == "127.0.0.1:1001"


def test_a_fetch_may_take_as_long_as_a_recovery() -> None:
    """The longest budget of all managers that use the cluster, and ten seconds at least."""
    book = TopologyBook(config())
    limits = [book._limit]
    for budget in (40.0, 30.0, 2.0):
        book.attach(Moved(), budget)  # type: ignore[arg-type]
        limits.append(book._limit)
    assert limits == [10.0, 40.0, 40.0, 40.0]


class Violation(Exception):
    """What pymilvus raises for a write that a secondary refused."""

    code = 5
    message = f"{REPLICATE_VIOLATION_MARK}: not the primary"


@pytest.mark.parametrize(
    ("asker", "error", "waits"),
    [
        (lambda: None, None, False),
        (flight, None, False),
        (lambda: flight(attempts=1), None, False),
        (flight, Violation(), True),
        (lambda: flight(FlightKind.CONNECT), None, False),
        (lambda: flight(FlightKind.CONNECT, attempts=1), None, True),
    ],
    ids=["refresh", "recovery", "retry", "secondary", "connect", "refused connect"],
)
def test_who_waits_for_a_slow_service(
    cluster: GlobalCluster,
    find: Callable[..., Call],
    asker: Callable[[], Flight | None],
    error: Exception | None,
    waits: bool,
) -> None:
    """Those for whom the last known primary is worth no try; the others hear of it later."""
    book, asking = known(cluster), asker()
    cluster.hold()
    cluster.move(B)
    call = find(TopologyLocator(book, time.monotonic(), asking), error)
    wait_until(lambda: len(cluster.asked) == 2, 10)
    if not waits:
        assert call.value(10).address == "127.0.0.1:1001"
        assert book.is_asking()
    time.sleep(0.3)  # more than the start that a fetch is given
    assert call.done is not waits
    cluster.heal()
    there = ("127.0.0.1:1002", False)
    wait_until(lambda: book.latest is not None and book.place(book.latest) == there, 10)
    if waits:
        assert call.value(10).address == "127.0.0.1:1002"
    if asking is not None:
        asking.outcome = Outcome.LANDED


@pytest.mark.slow
def test_while_connections_are_down_one_fetch_follows_another(cluster: GlobalCluster) -> None:
    """Until their flights are over; then the thread ends."""
    book = known(cluster)
    engine, down, forgotten = Moved(), flight(), flight()
    book.attach(engine, 60.0)  # type: ignore[arg-type]
    forgotten.deadline = time.monotonic() + 1  # the flight of a loop that was dropped
    for each in (down, forgotten):
        locate(TopologyLocator(book, each.began, each), connection(), None, 10)
    cluster.behave(reply(b"", status=500))
    wait_until(lambda: len(cluster.asked) >= 4, 20)
    cluster.heal()
    cluster.move(B)
    wait_until(lambda: engine.told == 1, 20)
    down.outcome = Outcome.LANDED
    wait_until(lambda: book._worker is None, 20)
    asked = len(cluster.asked)
    assert book.fetch(0.0) is None
    assert len(cluster.asked) == asked


@pytest.mark.parametrize(("age", "pause"), [(0.0, 1.0), (5.0, 1.0), (30.0, 3.0), (60.0, 6.0)])
def test_the_pauses_grow_with_the_outage(age: float, pause: float) -> None:
    """A second at first, a tenth of its age later, and up to a fifth longer by chance."""
    book = TopologyBook(config())
    now = book._ended = time.monotonic()
    for began in (now, now - age):
        book._watchers.append(Flight(1, FlightKind.RECOVERY, began, now + 60))
    assert book._due(now) == pytest.approx(now + pause)
    book._jitter = 1.0
    assert book._due(now) == pytest.approx(now + 1.2 * pause)


def test_a_closed_connection_fetches_nothing(cluster: GlobalCluster) -> None:
    """What was about to fetch for it does not begin."""
    book = TopologyBook.of(config(cluster.uri))
    with pytest.raises(TopologyError):
        locate(TopologyLocator(book, 0.0), connection(State.CLOSED), None, 10)
    assert cluster.asked == []


def test_without_a_thread_to_be_had(
    cluster: GlobalCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever knows a primary goes there, whoever does not is told; the next one tries again."""
    unknown, book = TopologyBook(config()), known(cluster)
    wait_until(lambda: book._worker is None, 10)

    def start(thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", start)
        with pytest.raises(TopologyError, match="can't start new thread"):
            locate(TopologyLocator(unknown, 0.0), connection(), None, 10)
        down = flight(attempts=1)
        since = time.monotonic()
        found = locate(TopologyLocator(book, since, down), connection(), None, 10)
        assert found.address == "127.0.0.1:1001"
        # Nobody asks, and somebody watches: still no thread.
        assert locate(TopologyLocator(book, 0.0, down), connection(), None, 10) == found
    locate(TopologyLocator(book, since, down), connection(), None, 10)
    wait_until(lambda: len(cluster.asked) == 2, 10)
    down.outcome = Outcome.LANDED


def test_an_unreadable_ca_is_everybodys_config_error(
    tmp_path: Any, find: Callable[..., Call]
) -> None:
    """With nothing known the cause is the TLS file, and it is for good."""
    missing = tmp_path / "ca.pem"
    book = TopologyBook(
        config("https://x.global-cluster.localhost:1", server_pem_path=str(missing))
    )
    calls = [find(TopologyLocator(book, time.monotonic())) for _ in range(4)]
    for call in calls:
        with pytest.raises(ConfigError):
            call.value(10)


def test_a_strange_failure_is_told_to_everybody(
    find: Callable[..., Call], monkeypatch: pytest.MonkeyPatch
) -> None:
    """With nothing known the topology is unreachable, for the reason that the fetch had."""

    def fail(*args: object, **options: object) -> None:
        raise OSError("no route to host")

    monkeypatch.setattr(topology_fetch, "fetch_topology", fail)
    calls = [find(TopologyLocator(TopologyBook(config()), 0.0)) for _ in range(2)]
    for call in calls:
        with pytest.raises(TopologyError, match="no route to host") as caught:
            call.value(20)
        assert caught.value.reason is TopologyReason.UNREACHABLE


_FORK = """
import os, threading, time
from milvus_lifecycle.endpoints import topology_fetch
from milvus_lifecycle.config import ConnectionConfig
from milvus_lifecycle.endpoints.global_cluster import TopologyBook
from milvus_lifecycle.endpoints.topology import Cluster, Topology
config = ConnectionConfig.from_uri("http://x.global-cluster.localhost:1")
book = TopologyBook.of(config)
topology_fetch.fetch_topology = lambda *args, **options: threading.Event().wait()
parents = book.fetch(time.monotonic())
book._lock.acquire()          # as if another thread were in the middle of a step
TopologyBook._books_lock.acquire()
child = os.fork()
if child == 0:
    found = Topology(1, (Cluster("a", "a:1", 3),))
    topology_fetch.fetch_topology = lambda *args, **options: found
    fetch = TopologyBook.of(config).fetch(time.monotonic())
    ended = threading.Event()
    fetch.join(ended.set)
    ended.wait(20)
    os._exit(7 if fetch is not parents and fetch.outcome == found else 1)
print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""


def test_a_forked_child_fetches_for_itself() -> None:
    """The parent's fetch is not under way there, its thread not there, its locks not held."""
    done = subprocess.run(
        [sys.executable, "-c", _FORK],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    assert done.stdout.strip() == "7", done
