"""Clients of both flavours behind one face: a test's body is written once, and waits in both."""

from __future__ import annotations

import asyncio
import inspect
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Literal

Name = Literal["threads", "asyncio"]
NAMES: tuple[Name, ...] = ("threads", "asyncio")

#: No call of a test takes this long (seconds).
LIMIT = 60.0


class Threads:
    """MilvusClient, and the manager that it asks."""

    name: Name = "threads"

    def wait(self, result: Any) -> Any:
        """The result of a call; of a coroutine in the asyncio flavour. From any thread."""
        return result

    def client(self, uri: str, **options: Any) -> Any:
        """A connected client, whose methods wait."""
        from pymilvus import MilvusClient

        return MilvusClient(uri, **options)

    def manager(self) -> Any:
        """The manager that the next client gets, whose methods wait."""
        from pymilvus.client.connection_manager import ConnectionManager

        return ConnectionManager.get_instance()


class Asyncio:
    """AsyncMilvusClient in an event loop of a thread of its own."""

    name: Name = "asyncio"

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.loop = loop

    def wait(self, result: Any) -> Any:
        if not inspect.iscoroutine(result):
            return result
        return asyncio.run_coroutine_threadsafe(result, self.loop).result(LIMIT)

    def client(self, uri: str, **options: Any) -> Any:
        from pymilvus import AsyncMilvusClient

        client = AsyncMilvusClient(uri, **options)
        self.wait(client._connect())
        return _Waiting(client, self)

    def manager(self) -> Any:
        from pymilvus.client.connection_manager import AsyncConnectionManager

        async def inside() -> Any:
            return AsyncConnectionManager.get_instance()

        return _Waiting(self.wait(inside()), self)


Flavour = Threads | Asyncio


class _Waiting:
    """An object whose coroutine methods wait for their result."""

    def __init__(self, inner: Any, flavour: Asyncio) -> None:
        self.inner = inner
        self._flavour = flavour

    def __getattr__(self, name: str) -> Any:
        found = getattr(self.inner, name)
        if not callable(found):
            return found

        def call(*args: Any, **kwargs: Any) -> Any:
            return self._flavour.wait(found(*args, **kwargs))

        return call


@contextmanager
def running(name: Name) -> Iterator[Flavour]:
    """A flavour; of asyncio, its loop ends with the block."""
    if name == "threads":
        yield Threads()
        return
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, name="loop-of-the-test", daemon=True)
    thread.start()
    try:
        yield Asyncio(loop)
    finally:
        loop.call_soon_threadsafe(loop.stop)
        thread.join(LIMIT)
        loop.close()
