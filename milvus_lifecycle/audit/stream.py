"""The way of records to listeners and sinks: one queue and one thread for each of them.

A step puts its record into the queues while it holds its connection's mutex, so records are in
``seq`` order by construction, and nobody ever waits for a reader: one that is slow, blocks for
ever or calls the very client that it hears of delays itself alone. A queue that is full drops
what comes next, and its reader is told how many.
"""

from __future__ import annotations

import atexit
import queue
import threading
import time
import weakref
from collections.abc import Callable
from contextlib import suppress
from contextvars import Context, copy_context
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Generic, TypeVar

from ..errors import brief
from ..fork import renew_in_child
from .logs import warn
from .records import WARNING, Sink, TransitionRecord, Waited

Item = TypeVar("Item")

#: So many items wait for one reader; about 10 MB of records.
LIMIT = 10_000
#: A thread that has nothing to do for so long (seconds) ends; the next item starts another.
IDLE = 1.0
#: So long (seconds) the end of the process waits for readers.
EXIT_LIMIT = 1.0


class Outlet(Generic[Item]):
    """One reader's queue, and the daemon thread that serves it while there is something in it."""

    def __init__(self, read: Callable[[Item], object], lost: Callable[[int], object]) -> None:
        self._read = read
        #: told of how many items were dropped, at their place in the order
        self._lost = lost
        self._reset()
        _OUTLETS.add(self)

    def _reset(self) -> None:
        """Empty, with no thread. In a forked child what waits is the parent's to tell."""
        self._queue: queue.SimpleQueue[Callable[[], object]] = queue.SimpleQueue()
        self._dropped = 0
        self._worker: threading.Thread | None = None
        # Re-entrant: the collector may run a finalizer in here that loses a lease.
        self._lock = threading.RLock()

    def put(self, item: Item, room: int = 0) -> None:
        """Add an item. Never waits; call ``serve`` once no lock is held.

        One that is to leave ``room`` for others is dropped before the queue is full.
        """
        with self._lock:
            if self._queue.qsize() >= LIMIT - room:
                self._dropped += 1
                return
            self._confess()
            self._queue.put(partial(self._read, item))

    def mark(self, reached: Callable[[], object]) -> None:
        """Have ``reached`` called by whoever reads, at this place in the order."""
        with self._lock:
            self._confess()
            self._queue.put(reached)

    def _confess(self) -> None:
        if self._dropped:
            dropped, self._dropped = self._dropped, 0
            self._queue.put(partial(self._lost, dropped))

    def serve(self) -> None:
        """Have a thread read what waits. Called outside of every lock."""
        if self._worker is not None or self._queue.empty():
            return
        if _exiting:
            self._read_here()
            return
        worker = threading.Thread(target=self._run, name="milvus-lifecycle-records", daemon=True)
        try:
            if self._become(worker):
                worker.start()
        except BaseException as error:
            with self._lock:
                if self._worker is worker and not worker.is_alive():
                    self._worker = None  # the next item, or the end, tries again
            if not isinstance(error, RuntimeError):  # no thread to be had
                raise

    def _become(self, worker: threading.Thread) -> bool:
        """Make ``worker`` the one that reads. False if there is one."""
        with self._lock:
            if self._worker is not None:
                return False
            self._worker = worker
            return True

    def _run(self, here: bool = False) -> None:
        with self._lock:
            if self._worker is not threading.current_thread():
                return  # whoever started it was interrupted, and could not know that it runs
        while True:
            try:
                told = self._queue.get(timeout=0 if here or _exiting else IDLE)
                with suppress(BaseException):  # the reader's own business: whoever reads goes on
                    told()
                del told  # what was told is not kept while nothing comes
            except queue.Empty:
                with self._lock:
                    self._confess()
                    if self._queue.empty():
                        self._worker = None
                        return
            else:
                if self._dropped and self._queue.empty():
                    with self._lock:
                        self._confess()

    def _read_here(self) -> None:
        """Read on this thread: the process ends, or no other can be started."""
        if self._become(threading.current_thread()):
            try:
                self._run(here=True)
            except BaseException:
                self._worker = None
                raise

    def flush(self, limit: float) -> bool:
        """Wait until what is in the queue now has been read, at most ``limit`` seconds.

        False if that took longer, or if this is the reader's own thread.
        """
        worker, reached = self._worker, threading.Event()
        if worker is threading.current_thread():
            return False
        self.mark(reached.set)
        if worker is not None and not worker.is_alive():
            self._worker = None  # it did not live to say so
        self.serve()
        self._read_here()
        return reached.wait(limit)


_OUTLETS: weakref.WeakSet[Outlet[Any]] = weakref.WeakSet()
_exiting = False


def _renew() -> None:
    for outlet in list(_OUTLETS):
        outlet._reset()


renew_in_child(_renew)  # before any manager has news there


def flush_all(limit: float) -> None:
    """Flush every outlet of the process, all within ``limit`` seconds."""
    until = time.monotonic() + limit
    for outlet in list(_OUTLETS):
        outlet.flush(max(0.0, until - time.monotonic()))


def _at_exit() -> None:
    global _exiting
    flush_all(EXIT_LIMIT)
    # What is still to come is read by whoever causes it: a daemon thread may not live to do so.
    _exiting = True
    flush_all(0.0)  # wakes the threads, which end


atexit.register(_at_exit)


# -- what goes through them -----------------------------------------------------------------------


@dataclass(slots=True, eq=False)
class Emission:
    """A record, the log level that it deserves, and the context of whoever caused it."""

    record: TransitionRecord
    level: int
    context: Context = field(default_factory=copy_context)
    #: who has been given it: a step that was interrupted may queue it twice
    readers: list[object] = field(default_factory=list)


Listener = Callable[[TransitionRecord], object]


class Reader:
    """A sink, with the queue that it is served from."""

    def __init__(self, sink: Sink) -> None:
        self.wants, self.hears_waits = sink.wants, sink.hears_waits
        self.outlet = Outlet(self._read, partial(self._attempt, sink.note_lost))
        #: deliveries that raised
        self.failures = 0
        self._sink = sink

    def _read(self, item: Emission | Waited) -> None:
        if isinstance(item, Waited):
            if self.hears_waits:
                self._attempt(self._sink.note_wait, item)
        elif self not in item.readers and self.wants(item.level):
            item.readers.append(self)
            run = item.context.copy().run
            self._attempt(run, self._sink.write, item.record, item.level)

    def _attempt(self, tell: Callable[..., object], *what: object) -> None:
        try:
            tell(*what)
        except BaseException as error:  # this thread is ours: nobody else is to end by it
            self.failures += 1
            if self.failures == 1:
                complain(f"a reader of the audit raised {brief(error)}; more is only counted")


class Listening(Sink):
    """Calls a listener with every record; one that has a ``wait_ended`` with every wait, too."""

    def __init__(self, listener: Listener) -> None:
        self._listener = listener
        self._wait_ended = getattr(listener, "wait_ended", None)
        self.hears_waits = self._wait_ended is not None

    def write(self, record: TransitionRecord, level: int) -> None:
        self._listener(record)

    def note_wait(self, waited: Waited) -> None:
        if self._wait_ended is not None:
            self._wait_ended(waited)

    def note_lost(self, count: int) -> None:
        complain(f"a listener was too slow: it missed {count} records, or waits of calls")


def reader_of(sink: Sink) -> Reader:
    """A sink's queue: one, however many managers write to it, so that records keep their order."""
    known: Reader | None = vars(sink).get("_reader")
    if known is None:  # of two that come at once, one wins
        known = vars(sink).setdefault("_reader", Reader(sink))
    return known


def end(sink: Sink, limit: float) -> None:
    """Nothing more is expected of a sink: it ends once it has written what waits for it."""
    outlet = reader_of(sink).outlet
    outlet.mark(sink.end)
    outlet.flush(limit)


class Audit:
    """The record stream of one manager: queues its records for whoever reads them."""

    def __init__(self, flavour: str, sinks: tuple[Sink, ...] = ()) -> None:
        self.flavour = flavour
        self.readers = tuple(map(reader_of, sinks))
        self._lock = threading.Lock()

    def subscribe(self, listener: Listener) -> Callable[[], None]:
        """Call ``listener(record)`` for every record from now on. Returns the unsubscriber."""
        if not callable(listener):
            raise TypeError(f"listener must be callable, not {type(listener).__name__}")
        reader = self.add(Listening(listener))

        def unsubscribe() -> None:
            # Not even what waits is told.
            reader.wants, reader.hears_waits = lambda level=0: False, False
            with self._lock:
                self.readers = tuple(known for known in self.readers if known is not reader)

        return unsubscribe

    def add(self, sink: Sink) -> Reader:
        """Have ``sink`` told of every record from now on."""
        reader = reader_of(sink)
        with self._lock:
            self.readers = (*self.readers, reader)
        return reader

    def reset_after_fork(self) -> None:
        """In the child: another thread of the parent may have held the lock."""
        self._lock = threading.Lock()

    def active(self, level: int = WARNING) -> bool:
        """Does anybody want records of that level right now?"""
        wanted = False
        for reader in self.readers:  # not any(): on the silent path its generator is half the cost
            wanted = wanted or reader.wants(level)
        return wanted

    # -- telling ---------------------------------------------------------------------------------

    def queue(self, emission: Emission) -> None:
        """Hand a record over, under the mutex of its connection: in the order of its ``seq``."""
        for reader in self.readers:
            if reader.wants(emission.level):
                reader.outlet.put(emission)

    def tell_wait(self, waited: Waited) -> None:
        """Tell those who want to know of calls, too. Called outside of every lock."""
        for reader in self.readers:
            if reader.hears_waits:
                reader.outlet.put(waited, LIMIT // 2)  # thousands come at once; records matter more
                reader.outlet.serve()

    def serve(self) -> None:
        """See that what was queued is read. Called outside of every lock."""
        for reader in self.readers:
            reader.outlet.serve()

    def flush(self, limit: float) -> bool:
        """Wait until every record so far has been read, ``limit`` seconds for each reader."""
        flushed = [reader.outlet.flush(limit) for reader in self.readers]
        return all(flushed)


def complain(message: str) -> None:
    """Say that something beside a call does not work. Whoever says it does not wait for it."""
    _COMPLAINTS.put(message)
    _COMPLAINTS.serve()


_COMPLAINTS: Outlet[str] = Outlet(warn, lambda count: None)
