"""The threads driver: one manager a process, its handlers, its timekeeper and its forks."""

from __future__ import annotations

import gc
import queue
import subprocess
import sys
import threading
import time
import weakref
from types import SimpleNamespace
from typing import Any, ClassVar

import pytest

from milvus_lifecycle import ConnectionManager, LifecyclePolicy
from milvus_lifecycle.core.registry import Registry
from milvus_lifecycle.core.requests import Procedure, Wait
from milvus_lifecycle.errors import ConnectFailed, UnknownHandler, summarize
from milvus_lifecycle.managers import Settings
from milvus_lifecycle.table import State, Trigger
from milvus_lifecycle.testing import FakeClock, Script, rpc_error, until
from tests.cores import CONFIG
from tests.observe import Call, Client
from tests.processes import REPOSITORY
from tests.rigs import Rig, Roamer, Unraisable

UNAVAILABLE = rpc_error("UNAVAILABLE")
KEEPER = "milvus-lifecycle-timekeeper"


# -- one for the process --------------------------------------------------------------------------


class Alone(ConnectionManager):
    """Instances of its own, so that nobody else's are touched."""

    _instance: ClassVar[ConnectionManager | None] = None


def test_the_process_has_one_manager() -> None:
    """``get_instance`` gives the same one until it is dropped, which closes it; then a new one."""
    one = Alone.get_instance()
    try:
        assert Alone.get_instance() is one
        assert type(one._pool.transport).__name__ == "ThreadsTransport"
    finally:
        Alone.drop_instance()
    Alone.drop_instance()  # there is none: nothing happens
    two = Alone.get_instance()
    assert two is not one
    Alone.drop_instance()


def test_of_two_threads_that_ask_at_once_both_get_the_first(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Whoever waited while another thread made the manager takes that one."""
    winner = ConnectionManager(transport=Script().threads())

    class Late(ConnectionManager):
        _instance: ClassVar[ConnectionManager | None] = None

    class Lock:
        def __enter__(self) -> None:
            Late._instance = winner

        def __exit__(self, *exc: object) -> None:
            """Let go."""

    monkeypatch.setattr(Settings, "lock", Lock())  # the other thread came before us
    assert Late.get_instance() is winner


_AT_EXIT = """
import time
from milvus_lifecycle import ConnectionConfig, ConnectionManager
from milvus_lifecycle.testing import Script
manager = ConnectionManager(transport=Script().threads())
def listener(record):
    if record.trigger == "probe_passed":
        time.sleep(0.3)  # it is still under way, on a daemon thread, when the process ends
    print(record.trigger, record.reason, flush=True)
manager.subscribe(listener)
handler = manager.get_or_create(ConnectionConfig.from_uri("http://home:19530"))
"""


def test_the_end_of_the_process_closes_what_is_open() -> None:
    """An exit is a close; its record comes last, after those that are still on their way."""
    done = subprocess.run(
        [sys.executable, "-c", _AT_EXIT],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    said = [line.split(" ")[0] for line in done.stdout.splitlines()]
    assert said[1:] == ["acquire", "probe_passed", "close"]
    assert done.stderr == ""


def test_a_manager_that_could_not_be_made_is_nothing() -> None:
    """Bad arguments raise, and the half-made object goes without a complaint."""
    with Unraisable() as errors:
        with pytest.raises(TypeError):
            ConnectionManager(transport=Script().threads(), nonsense=1)  # type: ignore[call-arg]
        gc.collect()
    assert errors.seen == []


# -- handlers -------------------------------------------------------------------------------------


def test_a_handler_of_somebody_else_is_refused() -> None:
    """Releasing an object that this manager did not hand out names its type; asking says no."""
    with Rig() as rig, Rig() as other:
        theirs = other.connected()
        for handler in (object(), theirs, SimpleNamespace()):
            with pytest.raises(UnknownHandler, match=type(handler).__name__):
                rig.manager.release(handler)
            assert rig.manager.handle_error(handler, UNAVAILABLE) is False
        assert theirs.face.connection.state is State.ACTIVE


def test_whoever_releases_a_dedicated_handler_ends_it() -> None:
    """Without saying who: every lease of that connection is given back, and it is closed."""
    with Rig() as rig:
        ann = Client()
        handler = rig.connected(ann, dedicated=True)
        assert handler.face.connection.clients == {ann}
        rig.manager.release(handler)
        assert handler.face.connection.state is State.CLOSED
        assert rig.triggers()[-1] == "release"
        assert rig.manager.get_stats()["total_connections"] == 0


def test_an_rpc_that_fails_as_its_connection_is_closed() -> None:
    """Its failure is nobody's business any more: nothing is raised, moved or recorded."""
    with Rig() as rig:
        connection = rig.connected().face.connection
        rig.manager.close_all()

        before = list(rig.audit.records)
        rig.manager._pool.rpc_failed(connection, summarize(UNAVAILABLE), 1, rig.clock())
        rig.manager._pool.rpc_failed(
            connection, summarize(rpc_error("DEADLINE_EXCEEDED")), 1, rig.clock()
        )
        assert rig.audit.records == before


def test_a_client_that_outlives_its_manager() -> None:
    """Its lease ends with nobody to tell, and without a word."""
    manager, client = ConnectionManager(transport=Script().threads()), Client()
    connection = manager._pool.create(CONFIG, dedicated=False)
    connection.handler = connection.face = None  # they would keep the manager
    connection.lease(client)
    watched = weakref.ref(manager)
    del manager
    gc.collect()
    assert watched() is None
    with Unraisable() as errors:
        del client
        gc.collect()
    assert errors.seen == []
    assert connection.clients == frozenset()


# -- flights --------------------------------------------------------------------------------------


class Unsure(Roamer):
    """Raises when it is told of a swap."""

    def committed(self, connection: Any, located: Any) -> None:
        raise LookupError("what was that place")


def test_a_strategy_that_cannot_take_a_channel() -> None:
    """Its fault is the connection's last error; the flight is settled and the channel closed."""
    with Rig(Unsure()) as rig:
        with pytest.raises(ConnectFailed, match="what was that place"):
            rig.connected()
        assert rig.triggers() == ["acquire", "abandoned"]
        assert [channel.closed for channel in rig.script.channels] == [True]


def test_a_flight_that_is_over_is_not_waited_for() -> None:
    """Whoever comes to join when the outcome is there already goes on at once."""
    with Rig() as rig:
        connection = rig.connected().face.connection
        rig.clock.advance(31)
        rig.script.hold("ping")
        rig.manager._pool.step(connection, Trigger.ACQUIRE)
        flight = connection.lifecycle.flight

        def come_late() -> Procedure[str]:
            rig.script.let_go()
            rig.sees(lambda: flight.outcome is not None, "the probe did not end")
            yield Wait(connection, flight, rig.clock() + 1000)
            return "went on"

        assert rig.manager._driver.drive(come_late()) == "went on"
        assert rig.clock.sleeping() == 0


# -- fork -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("what", ["first connect", "recovery"])
def test_a_fork_does_not_meet_a_connecting_channel(what: str) -> None:
    """Channels that connect are closed before a fork; their flights go on after it, in the parent.

    Nobody sees a failure for it, and no attempt is counted.
    """
    with Rig() as rig:
        if what == "recovery":
            call = rig.failing(rig.connected(), "register")
        else:
            rig.script.hold("register")
            call = Call(rig.connected)
            rig.script.wait_held("register")
        rig.manager._driver.fork_begins()
        rig.manager._driver.gate.wait(time.monotonic() + 20)
        connecting = rig.script.channels[-1]
        assert connecting.closed
        rig.script.let_go()
        assert not call.done
        rig.manager._driver.gate.open()
        call.value(20)
        assert [channel.closed for channel in rig.script.channels][-2:] == [True, False]
        assert "retry" not in rig.triggers()
        assert "probe_failed" not in rig.triggers()


def test_a_fork_leaves_validated_channels_alone() -> None:
    """What serves is not touched: the parent goes on with its channels, and its RPCs run on."""
    with Rig() as rig:
        handler = rig.connected()
        rig.manager._driver.fork_begins()
        rig.manager._driver.gate.wait(time.monotonic() + 20)
        rig.manager._driver.gate.open()
        handler.rpc()
        assert len(rig.script.channels) == 1


@pytest.mark.parametrize("connections", [0, 1])
def test_a_child_keeps_time_only_for_connections(connections: int) -> None:
    """After a fork there is a timekeeper where there is something to keep time for."""
    manager = ConnectionManager(transport=Script().threads(), seams=FakeClock().seams())
    if connections:
        manager.get_or_create(CONFIG)
    manager._driver.fork_child()
    assert (manager._driver._keeper is not None) == bool(connections)
    assert manager.get_stats()["total_connections"] == connections
    manager.close_all()


# -- the timekeeper -------------------------------------------------------------------------------


class Starts:
    """Counts starts of timekeepers, and does something before each of them."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, before: Any) -> None:
        self.count = 0
        original = threading.Thread.start

        def start(thread: threading.Thread) -> None:
            if thread.name == KEEPER:
                self.count += 1
                before()
            original(thread)

        monkeypatch.setattr(threading.Thread, "start", start)


def test_a_finalizer_while_the_timekeeper_is_started(monkeypatch: pytest.MonkeyPatch) -> None:
    """The collector may run one there that sets a timer: it does not start a second timekeeper."""
    with Rig() as rig:
        starts = Starts(monkeypatch, rig.manager._driver.reschedule)
        rig.connected()
        assert starts.count == 1
        done = threading.Event()
        rig.manager._driver.post(done.set)
        assert done.wait(20)


def test_no_thread_for_the_timekeeper(monkeypatch: pytest.MonkeyPatch) -> None:
    """Calls are served all the same, and the next timer tries again."""
    refuse = [True]

    def before() -> None:
        if refuse:
            raise RuntimeError("can't start new thread")

    with Rig() as rig:
        starts = Starts(monkeypatch, before)
        handler = rig.connected()
        handler.rpc()
        assert starts.count > 0
        assert rig.manager._driver._keeper is None or not rig.manager._driver._keeper.is_alive()
        refuse.clear()
        rig.manager._driver.reschedule()
        done = threading.Event()
        rig.manager._driver.post(done.set)
        assert done.wait(20)


class Filling(Registry):
    """Empty at the first look, and not at the second."""

    looks = 0

    def __len__(self) -> int:
        self.looks += 1
        return self.looks - 1


def test_a_connection_that_comes_as_the_timekeeper_goes() -> None:
    """It looks once more after it has said that it goes, and stays."""
    manager = ConnectionManager(transport=Script().threads())
    keeper = manager._driver._keeper = threading.current_thread()
    manager._pool.registry = Filling()
    assert not manager._driver.keeper_may_end()
    assert manager._driver._keeper is keeper


def lonely() -> tuple[Any, queue.SimpleQueue[Any], threading.Thread]:
    """A manager with a pooled connection: (its driver, weakly; mailbox; timekeeper)."""
    manager = ConnectionManager(
        LifecyclePolicy(linger=None), transport=Script().threads(), seams=FakeClock().seams()
    )
    manager.get_or_create(CONFIG)
    keeper = manager._driver._keeper
    assert keeper is not None
    return weakref.ref(manager._driver), manager._driver._mailbox, keeper


def ends(watched: Any, keeper: threading.Thread) -> None:
    """See that a driver that nobody has any more is collected, and that its timekeeper ends."""

    def gone() -> bool:
        gc.collect()
        return watched() is None and not keeper.is_alive()

    until(gone, 20, "the driver or its timekeeper is kept")


def test_a_timekeeper_ends_with_its_manager() -> None:
    """A manager that nobody has any more is collected though its thread waits, and ends it."""
    watched, _, keeper = lonely()
    ends(watched, keeper)


def lose_a_client(pool: Any) -> None:
    """Have the timekeeper hear that the last client of the pool's connection was collected."""
    connection, client = pool.registry.find(CONFIG.key), Client()
    pool.release(connection, None)
    assert connection.lease(client)
    pool.step(connection, Trigger.ACQUIRE)
    assert connection.state is State.ACTIVE
    del client
    gc.collect()
    until(lambda: connection.state is State.IDLE, 20, "it was not heard of")


def test_what_a_timekeeper_did_last_keeps_nothing_alive() -> None:
    """It waits for its next job without the connection that the last one was about."""
    watched, _, keeper = lonely()
    lose_a_client(watched().pool)
    ends(watched, keeper)


def test_a_timekeeper_that_is_busy_as_its_manager_goes() -> None:
    """It ends after the job that it has in hand."""
    watched, mailbox, keeper = lonely()
    inside, go_on = threading.Event(), threading.Event()

    def job() -> None:
        inside.set()
        go_on.wait(20)

    mailbox.put(job)
    assert inside.wait(20)
    gc.collect()
    assert watched() is None
    go_on.set()
    keeper.join(20)
    assert not keeper.is_alive()


def test_a_timer_that_comes_due_needs_no_letter() -> None:
    """The timekeeper wakes by itself for what is on the schedule."""
    script, done = Script(), threading.Event()
    manager = ConnectionManager(transport=script.threads())
    manager.get_or_create(CONFIG)
    manager._pool.maintenance.schedule.push(time.monotonic() + 0.05, done.set)
    manager._driver.reschedule()
    assert done.wait(20)
    manager.close_all()


class Contested:
    """A lock that somebody else had, who has just started a timekeeper."""

    def __init__(self, manager: ConnectionManager) -> None:
        self.manager = manager

    def _is_owned(self) -> bool:
        return False

    def __enter__(self) -> None:
        self.manager._driver._keeper = threading.current_thread()

    def __exit__(self, *raised: object) -> None:
        """Nothing is held."""


def test_two_threads_start_one_timekeeper() -> None:
    """Whoever waited for the lock finds the other one's timekeeper, and tells it to look."""
    manager = ConnectionManager(transport=Script().threads())
    manager._driver._keeper_lock = Contested(manager)  # type: ignore[assignment]
    manager._driver.reschedule()
    assert manager._driver._keeper is threading.current_thread()
    assert not manager._driver._mailbox.empty()


def test_at_exit_the_caller_flies(monkeypatch: pytest.MonkeyPatch) -> None:
    """From Python 3.12 on no thread can be started then; a call is served all the same."""
    original = threading.Thread.start

    def start(thread: threading.Thread) -> None:
        if thread.name.startswith("milvus-lifecycle-connect"):
            raise RuntimeError("can't create new thread at interpreter shutdown")
        original(thread)

    monkeypatch.setattr(threading.Thread, "start", start)
    monkeypatch.setattr("milvus_lifecycle.drivers.threads._exiting", True)
    with Rig() as rig:
        assert rig.connected().call() is None
        assert rig.triggers() == ["acquire", "probe_passed"]
