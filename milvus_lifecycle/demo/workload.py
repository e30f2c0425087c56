"""The process that runs the client program, on the engine or on pymilvus's own manager.

Both are measured by this same code; the only difference is whether the engine is installed and
listened to. It ends on SIGTERM, and when its stdin does: the demo is gone. On stdout it tells in
JSON lines, one message each, what it sees:

    {"kind": "call", "row": [worker, id that it inserts, start]}      then, when it has ended,
    {"kind": "call", "row": [worker, id that it inserts, start, end, error]}
    {"kind": "channel", "at": seconds}
    {"kind": "record", "at": seconds, "record": the fields of a TransitionRecord}
    {"kind": "log", "lines": lines that pymilvus has just logged}

All times are time.monotonic(), which on Linux and macOS is one clock for all processes, so that
the demo can compare them with the moments at which it killed a server and saw it listen.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import logging
import os
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any, TextIO
from urllib.parse import urlsplit

import grpc
import grpc.aio

#: How often (seconds) the topology of a global cluster is refreshed, on either manager; the
#: default of both is every 300 s.
TOPOLOGY_REFRESH_S = 0.5

_ERROR_TEXT_LIMIT = 300


class Tally:
    """Tells what happens to the program; `stop` tells its workers to end."""

    def __init__(self, stream: TextIO) -> None:
        self.stop = threading.Event()
        self._stream = stream
        self._lock = threading.Lock()

    @contextlib.contextmanager
    def call(self, worker: int, inserts: int | None) -> Iterator[None]:
        """The body is one call of one worker; an Exception in it is noted and swallowed.

        What is no Exception, a cancellation for one, leaves the call in flight for ever.
        """
        start, error = time.monotonic(), None
        self.put("call", row=(worker, inserts, start))
        try:
            yield
        except Exception as raised:
            line = str(raised).strip().partition("\n")[0]
            error = f"{type(raised).__name__}: {line}"[:_ERROR_TEXT_LIMIT]
        self.put("call", row=(worker, inserts, start, time.monotonic(), error))

    def put(self, kind: str, **fields: object) -> None:
        """Send one message; safe in any thread and in a listener."""
        line = json.dumps({"kind": kind, **fields}) + "\n"
        with self._lock:
            self._stream.write(line)
            self._stream.flush()


def watch_channels(opened: Callable[[], object]) -> None:
    """Call `opened` whenever a factory of grpc's, of either flavour, is called in this process."""

    def wrap(factory: Callable[..., object]) -> Callable[..., object]:
        def counted(*args: object, **kwargs: object) -> object:
            opened()
            return factory(*args, **kwargs)

        return counted

    for module in (grpc, grpc.aio):
        for name in ("insecure_channel", "secure_channel"):
            setattr(module, name, wrap(getattr(module, name)))


def watch_logs(library: str, logged: Callable[[int], object]) -> None:
    """Tell `logged` how many lines each log record of a library has, which is written as ever."""
    make = logging.getLogRecordFactory()

    def counted(name: str, *args: Any, **kwargs: Any) -> logging.LogRecord:
        record = make(name, *args, **kwargs)
        if name.partition(".")[0] == library:
            logged(record.getMessage().count("\n") + 1)
        return record

    logging.setLogRecordFactory(counted)


def resolve_here(name: str) -> None:
    """Have Python resolve a host's name to 127.0.0.1 in this process.

    An endpoint is a global cluster by its host's name, so that the topology service needs one.
    It ends in `.localhost`, which is this machine (RFC 6761, 6.3), but not every resolver knows.
    """
    resolve = socket.getaddrinfo

    def getaddrinfo(host: Any, *args: Any, **kwargs: Any) -> Any:
        ours = host in (name, name.encode())
        return resolve("127.0.0.1" if ours else host, *args, **kwargs)

    socket.getaddrinfo = getaddrinfo


def _end_with_the_demo() -> None:
    # os.read and not sys.stdin: a daemon thread blocked in a buffered reader breaks the exit of
    # the interpreter.
    os.read(0, 1)
    os._exit(1)


def _prepare(options: argparse.Namespace, tally: Tally, manager: str) -> None:
    """Install the engine, unless it is pymilvus's own manager that is asked for."""
    if not options.stock:
        import milvus_lifecycle

        policy = milvus_lifecycle.LifecyclePolicy(topology_refresh=TOPOLOGY_REFRESH_S)
        milvus_lifecycle.install(policy=policy, audit=options.audit)
        getattr(milvus_lifecycle, manager).get_instance().subscribe(
            lambda record: tally.put("record", at=time.monotonic(), record=record.as_dict())
        )
    else:  # pymilvus has no setting for it
        from pymilvus.client.global_topology import TopologyRefresher

        TopologyRefresher.__init__.__defaults__ = (TOPOLOGY_REFRESH_S, None)


def _run(options: argparse.Namespace, tally: Tally) -> None:
    from milvus_lifecycle.demo.program import run_tasks, run_threads

    async def run() -> None:
        _prepare(options, tally, "AsyncConnectionManager")
        await run_tasks(options.uri, options.workers, tally)

    if options.asyncio:
        asyncio.run(run())
    else:
        _prepare(options, tally, "ConnectionManager")
        run_threads(options.uri, options.workers, tally)


def main() -> None:
    """Run the program until the demo says stop."""
    parser = argparse.ArgumentParser(description="The demo's client program.")
    parser.add_argument("--uri", required=True)
    parser.add_argument("--workers", type=int, required=True)
    parser.add_argument("--asyncio", action="store_true")
    parser.add_argument("--stock", action="store_true", help="pymilvus's own connection manager")
    parser.add_argument("--audit", help="where the engine writes its audit log")
    options = parser.parse_args()
    # stdout is for messages; whatever a library prints goes to stderr instead.
    tally = Tally(os.fdopen(os.dup(1), "w", encoding="utf-8"))
    os.dup2(2, 1)
    signal.signal(signal.SIGTERM, lambda signum, frame: tally.stop.set())
    threading.Thread(target=_end_with_the_demo, name="demo-end", daemon=True).start()
    watch_channels(lambda: tally.put("channel", at=time.monotonic()))
    watch_logs("pymilvus", lambda lines: tally.put("log", lines=lines))
    resolve_here(urlsplit(options.uri).hostname or "")
    _run(options, tally)


if __name__ == "__main__":
    main()
