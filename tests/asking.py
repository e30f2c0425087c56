"""One call by an unmodified client of its own, in either flavour: the same body tests both."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

from pymilvus import AsyncMilvusClient, MilvusClient

#: What list_collections answers, with a timeout of the client and one of the call.
Ask = Callable[..., Any]


def ask_in_a_thread(uri: Any, of_client: Any = None, of_call: Any = None) -> Any:
    client = MilvusClient(uri, timeout=of_client)
    try:
        return client.list_collections(timeout=of_call)
    finally:
        client.close()


def ask_in_a_loop(uri: Any, of_client: Any = None, of_call: Any = None) -> Any:
    async def ask() -> Any:
        client = AsyncMilvusClient(uri, timeout=of_client)
        try:
            return await client.list_collections(timeout=of_call)
        finally:
            await client.close()

    return asyncio.run(ask())


ASKING: dict[str, Ask] = {"threads": ask_in_a_thread, "asyncio": ask_in_a_loop}
