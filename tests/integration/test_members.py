"""Several connections behind one handler, each with a channel and a life of its own."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import grpc
import pytest

import milvus_lifecycle as ml
from tests.flavours import Flavour
from tests.network import TcpProxy, open_sockets_to
from tests.observe import Call, wait_until
from tests.servers import FakeMilvus, RpcFailure, ServedCall

pytestmark = pytest.mark.timeout(90)


class Balancer(TcpProxy):
    """An L4 balancer: connection by connection, each to the next of its servers."""

    def __init__(self, *servers: FakeMilvus) -> None:
        super().__init__(0)
        self.servers, self._taken = list(servers), 0

    @property
    def target_port(self) -> int:
        self._taken += 1
        return self.servers[self._taken % len(self.servers)].port

    @target_port.setter
    def target_port(self, port: int) -> None:
        """It has several."""


@pytest.fixture
def records() -> Iterator[list[Any]]:
    """What the engine, installed with three channels, says; it is uninstalled at the end."""
    heard: list[Any] = []
    yield heard
    ml.uninstall()


def install(records: list[Any], **fields: Any) -> None:
    ml.install(ml.LifecyclePolicy(**{"channels": 3, **fields}), listeners=[records.append])


def _rows(flavour: Flavour) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = flavour.manager().get_stats()["connections"]
    return rows


def _all_active(flavour: Flavour, count: int = 3) -> Callable[[], bool]:
    return lambda: [row["state"] for row in _rows(flavour)] == ["ACTIVE"] * count


def _peers(server: FakeMilvus, method: str = "ShowCollections") -> Counter[str]:
    return Counter(call.peer for call in server.seen(method))


def test_calls_take_the_member_with_the_fewest(
    records: list[Any], flavour: Flavour, server: FakeMilvus
) -> None:
    """Three connections with records of their own; nine calls at once are three on each."""
    install(records)
    client = flavour.connected(server.uri)
    wait_until(_all_active(flavour), 30)
    assert len({record.connection_id for record in records}) == 3
    assert {row["dedicated"] for row in _rows(flavour)} == {False}
    server.calls.clear()
    hold = server.hold("ShowCollections")
    calls = [Call(client.list_collections) for _ in range(9)]
    wait_until(lambda: len(server.seen("ShowCollections")) == 9, 30)
    hold.release()
    assert [call.value(30) for call in calls] == [["demo"]] * 9
    assert sorted(_peers(server).values()) == [3, 3, 3]


def test_a_member_in_recovery_takes_no_calls(
    records: list[Any], flavour: Flavour, old: FakeMilvus, new: FakeMilvus
) -> None:
    """Behind a balancer one of two servers is unwell: no call fails, or waits for its members."""
    install(records, channels=4)
    with Balancer(old, new) as balancer:
        client = flavour.connected(balancer.uri)
        wait_until(_all_active(flavour, 4), 30)
        balancer.servers = [new]
        hold = new.hold("Connect")  # who has left a server is not somewhere else soon
        old.fail(spare=())
        for _ in range(5):
            calls = [Call(client.list_collections) for _ in range(8)]
            assert [call.value(30) for call in calls] == [["new"]] * 8
        assert [row["state"] for row in _rows(flavour)].count("RECOVERING") == 2
        asked = old.count("ShowCollections")
        assert client.list_collections() == ["new"]
        assert old.count("ShowCollections") == asked
        hold.release()
        wait_until(_all_active(flavour, 4), 30)


def test_load_evens_out_with_max_age(
    records: list[Any], flavour: Flavour, old: FakeMilvus, new: FakeMilvus
) -> None:
    """A server that is added behind the balancer gets its share without a restart."""
    install(records, max_age=1.0, channels=2)
    with Balancer(old) as balancer:
        client = flavour.connected(balancer.uri)
        wait_until(_all_active(flavour, 2), 30)
        balancer.servers = [old, new]
        wait_until(lambda: client.list_collections() == ["new"], 30)


def test_members_end_with_the_first(
    records: list[Any], flavour: Flavour, server: FakeMilvus
) -> None:
    """Unused they are closed; a client that comes back has as many again."""
    install(records, linger=0.2)
    client = flavour.connected(server.uri)
    wait_until(_all_active(flavour), 30)
    client.close()
    wait_until(lambda: not _rows(flavour) and not open_sockets_to(server.port), 30)
    again = flavour.connected(server.uri)
    wait_until(_all_active(flavour), 30)
    flavour.manager().close_all()
    assert not _rows(flavour)
    assert again.list_collections() == ["demo"]
    wait_until(_all_active(flavour), 30)
    ml.uninstall()
    wait_until(lambda: not open_sockets_to(server.port), 30)


def test_a_member_that_was_refused_is_replaced(
    records: list[Any], flavour: Flavour, server: FakeMilvus
) -> None:
    """The first one serves meanwhile; the rest come later."""
    install(records, connect_timeout=1.0, backoff_ceiling=1.0)
    refusing = True

    def refuse(call: ServedCall) -> None:
        if refusing and call.number > 1:
            raise RpcFailure(grpc.StatusCode.UNAVAILABLE)

    server.on("Connect", refuse)
    client = flavour.client(server.uri)
    wait_until(lambda: any(record.dest == "CLOSED" for record in records), 30)
    assert client.list_collections() == ["demo"]
    refusing = False
    wait_until(_all_active(flavour), 30)
