"""Testing without a network: a clock moved by hand, scripted I/O, captured audit records.

::

    clock, script = FakeClock(), Script()
    manager = ConnectionManager(transport=script.threads(), seams=clock.seams())
    audit = CapturedAudit(manager)
    script.hold("register")                        # the next Connect calls wait for you
    worker = threading.Thread(target=manager.get_or_create, args=(config,))
    worker.start()
    script.wait_held("register").fail(rpc_error("UNAVAILABLE"))
    audit.wait_for("probe_failed")

The asyncio manager takes ``script.asyncio()`` and runs in ``clock.new_event_loop()``. Everything
else is the engine itself: nothing of it is replaced, and pymilvus is not needed. Handlers are
plain objects with ``rpc`` (one RPC) and ``call`` (an RPC that is retried as pymilvus does).
"""

from __future__ import annotations

import asyncio
import heapq
import itertools
import threading
import time
import weakref
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, InvalidStateError
from datetime import datetime, timedelta, timezone
from types import TracebackType
from typing import TYPE_CHECKING, Any

from .audit import TRANSITION, TransitionRecord
from .facts import Located, Seams
from .readiness import LoadState
from .table import Trigger
from .testing_transport import (
    AsyncFakeHandler,
    AsyncScriptedTransport,
    FakeChannel,
    FakeHandler,
    ScriptedRpcError,
    ScriptedTransport,
    rpc_error,
)

if TYPE_CHECKING:
    from .aio import AsyncConnectionManager
    from .manager import ConnectionManager

    Manager = ConnectionManager | AsyncConnectionManager

__all__ = [
    "AsyncFakeHandler",
    "AsyncScriptedTransport",
    "CapturedAudit",
    "FakeChannel",
    "FakeClock",
    "FakeHandler",
    "Operation",
    "Script",
    "ScriptedRpcError",
    "ScriptedTransport",
    "rpc_error",
    "until",
]

#: Polls end after this many real seconds.
LIMIT = 10.0


class FakeClock:
    """Time that passes only by ``advance``. Call it for ``time.monotonic()`` seconds."""

    def __init__(self, start: float = 1000.0) -> None:
        self._now = start
        self._started = start
        self._alarms: list[tuple[float, int, Callable[[], object]]] = []
        self._count = itertools.count()
        self._waiting: list[threading.Event] = []
        self._managers: weakref.WeakSet[Manager] = weakref.WeakSet()
        self._loops: weakref.WeakSet[asyncio.AbstractEventLoop] = weakref.WeakSet()
        self._lock = threading.Lock()

    def __call__(self) -> float:
        return self._now

    def wall(self) -> datetime:
        """The fake date: 2030-01-01 UTC when the clock was made."""
        day = datetime(2030, 1, 1, tzinfo=timezone.utc)
        return day + timedelta(seconds=self._now - self._started)

    def seams(self, chance: float = 0.5) -> Seams:
        """What managers take. ``chance`` is every random draw; 0.5 means: no jitter."""
        return Seams(clock=self, wait=self.wait, wall=self.wall, chance=lambda: chance)

    def advance(self, seconds: float) -> None:
        """Let time pass: whatever is due wakes. For asyncio, call it in the loop's thread."""
        with self._lock:
            self._now += seconds
            due = []
            while self._alarms and self._alarms[0][0] <= self._now:
                due.append(heapq.heappop(self._alarms)[2])
        for ring in due:
            ring()
        for loop in list(self._loops):
            if not loop.is_closed():
                loop.call_soon_threadsafe(lambda: None)  # it looks at the time again
        for manager in list(self._managers):
            manager.post(manager.run_due)

    def at(self, due: float, ring: Callable[[], object]) -> None:
        """Call ``ring`` once it is ``due``; at once if it is already."""
        with self._lock:
            if due > self._now:
                heapq.heappush(self._alarms, (due, next(self._count), ring))
                return
        ring()

    def wait(self, event: threading.Event, until: float) -> None:
        """Block until ``event`` is set, or until the clock says ``until`` (it is set then)."""
        with self._lock:
            self._waiting.append(event)
        self.at(until, event.set)
        event.wait()
        with self._lock:
            self._waiting.remove(event)

    def sleeping(self) -> int:
        """How many threads wait for this clock now."""
        with self._lock:
            return sum(not event.is_set() for event in self._waiting)

    def attach(self, manager: Manager) -> None:
        """Have a manager's timers (linger, max_age, drain_timeout) look at each ``advance``."""
        self._managers.add(manager)

    def new_event_loop(self) -> asyncio.AbstractEventLoop:
        """A real event loop whose time is this clock's. Close it."""
        loop = _ClockLoop(self)
        self._loops.add(loop)
        return loop


class _ClockLoop(asyncio.SelectorEventLoop):
    def __init__(self, clock: FakeClock) -> None:
        self._clock = clock
        super().__init__()

    def time(self) -> float:
        return self._clock()


class Operation:
    """One piece of I/O that the engine asked for. It ends when its script says how.

    ``kind`` is "register" (the Connect call), "ping", "locate", "open", "load_state" (of the
    collection in ``request``) or "rpc". ``timeout``
    (seconds) is what the engine or the caller allowed; the script alone decides whether it holds.
    """

    def __init__(self, kind: str, address: str, timeout: float | None, **about: Any) -> None:
        self.kind = kind
        self.address = address
        self.timeout = timeout
        #: the channel that it runs on, if any
        self.channel: FakeChannel | None = about.get("channel")
        #: the request and the metadata of an RPC
        self.request: Any = about.get("request")
        self.metadata: Any = about.get("metadata")
        self.done: Future[Any] = Future()

    def succeed(self, result: Any = None) -> None:
        """End well. ``register`` results in an identifier, ``locate`` in a ``Located``,
        ``load_state`` in a ``LoadState``."""
        if not self.done.done():
            self.done.set_result(result)

    def fail(self, error: BaseException) -> None:
        """End by raising ``error``; a BaseException kills whoever leads the flight."""
        try:
            self.done.set_exception(error)
        except InvalidStateError:
            return  # its caller is gone

    def __repr__(self) -> str:
        return f"<Operation {self.kind} {self.address} timeout={self.timeout}>"


class Script:
    """What the world answers: all I/O succeeds at once, unless it is planned or held."""

    def __init__(self) -> None:
        #: every piece of I/O so far, and every channel opened, in order
        self.operations: list[Operation] = []
        self.channels: list[FakeChannel] = []
        self._held: set[str] = set()
        self._planned: dict[str, deque[object]] = {}
        self._identifiers = itertools.count(1)
        self._lock = threading.Lock()

    def hold(self, *kinds: str) -> None:
        """From now on, operations of these kinds wait for ``succeed`` or ``fail``."""
        self._held.update(kinds)

    def let_go(self) -> None:
        """Hold nothing any more; what is held succeeds."""
        self._held.clear()
        for operation in self.held():
            self.finish(operation)

    def plan(self, kind: str, *outcomes: object) -> None:
        """Let the next operations of ``kind`` end so: an exception, or the result."""
        self._planned.setdefault(kind, deque()).extend(outcomes)

    def held(self, kind: str | None = None) -> list[Operation]:
        """What waits for its outcome, oldest first."""
        with self._lock:
            known = list(self.operations)
        return [op for op in known if kind in (None, op.kind) and not op.done.done()]

    def wait_held(self, kind: str, limit: float = LIMIT) -> Operation:
        """The oldest held operation of ``kind``, waited for in real time."""
        until(lambda: self.held(kind), limit, f"no {kind} is held")
        return self.held(kind)[0]

    def perform(self, kind: str, address: str, timeout: float | None, **about: Any) -> Operation:
        """Begin an operation; called by the transports, and by locators of your own."""
        operation = Operation(kind, address, timeout, **about)
        with self._lock:
            self.operations.append(operation)
            planned = self._planned.get(kind)
            outcome = planned.popleft() if planned else self
        if isinstance(outcome, BaseException):
            operation.fail(outcome)
        elif outcome is not self:
            operation.succeed(outcome)
        elif kind not in self._held:
            self.finish(operation)
        return operation

    def finish(self, operation: Operation) -> None:
        """End an operation well, with a result of its kind."""
        result: Any = None
        if operation.kind == "register":
            result = f"identifier-{next(self._identifiers)}"
        elif operation.kind == "locate":
            result = Located(operation.address)
        elif operation.kind == "load_state":
            result = LoadState.LOADED
        operation.succeed(result)

    def open(self, make: type[FakeChannel], address: str, secure: bool | None) -> FakeChannel:
        """Open a channel; a planned exception for "open" is raised."""
        with self._lock:
            channel = make(self, len(self.channels) + 1, address, secure)
        self.perform("open", address, None, channel=channel).done.result(0)
        self.channels.append(channel)
        return channel

    def threads(self) -> ScriptedTransport:
        """The transport for a ``ConnectionManager``."""
        return ScriptedTransport(self)

    def asyncio(self) -> AsyncScriptedTransport:
        """The transport for an ``AsyncConnectionManager``."""
        return AsyncScriptedTransport(self)


class CapturedAudit:
    """The records of a manager, from now on; a context manager that stops listening."""

    def __init__(self, manager: Manager) -> None:
        self._audit = manager.audit
        self._records: list[TransitionRecord] = []
        self._unsubscribe = manager.subscribe(self._records.append)

    @property
    def records(self) -> list[TransitionRecord]:
        """All records so far, refused triggers and created connections included."""
        self._audit.flush(LIMIT)
        return self._records

    def transitions(self, trigger: Trigger | str | None = None) -> list[TransitionRecord]:
        """The records of state changes: all, or those of one trigger."""
        wanted = (None, str(trigger)) if trigger is not None else None
        return [
            record
            for record in self.records.copy()
            if record.event == TRANSITION and (wanted is None or record.trigger in wanted)
        ]

    def wait_for(self, trigger: Trigger | str, limit: float = LIMIT) -> TransitionRecord:
        """The latest record of ``trigger``, waited for in real time."""
        until(lambda: self.transitions(trigger), limit, f"no record of {trigger}")
        return self.transitions(trigger)[-1]

    def stop(self) -> None:
        """Listen no more; what happened before is still captured."""
        self._audit.flush(LIMIT)
        self._unsubscribe()

    def __enter__(self) -> CapturedAudit:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.stop()


def until(condition: Callable[[], object], limit: float, complaint: str) -> None:
    """Poll (in real time) until ``condition`` holds. Raises TimeoutError with the complaint."""
    deadline = time.monotonic() + limit
    while not condition():
        if time.monotonic() >= deadline:
            raise TimeoutError(f"{complaint} within {limit} s")
        time.sleep(0.001)
