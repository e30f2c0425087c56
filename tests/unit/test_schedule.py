"""The schedule and the timers: what is due is done, in order, whatever a job does."""

from __future__ import annotations

import gc
import threading
import weakref
from functools import partial
from typing import Any

import pytest

from milvus_lifecycle import ConnectionConfig, ConnectionManager, LifecyclePolicy, RegularStrategy
from milvus_lifecycle.core.facts import Facts
from milvus_lifecycle.core.maintenance import Schedule
from milvus_lifecycle.table import State
from milvus_lifecycle.testing import CapturedAudit, FakeClock, Script, until
from tests.observe import Client

CONFIG = ConnectionConfig.from_uri("http://home:19530")


def test_jobs_come_in_the_order_of_their_time() -> None:
    """What is due is taken once, the earliest first, equals in the order of their coming."""
    schedule = Schedule()
    done: list[str] = []
    for due, name in ((3.0, "c"), (1.0, "a"), (1.0, "b"), (9.0, "d")):
        schedule.push(due, partial(done.append, name))
    for job in schedule.due(3.0):
        job()
    assert done == ["a", "b", "c"]
    assert (list(schedule.due(3.0)), schedule.next_due(), len(schedule)) == ([], 9.0, 1)


def test_a_job_that_was_interrupted_is_done_again() -> None:
    """It is taken off once it is done; what it notes is not due in the same round."""
    schedule = Schedule()
    done: list[str] = []
    for name in ("a", "b"):
        schedule.push(1.0, partial(done.append, name))
    for job in schedule.due(2.0):
        job()
        schedule.push(0.5, partial(done.append, "early"))
        break
    for job in schedule.due(2.0):
        job()
    assert done == ["a", "early", "a", "b"]


def test_an_earlier_job_that_comes_meanwhile_has_its_own_round() -> None:
    """The one that was under way is taken off all the same."""
    schedule, done = Schedule(), list[str]()
    schedule.push(1.0, partial(done.append, "a"))
    for job in schedule.due(2.0):
        job()
        schedule.push(0.5, partial(done.append, "early"))
    assert (done, len(schedule)) == (["a"], 1)
    for job in schedule.due(2.0):
        job()
    assert (done, len(schedule)) == (["a", "early"], 0)


def test_a_child_that_is_forked_by_a_job_starts_with_nothing() -> None:
    """The job that forked is no more on the child's schedule than any other."""
    schedule = Schedule()
    for due in (1.0, 3.0):
        schedule.push(due, lambda: None)
    for _ in schedule.due(2.0):
        schedule.reset_after_fork()
    for due in (0.5, 9.0):
        schedule.push(due, lambda: None)
    for number, _ in enumerate(schedule.due(2.0)):
        schedule.reset_after_fork()
        schedule.push(9.0, lambda: None)
        assert number == 0
    assert len(schedule) == 1


def test_a_job_that_notes_itself_again_does_not_spin() -> None:
    """It comes in the next round."""
    schedule = Schedule()

    def again() -> None:
        schedule.push(1.0, again)

    again()
    for rounds in (1, 2):
        assert len([job() for job in schedule.due(rounds)]) == 1


def test_push_tells_who_waits_too_long() -> None:
    """True when the new job is the next one: whoever sleeps must look again."""
    schedule = Schedule()
    assert schedule.push(5.0, print)
    assert not schedule.push(6.0, print)
    assert schedule.push(4.0, print)


def test_a_forked_child_starts_empty() -> None:
    """The parent's timers are the parent's."""
    schedule = Schedule()
    schedule.push(5.0, print)
    schedule.reset_after_fork()
    assert schedule.next_due() is None


class Faulty(RegularStrategy):
    """Raises when it is asked whether its connection has expired, if that is at port 1."""

    def expired(self, connection: Any, facts: Facts) -> bool:
        if self.config.address == "home:1":
            raise ZeroDivisionError("a strategy's fault")
        return super().expired(connection, facts)


def keepers() -> list[threading.Thread]:
    return [t for t in threading.enumerate() if t.name == "milvus-lifecycle-timekeeper"]


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


def manager_of(clock: FakeClock, **seams: Any) -> ConnectionManager:
    manager = ConnectionManager(
        LifecyclePolicy(linger=10.0),
        transport=Script().threads(),
        seams=clock.seams(),
        **seams,
    )
    clock.attach(manager)
    return manager


def test_a_job_that_raises_does_not_stop_time(clock: FakeClock) -> None:
    """A strategy that raises on the timekeeper's thread costs its own connection's timer."""
    manager = manager_of(clock, strategy_for=Faulty)
    audit = CapturedAudit(manager)
    for port in (1, 2):
        handler = manager.get_or_create(ConnectionConfig.from_uri(f"http://home:{port}"))
        manager.release(handler)
    clock.advance(10)
    audit.wait_for("expire")
    until(lambda: len(manager.get_stats()["connections"]) == 1, 10, "nothing expired")
    manager.close_all()


def test_the_timekeeper_goes_with_the_last_connection(clock: FakeClock) -> None:
    """close_all leaves no thread behind, though timers of closed connections are still set."""
    before = set(keepers())
    manager = manager_of(clock)
    handler = manager.get_or_create(CONFIG)
    manager.release(handler)
    assert set(keepers()) - before
    manager.close_all()
    until(lambda: not set(keepers()) - before, 20, "the timekeeper still runs")


def test_the_timekeeper_comes_back(clock: FakeClock) -> None:
    """A connection that is made after the timekeeper went has its timers all the same."""
    before = set(keepers())
    manager = manager_of(clock)
    manager.get_or_create(CONFIG)
    manager.close_all()
    until(lambda: not set(keepers()) - before, 20, "the timekeeper still runs")
    audit = CapturedAudit(manager)
    manager.release(manager.get_or_create(CONFIG))
    clock.advance(10)
    audit.wait_for("expire")


def test_an_unused_manager_leaves_no_timekeeper(clock: FakeClock) -> None:
    """A manager that is dropped with its connections takes its thread along."""
    before = set(keepers())
    manager = manager_of(clock)
    client = Client()
    manager.get_or_create(CONFIG, client=client)
    manager.close_all()
    del manager
    until(lambda: not set(keepers()) - before, 20, "the timekeeper still runs")


def test_one_timer_for_the_age_of_a_channel(clock: FakeClock) -> None:
    """Probes of one channel do not add a timer each."""
    manager = ConnectionManager(
        LifecyclePolicy(max_age=1e6, linger=None),
        transport=Script().threads(),
        seams=clock.seams(),
    )
    handler = manager.get_or_create(CONFIG)
    for _ in range(20):
        clock.advance(31)
        handler.rpc()
    assert handler.face.connection.state is State.ACTIVE
    assert len(manager._pool.maintenance.schedule) == 1
    manager.close_all()


@pytest.mark.parametrize("policy", [{"linger": 9.0}, {"max_age": 9.0, "linger": None}], ids=str)
def test_a_closed_connection_is_not_kept_until_its_next_timer(
    policy: dict[str, Any],
) -> None:
    """Its timers stay on the schedule until they are due; the connection is free at once."""
    manager = ConnectionManager(
        LifecyclePolicy(**policy), transport=Script().threads(), seams=FakeClock().seams()
    )
    client = Client()
    handler = manager.get_or_create(CONFIG, client=client)
    manager.release(handler, client)
    connection = weakref.ref(manager._pool.registry.all()[0])
    assert len(manager._pool.maintenance.schedule) == 1
    manager.close_all()
    del handler
    gc.collect()
    until(lambda: connection() is None, 10, "the closed connection is kept")
    assert len(manager._pool.maintenance.schedule) == 1
