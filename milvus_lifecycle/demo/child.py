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
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from milvus_lifecycle.demo import DemoError
from milvus_lifecycle.demo.figures import Call

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
        self.manager = ""
        self.done = False
        self.fatal: str | None = None

    def add_call(self, row: Sequence[Any]) -> None:
        """Take a call in."""
        call = Call(*row)
        self.calls.append(call)
        self.failed_calls += call.error is not None
        if call.error is None and call.end is not None:
            self.last_good[call.worker] = call.end

    def count_good_since(self, moment: float) -> int:
        """Workers with a good call that ended at or after a moment."""
        return sum(1 for end in list(self.last_good.values()) if end >= moment)


class Workload:
    """The client program in a process and process group of its own; `arguments` are its own."""

    def __init__(self, arguments: Sequence[str], log: Path) -> None:
        self.heard = Heard()
        self._arguments = arguments
        self._log = log
        self._answers: queue.SimpleQueue[list[Call]] = queue.SimpleQueue()
        self._process: subprocess.Popen[bytes] | None = None
        self._thread = threading.Thread(target=self._hear, name="demo-hear", daemon=True)

    def start(self, uri: str) -> None:
        """Start the process on what its clients are to be given. Raises DemoError."""
        command = [sys.executable, "-m", "milvus_lifecycle.demo.workload", "--uri", uri]
        try:
            with self._log.open("wb") as stderr:
                self._process = subprocess.Popen(
                    [*command, *self._arguments],
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    stderr=stderr,
                    start_new_session=True,
                )
        except OSError as error:
            raise DemoError(f"the client program could not be started: {error}") from error
        self._thread.start()

    def check(self) -> None:
        """Raise DemoError, with the end of its output, if the process ended by itself."""
        if self.heard.fatal is not None:
            raise DemoError(f"the client program gave up: {self.heard.fatal}")
        if self._process is None or self._process.poll() is None:
            return
        self._thread.join(_REAP_LIMIT)  # a last message may still be in the pipe
        if not self.heard.done:
            code, tail = self._process.returncode, describe_tail(self._log)
            why = self.heard.fatal or f"exit code {code}{tail}"
            raise DemoError(f"the client program ended by itself: {why}")

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
        """Whether there is no process, or no more."""
        return self._process is None or self._process.poll() is not None

    def close(self) -> bool:
        """End the process; True if it had ended by itself, with exit code 0."""
        process = self._process
        if process is None:
            return False
        clean = process.poll() == 0
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait(_REAP_LIMIT)
        self._thread.join(_REAP_LIMIT)
        for stream in (process.stdin, process.stdout):
            if stream is not None:
                with contextlib.suppress(OSError):
                    stream.close()
        return clean

    def _ask(self, question: str) -> None:
        stream = None if self._process is None else self._process.stdin
        if stream is not None:
            # A process that is gone is found by `check`.
            with contextlib.suppress(OSError):
                stream.write(json.dumps({"ask": question}).encode() + b"\n")
                stream.flush()

    def _hear(self) -> None:
        stream = None if self._process is None else self._process.stdout
        for line in stream or ():
            if line.endswith(b"\n"):  # a killed process may leave half a message
                self._take(json.loads(line))

    def _take(self, message: dict[str, Any]) -> None:
        kind = message.pop("kind")
        heard = self.heard
        if kind == "call":
            heard.add_call(message["row"])
        elif kind == "channel":
            heard.channels.append(message["at"])
        elif kind == "record":
            heard.records.append(message)
        elif kind == "in_flight":
            self._answers.put([Call(*row) for row in message["rows"]])
        elif kind == "log":
            heard.log_lines += message["lines"]
        elif kind == "ready":
            heard.manager = message["manager"]
        elif kind == "fatal":
            heard.fatal = message["error"]
        elif kind == "done":
            for row in message["rows"]:
                heard.add_call(row)
            heard.done = True


def describe_tail(log: Path) -> str:
    """The end of what a process wrote, to be put behind a sentence about it."""
    with contextlib.suppress(OSError):
        tail = log.read_text(errors="replace")[-_LOG_TAIL:].strip()
        if tail:
            return f". The end of its output:\n{tail}"
    return ", and it wrote nothing."
