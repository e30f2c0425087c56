"""After uninstall nothing of the engine is open, whatever runs meanwhile and whatever is kept."""

from __future__ import annotations

import contextlib
import os
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from pymilvus import MilvusClient
from pymilvus.client import connection_manager as theirs
from pymilvus.exceptions import MilvusException

import milvus_lifecycle as ml
from tests.flavours import Flavour
from tests.network import open_sockets_to
from tests.observe import Call, Client, came_true, join_all, wait_until
from tests.servers import FakeMilvus

pytestmark = pytest.mark.timeout(90)

Nothing = Callable[[], bool]


@pytest.fixture
def nothing(server: FakeMilvus, new_threads: Callable[[], set[str]]) -> Iterator[Nothing]:
    """Installs the engine; says whether no socket and no thread of it is left by now."""

    def left() -> bool:
        return not open_sockets_to(server.port) and not any(
            name.startswith("milvus-lifecycle") for name in new_threads()
        )

    ml.install()
    try:
        yield lambda: came_true(left, 10)
    finally:
        ml.uninstall()


def _work_with(manager: Any, flavour: Flavour, uri: str) -> Callable[[], None]:
    """Check out and call; the returned function lets go. What it holds, it goes on holding."""
    holder, config = Client(), theirs.ConnectionConfig.from_uri(uri)
    handler = manager.get_or_create(config, client=holder)
    assert flavour.wait(handler.list_collections()) == ["demo"]
    return lambda: manager.release(handler, holder)


def test_a_client_that_comes_too_late_is_served_and_leaves_nothing(
    flavour: Flavour, server: FakeMilvus, nothing: Nothing
) -> None:
    """It was given the manager just before uninstall: its connection ends with it."""
    manager = flavour.manager()
    ml.uninstall()
    let_go = [_work_with(manager, flavour, server.uri) for _ in range(2)]
    for release in let_go:
        release()
    assert nothing()


def test_a_client_that_is_kept_is_served_and_leaves_nothing(
    flavour: Flavour, server: FakeMilvus, nothing: Nothing
) -> None:
    """Its calls after uninstall, many at once, share one connection, which ends with it."""
    client = flavour.client(server.uri)
    ml.uninstall()
    connected = server.hold("Connect")
    calls = [Call(client.list_collections) for _ in range(8)]
    wait_until(lambda: connected.waiting == 1, 10)
    connected.release()
    assert [call.value(10) for call in calls] == [["demo"]] * 8
    assert open_sockets_to(server.port) == 1
    client.close()
    assert nothing()


def test_a_client_that_connects_meanwhile_is_told(
    flavour: Flavour, server: FakeMilvus, nothing: Nothing
) -> None:
    """A first connect under uninstall ends with the closed error, at once."""
    manager = flavour.manager()
    server.hold("Connect")
    late = Call(_work_with, manager, flavour, server.uri)
    wait_until(lambda: server.count("Connect") == 1, 10)
    ml.uninstall()
    with pytest.raises(MilvusException, match="closed"):
        late.value(10)
    assert nothing()


def test_who_asks_for_a_manager_too_late_gets_pymilvus_s_own(
    flavour: Flavour, nothing: Nothing
) -> None:
    """get_instance was looked up before uninstall and is called after it: no manager is made."""
    owner = getattr(theirs, f"{'' if flavour.name == 'threads' else 'Async'}ConnectionManager")
    looked_up = owner.get_instance
    ml.uninstall()
    late = flavour.inside(looked_up)
    assert type(late) is owner
    ml.install(policy=ml.LifecyclePolicy(linger=7.0))
    again = flavour.inside(looked_up)
    assert again._pool.policy.linger == 7.0
    ml.uninstall()
    owner._reset_instance()


def test_cycles_under_clients_that_come_and_go(
    flavour: Flavour, server: FakeMilvus, nothing: Nothing
) -> None:
    """Install and uninstall under four threads that make and close clients: a second, and 20."""
    ended, kept = threading.Event(), []

    def come_and_go() -> None:
        while not ended.is_set():
            # A call that is under way when the engine goes is told that its connection is closed.
            with contextlib.suppress(MilvusException):
                client = flavour.client(server.uri)
                kept.append(client)
                try:
                    client.list_collections()
                finally:
                    client.close()

    threads = [threading.Thread(target=come_and_go, daemon=True) for _ in range(4)]
    for thread in threads:
        thread.start()
    until, cycles = time.monotonic() + 1.0, 0
    while time.monotonic() < until or len(kept) <= 20:
        ml.install()
        time.sleep(0.005)  # something has to be going on when it goes
        ml.uninstall()
        cycles += 1
    ended.set()
    assert join_all(threads, 30)
    assert cycles > 3
    for owner in (theirs.ConnectionManager, theirs.AsyncConnectionManager):
        owner._reset_instance()  # pymilvus never closes what is shared
    assert nothing(), f"{open_sockets_to(server.port)} sockets after {cycles} cycles"


def test_a_client_that_is_kept_keeps_no_file_open(server: FakeMilvus, tmp_path: Path) -> None:
    """A closed client keeps its manager; the file of the audit log is closed all the same."""
    audit = tmp_path / "audit.jsonl"
    ml.install(audit=str(audit))
    client = MilvusClient(server.uri)
    client.close()
    ml.uninstall()
    assert audit.read_text()
    # A record that is still on its way opens the file once more, and closes it.
    wait_until(lambda: str(audit) not in _open_files(), 10)
    del client


def _open_files() -> list[str]:
    names = [f"/proc/self/fd/{name}" for name in os.listdir("/proc/self/fd")]
    return [os.readlink(name) for name in names if os.path.islink(name)]
