"""Errors as callers and pymilvus's log see them: by name, told once, with what to do about it."""

from __future__ import annotations

import http.server
import logging
import threading
from pathlib import Path
from typing import Any

import pytest
from pymilvus.exceptions import MilvusException

import milvus_lifecycle as ml
from tests.flavours import Program
from tests.observe import LogLines
from tests.servers import FakeMilvus, make_tls_files


@pytest.mark.policy(recovery_budget=0.5)
def test_each_is_caught_by_the_name_that_it_prints(program: Program, server: FakeMilvus) -> None:
    """Also by a call that starts when the outage is known, whose errors pymilvus makes its own.

    What its log says of one is one traceback, of that error.
    """
    client = program.connected(server.uri)
    server.stop()
    with LogLines(logging.ERROR, "pymilvus") as lines:
        late, spent = ml.DeadlineExceeded, ml.RecoveryExhausted
        # In asyncio pymilvus itself refuses a timeout of 0.
        none = 0.0 if program.name == "threads" else 0.1
        for timeout, kind in ((0.3, late), (None, spent), (0.3, late), (none, late), (None, spent)):
            with pytest.raises(kind) as caught:
                client.list_collections(timeout=timeout)
            assert isinstance(caught.value, MilvusException)
            assert isinstance(caught.value, ml.LifecycleError)
            assert type(getattr(caught.value, "code", None)) is int
            assert str(caught.value).startswith(f"<{kind.__name__}: (code=2, message=")
        told = [line.getMessage() for line in lines.at_least(logging.ERROR, "pymilvus")]
    assert len(told) == 5
    for text in told:
        assert "direct cause of" not in text
        assert "During handling of" not in text
    with pytest.raises(ml.ConnectFailed, match=r"^<ConnectFailed: \(code=2"):
        program.client(server.uri, token="an:other")


def test_what_to_do_about_tls(program: Program, tmp_path: Path) -> None:
    """A client and a server that do not understand each other: the error says what to change."""
    (tmp_path / "other").mkdir()
    files, other = make_tls_files(tmp_path), make_tls_files(tmp_path / "other")
    with FakeMilvus() as plain, FakeMilvus(tls=files) as secure:
        plain_uri, tls_uri = f"https://{plain.address}", f"https://{secure.address}"
        tries: list[tuple[str, dict[str, Any], str]] = [
            (plain_uri, {"server_pem_path": files.ca}, "speaks plaintext: use http://"),
            (tls_uri, {"server_pem_path": other.ca}, "not signed by an authority that is trusted"),
            (
                tls_uri,
                {"server_pem_path": files.ca, "server_name": "other.example"},
                "for another name: use that one in the URI",
            ),
            (f"http://{secure.address}", {}, "if it wants TLS, the URI has to begin with https://"),
        ]
        for uri, options, advice in tries:
            with pytest.raises(ml.ConnectFailed, match=advice) as caught:
                program.client(uri, timeout=5, **options)
            assert uri.partition("//")[2] in str(caught.value), "the cause is cut away"


class _Refusing(http.server.BaseHTTPRequestHandler):
    """A proxy that lets nobody through."""

    def do_CONNECT(self) -> None:
        self.send_response(403)
        self.end_headers()

    def log_message(self, *args: Any) -> None:
        """Not to stderr."""


def test_what_to_do_about_a_proxy(program: Program, monkeypatch: pytest.MonkeyPatch) -> None:
    """One that refuses is named by its variable, and so is one that is not there."""
    with http.server.HTTPServer(("127.0.0.1", 0), _Refusing) as proxy:
        threading.Thread(target=proxy.serve_forever, daemon=True).start()
        try:
            monkeypatch.setenv("http_proxy", f"http://127.0.0.1:{proxy.server_port}")
            with pytest.raises(ml.ConnectFailed, match="refused by the proxy in http_proxy"):
                program.client("http://milvus.example:19530", timeout=5)
        finally:
            proxy.shutdown()
    with pytest.raises(ml.ConnectFailed, match="gRPC goes through the proxy in http_proxy"):
        program.client("http://milvus.example:19530", timeout=5)
