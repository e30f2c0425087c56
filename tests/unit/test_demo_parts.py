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
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest

from milvus_lifecycle.demo import DemoError, Interrupted
from milvus_lifecycle.demo.scenarios import Signals
from milvus_lifecycle.demo.servers import HOST, MilvusLite, TopologyService
from milvus_lifecycle.demo.workload import (
    Tally,
    describe_error,
    resolve_localhost_names,
    silence,
    watch_channels,
)
from milvus_lifecycle.endpoints.topology import parse_topology


@pytest.fixture
def tally() -> Iterator[Tally]:
    """A tally, and the pipe that it writes to."""
    tally = Tally(io.StringIO())
    yield tally
    tally.close()


def read_rows(tally: Tally) -> list[list[Any]]:
    """The calls that have ended, as they were sent."""
    tally.close()
    stream = tally.stream
    assert isinstance(stream, io.StringIO)
    messages = [json.loads(line) for line in stream.getvalue().splitlines()]
    return [message["row"] for message in messages if message["kind"] == "call"]


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


def test_a_failed_call_is_noted_and_swallowed(tally: Tally) -> None:
    """The program goes on after a failed call, and the call is on record with its error."""
    with tally.call(3, "insert"):
        raise ValueError("no\nserver")
    ((worker, operation, start, end, error),) = read_rows(tally)
    assert (worker, operation, error) == (3, "insert", "ValueError: no")
    assert start <= end


def test_calls_in_flight_are_listed_until_they_end(tally: Tally) -> None:
    """What is in flight is known at any time, for each worker."""
    with tally.call(1, "search"), tally.call(0, "insert"):
        assert [row[:2] for row in tally.list_open()] == [(0, "insert"), (1, "search")]
    assert tally.list_open() == []
    assert len(read_rows(tally)) == 2


def test_an_interrupt_is_not_a_failed_call(tally: Tally) -> None:
    """Only an Exception is a call's failure: the end of the program passes through."""
    with pytest.raises(KeyboardInterrupt), tally.call(0, "insert"):
        raise KeyboardInterrupt
    assert read_rows(tally) == []


def test_an_error_without_text_has_a_description() -> None:
    """An empty error still says its type, and a long one is cut."""
    assert describe_error(ValueError()) == "ValueError: "
    assert len(describe_error(ValueError("x" * 10_000))) < 1000


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


def test_a_silenced_library_prints_nothing_and_is_counted(
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Lines of the library and of its child loggers are counted, with tracebacks' lines."""
    child = logging.getLogger("demo_library.child")
    child.addHandler(logging.StreamHandler())
    child.propagate = False
    counts: list[int] = []
    silence("demo_library", counts.append)
    child.error("first\nsecond")
    logging.getLogger("demo_library").warning("third")
    assert counts == [2, 1]
    assert capsys.readouterr().err == ""


def test_a_signal_is_raised_only_where_asked() -> None:
    """A signal interrupts nothing by itself; the next check raises it, with its number."""
    before = signal.getsignal(signal.SIGINT)
    with Signals() as signals:
        signals.check()
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGTERM)
        with pytest.raises(Interrupted) as caught:
            signals.check()
    assert caught.value.signum == signal.SIGINT
    assert signal.getsignal(signal.SIGINT) is before


def test_an_ignored_signal_stays_ignored() -> None:
    """A background job of a shell that ignores SIGINT (or nohup's SIGHUP) is not ended by it."""
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with Signals() as signals:
            os.kill(os.getpid(), signal.SIGHUP)
            signals.check()
        assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)


def test_the_topology_service_names_one_primary_at_a_time() -> None:
    """Its answer is a topology; a new primary is a new version, and it knows who was told when."""
    endpoints = ["http://127.0.0.1:1", "http://127.0.0.1:2"]
    with contextlib.closing(TopologyService(endpoints)) as service:
        url = service.uri.replace("demo.global-cluster.localhost", "127.0.0.1")
        assert service.find_first_served(1) is None

        def fetch() -> Any:
            with urllib.request.urlopen(f"{url}/global-cluster/topology", timeout=10) as answer:
                return parse_topology(answer.read())

        assert fetch().primary.endpoint == endpoints[0]
        named_at = service.name_primary(endpoints[1])
        assert service.find_first_served(2) is None
        topology = fetch()
        assert (topology.version, topology.primary.endpoint) == (2, endpoints[1])
        told = service.find_first_served(2)
        assert told is not None
        assert told >= named_at
        with pytest.raises(urllib.error.HTTPError):
            urllib.request.urlopen(f"{url}/other", timeout=10)


def test_localhost_names_are_this_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every name below .localhost, as text or bytes, and no other name."""
    asked: list[Any] = []
    monkeypatch.setattr(socket, "getaddrinfo", lambda host, *rest, **named: asked.append(host))
    resolve_localhost_names()
    for host in ("a.localhost", b"A.LOCALHOST", "x.localhost.", "localhost.example.com", None):
        socket.getaddrinfo(host, 80)
    assert asked == ["127.0.0.1"] * 3 + ["localhost.example.com", None]
