"""pymilvus's telemetry: its heartbeats are nobody's calls, and its handlers hear of connections."""

from __future__ import annotations

import asyncio
from typing import Any

import grpc
import pytest
from pymilvus.client import async_grpc_handler, connection_manager, grpc_handler
from pymilvus.exceptions import MilvusException
from pymilvus.grpc_gen import milvus_pb2_grpc

from tests.flavours import Program
from tests.network import TcpProxy, open_sockets_to
from tests.observe import Call, came_true, held, wait_until
from tests.servers import FakeMilvus, RpcFailure, ServedCall

pytestmark = pytest.mark.timeout(60)

#: as pymilvus's stub calls it, but with messages as bytes
HEARTBEAT = "/milvus.proto.milvus.ClientTelemetryService/ClientHeartbeat"


class Pulse:
    """The heartbeats of one client, as its handler would send them."""

    def __init__(self, program: Program, client: Any) -> None:
        self._wait = program.wait
        self.send = client._handler._final_channel.unary_unary(HEARTBEAT)

    def beat(self) -> None:
        """One heartbeat, answered well."""
        assert self._wait(self.send(b"", timeout=10.0, wait_for_ready=False)) == b""

    def refused(self) -> bool:
        """Whether one is UNAVAILABLE; any other error is raised."""
        try:
            self.beat()
        except grpc.RpcError as error:
            if error.code() is not grpc.StatusCode.UNAVAILABLE:
                raise
            return True
        return False


def _only(program: Program) -> Any:
    (row,) = program.stats()["connections"]
    return row


def test_a_heartbeat_carries_what_a_call_does(program: Program, server: FakeMilvus) -> None:
    """Its client's credentials, the identifier of the channel in use, and its own timeout."""
    client = program.connected(server.uri, token="root:Milvus")
    Pulse(program, client).beat()
    (seen,) = server.seen("ClientHeartbeat")
    (listed,) = server.seen("ShowCollections")
    for name in ("authorization", "identifier"):
        assert seen.metadata[name] == listed.metadata[name]
    assert seen.time_remaining is not None
    assert seen.time_remaining < 60


@pytest.mark.policy(idle_threshold=0.2)
def test_heartbeats_are_no_activity(program: Program, server: FakeMilvus) -> None:
    """A connection that does nothing else is idle, and probed before the next call."""
    client = program.connected(server.uri)
    pulse = Pulse(program, client)
    hold, (held_back,) = held(server, "ClientHeartbeat", pulse.beat)
    assert _only(program)["in_flight"] == 0
    wait_until(lambda: _only(program)["idle"] > 0.3, 10)
    hold.release()
    held_back.value(10)
    pulse.beat()
    assert _only(program)["idle"] > 0.3
    probe, (call,) = held(server, "GetVersion", client.list_collections)
    assert pulse.refused()
    probe.release()
    assert call.value(10) == ["demo"]
    assert program.path() == ["acquire", "probe_passed", "acquire", "probe_passed"]


@pytest.mark.policy(linger=0.2)
def test_heartbeats_hold_no_connection(program: Program, server: FakeMilvus) -> None:
    """One that nobody uses is closed under them: an error of theirs, in no flavour a cancellation.

    pymilvus's asyncio heartbeat ends for good when it is cancelled. It keeps the error: no socket
    with it.
    """
    client = program.connected(server.uri)
    pulse = Pulse(program, client)
    _, (held_back,) = held(server, "ClientHeartbeat", pulse.beat)
    client.close()
    with pytest.raises(grpc.RpcError):
        held_back.value(10)
    assert program.stats()["total_connections"] == 0
    assert came_true(lambda: open_sockets_to(server.port) == 0, 10)
    assert held_back.error is not None


def test_heartbeats_wait_for_nothing(program: Program, server: FakeMilvus, proxy: TcpProxy) -> None:
    """Without a channel in use they fail at once: in a recovery, and when all is closed.

    Nothing is opened for them. Once a call has brought a connection back they are served.
    """
    client = program.connected(proxy.uri)
    pulse = Pulse(program, client)
    proxy.set_mode("refuse", cut=True)
    call = Call(client.list_collections)
    assert program.saw("fail")
    assert pulse.refused()
    assert not call.done
    proxy.set_mode("pass")
    assert call.value(20) == ["demo"]
    pulse.beat()
    program.close_all()
    assert pulse.refused()
    assert program.stats()["total_connections"] == 0
    client.list_collections()
    pulse.beat()


@pytest.mark.parametrize("program", ["asyncio"], indirect=True)
def test_a_heartbeat_in_another_loop_opens_nothing(program: Program, server: FakeMilvus) -> None:
    """A call there would get a connection of its own."""
    client = program.connected(server.uri)
    send = Pulse(program, client).send

    async def beat() -> None:
        await send(b"", timeout=10.0)

    with pytest.raises(grpc.RpcError, match="another event loop"):
        asyncio.run(beat())
    assert server.count("ClientHeartbeat") == 0


def test_a_heartbeat_that_fails_is_no_failure(program: Program, server: FakeMilvus) -> None:
    """It starts no recovery, whatever it fails with, and whoever keeps the error no socket."""

    def refuse(call: ServedCall) -> None:
        raise RpcFailure(grpc.StatusCode.UNAVAILABLE)

    client = program.connected(server.uri)
    server.on("ClientHeartbeat", refuse)
    before = program.path()
    with pytest.raises(grpc.RpcError) as kept:
        Pulse(program, client).beat()
    client.list_collections()
    assert (program.path(), _only(program)["failures"]) == (before, 0)
    program.close_all()
    assert came_true(lambda: open_sockets_to(server.port) == 0, 10)
    assert kept.value is not None


@pytest.mark.policy(recovery_budget=0.5)
def test_a_heartbeat_ends_no_outage(program: Program, server: FakeMilvus, proxy: TcpProxy) -> None:
    """After a give_up it gets through on the channel that was kept; only a call is served."""
    client = program.connected(proxy.uri)
    pulse = Pulse(program, client)
    proxy.set_mode("refuse", cut=True)
    with pytest.raises(MilvusException):
        client.list_collections()
    wait_until(lambda: _only(program)["state"] == "IDLE", 10)
    proxy.set_mode("pass")
    assert came_true(lambda: not pulse.refused(), 20)
    assert (_only(program)["state"], program.transitions("served")) == ("IDLE", [])
    client.list_collections()
    assert len(program.transitions("served")) == 1


@pytest.fixture
def telling(monkeypatch: pytest.MonkeyPatch) -> tuple[list[Any], list[Any]]:
    """Handlers as a coming pymilvus has them: what they were made with, and bound to."""
    made: list[Any] = []
    bound: list[Any] = []

    def pooled(config: Any) -> dict[str, Any]:
        return {**config.get_handler_kwargs(), "_client_owned_telemetry": True}

    monkeypatch.setattr(connection_manager, "_pooled_handler_kwargs", pooled, raising=False)
    stub = "ClientTelemetryServiceStub"
    monkeypatch.setattr(milvus_pb2_grpc, stub, lambda channel: channel, raising=False)
    for base in (grpc_handler.GrpcHandler, async_grpc_handler.AsyncGrpcHandler):

        def build(self: Any, *args: Any, _build: Any = base.__init__, **kwargs: Any) -> None:
            made.append(kwargs)
            _build(self, *args, **kwargs)

        monkeypatch.setattr(base, "__init__", build)
        name = "_rebind_telemetry_stub"
        monkeypatch.setattr(base, name, lambda self, stub: bound.append(stub), raising=False)
    return made, bound


def test_handlers_hear_of_connections(
    program: Program, server: FakeMilvus, telling: tuple[list[Any], list[Any]]
) -> None:
    """They are made as pymilvus's manager makes them, and told wherever it connects them.

    An option that nobody knows yet reaches the handler, and tells two connections apart.
    """
    made, bound = telling
    client = program.connected(server.uri, telemetry_config={"enabled": False})
    ((options, channel),) = zip(made, bound, strict=True)
    assert options["_client_owned_telemetry"] is True
    assert options["telemetry_config"] == {"enabled": False}
    assert channel is client._handler._final_channel
    server.fail_next("ShowCollections")
    client.list_collections()
    assert bound == [channel, channel]
    program.connected(server.uri, telemetry_config={"enabled": False})
    program.connected(server.uri, telemetry_config={"enabled": True})
    assert program.stats()["total_connections"] == 2


def test_no_connection_fails_because_of_its_telemetry(
    program: Program,
    server: FakeMilvus,
    telling: tuple[list[Any], list[Any]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """What is told may raise: its client loses heartbeats, and nothing else."""

    def broken(self: Any, stub: Any) -> None:
        raise RuntimeError("no telemetry today")

    for base in (grpc_handler.GrpcHandler, async_grpc_handler.AsyncGrpcHandler):
        monkeypatch.setattr(base, "_rebind_telemetry_stub", broken)
    assert program.client(server.uri).list_collections() == ["demo"]
