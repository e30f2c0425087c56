"""A simulated event loop: asyncio's own, with a seed for its selector and for its clock.

What asyncio promises holds (callbacks run in the order in which they were scheduled). What it
leaves open the seed decides: when I/O completes and in which order, who is cancelled and where,
and when other threads do something.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from tests.simulation import laws
from tests.simulation.actors import Died
from tests.simulation.kernel import EPOCH, NEVER
from tests.simulation.schedules import MOST_MOVES, MOST_SECONDS
from tests.simulation.weather import PENDING, Operation

if TYPE_CHECKING:
    from tests.simulation.aio_schedules import AioWorld

#: A loop that sleeps for so long (seconds) waits for nothing that will come.
_FOR_EVER = 3600.0
_OWN = "milvus-lifecycle"


class ScheduledLoop(asyncio.BaseEventLoop):
    """An event loop whose selector is the seed. Also what the laws know as the kernel."""

    #: nobody holds a simulated lock here (the laws look)
    running = None
    processes: tuple[()] = ()

    def __init__(self, world: AioWorld) -> None:
        super().__init__()
        self.world, self.rng = world, world.rng
        self.now = EPOCH
        self.dead = False
        self.operations: list[tuple[Operation, asyncio.Future[Any]]] = []
        #: what other threads will do: (when, what, how)
        self.outside: list[tuple[float, str, Callable[[], object]]] = []
        self.tasks: list[asyncio.Task[Any]] = []
        #: was it woken from its sleep?
        self.roused = False
        #: how eager I/O is while callbacks are waiting to run
        self.eager = self.rng.choice((0.1, 0.5, 1.0))
        self.cancels = self.rng.choice((0, 0, 1, 2, 3))
        self._selector = self
        self.set_task_factory(self._make_task)

    def _make_task(self, loop: Any, work: Any, **options: Any) -> asyncio.Task[Any]:
        task = asyncio.Task(work, loop=loop, **options)
        self.tasks.append(task)
        return task

    # -- what the base class wants ------------------------------------------------------------

    def time(self) -> float:
        return self.now

    def _write_to_self(self) -> None:
        self.roused = True

    def call_soon(self, *args: Any, **options: Any) -> Any:  # type: ignore[override]
        if self.is_running() and asyncio._get_running_loop() is None:
            self.world.found(laws.Broken(4, "another thread calls back, and the loop sleeps on"))
        return super().call_soon(*args, **options)

    def _process_events(self, events: Any) -> None:
        """Everything was done by ``select``."""

    def call_exception_handler(self, context: dict[str, Any]) -> None:
        error = context.get("exception")
        if not isinstance(error, Died):
            said = laws.Broken(4, f"the loop says: {context.get('message')} {error!r}")
            self.world.found(error if isinstance(error, laws.Broken) else said)

    # -- the selector ---------------------------------------------------------------------------

    def select(self, timeout: float | None) -> list[Any]:
        """Between two rounds of callbacks: I/O completes, other threads act, time passes."""
        world, rng = self.world, self.rng
        world.moves += 1
        world.looks = 0
        if world.moves > MOST_MOVES or self.now > EPOCH + MOST_SECONDS:
            raise laws.Broken(4, "no end in sight")
        timer = NEVER if timeout is None else self.now + timeout
        sleeps = timer > self.now
        self.roused = False
        while True:
            world.raise_found()
            progress = self._cancel()
            while self._something_due() and (sleeps or rng.random() < self.eager):
                progress = self._happen() or progress
                if progress and rng.random() < 0.5:
                    break
            world.raise_found()
            if progress or self.roused or not sleeps:
                return []
            if not self._something_due():
                if self.now >= timer:
                    return []
                world.check_quiet()
                self._pass_time(timer)
                if self.now >= timer and rng.random() < 0.5:
                    return []  # the timer first

    def _due(self) -> list[Any]:
        now = self.now
        operations = [pair for pair in self.operations if pair[0].at <= now or pair[0].moved()]
        return [*operations, *(job for job in self.outside if job[0] <= now)]

    def _something_due(self) -> bool:
        return bool(self._due())

    def _pass_time(self, timer: float) -> None:
        moments = [operation.at for operation, _ in self.operations]
        due = min(timer, *moments, *(at for at, _, _ in self.outside), NEVER)
        if due > self.now + _FOR_EVER:
            raise laws.Broken(4, f"the loop waits for ever: {self.world.calling}")
        self.now = due

    def _happen(self) -> bool:
        """One thing that is due happens. True if the loop notices by itself."""
        due = self._due()
        chosen = due[self.rng.randrange(len(due))]
        if len(chosen) == 2:
            return self._complete(*chosen)
        self.outside.remove(chosen)
        self.world.note(f"another thread: {chosen[1]}")
        asyncio._set_running_loop(None)
        try:
            chosen[2]()
        finally:
            asyncio._set_running_loop(self)
        return False

    def _complete(self, operation: Operation, future: asyncio.Future[Any]) -> bool:
        if not future.done():
            verdict = operation.verdict()
            if verdict is PENDING:
                return False
            self.world.note(f"{operation.label}: {verdict!r:.60}")
            if isinstance(verdict, BaseException):
                future.set_exception(verdict)
            else:
                future.set_result(verdict)
        self.operations.remove((operation, future))
        return True

    def _cancel(self) -> bool:
        """Somebody is cancelled: a caller, or the leader of a flight."""
        if not self.cancels or self.rng.random() >= 0.02:
            return False
        leaders = [t for t in self.tasks if not t.done() and t.get_name().startswith(_OWN)]
        callers = [name for name in self.world.calling if name not in self.world.cancelled]
        if leaders and self.rng.random() < 0.5:
            task = self.rng.choice(leaders)
        elif callers:
            name = self.rng.choice(callers)
            self.world.cancelled.add(name)
            task = self.world.calling[name]
        else:
            return False
        self.cancels -= 1
        self.world.note(f"{task.get_name()} is cancelled")
        task.cancel()
        return True

    def start(self, operation: Operation) -> asyncio.Future[Any]:
        """Have a piece of I/O complete some day."""
        future = self.create_future()
        self.operations.append((operation, future))
        return future
