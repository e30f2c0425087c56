"""A topology service that takes its time: failovers come when it answers, and not much later.

Each body runs in both flavours, on real servers. The promise is the service's delay and half a
second; a busy machine is allowed a second more.
"""

from __future__ import annotations

import time
from typing import Any

import pytest

from tests import inside
from tests.flavours import Program
from tests.global_clusters import GlobalCluster, violated
from tests.network import TcpProxy
from tests.observe import Call, came_true, held, wait_until
from tests.servers import FakeMilvus

pytestmark = [pytest.mark.slow, pytest.mark.timeout(90), pytest.mark.policy(topology_refresh=None)]

#: How long (seconds) the service takes to answer.
DELAY = 2.0
#: How late (seconds) after that a call may be served.
LATE = 1.5
#: The least time (seconds) between two fetches.
SPACING = 0.2


@pytest.fixture(autouse=True)
def frequent_fetches(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(*inside.fetch_spacing(SPACING))


def connect(program: Program, cluster: GlobalCluster) -> Any:
    """A client of a cluster whose next fetch may begin at once."""
    client = program.client(cluster.uri, token="root:pw")
    assert client.list_collections() == ["old"]
    time.sleep(SPACING)
    return client


def fail_over(cluster: GlobalCluster) -> float:
    """The first server is gone and the second one the primary, as the service says late; since."""
    old, new = cluster.servers
    cluster.delay = DELAY
    cluster.move(new)
    old.stop()
    return time.monotonic()


def served(call: Call, since: float) -> None:
    """The call is answered by the new primary, soon after the topology was."""
    assert call.value(60) == ["new"]
    late = time.monotonic() - since - DELAY
    assert late < LATE, f"{late:.2f} s after the answer of the service"


def test_a_failover_is_as_late_as_the_topology(program: Program, cluster: GlobalCluster) -> None:
    """The primary is gone: one request to the service, which nobody ends and begins anew."""
    client = connect(program, cluster)
    since = fail_over(cluster)
    served(Call(client.list_collections), since)
    assert len(cluster.asked) == 2


def test_an_old_primary_that_says_nothing_delays_nobody(
    program: Program, old: FakeMilvus, new: FakeMilvus
) -> None:
    """It accepts connections and never answers: knocking there ends when the topology comes."""
    with TcpProxy(old.port) as between, GlobalCluster(between, new) as cluster:
        client = connect(program, cluster)
        cluster.delay = DELAY
        cluster.move(new)
        _, (call,) = held(old, "ShowCollections", client.list_collections)
        between.set_mode("hang")
        between.cut()
        served(call, time.monotonic())


def test_a_secondary_that_refuses_delays_nobody(
    program: Program, cluster: GlobalCluster, old: FakeMilvus, new: FakeMilvus
) -> None:
    """It answers, that it is not the primary: it is not asked again and again meanwhile."""
    client = connect(program, cluster)
    cluster.delay = DELAY
    cluster.move(new)
    old.on("HasPartition", lambda call: violated(call.method))
    since = time.monotonic()
    assert Call(client.has_partition, "demo", "part").value(60) is False
    assert time.monotonic() - since < DELAY + LATE
    assert (old.count("HasPartition"), new.count("HasPartition")) == (1, 1)


def test_news_in_the_middle_of_an_outage(
    program: Program, cluster: GlobalCluster, old: FakeMilvus, new: FakeMilvus
) -> None:
    """The service names the dead primary for a while: it is asked again, one at a time."""
    client = connect(program, cluster)
    cluster.delay = 0.3
    old.stop()
    call = Call(client.list_collections)
    wait_until(lambda: len(cluster.asked) >= 4, 20)
    named = cluster.move(new)
    # What was asked before that may still be answered by the old version.
    assert call.value(60) == ["new"]
    assert time.monotonic() - named < 2 * (cluster.delay + SPACING) + LATE
    assert cluster.most_at_once == 1


def test_the_old_primary_is_found_while_the_service_hangs(
    program: Program, cluster: GlobalCluster, old: FakeMilvus
) -> None:
    """It comes back after a restart: nobody waits for the topology to say what it said before."""
    client = connect(program, cluster)
    cluster.proxy.set_mode("hang", cut=True)
    old.stop()
    call = Call(client.list_collections)
    time.sleep(1.0)  # the outage
    old.start()
    listening = time.monotonic()
    assert call.value(30) == ["old"]
    assert time.monotonic() - listening < LATE


def test_asking_for_the_topology_cuts_no_connect(
    program: Program, cluster: GlobalCluster, old: FakeMilvus
) -> None:
    """A primary that is back and slow to answer is not asked anew with each fetch."""
    client = connect(program, cluster)
    old.stop()
    call = Call(client.list_collections)
    wait_until(lambda: len(cluster.asked) >= 3, 20)
    old.on("Connect", lambda call: time.sleep(3 * SPACING))
    old.start()
    assert call.value(15) == ["old"]


def test_a_client_that_comes_during_the_outage(program: Program, cluster: GlobalCluster) -> None:
    """The last known primary refuses its first connect: it waits for the topology under way."""
    client = connect(program, cluster)
    since = fail_over(cluster)
    call = Call(client.list_collections)
    wait_until(lambda: len(cluster.asked) == 2, 10)
    newcomer = Call(program.client, cluster.uri, token="root:pw", dedicated=True).value(30)
    assert time.monotonic() - since < DELAY + LATE
    assert newcomer.list_collections() == ["new"]
    assert call.value(10) == ["new"]


def test_closing_ends_the_waiting_and_the_asking(
    program: Program, cluster: GlobalCluster, old: FakeMilvus
) -> None:
    """Whoever waits wakes at once; no other fetch begins, and nothing stays for one."""
    client = connect(program, cluster)
    cluster.delay = 1.0
    old.stop()
    call = Call(client.list_collections)
    wait_until(lambda: len(cluster.asked) == 2, 10)
    program.close_all()
    assert came_true(lambda: call.done, 0.9), "it waited for the topology"
    assert "closed" in str(call.error)

    def fetching() -> list[str]:
        return [name for name in program.workers() if "topology" in name]

    assert came_true(lambda: not fetching(), 20), fetching()
    assert len(cluster.asked) == 2
