"""Global clusters: following the primary, planned and unplanned, in both flavours."""

from __future__ import annotations

import asyncio
import gc
import time
from collections.abc import Iterator
from typing import Any

import grpc
import pytest
from pymilvus.exceptions import MilvusException

import milvus_lifecycle as ml
from tests import inside
from tests.flavours import FLAVOURS, Program
from tests.global_clusters import GlobalCluster, Nobody, violated
from tests.looping import AsyncEngine, Doing, in_loop, settled, until
from tests.network import open_sockets_to
from tests.observe import Call, ChannelCount, all_done, came_true, held_rpc, wait_until
from tests.servers import FakeMilvus, RpcFailure, ServedCall

pytestmark = [pytest.mark.timeout(90), pytest.mark.policy(topology_refresh=0.5)]

never_refreshed = pytest.mark.policy(topology_refresh=None)

#: The promise is one second; a test allows ten times that.
MOVE_LIMIT = 10.0


@pytest.fixture
def programs(installed: None) -> Iterator[list[Program]]:
    """A program of each flavour, both in this process."""
    both = [Program(flavour) for flavour in FLAVOURS]
    yield both
    for program in both:
        program.end()


# -- a planned switch ----------------------------------------------------------------------


def test_a_planned_switch_moves_before_the_first_error(
    program: Program, cluster: GlobalCluster, old: FakeMilvus, new: FakeMilvus
) -> None:
    """A refresh shows a new primary: the connection moves, a running RPC finishes on the old one.

    Nothing fails and nothing is sent twice; the old channel is closed once it has drained.
    """
    client = program.connected(cluster.uri, token="root:pw")
    hold, running = held_rpc(old, client)

    named = cluster.move(new)
    assert program.saw("recovered", limit=20)
    refreshed = min(at for at in cluster.asked if at > named)
    assert time.monotonic() - refreshed < MOVE_LIMIT
    assert client.list_collections() == ["new"]
    assert not running.done
    assert open_sockets_to(old.port) == 1

    hold.release()
    assert running.value(10) is False
    assert (old.count("HasPartition"), new.count("HasPartition")) == (1, 0)
    wait_until(lambda: open_sockets_to(old.port) == 0, 10)


def test_every_connection_of_the_process_moves_with_one_refresh(
    programs: list[Program], cluster: GlobalCluster, new: FakeMilvus
) -> None:
    """Shared and dedicated connections, of threads and of a loop, move by the same fetch."""
    clients = [
        program.connected(cluster.uri, token="root:pw", dedicated=dedicated)
        for program in programs
        for dedicated in (False, True, True)
    ]
    named = cluster.move(new)
    for program in programs:
        wait_until(lambda: program.seen().count("recovered") == 3, 20)  # noqa: B023
    assert time.monotonic() - named < 2 * MOVE_LIMIT
    assert [client.list_collections() for client in clients] == [["new"]] * 6
    for program in programs:
        assert program.transitions("fail") == []
        assert {record.topology_version for record in program.transitions("reroute")} == {2}


def test_records_say_which_topology_caused_them(
    program: Program, cluster: GlobalCluster, old: FakeMilvus, new: FakeMilvus
) -> None:
    """Connect, reroute and landing carry the version that they followed."""
    program.client(cluster.uri, token="root:pw")
    for moves, primary in enumerate((new, old), 1):
        cluster.move(primary)
        wait_until(lambda: program.seen().count("recovered") == moves, 20)  # noqa: B023
    seen = [(each.trigger, each.topology_version, each.strategy) for each in program.transitions()]
    assert seen[1:] == [
        ("probe_passed", 1, "global"),
        ("reroute", 2, "global"),
        ("recovered", 2, "global"),
        ("reroute", 3, "global"),
        ("recovered", 3, "global"),
    ]


# -- a primary that is lost ----------------------------------------------------------------


@never_refreshed
def test_unavailable_leads_to_the_new_primary(
    program: Program, cluster: GlobalCluster, old: FakeMilvus, new: FakeMilvus
) -> None:
    """The primary dies, the topology names another: no call fails."""
    client = program.connected(cluster.uri, token="root:pw")
    old.stop()
    calls = [Call(client.list_collections) for _ in range(5)]
    assert program.saw("fail")
    named = cluster.move(new)
    assert [call.value(30) for call in calls] == [["new"]] * 5
    assert time.monotonic() - named < MOVE_LIMIT
    (landing,) = program.transitions("recovered")
    assert (landing.address, landing.topology_version) == (new.address, 2)


@never_refreshed
@pytest.mark.parametrize("method", ["has_partition", "list_collections"])
def test_a_replicate_violation_leads_to_the_new_primary(
    program: Program, cluster: GlobalCluster, old: FakeMilvus, new: FakeMilvus, method: str
) -> None:
    """A server that says it is no longer the primary is left for the one that the topology names.

    Nothing is sent to it again, and calls that it refuses later move nothing a second time.
    """
    client = program.client(cluster.uri, token="root:pw")
    rpc = {"has_partition": "HasPartition", "list_collections": "ShowCollections"}[method]
    hold = old.hold(rpc)

    def refuse(call: ServedCall) -> Any:
        hold(call)
        return violated(rpc)

    old.on(rpc, refuse)
    arguments = ("demo", "part") if method == "has_partition" else ()
    calls = [Call(getattr(client, method), *arguments) for _ in range(6)]
    wait_until(lambda: hold.waiting == 6, 10)
    cluster.move(new)
    hold.release_one()
    wait_until(lambda: any(call.done for call in calls), 20)
    for _ in range(5):
        hold.release_one()
    assert all_done(calls, 20)
    assert [call.error for call in calls] == [None] * 6
    assert (old.count(rpc), new.count(rpc)) == (6, 6)
    assert program.path()[2:] == ["fail", "recovered"]
    (fail,) = program.transitions("fail")
    assert fail.error_code == "REPLICATE_VIOLATION"


@never_refreshed
@pytest.mark.parametrize("refusal", ["UNAVAILABLE", "REPLICATE_VIOLATION"])
def test_the_same_primary_that_answers_is_kept(
    program: Program, cluster: GlobalCluster, old: FakeMilvus, refusal: str
) -> None:
    """The topology still names the server, and it answers: stand down, on the channel there is."""
    client = program.client(cluster.uri, token="root:pw")

    def fail_once(call: ServedCall) -> Any:
        if call.number > 1:
            return None
        if refusal == "UNAVAILABLE":
            raise RpcFailure(grpc.StatusCode.UNAVAILABLE)
        return violated(call.method)

    old.on("ShowCollections", fail_once)
    with ChannelCount() as channels:
        assert client.list_collections() == ["old"]
    assert len(channels) == 0
    assert program.path()[2:] == ["fail", "stand_down"]
    (landing,) = program.transitions("stand_down")
    assert (landing.dest, landing.generation, landing.topology_version) == ("ACTIVE", 1, 1)
    wait_until(lambda: len(cluster.asked) == 2, 10)


@pytest.mark.slow
@never_refreshed
def test_one_fetch_serves_threads_and_loops_at_once(
    programs: list[Program], cluster: GlobalCluster, old: FakeMilvus, new: FakeMilvus
) -> None:
    """Connections of both flavours that lose the primary together join one fetch."""
    clients = [
        program.connected(cluster.uri, token="root:pw", dedicated=True)
        for program in programs
        for _ in range(4)
    ]
    before = len(cluster.asked)
    time.sleep(1.0)  # at most one fetch a second: let the next one be allowed
    cluster.hold()
    old.stop()
    cluster.move(new)
    calls = [Call(client.list_collections) for client in clients]
    wait_until(lambda: inside.waiting_for_topology() == [8] and len(cluster.asked) > before, 10)
    assert len(cluster.asked) == before + 1
    cluster.heal()
    assert [call.value(30) for call in calls] == [["new"]] * 8
    assert cluster.most_at_once == 1


# -- how often, and by whom, the topology is asked for ---------------------------------------


@pytest.mark.slow
@pytest.mark.policy(topology_refresh=0.4)
def test_refreshing_ends_with_the_last_client(program: Program, cluster: GlobalCluster) -> None:
    """While nobody holds the connection nothing is fetched, and no thread or task stays for it."""
    client = program.connected(cluster.uri, token="root:pw")
    wait_until(lambda: len(cluster.asked) >= 3, 20)
    client.close()
    wait_until(lambda: not inside.waiting_for_topology(), 10)
    asked = len(cluster.asked)
    time.sleep(2.5)  # time for two refreshes
    assert len(cluster.asked) == asked
    assert [name for name in program.workers() if "refresh" in name] == []
    program.close_all()
    assert came_true(lambda: not program.workers(), 10), program.workers()


@pytest.mark.slow
@pytest.mark.policy(topology_refresh=1.5)
def test_many_connections_of_a_cluster_refresh_like_one(
    program: Program, cluster: GlobalCluster
) -> None:
    """Ten dedicated connections fetch as often as one would, and never two at a time."""
    for _ in range(10):
        program.connected(cluster.uri, token="root:pw", dedicated=True)
    began, before = time.monotonic(), len(cluster.asked)
    wait_until(lambda: len(cluster.asked) >= before + 4, 30)
    # Four refreshes take at least three times the shortest interval (jitter: 20 %).
    assert time.monotonic() - began > 3 * 1.5 * 0.8
    assert cluster.most_at_once == 1


@never_refreshed
def test_an_impatient_call_fails_nobody_else(program: Program, cluster: GlobalCluster) -> None:
    """A client with a short timeout asks for the topology and leaves; one that joined stays."""
    cluster.hold()
    hasty = Call(program.client, cluster.uri, token="root:pw", timeout=0.5)
    wait_until(lambda: cluster.asked, 10)
    patient = Call(program.connected, cluster.uri, token="root:pw", dedicated=True, timeout=20)
    wait_until(lambda: inside.waiting_for_topology() == [2], 10)
    assert all_done([hasty], 10)
    assert isinstance(hasty.error, MilvusException)
    assert "TopologyError" in str(hasty.error)
    assert not patient.done
    cluster.heal()
    assert patient.value(20).list_collections() == ["old"]


@never_refreshed
@in_loop
async def test_a_call_that_is_cancelled_fails_nobody_else(
    aio: AsyncEngine, cluster: GlobalCluster
) -> None:
    """The first connect that asked for the topology is given up: the others have the answer."""
    cluster.hold()
    clients = [aio.client(cluster.uri, token="root:pw", dedicated=True) for _ in range(4)]
    leader = Doing(clients[0].list_collections())
    await until(lambda: cluster.asked, 10)
    others = [Doing(client.list_collections()) for client in clients[1:]]
    await until(lambda: inside.waiting_for_topology() == [4], 10)
    leader.cancel()
    assert await settled([leader], 10)
    cluster.heal()
    assert [await call.value(20) for call in others] == [["old"]] * 3
    assert leader.cancelled


# -- a first connect that fails --------------------------------------------------------------


@pytest.mark.slow
def test_a_first_connect_without_topology_service_says_so_and_leaves_nothing(
    program: Program, cluster: GlobalCluster
) -> None:
    """One clear error that names the service, within the client's timeout; nothing is left."""
    cluster.proxy.set_mode("refuse")
    with program.never_still():
        call = Call(program.client, cluster.uri, token="root:s3cr3t", timeout=2)
        assert all_done([call], 20)
    assert isinstance(call.error, MilvusException)
    text = str(call.error)
    assert cluster.address in text
    assert "TopologyError" in text
    assert "refused" in text
    assert "s3cr3t" not in text
    assert program.stats()["total_connections"] == 0
    assert came_true(lambda: not program.workers(), 10), program.workers()


@pytest.mark.policy(topology_refresh=None, connect_timeout=2.0)
def test_a_first_connect_to_a_dead_primary_names_it(program: Program) -> None:
    """The topology is there, its primary is not: the error names the primary's address."""
    nobody = Nobody()
    with GlobalCluster(nobody) as cluster:
        call = Call(program.client, cluster.uri, token="root:pw")
        assert all_done([call], 20)
    assert isinstance(call.error, MilvusException)
    assert nobody.uri.removeprefix("http://") in str(call.error)
    assert program.stats()["total_connections"] == 0


# -- the end ---------------------------------------------------------------------------------


@pytest.mark.policy(topology_refresh=0.4)
def test_closing_waits_for_no_fetch(program: Program, cluster: GlobalCluster) -> None:
    """With a refresh under way close_all returns in less than 1.5 s; the promise is 50 ms."""
    program.connected(cluster.uri, token="root:pw")
    cluster.hold()
    asked = len(cluster.asked)
    wait_until(lambda: len(cluster.asked) > asked, 20)
    start = time.monotonic()
    program.close_all()
    assert time.monotonic() - start < 1.5


def test_the_end_of_the_loop_waits_for_no_fetch(aio: AsyncEngine, cluster: GlobalCluster) -> None:
    """asyncio.run returns at once though a fetch was under way, and the next loop works."""

    async def leave() -> None:
        await aio.connected(cluster.uri, token="root:pw")
        cluster.hold()
        asked = len(cluster.asked)
        await until(lambda: len(cluster.asked) > asked, 20)

    asyncio.run(leave())
    cluster.heal()

    async def come_back() -> Any:
        return await aio.client(cluster.uri, token="root:pw").list_collections()

    assert asyncio.run(come_back()) == ["old"]


@pytest.mark.policy(topology_refresh=300.0)
def test_a_closed_connection_is_not_kept_by_its_next_refresh(
    program: Program, cluster: GlobalCluster
) -> None:
    """Dedicated clients that come and go leave nothing in memory, though a refresh was planned."""

    def connections() -> set[int]:
        gc.collect()
        known = (each for each in gc.get_objects() if isinstance(each, ml.ManagedConnection))
        return {id(each) for each in known}

    before = connections()
    for _ in range(5):
        program.connected(cluster.uri, token="root:pw", dedicated=True).close()
    program.clients.clear()
    wait_until(lambda: connections() <= before, 10, every=0.1)
