"""Bodies of asyncio programs that need a process of their own: forks.

A process may fork between event loops, not inside one that has an open grpc.aio channel: with
grpcio 1.85.1 alone, without any manager, the child of such a fork crashed or hung in its first
RPC in 4 of 4 runs, with either poller ("Other threads are currently calling into gRPC, skipping
fork() handlers"). Between loops it went well in 8 of 8 runs, if no channel object was kept.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

from pymilvus import AsyncMilvusClient

from tests.looping import Doing, settled, until
from tests.processes import ask_child
from tests.stock import FORK_POLLER, Env, defect, verdict


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
def a_childs_end_spares_the_parent(env: Env) -> None:
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
        await asyncio.sleep(0.2)
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
