"""The permanent channel of the asyncio flavour: its streams, and the channel behind it."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import grpc
import grpc.aio
import pytest

from milvus_lifecycle import AsyncConnectionManager
from milvus_lifecycle.errors import ConnectionClosed, DeadlineExceeded, LifecycleError, summarize
from milvus_lifecycle.table import State, Trigger
from milvus_lifecycle.testing import FakeChannel, FakeClock, Script, rpc_error
from tests.cores import CONFIG
from tests.looping import in_loop

KINDS = ("unary_stream", "stream_unary", "stream_stream")


def manager_of(script: Script) -> AsyncConnectionManager:
    return AsyncConnectionManager(transport=script.asyncio(), seams=FakeClock().seams())


class Stream:
    """grpc.aio's call of a stream."""

    end: Callable[[Any], None]

    def add_done_callback(self, callback: Callable[[Any], None]) -> None:
        self.end = callback


@pytest.mark.parametrize("kind", KINDS)
def test_a_stream_counts_until_it_ends(monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    """It is one RPC in flight until its call is done."""
    stream = Stream()
    monkeypatch.setattr(
        FakeChannel, kind, lambda channel, method: lambda request, **about: stream, raising=False
    )

    @in_loop
    async def main() -> None:
        manager = manager_of(Script())
        face = (await manager.get_or_create(CONFIG)).face
        assert getattr(face, kind)("/method")("request", timeout=5.0) is stream
        assert face.connection.lifecycle.in_flight == 1
        stream.end(stream)
        assert face.connection.lifecycle.in_flight == 0
        await manager.close_all()
        with pytest.raises(LifecycleError, match="not usable now"):
            getattr(face, kind)("/method")("request")

    main()


@in_loop
async def test_a_short_timeout_is_waited_for_almost_to_its_end() -> None:
    """A tenth of it, or less, is kept to say why: pymilvus ends the call without a word."""
    script = Script()
    manager = AsyncConnectionManager(transport=script.asyncio())
    face = (await manager.get_or_create(CONFIG)).face
    script.hold("register")
    lost = summarize(rpc_error("UNAVAILABLE"))
    manager._pool.step(face.connection, Trigger.FAIL, failure=lost, generation=1)
    began = time.monotonic()
    with pytest.raises(DeadlineExceeded):
        await face.begin(0.2)
    assert time.monotonic() - began > 0.17
    await manager.close_all()


@in_loop
async def test_the_channel_in_use_answers_for_it() -> None:
    """What is asked about connectivity is asked of the channel in use, once there is one."""

    class Raw:
        def get_state(self, try_to_connect: bool) -> grpc.ChannelConnectivity:
            return grpc.ChannelConnectivity.READY

        async def wait_for_state_change(self, last: object) -> None:
            asked.append("change")

        async def channel_ready(self) -> None:
            asked.append("ready")

        async def close(self) -> None:
            """Closed with its connection."""

    asked: list[str] = []
    manager = manager_of(Script())
    early = manager._pool.create(CONFIG, dedicated=False).face
    with pytest.raises(grpc.aio.UsageError, match="no channel"):
        early.get_state()
    face = (await manager.get_or_create(CONFIG)).face
    face.connection.lifecycle.binding.wire.channel = Raw()
    assert face.get_state(True) is grpc.ChannelConnectivity.READY
    await face.wait_for_state_change(grpc.ChannelConnectivity.READY)
    await face.channel_ready()
    assert asked == ["change", "ready"]
    await manager.close_all()


@in_loop
async def test_a_channel_is_a_context() -> None:
    """Leaving it closes the connection for good; it shows which one that is."""
    handler = await manager_of(Script()).get_or_create(CONFIG)
    async with handler.face as face:
        assert handler.face.connection.id in repr(face)
    assert handler.face.connection.state is State.CLOSED
    with pytest.raises(ConnectionClosed):
        await handler.rpc()


@in_loop
async def test_an_interceptor_is_there_once() -> None:
    """pymilvus appends its own again whenever it builds a stub anew."""
    face = (await manager_of(Script()).get_or_create(CONFIG)).face
    one, two = object(), object()
    for each in (one, two, one):
        face._unary_unary_interceptors.append(each)
    assert face._unary_unary_interceptors == [one, two]
    await face.close()
