"""What a test watches: conditions with a limit, channels at grpc's factories, log lines."""

from __future__ import annotations

import logging
import threading
import time
import weakref
from collections.abc import Callable, Iterable
from contextlib import ExitStack
from typing import Any
from unittest import mock

import grpc
import grpc.aio
from typing_extensions import Self


def came_true(condition: Callable[[], object], limit: float, every: float = 0.01) -> bool:
    """Poll until the condition holds; False when it does not within `limit` seconds."""
    deadline = time.monotonic() + limit
    while not condition():
        if time.monotonic() >= deadline:
            return bool(condition())
        time.sleep(every)
    return True


def wait_until(condition: Callable[[], object], limit: float, every: float = 0.01) -> None:
    """The same for what a test arranges: raises AssertionError when it does not hold in time."""
    __tracebackhide__ = True
    assert came_true(condition, limit, every), f"not within {limit} s"


def join_all(threads: Iterable[threading.Thread], limit: float) -> bool:
    """Join threads, all within `limit` seconds; False when one of them is still running."""
    deadline = time.monotonic() + limit
    for thread in threads:
        thread.join(max(0.0, deadline - time.monotonic()))
        if thread.is_alive():
            return False
    return True


class Call(threading.Thread):
    """One call in a daemon thread of its own, with what came of it and how long it took."""

    def __init__(self, function: Callable[..., Any], *args: Any, **kwargs: Any) -> None:
        super().__init__(name=f"call-{getattr(function, '__name__', 'call')}", daemon=True)
        self._work = (function, args, kwargs)
        self.result: Any = None
        self.error: BaseException | None = None
        self.elapsed: float | None = None
        self.start()

    def run(self) -> None:
        function, args, kwargs = self._work
        start = time.monotonic()
        try:
            self.result = function(*args, **kwargs)
        except BaseException as error:
            self.error = error
        finally:
            self.elapsed = time.monotonic() - start

    @property
    def done(self) -> bool:
        return self.elapsed is not None

    def value(self, limit: float) -> Any:
        """The result within `limit` seconds, or the call's own error, or TimeoutError."""
        if not came_true(lambda: self.done, limit):
            raise TimeoutError(f"{self.name} did not return within {limit} s")
        if self.error is not None:
            raise self.error
        return self.result


class Client:
    """Whoever holds a lease."""


def all_done(calls: Iterable[Call], limit: float) -> bool:
    """Whether all calls have returned, with or without an error, within `limit` seconds."""
    waiting = list(calls)
    return came_true(lambda: all(call.done for call in waiting), limit)


def held(server: Any, method: str, *calls: Callable[[], Any]) -> tuple[Any, list[Call]]:
    """Start calls whose RPCs of this method wait for the test in the server; its hold, and they."""
    hold = server.hold(method)
    started = [Call(call) for call in calls]
    wait_until(lambda: hold.waiting == len(started), 10)
    return hold, started


def held_rpc(server: Any, client: Any) -> tuple[Any, Call]:
    """A call that waits in the server, by HasPartition, which nothing else here calls."""
    hold, (call,) = held(server, "HasPartition", lambda: client.has_partition("demo", "part"))
    return hold, call


class Load:
    """Threads that do some work again and again, and what comes of it."""

    def __init__(self, work: Callable[[], Any], threads: int = 1) -> None:
        self._work = work
        self._stop = threading.Event()
        #: what the last good piece of work returned
        self.result: Any = None
        self.errors: list[Exception] = []
        #: when each thread's last good piece of work ended (seconds of time.monotonic)
        self.last_good = [0.0] * threads
        self._counts = [0] * threads
        self.threads = [
            threading.Thread(target=self._run, args=(number,), daemon=True)
            for number in range(threads)
        ]
        for thread in self.threads:
            thread.start()

    def _run(self, number: int) -> None:
        while not self._stop.wait(0.02):
            try:
                self.result = self._work()
            except Exception as error:
                self.errors.append(error)
            else:
                self.last_good[number] = time.monotonic()
            self._counts[number] += 1

    @property
    def count(self) -> int:
        """How many pieces of work are done, good or not."""
        return sum(self._counts)

    def all_good_since(self, moment: float) -> bool:
        """Whether every thread has done something well since then."""
        return min(self.last_good) > moment

    def works(self, limit: float = 20.0) -> bool:
        """Whether more is done from now on, and nothing has failed yet."""
        target = self.count + 5
        return came_true(lambda: self.count >= target, limit) and not self.errors

    def stop(self, limit: float = 20.0) -> bool:
        """End it; False when a thread is still at work."""
        self._stop.set()
        return join_all(self.threads, limit)


class History:
    """The records that were heard, by what happened."""

    def __init__(self) -> None:
        #: as far as they have come
        self.heard: list[Any] = []

    @property
    def records(self) -> list[Any]:
        """Every record so far: those on their way are waited for."""
        from tests.inside import flush_records

        flush_records()
        return list(self.heard)

    def transitions(self, trigger: str | None = None) -> list[Any]:
        """The records of state changes so far, all or those of one trigger."""
        return [
            record
            for record in self.records
            if record.event == "connection.transition" and trigger in (None, record.trigger)
        ]

    def path(self) -> list[str]:
        """The triggers of all state changes so far, in order."""
        return [record.trigger for record in self.transitions()]

    def seen(self, event: str = "connection.transition") -> list[str]:
        """The triggers of the records of one kind, as far as they have come."""
        return [record.trigger for record in list(self.heard) if record.event == event]

    def saw(self, trigger: str, event: str = "connection.transition", limit: float = 10.0) -> bool:
        """Whether there is a record of this trigger within `limit` seconds."""
        return came_true(lambda: trigger in self.seen(event), limit)


_FACTORIES = (
    (grpc, "insecure_channel"),
    (grpc, "secure_channel"),
    (grpc.aio, "insecure_channel"),
    (grpc.aio, "secure_channel"),
)


class ChannelCount:
    """Counts channels where grpc makes them, and keeps weak references to them."""

    def __init__(self) -> None:
        self.opened: list[tuple[float, str]] = []
        #: what each was given as options
        self.options: list[dict[str, Any]] = []
        self._channels: list[weakref.ref[Any]] = []
        self._patches = ExitStack()

    def __len__(self) -> int:
        return len(self.opened)

    def alive(self) -> int:
        """How many of the channels have not been garbage-collected."""
        return sum(channel() is not None for channel in self._channels)

    def __enter__(self) -> Self:
        for module, name in _FACTORIES:
            factory = self._counting(getattr(module, name))
            self._patches.enter_context(mock.patch.object(module, name, factory))
        return self

    def __exit__(self, *exc: object) -> None:
        self._patches.close()

    def _counting(self, factory: Callable[..., Any]) -> Callable[..., Any]:
        def counted(target: str, *args: Any, **kwargs: Any) -> Any:
            channel = factory(target, *args, **kwargs)
            self.opened.append((time.monotonic(), target))
            self.options.append(dict(kwargs.get("options") or ()))
            self._channels.append(weakref.ref(channel))
            return channel

        return counted


class LogLines(logging.Handler):
    """Collects what the standard library's logging emits at or above a level, as formatted."""

    def __init__(self, level: int = logging.DEBUG, logger: str = "") -> None:
        super().__init__(level)
        self._records: list[logging.LogRecord] = []
        self._logger = logging.getLogger(logger)
        self._level_before = self._logger.level

    def emit(self, record: logging.LogRecord) -> None:
        self._records.append(record)

    @property
    def records(self) -> list[logging.LogRecord]:
        """All so far: the engine's own are told by threads of their own, which are waited for."""
        from tests.inside import flush_records

        flush_records()
        return self._records

    def text(self) -> str:
        """Every record with all its fields, for a search for secrets."""
        return "\n".join(
            f"{record.name} {record.levelname} {record.getMessage()} {record.__dict__!r}"
            for record in list(self.records)
        )

    def at_least(self, level: int, logger: str = "") -> list[logging.LogRecord]:
        return [
            record
            for record in list(self.records)
            if record.levelno >= level and record.name.startswith(logger)
        ]

    def __enter__(self) -> Self:
        _ = self.records  # what was recorded before is told to others
        self._logger.addHandler(self)
        self._logger.setLevel(self.level)
        return self

    def __exit__(self, *exc: object) -> None:
        _ = self.records  # what was recorded meanwhile is told here
        self._logger.removeHandler(self)
        self._logger.setLevel(self._level_before)
