"""A server that listens again is not ready yet: "collection not loaded" after a recovery."""

from __future__ import annotations

import itertools
import time
from typing import Any

import grpc
import pytest
from pymilvus.exceptions import MilvusException
from pymilvus.grpc_gen import milvus_pb2

from tests.conftest import Engine
from tests.observe import Call, wait_until
from tests.servers import Answer, FakeMilvus, RpcFailure, ServedCall, status

pytestmark = pytest.mark.timeout(60)

#: What real Milvus 2.3.5 answered until 35 s after it was killed.
NOT_LOADED = 101


def _not_loaded(call: ServedCall) -> Any:
    return milvus_pb2.SearchResults(status=status(NOT_LOADED, "collection not loaded"))


def _not_loaded_for(seconds: float) -> Answer:
    ready = time.monotonic() + seconds
    return lambda call: _not_loaded(call) if time.monotonic() < ready else None


def _search(client: Any, collection: str = "demo", **options: Any) -> Any:
    return client.search(collection, [[0.1, 0.2, 0.3, 0.4]], limit=1, **options)


def _recover(engine: Engine, server: FakeMilvus, client: Any) -> None:
    """One failed listing, and thereby one recovery."""
    numbers = itertools.count()

    def fail_first(call: ServedCall) -> None:
        if next(numbers) == 0:
            raise RpcFailure(grpc.StatusCode.UNAVAILABLE)

    server.on("ShowCollections", fail_first)
    client.list_collections()
    assert engine.saw("recovered")


def test_a_collection_that_answered_before_is_waited_for(
    engine: Engine, server: FakeMilvus
) -> None:
    """After a recovery, "not loaded" of a known collection is waited out, not raised."""
    client = engine.client(server.uri)
    _search(client)
    server.on("Search", _not_loaded_for(1.0))
    _recover(engine, server, client)
    call = Call(_search, client)
    call.value(20)
    assert server.count("Search") > 2


def test_an_unknown_collection_is_the_callers_business(engine: Engine, server: FakeMilvus) -> None:
    """After a recovery, "not loaded" of a collection that never answered is raised at once."""
    client = engine.client(server.uri)
    _search(client, "demo")
    _recover(engine, server, client)
    server.on("Search", _not_loaded)
    with pytest.raises(MilvusException) as caught:
        _search(client, "another")
    assert caught.value.code == NOT_LOADED
    assert server.count("Search") == 2


def test_without_a_recovery_it_is_the_callers_business(engine: Engine, server: FakeMilvus) -> None:
    """A collection that somebody released is reported at once when there was no outage."""
    client = engine.client(server.uri)
    _search(client)
    server.on("Search", _not_loaded)
    with pytest.raises(MilvusException) as caught:
        _search(client)
    assert caught.value.code == NOT_LOADED
    assert server.count("Search") == 2


def test_waiting_ends_at_the_callers_deadline(engine: Engine, server: FakeMilvus) -> None:
    """A call with timeout=1 waits for a collection no longer than that, and sees the 101."""
    client = engine.client(server.uri)
    _search(client)
    _recover(engine, server, client)
    server.on("Search", _not_loaded)
    call = Call(_search, client, timeout=1)
    assert wait_until(lambda: call.done, 10)
    assert isinstance(call.error, MilvusException)
    assert "not loaded" in str(call.error)


@pytest.mark.policy(recovery_budget=1.0)
def test_waiting_ends_with_the_budget(engine: Engine, server: FakeMilvus) -> None:
    """A call without a timeout waits for a collection no longer than `recovery_budget`."""
    client = engine.client(server.uri)
    _search(client)
    _recover(engine, server, client)
    server.on("Search", _not_loaded)
    call = Call(_search, client)
    assert wait_until(lambda: call.done, 15)
    assert isinstance(call.error, MilvusException)
    assert "not loaded" in str(call.error)
