"""What the schedules of the drivers found, each as the shortest run that shows it."""

from __future__ import annotations

import asyncio
from collections.abc import Generator
from typing import Any
from unittest import mock

import pytest

from milvus_lifecycle import AsyncConnectionManager, ConnectionConfig, ConnectionManager, State
from milvus_lifecycle import Trigger as T
from milvus_lifecycle.core.checkout import Checkout
from milvus_lifecycle.core.face import Start
from milvus_lifecycle.core.pool import Pool
from milvus_lifecycle.core.requests import Open
from milvus_lifecycle.core.strategies import ConnectionStrategy
from milvus_lifecycle.core.wire import Binding, Rpc, Wire
from milvus_lifecycle.errors import ConnectionClosed, LifecycleError, summarize
from milvus_lifecycle.testing import FakeClock, Script, rpc_error
from tests.observe import Client

CONFIG = ConnectionConfig.from_uri("http://home:19530")
DOWN = rpc_error("UNAVAILABLE")


class Moving(ConnectionStrategy):
    """A strategy whose target is somewhere else by now."""

    def target_changed(self, connection: Any, facts: Any) -> bool:
        return True


def by_hand(manager: ConnectionManager) -> Pool:
    """The test leads its flights, and no time passes by itself."""
    driver: Any = manager._driver
    driver.launch = lambda connection, flight: None
    driver.reschedule = lambda: None
    return manager._pool


class Scene:
    """A connection of such a manager, and what can happen to it."""

    def __init__(self, *clients: Client | None) -> None:
        self.clock, self.script = FakeClock(), Script()
        self.manager = ConnectionManager(
            transport=self.script.threads(), seams=self.clock.seams(), strategy_for=Moving
        )
        self.pool = by_hand(self.manager)
        self.connection: Any = self.pool.find_or_create(CONFIG, None, dedicated=False)
        for client in clients:
            self.connection.lease(client)
        self.pool.step(self.connection, T.ACQUIRE)
        self.wire = self.land(self.connection)
        self.face = self.connection.face

    def land(self, connection: Any) -> Wire:
        """Its first connect is good; the target is where it is, for once."""
        wire = Wire(
            self.script.threads().open(Open(connection, "home:19530", None, (0.1, 0.4))),
            "home:19530",
            self.clock(),
        )
        flight = connection.lifecycle.flight
        connection.lifecycle.offer(flight, wire)
        outcome = {"flight": flight.number, "wire": wire, "identifier": "1"}
        with mock.patch.object(Moving, "target_changed", ConnectionStrategy.target_changed):
            self.pool.step(connection, T.PROBE_PASSED, **outcome)
        return wire

    def lose_leader(self) -> None:
        """The channel fails, and whoever was to recover it dies."""
        self.pool.step(self.connection, T.FAIL, failure=summarize(DOWN), generation=1)
        self.pool.step(self.connection, T.ABANDONED, flight=self.connection.lifecycle.flight.number)
        assert self.connection.state is State.IDLE

    def revive(self, timeout: float | None = None) -> Any:
        """A call on the closed connection has begun, and waits for a new one."""
        began = self.clock()
        until = None if timeout is None else began + timeout
        call = Checkout(self.pool, began, until).admit(self.face, Rpc(), timeout)
        next(call)
        return call

    def pooled(self) -> Any:
        """The connection that is in the pool now."""
        return self.pool.registry.find(CONFIG.key)


def finish(call: Generator[Any, Any, Any]) -> Any:
    """Let a call come to its end."""
    with pytest.raises(StopIteration) as stop:
        call.send(None)
    return stop.value.value


def test_a_move_without_a_channel_is_waited_for() -> None:
    """A reroute optional though nothing serves made each RPC spin: in asyncio the loop stood."""
    scene = Scene(Client())
    scene.lose_leader()
    scene.pool.step(scene.connection, T.REROUTE)
    assert scene.connection.state is State.RECOVERING
    assert scene.connection.lifecycle.flight.mandatory


def test_the_last_answer_of_a_retired_channel_does_not_make_it_active() -> None:
    """ACTIVE promises a channel that takes RPCs: a retired one does not, whatever it answers."""
    client = Client()
    scene = Scene(client)
    rpc = Rpc()
    assert scene.wire.enter(rpc)
    scene.lose_leader()
    now = scene.clock()
    start = Start(scene.connection, Binding(1, scene.wire, None), rpc, now, now, None, None)
    scene.face.answered(start, "/Rpc", None, None, None)
    assert scene.connection.state is State.IDLE


def test_a_call_that_gives_up_a_revival_leaves_the_others_their_leases() -> None:
    """Calls that revive a closed connection together do not hold it by one and the same lease."""
    client = Client()
    scene = Scene(client)
    scene.manager.close_all()
    hasty, patient = scene.revive(timeout=0.5), scene.revive()
    scene.clock.advance(0.6)
    with pytest.raises(LifecycleError):
        hasty.send(None)
    revived = scene.pooled()
    scene.land(revived)
    assert revived.state is State.ACTIVE
    assert finish(patient).connection is revived
    assert revived.clients == {client}


def test_a_connection_revived_twice_keeps_those_who_came_in_between() -> None:
    """Closed again while a call revives it: the next one has the clients of both."""
    first, second, third = Client(), Client(), Client()
    scene = Scene(first, second)
    scene.manager.close_all()
    call = scene.revive()
    between = scene.pooled()
    between.lease(third)
    scene.land(between)
    scene.manager.close_all()
    call.send(None)
    revived = scene.pooled()
    assert revived is not between
    scene.land(revived)
    assert finish(call).connection is revived
    assert revived.clients == {first, second, third}


def test_an_anonymous_lease_survives_a_revival_beside_others() -> None:
    """A revived connection is held by everybody who held it, those without a name included."""
    client = Client()
    scene = Scene(client, None)
    scene.manager.close_all()
    call = scene.revive()
    revived = scene.pooled()
    scene.land(revived)
    finish(call)
    scene.manager.release(scene.connection.handler, client)
    assert revived.has_clients
    scene.manager.release(scene.connection.handler)
    assert not revived.has_clients


def test_a_handler_that_is_closed_while_a_call_revives_it_stays_closed() -> None:
    """The handler's own close is for good, also for the call that was under way."""
    client = Client()
    scene = Scene(client)
    scene.manager.close_all()
    call = scene.revive()
    scene.face.close()
    scene.land(scene.pooled())
    with pytest.raises(ConnectionClosed):
        call.send(None)
    assert scene.face.connection.state is State.CLOSED


def test_a_handler_closed_in_a_revival_does_not_live_on_with_a_strangers_connection() -> None:
    """Somebody else had made the new connection already: that one stays open, and without it."""
    scene, stranger = Scene(Client()), Client()
    scene.manager.close_all()
    made: Any = scene.pool.find_or_create(CONFIG, None, dedicated=False)
    made.lease(stranger)
    call = scene.revive()
    scene.face.close()
    scene.land(made)
    with pytest.raises(ConnectionClosed):
        call.send(None)
    assert scene.face.connection.state is State.CLOSED
    assert (made.state, made.clients) == (State.ACTIVE, {stranger})


def test_a_leader_cancelled_before_its_first_step_does_not_wedge_its_connection() -> None:
    """asyncio never enters a task that is cancelled at once; its flight is settled all the same."""
    clock, script = FakeClock(), Script()
    loop = clock.new_event_loop()

    async def scene() -> tuple[Any, Any]:
        manager = AsyncConnectionManager(transport=script.asyncio(), seams=clock.seams())
        first = loop.create_task(manager.get_or_create(CONFIG))
        while (
            not manager._pool.registry.all()
            or manager._pool.registry.all()[0].lifecycle.flight is None
        ):
            await asyncio.sleep(0)
        for task in asyncio.all_tasks():
            if task.get_name().startswith("milvus-lifecycle"):
                task.cancel()  # created, and not run yet
        refused = await asyncio.gather(first, return_exceptions=True)
        return refused[0], await manager.get_or_create(CONFIG)

    try:
        # Simulated time stands still: whoever waits for its deadline waits for ever.
        _, handler = loop.run_until_complete(scene())
    finally:
        loop.close()
    assert handler is not None
