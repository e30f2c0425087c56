"""A global cluster's strategy without I/O: what it asks for, and when it wants to move."""

from __future__ import annotations

import asyncio
import time
from concurrent.futures import Future
from typing import Any

import pytest

from milvus_lifecycle.config import ConnectionConfig
from milvus_lifecycle.errors import REPLICATE_VIOLATION_MARK, TopologyError, TopologyReason
from milvus_lifecycle.facts import Facts, Located
from milvus_lifecycle.global_cluster import (
    FETCH_SPACING,
    GlobalStrategy,
    TopologyBook,
    TopologyLocator,
)
from milvus_lifecycle.table import State, Trigger
from milvus_lifecycle.testing import rpc_error
from milvus_lifecycle.topology import Cluster, Topology
from tests.cores import Core
from tests.observe import Call
from tests.rigs import Rig

URI = "http://x.global-cluster.localhost:1"


def topology(version: int, primary: str = "home:19530") -> Topology:
    return Topology(version, (Cluster("a", primary, 3),))


def strategy() -> GlobalStrategy:
    """A strategy whose book is nobody else's."""
    made = GlobalStrategy(ConnectionConfig.from_uri(URI, token="root:Milvus"))
    made.book = TopologyBook(made.config)
    return made


def leading(book: TopologyBook) -> Future[Topology]:
    """A fetch that somebody leads."""
    turn = book.turn(time.monotonic())
    assert turn is not None
    assert turn.fetch is not None
    assert turn.leads
    return turn.fetch


class Status(Exception):
    """What pymilvus raises for a write that a secondary refused."""

    code = 5
    message = f"{REPLICATE_VIOLATION_MARK}: not the primary"


@pytest.mark.parametrize(
    ("error", "recovers"),
    [
        (None, True),
        (rpc_error("UNAVAILABLE"), True),
        (Status(), True),
        (rpc_error("DEADLINE_EXCEEDED"), False),
        (ValueError("mine"), False),
    ],
    ids=["none", "unavailable", "secondary", "deadline", "other"],
)
def test_a_write_to_a_secondary_is_a_reason_to_recover(error: Any, recovers: bool) -> None:
    """As is a server that is away; nothing else is."""
    core = Core(strategy=strategy())
    facts = Facts(now=core.clock(), error=error)
    assert core.connection.strategy.may_recover(core.connection, facts) is recovers


def test_it_moves_when_the_primary_has() -> None:
    """Once the book names another primary than the address in use; never before it is connected."""
    it = strategy()
    core = Core(strategy=it)
    facts = Facts(now=0.0)
    assert not it.target_changed(core.connection, facts), "nothing is known"
    it.book.latest = topology(1, "north:19530")
    assert not it.target_changed(core.connection, facts), "it is nowhere yet"
    core.to(State.ACTIVE)
    assert it.target_changed(core.connection, facts)
    assert core.step(Trigger.REROUTE).moved
    it.book.latest = topology(2)
    assert not it.target_changed(core.connection, facts)


def test_a_topology_holds_once_a_channel_follows_it() -> None:
    """The one that was located is committed with the swap; a place without one changes nothing."""
    it = strategy()
    core = Core(strategy=it)
    assert it.version(core.connection) is None
    it.book.latest = topology(3)
    assert it.version(core.connection) == 3
    assert it.topology is None
    it.committed(core.connection, Located("home:19530", detail=topology(3)))
    for nothing in (None, Located("home:19530")):
        it.committed(core.connection, nothing)
        assert it.topology == topology(3)


def test_managers_that_use_a_cluster_hear_of_it() -> None:
    """News reaches whoever has a connection to the cluster."""
    it = strategy()
    with Rig(it) as rig:
        rig.manager.create(it.config, dedicated=False)
        assert list(it.book.engines) == [rig.manager]


def locator(core: Core) -> TopologyLocator:
    found = core.connection.strategy.locator(core.connection)
    assert isinstance(found, TopologyLocator)
    return found


def test_a_first_connect_takes_what_was_just_heard() -> None:
    """Nothing has failed yet: the topology of a second ago will do."""
    core = Core(strategy=strategy())
    core.connection.lease(None)
    core.step(Trigger.ACQUIRE)
    first = locator(core)
    assert first.since == core.clock() - FETCH_SPACING
    assert (first.fresh, first.patient) == (True, False)


def test_a_failure_wants_news_and_a_move_does_not() -> None:
    """A mandatory recovery fetches; a reroute goes where the book says; a retry fetches again."""
    core = Core(strategy=strategy()).to(State.RECOVERING)
    failed = locator(core)
    assert (failed.since, failed.fresh) == (core.clock(), True)
    core.clock.advance(5)
    flight = core.connection.flight
    assert flight is not None
    core.step(Trigger.RETRY, flight=flight.number, error=rpc_error("UNAVAILABLE"))
    again = locator(core)
    assert (again.since, again.fresh) == (core.clock(), True)

    it = strategy()
    moving = Core(strategy=it).to(State.ACTIVE)
    it.book.latest = topology(1, "north:19530")
    moving.step(Trigger.REROUTE)
    assert not locator(moving).fresh


@pytest.mark.parametrize(("every", "since"), [(300.0, 150.0), (None, 0.0)])
def test_a_refresh_is_patient_and_shared(every: float | None, since: float) -> None:
    """In the background, one fetch in half a period serves every connection of the cluster."""
    core = Core(strategy=strategy(), topology_refresh=every).to(State.ACTIVE)
    found = locator(core)
    assert found.patient
    assert found.since == core.clock() - since


@pytest.mark.parametrize(
    ("ago", "due"), [(0.0, 300.0), (100.0, 200.0), (200.0, 150.0), (10_000.0, 150.0)]
)
def test_a_refresh_is_due_a_period_after_the_last_fetch(ago: float, due: float) -> None:
    """Whoever led that; but never sooner than half a period from now."""
    it = strategy()
    core = Core(strategy=it, topology_refresh=300.0)
    it.book._started = core.clock() - ago
    assert it.refresh_every(core.connection) == due


def test_no_refresh_without_a_period() -> None:
    """``topology_refresh=None`` means never."""
    it = strategy()
    assert it.refresh_every(Core(strategy=it, topology_refresh=None).connection) is None


# -- locating without a service -------------------------------------------------------------------


def connection() -> Any:
    return Core(strategy=strategy()).connection


def test_a_move_goes_where_the_book_says() -> None:
    """Without asking anybody, in both flavours."""
    book = strategy().book
    book.latest = topology(4, "north:19530")
    found = TopologyLocator(book, time.monotonic(), fresh=False)
    places = [
        found.locate(connection(), None, 10.0),
        asyncio.run(found.alocate(connection(), None, 10.0)),
    ]
    assert [(place.address, place.version) for place in places] == [("north:19530", 4)] * 2


def test_a_strange_failure_of_the_leader_is_told_by_its_joiners() -> None:
    """With nothing known the topology is unreachable, for the reason that the leader had."""
    book = strategy().book
    fetch = leading(book)
    joined = Call(TopologyLocator(book, 0.0).locate, connection(), None, 20.0)
    book.settle(fetch, OSError("no route to host"))
    with pytest.raises(TopologyError, match="no route to host") as caught:
        joined.value(20)
    assert caught.value.reason is TopologyReason.UNREACHABLE


def test_a_joiner_leaves_at_its_own_time() -> None:
    """A fetch that goes on without end does not keep it, and is not ended by it."""
    book = strategy().book
    fetch = leading(book)
    with pytest.raises(TopologyError) as caught:
        asyncio.run(TopologyLocator(book, 0.0).alocate(connection(), None, 0.05))
    assert caught.value.reason is TopologyReason.DEADLINE
    assert not fetch.done()
    book.settle(fetch, topology(1))
    assert book.latest == topology(1)


def test_a_fetch_of_before_the_fork_does_not_end_the_childs() -> None:
    """What the parent's leader brings, if anything of it runs on, is not taken for the child's."""
    book = strategy().book
    parents = leading(book)
    book.fork_child()
    book._started = float("-inf")  # without the second between two fetches
    own = leading(book)
    book.settle(parents, OSError("gone"))
    turn = book.turn(0.0)
    assert turn is not None
    assert (turn.fetch, turn.leads) == (own, False)
