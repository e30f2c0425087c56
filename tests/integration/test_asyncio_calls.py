"""One call over its retries in the asyncio flavour: its deadline is its own.

pymilvus runs a call that has a timeout by asyncio.wait_for, which before Python 3.12 means a task
of its own for every attempt, with a copy of the caller's context.
"""

from __future__ import annotations

import asyncio
import time
from typing import Any

import pytest
from pymilvus.exceptions import MilvusException

from tests.looping import AsyncEngine, Doing, in_loop, until
from tests.network import TcpProxy
from tests.servers import FakeMilvus

pytestmark = pytest.mark.timeout(60)


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
