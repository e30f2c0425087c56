"""Simulated threads: stands for ``threading`` and ``queue`` where the seed picks who runs.

Where real threads could be switched (a lock, an event, a queue, a look at the clock) the seed
decides whether that happens, and for how long; a collector may come there, too.
"""

from __future__ import annotations

import queue
from collections import deque
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any

from tests.simulation import laws
from tests.simulation.actors import Died
from tests.simulation.kernel import (
    LONGEST,
    NEVER,
    Blocked,
    Kernel,
    Pause,
    Point,
    Process,
    SimThreading,
)

if TYPE_CHECKING:
    from tests.simulation.threads_schedules import ThreadsWorld

_POINT = Point("goes on")
KEEPER = "milvus-lifecycle-timekeeper"


def never() -> bool:
    return False


class Stalled(Blocked):
    """A thread that the system does not run for a while, wherever it is."""

    __slots__ = ()

    between = True


class Scheduler(Kernel):
    """Processes of which the seed picks the one that runs next."""

    def __init__(self, world: ThreadsWorld) -> None:
        super().__init__()
        self.world = world
        self.rng = world.rng
        #: how often a thread is cut short where it could be
        self.rate = self.rng.choice((0.0, 0.05, 0.2, 0.5))
        #: points passed since anybody waited for anything
        self.passed = 0
        self.stalls = self.rng.choice((0.0, 0.0, 0.03))

    def pause(self, pause: Pause) -> Any:
        if pause.__class__ is Point and self.running is not None and not self.dead:
            if self.world.garbage and self.rng.random() < 0.1:
                # A finalizer that itself releases steps another connection: not under a lock.
                self.world.collect(finalizers=not self.running.locks)
            self.passed += 1
            if self.passed > LONGEST:
                raise laws.Broken(4, f"{self.running} spins")
            draw = self.rng.random()
            if draw >= self.rate:
                return None
            if draw < self.rate * self.stalls:
                length = self.rng.choice((0.01, 0.25, 0.5))
                self.world.slack += length
                pause = Stalled("is not run", never, self.now + length)
        self.passed = 0
        return super().pause(pause)

    def move(self) -> bool:
        """Let somebody run, or time pass. False: nothing will ever happen."""
        now, ready, due = self.now, [], NEVER
        for process in self.processes:
            pending = process.pending
            assert pending is not None
            answers = pending.answers(now)
            if answers:
                ready.append((process, answers[0]))
            elif pending.due < due:
                due = pending.due
        if ready:
            process, (answer, label) = ready[self.rng.randrange(len(ready))]
            self.world.note(f"{process.name}: {label}")
            self._run(process, answer)
            if process.failed is not None:
                raise process.failed
            return True
        if not any(
            p.pending is not None and (p.pending.between or p.locks) for p in self.processes
        ):
            self.world.check_quiet()
        if due == NEVER:
            return False
        self.now = due
        return True

    def end(self) -> None:
        """What still waits is ended at once, so that nothing of it runs in another schedule."""
        processes = list(self.processes)
        super().end()
        for process in processes:
            process.runner.throw()


class SimEvent:
    """``threading.Event``, as far as the manager uses it."""

    __slots__ = ("flag",)

    def __init__(self) -> None:
        self.flag = False

    def is_set(self) -> bool:
        return self.flag

    def set(self) -> None:
        self.flag = True
        point()


class SimThread:
    """``threading.Thread``."""

    def __init__(
        self,
        *,
        target: Callable[..., object],
        args: tuple[Any, ...] = (),
        name: str = "",
        daemon: bool = True,
    ) -> None:
        self.work: Callable[[], object] = partial(target, *args)
        self.name = name
        self.process: Process | None = None

    def start(self) -> None:
        kernel = Kernel.active
        assert isinstance(kernel, Scheduler)
        if kernel.rng.random() < kernel.world.poverty:
            if self.name == KEEPER:
                # It is tried again with the next connection or timer; until then all is late.
                kernel.world.slack = NEVER
            raise RuntimeError("can't start new thread")
        self.process = kernel.spawn(self.name, self._run, self)
        point()

    def _run(self) -> None:
        try:
            self.work()
        except Died:
            return
        finally:
            self.work = never

    def is_alive(self) -> bool:
        alive = self.process is not None and not self.process.finished
        point()  # what was seen may be over when it is acted upon
        return alive


class SimQueue:
    """``queue.SimpleQueue``: ``put`` is atomic."""

    __slots__ = ("letters",)

    def __init__(self) -> None:
        self.letters: deque[Any] = deque()

    def put(self, letter: Any) -> None:
        self.letters.append(letter)
        point()

    def get(self, timeout: float | None = None) -> Any:
        kernel = Kernel.active
        if kernel is not None:
            due = NEVER if timeout is None else kernel.now + timeout
            kernel.pause(Blocked("looks at its mail", self.letters.__len__, due))
        if not self.letters:
            raise queue.Empty
        return self.letters.popleft()

    def empty(self) -> bool:
        empty = not self.letters
        point()
        return empty


class Threading(SimThreading):
    """Stands for the module ``threading`` inside the engine's modules."""

    Event = SimEvent
    Thread = SimThread
    TIMEOUT_MAX = NEVER

    @staticmethod
    def current_thread() -> Any:
        kernel = Kernel.active
        process = kernel.running if kernel is not None else None
        return process.about if process is not None else _MAIN


class Queues:
    """Stands for the module ``queue``."""

    SimpleQueue = SimQueue
    Empty = queue.Empty


_MAIN = SimThread(target=never, name="main")


def point() -> None:
    kernel = Kernel.active
    if kernel is not None and kernel.running is not None:
        kernel.pause(_POINT)
