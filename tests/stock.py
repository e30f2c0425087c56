"""Runs one test body on the engine and on stock pymilvus, each in a process of its own.

A body is a function `body(env) -> None`. It arranges its case, and its last statement is one call
of `verdict`. On the engine the verdict must hold. On stock pymilvus the same body must get as far
as its verdict and fail there: an earlier exception or a timeout proves nothing and is an error.
By hand: `python -m tests.stock engine tests.integration.defects_outage:d1_restart_under_load`
(a body's environment variables have to be set by hand then).
"""

from __future__ import annotations

import contextlib
import enum
import faulthandler
import importlib
import json
import logging
import os
import subprocess
import sys
import tempfile
import threading
import traceback
from collections.abc import Callable
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeVar

from tests.network import BlackHole, TcpProxy
from tests.processes import REPOSITORY, FakeMilvusProcess
from tests.servers import FakeMilvus

Side = Literal["engine", "stock"]
Entered = TypeVar("Entered")


class Kind(enum.Enum):
    """How a body ended."""

    PASSED = "passed"
    VERDICT_FAILED = "verdict failed"
    ERROR = "error"


@dataclass(frozen=True)
class Outcome:
    """What a body came to, with its figures and the tail of its output."""

    kind: Kind
    detail: str
    output: str = field(repr=False, default="")

    def __str__(self) -> str:
        return f"{self.kind.value}: {self.detail}\n{self.output}"


class VerdictFailed(AssertionError):
    """The final assertion of a body does not hold."""


_verdicts: list[tuple[bool, str]] = []


def verdict(holds: object, detail: str) -> None:
    """A body's last statement: whether its promise was kept, and the figures."""
    _verdicts.append((bool(holds), detail))
    if not holds:
        raise VerdictFailed(detail)


Body = Callable[["Env"], None]
AnyBody = TypeVar("AnyBody", bound=Body)


def defect(
    *, limit: float = 60.0, environment: dict[str, str] | None = None, **policy: float | None
) -> Callable[[AnyBody], AnyBody]:
    """Mark a body, with its time limit in seconds, its environment variables and its policy.

    The engine is installed with exactly this policy. Of it, stock pymilvus knows only
    `idle_threshold`, and gets it as IDLE_THRESHOLD_SECONDS.
    """

    def mark(body: AnyBody) -> AnyBody:
        body.__dict__.update(limit=limit, policy=policy, environment=environment or {})
        return body

    return mark


#: For bodies that fork while a thread is inside gRPC. grpcio 1.85.1 alone, without any manager,
#: crashed a child forked during a connect into a black hole in 5 of 10 runs with its default poller
#: (epoll1), and in 0 of 52 with this one. It is no cure for all: forked while a channel reconnects
#: to a server that is down, the child crashed in 13 of 104 runs with this one as well.
FORK_POLLER = {"GRPC_POLL_STRATEGY": "poll"}


class Env:
    """What a body works with; everything it made is closed after its verdict."""

    def __init__(self, side: Side) -> None:
        self.side = side
        self._stack = ExitStack()
        # Held here: the engine releases the lease of a client that is garbage-collected.
        self._clients: list[Any] = []

    def enter(self, manager: AbstractContextManager[Entered]) -> Entered:
        return self._stack.enter_context(manager)

    def server(self, **options: Any) -> FakeMilvus:
        return self.enter(FakeMilvus(**options))

    def server_process(self, delays: dict[str, float] | None = None) -> FakeMilvusProcess:
        return self.enter(FakeMilvusProcess(delays))

    def proxy(self, target_port: int) -> TcpProxy:
        return self.enter(TcpProxy(target_port))

    def black_hole(self) -> BlackHole:
        return self.enter(BlackHole())

    def folder(self) -> Path:
        return Path(self.enter(tempfile.TemporaryDirectory()))

    def client(self, uri: str, **options: Any) -> Any:
        """An unmodified MilvusClient."""
        from pymilvus import MilvusClient

        client = MilvusClient(uri, **options)
        self._clients.append(client)
        return client

    def config(self, uri: str, **options: Any) -> Any:
        from pymilvus.client.connection_manager import ConnectionConfig

        return ConnectionConfig.from_uri(uri, **options)

    def manager(self) -> Any:
        """The manager that MilvusClient asks: the engine's after install(), else pymilvus's."""
        from pymilvus.client.connection_manager import ConnectionManager

        return ConnectionManager.get_instance()

    def close(self) -> None:
        self._stack.close()


def run(side: Side, body: Body) -> Outcome:
    """Run a body in a process of its own; its output is kept for the report."""
    name = f"{body.__module__}:{body.__name__}"
    limit: float = body.__dict__["limit"]
    with tempfile.TemporaryFile() as output, tempfile.TemporaryDirectory() as folder:
        # Not read from the output: gRPC logs into the midst of any line of it.
        verdict_file = Path(folder, "verdict.json")
        try:
            process = subprocess.run(
                [sys.executable, "-m", "tests.stock", side, name, str(verdict_file)],
                cwd=REPOSITORY,
                env={**os.environ, **body.__dict__["environment"]},
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                timeout=limit + 20,
                check=False,
            )
            ending = f"exit code {process.returncode}"
        except subprocess.TimeoutExpired:
            ending = "killed after its time limit"
        output.seek(0)
        tail = output.read().decode(errors="replace")[-6000:]
        if not verdict_file.exists():
            return Outcome(Kind.ERROR, f"no verdict ({ending})", tail)
        report = json.loads(verdict_file.read_text())
    return Outcome(Kind(report["kind"]), report["detail"], tail)


def _prepare(side: Side, policy: dict[str, Any]) -> Callable[[], None]:
    """Set up the side; the returned function takes it down again."""
    if side == "engine":
        import milvus_lifecycle as ml

        ml.install(policy=ml.LifecyclePolicy(**policy))
        return ml.uninstall
    from pymilvus.client import connection_manager

    threshold = policy.get("idle_threshold")
    if threshold is not None:
        connection_manager.IDLE_THRESHOLD_SECONDS = threshold
    return lambda: None


def _judge(env: Env, body: Body) -> Outcome:
    try:
        body(env)
    except VerdictFailed as failed:
        return Outcome(Kind.VERDICT_FAILED, str(failed))
    except BaseException as error:
        traceback.print_exc()
        return Outcome(Kind.ERROR, f"{type(error).__name__} before the verdict: {error}")
    if len(_verdicts) != 1:
        return Outcome(Kind.ERROR, f"{len(_verdicts)} verdicts instead of one")
    if "milvus_lifecycle" in sys.modules and env.side == "stock":
        return Outcome(Kind.ERROR, "the engine was imported on the stock side")
    return Outcome(Kind.PASSED, _verdicts[0][1])


def main(side: Side, name: str, verdict_file: str | None = None) -> None:
    """Run one body; print its outcome, and write it to the file if one is given."""
    # pymilvus logs a traceback for each failed call: some 170,000 lines for D1.
    logging.getLogger("pymilvus").setLevel(logging.CRITICAL)
    # `-m` runs this file as __main__; bodies must meet the very same `verdict`.
    sys.modules["tests.stock"] = sys.modules["__main__"]
    module, _, function = name.partition(":")
    body: Body = getattr(importlib.import_module(module), function)
    faulthandler.dump_traceback_later(body.__dict__["limit"], exit=True)
    env = Env(side)
    take_down = _prepare(side, body.__dict__["policy"])
    outcome = _judge(env, body)
    # A stock manager may be deadlocked by now: taking down gets its chance, not our patience.
    cleaner = threading.Thread(target=_clean, args=(take_down, env), daemon=True)
    cleaner.start()
    cleaner.join(5)
    report = json.dumps({"kind": outcome.kind.value, "detail": outcome.detail})
    print(f"\n{report}")
    if verdict_file is not None:
        Path(verdict_file).write_text(report)
    with contextlib.suppress(OSError):
        sys.stdout.flush()
        sys.stderr.flush()
    os._exit(0)


def _clean(take_down: Callable[[], None], env: Env) -> None:
    try:
        take_down()
    finally:
        env.close()


if __name__ == "__main__":
    main(*sys.argv[1:])  # type: ignore[arg-type]  # argparse would not know Literal
