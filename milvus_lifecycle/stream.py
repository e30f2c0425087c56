"""The way of records to whoever reads them: one queue and one thread for each reader.

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
from typing import Generic, TypeVar

from .forking import on_fork_in_child

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
        _OUTLETS.add(self)  # type: ignore[arg-type]  # only ever flushed
        on_fork_in_child(self)

    def _reset(self) -> None:
        self._queue: queue.SimpleQueue[Item | _Mark] = queue.SimpleQueue()
        self._dropped = 0
        #: the thread that was last started, and the one that reads
        self._worker: threading.Thread | None = None
        self._reader: threading.Thread | None = None
        # Re-entrant: the collector may run a finalizer in here that loses a lease.
        self._lock = threading.RLock()

    def put(self, item: Item) -> None:
        """Add an item. Never waits; call ``serve`` once no lock is held."""
        with self._lock:
            if self._queue.qsize() >= LIMIT:
                self._dropped += 1
                return
            self._confess()
            self._queue.put(item)

    def _confess(self) -> None:
        if self._dropped:
            dropped, self._dropped = self._dropped, 0
            self._queue.put(_Mark(lambda: self._lost(dropped)))

    def serve(self) -> None:
        """Have a thread read what waits. Called outside of every lock."""
        if self._worker is not None or self._queue.empty():
            return
        if _exiting:
            self._drain()
            return
        worker = threading.Thread(target=self._run, name="milvus-lifecycle-records", daemon=True)
        try:
            with self._lock:
                if self._worker is not None:
                    return
                self._worker = worker
            worker.start()
        except BaseException as error:  # no thread to be had, or a signal handler's
            with self._lock:
                if self._worker is worker and self._reader is not worker:
                    self._worker = None  # the next item tries again; it may still start
            if not isinstance(error, RuntimeError):
                raise

    def _run(self) -> None:
        me = threading.current_thread()
        with self._lock:
            if self._worker not in (None, me):
                return  # whoever started this one was interrupted, and has started another
            self._worker = self._reader = me
        while True:
            try:
                self._handle(self._queue.get(timeout=IDLE))
            except queue.Empty:
                with self._lock:
                    self._confess()
                    if self._queue.empty():
                        self._worker = self._reader = None
                        return
            else:
                if self._dropped and self._queue.empty():
                    with self._lock:
                        self._confess()

    def _handle(self, item: Item | _Mark) -> None:
        if isinstance(item, _Mark):
            item.reached()
        else:
            self._read(item)

    def _drain(self) -> None:
        """Read here and now: the process ends, and no thread can be started any more."""
        while True:
            try:
                item = self._queue.get_nowait()
            except queue.Empty:
                return
            self._handle(item)

    def flush(self, limit: float) -> bool:
        """Wait until what is in the queue now has been read, at most ``limit`` seconds.

        False if that took longer, or if this is the reader's own thread.
        """
        worker, reached = self._worker, threading.Event()
        if worker is threading.current_thread():
            return False
        with self._lock:
            self._confess()
            self._queue.put(_Mark(reached.set))
        if worker is not None and not worker.is_alive():
            self._worker = None  # it did not live to say so
        self.serve()
        if self._worker is None:
            self._drain()
        return reached.wait(limit)

    def fork_child(self) -> None:
        """In the child: what waits is the parent's to tell."""
        self._reset()


class _Mark:
    """A place in the queue at which something is to be called."""

    __slots__ = ("reached",)

    def __init__(self, reached: Callable[[], object]) -> None:
        self.reached = reached


_OUTLETS: weakref.WeakSet[Outlet[object]] = weakref.WeakSet()
_exiting = False


def flush_all(limit: float) -> None:
    """Flush every outlet of the process, all within ``limit`` seconds."""
    until = time.monotonic() + limit
    for outlet in list(_OUTLETS):
        outlet.flush(max(0.0, until - time.monotonic()))


def _at_exit() -> None:
    global _exiting
    flush_all(EXIT_LIMIT)
    _exiting = True


atexit.register(_at_exit)
