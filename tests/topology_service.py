"""A topology service of a global cluster on 127.0.0.1, which answers as a test wants it to."""

from __future__ import annotations

import contextlib
import http.server
import json
import ssl
import threading
from collections.abc import Callable, Iterator
from typing import Any


def cluster(
    name: str = "in01-a", endpoint: str = "https://a.example.com", capability: Any = 3
) -> Any:
    return {"clusterId": name, "endpoint": endpoint, "capability": capability}


def answer(version: Any = "1", clusters: Any = None, **more: Any) -> Any:
    clusters = [cluster(), cluster("in01-b", "b:19530", 1)] if clusters is None else clusters
    return {"code": 0, "data": {"version": version, "clusters": clusters}, **more}


Behaviour = Callable[[http.server.BaseHTTPRequestHandler], None]


class Service:
    """A topology service on 127.0.0.1; `behave` answers each request, `seen` has them."""

    def __init__(self, behave: Behaviour) -> None:
        self.behave = behave
        self.seen: list[tuple[str, dict[str, str]]] = []
        self.stopped = threading.Event()
        service = self

        class Handler(http.server.BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                service.seen.append((self.path, {k.lower(): v for k, v in self.headers.items()}))
                self.close_connection = True
                with contextlib.suppress(OSError):
                    service.behave(self)

            def log_message(self, format: str, *args: object) -> None:
                pass

        class Server(http.server.ThreadingHTTPServer):
            daemon_threads = True

            def handle_error(self, request: object, client_address: object) -> None:
                pass

        self.server = Server(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}"

    def secure(self, certificate: Any) -> None:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        certificate.configure_cert(context)
        # The handshake is left to the connection's own thread, not to the accepting one.
        self.server.socket = context.wrap_socket(
            self.server.socket, server_side=True, do_handshake_on_connect=False
        )
        self.url = self.url.replace("http:", "https:")

    def drip(self, handler: http.server.BaseHTTPRequestHandler, text: bytes) -> None:
        """Send a byte now and then, until the other side has had enough."""
        while not self.stopped.is_set():
            for at in range(len(text)):
                handler.wfile.write(text[at : at + 1])
                if self.stopped.wait(0.05):
                    return


def reply(body: bytes | None = None, status: int = 200, **headers: str) -> Behaviour:
    """Return a behaviour that answers with this body (a good topology unless given)."""
    content = json.dumps(answer()).encode() if body is None else body

    def behave(handler: http.server.BaseHTTPRequestHandler) -> None:
        handler.send_response(status)
        for name, value in {"Content_Length": str(len(content)), **headers}.items():
            handler.send_header(name.replace("_", "-"), value)
        handler.end_headers()
        handler.wfile.write(content)

    return behave


def silence(service: Service, handler: http.server.BaseHTTPRequestHandler) -> None:
    """Take the request and say nothing."""
    service.stopped.wait()


def drip_head(service: Service, handler: http.server.BaseHTTPRequestHandler) -> None:
    """Send headers without end, a byte at a time."""
    service.drip(handler, b"HTTP/1.1 200 OK\r\n" + b"X: y\r\n" * 1000)


def drip_body(service: Service, handler: http.server.BaseHTTPRequestHandler) -> None:
    """Send a body without end, a byte at a time."""
    handler.wfile.write(b"HTTP/1.1 200 OK\r\n\r\n")
    service.drip(handler, b" ")


@contextlib.contextmanager
def serving(behave: Behaviour, certificate: Any = None) -> Iterator[Service]:
    """Run a service, with TLS when it has a certificate, until the block ends."""
    service = Service(behave)
    if certificate is not None:
        service.secure(certificate)
    thread = threading.Thread(target=service.server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    try:
        yield service
    finally:
        service.stopped.set()
        service.server.shutdown()
        service.server.server_close()
