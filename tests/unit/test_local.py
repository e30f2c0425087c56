"""Milvus Lite's server of a path: who uses it, when it is restarted, and when it goes."""

from __future__ import annotations

import os
import socket
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from milvus_lifecycle.endpoints import local
from milvus_lifecycle.endpoints.local import LocalStrategy
from milvus_lifecycle.errors import ConfigError, ConnectionClosed, summarize
from milvus_lifecycle.table import State
from milvus_lifecycle.testing import rpc_error
from tests.observe import wait_until

PATH = os.path.abspath("milvus.db")
LOCAL: Any = SimpleNamespace(address=PATH)
UNAVAILABLE = summarize(rpc_error("UNAVAILABLE"))


class Lite:
    """Milvus Lite's own manager of servers, as far as the engine knows it. It starts nothing."""

    def __init__(self) -> None:
        self._servers: dict[str, Any] = {}
        self.starts = 0
        self.released: list[str] = []
        self.uri: str | None = "http://localhost:19999"
        #: released in this thread
        self.threads: list[str] = []

    def start_and_get_uri(self, path: str) -> str | None:
        self.starts += path not in self._servers
        if self.uri is not None:
            self._servers.setdefault(path, ("server", "data", 19999))
        return self.uri

    def release_server(self, path: str) -> None:
        self.released.append(path)
        self.threads.append(threading.current_thread().name)
        self._servers.pop(path, None)


@pytest.fixture
def lite(monkeypatch: pytest.MonkeyPatch) -> Iterator[Lite]:
    """Milvus Lite, and nobody who uses it."""
    made = Lite()
    module = ModuleType("milvus_lite.server_manager")
    module.server_manager_instance = made  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "milvus_lite", ModuleType("milvus_lite"))
    monkeypatch.setitem(sys.modules, "milvus_lite.server_manager", module)
    monkeypatch.setattr(local._SERVERS, "users", {})
    monkeypatch.setattr(local._SERVERS, "inherited", {})
    yield made
    wait_until(lambda: "milvus-lite-stop" not in names(), 20)


def names() -> list[str]:
    return [thread.name for thread in threading.enumerate()]


def connection(state: State = State.PROBING) -> Any:
    """All that a locator looks at."""
    return SimpleNamespace(state=state)


def test_a_path_without_milvus_lite(monkeypatch: pytest.MonkeyPatch) -> None:
    """The error says what to install."""
    monkeypatch.setitem(sys.modules, "milvus_lite.server_manager", None)
    with pytest.raises(ConfigError, match="pip install"):
        LocalStrategy(LOCAL).locate(connection(), None, 10.0)


def test_the_server_is_started_once(lite: Lite) -> None:
    """Connections to one path have one server, which goes with the last of them."""
    server, one, two = LocalStrategy(LOCAL), connection(), connection()
    for each in (one, two, one):
        place = server.locate(each, None, 10.0)
        assert (place.address, place.secure) == ("localhost:19999", False)
    assert lite.starts == 1
    server.release(one)
    wait_until(lambda: len(local._SERVERS.users[PATH]) == 1, 20)
    assert lite.released == []
    server.release(two)
    wait_until(lambda: lite.released == [PATH], 20)
    assert PATH not in local._SERVERS.users


def test_a_release_gives_back_what_was_taken(lite: Lite) -> None:
    """A connection that never had the server, or has given it back, stops nothing."""
    server, one = LocalStrategy(LOCAL), connection()
    server.release(one)
    server.locate(one, None, 10.0)
    server.release(connection())
    assert names().count("milvus-lite-stop") == 0
    server.release(one)
    wait_until(lambda: lite.released == [PATH], 20)
    server.release(one)
    assert lite.released == [PATH]


def test_a_server_that_does_not_start(lite: Lite) -> None:
    """The first connect fails, and nobody counts as its user; others that have it keep it."""
    server, one = LocalStrategy(LOCAL), connection()
    lite.uri = None
    with pytest.raises(OSError, match="another process may have it open"):
        server.locate(one, None, 10.0)
    assert PATH not in local._SERVERS.users
    lite.uri = "http://localhost:19999"
    server.locate(one, None, 10.0)
    lite.uri = None
    with pytest.raises(OSError, match="cannot open"):
        server.locate(connection(), None, 10.0)
    assert local._SERVERS.users[PATH] == {id(one)}


def test_a_connection_that_is_closed_as_its_server_starts(lite: Lite) -> None:
    """Nobody else would give the server back: the locator does it itself."""
    with pytest.raises(ConnectionClosed):
        LocalStrategy(LOCAL).locate(connection(State.CLOSED), None, 10.0)
    wait_until(lambda: lite.released == [PATH], 20)
    assert PATH not in local._SERVERS.users


@pytest.mark.parametrize("error", ["UNAVAILABLE", "DEADLINE_EXCEEDED"])
def test_a_dead_server_is_started_anew(lite: Lite, error: str) -> None:
    """After a failure the port is asked; if nobody serves it the server is let go and started."""
    server, one = LocalStrategy(LOCAL), connection()
    with socket.create_server(("127.0.0.1", 0)) as listening:
        port = listening.getsockname()[1]
        lite._servers[PATH] = ("server", "data", port)
        server.locate(one, summarize(rpc_error(error)), 10.0)
        assert lite.released == [], "it answers: it is another trouble"
    server.locate(one, summarize(rpc_error(error)), 10.0)
    assert lite.released == [PATH]
    assert lite.starts == 1


@pytest.mark.parametrize("entry", [None, "a process of an older Milvus Lite"])
def test_a_server_that_nobody_knows_is_started_anew(lite: Lite, entry: str | None) -> None:
    """One that Milvus Lite has forgotten, or that cannot be asked, is let go first."""
    if entry is not None:
        lite._servers[PATH] = entry
    LocalStrategy(LOCAL).locate(connection(), UNAVAILABLE, 10.0)
    assert lite.released == [PATH]
    assert lite.starts == 1


def test_an_error_of_another_kind_leaves_the_server_alone(lite: Lite) -> None:
    """Refused credentials are no reason to restart a database."""
    server, one = LocalStrategy(LOCAL), connection()
    server.locate(one, None, 10.0)
    server.locate(one, summarize(rpc_error("UNAUTHENTICATED")), 10.0)
    assert lite.released == []


def test_without_a_thread_the_server_is_stopped_here(
    lite: Lite, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No thread to be had, or an interpreter that ends: stopping takes its time, but is done."""
    server, one = LocalStrategy(LOCAL), connection()
    server.locate(one, None, 10.0)

    def refuse(thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", refuse)
    server.release(one)
    assert lite.threads == [threading.current_thread().name]


def test_a_server_that_cannot_be_stopped_is_let_go(
    lite: Lite, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What Milvus Lite raises at the end of a server is nobody's; the path can be used again."""
    server, one = LocalStrategy(LOCAL), connection()
    server.locate(one, None, 10.0)

    def fail(path: str) -> None:
        lite.released.append(path)
        raise OSError("busy")

    monkeypatch.setattr(lite, "release_server", fail)
    server.release(one)
    wait_until(lambda: lite.released == [PATH], 20)
    wait_until(lambda: PATH not in local._SERVERS.users, 20)


@pytest.mark.parametrize(
    "entry", [None, ("server", "data", 19999), "a process of an older Milvus Lite"]
)
def test_a_forked_child_has_a_server_of_its_own(
    lite: Lite, monkeypatch: pytest.MonkeyPatch, entry: object
) -> None:
    """Once the parent's server is gone; the inherited object is never stopped, but forgotten."""
    kept: list[Any] = []
    monkeypatch.setattr(local, "leak", kept.append)
    server, one = LocalStrategy(LOCAL), connection()
    if entry is not None:
        server.locate(one, None, 10.0)
        lite._servers[PATH] = entry
    local._SERVERS.reset_after_fork()  # what os.fork calls in the child
    assert lite._servers == {}
    assert kept == ([] if entry is None else [entry])
    server.locate(one, None, 10.0)
    assert lite.starts == 1 + (entry is not None)
    assert lite.released == []


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system cannot fork")
def test_a_real_fork_makes_the_child_forget(lite: Lite) -> None:
    """os.fork itself does so: what uses a server here uses none in the child."""
    LocalStrategy(LOCAL).locate(connection(), None, 10.0)
    assert local._SERVERS.users
    child = os.fork()
    if child == 0:
        os._exit(len(local._SERVERS.users))
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def test_a_forked_child_works_through_its_parent(lite: Lite, tmp_path: Path) -> None:
    """While the parent's server runs the child uses it, and lets its hold on the file go."""
    server, one = LocalStrategy(LOCAL), connection()
    with socket.create_server(("127.0.0.1", 0)) as listening, open(tmp_path / "LOCK", "w") as lock:
        port = listening.getsockname()[1]
        database = SimpleNamespace(_lock_fd=os.dup(lock.fileno()))
        descriptor = database._lock_fd
        lite._servers[PATH] = ("server", database, port)
        server.locate(one, None, 10.0)
        local._SERVERS.reset_after_fork()
        with pytest.raises(OSError, match="Bad file descriptor"):
            os.fstat(descriptor)
        assert server.locate(one, None, 10.0).address == f"127.0.0.1:{port}"
        server.release(one)
    assert server.locate(one, UNAVAILABLE, 10.0).address == "localhost:19999"
    assert lite.released == [PATH], "its own, which does not answer"
