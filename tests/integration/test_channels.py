"""Channels and the pool in both flavours: draining, rotation, leases, statistics, close."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import grpc
import pytest
from pymilvus.exceptions import MilvusException

from milvus_lifecycle.errors import LifecycleError
from tests import inside
from tests.flavours import Program, simple_schema
from tests.network import TcpProxy, open_sockets_to
from tests.observe import Call, all_done, came_true, held, held_rpc, wait_until
from tests.servers import FakeMilvus, RpcFailure, ServedCall

pytestmark = pytest.mark.timeout(60)

in_threads = pytest.mark.parametrize("program", ["threads"], indirect=True)


# -- draining and rotation -----------------------------------------------------------------


@pytest.mark.policy(drain_timeout=0.5)
def test_an_rpc_cut_by_the_drain_timeout_is_retried(program: Program, server: FakeMilvus) -> None:
    """An RPC that a retired channel cannot wait for is sent again; its caller notices nothing."""
    client = program.client(server.uri, token="root:Milvus")
    hold, running = held_rpc(server, client)
    server.fail_next("ShowCollections")
    client.list_collections()
    wait_until(lambda: server.count("HasPartition") == 2, 10)
    wait_until(lambda: open_sockets_to(server.port) == 1, 10)
    hold.release()
    running.value(10)
    # The cut belongs to an old generation: it recovers nothing.
    assert server.count("Connect") == 2
    assert len(program.transitions("recovered")) == 1


def _create(server: FakeMilvus, client: Any) -> Any:
    """The future of a CreateCollection that waits in the server."""
    hold = server.hold("CreateCollection")
    future = client._handler.create_collection("new", simple_schema(), _async=True)
    wait_until(lambda: hold.waiting == 1, 10)
    return future


@in_threads
@pytest.mark.policy(drain_timeout=0.5)
def test_a_future_cut_by_the_drain_timeout_is_unavailable(
    program: Program, server: FakeMilvus
) -> None:
    """A future cut by drain_timeout fails as UNAVAILABLE, never as CANCELLED or ValueError."""
    client = program.client(server.uri)
    future = _create(server, client)
    server.fail_next("ShowCollections")
    client.list_collections()
    with pytest.raises(grpc.RpcError) as caught:
        future.result(timeout=10)
    assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
    assert not future.cancelled()
    assert len(program.transitions("recovered")) == 1


@in_threads
def test_a_failed_future_recovers_the_connection(
    program: Program, server: FakeMilvus, proxy: TcpProxy
) -> None:
    """An `_async=True` call bypasses pymilvus's decorator; its failure is reported all the same."""
    client = program.client(proxy.uri)
    future = _create(server, client)
    proxy.cut()
    with pytest.raises(grpc.RpcError) as caught:
        future.result(timeout=10)
    assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
    assert program.saw("fail")
    assert program.saw("recovered")
    assert client.list_collections() == ["demo"]


@in_threads
def test_a_search_future_reports_its_failure(
    program: Program, server: FakeMilvus, proxy: TcpProxy
) -> None:
    """SearchFuture.result raises a MilvusException, and the connection recovers by itself."""
    client = program.client(proxy.uri)
    hold = server.hold("Search")
    found = client._handler.search(
        "demo", "vector", {}, 1, data=[[0.0, 0.0, 0.0, 0.0]], _async=True
    )
    wait_until(lambda: hold.waiting == 1, 10)
    proxy.cut()
    with pytest.raises(MilvusException):
        found.result(timeout=10)
    assert program.saw("recovered")


@pytest.mark.policy(max_age=0.5)
def test_an_old_connection_is_replaced_without_a_cut(program: Program, server: FakeMilvus) -> None:
    """After `max_age` a fresh channel takes over; an RPC on the old one finishes there."""
    client = program.client(server.uri)
    hold, running = held_rpc(server, client)

    def rotated() -> bool:
        assert client.list_collections() == ["demo"]
        return bool(program.transitions("recovered"))

    wait_until(rotated, 20)
    assert program.transitions("recycle")
    assert not program.transitions("fail")
    assert not running.done
    hold.release()
    running.value(10)
    assert server.count("HasPartition") == 1


@pytest.mark.policy(idle_threshold=0.3)
def test_an_idle_connection_is_probed_once(program: Program, server: FakeMilvus) -> None:
    """Five RPCs that start together after a long idle time share one probe."""
    client = program.connected(server.uri)
    probes = server.count("GetVersion")
    time.sleep(0.6)  # idle time is what this is about
    calls = [Call(client.list_collections) for _ in range(5)]
    assert [call.value(10) for call in calls] == [["demo"]] * 5
    assert server.count("GetVersion") == probes + 1
    assert server.count("Connect") == 1


@pytest.mark.policy(idle_threshold=0.1)
def test_any_answer_to_a_probe_is_a_sign_of_life(program: Program, server: FakeMilvus) -> None:
    """A server, or a proxy, that does not know GetVersion is there: nothing is recovered."""

    def unimplemented(call: ServedCall) -> None:
        raise RpcFailure(grpc.StatusCode.UNIMPLEMENTED)

    client = program.connected(server.uri)
    server.on("GetVersion", unimplemented)
    probes = server.count("GetVersion")
    time.sleep(0.3)  # idle time is what this is about
    assert client.list_collections() == ["demo"]
    assert server.count("GetVersion") == probes + 1
    assert server.count("Connect") == 1


# -- the pool ------------------------------------------------------------------------------


def test_stats_and_records_tell_what_happens(program: Program, server: FakeMilvus) -> None:
    """get_stats has every documented key; a listener gets each record until it unsubscribes."""
    heard: list[Any] = []
    unsubscribe = program.subscribe(heard.append)
    shared, alone = program.client(server.uri), program.client(server.uri, dedicated=True)
    hold, running = held_rpc(server, alone)
    stats = program.stats()
    assert (stats["total_connections"], stats["shared_connections"]) == (2, 1)
    for row in stats["connections"]:
        assert set(row) >= {
            "id", "address", "state", "dedicated", "clients", "generation", "recoveries",
            "failures", "age", "idle", "in_flight",
        }  # fmt: skip
        assert (row["state"], row["clients"], row["generation"]) == ("ACTIVE", 1, 1)
        assert row["in_flight"] == int(row["dedicated"])
    hold.release()
    running.value(10)
    assert len(heard) == len(program.records)
    assert [record.event for record in heard].count("connection.created") == 2
    for name in {record.connection_id for record in heard}:
        numbers = [record.seq for record in heard if record.connection_id == name]
        assert numbers == list(range(len(numbers)))
    assert {record.flavour for record in heard} == {program.name}
    unsubscribe()
    before = len(heard)
    shared.close()
    assert program.transitions("release")
    assert len(heard) == before


@pytest.mark.policy(linger=0.3)
def test_a_forgotten_client_releases_its_lease(program: Program, server: FakeMilvus) -> None:
    """A client that is garbage-collected instead of closed keeps no connection open."""
    client = program.new_client(server.uri)
    client.list_collections()
    assert open_sockets_to(server.port) == 1
    del client
    gc.collect()
    wait_until(lambda: open_sockets_to(server.port) == 0, 10)
    assert program.stats()["total_connections"] == 0


def test_one_clients_close_does_not_break_anothers(program: Program, server: FakeMilvus) -> None:
    """Of two clients on one connection, the second works on after the first was closed."""
    first, second = program.client(server.uri), program.client(server.uri)
    assert program.stats()["total_connections"] == 1
    hold, running = held_rpc(server, second)
    first.close()
    hold.release()
    running.value(10)
    assert second.list_collections() == ["demo"]


def test_a_dedicated_connection_goes_with_its_client(program: Program, server: FakeMilvus) -> None:
    """Closing a dedicated client closes its socket at once, and nobody else's."""
    shared = program.client(server.uri)
    alone = program.client(server.uri, dedicated=True)
    assert open_sockets_to(server.port) == 2
    assert program.stats()["dedicated_connections"] == 1
    alone.close()
    wait_until(lambda: open_sockets_to(server.port) == 1, 10)
    assert shared.list_collections() == ["demo"]


def test_an_unknown_handler_is_refused(program: Program, server: FakeMilvus) -> None:
    """A handler that the manager did not hand out is a clear error, or a no; nothing changes."""
    client, manager = program.client(server.uri), program.manager()
    with pytest.raises(LifecycleError, match="handler"):
        manager.release(object())
    assert manager.handle_error(object(), RuntimeError("anything")) is False
    assert program.stats()["total_connections"] == 1
    assert client.list_collections() == ["demo"]


# -- close ---------------------------------------------------------------------------------


def test_a_kept_error_keeps_no_socket(program: Program, server: FakeMilvus) -> None:
    """Whoever keeps the errors of calls that close_all ended keeps no channel open by it."""
    client = program.client(server.uri, token="root:Milvus")
    _, calls = held(server, "HasPartition", *[lambda: client.has_partition("demo", "part")] * 3)
    program.close_all()
    assert all_done(calls, 5)
    assert all(isinstance(call.error, MilvusException) for call in calls)
    wait_until(lambda: open_sockets_to(server.port) == 0, 5)


def _close_all_from_here(program: Program) -> None:
    """Also in asyncio, whose close_all awaits nothing, from this thread instead of the loop's."""
    if program.name == "threads":
        program.close_all()
        return
    with pytest.raises(StopIteration):
        program.manager().inner.close_all().send(None)


@pytest.mark.parametrize("case", ["connect", "probe", "recovery"])
@pytest.mark.policy(idle_threshold=0.3, probe_timeout=30.0)
def test_close_all_wakes_the_waiters(
    program: Program, server: FakeMilvus, proxy: TcpProxy, case: str
) -> None:
    """close_all by another thread ends what waits for a flight now, with an error that says so."""
    work: Callable[[], Any] = partial(program.client, proxy.uri, timeout=30)
    if case != "connect":
        work = program.connected(proxy.uri).list_collections
    if case == "recovery":
        _, calls = held(server, "ShowCollections", *[work] * 4)
        proxy.set_mode("hang", cut=True)
    else:
        time.sleep(0.6)  # idle time
        proxy.set_mode("hang")
        calls = [Call(work) for _ in range(4)]
    wait_until(lambda: inside.waiting(program.manager()) == 4, 10)
    _close_all_from_here(program)
    assert all_done(calls, 5)
    assert all(isinstance(call.error, MilvusException) for call in calls)
    assert all("closed" in str(call.error).lower() for call in calls)
    assert program.stats()["total_connections"] == 0
    # An unanswered handshake keeps its socket for a while after close: gRPC's own (design.md).
    proxy.set_mode("refuse", cut=True)
    wait_until(lambda: open_sockets_to(proxy.port) == 0, 5)
    assert came_true(lambda: not program.workers(), 5), program.workers()


def test_a_failed_first_connect_wakes_everybody_and_leaves_nothing(
    program: Program, server: FakeMilvus
) -> None:
    """Eight first calls of eight clients on a bad server: eight errors, one flight, no entry."""
    hold = server.hold("Connect")
    calls = [Call(program.connected, server.uri) for _ in range(8)]
    wait_until(lambda: [row["clients"] for row in program.stats()["connections"]] == [8], 10)
    hold.release(RpcFailure(grpc.StatusCode.UNAVAILABLE))
    assert all_done(calls, 20)
    assert all(isinstance(call.error, MilvusException) for call in calls)
    assert all(server.address in str(call.error) for call in calls)
    assert program.path() == ["acquire", "probe_failed"]
    assert server.count("Connect") == 1
    assert program.stats()["total_connections"] == 0
