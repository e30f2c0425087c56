"""Outages in the asyncio flavour: riding through, deadlines, budgets, flapping and black holes."""

from __future__ import annotations

import asyncio
import logging
import time
from typing import Any

import grpc
import pytest
from pymilvus.exceptions import MilvusException

from tests.looping import AsyncEngine, Doing, in_loop, settled, until
from tests.network import BlackHole, TcpProxy
from tests.observe import ChannelCount, LogLines
from tests.processes import FakeMilvusProcess
from tests.servers import FakeMilvus, RpcFailure

pytestmark = pytest.mark.timeout(90)


@in_loop
async def test_a_restart_under_load_fails_no_call(aio: AsyncEngine) -> None:
    """A server killed for a second under eight coroutines fails no call and costs few channels."""
    with FakeMilvusProcess() as server, ChannelCount() as channels:
        client = await aio.connected(server.uri)
        before, calls, errors = len(channels), 0, []
        over = asyncio.Event()

        async def work() -> None:
            nonlocal calls
            while not over.is_set():
                try:
                    await client.list_collections()
                except Exception as error:
                    errors.append(error)
                calls += 1
                await asyncio.sleep(0.02)

        workers = [Doing(work()) for _ in range(8)]
        assert await until(lambda: calls >= 40, 10)
        await asyncio.to_thread(server.kill)
        await asyncio.sleep(1.0)  # the outage itself
        await asyncio.to_thread(server.start)
        back, served = time.monotonic(), calls
        assert await until(lambda: calls > served + 40, 20)
        took = time.monotonic() - back
        over.set()
        assert await settled(workers, 20)
        assert errors == []
        assert len(channels) - before <= 12
    # The promise is 0.5 s after the server listens again; a test allows ten times that.
    assert took < 5.0
    assert {record.flavour for record in aio.records} == {"asyncio"}


@in_loop
async def test_a_checkout_does_not_wait_for_another_endpoints_recovery(
    aio: AsyncEngine, server: FakeMilvus, proxy: TcpProxy
) -> None:
    """A healthy endpoint is checked out at once while another one's recovery hangs."""
    lost = await aio.connected(proxy.uri)
    hold = server.hold("ShowCollections")
    stuck = Doing(lost.list_collections(timeout=10))
    assert await until(lambda: hold.waiting == 1, 10)
    proxy.set_mode("hang", cut=True)
    assert await aio.saw("fail")
    server.heal()

    start = time.monotonic()
    await aio.connected(server.uri, token="another:one")
    took = time.monotonic() - start

    assert not stuck.done
    # The promise is 50 ms for the checkout; a test allows ten times that.
    assert took < 1.5
    proxy.set_mode("pass", cut=True)
    assert await stuck.value(10) == ["demo"]


@in_loop
async def test_five_calls_into_a_black_hole_return_at_their_deadline(
    aio: AsyncEngine, server: FakeMilvus, proxy: TcpProxy
) -> None:
    """Calls with timeout=1.5 whose server turns into a black hole each return in time.

    The promise is 2 s, that is a grace of 0.5 s; a test allows ten times the grace.
    """
    client = await aio.connected(proxy.uri)
    hold = server.hold("ShowCollections")
    calls = [Doing(client.list_collections(timeout=1.5)) for _ in range(5)]
    assert await until(lambda: hold.waiting == 5, 10)
    proxy.set_mode("hang", cut=True)
    assert await settled(calls, 6.5)
    assert all(isinstance(call.error, MilvusException) for call in calls)
    server.heal()
    proxy.set_mode("pass", cut=True)
    assert await Doing(client.list_collections(timeout=10)).value(20) == ["demo"]


@in_loop
async def test_a_call_that_starts_in_an_outage_says_why_it_was_late(
    aio: AsyncEngine, proxy: TcpProxy
) -> None:
    """A call with timeout=1 during an outage ends in time, with address, attempts and cause."""
    client = await aio.connected(proxy.uri)
    proxy.set_mode("refuse", cut=True)
    patient = Doing(client.list_collections())
    assert await aio.saw("fail")
    call = Doing(client.list_collections(timeout=1))
    assert await settled([call], 6)
    assert isinstance(call.error, MilvusException)
    text = str(call.error)
    assert proxy.address in text
    assert "attempt" in text
    assert "unavailable" in text.lower()
    assert not patient.done
    proxy.set_mode("pass")
    assert await patient.value(20) == ["demo"]


@in_loop
async def test_a_deadline_in_a_black_hole_leads_to_one_probe(aio: AsyncEngine) -> None:
    """A call with timeout=1 into a frozen server: DOUBT sends the connection to PROBING, once."""
    with FakeMilvusProcess() as frozen:
        client = await aio.connected(frozen.uri)
        frozen.pause()
        calls = [Doing(client.list_collections(timeout=1)) for _ in range(3)]
        assert await settled(calls, 10)
        # The RPC's own deadline (as on stock, gRPC's error) or the decorator's: whichever is first.
        ended = (MilvusException, grpc.RpcError)
        assert all(isinstance(call.error, ended) for call in calls)
        assert await aio.saw("doubt")
        doubt = aio.transitions("doubt")[0]
        assert (doubt.source, doubt.dest) == ("ACTIVE", "PROBING")
        assert len(aio.transitions("doubt")) == 1
        frozen.resume()
        assert await Doing(client.list_collections(timeout=10)).value(20) == ["demo"]


@in_loop
async def test_a_call_without_a_timeout_survives_an_outage(
    aio: AsyncEngine, server: FakeMilvus, proxy: TcpProxy
) -> None:
    """A call that has no timeout is answered after the server was gone for two seconds."""
    client = await aio.connected(proxy.uri)
    hold = server.hold("ShowCollections")
    call = Doing(client.list_collections())
    assert await until(lambda: hold.waiting == 1, 10)
    server.heal()
    with ChannelCount() as channels:
        proxy.set_mode("refuse", cut=True)
        late = Doing(client.list_collections())
        assert await aio.saw("fail")
        await asyncio.sleep(2.0)  # the outage itself, not a way to be right
        assert not call.done
        assert not late.done
        back = time.monotonic()
        proxy.set_mode("pass")
        assert await call.value(20) == ["demo"]
        assert await late.value(20) == ["demo"]
        took = time.monotonic() - back
    assert len(channels) <= 12
    # The promise is 0.5 s after the server listens again; a test allows ten times that.
    assert took < 5.0
    assert [record.dest for record in aio.transitions("recovered")] == ["ACTIVE"]


@pytest.mark.policy(recovery_budget=1.0)
@in_loop
async def test_a_spent_budget_is_one_error_that_says_everything(
    aio: AsyncEngine, proxy: TcpProxy
) -> None:
    """After `recovery_budget` a call gets one MilvusException: address, attempts, time, cause."""
    client = await aio.connected(proxy.uri)
    proxy.set_mode("refuse", cut=True)
    with LogLines(logging.WARNING) as lines:
        start = time.monotonic()
        with pytest.raises(MilvusException) as caught:
            await client.list_collections()
        took = time.monotonic() - start
        # The caller's own budget may end a moment before its flight's.
        assert await aio.saw("give_up")
    text = str(caught.value)
    assert proxy.address in text
    assert "attempt" in text
    assert any(sign.isdigit() for sign in text.replace(proxy.address, ""))
    assert " s" in text
    assert "refused" in text.lower() or "unavailable" in text.lower()
    assert took < 10.0
    assert len(aio.transitions("give_up")) == 1
    assert len(lines.at_least(logging.WARNING, "milvus_lifecycle")) == 1
    proxy.set_mode("pass")
    assert await Doing(client.list_collections()).value(20) == ["demo"]


@in_loop
async def test_an_unauthenticated_recovery_is_given_up_at_once(
    aio: AsyncEngine, server: FakeMilvus
) -> None:
    """A permanent error in recovery is the caller's at once, not after the whole budget."""
    client = await aio.connected(server.uri, token="root:old")
    server.fail(grpc.StatusCode.UNAUTHENTICATED, spare=("ShowCollections",))
    failing = iter([True])

    def fail_once(call: Any) -> None:
        if next(failing, False):
            raise RpcFailure(grpc.StatusCode.UNAVAILABLE)

    server.on("ShowCollections", fail_once)
    call = Doing(client.list_collections())
    assert await settled([call], 10)
    assert isinstance(call.error, MilvusException)
    assert len(aio.transitions("give_up")) == 1


@in_loop
async def test_a_flapping_server_costs_few_channels_and_one_warning(
    aio: AsyncEngine, server: FakeMilvus
) -> None:
    """A server that validates but fails every RPC for 8 s: at most 12 channels, one WARNING."""
    client = await aio.connected(server.uri)
    with ChannelCount() as channels, LogLines(logging.DEBUG) as lines:
        server.fail()
        calls = [Doing(client.list_collections()) for _ in range(8)]
        await asyncio.sleep(8.0)  # the outage itself
        assert not any(call.done for call in calls)
        server.heal()
        for call in calls:
            assert await call.value(30) == ["demo"]
        opened = len(channels)
    warnings = lines.at_least(logging.WARNING, "milvus_lifecycle")
    assert opened <= 12
    assert len(warnings) <= 1, [line.getMessage() for line in warnings]


@in_loop
async def test_a_first_connect_into_a_black_hole_ends_at_its_timeout(aio: AsyncEngine) -> None:
    """A client of an endpoint that never answers gets one error at its timeout, naming it."""
    with BlackHole() as hole:
        call = Doing(aio.client(hole.uri, timeout=1).list_collections())
        assert await settled([call], 10)
        assert isinstance(call.error, MilvusException)
        assert hole.address in str(call.error)
        assert aio.stats()["total_connections"] == 0


@in_loop
async def test_a_failed_first_connect_wakes_everybody_and_leaves_nothing(
    aio: AsyncEngine, server: FakeMilvus
) -> None:
    """Eight first calls of eight clients on a dead port: eight errors, one flight, no entry."""
    server.stop()
    calls = [Doing(aio.client(server.uri).list_collections()) for _ in range(8)]
    assert await settled(calls, 20)
    assert all(isinstance(call.error, MilvusException) for call in calls)
    assert all(server.address in str(call.error) for call in calls)
    assert aio.path() == ["acquire", "probe_failed"]
    assert aio.stats()["total_connections"] == 0
