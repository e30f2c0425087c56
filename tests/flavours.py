"""One test body for both flavours: clients that block, whichever flavour they are."""

from __future__ import annotations

import asyncio
import inspect
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from pymilvus import AsyncMilvusClient, DataType, MilvusClient
from pymilvus.client import connection_manager as theirs

from tests.looping import Ticker, listen_for_complaints
from tests.observe import History
from tests.stock import Body, Env, defect

FLAVOURS = ("threads", "asyncio")

#: A call never takes this long (seconds): its test fails instead of hanging.
CALL_LIMIT = 60.0


def simple_schema() -> Any:
    """What a collection needs at least: without an index, which asyncio cannot make everywhere."""
    schema = MilvusClient.create_schema(auto_id=False)
    schema.add_field("id", DataType.INT64, is_primary=True)
    schema.add_field("vector", DataType.FLOAT_VECTOR, dim=4)
    return schema


class Flavour:
    """Unmodified clients of one flavour, and the manager that they ask.

    asyncio: an event loop runs in a thread of its own, and a client's methods wait for it.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self.complaints: list[str] = []
        # Held here: the engine releases the lease of a client that is garbage-collected.
        self.clients: list[Any] = []
        self._before = set(threading.enumerate())
        self._loop = asyncio.new_event_loop()
        if name == "asyncio":
            self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
            self._thread.start()
            self.inside(lambda: listen_for_complaints(self.complaints))

    def wait(self, result: Any) -> Any:
        """The result of a call; of a coroutine, once the loop has run it. From any thread."""
        if not inspect.iscoroutine(result):
            return result
        return asyncio.run_coroutine_threadsafe(result, self._loop).result(CALL_LIMIT)

    def inside(self, function: Callable[[], Any]) -> Any:
        """What a function returns that has to be called where clients are used: in the loop."""

        async def call() -> Any:
            return function()

        return function() if self.name == "threads" else self.wait(call())

    def new_client(self, uri: Any, **options: Any) -> Any:
        """A client whose methods block, connected, and kept alive by nobody but the caller."""
        if self.name == "threads":
            return MilvusClient(uri, **options)
        client = _Blocking(AsyncMilvusClient(uri, **options), self)
        client._connect()
        return client

    def client(self, uri: Any, **options: Any) -> Any:
        """The same, kept alive until the end."""
        client = self.new_client(uri, **options)
        self.clients.append(client)
        return client

    def connected(self, uri: str, **options: Any) -> Any:
        """A client that has made a first good call."""
        client = self.client(uri, **options)
        client.list_collections()
        return client

    def manager(self) -> Any:
        """The manager that the next client gets, whose methods block."""
        if self.name == "threads":
            return theirs.ConnectionManager.get_instance()
        return _Blocking(self.inside(theirs.AsyncConnectionManager.get_instance), self)

    def workers(self) -> list[str]:
        """The names of the threads and tasks of a manager that were started and still run."""
        names = [each.name for each in threading.enumerate() if each not in self._before]
        if self.name == "asyncio":
            tasks = self.inside(lambda: asyncio.all_tasks() - {asyncio.current_task()})
            names += [task.get_name() for task in tasks]
        ours = (name for name in names if "milvus-lifecycle" in name or "_refresh" in name)
        return sorted(ours)

    @contextmanager
    def ticking(self) -> Iterator[Ticker]:
        """Measure for how long the event loop stands still; in threads nothing does."""
        ticker = Ticker()
        if self.name == "asyncio":
            self.wait(ticker.__aenter__())
        try:
            yield ticker
        finally:
            if self.name == "asyncio":
                self.wait(ticker.__aexit__(None, None, None))

    @contextmanager
    def never_still(self, limit: float = 2.0) -> Iterator[None]:
        """Assert that the loop never stands still for so many seconds.

        The promise is 50 ms; a busy machine is allowed far more.
        """
        with self.ticking() as ticker:
            yield
        assert ticker.longest < limit

    def end(self) -> None:
        """End the loop as asyncio.run does."""
        if self.name == "asyncio":
            self.wait(self._finish())
            self._loop.call_soon_threadsafe(self._loop.stop)
            self._thread.join(10)
        self._loop.close()

    async def _finish(self) -> None:
        tasks = asyncio.all_tasks() - {asyncio.current_task()}
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


class Program(History, Flavour):
    """A program on the engine: clients that live until its end, and records of its connections."""

    def __init__(self, name: str) -> None:
        Flavour.__init__(self, name)
        History.__init__(self)
        self.subscribe(self.heard.append)

    def subscribe(self, listener: Callable[[Any], object]) -> Callable[[], None]:
        """Have every record heard from now on. Returns the unsubscriber."""
        unsubscribe: Callable[[], None] = self.manager().subscribe(listener)
        return unsubscribe

    def stats(self) -> dict[str, Any]:
        stats: dict[str, Any] = self.manager().get_stats()
        return stats

    def close_all(self) -> None:
        self.manager().close_all()

    async def _finish(self) -> None:
        await theirs.AsyncConnectionManager.get_instance().close_all()
        await super()._finish()


class _Blocking:
    """An asyncio client, manager or handler whose methods wait for their result."""

    def __init__(self, inner: Any, flavour: Flavour) -> None:
        self.inner, self._wait = inner, flavour.wait

    def __getattr__(self, name: str) -> Any:
        found = getattr(self.inner, name)
        if not callable(found):
            return found
        return lambda *args, **kwargs: self._wait(found(*args, **kwargs))


def each_flavour(
    *flavours: str, **marks: Any
) -> Callable[[Callable[[Env, Flavour], None]], list[Body]]:
    """Mark a body of both flavours (or of those given), as `tests.stock.defect` marks one of none.

    The body's module gets one for each flavour, which `tests.stock` runs by its name.
    """

    def mark(body: Callable[[Env, Flavour], None]) -> list[Body]:
        bodies = [_in_flavour(body, name) for name in flavours or FLAVOURS]
        for each in bodies:
            setattr(sys.modules[body.__module__], each.__name__, defect(**marks)(each))
        return bodies

    return mark


def _in_flavour(body: Callable[[Env, Flavour], None], name: str) -> Body:
    def run(env: Env) -> None:
        body(env, Flavour(name))

    run.__name__, run.__module__ = f"{body.__name__}_in_{name}", body.__module__
    return run
