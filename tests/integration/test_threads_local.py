"""Milvus Lite: the server inside this process behind a `.db` path, and a real server process."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import Engine
from tests.observe import Call, ChannelCount, join_all, wait_until
from tests.processes import MilvusLiteProcess

milvus_lite = pytest.importorskip("milvus_lite.server_manager")

pytestmark = pytest.mark.timeout(120)


def _running(path: Path) -> bool:
    return os.path.abspath(path) in milvus_lite.server_manager_instance._servers


@pytest.fixture
def path(tmp_path: Path) -> Iterator[Path]:
    """A `.db` path that does not exist yet; its server is stopped afterwards in any case."""
    chosen = tmp_path / "demo.db"
    yield chosen
    milvus_lite.server_manager_instance.release_server(str(chosen))


def test_parsing_starts_no_server(engine: Engine, path: Path) -> None:
    """A `.db` URI is only parsed by from_uri; the server starts when the connection opens."""
    engine.config(str(path))
    assert not _running(path)
    assert not path.exists()
    client = engine.client(str(path))
    assert _running(path)
    assert client.list_collections() == []
    assert {record.strategy for record in engine.records} == {"local"}


@pytest.mark.parametrize("how", ["released", "died"])
def test_a_dead_server_is_restarted_in_recovery(engine: Engine, path: Path, how: str) -> None:
    """A call survives the end of the in-process server: the recovery starts it anew."""
    client = engine.client(str(path))
    client.create_collection("demo", dimension=4)
    if how == "released":
        milvus_lite.server_manager_instance.release_server(str(path))
    else:
        # As if it had died by itself: its entry, with a port nobody serves, is still there.
        server, _, _ = milvus_lite.server_manager_instance._servers[os.path.abspath(path)]
        server.stop(grace=0).wait(10)
    assert Call(client.list_collections, timeout=30).value(40) == ["demo"]
    assert _running(path)
    assert engine.transitions("recovered")


@pytest.mark.policy(linger=0.2)
def test_the_server_goes_with_the_last_connection(engine: Engine, path: Path) -> None:
    """Two connections (tokens differ) share one server; it stops when the second is CLOSED."""
    one = engine.client(str(path), token="one:pw")
    two = engine.client(str(path), token="two:pw")
    assert engine.stats()["total_connections"] == 2
    one.close()
    assert wait_until(lambda: engine.stats()["total_connections"] == 1, 10)
    assert _running(path)
    assert two.list_collections() == []
    two.close()
    assert wait_until(lambda: not _running(path), 20)
    assert engine.stats()["total_connections"] == 0


def test_close_all_releases_the_server(engine: Engine, path: Path) -> None:
    """close_all stops the in-process server as well; the file can be opened again after it."""
    engine.client(str(path)).create_collection("demo", dimension=4)
    engine.manager.close_all()
    assert wait_until(lambda: not _running(path), 20)
    assert engine.client(str(path)).list_collections() == ["demo"]


class _Work:
    """Threads that insert, search and list without a pause of more than 20 ms."""

    def __init__(self, client: Any, threads: int) -> None:
        self._client = client
        self._stop = threading.Event()
        self.calls = [0] * threads
        self.last_good = [0.0] * threads
        self.errors: list[Exception] = []
        self.threads = [
            threading.Thread(target=self._run, args=(number,), daemon=True)
            for number in range(threads)
        ]
        for thread in self.threads:
            thread.start()

    def _run(self, number: int) -> None:
        vector = [0.1, 0.2, 0.3, float(number)]
        while not self._stop.wait(0.02):
            try:
                self._client.insert("demo", [{"id": self.calls[number], "vector": vector}])
                self._client.search("demo", [vector], limit=1)
                self._client.list_collections()
            except Exception as error:
                self.errors.append(error)
            else:
                self.last_good[number] = time.monotonic()
            self.calls[number] += 3

    def all_good_since(self, moment: float) -> bool:
        return min(self.last_good) > moment

    def stop(self, limit: float) -> bool:
        self._stop.set()
        return join_all(self.threads, limit)


def test_a_killed_milvus_lite_process_fails_no_call(engine: Engine, tmp_path: Path) -> None:
    """SIGKILL to a real server under four threads, one second down: 0 failed calls.

    Milvus Lite comes back with its collections released: until an operator has loaded them, a
    search is told so (101), and that is the caller's at once.
    """
    with MilvusLiteProcess(tmp_path / "data") as lite, ChannelCount() as channels:
        client = engine.client(lite.uri)
        client.create_collection("demo", dimension=4)
        work = _Work(client, threads=4)
        assert wait_until(lambda: work.all_good_since(0.0), 20)
        opened = len(channels)
        lite.kill()
        time.sleep(1.0)  # the outage itself
        lite.start()
        listening = time.monotonic()
        operator = engine.client(lite.uri, token="operator:pw")

        def back_to_work() -> bool:
            # Again and again: Milvus Lite may open a collection twice when two first calls come
            # at once, and the one that was loaded is not the one that stays.
            operator.load_collection("demo")
            return work.all_good_since(listening)

        back = wait_until(back_to_work, 40, every=0.2)
        ended = work.stop(30)
        assert [error for error in work.errors if getattr(error, "code", None) != 101] == []
        assert back
        assert ended
        assert len(channels) - opened <= 12
