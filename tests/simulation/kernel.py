"""The kernel: processes that run one at a time, and a clock that moves when the search says so.

A process is a greenlet. Wherever real threads could be switched, or would wait, it *pauses*: it
says what it waits for and hands control back. Whoever holds the kernel then picks one of
``moves()`` and lets it happen. Nothing else runs meanwhile, so a list of picked numbers replays
a run exactly. Computing takes no time: the clock moves only when nobody can run.
"""

from __future__ import annotations

import itertools
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any, NamedTuple

from greenlet import GreenletExit, getcurrent, greenlet

from milvus_lifecycle.core.wire import Wire
from milvus_lifecycle.errors import error_code

#: Clock readings start here, so that a moment can be told from a duration.
EPOCH = 1000.0
NEVER = float("inf")
#: No call is under way for longer, and no policy of a set-up asks for more (seconds).
LONG_AGO = 20.0
#: A run that is longer than this (moves) does not end by itself: a livelock.
LONGEST = 2000


class Move(NamedTuple):
    """One thing that can happen next: a process goes on with an answer, or time passes."""

    process: Process | None
    answer: Any
    label: str


class Pause:
    """What a process waits for. ``between``: it is in the middle of something."""

    __slots__ = ("due", "label")

    between = False

    def __init__(self, label: str, due: float = NEVER) -> None:
        self.label = label
        self.due = due

    def answers(self, now: float) -> Sequence[tuple[Any, str]]:
        """(answer, label) of every way in which it can go on now."""
        raise NotImplementedError

    def urgent(self, now: float) -> bool:
        """Can it go on of its own accord, in no time?"""
        return bool(self.answers(now))


class Point(Pause):
    """Another thread may run here, and then this one goes on."""

    __slots__ = ()

    between = True

    def answers(self, now: float) -> Sequence[tuple[Any, str]]:
        return ((None, self.label),)


class Start(Point):
    """A thread that was started and has not run yet."""

    __slots__ = ()

    between = False


class Choice(Pause):
    """The process decides by itself, whenever it likes."""

    __slots__ = ("options",)

    def __init__(self, *options: str) -> None:
        super().__init__("decides")
        self.options = options

    def answers(self, now: float) -> Sequence[tuple[Any, str]]:
        return [(option, option) for option in self.options]

    def urgent(self, now: float) -> bool:
        return False


class Chance(Choice):
    """The world decides, at once, in the middle of something."""

    __slots__ = ()

    between = True

    def urgent(self, now: float) -> bool:
        return True


class Blocked(Pause):
    """Waits until ``ready()``, or until a time."""

    __slots__ = ("about", "ready")

    def __init__(
        self, label: str, ready: Callable[[], object], due: float = NEVER, about: Any = None
    ) -> None:
        super().__init__(label, due)
        self.ready = ready
        self.about = about

    def answers(self, now: float) -> Sequence[tuple[Any, str]]:
        if self.ready():
            return ((True, self.label),)
        return ((False, f"{self.label}: time is up"),) if now >= self.due else ()


class LockWait(Blocked):
    """Waits for a lock that somebody else has."""

    __slots__ = ()

    between = True


class Process:
    """One thread, as far as the engine is concerned."""

    __slots__ = (
        "about",
        "body",
        "failed",
        "finished",
        "handles",
        "locks",
        "name",
        "number",
        "pending",
        "runner",
    )

    def __init__(
        self, number: int, name: str, body: Callable[[], Any], about: Any, hub: greenlet
    ) -> None:
        self.number = number
        self.name = name
        self.about = about
        self.body = body
        self.pending: Pause | None = Start("starts")
        self.finished = False
        #: how many locks it holds
        self.locks = 0
        #: the exception that it handles while it waits (class, message)
        self.handles: tuple[str, ...] = ()
        self.failed: Exception | None = None
        self.runner = greenlet(self._run, parent=hub)

    def _run(self, answer: Any) -> None:
        try:
            self.body()
        except Exception as error:
            self.failed = error
        finally:
            self.finished = True
            self.body = _nothing

    def __repr__(self) -> str:
        return f"<{self.name}>"


def _nothing() -> None:
    """What a finished process would do."""


class Kernel:
    """All processes of one run."""

    #: the kernel whose processes run now: simulated locks ask it
    active: Kernel | None = None

    def __init__(self) -> None:
        self.now = EPOCH
        self.processes: list[Process] = []
        #: whoever searches: every process hands control back to it
        self.hub = getcurrent()
        self.running: Process | None = None
        #: whoever ran last, if it could have gone on
        self.cut: Process | None = None
        self.preemptions = 0
        self.dead = False
        self.alarms: list[Callable[[], float | None]] = []
        #: (process, error) of those that raised what nobody caught
        self.crashes: list[tuple[Process, Exception]] = []
        self._numbers = itertools.count(1)
        Kernel.active = self

    def spawn(
        self, name: str, body: Callable[[], Any], about: Any = None, *, start: bool = False
    ) -> Process:
        """A new process; it runs when it is picked, or up to its first pause at once."""
        process = Process(next(self._numbers), name, body, about, self.hub)
        self.processes.append(process)
        if start:
            self._run(process, None)
        return process

    def _run(self, process: Process, answer: Any) -> None:
        self.running = process
        pending = process.runner.switch(answer)
        self.running = None
        process.pending = None if process.finished else pending
        if process.finished:
            self.processes.remove(process)
            if process.failed is not None:
                self.crashes.append((process, process.failed))

    def pause(self, pause: Pause) -> Any:
        """Called inside a process: hand control back until ``pause`` is over."""
        process = self.running
        if self.dead and getcurrent() is not self.hub:
            raise GreenletExit  # this run is over: its processes are being collected
        if process is None:
            return None
        error = sys.exc_info()[1]
        process.handles = () if error is None else (type(error).__name__, error_code(error))
        return self.hub.switch(pause)

    def moves(self) -> list[Move]:
        """Everything that can happen next. Empty: nothing ever will."""
        moves: list[Move] = []
        now, urgent, due = self.now, False, NEVER
        for process in self.processes:
            pending = process.pending
            if pending is None:
                continue
            answers = pending.answers(now)
            moves.extend(Move(process, answer, label) for answer, label in answers)
            if answers and pending.urgent(now):
                urgent = True
            elif pending.due > now:
                due = min(due, pending.due)
        if not urgent:
            for alarm in self.alarms:
                at = alarm()
                if at is not None and at > now:
                    due = min(due, at)
            if due < NEVER:
                moves.append(Move(None, due, f"{due - EPOCH:g} s"))
        return moves

    def take(self, move: Move) -> None:
        """Let one thing happen, up to the next pause of whoever it happens to."""
        process = move.process
        Kernel.active = self
        if process is None:
            self.now = move.answer
            self.cut = None
            return
        if self.cut is not None and self.cut is not process:
            self.preemptions += 1
        self._run(process, move.answer)
        self.cut = process if isinstance(process.pending, Point) else None

    def again(self, number: int, answer: Any) -> None:
        """Make a move that was made before, in a run that was the same up to here."""
        process = next(p for p in self.processes if p.number == number) if number else None
        self.take(Move(process, answer, ""))

    def end(self) -> None:
        """Nothing more happens: what still waits is dropped without a word."""
        self.dead = True
        for process in self.processes:
            process.pending = None
            # The collector does not see what a greenlet's frames refer to: unwound, or kept.
            with suppress(BaseException):
                process.runner.throw(GreenletExit)
        self.processes = []
        if Kernel.active is self:
            Kernel.active = None


class SimLock:
    """A lock between processes. Taking it and giving it back is where others may run.

    ``RLock`` and ``Lock`` of the engine's modules become these. Every process counts what it
    holds, so that whoever waits with a lock in its hand is caught. What was only tried for
    (``blocking=False``) does not count: nobody ever waits for it.
    """

    __slots__ = ("count", "counted", "owner", "reentrant")

    #: does the search look between critical sections at all?
    grain: bool = False

    def __init__(self, *, reentrant: bool = True) -> None:
        self.owner: Process | None = None
        self.count = 0
        self.counted = False
        self.reentrant = reentrant

    def acquire(self, blocking: bool = True) -> bool:
        kernel = Kernel.active
        process = kernel.running if kernel is not None else None
        if kernel is not None and process is not None:
            if self.owner is process and self.reentrant:
                self.count += 1
                return True
            if SimLock.grain:
                kernel.pause(Point("goes on"))
            while self.count and not kernel.dead:
                if not blocking:
                    return False
                kernel.pause(LockWait("gets the lock", self._free))
            self.counted = blocking
            process.locks += blocking
        self.owner = process
        self.count += 1
        return True

    def _free(self) -> bool:
        return not self.count

    def _is_owned(self) -> bool:
        kernel = Kernel.active
        return bool(self.count) and kernel is not None and self.owner is kernel.running

    def release(self) -> None:
        self.count -= 1
        if self.count:
            return
        process, self.owner = self.owner, None
        if process is not None:
            process.locks -= self.counted
            kernel = Kernel.active
            if SimLock.grain and kernel is not None and kernel.running is process:
                kernel.pause(Point("goes on"))

    def __enter__(self) -> SimLock:
        self.acquire()
        return self

    def __exit__(self, *exc: object) -> None:
        self.release()


def simulated_wires() -> tuple[Any, str, Any]:
    """What to replace so that the locks of channels are simulated, too: ``Wire`` has taken the
    real ``RLock`` along when it was made."""
    make = Wire.__init__

    def make_and_lock(wire: Wire, *args: Any, **about: Any) -> None:
        make(wire, *args, **about)
        wire._lock = SimLock()

    return Wire, "__init__", make_and_lock


class SimHere:
    """Stands for what a thread knows of itself in ``mutex``: each process has its own.

    By the greenlet, not by who runs: a process of a run that is over is unwound at any time.
    """

    @property
    def locks(self) -> list[Any]:
        here: Any = getcurrent()
        if not hasattr(here, "locks"):
            here.locks = []
        locks: list[Any] = here.locks
        return locks


class SimThreading:
    """Stands for the module ``threading`` inside the engine's own modules."""

    @staticmethod
    def RLock() -> SimLock:
        return SimLock()

    @staticmethod
    def Lock() -> SimLock:
        return SimLock(reentrant=False)

    @staticmethod
    def get_ident() -> int:
        kernel = Kernel.active
        process = kernel.running if kernel is not None else None
        return process.number if process is not None else -1
