"""Bodies of the defects of global clusters in the asyncio flavour: D8 to D13."""

from __future__ import annotations

import asyncio
from typing import Any

import grpc
from pymilvus import AsyncMilvusClient

from tests.global_clusters import GlobalCluster
from tests.integration.defects_global import REFRESH, refresh_often, refreshers
from tests.looping import Doing, Ticker, other_tasks, settled, until
from tests.network import free_port
from tests.observe import ChannelCount, wait_until
from tests.servers import FakeMilvus, RpcFailure
from tests.stock import Env, defect, verdict

#: The promise is that the loop never stands still for 50 ms (seconds);
#: a busy machine is allowed more. What stock blocks for is 2.5 s and longer.
STALL = 2.0


@defect(topology_refresh=REFRESH)
def d8_a_refresh_that_sees_the_new_primary_first_helps(env: Env) -> None:
    """A primary that a background refresh has seen before the old one died is moved to."""
    refresh_often(env)
    old, new = env.server(), env.server(collections=["new"])
    cluster = env.enter(GlobalCluster(old, new))

    async def main() -> Any:
        client = AsyncMilvusClient(cluster.uri, token="root:pw")
        await client.list_collections()
        cluster.move(new)
        asked = len(cluster.asked)
        # The second one: what the first one brought has been taken in by then.
        await until(lambda: len(cluster.asked) >= asked + 2, 15)
        old.stop()
        call = Doing(client.list_collections(timeout=8))
        await settled([call], 30)
        return call.error or call.result

    outcome = asyncio.run(main())
    verdict(
        outcome == ["new"],
        f"the new primary was known before the old one died; the next call came to {outcome}",
    )


def _fail_over_to(env: Env, endpoint: str) -> tuple[Any, list[str]]:
    """A call after the primary died and the topology names `endpoint`; what was dialled then."""
    old, new = env.server(), env.server(collections=["new"])
    cluster = env.enter(GlobalCluster(old, new))
    cluster.written[new] = endpoint.replace("{port}", str(new.port))

    async def main() -> tuple[Any, list[str]]:
        client = AsyncMilvusClient(cluster.uri, token="root:pw")
        await client.list_collections()
        cluster.move(new)
        old.stop()
        with ChannelCount() as channels:
            call = Doing(client.list_collections(timeout=4))
            await settled([call], 30)
        dialled = sorted({target for _, target in channels.opened} - {old.address})
        return call.error or call.result, dialled

    return asyncio.run(main())


@defect()
def d9_failover_reads_addresses_as_a_first_connect_does(env: Env) -> None:
    """`host:port` is that address, and `https://host` means port 443, in a failover too."""
    bare, dialled_bare = _fail_over_to(env, "127.0.0.1:{port}")
    _, dialled_https = _fail_over_to(env, "https://127.0.0.1")
    verdict(
        bare == ["new"] and dialled_https == ["127.0.0.1:443"],
        f"host:port was dialled as {dialled_bare}, the call came to {bare}; "
        f"https://127.0.0.1 as {dialled_https}",
    )


class _Nobody:
    """A server that refuses connections."""

    def __init__(self) -> None:
        self.uri = f"http://127.0.0.1:{free_port()}"


@defect(topology_refresh=REFRESH)
def d10_a_failed_connect_leaves_no_refresher(env: Env) -> None:
    """Five clients whose primary refuses connections leave no thread and no task behind."""
    refresh_often(env)
    cluster = env.enter(GlobalCluster(_Nobody()))

    async def main() -> tuple[int, list[str]]:
        clients = [AsyncMilvusClient(cluster.uri, token=f"root:{n}", timeout=1) for n in range(5)]
        calls = [Doing(client.list_collections(timeout=2)) for client in clients]
        await settled(calls, 40)
        await until(lambda: not other_tasks(), 5)
        return sum(call.error is not None for call in calls), other_tasks()

    failed, tasks = asyncio.run(main())
    wait_until(lambda: not refreshers(), 5)
    verdict(
        failed == 5 and not tasks and not refreshers(),
        f"{failed} of 5 connects failed and left tasks {tasks} and threads {refreshers()}",
    )


@defect(topology_refresh=REFRESH)
def d11_closing_during_a_fetch_waits_for_nothing(env: Env) -> None:
    """A global client that is closed in the middle of a fetch delays nobody, itself included."""
    refresh_often(env)
    cluster, other = env.enter(GlobalCluster(env.server())), env.server()

    async def main() -> tuple[float, float, list[BaseException | None]]:
        client = AsyncMilvusClient(cluster.uri, token="root:pw", dedicated=True)
        await client.list_collections()
        await AsyncMilvusClient(other.uri).list_collections()
        cluster.hold()
        asked = len(cluster.asked)
        await until(lambda: len(cluster.asked) > asked, 15)
        async with Ticker() as ticker:
            closing = Doing(client.close())
            healthy = Doing(AsyncMilvusClient(other.uri).list_collections())
            await settled([closing, healthy], 20)
        took = max(call.elapsed or 0.0 for call in (closing, healthy))
        return took, ticker.longest, [closing.error, healthy.error]

    took, stall, errors = asyncio.run(main())
    verdict(
        max(took, stall) < STALL and errors == [None, None],
        f"closing and another endpoint's call took up to {took:.2f} s, "
        f"the loop stood still for {stall:.2f} s, errors {errors}",
    )


@defect()
def d12_one_failure_of_many_calls_is_one_fetch(env: Env) -> None:
    """Ten coroutines whose calls fail together cost one fetch of the topology."""
    server = env.server()
    cluster = env.enter(GlobalCluster(server))

    async def main() -> tuple[int, int]:
        client = AsyncMilvusClient(cluster.uri, token="root:pw")
        await client.list_collections()
        hold = server.hold("ShowCollections")
        calls = [Doing(client.list_collections()) for _ in range(10)]
        await until(lambda: hold.waiting == 10, 10)
        await asyncio.sleep(1.0)  # the fetch of the first connect is to be long over
        before = len(cluster.asked)
        server.heal()
        hold.release(RpcFailure(grpc.StatusCode.UNAVAILABLE))
        await settled(calls, 20)
        return len(cluster.asked) - before, sum(call.result == ["demo"] for call in calls)

    fetches, served = asyncio.run(main())
    verdict(
        fetches == 1 and served == 10,
        f"{fetches} fetches for ten calls that failed together; {served} of 10 served",
    )


@defect()
def d13_a_slow_topology_service_stalls_no_loop(env: Env) -> None:
    """A first connect, and a failover, by a topology that takes 2.5 s leave the loop running."""
    old, new = env.server(), env.server(collections=["new"])
    cluster = env.enter(GlobalCluster(old, new))
    cluster.delay = 2.5

    async def main() -> tuple[list[Any], list[float]]:
        client = AsyncMilvusClient(cluster.uri, token="root:pw")
        outcomes, stalls = [], []
        for prepare in (lambda: None, lambda: _lose(cluster, old, new)):
            prepare()
            async with Ticker() as ticker:
                call = Doing(client.list_collections(timeout=20))
                await settled([call], 30)
            outcomes.append(call.error or call.result)
            stalls.append(ticker.longest)
        return outcomes, stalls

    outcomes, stalls = asyncio.run(main())
    verdict(
        outcomes == [["demo"], ["new"]] and max(stalls) < STALL,
        f"first connect {outcomes[0]!r}, failover {outcomes[1]!r}; "
        f"the loop stood still for {stalls[0]:.2f} s and {stalls[1]:.2f} s",
    )


def _lose(cluster: GlobalCluster, old: FakeMilvus, new: FakeMilvus) -> None:
    cluster.move(new)
    old.stop()
