"""Channels in the asyncio flavour: draining, rotation, generations, headers, linger."""

from __future__ import annotations

import asyncio
import base64
import gc
import time
from typing import Any

import grpc
import pytest
from pymilvus import AsyncMilvusClient
from pymilvus.exceptions import MilvusException

from tests.looping import AsyncEngine, Doing, in_loop, settled, until
from tests.network import open_sockets_to
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
