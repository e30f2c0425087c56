"""Event loops and the asyncio flavour: several of them, their ends, and what they complain of."""

from __future__ import annotations

import asyncio
import gc
import threading
from collections.abc import Callable
from typing import Any

import pytest
from pymilvus import AsyncMilvusClient
from pymilvus.exceptions import MilvusException

import milvus_lifecycle as ml
from milvus_lifecycle.errors import LoopMismatch
from tests.looping import AsyncEngine, Doing, held_rpcs, settled, until
from tests.network import TcpProxy, open_sockets_to
from tests.observe import wait_until
from tests.servers import FakeMilvus

pytestmark = pytest.mark.timeout(90)

NewLoop = Callable[[], asyncio.AbstractEventLoop]


def _uvloop() -> asyncio.AbstractEventLoop:
    uvloop = pytest.importorskip("uvloop", reason="uvloop is not to be had on this platform")
    loop: asyncio.AbstractEventLoop = uvloop.new_event_loop()
    return loop


each_loop = pytest.mark.parametrize(
    "new_loop", [asyncio.new_event_loop, _uvloop], ids=["asyncio", "uvloop"]
)


shared_and_dedicated = pytest.mark.parametrize(
    "dedicated", [False, True], ids=["shared", "dedicated"]
)


async def _list(client: Any) -> Any:
    return await client.list_collections()


def _final_states(engine: AsyncEngine) -> set[str]:
    """The states in which the connections of all loops ended, by the records."""
    last = {record.connection_id: record.dest for record in engine.transitions()}
    return set(last.values())


def _of_grpc_in_uvloop(complaint: dict[str, Any]) -> bool:
    """uvloop runs its readers once more while it closes, also grpc's. An RPC of a flight that ends
    then is an error in grpc's callback; only a loop that cancels its tasks first is spared it."""
    return "PollerCompletionQueue._handle_events" in complaint["message"]


@each_loop
def test_a_plain_close_frees_everything(
    aio: AsyncEngine, server: FakeMilvus, new_loop: NewLoop
) -> None:
    """loop.close() without cancelling anything: connections CLOSED, sockets gone, no await."""
    loop = new_loop()
    try:
        loop.run_until_complete(aio.connected(server.uri))
        loop.run_until_complete(aio.connected(server.uri, dedicated=True))
        assert open_sockets_to(server.port) == 2
    finally:
        loop.close()
    del loop
    assert _final_states(aio) == {"CLOSED"}
    wait_until(lambda: open_sockets_to(server.port) == 0, 5)


@each_loop
def test_a_close_during_an_outage_frees_everything(
    aio: AsyncEngine, server: FakeMilvus, proxy: TcpProxy, new_loop: NewLoop
) -> None:
    """loop.close() while a recovery and its waiters are under way: the same."""
    complaints: list[Any] = []
    calls: list[Doing] = []

    async def outage() -> None:
        asyncio.get_running_loop().set_exception_handler(lambda _, note: complaints.append(note))
        client = await aio.connected(proxy.uri)
        hold = server.hold("ShowCollections")
        calls.extend(Doing(client.list_collections()) for _ in range(2))
        await until(lambda: hold.waiting == 2, 10)
        proxy.set_mode("hang", cut=True)
        assert await aio.has_seen("fail")
        assert not any(call.done for call in calls)

    loop = new_loop()
    try:
        loop.run_until_complete(outage())
        # This test leaves its own calls pending: asyncio would say so, of them alone.
        for call in calls:
            call.task._log_destroy_pending = False  # type: ignore[attr-defined]
    finally:
        loop.close()
    assert _final_states(aio) == {"CLOSED"}
    del loop
    calls.clear()
    gc.collect()
    assert [each for each in complaints if not _of_grpc_in_uvloop(each)] == []
    # No look at the sockets: an unanswered handshake keeps its own for 20 s (design.md).


@each_loop
def test_an_outage_is_ridden_through(aio: AsyncEngine, proxy: TcpProxy, new_loop: NewLoop) -> None:
    """Connect, outage, recovery, cancellation and close on each kind of loop."""

    async def ride() -> None:
        client = await aio.connected(proxy.uri)
        proxy.set_mode("refuse", cut=True)
        calls = [Doing(client.list_collections()) for _ in range(4)]
        assert await aio.has_seen("retry")
        calls[0].cancel()
        proxy.set_mode("pass")
        assert await settled(calls, 20)
        assert [call.result for call in calls[1:]] == [["demo"]] * 3
        assert calls[0].cancelled
        await client.close()

    loop = new_loop()
    try:
        loop.run_until_complete(ride())
    finally:
        loop.close()
    assert len(aio.transitions("recovered")) == 1
    assert _final_states(aio) == {"CLOSED"}
    wait_until(lambda: open_sockets_to(proxy.port) == 0, 5)


@shared_and_dedicated
def test_one_client_in_many_loops_one_after_the_other(
    aio: AsyncEngine, server: FakeMilvus, dedicated: bool
) -> None:
    """A client works in five loops one after the other; each leaves nothing behind."""
    client = AsyncMilvusClient(server.uri, dedicated=dedicated)

    async def call() -> Any:
        return await client.list_collections(), aio.stats()["total_connections"]

    for _ in range(5):
        assert asyncio.run(call()) == (["demo"], 1)
        wait_until(lambda: open_sockets_to(server.port) == 0, 5)
    assert server.count("Connect") == 5


def test_one_client_in_two_loops_at_once(aio: AsyncEngine, server: FakeMilvus) -> None:
    """A client in two loops of two threads has a connection in each; close() ends both."""
    client = AsyncMilvusClient(server.uri)
    entered, leave = threading.Event(), threading.Event()
    second: list[Any] = []

    async def elsewhere() -> None:
        second.append(await client.list_collections())
        second.append(aio.stats()["total_connections"])
        entered.set()
        await asyncio.to_thread(leave.wait, 30)
        second.append([row["clients"] for row in aio.stats()["connections"]])

    async def here() -> None:
        assert await client.list_collections() == ["demo"]
        thread = threading.Thread(target=lambda: asyncio.run(elsewhere()), daemon=True)
        thread.start()
        await until(entered.is_set, 20)
        assert await client.list_collections() == ["demo"]
        assert open_sockets_to(server.port) == 2
        await client.close()
        leave.set()
        await until(lambda: not thread.is_alive(), 20)

    asyncio.run(here())
    assert second == [["demo"], 1, [0]]
    wait_until(lambda: open_sockets_to(server.port) == 0, 5)


@shared_and_dedicated
def test_concurrent_first_calls_share_one_connect(
    aio: AsyncEngine, server: FakeMilvus, dedicated: bool
) -> None:
    """Twenty concurrent first calls of one client connect once, and once in its second loop."""
    client = AsyncMilvusClient(server.uri, dedicated=dedicated)

    async def many() -> list[Any]:
        answers = await asyncio.gather(*(client.list_collections() for _ in range(20)))
        assert open_sockets_to(server.port) == 1
        stats = aio.stats()
        assert stats["total_connections"] == 1
        assert stats["dedicated_connections"] == int(dedicated)
        return answers

    for loops in (1, 2):
        assert asyncio.run(many()) == [["demo"]] * 20
        assert server.count("Connect") == loops
        wait_until(lambda: open_sockets_to(server.port) == 0, 5)


def test_a_recovery_works_in_a_second_loop(
    aio: AsyncEngine, server: FakeMilvus, proxy: TcpProxy
) -> None:
    """An outage in a client's second loop is ridden through like one in its first.

    The retry gets only what is left of its call's timeout, and the right headers.
    """
    client = AsyncMilvusClient(proxy.uri, token="root:Milvus")

    async def second() -> None:
        _ = aio.manager
        await client.list_collections()
        hold = server.hold("ShowCollections")
        call = Doing(client.list_collections(timeout=3))
        await until(lambda: hold.waiting == 1, 10)
        server.heal()
        proxy.set_mode("refuse", cut=True)
        assert await aio.has_seen("retry")
        await asyncio.sleep(1.0)  # the outage itself
        proxy.set_mode("pass")
        assert await call.value(10) == ["demo"]

    asyncio.run(_list(client))
    asyncio.run(second())
    last = server.seen("ShowCollections")[-1]
    assert last.metadata["identifier"] == str(server.identifiers[-1])
    assert "authorization" in last.metadata
    assert last.time_remaining is not None
    assert last.time_remaining < 2.1
    wait_until(lambda: open_sockets_to(proxy.port) == 0, 5)


@shared_and_dedicated
def test_a_client_closed_in_its_second_loop_leaves_nothing(
    aio: AsyncEngine, server: FakeMilvus, dedicated: bool
) -> None:
    """close() in the second loop gives back what the client holds there."""
    client = AsyncMilvusClient(server.uri, dedicated=dedicated)

    async def second() -> None:
        await client.list_collections()
        await client.close()
        assert [row["clients"] for row in aio.stats()["connections"]] == ([] if dedicated else [0])
        with pytest.raises(MilvusException):
            await client.list_collections()

    asyncio.run(_list(client))
    asyncio.run(second())
    wait_until(lambda: open_sockets_to(server.port) == 0, 5)


def test_no_manager_without_a_loop(aio: AsyncEngine) -> None:
    """Outside of a loop get_instance raises LoopMismatch, a clear error."""
    with pytest.raises(LoopMismatch, match="loop"):
        ml.AsyncConnectionManager.get_instance()


def test_uninstall_closes_the_connections_of_running_loops(
    aio: AsyncEngine, server: FakeMilvus
) -> None:
    """uninstall inside a loop ends what its clients wait for; nothing is left open."""

    async def main() -> None:
        client = await aio.connected(server.uri)
        _, (running,) = await held_rpcs(server, client)
        ml.uninstall()
        assert await settled([running], 5)
        assert isinstance(running.error, MilvusException)
        await until(lambda: open_sockets_to(server.port) == 0, 5)

    asyncio.run(main())
