"""Servers in process groups of their own, which a test kills, stops and starts again."""

from __future__ import annotations

import contextlib
import os
import select
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from typing_extensions import Self

from tests.network import free_port, listens
from tests.observe import came_true

REPOSITORY = Path(__file__).resolve().parent.parent


class ServerProcess:
    """A server process on a port of 127.0.0.1; "{port}" in its command is replaced."""

    def __init__(self, command: Sequence[str], *, start_limit: float = 30.0) -> None:
        self.port = free_port()
        self._command = [part.replace("{port}", str(self.port)) for part in command]
        self._start_limit = start_limit
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.port}"

    @property
    def uri(self) -> str:
        return f"http://{self.address}"

    def start(self) -> Self:
        """Start the server; returns when its port answers, seen by a socket of its own."""
        with tempfile.TemporaryFile() as output:
            self._process = process = subprocess.Popen(
                self._command,
                # The fake ends when this pipe does: it does not outlive a test run that died.
                stdin=subprocess.PIPE,
                stdout=output,
                stderr=subprocess.STDOUT,
                cwd=REPOSITORY,
                start_new_session=True,
            )
            answers = came_true(
                lambda: listens(self.port) or process.poll() is not None, self._start_limit
            )
            if process.poll() is not None or not answers:
                self.kill()
                output.seek(0)
                said = output.read().decode(errors="replace")[-2000:]
                raise RuntimeError(f"no server came up on {self.address}: {said}")
        return self

    def _signal(self, number: signal.Signals) -> None:
        if self._process is not None and self._process.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._process.pid, number)

    def pause(self) -> None:
        """SIGSTOP: connections stay open, nothing answers."""
        self._signal(signal.SIGSTOP)

    def resume(self) -> None:
        """SIGCONT: it goes on where it stopped."""
        self._signal(signal.SIGCONT)

    def kill(self) -> None:
        """SIGKILL to the whole group; returns when the process is gone."""
        process = self._process
        if process is None:
            return
        self._signal(signal.SIGKILL)
        process.wait(10)
        if process.stdin is not None:
            with contextlib.suppress(OSError):
                process.stdin.close()

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, *exc: object) -> None:
        self.kill()


class FakeMilvusProcess(ServerProcess):
    """FakeMilvus in a process of its own; `delays` maps methods to seconds.

    Every other call of a `flaky` method fails, the first one, too.
    """

    def __init__(
        self, delays: Mapping[str, float] | None = None, flaky: Sequence[str] = ()
    ) -> None:
        script = [f"--delay={method}={seconds}" for method, seconds in (delays or {}).items()]
        script += [f"--flaky={method}" for method in flaky]
        super().__init__([sys.executable, "-m", "tests.servers", "--port", "{port}", *script])


class MilvusLiteProcess(ServerProcess):
    """The real Milvus Lite server on a data folder."""

    def __init__(self, folder: Path) -> None:
        program = Path(sys.executable).with_name("milvus-lite")
        where = ["--data-dir", str(folder), "--host", "127.0.0.1", "--port", "{port}"]
        super().__init__([str(program), "server", *where])


class Child:
    """A program of Python in a process of its own: it says lines, and goes on when it is told."""

    def __init__(self, source: str, *arguments: str, options: Sequence[str] = ()) -> None:
        self.process = subprocess.Popen(
            [sys.executable, *options, "-c", source, *arguments],
            cwd=REPOSITORY,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def says(self, line: str) -> None:
        """Wait for a line; it has to be this one."""
        assert self.process.stdout is not None
        said = self.process.stdout.readline()
        assert said == f"{line}\n", (said, *self.process.communicate(timeout=60))

    def tell(self) -> None:
        """Let it go on."""
        assert self.process.stdin is not None
        self.process.stdin.write("go on\n")
        self.process.stdin.flush()

    def end(self) -> tuple[str, str]:
        """Wait for its end, which has to be a good one; the rest of what it said, and stderr."""
        said, errors = self.process.communicate(timeout=60)
        assert self.process.returncode == 0, errors
        return said, errors

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.process.kill()
        self.process.communicate()


def ask_child(
    work: Callable[[], object], limit: float, meanwhile: Callable[[], object] | None = None
) -> str:
    """What a forked child answers: the repr of work(), its error, its signal, or that it hangs.

    ``meanwhile`` runs in the parent as soon as the child exists.
    """
    ours, theirs = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            word = repr(work())
        except BaseException as error:
            word = f"{type(error).__name__}: {error}"
        os.write(theirs, word.encode())
        os._exit(0)
    # Closed here, so that a child that crashes ends the pipe instead of seeming to hang.
    os.close(theirs)
    if meanwhile is not None:
        meanwhile()
    readable, _, _ = select.select([ours], [], [], limit)
    said = os.read(ours, 65536).decode() if readable else "nothing: it hangs"
    os.close(ours)
    if not readable:
        os.kill(child, signal.SIGKILL)
    _, ended = os.waitpid(child, 0)
    return said or f"nothing: it died, wait status {ended}"
