"""Servers to which pings come too often: they say so, and a long call has to get through."""

from __future__ import annotations

import time

import grpc
import pytest

from tests.flavours import Program
from tests.observe import Call, ChannelCount, wait_until
from tests.servers import FakeMilvus, RpcFailure, ServedCall


def _options(channels: ChannelCount) -> list[int]:
    return [options["grpc.keepalive_time_ms"] for options in channels.options]


def test_a_fresh_channel_pings_less_often(program: Program, server: FakeMilvus) -> None:
    """Each "too many pings" doubles the pause, up to ten minutes; other failures do not.

    gRPC does that by itself, within a channel: a fresh one knows nothing of it.
    """
    said = ["Too many pings", "GOAWAY received; Debug Text: too_many_pings", "Socket closed"]

    def answer(call: ServedCall) -> None:
        if call.number <= len(said):
            raise RpcFailure(grpc.StatusCode.UNAVAILABLE, said[call.number - 1])

    server.on("ShowCollections", answer)
    with ChannelCount() as channels:
        client = program.client(server.uri, grpc_options={"grpc.keepalive_time_ms": 200_000})
        other = program.client(server.uri)
        assert Call(client.list_collections).value(20) == ["demo"]
        other.list_collections()
        assert _options(channels) == [200_000, 10_000, 400_000, 600_000, 600_000]


@pytest.mark.policy(max_age=0.3)
def test_what_was_said_once_counts_once(program: Program, server: FakeMilvus) -> None:
    """The channels that replace one another because of their age ping as seldom, not ever less."""
    server.on("ShowCollections", lambda call: _refuse(call, "Too many pings"))
    with ChannelCount() as channels:
        client = program.client(server.uri)
        assert Call(client.list_collections).value(20) == ["demo"]
        wait_until(lambda: len(channels) > 4, 20)
        assert set(_options(channels)[1:]) == {20_000}


def _refuse(call: ServedCall, text: str) -> None:
    if call.number == 1:
        raise RpcFailure(grpc.StatusCode.UNAVAILABLE, text)


def test_a_connection_that_comes_back_remembers(program: Program, server: FakeMilvus) -> None:
    """What brings it back after close_all, to its clients, pings as seldom as what was closed."""
    server.on("ShowCollections", lambda call: _refuse(call, "Too many pings"))
    with ChannelCount() as channels:
        client = program.client(server.uri)
        assert Call(client.list_collections).value(20) == ["demo"]
        program.close_all()
        assert Call(client.list_collections).value(20) == ["demo"]
        assert _options(channels) == [10_000, 20_000, 20_000]


@pytest.mark.slow
def test_what_a_real_server_says_is_remembered(program: Program) -> None:
    """gRPC's own GOAWAY in mid-call, and the channels after it: of a recovery, and of a revival."""
    options = {"grpc.keepalive_time_ms": 1_000, "grpc.http2.max_pings_without_data": 0}
    strict = {"max_ping_strikes": 1, "min_recv_ping_interval_without_data_ms": 60_000}

    def answer(call: ServedCall) -> None:
        if call.number == 1:
            wait_until(lambda: not call.context.is_active(), 50)

    said = [(f"grpc.http2.{name}", value) for name, value in strict.items()]
    with FakeMilvus(options=said) as server, ChannelCount() as channels:
        server.on("HasPartition", answer)
        client = program.client(server.uri, grpc_options=options)
        assert Call(client.has_partition, "demo", "part").value(60) is False
        program.close_all()
        client.list_collections()
        assert _options(channels) == [1_000, 2_000, 2_000]


@pytest.mark.long
@pytest.mark.timeout(120)
def test_a_long_call_gets_through(program: Program) -> None:
    """A call that lasts longer than such a server stands pings gets through by four channels."""
    options = {"grpc.keepalive_time_ms": 1_000, "grpc.http2.max_pings_without_data": 0}
    strict = [("grpc.http2.max_ping_strikes", 1)]
    with FakeMilvus(options=strict) as server, ChannelCount() as channels:
        server.on("HasPartition", lambda call: time.sleep(6.0))
        client = program.client(server.uri, grpc_options=options)
        assert Call(client.has_partition, "demo", "part").value(60) is False
        assert server.count("HasPartition") > 1
        assert len(channels) < 5
