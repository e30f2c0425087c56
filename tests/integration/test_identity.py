"""Who a connection says it is: headers after a recovery, a changed password, and no secrets."""

from __future__ import annotations

import base64
import logging
from typing import Any

import pytest
from pymilvus.exceptions import MilvusException

from tests.flavours import Program
from tests.network import TcpProxy
from tests.observe import Call, LogLines, all_done
from tests.servers import FakeMilvus, TlsFiles, credentials

pytestmark = pytest.mark.timeout(60)

#: Only MilvusClient can change its password (``reset_connection``), or log one call's level.
in_threads = pytest.mark.parametrize("program", ["threads"], indirect=True)

SECRETS = ("pa55word", "t0psecret")


def test_headers_are_right_after_a_recovery(program: Program, server: FakeMilvus) -> None:
    """RPCs carry the same authorization as before, and the new channel's identifier.

    A recovery changes what is behind a client's handler, never the handler.
    """
    client = program.connected(server.uri, token="root:Milvus")
    handler = client._handler
    first = server.seen("ShowCollections")[-1]
    assert first.metadata["identifier"] == str(server.identifiers[-1])
    for _ in range(3):
        server.fail_next("ShowCollections")
        client.list_collections()
        last = server.seen("ShowCollections")[-1]
        assert last.metadata["identifier"] == str(server.identifiers[-1])
        assert last.metadata["identifier"] != first.metadata["identifier"]
        assert last.peer != first.peer
    assert len(server.identifiers) == 4
    assert client._handler is handler
    assert program.client(server.uri, token="root:Milvus")._handler is handler
    for call in (first, last, *server.seen("Connect")):
        assert credentials(call) == "root:Milvus"
        names = [key for key, _ in call.context.invocation_metadata()]
        assert names.count("authorization") == 1
        assert names.count("identifier") == (0 if call.method == "Connect" else 1)


@in_threads
def test_headers_are_right_after_a_onetime_log_level(program: Program, server: FakeMilvus) -> None:
    """`log_level=` makes pymilvus rebuild its stub; recoveries before and after it go well."""
    client = program.client(server.uri, token="root:Milvus")
    for _ in range(2):
        server.fail_next("ShowCollections")
        client.list_collections()
        client.list_collections(log_level="debug")
        assert server.seen("ShowCollections")[-1].metadata["log_level"] == "debug"
    client.list_collections()
    last = server.seen("ShowCollections")[-1]
    assert last.metadata["identifier"] == str(server.identifiers[-1])
    assert credentials(last) == "root:Milvus"


@in_threads
def test_a_changed_password_survives_a_recovery(program: Program, server: FakeMilvus) -> None:
    """After update_password(reset_connection=True) a recovery connects with the new password."""
    client = program.client(server.uri, token="root:old")
    client.update_password("root", "old", "new", reset_connection=True)
    client.list_collections()
    assert credentials(server.seen("ShowCollections")[-1]) == "root:new"

    connects = server.count("Connect")
    server.fail_next("ShowCollections")
    client.list_collections()

    assert server.count("Connect") == connects + 1
    assert credentials(server.seen("Connect")[-1]) == "root:new"
    last = server.seen("ShowCollections")[-1]
    assert credentials(last) == "root:new"
    assert last.metadata["identifier"] == str(server.identifiers[-1])


@in_threads
def test_a_connection_with_a_changed_password_leaves_the_pool(
    program: Program, server: FakeMilvus
) -> None:
    """A client that still comes with the old password does not get the changed connection."""
    changed = program.client(server.uri, token="root:old")
    changed.update_password("root", "old", "new", reset_connection=True)
    still_old = program.connected(server.uri, token="root:old")
    assert still_old._handler is not changed._handler
    assert credentials(server.seen("ShowCollections")[-1]) == "root:old"
    changed.list_collections()
    assert credentials(server.seen("ShowCollections")[-1]) == "root:new"


def test_tls_and_credentials_survive_a_recovery(program: Program, tls_files: TlsFiles) -> None:
    """A TLS client with a certificate of its own authority recovers over TLS."""
    with FakeMilvus(tls=tls_files) as server, TcpProxy(server.port) as proxy:
        uri = f"https://localhost:{proxy.port}"
        client = program.connected(uri, token="root:Milvus", server_pem_path=tls_files.ca)
        proxy.cut()
        assert Call(client.list_collections).value(20) == ["demo"]
        assert credentials(server.seen("ShowCollections")[-1]) == "root:Milvus"


@pytest.mark.policy(recovery_budget=0.5)
def test_no_secret_is_shown_anywhere(
    program: Program, server: FakeMilvus, capfd: pytest.CaptureFixture[str]
) -> None:
    """Through connect, outage, give-up and errors: no token in records, logs, stats, reprs."""
    shown: list[Any] = []
    with LogLines(logging.DEBUG) as lines, TcpProxy(server.port) as proxy:
        by_uri = program.connected(f"http://root:pa55word@{proxy.address}")
        by_token = program.connected(proxy.uri, token="t0psecret")
        shown += [program.stats(), repr(program.manager())]
        proxy.set_mode("refuse", cut=True)
        for client in (by_uri, by_token):
            with pytest.raises(MilvusException) as caught:
                client.list_collections()
            shown += _chain(caught.value)
        refused = Call(program.client, proxy.uri, token="t0psecret", timeout=0.5, dedicated=True)
        assert all_done([refused], 10)
        assert refused.error is not None
        shown += _chain(refused.error)
        for uri in ("ftp://root:pa55word@host", "http://root:pa55word@:99999", "root:pa55word@"):
            with pytest.raises(MilvusException) as caught:
                program.client(uri, token="t0psecret")
            shown += _chain(caught.value)
        shown += [by_uri._config, by_token._config, by_uri._config.uri, by_token._config.key]
        shown += [by_uri._handler, program.stats(), *program.records]
        shown += [record.__dict__ for record in lines.records]
        program.close_all()
    text = "\n".join(f"{item!r} {item!s}" for item in shown) + "".join(capfd.readouterr())
    assert program.transitions("give_up")
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
