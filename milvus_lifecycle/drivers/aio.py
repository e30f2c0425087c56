"""The asyncio driver: it awaits where a procedure asks it to, and no more.

A flight is a task of the loop instead of a thread, and the loop's own timer keeps time. A manager
belongs to one event loop and is kept alive by a timer of it: when the loop is closed, the timer
goes, and with it the connections, without an await on a dead loop.
"""

from __future__ import annotations

import asyncio
import threading
import time
import weakref
from collections.abc import Callable, Coroutine
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar, cast

from ..core.connection import ManagedConnection
from ..core.facts import Located
from ..core.flight import Flight
from ..core.pool import Pool
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
from ..errors import Interrupted, LoopMismatch, summarize
from ..fork import note_closed_channel, on_fork_in_child
from .aio_channel import AsyncLifecycleChannel
from .aio_loops import GONE, call_in, fail, hush, run_at_once, settle

T = TypeVar("T")
Work = Callable[[], Coroutine[Any, Any, None]]
Done = Callable[[object], object]

#: The timer that ties a manager to its loop is never due (seconds).
_NEVER = 10 * 365 * 86_400.0


def running_loop() -> asyncio.AbstractEventLoop | None:
    """The event loop in which this code runs; None outside of any."""
    try:
        return asyncio.get_running_loop()
    except RuntimeError:
        return None


class AsyncDriver:
    """Performs what the procedures of one pool ask for, by awaiting. Belongs to one loop."""

    def __init__(self, pool: Pool, running: Callable[[], Any]) -> None:
        loop = asyncio.get_running_loop()
        self.pool = pool
        pool.driver = self
        #: finds the manager of the running loop, for clients that are used in another one
        self.running = running
        self._loop_ref = weakref.ref(loop)
        self._tasks: set[asyncio.Task[Any]] = set()
        self._timer: asyncio.TimerHandle | None = None
        self._timer_due = float("inf")
        on_fork_in_child(self)

    def permanent_channel(self, connection: ManagedConnection) -> AsyncLifecycleChannel:
        """A channel for an AsyncGrpcHandler."""
        return AsyncLifecycleChannel(self, connection)

    def anchor(self, manager: object) -> weakref.ref[asyncio.TimerHandle]:
        """Keep ``manager`` alive by a timer of the loop; when that goes, so do the connections."""
        loop = asyncio.get_running_loop()
        # Known weakly: the loop alone may keep the anchor.
        return weakref.ref(loop.call_later(_NEVER, _Anchor(self, manager).hold))

    # -- driving procedures ----------------------------------------------------------------

    async def drive(self, procedure: Procedure[T]) -> T:
        """Run a procedure to its end in this task."""
        try:
            request = next(procedure)
            while True:
                try:
                    result = await self._perform(request)
                except BaseException as error:
                    request = procedure.throw(error)
                else:
                    request = procedure.send(result)
        except StopIteration as stop:
            return cast(T, stop.value)

    async def _perform(self, request: Request) -> Any:
        transport = self.pool.transport
        if isinstance(request, Wait):
            return await self._wait(request)
        if isinstance(request, Register):
            return await self._ask(request, transport.register, request.timeout, request.patient)
        if isinstance(request, Ping):
            return await self._ask(request, transport.ping, request.timeout)
        if isinstance(request, Open):
            return transport.open(request)
        if isinstance(request, Join):
            return await self._join(request)
        if isinstance(request, Locate):
            return await self._locate(request)
        if isinstance(request, AskLoadState):
            return await transport.load_state(
                request.connection, request.collection, request.timeout
            )
        assert isinstance(request, Pause)
        return await asyncio.sleep(request.seconds)

    async def _ask(self, request: Register | Ping, ask: Callable[..., Any], *how: Any) -> Any:
        connection, wire = request.connection, request.wire
        loop, name = asyncio.get_running_loop(), f"milvus-lifecycle-ask-{connection.lifecycle.id}"
        # A task of its own: grpc.aio cancels whoever waits on a channel that is closed, and that
        # is not to be taken for the end of the flight.
        asked = self._spawn(loop, partial(ask, connection, wire, *how), name, _retrieve)
        try:
            await asyncio.wait({asked})
            try:
                answer = asked.result()
                if connection.lifecycle.vouch(wire):
                    return answer
            except (Exception, asyncio.CancelledError):
                if not wire.recalled:
                    raise
            raise Interrupted(address=wire.address)
        finally:
            asked.cancel()
            del asked  # with its error, whose frames lead to this one and to gRPC's call

    async def _wait(self, request: Wait) -> None:
        loop = asyncio.get_running_loop()
        landed: asyncio.Future[None] = loop.create_future()
        life = request.connection.lifecycle

        def wake() -> None:
            # The outcome may come from another thread, or from a loop that is over.
            call_in(loop, settle, landed)

        try:
            if life.join(request.flight, wake, request.until, leads=request.leads):
                left = request.until + request.grace - self.pool.seams.clock()
                await asyncio.wait({landed}, timeout=max(0.0, left))
        finally:
            if life.leave(request.flight, wake) and not request.leads:
                self.pool.deserted(request.connection, request.flight)

    async def _join(self, request: Join) -> None:
        loop = asyncio.get_running_loop()
        ended: asyncio.Future[None] = loop.create_future()
        request.join(lambda: call_in(loop, settle, ended))
        await asyncio.wait({ended}, timeout=max(0.0, request.until - time.monotonic()))

    async def _locate(self, request: Locate) -> Located:
        args = (request.connection.lifecycle, request.failure, request.timeout)
        alocate = getattr(request.locator, "alocate", None)
        if alocate is not None:
            return cast("Located", await alocate(*args))
        # A daemon thread of its own: the loop's executor would make its shutdown wait.
        loop = asyncio.get_running_loop()
        found: asyncio.Future[Located] = loop.create_future()

        def locate() -> None:
            try:
                located = request.locator.locate(*args)
            except BaseException as error:
                call_in(loop, fail, found, error)
            else:
                call_in(loop, settle, found, located)

        threading.Thread(target=locate, name="milvus-lifecycle-locate", daemon=True).start()
        return await found

    # -- what the pool asks of its driver ---------------------------------------------------

    @property
    def loop(self) -> asyncio.AbstractEventLoop | None:
        """The loop that this manager belongs to, while it exists."""
        return self._loop_ref()

    def loop_is_over(self) -> bool:
        """Closed or collected: nothing can be awaited there any more."""
        loop = self.loop
        return loop is None or loop.is_closed()

    def loop_gone(self) -> None:
        """The loop was closed: close the connections without it."""
        for task in self._tasks:
            hush(task)
        self.pool.close_all("its event loop was closed")

    def _here(self) -> bool:
        """Is this code running inside the manager's loop?"""
        loop = running_loop()
        return loop is not None and loop is self.loop

    def _in_loop(self, job: Callable[..., object], *args: object) -> None:
        """Run ``job`` in the loop's thread: now if this is it, or if the loop is not running."""
        loop = self.loop
        if loop is None or not loop.is_running() or self._here():
            job(*args)
        else:
            call_in(loop, job, *args)

    def launch(self, connection: ManagedConnection, flight: Flight) -> None:
        loop = self.loop
        if loop is None or loop.is_closed():
            raise LoopMismatch("the connection's event loop is closed", address=connection.address)
        name = f"milvus-lifecycle-{flight.kind.value}-{connection.lifecycle.id}"
        recovery = Recovery(self.pool, connection, flight)
        # A task that is cancelled before its first step never enters its coroutine.
        self._start(loop, partial(self._fly, recovery), name, recovery.abandon)

    def refresh_in_background(self, connection: ManagedConnection) -> None:
        loop = self.loop
        if loop is not None and not loop.is_closed():
            name = f"milvus-lifecycle-refresh-{connection.lifecycle.id}"
            self._start(loop, lambda: self.drive(self.pool.maintenance.refresh(connection)), name)

    def _start(
        self, loop: asyncio.AbstractEventLoop, work: Work, name: str, done: Done | None = None
    ) -> None:
        if self._here():
            self._spawn(loop, work, name, done)
        else:
            loop.call_soon_threadsafe(self._spawn, loop, work, name, done)

    def _spawn(
        self, loop: asyncio.AbstractEventLoop, work: Work, name: str, done: Done | None
    ) -> asyncio.Task[Any]:
        working = work()
        try:
            task = loop.create_task(working)
        except BaseException:
            working.close()
            raise
        task.set_name(name)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        if done is not None:
            task.add_done_callback(done)
        return task

    async def _fly(self, recovery: Recovery) -> None:
        try:
            await self.drive(recovery.fly(asyncio.current_task()))
        except asyncio.CancelledError as cancelled:
            # The flight keeps its task, and asyncio with the task this error, whose frames hold
            # gRPC's call object; in Python 3.10 so do those of its context, the inner task's error.
            cancelled.__context__ = None
            raise cancelled.with_traceback(None) from None
        except Exception as error:
            # The flight is settled as abandoned and on record; a traceback helps nobody.
            recovery.life.last_failure = summarize(error)

    def dispose(self, wire: Wire) -> None:
        self._in_loop(self._dispose_here, wire)

    def _dispose_here(self, wire: Wire) -> None:
        # In a loop that is closed each RPC raises RuntimeError once, when it is cancelled.
        for rpc in wire.rpcs():
            with suppress(RuntimeError):
                rpc.sever()
        wire.methods.clear()
        channel = wire.channel
        for _ in range(wire.in_flight + 3 if channel is not GONE else 0):
            with suppress(RuntimeError):
                run_at_once(channel.close())  # without grace it awaits nothing
                break
        wire.channel = GONE
        note_closed_channel()

    # -- time ------------------------------------------------------------------------------

    def post(self, job: Callable[[], object]) -> None:
        loop = self.loop
        if loop is not None:
            call_in(loop, job)

    def reschedule(self) -> None:
        if not self.loop_is_over():
            self._in_loop(self._arm)

    def _arm(self) -> None:
        loop, due = self.loop, self.pool.maintenance.schedule.next_due()
        if loop is None or loop.is_closed() or due is None:
            return
        if due >= self._timer_due > self.pool.seams.clock():
            return  # a timer that is overdue may have been interrupted as it went off
        # In this order: whoever is interrupted leaves a timer too many behind, not one too few.
        self._timer_due = float("inf")
        if self._timer is not None:
            self._timer.cancel()
        self._timer = loop.call_later(max(0.0, due - self.pool.seams.clock()), self._tick)
        self._timer_due = due

    def _tick(self) -> None:
        self._timer, self._timer_due = None, float("inf")
        try:
            self.pool.maintenance.run_due()
        finally:
            self._arm()

    def fork_child(self) -> None:
        """The parent's loop does not run in the child: nothing of it is touched."""
        self._tasks = set()
        self._timer, self._timer_due = None, float("inf")
        self.pool.fork_child()


def _retrieve(task: Any) -> None:
    """Look at an error that nobody may wait for any more, so that asyncio does not complain."""
    if not task.cancelled():
        task.exception()


@dataclass(slots=True, eq=False)
class _Anchor:
    """Held by nothing but a timer of the loop: goes when the loop is closed or collected."""

    driver: AsyncDriver
    manager: object

    def hold(self) -> None:
        """Never called."""

    def __del__(self) -> None:
        self.driver.loop_gone()
