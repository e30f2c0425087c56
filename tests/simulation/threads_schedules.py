"""Schedules of the threads driver: the real manager on simulated threads, locks and queues."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any, ClassVar

from grpc import RpcError

from milvus_lifecycle.core import admission as admission_module
from milvus_lifecycle.core import lifecycle as lifecycle_module
from milvus_lifecycle.core import maintenance as maintenance_module
from milvus_lifecycle.core import mutex as mutex_module
from milvus_lifecycle.core import recording as recording_module
from milvus_lifecycle.core import registry as registry_module
from milvus_lifecycle.drivers import threads as driver_module
from milvus_lifecycle.errors import LifecycleError
from milvus_lifecycle.managers import ConnectionManager
from milvus_lifecycle.testing import FakeHandler
from tests.simulation import laws
from tests.simulation.actors import Died
from tests.simulation.campaign import replaced
from tests.simulation.kernel import EPOCH, Blocked, SimHere, SimLock, simulated_wires
from tests.simulation.schedules import MOST_MOVES, MOST_SECONDS, World, watch, watched_lead
from tests.simulation.threads_kernel import (
    KEEPER,
    Queues,
    Scheduler,
    SimThread,
    Threading,
    never,
    point,
)
from tests.simulation.users import Call, Life, User
from tests.simulation.weather import PENDING, Channel, Operation

_MODULES = (
    admission_module,
    maintenance_module,
    lifecycle_module,
    driver_module,
    recording_module,
    registry_module,
)


class ThreadsChannel(Channel):
    """Its calls block."""

    def perform(self, kind: str, timeout: float | None, patient: bool = False) -> Any:
        return self.world.finish(self.begin(kind, timeout, patient))

    def with_call(self, request: Any, timeout: float | None, **about: Any) -> Any:
        operation = self.begin("rpc", timeout)
        self.rpcs += 1
        try:
            return self.world.finish(operation), None
        finally:
            self.rpcs -= 1

    def close(self) -> None:
        self.shut()
        point()


def watched(world: ThreadsWorld) -> None:
    """Give a world its manager, as shipped."""
    watch(world, ConnectionManager(world.policy, **world.seams()))
    driver = world.manager._driver
    wait, fly = driver._wait, driver._fly

    def wait_and_note(request: Any) -> None:
        with world.waits(request):
            wait(request)

    def fly_and_note(recovery: Any) -> None:
        with world.leads(recovery.connection, recovery.flight):
            fly(recovery)

    driver._wait, driver._fly = wait_and_note, fly_and_note


class ThreadsLocator:
    """Finds the place by I/O that blocks."""

    def __init__(self, world: ThreadsWorld) -> None:
        self.world = world

    def locate(self, connection: Any, last_error: Any, timeout: float) -> Any:
        laws.check_no_lock(self.world, "locate")  # type: ignore[arg-type]
        return self.world.finish(Operation(self.world, "locate", None, timeout, False))

    def release(self, connection: Any) -> None:
        """Nothing is held."""


class ThreadsWorld(World):
    """One schedule of the threads driver."""

    flavour: ClassVar[str] = "threads"
    channel_class = ThreadsChannel
    kernel: Scheduler

    def __init__(self, seed: int) -> None:
        super().__init__(seed)
        #: how often no thread can be had
        self.poverty = self.rng.choice((0.0, 0.0, 0.0, 0.2))
        self.kernel = Scheduler(self)

    @property
    def now(self) -> float:  # type: ignore[override]
        return self.kernel.now if self.kernel is not None else EPOCH

    def clock(self) -> float:
        point()
        return self.kernel.now

    def wait(self, event: Any, until: float) -> None:
        self.kernel.pause(Blocked("waits", event.is_set, until))

    def wall(self) -> Any:
        point()
        return super().wall()

    def check_quiet(self) -> None:
        super().check_quiet()
        if sum(process.name == KEEPER for process in self.kernel.processes) > 1:
            raise laws.Broken(1, "two timekeepers")

    @property
    def unread(self) -> bool:
        return bool(self.manager._driver._mailbox.letters) or super().unread

    def locator(self) -> Any:
        return ThreadsLocator(self)

    def who(self) -> Any:
        return self.kernel.running

    # -- the transport ------------------------------------------------------------------------

    def make_handler(self, connection: Any, channel: Any) -> FakeHandler:
        return FakeHandler(channel)

    def register(self, connection: Any, wire: Any, timeout: float, patient: bool) -> Any:
        return wire.channel.perform("register", timeout, patient)

    def ping(self, connection: Any, wire: Any, timeout: float) -> Any:
        return wire.channel.perform("ping", timeout)

    def finish(self, operation: Operation) -> Any:
        """Wait until a piece of I/O has ended. Returns or raises what came of it."""
        while True:
            self.kernel.pause(Blocked(operation.label, operation.moved, operation.at))
            verdict = operation.verdict()
            if isinstance(verdict, BaseException):
                raise verdict
            if verdict is not PENDING:
                return verdict

    # -- who runs -------------------------------------------------------------------------------

    def follow(self, user: User | ThreadsWorld, life: Life) -> None:
        """A thread that does what ``life`` says."""
        answer: Any = None
        order: float | Call | None = None
        while True:
            order = None  # it may hold the client that the next act drops
            try:
                order = life.send(answer)
            except StopIteration:
                return
            answer = None
            if isinstance(order, Call):
                answer = self.attempt(user, order)
            elif order > 0:
                self.kernel.pause(Blocked("sleeps", never, self.now + order))

    def attempt(self, user: Any, call: Call) -> Any:
        """Make a call; its errors and its duration are the laws' business."""
        began = self.now
        error: BaseException | None = None
        try:
            return call.make()
        except Died:
            return None
        except (RpcError, LifecycleError) as failure:
            error = failure
            return None
        finally:
            if not self.kernel.dead:
                self.checked(user, call, began, error)
            error = None  # it holds this frame, which would hold it, and with it a client

    def run(self) -> None:
        with simulated():
            watched(self)
            for user in self.actors:
                self._thread(user.name, partial(self.follow, user, user.live()))
            self._thread("the weather", partial(self.follow, self, self.forecast()))
            self._run_while(self._users_run)
            self._thread("the epilogue", partial(self.follow, self, self.epilogue()))
            self._run_while(self._users_run)
            self._run_while(self.kernel.processes.__len__)

    def _thread(self, name: str, work: Callable[[], None]) -> None:
        thread = SimThread(target=work, name=name)
        thread.process = self.kernel.spawn(name, thread._run, thread)

    def _users_run(self) -> bool:
        """Does anybody run besides the engine's own threads?"""
        return any(not p.name.startswith("milvus-lifecycle") for p in self.kernel.processes)

    def _run_while(self, condition: Callable[[], object]) -> None:
        kernel = self.kernel
        while condition():
            self.moves += 1
            if self.moves > MOST_MOVES or self.now > EPOCH + MOST_SECONDS:
                raise laws.Broken(4, f"no end in sight: {kernel.processes}")
            if not kernel.move():
                raise laws.Broken(4, f"wait for ever: {kernel.processes}")

    def end(self) -> None:
        with simulated():
            self.kernel.end()


@contextmanager
def simulated() -> Iterator[None]:
    """The engine's threads, locks and queues are the schedule's."""
    names = [(module, "threading", Threading) for module in _MODULES]
    grain = (SimLock, "grain", True)
    here = (mutex_module, "here", SimHere())
    queues = (driver_module, "queue", Queues)
    with replaced(*names, queues, here, grain, watched_lead(), simulated_wires()):
        yield
