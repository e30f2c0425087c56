"""Outages: riding through, deadlines, budgets, flapping and black holes, in both flavours."""

from __future__ import annotations

import logging
import random
import time

import grpc
import pytest
from pymilvus.exceptions import MilvusException

from tests.flavours import Program
from tests.network import BlackHole, TcpProxy
from tests.observe import Call, ChannelCount, LogLines, all_done, held, wait_until
from tests.processes import FakeMilvusProcess
from tests.servers import FakeMilvus, RpcFailure, ServedCall

pytestmark = pytest.mark.timeout(90)


def test_a_checkout_does_not_wait_for_another_endpoints_recovery(
    program: Program, server: FakeMilvus, proxy: TcpProxy
) -> None:
    """A healthy endpoint is checked out within 1.5 s while another one's recovery hangs.

    The promise is 50 ms; a busy machine is allowed more.
    """
    lost = program.client(proxy.uri)
    _, (stuck,) = held(server, "ShowCollections", lambda: lost.list_collections(timeout=10))
    proxy.set_mode("hang", cut=True)
    assert program.saw("fail")
    server.heal()

    start = time.monotonic()
    program.connected(server.uri, token="another:one")
    took = time.monotonic() - start

    assert not stuck.done
    assert took < 1.5
    proxy.set_mode("pass", cut=True)
    assert stuck.value(10) == ["demo"]


def test_calls_into_a_frozen_server_end_in_time_and_lead_to_one_probe(program: Program) -> None:
    """Five calls with timeout=1.5 to a stopped server: DOUBT sends the connection to PROBING, once.

    The promise is 2 s, that is a grace of 0.5 s; a test allows ten times the grace.
    """
    with FakeMilvusProcess() as frozen:
        client = program.connected(frozen.uri)
        frozen.pause()
        calls = [Call(client.list_collections, timeout=1.5) for _ in range(5)]
        assert all_done(calls, 6.5)
        # The RPC's own deadline (as on stock, gRPC's error) or the decorator's: whichever is first.
        assert all(isinstance(call.error, (MilvusException, grpc.RpcError)) for call in calls)
        assert program.saw("doubt")
        (doubt,) = program.transitions("doubt")
        assert (doubt.source, doubt.dest) == ("ACTIVE", "PROBING")
        frozen.resume()
        assert Call(client.list_collections, timeout=10).value(20) == ["demo"]


def test_a_call_that_starts_in_an_outage_says_why_it_was_late(
    program: Program, proxy: TcpProxy
) -> None:
    """A call with timeout=1 during an outage ends in time, with address, attempts and cause."""
    client = program.connected(proxy.uri)
    proxy.set_mode("refuse", cut=True)
    patient = Call(client.list_collections)
    assert program.saw("fail")
    call = Call(client.list_collections, timeout=1)
    assert all_done([call], 6)
    assert isinstance(call.error, MilvusException)
    text = str(call.error)
    assert proxy.address in text
    assert "attempt" in text
    assert "unavailable" in text.lower()
    assert not patient.done
    proxy.set_mode("pass")
    assert patient.value(20) == ["demo"]


def test_a_retry_gets_only_what_is_left(
    program: Program, server: FakeMilvus, proxy: TcpProxy
) -> None:
    """A call with timeout=3 whose first second was an outage is sent again with the rest."""
    client = program.client(proxy.uri)
    _, (call,) = held(server, "ShowCollections", lambda: client.list_collections(timeout=3))
    server.heal()
    proxy.set_mode("refuse", cut=True)
    assert program.saw("fail")
    time.sleep(1.0)  # the outage itself
    proxy.set_mode("pass")
    assert call.value(10) == ["demo"]
    remaining = server.seen("ShowCollections")[-1].time_remaining
    assert remaining is not None
    assert remaining < 2.1


@pytest.mark.policy(recovery_budget=1.0)
def test_a_long_call_has_all_of_its_budget_left(program: Program, server: FakeMilvus) -> None:
    """The budget is for waiting: a call that ran for longer is retried when it loses its server."""
    client = program.client(server.uri)

    def lose_after_a_while(call: ServedCall) -> None:
        if call.number == 1:
            time.sleep(1.5)
            raise RpcFailure(grpc.StatusCode.UNAVAILABLE)

    server.on("ShowCollections", lose_after_a_while)
    assert Call(client.list_collections).value(20) == ["demo"]


@pytest.mark.policy(recovery_budget=1.0)
def test_a_spent_budget_is_one_error_that_says_everything(
    program: Program, proxy: TcpProxy
) -> None:
    """After `recovery_budget`, 1 s, a call has one MilvusException: address, attempts, time, cause.

    Within 10 s.
    """
    client = program.connected(proxy.uri)
    proxy.set_mode("refuse", cut=True)
    with LogLines(logging.WARNING) as lines:
        start = time.monotonic()
        with pytest.raises(MilvusException) as caught:
            client.list_collections()
        took = time.monotonic() - start
        # The caller's own budget may end a moment before its flight's.
        assert program.saw("give_up")
    text = str(caught.value)
    assert proxy.address in text
    assert "attempt" in text
    assert any(sign.isdigit() for sign in text.replace(proxy.address, ""))
    assert " s" in text
    assert "refused" in text.lower() or "unavailable" in text.lower()
    assert took < 10.0
    assert len(program.transitions("give_up")) == 1
    assert len(lines.at_least(logging.WARNING, "milvus_lifecycle")) == 1
    proxy.set_mode("pass")
    assert Call(client.list_collections).value(20) == ["demo"]


def test_an_unauthenticated_recovery_is_given_up_at_once(
    program: Program, server: FakeMilvus
) -> None:
    """A permanent error in recovery is the caller's at once, not after the whole budget."""
    client = program.connected(server.uri, token="root:old")
    server.fail(grpc.StatusCode.UNAUTHENTICATED, spare=())
    server.fail_next("ShowCollections", 1000)
    call = Call(client.list_collections)
    assert all_done([call], 10)
    assert isinstance(call.error, MilvusException)
    # More than one, if a flight was over before the failed call asked about it.
    assert program.transitions("give_up")


@pytest.mark.slow
def test_a_flapping_server_costs_few_channels_and_two_lines(
    program: Program, server: FakeMilvus
) -> None:
    """It validates but answers every RPC with UNAVAILABLE for 8 s, under 8 callers: 12 channels."""
    client = program.connected(server.uri)
    with ChannelCount() as channels, LogLines(logging.DEBUG) as lines:
        server.fail()
        calls = [Call(client.list_collections) for _ in range(8)]
        time.sleep(8.0)  # the outage itself
        assert not any(call.done for call in calls)
        server.heal()
        assert [call.value(30) for call in calls] == [["demo"]] * 8
        opened = len(channels)
    # A connection of an earlier test may still be failing in this process.
    warnings = [
        line.getMessage()
        for line in lines.at_least(logging.WARNING, "milvus_lifecycle")
        if server.address in line.getMessage()
    ]
    assert opened <= 12
    assert ["fails every call" in line for line in warnings] == [True, False], warnings
    assert "back: after " in warnings[1]


@pytest.mark.policy(recovery_budget=1.0)
def test_an_outage_logs_two_warnings_whatever_it_costs(
    program: Program, server: FakeMilvus
) -> None:
    """Two connections, one outage, many given-up flights: one WARNING, and one at the end."""
    tokens = ("one:pw", "two:pw")
    clients = [program.connected(server.uri, token=token) for token in tokens]
    with LogLines(logging.DEBUG) as lines:
        server.stop()
        calls = [Call(client.list_collections) for client in clients for _ in range(4)]
        assert all_done(calls, 30)
        assert all_done([Call(client.list_collections, timeout=0.5) for client in clients], 30)
        assert all(isinstance(call.error, MilvusException) for call in calls)
        server.start()
        for client in clients:
            assert Call(client.list_collections, timeout=10).value(20) == ["demo"]
        wait_until(lambda: len(lines.at_least(logging.WARNING, "milvus_lifecycle")) > 1, 20)
    told = [line.getMessage() for line in lines.at_least(logging.WARNING, "milvus_lifecycle")]
    down, back = told
    assert f"connection.outage {server.address} down: no channel within recovery_budget" in down
    assert f"connection.outage {server.address} back: after " in back
    assert "10 failed; 2 connections" in back
    assert not any("\n" in line for line in told)


def test_a_first_connect_into_a_black_hole_ends_at_its_timeout(program: Program) -> None:
    """A client of an endpoint that never answers gets one error at its timeout, naming it."""
    with BlackHole() as hole:
        call = Call(program.client, hole.uri, timeout=1)
        assert all_done([call], 10)
        assert isinstance(call.error, MilvusException)
        assert hole.address in str(call.error)
        assert program.stats()["total_connections"] == 0


def test_the_programs_own_random_numbers_are_left_alone(
    program: Program, server: FakeMilvus
) -> None:
    """Whoever seeds `random` gets the same numbers on the engine, outage or not."""
    state = random.getstate()
    client = program.connected(server.uri)
    server.stop()
    called = Call(client.list_collections)
    assert program.saw("fail")
    server.start()
    called.value(30)
    assert random.getstate() == state
