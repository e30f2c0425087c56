"""What channels are opened with, and what that does to them on real gRPC."""

from __future__ import annotations

from itertools import pairwise
from statistics import median
from typing import Any

import pytest
from pymilvus.client.async_grpc_handler import AsyncGrpcHandler
from pymilvus.client.grpc_handler import GrpcHandler
from pymilvus.grpc_gen import milvus_pb2

from tests.flavours import Program
from tests.network import TcpProxy, open_sockets_to
from tests.observe import Call, ChannelCount, came_true, held_rpc
from tests.servers import FakeMilvus

pytestmark = pytest.mark.timeout(90)

POOL = "grpc.use_local_subchannel_pool"
#: gRPC's servers accept requests of 4 MiB, and its clients such answers, unless they are told.
LONG = 5 * 2**20


def _opened(program: Program, server: FakeMilvus, **options: Any) -> list[dict[str, Any]]:
    """What a first channel is opened with, and the one that a recovery opens."""
    server.fail_next("ShowCollections")
    with ChannelCount() as channels:
        client = program.client(server.uri, **options)
        assert Call(client.list_collections).value(20) == ["demo"]
    assert len(channels) == 2
    return channels.options


def test_what_pymilvus_gives_its_channels(program: Program, server: FakeMilvus) -> None:
    """A channel has all of that, and what the engine adds: nothing less, nothing else."""
    theirs = {"threads": GrpcHandler, "asyncio": AsyncGrpcHandler}[program.name]
    with ChannelCount() as channels:
        handler = program.inside(lambda: theirs(uri=server.uri))
    program.wait(handler.close())
    (options,) = channels.options
    # It writes some names as bytes.
    given = {name if isinstance(name, str) else name.decode(): options[name] for name in options}
    for ours in _opened(program, server):
        assert {**ours, **given} == ours
        assert set(ours) - set(given) == {
            "grpc.http2.ping_timeout_ms",
            "grpc.dns_min_time_between_resolutions_ms",
            "grpc.initial_reconnect_backoff_ms",
            "grpc.max_reconnect_backoff_ms",
            "grpc.min_reconnect_backoff_ms",
            POOL,
        }


def test_the_users_options_win(program: Program, server: FakeMilvus) -> None:
    """Over all that pymilvus and the engine give, on each channel; but none shares a connection."""
    ours = _opened(program, server)[0]
    own: dict[str, Any] = {name: 11_111 + number for number, name in enumerate(ours)}
    own |= {"grpc.enable_retries": 0, "grpc.primary_user_agent": "mine"}
    for chosen in _opened(program, server, grpc_options={**own, POOL: 0}):
        assert chosen == {**own, POOL: 1}
    agents = [call.metadata["user-agent"].split()[0] for call in server.seen("ShowCollections")]
    assert agents[-2:] == ["mine", "mine"]


def test_long_messages(program: Program) -> None:
    """An answer of 5 MiB arrives, and so does a request."""
    with FakeMilvus(options=[("grpc.max_receive_message_length", -1)]) as server:
        client = program.client(server.uri)
        answer = milvus_pb2.ShowCollectionsResponse(collection_names=["x" * LONG])
        server.on("ShowCollections", lambda call: answer)
        assert Call(client.list_collections).value(30) == ["x" * LONG]
        client.has_partition("demo", "y" * LONG)
        assert server.seen("HasPartition")[-1].request.partition_name == "y" * LONG


# -- half-open connections -----------------------------------------------------------------


def _half_open(program: Program, server: FakeMilvus, proxy: TcpProxy, **options: Any) -> float:
    """How long a call lasts whose connection the network forgets meanwhile (seconds)."""
    client = program.client(proxy.uri, **options)
    hold, call = held_rpc(server, client)
    proxy.forget()
    hold.release()
    assert call.value(80) is False
    assert len(program.transitions("recovered")) == 1
    return call.elapsed or 0.0


def test_a_users_keepalive_notices(program: Program, server: FakeMilvus, proxy: TcpProxy) -> None:
    """A dead connection is noticed after the user's ping and its timeout, not after ours."""
    brisk = {
        "grpc.keepalive_time_ms": 500,
        "grpc.keepalive_timeout_ms": 500,
        "grpc.http2.ping_timeout_ms": 500,
        "grpc.http2.max_pings_without_data": 0,
    }
    # Measured 1.1 s; by the engine's own it would be 20 s at least.
    assert _half_open(program, server, proxy, grpc_options=brisk) < 10


@pytest.mark.slow
def test_the_engines_keepalive_notices(
    program: Program, server: FakeMilvus, proxy: TcpProxy
) -> None:
    """Calls on a dead connection wait up to 30 s (docs/operations.md); by gRPC's own, over 60."""
    assert _half_open(program, server, proxy) < 45


# -- how a channel reconnects ----------------------------------------------------------------


def _pauses(program: Program, proxy: TcpProxy, attempts: int) -> list[float]:
    """Seconds between TCP connects while each of them is reset."""
    client = program.connected(proxy.uri)
    proxy.set_mode("reset", cut=True)
    before = len(proxy.accepted)
    call = Call(client.list_collections)
    assert came_true(lambda: len(proxy.accepted) >= before + attempts, 40)
    proxy.set_mode("pass")
    assert call.value(40) == ["demo"]
    times = [accepted.at for accepted in proxy.accepted[before : before + attempts]]
    return [later - earlier for earlier, later in pairwise(times)]


@pytest.mark.slow
@pytest.mark.policy(backoff_initial=3.0, backoff_max=3.0)
def test_no_sooner_than_the_first_backoff(program: Program, proxy: TcpProxy) -> None:
    """gRPC's own first one is 1 s, with its jitter 0.8 to 1.2 s; the policy's 2.4 s at least."""
    # Two at least are of the same channel: the one that failed may have made the first.
    assert _pauses(program, proxy, 3)[-1] > 1.8


@pytest.mark.policy(backoff_initial=0.1, backoff_max=0.16, backoff_patience=60.0)
def test_no_later_than_the_longest_backoff(program: Program, proxy: TcpProxy) -> None:
    """gRPC's own pauses grow to two minutes (the last five here: 1.7 to 11 s)."""
    assert median(_pauses(program, proxy, 12)[-5:]) < 1.0


@pytest.mark.slow
@pytest.mark.policy(connect_timeout=1.0)
def test_a_connect_that_gets_no_answer_ends(program: Program, proxy: TcpProxy) -> None:
    """A channel gives up on it after `connect_timeout` and tries again; gRPC's own took 20 s."""
    client = program.connected(proxy.uri)
    with ChannelCount() as channels:
        proxy.set_mode("hang", cut=True)
        before = len(proxy.accepted)
        call = Call(client.list_collections)
        assert came_true(lambda: len(proxy.accepted) - before > len(channels) + 3, 18)
    proxy.set_mode("pass", cut=True)
    assert call.value(30) == ["demo"]


def test_no_two_connections_share_a_socket(
    program: Program, server: FakeMilvus, proxy: TcpProxy
) -> None:
    """Channels to one address with the same options have a TCP connection each."""
    clients = [program.client(proxy.uri, dedicated=True) for _ in range(3)]
    for client in clients:
        client.list_collections()
    assert len(proxy.accepted) == 3
    assert len({call.peer for call in server.seen("ShowCollections")}) == 3
    assert open_sockets_to(proxy.port) == 3
