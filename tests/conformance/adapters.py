"""The two drivers under one roof: how a scenario starts calls, lets time pass and finds quiet."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from typing import Any, TypeVar
from unittest import mock

from milvus_lifecycle import AsyncConnectionManager, ConnectionManager
from milvus_lifecycle.audit.records import Sink
from milvus_lifecycle.core.pool import StrategyFor
from milvus_lifecycle.policy import LifecyclePolicy
from milvus_lifecycle.testing import FakeClock, Script, until

T = TypeVar("T")

#: Limit (real seconds) of everything that is waited for.
LIMIT = 20.0
WORKER, KEEPER = "milvus-lifecycle-", "milvus-lifecycle-timekeeper"
#: tells records to whoever reads them; nobody waits for it
RECORDS = "milvus-lifecycle-records"


class LeaderDied(BaseException):
    """What kills the leader of a flight in a scenario."""


class Handle:
    """One call of an actor. It keeps no exception: its frames would keep the actor's client."""

    def __init__(self) -> None:
        self.done = False
        self.result: Any = None
        self.error: BaseException | None = None

    def end(self, result: Any, error: BaseException | None) -> None:
        self.result = result
        self.error = error.with_traceback(None) if error is not None else None
        if self.error is not None:
            self.error.__context__ = self.error.__cause__ = None
        self.done = True


class Threads:
    """Real threads; every call blocks one of its own."""

    flavour = "threads"
    manager: ConnectionManager

    def __init__(self, script: Script, clock: FakeClock) -> None:
        self._script, self._clock = script, clock
        self._before = set(threading.enumerate())
        self._refusing: Any = None
        self._hook, threading.excepthook = threading.excepthook, self._uncaught

    def start(self, policy: LifecyclePolicy, strategy_for: StrategyFor, sink: Sink) -> None:
        self.manager = ConnectionManager(
            policy,
            transport=self._script.threads(),
            seams=self._clock.seams(),
            strategy_for=strategy_for,
            sinks=(sink,),
        )
        self._clock.attach(self.manager)

    def run(self, call: Callable[[], T]) -> T:
        """Do something that does not wait, where the manager lives."""
        return call()

    def spawn(self, name: str, call: Callable[[], Any]) -> Handle:
        handle = Handle()
        work = [call]

        def body() -> None:
            result, error = None, None
            try:
                result = work.pop()()
            except BaseException as caught:
                error = caught
            handle.end(result, error)

        threading.Thread(target=body, name=f"actor-{name}", daemon=True).start()
        return handle

    def settle(self) -> None:
        """Return when every thread waits: for the clock, or for the script."""
        calm = 0
        while calm < 3:
            until(self._all_wait, LIMIT, "the threads did not come to rest")
            self._call_at_keeper()
            calm = calm + 1 if self._all_wait() else 0

    def _call_at_keeper(self) -> None:
        """Return when the timekeeper has done what it had to do, or if there is none."""
        done = threading.Event()
        self.manager._driver.post(done.set)
        until(lambda: done.is_set() or not self._workers(KEEPER), LIMIT, "busy timekeeper")

    def _workers(self, prefix: str) -> list[threading.Thread]:
        return [
            thread
            for thread in threading.enumerate()
            if thread not in self._before
            and thread.name.startswith(prefix)
            and thread.name != RECORDS
        ]

    def _all_wait(self) -> bool:
        waiting = self._clock.sleeping() + len(self._script.held())
        keepers = len(self._workers(KEEPER))
        return len(self._workers("")) - keepers == waiting

    def refuse_workers(self, refuse: bool) -> None:
        """No thread can be started for a flight (what the system says when it has no more)."""
        if not refuse:
            self._refusing.stop()
            self._refusing = None
            return
        original = threading.Thread.start

        def start(thread: threading.Thread) -> None:
            if thread.name.startswith(WORKER) and thread.name not in (KEEPER, RECORDS):
                raise RuntimeError("can't start new thread")
            original(thread)

        self._refusing = mock.patch.object(threading.Thread, "start", start)
        self._refusing.start()

    def before_fork(self) -> None:
        """A child has no timekeeper; there would still be one here."""

        def end() -> None:
            raise LeaderDied

        self.manager._driver.post(end)
        until(lambda: not self._workers(KEEPER), LIMIT, "the timekeeper does not end")

    def leftovers(self) -> list[str]:
        """Names of the flights and actors that still run."""
        return [thread.name for thread in self._workers("") if thread.name != KEEPER]

    def stop(self) -> None:
        if self._refusing is not None:
            self.refuse_workers(False)
        threading.excepthook = self._hook

    def _uncaught(self, args: Any) -> None:
        if not isinstance(args.exc_value, LeaderDied):
            self._hook(args)


class Asyncio:
    """A real event loop, in a thread of its own; every call is a task."""

    flavour = "asyncio"
    manager: AsyncConnectionManager

    def __init__(self, script: Script, clock: FakeClock) -> None:
        self._script, self._clock = script, clock
        self._loop = clock.new_event_loop()
        self._refusing = False
        self._tasks: dict[int, asyncio.Task[None]] = {}
        self.complaints: list[str] = []
        self._loop.set_exception_handler(self._complain)
        self._loop.set_task_factory(self._make_task)
        self._thread = threading.Thread(target=self._loop.run_forever, name="loop", daemon=True)
        self._thread.start()

    def start(self, policy: LifecyclePolicy, strategy_for: StrategyFor, sink: Sink) -> None:
        async def make() -> AsyncConnectionManager:
            return AsyncConnectionManager(
                policy,
                transport=self._script.asyncio(),
                seams=self._clock.seams(),
                strategy_for=strategy_for,
                sinks=(sink,),
            )

        self.manager = asyncio.run_coroutine_threadsafe(make(), self._loop).result(LIMIT)

    def run(self, call: Callable[[], T]) -> T:
        async def inside() -> Any:
            result = call()
            return await result if asyncio.iscoroutine(result) else result

        result: T = asyncio.run_coroutine_threadsafe(inside(), self._loop).result(LIMIT)
        return result

    def spawn(self, name: str, call: Callable[[], Any]) -> Handle:
        handle = Handle()
        work = [call]

        async def body() -> None:
            result, error = None, None
            try:
                result = await work.pop()()
            except BaseException as caught:
                error = caught
            handle.end(result, error)

        def start() -> None:
            self._tasks[id(handle)] = self._loop.create_task(body(), name=f"actor-{name}")

        self.run(start)
        return handle

    def cancel(self, handle: Handle) -> None:
        self.run(self._tasks[id(handle)].cancel)

    def cancel_flights(self) -> None:
        """Cancel the tasks of the flights, as a loop that shuts down does."""

        def cancel() -> None:
            for task in asyncio.all_tasks():
                if task.get_name().startswith(WORKER):
                    task.cancel()

        self.run(cancel)

    def settle(self) -> None:
        """Return when the loop had nothing to do for a while: the longest chain is far shorter."""

        async def idle() -> None:
            for _ in range(60):
                await asyncio.sleep(0)

        asyncio.run_coroutine_threadsafe(idle(), self._loop).result(LIMIT)

    def refuse_workers(self, refuse: bool) -> None:
        self._refusing = refuse

    def _make_task(self, loop: Any, work: Any, **kwargs: Any) -> Any:
        if self._refusing and work.__qualname__.endswith("._fly"):
            raise RuntimeError("can't start new thread")
        return asyncio.Task(work, loop=loop, **kwargs)

    def before_fork(self) -> None:
        """Timers of the parent's loop do nothing in the child."""

    def leftovers(self) -> list[str]:
        async def names() -> list[str]:
            here = asyncio.current_task()
            return [task.get_name() for task in asyncio.all_tasks() if task is not here]

        return asyncio.run_coroutine_threadsafe(names(), self._loop).result(LIMIT)

    def stop(self) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(LIMIT)
        self._loop.close()

    def _complain(self, loop: Any, context: dict[str, Any]) -> None:
        if not isinstance(context.get("exception"), LeaderDied):
            self.complaints.append(f"{context.get('message')}: {context.get('exception')!r}")


ADAPTERS: dict[str, type[Threads] | type[Asyncio]] = {"threads": Threads, "asyncio": Asyncio}
