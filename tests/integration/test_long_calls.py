"""The recovery budget is for waiting, not for the call: a long call has all of it left."""

from __future__ import annotations

import itertools
import time

import grpc
import pytest

from tests.conftest import Engine
from tests.looping import AsyncEngine, Doing, in_loop
from tests.observe import Call
from tests.servers import FakeMilvus, RpcFailure, ServedCall

pytestmark = [pytest.mark.timeout(60), pytest.mark.policy(recovery_budget=1.0)]


def _lose_after_a_while(server: FakeMilvus) -> None:
    """The first listing runs for longer than the budget before its server is gone."""
    numbers = itertools.count()

    def answer(call: ServedCall) -> None:
        if next(numbers) == 0:
            time.sleep(1.5)
            raise RpcFailure(grpc.StatusCode.UNAVAILABLE)

    server.on("ShowCollections", answer)


def test_threads(engine: Engine, server: FakeMilvus) -> None:
    """A call that ran for longer than the budget is retried when its connection is lost."""
    client = engine.client(server.uri)
    _lose_after_a_while(server)
    assert Call(client.list_collections).value(20) == ["demo"]


@in_loop
async def test_asyncio(aio: AsyncEngine, server: FakeMilvus) -> None:
    """A call that ran for longer than the budget is retried when its connection is lost."""
    client = aio.client(server.uri)
    await client.has_partition("demo", "part")
    _lose_after_a_while(server)
    assert await Doing(client.list_collections()).value(20) == ["demo"]
