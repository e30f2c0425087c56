"""Bodies of the asyncio defects that show when a server goes away: D2, D6, D7."""

from __future__ import annotations

import asyncio
from typing import Any

import grpc
from pymilvus import AsyncMilvusClient

from tests.looping import Doing, settled, until
from tests.observe import wait_until
from tests.servers import FakeMilvus, RpcFailure, ServedCall
from tests.stock import Env, defect, verdict

#: Longer than anything that a healthy manager does in these bodies (seconds).
WATCHDOG = 12.0


def _fail_first(call: ServedCall) -> None:
    if call.number == 1:
        raise RpcFailure(grpc.StatusCode.UNAVAILABLE)


@defect(idle_threshold=0.5)
def d2_a_probe_that_fails_locks_nobody_out(env: Env) -> None:
    """After a failed probe the checkout goes on, and so does every other endpoint's."""
    server, other = env.server(), env.server()

    async def main() -> list[Any]:
        first = AsyncMilvusClient(server.uri)
        await first.list_collections()
        await asyncio.sleep(1.0)  # idle time is what this is about
        server.on("GetVersion", _fail_first)
        idle = Doing(AsyncMilvusClient(server.uri).list_collections())
        await until(lambda: server.count("GetVersion"), 5)
        healthy = Doing(AsyncMilvusClient(other.uri).list_collections())
        await settled([idle, healthy], WATCHDOG)
        # Asked here: the loop's end cancels what still waits.
        return [call.error or call.result if call.done else "nothing" for call in (idle, healthy)]

    idle, healthy = asyncio.run(main())
    verdict(
        idle == healthy == ["demo"],
        f"within {WATCHDOG} s the idle checkout came to {idle!r}, "
        f"another endpoint's to {healthy!r}",
    )


@defect()
def d6_one_failure_of_many_coroutines_is_one_recovery(env: Env) -> None:
    """Ten coroutines whose RPCs fail with UNAVAILABLE together cost one recovery."""
    server = env.server()

    async def main() -> list[Doing]:
        client = AsyncMilvusClient(server.uri)
        await client.list_collections()
        hold = server.hold("ShowCollections")
        calls = [Doing(client.list_collections()) for _ in range(10)]
        await until(lambda: hold.waiting == 10, 10)
        server.heal()
        hold.release(RpcFailure(grpc.StatusCode.UNAVAILABLE))
        await settled(calls, WATCHDOG)
        return calls

    calls = asyncio.run(main())
    served = sum(call.result == ["demo"] for call in calls)
    recoveries = server.count("Connect") - 1
    verdict(
        recoveries == 1 and served == 10,
        f"{recoveries} recoveries for ten concurrent failures, {served} of ten calls served",
    )


@defect()
def d7_a_recovery_cuts_no_running_rpc(env: Env) -> None:
    """A healthy RPC ends well though another call's failure recovered its connection."""
    server = env.server()

    async def main() -> Doing:
        client = AsyncMilvusClient(server.uri, timeout=1)
        await client.list_collections()
        hold = server.hold("HasPartition")
        running = Doing(client.has_partition("demo", "part"))
        await until(lambda: hold.waiting == 1, 10)
        _fail_next_listing(server)
        await client.list_collections()
        # Stock cancels what runs on the old channel after the connect timeout: 1 s here.
        await settled([running], 3.0)
        hold.release()
        await settled([running], WATCHDOG)
        return running

    running: Any = asyncio.run(main())
    recoveries = server.count("Connect") - 1
    wait_until(lambda: server.count("HasPartition") > 1, 0.2)
    verdict(
        running.done and running.error is None and server.count("HasPartition") == 1,
        f"{recoveries} recovery; the running call ended after {running.elapsed:.1f} s "
        f"with {running.error!r}, sent {server.count('HasPartition')} time(s)",
    )


def _fail_next_listing(server: FakeMilvus) -> None:
    failing = iter([True])

    def answer(call: ServedCall) -> None:
        if next(failing, False):
            raise RpcFailure(grpc.StatusCode.UNAVAILABLE)

    server.on("ShowCollections", answer)
