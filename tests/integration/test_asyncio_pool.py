"""What only asyncio has in the pool: first calls, raw stubs, tasks, context managers."""

from __future__ import annotations

import asyncio
import gc
import time
import weakref
from typing import Any

import grpc
import pytest
from pymilvus import AsyncMilvusClient
from pymilvus.exceptions import MilvusException
from pymilvus.grpc_gen import milvus_pb2

import milvus_lifecycle as ml
from tests.looping import AsyncEngine, Doing, in_loop, other_tasks, settled, until
from tests.network import TcpProxy, open_sockets_to
from tests.servers import FakeMilvus

pytestmark = pytest.mark.timeout(60)


@pytest.mark.policy(drain_timeout=0.5)
@in_loop
async def test_a_raw_rpc_cut_by_the_drain_timeout_is_unavailable(
    aio: AsyncEngine, server: FakeMilvus
) -> None:
    """What the stub itself raises for a cut RPC is UNAVAILABLE of its old generation."""
    client = await aio.connected(server.uri)
    hold = server.hold("HasPartition")
    request = milvus_pb2.HasPartitionRequest(collection_name="demo", partition_name="part")
    running = Doing(client._handler._async_stub.HasPartition(request))
    await until(lambda: hold.waiting == 1, 10)
    server.fail_next("ShowCollections")
    await client.list_collections()
    assert await settled([running], 10)
    error: Any = running.error
    assert isinstance(error, grpc.RpcError)
    assert error.code() is grpc.StatusCode.UNAVAILABLE
    assert "drain_timeout" in (error.details() or "")


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
            server.fail_next("ShowCollections")
            await client.list_collections()
        await until(lambda: open_sockets_to(server.port) == 1, 5)
    finally:
        gc.enable()
    assert len(aio.transitions("recovered")) == 5


@pytest.mark.slow
@pytest.mark.parametrize("tasks", [1, 2])
@in_loop
async def test_each_call_has_its_own_deadline(
    aio: AsyncEngine, server: FakeMilvus, proxy: TcpProxy, tasks: int
) -> None:
    """After a call that was retried for a second, the next one has its whole timeout again.

    Also if the task that makes the next one was told of the failure by awaiting another one.
    pymilvus runs a call that has a timeout by asyncio.wait_for, which before Python 3.12 means a
    task of its own for every attempt, with a copy of the caller's context.
    """
    client = await aio.connected(proxy.uri)

    async def program() -> float:
        first = client.list_collections(timeout=3)
        assert await (first if tasks == 1 else asyncio.ensure_future(first)) == ["demo"]
        hold = server.hold("ShowCollections")
        started = time.monotonic()
        with pytest.raises(MilvusException):
            await client.list_collections(timeout=3)
        hold.release()
        return time.monotonic() - started

    hold = server.hold("ShowCollections")
    doing = Doing(program())
    await until(lambda: hold.waiting == 1, 10)
    server.heal()
    proxy.set_mode("refuse", cut=True)
    assert await aio.has_seen("fail")
    await asyncio.sleep(1.0)  # the outage itself
    proxy.set_mode("pass")
    assert await doing.value(20) > 2.8


@in_loop
async def test_async_with_a_client_leaves_nothing(aio: AsyncEngine, server: FakeMilvus) -> None:
    """A dedicated client in `async with`: no socket, no entry and no task after the block."""
    _ = aio.manager
    async with AsyncMilvusClient(server.uri, dedicated=True) as client:
        assert await client.list_collections() == ["demo"]
        assert open_sockets_to(server.port) == 1
    assert aio.stats()["total_connections"] == 0
    await until(lambda: open_sockets_to(server.port) == 0, 5)
    assert other_tasks() == []


@in_loop
async def test_async_with_a_manager_leaves_nothing(aio: AsyncEngine, server: FakeMilvus) -> None:
    """A manager of one's own in `async with`: its connections are closed after the block."""
    config = ml.ConnectionConfig.from_uri(server.uri)
    async with ml.AsyncConnectionManager() as manager:
        handler = await manager.get_or_create(config)
        assert await handler.list_collections() == ["demo"]
        assert manager.get_stats()["total_connections"] == 1
        assert aio.stats()["total_connections"] == 0
    assert manager.get_stats()["total_connections"] == 0
    await until(lambda: open_sockets_to(server.port) == 0, 5)
    assert other_tasks() == []
    watched = weakref.ref(manager)
    del manager, handler
    gc.collect()
    assert watched() is None
