"""Fork: no flight of the engine is inside gRPC while the process forks, and none is lost."""

from __future__ import annotations

import asyncio
import os
import threading
import time
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest

from milvus_lifecycle import AsyncConnectionManager, ConnectionConfig, ConnectionManager, fork
from milvus_lifecycle.core.mutex import Section
from milvus_lifecycle.fork import ForkGate
from milvus_lifecycle.testing import (
    CapturedAudit,
    FakeClock,
    Operation,
    Script,
    rpc_error,
    until,
)

CONFIG = ConnectionConfig.from_uri("http://home:19530")
#: long enough for a thread that is not held back to do what it should not (seconds)
MOMENT = 0.1


class Scene:
    """A manager whose I/O is scripted, and one client's thread."""

    def __init__(self) -> None:
        self.clock, self.script = FakeClock(), Script()
        self.manager = ConnectionManager(transport=self.script.threads(), seams=self.clock.seams())
        self.audit = CapturedAudit(self.manager)
        self.client = threading.Event()  # anything that can be referenced weakly
        self.outcome: list[Any] = []

    def do(self, work: Any, *args: Any) -> threading.Thread:
        """Call ``work`` on a thread of its own."""

        def run() -> None:
            try:
                self.outcome.append(work(*args))
            except Exception as error:
                self.outcome.append(error)

        thread = threading.Thread(target=run, daemon=True)
        thread.start()
        return thread

    def connect(self) -> Any:
        return self.manager.get_or_create(CONFIG, client=self.client)

    def triggers(self) -> list[str]:
        return [str(record.trigger) for record in self.audit.transitions()]


@pytest.fixture
def scene() -> Iterator[Scene]:
    scene = Scene()
    yield scene
    scene.manager.close_all()
    scene.script.let_go()


def _fork_begins(scene: Scene, operation: Operation) -> None:
    """What ``os.fork`` has the manager do first; gRPC ends what runs on a closed channel."""
    scene.manager._driver.fork_begins()
    assert operation.channel is not None
    assert operation.channel.closed
    operation.fail(rpc_error("CANCELLED"))
    scene.manager._driver.gate.wait(time.monotonic() + 10.0)


def test_a_recovery_leaves_grpc_for_a_fork_and_goes_on_with_another_channel(scene: Scene) -> None:
    """Its channel is closed before the fork, none is opened during it, no attempt is counted."""
    handler = scene.connect()
    scene.script.plan("rpc", rpc_error("UNAVAILABLE"))
    scene.script.hold("register")
    call = scene.do(handler.call)
    _fork_begins(scene, scene.script.wait_held("register"))
    time.sleep(MOMENT)
    assert scene.script.held("register") == []
    assert len(scene.script.channels) == 2

    scene.manager._driver.gate.open()
    scene.script.wait_held("register").succeed("identifier")
    call.join(10)
    assert not isinstance(scene.outcome[0], Exception)
    assert len(scene.script.channels) == 3
    assert scene.triggers() == ["acquire", "probe_passed", "fail", "recovered"]


def test_a_first_connect_leaves_grpc_for_a_fork_too(scene: Scene) -> None:
    """A fork is no refusal of the server: the first connect does not fail by it."""
    scene.script.hold("register")
    call = scene.do(scene.connect)
    _fork_begins(scene, scene.script.wait_held("register"))
    scene.manager._driver.gate.open()
    scene.script.wait_held("register").succeed("identifier")
    call.join(10)
    assert not isinstance(scene.outcome[0], Exception)
    assert scene.triggers() == ["acquire", "probe_passed"]


def test_an_answer_that_comes_while_the_process_forks_is_not_used(scene: Scene) -> None:
    """The channel that it came on is closed: its leader makes another one."""
    scene.script.hold("register")
    call = scene.do(scene.connect)
    first = scene.script.wait_held("register")
    scene.manager._driver.fork_begins()
    first.succeed("too late")
    scene.manager._driver.gate.open()
    until(lambda: len(scene.script.channels) == 2, 10, "no second channel")
    scene.script.wait_held("register").succeed("identifier")
    call.join(10)
    assert not isinstance(scene.outcome[0], Exception)
    connection = scene.manager._pool.registry.all()[0]
    assert connection.lifecycle.binding is not None
    assert connection.lifecycle.binding.identifier == "identifier"


def test_channels_in_use_are_left_alone(scene: Scene) -> None:
    """A fork closes no channel that serves, and delays no call that runs on one."""
    handler = scene.connect()
    scene.script.hold("rpc")
    call = scene.do(handler.call)
    running = scene.script.wait_held("rpc")
    scene.manager._driver.fork_begins()
    scene.manager._driver.gate.wait(
        time.monotonic() + 10.0
    )  # nothing of the engine's own is inside
    running.succeed("served")
    call.join(10)
    scene.manager._driver.gate.open()
    assert scene.outcome == ["served"]
    assert not scene.script.channels[0].closed


@pytest.mark.parametrize("ago", [None, 0.0, 0.01, 10.0])
def test_a_fork_leaves_grpc_time_for_a_channel_that_was_closed(
    scene: Scene, ago: float | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever closed it: its threads are not in the middle of that as the process forks."""
    now, slept = 1000.0, list[float]()
    monkeypatch.setattr(fork, "_closed_at", float("-inf"))
    time_there = SimpleNamespace(monotonic=lambda: now, sleep=slept.append)
    monkeypatch.setattr(fork, "time", time_there)
    scene.connect()
    if ago is not None:
        scene.manager.close_all()
        now += ago
    fork._before_fork()
    fork._after_fork_in_parent()
    left = {None: 0.0, 0.0: fork.SETTLING, 0.01: fork.SETTLING - 0.01, 10.0: 0.0}[ago]
    assert slept == [pytest.approx(left)]


def test_the_end_of_a_loop_closes_channels_too(monkeypatch: pytest.MonkeyPatch) -> None:
    """A fork right after it waits as well: of 2,160 such processes 17 hung."""
    monkeypatch.setattr(fork, "_closed_at", float("-inf"))
    script, client = Script(), threading.Event()

    async def connect() -> None:
        manager = AsyncConnectionManager(transport=script.asyncio())
        await manager.get_or_create(CONFIG, client=client)

    before = time.monotonic()
    asyncio.run(connect())
    assert script.channels[0].closed
    assert fork._closed_at >= before


def test_a_fork_inside_a_critical_section_recalls_nothing(scene: Scene) -> None:
    """A finalizer that forks leaves the connections alone, and the gate is open afterwards."""
    handler = scene.connect()
    lock = threading.RLock()
    with lock, Section(lock):
        scene.manager._driver.fork_begins()
    scene.manager._driver.gate.open()
    assert not scene.script.channels[0].closed
    scene.script.plan("rpc", rpc_error("UNAVAILABLE"))
    handler.call()
    assert scene.triggers()[-2:] == ["fail", "recovered"]


def test_a_fork_does_not_wait_for_ever() -> None:
    """Whatever stays inside gRPC is left there at the limit."""
    gate, inside, out = ForkGate(), threading.Event(), threading.Event()

    def stay() -> None:
        with gate.inside():
            inside.set()
            out.wait(30)

    thread = threading.Thread(target=stay, daemon=True)
    thread.start()
    assert inside.wait(10)
    gate.close()
    gate.wait(time.monotonic() + 0.05)
    gate.open()
    out.set()
    thread.join(10)
    assert not thread.is_alive()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system cannot fork")
def test_after_a_real_fork_parent_and_child_go_on(scene: Scene) -> None:
    """os.fork itself calls the hooks: the parent's gate is open again, so is the child's."""
    handler = scene.connect()
    child = os.fork()
    if child == 0:
        code = 1
        try:
            handler.call()
            code = 0
        finally:
            os._exit(code)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    handler.call()
    scene.script.plan("rpc", rpc_error("UNAVAILABLE"))
    handler.call()
    assert scene.triggers()[-2:] == ["fail", "recovered"]
