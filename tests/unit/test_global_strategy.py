"""A global cluster's strategy without I/O: what it asks for, and when it wants to move."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import pytest

from milvus_lifecycle.config import ConnectionConfig
from milvus_lifecycle.core.facts import Facts, Located
from milvus_lifecycle.endpoints.global_cluster import (
    FETCH_SPACING,
    GlobalStrategy,
    TopologyBook,
    TopologyLocator,
)
from milvus_lifecycle.endpoints.topology import Cluster, Topology
from milvus_lifecycle.errors import REPLICATE_VIOLATION_MARK, summarize
from milvus_lifecycle.table import State, Trigger
from milvus_lifecycle.testing import rpc_error
from tests.cores import Core
from tests.global_clusters import alocate, locate
from tests.rigs import Rig

URI = "http://x.global-cluster.localhost:1"


def topology(version: int, primary: str = "home:19530") -> Topology:
    return Topology(version, (Cluster("a", primary, 3),))


def strategy() -> GlobalStrategy:
    """A strategy whose book is nobody else's."""
    made = GlobalStrategy(ConnectionConfig.from_uri(URI, token="root:Milvus"))
    made.book = TopologyBook(made.config)
    return made


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
    failure = None if error is None else summarize(error)
    facts = Facts(now=core.clock(), failure=failure)
    assert core.connection.strategy.may_recover(core.life, facts) is recovers


def test_it_moves_when_the_primary_has() -> None:
    """Once the book names another primary than the address in use; never before it is connected."""
    it = strategy()
    core = Core(strategy=it)
    facts = Facts(now=0.0)
    assert not it.target_changed(core.life, facts), "nothing is known"
    it.book.latest = topology(1, "north:19530")
    assert not it.target_changed(core.life, facts), "it is nowhere yet"
    core.to(State.ACTIVE)
    assert it.target_changed(core.life, facts)
    assert core.step(Trigger.REROUTE).moved
    it.book.latest = topology(2)
    assert not it.target_changed(core.life, facts)


def test_a_topology_holds_once_a_channel_follows_it() -> None:
    """The one that was located is committed with the swap; a place without one changes nothing."""
    it = strategy()
    core = Core(strategy=it)
    assert it.version(core.life) is None
    it.book.latest = topology(3)
    assert it.version(core.life) == 3
    assert it.topology is None
    it.committed(core.life, Located("home:19530", detail=topology(3)))
    for nothing in (None, Located("home:19530")):
        it.committed(core.life, nothing)
        assert it.topology == topology(3)


def test_the_version_in_records_never_falls() -> None:
    """A move whose attempts fail, and a channel that serves on under a newer topology."""
    it = strategy()
    core = Core(strategy=it).to(State.ACTIVE)
    it.book.latest = topology(2, "north:19530")
    core.step(Trigger.REROUTE)
    flight = core.life.flight
    assert flight is not None
    core.step(Trigger.RETRY, rpc_error("UNAVAILABLE"), flight=flight.number)
    wire = core.wire()
    assert core.life.offer(flight, wire)
    place = Located("north:19530", version=2)
    core.step(Trigger.RECOVERED, flight=flight.number, wire=wire, identifier="i", located=place)
    core.step(Trigger.FAIL, rpc_error("UNAVAILABLE"), generation=2)
    place = Located("north:19530", version=3)
    core.step(Trigger.STAND_DOWN, flight=core.life.flights, located=place, unchanged=True)
    core.step(Trigger.CLOSE)
    seen = [record.topology_version for record in core.records[2:]]
    assert seen == [2, 2, 2, 2, 3, 3]


def test_managers_that_use_a_cluster_hear_of_it() -> None:
    """News reaches whoever has a connection to the cluster."""
    it = strategy()
    with Rig(it) as rig:
        rig.manager._pool.create(it.config, dedicated=False)
        assert it.moved == rig.manager._pool.maintenance.plan_reroutes
        assert list(it.book._strategies) == [it]


def locator(core: Core) -> TopologyLocator:
    found = core.connection.strategy.locator(core.life)
    assert isinstance(found, TopologyLocator)
    return found


def test_a_first_connect_takes_what_was_just_heard() -> None:
    """Nothing has failed yet: the topology of a second ago will do."""
    core = Core(strategy=strategy())
    core.connection.lease(None)
    core.step(Trigger.ACQUIRE)
    first = locator(core)
    assert first.since == core.clock() - FETCH_SPACING
    assert first.flight is core.connection.lifecycle.flight


def test_a_failure_wants_news() -> None:
    """A recovery wants to hear what was fetched since it began, at each attempt."""
    core = Core(strategy=strategy()).to(State.RECOVERING)
    began = core.clock()
    core.clock.advance(5)
    flight = core.connection.lifecycle.flight
    assert flight is not None
    core.step(Trigger.RETRY, flight=flight.number, error=rpc_error("UNAVAILABLE"))
    again = locator(core)
    assert (again.since, again.flight) == (began, flight)


@pytest.mark.parametrize(("every", "since"), [(300.0, 150.0), (None, 0.0)])
def test_a_refresh_is_shared(every: float | None, since: float) -> None:
    """In the background, one fetch in half a period serves every connection of the cluster."""
    core = Core(strategy=strategy(), topology_refresh=every).to(State.ACTIVE)
    found = locator(core)
    assert found.flight is None
    assert found.since == core.clock() - since


@pytest.mark.parametrize(
    ("ago", "due"), [(0.0, 300.0), (100.0, 200.0), (200.0, 150.0), (10_000.0, 150.0)]
)
def test_a_refresh_is_due_a_period_after_the_last_fetch(ago: float, due: float) -> None:
    """Whoever led that; but never sooner than half a period from now."""
    it = strategy()
    core = Core(strategy=it, topology_refresh=300.0)
    it.book.started = core.clock() - ago
    assert it.refresh_every(core.life) == due


def test_no_refresh_without_a_period() -> None:
    """``topology_refresh=None`` means never."""
    it = strategy()
    assert it.refresh_every(Core(strategy=it, topology_refresh=None).life) is None


def test_a_move_goes_where_the_book_says() -> None:
    """Without asking anybody, in both flavours."""
    it = strategy()
    core = Core(strategy=it).to(State.ACTIVE)
    it.book.latest = topology(4, "north:19530")
    core.step(Trigger.REROUTE)
    found = locator(core)
    places = [
        locate(found, core.life),
        asyncio.run(alocate(found, core.life)),
    ]
    assert [(place.address, place.version) for place in places] == [("north:19530", 4)] * 2
    assert not it.awaits_news()


def test_a_first_connect_that_was_refused_waits_for_a_fetch_under_way() -> None:
    """It may name another primary; once it has ended there is nothing to wait for."""
    it = strategy()
    it.book.latest = topology(1)
    it.book.started = time.monotonic() + 60  # so that it has to wait for its turn
    assert not it.awaits_news()
    it.book.fetch(time.monotonic() + 120)
    assert it.awaits_news()
