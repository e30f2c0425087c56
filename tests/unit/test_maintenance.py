"""What a manager does by itself, later: rotation, refresh, the end of a drain, expiry."""

from __future__ import annotations

import gc
import logging
import threading
import weakref
from typing import Any

import pytest

from milvus_lifecycle import ConnectionConfig, ConnectionManager, LifecyclePolicy
from milvus_lifecycle.core.facts import Located
from milvus_lifecycle.errors import summarize
from milvus_lifecycle.table import State, Trigger
from milvus_lifecycle.testing import Script, rpc_error, until
from tests.cores import CONFIG
from tests.observe import Call, Client, LogLines
from tests.rigs import HOME, Rig, Roamer, Signpost


def test_rotation_goes_by_the_channel_in_use() -> None:
    """After a recovery the age of the channel before is nobody's business any more."""
    with Rig(max_age=100.0, idle_threshold=None, backoff_jitter=0.0) as rig:
        handler = rig.connected()
        rig.clock.advance(50)
        rig.script.plan("rpc", rpc_error("UNAVAILABLE"))
        handler.call()
        assert handler.face.connection.generation == 2
        rig.clock.advance(51)  # the first channel would be due
        rig.manager._pool.maintenance.run_due()
        assert rig.audit.transitions(Trigger.RECYCLE) == []
        rig.clock.advance(50)
        rig.sees(lambda: handler.face.connection.generation == 3, "the second channel is not due")
        assert len(rig.audit.transitions(Trigger.RECYCLE)) == 1


@pytest.mark.parametrize("uri", ["http://home:19530", "https://home:19530"])
def test_without_tls_files_nobody_looks_at_any(uri: str) -> None:
    """Nothing at all is planned for a connection that is held."""
    with Rig(linger=None) as rig:
        rig.manager.get_or_create(ConnectionConfig.from_uri(uri))
        assert rig.manager._pool.maintenance.schedule.next_due() is None


def test_a_channel_with_old_tls_files_is_replaced_once_somebody_holds_it() -> None:
    """At the next look, and once; who holds it later gets it replaced as well."""
    config = ConnectionConfig.from_uri("https://home", server_pem_path="/server.pem")
    with Rig(linger=None, idle_threshold=None) as rig:
        client, maintenance = Client(), rig.manager._pool.maintenance
        handler = rig.manager.get_or_create(config, client=client)
        rig.manager.release(handler, client)
        rig.script.outdated.extend(rig.script.channels)
        for _ in range(3):
            rig.clock.advance(10)
            maintenance.run_due()
        assert handler.face.connection.generation == 1
        rig.manager.get_or_create(config, client=client)
        rig.clock.advance(10)
        rig.sees(lambda: handler.face.connection.generation == 2, "it is not replaced")
        rig.clock.advance(10)
        maintenance.run_due()
        (recycled,) = rig.audit.transitions(Trigger.RECYCLE)
        assert recycled.reason == "the TLS files have changed"


def roaming(manager: type[ConnectionManager] = ConnectionManager) -> tuple[Rig, Roamer, Any]:
    """A connection whose place is asked for anew each minute."""
    strategy = Roamer()
    rig = Rig(strategy, manager, idle_threshold=None, linger=None)
    strategy.where, strategy.every = Signpost(rig.script), 60.0
    return rig, strategy, rig.connected(Client())


def test_a_refresh_moves_a_connection() -> None:
    """With nobody calling, a connection hears of its new place and goes there."""
    rig, strategy, handler = roaming()
    client = Client()
    with rig:
        rig.manager.get_or_create(CONFIG, client=client)
        asked = rig.count("locate")
        rig.clock.advance(59)
        rig.manager._pool.maintenance.run_due()
        assert rig.count("locate") == asked
        strategy.target = "north:19530"
        strategy.where = Signpost(rig.script, strategy.target)
        rig.clock.advance(1)
        rig.sees(lambda: handler.face.connection.address == "north:19530", "it did not move")
        assert rig.triggers()[-2:] == ["reroute", "recovered"]


def test_one_refresh_follows_another() -> None:
    """Also where the one before failed: its error is nobody's, and the connection serves on."""
    rig, _, handler = roaming()
    client = Client()
    with rig:
        rig.manager.get_or_create(CONFIG, client=client)
        for number in (1, 2, 3):
            before = rig.count("locate")
            rig.script.plan("locate", rpc_error("UNAVAILABLE"))
            rig.clock.advance(60)
            rig.sees(lambda at=before: rig.count("locate") > at, f"refresh {number} did not come")
            rig.sees(
                lambda: handler.face.connection.lifecycle.refresh_planned,
                "the next one is not planned",
            )
        assert handler.face.connection.state is State.ACTIVE
        handler.rpc()


def test_no_refresh_for_nobody() -> None:
    """A connection that nobody holds asks for nothing, and goes on asking once it is held."""
    rig, _, handler = roaming()
    with rig:
        rig.sees(lambda: not handler.face.connection.has_clients, "its client was not collected")
        before = rig.count("locate")
        rig.clock.advance(60)
        rig.manager._pool.maintenance.run_due()
        assert rig.count("locate") == before
        client = Client()
        rig.manager.get_or_create(CONFIG, client=client)
        rig.clock.advance(60)
        rig.sees(lambda: rig.count("locate") > before, "it is held and was not refreshed")


def test_no_refresh_after_the_end() -> None:
    """What was planned for a connection that is closed by then does nothing."""
    rig, _, _ = roaming()
    with rig:
        rig.manager.close_all()
        before = rig.count("locate")
        rig.clock.advance(600)
        rig.manager._pool.maintenance.run_due()
        assert rig.count("locate") == before
        assert len(rig.manager._pool.maintenance.schedule) == 0


def test_no_timer_for_what_is_gone() -> None:
    """A connection that nobody has any more is free before its timers are due; they do nothing."""
    rig, _, handler = roaming()
    with rig:
        watched = weakref.ref(handler.face.connection)
        rig.manager.close_all()
        del handler
        rig.sees(lambda: gc.collect() is not None and watched() is None, "it is kept")
        assert len(rig.manager._pool.maintenance.schedule) > 0
        rig.clock.advance(600)
        rig.manager._pool.maintenance.run_due()
        assert len(rig.manager._pool.maintenance.schedule) == 0


def test_a_refresh_without_a_locator_asks_nobody() -> None:
    """A strategy that has no locator, or has none any more, is left alone."""
    rig, strategy, handler = roaming()
    client = Client()
    with rig:
        rig.manager.get_or_create(CONFIG, client=client)
        strategy.where, before, asked = None, rig.count("locate"), strategy.asked
        rig.clock.advance(60)
        rig.sees(lambda: strategy.asked > asked, "the strategy was not asked")
        life = handler.face.connection.lifecycle
        rig.sees(lambda: life.refresh_planned, "no other refresh was planned")
        rig.clock.advance(60)
        rig.sees(lambda: strategy.asked > asked + 1, "the strategy was asked once only")
        assert rig.count("locate") == before
        assert handler.face.connection.state is State.ACTIVE


class Lonely(ConnectionManager):
    """There is no thread to be had for a refresh."""

    def aside(self, connection: Any) -> None:
        raise RuntimeError("can't start new thread")


def test_a_refresh_that_nobody_can_make_is_planned_again() -> None:
    """No thread to be had: no complaint, and the next one is due as usual."""
    rig, _, _ = roaming(Lonely)
    client = Client()
    with rig, LogLines(logging.WARNING, "milvus_lifecycle") as lines:
        rig.manager.get_or_create(CONFIG, client=client)
        due = rig.manager._pool.maintenance.schedule.next_due()
        rig.clock.advance(60)
        rig.sees(
            lambda: (
                (rig.manager._pool.maintenance.schedule.next_due() or 0.0) >= (due or 0.0) + 60.0
            ),
            "no other refresh is planned",
        )
        assert lines.records == []


def test_news_moves_what_is_at_rest() -> None:
    """When a target has moved, connections in a flight are left to it; the others set out."""
    strategy = Roamer()
    with Rig(strategy) as rig:
        resting = rig.connected()
        other = ConnectionConfig.from_uri("http://home:19530", token="an:other")
        flying = rig.manager.get_or_create(other)
        call = rig.failing(flying, "register")
        strategy.target = "north:19530"
        rig.manager._pool.maintenance.reroute_all()
        moved = rig.audit.transitions(Trigger.REROUTE)
        assert [record.connection_id for record in moved] == [resting.face.connection.id]
        strategy.target = HOME
        rig.script.let_go()
        call.value(20)


@pytest.mark.parametrize("limit", [None, 30.0])
def test_a_drain_lasts_as_long_as_the_policy_says(limit: float | None) -> None:
    """Without drain_timeout the old channel is open until its last RPC is done, however long."""
    with Rig(drain_timeout=limit, linger=None) as rig:
        handler = rig.connected()
        rig.script.hold("rpc")
        running = Call(handler.rpc)
        operation = rig.script.wait_held("rpc")
        connection = handler.face.connection
        rig.manager._pool.step(
            connection, Trigger.FAIL, failure=summarize(rpc_error("UNAVAILABLE")), generation=1
        )
        rig.sees(lambda: connection.generation == 2, "it did not recover")
        old = rig.script.channels[0]
        rig.clock.advance(31)
        if limit is None:
            rig.clock.advance(100_000)
            rig.manager._pool.maintenance.run_due()
            assert not old.closed
            operation.succeed("late")
            assert running.value(20) == "late"
        rig.sees(lambda: old.closed, "the old channel was not closed")


def test_an_unused_connection_goes_by_itself() -> None:
    """On the real clock: ``linger`` after its last client left it is closed, its keeper ends."""
    script = Script()
    manager = ConnectionManager(LifecyclePolicy(linger=0.05), transport=script.threads())
    client = Client()
    handler = manager.get_or_create(CONFIG, client=client)
    manager.release(handler, client)
    until(lambda: handler.face.connection.state is State.CLOSED, 20, "it is still there")
    assert handler.face.connection.lifecycle.closed_by is Trigger.EXPIRE
    assert script.channels[0].closed


def test_a_job_that_raises_does_not_stop_time() -> None:
    """Its error is one line in the log; what is due after it is done."""
    done: list[str] = []

    def faulty() -> None:
        raise ValueError("of a strategy")

    with Rig() as rig, LogLines(logging.WARNING, "milvus_lifecycle") as lines:
        rig.connected()
        rig.manager._driver.post(faulty)
        rig.manager._driver.post(lambda: done.append("next"))
        rig.sees(lambda: done, "the timekeeper has ended")
        assert ["of a strategy" in record.getMessage() for record in lines.records] == [True]


def test_what_a_finalizer_plans_while_the_timekeeper_looks_at_the_schedule_is_done() -> None:
    """The collector may run it on that very thread, when the time of the next job is read."""
    done = threading.Event()
    with Rig() as rig:
        rig.connected()
        pool, look_at = rig.manager._pool, rig.manager._pool.maintenance.schedule.next_due

        def interrupted() -> float | None:
            due = look_at()
            if threading.current_thread() is rig.manager._driver._keeper:
                pool.maintenance.schedule.next_due = look_at  # type: ignore[method-assign]
                pool.maintenance.plan(rig.clock(), done.set)
            return due

        pool.maintenance.schedule.next_due = interrupted  # type: ignore[method-assign]
        rig.manager._driver.post(lambda: None)
        assert done.wait(20)


def test_a_place_that_was_found_is_told_to_the_strategy() -> None:
    """What a locator found is committed with the swap, and not before."""
    strategy, seen = Roamer(), []
    strategy.committed = lambda connection, located: seen.append(located)  # type: ignore[method-assign]
    with Rig(strategy) as rig:
        strategy.where = Signpost(rig.script)
        place = Located(HOME, version=7)
        rig.script.plan("locate", place)
        handler = rig.connected()
        assert seen == [place]
        assert handler.face.connection.lifecycle.topology == 7
