"""The threads driver: it blocks where a procedure asks it to, and no more.

Callers never do the engine's I/O: a flight runs on a daemon thread of its own, so that every
caller can leave at its own deadline; of the recoveries of one address a few run at a time. One
more daemon thread keeps time for all connections of a pool; it ends when there are none.
"""

from __future__ import annotations

import atexit
import queue
import threading
import weakref
from collections.abc import Callable
from contextlib import suppress
from typing import Any, TypeVar, cast

from ..core.connection import ManagedConnection
from ..core.facts import Located, wait_until
from ..core.flight import Flight
from ..core.maintenance import attempt
from ..core.mutex import Reentered
from ..core.pool import Pool, look
from ..core.recovery import Recovery
from ..core.requests import (
    AskLoadState,
    Join,
    Locate,
    Open,
    Pause,
    Ping,
    Procedure,
    Register,
    Request,
    Wait,
)
from ..core.wire import Wire
from ..errors import Interrupted, summarize
from ..fork import ForkGate, around_fork, note_closed_channel, on_fork_in_child
from .threads_channel import LifecycleChannel

T = TypeVar("T")


class ThreadsDriver:
    """Performs what the procedures of one pool ask for, by blocking. Thread-safe."""

    def __init__(self, pool: Pool) -> None:
        self._mailbox: queue.SimpleQueue[Callable[[], object]] = queue.SimpleQueue()
        self.pool = pool
        pool.driver = self
        self._keeper: threading.Thread | None = None
        self._keeper_lock = threading.RLock()
        self.gate = ForkGate()
        _DRIVERS.add(self)
        on_fork_in_child(self)
        around_fork(self)

    def permanent_channel(self, connection: ManagedConnection) -> LifecycleChannel:
        """A channel for a GrpcHandler."""
        return LifecycleChannel(self.pool, self.drive, connection)

    # -- driving procedures ----------------------------------------------------------------

    def drive(self, procedure: Procedure[T]) -> T:
        """Run a procedure to its end on this thread."""
        try:
            request = next(procedure)
            while True:
                try:
                    result = self._perform(request)
                except BaseException as error:
                    request = procedure.throw(error)
                else:
                    request = procedure.send(result)
        except StopIteration as stop:
            return cast(T, stop.value)

    def _perform(self, request: Request) -> Any:
        transport = self.pool.transport
        if isinstance(request, Wait):
            return self._wait(request)
        if isinstance(request, Register):
            return self._ask(request, transport.register, request.timeout, request.patient)
        if isinstance(request, Ping):
            return self._ask(request, transport.ping, request.timeout)
        if isinstance(request, Open):
            with self.gate.inside():
                return transport.open(request)
        if isinstance(request, Join):
            ended = threading.Event()
            request.join(ended.set)
            return wait_until(ended, request.until)
        if isinstance(request, Locate):
            located: Located = request.locator.locate(
                request.connection.lifecycle, request.failure, request.timeout
            )
            return located
        if isinstance(request, AskLoadState):
            return transport.load_state(request.connection, request.collection, request.timeout)
        assert isinstance(request, Pause)
        return self.pool.seams.wait(threading.Event(), self.pool.seams.clock() + request.seconds)

    def _ask(self, request: Register | Ping, ask: Callable[..., Any], *how: Any) -> Any:
        connection, wire = request.connection, request.wire
        answered = False
        try:
            with self.gate.inside():
                answer = ask(connection, wire, *how)
                # Whoever forks closes the gate, then looks at this: either he sees it, or this
                # thread stays in here until the fork is over, and sees that it was recalled.
                answered = connection.lifecycle.vouch(wire)
        except Exception:
            if not wire.recalled:
                raise
        if not answered:
            raise Interrupted(address=wire.address)
        return answer

    def _wait(self, request: Wait) -> None:
        life, flight, landed = request.connection.lifecycle, request.flight, threading.Event()
        wake = landed.set
        try:
            if life.join(flight, wake, request.until, leads=request.leads):
                self.pool.seams.wait(landed, request.until + request.grace)
        finally:
            if life.leave(flight, wake) and not request.leads:
                self.pool.deserted(request.connection, flight)

    # -- what the pool asks of its driver ---------------------------------------------------

    def launch(self, connection: ManagedConnection, flight: Flight) -> None:
        recovery = Recovery(self.pool, connection, flight)
        name = f"{flight.kind.value}-{connection.lifecycle.id}"
        worker = _make_thread(name, self._fly, recovery)
        try:
            worker.start()
        except RuntimeError:
            if not _exiting:
                raise
            # From Python 3.12 on no thread can be started any more: the caller flies.
            self._fly(recovery)

    def _fly(self, recovery: Recovery) -> None:
        try:
            self.drive(recovery.fly(threading.current_thread()))
        except Exception as error:
            # The flight is settled as abandoned and on record; a traceback helps nobody.
            recovery.life.last_failure = summarize(error)
        finally:
            recovery.abandon(threading.current_thread())  # it may not have begun

    def refresh_in_background(self, connection: ManagedConnection) -> None:
        refresh = self.pool.maintenance.refresh(connection)
        _make_thread(f"refresh-{connection.lifecycle.id}", self.drive, refresh).start()

    def dispose(self, wire: Wire) -> None:
        wire.methods.clear()
        try:
            if not wire.interrupted:
                wire.channel.close()
        except BaseException:
            wire.interrupted = True
            raise
        finally:
            note_closed_channel()
            if wire.interrupted:  # closing it may hang, and so may dropping it: not in this thread
                self.post(_make_thread("close", wire.channel.close).start)
                self.reschedule()

    # -- time ------------------------------------------------------------------------------

    def post(self, job: Callable[[], object]) -> None:
        # SimpleQueue.put is re-entrant: finalizers may call this anywhere.
        self._mailbox.put(job)

    def reschedule(self) -> None:
        keeper = self._keeper
        if keeper is not None and keeper.is_alive():
            # Itself, too: a finalizer may plan on its thread, after it has read what is next.
            self._mailbox.put(look)
            return
        if self._keeper_lock._is_owned():  # type: ignore[attr-defined]
            self._mailbox.put(look)  # a finalizer sets a timer while this thread starts the keeper
            return
        with self._keeper_lock:
            if self._keeper is not None and self._keeper.is_alive():
                self._mailbox.put(look)
                return
            keeper = _make_thread("timekeeper", _keep_time, weakref.ref(self), self._mailbox)
            # Noted first: whoever is interrupted here may have started it.
            self._keeper = keeper
            with suppress(RuntimeError):  # no thread to be had: the next timer tries again
                keeper.start()

    def keeper_may_end(self) -> bool:
        """Called by the timekeeper: it has nothing to do without a connection.

        What is on the schedule then is about connections that are closed.
        """
        with self._keeper_lock:
            if self._busy():
                return False
            keeper, self._keeper = self._keeper, None
            # Whoever registers a connection looks for a keeper after that, without the lock: he
            # has seen that there is none, or the connection is seen here.
            if self._busy():
                self._keeper = keeper
                return False
            return True

    def _busy(self) -> bool:
        return len(self.pool.registry) > 0 or not self._mailbox.empty()

    def fork_begins(self) -> None:
        """Let no flight be inside gRPC while the process forks: channels that connect are closed.

        Their flights open others afterwards. RPCs of callers are left alone.
        """
        self.gate.close()
        try:
            recalled = [connection.lifecycle.recall() for connection in self.pool.registry.all()]
        except Reentered:  # a finalizer forks, of all things
            return
        closed = [wire for result in recalled for wire in result.retired if wire.close_if_drained()]
        for wire in closed:
            self.pool.close_channel(wire)

    def fork_child(self) -> None:
        self.gate = ForkGate()
        self._mailbox = queue.SimpleQueue()
        self._keeper = None
        self._keeper_lock = threading.RLock()
        self.pool.fork_child()
        if len(self.pool.registry):
            self.reschedule()

    def __del__(self) -> None:
        self._mailbox.put(_stop)


def _make_thread(name: str, target: Callable[..., object], *args: object) -> threading.Thread:
    name = f"milvus-lifecycle-{name}"
    return threading.Thread(target=target, args=args, name=name, daemon=True)


def _stop() -> None:
    """The last letter that a timekeeper gets."""


def _keep_time(
    driver_ref: weakref.ref[ThreadsDriver], mailbox: queue.SimpleQueue[Callable[[], object]]
) -> None:
    """The timekeeper: runs what is due and what finalizers put off. Holds the driver weakly."""
    while True:
        driver = driver_ref()
        if driver is None:
            return
        due = driver.pool.maintenance.run_due()
        if driver.keeper_may_end():
            return
        wait = None
        if due is not None:
            wait = min(max(0.0, due - driver.pool.seams.clock()), threading.TIMEOUT_MAX)
        del driver
        try:
            job = mailbox.get(timeout=wait)
        except queue.Empty:
            continue
        if job is _stop:
            return
        attempt(job)
        del job  # while nothing comes it would keep the connection that it was about, and its pool


_DRIVERS: weakref.WeakSet[ThreadsDriver] = weakref.WeakSet()


_exiting = False


def _at_exit() -> None:
    # What was registered with atexit before us runs after this, and may go on calling.
    global _exiting
    _exiting = True
    for driver in list(_DRIVERS):
        driver.pool.close_all("close_all")


atexit.register(_at_exit)
