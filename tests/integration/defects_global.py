"""Bodies of the defects of global clusters: D8 to D13."""

from __future__ import annotations

import itertools
import os
import time
from typing import Any

import grpc

from tests.flavours import Flavour, each_flavour
from tests.global_clusters import HOST, GlobalCluster, Nobody
from tests.observe import Call, ChannelCount, all_done, came_true, held, wait_until
from tests.servers import RpcFailure, make_tls_files
from tests.stock import Env, verdict

#: Seconds between two refreshes in the background, on both sides.
REFRESH = 0.5


def refresh_often(env: Env) -> None:
    """Have stock pymilvus refresh as often as the engine's policy says, instead of every 300 s."""
    if env.side == "stock":
        from pymilvus.client.global_topology import TopologyRefresher

        TopologyRefresher.__init__.__defaults__ = (REFRESH, None)


def _lose_the_primary_after_a_refresh(
    flavour: Flavour, cluster: GlobalCluster, **options: Any
) -> None:
    old, new = cluster.servers
    new.collections = ["new"]
    client = flavour.connected(cluster.uri, token="root:pw", **options)
    cluster.move(new)
    asked = len(cluster.asked)
    # The second one: what the first one brought has been taken in by then.
    wait_until(lambda: len(cluster.asked) >= asked + 2, 15)
    old.stop()
    call = Call(client.list_collections, timeout=8)
    all_done([call], 30)
    verdict(
        call.result == ["new"],
        f"the new primary was known before the old one died; the next call came to "
        f"{call.error or call.result} after {call.elapsed or 0:.1f} s",
    )


@each_flavour(topology_refresh=REFRESH)
def d8_a_refresh_that_sees_the_new_primary_first_helps(env: Env, flavour: Flavour) -> None:
    """A primary that a background refresh has seen before the old one died is moved to."""
    refresh_often(env)
    cluster = env.enter(GlobalCluster(env.server(), env.server()))
    _lose_the_primary_after_a_refresh(flavour, cluster)


@each_flavour("threads", topology_refresh=REFRESH)
def d8_over_https_with_the_clients_own_ca(env: Env, flavour: Flavour) -> None:
    """The same where topology service and servers have certificates of the client's own CA."""
    refresh_often(env)
    files = make_tls_files(env.folder(), HOST, "127.0.0.1")
    if env.side == "stock":
        # The only way to have stock trust a topology service; it is to get as far as D8.
        os.environ["REQUESTS_CA_BUNDLE"] = files.ca
    servers = env.server(tls=files), env.server(tls=files)
    cluster = env.enter(GlobalCluster(*servers, certificate=files))
    _lose_the_primary_after_a_refresh(flavour, cluster, server_pem_path=files.ca)


def _fail_over_to(env: Env, flavour: Flavour, endpoint: str) -> tuple[Call, list[str]]:
    """A call after the primary died and the topology names `endpoint`; what was dialled then."""
    old, new = env.server(), env.server(collections=["new"])
    cluster = env.enter(GlobalCluster(old, new))
    cluster.written[new] = endpoint.replace("{port}", str(new.port))
    client = flavour.connected(cluster.uri, token="root:pw")
    cluster.move(new)
    old.stop()
    with ChannelCount() as channels:
        call = Call(client.list_collections, timeout=4)
        all_done([call], 30)
    return call, sorted({target for _, target in channels.opened} - {old.address})


@each_flavour()
def d9_failover_reads_addresses_as_a_first_connect_does(env: Env, flavour: Flavour) -> None:
    """`host:port` is that address, and `https://host` means port 443, in a failover too."""
    bare, dialled_bare = _fail_over_to(env, flavour, "127.0.0.1:{port}")
    _, dialled_https = _fail_over_to(env, flavour, "https://127.0.0.1")
    verdict(
        bare.result == ["new"] and dialled_https == ["127.0.0.1:443"],
        f"host:port was dialled as {dialled_bare}, the call came to {bare.error or bare.result}; "
        f"https://127.0.0.1 as {dialled_https}",
    )


@each_flavour(topology_refresh=REFRESH)
def d10_a_failed_connect_leaves_no_refresher(env: Env, flavour: Flavour) -> None:
    """Five clients whose primary refuses connections leave no thread, task or fetch behind."""
    refresh_often(env)
    cluster = env.enter(GlobalCluster(Nobody()))
    failures = [Call(flavour.client, cluster.uri, timeout=1, token=f"root:{n}") for n in range(5)]
    all_done(failures, 40)
    failed = sum(call.error is not None for call in failures)
    gone = came_true(lambda: not flavour.workers(), 5)
    verdict(failed == 5 and gone, f"{failed} of 5 connects failed and left {flavour.workers()}")


@each_flavour(topology_refresh=REFRESH)
def d11_closing_during_a_fetch_waits_for_nothing(env: Env, flavour: Flavour) -> None:
    """Closing a global client in the middle of a fetch, and a checkout beside it, take < 2.5 s.

    The promise is 50 ms; a busy machine is allowed more. The held fetch takes 5 s.
    """
    refresh_often(env)
    cluster, other = env.enter(GlobalCluster(env.server())), env.server()
    client = flavour.connected(cluster.uri, token="root:pw", dedicated=True)
    cluster.hold()
    asked = len(cluster.asked)
    wait_until(lambda: len(cluster.asked) > asked, 15)
    closing = Call(client.close)
    came_true(lambda: closing.done, 0.1)  # pymilvus's waits for the fetch
    healthy = Call(flavour.client, other.uri)
    all_done([closing, healthy], 20)
    took = [call.elapsed if call.elapsed is not None else 99.0 for call in (closing, healthy)]
    verdict(
        max(took) < 2.5 and closing.error is None and healthy.error is None,
        f"closing took {took[0]:.2f} s, a checkout of another endpoint {took[1]:.2f} s",
    )


@each_flavour()
def d12_one_failure_of_many_calls_is_one_fetch(env: Env, flavour: Flavour) -> None:
    """Ten calls that fail together, and one that fails on and on: at most one fetch a second.

    Half a second passes, too: what the service notes may come a little late.
    """
    server = env.server()
    cluster = env.enter(GlobalCluster(server))
    client = flavour.client(cluster.uri, token="root:pw")
    hold, calls = held(server, "ShowCollections", *[client.list_collections] * 10)
    time.sleep(1.0)  # the fetch of the first connect is to be long over
    before = len(cluster.asked)
    server.heal()
    hold.release(RpcFailure(grpc.StatusCode.UNAVAILABLE))
    all_done(calls, 20)
    together = len(cluster.asked) - before
    server.fail_next("ShowCollections", times=5)
    last = Call(client.list_collections)
    all_done([last], 30)
    times = cluster.asked
    gaps = [later - sooner for sooner, later in itertools.pairwise(times)]
    served = sum(call.result == ["demo"] for call in [*calls, last])
    verdict(
        together == 1 and min(gaps) > 0.5 and served == 11,
        f"{together} fetches for ten calls that failed together, {len(times) - before - together} "
        f"for one that failed five times, {min(gaps):.2f} s apart; {served} of 11 calls served",
    )


@each_flavour("asyncio")
def d13_a_slow_topology_service_stalls_no_loop(env: Env, flavour: Flavour) -> None:
    """A first connect, and a failover, by a topology that takes 2.5 s stop the loop for < 2 s."""
    old, new = env.server(), env.server(collections=["new"])
    cluster = env.enter(GlobalCluster(old, new))
    cluster.delay = 2.5
    stalls = []
    with flavour.ticking() as ticker:
        client = Call(flavour.client, cluster.uri, token="root:pw").value(30)
        stalls.append(ticker.longest)
    cluster.move(new)
    old.stop()
    with flavour.ticking() as ticker:
        call = Call(client.list_collections, timeout=20)
        all_done([call], 30)
        stalls.append(ticker.longest)
    verdict(
        call.result == ["new"] and max(stalls) < 2.0,
        f"the loop stood still for {stalls[0]:.2f} s in the connect and for {stalls[1]:.2f} s"
        f" in the failover, which came to {call.error or call.result!r}",
    )
