"""A reader's queue: bounded, in order, and never in anybody's way."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest

from milvus_lifecycle import stream
from milvus_lifecycle.stream import Outlet
from milvus_lifecycle.testing import until

LIMIT = 20.0


class Slow:
    """A reader that stops at each item until it may go on."""

    def __init__(self) -> None:
        self.go_on = threading.Event()
        self.told: list[str] = []
        self.outlet: Outlet[str] = Outlet(self.read, lambda count: self.told.append(f"-{count}"))

    def read(self, item: str) -> None:
        assert self.go_on.wait(LIMIT)
        self.told.append(item)

    def send(self, *items: str) -> None:
        for item in items:
            self.outlet.put(item)
        self.outlet.serve()

    def workers(self) -> list[threading.Thread]:
        return [t for t in threading.enumerate() if t is self.outlet._worker]


@pytest.fixture
def slow(monkeypatch: pytest.MonkeyPatch) -> Iterator[Slow]:
    """A queue for three items, whose thread ends when it has had nothing to do for a moment."""
    monkeypatch.setattr(stream, "LIMIT", 3)
    monkeypatch.setattr(stream, "IDLE", 0.01)
    reader = Slow()
    yield reader
    reader.go_on.set()
    assert reader.outlet.flush(LIMIT)


def test_what_is_too_much_is_dropped_and_counted_in_its_place(slow: Slow) -> None:
    """Three wait; the reader hears how many it missed before it hears of what came later."""
    slow.send("a")
    until(lambda: slow.outlet._queue.empty(), LIMIT, "nobody reads")
    slow.send(*"bcdefg")
    slow.go_on.set()
    until(lambda: "d" in slow.told and slow.outlet._queue.empty(), LIMIT, "it does not go on")
    slow.send("h")
    assert slow.outlet.flush(LIMIT)
    assert slow.told == ["a", "b", "c", "d", "-3", "h"]


def test_what_is_missed_is_told_even_if_nothing_comes_later(slow: Slow) -> None:
    slow.send("a")
    until(lambda: slow.outlet._queue.empty(), LIMIT, "nobody reads")
    slow.send(*"bcde")
    slow.go_on.set()
    until(lambda: slow.told == ["a", "b", "c", "d", "-1"], LIMIT, "the loss is not told")


def test_the_thread_ends_when_idle_and_comes_back(slow: Slow) -> None:
    slow.go_on.set()
    slow.send("a")
    until(lambda: not slow.workers(), LIMIT, "the thread does not end")
    slow.send("b")
    assert slow.outlet.flush(LIMIT)
    assert slow.told == ["a", "b"]


def test_without_a_thread_the_next_one_tries_again(
    slow: Slow, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What waits is kept; a flush reads it itself."""
    slow.go_on.set()
    with monkeypatch.context() as no_threads:

        def refuse(thread: threading.Thread) -> None:
            raise RuntimeError("can't start new thread")

        no_threads.setattr(threading.Thread, "start", refuse)
        slow.send("a")
        assert slow.told == []
        slow.send("b")
        assert slow.outlet.flush(LIMIT)
        assert slow.told == ["a", "b"]
    slow.send("c")
    assert slow.outlet.flush(LIMIT)
    assert slow.told == ["a", "b", "c"]


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_reader_that_kills_its_thread_gets_another() -> None:
    """Records' readers catch what they raise; whatever gets through costs one item."""
    told: list[str] = []

    def read(item: str) -> None:
        if item == "a":
            raise SystemExit
        told.append(item)

    outlet: Outlet[str] = Outlet(read, print)
    outlet.put("a")
    outlet.serve()
    until(lambda: outlet._queue.empty(), LIMIT, "nobody reads")
    until(lambda: outlet._worker is None or not outlet._worker.is_alive(), LIMIT, "it lives on")
    outlet.put("b")
    outlet.serve()
    assert outlet.flush(LIMIT)
    assert told == ["b"]


def test_a_reader_cannot_wait_for_itself() -> None:
    """A flush from its own thread says no, at once."""
    said: list[bool] = []
    outlet: Outlet[str] = Outlet(lambda item: said.append(outlet.flush(LIMIT)), print)
    outlet.put("a")
    outlet.serve()
    assert outlet.flush(LIMIT)
    assert said == [False]


def test_a_flush_of_a_reader_that_hangs_ends(slow: Slow) -> None:
    slow.send("a", "b")
    assert not slow.outlet.flush(0.05)
    assert slow.told == []


def test_a_child_leaves_what_waits_to_its_parent(slow: Slow) -> None:
    slow.send("a", "b")
    slow.outlet.fork_child()
    slow.go_on.set()
    slow.send("c")
    assert slow.outlet.flush(LIMIT)
    assert "c" in slow.told
    assert "b" not in slow.told
