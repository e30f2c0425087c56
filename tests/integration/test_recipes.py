"""The programs of docs/recipes.md, as they stand there, against servers that fail."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import grpc
import pytest
from pymilvus.exceptions import MilvusException
from pymilvus.grpc_gen import milvus_pb2, schema_pb2

import milvus_lifecycle as ml
from tests.flavours import Flavour
from tests.observe import Call, wait_until
from tests.pages import program
from tests.servers import FakeMilvus, RpcFailure, ServedCall, credentials, status

pytestmark = pytest.mark.timeout(90)


@pytest.fixture
def uninstalled() -> Iterator[None]:
    """Whatever a program installs is taken away again."""
    yield
    ml.uninstall()


def recipe(title: str) -> Any:
    """What the program under that heading defines."""
    names: dict[str, Any] = {}
    exec(program("recipes.md", title), names)
    return SimpleNamespace(**names)


def _describe(call: ServedCall) -> Any:
    field = schema_pb2.FieldSchema(name="id", fieldID=100, is_primary_key=True, data_type=5)
    return milvus_pb2.DescribeCollectionResponse(
        schema=schema_pb2.CollectionSchema(name="demo", fields=[field]), collection_name="demo"
    )


def _insert(flavour: Flavour, client: Any, once: Any) -> None:
    """One row, in a block of ``once``."""
    if flavour.name == "threads":
        with once():
            client.insert("demo", [{"id": 1}])
        return

    async def insert() -> None:
        with once():
            await client.inner.insert("demo", [{"id": 1}])

    flavour.wait(insert())


def test_insert_once(uninstalled: None, flavour: Flavour, server: FakeMilvus) -> None:
    """The attempts of a call carry one key, two calls two, and other RPCs none."""
    once = recipe("Insert once").insert_once
    client = flavour.client(server.uri)
    server.on("DescribeCollection", _describe)
    left = iter(range(1))

    def lost(call: ServedCall) -> Any:
        if next(left, None) is not None:
            raise RpcFailure(grpc.StatusCode.UNAVAILABLE, "the answer is lost")

    server.on("Insert", lost)
    _insert(flavour, client, once)
    _insert(flavour, client, once)
    first, again, second = (call.metadata["idempotency-key"] for call in server.seen("Insert"))
    assert first == again
    assert second != first
    assert not any(
        "idempotency-key" in call.metadata for call in server.calls if call.method != "Insert"
    )
    refused = status(1100, "idempotency key is not accepted when idempotent write is disabled")
    server.on("Insert", lambda call: milvus_pb2.MutationResult(status=refused))
    with pytest.raises(MilvusException, match="not accepted") as caught:
        _insert(flavour, client, once)
    assert caught.value.code == 1100


def test_credentials_that_rotate(uninstalled: None, flavour: Flavour, server: FakeMilvus) -> None:
    """The old token ends under running clients, and before a reconnect: no call fails."""
    valid, refused = "root:first", list[str]()

    def check(call: ServedCall) -> Any:
        if credentials(call) != valid:
            refused.append(call.method)
            raise RpcFailure(grpc.StatusCode.UNAUTHENTICATED, "auth check failure")

    for method in ("Connect", "ShowCollections", "GetVersion"):
        server.on(method, check)
    recipe("Credentials that rotate").install(lambda: valid)
    client = flavour.client(server.uri)
    assert client.list_collections() == ["demo"]
    valid = "root:second"
    assert client.list_collections() == ["demo"]
    valid = "root:third"
    server.stop()
    waiting = Call(client.list_collections)
    wait_until(lambda: flavour.manager().get_stats()["connections"][0]["waiting"] == 1, 30)
    server.start()
    assert waiting.value(60) == ["demo"]
    assert "Connect" not in refused
    valid, asked = "root:fourth", server.count("ShowCollections")
    server.on("ShowCollections", lambda call: check(replace(call, metadata={})))
    with pytest.raises(grpc.RpcError, match="auth check failure"):
        client.list_collections()
    assert server.count("ShowCollections") == asked + 2


def test_active_and_standby(
    uninstalled: None, flavour: Flavour, old: FakeMilvus, new: FakeMilvus
) -> None:
    """Over when the active one goes, back when it is well again; not for every hiccup."""
    standby = recipe("Active and standby")
    checked = Counter[str]()

    def check(address: str) -> Any:
        checked[address] += 1
        return standby.answers(address)

    group = standby.Group([old.address, new.address], check, hold_down=1000.0, every=0.2)
    standby.install(old.address, group)
    client = flavour.client(old.uri)
    assert client.list_collections() == ["old"]
    old.stop()
    assert client.list_collections() == ["new"]
    old.start()
    checked.clear()
    wait_until(lambda: checked[old.address] > 3, 30)
    assert client.list_collections() == ["new"], "it has not been well for a while"
    group._well_since[old.address] -= 1000  # a while later
    wait_until(lambda: client.list_collections() == ["old"], 30)
    other = flavour.client(new.uri)
    assert other.list_collections() == ["new"]
