"""A connection's step, leases and flights, where no scenario goes: re-entrance, faults, races."""

from __future__ import annotations

import gc
import threading
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest

from milvus_lifecycle import ConnectionConfig, ConnectionManager, LifecyclePolicy, RegularStrategy
from milvus_lifecycle.core.checkout import Checkout
from milvus_lifecycle.core.facts import Facts
from milvus_lifecycle.core.mutex import Reentered
from milvus_lifecycle.core.requests import Wait
from milvus_lifecycle.core.strategies import Effect
from milvus_lifecycle.core.wire import Rpc, WireState
from milvus_lifecycle.errors import ConnectFailed, ConnectionClosed
from milvus_lifecycle.table import State, Trigger
from milvus_lifecycle.testing import CapturedAudit, FakeClock, Script, rpc_error, until
from tests.cores import CONFIG, Core
from tests.observe import Client


class Meddler(RegularStrategy):
    """Runs something inside of a step, as the collector may run a finalizer there."""

    meddle: Callable[[], object] | None = None

    def needs_probe(self, connection: Any, facts: Facts) -> bool:
        if self.meddle is not None:
            meddle, self.meddle = self.meddle, None
            meddle()
        return super().needs_probe(connection, facts)


def manager_of(
    script: Script, clock: FakeClock | None = None, **policy: Any
) -> tuple[ConnectionManager, Meddler]:
    meddler = Meddler(CONFIG)
    manager = ConnectionManager(
        LifecyclePolicy(**policy),
        transport=script.threads(),
        seams=(clock or FakeClock()).seams(),
        strategy_for=lambda config: meddler,
    )
    return manager, meddler


# -- re-entrance --------------------------------------------------------------------------------


def test_a_step_inside_of_a_step_is_refused() -> None:
    """A thread inside one step enters no other: with two threads, each would wait for the other."""
    one, two = Core(strategy=Meddler(CONFIG)), Core()
    seen: list[object] = []

    def finalizer() -> None:
        for core in (one, two):
            with pytest.raises(Reentered):
                core.step(Trigger.CLOSE)
            with pytest.raises(Reentered):
                core.connection.unlease(None)
            with pytest.raises(Reentered):
                core.connection.lifecycle.recall()
            seen.append(core.connection.state)

    assert isinstance(one.connection.strategy, Meddler)
    one.connection.strategy.meddle = finalizer
    one.to(State.ACTIVE)
    assert seen == [State.IDLE, State.IDLE]


@pytest.mark.parametrize("what", ["release", "close"])
def test_a_finalizer_inside_of_a_step_is_done_later(what: str) -> None:
    """Losing a lease, or closing, inside of the connection's own step is safe and not forgotten."""
    script = Script()
    manager, meddler = manager_of(script, idle_threshold=None)
    ann, bob = Client(), Client()
    handler = manager.get_or_create(CONFIG, client=ann)
    connection = handler.face.connection

    def finalizer() -> None:
        if what == "release":
            manager.release(handler, ann)
        else:
            handler.face.close()

    manager.release(handler, ann)
    manager.get_or_create(CONFIG, client=ann)
    manager.release(handler, ann)
    meddler.meddle = finalizer
    connection.lease(ann)
    if what == "release":
        manager.get_or_create(CONFIG, client=bob)
        until(lambda: connection.clients == {bob}, 10, "the lease was not lost")
        assert connection.state is State.ACTIVE
    else:
        manager._pool.step(connection, Trigger.ACQUIRE)
        until(lambda: connection.state is State.CLOSED, 10, "it was not closed")
    manager.close_all()


def test_finalizers_inside_of_two_steps_do_not_wait_for_each_other() -> None:
    """Two threads, each inside one connection's step, close the other's connection there."""
    pools = [manager_of(Script(), idle_threshold=None) for _ in range(2)]
    clients = [Client(), Client()]
    handlers = [
        manager.get_or_create(CONFIG, client=client)
        for (manager, _), client in zip(pools, clients, strict=True)
    ]
    both_inside = threading.Barrier(2)

    def finalizer(other: Any) -> None:
        both_inside.wait(10)
        other.face.close()

    threads = []
    for (manager, meddler), handler, client, other in zip(
        pools, handlers, clients, handlers[::-1], strict=True
    ):
        manager.release(handler, client)
        meddler.meddle = partial(finalizer, other)
        acquire = partial(manager.get_or_create, CONFIG, client=client)
        threads.append(threading.Thread(target=acquire, daemon=True))
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(10)
    assert not any(thread.is_alive() for thread in threads)
    for handler in handlers:
        left = handler.face.connection
        until(lambda: left.state is State.CLOSED, 10, "it was not closed")  # noqa: B023


def test_clients_collected_inside_of_steps() -> None:
    """With the collector always running, clients in cycles lose their leases; nothing hangs."""
    script = Script()
    manager, _ = manager_of(script, idle_threshold=None)
    threshold = gc.get_threshold()
    gc.set_threshold(1)
    try:
        for _ in range(100):
            client = Client()
            client.myself = client  # type: ignore[attr-defined]
            handler = manager.get_or_create(CONFIG, client=client)
            handler.rpc()
            del client
    finally:
        gc.set_threshold(*threshold)
    gc.collect()
    until(lambda: not handler.face.connection.has_clients, 10, "leases are left over")
    until(lambda: handler.face.connection.state is State.IDLE, 10, "nobody heard of the last one")
    manager.close_all()


# -- leases -------------------------------------------------------------------------------------


def test_leases_are_a_set() -> None:
    """A client that checks out twice holds one lease; anonymous checkouts share one."""
    core, client = Core(), Client()
    for _ in range(2):
        assert core.connection.lease(client)
        assert core.connection.lease(None)
    assert len(core.connection.leases) == 2
    assert core.connection.clients == {client}
    assert core.connection.leases.is_held_by(client)
    assert core.connection.leases.is_held_by(None)
    assert not core.connection.leases.is_held_by(Client())
    assert not core.connection.unlease(client)
    assert core.connection.unlease(None)
    assert not core.connection.has_clients


def test_a_collected_client_takes_only_its_own_lease() -> None:
    """A lease that ends late does not remove the one of a client that got its address."""
    core, client = Core(), Client()
    core.connection.lease(client)
    late = core.connection.leases.held.pop(id(client))
    core.connection.lease(client)
    core.connection.leases.held[id(client) + 1] = late
    assert late is not None
    late.__callback__(late)
    assert core.connection.leases.is_held_by(client)
    assert core.lost == []


def test_a_collected_client_is_noted_not_acted_upon() -> None:
    """The collector may run inside of any step: it takes the lease away and posts one note."""
    core = Core().to(State.ACTIVE)
    core.connection.unlease(None)
    for _ in range(3):
        client = Client()
        core.connection.lease(client)
        del client
        gc.collect()
        assert not core.connection.has_clients
    assert core.lost == [core.connection]
    assert core.connection.state is State.ACTIVE


def test_a_closed_connection_is_not_leased() -> None:
    """Whoever comes too late is told to look again."""
    assert not Core().to(State.CLOSED).connection.lease(Client())


def test_held_between_lease_and_acquire() -> None:
    """A channel that is too old is replaced also in the moment before its first acquire."""
    core = Core(max_age=100.0, idle_threshold=None).to(State.ACTIVE)
    core.connection.unlease(None)
    core.step(Trigger.RELEASE)
    core.clock.advance(101)
    assert not core.step(Trigger.RECYCLE).moved
    core.connection.lease(None)
    assert core.step(Trigger.RECYCLE).moved
    assert core.connection.state is State.RECOVERING


class Cautious(RegularStrategy):
    """Wants a probe whenever it says so."""

    wants = False

    def needs_probe(self, connection: Any, facts: Facts) -> bool:
        return self.wants or super().needs_probe(connection, facts)


def test_a_strategy_is_asked_on_the_fast_paths_too() -> None:
    """A ``needs_probe`` of a user's own decides for each checkout and each RPC."""
    script, cautious = Script(), Cautious(CONFIG)
    manager = ConnectionManager(transport=script.threads(), strategy_for=lambda config: cautious)
    handler = manager.get_or_create(CONFIG)
    handler.rpc()
    manager.get_or_create(CONFIG)

    def pings() -> int:
        return sum(operation.kind == "ping" for operation in script.operations)

    assert pings() == 0
    cautious.wants = True
    handler.rpc()
    assert pings() == 1
    manager.get_or_create(CONFIG)
    assert pings() == 2
    manager.close_all()


# -- strategies that raise ------------------------------------------------------------------------


class Faulty(RegularStrategy):
    """Raises where its name is in ``faults``."""

    faults: tuple[str, ...] = ()

    def on_probing(self, connection: Any, facts: Facts) -> Effect:
        self._maybe("on_probing")
        return super().on_probing(connection, facts)

    def on_recovering(self, connection: Any, facts: Facts) -> Effect:
        self._maybe("on_recovering")
        return super().on_recovering(connection, facts)

    def on_closed(self, connection: Any, facts: Facts) -> Effect:
        self._maybe("on_closed")
        return super().on_closed(connection, facts)

    def _maybe(self, name: str) -> None:
        if name in self.faults:
            raise ZeroDivisionError(name)


def faulty_manager(script: Script, clock: FakeClock) -> tuple[ConnectionManager, Faulty]:
    faulty = Faulty(CONFIG)
    manager = ConnectionManager(
        transport=script.threads(), seams=clock.seams(), strategy_for=lambda config: faulty
    )
    return manager, faulty


def test_a_strategy_that_raises_fails_the_first_connect() -> None:
    """Its error is the cause that the caller sees; nothing hangs and nothing is pooled."""
    manager, faulty = faulty_manager(Script(), FakeClock())
    faulty.faults = ("on_probing",)
    with pytest.raises(ConnectFailed) as caught:
        manager.get_or_create(CONFIG)
    assert isinstance(caught.value.last_error, ZeroDivisionError)
    assert manager.get_stats()["total_connections"] == 0


def test_a_strategy_that_raises_fails_the_attempts_of_a_recovery() -> None:
    """The recovery has its attempts and its budget as ever, and the next one may succeed."""
    script, clock = Script(), FakeClock()
    manager, faulty = faulty_manager(script, clock)
    audit = CapturedAudit(manager)
    handler = manager.get_or_create(CONFIG)
    faulty.faults = ("on_recovering",)
    script.plan("rpc", rpc_error("UNAVAILABLE"))
    with pytest.raises(Exception, match="UNAVAILABLE"):
        handler.rpc()
    assert audit.wait_for("retry").error_code == "ZeroDivisionError"
    faulty.faults = ()
    clock.advance(61)
    audit.wait_for("give_up")
    handler.rpc()
    manager.close_all()


def test_a_strategy_that_raises_does_not_hold_up_a_close() -> None:
    """Waiters wake and channels are closed, whatever the strategy does when told of it."""
    script, clock = Script(), FakeClock()
    manager, faulty = faulty_manager(script, clock)
    handler = manager.get_or_create(CONFIG)
    script.hold("register")
    script.plan("rpc", rpc_error("UNAVAILABLE"))
    errors: list[BaseException] = []

    def call() -> None:
        try:
            handler.call()
        except BaseException as error:
            errors.append(error)

    caller = threading.Thread(target=call)
    caller.start()
    script.wait_held("register")
    until(lambda: clock.sleeping() == 1, 10, "the call does not wait")
    faulty.faults = ("on_closed",)
    manager.close_all()
    caller.join(20)
    assert [type(error) for error in errors] == [ConnectionClosed]
    assert all(channel.closed for channel in script.channels)


# -- channels, generations, races -----------------------------------------------------------------


def test_rpcs_are_counted_once() -> None:
    """An RPC on the channel that failed counts once, though it is current and draining."""
    core = Core().to(State.ACTIVE)
    rpc = Rpc()
    binding = core.connection.lifecycle.enter(rpc, core.clock())
    assert binding is not None
    core.step(Trigger.FAIL, error=rpc_error("UNAVAILABLE"), generation=1)
    assert core.connection.lifecycle.draining == [binding.wire]
    assert core.connection.lifecycle.in_flight == 1


def test_a_drained_channel_may_be_forgotten_twice() -> None:
    """The last RPC and the end of drain_timeout may come at the same time."""
    core = Core().to(State.ACTIVE)
    rpc = Rpc()
    binding = core.connection.lifecycle.enter(rpc, core.clock())
    assert binding is not None
    core.step(Trigger.FAIL, error=rpc_error("UNAVAILABLE"), generation=1)
    for _ in range(2):
        core.connection.lifecycle.drained(binding.wire)
    assert core.connection.lifecycle.draining == []


def test_a_kept_channel_has_successes_and_failures_of_its_own() -> None:
    """After a give_up, an RPC of the channel before is older than any generation."""
    core = Core().to(State.ACTIVE)
    connection = core.connection
    rpc = Rpc()
    old = connection.lifecycle.enter(rpc, core.clock())
    assert old is not None
    core.step(Trigger.FAIL, error=rpc_error("UNAVAILABLE"), generation=1)
    assert connection.lifecycle.generation_of(old) == 1
    flight = connection.lifecycle.flight
    assert flight is not None
    wire = core.wire()
    connection.lifecycle.offer(flight, wire)
    core.clock.advance(60)
    core.step(Trigger.GIVE_UP, flight=flight.number)
    assert wire.state is WireState.CURRENT
    assert connection.generation == 1
    assert connection.lifecycle.generation_of(old) < 1
    new = connection.lifecycle.enter(rpc, core.clock(), trusted=True)
    assert new is not None
    assert connection.lifecycle.generation_of(new) == 1


def test_a_candidate_that_comes_too_late_is_not_taken() -> None:
    """A channel that was opened for a flight that is over is its opener's to close."""
    core = Core().to(State.RECOVERING)
    flight = core.connection.lifecycle.flight
    assert flight is not None
    core.step(Trigger.CLOSE)
    assert not core.connection.lifecycle.offer(flight, core.wire())
    assert not core.connection.lifecycle.join(flight, print, 0.0)


def test_whoever_comes_as_the_last_waiter_leaves_looks_again() -> None:
    """A checkout that joins a first connect in the moment of its end gets one of its own."""
    script, clock = Script(), FakeClock()
    script.hold("register")
    manager, _ = manager_of(script, clock)
    config = ConnectionConfig.from_uri("http://home:19530")
    leaver = Checkout.within(manager._pool, 5.0).obtain(config, False, Client())
    first = next(leaver)
    latecomer = Checkout.within(manager._pool, 30.0).obtain(config, False, Client())
    second = next(latecomer)
    assert isinstance(first, Wait)
    assert isinstance(second, Wait)
    assert second.flight is first.flight
    # The leaver waited and goes; the latecomer was about to join when it did.
    assert first.connection.lifecycle.join(first.flight, print, first.until)
    clock.advance(6)
    assert first.connection.lifecycle.leave(first.flight, print)
    manager._pool.deserted(first.connection, first.flight)
    with pytest.raises(ConnectFailed):
        leaver.send(None)
    third = latecomer.send(None)
    assert isinstance(third, Wait)
    assert third.connection is not first.connection
    assert third.until == second.until, "its own deadline has not moved"
    latecomer.close()
    manager.close_all()
