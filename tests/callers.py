"""A client of either flavour under one roof, for test bodies that run in both."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from typing import Any

from pymilvus import AsyncMilvusClient, MilvusClient

import milvus_lifecycle as ml
from tests.observe import wait_until


class Caller:
    """One client of either flavour, called by threads: asyncio's has a loop of its own."""

    def __init__(self, flavour: str, uri: str) -> None:
        self._loop: asyncio.AbstractEventLoop | None = None
        if flavour == "threads":
            self._client: Any = MilvusClient(uri, token="root:pw")
            return
        self._loop = asyncio.new_event_loop()
        threading.Thread(target=self._loop.run_forever, daemon=True).start()
        self._client = AsyncMilvusClient(uri, token="root:pw")

    def call(self, method: str, *args: str) -> Any:
        """Call a method of the client; blocks."""
        return self._run(getattr(self._client, method), *args)

    def list(self) -> Any:
        """The names of the collections."""
        return self.call("list_collections")

    def _run(self, method: Callable[..., Any], *args: str) -> Any:
        if self._loop is None:
            return method(*args)

        async def call() -> Any:
            return await method(*args)

        return asyncio.run_coroutine_threadsafe(call(), self._loop).result()

    def close_all(self) -> None:
        """Close every connection of this flavour."""
        if self._loop is None:
            ml.ConnectionManager.get_instance().close_all()
            return

        async def close() -> None:
            await ml.AsyncConnectionManager.get_instance().close_all()

        asyncio.run_coroutine_threadsafe(close(), self._loop).result()

    def close(self) -> None:
        self._run(self._client.close)
        if self._loop is not None:
            self._loop.call_soon_threadsafe(self._loop.stop)
            assert wait_until(lambda: not self._loop or not self._loop.is_running(), 10)
            self._loop.close()
