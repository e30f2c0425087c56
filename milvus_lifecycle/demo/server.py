"""The Milvus Lite server: a process of its own that is started, frozen, killed and started again.

It is the same interpreter's `python -m milvus_lite server`, so that it comes from the same virtual
environment as the demo, in a process group of its own, so that Ctrl-C in the terminal does not
reach it and all of it can be ended at once.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

from milvus_lifecycle.demo.errors import ServerFailed
from milvus_lifecycle.demo.port import HOST, HeldPort

#: Seconds that a server may take until it listens; about 1 is usual.
START_LIMIT = 30.0

_REAP_LIMIT = 10.0
_LOG_TAIL = 1500


class MilvusLite:
    """One Milvus Lite server on a port of its own; its data outlives its process.

    `durable`: it serves one call at a time. Milvus Lite 3.2.2 writes its log without a lock, and
    reads it up to the first garbled record: of 380 inserts that eight threads had acknowledged it
    had lost 291 after a SIGKILL; with one worker, none.
    """

    def __init__(self, folder: Path, *, durable: bool = False) -> None:
        self._folder = folder
        self._durable = durable
        self._log = folder / "server.log"
        self._port = HeldPort()
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def port(self) -> int:
        """The port; it stays the same over restarts."""
        return self._port.number

    @property
    def address(self) -> str:
        """Where it listens, as the engine's records write it."""
        return f"{HOST}:{self.port}"

    @property
    def uri(self) -> str:
        """What a MilvusClient is given."""
        return f"http://{self.address}"

    def start(self) -> None:
        """Start the process; it listens some time later. Raises ServerFailed."""
        command = [sys.executable, "-m", "milvus_lite", "server"]
        command += ["--data-dir", str(self._folder / "data")]
        command += ["--host", HOST, "--port", str(self.port)]
        command += ["--max-workers", "1"] * self._durable
        try:
            with self._log.open("ab") as log:
                self._process = subprocess.Popen(
                    command,
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=subprocess.STDOUT,
                    start_new_session=True,
                )
        except OSError as error:
            raise ServerFailed(f"Milvus Lite could not be started: {error}") from error

    def check(self) -> None:
        """Raise ServerFailed, with the end of its log, if the process ended by itself."""
        if self._process is None:
            return
        code = self._process.poll()
        if code is not None:
            self._process = None
            raise ServerFailed(self._describe(f"Milvus Lite ended by itself (exit code {code})"))

    def give_up(self) -> ServerFailed:
        """The error for a server that did not listen within START_LIMIT."""
        return ServerFailed(
            self._describe(f"Milvus Lite did not listen on {self.uri} within {START_LIMIT:.0f} s")
        )

    def freeze(self) -> None:
        """Stop the process where it is: calls that reach it from now on stay unanswered."""
        self._signal(signal.SIGSTOP)

    def kill(self) -> float:
        """SIGKILL the process and wait until it is gone; returns when (time.monotonic())."""
        now = time.monotonic()
        self._signal(signal.SIGKILL)
        if self._process is not None:
            self._process.wait(_REAP_LIMIT)
            self._process = None
        return now

    def close(self) -> None:
        """End the process, if there is one, and give the port back."""
        try:
            self.kill()
        finally:
            self._port.close()

    def _signal(self, signum: int) -> None:
        # A group that ended by itself has nobody left to signal; `wait` reaps its leader.
        if self._process is not None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._process.pid, signum)

    def _describe(self, what: str) -> str:
        with contextlib.suppress(OSError):
            tail = self._log.read_text(errors="replace")[-_LOG_TAIL:].strip()
            if tail:
                return f"{what}. The end of its output:\n{tail}"
        return f"{what}, and it wrote nothing."
