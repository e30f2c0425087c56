"""A signal handler may raise wherever Python code runs. Whatever it hits, the engine goes on.

Ctrl-C, a soft time limit of a task queue, an alarm: CPython raises them when it enters a Python
function and when it comes back from one that is written in C. A profile function is called at
just these places, and what it raises is raised there: so each of them is tried, one by one.
Where memory is short, a MemoryError comes there too, and to the threads of flights as well.
"""

from __future__ import annotations

import asyncio
import gc
import itertools
import sys
import threading
import time
from collections.abc import Callable, Coroutine, Iterator
from contextlib import suppress
from types import FrameType
from typing import Any

import grpc
import pytest

from milvus_lifecycle import (
    AsyncConnectionManager,
    ConnectionManager,
    LifecyclePolicy,
    RegularStrategy,
)
from milvus_lifecycle.core.mutex import here, inside
from milvus_lifecycle.endpoints import global_cluster, topology_fetch
from milvus_lifecycle.endpoints.global_cluster import TopologyBook, TopologyLocator
from milvus_lifecycle.endpoints.topology import Cluster, Topology
from milvus_lifecycle.errors import LifecycleError, summarize
from milvus_lifecycle.table import TRANSITIONS, State
from milvus_lifecycle.testing import CapturedAudit, Script, rpc_error, until
from tests.cores import CONFIG, Core
from tests.global_clusters import locate
from tests.observe import Call, Client

pytestmark = [
    # What is raised where nobody can catch it CPython prints; and a thread whose start was
    # interrupted it takes off its list twice.
    pytest.mark.filterwarnings(
        "ignore:(?s)Exception ignored.*(test_interrupts.py|del _limbo)"
        ":pytest.PytestUnraisableExceptionWarning"
    ),
    pytest.mark.filterwarnings(
        "ignore:(?s)Exception in thread.*test_interrupts.py"
        ":pytest.PytestUnhandledThreadExceptionWarning"
    ),
    # Interrupted between the making of the coroutine and its await.
    pytest.mark.filterwarnings(
        "ignore:coroutine '_AsyncioChannel.close' was never awaited:RuntimeWarning"
    ),
]

#: what a flight or a call waits at most (seconds)
BUDGET = 0.3
LIMIT = 20.0
ROWS = {(row.trigger.value, row.source.value, row.dest.value) for row in TRANSITIONS}


class Interrupt(BaseException):
    """What the signal handler raises."""


#: what is done, and what is raised meanwhile
CASES: list[tuple[str, type[BaseException]]] = [
    (what, Interrupt) for what in ("connect", "call", "release", "close")
]
#: the same takes longer where whoever is hit goes on
SLOW = pytest.mark.slow
MEMORY = ("call", MemoryError)


class Trap:
    """Raises at the ``place``-th opportunity, in this thread, in code of the engine."""

    first = 1
    budget = BUDGET

    def __init__(self, place: int, kind: type[BaseException] = Interrupt) -> None:
        self.place = place
        self.kind = kind
        self.passed = 0
        self.where = "nowhere"
        #: was it whoever led a flight? (In asyncio it is in the same thread.)
        self.hit_leader = False

    def __call__(self, frame: FrameType | None, event: str, arg: object) -> None:
        if frame is None or event not in ("call", "c_return") or not _engine(frame):
            return
        if getattr(arg, "__name__", "") == "__enter__":
            return  # from Python 3.14 on: see docs/decisions.md
        self.passed += 1
        if self.passed == self.place:
            sys.setprofile(None)
            code = frame.f_code
            self.where = f"{event} in {code.co_name}, {code.co_filename}:{frame.f_lineno}"
            while frame is not None and frame.f_code.co_name != "_fly":
                frame = frame.f_back
            self.hit_leader = frame is not None
            raise self.kind(self.where)

    @property
    def sprung(self) -> bool:
        return self.passed >= self.place

    def __enter__(self) -> None:
        sys.setprofile(self)

    def __exit__(self, *raised: object) -> None:
        sys.setprofile(None)


def _engine(frame: FrameType | None) -> bool:
    """The engine, and what it calls; but not the script of its I/O, nor the test."""
    while frame is not None:
        file = frame.f_code.co_filename
        if "/milvus_lifecycle/" in file:
            return "/milvus_lifecycle/testing" not in file
        frame = frame.f_back
    return False


class Scene:
    """A manager whose server is always there, a client, and what has to hold afterwards."""

    manager: Any

    def __init__(self, budget: float) -> None:
        self.script = Script()
        self.policy = LifecyclePolicy(
            recovery_budget=budget, connect_timeout=BUDGET, linger=0.0, idle_threshold=None
        )
        self.client = Client()

    def plan(self, what: str) -> None:
        if what == "call":
            self.script.plan("rpc", rpc_error("UNAVAILABLE"))

    def check_rest(self) -> None:
        """Nobody uses the connection: it is at rest, and nothing counts that is over."""
        assert not inside()
        for connection in self.manager._pool.registry.all():
            life = connection.lifecycle
            until(lambda: life.flight is None, LIMIT, f"{connection} flies")  # noqa: B023
            until(lambda: life.in_flight == 0, LIMIT, f"{connection} counts RPCs")  # noqa: B023
            assert connection.state is not State.RECOVERING

    def check_end(self, audit: CapturedAudit, trap: Trap) -> None:
        """All is closed, and the records tell a story without gaps."""
        if not trap.hit_leader:  # between opening and noting it; gRPC closes what is forgotten
            until(
                lambda: all(channel.closed for channel in self.script.channels),
                LIMIT,
                "a channel is left open",
            )
        last: dict[str, tuple[Any, str]] = {}
        for record in audit.transitions():
            seq, state = last.get(record.connection_id, (0, "IDLE"))
            assert (record.seq, record.source) == (seq + 1, state), record
            assert (record.trigger, record.source, record.dest) in ROWS, record
            last[record.connection_id] = (record.seq, record.dest)
        del here.locks[:]


@pytest.fixture(autouse=True)
def no_ghosts() -> Iterator[None]:
    """Threads that were interrupted in ``Thread.start`` itself hang in CPython: end them.

    What is reported when garbage is collected is collected here, and not in another test.
    """
    before = set(threading.enumerate())
    yield
    for thread in set(threading.enumerate()) - before:
        threading._limbo.pop(thread, None)  # type: ignore[attr-defined]
        with suppress(RuntimeError):  # it waits for the lock that its parent was to release
            thread._started._cond.release()  # type: ignore[attr-defined]
    gc.collect()


class FlightTrap(Trap):
    """The same in the threads that fly recoveries; each call has to be served all the same."""

    first = 2  # a leader that never begins is another story: see test_flights
    budget = LIMIT

    def __call__(self, frame: FrameType | None, event: str, arg: object) -> None:
        if "recovery" in threading.current_thread().name:
            super().__call__(frame, event, arg)

    def __enter__(self) -> None:
        threading.setprofile(self)

    def __exit__(self, *raised: object) -> None:
        threading.setprofile(None)


def _sweep(
    one: Callable[[Trap], None],
    kind: type[BaseException] = Interrupt,
    trap_of: type[Trap] = Trap,
) -> int:
    """Try every place, up to the first that is not come to. Returns how many there were."""
    for place in itertools.count(trap_of.first):
        trap = trap_of(place, kind)
        try:
            one(trap)
        except Exception as error:
            raise AssertionError(f"interrupted at place {place}, {trap.where}") from error
        if not trap.sprung:
            break
    return place - 1


def _held(manager: ConnectionManager, client: Client) -> Any:
    """A handler, however often the machine is too slow for BUDGET."""
    deadline = time.monotonic() + LIMIT
    while True:
        try:
            return manager.get_or_create(CONFIG, client=client)
        except LifecycleError:
            if time.monotonic() > deadline:
                raise


@pytest.mark.parametrize(
    ("what", "kind", "trap_of"),
    [
        *((*case, Trap) for case in CASES),
        pytest.param(*MEMORY, Trap, marks=SLOW),
        pytest.param(*MEMORY, FlightTrap, marks=SLOW),
    ],
)
def test_interrupted_anywhere_in_a_thread(
    what: str, kind: type[BaseException], trap_of: type[Trap]
) -> None:
    """Whatever was interrupted: the next call is served, all locks are free, nothing is left."""

    def one(trap: Trap) -> None:
        scene = Scene(trap.budget)
        manager = scene.manager = ConnectionManager(scene.policy, transport=scene.script.threads())
        audit = CapturedAudit(manager)
        handler: Any = None
        if what != "connect":
            handler = _held(manager, scene.client)
        scene.plan(what)
        work: dict[str, Callable[[], Any]] = {
            "connect": lambda: manager.get_or_create(CONFIG, client=scene.client),
            "call": lambda: handler.call(),
            "release": lambda: manager.release(handler, scene.client),
            "close": manager.close_all,
        }
        try:
            with trap:
                work[what]()
        except (kind, LifecycleError, grpc.RpcError):
            assert trap_of is Trap, "a flight that ends with its leader is begun anew"
        scene.check_rest()
        again = _held(manager, scene.client)
        assert again.call(timeout=LIMIT) is None
        # From another thread: no lock is held by this one.
        closer = threading.Thread(target=lambda: manager.release(again, scene.client))
        closer.start()
        closer.join(LIMIT)
        assert not closer.is_alive()
        until(lambda: not len(manager._pool.registry), LIMIT, "it does not expire")
        scene.check_end(audit, trap)

    assert _sweep(one, kind, trap_of) > 20


async def _served(manager: AsyncConnectionManager, client: Client) -> Any:
    """The handler of a call that is served; what the interrupted flight waits for may end first."""
    while True:
        try:
            handler = await manager.get_or_create(CONFIG, client=client)
            await handler.call(timeout=LIMIT)
        except (LifecycleError, grpc.RpcError):
            continue
        return handler


async def _trapped(work: Coroutine[Any, Any, Any], trap: Trap) -> BaseException | None:
    """How a task ended that ran into the trap. Nothing keeps it afterwards: in Python 3.10 the
    frame that sets a profile function has a copy of its variables, which would keep the task."""
    task = asyncio.ensure_future(work)
    with trap:
        await asyncio.wait({task})
    return None if task.cancelled() else task.exception()


@pytest.mark.parametrize(
    ("what", "kind"),
    [*CASES[2:], *(pytest.param(*case, marks=SLOW) for case in (*CASES[:2], MEMORY))],
)
def test_interrupted_anywhere_in_a_loop(what: str, kind: type[BaseException]) -> None:
    """The same in asyncio, where the flight itself may be hit, too."""

    async def once(scene: Scene, trap: Trap) -> None:
        manager = scene.manager = AsyncConnectionManager(
            scene.policy, transport=scene.script.asyncio()
        )
        audit = CapturedAudit(manager)
        handler: Any = None
        if what != "connect":
            handler = await _served(manager, scene.client)
        scene.plan(what)
        work: dict[str, Callable[[], Coroutine[Any, Any, Any]]] = {
            "connect": lambda: manager.get_or_create(CONFIG, client=scene.client),
            "call": lambda: handler.call(),
            "release": lambda: manager.release(handler, scene.client),
            "close": manager.close_all,
        }
        ended = await _trapped(work[what](), trap)
        assert isinstance(ended, (kind, LifecycleError, grpc.RpcError, type(None)))
        del ended
        again = await _served(manager, scene.client)
        assert again.face.connection.lifecycle.in_flight == 0
        assert not inside()
        await manager.release(again, scene.client)
        deadline = time.monotonic() + LIMIT
        while len(manager._pool.registry):
            assert time.monotonic() < deadline, "it does not expire"
            await asyncio.sleep(0.001)
        await manager.close_all()
        scene.check_end(audit, trap)

    def one(trap: Trap) -> None:
        scene = Scene(trap.budget)
        loop = asyncio.new_event_loop()
        loop.set_exception_handler(lambda loop, context: None)
        try:
            loop.run_until_complete(once(scene, trap))
        finally:
            loop.close()

    assert _sweep(one, kind) > 20


@SLOW
def test_interrupted_anywhere_while_the_topology_is_asked_for(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """In a loop that is the caller's thread; the next who asks is answered."""
    monkeypatch.setattr(global_cluster, "FETCH_SPACING", 0.0)
    found = Topology(1, (Cluster("a", "http://127.0.0.1:1001", 3),))
    monkeypatch.setattr(topology_fetch, "fetch_topology", lambda *args, **options: found)
    connection: Any = Core().to(State.ACTIVE).life

    def one(trap: Trap) -> None:
        book = TopologyBook(CONFIG)

        def locator() -> TopologyLocator:
            return TopologyLocator(book, time.monotonic())

        async def interrupted() -> None:
            manager = AsyncConnectionManager(transport=Script().asyncio())
            steps = locator().steps(connection, None, BUDGET)
            ended = await _trapped(manager._driver.drive(steps), trap)
            assert isinstance(ended, (Interrupt, LifecycleError, type(None)))

        loop = asyncio.new_event_loop()
        loop.set_exception_handler(lambda loop, context: None)
        try:
            loop.run_until_complete(interrupted())
        finally:
            loop.close()
        # From another thread: no lock is held by this one.
        call = Call(locate, locator(), connection, None, LIMIT)
        assert call.value(2 * LIMIT).address == "127.0.0.1:1001"
        until(lambda: book._worker is None, LIMIT, "the book's thread goes on")

    assert _sweep(one) > 10


class _Misdirected(RegularStrategy):
    """Its target is always somewhere else."""

    def misdirected(self, address: str) -> bool:
        return True


def test_interrupted_anywhere_while_a_flight_is_redirected() -> None:
    """Done again it takes away the same channel, and wakes the same leader."""

    def one(trap: Trap) -> None:
        core = Core(strategy=_Misdirected(CONFIG)).to(State.RECOVERING)
        connection, wire, woken = core.connection, core.wire(), list[bool]()
        flight = connection.lifecycle.flight
        assert flight is not None
        assert connection.lifecycle.offer(flight, wire)
        connection.lifecycle.join(flight, lambda: woken.append(True), LIMIT, leads=True)
        try:
            with trap:
                connection.lifecycle.redirect()
        except Interrupt:
            assert not inside()
        result = connection.lifecycle.redirect()
        assert wire.recalled
        assert result.retired == [wire]
        for wake in result.wakes:
            wake()
        assert woken

    assert _sweep(one) > 5


def test_comparing_that_was_interrupted_is_done_again() -> None:
    """News of a target stay on the schedule until every connection has compared."""
    script, told = Script(), list[str]()

    def reroute_all() -> None:
        told.append("asked")
        if len(told) == 1:
            raise Interrupt

    manager = ConnectionManager(transport=script.threads())
    maintenance: Any = manager._pool.maintenance
    manager._driver.reschedule = lambda: None  # type: ignore[method-assign]  # nobody keeps time
    maintenance.reroute_all = reroute_all
    maintenance.plan_reroutes()
    with pytest.raises(Interrupt):
        maintenance.run_due()
    maintenance.run_due()
    maintenance.run_due()
    assert len(told) == 2


class _HeldForGood:
    """A channel whose lock this thread took and was interrupted with, as CPython may in gRPC."""

    def __init__(self, where: str) -> None:
        self.where, self.owner = where, threading.current_thread()
        self.hangs = threading.Event()

    def unary_unary(self, method: str) -> Any:
        return self

    def with_call(self, request: Any, timeout: float | None, **about: Any) -> Any:
        if self.where == "rpc":
            raise Interrupt
        raise rpc_error("UNAVAILABLE")

    def close(self) -> None:
        if threading.current_thread() is not self.owner:
            self.hangs.wait(LIMIT)
        elif self.where == "close":
            raise Interrupt


@pytest.mark.parametrize("where", ["rpc", "close"])
def test_a_channel_that_was_interrupted_in_grpc_holds_nobody_up(where: str) -> None:
    """To close it hangs for good: no flight does that, and not who keeps time."""
    manager = ConnectionManager(transport=Script().threads())
    handler: Any = _held(manager, Client())
    connection = handler.face.connection
    life = connection.lifecycle
    channel = life.binding.wire.channel = _HeldForGood(where)
    with pytest.raises(Interrupt):
        handler.rpc()
    if where == "rpc":
        failure = summarize(rpc_error("UNAVAILABLE"))
        manager._pool.rpc_failed(connection, failure, 1, time.monotonic())
    assert handler.call(timeout=LIMIT) is None
    in_time = threading.Event()
    manager._driver.post(in_time.set)
    try:
        assert in_time.wait(LIMIT / 2), "who keeps time hangs"
        until(lambda: life.flight is None, LIMIT / 2, "the flight hangs")
        until(lambda: not _named("recovery"), LIMIT / 2, "its thread hangs")
        assert _named("close")
    finally:
        channel.hangs.set()
    until(lambda: not _named("close"), LIMIT, "the channel is not closed")


def _named(what: str) -> list[threading.Thread]:
    return [t for t in threading.enumerate() if t.name.startswith(f"milvus-lifecycle-{what}")]
