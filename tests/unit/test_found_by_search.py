"""What the stateful search found, each reduced to the shortest story that shows it."""

from __future__ import annotations

from typing import Any

import pytest

from milvus_lifecycle import ConnectionConfig, ConnectionManager, LifecyclePolicy
from milvus_lifecycle.errors import ConnectFailed, ConnectionClosed, DeadlineExceeded
from milvus_lifecycle.testing import FakeClock, Script, rpc_error, until
from tests.observe import Call, Client

CONFIG = ConnectionConfig.from_uri("http://home:19530")
LIMIT = 20.0


class Pool:
    """A threads manager on a script."""

    def __init__(self, policy: LifecyclePolicy | None = None) -> None:
        self.script, self.clock = Script(), FakeClock()
        seams = self.clock.seams()
        self.manager = ConnectionManager(policy, transport=self.script.threads(), seams=seams)

    def clients(self) -> list[int]:
        """How many hold each connection."""
        return [row["clients"] for row in self.manager.get_stats()["connections"]]

    def two_checkouts(self, client: Client, *, dedicated: bool) -> Any:
        """A client asks twice at a time; the impatient call ends, then the server answers."""
        ask, script, clock = self.manager.get_or_create, self.script, self.clock
        script.hold("register")
        impatient = Call(lambda: ask(CONFIG, dedicated, client, 1.0))
        until(lambda: clock.sleeping() == 1, LIMIT, "the first does not wait")
        patient = Call(lambda: ask(CONFIG, dedicated, client, 20.0))
        until(lambda: clock.sleeping() == 2, LIMIT, "the second does not wait")
        clock.advance(2.0)
        with pytest.raises(ConnectFailed):
            impatient.value(LIMIT)
        script.let_go()
        return patient.value(LIMIT)


@pytest.fixture
def pool() -> Any:
    pool = Pool()
    yield pool
    pool.manager.close_all()


def test_a_dedicated_connection_let_go_of_after_close_all_stays_closed(pool: Pool) -> None:
    """Whoever released it gets the closed error; no server is bothered with a new channel."""
    handler = pool.manager.get_or_create(CONFIG, dedicated=True)
    pool.manager.close_all()
    pool.manager.release(handler)
    with pytest.raises(ConnectionClosed):
        handler.rpc()
    assert len(pool.script.channels) == 1


def test_a_caller_without_a_lease_takes_nobody_elses(pool: Pool) -> None:
    """A call through a released handler leaves the anonymous lease of another one alone."""
    released = pool.manager.get_or_create(CONFIG)
    pool.manager.release(released)
    pool.manager.close_all()
    pool.manager.get_or_create(CONFIG)
    released.rpc()
    assert pool.clients() == [1]


def test_an_anonymous_lease_survives_beside_a_clients(pool: Pool) -> None:
    """Everybody who held a connection that close_all closed holds its successor."""
    client = Client()
    handler = pool.manager.get_or_create(CONFIG, client=client)
    pool.manager.get_or_create(CONFIG)
    pool.manager.close_all()
    handler.rpc()
    assert pool.clients() == [2]


def test_a_checkout_that_fails_leaves_the_lease_of_another_one(pool: Pool) -> None:
    """Of two checkouts of one client the impatient one fails; the other one's client holds it."""
    client = Client()
    pool.two_checkouts(client, dedicated=False)
    assert pool.clients() == [1]


def test_a_dedicated_handler_is_not_closed_when_it_is_handed_out(pool: Pool) -> None:
    """The same with a dedicated connection: the handler that the patient call got serves."""
    client = Client()
    handler = pool.two_checkouts(client, dedicated=True)
    handler.rpc()
    assert pool.clients() == [1]


def test_a_release_during_a_revival_counts(pool: Pool) -> None:
    """Who releases while a call of his waits for the successor does not hold it afterwards."""
    client = Client()
    handler = pool.manager.get_or_create(CONFIG, client=client)
    pool.manager.close_all()
    pool.script.hold("register")
    call = Call(handler.rpc)
    pool.script.wait_held("register")
    pool.manager.release(handler, client)
    pool.script.let_go()
    call.value(LIMIT)
    assert pool.clients() == [0]


def test_a_first_connect_ends_with_its_last_caller_though_its_leader_waits() -> None:
    """The leader waits for its next attempt: nobody needs that any more, and it is not made."""
    pool = Pool(LifecyclePolicy(backoff_initial=5.0, backoff_max=5.0, backoff_jitter=0.0))
    handler = pool.manager.get_or_create(CONFIG)
    pool.manager.close_all()
    pool.script.hold("register")
    call = Call(lambda: handler.rpc(timeout=2.0))
    pool.script.wait_held("register").fail(rpc_error("UNAVAILABLE"))
    until(lambda: pool.clock.sleeping() == 2, LIMIT, "caller and leader do not wait")
    pool.clock.advance(2.5)
    with pytest.raises(DeadlineExceeded):
        call.value(LIMIT)
    assert pool.clients() == []
