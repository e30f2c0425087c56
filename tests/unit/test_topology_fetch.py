"""Fetching a topology: deadlines, TLS, and what never leaves the machine."""

from __future__ import annotations

import contextlib
import json
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler
from types import SimpleNamespace
from typing import Any

import pytest
import trustme

from milvus_lifecycle.endpoints import topology_fetch
from milvus_lifecycle.endpoints.topology_fetch import fetch_topology
from milvus_lifecycle.errors import TopologyError, TopologyReason
from milvus_lifecycle.testing import until
from milvus_lifecycle.tls import TlsMaterial
from tests.topology_service import (
    Service,
    answer,
    drip_body,
    drip_head,
    reply,
    serving,
    silence,
)

TOKEN = "root:s3cr3t"


@pytest.fixture(autouse=True)
def no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    """Keep the machine's own proxy out of the tests."""
    for name in (
        "http_proxy",
        "https_proxy",
        "all_proxy",
        "HTTP_PROXY",
        "HTTPS_PROXY",
        "ALL_PROXY",
    ):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def serve() -> Iterator[Callable[..., Service]]:
    """Start services; end them with the test."""
    with contextlib.ExitStack() as stack:
        yield lambda *arguments: stack.enter_context(serving(*arguments))


def fail(uri: str, token: str = TOKEN, **options: Any) -> TopologyError:
    """Return the error, having made sure that it holds no secret anywhere."""
    with pytest.raises(TopologyError) as caught:
        fetch_topology(uri, token, **options)
    error = caught.value
    assert "s3cr3t" not in f"{error}{error!r}{error.__dict__}"
    assert error.last_error is None
    assert error.__cause__ is None
    assert error.__context__ is None
    return error


def test_request(serve: Callable[..., Service]) -> None:
    """One GET with a bearer token, which asks for nothing compressed."""
    service = serve(reply())
    assert fetch_topology(service.url, TOKEN).primary.endpoint == "https://a.example.com"
    [(path, headers)] = service.seen
    assert path == "/global-cluster/topology"
    assert headers["authorization"] == f"Bearer {TOKEN}"
    assert headers["accept-encoding"] == "identity"


def test_request_without_token_or_path(serve: Callable[..., Service]) -> None:
    """No token, no Authorization header; a database in the URI is no part of the URL."""
    service = serve(reply())
    fetch_topology(f"{service.url}/my_database", "")
    [(path, headers)] = service.seen
    assert path == "/global-cluster/topology"
    assert "authorization" not in headers


def test_own_authority(serve: Callable[..., Service]) -> None:
    """A certificate of the client's own CA is trusted, and only with that CA."""
    authority = trustme.CA()
    service = serve(reply(), authority.issue_cert("127.0.0.1"))
    assert (
        fetch_topology(service.url, TOKEN, tls=TlsMaterial(root=authority.cert_pem.bytes())).version
        == 1
    )
    for tls in (None, TlsMaterial(), TlsMaterial(root=trustme.CA().cert_pem.bytes())):
        error = fail(service.url, tls=tls)
        assert error.reason is TopologyReason.UNTRUSTED
    assert len(service.seen) == 1


def test_certificate_itself_as_anchor(serve: Callable[..., Service]) -> None:
    """A server_pem_path that holds the server's own certificate works, as it does in gRPC."""
    certificate = trustme.CA().issue_cert("127.0.0.1")
    service = serve(reply(), certificate)
    pem = certificate.cert_chain_pems[0].bytes()
    assert fetch_topology(service.url, TOKEN, tls=TlsMaterial(root=pem)).version == 1


def test_certificate_of_another_host(serve: Callable[..., Service]) -> None:
    """A certificate for another name is refused before the token is sent."""
    authority = trustme.CA()
    service = serve(reply(), authority.issue_cert("example.com"))
    error = fail(service.url, tls=TlsMaterial(root=authority.cert_pem.bytes()))
    assert error.reason is TopologyReason.UNTRUSTED
    assert service.seen == []


@pytest.mark.parametrize(
    ("behave", "reason"),
    [
        (reply(b"s3cr3t", 500), "HTTP_STATUS"),
        (reply(b"", 404), "HTTP_STATUS"),
        (reply(b"s3cr3t"), "GARBAGE"),
        (reply(b"x", Content_Encoding="gzip"), "GARBAGE"),
        (reply(b"{", Content_Length="2"), "UNREACHABLE"),
        (lambda handler: None, "UNREACHABLE"),
        (lambda handler: handler.wfile.write(b"s3cr3t\r\n\r\n"), "UNREACHABLE"),
        (
            lambda handler: handler.wfile.write(b"HTTP/1.1 200 OK\r\nX: " + b"s3cr3t" * 99_999),
            "UNREACHABLE",
        ),
    ],
)
def test_passing_trouble(serve: Callable[..., Service], behave: Any, reason: str) -> None:
    """What the next fetch may cure: the error names the address and the trouble."""
    service = serve(behave)
    error = fail(service.url)
    assert error.reason is TopologyReason[reason]
    assert len(service.seen) == 1
    assert error.address == service.url.removeprefix("http://")
    assert error.address in str(error)


@pytest.mark.parametrize(
    ("behave", "reason"),
    [
        (reply(b"", 401), "UNAUTHORIZED"),
        (reply(b"", 403), "UNAUTHORIZED"),
        (reply(json.dumps({"code": 9, "message": f"bad {TOKEN}, s3cr3t"}).encode()), "REFUSED"),
        (reply(json.dumps(answer(clusters=[])).encode()), "EMPTY"),
        (reply(b"", Content_Length="100000000"), "TOO_LARGE"),
        (reply(b"", Content_Length="9" * 15), "TOO_LARGE"),
    ],
)
def test_final_trouble(serve: Callable[..., Service], behave: Any, reason: str) -> None:
    """What no other fetch can cure, and what the service says about it echoes no token."""
    service = serve(behave)
    error = fail(service.url)
    assert error.reason is TopologyReason[reason]
    assert len(service.seen) == 1


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308, 304])
def test_redirects_are_not_followed(serve: Callable[..., Service], status: int) -> None:
    """The token never travels to where a redirect points."""
    elsewhere = serve(reply())
    service = serve(reply(b"", status, Location=elsewhere.url + "/global-cluster/topology"))
    assert fail(service.url).reason is TopologyReason.REDIRECT
    assert elsewhere.seen == []
    assert len(service.seen) == 1


@pytest.mark.parametrize("chunked", [False, True])
def test_endless_answers_are_cut_off(serve: Callable[..., Service], chunked: bool) -> None:
    """Of an answer of 100 MB less than half is taken in: the limit, and what sockets hold."""
    sent = 0

    def flood(handler: BaseHTTPRequestHandler) -> None:
        nonlocal sent
        handler.send_response(200)
        handler.send_header(*(("Transfer-Encoding", "chunked") if chunked else ("X", "y")))
        handler.end_headers()
        while sent < 100_000_000:
            handler.wfile.write((b"10000\r\n" if chunked else b"") + b" " * 65_536)
            handler.wfile.write(b"\r\n" if chunked else b"")
            sent += 65_536

    service = serve(flood)
    assert fail(service.url).reason is TopologyReason.TOO_LARGE
    assert sent < 50_000_000


@pytest.mark.parametrize("secure", [False, True])
@pytest.mark.parametrize("behave", [silence, drip_head, drip_body])
def test_deadline_holds(serve: Callable[..., Service], secure: bool, behave: Any) -> None:
    """A server that says nothing, or drips, holds nobody for 5 s whose timeout is 0.5 s."""
    authority = trustme.CA()
    service: Service = serve(
        lambda handler: behave(service, handler),
        authority.issue_cert("127.0.0.1") if secure else None,
    )
    tls = TlsMaterial(root=authority.cert_pem.bytes()) if secure else None
    began = time.monotonic()
    error = fail(service.url, tls=tls, timeout=0.5)
    assert 0.4 < time.monotonic() - began < 5.0
    assert error.reason is TopologyReason.DEADLINE
    assert len(service.seen) == 1


def test_deadline_holds_before_the_handshake() -> None:
    """A port that accepts and never answers, not even TLS, holds nobody for 5 s either."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        began = time.monotonic()
        error = fail(f"https://127.0.0.1:{listener.getsockname()[1]}", timeout=0.5)
        assert time.monotonic() - began < 5.0
    assert error.reason is TopologyReason.DEADLINE


def test_a_slow_answer_is_waited_for(
    serve: Callable[..., Service], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A request may take all the time there is: one that is begun anew is never answered."""
    monkeypatch.setattr(topology_fetch, "CONNECT_TIMEOUT", 0.3)

    def slow(handler: BaseHTTPRequestHandler) -> None:
        service.stopped.wait(1.0)
        reply()(handler)

    service = serve(slow)
    assert fetch_topology(service.url, TOKEN, timeout=20.0).version == 1
    assert len(service.seen) == 1


def test_a_request_that_hangs_gets_company(
    serve: Callable[..., Service], monkeypatch: pytest.MonkeyPatch
) -> None:
    """It may be slow, or forgotten: another one is made beside it, and the first answer counts."""
    monkeypatch.setattr(topology_fetch, "COMPANY_AFTER", 0.3)
    service: Service = serve(
        lambda handler: silence(service, handler) if len(service.seen) == 1 else reply()(handler)
    )
    assert fetch_topology(service.url, TOKEN, timeout=30.0).version == 1
    assert len(service.seen) == 2


def test_a_slow_request_outlives_its_company(
    serve: Callable[..., Service], monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the others fail with does not end it."""
    monkeypatch.setattr(topology_fetch, "COMPANY_AFTER", 0.3)

    def behave(handler: BaseHTTPRequestHandler) -> None:
        first = len(service.seen) == 1
        if first:
            service.stopped.wait(1.0)
        reply(status=200 if first else 503)(handler)

    service = serve(behave)
    assert fetch_topology(service.url, TOKEN, timeout=30.0).version == 1
    assert len(service.seen) > 1


def test_no_thread_to_be_had(
    serve: Callable[..., Service], monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is an error like any other."""
    service = serve(reply())
    starting = threading.Thread.start

    def start(thread: threading.Thread) -> None:
        if "request" in thread.name:
            raise RuntimeError("can't start new thread")
        starting(thread)

    monkeypatch.setattr(threading.Thread, "start", start)
    error = fail(service.url)
    assert error.reason is TopologyReason.UNREACHABLE
    assert "can't start new thread" in str(error)


def test_a_connection_has_to_come_up_sooner(monkeypatch: pytest.MonkeyPatch) -> None:
    """A handshake without an answer is given up long before the timeout: the next one may have."""
    monkeypatch.setattr(topology_fetch, "CONNECT_TIMEOUT", 0.2)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        error = fail(f"https://127.0.0.1:{listener.getsockname()[1]}", timeout=30.0)
    assert error.reason is TopologyReason.UNREACHABLE


def test_nobody_listens() -> None:
    """A refused connection is named."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    error = fail(f"http://127.0.0.1:{port}")
    assert error.reason is TopologyReason.UNREACHABLE
    assert "refused" in str(error)


@pytest.mark.parametrize(
    ("uri", "token", "tls"),
    [
        ("ftp://h", TOKEN, None),
        ("", TOKEN, None),
        (None, TOKEN, None),
        ("unix:/run/x.sock", TOKEN, None),
        ("http://root:s3cr3t@h", TOKEN, None),
        ("http://127.0.0.1:9", "s3cr3t\r\nX: y", None),
        ("http://127.0.0.1:9", "s3cr3t ", None),
        ("http://127.0.0.1:9", b"s3cr3t", None),
        ("https://127.0.0.1:9", TOKEN, TlsMaterial(root=b"s3cr3t")),
    ],
)
def test_impossible_requests(uri: Any, token: Any, tls: TlsMaterial | None) -> None:
    """An endpoint, token or CA that makes no request is refused before anything is sent."""
    error = fail(uri, token, tls=tls)
    assert error.reason is TopologyReason.BAD_REQUEST


def test_token_beyond_ascii(serve: Callable[..., Service]) -> None:
    """A password with any letters is sent as UTF-8."""
    service = serve(reply())
    fetch_topology(service.url, "root:päss wörd")
    sent = service.seen[0][1]["authorization"].encode("latin-1").decode()
    assert sent == "Bearer root:päss wörd"


def test_proxy_is_used(serve: Callable[..., Service], monkeypatch: pytest.MonkeyPatch) -> None:
    """A proxy from the environment is respected, and bound by the deadline as well."""
    proxy = serve(reply())
    monkeypatch.setenv("http_proxy", proxy.url)
    monkeypatch.setenv("no_proxy", "")
    assert fetch_topology("http://topology.invalid:80").version == 1
    assert proxy.seen[0][0] == "http://topology.invalid/global-cluster/topology"
    proxy.behave = lambda handler: drip_head(proxy, handler)
    assert fail("http://topology.invalid:80", timeout=0.5).reason is TopologyReason.DEADLINE


def test_nothing_is_left_behind(serve: Callable[..., Service]) -> None:
    """A request that is still under way when its fetch ends ends, too."""
    service: Service = serve(lambda handler: silence(service, handler))
    fail(service.url, timeout=0.3)

    def asking() -> list[str]:
        return [each.name for each in threading.enumerate() if "topology-request" in each.name]

    until(lambda: not asking(), 10, "it goes on")


def test_http_library_is_loaded_late() -> None:
    """Whoever has no global cluster pays nothing for the HTTP library, nor needs it."""
    code = (
        "import sys; sys.modules['httpx'] = None\n"
        "from milvus_lifecycle.endpoints.topology_fetch import fetch_topology\n"
        "try: fetch_topology('http://127.0.0.1:9')\n"
        "except Exception as error: print(error.reason.value, error)\n"
    )
    run = [sys.executable, "-c", code]
    done = subprocess.run(run, capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.startswith("BAD_REQUEST httpx is needed for global clusters: pip install")


@pytest.mark.parametrize("early", [False, True], ids=["running", "connecting"])
def test_the_end_of_a_fetch_ends_its_requests(early: bool) -> None:
    """Their sockets are shut down, also of one that has only just connected then."""
    near, far = socket.socketpair()
    stream = SimpleNamespace(get_extra_info=lambda name: near)
    sockets = topology_fetch._Sockets()
    with near, far:
        far.settimeout(20)
        if early:
            sockets.shut()
        sockets.trace("connection.connect_tcp.complete", {"return_value": stream})
        if not early:
            sockets.shut()
        assert far.recv(1) == b""
