"""Bodies of the defects that only asyncio has: D16, D17, D18, D19, D29."""

from __future__ import annotations

import asyncio
import gc
from typing import Any

import grpc
from pymilvus import AsyncMilvusClient

from tests.integration.defects_outage import OWN_SOCKETS, WATCHDOG
from tests.looping import Doing, comes_true, settled
from tests.network import open_sockets_to
from tests.observe import came_true
from tests.stock import Env, defect, verdict


def _manager() -> Any:
    """The manager that AsyncMilvusClient asks in the running loop."""
    from pymilvus.client.connection_manager import AsyncConnectionManager

    return AsyncConnectionManager.get_instance()


def _unfinished_tasks() -> int:
    return sum(
        isinstance(thing, asyncio.Task) and not thing.done()
        for thing in gc.get_objects()
        if isinstance(thing, asyncio.Task)
    )


@defect(limit=120)
def d16_forty_loops_leave_nothing(env: Env) -> None:
    """Forty times asyncio.run with a client that nobody closes: no socket, manager or task."""
    server = env.server()
    kinds: set[type] = set()
    answers = []

    async def main() -> Any:
        kinds.add(type(_manager()))
        client = AsyncMilvusClient(server.uri, grpc_options=OWN_SOCKETS)
        return await client.list_collections()

    # Sockets are to be freed by the loop's end, not by luck with the collector.
    gc.collect()
    gc.disable()
    for _ in range(40):
        answers.append(asyncio.run(main()))
    tidy = came_true(lambda: open_sockets_to(server.port) == 0, 5)
    sockets = open_sockets_to(server.port)
    gc.enable()
    gc.collect()
    managers = sum(type(thing) in kinds for thing in gc.get_objects())
    tasks = _unfinished_tasks()
    verdict(
        tidy and (managers, tasks) == (0, 0) and answers == [["demo"]] * 40,
        f"{sockets} sockets, {managers} managers and {tasks} tasks left after 40 event loops",
    )


@defect()
def d17_a_failed_create_leaves_no_channel(env: Env) -> None:
    """Five first connects that the server refuses: five errors, and no socket stays open."""
    server = env.server()
    server.fail(grpc.StatusCode.INTERNAL, spare=())

    async def main() -> tuple[list[Doing], bool, int]:
        gc.collect()
        gc.disable()
        clients = [
            AsyncMilvusClient(server.uri, grpc_options=OWN_SOCKETS, dedicated=True)
            for _ in range(5)
        ]
        calls = [Doing(client._connect()) for client in clients]
        await settled(calls, WATCHDOG)
        tidy = await comes_true(lambda: open_sockets_to(server.port) == 0, 5)
        return calls, tidy, open_sockets_to(server.port)

    calls, tidy, sockets = asyncio.run(main())
    errors = sum(call.error is not None for call in calls)
    verdict(
        errors == 5 and tidy,
        f"{errors} of 5 creates failed as they must, {sockets} sockets left open",
    )


@defect()
def d18_first_calls_of_one_client_share_one_connect(env: Env) -> None:
    """Five concurrent first calls of one dedicated client connect once."""
    server = env.server()

    async def main() -> tuple[list[Doing], int]:
        client = AsyncMilvusClient(server.uri, dedicated=True, grpc_options=OWN_SOCKETS)
        calls = [Doing(client.list_collections()) for _ in range(5)]
        await settled(calls, WATCHDOG)
        return calls, open_sockets_to(server.port)

    calls, sockets = asyncio.run(main())
    served = sum(call.result == ["demo"] for call in calls)
    connects = server.count("Connect")
    verdict(
        (connects, sockets, served) == (1, 1, 5),
        f"{connects} connects and {sockets} sockets for five first calls, {served} served",
    )


@defect()
def d19_one_client_works_in_two_loops(env: Env) -> None:
    """A client that was used in a loop that is over works in the next one, and leaves nothing."""
    server = env.server()
    client = AsyncMilvusClient(server.uri)
    outcomes: list[Any] = []

    async def main() -> None:
        call = Doing(client.list_collections(timeout=10))
        await settled([call], WATCHDOG)
        outcomes.append(call.error or call.result)

    for _ in range(2):
        asyncio.run(main())
    tidy = came_true(lambda: open_sockets_to(server.port) == 0, 5)
    sockets = open_sockets_to(server.port)
    verdict(
        outcomes == [["demo"], ["demo"]] and tidy,
        f"the first loop: {outcomes[0]!r}, the second: {outcomes[1]!r}, {sockets} sockets left",
    )


@defect()
def d29_both_flavours_have_stats(env: Env) -> None:
    """The asyncio manager's get_stats has the keys of the threads manager's, and counts."""
    server = env.server()

    async def main() -> Any:
        shared = AsyncMilvusClient(server.uri)
        alone = AsyncMilvusClient(server.uri, dedicated=True)
        await asyncio.gather(shared.list_collections(), alone.list_collections())
        get_stats = getattr(_manager(), "get_stats", None)
        return None if get_stats is None else get_stats()

    stats = asyncio.run(main())
    expected = set(env.manager().get_stats())
    counts = [
        stats[name] if stats else None
        for name in ("total_connections", "shared_connections", "dedicated_connections")
    ]
    verdict(
        stats is not None and set(stats) == expected and counts == [2, 1, 1],
        f"total, shared and dedicated connections are {counts}; "
        f"the keys are {sorted(stats) if stats else None}",
    )
