"""The process that runs the client program, on the engine or on pymilvus's own manager.

Both are measured by this same code; the only difference is whether the engine is installed and
listened to. The demo talks to it in JSON lines, one message each.

    to it (stdin)     {"ask": "in_flight"}
                      {"ask": "stop"}             end of file means the demo is gone: exit at once
    from it (stdout)  {"kind": "ready", "manager": the module of the manager that is in use}
                      {"kind": "call", "row": [worker, operation, start, end, error]}
                      {"kind": "channel", "at": seconds}
                      {"kind": "record", "at": seconds, ... the fields of a TransitionRecord}
                      {"kind": "in_flight", "rows": [...]}
                      {"kind": "log", "lines": lines that pymilvus has just logged}
                      {"kind": "done", "rows": [... the calls that never ended]}
                      {"kind": "fatal", "error": text}

All times are time.monotonic(), which on Linux and macOS is one clock for all processes, so that
the demo can compare them with the moments at which it killed a server and saw it listen.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import enum
import functools
import json
import logging
import os
import queue
import socket
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any, TextIO

import grpc
import grpc.aio

#: Fields of a TransitionRecord that the demo shows.
RECORD_FIELDS = (
    *("event", "connection_id", "address", "trigger", "source", "dest", "reason"),
    *("error_code", "generation", "attempt", "clients"),
)

#: How often (seconds) a failover's program refreshes the topology, on either manager; the default
#: of both is every 300 s.
TOPOLOGY_REFRESH_S = 0.5

#: (worker, operation, start, end, error): `error` is None for a good call, `end` is None for a
#: call that has not ended.
CallRow = tuple[int, str, float, "float | None", "str | None"]

_ERROR_TEXT_LIMIT = 300
_FLUSH_GAP = 0.05


class Tally:
    """Notes what happens to the program, and sends it; `stop` tells the workers to end.

    A thread of its own writes now and then, so that no caller waits for the pipe or for it.
    """

    def __init__(self, stream: TextIO) -> None:
        self.stop = threading.Event()
        self._open: dict[int, tuple[str, float]] = {}
        self.stream = stream
        self._messages: queue.SimpleQueue[dict[str, object]] = queue.SimpleQueue()
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._write, name="demo-tally", daemon=True)
        self._thread.start()

    @contextlib.contextmanager
    def call(self, worker: int, operation: str) -> Iterator[None]:
        """The body is one call of one worker; an Exception in it is noted and swallowed.

        What is no Exception, a cancellation for one, leaves the call in flight for ever.
        """
        start, error = time.monotonic(), None
        self._open[worker] = (operation, start)
        try:
            yield
        except Exception as raised:
            error = describe_error(raised)
        end = time.monotonic()
        del self._open[worker]
        self.put("call", row=(worker, operation, start, end, error))

    def list_open(self) -> list[CallRow]:
        """The calls that are in flight now."""
        return [
            (worker, operation, start, None, None)
            for worker, (operation, start) in sorted(self._open.copy().items())
        ]

    def put(self, kind: str, **fields: object) -> None:
        """Send one message; safe in any thread and in a listener."""
        self._messages.put({"kind": kind, **fields})

    def put_record(self, record: object) -> None:
        """Send one of the engine's records: the listener that is subscribed."""
        fields = {name: _plain(getattr(record, name)) for name in RECORD_FIELDS}
        self.put("record", at=time.monotonic(), **fields)

    def close(self) -> None:
        """Send what is left and end."""
        self._closing.set()
        self._thread.join()

    def _write(self) -> None:
        while not self._closing.wait(_FLUSH_GAP):
            self._flush()
        self._flush()

    def _flush(self) -> None:
        while not self._messages.empty():
            self.stream.write(json.dumps(self._messages.get()) + "\n")
        self.stream.flush()


def _plain(value: object) -> object:
    """A record's value as JSON has it."""
    return value.value if isinstance(value, enum.Enum) else value


def describe_error(error: Exception) -> str:
    """One line about a failed call: its type and the first line of its text."""
    lines = str(error).strip().splitlines() or [""]
    return f"{type(error).__name__}: {lines[0]}"[:_ERROR_TEXT_LIMIT]


def watch_channels(opened: Callable[[], object]) -> None:
    """Wrap grpc's channel factories, both flavours, for the life of the process: `opened` is
    called at each call."""

    def wrap(factory: Callable[..., object]) -> Callable[..., object]:
        @functools.wraps(factory)
        def counted(*args: object, **kwargs: object) -> object:
            opened()
            return factory(*args, **kwargs)

        return counted

    for module in (grpc, grpc.aio):
        for name in ("insecure_channel", "secure_channel"):
            setattr(module, name, wrap(getattr(module, name)))


class _LineCount(logging.Handler):
    """Tells how many lines each record has, in place of printing them."""

    def __init__(self, logged: Callable[[int], object]) -> None:
        super().__init__()
        self._logged = logged

    def emit(self, record: logging.LogRecord) -> None:
        self._logged(record.getMessage().count("\n") + 1)


def silence(library: str, logged: Callable[[int], object] = lambda lines: None) -> None:
    """Print nothing of what `library` logs, and tell `logged` how many lines; levels stay.

    pymilvus prints on its own, by handlers that it sets on three loggers when it is imported: call
    this after the import.
    """
    for name in [library, *logging.root.manager.loggerDict]:
        if name == library or name.startswith(library + "."):
            logger = logging.getLogger(name)
            logger.handlers.clear()
            logger.propagate = name != library
    logging.getLogger(library).addHandler(_LineCount(logged))


def resolve_localhost_names() -> None:
    """Have Python resolve every name that ends in `.localhost` to 127.0.0.1 in this process.

    An endpoint is a global cluster by its host's name, so the demo's needs a name. RFC 6761
    (section 6.3) keeps `.localhost` for this machine, but not every resolver knows (glibc alone
    does not), and a demo does not write to /etc/hosts. Only the topology service is asked by name.
    """
    resolve = socket.getaddrinfo

    def getaddrinfo(host: Any, *args: Any, **kwargs: Any) -> Any:
        name = host.decode() if isinstance(host, bytes) else host
        local = isinstance(name, str) and name.lower().rstrip(".").endswith(".localhost")
        return resolve("127.0.0.1" if local else host, *args, **kwargs)

    socket.getaddrinfo = getaddrinfo


def _answer_questions(tally: Tally) -> None:
    # os.read and not sys.stdin: a daemon thread blocked in a buffered reader breaks the exit of
    # the interpreter.
    pending = b""
    while chunk := os.read(0, 4096):
        *lines, pending = (pending + chunk).split(b"\n")
        for line in lines:
            question = json.loads(line)["ask"]
            if question == "in_flight":
                tally.put("in_flight", rows=tally.list_open())
            elif question == "stop":
                tally.stop.set()
    os._exit(1)


def _take_stdout() -> TextIO:
    """Keep stdout for messages; whatever a library prints goes to stderr instead."""
    stream = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    return stream


def _prepare(options: argparse.Namespace, tally: Tally, manager: str) -> None:
    """Install the engine, unless it is pymilvus's own manager that is asked for."""
    from pymilvus.client import connection_manager

    if not options.stock:
        import milvus_lifecycle

        policy = None
        if options.failover:
            policy = milvus_lifecycle.LifecyclePolicy(topology_refresh=TOPOLOGY_REFRESH_S)
        milvus_lifecycle.install(policy=policy)
        getattr(milvus_lifecycle, manager).get_instance().subscribe(tally.put_record)
    elif options.failover:  # pymilvus has no setting for it
        from pymilvus.client.global_topology import TopologyRefresher

        TopologyRefresher.__init__.__defaults__ = (TOPOLOGY_REFRESH_S, None)
    in_use = getattr(connection_manager, manager).get_instance()
    tally.put("ready", manager=type(in_use).__module__)


def _run(options: argparse.Namespace, tally: Tally) -> None:
    from milvus_lifecycle.demo.program import run_tasks, run_threads

    # After pymilvus's import, which sets the handlers that this removes.
    silence("pymilvus", lambda lines: tally.put("log", lines=lines))

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
    parser.add_argument("--failover", action="store_true", help="the URI is a global cluster's")
    options = parser.parse_args()
    tally = Tally(_take_stdout())
    threading.Thread(target=_answer_questions, args=(tally,), name="demo-ask", daemon=True).start()
    watch_channels(lambda: tally.put("channel", at=time.monotonic()))
    if options.failover:
        resolve_localhost_names()
    try:
        _run(options, tally)
        tally.put("done", rows=tally.list_open())
    except Exception as error:
        tally.put("fatal", error=describe_error(error))
        raise
    finally:
        tally.close()


if __name__ == "__main__":
    main()
