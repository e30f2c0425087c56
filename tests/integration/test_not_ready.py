"""A server that listens again is not ready yet: collections that it may be loading again."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import grpc
import pytest
from pymilvus import AnnSearchRequest, MilvusClient, WeightedRanker
from pymilvus.exceptions import MilvusException
from pymilvus.grpc_gen import milvus_pb2, schema_pb2

from milvus_lifecycle.replay.records import convert
from milvus_lifecycle.replay.stats import fold_stats
from milvus_lifecycle.replay.verify import verify_logs
from tests.flavours import Program
from tests.observe import Call, wait_until
from tests.processes import MilvusLiteProcess
from tests.servers import Answer, FakeMilvus, RpcFailure, ServedCall, status

pytestmark = pytest.mark.timeout(90)

#: What Milvus 2.3.5 and Milvus Lite 3.2.2 answer a read of a collection that is not loaded.
NOT_LOADED = 101
NOT_LOAD, LOADING, LOADED = 1, 2, 3
VECTOR = [0.1, 0.2, 0.3, 0.4]
#: Nobody waited: far above what an answer takes, far below any wait of the policies here.
AT_ONCE = 2.0


_ID = schema_pb2.FieldSchema(name="id", data_type=schema_pb2.Int64, is_primary_key=True)
_DESCRIPTION = milvus_pb2.DescribeCollectionResponse(
    schema=schema_pb2.CollectionSchema(name="demo", fields=[_ID])
)
_ID_DATA = schema_pb2.FieldData(
    field_name="id",
    type=schema_pb2.Int64,
    scalars=schema_pb2.ScalarField(long_data=schema_pb2.LongArray(data=[1])),
)


class Collections:
    """The collections of a fake Milvus: how far it is with each, by database and name."""

    def __init__(self, server: FakeMilvus) -> None:
        self.states: dict[tuple[str, str], int] = {}
        for method in ("Search", "HybridSearch"):
            server.on(method, self._reading(milvus_pb2.SearchResults))
        server.on("Query", self._reading(milvus_pb2.QueryResults, fields_data=[_ID_DATA]))
        server.on("DescribeCollection", lambda call: _DESCRIPTION)
        server.on("GetLoadState", self._say)

    def _state(self, call: ServedCall) -> int:
        key = call.metadata.get("dbname", ""), call.request.collection_name
        return self.states.get(key, LOADED)

    def _reading(self, kind: Any, **content: Any) -> Answer:
        def answer(call: ServedCall) -> Any:
            if self._state(call) == LOADED:
                return kind(**content)
            return kind(status=status(NOT_LOADED, "collection not loaded"))

        return answer

    def _say(self, call: ServedCall) -> Any:
        return milvus_pb2.GetLoadStateResponse(state=self._state(call))

    def become(self, state: int, name: str = "demo", database: str = "") -> None:
        self.states[database, name] = state


@pytest.fixture
def collections(server: FakeMilvus) -> Collections:
    """What `server` says of its collections: they are loaded."""
    return Collections(server)


def search(client: Any, collection: str = "demo", **options: Any) -> Any:
    return client.search(collection, [VECTOR], limit=1, **options)


def recover(program: Program, server: FakeMilvus, client: Any) -> None:
    """One failed listing, and thereby one recovery."""
    before = program.seen().count("recovered")
    server.fail_next("ShowCollections")
    client.list_collections()
    wait_until(lambda: program.seen().count("recovered") > before, 10)


def recovered(program: Program, server: FakeMilvus) -> Any:
    """A client that has searched, and whose connection was lost and recovered since."""
    client = program.client(server.uri)
    search(client)
    recover(program, server, client)
    return client


def search_while_loading(program: Program, collections: Collections, client: Any) -> Call:
    """A search that waits for its collection to be loaded again."""
    collections.become(LOADING)
    call = Call(search, client)
    assert program.saw("loading", "connection.waiting")
    return call


def refused(read: Callable[..., Any], *args: Any, **options: Any) -> float:
    """How long a read took to end with "not loaded" (seconds)."""
    began = time.monotonic()
    with pytest.raises(MilvusException) as caught:
        read(*args, **options)
    assert caught.value.code == NOT_LOADED
    return time.monotonic() - began


def waits(program: Program) -> list[str]:
    """What is on record of waits for collections."""
    return program.seen("connection.waiting")


# -- a server that loads again, as Milvus does -----------------------------------------------------


@pytest.mark.parametrize("timeout", [None, 15], ids=["no timeout", "timeout=15"])
def test_a_collection_that_is_loaded_again_is_waited_for(
    program: Program, server: FakeMilvus, collections: Collections, timeout: float | None
) -> None:
    """Calls wait while the server loads, by one question at a time, and are sent once more."""
    client = recovered(program, server)
    collections.become(LOADING)
    calls = [Call(search, client, timeout=timeout) for _ in range(4)]
    assert program.saw("loading", "connection.waiting")
    wait_until(lambda: server.count("GetLoadState") >= 6, 10)
    assert server.count("Search") == 5
    assert not any(call.done for call in calls)
    collections.become(LOADED)
    for call in calls:
        call.value(10)
    assert server.count("Search") == 9
    assert server.count("GetLoadState") < 30
    assert program.saw("loaded", "connection.waiting")
    assert waits(program) == ["loading", "loaded"]


def _hybrid(client: Any) -> Any:
    request = AnnSearchRequest([VECTOR], "vector", {}, 1)
    return client.hybrid_search("demo", [request], WeightedRanker(1.0), limit=1)


READS: dict[str, Callable[[Any], Any]] = {
    "search": search,
    "query": lambda client: client.query("demo", filter="id > 0"),
    "get": lambda client: client.get("demo", ids=[1]),
    "hybrid_search": _hybrid,
}


@pytest.mark.parametrize(("before", "after"), list(pairwise([*READS, "search"])))
def test_whatever_reads_waits(
    program: Program, server: FakeMilvus, collections: Collections, before: str, after: str
) -> None:
    """One kind of read shows that a collection was loaded; any other kind waits for it."""
    client = program.client(server.uri)
    READS[before](client)
    recover(program, server, client)
    collections.become(LOADING)
    call = Call(READS[after], client)
    assert program.saw("loading", "connection.waiting")
    collections.become(LOADED)
    call.value(10)


def test_the_server_is_asked_as_the_call_would_be(
    program: Program, server: FakeMilvus, collections: Collections
) -> None:
    """With the client's credentials, the call's database and its partitions, on its channel."""
    client = program.client(server.uri, token="root:Milvus", db_name="sales")
    search(client, partition_names=["2024"])
    recover(program, server, client)
    collections.become(LOADING, database="sales")
    call = Call(search, client, partition_names=["2024"])
    assert program.saw("loading", "connection.waiting")
    collections.become(LOADED, database="sales")
    call.value(10)
    asked, searched = server.seen("GetLoadState")[0], server.seen("Search")[-1]
    for header in ("authorization", "dbname", "identifier"):
        assert asked.metadata[header] == searched.metadata[header]
    assert asked.peer == searched.peer
    assert asked.request.db_name == "sales"
    assert asked.request.partition_names == ["2024"]


def test_a_server_that_is_lost_while_it_loads(
    program: Program, server: FakeMilvus, collections: Collections
) -> None:
    """The call rides through the second outage too, and waits anew after it."""
    client = recovered(program, server)
    call = search_while_loading(program, collections, client)
    server.stop()
    wait_until(lambda: program.seen().count("fail") == 2, 10)
    server.start()
    wait_until(lambda: waits(program).count("loading") == 2, 20)
    collections.become(LOADED)
    call.value(20)
    assert waits(program) == ["loading", "interrupted", "loading", "loaded"]


def test_two_databases_are_not_mixed(
    program: Program, server: FakeMilvus, collections: Collections
) -> None:
    """Of two collections of one name, one is loaded again and the other is not."""
    first, second = (program.client(server.uri, db_name=name) for name in ("a", "b"))
    for client in (first, second):
        search(client)
    recover(program, server, first)
    collections.become(LOADING, database="a")
    collections.become(NOT_LOAD, database="b")
    calls = []
    for timeout in (None, 20):
        calls.append(Call(search, first, timeout=timeout))
        assert program.saw("loading", "connection.waiting")
        assert refused(search, second, timeout=timeout) < AT_ONCE
        assert not any(call.done for call in calls)
    collections.become(LOADED, database="a")
    for call in calls:
        call.value(10)


# -- what is the caller's at once ------------------------------------------------------------------


def test_a_collection_that_is_not_loaded_again(
    program: Program, server: FakeMilvus, collections: Collections
) -> None:
    """Milvus Lite's way: each search says at once that somebody has to call load()."""
    client = recovered(program, server)
    collections.become(NOT_LOAD)
    assert max(refused(search, client, timeout=timeout) for timeout in (None, 3, None)) < AT_ONCE
    assert server.count("GetLoadState") == 1, "once for each collection and recovery"
    assert waits(program) == [], "nobody waited"


def test_a_collection_that_somebody_releases_later(
    program: Program, server: FakeMilvus, collections: Collections
) -> None:
    """It was loaded again after the recovery: what happens to it now has other reasons."""
    client = recovered(program, server)
    search(client)
    for state in (NOT_LOAD, LOADING):
        collections.become(state)
        assert refused(search, client) < AT_ONCE
    assert server.count("GetLoadState") == 0


def test_a_wait_happens_once_for_each_recovery(
    program: Program, server: FakeMilvus, collections: Collections
) -> None:
    """What was waited for and is not loaded again afterwards is the caller's."""
    client = recovered(program, server)
    call = search_while_loading(program, collections, client)
    collections.become(NOT_LOAD)
    assert refused(call.value, 10) < AT_ONCE
    assert program.saw("not_loaded", "connection.waiting")
    collections.become(LOADING)
    assert refused(search, client) < AT_ONCE


def test_without_a_recovery_or_unknown(
    program: Program, server: FakeMilvus, collections: Collections
) -> None:
    """No outage, or a collection that was never read: the server is not even asked."""
    client = program.client(server.uri)
    search(client)
    collections.become(LOADING)
    assert refused(search, client) < AT_ONCE
    recover(program, server, client)
    collections.become(LOADING, "another")
    assert refused(search, client, "another") < AT_ONCE
    assert server.count("GetLoadState") == 0


def test_a_server_that_cannot_say(
    program: Program, server: FakeMilvus, collections: Collections
) -> None:
    """No answer to the question is no reason to wait."""
    client = recovered(program, server)
    collections.become(LOADING)

    def unimplemented(call: ServedCall) -> None:
        raise RpcFailure(grpc.StatusCode.UNIMPLEMENTED)

    server.on("GetLoadState", unimplemented)
    assert refused(search, client) < AT_ONCE


# -- how long --------------------------------------------------------------------------------------


@pytest.mark.slow
def test_the_callers_timeout_holds(
    program: Program, server: FakeMilvus, collections: Collections
) -> None:
    """For each of two calls at once that are answered the very same status.

    The promise is 0.1 s; a test allows half a second.
    """
    client = recovered(program, server)
    collections.become(LOADING)
    calls = {timeout: Call(refused, search, client, timeout=timeout) for timeout in (1, 3)}
    for timeout, call in calls.items():
        assert timeout - 0.5 < call.value(20) < timeout + 0.5


@pytest.mark.policy(recovery_budget=2.0)
def test_a_wait_ends_with_the_budget(
    program: Program, server: FakeMilvus, collections: Collections
) -> None:
    """A call without a timeout waits for it, 2 s (10 s are allowed); those after it do not."""
    client = recovered(program, server)
    collections.become(LOADING)
    assert 1.0 < refused(search, client) < 10.0
    assert max(refused(search, client) for _ in range(2)) < AT_ONCE / 2
    assert program.saw("overdue", "connection.waiting")


# -- on record -------------------------------------------------------------------------------------


def test_waits_are_legal_and_counted(
    program: Program, server: FakeMilvus, collections: Collections, tmp_path: Path
) -> None:
    """`audit verify` accepts the records of waits, `audit stats` counts them."""
    client = recovered(program, server)
    call = search_while_loading(program, collections, client)
    time.sleep(0.3)  # what is to be counted
    collections.become(LOADED)
    call.value(10)
    assert program.saw("loaded", "connection.waiting")
    lines = [record.as_dict() for record in program.records]
    log = tmp_path / "audit.jsonl"
    log.write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert verify_logs([str(log)]).exit_code == 0
    total = fold_stats(convert(line) for line in lines).total
    assert total.waits == 1
    assert 0.3 <= total.waited_s < 10


# -- the real Milvus Lite --------------------------------------------------------------------------


def make_quick_start(uri: str) -> None:
    client = MilvusClient(uri)
    client.create_collection("demo", dimension=4)
    client.insert("demo", [{"id": 1, "vector": VECTOR}])
    client.close()


def test_milvus_lite_is_killed_and_started_again(program: Program, tmp_path: Path) -> None:
    """Every search of its collection says within seconds what to do, until somebody has done it.

    And again after somebody else has released it.
    """
    with MilvusLiteProcess(tmp_path) as lite:
        make_quick_start(lite.uri)
        client = program.client(lite.uri)
        assert len(search(client)[0]) == 1
        lite.kill()
        call = Call(refused, search, client)
        assert program.saw("fail")
        lite.start()
        assert call.value(20) > 0, "it rides through the outage itself"
        assert program.saw("recovered")
        assert max(refused(search, client, timeout=timeout) for timeout in (None, 3)) < AT_ONCE
        client.load_collection("demo")
        assert len(search(client)[0]) == 1
        client.release_collection("demo")
        assert max(refused(search, client) for _ in range(2)) < AT_ONCE
        assert waits(program) == []
