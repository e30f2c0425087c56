"""Cancellation in the asyncio flavour: whoever is cancelled leaves alone, and leaves nothing."""

from __future__ import annotations

import asyncio
import sys
import time
from typing import Any

import pytest
from pymilvus.exceptions import MilvusException

from tests import inside
from tests.looping import AsyncEngine, Doing, held_rpcs, in_loop, other_tasks, settled, until
from tests.network import BlackHole, TcpProxy, open_sockets_to
from tests.observe import ChannelCount
from tests.servers import FakeMilvus

pytestmark = pytest.mark.timeout(60)

needs_311 = pytest.mark.skipif(
    sys.version_info < (3, 11), reason="asyncio.timeout and TaskGroup came with Python 3.11"
)


def _flights() -> list[asyncio.Task[Any]]:
    """The tasks that lead flights now; not those that ask a server for them."""
    names = ("milvus-lifecycle-connect-", "milvus-lifecycle-probe-", "milvus-lifecycle-recovery-")
    return [task for task in asyncio.all_tasks() if task.get_name().startswith(names)]


async def _lose_server(aio: AsyncEngine, proxy: TcpProxy, calls: int) -> tuple[Any, list[Doing]]:
    """A client in the middle of an outage, and calls that wait for its recovery."""
    client = await aio.connected(proxy.uri)
    proxy.set_mode("refuse", cut=True)
    waiting = [Doing(client.list_collections()) for _ in range(calls)]
    assert await aio.has_seen("fail")
    assert await aio.has_seen("retry")
    await until(lambda: inside.waiting(aio.manager) == calls, 10)
    return client, waiting


# -- waiters -------------------------------------------------------------------------------


@pytest.mark.parametrize("others", [0, 1])
@in_loop
async def test_a_cancelled_waiter_does_not_cancel_the_recovery(
    aio: AsyncEngine, proxy: TcpProxy, others: int
) -> None:
    """Of the calls that wait for a recovery two are cancelled: at once, and they alone.

    It lands without any waiter, too, and the next call is served.
    """
    client, calls = await _lose_server(aio, proxy, 2 + others)
    for call in calls[:2]:
        call.cancel()
    assert await settled(calls[:2], 2)
    assert all(call.cancelled for call in calls[:2])
    proxy.set_mode("pass")
    for call in calls[2:]:
        assert await call.value(20) == ["demo"]
    assert await aio.has_seen("recovered")
    assert await client.list_collections() == ["demo"]
    assert len(aio.transitions("recovered")) == 1
    assert not aio.transitions("abandoned")


@in_loop
async def test_a_cancelled_first_connect_leaves_nothing(aio: AsyncEngine) -> None:
    """When all waiters of a first connect are cancelled it is abandoned, and nothing stays."""
    with BlackHole() as hole, ChannelCount() as channels:
        calls = [Doing(aio.client(hole.uri).list_collections()) for _ in range(3)]
        await until(lambda: hole.accepted, 10)
        for call in calls:
            call.cancel()
        assert await settled(calls, 2)
        assert all(call.cancelled for call in calls)
        await until(lambda: aio.path() == ["acquire", "abandoned"], 5)
        assert len(channels) == 1
        assert aio.stats()["total_connections"] == 0
        await until(lambda: not other_tasks(), 5)


@in_loop
async def test_one_cancelled_waiter_of_a_first_connect_leaves_alone(
    aio: AsyncEngine, server: FakeMilvus, proxy: TcpProxy
) -> None:
    """A first connect that two wait for goes on when one of them is cancelled."""
    proxy.set_mode("hang")
    first = Doing(aio.client(proxy.uri).list_collections())
    second = Doing(aio.client(proxy.uri).list_collections())
    await until(lambda: proxy.accepted, 10)
    first.cancel()
    assert await settled([first], 2)
    proxy.set_mode("pass")
    assert await second.value(20) == ["demo"]
    assert server.count("Connect") == 1
    assert [row["clients"] for row in aio.stats()["connections"]] == [1]


@in_loop
async def test_a_cancelled_call_touches_nothing_else(aio: AsyncEngine, server: FakeMilvus) -> None:
    """Cancelling a running RPC ends it on the server too, fails nothing, and is counted out."""
    client = await aio.connected(server.uri)
    hold, calls = await held_rpcs(server, client, 2)
    before = aio.path()
    calls[0].cancel()
    assert await settled(calls[:1], 2)
    assert calls[0].cancelled
    await until(lambda: hold.waiting == 1, 5)
    assert [row["in_flight"] for row in aio.stats()["connections"]] == [1]
    hold.release()
    await calls[1].value(10)
    assert [row["in_flight"] for row in aio.stats()["connections"]] == [0]
    assert aio.path() == before


@in_loop
async def test_a_storm_of_cancellations_loses_no_count(
    aio: AsyncEngine, server: FakeMilvus, proxy: TcpProxy
) -> None:
    """Two hundred calls cancelled at any moment, connections cut between them: all is counted."""
    client = await aio.connected(proxy.uri)
    calls = []
    for number in range(200):
        calls.append(Doing(client.list_collections()))
        if number % 3 == 0:
            calls[number // 2].cancel()
        if number % 50 == 25:
            proxy.cut()
        await asyncio.sleep(0.001 * (number % 4))
    assert await settled(calls, 20)
    assert all(call.cancelled or call.result == ["demo"] for call in calls)
    assert [row["in_flight"] for row in aio.stats()["connections"]] == [0]
    await until(lambda: open_sockets_to(proxy.port) == 1, 10)
    await until(lambda: not other_tasks(), 5)


@pytest.mark.policy(linger=0.5)
@in_loop
async def test_a_call_cancelled_after_its_client_closed_counts_for_linger(
    aio: AsyncEngine, server: FakeMilvus
) -> None:
    """`linger` runs from the end of the last RPC, also when that one was cancelled."""
    client = await aio.connected(server.uri)
    _, (running,) = await held_rpcs(server, client)
    await client.close()
    await asyncio.sleep(0.7)  # longer than linger: what this is about
    running.cancel()
    assert await settled([running], 2)
    cancelled = time.monotonic()
    assert aio.stats()["total_connections"] == 1
    assert await aio.has_seen("expire")
    assert time.monotonic() - cancelled > 0.4


# -- leaders -------------------------------------------------------------------------------


@pytest.mark.parametrize("waiters", [0, 2])
@in_loop
async def test_a_cancelled_leader_hands_over(
    aio: AsyncEngine, proxy: TcpProxy, waiters: int
) -> None:
    """The task of a recovery is cancelled: on record as abandoned, and the waiters go on.

    If nobody waits, the connection is IDLE and suspect: the next call mends it.
    """
    client, (first, *calls) = await _lose_server(aio, proxy, 1 + waiters)
    first.cancel()
    assert await settled([first], 2)
    (leader,) = _flights()
    leader.cancel()
    assert await aio.has_seen("abandoned")
    assert not any(call.done for call in calls)
    if not waiters:
        assert [row["state"] for row in aio.stats()["connections"]] == ["IDLE"]
    proxy.set_mode("pass")
    for call in (*calls, Doing(client.list_collections())):
        assert await call.value(20) == ["demo"]
    assert len(aio.transitions("abandoned")) == 1


@in_loop
async def test_a_cancelled_first_connect_flight_wakes_its_waiters(aio: AsyncEngine) -> None:
    """The task of a first connect is cancelled: its waiters get an error now, nothing stays."""
    with BlackHole() as hole:
        calls = [Doing(aio.client(hole.uri).list_collections()) for _ in range(2)]
        await until(lambda: hole.accepted, 10)
        (leader,) = _flights()
        leader.cancel()
        assert await settled(calls, 5)
        assert all(isinstance(call.error, MilvusException) for call in calls)
        assert aio.path() == ["acquire", "abandoned"]
        assert aio.stats()["total_connections"] == 0


@pytest.mark.policy(idle_threshold=0.2)
@in_loop
async def test_a_cancelled_probe_hands_over(
    aio: AsyncEngine, server: FakeMilvus, proxy: TcpProxy
) -> None:
    """The task of a probe is cancelled: its waiter starts the next flight and is served."""
    client = await aio.connected(proxy.uri)
    await asyncio.sleep(0.5)  # idle time is what this is about
    hold = server.hold("GetVersion")
    call = Doing(client.list_collections())
    await until(lambda: hold.waiting == 1, 10)
    (leader,) = _flights()
    server.heal()
    leader.cancel()
    assert await call.value(20) == ["demo"]
    assert len(aio.transitions("abandoned")) == 1


# -- asyncio's own tools -------------------------------------------------------------------


@in_loop
async def test_wait_for_during_an_outage_is_a_timeout(aio: AsyncEngine, proxy: TcpProxy) -> None:
    """asyncio.wait_for around a call raises TimeoutError in time, not the engine's error."""
    client, calls = await _lose_server(aio, proxy, 1)
    with pytest.raises(asyncio.TimeoutError):
        await asyncio.wait_for(client.list_collections(), 0.3)
    assert not calls[0].done
    proxy.set_mode("pass")
    assert await calls[0].value(20) == ["demo"]


@needs_311
@in_loop
async def test_asyncio_timeout_is_a_timeout(aio: AsyncEngine, proxy: TcpProxy) -> None:
    """asyncio.timeout around a call raises TimeoutError, and the task is not cancelled after."""
    client, calls = await _lose_server(aio, proxy, 1)

    async def impatient() -> str:
        try:
            async with asyncio.timeout(0.3):  # type: ignore[attr-defined,unused-ignore]
                await client.list_collections()
        except TimeoutError:
            task = asyncio.current_task()
            assert task is not None
            return f"timeout, {task.cancelling()} cancellations"  # type: ignore[attr-defined,unused-ignore]
        return "served"

    assert await Doing(impatient()).value(10) == "timeout, 0 cancellations"
    proxy.set_mode("pass")
    assert await calls[0].value(20) == ["demo"]


@needs_311
@in_loop
async def test_a_task_group_ends_as_documented(aio: AsyncEngine, proxy: TcpProxy) -> None:
    """A child that fails cancels its siblings in a recovery; the group raises that one error."""
    client, calls = await _lose_server(aio, proxy, 1)
    siblings: list[asyncio.Task[Any]] = []

    async def fail() -> None:
        await until(lambda: inside.waiting(aio.manager) == 4, 10)
        raise KeyError("mine")

    async def group() -> None:
        async with asyncio.TaskGroup() as tasks:  # type: ignore[attr-defined,unused-ignore]
            siblings.extend(tasks.create_task(client.list_collections()) for _ in range(3))
            tasks.create_task(fail())

    doing = Doing(group())
    assert await settled([doing], 5)
    error: Any = doing.error
    assert [type(each) for each in error.exceptions] == [KeyError]
    assert all(sibling.cancelled() for sibling in siblings)
    proxy.set_mode("pass")
    assert await calls[0].value(20) == ["demo"]


@in_loop
async def test_shield_keeps_a_call_alive(aio: AsyncEngine, proxy: TcpProxy) -> None:
    """A shielded call that waits for a recovery is served though its awaiter was cancelled."""
    client, _ = await _lose_server(aio, proxy, 1)
    inner = asyncio.ensure_future(client.list_collections())

    async def outer() -> Any:
        return await asyncio.shield(inner)

    doing = Doing(outer())
    await asyncio.sleep(0)
    doing.cancel()
    assert await settled([doing], 2)
    assert doing.cancelled
    proxy.set_mode("pass")
    assert await asyncio.wait_for(inner, 20) == ["demo"]


@in_loop
async def test_cancel_and_close_at_once(aio: AsyncEngine, server: FakeMilvus) -> None:
    """A call that is cancelled in the very moment of close_all ends, one way or the other."""
    client = await aio.connected(server.uri)
    _, calls = await held_rpcs(server, client, 4)
    calls[0].cancel()
    await aio.manager.close_all()
    calls[1].cancel()
    assert await settled(calls, 5)
    # Before 3.11 a task cannot tell who cancelled it: its owner, or close_all its RPC.
    if sys.version_info >= (3, 11):
        assert calls[0].cancelled
        assert calls[1].cancelled
    assert all(isinstance(call.error, MilvusException) for call in calls[2:])
    assert all("closed" in str(call.error).lower() for call in calls[2:])
    await until(lambda: open_sockets_to(server.port) == 0, 5)
