"""A service's own unit tests, which mock pymilvus's handler and know nothing of the engine."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest import mock

import pytest
from pymilvus.client import connection_manager as theirs
from pymilvus.exceptions import MilvusException

from tests.flavours import Program
from tests.servers import FakeMilvus

TARGETS = {
    "threads": ("pymilvus.client.grpc_handler.GrpcHandler", "_wait_for_channel_ready"),
    "asyncio": ("pymilvus.client.async_grpc_handler.AsyncGrpcHandler", "ensure_channel_ready"),
}
#: what a service has in its configuration; nobody reads the file
OPTIONS = {"token": "root:Milvus", "secure": True, "server_pem_path": "/no/such/file.pem"}


@contextmanager
def mocked(program: Program, kind: str = "autospec") -> Iterator[Any]:
    """The handler that clients get: of a mock that knows nothing, or of one that knows its class,
    or what a class of the test's own makes."""
    target, ready = TARGETS[program.name]
    method: type[mock.Mock] = mock.Mock if program.name == "threads" else mock.AsyncMock
    methods: dict[str, Any] = {name: method() for name in (ready, "list_collections")}
    if kind == "class":
        methods["get_server_type"] = mock.Mock()
        made = type("Fake", (), {**methods, "__init__": lambda self, **kwargs: None})
        with mock.patch(target, made):
            yield made
        return
    with mock.patch(target, autospec=kind == "autospec") as patched:
        if kind == "plain":
            patched.return_value.configure_mock(**methods)
        yield patched.return_value


@pytest.mark.policy(idle_threshold=0.0)
@pytest.mark.parametrize("kind", ["plain", "autospec", "class"])
def test_a_mocked_handler_counts_as_connected(
    program: Program, server: FakeMilvus, kind: str
) -> None:
    """Calls go to it, and nothing to the wire: neither at the first connect nor at a probe."""
    with mocked(program, kind) as handler:
        handler.list_collections.return_value = ["mine"]
        for _ in range(2):
            client = program.client(server.uri, **OPTIONS)
            assert client.list_collections() == ["mine"]
        handler.list_collections.side_effect = MilvusException(message="as the test says")
        with pytest.raises(MilvusException, match="as the test says"):
            client.list_collections()
        assert program.path().count("probe_passed") >= 2
        client.close()
    assert server.calls == []


def test_a_mock_that_cannot_connect_is_a_client_that_cannot(
    program: Program, server: FakeMilvus
) -> None:
    """What it raises where pymilvus would wait for its channel is what the client raises."""
    with mocked(program) as handler:
        ready = getattr(handler, TARGETS[program.name][1])
        ready.side_effect = MilvusException(message="as the test says")
        with pytest.raises(MilvusException, match="as the test says"):
            program.client(server.uri)
    assert program.stats()["total_connections"] == 0
    assert server.calls == []


def test_each_test_of_a_service_has_a_mock_of_its_own(program: Program, server: FakeMilvus) -> None:
    """pymilvus's `_reset_instance` between them does what it does there; then the real thing."""
    owner: Any = theirs.ConnectionManager
    if program.name == "asyncio":
        owner = theirs.AsyncConnectionManager
    for collection in ("one", "two"):
        with mocked(program) as handler:
            handler.list_collections.return_value = [collection]
            assert program.client(server.uri).list_collections() == [collection]
        owner._reset_instance()
    assert server.calls == []
    assert program.client(server.uri).list_collections() == ["demo"]
