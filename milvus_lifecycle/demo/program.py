"""The program under the outages: plain pymilvus, written as if neither engine nor demo existed.

It creates a collection; its workers insert, search and list, about thirty calls a second each.
No call has a timeout and none is retried here. `watch` only notes when a call begins and how it
ends.

The collection has no index: Milvus Lite 3.2.2 serves such a collection as soon as it listens again
but leaves an indexed one released after a restart, for ever, until a client calls load_collection.
"""

from __future__ import annotations

import asyncio
import itertools
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from typing import Any, Protocol

from pymilvus import AsyncMilvusClient, CollectionSchema, DataType, MilvusClient

COLLECTION = "demo"
DIMENSION = 8

#: Calls that each worker starts per second while the server answers.
CALLS_PER_SECOND = 30.0

_IDS_PER_WORKER = 10**9

#: What Milvus returns of one query at most; the longest demo writes half as much per worker.
_QUERY_LIMIT = 16_384
_PREPARE_TIMEOUT_S = 20.0


#: Method of the client, its arguments, the id that it inserts.
ClientCall = tuple[str, dict[str, Any], int | None]


class Watch(Protocol):
    """Who notes the calls."""

    stop: threading.Event

    def call(self, worker: int, inserts: int | None, /) -> AbstractContextManager[None]:
        """The body is one call; an Exception that it raises is noted and swallowed."""


def describe_collection() -> CollectionSchema:
    """The collection's schema: an id and a small vector."""
    schema = MilvusClient.create_schema(auto_id=False)
    schema.add_field("id", DataType.INT64, is_primary=True)
    schema.add_field("vector", DataType.FLOAT_VECTOR, dim=DIMENSION)
    return schema


def create_collection(uri: str) -> None:
    """Create the program's collection there: independent servers replicate nothing."""
    client = MilvusClient(uri=uri, timeout=_PREPARE_TIMEOUT_S)
    client.create_collection(COLLECTION, schema=describe_collection(), timeout=_PREPARE_TIMEOUT_S)
    client.close()


def read_ids(uri: str, workers: int) -> frozenset[int]:
    """Every id in the program's collection there."""
    client = MilvusClient(uri=uri, timeout=_PREPARE_TIMEOUT_S)
    rows: list[dict[str, int]] = []
    for first in range(0, workers * _IDS_PER_WORKER, _IDS_PER_WORKER):
        rows += client.query(
            COLLECTION,
            filter=f"id >= {first} and id < {first + _IDS_PER_WORKER}",
            output_fields=["id"],
            limit=_QUERY_LIMIT,
            timeout=_PREPARE_TIMEOUT_S,
        )
    client.close()
    return frozenset(row["id"] for row in rows)


def list_calls(worker: int, watch: Watch) -> Iterator[ClientCall]:
    """Insert, search, list, insert ... until `watch.stop`."""
    for number in itertools.count(worker * _IDS_PER_WORKER):
        vector = [float((number * prime) % 97) for prime in range(1, DIMENSION + 1)]
        row = {"id": number, "vector": vector}
        calls: list[ClientCall] = [
            ("insert", {"collection_name": COLLECTION, "data": [row]}, number),
            ("search", {"collection_name": COLLECTION, "data": [vector], "limit": 3}, None),
            ("list_collections", {}, None),
        ]
        for call in calls:
            if watch.stop.is_set():
                return
            yield call


def space_calls() -> Iterator[float]:
    """Seconds to wait after each call; after one that took long there is no burst to catch up."""
    due = time.monotonic()
    while True:
        now = time.monotonic()
        due = max(now, due + 1 / CALLS_PER_SECOND)
        yield due - now


def run_threads(uri: str, workers: int, watch: Watch) -> None:
    """Run the program with threads until `watch.stop`; raises what a worker could not survive."""
    client = MilvusClient(uri=uri)
    if not client.has_collection(COLLECTION):
        client.create_collection(COLLECTION, schema=describe_collection())
    with ThreadPoolExecutor(workers) as pool:
        list(pool.map(lambda worker: _work(uri, worker, watch), range(workers)))
    client.close()


def _work(uri: str, worker: int, watch: Watch) -> None:
    try:
        client = MilvusClient(uri=uri)
        pauses = space_calls()
        for method, arguments, inserts in list_calls(worker, watch):
            with watch.call(worker, inserts):
                getattr(client, method)(**arguments)
            time.sleep(next(pauses))
        client.close()
    finally:
        watch.stop.set()  # if one cannot go on, none does


async def run_tasks(uri: str, workers: int, watch: Watch) -> None:
    """Run the program with asyncio tasks until `watch.stop`."""
    async with AsyncMilvusClient(uri=uri) as client:
        if not await client.has_collection(COLLECTION):
            await client.create_collection(COLLECTION, schema=describe_collection())
        await asyncio.gather(*(_work_async(uri, worker, watch) for worker in range(workers)))


async def _work_async(uri: str, worker: int, watch: Watch) -> None:
    client = AsyncMilvusClient(uri=uri)
    pauses = space_calls()
    for method, arguments, inserts in list_calls(worker, watch):
        with watch.call(worker, inserts):
            await getattr(client, method)(**arguments)
        await asyncio.sleep(next(pauses))
    await client.close()
