"""The load under the faults: workers that insert, search and list without any timeout."""

from __future__ import annotations

import asyncio
import inspect
import itertools
import threading
import time
from collections.abc import Callable, Generator, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from types import TracebackType
from typing import Any, Literal

from pymilvus import AsyncMilvusClient, DataType, MilvusClient
from pymilvus.exceptions import MilvusException
from typing_extensions import Self

from tests.looping import comes_true, listen_for_complaints, other_tasks, until
from tests.observe import came_true, join_all, wait_until

Flavour = Literal["threads", "asyncio"]
FLAVOURS: tuple[Flavour, ...] = ("threads", "asyncio")

COLLECTION = "faults"
_DIMENSION = 8
_IDS_PER_WORKER = 10**6
_PAUSE_S = 0.02


def make_collection(client: Any, *, indexed: bool, name: str = COLLECTION) -> None:
    """The collection anew; indexed: with an index, and loaded."""
    if client.has_collection(name):
        client.drop_collection(name)
    schema = MilvusClient.create_schema(auto_id=False)
    schema.add_field("id", DataType.INT64, is_primary=True)
    schema.add_field("vector", DataType.FLOAT_VECTOR, dim=_DIMENSION)
    options: dict[str, Any] = {}
    if indexed:
        options["index_params"] = client.prepare_index_params()
        options["index_params"].add_index("vector", index_type="FLAT", metric_type="L2")
    client.create_collection(name, schema=schema, **options)


def find_ids(client: Any, workers: int) -> set[int]:
    """The ids of every row, by strongly consistent queries."""
    found: set[int] = set()
    for first in range(0, workers * _IDS_PER_WORKER, _IDS_PER_WORKER):
        rows = client.query(
            COLLECTION,
            filter=f"id >= {first} and id < {first + _IDS_PER_WORKER}",
            output_fields=["id"],
            limit=16_000,
            consistency_level="Strong",
            timeout=60,
        )
        found.update(row["id"] for row in rows)
    return found


@dataclass
class Tally:
    """What became of the calls; times in seconds of time.monotonic."""

    calls: int = 0
    acknowledged: set[int] = field(default_factory=set)
    failed: list[str] = field(default_factory=list)
    #: calls that the server itself answered with a status of its own
    refused: list[str] = field(default_factory=list)
    longest: float = 0.0
    #: worker -> the end of its first answered call of those that ended after `watch_from`
    served: dict[int, float] = field(default_factory=dict)
    watch_from: float = float("inf")

    def good(self, worker: int, began: float, operation: str, number: int) -> None:
        """A call was answered."""
        now = time.monotonic()
        if operation == "insert":
            self.acknowledged.add(number)
        if now >= self.watch_from:
            self.served.setdefault(worker, now)
        self._ended(now - began)

    def bad(self, began: float, operation: str, error: Exception) -> None:
        """A call failed."""
        text = " ".join(str(error).split())
        answered = type(error) is MilvusException and type(getattr(error, "code", None)) is int
        where = self.refused if answered else self.failed
        where.append(f"{operation}: {type(error).__name__}: {text[:300]}")
        self._ended(time.monotonic() - began)

    def _ended(self, took: float) -> None:
        self.calls += 1
        self.longest = max(self.longest, took)


def list_operations(worker: int) -> Iterator[tuple[int, str, dict[str, Any]]]:
    """Endless (number, method of the client, its arguments): insert, search, list, insert ..."""
    for number in itertools.count(worker * _IDS_PER_WORKER + 1):
        vector = [float((number * prime) % 97) for prime in range(1, _DIMENSION + 1)]
        row = {"id": number, "vector": vector}
        yield number, "insert", {"collection_name": COLLECTION, "data": [row]}
        yield number, "search", {"collection_name": COLLECTION, "data": [vector], "limit": 3}
        yield number, "list_collections", {}


def list_only(worker: int) -> Iterator[tuple[int, str, dict[str, Any]]]:
    """Endless listings: what a fake Milvus answers without a script."""
    for number in itertools.count(worker * _IDS_PER_WORKER + 1):
        yield number, "list_collections", {}


def run_once(uri: str, **options: Any) -> Any:
    """What one call in an event loop of its own is answered."""

    async def once() -> Any:
        client = AsyncMilvusClient(uri, **options)
        try:
            return await asyncio.wait_for(client.list_collections(), 30)
        finally:
            await client.close()

    return asyncio.run(once())


Operations = Callable[[int], Iterator[tuple[int, str, dict[str, Any]]]]
#: What a worker does, whichever flavour: it yields what is to be called, or awaited, and is sent
#: the result.
Work = Generator[Callable[[], Any], Any, None]


class Load:
    """Eight workers, each with a client of its own on one shared connection, until `stop`.

    `work`: what each of them does instead, by its number.
    """

    def __init__(
        self,
        flavour: Flavour,
        uri: str = "",
        *,
        workers: int = 8,
        operations: Operations = list_operations,
        work: Callable[[int], Work] | None = None,
        **options: Any,
    ) -> None:
        self.workers = workers
        self.new_client: Any = {"threads": MilvusClient, "asyncio": AsyncMilvusClient}[flavour]
        self.sleep: Any = {"threads": time.sleep, "asyncio": asyncio.sleep}[flavour]
        #: that of asyncio's workers
        self.loop: asyncio.AbstractEventLoop | None = None
        self._operations = operations
        self._work = work or self._use_client
        self.tally = Tally()
        #: What the event loop complained about, and tasks that outlived the load.
        self.complaints: list[str] = []
        self._uri = uri
        self._options = options
        self.stopping = threading.Event()
        self._going = threading.Event()
        self._going.set()
        #: workers that are in a call
        self._calling: set[int] = set()
        self._threads = (
            [threading.Thread(target=self._run, args=(worker,)) for worker in range(workers)]
            if flavour == "threads"
            else [threading.Thread(target=self._loop)]
        )
        for number, thread in enumerate(self._threads):
            thread.name, thread.daemon = f"load-{number}", True

    def __enter__(self) -> Self:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.stop(90.0)

    def stop(self, limit: float) -> bool:
        """Let every worker end its call; False if one is still in it after `limit` seconds."""
        self.stopping.set()
        self._going.set()
        return join_all(self._threads, limit)

    def pause(self) -> None:
        """No worker starts another call from now on; returns when none is in one."""
        self._going.clear()
        wait_until(lambda: not self._calling, 60)

    def resume(self) -> None:
        """Go on."""
        self._going.set()

    def served_again(self, limit: float) -> float | None:
        """Seconds from now until each worker was answered a call; None if not within `limit`."""
        self.tally.watch_from = float("inf")
        self.tally.served.clear()
        began = self.tally.watch_from = time.monotonic()
        if not came_true(lambda: len(self.tally.served) == self.workers, limit, every=0.05):
            return None
        return max(self.tally.served.values()) - began

    # -- workers -----------------------------------------------------------------------------

    def ready(self) -> Any:
        """Wait while the load is paused."""
        return self._going.wait() if self.loop is None else until(self._going.is_set, 600, 0.1)

    def _use_client(self, worker: int) -> Work:
        client = self.new_client(self._uri, **self._options)
        for number, method, arguments in self._operations(worker):
            yield self.ready
            if self.stopping.is_set():
                break
            began = time.monotonic()
            self._calling.add(worker)
            try:
                yield partial(getattr(client, method), **arguments)
            except Exception as error:
                self.tally.bad(began, method, error)
            else:
                self.tally.good(worker, began, method, number)
            self._calling.discard(worker)
            yield partial(self.sleep, _PAUSE_S)
        yield client.close

    def _run(self, worker: int) -> None:
        with suppress(StopIteration):
            self._run_async(worker).send(None)  # nothing that it calls is awaitable

    def _loop(self) -> None:
        asyncio.run(self._run_tasks())

    async def _run_tasks(self) -> None:
        listen_for_complaints(self.complaints)
        self.loop = asyncio.get_running_loop()
        await asyncio.gather(*(self._run_async(worker) for worker in range(self.workers)))
        import milvus_lifecycle as ml

        await ml.AsyncConnectionManager.get_instance().close_all()
        if not await comes_true(lambda: not other_tasks(), 30):
            self.complaints.append(f"tasks left: {other_tasks()}")

    async def _run_async(self, worker: int) -> None:
        work = self._work(worker)
        with suppress(StopIteration):
            call = next(work)
            while True:
                try:
                    result = call()
                    if inspect.isawaitable(result):
                        result = await result
                except Exception as error:
                    call = work.throw(error)
                else:
                    call = work.send(result)
