"""A cluster's book: whose turn it is to fetch, who joins, and which version holds."""

from __future__ import annotations

import asyncio
import gc
import logging
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from milvus_lifecycle.config import ConnectionConfig
from milvus_lifecycle.errors import ConfigError, TopologyError, TopologyReason
from milvus_lifecycle.facts import Located
from milvus_lifecycle.global_cluster import FETCH_SPACING, TopologyBook, TopologyLocator
from milvus_lifecycle.stream import flush_all
from milvus_lifecycle.table import State
from milvus_lifecycle.topology import Cluster, Topology
from tests.global_clusters import GlobalCluster
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


def lead(book: TopologyBook) -> Future[Topology]:
    """Take the next turn to lead, once it is allowed."""
    taken: list[Future[Topology]] = []

    def take() -> bool:
        turn = book.turn(time.monotonic())
        if turn is not None and turn.leads and turn.fetch is not None:
            taken.append(turn.fetch)
        return bool(taken)

    assert wait_until(take, 10 * FETCH_SPACING)
    return taken[0]


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


def test_one_leads_and_the_others_join() -> None:
    """While a fetch is under way everybody gets that one, however late he asks."""
    book = TopologyBook(config())
    leader = book.turn(time.monotonic())
    assert leader is not None
    assert leader.leads
    for since in (0.0, time.monotonic(), time.monotonic() + 100):
        turn = book.turn(since)
        assert turn is not None
        assert (turn.fetch, turn.leads) == (leader.fetch, False)


def test_the_next_fetch_is_a_second_later() -> None:
    """After a fetch: nothing to do for those whom it serves, a pause for those whom it does not."""
    book = TopologyBook(config())
    before = time.monotonic()
    book.settle(lead(book), topology(1))
    assert book.turn(before) is None
    turn = book.turn(time.monotonic())
    assert turn is not None
    assert (turn.fetch, turn.leads) == (None, False)
    assert 0 < turn.pause <= FETCH_SPACING


def test_a_failed_fetch_serves_only_those_who_know_something() -> None:
    """With a last known primary it will do; without one there is nothing but asking again."""
    error = TopologyError(TopologyReason.UNREACHABLE, "no")
    book = TopologyBook(config())
    before = time.monotonic()
    book.settle(lead(book), error)
    turn = book.turn(before)
    assert turn is not None
    assert turn.pause > 0
    book.latest = topology(1)
    assert book.turn(before) is None


def test_a_version_that_goes_back_is_refused() -> None:
    """What is known stays, and those who joined learn why."""
    book = TopologyBook(config())
    book.latest = topology(5)
    fetch = lead(book)
    book.settle(fetch, topology(4, "b"))
    assert book.latest == topology(5)
    error = fetch.exception(0)
    assert isinstance(error, TopologyError)
    assert error.reason is TopologyReason.OUTDATED
    assert book.config.address in str(error)


class Moved:
    """A manager that only counts how often it is told."""

    def __init__(self) -> None:
        self.told = 0

    def post(self, job: Callable[[], object]) -> None:
        self.told += 1

    def reroute_all(self) -> None:
        """What it is told to do."""


outcomes = st.tuples(st.integers(0, 5), st.sampled_from("ab")) | st.sampled_from(
    [TopologyReason.UNREACHABLE, TopologyReason.GARBAGE, TopologyReason.DEADLINE]
)


@given(st.lists(outcomes, min_size=1, max_size=12))
def test_a_book_never_goes_back(answers: list[tuple[int, str] | TopologyReason]) -> None:
    """Whatever comes in whatever order: the version grows, managers hear of news and of nothing
    else, and an outage of the service is one line."""
    book, engine = TopologyBook(config()), Moved()
    book.attach(engine)  # type: ignore[arg-type]  # all of an Engine that a book needs
    news = complaints = 0
    in_trouble = False
    with LogLines(logging.DEBUG) as lines:
        for answer in answers:
            known, fetch = book.latest, Future[Topology]()
            book._fetch = fetch  # without the second between two fetches
            if isinstance(answer, TopologyReason):
                book.settle(fetch, TopologyError(answer, "no"))
                failed = True
            else:
                book.settle(fetch, topology(*answer))
                failed = known is not None and answer[0] < known.version
                news += known is None or answer[0] > known.version
            complaints += failed and known is not None and not in_trouble
            in_trouble = failed and known is not None
            assert fetch.done()
            assert known is None or (
                book.latest is not None and book.latest.version >= known.version
            )
        assert engine.told == news
        flush_all(20)
        assert len(lines.at_least(logging.WARNING, "milvus_lifecycle")) == complaints


def test_many_locators_share_a_fetch_that_began_before_they_asked(cluster: GlobalCluster) -> None:
    """Joining is enough: nobody starts another fetch because his failure is a moment younger."""
    book = TopologyBook.of(config(cluster.uri))
    cluster.hold()
    first = Call(TopologyLocator(book, time.monotonic()).locate, connection(), None, 10)
    assert wait_until(lambda: cluster.asked, 10)
    calls = [
        Call(TopologyLocator(book, time.monotonic()).locate, connection(), None, 10)
        for _ in range(8)
    ]
    time.sleep(0.1)  # so that they have joined
    cluster.heal()
    places = {call.value(10).address for call in [first, *calls]}
    assert places == {"127.0.0.1:1001"}
    assert len(cluster.asked) == 1


def test_waiting_for_a_turn_leaves_the_fetch_its_time(cluster: GlobalCluster) -> None:
    """A recovery that comes just after a fetch hears of the new primary by the next one."""
    book = TopologyBook.of(config(cluster.uri))
    TopologyLocator(book, time.monotonic()).locate(connection(), None, 10)
    cluster.move(B)
    cluster.delay = 0.3
    found = TopologyLocator(book, time.monotonic()).locate(connection(), None, 1.0)
    assert (found.address, found.version) == ("127.0.0.1:1002", 2)
    assert cluster.asked[1] - cluster.asked[0] > FETCH_SPACING * 0.9


def test_a_recovery_asks_once_and_falls_back(cluster: GlobalCluster) -> None:
    """With a last known primary a failing service costs one request, not three with pauses."""
    book = TopologyBook.of(config(cluster.uri))
    TopologyLocator(book, time.monotonic()).locate(connection(), None, 10)
    cluster.behave(reply(b"", status=500))
    found = TopologyLocator(book, time.monotonic()).locate(connection(), None, 10)
    assert found.address == "127.0.0.1:1001"
    assert len(cluster.asked) == 2


def test_a_first_connect_asks_again(cluster: GlobalCluster) -> None:
    """Without anything known one failing answer is not the end."""
    book = TopologyBook.of(config(cluster.uri))
    cluster.behave(reply(b"", status=500))
    call = Call(TopologyLocator(book, time.monotonic()).locate, connection(), None, 10)
    assert wait_until(lambda: cluster.asked, 10)
    cluster.heal()
    assert call.value(20).address == "127.0.0.1:1001"
    assert len(cluster.asked) == 2


def test_a_closed_connection_fetches_nothing(cluster: GlobalCluster) -> None:
    """What was about to fetch for it does not begin."""
    book = TopologyBook.of(config(cluster.uri))
    with pytest.raises(TopologyError):
        TopologyLocator(book, 0.0).locate(connection(State.CLOSED), None, 10)
    assert cluster.asked == []


def test_a_leader_out_of_time_hands_over(cluster: GlobalCluster) -> None:
    """A hasty first connect leads and fails; a patient one that joined leads the next fetch."""
    book = TopologyBook.of(config(cluster.uri))
    cluster.hold()
    hasty = Call(TopologyLocator(book, time.monotonic()).locate, connection(), None, 0.5)
    assert wait_until(lambda: cluster.asked, 10)
    patient = Call(TopologyLocator(book, time.monotonic()).locate, connection(), None, 20)
    with pytest.raises(TopologyError) as caught:
        hasty.value(10)
    assert caught.value.reason is TopologyReason.DEADLINE
    assert not patient.done
    cluster.heal()
    assert patient.value(20).address == "127.0.0.1:1001"


def test_a_cancelled_leader_hands_over(cluster: GlobalCluster) -> None:
    """In asyncio: the leading task is cancelled, the others lead and join the next fetch."""
    book = TopologyBook.of(config(cluster.uri))

    async def main() -> list[Located]:
        cluster.hold()
        leader = Doing(TopologyLocator(book, time.monotonic()).alocate(connection(), None, 20))
        assert await until(lambda: cluster.asked, 10)
        others = [
            Doing(TopologyLocator(book, time.monotonic()).alocate(connection(), None, 20))
            for _ in range(3)
        ]
        await asyncio.sleep(0.05)
        leader.cancel()
        cluster.heal()
        found = [await call.value(20) for call in others]
        assert leader.cancelled
        return found

    assert {found.address for found in asyncio.run(main())} == {"127.0.0.1:1001"}
    assert len(cluster.asked) == 2


def test_a_cancelled_joiner_leaves_alone(cluster: GlobalCluster) -> None:
    """A thread leads, a task that joined is cancelled: the fetch goes on for everybody else."""
    book = TopologyBook.of(config(cluster.uri))
    cluster.hold()
    leader = Call(TopologyLocator(book, time.monotonic()).locate, connection(), None, 20)
    assert wait_until(lambda: cluster.asked, 10)

    async def join_and_leave() -> bool:
        joiner = Doing(TopologyLocator(book, time.monotonic()).alocate(connection(), None, 20))
        await asyncio.sleep(0.05)
        joiner.cancel()
        await until(lambda: joiner.done, 5)
        return joiner.cancelled

    assert asyncio.run(join_and_leave())
    cluster.heal()
    assert leader.value(20).address == "127.0.0.1:1001"
    assert len(cluster.asked) == 1


def test_an_unreadable_ca_is_everybodys_config_error(tmp_path: Any) -> None:
    """Leader or not, with nothing known the cause is the TLS file, and it is for good."""
    missing = tmp_path / "ca.pem"
    book = TopologyBook(
        config("https://x.global-cluster.localhost:1", server_pem_path=str(missing))
    )
    with pytest.raises(ConfigError):
        TopologyLocator(book, time.monotonic()).locate(connection(), None, 5)
    with pytest.raises(ConfigError):
        asyncio.run(TopologyLocator(book, time.monotonic()).alocate(connection(), None, 5))
    fetch = lead(book)
    joined = Call(TopologyLocator(book, 0.0).locate, connection(), None, 5)
    book.settle(fetch, ConfigError("ca.pem cannot be read"))
    with pytest.raises(ConfigError):
        joined.value(10)


def test_a_fetch_joined_by_threads_wakes_them_all() -> None:
    """Sixteen threads that wait for one fetch have its outcome at once."""
    book = TopologyBook(config())
    book.latest = topology(1)
    fetch = lead(book)
    calls = [Call(TopologyLocator(book, 0.0).locate, connection(), None, 20) for _ in range(16)]
    assert all(not call.done for call in calls)
    book.settle(fetch, topology(2, "b"))
    assert {call.value(10).version for call in calls} == {2}
    assert threading.active_count() < 100


_FORK = """
import os, time
from milvus_lifecycle.config import ConnectionConfig
from milvus_lifecycle.global_cluster import TopologyBook
config = ConnectionConfig.from_uri("http://x.global-cluster.localhost:1")
book = TopologyBook.of(config)
turn = book.turn(time.monotonic())
assert turn.leads
book._lock.acquire()             # as if another thread were in the middle of a step
TopologyBook._books_lock.acquire()
child = os.fork()
if child == 0:
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline:
        turn = TopologyBook.of(config).turn(time.monotonic())
        if turn is not None and turn.leads:
            os._exit(7)
        time.sleep(0.02)
    os._exit(1)
print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""


def test_a_forked_child_fetches_for_itself() -> None:
    """The parent's fetch is not under way there, and its locks are not held there."""
    done = subprocess.run(
        [sys.executable, "-c", _FORK],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    assert done.stdout.strip() == "7", done
