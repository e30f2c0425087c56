"""The pool in the asyncio flavour: first calls, stats, leases, context managers, close_all."""

from __future__ import annotations

import asyncio
import gc
import threading
import weakref
from typing import Any

import pytest
from pymilvus import AsyncMilvusClient
from pymilvus.exceptions import MilvusException

from milvus_lifecycle.errors import LifecycleError
from tests.looping import AsyncEngine, Doing, in_loop, other_tasks, settled, until
from tests.network import BlackHole, TcpProxy, open_sockets_to
from tests.observe import ChannelCount
from tests.servers import FakeMilvus

pytestmark = pytest.mark.timeout(60)


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
    """A handler that this loop's manager did not hand out cannot be released, nor asked about."""
    await aio.connected(server.uri)
    with pytest.raises(LifecycleError, match="handler"):
        await aio.manager.release(object())
    assert await aio.manager.handle_error(object(), RuntimeError("anything")) is False
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
