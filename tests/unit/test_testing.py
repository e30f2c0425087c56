"""The tools for tests: a clock moved by hand, scripted I/O, captured records."""

from __future__ import annotations

import asyncio
import gc
import threading

import pytest

from milvus_lifecycle import (
    AsyncConnectionManager,
    ConnectionConfig,
    ConnectionManager,
    LifecyclePolicy,
)
from milvus_lifecycle.errors import ConnectFailed
from milvus_lifecycle.table import State
from milvus_lifecycle.testing import (
    CapturedAudit,
    FakeClock,
    FakeHandler,
    Script,
    rpc_error,
    until,
)

CONFIG = ConnectionConfig.from_uri("http://home:19530")


def test_by_default_everything_succeeds() -> None:
    """A manager on a script works at once, without a network and without pymilvus."""
    script, clock = Script(), FakeClock()
    manager = ConnectionManager(transport=script.threads(), seams=clock.seams())
    with CapturedAudit(manager) as audit:
        handler = manager.get_or_create(CONFIG)
        handler.rpc("hello", timeout=3.0)
        assert [op.kind for op in script.operations] == ["open", "register", "rpc"]
        sent = script.operations[-1]
        assert (sent.request, sent.timeout) == ("hello", 3.0)
        assert sent.metadata == (("identifier", "identifier-1"),)
        manager.close_all()
        audit.wait_for("close")  # the flight's thread may still be delivering
    assert [record.trigger for record in audit.transitions()] == [
        "acquire",
        "probe_passed",
        "close",
    ]
    assert script.channels[0].closed


def test_the_example_of_the_module() -> None:
    """What the module's docstring shows, works."""
    clock, script = FakeClock(), Script()
    manager = ConnectionManager(transport=script.threads(), seams=clock.seams())
    audit = CapturedAudit(manager)
    errors: list[Exception] = []
    script.hold("register")

    def connect() -> None:
        try:
            manager.get_or_create(CONFIG)
        except Exception as error:
            errors.append(error)

    worker = threading.Thread(target=connect)
    worker.start()
    script.wait_held("register").fail(rpc_error("UNAVAILABLE"))
    audit.wait_for("probe_failed")
    worker.join(20)
    assert [type(error) for error in errors] == [ConnectFailed]


def test_timers_look_at_the_clock_as_long_as_somebody_uses_the_manager() -> None:
    """A handler is enough."""
    clock = FakeClock()

    def connected() -> FakeHandler:
        manager = ConnectionManager(
            LifecyclePolicy(linger=60.0), transport=Script().threads(), seams=clock.seams()
        )
        clock.attach(manager)
        handler: FakeHandler = manager.get_or_create(CONFIG)
        manager.release(handler)
        return handler

    handler = connected()
    gc.collect()
    clock.advance(61.0)
    until(lambda: handler.face.connection.state is State.CLOSED, 10, "it has not expired")


def test_in_an_event_loop() -> None:
    """The asyncio manager runs on the same script, in a loop whose time is the clock's."""
    clock, script = FakeClock(), Script()
    loop = clock.new_event_loop()

    async def story() -> list[str | None]:
        manager = AsyncConnectionManager(transport=script.asyncio(), seams=clock.seams())
        audit = CapturedAudit(manager)
        handler = await manager.get_or_create(CONFIG)
        script.plan("rpc", rpc_error("UNAVAILABLE"))
        await handler.call()
        clock.advance(31)
        await handler.rpc()
        await manager.close_all()
        return [record.trigger for record in audit.transitions()]

    try:
        triggers = loop.run_until_complete(story())
    finally:
        loop.close()
    assert triggers == [
        "acquire",
        "probe_passed",
        "fail",
        "recovered",
        "acquire",
        "probe_passed",
        "close",
    ]


def test_time_passes_only_by_hand() -> None:
    """A loop's timers, a thread's waits and alarms are due when ``advance`` says so."""
    clock = FakeClock(start=0.0)
    rung: list[str] = []
    clock.at(5.0, lambda: rung.append("alarm"))
    clock.at(0.0, lambda: rung.append("due already"))
    event = threading.Event()
    waiter = threading.Thread(target=clock.wait, args=(event, 5.0))
    waiter.start()
    until(lambda: clock.sleeping() == 1, 10, "nobody waits")
    clock.advance(4.9)
    assert (rung, clock.sleeping(), clock()) == (["due already"], 1, 4.9)
    clock.advance(0.2)
    waiter.join(20)
    assert (rung, clock.sleeping()) == (["due already", "alarm"], 0)
    assert clock.wall().isoformat() == "2030-01-01T00:00:05.100000+00:00"


def test_a_loop_sleeps_by_the_clock() -> None:
    """``asyncio.sleep`` in the clock's loop ends when the clock is advanced, from any thread."""
    clock = FakeClock()
    loop = clock.new_event_loop()
    sleeper = threading.Thread(target=lambda: loop.run_until_complete(asyncio.sleep(3600)))
    sleeper.start()
    until(loop.is_running, 10, "the loop does not run")
    until(lambda: bool(asyncio.all_tasks(loop)), 10, "no task")
    while sleeper.is_alive():  # the sleep may begin after the first of these
        clock.advance(3601)
        sleeper.join(0.01)
    loop.close()


def test_planned_outcomes_come_first() -> None:
    """Planned outcomes are used up in order, then what is held is held, then all succeeds."""
    script = Script()
    script.hold("ping")
    script.plan("ping", rpc_error("UNAVAILABLE"), "pong")
    first, second, third = (script.perform("ping", "home", None) for _ in range(3))
    with pytest.raises(Exception, match="UNAVAILABLE"):
        first.done.result(0)
    assert second.done.result(0) == "pong"
    assert script.held() == [third]
    script.let_go()
    assert third.done.result(0) is None
    assert script.perform("ping", "home", None).done.done()


def test_what_is_not_there_is_named() -> None:
    """Waiting in vain ends with an error that says for what."""
    script = Script()
    with pytest.raises(TimeoutError, match="no locate is held"):
        script.wait_held("locate", limit=0.01)
    manager = ConnectionManager(transport=script.threads())
    with pytest.raises(TimeoutError, match="give_up"):
        CapturedAudit(manager).wait_for("give_up", limit=0.01)
