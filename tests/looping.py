"""What tests of the asyncio flavour share: tests that run in a loop, and how they watch it."""

from __future__ import annotations

import asyncio
import functools
import time
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, ParamSpec

from typing_extensions import Self

from tests.observe import History

Arguments = ParamSpec("Arguments")

#: A test of its own accord never takes this long (seconds): its loop is asked to end then.
TEST_LIMIT = 60.0


def in_loop(
    test: Callable[Arguments, Coroutine[Any, Any, None]],
) -> Callable[Arguments, None]:
    """Run an async test by asyncio.run; what its loop complained about fails the test."""

    @functools.wraps(test)
    def run(*args: Arguments.args, **kwargs: Arguments.kwargs) -> None:
        complaints: list[str] = []

        async def main() -> None:
            listen_for_complaints(complaints)
            here = asyncio.current_task()
            assert here is not None
            asyncio.get_running_loop().call_later(TEST_LIMIT, here.cancel)
            await test(*args, **kwargs)

        asyncio.run(main())
        assert complaints == [], complaints

    return run


def listen_for_complaints(complaints: list[str]) -> None:
    """Note what the running loop would log: exceptions never retrieved, tasks destroyed."""

    def note(loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        complaint = f"{context.get('message')}: {context.get('exception')!r}"
        # grpc.aio has one queue for all loops: this is about one of an earlier test, which is over.
        if not all(word in complaint for word in ("PollerCompletionQueue", "loop is closed")):
            complaints.append(complaint)

    asyncio.get_running_loop().set_exception_handler(note)


async def comes_true(condition: Callable[[], object], limit: float, every: float = 0.01) -> bool:
    """Poll until the condition holds; False when it does not within `limit` seconds."""
    deadline = time.monotonic() + limit
    while not condition():
        if time.monotonic() >= deadline:
            return bool(condition())
        await asyncio.sleep(every)
    return True


async def until(condition: Callable[[], object], limit: float, every: float = 0.01) -> None:
    """The same for what a test arranges: raises AssertionError when it does not hold in time."""
    __tracebackhide__ = True
    assert await comes_true(condition, limit, every), f"not within {limit} s"


async def finish(*tasks: asyncio.Future[Any], limit: float) -> bool:
    """Wait for tasks without raising what they raise; False if one is not done in time."""
    _, pending = await asyncio.wait(tasks, timeout=limit)
    return not pending


class Doing:
    """One call in a task of its own, with what came of it and how long it took."""

    def __init__(self, awaitable: Awaitable[Any]) -> None:
        self._started = time.monotonic()
        self.elapsed: float | None = None
        self.task: asyncio.Future[Any] = asyncio.ensure_future(awaitable)
        self.task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Future[Any]) -> None:
        self.elapsed = time.monotonic() - self._started
        if not task.cancelled():
            task.exception()  # retrieved: tests ask for it when they want to

    @property
    def done(self) -> bool:
        return self.task.done()

    @property
    def cancelled(self) -> bool:
        return self.task.cancelled()

    @property
    def error(self) -> BaseException | None:
        """What it raised; CancelledError for a cancelled call, None while it runs."""
        if not self.task.done():
            return None
        return asyncio.CancelledError() if self.cancelled else self.task.exception()

    @property
    def result(self) -> Any:
        """What it returned; None while it runs or when it raised."""
        return self.task.result() if self.task.done() and self.error is None else None

    def cancel(self) -> None:
        self.task.cancel()

    async def value(self, limit: float) -> Any:
        """The result within `limit` seconds, or the call's own error, or TimeoutError."""
        if not await finish(self.task, limit=limit):
            raise TimeoutError(f"the call did not return within {limit} s")
        return self.task.result()


async def settled(calls: list[Doing], limit: float) -> bool:
    """Whether all calls have returned, with or without an error, within `limit` seconds."""
    return await finish(*(call.task for call in calls), limit=limit)


async def held_rpcs(server: Any, client: Any, count: int = 1) -> tuple[Any, list[Doing]]:
    """Calls that wait in the server, by HasPartition, which nothing else calls; and their hold."""
    hold = server.hold("HasPartition")
    calls = [Doing(client.has_partition("demo", "part")) for _ in range(count)]
    await until(lambda: hold.waiting == count, 10)
    return hold, calls


def other_tasks() -> list[str]:
    """Names of the running loop's tasks besides this one that are not done."""
    here = asyncio.current_task()
    return sorted(task.get_name() for task in asyncio.all_tasks() if task is not here)


class Ticker:
    """A task that ticks every few milliseconds; `longest` is its longest gap in seconds."""

    def __init__(self, every: float = 0.005) -> None:
        self._every = every
        self.longest = 0.0
        self._task: asyncio.Task[None] | None = None

    async def _tick(self) -> None:
        before = time.monotonic()
        while True:
            await asyncio.sleep(self._every)
            now = time.monotonic()
            self.longest = max(self.longest, now - before)
            before = now

    async def __aenter__(self) -> Self:
        self._task = asyncio.create_task(self._tick(), name="ticker")
        await asyncio.sleep(0)
        return self

    async def __aexit__(self, *exc: object) -> None:
        assert self._task is not None
        self._task.cancel()
        await finish(self._task, limit=5)


class AsyncEngine(History):
    """The engine as a test sees it from inside its loop: clients, public names and records."""

    def __init__(self) -> None:
        super().__init__()
        self.clients: list[Any] = []
        self._known: list[Any] = []

    @property
    def manager(self) -> Any:
        """The running loop's manager, whose records are collected from the first look on."""
        import milvus_lifecycle as ml

        manager = ml.AsyncConnectionManager.get_instance()
        if all(known is not manager for known in self._known):
            self._known.append(manager)
            manager.subscribe(self.heard.append)
        return manager

    def client(self, uri: str, **options: Any) -> Any:
        """An unmodified AsyncMilvusClient, kept alive until the test's end."""
        from pymilvus import AsyncMilvusClient

        _ = self.manager
        client = AsyncMilvusClient(uri, **options)
        self.clients.append(client)
        return client

    async def connected(self, uri: str, **options: Any) -> Any:
        """A client that has connected and made a first good call."""
        client = self.client(uri, **options)
        await client.list_collections()
        return client

    def stats(self) -> dict[str, Any]:
        stats: dict[str, Any] = self.manager.get_stats()
        return stats

    async def has_seen(self, trigger: str, limit: float = 10.0) -> bool:
        """Whether a transition by this trigger is recorded within `limit` seconds."""
        return await comes_true(lambda: trigger in self.seen(), limit)
