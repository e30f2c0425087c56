"""The demo's end of the client program's process: starts it, hears it, asks it, ends it."""

from __future__ import annotations

import contextlib
import json
import os
import queue
import signal
import subprocess
import sys
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from milvus_lifecycle.demo.errors import WorkloadFailed
from milvus_lifecycle.demo.measure import Call

_LOG_TAIL = 1500
_REAP_LIMIT = 5.0


class Heard:
    """Everything that the process has reported so far; filled by the thread that hears it."""

    def __init__(self) -> None:
        self.calls: list[Call] = []
        self.failed_calls = 0
        self.channels: list[float] = []
        self.records: list[Mapping[str, Any]] = []
        self.last_good: dict[int, float] = {}
        self.log_lines = 0
        self.manager: str | None = None
        self.done = False
        self.fatal: str | None = None

    def add_rows(self, rows: list[list[Any]]) -> None:
        """Take calls in."""
        for row in rows:
            call = Call(*row)
            self.calls.append(call)
            self.failed_calls += call.error is not None
            if call.good and call.end is not None:
                self.last_good[call.worker] = max(call.end, self.last_good.get(call.worker, 0.0))

    def count_good_since(self, moment: float) -> int:
        """Workers with a good call that ended at or after a moment."""
        return sum(1 for end in list(self.last_good.values()) if end >= moment)


class Workload:
    """The client program in a process and process group of its own."""

    def __init__(
        self,
        uri: str,
        workers: int,
        *,
        use_asyncio: bool,
        stock: bool,
        log: Path,
        failover: bool = False,
    ) -> None:
        self.heard = Heard()
        self._log = log
        self._answers: queue.SimpleQueue[list[Call]] = queue.SimpleQueue()
        command = [sys.executable, "-m", "milvus_lifecycle.demo.workload"]
        command += ["--uri", uri, "--workers", str(workers)]
        command += ["--asyncio"] * use_asyncio + ["--stock"] * stock + ["--failover"] * failover
        try:
            with log.open("wb") as stderr:
                self._process = subprocess.Popen(
                    command,
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    stderr=stderr,
                    start_new_session=True,
                    env=_environment(),
                )
        except OSError as error:
            raise WorkloadFailed(f"the client program could not be started: {error}") from error
        self._thread = threading.Thread(target=self._hear, name="demo-hear", daemon=True)
        self._thread.start()

    def check(self) -> None:
        """Raise WorkloadFailed, with the end of its output, if the process ended by itself."""
        code = self._process.poll()
        if self.heard.fatal is not None:
            raise WorkloadFailed(f"the client program gave up: {self.heard.fatal}")
        if code is not None and not self.heard.done:
            self._thread.join(_REAP_LIMIT)  # a last message may still be in the pipe
            why = self.heard.fatal or f"exit code {code}. The end of its output:\n{self._tail()}"
            raise WorkloadFailed(f"the client program ended by itself: {why}")

    def ask_in_flight(self, limit: float) -> list[Call]:
        """The calls in flight in the process now; empty if it does not answer within `limit` s."""
        while not self._answers.empty():
            self._answers.get()
        self._ask("in_flight")
        with contextlib.suppress(queue.Empty):
            return self._answers.get(timeout=limit)
        return []

    def ask_stop(self) -> None:
        """Ask the program to end; `heard.done` tells when it has."""
        self._ask("stop")

    def ended(self) -> bool:
        """Whether the process has ended."""
        return self._process.poll() is not None

    def close(self) -> bool:
        """End the process; True if it had ended by itself, with exit code 0."""
        clean = self._process.poll() == 0
        if self._process.poll() is None:
            os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait(_REAP_LIMIT)
        self._thread.join(_REAP_LIMIT)
        for stream in (self._process.stdin, self._process.stdout):
            if stream is not None:
                with contextlib.suppress(OSError):
                    stream.close()
        return clean

    def _ask(self, question: str) -> None:
        stream = self._process.stdin
        if stream is not None:
            # A process that is gone is found by `check`.
            with contextlib.suppress(OSError):
                stream.write(json.dumps({"ask": question}).encode() + b"\n")
                stream.flush()

    def _hear(self) -> None:
        stream = self._process.stdout
        if stream is None:
            return
        for line in stream:
            if line.endswith(b"\n"):  # a killed process may leave half a message
                self._take(json.loads(line))

    def _take(self, message: dict[str, Any]) -> None:
        kind = message.pop("kind")
        heard = self.heard
        if kind == "calls":
            heard.add_rows(message["rows"])
        elif kind == "channel":
            heard.channels.append(message["at"])
        elif kind == "record":
            heard.records.append(message)
        elif kind == "in_flight":
            self._answers.put([Call(*row) for row in message["rows"]])
        elif kind == "log":
            heard.log_lines = message["lines"]
        elif kind == "ready":
            heard.manager = message["manager"]
        elif kind == "fatal":
            heard.fatal = message["error"]
        elif kind == "done":
            heard.add_rows(message["rows"])
            heard.done = True

    def _tail(self) -> str:
        with contextlib.suppress(OSError):
            return self._log.read_text(errors="replace")[-_LOG_TAIL:].strip()
        return ""


def _environment() -> dict[str, str]:
    """The demo's environment, with no proxy for gRPC: the server is on this machine."""
    return {**os.environ, "no_grpc_proxy": "127.0.0.1"}
