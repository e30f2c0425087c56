"""A topology service that takes its time: failovers come when it answers, and not much later.

Each body runs in both flavours, on real servers. The promise is the service's delay and half a
second; a busy machine is allowed a second more.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator

import pytest
from pymilvus import MilvusClient

from milvus_lifecycle.endpoints import global_cluster
from tests.callers import Caller
from tests.conftest import Engine
from tests.global_clusters import GlobalCluster, violated
from tests.network import TcpProxy
from tests.observe import Call, wait_until
from tests.servers import FakeMilvus

pytestmark = [pytest.mark.timeout(90), pytest.mark.policy(topology_refresh=None)]

#: How long (seconds) the service takes to answer.
DELAY = 2.0
#: How late (seconds) after that a call may be served.
LATE = 1.5


@pytest.fixture(params=["threads", "asyncio"])
def connect(
    engine: Engine, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Callable[..., Caller]]:
    """Make clients of a global cluster whose next fetch may begin at once."""
    monkeypatch.setattr(global_cluster, "FETCH_SPACING", 0.2)
    made: list[Caller] = []

    def connect(cluster: GlobalCluster) -> Caller:
        caller = Caller(request.param, cluster.uri)
        made.append(caller)
        listed = caller.list()
        assert listed == ["old"]
        time.sleep(0.2)
        return caller

    yield connect
    for caller in made:
        caller.close()


def served(call: Call, since: float) -> None:
    """The call is answered by the new primary, soon after the topology was."""
    assert call.value(60) == ["new"]
    late = time.monotonic() - since - DELAY
    assert late < LATE, f"{late:.2f} s after the answer of the service"


def test_a_failover_is_as_late_as_the_topology(
    connect: Callable[..., Caller], cluster: GlobalCluster, old: FakeMilvus, new: FakeMilvus
) -> None:
    """The primary is gone: one request to the service, which nobody ends and begins anew."""
    caller = connect(cluster)
    cluster.delay = DELAY
    cluster.move(new)
    old.stop()
    since = time.monotonic()
    served(Call(caller.list), since)
    assert len(cluster.asked) == 2


def test_an_old_primary_that_says_nothing_delays_nobody(
    connect: Callable[..., Caller], old: FakeMilvus, new: FakeMilvus
) -> None:
    """It accepts connections and never answers: knocking there ends when the topology comes."""
    with TcpProxy(old.port) as between, GlobalCluster(between, new) as cluster:
        caller = connect(cluster)
        cluster.delay = DELAY
        cluster.move(new)
        hold = old.hold("ShowCollections")
        call = Call(caller.list)
        assert wait_until(lambda: hold.waiting == 1, 10)
        between.set_mode("hang")
        between.cut()
        since = time.monotonic()
        served(call, since)


def test_a_secondary_that_refuses_delays_nobody(
    connect: Callable[..., Caller], cluster: GlobalCluster, old: FakeMilvus, new: FakeMilvus
) -> None:
    """It answers, that it is not the primary: it is not asked again and again meanwhile."""
    caller = connect(cluster)
    cluster.delay = DELAY
    cluster.move(new)
    old.on("HasPartition", lambda call: violated(call.method))
    since = time.monotonic()
    call = Call(caller.call, "has_partition", "demo", "part")
    assert call.value(60) is False
    assert time.monotonic() - since < DELAY + LATE
    assert (old.count("HasPartition"), new.count("HasPartition")) == (1, 1)


def test_news_in_the_middle_of_an_outage(
    connect: Callable[..., Caller], cluster: GlobalCluster, old: FakeMilvus, new: FakeMilvus
) -> None:
    """The service names the dead primary for a while: it is asked again, one at a time."""
    caller = connect(cluster)
    cluster.delay = 0.3
    old.stop()
    call = Call(caller.list)
    assert wait_until(lambda: len(cluster.asked) >= 4, 20)
    named = cluster.move(new)
    # What was asked before that may still be answered by the old version.
    assert call.value(60) == ["new"]
    assert time.monotonic() - named < 2 * (cluster.delay + global_cluster.FETCH_SPACING) + LATE
    assert cluster.most_at_once == 1


def test_the_old_primary_is_found_while_the_service_hangs(
    connect: Callable[..., Caller], cluster: GlobalCluster, old: FakeMilvus
) -> None:
    """It comes back after a restart: nobody waits for the topology to say what it said before."""
    caller = connect(cluster)
    cluster.proxy.set_mode("hang", cut=True)
    old.stop()
    call = Call(caller.list)
    time.sleep(1.0)  # the outage
    old.start()
    listening = time.monotonic()
    assert call.value(30) == ["old"]
    assert time.monotonic() - listening < LATE


def test_asking_for_the_topology_cuts_no_connect(
    connect: Callable[..., Caller], cluster: GlobalCluster, old: FakeMilvus
) -> None:
    """A primary that is back and slow to answer is not asked anew with each fetch."""
    caller = connect(cluster)
    old.stop()
    call = Call(caller.list)
    assert wait_until(lambda: len(cluster.asked) >= 3, 20)
    old.on("Connect", lambda call: time.sleep(3 * global_cluster.FETCH_SPACING))
    old.start()
    assert call.value(15) == ["old"]


def test_a_client_that_comes_during_the_outage(
    connect: Callable[..., Caller], cluster: GlobalCluster, old: FakeMilvus, new: FakeMilvus
) -> None:
    """The last known primary refuses its first connect: it waits for the topology under way."""
    caller = connect(cluster)
    cluster.delay = DELAY
    cluster.move(new)
    old.stop()
    since = time.monotonic()
    call = Call(caller.list)
    assert wait_until(lambda: len(cluster.asked) == 2, 10)
    newcomer = Call(lambda: MilvusClient(cluster.uri, token="root:pw", dedicated=True))
    client = newcomer.value(30)
    assert time.monotonic() - since < DELAY + LATE
    assert client.list_collections() == ["new"]
    assert call.value(10) == ["new"]
    client.close()


def test_closing_ends_the_waiting_and_the_asking(
    connect: Callable[..., Caller],
    cluster: GlobalCluster,
    old: FakeMilvus,
    new_threads: Callable[[], set[str]],
) -> None:
    """Whoever waits wakes at once; no other fetch begins, and no thread stays for one."""
    caller = connect(cluster)
    cluster.delay = 1.0
    old.stop()
    call = Call(caller.list)
    assert wait_until(lambda: len(cluster.asked) == 2, 10)
    caller.close_all()
    assert wait_until(lambda: call.done, 0.9), "it waited for the topology"
    assert "closed" in str(call.error)
    assert wait_until(lambda: not [n for n in new_threads() if "topology" in n], 20), new_threads()
    assert len(cluster.asked) == 2
