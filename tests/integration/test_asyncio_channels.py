"""Channels in the asyncio flavour: draining, rotation, generations, leases, close, headers."""

from __future__ import annotations

import asyncio
import base64
import gc
import threading
import time
import weakref
from typing import Any

import grpc
import pytest
from pymilvus import AsyncMilvusClient
from pymilvus.exceptions import MilvusException

from milvus_lifecycle.errors import LifecycleError
from tests.looping import AsyncEngine, Doing, in_loop, other_tasks, settled, until
from tests.network import BlackHole, TcpProxy, open_sockets_to
from tests.observe import ChannelCount
from tests.servers import FakeMilvus, RpcFailure, ServedCall

pytestmark = pytest.mark.timeout(60)


def _fail_next_listing(server: FakeMilvus) -> None:
    failing = iter([True])

    def answer(call: ServedCall) -> None:
        if next(failing, False):
            raise RpcFailure(grpc.StatusCode.UNAVAILABLE)

    server.on("ShowCollections", answer)


def _credentials(call: ServedCall) -> str:
    return base64.b64decode(call.metadata.get("authorization", "")).decode()


# -- recovery and what runs beside it ------------------------------------------------------


@in_loop
async def test_a_running_rpc_finishes_while_its_connection_recovers(
    aio: AsyncEngine, server: FakeMilvus
) -> None:
    """An RPC of five seconds ends well though another call's failure recovered the connection."""
    client = await aio.connected(server.uri)
    hold = server.hold("HasPartition")
    running = Doing(client.has_partition("demo", "part"))
    assert await until(lambda: hold.waiting == 1, 10)
    started = time.monotonic()
    _fail_next_listing(server)
    assert await client.list_collections() == ["demo"]
    assert await aio.saw("recovered")
    assert open_sockets_to(server.port) == 2
    await settled([running], started + 5.0 - time.monotonic())
    assert not running.done
    hold.release()
    await running.value(10)
    assert server.count("HasPartition") == 1
    assert await until(lambda: open_sockets_to(server.port) == 1, 10)


@pytest.mark.policy(drain_timeout=0.5)
@in_loop
async def test_an_rpc_cut_by_the_drain_timeout_is_retried(
    aio: AsyncEngine, server: FakeMilvus
) -> None:
    """An RPC that a retired channel cannot wait for is sent again: no CancelledError, no error."""
    client = await aio.connected(server.uri, token="root:Milvus")
    hold = server.hold("HasPartition")
    running = Doing(client.has_partition("demo", "part"))
    assert await until(lambda: hold.waiting == 1, 10)
    _fail_next_listing(server)
    await client.list_collections()
    assert await until(lambda: server.count("HasPartition") == 2, 10)
    assert await until(lambda: open_sockets_to(server.port) == 1, 10)
    hold.release()
    await running.value(10)
    # The cut belongs to an old generation: it recovers nothing.
    assert server.count("Connect") == 2
    assert len(aio.transitions("recovered")) == 1


@pytest.mark.policy(drain_timeout=0.5)
@in_loop
async def test_a_raw_rpc_cut_by_the_drain_timeout_is_unavailable(
    aio: AsyncEngine, server: FakeMilvus
) -> None:
    """What the stub itself raises for a cut RPC is UNAVAILABLE of its old generation."""
    from pymilvus.grpc_gen import milvus_pb2

    client = await aio.connected(server.uri)
    hold = server.hold("HasPartition")
    request = milvus_pb2.HasPartitionRequest(collection_name="demo", partition_name="part")
    running = Doing(client._handler._async_stub.HasPartition(request))
    assert await until(lambda: hold.waiting == 1, 10)
    _fail_next_listing(server)
    await client.list_collections()
    assert await settled([running], 10)
    error: Any = running.error
    assert isinstance(error, grpc.RpcError)
    assert error.code() is grpc.StatusCode.UNAVAILABLE
    assert "drain_timeout" in (error.details() or "")


@in_loop
async def test_sixteen_failures_of_one_generation_are_one_recovery(
    aio: AsyncEngine, server: FakeMilvus
) -> None:
    """Failures that arrive before and after the swap recover once; late ones wait for nobody."""
    client = await aio.connected(server.uri)
    hold = server.hold("ShowCollections")
    calls = [Doing(client.list_collections()) for _ in range(16)]
    assert await until(lambda: hold.waiting == 16, 10)
    server.heal()
    unavailable = RpcFailure(grpc.StatusCode.UNAVAILABLE)
    for _ in range(4):
        hold.release_one(unavailable)
    assert await until(lambda: sum(call.done for call in calls) == 4, 10)
    hold.release(unavailable)
    assert await settled(calls, 10)
    assert all(call.result == ["demo"] for call in calls)
    assert server.count("Connect") == 2
    assert [row["generation"] for row in aio.stats()["connections"]] == [2]


@pytest.mark.parametrize("token", ["", "root:Milvus"], ids=["anonymous", "with credentials"])
@in_loop
async def test_a_retired_channel_is_closed_without_the_collector(
    aio: AsyncEngine, server: FakeMilvus, token: str
) -> None:
    """After five recoveries one socket is left, and no garbage collector ever ran."""
    client = await aio.connected(server.uri, token=token)
    gc.collect()
    gc.disable()
    try:
        for _ in range(5):
            _fail_next_listing(server)
            await client.list_collections()
        assert await until(lambda: open_sockets_to(server.port) == 1, 5)
    finally:
        gc.enable()
    assert len(aio.transitions("recovered")) == 5


@in_loop
async def test_a_kept_error_keeps_no_socket(aio: AsyncEngine, server: FakeMilvus) -> None:
    """Whoever keeps the errors of calls that close_all ended keeps no channel open by it."""
    client = await aio.connected(server.uri, token="root:Milvus")
    hold = server.hold("HasPartition")
    calls = [Doing(client.has_partition("demo", "part")) for _ in range(3)]
    assert await until(lambda: hold.waiting == 3, 10)
    await aio.manager.close_all()
    assert await settled(calls, 5)
    assert all(isinstance(call.error, MilvusException) for call in calls)
    assert await until(lambda: open_sockets_to(server.port) == 0, 5)


@in_loop
async def test_headers_are_right_after_a_recovery(aio: AsyncEngine, server: FakeMilvus) -> None:
    """After a recovery RPCs carry the same authorization, and the new channel's identifier."""
    client = await aio.connected(server.uri, token="root:Milvus")
    handler = client._handler
    first = server.seen("ShowCollections")[-1]
    assert first.metadata["identifier"] == str(server.identifiers[-1])
    for _ in range(3):
        _fail_next_listing(server)
        await client.list_collections()
        last = server.seen("ShowCollections")[-1]
        assert last.metadata["identifier"] == str(server.identifiers[-1])
        assert last.metadata["identifier"] != first.metadata["identifier"]
        assert last.peer != first.peer
    assert len(server.identifiers) == 4
    assert client._handler is handler
    for call in (first, last, *server.seen("Connect")):
        assert _credentials(call) == "root:Milvus"
        names = [key for key, _ in call.context.invocation_metadata()]
        assert names.count("authorization") == 1
        assert names.count("identifier") == (0 if call.method == "Connect" else 1)


# -- rotation, idle time, linger -----------------------------------------------------------


@pytest.mark.policy(max_age=0.5)
@in_loop
async def test_an_old_connection_is_replaced_without_a_cut(
    aio: AsyncEngine, server: FakeMilvus
) -> None:
    """After `max_age` a fresh channel takes over; an RPC on the old one finishes there."""
    client = await aio.connected(server.uri)
    hold = server.hold("HasPartition")
    running = Doing(client.has_partition("demo", "part"))
    assert await until(lambda: hold.waiting == 1, 10)
    limit = time.monotonic() + 20
    while not aio.transitions("recovered"):
        assert time.monotonic() < limit
        assert await client.list_collections() == ["demo"]
    assert aio.transitions("recycle")
    assert not aio.transitions("fail")
    assert not running.done
    hold.release()
    await running.value(10)
    assert server.count("HasPartition") == 1


@pytest.mark.policy(idle_threshold=0.3)
@in_loop
async def test_an_idle_connection_is_probed_once(aio: AsyncEngine, server: FakeMilvus) -> None:
    """Five RPCs that start together after a long idle time share one probe."""
    client = await aio.connected(server.uri)
    probes = server.count("GetVersion")
    await asyncio.sleep(0.6)  # idle time is what this is about
    calls = [Doing(client.list_collections()) for _ in range(5)]
    assert await settled(calls, 10)
    assert all(call.result == ["demo"] for call in calls)
    assert server.count("GetVersion") == probes + 1
    assert server.count("Connect") == 1


@pytest.mark.policy(linger=0.3)
@in_loop
async def test_fifty_clients_leave_no_socket(aio: AsyncEngine, server: FakeMilvus) -> None:
    """Fifty clients with fifty tokens have fifty sockets; closed, none is left after `linger`."""
    clients = [await aio.connected(server.uri, token=f"user{number}:pw") for number in range(50)]
    assert open_sockets_to(server.port) == 50
    for client in clients:
        await client.close()
    assert await until(lambda: open_sockets_to(server.port) == 0, 10)
    assert aio.stats()["total_connections"] == 0
    assert len(aio.transitions("expire")) == 50


@pytest.mark.policy(linger=0.5)
@in_loop
async def test_a_call_cancelled_after_its_client_closed_counts_for_linger(
    aio: AsyncEngine, server: FakeMilvus
) -> None:
    """`linger` runs from the end of the last RPC, also when that one was cancelled."""
    client = await aio.connected(server.uri)
    hold = server.hold("HasPartition")
    running = Doing(client.has_partition("demo", "part"))
    assert await until(lambda: hold.waiting == 1, 10)
    await client.close()
    await asyncio.sleep(0.7)  # longer than linger: what this is about
    running.cancel()
    assert await settled([running], 2)
    cancelled = time.monotonic()
    assert aio.stats()["total_connections"] == 1
    assert await aio.saw("expire")
    assert time.monotonic() - cancelled > 0.4


@pytest.mark.policy(linger=0.3)
@in_loop
async def test_a_forgotten_client_releases_its_lease(aio: AsyncEngine, server: FakeMilvus) -> None:
    """A client that is garbage-collected instead of closed keeps no connection open."""
    _ = aio.manager
    client = AsyncMilvusClient(server.uri)
    await client.list_collections()
    assert open_sockets_to(server.port) == 1
    del client
    gc.collect()
    assert await until(lambda: open_sockets_to(server.port) == 0, 10)
    assert aio.stats()["total_connections"] == 0


# -- the pool ------------------------------------------------------------------------------


@pytest.mark.parametrize("dedicated", [False, True], ids=["shared", "dedicated"])
@in_loop
async def test_concurrent_first_calls_share_one_connect(
    aio: AsyncEngine, server: FakeMilvus, dedicated: bool
) -> None:
    """Twenty concurrent first calls of one client connect once."""
    client = aio.client(server.uri, dedicated=dedicated)
    calls = [Doing(client.list_collections()) for _ in range(20)]
    assert await settled(calls, 10)
    assert all(call.result == ["demo"] for call in calls)
    assert server.count("Connect") == 1
    assert open_sockets_to(server.port) == 1
    stats = aio.stats()
    assert stats["total_connections"] == 1
    assert stats["dedicated_connections"] == int(dedicated)


@in_loop
async def test_stats_and_records_tell_what_happens(aio: AsyncEngine, server: FakeMilvus) -> None:
    """get_stats has every documented key; a listener gets each record until it unsubscribes."""
    heard: list[Any] = []
    unsubscribe = aio.manager.subscribe(heard.append)
    shared = await aio.connected(server.uri)
    alone = await aio.connected(server.uri, dedicated=True)
    hold = server.hold("HasPartition")
    running = Doing(alone.has_partition("demo", "part"))
    assert await until(lambda: hold.waiting == 1, 10)
    stats = aio.stats()
    assert (stats["total_connections"], stats["shared_connections"]) == (2, 1)
    for row in stats["connections"]:
        assert set(row) >= {
            "id", "address", "state", "dedicated", "clients", "generation", "recoveries",
            "failures", "age", "idle", "in_flight",
        }  # fmt: skip
        assert (row["state"], row["clients"], row["generation"]) == ("ACTIVE", 1, 1)
        assert row["in_flight"] == int(row["dedicated"])
    hold.release()
    await running.value(10)
    assert [record.event for record in heard].count("connection.created") == 2
    for name in {record.connection_id for record in heard}:
        numbers = [record.seq for record in heard if record.connection_id == name]
        assert numbers == list(range(len(numbers)))
    unsubscribe()
    before = len(heard)
    await shared.close()
    assert aio.transitions("release")
    assert len(heard) == before


@in_loop
async def test_one_clients_close_does_not_break_anothers(
    aio: AsyncEngine, server: FakeMilvus
) -> None:
    """Of two clients on one connection, the second works on after the first was closed."""
    first, second = await aio.connected(server.uri), await aio.connected(server.uri)
    assert aio.stats()["total_connections"] == 1
    hold = server.hold("HasPartition")
    running = Doing(second.has_partition("demo", "part"))
    assert await until(lambda: hold.waiting == 1, 10)
    await first.close()
    hold.release()
    await running.value(10)
    assert await second.list_collections() == ["demo"]


@in_loop
async def test_async_with_a_client_leaves_nothing(aio: AsyncEngine, server: FakeMilvus) -> None:
    """A dedicated client in `async with`: no socket, no entry and no task after the block."""
    _ = aio.manager
    async with AsyncMilvusClient(server.uri, dedicated=True) as client:
        assert await client.list_collections() == ["demo"]
        assert open_sockets_to(server.port) == 1
    assert aio.stats()["total_connections"] == 0
    assert await until(lambda: open_sockets_to(server.port) == 0, 5)
    assert other_tasks() == []


@in_loop
async def test_async_with_a_manager_leaves_nothing(aio: AsyncEngine, server: FakeMilvus) -> None:
    """A manager of one's own in `async with`: its connections are closed after the block."""
    import milvus_lifecycle as ml

    config = ml.ConnectionConfig.from_uri(server.uri)
    async with ml.AsyncConnectionManager() as manager:
        handler = await manager.get_or_create(config)
        assert await handler.list_collections() == ["demo"]
        assert manager.get_stats()["total_connections"] == 1
        assert aio.stats()["total_connections"] == 0
    assert manager.get_stats()["total_connections"] == 0
    assert await until(lambda: open_sockets_to(server.port) == 0, 5)
    assert other_tasks() == []
    watched = weakref.ref(manager)
    del manager, handler
    gc.collect()
    assert watched() is None


@in_loop
async def test_an_unknown_handler_is_refused(aio: AsyncEngine, server: FakeMilvus) -> None:
    """A handler that this loop's manager did not hand out is a clear error."""
    await aio.connected(server.uri)
    with pytest.raises(LifecycleError, match="handler"):
        await aio.manager.release(object())
    with pytest.raises(LifecycleError, match="handler"):
        await aio.manager.handle_error(object(), RuntimeError("anything"))
    assert aio.stats()["total_connections"] == 1


# -- close ---------------------------------------------------------------------------------


@in_loop
async def test_a_client_survives_close_all(aio: AsyncEngine, server: FakeMilvus) -> None:
    """After close_all, clients that are still in use are given connections again."""
    clients = [await aio.connected(server.uri), await aio.connected(server.uri, dedicated=True)]
    await aio.manager.close_all()
    assert await until(lambda: open_sockets_to(server.port) == 0, 5)
    for client in clients:
        assert await Doing(client.list_collections(timeout=5)).value(10) == ["demo"]
    assert aio.stats()["total_connections"] == 2


@in_loop
async def test_close_all_wakes_the_waiters_of_a_first_connect(aio: AsyncEngine) -> None:
    """close_all during a first connect into a black hole ends it now, not at its timeout."""
    with BlackHole() as hole, ChannelCount() as channels:
        calls = [Doing(aio.client(hole.uri, timeout=30).list_collections()) for _ in range(3)]
        assert await until(lambda: hole.accepted, 10)
        await aio.manager.close_all()
        assert await settled(calls, 5)
        assert all(isinstance(call.error, MilvusException) for call in calls)
        assert len(channels) == 1
        assert aio.stats()["total_connections"] == 0


@pytest.mark.parametrize("case", ["connect", "probe", "recovery"])
@pytest.mark.policy(idle_threshold=0.3)
@in_loop
async def test_close_all_from_another_thread_wakes_the_waiters(
    aio: AsyncEngine, server: FakeMilvus, proxy: TcpProxy, case: str
) -> None:
    """close_all's work done from another thread during a flight wakes every waiter at once."""
    if case == "connect":
        proxy.set_mode("hang")
        client = aio.client(proxy.uri, timeout=30)
    else:
        client = await aio.connected(proxy.uri)
    if case == "probe":
        await asyncio.sleep(0.6)  # idle time
        proxy.set_mode("hang")
    elif case == "recovery":
        proxy.set_mode("hang", cut=True)
    calls = [Doing(client.list_collections()) for _ in range(4)]
    wanted = "RECOVERING" if case == "recovery" else "PROBING"
    # A call may first wait for the cut channel to connect again: connect_timeout, 10 s.
    assert await until(lambda: [r["state"] for r in aio.stats()["connections"]] == [wanted], 40)
    manager = aio.manager
    closing = threading.Thread(target=lambda: _run_coroutine(manager.close_all()), daemon=True)
    closing.start()
    assert await settled(calls, 5)
    assert await until(lambda: not closing.is_alive(), 5)
    assert all(isinstance(call.error, MilvusException) for call in calls)
    assert all("closed" in str(call.error).lower() for call in calls)
    assert aio.stats()["total_connections"] == 0
    # An unanswered handshake keeps its socket for a while after close: gRPC's own (design.md).
    proxy.set_mode("refuse", cut=True)
    assert await until(lambda: open_sockets_to(proxy.port) == 0, 5)
    assert await until(lambda: not other_tasks(), 5)


def _run_coroutine(coroutine: Any) -> None:
    """Drive a coroutine that awaits nothing, in a thread that has no loop."""
    try:
        coroutine.send(None)
    except StopIteration:
        return
    raise RuntimeError("close_all waits for something")
