"""The demo's instruments: port, tally, channel count, log count, signals, topology service."""

from __future__ import annotations

import asyncio
import contextlib
import io
import json
import logging
import os
import signal
import socket
import urllib.request
from pathlib import Path
from typing import Any

import grpc
import pytest

from milvus_lifecycle.demo import DemoError
from milvus_lifecycle.demo.processes import HOST, MilvusLite, TopologyService
from milvus_lifecycle.demo.run import noted_signals
from milvus_lifecycle.demo.workload import Tally, resolve_here, watch_channels, watch_logs
from milvus_lifecycle.endpoints.topology import parse_topology


@pytest.fixture
def pipe() -> io.StringIO:
    """What a tally writes to."""
    return io.StringIO()


def read_rows(pipe: io.StringIO) -> list[list[Any]]:
    """The calls as they were sent: when they began, and when they ended."""
    return [json.loads(line)["row"] for line in pipe.getvalue().splitlines()]


def test_the_port_of_a_server_that_is_down_is_held(tmp_path: Path) -> None:
    """It refuses connections, as a port that is down does, and no other process can take it."""
    server = MilvusLite(tmp_path / "server")
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection((HOST, server.port), timeout=5)
    with socket.socket() as other, pytest.raises(OSError, match="in use"):
        other.bind((HOST, server.port))
    server.close()


def test_a_port_that_somebody_else_listens_on_is_an_error(tmp_path: Path) -> None:
    """What answers there would be taken for the server."""
    server = MilvusLite(tmp_path / "server")
    with socket.socket() as other:
        other.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        other.bind((HOST, server.port))
        other.listen()
        with pytest.raises(DemoError, match="something else listens"):
            server.start()
    server.close()


def test_a_failed_call_is_noted_and_swallowed(pipe: io.StringIO) -> None:
    """The program goes on after a failed call, which is told when it begins and when it ends."""
    with Tally(pipe).call(3, 7):
        (begun,) = read_rows(pipe)
        raise ValueError("no\nserver")
    _, (worker, inserts, start, end, error) = read_rows(pipe)
    assert (worker, inserts, error) == (3, 7, "ValueError: no")
    assert begun == [3, 7, start]
    assert start <= end


def test_an_interrupt_is_not_a_failed_call(pipe: io.StringIO) -> None:
    """Only an Exception is a call's failure: the end of the program passes through, and the call
    stays in flight."""
    with pytest.raises(KeyboardInterrupt), Tally(pipe).call(0, None):
        raise KeyboardInterrupt
    assert len(read_rows(pipe)) == 1


@pytest.mark.parametrize(("error", "length"), [(ValueError(), 12), (ValueError("x" * 10_000), 300)])
def test_an_error_has_a_short_description(
    error: ValueError, length: int, pipe: io.StringIO
) -> None:
    """An empty error still says its type, and a long one is cut."""
    with Tally(pipe).call(0, None):
        raise error
    told = read_rows(pipe)[-1][-1]
    assert told.startswith("ValueError: ")
    assert len(told) == length


def test_channels_are_counted_at_all_four_factories(monkeypatch: pytest.MonkeyPatch) -> None:
    """Both flavours' plain and secure factories count, and still open channels."""
    for module in (grpc, grpc.aio):
        for name in ("insecure_channel", "secure_channel"):
            monkeypatch.setattr(module, name, getattr(module, name))  # put back after the test
    opened: list[bool] = []
    watch_channels(lambda: opened.append(True))
    credentials = grpc.ssl_channel_credentials()
    grpc.insecure_channel("127.0.0.1:1").close()
    grpc.secure_channel("127.0.0.1:1", credentials).close()

    async def open_both() -> None:
        await grpc.aio.insecure_channel("127.0.0.1:1").close()
        await grpc.aio.secure_channel("127.0.0.1:1", credentials).close()

    asyncio.run(open_both())
    assert len(opened) == 4


def test_a_librarys_log_lines_are_counted() -> None:
    """Those of the library and of its child loggers, each line of a record; nobody else's."""
    counts: list[int] = []
    before = logging.getLogRecordFactory()
    try:
        watch_logs("library", counts.append)
        logging.getLogger("library.child").error("first\nsecond")
        logging.getLogger("library").warning("third %s", "time")
        logging.getLogger("library").debug("below its level")
        logging.getLogger("library_of_others").error("fourth")
    finally:
        logging.setLogRecordFactory(before)
    assert counts == [2, 1]


def test_a_signal_is_raised_only_where_asked() -> None:
    """A signal interrupts nothing by itself; the next check raises it, with its number."""
    before = signal.getsignal(signal.SIGINT)
    with noted_signals() as check:
        check()
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGTERM)
        with pytest.raises(SystemExit) as caught:
            check()
    assert caught.value.code == 128 + signal.SIGINT
    assert signal.getsignal(signal.SIGINT) is before


def test_an_ignored_signal_stays_ignored() -> None:
    """A background job of a shell that ignores SIGINT (or nohup's SIGHUP) is not ended by it."""
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with noted_signals() as check:
            os.kill(os.getpid(), signal.SIGHUP)
            check()
        assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)


def test_the_topology_service_names_one_primary_at_a_time() -> None:
    """Its answer is a topology; a new primary is a new version, and it knows who was told when."""
    endpoints = ["http://127.0.0.1:1", "http://127.0.0.1:2"]
    with contextlib.closing(TopologyService(endpoints)) as service:
        url = service.uri.replace("demo.global-cluster.localhost", "127.0.0.1")

        def fetch() -> Any:
            with urllib.request.urlopen(f"{url}/global-cluster/topology", timeout=10) as answer:
                return parse_topology(answer.read())

        assert fetch().primary.endpoint == endpoints[0]
        naming = service.name_primary(endpoints[1])
        assert naming.told_at is None
        topology = fetch()
        assert (topology.version, topology.primary.endpoint) == (2, endpoints[1])
        told_at = naming.told_at
        assert told_at is not None
        assert told_at >= naming.at
        fetch()
        assert naming.told_at == told_at


def test_the_name_of_the_topology_service_is_this_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    """That name, as text or bytes, and no other."""
    asked: list[Any] = []
    monkeypatch.setattr(socket, "getaddrinfo", lambda host, *rest, **named: asked.append(host))
    resolve_here("a.localhost")
    for host in ("a.localhost", b"a.localhost", "b.localhost", None):
        socket.getaddrinfo(host, 80)
    assert asked == ["127.0.0.1", "127.0.0.1", "b.localhost", None]
