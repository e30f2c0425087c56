"""Bodies that need a process of their own: forks, and the interpreter's exit."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Any

from tests.network import listens
from tests.observe import Call, wait_until
from tests.processes import ServerProcess, ask_child
from tests.stock import FORK_POLLER, Env, defect, verdict


@defect(environment=FORK_POLLER)
def an_inherited_client_works_in_a_child(env: Env) -> None:
    """Clients that a forked child inherited work there, and go on working in the parent."""
    server = env.server_process()
    shared, dedicated = env.client(server.uri), env.client(server.uri, dedicated=True)
    for client in (shared, dedicated):
        client.list_collections()
    said = [ask_child(client.list_collections, 20) for client in (shared, dedicated)]
    parent = [client.list_collections() for client in (shared, dedicated)]
    verdict(said == ["['demo']"] * 2 and parent == [["demo"]] * 2, f"{said}, parent {parent}")


@defect(environment=FORK_POLLER)
def a_child_of_a_busy_parent_works(env: Env) -> None:
    """The fork happens while eight threads of the parent are in the middle of RPCs."""
    server = env.server_process({"HasPartition": 1.0})
    client = env.client(server.uri)
    running = [Call(client.has_partition, "demo", "part") for _ in range(8)]
    said = ask_child(client.list_collections, 20)
    served = wait_until(lambda: all(call.done for call in running), 20)
    errors = [call.error for call in running if call.error is not None]
    verdict(said == "['demo']" and served and not errors, f"child {said}, parent {errors}")


@defect(environment=FORK_POLLER)
def a_child_of_a_recovering_parent_works(env: Env) -> None:
    """A client inherited in the middle of an outage works in the child once the server is back.

    FORKED makes a connection never validated, so by the table a first connect that fails closes
    it: until the server listens, the child's calls may fail, but not for good.
    """
    server = env.server_process()
    client = env.client(server.uri)
    client.list_collections()
    server.kill()
    waiting = Call(client.list_collections)
    manager = env.manager()

    def recovering() -> bool:
        return bool(manager.get_stats()["connections"][0]["state"] == "RECOVERING")

    wait_until(recovering, 10)
    server_starts = Call(_start_later, server)
    said = ask_child(lambda: _first_good(client.list_collections, 20), 30)
    wait_until(lambda: server_starts.done, 30)
    served = wait_until(lambda: waiting.done, 30)
    verdict(
        said == "['demo']" and served and waiting.result == ["demo"],
        f"child {said}, parent {waiting.error or waiting.result}",
    )


def _first_good(work: Callable[[], object], limit: float) -> object:
    deadline = time.monotonic() + limit
    while True:
        try:
            return work()
        except Exception:
            if time.monotonic() > deadline:
                raise
        time.sleep(0.1)


def _start_later(server: ServerProcess) -> None:
    """Start the server once the child is likely to exist: the fork belongs into the outage."""
    time.sleep(0.5)
    server.start()


@defect(environment=FORK_POLLER)
def a_childs_end_spares_the_parent(env: Env) -> None:
    """A child that closes everything and ends normally cuts no connection of its parent."""
    server = env.server_process({"HasPartition": 1.0})
    client = env.client(server.uri)
    running = Call(client.has_partition, "demo", "part")
    manager = env.manager()

    def close_everything() -> str:
        client.list_collections()
        type(manager).get_instance().close_all()
        return "closed"

    said = ask_child(close_everything, 20)
    served = wait_until(lambda: running.done, 20)
    after = client.list_collections()
    generations = {entry["generation"] for entry in manager.get_stats()["connections"]}
    verdict(
        said == "'closed'"
        and served
        and running.error is None
        and len(generations) == 1
        and after == ["demo"],
        f"child {said}, parent {running.error or running.result}, then {after}",
    )


@defect(environment=FORK_POLLER, linger=0.1)
def a_child_and_its_parent_share_a_file(env: Env) -> None:
    """Only one process may have a `.db` file open: a child works through its parent's server.

    With clients of either flavour, inherited or new; and when its parent has closed the file, the
    child opens it.
    """
    path = str(env.folder() / "demo.db")
    client = env.client(path)
    client.create_collection("demo", dimension=4)

    async def once() -> Any:
        from pymilvus import AsyncMilvusClient

        return await AsyncMilvusClient(path).list_collections()

    works: list[Callable[[], Any]] = [
        client.list_collections,
        lambda: env.client(path).list_collections(),
        lambda: asyncio.run(once()),
    ]
    said = [ask_child(work, 20) for work in works]
    parent = client.list_collections()

    def later() -> object:
        before = client.list_collections()
        wait_until(lambda: not listens(port), 20)
        return before, client.list_collections()

    from milvus_lite.server_manager import server_manager_instance as lite

    ((_, _, port),) = lite._servers.values()
    closing = Call(lambda: (time.sleep(0.5), client.close()))  # the child exists by then
    said.append(ask_child(later, 30))
    closing.value(20)
    good = ["['demo']"] * 3 + ["(['demo'], ['demo'])"]
    verdict(said == good and parent == ["demo"], f"children {said}, parent {parent}")
