"""Outages in the threads flavour: riding through, deadlines, budgets, flapping and black holes."""

from __future__ import annotations

import logging
import time
from typing import Any

import grpc
import pytest
from pymilvus.exceptions import MilvusException

from tests.conftest import Engine
from tests.network import BlackHole, TcpProxy
from tests.observe import Call, ChannelCount, LogLines, wait_until
from tests.processes import FakeMilvusProcess
from tests.servers import FakeMilvus

pytestmark = pytest.mark.timeout(90)


def test_a_checkout_does_not_wait_for_another_endpoints_recovery(
    engine: Engine, server: FakeMilvus, proxy: TcpProxy
) -> None:
    """A healthy endpoint is checked out at once while another one's recovery hangs."""
    lost = engine.client(proxy.uri)
    hold = server.hold("ShowCollections")
    stuck = Call(lost.list_collections, timeout=10)
    assert wait_until(lambda: hold.waiting == 1, 10)
    proxy.set_mode("hang", cut=True)
    assert engine.saw("fail")
    server.heal()

    start = time.monotonic()
    engine.client(server.uri, token="another:one").list_collections()
    took = time.monotonic() - start

    assert not stuck.done
    # The promise is 50 ms for the checkout; a test allows ten times that.
    assert took < 1.5
    proxy.set_mode("pass", cut=True)
    assert stuck.value(10) == ["demo"]


def test_five_calls_into_a_frozen_server_return_at_their_deadline(engine: Engine) -> None:
    """Calls with timeout=1.5 to a stopped server each return in time; the server back, all is well.

    The promise is 2 s, that is a grace of 0.5 s; a test allows ten times the grace.
    """
    with FakeMilvusProcess() as frozen:
        client = engine.client(frozen.uri)
        client.list_collections()
        frozen.pause()
        calls = [Call(client.list_collections, timeout=1.5) for _ in range(5)]
        assert wait_until(lambda: all(call.done for call in calls), 6.5)
        assert all(isinstance(call.error, (MilvusException, grpc.RpcError)) for call in calls)
        frozen.resume()
        assert Call(client.list_collections, timeout=10).value(20) == ["demo"]


def test_a_deadline_in_a_black_hole_leads_to_one_probe(engine: Engine) -> None:
    """One call with timeout=1 into a black hole: DOUBT sends the connection to PROBING, once."""
    with FakeMilvusProcess() as frozen:
        client = engine.client(frozen.uri)
        client.list_collections()
        frozen.pause()
        call = Call(client.list_collections, timeout=1)
        assert engine.saw("doubt", limit=15)
        doubt = engine.transitions("doubt")[0]
        assert (doubt.source, doubt.dest) == ("ACTIVE", "PROBING")
        assert wait_until(lambda: call.done, 10)
        assert isinstance(call.error, (MilvusException, grpc.RpcError))
        assert len(engine.transitions("doubt")) == 1
        frozen.resume()
        assert Call(client.list_collections, timeout=10).value(20) == ["demo"]


def test_a_call_without_a_timeout_survives_an_outage(
    engine: Engine, server: FakeMilvus, proxy: TcpProxy
) -> None:
    """A call that has no timeout is answered after the server was gone for two seconds."""
    client = engine.client(proxy.uri)
    hold = server.hold("ShowCollections")
    call = Call(client.list_collections)
    assert wait_until(lambda: hold.waiting == 1, 10)
    server.heal()
    with ChannelCount() as channels:
        proxy.set_mode("refuse", cut=True)
        late = Call(client.list_collections)
        assert engine.saw("fail")
        time.sleep(2.0)  # the outage itself, not a way to be right
        assert not call.done
        assert not late.done
        back = time.monotonic()
        proxy.set_mode("pass")
        assert call.value(20) == ["demo"]
        assert late.value(20) == ["demo"]
        took = time.monotonic() - back
    assert len(channels) <= 12
    # The promise is 0.5 s after the server listens again; a test allows ten times that.
    assert took < 5.0
    assert [record.dest for record in engine.transitions("recovered")] == ["ACTIVE"]


@pytest.mark.policy(recovery_budget=1.0)
def test_a_spent_budget_is_one_error_that_says_everything(
    engine: Engine, server: FakeMilvus, proxy: TcpProxy
) -> None:
    """After `recovery_budget` a call gets one MilvusException: address, attempts, time, cause."""
    client = engine.client(proxy.uri)
    client.list_collections()
    proxy.set_mode("refuse", cut=True)
    with LogLines(logging.WARNING) as lines:
        start = time.monotonic()
        with pytest.raises(MilvusException) as caught:
            client.list_collections()
        took = time.monotonic() - start
        # The caller's own budget may end a moment before its flight's.
        assert engine.saw("give_up")
    text = str(caught.value)
    assert proxy.address in text
    assert "attempt" in text
    assert any(sign.isdigit() for sign in text.replace(proxy.address, ""))
    assert " s" in text
    assert "refused" in text.lower() or "unavailable" in text.lower()
    assert took < 10.0
    assert len(engine.transitions("give_up")) == 1
    assert len(lines.at_least(logging.WARNING, "milvus_lifecycle")) == 1
    proxy.set_mode("pass")
    assert Call(client.list_collections).value(20) == ["demo"]


def test_an_unauthenticated_recovery_is_given_up_at_once(
    engine: Engine, server: FakeMilvus
) -> None:
    """A permanent error in recovery is the caller's at once, not after the whole budget."""
    client = engine.client(server.uri, token="root:old")
    client.list_collections()
    server.fail(grpc.StatusCode.UNAUTHENTICATED, spare=("ShowCollections",))
    failing = iter([True])

    def fail_once(call: Any) -> None:
        if next(failing, False):
            from tests.servers import RpcFailure

            raise RpcFailure(grpc.StatusCode.UNAVAILABLE)

    server.on("ShowCollections", fail_once)
    call = Call(client.list_collections)
    assert wait_until(lambda: call.done, 10)
    assert isinstance(call.error, MilvusException)
    assert len(engine.transitions("give_up")) == 1


def test_a_flapping_server_costs_few_channels_and_one_warning(
    engine: Engine, server: FakeMilvus
) -> None:
    """A server that validates but answers every RPC with UNAVAILABLE for 10 s, under 8 threads."""
    client = engine.client(server.uri)
    client.list_collections()
    with ChannelCount() as channels, LogLines(logging.DEBUG) as lines:
        server.fail()
        calls = [Call(client.list_collections) for _ in range(8)]
        time.sleep(10.0)  # the outage itself
        assert not any(call.done for call in calls)
        server.heal()
        for call in calls:
            assert call.value(30) == ["demo"]
        opened = len(channels)
    warnings = lines.at_least(logging.WARNING, "milvus_lifecycle")
    assert opened <= 12
    assert len(warnings) == 1, [line.getMessage() for line in warnings]


@pytest.mark.policy(recovery_budget=1.0)
def test_an_outage_logs_at_most_one_warning_per_connection(
    engine: Engine, server: FakeMilvus
) -> None:
    """Two connections, one outage, many given-up flights: one WARNING for each connection."""
    tokens = ("one:pw", "two:pw")
    clients = [engine.client(server.uri, token=token) for token in tokens]
    for client in clients:
        client.list_collections()
    with LogLines(logging.DEBUG) as lines:
        server.stop()
        calls = [Call(client.list_collections) for client in clients for _ in range(4)]
        assert wait_until(lambda: all(call.done for call in calls), 30)
        again = [Call(client.list_collections, timeout=0.5) for client in clients]
        assert wait_until(lambda: all(call.done for call in again), 30)
    warnings = lines.at_least(logging.WARNING, "milvus_lifecycle")
    assert len(warnings) == len(tokens), [line.getMessage() for line in warnings]
    assert all(isinstance(call.error, MilvusException) for call in calls)
    assert all("\n" not in line.getMessage() for line in warnings)
    server.start()
    for client in clients:
        assert Call(client.list_collections, timeout=10).value(20) == ["demo"]


def test_a_first_connect_into_a_black_hole_ends_at_its_timeout(engine: Engine) -> None:
    """A client of an endpoint that never answers gets one error at its timeout, naming it."""
    with BlackHole() as hole:
        call = Call(engine.client, hole.uri, timeout=1)
        assert wait_until(lambda: call.done, 10)
        assert isinstance(call.error, MilvusException)
        assert hole.address in str(call.error)
        assert engine.stats()["total_connections"] == 0
