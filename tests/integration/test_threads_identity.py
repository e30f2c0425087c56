"""Who a connection says it is: headers after a recovery, a changed password, and no secrets."""

from __future__ import annotations

import base64
import logging
from pathlib import Path
from typing import Any

import grpc
import pytest
from pymilvus.exceptions import MilvusException

from tests.conftest import Engine
from tests.network import TcpProxy
from tests.observe import Call, LogLines, wait_until
from tests.servers import FakeMilvus, RpcFailure, ServedCall, TlsFiles

pytestmark = pytest.mark.timeout(60)

SECRETS = ("pa55word", "t0psecret")


def _credentials(call: ServedCall) -> str:
    return base64.b64decode(call.metadata.get("authorization", "")).decode()


def _fail_next_listing(server: FakeMilvus) -> None:
    failing = iter([True])

    def answer(call: ServedCall) -> None:
        if next(failing, False):
            raise RpcFailure(grpc.StatusCode.UNAVAILABLE)

    server.on("ShowCollections", answer)


def test_headers_are_right_after_a_recovery(engine: Engine, server: FakeMilvus) -> None:
    """After a recovery RPCs carry the same authorization, and the new channel's identifier."""
    client = engine.client(server.uri, token="root:Milvus")
    client.list_collections()
    first = server.seen("ShowCollections")[-1]
    assert first.metadata["identifier"] == str(server.identifiers[-1])

    _fail_next_listing(server)
    client.list_collections()

    last = server.seen("ShowCollections")[-1]
    assert len(server.identifiers) == 2
    assert last.metadata["identifier"] == str(server.identifiers[-1])
    assert last.metadata["identifier"] != first.metadata["identifier"]
    assert last.peer != first.peer
    for call in (first, last, *server.seen("Connect")):
        assert _credentials(call) == "root:Milvus"


def test_headers_are_right_after_a_onetime_log_level(engine: Engine, server: FakeMilvus) -> None:
    """`log_level=` makes pymilvus rebuild its stub; recoveries before and after it go well."""
    client = engine.client(server.uri, token="root:Milvus")
    for _ in range(2):
        _fail_next_listing(server)
        client.list_collections()
        client.list_collections(log_level="debug")
        assert server.seen("ShowCollections")[-1].metadata["log_level"] == "debug"
    client.list_collections()
    last = server.seen("ShowCollections")[-1]
    assert last.metadata["identifier"] == str(server.identifiers[-1])
    assert _credentials(last) == "root:Milvus"


def test_a_handler_stays_the_same_object(engine: Engine, server: FakeMilvus) -> None:
    """A recovery changes what is behind a client's handler, never the handler."""
    client = engine.client(server.uri)
    handler = client._handler
    _fail_next_listing(server)
    client.list_collections()
    assert server.count("Connect") == 2
    assert client._handler is handler
    assert engine.client(server.uri)._handler is handler


def test_a_changed_password_survives_a_recovery(engine: Engine, server: FakeMilvus) -> None:
    """After update_password(reset_connection=True) a recovery connects with the new password."""
    client = engine.client(server.uri, token="root:old")
    client.update_password("root", "old", "new", reset_connection=True)
    client.list_collections()
    assert _credentials(server.seen("ShowCollections")[-1]) == "root:new"

    connects = server.count("Connect")
    _fail_next_listing(server)
    client.list_collections()

    assert server.count("Connect") == connects + 1
    assert _credentials(server.seen("Connect")[-1]) == "root:new"
    last = server.seen("ShowCollections")[-1]
    assert _credentials(last) == "root:new"
    assert last.metadata["identifier"] == str(server.identifiers[-1])


def test_a_connection_with_a_changed_password_leaves_the_pool(
    engine: Engine, server: FakeMilvus
) -> None:
    """A client that still comes with the old password does not get the changed connection."""
    changed = engine.client(server.uri, token="root:old")
    changed.update_password("root", "old", "new", reset_connection=True)
    still_old = engine.client(server.uri, token="root:old")
    assert still_old._handler is not changed._handler
    still_old.list_collections()
    assert _credentials(server.seen("ShowCollections")[-1]) == "root:old"
    changed.list_collections()
    assert _credentials(server.seen("ShowCollections")[-1]) == "root:new"


def test_tls_and_credentials_survive_a_recovery(engine: Engine, tls_files: TlsFiles) -> None:
    """A TLS client with a certificate of its own authority recovers over TLS."""
    with FakeMilvus(tls=tls_files) as server, TcpProxy(server.port) as proxy:
        client = engine.client(
            f"https://localhost:{proxy.port}", token="root:Milvus", server_pem_path=tls_files.ca
        )
        client.list_collections()
        proxy.cut()
        assert Call(client.list_collections).value(20) == ["demo"]
        assert _credentials(server.seen("ShowCollections")[-1]) == "root:Milvus"


@pytest.mark.policy(recovery_budget=0.5)
def test_no_secret_is_shown_anywhere(
    engine: Engine, server: FakeMilvus, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """Through connect, outage, give-up and errors: no token in records, logs, stats, reprs."""
    shown: list[Any] = []
    with LogLines(logging.DEBUG) as lines, TcpProxy(server.port) as proxy:
        by_uri = engine.client(f"http://root:pa55word@{proxy.address}")
        by_token = engine.client(proxy.uri, token="t0psecret")
        for client in (by_uri, by_token):
            client.list_collections()
        shown += [engine.stats(), repr(engine.manager)]
        proxy.set_mode("refuse", cut=True)
        for client in (by_uri, by_token):
            with pytest.raises(MilvusException) as caught:
                client.list_collections()
            shown += _chain(caught.value)
        refused = Call(engine.client, proxy.uri, token="t0psecret", timeout=0.5, dedicated=True)
        assert wait_until(lambda: refused.done, 10)
        assert refused.error is not None
        shown += _chain(refused.error)
        for uri in ("ftp://root:pa55word@host", "http://root:pa55word@:99999", "root:pa55word@"):
            with pytest.raises(MilvusException) as caught:
                engine.client(uri, token="t0psecret")
            shown += _chain(caught.value)
        shown += [by_uri._config, by_token._config, by_uri._config.uri, by_token._config.key]
        shown += [by_uri._handler, by_uri._handler._channel, engine.stats()]
        shown += engine.records
        shown += [record.__dict__ for record in lines.records]
        engine.manager.close_all()
    text = "\n".join(f"{item!r} {item!s}" for item in shown) + "".join(capfd.readouterr())
    assert engine.transitions("give_up")
    encoded = [base64.b64encode(s.encode()).decode() for s in ("root:pa55word", "t0psecret")]
    assert [secret for secret in (*SECRETS, *encoded) if secret in text] == []


def _chain(error: BaseException) -> list[Any]:
    """An error with everything that a traceback of it would show."""
    shown: list[Any] = []
    link: BaseException | None = error
    while link is not None and len(shown) < 50:
        shown += [link, link.args]
        link = link.__cause__ or link.__context__
    return shown
