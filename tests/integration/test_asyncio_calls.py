"""One call over its retries in the asyncio flavour: its deadline is its own, its status is known.

pymilvus runs a call that has a timeout by asyncio.wait_for, which before Python 3.12 means a task
of its own for every attempt, with a copy of the caller's context.
"""

from __future__ import annotations

import asyncio
import itertools
import time
from typing import Any

import grpc
import pytest
from pymilvus.exceptions import MilvusException
from pymilvus.grpc_gen import milvus_pb2

from tests.looping import AsyncEngine, Doing, in_loop, settled, until
from tests.network import TcpProxy
from tests.servers import Answer, FakeMilvus, RpcFailure, ServedCall, status

pytestmark = pytest.mark.timeout(60)

#: What real Milvus 2.3.5 answered until 35 s after it was killed.
NOT_LOADED = 101


def _not_loaded(call: ServedCall) -> Any:
    return milvus_pb2.SearchResults(status=status(NOT_LOADED, "collection not loaded"))


def _not_loaded_for(seconds: float) -> Answer:
    ready = time.monotonic() + seconds
    return lambda call: _not_loaded(call) if time.monotonic() < ready else None


async def _search(client: Any, collection: str = "demo", **options: Any) -> Any:
    return await client.search(collection, [[0.1, 0.2, 0.3, 0.4]], limit=1, **options)


async def _recover(aio: AsyncEngine, server: FakeMilvus, client: Any) -> None:
    """One failed listing, and thereby one recovery."""
    numbers = itertools.count()

    def fail_first(call: ServedCall) -> None:
        if next(numbers) == 0:
            raise RpcFailure(grpc.StatusCode.UNAVAILABLE)

    server.on("ShowCollections", fail_first)
    await client.list_collections()
    assert await aio.saw("recovered")


@in_loop
async def test_a_retried_calls_deadline_is_not_the_next_calls(
    aio: AsyncEngine, server: FakeMilvus, proxy: TcpProxy
) -> None:
    """After a call that was retried for a second, the next one has its whole timeout again."""
    client = await aio.connected(proxy.uri)
    proxy.set_mode("refuse", cut=True)
    first = Doing(client.list_collections(timeout=3))
    assert await aio.saw("fail")
    await asyncio.sleep(1.0)  # the outage itself

    async def both() -> tuple[Any, float]:
        served = await first.task
        # The very task that was told of the failure: a context is inherited by awaiting.
        hold = server.hold("ShowCollections")
        started = time.monotonic()
        with pytest.raises(MilvusException):
            await client.list_collections(timeout=3)
        hold.release()
        return served, time.monotonic() - started

    proxy.set_mode("pass")
    served, took = await Doing(both()).value(20)
    assert served == ["demo"]
    assert took > 2.8


@in_loop
async def test_calls_of_one_task_each_have_their_own_deadline(
    aio: AsyncEngine, server: FakeMilvus, proxy: TcpProxy
) -> None:
    """The same, with both calls made by one task, as programs do."""
    client = await aio.connected(proxy.uri)

    async def program() -> float:
        assert await client.list_collections(timeout=3) == ["demo"]
        hold = server.hold("ShowCollections")
        started = time.monotonic()
        with pytest.raises(MilvusException):
            await client.list_collections(timeout=3)
        hold.release()
        return time.monotonic() - started

    hold = server.hold("ShowCollections")
    doing = Doing(program())
    assert await until(lambda: hold.waiting == 1, 10)
    server.heal()
    proxy.set_mode("refuse", cut=True)
    assert await aio.saw("fail")
    await asyncio.sleep(1.0)  # the outage itself
    proxy.set_mode("pass")
    assert await doing.value(20) > 2.8


@in_loop
async def test_a_retry_gets_only_what_is_left(
    aio: AsyncEngine, server: FakeMilvus, proxy: TcpProxy
) -> None:
    """A call with timeout=3 whose first second was an outage is sent again with the rest."""
    client = await aio.connected(proxy.uri)
    hold = server.hold("ShowCollections")
    call = Doing(client.list_collections(timeout=3))
    assert await until(lambda: hold.waiting == 1, 10)
    server.heal()
    proxy.set_mode("refuse", cut=True)
    assert await aio.saw("fail")
    await asyncio.sleep(1.0)  # the outage itself
    proxy.set_mode("pass")
    assert await call.value(10) == ["demo"]
    remaining = server.seen("ShowCollections")[-1].time_remaining
    assert remaining is not None
    assert remaining < 2.1


@pytest.mark.parametrize("timeout", [None, 15], ids=["no timeout", "timeout=15"])
@in_loop
async def test_a_collection_that_answered_before_is_waited_for(
    aio: AsyncEngine, server: FakeMilvus, timeout: float | None
) -> None:
    """After a recovery, "not loaded" of a known collection is waited out, not raised."""
    client = await aio.connected(server.uri)
    await _search(client)
    server.on("Search", _not_loaded_for(1.0))
    await _recover(aio, server, client)
    await Doing(_search(client, timeout=timeout)).value(20)
    assert server.count("Search") > 2


@in_loop
async def test_an_unknown_collection_is_the_callers_business(
    aio: AsyncEngine, server: FakeMilvus
) -> None:
    """After a recovery, "not loaded" of a collection that never answered is raised at once."""
    client = await aio.connected(server.uri)
    await _search(client, "demo")
    await _recover(aio, server, client)
    server.on("Search", _not_loaded)
    with pytest.raises(MilvusException) as caught:
        await _search(client, "another")
    assert caught.value.code == NOT_LOADED
    assert server.count("Search") == 2


@in_loop
async def test_waiting_ends_with_the_calls_timeout(aio: AsyncEngine, server: FakeMilvus) -> None:
    """A call with timeout=1 waits for a collection no longer than that, and says why."""
    client = await aio.connected(server.uri)
    await _search(client)
    await _recover(aio, server, client)
    server.on("Search", _not_loaded)
    call = Doing(_search(client, timeout=1))
    assert await settled([call], 10)
    assert isinstance(call.error, MilvusException)
