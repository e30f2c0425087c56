"""Channels in the threads flavour: draining, rotation, leases, close, futures."""

from __future__ import annotations

import gc
import time
from typing import Any

import grpc
import pytest
from pymilvus import DataType, MilvusClient
from pymilvus.exceptions import MilvusException

from tests.conftest import Engine
from tests.network import BlackHole, TcpProxy, open_sockets_to
from tests.observe import Call, ChannelCount, wait_until
from tests.servers import FakeMilvus, RpcFailure, ServedCall

pytestmark = pytest.mark.timeout(60)


def _unavailable_once(call: ServedCall) -> None:
    if call.number == 1:
        raise RpcFailure(grpc.StatusCode.UNAVAILABLE)


def _schema(client: Any) -> Any:
    schema = client.create_schema()
    schema.add_field("id", DataType.INT64, is_primary=True)
    schema.add_field("vector", DataType.FLOAT_VECTOR, dim=4)
    return schema


def test_a_running_rpc_finishes_while_its_connection_recovers(
    engine: Engine, server: FakeMilvus
) -> None:
    """An RPC of five seconds ends well though another call's failure recovered the connection."""
    client = engine.client(server.uri)
    hold = server.hold("HasPartition")
    running = Call(client.has_partition, "demo", "part")
    assert wait_until(lambda: hold.waiting == 1, 10)
    started = time.monotonic()
    server.on("ShowCollections", _unavailable_once)
    assert client.list_collections() == ["demo"]
    assert engine.saw("recovered")
    assert open_sockets_to(server.port) == 2
    wait_until(lambda: running.done, started + 5.0 - time.monotonic())
    assert not running.done
    hold.release()
    running.value(10)
    assert server.count("HasPartition") == 1
    assert wait_until(lambda: open_sockets_to(server.port) == 1, 10)


@pytest.mark.policy(drain_timeout=0.5)
def test_an_rpc_cut_by_the_drain_timeout_is_retried(engine: Engine, server: FakeMilvus) -> None:
    """An RPC that a retired channel cannot wait for is sent again; its caller notices nothing."""
    client = engine.client(server.uri)
    hold = server.hold("HasPartition")
    running = Call(client.has_partition, "demo", "part")
    assert wait_until(lambda: hold.waiting == 1, 10)
    server.on("ShowCollections", _unavailable_once)
    client.list_collections()
    assert wait_until(lambda: server.count("HasPartition") == 2, 10)
    assert wait_until(lambda: open_sockets_to(server.port) == 1, 10)
    hold.release()
    running.value(10)
    # The cut belongs to an old generation: it recovers nothing.
    assert server.count("Connect") == 2
    assert len(engine.transitions("recovered")) == 1


@pytest.mark.policy(drain_timeout=0.5)
def test_a_future_cut_by_the_drain_timeout_is_unavailable(
    engine: Engine, server: FakeMilvus
) -> None:
    """A future cut by drain_timeout fails as UNAVAILABLE, never as CANCELLED or ValueError."""
    client = engine.client(server.uri)
    hold = server.hold("CreateCollection")
    future = client._handler.create_collection("new", _schema(client), _async=True)
    assert wait_until(lambda: hold.waiting == 1, 10)
    server.on("ShowCollections", _unavailable_once)
    client.list_collections()
    with pytest.raises(grpc.RpcError) as caught:
        future.result(timeout=10)
    assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
    assert not future.cancelled()
    assert len(engine.transitions("recovered")) == 1


def test_a_failed_future_recovers_the_connection(
    engine: Engine, server: FakeMilvus, proxy: TcpProxy
) -> None:
    """An `_async=True` call bypasses pymilvus's decorator; its failure is reported all the same."""
    client = engine.client(proxy.uri)
    hold = server.hold("CreateCollection")
    future = client._handler.create_collection("new", _schema(client), _async=True)
    assert wait_until(lambda: hold.waiting == 1, 10)
    proxy.cut()
    with pytest.raises(grpc.RpcError) as caught:
        future.result(timeout=10)
    assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
    assert engine.saw("fail")
    assert engine.saw("recovered")
    assert client.list_collections() == ["demo"]


def test_a_search_future_reports_its_failure(
    engine: Engine, server: FakeMilvus, proxy: TcpProxy
) -> None:
    """SearchFuture.result raises a MilvusException, and the connection recovers by itself."""
    client = engine.client(proxy.uri)
    hold = server.hold("Search")
    found = client._handler.search(
        "demo", "vector", {}, 1, data=[[0.0, 0.0, 0.0, 0.0]], _async=True
    )
    assert wait_until(lambda: hold.waiting == 1, 10)
    proxy.cut()
    with pytest.raises(MilvusException):
        found.result(timeout=10)
    assert engine.saw("recovered")


@pytest.mark.policy(max_age=0.5)
def test_an_old_connection_is_replaced_without_a_cut(engine: Engine, server: FakeMilvus) -> None:
    """After `max_age` a fresh channel takes over; an RPC on the old one finishes there."""
    client = engine.client(server.uri)
    hold = server.hold("HasPartition")
    running = Call(client.has_partition, "demo", "part")
    assert wait_until(lambda: hold.waiting == 1, 10)

    def rotated() -> bool:
        assert client.list_collections() == ["demo"]
        return bool(engine.transitions("recovered"))

    assert wait_until(rotated, 20)
    assert engine.transitions("recycle")
    assert not engine.transitions("fail")
    assert not running.done
    hold.release()
    running.value(10)
    assert server.count("HasPartition") == 1


@pytest.mark.policy(linger=0.3)
def test_fifty_clients_leave_no_socket(engine: Engine, server: FakeMilvus) -> None:
    """Fifty clients with fifty tokens have fifty sockets; closed, none is left after `linger`."""
    clients = [engine.client(server.uri, token=f"user{number}:pw") for number in range(50)]
    assert open_sockets_to(server.port) == 50
    for client in clients:
        client.close()
    assert wait_until(lambda: open_sockets_to(server.port) == 0, 10)
    assert engine.stats()["total_connections"] == 0
    assert len(engine.transitions("expire")) == 50


@pytest.mark.policy(linger=0.3)
def test_a_forgotten_client_releases_its_lease(engine: Engine, server: FakeMilvus) -> None:
    """A client that is garbage-collected instead of closed keeps no connection open."""
    client = MilvusClient(server.uri)
    client.list_collections()
    assert open_sockets_to(server.port) == 1
    del client
    gc.collect()
    assert wait_until(lambda: open_sockets_to(server.port) == 0, 10)
    assert engine.stats()["total_connections"] == 0


def test_one_clients_close_does_not_break_anothers(engine: Engine, server: FakeMilvus) -> None:
    """Of two clients on one connection, the second works on after the first was closed."""
    first, second = engine.client(server.uri), engine.client(server.uri)
    assert engine.stats()["total_connections"] == 1
    hold = server.hold("HasPartition")
    running = Call(second.has_partition, "demo", "part")
    assert wait_until(lambda: hold.waiting == 1, 10)
    first.close()
    hold.release()
    running.value(10)
    assert second.list_collections() == ["demo"]


def test_a_dedicated_connection_goes_with_its_client(engine: Engine, server: FakeMilvus) -> None:
    """Closing a dedicated client closes its socket at once, and nobody else's."""
    shared = engine.client(server.uri)
    alone = engine.client(server.uri, dedicated=True)
    assert open_sockets_to(server.port) == 2
    assert engine.stats()["dedicated_connections"] == 1
    alone.close()
    assert wait_until(lambda: open_sockets_to(server.port) == 1, 10)
    assert shared.list_collections() == ["demo"]


def test_close_all_wakes_the_waiters_of_a_first_connect(engine: Engine) -> None:
    """close_all during a first connect into a black hole ends it now, not at its timeout."""
    with BlackHole() as hole, ChannelCount() as channels:
        calls = [Call(engine.client, hole.uri, timeout=30) for _ in range(3)]
        assert wait_until(lambda: hole.accepted, 10)
        engine.manager.close_all()
        assert wait_until(lambda: all(call.done for call in calls), 5)
        assert all(isinstance(call.error, MilvusException) for call in calls)
        assert len(channels) == 1
        assert engine.stats()["total_connections"] == 0


def test_close_all_wakes_the_waiters_of_a_recovery(
    engine: Engine, server: FakeMilvus, proxy: TcpProxy
) -> None:
    """close_all during a recovery ends the waiting calls now, with an error that says closed."""
    client = engine.client(proxy.uri)
    hold = server.hold("ShowCollections")
    calls = [Call(client.list_collections) for _ in range(4)]
    assert wait_until(lambda: hold.waiting == 4, 10)
    proxy.set_mode("hang", cut=True)
    assert engine.saw("fail")
    engine.manager.close_all()
    assert wait_until(lambda: all(call.done for call in calls), 5)
    assert all(isinstance(call.error, MilvusException) for call in calls)
    assert all("closed" in str(call.error).lower() for call in calls)
