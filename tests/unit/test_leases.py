"""Leases on their fast path, and what checkouts refuse to be given."""

from __future__ import annotations

import gc
from collections.abc import Callable
from typing import Any

import pytest

from milvus_lifecycle.core.checkout import SHORTEST_CHECKOUT, VERDICT_GRACE
from milvus_lifecycle.errors import ConfigError, ConnectFailed
from milvus_lifecycle.table import State, Trigger
from tests.cores import Core
from tests.observe import Call, Client
from tests.rigs import Rig, Unraisable


def test_a_second_checkout_is_the_same_lease() -> None:
    """A client, or nobody in particular, that has its lease already is served without a step."""
    core, client = Core().to(State.ACTIVE), Client()
    assert core.connection.try_fast(client, core.clock())
    for again in (client, None):
        core.clock.advance(1)
        assert core.connection.try_fast(again, core.clock())
        assert core.connection.last_used_at == core.clock()
    assert len(core.connection.leases) == 2


def test_no_fast_path_for_an_idle_connection() -> None:
    """What nothing vouches for any more takes the long way."""
    core = Core().to(State.ACTIVE)
    core.clock.advance(31)
    assert not core.connection.try_fast(None, core.clock())


class Meddling(dict[int, Any]):
    """Leases that somebody else's step comes before."""

    def __init__(self, leases: dict[int, Any], meddle: Callable[[], object]) -> None:
        super().__init__(leases)
        self.meddle = meddle

    def get(self, key: int, default: Any = None) -> Any:
        self.meddle()
        return super().get(key, default)


def test_a_close_between_the_look_and_the_lease() -> None:
    """The fast path looks again under the mutex: nobody is given a lease of a closed connection."""
    core, client = Core().to(State.ACTIVE), Client()
    connection = core.connection
    connection.leases.held = Meddling(connection.leases.held, lambda: core.step(Trigger.CLOSE))
    assert not connection.try_fast(client, core.clock())
    assert connection.state is State.CLOSED
    assert client not in connection.clients


def test_a_lease_that_outlives_its_connection() -> None:
    """A client that goes after its connection is collected without a word."""
    core, client = Core(), Client()
    core.connection.lease(client)
    lease, lost = core.connection.leases.held[id(client)], core.lost
    with Unraisable() as errors:
        del core
        gc.collect()
        assert lease is not None
        del client
        assert lease() is None
    assert errors.seen == []
    assert lost == []


def test_clients_that_come_and_go_leave_one_note() -> None:
    """However far behind whoever reads the notes is: no lease is left, and one note to read."""
    core = Core().to(State.ACTIVE)
    assert core.connection.unlease(None)
    for _ in range(100):
        assert core.connection.try_fast(Client(), core.clock())
    assert core.connection.leases.held == {}
    assert core.lost == [core.connection]


@pytest.mark.parametrize("state", ["new", "pooled"])
def test_a_client_that_cannot_be_watched_is_refused(state: str) -> None:
    """Its lease could never end by itself: ConfigError, on the fast path too, and no lease."""
    with Rig() as rig:
        if state == "pooled":
            rig.connected()
        with pytest.raises(ConfigError, match="client of type int") as caught:
            rig.connected(5)
        assert caught.value.field == "client"
        rows = rig.manager.get_stats()["connections"]
        assert [row["clients"] for row in rows] == ([1] if state == "pooled" else [])


@pytest.mark.parametrize("state", ["new", "pooled"])
def test_a_timeout_that_is_none_is_refused(state: str) -> None:
    """Whether or not there is a connection to share, and before anything is opened."""
    with Rig() as rig:
        if state == "pooled":
            rig.connected()
        opened = len(rig.script.operations)
        with pytest.raises(ConfigError, match="timeout='soon'") as caught:
            rig.connected(timeout="soon")
        assert caught.value.field == "timeout"
        assert len(rig.script.operations) == opened


def test_a_checkout_without_time_takes_what_a_connect_takes() -> None:
    """A timeout of 0 connects to a server that answers at once, and waits for no other."""
    with Rig() as rig:
        assert rig.connected(timeout=0).face.connection.state is State.ACTIVE
        rig.script.hold("register")
        late = Call(rig.connected, timeout=0, dedicated=True)
        rig.script.wait_held("register")
        rig.sees(lambda: rig.clock.sleeping() == 1, "it does not wait")
        rig.clock.advance(SHORTEST_CHECKOUT + VERDICT_GRACE)
        with pytest.raises(ConnectFailed):
            late.value(20)
        rig.script.let_go()
