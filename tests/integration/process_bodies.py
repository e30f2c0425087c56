"""Bodies about forks, which need a process of their own.

A process may fork between event loops, not inside one that has an open grpc.aio channel: with
grpcio 1.85.1 alone, without any manager, the child of such a fork crashed or hung in its first
RPC in 4 of 4 runs, with either poller ("Other threads are currently calling into gRPC, skipping
fork() handlers"). Between loops it went well in 8 of 8 runs, if no channel object was kept.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import Any

from pymilvus import AsyncMilvusClient

from tests.looping import Doing, settled, until
from tests.network import listens
from tests.observe import Call, all_done, came_true, wait_until
from tests.processes import ask_child
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


def _in_flight(manager: Any) -> list[int]:
    """How many RPCs run on each connection."""
    return [row["in_flight"] for row in manager.get_stats()["connections"]]


@defect(environment=FORK_POLLER)
def a_child_of_a_busy_parent_works(env: Env) -> None:
    """The fork happens while eight threads of the parent are in the middle of RPCs."""
    server = env.server_process({"HasPartition": 1.0})
    client = env.client(server.uri)
    running = [Call(client.has_partition, "demo", "part") for _ in range(8)]
    wait_until(lambda: _in_flight(env.manager()) == [8], 10)
    said = ask_child(client.list_collections, 20)
    served = all_done(running, 20)
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
    said = ask_child(lambda: _first_good(client.list_collections, 20), 30, server.start)
    served = all_done([waiting], 30)
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


@defect(environment=FORK_POLLER)
def a_childs_end_spares_the_parent(env: Env) -> None:
    """A child that closes everything and ends normally cuts no connection of its parent."""
    server = env.server_process({"HasPartition": 1.0})
    client = env.client(server.uri)
    running = Call(client.has_partition, "demo", "part")
    manager = env.manager()
    wait_until(lambda: _in_flight(manager) == [1], 10)

    def close_everything() -> str:
        client.list_collections()
        type(manager).get_instance().close_all()
        return "closed"

    said = ask_child(close_everything, 20)
    served = all_done([running], 20)
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
    folder = env.folder()
    path, listed = str(folder / "demo.db"), folder / "listed"
    client = env.client(path)
    client.create_collection("demo", dimension=4)

    async def once() -> Any:
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
        listed.touch()
        wait_until(lambda: not listens(port), 20)
        return before, client.list_collections()

    def close() -> None:
        came_true(listed.exists, 10)
        client.close()

    from milvus_lite.server_manager import server_manager_instance as lite

    ((_, _, port),) = lite._servers.values()
    said.append(ask_child(later, 30, close))
    good = ["['demo']"] * 3 + ["(['demo'], ['demo'])"]
    verdict(said == good and parent == ["demo"], f"children {said}, parent {parent}")


# -- event loops ---------------------------------------------------------------------------


def _run(work: Callable[[], Awaitable[Any]]) -> Any:
    """What ``work`` comes to in an event loop of its own."""

    async def main() -> Any:
        return await asyncio.wait_for(work(), 15)

    return asyncio.run(main())


@defect(environment=FORK_POLLER)
def inherited_clients_work_in_a_childs_loop(env: Env) -> None:
    """Clients of a loop that is over work in a child's new loop, and in the parent's next one."""
    server = env.server_process()
    clients = [AsyncMilvusClient(server.uri), AsyncMilvusClient(server.uri, dedicated=True)]

    async def both() -> Any:
        return await asyncio.gather(*(client.list_collections() for client in clients))

    before = _run(both)
    said = ask_child(lambda: _run(both), 30)
    after = _run(both)
    good = [["demo"]] * 2
    verdict(
        before == after == good and said == repr(good),
        f"parent {before}, child {said}, then parent {after}",
    )


@defect(environment=FORK_POLLER)
def inherited_clients_work_after_an_outage(env: Env) -> None:
    """The parent's loop ended in the middle of a recovery; the child finds the server back."""
    server = env.server_process()
    client = AsyncMilvusClient(server.uri)

    async def lose() -> None:
        await client.list_collections()
        await asyncio.to_thread(server.kill)
        waiting = Doing(client.list_collections())

        def recovering() -> bool:
            rows = client._manager.get_stats()["connections"]
            return [row["state"] for row in rows] == ["RECOVERING"]

        await until(recovering, 10)
        waiting.cancel()
        await settled([waiting], 5)

    _run(lose)
    server.start()
    said = ask_child(lambda: _run(client.list_collections), 30)
    after = _run(client.list_collections)
    verdict(said == "['demo']" and after == ["demo"], f"child {said}, then parent {after}")


@defect(environment=FORK_POLLER)
def a_childs_end_spares_the_loop_of_its_parent(env: Env) -> None:
    """A child forked inside a loop closes all that it inherited: the parent loses nothing."""
    server = env.server_process({"HasPartition": 1.0})

    def in_child(client: Any) -> str:
        closing = client._manager.close_all()
        try:
            closing.send(None)
        except StopIteration:
            return "closed"
        return "close_all waits for something"

    async def main() -> tuple[str, Doing, Any, set[int]]:
        client = AsyncMilvusClient(server.uri)
        await client.list_collections()
        running = Doing(client.has_partition("demo", "part"))
        await until(lambda: _in_flight(client._manager) == [1], 10)
        said = ask_child(lambda: in_child(client), 20)
        await settled([running], 20)
        after = await client.list_collections()
        rows = client._manager.get_stats()["connections"]
        return said, running, after, {row["generation"] for row in rows}

    said, running, after, generations = asyncio.run(main())
    verdict(
        said == "'closed'"
        and running.done
        and running.error is None
        and after == ["demo"]
        and generations == {1},
        f"child {said}, parent {running.error or running.result}, then {after} {generations}",
    )
