"""Global clusters in the asyncio flavour: following the primary, planned and unplanned."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import grpc
import pytest
from pymilvus.exceptions import MilvusException

from tests.global_clusters import GlobalCluster, violated
from tests.looping import AsyncEngine, Doing, Ticker, in_loop, other_tasks, settled, until
from tests.network import open_sockets_to
from tests.observe import ChannelCount
from tests.servers import FakeMilvus, RpcFailure, ServedCall

pytestmark = [pytest.mark.timeout(90), pytest.mark.policy(topology_refresh=0.5)]

#: The promise is one second; a test allows ten times that.
MOVE_LIMIT = 10.0


@in_loop
async def test_a_planned_switch_moves_before_the_first_error(
    aio: AsyncEngine, cluster: GlobalCluster, old: FakeMilvus, new: FakeMilvus
) -> None:
    """A refresh shows a new primary: the connection moves, a running RPC finishes on the old one.

    Nothing fails and nothing is sent twice; the old channel is closed once it has drained.
    """
    client = await aio.connected(cluster.uri, token="root:pw")
    hold = old.hold("HasPartition")
    running = Doing(client.has_partition("demo", "part"))
    assert await until(lambda: hold.waiting == 1, 10)

    named = cluster.move(new)
    assert await aio.saw("recovered", limit=20)
    refreshed = min(at for at in cluster.asked if at > named)
    assert time.monotonic() - refreshed < MOVE_LIMIT
    assert await client.list_collections() == ["new"]
    assert not running.done
    assert open_sockets_to(old.port) == 1

    hold.release()
    assert await running.value(10) is False
    assert (old.count("HasPartition"), new.count("HasPartition")) == (1, 0)
    assert await until(lambda: open_sockets_to(old.port) == 0, 10)
    assert aio.path()[2:] == ["reroute", "recovered"]
    moved = [record.topology_version for record in aio.transitions()[2:]]
    assert moved == [2, 2]


@pytest.mark.policy(topology_refresh=None)
@in_loop
async def test_unavailable_leads_to_the_new_primary(
    aio: AsyncEngine, cluster: GlobalCluster, old: FakeMilvus, new: FakeMilvus
) -> None:
    """The primary dies, the topology names another: no call fails."""
    client = await aio.connected(cluster.uri, token="root:pw")
    old.stop()
    calls = [Doing(client.list_collections()) for _ in range(5)]
    assert await aio.saw("fail")
    named = cluster.move(new)
    assert [await call.value(30) for call in calls] == [["new"]] * 5
    assert time.monotonic() - named < MOVE_LIMIT
    (landing,) = aio.transitions("recovered")
    assert (landing.address, landing.topology_version) == (new.address, 2)


@pytest.mark.policy(topology_refresh=None)
@pytest.mark.parametrize("method", ["has_partition", "list_collections"])
@in_loop
async def test_a_replicate_violation_leads_to_the_new_primary(
    aio: AsyncEngine, cluster: GlobalCluster, old: FakeMilvus, new: FakeMilvus, method: str
) -> None:
    """A server that says it is no longer the primary is left for the one that the topology names.

    Nothing is sent to it again, and calls that it refuses later move nothing a second time.
    """
    client = await aio.connected(cluster.uri, token="root:pw")
    before = old.count("ShowCollections")
    rpc = {"has_partition": "HasPartition", "list_collections": "ShowCollections"}[method]
    hold = old.hold(rpc)

    def refuse(call: ServedCall) -> Any:
        hold(call)
        return violated(rpc)

    old.on(rpc, refuse)
    arguments = ("demo", "part") if method == "has_partition" else ()
    calls = [Doing(getattr(client, method)(*arguments)) for _ in range(6)]
    assert await until(lambda: hold.waiting == 6, 10)
    cluster.move(new)
    hold.release_one()
    assert await until(lambda: any(call.done for call in calls), 20)
    for _ in range(5):
        hold.release_one()
    assert await settled(calls, 20)
    assert [call.error for call in calls] == [None] * 6
    assert old.count(rpc) == 6 + (before if rpc == "ShowCollections" else 0)
    assert new.count(rpc) == 6
    assert aio.path()[2:] == ["fail", "recovered"]


@pytest.mark.policy(topology_refresh=None)
@pytest.mark.parametrize("refusal", ["UNAVAILABLE", "REPLICATE_VIOLATION"])
@in_loop
async def test_the_same_primary_that_answers_is_kept(
    aio: AsyncEngine, cluster: GlobalCluster, old: FakeMilvus, refusal: str
) -> None:
    """The topology still names the server, and it answers: stand down, on the channel there is."""
    client = await aio.connected(cluster.uri, token="root:pw")
    failing = iter([True])

    def fail_once(call: ServedCall) -> Any:
        if not next(failing, False):
            return None
        if refusal == "UNAVAILABLE":
            raise RpcFailure(grpc.StatusCode.UNAVAILABLE)
        return violated(call.method)

    old.on("ShowCollections", fail_once)
    with ChannelCount() as channels:
        assert await client.list_collections() == ["old"]
    assert len(channels) == 0
    assert aio.path()[2:] == ["fail", "stand_down"]
    (landing,) = aio.transitions("stand_down")
    assert (landing.dest, landing.generation, landing.topology_version) == ("ACTIVE", 1, 1)


@in_loop
async def test_a_replicate_violation_changes_nothing_on_a_regular_connection(
    aio: AsyncEngine, old: FakeMilvus
) -> None:
    """It is the caller's error; the connection stays as it is."""
    client = await aio.connected(old.uri)
    old.on("ShowCollections", lambda call: violated(call.method))
    with pytest.raises(MilvusException, match="REPLICATE_VIOLATION"):
        await client.list_collections()
    assert aio.path() == ["acquire", "probe_passed"]


@pytest.mark.policy(topology_refresh=0.4)
@in_loop
async def test_refreshing_ends_with_the_last_client(
    aio: AsyncEngine, cluster: GlobalCluster
) -> None:
    """While nobody holds the connection nothing is fetched, and no task is left for it."""
    client = await aio.connected(cluster.uri, token="root:pw")
    assert await until(lambda: len(cluster.asked) >= 3, 20)
    await client.close()
    await asyncio.sleep(0.3)  # a refresh that was under way at that moment
    asked = len(cluster.asked)
    await asyncio.sleep(2.5)  # time for two refreshes
    assert len(cluster.asked) == asked
    assert [name for name in other_tasks() if name.startswith("milvus-lifecycle")] == []


@pytest.mark.policy(topology_refresh=None)
@in_loop
async def test_a_call_that_is_cancelled_fails_nobody_else(
    aio: AsyncEngine, cluster: GlobalCluster
) -> None:
    """The first connect that asked for the topology is given up: the others have the answer."""
    cluster.hold()
    clients = [aio.client(cluster.uri, token="root:pw", dedicated=True) for _ in range(4)]
    leader = Doing(clients[0].list_collections())
    assert await until(lambda: cluster.asked, 10)
    others = [Doing(client.list_collections()) for client in clients[1:]]
    await asyncio.sleep(0.1)  # so that they have joined
    leader.cancel()
    assert await settled([leader], 10)
    cluster.heal()
    assert [await call.value(20) for call in others] == [["old"]] * 3
    assert leader.cancelled


@pytest.mark.policy(topology_refresh=None)
@in_loop
async def test_an_impatient_call_fails_nobody_else(
    aio: AsyncEngine, cluster: GlobalCluster
) -> None:
    """A client with a short timeout asks for the topology and leaves; one that joined stays."""
    cluster.hold()
    hasty = Doing(aio.client(cluster.uri, token="root:pw", timeout=0.5).list_collections())
    assert await until(lambda: cluster.asked, 10)
    patient = Doing(
        aio.client(cluster.uri, token="root:pw", dedicated=True, timeout=20).list_collections()
    )
    assert await settled([hasty], 10)
    assert isinstance(hasty.error, MilvusException)
    assert "TopologyError" in str(hasty.error)
    assert not patient.done
    cluster.heal()
    assert await patient.value(20) == ["old"]


@in_loop
async def test_a_first_connect_without_topology_service_says_so_and_leaves_nothing(
    aio: AsyncEngine, cluster: GlobalCluster
) -> None:
    """One clear error that names the service, within the client's timeout; nothing is left."""
    cluster.proxy.set_mode("refuse")
    call = Doing(aio.client(cluster.uri, token="root:s3cr3t", timeout=2).list_collections())
    async with Ticker() as ticker:
        assert await settled([call], 20)
    assert isinstance(call.error, MilvusException)
    text = str(call.error)
    assert cluster.address in text
    assert "TopologyError" in text
    assert "refused" in text
    assert "s3cr3t" not in text
    assert aio.stats()["total_connections"] == 0
    assert [name for name in other_tasks() if name.startswith("milvus-lifecycle")] == []
    # The promise is 50 ms; a busy machine is allowed far more.
    assert ticker.longest < 2.0


@pytest.mark.policy(topology_refresh=0.4)
@in_loop
async def test_closing_waits_for_no_fetch(aio: AsyncEngine, cluster: GlobalCluster) -> None:
    """With a refresh under way close_all returns at once. The limit is ten times the promise."""
    await aio.connected(cluster.uri, token="root:pw")
    cluster.hold()
    asked = len(cluster.asked)
    assert await until(lambda: len(cluster.asked) > asked, 20)
    start = time.monotonic()
    await aio.manager.close_all()
    assert time.monotonic() - start < 1.5


def test_the_end_of_the_loop_waits_for_no_fetch(aio: AsyncEngine, cluster: GlobalCluster) -> None:
    """asyncio.run returns at once though a fetch was under way, and the next loop works."""

    async def leave() -> None:
        client = aio.client(cluster.uri, token="root:pw")
        await client.list_collections()
        cluster.hold()
        asked = len(cluster.asked)
        assert await until(lambda: len(cluster.asked) > asked, 20)

    asyncio.run(leave())
    cluster.heal()

    async def come_back() -> Any:
        return await aio.client(cluster.uri, token="root:pw").list_collections()

    assert asyncio.run(come_back()) == ["old"]
