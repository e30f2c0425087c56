"""Milvus Lite: the server inside this process behind a `.db` path, and a real server process."""

from __future__ import annotations

import asyncio
import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from pymilvus.client.connection_manager import ConnectionConfig

from tests.flavours import Program, simple_schema
from tests.looping import AsyncEngine, Doing, in_loop, other_tasks, until
from tests.observe import Call, ChannelCount, Load, came_true, wait_until
from tests.processes import MilvusLiteProcess

milvus_lite = pytest.importorskip("milvus_lite.server_manager")

pytestmark = pytest.mark.timeout(120)


def _running(path: Path) -> bool:
    return os.path.abspath(path) in milvus_lite.server_manager_instance._servers


def _slow_start(monkeypatch: pytest.MonkeyPatch, seconds: float) -> list[threading.Event]:
    """Let Milvus Lite take longer to start; the events tell that it begins, and that it has."""
    manager = milvus_lite.server_manager_instance
    start, begins, started = manager.start_and_get_uri, threading.Event(), threading.Event()

    def slowly(*args: str) -> str | None:
        begins.set()
        time.sleep(seconds)
        uri: str | None = start(*args)
        started.set()
        return uri

    monkeypatch.setattr(manager, "start_and_get_uri", slowly)
    return [begins, started]


@pytest.fixture
def path(tmp_path: Path) -> Iterator[Path]:
    """A `.db` path that does not exist yet; its server is stopped afterwards in any case."""
    chosen = tmp_path / "demo.db"
    yield chosen
    milvus_lite.server_manager_instance.release_server(str(chosen))


@pytest.mark.slow
def test_the_first_connect_starts_the_server_and_blocks_nobody(
    program: Program, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Parsing starts nothing. A server that takes 3 s to start holds up its own client alone.

    The event loop is never held up: the limit is far above what is promised, 50 ms.
    """
    _slow_start(monkeypatch, 3.0)
    ConnectionConfig.from_uri(str(path))
    assert not path.exists()
    with program.never_still():
        call = Call(program.client, str(path))
        assert not _running(path)
        client = call.value(30)
    assert call.elapsed is not None
    assert call.elapsed > 3.0
    assert _running(path)
    assert client.list_collections() == []
    assert {record.strategy for record in program.records} == {"local"}


@pytest.mark.parametrize("how", ["released", "died"])
def test_a_dead_server_is_restarted_in_recovery(program: Program, path: Path, how: str) -> None:
    """A call survives the end of the in-process server: the recovery starts it anew."""
    client = program.client(str(path))
    client.create_collection("demo", schema=simple_schema())
    if how == "released":
        milvus_lite.server_manager_instance.release_server(str(path))
    else:
        # As if it had died by itself: its entry, with a port nobody serves, is still there.
        server, _, _ = milvus_lite.server_manager_instance._servers[os.path.abspath(path)]
        server.stop(grace=0).wait(10)
    with program.never_still():
        assert Call(client.list_collections, timeout=30).value(40) == ["demo"]
    assert _running(path)
    assert program.transitions("recovered")


@pytest.mark.policy(linger=0.2)
def test_the_server_goes_with_the_last_connection(program: Program, path: Path) -> None:
    """Two connections (tokens differ) share one server; it stops when the second is CLOSED."""
    one = program.client(str(path), token="one:pw")
    two = program.client(str(path), token="two:pw")
    assert program.stats()["total_connections"] == 2
    one.close()
    wait_until(lambda: program.stats()["total_connections"] == 1, 10)
    assert _running(path)
    assert two.list_collections() == []
    two.close()
    wait_until(lambda: not _running(path), 20)
    assert program.stats()["total_connections"] == 0


def test_close_all_releases_the_server(program: Program, path: Path) -> None:
    """close_all stops the in-process server as well; the file can be opened again after it."""
    program.client(str(path)).create_collection("demo", schema=simple_schema())
    program.close_all()
    wait_until(lambda: not _running(path), 20)
    assert program.client(str(path)).list_collections() == ["demo"]


@in_loop
async def test_a_cancelled_start_releases_the_server(
    aio: AsyncEngine, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A first connect that is cancelled while the server starts leaves no server and no task."""
    begins, started = _slow_start(monkeypatch, 0.5)
    call = Doing(aio.client(str(path)).list_collections())
    await until(begins.is_set, 10)
    call.cancel()
    await until(lambda: call.done, 10)
    await until(lambda: not other_tasks(), 10)
    await until(lambda: aio.stats()["total_connections"] == 0, 10)
    # The thread that starts the server cannot be stopped: what it started is released after it.
    await until(started.is_set, 20)
    await until(lambda: not _running(path), 20)


def test_the_loops_end_releases_the_server(aio: AsyncEngine, path: Path) -> None:
    """A loop that ends without closing its client releases the in-process server."""

    async def main() -> None:
        await aio.connected(str(path))
        assert _running(path)

    asyncio.run(main())
    wait_until(lambda: not _running(path), 20)


@pytest.mark.parametrize("program", ["threads"], indirect=True)
def test_a_killed_milvus_lite_process_fails_no_call(program: Program, tmp_path: Path) -> None:
    """SIGKILL to a real server under four threads, one second down: 0 failed calls, 12 channels.

    Milvus Lite comes back with its collections released: until an operator has loaded them, a
    search is told so (101), and that is the caller's at once.
    """
    vector = [0.1, 0.2, 0.3, 0.4]
    with MilvusLiteProcess(tmp_path / "data") as lite, ChannelCount() as channels:
        client = program.client(lite.uri)
        client.create_collection("demo", dimension=4)

        def work() -> Any:
            client.insert("demo", [{"id": time.monotonic_ns(), "vector": vector}])
            client.search("demo", [vector], limit=1)
            return client.list_collections()

        load = Load(work, threads=4)
        wait_until(lambda: load.all_good_since(0.0), 20)
        opened = len(channels)
        lite.kill()
        time.sleep(1.0)  # the outage itself
        lite.start()
        listening = time.monotonic()
        operator = program.client(lite.uri, token="operator:pw")

        def back_to_work() -> bool:
            # Again and again: Milvus Lite may open a collection twice when two first calls come
            # at once, and the one that was loaded is not the one that stays.
            operator.load_collection("demo")
            return load.all_good_since(listening)

        back = came_true(back_to_work, 40, every=0.2)
        ended = load.stop(30)
        assert [error for error in load.errors if getattr(error, "code", None) != 101] == []
        assert back
        assert ended
        assert len(channels) - opened <= 12
