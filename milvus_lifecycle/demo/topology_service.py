"""The demo's topology service: an HTTP server that names one of the servers as the primary."""

from __future__ import annotations

import contextlib
import http.server
import json
import threading
import time
from collections.abc import Sequence

from milvus_lifecycle.demo.port import HOST

#: The host makes the endpoint a global cluster; see `localhost` for how it is resolved.
_NAME = "demo.global-cluster.localhost"
_PATH = "/global-cluster/topology"

_READABLE, _PRIMARY = 1, 3


class TopologyService:
    """Answers with the topology of the moment; its first version names the first endpoint."""

    def __init__(self, endpoints: Sequence[str]) -> None:
        self.endpoints = tuple(endpoints)
        self.primary = self.endpoints[0]
        self.version = 1
        self._lock = threading.Lock()
        self._first_served: dict[int, float] = {}
        self._server = http.server.ThreadingHTTPServer((HOST, 0), _handle(self))
        self._thread = threading.Thread(
            target=self._server.serve_forever, args=(0.05,), name="demo-topology", daemon=True
        )
        self._thread.start()

    @property
    def uri(self) -> str:
        """What a MilvusClient is given."""
        return f"http://{_NAME}:{self._server.server_port}"

    def name_primary(self, endpoint: str) -> float:
        """Name another primary from now on; returns when (time.monotonic())."""
        with self._lock:
            self.primary, self.version = endpoint, self.version + 1
            return time.monotonic()

    def find_first_served(self, version: int) -> float | None:
        """When this version, or a later one, was first sent to a client."""
        with self._lock:
            times = [at for sent, at in self._first_served.items() if sent >= version]
        return min(times, default=None)

    def answer(self) -> bytes:
        """The answer of now, which is about to be sent."""
        with self._lock:
            clusters = [
                {
                    "clusterId": f"demo-{number}",
                    "endpoint": endpoint,
                    "capability": _PRIMARY if endpoint == self.primary else _READABLE,
                }
                for number, endpoint in enumerate(self.endpoints)
            ]
            self._first_served.setdefault(self.version, time.monotonic())
            data = {"version": str(self.version), "clusters": clusters}
        return json.dumps({"code": 0, "data": data}).encode()

    def close(self) -> None:
        """Stop answering."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


def _handle(service: TopologyService) -> type[http.server.BaseHTTPRequestHandler]:
    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            known = self.path == _PATH
            body = service.answer() if known else b""
            with contextlib.suppress(OSError):  # a client that has gone is nobody's trouble
                self.send_response(200 if known else 404)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

        def log_message(self, format: str, *args: object) -> None:
            """The demo's console is not a web server's log."""

    return Handler
