"""The demo's instruments: port, knock, tally, channel count, log count, signals."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable

import grpc
import pytest

from milvus_lifecycle.demo.errors import Interrupted
from milvus_lifecycle.demo.port import HOST, HeldPort, Knock
from milvus_lifecycle.demo.signals import Signals
from milvus_lifecycle.demo.tally import Tally, describe_error, silence, watch_channels


def wait_until(met: Callable[[], bool], limit: float = 20.0) -> None:
    """Poll until `met`; fail after `limit` seconds."""
    deadline = time.monotonic() + limit
    while not met():
        assert time.monotonic() < deadline
        time.sleep(0.005)


def listen(port: int) -> socket.socket:
    """A socket that listens on a held port, as gRPC's would."""
    listener = socket.socket()
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    listener.bind((HOST, port))
    listener.listen()
    return listener


def test_a_held_port_refuses_connections() -> None:
    """A port that is held is down to its clients, not half up."""
    held = HeldPort()
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection((HOST, held.number), timeout=5)
    held.close()


def test_a_held_port_is_nobody_elses() -> None:
    """While the server is down no other process can take its port."""
    held = HeldPort()
    with socket.socket() as other, pytest.raises(OSError, match="in use"):
        other.bind((HOST, held.number))
    held.close()


def test_a_knock_sees_when_the_port_listens() -> None:
    """Refused while nothing listens, and the moment of the first accepted connection after."""
    held = HeldPort()
    with Knock(held.number) as knock:
        wait_until(lambda: knock.refused > 3)
        assert knock.listens_at is None
        before = time.monotonic()
        with listen(held.number):
            wait_until(lambda: knock.listens_at is not None)
    assert knock.listens_at is not None
    # The attempt that is accepted may begin a moment before the socket listens.
    assert before - 1.0 < knock.listens_at <= time.monotonic()
    held.close()


def test_a_knock_that_never_succeeds_ends() -> None:
    """Leaving the context ends the knocking, listening or not."""
    held = HeldPort()
    with Knock(held.number) as knock:
        pass
    assert knock.listens_at is None
    held.close()


def test_a_failed_call_is_noted_and_swallowed() -> None:
    """The program goes on after a failed call, and the call is on record with its error."""
    tally = Tally()
    with tally.call(3, "insert"):
        raise ValueError("no\nserver")
    ((worker, operation, start, end, error),) = tally.take_ended()
    assert (worker, operation, error) == (3, "insert", "ValueError: no")
    assert end is not None
    assert start <= end
    assert tally.take_ended() == []


def test_calls_in_flight_are_listed_until_they_end() -> None:
    """What is in flight is known at any time, for each worker."""
    tally = Tally()
    with tally.call(1, "search"), tally.call(0, "insert"):
        assert [row[:2] for row in tally.list_open()] == [(0, "insert"), (1, "search")]
    assert tally.list_open() == []
    assert len(tally.take_ended()) == 2


def test_an_interrupt_is_not_a_failed_call() -> None:
    """Only an Exception is a call's failure: the end of the program passes through."""
    tally = Tally()
    with pytest.raises(KeyboardInterrupt), tally.call(0, "insert"):
        raise KeyboardInterrupt
    assert tally.take_ended() == []


def test_an_error_without_text_has_a_description() -> None:
    """An empty error still says its type, and a long one is cut."""
    assert describe_error(ValueError()) == "ValueError: "
    assert len(describe_error(ValueError("x" * 10_000))) < 1000


def test_channels_are_counted_at_all_four_factories(monkeypatch: pytest.MonkeyPatch) -> None:
    """Both flavours' plain and secure factories count, and still open channels."""
    for module in (grpc, grpc.aio):
        for name in ("insecure_channel", "secure_channel"):
            monkeypatch.setattr(module, name, getattr(module, name))  # put back after the test
    opened: list[float] = []
    watch_channels(opened.append)
    credentials = grpc.ssl_channel_credentials()
    grpc.insecure_channel("127.0.0.1:1").close()
    grpc.secure_channel("127.0.0.1:1", credentials).close()

    async def open_both() -> None:
        await grpc.aio.insecure_channel("127.0.0.1:1").close()
        await grpc.aio.secure_channel("127.0.0.1:1", credentials).close()

    asyncio.run(open_both())
    assert len(opened) == 4
    assert opened == sorted(opened)


def test_a_silenced_library_prints_nothing_and_is_counted(
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Lines of the library and of its child loggers are counted, with tracebacks' lines."""
    child = logging.getLogger("demo_library.child")
    child.addHandler(logging.StreamHandler())
    child.propagate = False
    count = silence("demo_library")
    child.error("first\nsecond")
    logging.getLogger("demo_library").warning("third")
    assert count.lines == 3
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
    script = (
        "import os, signal\n"
        "signal.signal(signal.SIGHUP, signal.SIG_IGN)\n"
        "from milvus_lifecycle.demo.signals import Signals\n"
        "with Signals() as signals:\n"
        "    os.kill(os.getpid(), signal.SIGHUP)\n"
        "    signals.check()\n"
        "print('alive')\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=True
    )
    assert done.stdout == "alive\n"
