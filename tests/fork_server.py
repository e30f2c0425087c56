"""A process that has imported what is slow to import, and runs pytest in children of its own.

    python -m tests.fork_server        in the tree whose tests it is to run

It reads one order a line (JSON: pytest's arguments, and a limit in seconds) and answers each with
pytest's exit code, None for a run that was ended at its limit, and the end of what pytest has said.
Nothing of the package is imported here: each child reads it as it is on the disk by then.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import signal
import sys
import tempfile
import time
from typing import Any

#: what the tests and the package import, but not pytest's plugins: those it imports by itself
_SLOW = ("grpc.aio", "hypothesis", "pymilvus", "pytest", "structlog", "transitions", "trustme")
#: how much of what pytest has said is told
_TAIL = 2_000


def serve() -> None:
    """Answer orders until there are no more of them."""
    for name in _SLOW:
        importlib.import_module(name)
    # Ended from outside it takes with it what runs.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit())
    answers = os.fdopen(os.dup(1), "w")
    for line in sys.stdin:
        answers.write(json.dumps(_run(json.loads(line))) + "\n")
        answers.flush()


def _run(order: dict[str, Any]) -> dict[str, Any]:
    with tempfile.TemporaryFile() as said:
        child = os.fork()
        if child == 0:
            _be_pytest(order["arguments"], said.fileno())
        code = None
        try:
            code = _wait(child, time.monotonic() + order["limit"])
        finally:
            # The group: a test may have left processes of its own.
            with contextlib.suppress(ProcessLookupError):
                os.killpg(child, signal.SIGKILL)
        if code is None:
            os.waitpid(child, 0)
        said.seek(max(0, said.seek(0, os.SEEK_END) - _TAIL))
        return {"code": code, "said": said.read().decode(errors="replace")}


def _wait(child: int, until: float) -> int | None:
    while time.monotonic() < until:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.01)
    return None


def _be_pytest(arguments: list[str], output: int) -> None:
    """Run pytest in this forked child, and end it, whatever threads are left."""
    os.setsid()
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.dup2(output, 1)
    os.dup2(output, 2)
    # Modules are compiled anew in each child, and what a mutant has compiled to is kept nowhere.
    sys.dont_write_bytecode = True
    code = 70
    try:
        code = int(importlib.import_module("pytest").main(arguments))
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


if __name__ == "__main__":
    serve()
