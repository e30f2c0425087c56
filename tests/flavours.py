"""One test body for both flavours: clients that block, whichever flavour they are."""

from __future__ import annotations

import asyncio
import inspect
import threading
from collections.abc import Callable
from typing import Any

from pymilvus import AsyncMilvusClient, MilvusClient
from pymilvus.client import connection_manager as theirs

import milvus_lifecycle as ml
from tests.looping import listen_for_complaints
from tests.observe import wait_until

FLAVOURS = ("threads", "asyncio")

#: A call never takes this long (seconds): its test fails instead of hanging.
CALL_LIMIT = 60.0


class Flavour:
    """Unmodified clients of one flavour, and the manager that they ask.

    asyncio: an event loop runs in a thread of its own, and a client's methods wait for it.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self.complaints: list[str] = []
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="program", daemon=True)
        self._thread.start()
        self.wait(self._begin())

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

    def client(self, uri: str, **options: Any) -> Any:
        """A connected client whose methods block."""
        if self.name == "threads":
            return MilvusClient(uri, **options)
        client = _Blocking(AsyncMilvusClient(uri, **options), self)
        client._connect()
        return client

    def manager(self) -> Any:
        """The manager that the next client gets, whose methods block."""
        if self.name == "threads":
            return theirs.ConnectionManager.get_instance()
        return _Blocking(self.inside(theirs.AsyncConnectionManager.get_instance), self)

    def end(self) -> None:
        """End the loop as asyncio.run does."""
        self.wait(self._finish())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10)
        self._loop.close()

    async def _begin(self) -> None:
        listen_for_complaints(self.complaints)

    async def _finish(self) -> None:
        tasks = asyncio.all_tasks() - {asyncio.current_task()}
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


class Program(Flavour):
    """A program on the engine: clients that live until its end, and records of its connections."""

    def __init__(self, name: str) -> None:
        self.records: list[Any] = []
        self._clients: list[Any] = []
        super().__init__(name)

    def client(self, uri: str, **options: Any) -> Any:
        client = super().client(uri, **options)
        self._clients.append(client)
        return client

    def subscribe(self, listener: Callable[[Any], object]) -> Callable[[], None]:
        """Have every record heard from now on. Returns the unsubscriber."""
        unsubscribe: Callable[[], None] = self._manager.subscribe(listener)
        return unsubscribe

    def seen(self, event: str = "connection.transition") -> list[str]:
        """The triggers of the records of one kind so far, in order."""
        return [record.trigger for record in list(self.records) if record.event == event]

    def saw(self, trigger: str, event: str = "connection.transition", limit: float = 10.0) -> bool:
        """Whether there is a record of this trigger within `limit` seconds."""
        return wait_until(lambda: trigger in self.seen(event), limit)

    async def _begin(self) -> None:
        await super()._begin()
        managers = {"threads": ml.ConnectionManager, "asyncio": ml.AsyncConnectionManager}
        self._manager: Any = managers[self.name].get_instance()
        self.subscribe(self.records.append)

    async def _finish(self) -> None:
        if self.name == "asyncio":
            await ml.AsyncConnectionManager.get_instance().close_all()
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
