"""Milvus Lite behind a `.db` path in the asyncio flavour: the loop never waits for the server."""

from __future__ import annotations

import asyncio
import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.looping import AsyncEngine, Doing, Ticker, in_loop, other_tasks, until
from tests.observe import wait_until

milvus_lite = pytest.importorskip("milvus_lite.server_manager")

pytestmark = pytest.mark.timeout(120)


def _running(path: Path) -> bool:
    return os.path.abspath(path) in milvus_lite.server_manager_instance._servers


def _slow_start(monkeypatch: pytest.MonkeyPatch, seconds: float) -> threading.Event:
    """Let Milvus Lite take longer to start; the event tells that it has."""
    manager = milvus_lite.server_manager_instance
    start, started = manager.start_and_get_uri, threading.Event()

    def slowly(*args: str) -> str | None:
        time.sleep(seconds)
        uri: str | None = start(*args)
        started.set()
        return uri

    monkeypatch.setattr(manager, "start_and_get_uri", slowly)
    return started


@pytest.fixture
def path(tmp_path: Path) -> Iterator[Path]:
    """A `.db` path that does not exist yet; its server is stopped afterwards in any case."""
    chosen = tmp_path / "demo.db"
    yield chosen
    milvus_lite.server_manager_instance.release_server(str(chosen))


@in_loop
async def test_the_loop_runs_while_the_server_starts(aio: AsyncEngine, path: Path) -> None:
    """The first connect to a `.db` path starts the server; a ticking task is never held up.

    Starting takes about 0.1 s of blocking work and imports that hold the interpreter's lock; a
    start on the loop itself would be one gap of all of it. The limit is far above 50 ms.
    """
    _ = aio.manager
    async with Ticker() as ticker:
        client = aio.client(str(path))
        assert not _running(path)
        assert await Doing(client.list_collections()).value(30) == []
    assert _running(path)
    assert ticker.longest < 2.0
    assert {record.strategy for record in aio.records} == {"local"}


@in_loop
async def test_a_slow_start_blocks_nobody(
    aio: AsyncEngine, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A server that takes 3 s to start holds up its own client, and no other task."""
    _slow_start(monkeypatch, 3.0)
    async with Ticker() as ticker:
        call = Doing(aio.client(str(path)).list_collections())
        assert await call.value(30) == []
        assert call.elapsed is not None
        assert call.elapsed > 3.0
    assert ticker.longest < 2.0


@in_loop
async def test_a_dead_server_is_restarted_in_recovery(aio: AsyncEngine, path: Path) -> None:
    """A call survives the end of the in-process server: the recovery starts it anew."""
    client = await aio.connected(str(path))
    await asyncio.to_thread(milvus_lite.server_manager_instance.release_server, str(path))
    async with Ticker() as ticker:
        assert await Doing(client.list_collections(timeout=30)).value(40) == []
    assert _running(path)
    assert aio.transitions("recovered")
    assert ticker.longest < 2.0


@pytest.mark.policy(linger=0.2)
@in_loop
async def test_the_server_goes_with_the_last_connection(aio: AsyncEngine, path: Path) -> None:
    """Two connections (tokens differ) share one server; it stops when the second is CLOSED."""
    one = await aio.connected(str(path), token="one:pw")
    two = await aio.connected(str(path), token="two:pw")
    assert aio.stats()["total_connections"] == 2
    await one.close()
    assert await until(lambda: aio.stats()["total_connections"] == 1, 10)
    assert _running(path)
    assert await two.list_collections() == []
    await two.close()
    assert await until(lambda: not _running(path), 20)
    assert aio.stats()["total_connections"] == 0


@in_loop
async def test_a_cancelled_start_releases_the_server(
    aio: AsyncEngine, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A first connect that is cancelled while the server starts leaves no server and no task."""
    started = _slow_start(monkeypatch, 0.5)
    call = Doing(aio.client(str(path)).list_collections())
    await asyncio.sleep(0.1)
    call.cancel()
    assert await until(lambda: call.done, 10)
    assert await until(lambda: not other_tasks(), 10)
    assert await until(lambda: aio.stats()["total_connections"] == 0, 10)
    # The thread that starts the server cannot be stopped: what it started is released after it.
    assert await until(started.is_set, 20)
    assert await until(lambda: not _running(path), 20)


def test_the_loops_end_releases_the_server(aio: AsyncEngine, path: Path) -> None:
    """A loop that ends without closing its client releases the in-process server."""

    async def main() -> None:
        await aio.connected(str(path))
        assert _running(path)

    asyncio.run(main())
    assert wait_until(lambda: not _running(path), 20)
