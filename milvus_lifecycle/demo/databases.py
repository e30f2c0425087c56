"""The two databases behind a failover: their collections before it, their contents after it."""

from __future__ import annotations

from collections.abc import Iterable

from milvus_lifecycle.demo.errors import DemoError
from milvus_lifecycle.demo.tally import describe_error, silence

_TIMEOUT_S = 20.0

#: What Milvus returns of one query at most.
_QUERY_LIMIT = 16_384


def create_collections(uris: Iterable[str]) -> None:
    """Create the program's collection in each: independent servers replicate nothing."""
    from pymilvus import MilvusClient

    from milvus_lifecycle.demo.program import COLLECTION, describe_collection

    silence("pymilvus")
    for uri in uris:
        try:
            client = MilvusClient(uri=uri, timeout=_TIMEOUT_S)
            client.create_collection(COLLECTION, schema=describe_collection(), timeout=_TIMEOUT_S)
            client.close()
        except Exception as error:
            raise DemoError(
                f"the collection could not be created on {uri}: {describe_error(error)}"
            ) from error


def read_ids(uri: str, workers: int) -> frozenset[int]:
    """Every id in the program's collection there. Raises DemoError."""
    from pymilvus import MilvusClient

    from milvus_lifecycle.demo.program import COLLECTION, first_id

    found: set[int] = set()
    try:
        client = MilvusClient(uri=uri, timeout=_TIMEOUT_S)
        for worker in range(workers):
            low, end = first_id(worker), first_id(worker + 1)
            while True:
                rows = client.query(
                    COLLECTION,
                    filter=f"id >= {low} and id < {end}",
                    output_fields=["id"],
                    limit=_QUERY_LIMIT,
                    timeout=_TIMEOUT_S,
                )
                found.update(int(row["id"]) for row in rows)
                if len(rows) < _QUERY_LIMIT:
                    break
                raise DemoError(f"a worker wrote more than {_QUERY_LIMIT} rows: too many to check")
        client.close()
    except DemoError:
        raise
    except Exception as error:
        raise DemoError(f"{uri} could not be read: {describe_error(error)}") from error
    return frozenset(found)
