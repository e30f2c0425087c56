"""Global clusters in the threads flavour: following the primary, planned and unplanned."""

from __future__ import annotations

import asyncio
import gc
import threading
import time
from collections.abc import Callable
from typing import Any

import grpc
import pytest
from pymilvus import AsyncMilvusClient
from pymilvus.exceptions import MilvusException

from tests.conftest import Engine
from tests.global_clusters import GlobalCluster, violated
from tests.network import free_port, open_sockets_to
from tests.observe import Call, ChannelCount, wait_until
from tests.servers import FakeMilvus, RpcFailure, ServedCall

pytestmark = [pytest.mark.timeout(90), pytest.mark.policy(topology_refresh=0.5)]

#: The promise is one second; a test allows ten times that.
MOVE_LIMIT = 10.0


def test_a_planned_switch_moves_before_the_first_error(
    engine: Engine, cluster: GlobalCluster, old: FakeMilvus, new: FakeMilvus
) -> None:
    """A refresh shows a new primary: the connection moves, a running RPC finishes on the old one.

    Nothing fails and nothing is sent twice; the old channel is closed once it has drained.
    """
    client = engine.client(cluster.uri, token="root:pw")
    assert client.list_collections() == ["old"]
    hold = old.hold("HasPartition")
    running = Call(client.has_partition, "demo", "part")
    assert wait_until(lambda: hold.waiting == 1, 10)

    named = cluster.move(new)
    assert engine.saw("recovered", limit=20)
    refreshed = min(at for at in cluster.asked if at > named)
    assert time.monotonic() - refreshed < MOVE_LIMIT
    assert client.list_collections() == ["new"]
    assert not running.done
    assert open_sockets_to(old.port) == 1

    hold.release()
    assert running.value(10) is False
    assert (old.count("HasPartition"), new.count("HasPartition")) == (1, 0)
    assert wait_until(lambda: open_sockets_to(old.port) == 0, 10)
    assert [record.trigger for record in engine.transitions()][2:] == ["reroute", "recovered"]


def test_every_connection_of_the_process_moves_with_one_refresh(
    engine: Engine, cluster: GlobalCluster, new: FakeMilvus
) -> None:
    """Shared and dedicated connections, of threads and of a loop, move by the same fetch."""
    clients = [engine.client(cluster.uri, token="root:pw")]
    clients += [engine.client(cluster.uri, token="root:pw", dedicated=True) for _ in range(3)]
    for client in clients:
        client.list_collections()

    async def move() -> list[str]:
        there = AsyncMilvusClient(cluster.uri, token="root:pw")
        await there.list_collections()
        named = await asyncio.to_thread(cluster.move, new)
        deadline = named + 2 * MOVE_LIMIT
        while await there.list_collections() != ["new"] and time.monotonic() < deadline:
            await asyncio.sleep(0.01)
        listed: list[str] = await there.list_collections()
        return listed

    assert asyncio.run(move()) == ["new"]
    assert wait_until(lambda: len(engine.transitions("recovered")) == 4, MOVE_LIMIT)
    assert [client.list_collections() for client in clients] == [["new"]] * 4
    assert engine.transitions("fail") == []
    reroutes = engine.transitions("reroute")
    assert {record.topology_version for record in reroutes} == {2}


@pytest.mark.policy(topology_refresh=None)
def test_unavailable_leads_to_the_new_primary(
    engine: Engine, cluster: GlobalCluster, old: FakeMilvus, new: FakeMilvus
) -> None:
    """The primary dies, the topology names another: no call fails."""
    client = engine.client(cluster.uri, token="root:pw")
    client.list_collections()
    old.stop()
    call = Call(client.list_collections)
    assert engine.saw("fail")
    named = cluster.move(new)
    assert call.value(30) == ["new"]
    assert time.monotonic() - named < MOVE_LIMIT
    (landing,) = engine.transitions("recovered")
    assert (landing.address, landing.topology_version) == (new.address, 2)


@pytest.mark.policy(topology_refresh=None)
@pytest.mark.parametrize("method", ["has_partition", "list_collections"])
def test_a_replicate_violation_leads_to_the_new_primary(
    engine: Engine, cluster: GlobalCluster, old: FakeMilvus, new: FakeMilvus, method: str
) -> None:
    """A server that says it is no longer the primary is left for the one that the topology names.

    Nothing is sent to it again, and calls that it refuses later move nothing a second time.
    """
    client = engine.client(cluster.uri, token="root:pw")
    client.list_collections()
    before = old.count("ShowCollections")
    rpc = {"has_partition": "HasPartition", "list_collections": "ShowCollections"}[method]
    hold = old.hold(rpc)

    def refuse(call: ServedCall) -> Any:
        hold(call)
        return violated(rpc)

    old.on(rpc, refuse)
    arguments = ("demo", "part") if method == "has_partition" else ()
    calls = [Call(getattr(client, method), *arguments) for _ in range(6)]
    assert wait_until(lambda: hold.waiting == 6, 10)
    cluster.move(new)
    hold.release_one()
    assert wait_until(lambda: any(call.done for call in calls), 20)
    for _ in range(5):
        hold.release_one()
    assert wait_until(lambda: all(call.done for call in calls), 20)
    assert [call.error for call in calls] == [None] * 6
    assert old.count(rpc) == 6 + (before if rpc == "ShowCollections" else 0)
    assert new.count(rpc) == 6
    assert [record.trigger for record in engine.transitions()][2:] == ["fail", "recovered"]
    (fail,) = engine.transitions("fail")
    assert fail.error_code == "REPLICATE_VIOLATION"


@pytest.mark.policy(topology_refresh=None)
@pytest.mark.parametrize("refusal", ["UNAVAILABLE", "REPLICATE_VIOLATION"])
def test_the_same_primary_that_answers_is_kept(
    engine: Engine, cluster: GlobalCluster, old: FakeMilvus, refusal: str
) -> None:
    """The topology still names the server, and it answers: stand down, on the channel there is."""
    client = engine.client(cluster.uri, token="root:pw")
    client.list_collections()
    failing = iter([True])

    def fail_once(call: ServedCall) -> Any:
        if not next(failing, False):
            return None
        if refusal == "UNAVAILABLE":
            raise RpcFailure(grpc.StatusCode.UNAVAILABLE)
        return violated(call.method)

    old.on("ShowCollections", fail_once)
    with ChannelCount() as channels:
        assert client.list_collections() == ["old"]
    assert len(channels) == 0
    assert [record.trigger for record in engine.transitions()][2:] == ["fail", "stand_down"]
    (landing,) = engine.transitions("stand_down")
    assert (landing.dest, landing.generation, landing.topology_version) == ("ACTIVE", 1, 1)
    assert wait_until(lambda: len(cluster.asked) == 2, 10)


def test_a_replicate_violation_changes_nothing_on_a_regular_connection(
    engine: Engine, old: FakeMilvus
) -> None:
    """It is the caller's error; the connection stays as it is."""
    client = engine.client(old.uri)
    old.on("ShowCollections", lambda call: violated(call.method))
    with pytest.raises(MilvusException, match="REPLICATE_VIOLATION"):
        client.list_collections()
    assert [record.trigger for record in engine.transitions()] == ["acquire", "probe_passed"]


def test_records_say_which_topology_caused_them(
    engine: Engine, cluster: GlobalCluster, old: FakeMilvus, new: FakeMilvus
) -> None:
    """Connect, reroute and landing carry the version that they followed."""
    client = engine.client(cluster.uri, token="root:pw")
    client.list_collections()
    cluster.move(new)
    assert wait_until(lambda: len(engine.transitions("recovered")) == 1, 20)
    cluster.move(old)
    assert wait_until(lambda: len(engine.transitions("recovered")) == 2, 20)
    seen = [
        (record.trigger, record.topology_version, record.strategy)
        for record in engine.transitions()
    ]
    assert seen[1:] == [
        ("probe_passed", 1, "global"),
        ("reroute", 2, "global"),
        ("recovered", 2, "global"),
        ("reroute", 3, "global"),
        ("recovered", 3, "global"),
    ]


@pytest.mark.policy(topology_refresh=0.4)
def test_refreshing_ends_with_the_last_client(
    engine: Engine, cluster: GlobalCluster, new_threads: Callable[[], set[str]]
) -> None:
    """While nobody holds the connection nothing is fetched, and no thread is left for it."""
    client = engine.client(cluster.uri, token="root:pw")
    assert wait_until(lambda: len(cluster.asked) >= 3, 20)
    client.close()
    time.sleep(0.3)  # a refresh that was under way at that moment
    asked = len(cluster.asked)
    time.sleep(2.5)  # time for two refreshes
    assert len(cluster.asked) == asked
    assert not [name for name in new_threads() if "refresh" in name]
    engine.manager.close_all()
    assert wait_until(lambda: not _own(new_threads()), 10), new_threads()


def _own(names: set[str]) -> list[str]:
    return [name for name in names if name.startswith("milvus-lifecycle")]


@pytest.mark.policy(topology_refresh=1.5)
def test_many_connections_of_a_cluster_refresh_like_one(
    engine: Engine, cluster: GlobalCluster
) -> None:
    """Ten dedicated connections fetch as often as one would, and never two at a time."""
    clients = [engine.client(cluster.uri, token="root:pw", dedicated=True) for _ in range(10)]
    assert all(client.list_collections() == ["old"] for client in clients)
    began, before = time.monotonic(), len(cluster.asked)
    assert wait_until(lambda: len(cluster.asked) >= before + 4, 30)
    # Four refreshes take at least three times the shortest interval (jitter: 20 %).
    assert time.monotonic() - began > 3 * 1.5 * 0.8
    assert cluster.most_at_once == 1


@pytest.mark.policy(topology_refresh=None)
def test_one_fetch_serves_threads_and_loops_at_once(
    engine: Engine,
    cluster: GlobalCluster,
    old: FakeMilvus,
    new: FakeMilvus,
) -> None:
    """Connections of both flavours that lose the primary together join one fetch."""
    clients = [engine.client(cluster.uri, token="root:pw", dedicated=True) for _ in range(4)]
    for client in clients:
        client.list_collections()
    started, done = threading.Event(), threading.Event()

    async def lose() -> list[Any]:
        mine = [AsyncMilvusClient(cluster.uri, token="root:pw", dedicated=True) for _ in range(4)]
        await asyncio.gather(*(client.list_collections() for client in mine))
        started.set()
        await asyncio.to_thread(done.wait, 30)
        return await asyncio.gather(*(client.list_collections() for client in mine))

    loop = Call(asyncio.run, lose())
    assert started.wait(20)
    before = len(cluster.asked)
    time.sleep(1.0)  # at most one fetch a second: let the next one be allowed
    cluster.hold()
    old.stop()
    cluster.move(new)
    calls = [Call(client.list_collections) for client in clients]
    done.set()
    assert wait_until(lambda: len(cluster.asked) > before, 10)
    assert wait_until(lambda: len(engine.transitions("fail")) == 4, 10)
    time.sleep(0.2)  # so that the loop's connections have joined too
    cluster.heal()
    assert [call.value(30) for call in calls] == [["new"]] * 4
    assert loop.value(30) == [["new"]] * 4
    assert cluster.most_at_once == 1
    assert len(cluster.asked) == before + 1


def test_a_first_connect_without_topology_service_says_so_and_leaves_nothing(
    engine: Engine, cluster: GlobalCluster, new_threads: Callable[[], set[str]]
) -> None:
    """One clear error that names the service, within the client's timeout; nothing is left."""
    cluster.proxy.set_mode("refuse")
    call = Call(engine.client, cluster.uri, token="root:s3cr3t", timeout=2)
    assert wait_until(lambda: call.done, 20)
    assert isinstance(call.error, MilvusException)
    text = str(call.error)
    assert cluster.address in text
    assert "TopologyError" in text
    assert "refused" in text
    assert "s3cr3t" not in text
    assert engine.stats()["total_connections"] == 0
    assert wait_until(lambda: not _own(new_threads()), 10), new_threads()


@pytest.mark.policy(topology_refresh=None, connect_timeout=2.0)
def test_a_first_connect_to_a_dead_primary_names_it(engine: Engine) -> None:
    """The topology is there, its primary is not: the error names the primary's address."""

    class Nobody:
        port = free_port()
        uri = f"http://127.0.0.1:{port}"

    with GlobalCluster(Nobody()) as cluster:
        call = Call(engine.client, cluster.uri, token="root:pw")
        assert wait_until(lambda: call.done, 20)
    assert isinstance(call.error, MilvusException)
    assert f"127.0.0.1:{Nobody.port}" in str(call.error)
    assert engine.stats()["total_connections"] == 0


@pytest.mark.policy(topology_refresh=0.4)
def test_closing_waits_for_no_fetch(engine: Engine, cluster: GlobalCluster) -> None:
    """With a refresh under way close_all returns at once, and so does the next connect elsewhere.

    The promise is 50 ms; a test allows ten times that.
    """
    client = engine.client(cluster.uri, token="root:pw")
    client.list_collections()
    cluster.hold()
    asked = len(cluster.asked)
    assert wait_until(lambda: len(cluster.asked) > asked, 20)
    start = time.monotonic()
    engine.manager.close_all()
    assert time.monotonic() - start < 1.5


@pytest.mark.policy(topology_refresh=300.0)
def test_a_closed_connection_is_not_kept_by_its_next_refresh(
    engine: Engine, cluster: GlobalCluster
) -> None:
    """Dedicated clients that come and go leave nothing in memory, though a refresh was planned."""
    import milvus_lifecycle as ml

    before = {id(thing) for thing in gc.get_objects() if isinstance(thing, ml.ManagedConnection)}
    for _ in range(5):
        client = engine.client(cluster.uri, token="root:pw", dedicated=True)
        client.list_collections()
        client.close()
    engine.clients.clear()
    del client

    def kept() -> int:
        gc.collect()
        found = [thing for thing in gc.get_objects() if isinstance(thing, ml.ManagedConnection)]
        return sum(id(thing) not in before for thing in found)

    assert wait_until(lambda: kept() == 0, 10, every=0.1)
