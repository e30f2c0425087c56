"""The process that runs the client program, on the engine or on pymilvus's own manager.

Both are measured by this same code; the only difference is whether the engine is installed and
listened to. The demo talks to it in JSON lines, one message each.

    to it (stdin)     {"ask": "in_flight"}
                      {"ask": "stop"}             end of file means the demo is gone: exit at once
    from it (stdout)  {"kind": "ready", "manager": the module of the manager that is in use}
                      {"kind": "calls", "rows": [[worker, operation, start, end, error] ...]}
                      {"kind": "channel", "at": seconds}
                      {"kind": "record", "at": seconds, ... the fields of a TransitionRecord}
                      {"kind": "in_flight", "rows": [...]}
                      {"kind": "log", "lines": lines that pymilvus has logged so far}
                      {"kind": "done", "rows": [... the calls that never ended]}
                      {"kind": "fatal", "error": text}
"""

from __future__ import annotations

import argparse
import asyncio
import enum
import importlib
import json
import os
import queue
import threading
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, TextIO

from milvus_lifecycle.demo.localhost import resolve_localhost_names
from milvus_lifecycle.demo.tally import LineCount, Tally, describe_error, silence, watch_channels

if TYPE_CHECKING:
    from milvus_lifecycle import LifecyclePolicy

#: Fields of a TransitionRecord that the demo shows.
RECORD_FIELDS = (
    "event",
    "connection_id",
    "address",
    "trigger",
    "source",
    "dest",
    "reason",
    "error_code",
    "generation",
    "attempt",
    "clients",
    "in_flight",
    "topology_version",
)

#: How often (seconds) a failover's program refreshes the topology, on either manager; the default
#: of both is every 300 s.
TOPOLOGY_REFRESH_S = 0.5

_FLUSH_GAP = 0.05


class Reporter:
    """Writes messages from a thread of its own, so that no caller waits for the pipe."""

    def __init__(self, stream: TextIO, tally: Tally) -> None:
        self._stream = stream
        self._tally = tally
        self._messages: queue.SimpleQueue[dict[str, object]] = queue.SimpleQueue()
        self._log: LineCount | None = None
        self._log_lines = 0
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._run, name="demo-reporter", daemon=True)
        self._thread.start()

    def put(self, kind: str, **fields: object) -> None:
        """Send one message; safe in any thread and in a listener."""
        self._messages.put({"kind": kind, **fields})

    def put_record(self, record: object) -> None:
        """Send one of the engine's records: the listener that is subscribed."""
        fields = {name: _plain(getattr(record, name)) for name in RECORD_FIELDS}
        self.put("record", at=time.monotonic(), **fields)

    def put_channel(self, at: float) -> None:
        """Send that a channel was opened."""
        self.put("channel", at=at)

    def follow_log(self, log: LineCount) -> None:
        """Report from now on how many lines `log` has counted."""
        self._log = log

    def close(self) -> None:
        """Send what is left and end."""
        self._closing.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._closing.wait(_FLUSH_GAP):
            self._flush()
        self._flush()

    def _flush(self) -> None:
        rows = self._tally.take_ended()
        if rows:
            self.put("calls", rows=rows)
        if self._log is not None and self._log.lines != self._log_lines:
            self._log_lines = self._log.lines
            self.put("log", lines=self._log_lines)
        while not self._messages.empty():
            self._stream.write(json.dumps(self._messages.get()) + "\n")
        self._stream.flush()


def _plain(value: object) -> object:
    """A record's value as JSON has it."""
    return value.value if isinstance(value, enum.Enum) else value


def _answer_questions(tally: Tally, reporter: Reporter) -> None:
    # os.read and not sys.stdin: a daemon thread blocked in a buffered reader breaks the exit of
    # the interpreter.
    pending = b""
    while chunk := os.read(0, 4096):
        *lines, pending = (pending + chunk).split(b"\n")
        for line in lines:
            question = json.loads(line)["ask"]
            if question == "in_flight":
                reporter.put("in_flight", rows=tally.list_open())
            elif question == "stop":
                tally.stop.set()
    os._exit(1)


def _take_stdout() -> TextIO:
    """Keep stdout for messages; whatever a library prints goes to stderr instead."""
    stream = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    return stream


def _choose_policy(options: argparse.Namespace) -> LifecyclePolicy | None:
    """The engine's defaults; a failover is not to take as long as the default refresh."""
    from milvus_lifecycle import LifecyclePolicy

    return LifecyclePolicy(topology_refresh=TOPOLOGY_REFRESH_S) if options.failover else None


def _refresh_often() -> None:
    """The same for pymilvus's own manager, which has no setting for it."""
    from pymilvus.client.global_topology import TopologyRefresher

    TopologyRefresher.__init__.__defaults__ = (TOPOLOGY_REFRESH_S, None)


def _run_threads(options: argparse.Namespace, tally: Tally, reporter: Reporter) -> None:
    from pymilvus.client.connection_manager import ConnectionManager

    from milvus_lifecycle.demo.program import run_threads

    if not options.stock:
        import milvus_lifecycle

        milvus_lifecycle.install(policy=_choose_policy(options))
        milvus_lifecycle.ConnectionManager.get_instance().subscribe(reporter.put_record)
    reporter.put("ready", manager=type(ConnectionManager.get_instance()).__module__)
    run_threads(options.uri, options.workers, tally)


def _run_tasks(options: argparse.Namespace, tally: Tally, reporter: Reporter) -> None:
    from pymilvus.client.connection_manager import AsyncConnectionManager

    from milvus_lifecycle.demo.program import run_tasks

    async def run() -> None:
        if not options.stock:
            import milvus_lifecycle

            milvus_lifecycle.install(policy=_choose_policy(options))
            manager = milvus_lifecycle.AsyncConnectionManager.get_instance()
            manager.subscribe(reporter.put_record)
        reporter.put("ready", manager=type(AsyncConnectionManager.get_instance()).__module__)
        await run_tasks(options.uri, options.workers, tally)

    asyncio.run(run())


def main() -> None:
    """Run the program until the demo says stop."""
    parser = argparse.ArgumentParser(description="The demo's client program.")
    parser.add_argument("--uri", required=True)
    parser.add_argument("--workers", type=int, required=True)
    parser.add_argument("--asyncio", action="store_true")
    parser.add_argument("--stock", action="store_true", help="pymilvus's own connection manager")
    parser.add_argument("--failover", action="store_true", help="the URI is a global cluster's")
    options = parser.parse_args()
    if options.failover:
        resolve_localhost_names()
    tally = Tally()
    reporter = Reporter(_take_stdout(), tally)
    threading.Thread(
        target=_answer_questions, args=(tally, reporter), name="demo-questions", daemon=True
    ).start()
    watch_channels(reporter.put_channel)
    run: Callable[[argparse.Namespace, Tally, Reporter], None]
    run = _run_tasks if options.asyncio else _run_threads
    try:
        importlib.import_module("pymilvus")  # sets the handlers that `silence` removes
        reporter.follow_log(silence("pymilvus"))
        if options.failover and options.stock:
            _refresh_often()
        run(options, tally, reporter)
    except Exception as error:
        reporter.put("fatal", error=describe_error(error))
        raise
    else:
        reporter.put("done", rows=tally.list_open())
    finally:
        reporter.close()


if __name__ == "__main__":
    main()
