"""AsyncConnectionManager: the asyncio driver. It awaits where a procedure asks it to, and no more.

Table, machine, procedures, strategies, registry and audit are those of the threads flavour; a
flight is a task of the loop instead of a thread, and the loop's own timer keeps time. A manager
belongs to one event loop. It is known weakly and kept alive by a timer of that loop: when the
loop is closed, the timer goes, and with it the connections, without an await on a dead loop.
"""

from __future__ import annotations

import asyncio
import threading
import weakref
from collections.abc import Callable, Coroutine
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar, cast

from ..audit.stream import Listener
from ..config import ConnectionConfig, ForeignConfig
from ..core.face import Face
from ..core.facts import Located
from ..core.kept import kept
from ..core.procedures import Procedures
from ..core.requests import (
    AskLoadState,
    Locate,
    Open,
    Pause,
    Ping,
    Procedure,
    Register,
    Request,
    Wait,
)
from ..errors import Interrupted, LifecycleError, LoopMismatch, for_callers
from ..fork import on_fork_in_child
from ..policy import LifecyclePolicy, parse_timeout
from ..settings import Settings
from .aio_loops import GONE, call_in, fail, hush, run_at_once, settle

if TYPE_CHECKING:
    from ..core.connection import ManagedConnection
    from ..core.flight import Flight
    from ..core.readiness import Status
    from ..core.strategies import Locator
    from ..core.wire import Wire

T = TypeVar("T")
Work = Callable[[], Coroutine[Any, Any, None]]
Done = Callable[[object], object]

#: The timer that ties a manager to its loop is never due (seconds).
_NEVER = 10 * 365 * 86_400.0


class AsyncConnectionManager(Procedures):
    """Pools connections for ``AsyncMilvusClient``; a drop-in for pymilvus's class of that name.

    Use it inside its event loop. Errors are those of ``ConnectionManager``.
    """

    flavour: ClassVar[str] = "asyncio"
    # By id of the loop. Weak: a manager lives as long as its loop or somebody who uses it.
    _instances: ClassVar[weakref.WeakValueDictionary[int, AsyncConnectionManager]] = (
        weakref.WeakValueDictionary()
    )

    def __init__(self, policy: LifecyclePolicy | None = None, **seams: Any) -> None:
        loop = asyncio.get_running_loop()
        if "transport" not in seams:
            from ..integrations.pymilvus import AsyncioTransport

            seams["transport"] = AsyncioTransport()
        super().__init__(policy, **seams)
        self._loop_ref = weakref.ref(loop)
        self._tasks: set[asyncio.Task[Any]] = set()
        self._timer: asyncio.TimerHandle | None = None
        self._timer_due = float("inf")
        # Known weakly: the loop alone may keep the anchor.
        self._anchored = weakref.ref(loop.call_later(_NEVER, _Anchor(self).hold))
        on_fork_in_child(self)

    # -- public ----------------------------------------------------------------------------

    @classmethod
    def get_instance(cls) -> AsyncConnectionManager:
        """The running loop's manager. Raises LoopMismatch outside of a loop."""
        try:
            loop = asyncio.get_running_loop()
        except RuntimeError:
            raise for_callers(LoopMismatch("no event loop is running here")) from None
        with Settings.lock:
            over = [known for known in cls._instances.values() if known.loop_is_over()]
            instance = cls._instances.get(id(loop))
            if instance is None or instance.loop is not loop:
                settings = Settings.current()
                instance = cls(settings.policy, sinks=settings.sinks)
                cls._instances[id(loop)] = instance
        for known in over:
            known.loop_gone()  # outside the lock: closing calls listeners
        return instance

    @classmethod
    def drop_instances(cls) -> None:
        """Close the managers of every loop; ``get_instance`` makes new ones."""
        with Settings.lock:
            instances = list(cls._instances.values())
            cls._instances.clear()
        for instance in instances:
            instance.retire()

    async def get_or_create(
        self,
        config: ConnectionConfig | ForeignConfig,
        dedicated: bool = False,
        client: object | None = None,
        timeout: float | None = None,
    ) -> Any:
        """A handler on a usable connection; see ``ConnectionManager.get_or_create``."""
        try:
            if timeout is not None:
                timeout = parse_timeout(timeout)
            if not dedicated and type(config) is ConnectionConfig:
                pooled = self.registry.find(config.key)
                if pooled is not None and pooled.try_fast(client, self.seams.clock()):
                    return pooled.handler
            return await self.drive(self.obtain(config, dedicated, client, timeout))
        except LifecycleError as error:
            raise self.transport.translate(error) from error.last_error

    async def release(self, handler: Any, client: object | None = None) -> None:
        """Give a lease back. Raises UnknownHandler."""
        face = self.face_of(handler)
        self.let_go(face.connection, client)
        self.wind()  # its expiry may be planned on a timer that was interrupted
        face.let_go_elsewhere(client)

    async def close_all(self) -> None:
        """Close every connection at once; whoever waits for one wakes with the closed error."""
        self.shut_all("close_all")

    async def handle_error(self, handler: Any, error: Exception) -> bool:
        """What pymilvus's decorator asks after a failed call: True if it should retry.

        False for a handler that this manager did not hand out.
        """
        face = self.find_face(handler)
        return face is not None and await face.on_rpc_error(error)

    def get_stats(self) -> dict[str, Any]:
        """Counts and one row per connection; ages and idle times in seconds."""
        return self.stats()

    def subscribe(self, listener: Listener) -> Callable[[], None]:
        """Call ``listener(record)`` for every transition. Returns the unsubscriber."""
        return self.listen(listener)

    async def __aenter__(self) -> AsyncConnectionManager:
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self.close_all()
        anchored = self._anchored()
        if anchored is not None and self not in list(self._instances.values()):
            anchored.cancel()  # a manager of one's own need not wait for the loop's end

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
        if isinstance(request, Wait):
            return await self._wait(request)
        if isinstance(request, Register):
            return await self._ask(
                request, self.transport.register, request.timeout, request.patient
            )
        if isinstance(request, Ping):
            return await self._ask(request, self.transport.ping, request.timeout)
        if isinstance(request, Open):
            return self.transport.open(
                request.connection, request.address, request.secure, request.window
            )
        if isinstance(request, Locate):
            return await self._locate(request)
        if isinstance(request, AskLoadState):
            return await self.transport.load_state(
                request.connection, request.collection, request.timeout
            )
        assert isinstance(request, Pause)
        return await asyncio.sleep(request.seconds)

    async def _ask(self, request: Register | Ping, ask: Callable[..., Any], *how: Any) -> Any:
        connection, wire = request.connection, request.wire
        loop, name = asyncio.get_running_loop(), f"milvus-lifecycle-ask-{connection.id}"
        # A task of its own: grpc.aio cancels whoever waits on a channel that is closed, and that
        # is not to be taken for the end of the flight.
        asked = self._spawn(loop, partial(ask, connection, wire, *how), name, _retrieve)
        try:
            await asyncio.wait({asked})
            try:
                answer = asked.result()
                if connection.vouch(wire):
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

        def wake() -> None:
            # The outcome may come from another thread, or from a loop that is over.
            call_in(loop, settle, landed)

        try:
            if request.connection.join(request.flight, wake, request.until, leads=request.leads):
                left = request.until + request.grace - self.seams.clock()
                await asyncio.wait({landed}, timeout=max(0.0, left))
        finally:
            self.parted(request.connection, request.flight, wake)

    async def _locate(self, request: Locate) -> Located:
        args = (request.connection, request.last_error, request.timeout)
        alocate = getattr(request.locator, "alocate", None)
        if alocate is not None:
            return cast(Located, await alocate(*args))
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

    # -- what the engine asks of its driver ------------------------------------------------

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
        self.shut_all("its event loop was closed")

    def _here(self) -> bool:
        """Is this code running inside the manager's loop?"""
        try:
            return asyncio.get_running_loop() is self.loop
        except RuntimeError:
            return False

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
        name = f"milvus-lifecycle-{flight.kind.value}-{connection.id}"
        flown = partial(self._flown, connection, flight)
        self._start(loop, partial(self._fly, connection, flight), name, flown)

    def _flown(self, connection: ManagedConnection, flight: Flight, task: object) -> None:
        # A task that is cancelled before its first step never enters its coroutine.
        self.abandon(connection, flight, task)

    def aside(self, connection: ManagedConnection) -> None:
        loop = self.loop
        if loop is not None and not loop.is_closed():
            name = f"milvus-lifecycle-refresh-{connection.id}"
            self._start(loop, lambda: self.drive(self.refresh(connection)), name)

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

    async def _fly(self, connection: ManagedConnection, flight: Flight) -> None:
        try:
            await self.drive(self.fly(connection, flight, asyncio.current_task()))
        except asyncio.CancelledError as cancelled:
            # asyncio keeps it with the task; its frames hold gRPC's call object.
            raise cancelled.with_traceback(None) from None
        except Exception as error:
            # The flight is settled as abandoned and on record; a traceback helps nobody.
            connection.last_error = kept(error)

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

    def discharge(self, connection: ManagedConnection, locator: Locator) -> None:
        locator.release(connection)

    # -- time ------------------------------------------------------------------------------

    def post(self, job: Callable[[], object]) -> None:
        loop = self.loop
        if loop is not None:
            call_in(loop, job)

    def wind(self) -> None:
        if not self.loop_is_over():
            self._in_loop(self._arm)

    def _arm(self) -> None:
        loop, due = self.loop, self.agenda.next_due()
        if loop is None or loop.is_closed() or due is None:
            return
        if due >= self._timer_due > self.seams.clock():
            return  # a timer that is overdue may have been interrupted as it went off
        # In this order: whoever is interrupted leaves a timer too many behind, not one too few.
        self._timer_due = float("inf")
        if self._timer is not None:
            self._timer.cancel()
        self._timer = loop.call_later(max(0.0, due - self.seams.clock()), self._tick)
        self._timer_due = due

    def _tick(self) -> None:
        self._timer, self._timer_due = None, float("inf")
        try:
            self.run_due()
        finally:
            self._arm()

    def fork_child(self) -> None:
        """The parent's loop does not run in the child: nothing of it is touched."""
        self._tasks = set()
        self._timer, self._timer_due = None, float("inf")
        super().fork_child()


class AsyncFace(Face):
    """What the asyncio permanent channel adds: how it waits, and other loops."""

    engine: AsyncConnectionManager

    def __init__(self, engine: AsyncConnectionManager, connection: ManagedConnection) -> None:
        super().__init__(engine, connection)
        self._statuses: weakref.WeakKeyDictionary[asyncio.Task[Any], Status] = (
            weakref.WeakKeyDictionary()
        )

    def note_status(self, status: Status) -> None:
        super().note_status(status)
        self._statuses[_this_task()] = status

    def take_status(self, error: Exception) -> Status | None:
        status = super().take_status(error)
        if status is not None:
            self._statuses.pop(_this_task(), None)
            return status
        # Up to Python 3.11 asyncio.wait_for runs an attempt in a task of its own, whose context
        # is lost; what that task ended with is the very error that the decorator asks about
        # (and whose traceback keeps the task).
        for task, noted in list(self._statuses.items()):
            if task.done() and not task.cancelled() and task.exception() is error:
                del self._statuses[task]
                return noted
        return None

    async def on_rpc_error(self, error: Exception) -> bool:
        """``handler._on_rpc_error``: waits for a recovery; True if the call should be retried."""
        engine = self.engine
        try:
            return await engine.drive(engine.on_error(self, error))
        except LifecycleError as failure:
            raise engine.transport.translate(failure) from error

    def let_go_elsewhere(self, client: object | None) -> None:
        """Release what a client holds in other loops."""


def _this_task() -> asyncio.Task[Any]:
    # Never None: an RPC is awaited, and whoever awaits is a task.
    return cast("asyncio.Task[Any]", asyncio.current_task())


def _retrieve(task: Any) -> None:
    """Look at an error that nobody may wait for any more, so that asyncio does not complain."""
    if not task.cancelled():
        task.exception()


class _Anchor:
    """Held by nothing but a timer of the loop: goes when the loop is closed or collected."""

    __slots__ = ("manager",)

    def __init__(self, manager: AsyncConnectionManager) -> None:
        self.manager = manager

    def hold(self) -> None:
        """Never called."""

    def __del__(self) -> None:
        self.manager.loop_gone()
