"""One run: the real engine, actors that use it, and a driver that only hands control back."""

from __future__ import annotations

import gc
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import datetime, timezone
from functools import partial
from typing import Any

from milvus_lifecycle.audit.records import TRANSITION, TransitionRecord
from milvus_lifecycle.core import admission as admission_module
from milvus_lifecycle.core import lifecycle as lifecycle_module
from milvus_lifecycle.core import maintenance as maintenance_module
from milvus_lifecycle.core import mutex as mutex_module
from milvus_lifecycle.core.face import stamp_of
from milvus_lifecycle.core.facts import Seams
from milvus_lifecycle.core.pool import Pool
from milvus_lifecycle.core.recovery import Recovery
from milvus_lifecycle.core.requests import Locate, Open, Pause, Ping, Register, Wait
from milvus_lifecycle.core.retry import Retry
from milvus_lifecycle.core.wire import Rpc
from milvus_lifecycle.drivers.threads_channel import LifecycleChannel
from milvus_lifecycle.errors import LifecycleError
from milvus_lifecycle.testing import FakeHandler, rpc_error
from tests.cores import Tap
from tests.simulation import laws
from tests.simulation.actors import AWAY, HOME, Actor, Client, Died
from tests.simulation.campaign import replaced
from tests.simulation.kernel import (
    NEVER,
    Blocked,
    Chance,
    Choice,
    Kernel,
    Move,
    SimHere,
    SimLock,
    SimThreading,
    simulated_wires,
)
from tests.simulation.kernel import Pause as KernelPause
from tests.simulation.setup import Setup, strategy

WALL = datetime(2030, 1, 1, tzinfo=timezone.utc)


class Io(KernelPause):
    """A piece of I/O: ends well, badly, or by its time-out, whichever the search picks."""

    __slots__ = ("channel", "kind", "world")

    def __init__(self, world: World, kind: str, channel: Channel | None, timeout: float | None):
        due = NEVER if timeout is None else world.kernel.now + timeout
        super().__init__(kind if channel is None else f"{kind} on channel {channel.number}", due)
        self.world, self.kind, self.channel = world, kind, channel

    def answers(self, now: float) -> list[tuple[Any, str]]:
        if self.channel is not None and self.channel.closed:
            return [("CANCELLED", f"{self.label}: CANCELLED")]
        if now >= self.due:
            return [("DEADLINE_EXCEEDED", f"{self.label}: DEADLINE_EXCEEDED")]
        setup, answers = self.world.setup, [("ok", f"{self.label}: good")]
        if self.world.faults >= setup.faults:
            return answers
        patient = self.kind == "patient register"
        for fault, answer, able in (
            ("unavailable", "UNAVAILABLE", not patient),
            ("refused", "UNAUTHENTICATED", self.kind != "rpc"),
            ("dead", "died", self.kind != "rpc"),
        ):
            if fault in setup.kinds and able:
                answers.append((answer, f"{self.label}: {answer}"))
        return answers

    def urgent(self, now: float) -> bool:
        # Time may pass while I/O runs; beyond its time-out only if that fault is left.
        if now >= self.due or (self.channel is not None and self.channel.closed):
            return True
        setup = self.world.setup
        spent = "late" not in setup.kinds or self.world.faults >= setup.faults
        return spent and self.due < NEVER


class Channel:
    """A gRPC channel without a network."""

    def __init__(self, world: World, number: int, address: str) -> None:
        self.world, self.number, self.address = world, number, address
        self.closed = False
        self.rpcs = 0

    def unary_unary(self, method: str, *args: Any, **kwargs: Any) -> Channel:
        return self

    def with_call(self, request: Any, timeout: float | None, **about: Any) -> Any:
        if self.closed:
            raise ValueError("Cannot invoke RPC on closed channel!")
        self.rpcs += 1
        try:
            answer = self.world.io("rpc", self, timeout)
        finally:
            self.rpcs -= 1
        self.world.watch.answered(self)
        return answer, None

    def close(self) -> None:
        if not self.closed:
            laws.check_channel_close(self.world, self)
        self.closed = True


class SearchPool(Pool):
    """The pool, with its world looking on."""

    def __init__(self, world: World) -> None:
        seams = Seams(clock=lambda: world.kernel.now, wall=world.in_step_hook, chance=lambda: 0.5)
        super().__init__(
            "threads",
            world.setup.lifecycle_policy(),
            transport=world,  # type: ignore[arg-type]
            strategy_for=strategy(world.setup.strategy, lambda: world.target),
            seams=seams,
        )
        self.world = world

    def register(self, connection: Any) -> Any:
        self.world.connections.append(connection)
        self.world.handlers[connection] = connection.handler
        pooled = super().register(connection)
        if pooled is not connection:  # another thread was first
            self.world.connections.remove(connection)
        return pooled

    def step(self, connection: Any, trigger: Any, **facts: Any) -> bool:
        return False if self.world.kernel.dead else super().step(connection, trigger, **facts)


class SearchDriver:
    """A driver that performs nothing: every request is the search's to answer."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.pool = SearchPool(world)
        self.pool.driver = self
        self.mailbox: deque[Callable[[], object]] = deque()

    def permanent_channel(self, connection: Any) -> LifecycleChannel:
        return LifecycleChannel(self.pool, self.drive, connection)

    def drive(self, procedure: Any) -> Any:
        began = self.world.kernel.now
        try:
            return self._drive(procedure)
        finally:
            laws.check_wait(self.world, began)

    def _drive(self, procedure: Any) -> Any:
        try:
            request = next(procedure)
            while True:
                try:
                    result = self.perform(request)
                except BaseException as error:
                    request = procedure.throw(error)
                else:
                    request = procedure.send(result)
        except StopIteration as stop:
            return stop.value

    def perform(self, request: Any) -> Any:
        laws.check_no_lock(self.world, type(request).__name__)
        if isinstance(request, Wait):
            return self._wait(request)
        if isinstance(request, Open):
            return self.world.open(request.address)
        if isinstance(request, Register):
            kind = "patient register" if request.patient else "register"
            return self.world.io(kind, request.wire.channel, request.timeout)
        if isinstance(request, Ping):
            return self.world.io("ping", request.wire.channel, request.timeout)
        if isinstance(request, Locate):
            return request.locator.locate(request.connection.lifecycle, None, request.timeout)
        assert isinstance(request, Pause)
        return self.world.kernel.pause(
            Blocked("pauses", _never, self.world.kernel.now + request.seconds)
        )

    def _wait(self, request: Wait) -> None:
        woken: list[bool] = []
        wake = partial(woken.append, True)
        life = request.connection.lifecycle
        if not life.join(request.flight, wake, request.until, leads=request.leads):
            return
        try:
            waiting = Waiting(self.world, request, woken)
            if self.world.kernel.pause(waiting) == "cancelled":
                self.world.faults += 1
                raise Died
        finally:
            if life.leave(request.flight, wake):
                self.pool.deserted(request.connection, request.flight)

    def launch(self, connection: Any, flight: Any) -> None:
        world = self.world
        if "nothread" in world.setup.kinds and world.faults < world.setup.faults:
            answer = world.kernel.pause(Chance("gets a thread", "gets no thread"))
            if answer == "gets no thread":
                world.faults += 1
                raise RuntimeError("can't start new thread")
        name = f"leader of flight {flight.number}"
        recovery = Recovery(self.pool, connection, flight)
        world.kernel.spawn(name, partial(self._fly, recovery), (connection, flight))

    def _fly(self, recovery: Recovery) -> None:
        try:
            self.drive(recovery.fly(object()))
        except Died:
            return

    def post(self, job: Callable[[], object]) -> None:
        self.mailbox.append(job)

    def reschedule(self) -> None:
        """The keeper of the model sees by itself what is due."""

    def refresh_in_background(self, connection: Any) -> None:
        refresh = self.pool.maintenance.refresh
        self.world.kernel.spawn("refresh", lambda: self.drive(refresh(connection)))

    def dispose(self, wire: Any) -> None:
        laws.check_no_lock(self.world, "close of a channel")
        wire.methods.clear()
        wire.channel.close()

    def keep_time(self) -> None:
        """Runs what is due and what finalizers have put off."""
        while True:
            self.world.kernel.pause(Blocked("timekeeper", self._work_waits))
            if self.mailbox:
                self.mailbox.popleft()()
            else:
                self.pool.maintenance.run_due()

    def _work_waits(self) -> bool:
        due = self.pool.maintenance.schedule.next_due()
        return bool(self.mailbox) or (due is not None and due <= self.world.kernel.now)


def _never() -> bool:
    return False


class Waiting(Blocked):
    """A caller in a flight; may be cancelled, where that is among the faults."""

    __slots__ = ("woken", "world")

    def __init__(self, world: World, request: Wait, woken: list[bool]) -> None:
        due = request.until + request.grace
        super().__init__("wakes", woken.__len__, due, about=request.flight)
        self.world, self.woken = world, woken

    def answers(self, now: float) -> list[tuple[Any, str]]:
        answers = list(super().answers(now))
        setup = self.world.setup
        if "cancelled" in setup.kinds and self.world.faults < setup.faults:
            answers.append(("cancelled", "is cancelled"))
        return answers

    def urgent(self, now: float) -> bool:
        return bool(super().answers(now))


def _goes_well(move: Any) -> bool:
    return move.process is not None and type(move.process.pending) is not Choice


class World:
    """Everything of one run; also the transport."""

    def __init__(self, setup: Setup) -> None:
        self.setup = setup
        self.kernel = Kernel()
        self.target = HOME
        self.faults = 0
        self.stays = Rpc()
        self.channels: list[Channel] = []
        self.connections: list[Any] = []
        #: the handler that each connection had when it was pooled
        self.handlers: dict[Any, Any] = {}
        #: channels of the parent process
        self.inherited: list[Channel] = []
        self.records: list[TransitionRecord] = []
        self.traps: list[Actor] = []
        self.watch = laws.Watch(self)
        self.driver = SearchDriver(self)
        self.pool = self.driver.pool
        self.pool.audit.readers = (Tap(self.hear),)  # type: ignore[assignment]
        self.kernel.alarms = [self.pool.maintenance.schedule.next_due, self._next_stop]
        self.actors: list[Actor] = []

    def begin(self) -> Iterator[Move]:
        """Whoever is to have a connection from the start checks out, and all goes well.

        Yields every move of that, before it is made. What breaks a law here is a finding, too.
        """
        kernel, setup = self.kernel, self.setup
        grain, SimLock.grain = SimLock.grain, False
        kernel.spawn("timekeeper", self.driver.keep_time, start=True)
        for name, plan in zip("ABC", setup.actors, strict=False):
            self.actors.append(Actor(self, name, plan))
        laws.check(self)
        while any(actor.busy for actor in self.actors):
            move = next((m for m in kernel.moves() if _goes_well(m)), None)
            if move is None:
                raise laws.Broken(4, "a checkout does not end, though all goes well")
            yield move
            kernel.take(move)
            laws.check(self)
        for actor in self.actors:
            if actor.plan.ready and not actor.holds:
                raise laws.Broken(9, f"{actor.name} got no connection, though all goes well")
        kernel.cut, kernel.preemptions = None, 0
        if setup.stays:
            binding = self.connections[0].lifecycle.binding
            assert binding.wire.enter(self.stays)
            binding.wire.channel.rpcs += 1
        SimLock.grain = grain
        if setup.closer:
            kernel.spawn("closer", self.close, start=True)

    @property
    def unread(self) -> bool:
        """Is there something that the timekeeper has not read?"""
        return bool(self.driver.mailbox)

    # -- the closer -------------------------------------------------------------------------

    def close(self) -> None:
        getattr(self, "close_" + self.kernel.pause(Choice(*self.setup.closer)))()

    def close_close_all(self) -> None:
        pooled = self.pool.registry.all()
        self.pool.close_all("close_all")
        laws.check_closed(pooled)

    def close_close_handler(self) -> None:
        pooled = self.pool.registry.all()
        for connection in pooled:
            connection.face.close()
        laws.check_closed(pooled)

    def close_fork(self) -> None:
        """In the child only the thread that forked lives on."""
        for process in list(self.kernel.processes):
            about = process.about
            idle = isinstance(about, Actor) and not about.busy
            if process is not self.kernel.running and process.name != "timekeeper" and not idle:
                self.watch.orphans.append(process)
                self.kernel.processes.remove(process)
        self.watch.forked()
        self.inherited = list(self.channels)
        self.pool.fork_child()

    def close_move(self) -> None:
        self.target = AWAY
        self.pool.maintenance.reroute_all()

    # -- what the engine meets --------------------------------------------------------------

    def make_handler(self, connection: Any, channel: Any) -> FakeHandler:
        return FakeHandler(channel)

    def translate(self, error: LifecycleError) -> Exception:
        return error

    def outdated(self, *about: object) -> bool:
        return False

    def open(self, address: str) -> Channel:
        channel = Channel(self, len(self.channels) + 1, address)
        self.channels.append(channel)
        return channel

    def io(self, kind: str, channel: Channel | None, timeout: float | None) -> str:
        """Some I/O: its result, or its error."""
        if channel is not None and channel.closed and kind != "rpc":
            raise ValueError("Cannot invoke RPC on closed channel!")
        laws.check_no_lock(self, kind)
        answer = self.kernel.pause(Io(self, kind, channel, timeout))
        if answer in ("ok", None):
            return f"identifier of channel {channel.number}" if channel is not None else ""
        if answer != "CANCELLED":
            self.faults += 1
        if answer == "died":
            raise Died
        raise rpc_error(answer)

    def least_since(self, began: float) -> list[float]:
        """Runs are too short for it to matter."""
        return []

    def hear(self, record: TransitionRecord) -> None:
        """Reads the records as they are queued."""
        if record.event == TRANSITION:
            self.records.append(record)

    def in_step_hook(self) -> datetime:
        """Asked for the date inside a step: where a collector may strike."""
        for actor in list(self.traps):
            if actor.holds and not actor.busy:
                self.traps.remove(actor)
                actor.do_vanish()
        return WALL

    def finalize(self, client: Client) -> None:
        """What a user's ``__del__`` does: give back what it holds."""
        if not self.kernel.dead and self.connections:
            client.on_end = None
            self.pool.release(self.connections[-1], None)

    def _next_stop(self) -> float | None:
        passed = self.kernel.now - 1000.0
        return min((1000.0 + stop for stop in self.setup.stops if stop > passed), default=None)

    # -- for the explorer -------------------------------------------------------------------

    def moves(self) -> list[Any]:
        return self.kernel.moves()

    def take(self, move: Any) -> None:
        self.kernel.take(move)

    def end(self) -> None:
        self.kernel.end()
        for actor in self.actors:
            if actor.client is not None:
                actor.client.on_end = None


def watched_ask(ask: Callable[..., Any]) -> Callable[..., Any]:
    """Law 5: whoever failed in an older generation is not delayed."""

    def ask_and_watch(retry: Any, error: Exception) -> Any:
        start = stamp_of(error)
        asked = ask(retry, error)
        if start is None or start.binding.generation >= start.connection.generation:
            return (yield from asked)
        try:
            request = next(asked)
        except StopIteration as stop:
            return stop.value
        waits = type(request).__name__
        raise laws.Broken(5, f"a failure of an older generation waits: {waits}")

    return ask_and_watch


@contextmanager
def simulated(setup: Setup) -> Iterator[None]:
    """The engine's locks are the search's; what the machine does is watched; nothing collects."""
    life = lifecycle_module.Lifecycle
    changes = (
        (lifecycle_module, "threading", SimThreading),
        (admission_module, "threading", SimThreading),
        simulated_wires(),
        (mutex_module, "here", SimHere()),
        (SimLock, "grain", setup.preemptions is not None),
        (lifecycle_module, "fire", laws.watched(vars(lifecycle_module)["fire"])),
        (life, "lead", laws.watched_lead(life.lead)),
        (life, "enter", laws.watched_enter(life.enter)),
        (life, "make_mandatory", laws.watched_budget(life.make_mandatory)),
        (Retry, "ask", watched_ask(Retry.ask)),
        (maintenance_module, "complain", laws.complain),
    )
    collecting = gc.isenabled()
    gc.disable()
    try:
        with replaced(*changes):
            yield
    finally:
        if collecting:
            gc.enable()
