"""One test body for both flavours: a program whose clients block, whichever flavour they are."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Coroutine
from typing import Any

from pymilvus import AsyncMilvusClient, MilvusClient

import milvus_lifecycle as ml
from tests.looping import listen_for_complaints
from tests.observe import wait_until

FLAVOURS = ("threads", "asyncio")

#: A call never takes this long (seconds): its test fails instead of hanging.
CALL_LIMIT = 60.0


class Program:
    """Unmodified clients of one flavour, and the records of their connections.

    asyncio: an event loop runs in a thread of its own, and a client's methods wait for it.
    """

    def __init__(self, flavour: str) -> None:
        self.flavour = flavour
        self.records: list[Any] = []
        self.complaints: list[str] = []
        self._clients: list[Any] = []
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="program", daemon=True)
        self._thread.start()
        self._run(self._begin())

    def client(self, uri: str, **options: Any) -> Any:
        """A client whose methods block, kept alive until the program ends."""
        if self.flavour == "threads":
            client: Any = MilvusClient(uri, **options)
        else:
            client = _Blocking(AsyncMilvusClient(uri, **options), self._run)
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

    def end(self) -> None:
        """End the loop as asyncio.run does."""
        self._run(self._finish())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10)
        self._loop.close()

    def _run(self, work: Coroutine[Any, Any, Any]) -> Any:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(CALL_LIMIT)

    async def _begin(self) -> None:
        listen_for_complaints(self.complaints)
        managers = {"threads": ml.ConnectionManager, "asyncio": ml.AsyncConnectionManager}
        self._manager: Any = managers[self.flavour].get_instance()
        self.subscribe(self.records.append)

    async def _finish(self) -> None:
        if self.flavour == "asyncio":
            await ml.AsyncConnectionManager.get_instance().close_all()
        tasks = asyncio.all_tasks() - {asyncio.current_task()}
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


class _Blocking:
    """An asyncio client whose methods are called, and waited for, by any thread."""

    def __init__(self, client: Any, run: Callable[[Coroutine[Any, Any, Any]], Any]) -> None:
        self._client, self._run = client, run

    def __getattr__(self, name: str) -> Callable[..., Any]:
        method = getattr(self._client, name)
        return lambda *args, **kwargs: self._run(method(*args, **kwargs))
