"""Whose business a "not loaded" is: answers that overtake each other, and what is remembered."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from milvus_lifecycle.core import readiness as readiness_module
from milvus_lifecycle.core.face import Start
from milvus_lifecycle.core.readiness import Collection, Readiness
from milvus_lifecycle.core.wire import Binding, Rpc, Wire

DEMO = Collection("", "demo")


def start(generation: int, at: float = 0.0, opened_at: float | None = None) -> Start:
    """A read that began ``at`` a time, on the channel of a generation."""
    opened = float(generation) if opened_at is None else opened_at
    wire = Wire(None, "home:19530", opened)
    connection: Any = None
    return Start(connection, Binding(generation, wire, None), Rpc(), at, at, None, None)


def request(name: str = "demo", **more: Any) -> Any:
    return SimpleNamespace(collection_name=name, **more)


def known(*generations: int, at: float = 0.0) -> Readiness:
    """A collection that was read in these generations, at that time."""
    readiness = Readiness()
    for generation in generations:
        readiness.answered(start(generation).binding, None, request(), lambda: at)
    return readiness


def lost(readiness: Readiness, read: Start, metadata: Any, request: Any) -> Collection | None:
    """What a read that was answered "not loaded" may wait for."""
    return readiness.lost(read.binding, read.at, metadata, request)


def test_what_was_read_before_the_channel_was_bound_may_be_waited_for() -> None:
    """Not what nobody has read, or what was read on this channel already."""
    assert lost(known(), start(2), None, request()) is None
    assert lost(known(2), start(2, at=1.0), None, request()) is None
    assert lost(known(1), start(2), None, request()) == DEMO
    assert lost(known(1), start(2), None, request("another")) is None
    assert lost(known(1), start(2), None, SimpleNamespace()) is None, "about no collection at all"


def test_a_channel_that_is_bound_anew_counts_as_another() -> None:
    """An outage may end on the channel that it began on."""
    readiness = Readiness()
    readiness.answered(start(1, opened_at=7.0).binding, None, request(), float)
    assert lost(readiness, start(2, opened_at=7.0), None, request()) == DEMO


def test_a_late_answer_of_an_older_channel_tells_nothing() -> None:
    """Neither a good one nor a "not loaded"."""
    readiness = known(1, 2, 1)
    assert lost(readiness, start(1), None, request()) is None
    assert lost(readiness, start(2, at=1.0), None, request()) is None
    assert lost(readiness, start(3), None, request()) == DEMO


def test_a_good_answer_may_overtake() -> None:
    """Whoever asked before the first good answer after the recovery is waited for yet."""
    readiness = known(1, 2, at=5.0)
    assert lost(readiness, start(2, at=4.9), None, request()) == DEMO
    assert lost(readiness, start(2, at=5.0), None, request()) is None
    assert lost(known(2, at=5.0), start(2, at=4.9), None, request()) is None, "no recovery"


def test_the_end_of_a_wait_may_overtake() -> None:
    """Whoever asked before the end belongs to the wait; whoever asks after it does not."""
    readiness = known(1)
    asked = start(2, at=3.0)
    reload = readiness.reload(asked.binding, DEMO, 3.0, 60.0)
    assert (reload.began, reload.until) == (3.0, 63.0)
    reload.ended = 4.0
    assert lost(readiness, start(2, at=3.9), None, request()) == DEMO
    assert readiness.reload(start(2, at=3.9).binding, DEMO, 4.1, 60.0) is reload
    assert lost(readiness, start(2, at=4.0), None, request()) is None
    assert lost(readiness, start(3, at=9.0), None, request()) == DEMO, "the next recovery"


def test_databases_and_partitions_are_told_apart() -> None:
    """A database has collections of its own; partitions are waited for by themselves."""
    readiness = Readiness()
    sales = [("trace", "7"), ("dbname", "sales")]
    readiness.answered(start(1).binding, sales, request(), float)
    assert lost(readiness, start(2), None, request()) is None
    found = lost(readiness, start(2), sales, request(partition_names=["new"]))
    assert found == Collection("sales", "demo", ("new",))
    assert str(found) == "collection 'demo' of database 'sales'"
    readiness.reload(start(2).binding, found, 0.0, 60.0).ended = 1.0
    assert lost(readiness, start(2, at=2.0), sales, request(partition_names=["new"])) is None
    assert lost(readiness, start(2, at=2.0), sales, request()) == Collection("sales", "demo")


def test_what_is_remembered_is_limited(monkeypatch: pytest.MonkeyPatch) -> None:
    """More collections than that are not waited for; more waits than that are forgotten."""
    monkeypatch.setattr(readiness_module, "ANSWERED_LIMIT", 2)
    monkeypatch.setattr(readiness_module, "RELOADS_LIMIT", 2)
    readiness = Readiness()
    for name in "abc":
        readiness.answered(start(1).binding, None, request(name), float)
    seen = [lost(readiness, start(2), None, request(name)) for name in "abc"]
    assert [one is not None for one in seen] == [True, True, False]
    waits = [readiness.reload(start(number).binding, DEMO, 0.0, 60.0) for number in (2, 3, 4, 2)]
    assert waits[3] is not waits[0]


def test_calls_that_share_a_wait_say_things_once() -> None:
    """The first of them to hear that the server loads, and to see the end, puts it on record."""
    reload = known(1).reload(start(2).binding, DEMO, 0.0, 60.0)
    assert not reload.loading
    assert [reload.first("loading"), reload.first("loading")] == [True, False]
    assert reload.loading
    assert [reload.first("end"), reload.first("end")] == [True, False]
