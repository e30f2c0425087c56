"""What happens seldom, to clients of either flavour: big messages, silent cuts, many endpoints."""

from __future__ import annotations

import base64
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import grpc
import pytest
from pymilvus.grpc_gen import milvus_pb2

from milvus_lifecycle.errors import ConnectFailed
from tests.flavours import Program
from tests.network import TcpProxy, open_sockets_to
from tests.observe import Call, ChannelCount, wait_until
from tests.processes import Child
from tests.servers import FakeMilvus, ServedCall

pytestmark = pytest.mark.timeout(90)


@pytest.mark.policy(idle_threshold=0.2, probe_timeout=0.5)
def test_a_hundred_calls_after_a_silent_cut(
    program: Program, server: FakeMilvus, proxy: TcpProxy
) -> None:
    """An idle connection that a router forgot: a hundred calls at once share one probe.

    They are served within 6 s, ten times what was measured: probe_timeout, and the calls.
    """
    client = program.client(proxy.uri)
    client.list_collections()
    with ChannelCount() as channels:
        proxy.forget()
        time.sleep(0.3)  # it is idle for longer than idle_threshold
        began = time.monotonic()
        calls = [Call(client.list_collections) for _ in range(100)]
        wait_until(lambda: all(call.done for call in calls), 30)
        assert [call.error for call in calls] == [None] * 100
        assert time.monotonic() - began < 6
        assert len(channels) == 1
    assert server.count("Connect") == 2
    assert server.count("GetVersion") == 0, "the probe went into the void"


def test_a_message_over_a_limit_is_its_calls_own_trouble(
    program: Program, server: FakeMilvus
) -> None:
    """RESOURCE_EXHAUSTED from either side is the caller's at once; others go on beside it."""
    client = program.client(server.uri)
    limited = program.client(server.uri, grpc_options={"grpc.max_receive_message_length": 10_000})
    answer = milvus_pb2.ShowCollectionsResponse(collection_names=["x" * 20_000])
    server.on("ShowCollections", lambda call: answer)
    too_long = "id in [" + "1," * 3_000_000 + "1]"  # 6 MB; gRPC's servers accept 4 MiB
    with ChannelCount() as channels:
        for asking in (lambda: client.query("demo", too_long), limited.list_collections):
            beside = Call(client.has_partition, "demo", "part")
            with pytest.raises(grpc.RpcError) as caught:
                Call(asking).value(20)
            assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
            assert beside.value(20) is False
        assert client.list_collections() == ["x" * 20_000]
        assert len(channels) == 0


def test_each_client_keeps_its_database(program: Program, server: FakeMilvus) -> None:
    """Clients of one connection switch databases under load and over an outage: never mixed up."""

    def database(call: ServedCall) -> Any:
        return milvus_pb2.ShowCollectionsResponse(collection_names=[call.metadata["dbname"]])

    server.on("ShowCollections", database)
    stopping = False

    def work(number: int) -> list[str]:
        client, wrong, turn = program.client(server.uri, db_name=f"{number}-0"), [], 0
        while not stopping or turn < 2:
            turn += 1
            client.use_database(f"{number}-{turn}")
            said = [client.list_collections() for _ in range(2)]
            wrong += [name for (name,) in said if name != f"{number}-{turn}"]
        client.close()
        return wrong

    calls = [Call(work, number) for number in range(6)]
    wait_until(lambda: server.count("ShowCollections") > 50, 20)
    server.stop()
    time.sleep(0.2)  # the outage itself
    server.start()
    served = server.count("ShowCollections")
    wait_until(lambda: server.count("ShowCollections") > served + 50, 20)
    stopping = True
    assert [call.value(20) for call in calls] == [[]] * 6


@pytest.mark.parametrize("program", ["threads"], indirect=True)
def test_a_password_that_changes_under_load(program: Program, server: FakeMilvus) -> None:
    """Changed again and again while others call by the same client, and over an outage: none fails.

    Only MilvusClient can do that (``reset_connection``).
    """
    client, stopping = program.client(server.uri, token="root:0"), False

    def work() -> int:
        calls = 0
        while not stopping:
            assert client.list_collections() == ["demo"]
            calls += 1
        return calls

    calls = [Call(work) for _ in range(6)]
    for turn in range(1, 21):
        if turn == 10:
            server.stop()
            calls.append(Call(client.list_collections))  # meets the outage, however fast the rest
            server.start()
        client.update_password("root", str(turn - 1), str(turn), reset_connection=True)
        client.has_partition("demo", "part")
        said = base64.b64decode(server.seen("HasPartition")[-1].metadata["authorization"])
        assert said == f"root:{turn}".encode()
    stopping = True
    assert all(call.value(20) for call in calls)
    wait_until(lambda: open_sockets_to(server.port) == 1, 20)


_HOLDER = """
import sys
from pymilvus import MilvusClient
client = MilvusClient(sys.argv[1])
client.create_collection("demo", dimension=4)
print("open", flush=True)
sys.stdin.read()
"""


def test_a_file_that_another_process_has_open(program: Program, tmp_path: Path) -> None:
    """ConnectFailed says so at once; it opens when that process is gone, killed or not."""
    pytest.importorskip("milvus_lite")
    path = str(tmp_path / "demo.db")
    with Child(_HOLDER, path) as holder:
        holder.says("open")
        with pytest.raises(ConnectFailed, match="another process may have it open"):
            Call(program.client, path).value(20)
    assert Call(program.client, path).value(20).list_collections() == ["demo"]


@pytest.fixture
def endpoints() -> Iterator[tuple[list[FakeMilvus], list[FakeMilvus]]]:
    """Two lots of twenty servers."""
    with ExitStack() as stack:
        lots = [[stack.enter_context(FakeMilvus(workers=2)) for _ in range(20)] for _ in range(2)]
        yield lots[0], lots[1]


def test_half_of_many_endpoints_down(
    program: Program, endpoints: tuple[list[FakeMilvus], list[FakeMilvus]]
) -> None:
    """Twenty of forty servers go away: no call of the others takes a second (measured: 0.04 s)."""
    well, lost = ([(server, program.client(server.uri)) for server in lot] for lot in endpoints)
    for server, _ in lost:
        server.stop()
    with ChannelCount() as channels:
        waiting = [Call(client.list_collections) for _, client in lost]
        slowest = 0.0
        for _ in range(5):
            for _, client in well:
                began = time.monotonic()
                assert client.list_collections() == ["demo"]
                slowest = max(slowest, time.monotonic() - began)
            assert not any(call.done for call in waiting)
        assert slowest < 1.0
        for server, _ in lost:
            server.start()
        assert [call.value(20) for call in waiting] == [["demo"]] * 20
        assert len(channels) == 20
    servers = [server for server, _ in (*well, *lost)]
    wait_until(lambda: all(open_sockets_to(each.port) == 1 for each in servers), 20)
