"""Iterators over a restart of real Milvus (pymilvus has none for asyncio)."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from pymilvus import MilvusClient

from tests.faults.load import COLLECTION, make_collection
from tests.faults.scene import engine
from tests.faults.servers import Server
from tests.observe import Call, wait_until

pytestmark = pytest.mark.timeout(300)

_ROWS = 1_000
_BATCH = 100

Record = Callable[[str, object], None]


def _ids(iterator: Any, batches: int | None = None) -> list[int]:
    """The ids of so many batches, or of all that are left."""
    found: list[int] = []
    while batches is None or batches > 0:
        batch = iterator.next()
        if not batch:
            break
        found += [row["id"] for row in batch]
        batches = None if batches is None else batches - 1
    return found


@pytest.mark.parametrize("running", ["milvus"], indirect=True)
def test_an_iterator_goes_on_after_a_restart(
    server: Server, tmp_path: Path, record_property: Record
) -> None:
    """Milvus is killed between two batches: each row comes once, and no call fails."""
    with engine(tmp_path / "audit.jsonl"):
        client = MilvusClient(server.uri)
        make_collection(client, indexed=True)
        rows = [{"id": number, "vector": [float(number % 97)] * 8} for number in range(_ROWS)]
        client.insert(COLLECTION, rows)
        # What is to be found after a restart has to be on disk, and to be seen before it.
        client.flush(COLLECTION)
        asking = {"filter": "id >= 0", "limit": _ROWS, "consistency_level": "Strong"}
        wait_until(lambda: len(client.query(COLLECTION, **asking)) == _ROWS, 60, every=0.5)
        iterators = [
            client.query_iterator(COLLECTION, batch_size=_BATCH, filter="id >= 0"),
            client.search_iterator(
                COLLECTION, data=[[0.5] * 8], batch_size=_BATCH, limit=_ROWS, search_params={}
            ),
        ]
        found = [_ids(iterator, 3) for iterator in iterators]
        server.kill()
        rest = [Call(_ids, iterator) for iterator in iterators]
        server.start()
        listening = time.monotonic()
        found = [ids + call.value(90) for ids, call in zip(found, rest, strict=True)]
        for iterator in iterators:
            iterator.close()
        took = time.monotonic() - listening
        client.close()
    assert [sorted(ids) for ids in found] == [list(range(_ROWS))] * 2
    record_property("fault", f"milvus, iterators: all {_ROWS:,} rows, {took:.1f} s after a restart")
