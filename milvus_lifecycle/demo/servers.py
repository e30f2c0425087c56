"""What the program is a client of: Milvus Lite servers that can be killed, a topology service.

A server's port is held: the demo binds it without listening. A connect is refused all the same, but
the kernel gives the port to nobody else while the server is down, and no client's own outgoing
socket can be given it as its source (a connect to a free port of the ephemeral range sometimes
meets itself and succeeds). gRPC binds with SO_REUSEPORT, so the server shares the port with its
holder.
"""

from __future__ import annotations

import contextlib
import http.server
import json
import signal
import socket
import threading
import time
from collections.abc import Sequence
from pathlib import Path

from milvus_lifecycle.demo import DemoError
from milvus_lifecycle.demo.child import Child

HOST = "127.0.0.1"

#: Seconds between two attempts to connect: how late a server can be seen to listen.
_KNOCK_GAP = 0.005

#: The host makes the endpoint a global cluster; the workload resolves it.
_GLOBAL_HOST = "demo.global-cluster.localhost"
_TOPOLOGY_PATH = "/global-cluster/topology"
_READABLE, _PRIMARY = 1, 3


class MilvusLite(Child):
    """One Milvus Lite server on a port of its own; port and data outlive its process.

    `durable`: it serves one call at a time. Milvus Lite 3.2.2 writes its log without a lock, and
    reads it up to the first garbled record: of 380 inserts that eight threads had acknowledged it
    had lost 291 after a SIGKILL; with one worker, none.
    """

    def __init__(self, folder: Path, *, durable: bool = False) -> None:
        folder.mkdir()
        super().__init__("Milvus Lite", folder / "server.log")
        #: time.monotonic() just before the first connect that was accepted; None until then.
        self.listens_at: float | None = None
        self._holder = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
        self._holder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        self._holder.bind((HOST, 0))
        self.port: int = self._holder.getsockname()[1]
        #: Where it listens, as the engine's records write it, and what a MilvusClient is given.
        self.address = f"{HOST}:{self.port}"
        self.uri = f"http://{self.address}"
        self._arguments = ["server", "--data-dir", str(folder / "data")]
        self._arguments += ["--host", HOST, "--port", str(self.port)]
        self._arguments += ["--max-workers", "1"] * durable

    def start(self) -> None:
        """Start the process; `listens_at` tells when it listens. Raises DemoError."""
        if self._accepts():
            raise DemoError(f"something else listens on {self.uri}, which was the server's")
        self._start("milvus_lite", self._arguments, talks=False)
        self.listens_at = None
        # In a thread, so that nothing that the demo does meanwhile can make it late.
        threading.Thread(target=self._knock, name="demo-knock", daemon=True).start()

    def freeze(self) -> float:
        """Stop the process where it is; returns when (time.monotonic()).

        Calls that reach it from now on stay unanswered.
        """
        return self.send(signal.SIGSTOP)

    def close(self) -> None:
        """End the process, if there is one, and give the port back."""
        try:
            self.kill()
        finally:
            self._holder.close()

    def _knock(self) -> None:
        """Connect until it is accepted. No client of any kind: it sends nothing, and hangs up."""
        while self._process is not None:
            began = time.monotonic()
            if self._accepts():
                self.listens_at = began
                return
            time.sleep(_KNOCK_GAP)

    def _accepts(self) -> bool:
        with contextlib.suppress(OSError):
            socket.create_connection((HOST, self.port), timeout=1.0).close()
            return True
        return False


class TopologyService(http.server.ThreadingHTTPServer):
    """An HTTP server that names one of the endpoints as the primary: the first one, at first."""

    daemon_threads = True

    def __init__(self, endpoints: Sequence[str]) -> None:
        super().__init__((HOST, 0), _TopologyRequest)
        self.version = 1
        self.uri = f"http://{_GLOBAL_HOST}:{self.server_port}"
        self._endpoints = tuple(endpoints)
        self._primary = self._endpoints[0]
        self._lock = threading.Lock()
        self._first_served: dict[int, float] = {}
        self._thread = threading.Thread(target=self.serve_forever, args=(0.05,), daemon=True)
        self._thread.start()

    def name_primary(self, endpoint: str) -> float:
        """Name another primary from now on; returns when (time.monotonic())."""
        with self._lock:
            self._primary, self.version = endpoint, self.version + 1
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
                    "capability": _PRIMARY if endpoint == self._primary else _READABLE,
                }
                for number, endpoint in enumerate(self._endpoints)
            ]
            self._first_served.setdefault(self.version, time.monotonic())
            data = {"version": str(self.version), "clusters": clusters}
        return json.dumps({"code": 0, "data": data}).encode()

    def close(self) -> None:
        """Stop answering."""
        self.shutdown()
        self.server_close()
        self._thread.join()


class _TopologyRequest(http.server.BaseHTTPRequestHandler):
    server: TopologyService

    def do_GET(self) -> None:
        known = self.path == _TOPOLOGY_PATH
        body = self.server.answer() if known else b""
        with contextlib.suppress(OSError):  # a client that has gone is nobody's trouble
            self.send_response(200 if known else 404)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        """The demo's console is not a web server's log."""
