"""The demo's processes, servers that can be killed and the client program; and a topology service.

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
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from milvus_lifecycle.demo import DemoError
from milvus_lifecycle.demo.figures import Call, Seen

HOST = "127.0.0.1"

#: The host makes the endpoint a global cluster; the workload resolves it.
_GLOBAL_HOST = "demo.global-cluster.localhost"
_READABLE, _PRIMARY = 1, 3

_LOG_TAIL = 1500


class Child:
    """A process of the demo's: `python -m module`, from the same virtual environment.

    It is in a process group of its own, so that Ctrl-C in the terminal does not reach it and all
    of it can be ended at once. What it writes to stderr goes to a log.
    """

    def __init__(self, what: str, log: Path) -> None:
        self._what = what
        self._log = log
        self._process: subprocess.Popen[bytes] | None = None

    def exit_code(self) -> int | None:
        """Its exit code if it has ended by itself, else None."""
        return None if self._process is None else self._process.poll()

    def check(self) -> None:
        """Raise DemoError, with the end of its output, if the process ended by itself."""
        code = self.exit_code()
        if code is not None:
            raise self.fail(f"{self._what} ended by itself (exit code {code})")

    def fail(self, what: str) -> DemoError:
        """The error for what it did, with the end of its output."""
        tail = self._log.read_text(errors="replace")[-_LOG_TAIL:].strip()
        return DemoError(f"{what}. The end of its output:\n{tail or '(nothing)'}")

    def send(self, signum: int) -> float:
        """Send a signal to all of it, if it is there; returns when (time.monotonic())."""
        now = time.monotonic()
        if self._process is not None and self._process.poll() is None:
            with contextlib.suppress(ProcessLookupError):  # it has just ended
                os.killpg(self._process.pid, signum)
        return now

    def kill(self) -> float:
        """SIGKILL it and wait until it is gone; returns when (time.monotonic())."""
        moment = self.send(signal.SIGKILL)
        process, self._process = self._process, None
        if process is not None:
            with process:  # waits, and closes its pipes
                pass
        return moment

    def _start(self, module: str, arguments: Sequence[str], stdout: int | None = None) -> None:
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-m", module, *arguments],
                stdin=subprocess.PIPE,
                stdout=stdout or log,
                stderr=log,
                start_new_session=True,
            )


class Workload(Child):
    """The client program; `arguments` are its own. `seen` is filled with what it tells."""

    def __init__(self, arguments: Sequence[str], log: Path, seen: Seen) -> None:
        super().__init__("the client program", log)
        self._arguments = arguments
        self._seen = seen
        self._stopped = False
        self._thread = threading.Thread(target=self._hear, name="demo-hear", daemon=True)

    def start(self, uri: str) -> None:
        """Start the process on what its clients are to be given."""
        arguments = ["--uri", uri, *self._arguments]
        self._start("milvus_lifecycle.demo.workload", arguments, subprocess.PIPE)
        self._thread.start()

    def stop(self) -> None:
        """Ask the program to end."""
        self._stopped = True
        self.send(signal.SIGTERM)

    def check(self) -> None:
        """Raise DemoError if the program ended by itself, and was not asked to."""
        if not (self._stopped and self.exit_code() == 0):
            super().check()

    def close(self) -> bool:
        """End the process; True if it had ended by itself, with exit code 0."""
        clean = self.exit_code() == 0
        self.send(signal.SIGKILL)
        if self._thread.ident is not None:
            self._thread.join()  # what it told last may still be in the pipe
        self.kill()
        return clean

    def _hear(self) -> None:
        assert self._process is not None
        assert self._process.stdout is not None
        seen = self._seen
        for line in self._process.stdout:
            if not line.endswith(b"\n"):
                return  # it was killed, and left half a message
            message = json.loads(line)
            kind = message["kind"]
            if kind == "call":
                seen.add_call(Call(*message["row"]))
            elif kind == "channel":
                seen.channels.append(message["at"])
            elif kind == "record":
                seen.records.append({"at": message["at"], **message["record"]})
            elif kind == "log":
                seen.log_lines += message["lines"]


class MilvusLite(Child):
    """One Milvus Lite server on a port of its own; port and data outlive its process.

    `durable`: it serves one call at a time. Milvus Lite 3.2.2 writes its log without a lock, and
    reads it up to the first garbled record: of 380 inserts that eight threads had acknowledged it
    had lost 291 after a SIGKILL; with one worker, none.
    """

    def __init__(self, folder: Path, *, durable: bool = False) -> None:
        folder.mkdir()
        super().__init__("Milvus Lite", folder / "server.log")
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
        """Start the process. Raises DemoError."""
        if self.listens():
            raise DemoError(f"something else listens on {self.uri}, which was the server's")
        self._start("milvus_lite", self._arguments)

    def listens(self) -> bool:
        """Whether a connect is accepted. No client of any kind: it sends nothing, and hangs up."""
        with contextlib.suppress(OSError):
            socket.create_connection((HOST, self.port), timeout=1.0).close()
            return True
        return False

    def close(self) -> None:
        """End the process, if there is one, and give the port back."""
        self.kill()
        self._holder.close()


@dataclass
class Naming:
    """That the topology names a primary: since when, and when a client was first told."""

    version: int
    endpoint: str
    at: float
    told_at: float | None = None


class TopologyService(http.server.ThreadingHTTPServer):
    """An HTTP server that names one of the endpoints as the primary: the first one, at first."""

    daemon_threads = True

    def __init__(self, endpoints: Sequence[str]) -> None:
        super().__init__((HOST, 0), _TopologyRequest)
        self.uri = f"http://{_GLOBAL_HOST}:{self.server_port}"
        self._endpoints = endpoints
        self._naming = Naming(1, endpoints[0], time.monotonic())
        self._thread = threading.Thread(target=self.serve_forever, args=(0.05,), daemon=True)
        self._thread.start()

    def name_primary(self, endpoint: str) -> Naming:
        """Name another primary from now on."""
        self._naming = Naming(self._naming.version + 1, endpoint, time.monotonic())
        return self._naming

    def answer(self) -> bytes:
        """The answer of now, which is about to be sent."""
        naming = self._naming
        naming.told_at = naming.told_at or time.monotonic()
        clusters = [
            {
                "clusterId": f"demo-{number}",
                "endpoint": endpoint,
                "capability": _PRIMARY if endpoint == naming.endpoint else _READABLE,
            }
            for number, endpoint in enumerate(self._endpoints)
        ]
        data = {"version": str(naming.version), "clusters": clusters}
        return json.dumps({"code": 0, "data": data}).encode()

    def close(self) -> None:
        """Stop answering."""
        self.shutdown()
        self.server_close()
        self._thread.join()


class _TopologyRequest(http.server.BaseHTTPRequestHandler):
    server: TopologyService

    def do_GET(self) -> None:
        body = self.server.answer()
        with contextlib.suppress(OSError):  # a client that has gone is nobody's trouble
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        """The demo's console is not a web server's log."""
