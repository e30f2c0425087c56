"""The demo's processes: children that can be killed, and the client program, asked and heard."""

from __future__ import annotations

import contextlib
import json
import os
import queue
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from milvus_lifecycle.demo import DemoError
from milvus_lifecycle.demo.figures import Call

_LOG_TAIL = 1500
_REAP_LIMIT = 10.0


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


class Child:
    """A process of the demo's: `python -m module`, from the same virtual environment.

    It is in a process group of its own, so that Ctrl-C in the terminal does not reach it and all
    of it can be ended at once. What it writes goes to a log.
    """

    def __init__(self, what: str, log: Path) -> None:
        self._what = what
        self._log = log
        self._process: subprocess.Popen[bytes] | None = None

    def check(self) -> None:
        """Raise DemoError, with the end of its output, if the process ended by itself."""
        code = None if self._process is None else self._process.poll()
        if code is not None:
            raise self.fail(f"{self._what} ended by itself (exit code {code})")

    def fail(self, what: str) -> DemoError:
        """The error for what it did, with the end of its output."""
        tail = ""
        with contextlib.suppress(OSError):
            tail = self._log.read_text(errors="replace")[-_LOG_TAIL:].strip()
        more = f". The end of its output:\n{tail}" if tail else ", and it wrote nothing."
        return DemoError(what + more)

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
        if self._process is not None:
            self._process.wait(_REAP_LIMIT)
            self._process = None
        return moment

    def _start(self, module: str, arguments: Sequence[str], *, talks: bool) -> None:
        """Start it; one that `talks` has pipes for stdin and stdout."""
        try:
            with self._log.open("ab") as log:
                self._process = subprocess.Popen(
                    [sys.executable, "-m", module, *arguments],
                    stdin=subprocess.PIPE if talks else subprocess.DEVNULL,
                    stdout=subprocess.PIPE if talks else log,
                    stderr=log,
                    start_new_session=True,
                )
        except OSError as error:
            raise DemoError(f"{self._what} could not be started: {error}") from error


class Workload(Child):
    """The client program; `arguments` are its own."""

    def __init__(self, arguments: Sequence[str], log: Path) -> None:
        super().__init__("the client program", log)
        self.heard = Heard()
        self._arguments = arguments
        self._answers: queue.SimpleQueue[list[Call]] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._hear, name="demo-hear", daemon=True)

    def start(self, uri: str) -> None:
        """Start the process on what its clients are to be given. Raises DemoError."""
        arguments = ["--uri", uri, *self._arguments]
        self._start("milvus_lifecycle.demo.workload", arguments, talks=True)
        self._thread.start()

    def check(self) -> None:
        """Raise DemoError, with the last that it said, if the program ended by itself."""
        if self.ended():
            self._thread.join(_REAP_LIMIT)  # a last message may still be in the pipe
        if self.heard.fatal is not None:
            raise DemoError(f"the client program gave up: {self.heard.fatal}")
        if not self.heard.done:
            super().check()

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
        return self._process is not None and self._process.poll() is not None

    def close(self) -> bool:
        """End the process; True if it had ended by itself, with exit code 0."""
        process = self._process
        if process is None:
            return False
        clean = process.poll() == 0
        self.kill()
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
