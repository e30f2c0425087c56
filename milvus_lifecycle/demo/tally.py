"""What the client program's process counts: calls, calls in flight, channels, lines logged.

All times are time.monotonic(), which on Linux and macOS is one clock for all processes, so that
the demo can compare them with the moments at which it killed the server and saw it listen.
"""

from __future__ import annotations

import functools
import logging
import threading
import time
from collections.abc import Callable
from types import TracebackType
from typing import final

import grpc
import grpc.aio

#: (worker, operation, start, end, error): `error` is None for a good call, `end` is None for a
#: call that has not ended.
CallRow = tuple[int, str, float, "float | None", "str | None"]

_ERROR_TEXT_LIMIT = 300


class Tally:
    """Notes every call of the program; `stop` tells its workers to end."""

    def __init__(self) -> None:
        self.stop = threading.Event()
        self._mutex = threading.Lock()
        self._open: dict[int, tuple[str, float]] = {}
        self._ended: list[CallRow] = []

    def call(self, worker: int, operation: str) -> _CallInFlight:
        """One call of one worker; an Exception in the body is noted and swallowed."""
        return _CallInFlight(self, worker, operation)

    def begin(self, worker: int, operation: str) -> None:
        """A worker starts a call; it has at most one at a time."""
        with self._mutex:
            self._open[worker] = (operation, time.monotonic())

    def end(self, worker: int, error: Exception | None) -> None:
        """The worker's call has ended."""
        end = time.monotonic()
        text = None if error is None else describe_error(error)
        with self._mutex:
            operation, start = self._open.pop(worker)
            self._ended.append((worker, operation, start, end, text))

    def take_ended(self) -> list[CallRow]:
        """The calls that have ended since the last time."""
        with self._mutex:
            ended, self._ended = self._ended, []
        return ended

    def list_open(self) -> list[CallRow]:
        """The calls that are in flight now."""
        with self._mutex:
            return [
                (worker, operation, start, None, None)
                for worker, (operation, start) in sorted(self._open.items())
            ]


@final
class _CallInFlight:
    """The context of one call."""

    def __init__(self, tally: Tally, worker: int, operation: str) -> None:
        self._tally = tally
        self._worker = worker
        self._operation = operation

    def __enter__(self) -> None:
        self._tally.begin(self._worker, self._operation)

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> bool:
        if error is not None and not isinstance(error, Exception):
            return False  # cancelled or interrupted: the call stays in flight for ever
        self._tally.end(self._worker, error)
        return error is not None


def describe_error(error: Exception) -> str:
    """One line about a failed call: its type and the first line of its text."""
    lines = str(error).strip().splitlines() or [""]
    return f"{type(error).__name__}: {lines[0]}"[:_ERROR_TEXT_LIMIT]


def watch_channels(opened: Callable[[float], None]) -> None:
    """Wrap grpc's channel factories, both flavours: `opened` gets the moment of each call.

    The wrappers stay for the life of the process.
    """
    for module in (grpc, grpc.aio):
        for name in ("insecure_channel", "secure_channel"):
            setattr(module, name, _wrap_factory(getattr(module, name), opened))


def _wrap_factory(
    factory: Callable[..., object], opened: Callable[[float], None]
) -> Callable[..., object]:
    @functools.wraps(factory)
    def counted(*args: object, **kwargs: object) -> object:
        opened(time.monotonic())
        return factory(*args, **kwargs)

    return counted


class LineCount(logging.Handler):
    """Counts the lines that a library logs, in place of printing them."""

    def __init__(self) -> None:
        super().__init__()
        self.lines = 0

    def emit(self, record: logging.LogRecord) -> None:
        """Count the record's lines; logging calls this under the handler's lock."""
        self.lines += record.getMessage().count("\n") + 1


def silence(library: str) -> LineCount:
    """Send everything that `library` logs to a counter, with its levels left as they are.

    pymilvus prints on its own, by handlers that it sets on three loggers when it is imported: call
    this after the import.
    """
    count = LineCount()
    for name in [library, *logging.root.manager.loggerDict]:
        if name == library or name.startswith(library + "."):
            logger = logging.getLogger(name)
            logger.handlers.clear()
            logger.propagate = name != library
    logging.getLogger(library).addHandler(count)
    return count
