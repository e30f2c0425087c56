"""What `install` hooks into every manager, and what a service asks: `status`, `wait_ready`."""

from __future__ import annotations

import asyncio
import json
import sys
import time
from collections.abc import Awaitable, Callable, Iterator
from typing import Any

import grpc
import grpc.aio
import pytest
from pymilvus import AsyncMilvusClient
from pymilvus.exceptions import MilvusException
from pymilvus.grpc_gen import common_pb2, milvus_pb2

import milvus_lifecycle as ml
from milvus_lifecycle.errors import ConfigError, PermanentFailure
from tests.flavours import Flavour
from tests.observe import Call, wait_until
from tests.servers import FakeMilvus, RpcFailure, ServedCall

pytestmark = pytest.mark.timeout(90)


@pytest.fixture(autouse=True)
def uninstalled() -> Iterator[None]:
    """Whatever a test installs is taken away again."""
    yield
    ml.uninstall()


class Named(ml.RegularStrategy):
    """A strategy that shows itself in records."""

    name = "named"


class Marking(grpc.UnaryUnaryClientInterceptor):
    """Adds a header to every RPC."""

    def intercept_unary_unary(self, continuation: Any, details: Any, request: Any) -> Any:
        return continuation(_marked(details), request)


class AsyncMarking(grpc.aio.UnaryUnaryClientInterceptor):
    """The same in asyncio."""

    async def intercept_unary_unary(self, continuation: Any, details: Any, request: Any) -> Any:
        return await continuation(_marked(details), request)


def _marked(details: Any) -> Any:
    return details._replace(metadata=(*(details.metadata or ()), ("marked", "yes")))


def test_hooks_are_for_managers_that_exist_and_that_come(
    flavour: Flavour, server: FakeMilvus, caplog: pytest.LogCaptureFixture
) -> None:
    """Of this loop and of the next; the engine's own RPCs pass the interceptors, too."""
    heard: list[Any] = []

    def deaf(record: Any) -> None:
        raise ValueError("a listener's own trouble")

    early: Any = ml.ConnectionManager if flavour.name == "threads" else ml.AsyncConnectionManager
    flavour.inside(early.get_instance)  # its manager exists before `install`
    hooks: dict[str, Any] = {
        "listeners": [deaf, heard.append],
        "strategy_for": lambda config: Named(config),
        "interceptors": [Marking(), AsyncMarking()],
    }
    ml.install(**hooks)
    ml.install(**{**hooks, "listeners": tuple(hooks["listeners"])})  # equal: nothing happens
    flavour.connected(server.uri)
    asyncio.run(AsyncMilvusClient(server.uri).list_collections())
    wait_until(lambda: sum(record.dest == "ACTIVE" for record in heard) == 2, 30)
    wait_until(lambda: "a listener's own trouble" in caplog.text, 30)
    assert {record.strategy for record in heard} == {"named"}
    assert {call.method for call in server.calls} >= {"Connect", "ShowCollections"}
    assert all(call.metadata.get("marked") == "yes" for call in server.calls)


class AsyncStreams(grpc.aio.StreamStreamClientInterceptor):
    """Marks streams, and knows no other RPC."""

    async def intercept_stream_stream(
        self, continuation: Any, details: Any, request_iterator: Any
    ) -> Any:
        return await continuation(_marked(details), request_iterator)


def test_each_interceptor_of_asyncio_has_its_kind_of_rpc(server: FakeMilvus) -> None:
    """Streams, too, are intercepted; the others do not pass through what cannot take them."""
    ml.install(interceptors=[AsyncStreams(), AsyncMarking()])

    async def stream() -> None:
        client = AsyncMilvusClient(server.uri)
        assert await client.list_collections() == ["demo"]
        handler = await client._get_connection()
        call = handler._final_channel.stream_stream("/milvus.proto.milvus.MilvusService/GetVersion")
        async for _ in call(iter([b""])):
            pass

    asyncio.run(stream())
    assert [call.metadata.get("marked") for call in server.calls] == ["yes"] * len(server.calls)
    assert server.calls[-1].method == "GetVersion"


def test_hooks_leave_a_manager_of_ones_own_alone(server: FakeMilvus) -> None:
    """It has what it was made with, before, while and after something is installed."""
    heard: list[Any] = []
    own = ml.ConnectionManager(strategy_for=Named, interceptors=[Marking()])
    told: list[Any] = []
    own.subscribe(told.append)
    ml.install(listeners=[heard.append])
    own.get_or_create(ml.ConnectionConfig.from_uri(server.uri), client=own)
    own.close_all()
    wait_until(lambda: any(record.dest == "CLOSED" for record in told), 30)
    assert {record.strategy for record in told} == {"named"}
    assert all(call.metadata.get("marked") == "yes" for call in server.calls)
    assert heard == []


def test_status_while_managers_are_made() -> None:
    """In other threads: loops of their own have managers of their own."""
    made: list[Any] = []
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        making = Call(lambda: made.extend(ml.ConnectionManager() for _ in range(200)))
        while not making.done:
            ml.status()
        making.value(30)
    finally:
        sys.setswitchinterval(interval)


def test_a_strategy_that_cannot_be_had_fails_its_client(
    flavour: Flavour, server: FakeMilvus
) -> None:
    """With an error that names the hook; None leaves the choice to the engine."""
    given: list[Any] = [ValueError("no such place"), "regular", None]

    def strategy_for(config: ml.ConnectionConfig) -> Any:
        answer = given.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer

    ml.install(strategy_for=strategy_for)
    with pytest.raises(ConfigError, match="strategy_for raised ValueError: no such place"):
        flavour.client(server.uri)
    with pytest.raises(ConfigError, match="strategy_for's result must be a ConnectionStrategy"):
        flavour.client(server.uri)
    assert flavour.manager().get_stats()["total_connections"] == 0
    assert flavour.connected(server.uri)


@pytest.mark.parametrize(
    ("hooks", "told"),
    [
        ({"listeners": print}, "listeners must be a list or tuple, not builtin_function"),
        ({"listeners": ["print"]}, "listeners must be callables .*, not str"),
        ({"strategy_for": "regular"}, "strategy_for must be a callable or None, not str"),
        ({"interceptors": [print]}, "interceptors must be gRPC's client interceptors, not builtin"),
    ],
)
def test_a_hook_that_is_none_is_refused(hooks: dict[str, Any], told: str) -> None:
    """By its name, before anything is installed."""
    with pytest.raises(ConfigError, match=told):
        ml.install(**hooks)
    assert not ml.status()["installed"]


def test_status_tells_of_all_managers(flavour: Flavour, server: FakeMilvus) -> None:
    """JSON, without a secret; not ready while a connection is down."""
    ml.install()
    before = ml.status()["unusable"]  # those of other tests, which are kept by something
    client = flavour.client(server.uri, token="root:secret-word")
    client.list_collections()
    status = ml.status()
    assert (status["installed"], status["ready"]) == (True, not before)
    assert [row["state"] for row in _rows(status, server)] == ["ACTIVE"]
    assert "secret-word" not in json.dumps(status)
    server.stop()
    waiting = Call(client.list_collections)
    wait_until(lambda: [row["waiting"] for row in _rows(ml.status(), server)] == [1], 30)
    status = ml.status()
    assert (status["ready"], status["unusable"]) == (False, before + 1)
    assert _rows(status, server)[0]["outage"] >= 0
    server.start()
    waiting.value(60)
    assert ml.status()["unusable"] == before


def test_status_is_ready_before_anybody_calls_again(flavour: Flavour, server: FakeMilvus) -> None:
    """Whoever keeps calls away while it is not ready would wait for them for ever."""
    ml.install(ml.LifecyclePolicy(max_waiting=0))
    before = ml.status()["unusable"]
    client = flavour.connected(server.uri)
    server.stop()
    with pytest.raises(MilvusException, match="max_waiting=0"):
        client.list_collections()
    assert ml.status()["unusable"] == before + 1
    server.start()
    wait_until(lambda: ml.status()["unusable"] == before, 60)
    assert _rows(ml.status(), server)[0]["outage"] is not None


def _rows(status: dict[str, Any], server: FakeMilvus) -> list[dict[str, Any]]:
    rows = [row for manager in status["managers"] for row in manager["connections"]]
    return [row for row in rows if row["address"] == server.address]


Ready = Callable[..., Any]


@pytest.fixture
def ready(flavour: Flavour) -> Ready:
    """`wait_ready` of the flavour, blocking."""
    if flavour.name == "threads":
        return ml.wait_ready

    def blocking(target: Any, timeout: float | None = None) -> Any:
        waited: Awaitable[None] = ml.wait_ready_async(getattr(target, "inner", target), timeout)
        return flavour.wait(waited)

    return blocking


def test_wait_ready_waits_for_a_server(flavour: Flavour, server: FakeMilvus, ready: Ready) -> None:
    """Not there yet, then not ready for longer than a call waits, then there; nothing is held."""
    ml.install(ml.LifecyclePolicy(recovery_budget=0.3))
    server.stop()
    waiting = Call(ready, server.uri, 60)
    time.sleep(0.3)
    assert not waiting.done, waiting.error
    left = iter(range(9))
    said = common_pb2.Status(code=2, reason="service not ready")

    def later(call: ServedCall) -> Any:
        return None if next(left, None) is None else milvus_pb2.GetVersionResponse(status=said)

    server.on("GetVersion", later)
    server.start()
    waiting.value(60)
    assert next(left, None) is None
    (row,) = flavour.manager().get_stats()["connections"]
    assert row["clients"] == 0


def test_wait_ready_of_a_client(flavour: Flavour, server: FakeMilvus, ready: Ready) -> None:
    """In an outage it waits, and fails at its timeout."""
    ml.install()
    client = flavour.connected(server.uri)
    ready(client, 30)
    server.stop()
    with pytest.raises(MilvusException):
        ready(client, 0.5)
    waiting = Call(ready, client, 60)
    server.start()
    waiting.value(60)


def test_wait_ready_does_not_wait_for_what_waiting_does_not_mend(
    flavour: Flavour, server: FakeMilvus, ready: Ready
) -> None:
    """Wrong credentials are told at once; so is a timeout that is none."""
    ml.install()

    def denied(call: ServedCall) -> None:
        raise RpcFailure(grpc.StatusCode.UNAUTHENTICATED, "auth check failure")

    server.on("Connect", denied)
    with pytest.raises(PermanentFailure):
        ready(server.uri, 60)
    with pytest.raises(ConfigError, match="timeout='soon'"):
        ready(server.uri, "soon")
    with pytest.raises(ConfigError, match=r"client_or_uri must be .*, not NoneType"):
        ready(None)
