"""How long calls wait: for a server that is not there yet, after a give_up, and by a budget of
their own; and what the server itself asks to try again."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import grpc
import pytest
from pymilvus import AsyncMilvusClient, MilvusClient
from pymilvus.exceptions import MilvusException
from pymilvus.grpc_gen import common_pb2, milvus_pb2

import milvus_lifecycle as ml
from milvus_lifecycle.errors import ConnectFailed, PermanentFailure, RecoveryExhausted
from tests.flavours import Flavour
from tests.network import BlackHole
from tests.observe import Call, wait_until
from tests.servers import FakeMilvus, RpcFailure, ServedCall, make_tls_files

pytestmark = pytest.mark.timeout(120)

Install = Callable[..., None]


@pytest.fixture
def install(request: pytest.FixtureRequest) -> Install:
    """Installs the engine with these fields of the policy."""

    def with_policy(**fields: Any) -> None:
        ml.install(ml.LifecyclePolicy(**fields))
        request.addfinalizer(ml.uninstall)

    return with_policy


# -- a first connect that can wait --------------------------------------------------------------


def test_a_client_waits_for_a_server_that_comes_up(
    install: Install, flavour: Flavour, server: FakeMilvus
) -> None:
    """Refused at first, then "not ready" in both ways that Milvus has, then served."""
    install(first_connect_patience=60.0)
    server.stop()
    made = Call(flavour.client, server.uri)
    time.sleep(0.3)
    left = iter(range(4))

    def not_ready(call: ServedCall) -> Any:
        number = next(left, None)
        if number is None:
            return None
        if number % 2:
            raise RpcFailure(grpc.StatusCode.UNKNOWN, "Proxy is not ready yet")
        failed = common_pb2.Status(code=1, reason="service not ready[proxy=7: Initializing]")
        return milvus_pb2.ConnectResponse(status=failed)

    server.on("Connect", not_ready)
    server.start()
    assert made.value(60).list_collections() == ["demo"]
    assert next(left, None) is None


def test_patience_holds_for_a_refusal_that_comes_before_its_caller_waits(
    install: Install, server: FakeMilvus, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A busy process may run the thread that connects, and long not the one that started it."""
    install(first_connect_patience=60.0)
    server.stop()
    start = threading.Thread.start

    def start_and_lag(thread: threading.Thread) -> None:
        start(thread)
        if "connect-" in thread.name:
            time.sleep(0.5)

    monkeypatch.setattr(threading.Thread, "start", start_and_lag)
    made = Call(MilvusClient, server.uri)
    time.sleep(1.0)
    server.start()
    assert made.value(60).list_collections() == ["demo"]


def test_its_error_says_what_was_waited_for(install: Install, flavour: Flavour) -> None:
    """Nobody comes: the patience is over, not the much longer connect_timeout."""
    install(first_connect_patience=0.5, connect_timeout=60.0)
    with BlackHole() as hole:
        port = hole.port
    before = time.monotonic()
    with pytest.raises(ConnectFailed, match=r"waited for up to 0\.5 s .*attempts in") as caught:
        flavour.client(f"http://127.0.0.1:{port}")
    assert isinstance(caught.value, MilvusException)
    assert 0.4 < time.monotonic() - before < 30


def test_patience_is_not_for_wrong_credentials(
    install: Install, flavour: Flavour, server: FakeMilvus
) -> None:
    """They are told at once."""
    install(first_connect_patience=60.0)

    def denied(call: ServedCall) -> None:
        raise RpcFailure(grpc.StatusCode.UNAUTHENTICATED, "auth check failure")

    server.on("Connect", denied)
    with pytest.raises(PermanentFailure):
        flavour.client(server.uri, token="a:b")
    assert server.count("Connect") == 1


def test_patience_is_not_for_tls_errors(
    install: Install, flavour: Flavour, server: FakeMilvus, tmp_path: Path
) -> None:
    """Neither for another authority's certificate, nor for another name's, nor for a server
    without TLS; and nobody says that he has waited."""
    install(first_connect_patience=60.0)
    mine = make_tls_files(tmp_path, "example.org")
    other = tmp_path / "other"
    other.mkdir()
    strange = make_tls_files(other)
    with FakeMilvus(tls=mine) as secure:
        for uri, trusted in (
            (secure.uri, strange.ca),
            (secure.uri, mine.ca),
            (server.uri.replace("http", "https"), mine.ca),
        ):
            with pytest.raises(ConnectFailed, match=r"could not connect .*1 attempt in .*UNAVAIL"):
                flavour.client(uri, server_pem_path=trusted)


def test_an_error_says_how_long_its_own_call_waited(install: Install, flavour: Flavour) -> None:
    """At most as long as its timeout let it."""
    install(first_connect_patience=60.0)
    with BlackHole() as hole:
        port = hole.port
    with pytest.raises(ConnectFailed, match=r"waited for up to 0\.5 s"):
        flavour.client(f"http://127.0.0.1:{port}", timeout=0.5)


def test_without_patience_the_first_refusal_is_told(install: Install, flavour: Flavour) -> None:
    """The default."""
    install()
    with BlackHole() as hole:
        port = hole.port
    with pytest.raises(ConnectFailed, match="1 attempt in") as caught:
        flavour.client(f"http://127.0.0.1:{port}")
    assert "waited" not in str(caught.value)


def test_a_client_in_a_new_event_loop_waits_as_in_a_recovery(
    install: Install, server: FakeMilvus
) -> None:
    """It was connected before, in a loop that is over: the server is only away for a while."""
    install()
    client = AsyncMilvusClient(server.uri)
    assert asyncio.run(client.list_collections()) == ["demo"]
    server.stop()
    called = Call(asyncio.run, client.list_collections())
    time.sleep(0.5)
    assert not called.done
    server.start()
    assert called.value(60) == ["demo"]


def test_it_waits_once(install: Install, server: FakeMilvus) -> None:
    """Not again when the retry decorator asks what to do about that very error."""
    install(recovery_budget=2.0)
    client = AsyncMilvusClient(server.uri)
    assert asyncio.run(client.list_collections()) == ["demo"]
    server.stop()
    began = time.monotonic()
    with pytest.raises(ConnectFailed, match=r"attempts in (\d+\.\d) s") as caught:
        asyncio.run(client.list_collections())
    assert time.monotonic() - began < caught.value.elapsed + 1.5


# -- after a give_up, and budgets of one's own --------------------------------------------------


@pytest.mark.slow
def test_after_a_give_up_calls_wait_a_share_of_the_budget(
    install: Install, flavour: Flavour, server: FakeMilvus
) -> None:
    """Until something answers: then they wait the whole of it again."""
    install(recovery_budget=4.0, give_up_share=0.0, probe_timeout=0.2)
    client = flavour.connected(server.uri)
    server.stop()
    short = "within .* s: after a give_up"
    took = [_exhausted(client.list_collections, told) for told in ("budget", short, short)]
    assert took[0] > 3.5
    assert max(took[1:]) < 3.0, took
    server.start()
    wait_until(lambda: _served(client), 60)
    server.stop()
    assert _exhausted(client.list_collections) > 3.5


def _exhausted(call: Callable[[], Any], told: str = "could not reconnect within") -> float:
    """How long a call waited that ends with its budget (seconds), and says which that was."""
    before = time.monotonic()
    with pytest.raises(RecoveryExhausted, match=told):
        call()
    return time.monotonic() - before


def _served(client: Any) -> bool:
    try:
        return bool(client.list_collections())
    except MilvusException:
        return False


def test_a_block_has_a_budget_of_its_own(
    install: Install, flavour: Flavour, server: FakeMilvus
) -> None:
    """For a service with a fallback; other threads and tasks wait on."""
    install()
    client = flavour.connected(server.uri)
    server.stop()
    patient = Call(client.list_collections)
    if flavour.name == "threads":
        with ml.budget(0.2):
            assert _exhausted(client.list_collections) < 30
    else:

        async def impatient() -> Any:
            with ml.budget(0.2):
                return await client.inner.list_collections()

        assert _exhausted(lambda: flavour.wait(impatient())) < 30
    assert not patient.done
    server.start()
    assert patient.value(60) == ["demo"]


def test_a_first_connect_has_that_budget(install: Install) -> None:
    """Also where nobody answers, and with the cause, as within a timeout."""
    install()
    with (
        BlackHole() as hole,
        ml.budget(0.2),
        pytest.raises(ConnectFailed, match="DEADLINE_EXCEEDED"),
    ):
        MilvusClient(f"http://127.0.0.1:{hole.port}")


def test_budgets_do_not_widen_one_another(install: Install, server: FakeMilvus) -> None:
    """The narrowest block around a call holds, and a bad one is refused by its name."""
    install(recovery_budget=1.0)
    client = MilvusClient(server.uri)
    client.list_collections()
    server.stop()
    for outer, inner in ((0.1, 60.0), (60.0, 0.1)):
        with ml.budget(outer), ml.budget(inner):
            assert _exhausted(client.list_collections, r"within budget\(0\.1\)") < 0.9
    with pytest.raises(ValueError, match="budget=-1"), ml.budget(-1):
        pass


def test_one_caller_too_many_is_told_at_once(
    install: Install, flavour: Flavour, server: FakeMilvus
) -> None:
    """With the state and the age of the outage."""
    install(max_waiting=2)
    client = flavour.connected(server.uri)
    server.stop()
    waiting = [Call(client.list_collections) for _ in range(2)]
    row = {}

    def two_wait() -> bool:
        row.update(flavour.manager().get_stats()["connections"][0])
        return bool(row["waiting"] == 2)

    wait_until(two_wait, 30)
    told = r"2 calls wait .*max_waiting=2.* RECOVERING, in an outage since \d+\.\d s"
    with pytest.raises(RecoveryExhausted, match=told):
        client.list_collections()
    assert row["outage"] >= 0
    assert not any(call.done for call in waiting)
    server.start()
    assert [call.value(60) for call in waiting] == [["demo"]] * 2


def test_nobody_is_too_many_while_nothing_is_wrong(
    install: Install, flavour: Flavour, server: FakeMilvus
) -> None:
    """For a probe, a closed connection that comes back, or a first connect, all wait."""
    install(max_waiting=0, idle_threshold=0.0)
    client = flavour.connected(server.uri)
    assert client.list_collections() == ["demo"]
    flavour.manager().close_all()
    assert client.list_collections() == ["demo"]


# -- answers that ask to try again --------------------------------------------------------------

#: As a newer server says it, and as Milvus 2.3.5 does, which knows no flag for it.
RETRIABLE = common_pb2.Status(code=5, reason="service internal error", retriable=True)
GOING_DOWN = common_pb2.Status(
    code=65535, error_code=1, reason="empty grpc client: failed to connect"
)


@pytest.mark.parametrize("said", [RETRIABLE, GOING_DOWN], ids=["flag", "words"])
@pytest.mark.parametrize("knows", [True, False], ids=["pymilvus-3", "pymilvus-2.6"])
def test_a_read_that_the_server_asks_to_repeat_is_repeated(
    install: Install,
    flavour: Flavour,
    server: FakeMilvus,
    said: common_pb2.Status,
    knows: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Within its deadline and the budget; whether or not pymilvus's errors tell of the flag."""
    install()
    if not knows:
        monkeypatch.delattr(MilvusException, "retriable", raising=False)
    client = flavour.connected(server.uri)
    before, left = server.count("ShowCollections"), iter(range(3))

    def later(call: ServedCall) -> Any:
        return None if next(left, None) is None else milvus_pb2.ShowCollectionsResponse(status=said)

    server.on("ShowCollections", later)
    assert client.list_collections() == ["demo"]
    assert server.count("ShowCollections") == before + 4


@pytest.mark.parametrize("bound", ["budget", "timeout"])
def test_it_is_repeated_no_longer_than_its_caller_waits(
    install: Install, flavour: Flavour, server: FakeMilvus, bound: str
) -> None:
    """The decorator's next pause would end after that: the caller is told what the server said."""
    install()
    client = flavour.connected(server.uri)
    server.on("ShowCollections", lambda call: milvus_pb2.ShowCollectionsResponse(status=GOING_DOWN))

    async def within_budget() -> Any:
        with ml.budget(2.0):
            return await client.inner.list_collections()

    def call() -> Any:
        if bound == "timeout":
            return client.list_collections(timeout=2.0)
        if flavour.name == "asyncio":
            return flavour.wait(within_budget())
        with ml.budget(2.0):
            return client.list_collections()

    before = server.count("ShowCollections")
    with pytest.raises(MilvusException, match="message=empty grpc client"):
        call()
    # Its pauses are 0.01, 0.03, 0.09, 0.27 and 0.81 s; the next one is 2.43 s.
    assert server.count("ShowCollections") - before <= 6


@pytest.mark.parametrize("code", [1100, 65535])
def test_a_filter_that_speaks_of_readiness_is_not_repeated(
    install: Install, flavour: Flavour, server: FakeMilvus, code: int
) -> None:
    """What a user wrote, and the server quotes, says nothing about the server."""
    install()
    client = flavour.connected(server.uri)
    reason = 'cannot parse expression: status == "not ready", error: field status not exist'
    refused = common_pb2.Status(code=code, error_code=1, reason=reason)
    server.on("ShowCollections", lambda call: milvus_pb2.ShowCollectionsResponse(status=refused))
    before = server.count("ShowCollections")
    with pytest.raises(MilvusException, match="cannot parse"):
        client.list_collections()
    assert server.count("ShowCollections") == before + 1


@pytest.mark.parametrize(
    ("reason", "sent"),
    [
        ("service internal error", 1),
        ("service not ready[proxy=7: Abnormal]", 2),
        ("failed to expire cache: service not ready[proxy=7: Abnormal]", 1),
    ],
)
def test_a_write_is_repeated_only_where_nothing_was_done(
    install: Install, flavour: Flavour, server: FakeMilvus, reason: str, sent: int
) -> None:
    """A flag alone may come after half of the work."""
    install()
    client = flavour.connected(server.uri)
    left = iter(range(1))

    def later(call: ServedCall) -> Any:
        failed = common_pb2.Status(code=5, reason=reason, retriable=True)
        return None if next(left, None) is None else failed

    server.on("DropCollection", later)
    with nullcontext() if sent == 2 else pytest.raises(MilvusException):
        client.drop_collection("demo")
    assert server.count("DropCollection") == sent


def test_a_rate_limit_is_pymilvus_own_affair(
    install: Install, flavour: Flavour, server: FakeMilvus
) -> None:
    """The engine does not repeat what the server asks to slow down."""
    install()
    client = flavour.connected(server.uri)
    limited = common_pb2.Status(code=8, reason="rate limit exceeded", retriable=True)
    server.on("ShowCollections", lambda call: milvus_pb2.ShowCollectionsResponse(status=limited))
    before = server.count("ShowCollections")
    with pytest.raises(MilvusException, match="rate limit"):
        client.list_collections(retry_on_rate_limit=False)
    assert server.count("ShowCollections") == before + 1
