"""The asyncio driver: one manager a loop, other threads, and loops that end."""

from __future__ import annotations

import asyncio
import gc
import threading
import warnings
import weakref
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest

from milvus_lifecycle import (
    AsyncConnectionManager,
    ConnectionConfig,
    LifecyclePolicy,
    RegularStrategy,
)
from milvus_lifecycle.core.checkout import Checkout
from milvus_lifecycle.core.facts import Located
from milvus_lifecycle.core.readiness import LoadState
from milvus_lifecycle.core.requests import Procedure, Wait
from milvus_lifecycle.core.strategies import ConnectionStrategy
from milvus_lifecycle.errors import ConnectFailed, LoopMismatch, UnknownHandler, summarize
from milvus_lifecycle.table import State, Trigger
from milvus_lifecycle.testing import CapturedAudit, FakeClock, Script, rpc_error
from tests.cores import CONFIG
from tests.looping import Doing, in_loop, until
from tests.observe import Client
from tests.rigs import Roamer, Signpost

UNAVAILABLE = rpc_error("UNAVAILABLE")


class Rig:
    """A manager of the running loop, on a script and a fake clock."""

    def __init__(self, strategy: ConnectionStrategy | None = None, **policy: Any) -> None:
        self.clock, self.script = FakeClock(), Script()
        self.manager = AsyncConnectionManager(
            LifecyclePolicy(**policy),
            transport=self.script.asyncio(),
            seams=self.clock.seams(),
            strategy_for=lambda config: strategy or RegularStrategy(config),
        )
        self.audit = CapturedAudit(self.manager)

    async def connected(self, client: object | None = None) -> Any:
        return await self.manager.get_or_create(CONFIG, client=client)

    def triggers(self) -> list[str]:
        return [str(record.trigger) for record in self.audit.transitions()]


def elsewhere(call: Callable[[], Any]) -> Any:
    """What a call in another thread comes to, while this loop is blocked."""
    seen: list[Any] = []
    thread = threading.Thread(target=lambda: seen.append(call()))
    thread.start()
    thread.join(20)
    return seen[0]


# -- one for each loop ----------------------------------------------------------------------------


@in_loop
async def test_a_loop_has_one_manager() -> None:
    """``get_instance`` gives the same one in the same loop, until all are dropped and closed."""
    one = AsyncConnectionManager.get_instance()
    assert AsyncConnectionManager.get_instance() is one
    assert type(one._pool.transport).__name__ == "AsyncioTransport"
    connection = one._pool.create(ConnectionConfig.from_uri("http://localhost:1"), dedicated=False)
    one._pool.register(connection)
    AsyncConnectionManager.drop_instances()
    assert connection.state is State.CLOSED
    AsyncConnectionManager.drop_instances()  # there is none: nothing happens
    assert AsyncConnectionManager.get_instance() is not one


def test_each_loop_has_a_manager_of_its_own() -> None:
    """Two loops of one thread do not share; outside of a loop there is none to be had."""
    managers = []

    async def ask() -> AsyncConnectionManager:
        return AsyncConnectionManager.get_instance()

    for _ in range(2):
        loop = asyncio.new_event_loop()
        managers.append(loop.run_until_complete(ask()))
        loop.close()
    assert managers[0] is not managers[1]
    with pytest.raises(LoopMismatch, match="no event loop"):
        AsyncConnectionManager.get_instance()


def test_connections_of_a_closed_loop_are_closed_by_the_next_who_asks() -> None:
    """A loop whose end nobody noticed has its connections closed when another loop asks."""
    loop = asyncio.new_event_loop()
    connections: list[Any] = []

    async def hold() -> AsyncConnectionManager:
        manager = AsyncConnectionManager.get_instance()
        connections.append(
            manager._pool.register(
                manager._pool.create(ConnectionConfig.from_uri("http://a:1"), dedicated=False)
            )
        )
        # As with a loop that keeps its timers when it is closed.
        anchored = manager._anchored()
        assert anchored is not None
        kept.append(anchored)
        return manager

    kept: list[Any] = []
    manager = loop.run_until_complete(hold())
    loop._scheduled.clear()  # type: ignore[attr-defined]
    loop.close()
    assert connections[0].state is not State.CLOSED

    async def ask() -> None:
        AsyncConnectionManager.get_instance()

    asyncio.run(ask())
    assert connections[0].state is State.CLOSED
    assert manager._driver.loop_is_over()


@pytest.mark.parametrize("own", [True, False])
def test_a_manager_is_a_context(own: bool) -> None:
    """Leaving it closes its connections; one of its own does not keep its loop any longer."""

    async def main() -> None:
        if own:
            manager = AsyncConnectionManager(transport=Script().asyncio())
        else:
            manager = AsyncConnectionManager.get_instance()
        async with manager as entered:
            assert entered is manager
            config = ConnectionConfig.from_uri("http://a:1")
            connection = manager._pool.register(manager._pool.create(config, dedicated=False))
        assert connection.state is State.CLOSED
        anchored = manager._anchored()
        assert anchored is None or anchored.cancelled() == own
        async with manager:
            """A second time: nothing is left to do."""

    asyncio.run(main())


@in_loop
async def test_a_handler_of_somebody_else_is_refused() -> None:
    """Releasing an object that this manager did not hand out names its type; asking says no."""
    rig, other = Rig(), Rig()
    theirs = await other.connected()
    for handler in (object(), theirs):
        with pytest.raises(UnknownHandler, match=type(handler).__name__):
            await rig.manager.release(handler)
        assert await rig.manager.handle_error(handler, UNAVAILABLE) is False
    await other.manager.close_all()


@in_loop
async def test_an_error_brought_in_by_hand() -> None:
    """``handle_error`` recovers from what may be recovered from, and says whether to retry."""
    rig = Rig()
    handler = await rig.connected()
    assert await rig.manager.handle_error(handler, rpc_error("UNAVAILABLE")) is True
    assert rig.triggers()[2:] == ["fail", "recovered"]
    assert await rig.manager.handle_error(handler, ValueError("mine")) is False
    await rig.manager.close_all()


class NotLoaded(Exception):
    """What pymilvus raises for a response that carries this status."""

    code, message = 101, "collection not loaded"


@in_loop
async def test_a_status_belongs_to_the_call_that_it_ended() -> None:
    """Also when each attempt has a task of its own, as pymilvus does with a timeout."""
    rig = Rig()
    handler = await rig.connected()
    search = handler.face.unary_unary("/milvus.proto.milvus.MilvusService/Search")

    async def attempt(name: str) -> None:
        if await search(SimpleNamespace(collection_name=name)) is not None:
            raise NotLoaded

    async def fail(name: str) -> NotLoaded:
        rig.script.plan("rpc", SimpleNamespace(code=NotLoaded.code, reason=NotLoaded.message))
        task = asyncio.create_task(attempt(name))
        with pytest.raises(NotLoaded) as caught:
            await task
        return caught.value

    for name in ("one", "two"):
        await attempt(name)
    rig.script.plan("rpc", UNAVAILABLE)
    await handler.call()
    errors = {name: await fail(name) for name in ("one", "two")}
    for name in ("two", "one"):
        assert handler.face.take_status(errors[name]).collection.name == name
        assert handler.face.take_status(errors[name]) is None, "it is taken once"

    rig.script.plan("rpc", SimpleNamespace(code=NotLoaded.code, reason=NotLoaded.message))
    rig.script.plan("load_state", LoadState.LOADED)
    with pytest.raises(NotLoaded) as caught:
        await attempt("one")
    assert await rig.manager.handle_error(handler, caught.value) is True
    assert await rig.manager.handle_error(handler, caught.value) is False
    await rig.manager.close_all()


# -- flights --------------------------------------------------------------------------------------


@pytest.mark.parametrize(("after", "doubtful"), [(2.0, False), (4.6, True)])
@in_loop
async def test_a_call_given_up_at_its_end_is_a_doubt(after: float, doubtful: bool) -> None:
    """pymilvus cancels a call whose time is over; whoever cancels earlier says nothing by it."""
    rig = Rig()
    handler = await rig.connected()
    rig.clock.advance(1.0)
    rig.script.hold("rpc")
    call = asyncio.ensure_future(handler.rpc(None, 5.0))
    await until(rig.script.held, 20)
    rig.clock.advance(after)
    call.cancel()
    with pytest.raises(asyncio.CancelledError):
        await call
    assert ("doubt" in rig.triggers()) is doubtful
    await rig.manager.close_all()


@in_loop
async def test_a_flight_that_is_over_is_not_waited_for() -> None:
    """Whoever comes to join when the outcome is there already goes on at once."""
    rig = Rig()
    connection = (await rig.connected()).face.connection
    rig.clock.advance(31)
    rig.script.hold("ping")
    rig.manager._pool.step(connection, Trigger.ACQUIRE)
    flight = connection.lifecycle.flight
    rig.script.let_go()
    await until(lambda: rig.script.operations[-1].kind == "ping", 20)
    rig.script.let_go()
    await until(lambda: flight.outcome is not None, 20)

    def come_late() -> Procedure[str]:
        yield Wait(connection, flight, rig.clock() + 1000)
        return "went on"

    assert await asyncio.wait_for(rig.manager._driver.drive(come_late()), 20) == "went on"
    await rig.manager.close_all()


class Unsure(RegularStrategy):
    """Raises when it is told of a swap."""

    def committed(self, connection: Any, located: Any) -> None:
        raise LookupError("what was that place")


@in_loop
async def test_a_strategy_that_cannot_take_a_channel() -> None:
    """Its fault is the connection's last error; the flight is settled and the channel closed."""
    rig = Rig(Unsure(CONFIG))
    with pytest.raises(ConnectFailed, match="what was that place"):
        await rig.connected()
    assert rig.triggers() == ["acquire", "abandoned"]
    assert [channel.closed for channel in rig.script.channels] == [True]


@in_loop
async def test_a_locator_that_blocks_does_not_block_the_loop() -> None:
    """Without ``alocate`` it runs on a thread of its own; its place and its errors come back."""
    strategy = Roamer()
    rig = Rig(strategy)
    strategy.where = Signpost(rig.script)
    rig.script.hold("locate")
    call = Doing(rig.connected())
    await until(lambda: rig.script.held("locate"), 20)
    assert not call.done
    rig.script.held("locate")[0].succeed(Located("north:19530", version=3))
    handler = await call.value(20)
    assert handler.face.connection.address == "north:19530"
    await rig.manager.close_all()

    failing = Rig(strategy)
    strategy.where = Signpost(failing.script)
    failing.script.plan("locate", LookupError("nowhere"))
    with pytest.raises(ConnectFailed, match="nowhere"):
        await failing.connected()


@in_loop
async def test_a_refresh_moves_a_connection() -> None:
    """With nobody calling, a connection hears of its new place and goes there."""
    strategy = Roamer()
    rig = Rig(strategy, backoff_jitter=0.0, idle_threshold=None)
    strategy.where, strategy.every = Signpost(rig.script), 60.0
    client = Client()
    handler = await rig.connected(client)
    strategy.target = "north:19530"
    strategy.where = Signpost(rig.script, strategy.target)
    rig.clock.advance(60)
    rig.manager._pool.maintenance.run_due()
    await until(lambda: handler.face.connection.address == "north:19530", 20)
    assert rig.triggers()[-2:] == ["reroute", "recovered"]
    await rig.manager.close_all()


# -- other threads --------------------------------------------------------------------------------


@in_loop
async def test_another_thread_may_close_everything() -> None:
    """Connections are CLOSED at once; their channels are closed in the loop that they belong to."""
    rig = Rig()
    connection = (await rig.connected()).face.connection
    elsewhere(lambda: rig.manager._pool.close_all("from outside"))
    assert connection.state is State.CLOSED
    assert not rig.script.channels[0].closed, "that is the loop's to do"
    await until(lambda: rig.script.channels[0].closed, 20)


@in_loop
async def test_another_thread_may_start_a_flight() -> None:
    """A failure that another thread reports is recovered from in the loop."""
    rig = Rig()
    connection = (await rig.connected()).face.connection
    moved = elsewhere(
        lambda: rig.manager._pool.step(
            connection, Trigger.FAIL, failure=summarize(UNAVAILABLE), generation=1
        )
    )
    assert moved
    await until(lambda: connection.generation == 2, 20)
    await rig.manager.close_all()


# -- the end of a loop ----------------------------------------------------------------------------


def ended(script: Script, **how: Any) -> tuple[AsyncConnectionManager, asyncio.AbstractEventLoop]:
    """A manager with one connection, and its loop, which is closed."""
    loop = asyncio.new_event_loop()

    async def make() -> AsyncConnectionManager:
        manager = AsyncConnectionManager(
            transport=script.asyncio(), seams=FakeClock().seams(), **how
        )
        await manager.get_or_create(CONFIG)
        return manager

    manager = loop.run_until_complete(make())
    loop.close()
    return manager, loop


def test_a_closed_loop_closes_its_connections() -> None:
    """Without an await: the connection is CLOSED, its channel too, and nothing is scheduled."""
    script = Script()
    manager, loop = ended(script)
    assert manager.get_stats()["total_connections"] == 0
    assert [channel.closed for channel in script.channels] == [True]
    assert manager._driver.loop is loop
    assert manager._driver.loop_is_over()


def test_a_flight_under_way_ends_with_its_loop() -> None:
    """A recovery that a closed loop will never run again is no "task was destroyed" in the log."""
    loop, complaints = asyncio.new_event_loop(), []
    loop.set_exception_handler(lambda _, context: complaints.append(context["message"]))
    script = Script()

    async def fail() -> Any:
        manager = AsyncConnectionManager(transport=script.asyncio(), seams=FakeClock().seams())
        handler = await manager.get_or_create(CONFIG)
        script.hold("register")
        connection = handler.face.connection
        manager._pool.step(connection, Trigger.FAIL, failure=summarize(UNAVAILABLE), generation=1)
        await until(lambda: script.held("register"), 20)
        return connection

    connection = loop.run_until_complete(fail())
    loop.close()
    gc.collect()
    assert connection.state is State.CLOSED
    assert complaints == []
    assert all(channel.closed for channel in script.channels)


def test_nothing_begins_in_a_closed_loop() -> None:
    """A connection that somebody makes there all the same is told so; no coroutine is left over."""
    script = Script()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        manager, _ = ended(script)
        caller = Checkout.within(manager._pool, None).obtain(CONFIG, False, None)
        with pytest.raises(ConnectFailed, match="event loop is closed"):
            next(caller)
        connection = manager._pool.create(CONFIG, dedicated=False)
        manager._driver.refresh_in_background(connection)
        gc.collect()
    assert manager.get_stats()["total_connections"] == 0
    assert len(script.channels) == 1


def test_a_loop_that_is_gone_is_called_for_nothing() -> None:
    """What is posted for a loop that was collected is dropped."""
    manager, loop = ended(Script())
    watched, done = weakref.ref(loop), []
    del loop
    gc.collect()
    assert watched() is None
    assert manager._driver.loop is None
    manager._driver.post(lambda: done.append("job"))
    assert done == []


class Unclosable:
    """A channel that a closed loop does not let close: each RPC on it raises once."""

    def __init__(self) -> None:
        self.tries = 0

    async def close(self) -> None:
        self.tries += 1
        raise RuntimeError("Event loop is closed")


@in_loop
async def test_a_channel_that_cannot_be_closed_is_let_go() -> None:
    """Closing is tried once for each RPC on it and a few times more, and raises nothing."""
    rig = Rig()
    connection = (await rig.connected()).face.connection
    wire = connection.lifecycle.binding.wire
    channel = wire.channel = Unclosable()
    await rig.manager.close_all()
    assert channel.tries == 3
    assert wire.channel is not channel
    assert connection.state is State.CLOSED
