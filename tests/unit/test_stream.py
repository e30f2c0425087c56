"""The queue and the thread of one reader: bounded, in order, and never in anybody's way."""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Iterator
from functools import partial
from types import FrameType

import pytest

from milvus_lifecycle.audit import stream
from milvus_lifecycle.audit.stream import Outlet
from milvus_lifecycle.fork import on_fork_in_child
from milvus_lifecycle.testing import until

LIMIT = 20.0


class Reading:
    """An outlet of numbers whose reader waits for ``go``; losses are noted as negative numbers."""

    def __init__(self) -> None:
        self.seen: list[int] = []
        self.threads: set[threading.Thread] = set()
        self.busy, self.go = threading.Event(), threading.Event()
        self.outlet: Outlet[int] = Outlet(self.read, lambda lost: self.seen.append(-lost))

    def read(self, item: int) -> None:
        self.threads.add(threading.current_thread())
        self.busy.set()
        assert self.go.wait(LIMIT)
        self.seen.append(item)

    def put(self, *items: int) -> None:
        for item in items:
            self.outlet.put(item)
            self.outlet.serve()

    def ended(self) -> bool:
        return not any(thread.is_alive() for thread in self.threads)


@pytest.fixture
def reading() -> Iterator[Reading]:
    """An outlet; its reader is let go at the end."""
    made = Reading()
    yield made
    made.go.set()


def test_what_is_too_much_is_dropped_and_told_at_its_place(
    reading: Reading, monkeypatch: pytest.MonkeyPatch
) -> None:
    """So many items wait, whatever comes; the reader is told where others are missing."""
    monkeypatch.setattr(stream, "LIMIT", 3)
    reading.put(1)
    assert reading.busy.wait(LIMIT)
    reading.put(*range(2, 10))
    assert not reading.outlet.flush(0.01)  # its mark tells of 5, 6, 7, 8 and 9
    reading.put(10)  # no room
    reading.go.set()
    assert reading.outlet.flush(LIMIT)
    reading.put(11)
    assert reading.outlet.flush(LIMIT)
    assert reading.seen == [1, 2, 3, 4, -5, -1, 11]


def test_what_is_to_leave_room_is_dropped_first(
    reading: Reading, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Waits come by thousands at the end of an outage: records still find a place."""
    monkeypatch.setattr(stream, "LIMIT", 4)
    reading.put(1)
    assert reading.busy.wait(LIMIT)
    for item in range(2, 8):
        reading.outlet.put(item, 2)
    reading.put(8, 9)
    reading.go.set()
    assert reading.outlet.flush(LIMIT)
    assert reading.seen == [1, 2, 3, -4, 8, -1]
    assert reading.outlet.flush(LIMIT)


def test_a_loss_is_told_though_nothing_comes_after_it(
    reading: Reading, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither the next item nor a flush has to ask for it."""
    monkeypatch.setattr(stream, "LIMIT", 1)
    reading.put(1)
    assert reading.busy.wait(LIMIT)
    reading.put(2, 3, 4)
    reading.go.set()
    until(lambda: reading.seen == [1, 2, -2], LIMIT, "the loss is not told")


def test_a_thread_that_is_idle_ends_and_another_comes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing runs for a reader that hears nothing."""
    monkeypatch.setattr(stream, "IDLE", 0.01)
    reading = Reading()
    reading.go.set()
    for item in (1, 2):
        reading.put(item)
        until(partial(reading.seen.__contains__, item), LIMIT, "it is not read")
        until(reading.ended, LIMIT, "its thread does not end")
    assert len(reading.threads) == 2


def test_where_no_thread_can_be_started(reading: Reading, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody notices; items wait for the next one, or are read by whoever flushes."""

    def start(self: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    reading.go.set()
    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", start)
        reading.put(1)
        assert reading.seen == []
        assert reading.outlet.flush(0)
        assert reading.threads == {threading.current_thread()}
        reading.put(2)
    reading.put(3)
    until(lambda: reading.seen == [1, 2, 3], LIMIT, "what waited is not read")


@pytest.mark.parametrize("fault", [ValueError, SystemExit, KeyboardInterrupt])
def test_a_reader_that_raises_goes_on(fault: type[BaseException]) -> None:
    """It costs the item that it raised at."""
    seen = []

    def read(item: int) -> None:
        seen.append(item)
        raise fault

    outlet: Outlet[int] = Outlet(read, lambda lost: None)
    for item in (1, 2):
        outlet.put(item)
        outlet.serve()
    until(lambda: seen == [1, 2], LIMIT, "its thread is gone")


def test_a_flush_by_the_reader_itself() -> None:
    """It would wait for itself: it is refused, and what the reader adds is read after."""
    seen: list[object] = []

    def read(item: int) -> None:
        seen.append(item)
        if item == 1:
            outlet.put(2)
            seen.append(outlet.flush(LIMIT))

    outlet: Outlet[int] = Outlet(read, lambda lost: None)
    outlet.put(1)
    outlet.serve()
    until(lambda: seen == [1, False, 2], LIMIT, "it is not read")


def test_at_exit_whoever_adds_reads(reading: Reading, monkeypatch: pytest.MonkeyPatch) -> None:
    """A daemon thread may not come to it any more. In order, though a reader adds to it."""

    def read(item: int) -> None:
        reading.threads.add(threading.current_thread())
        if item == 1:
            outlet.put(2)
            outlet.serve()
        reading.seen.append(item)

    monkeypatch.setattr(stream, "_exiting", True)
    outlet: Outlet[int] = Outlet(read, lambda lost: None)
    outlet.put(1)
    outlet.serve()
    assert reading.seen == [1, 2]
    assert reading.threads == {threading.current_thread()}


class Interrupt(BaseException):
    """What a signal handler raises."""


# In a callback of the garbage collector's, or of a weak reference, CPython can only print it.
@pytest.mark.filterwarnings(
    "ignore:(?s)Exception ignored.*test_stream.Interrupt:pytest.PytestUnraisableExceptionWarning"
)
def test_whoever_starts_the_thread_may_be_interrupted() -> None:
    """Wherever that is, what waits is read, in order, with the next item."""
    place = 0
    while True:
        place += 1
        passed = 0

        def trap(frame: FrameType, event: str, arg: object, place: int = place) -> None:
            nonlocal passed
            if event in ("call", "c_return"):
                passed += 1
                if passed == place:
                    sys.setprofile(None)
                    raise Interrupt

        reading = Reading()
        reading.go.set()
        reading.outlet.put(1)
        try:
            sys.setprofile(trap)
            reading.outlet.serve()
        except Interrupt:
            pass
        finally:
            sys.setprofile(None)
        reading.put(2, 3)
        until(partial(reading.seen.__eq__, [1, 2, 3]), LIMIT, f"interrupted at {place}")
        if passed < place:
            break
    assert place > 20


class _News:
    """Something that has news in a forked child, as a manager does."""

    def __init__(self, reading: Reading) -> None:
        self.reading = reading
        on_fork_in_child(self)

    def fork_child(self) -> None:
        self.reading.put(2)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system cannot fork")
def test_a_forked_child_reads_its_own_news() -> None:
    """What the parent's readers had before them is the parent's; of all that comes, nothing."""
    readings = [Reading() for _ in range(8)]
    news = [_News(reading) for reading in readings]
    for reading in readings:
        reading.put(1)
        assert reading.busy.wait(LIMIT)
    child = os.fork()
    if child == 0:
        code = 1
        try:
            for reading in readings:
                reading.go.set()
                assert reading.outlet.flush(LIMIT)
            code = sum(reading.seen != [2] for reading in readings)
        finally:
            os._exit(code)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    for reading in readings:
        reading.go.set()
        assert reading.outlet.flush(LIMIT)
        assert reading.seen == [1]
    del news
