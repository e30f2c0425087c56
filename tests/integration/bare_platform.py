"""A process on a platform with little: `python -m tests.integration.bare_platform FLAVOUR FOLDER`.

It deletes what Windows (and some of it macOS) lacks, imports every module of the package, installs
the engine with an audit file, and makes calls before and after an outage. The last line that it
prints is "done".
"""

from __future__ import annotations

# The platform of the others is theirs: they are imported before it is stripped.
import concurrent.futures.process  # noqa: F401
import functools
import importlib
import logging
import multiprocessing.sharedctypes  # noqa: F401
import os
import pkgutil
import queue
import signal
import socket
import sys
import threading
from pathlib import Path
from typing import Any

import grpc.aio  # noqa: F401
import httpx  # noqa: F401
import structlog  # noqa: F401
import transitions  # noqa: F401

from tests.flavours import Flavour
from tests.observe import Call, wait_until
from tests.servers import FakeMilvus

MISSING: dict[Any, str] = {
    os: "fork forkpty register_at_fork pread pwrite preadv pwritev readv writev sendfile killpg "
    "getpgid setpgid getpgrp setpgrp getsid setsid getuid geteuid getgid getegid getppid nice "
    "wait wait3 wait4 waitid WNOHANG fchmod fchown chown mkfifo uname getloadavg sysconf confstr "
    "statvfs sched_getaffinity sched_yield posix_spawn ttyname ctermid openpty O_CLOEXEC O_SYNC "
    "O_DSYNC O_NONBLOCK O_DIRECTORY O_NOFOLLOW O_NOCTTY pthread_getcpuclockid",
    signal: "SIGKILL SIGSTOP SIGCONT SIGHUP SIGQUIT SIGPIPE SIGALRM SIGCHLD SIGUSR1 SIGUSR2 "
    "SIGTSTP SIGWINCH SIGXFSZ alarm setitimer getitimer pause pthread_kill pthread_sigmask sigwait",
    socket: "AF_UNIX SO_REUSEPORT CMSG_LEN",
}
#: the longest (seconds) that a lock of Windows can wait for
LONGEST_WAIT = 4294967.0
#: as on Windows; here the bit means something else, and the kernel does not see it
O_BINARY = 0x8000


class WindowsQueue(queue.SimpleQueue):  # type: ignore[type-arg]
    """Refuses what a queue of Windows refuses."""

    def get(self, block: bool = True, timeout: float | None = None) -> Any:
        if timeout is not None and timeout > LONGEST_WAIT:
            raise OverflowError("timeout value is too large")
        return super().get(block, timeout)


def strip(opened: dict[str, int]) -> None:
    """Take away what a platform may lack; note the flags that files are opened with."""
    # Event loops need a pair, which Windows makes in another way.
    socket.socketpair = functools.partial(socket.socketpair, socket.AF_UNIX)
    for module, names in MISSING.items():
        for name in names.split():
            module.__dict__.pop(name, None)
    for name in ("fcntl", "termios", "tty", "pty", "pwd", "grp", "resource", "uvloop"):
        sys.modules[name] = None  # type: ignore[assignment]
    open_file, wait = os.open, threading.Condition.wait

    def open_as_windows(path: Any, flags: int, *args: Any, **kwargs: Any) -> int:
        opened[str(path)] = flags
        return open_file(path, flags & ~O_BINARY, *args, **kwargs)

    def wait_as_windows(self: threading.Condition, timeout: float | None = None) -> bool:
        if timeout is not None and timeout > LONGEST_WAIT:
            raise OverflowError("timeout value is too large")
        return wait(self, timeout)

    os.O_BINARY, os.open = O_BINARY, open_as_windows  # type: ignore[attr-defined]
    threading.TIMEOUT_MAX = LONGEST_WAIT  # type: ignore[misc]
    threading.Condition.wait = wait_as_windows  # type: ignore[method-assign]
    queue.SimpleQueue = WindowsQueue  # type: ignore[misc]


def import_everything() -> list[str]:
    """Import every module of the package; those that cannot be imported, and why."""
    import milvus_lifecycle

    broken = []
    for module in pkgutil.walk_packages(milvus_lifecycle.__path__, "milvus_lifecycle."):
        try:
            importlib.import_module(module.name)
        except Exception as error:
            broken.append(f"{module.name}: {error!r}")
    return broken


def is_recovering(manager: Any) -> bool:
    """Whether the manager's only connection has noticed that its server is away."""
    return bool(manager.get_stats()["connections"][0]["state"] == "RECOVERING")


def answers(server: FakeMilvus, flavour: str) -> Any:
    """What one client is answered, before and after its server was away."""
    client = Flavour(flavour).client(server.uri)
    before = client.list_collections()
    server.stop()
    call = Call(client.list_collections)
    wait_until(lambda: is_recovering(client._manager), 20)
    server.start()
    after = call.value(30)
    client.close()
    return [before, after]


def main(flavour: str, folder: str) -> None:
    logging.getLogger("pymilvus").setLevel(logging.CRITICAL)
    logging.getLogger("asyncio").setLevel(logging.CRITICAL)
    opened: dict[str, int] = {}
    strip(opened)
    assert (broken := import_everything()) == [], broken
    import milvus_lifecycle as ml
    from milvus_lifecycle import cli
    from milvus_lifecycle.cli.demo import find_obstacle

    audit, year = str(Path(folder, "audit.jsonl")), 365 * 86_400.0
    policy = ml.LifecyclePolicy(recovery_budget=year, linger=year, max_age=year)
    ml.install(policy=policy, audit=audit)
    with FakeMilvus() as server:
        assert answers(server, flavour) == [["demo"], ["demo"]]
    ml.uninstall()
    assert opened[audit] & O_BINARY, "Windows would write carriage returns"
    for command in ("verify", "stats", "tail"):
        code = cli.main(["audit", command, audit])
        assert code == 0, (command, code)
    obstacle = find_obstacle()
    assert obstacle is not None, "the demo could not run"
    assert "SIGSTOP" in obstacle
    print("done")


if __name__ == "__main__":
    main(*sys.argv[1:])
