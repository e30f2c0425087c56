"""Records: in order, outside of every lock, harmless when whoever reads them fails."""

from __future__ import annotations

import gc
import json
import logging
import threading
from contextlib import suppress
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import pytest

from milvus_lifecycle import ConnectionConfig, ConnectionManager
from milvus_lifecycle.audit.jsonl import JsonLines
from milvus_lifecycle.audit.records import WARNING, Sink, TransitionRecord
from milvus_lifecycle.audit.stream import Audit, Emission, flush_all
from milvus_lifecycle.core.facts import Seams
from milvus_lifecycle.errors import ConnectionClosed
from milvus_lifecycle.table import State, Trigger
from milvus_lifecycle.testing import CapturedAudit, Script, until
from tests.cores import Core

CONFIG = ConnectionConfig.from_uri("http://home:19530")


def test_records_come_in_order_while_a_listener_blocks() -> None:
    """Nobody waits for a slow listener, and it still gets every record in ``seq`` order."""
    core = Core()
    core.audit.readers = ()
    blocked, go, seen, other = threading.Event(), threading.Event(), [], []

    def slow(record: TransitionRecord) -> None:
        blocked.set()
        go.wait(20)
        seen.append(record.seq)

    core.audit.subscribe(slow)
    core.audit.subscribe(lambda record: other.append(record.seq))
    core.to(State.ACTIVE)
    core.audit.serve()
    assert blocked.wait(20)
    core.step(Trigger.CLOSE)
    until(lambda: other == [1, 2, 3], 20, "one listener waits for another")
    assert not core.audit.flush(0.01)
    assert seen == []
    go.set()
    assert core.audit.flush(20)
    assert seen == [1, 2, 3]


def test_a_listener_may_use_the_manager() -> None:
    """Records are delivered outside of every lock: a listener may ask, check out and close."""
    manager = ConnectionManager(transport=Script().threads())
    stats: list[Any] = []

    def listener(record: TransitionRecord) -> None:
        stats.append(manager.get_stats()["connections"])
        if record.trigger == "release":
            worker = threading.Thread(target=manager.close_all)
            worker.start()
            worker.join(20)
            assert not worker.is_alive()

    manager.subscribe(listener)
    handler = manager.get_or_create(CONFIG)
    manager.release(handler)
    until(lambda: handler.face.connection.state is State.CLOSED, 10, "not closed")
    until(lambda: len(stats) == 5, 10, "records are missing")


class Broken(Sink):
    """A sink that fails at every record."""

    def write(self, record: TransitionRecord, level: int) -> None:
        raise OSError("no space left")


def emit(audit: Audit, record: TransitionRecord) -> None:
    """Have every reader read ``record``."""
    audit.queue(Emission(record, logging.DEBUG))
    assert audit.flush(20)


@pytest.mark.parametrize("fault", [ZeroDivisionError, SystemExit])
def test_readers_that_fail_harm_nobody(
    fault: type[BaseException], caplog: pytest.LogCaptureFixture
) -> None:
    """A listener and a sink that raise are counted, complained of once, and the rest served."""
    audit = Audit("threads", (Broken(),))
    seen: list[TransitionRecord] = []

    def bad(record: TransitionRecord) -> None:
        raise fault("a listener's fault")

    audit.subscribe(bad)
    audit.subscribe(seen.append)
    core = Core().to(State.ACTIVE)
    with caplog.at_level(logging.WARNING, logger="milvus_lifecycle"):
        for record in core.records:
            emit(audit, record)
        flush_all(20)
    assert seen == core.records
    assert sum(reader.failures for reader in audit.readers) == 2 * len(core.records)
    assert len(caplog.records) == 2


def test_subscribing_twice_and_leaving_once() -> None:
    """Each subscription ends by its own unsubscriber, as often as that is called."""
    audit = Audit("threads")
    seen: list[TransitionRecord] = []
    first, second = (audit.subscribe(seen.append) for _ in range(2))
    record = Core().to(State.ACTIVE).records[0]
    emit(audit, record)
    first()
    first()
    emit(audit, record)
    second()
    emit(audit, record)
    assert len(seen) == 3
    assert not audit.active()


def test_a_listener_has_to_be_callable() -> None:
    """A mistake is told where it is made."""
    with pytest.raises(TypeError, match="callable"):
        Audit("threads").subscribe("print")  # type: ignore[arg-type]


def test_nobody_listens() -> None:
    """Without readers no record is built, but ``seq`` and what was warned of are kept."""
    core = Core()
    core.audit = core.connection.lifecycle.audit = Audit("threads")
    core.to(State.RECOVERING)
    late: list[TransitionRecord] = []
    core.audit.subscribe(late.append)
    core.step(Trigger.CLOSE)
    assert core.audit.flush(20)
    assert [record.seq for record in late] == [4]


def test_a_move_that_gives_up_is_noticed_without_an_outage() -> None:
    """People are told that the connection has nothing to serve with, whatever began it."""
    core = Core(max_age=60.0).to(State.ACTIVE)
    core.clock.advance(120)
    core.step(Trigger.RECYCLE)
    flight = core.connection.lifecycle.flight
    assert flight is not None
    emission = core.step(Trigger.GIVE_UP, flight=flight.number).emission
    assert emission is not None
    assert emission.level == WARNING
    assert core.connection.lifecycle.outage is None


def test_created_comes_first() -> None:
    """A new connection's first record is told before anybody who found it can step it."""
    closers: list[threading.Thread] = []

    def wall() -> datetime:
        found = manager._pool.registry.find(CONFIG.key)
        if found is not None and not closers:
            closers.append(threading.Thread(target=manager.close_all))
            closers[0].start()
            until(
                lambda: found.lifecycle.closed_by is None, 1, "it was closed before it was created"
            )
        return datetime.now(timezone.utc)

    manager = ConnectionManager(transport=Script().threads(), seams=Seams(wall=wall))
    with CapturedAudit(manager) as audit:
        with suppress(ConnectionClosed):  # if it waits for its connect by then
            manager.get_or_create(CONFIG)
        closers[0].join(20)
        assert [record.seq for record in audit.records][:2] == [0, 1]
        assert audit.records[0].dest == "IDLE"
    manager.close_all()


def test_records_are_flat_and_free_of_logging_names() -> None:
    """A record is JSON as it is, and none of its fields collides with logging.LogRecord."""
    record = Core().to(State.RECOVERING).records[-1]
    fields = json.loads(json.dumps(record.as_dict()))
    assert fields["trigger"] == "fail"
    assert not any(isinstance(value, (dict, list)) for value in fields.values())
    assert not set(fields) & set(vars(logging.makeLogRecord({})))


class _Finalized:
    """Leaves a record when it is collected, as a client that closes itself does."""

    def __init__(self, audit: Audit, record: TransitionRecord) -> None:
        self.audit, self.record, self.myself = audit, record, self

    def __del__(self) -> None:
        self.audit.queue(Emission(self.record, logging.INFO))
        self.audit.serve()


def test_a_record_inside_of_the_writing_of_a_record(tmp_path: Path) -> None:
    """The collector may run a finalizer while the file is written: no deadlock, no mixed lines."""
    path = tmp_path / "audit.jsonl"
    first, second = Core().to(State.ACTIVE).records
    sink = JsonLines(str(path))
    original = sink._reopen_if_moved

    def reopen() -> None:
        gc.collect()
        original()

    sink._reopen_if_moved = reopen  # type: ignore[method-assign]
    audit = Audit("threads", (sink,))
    _Finalized(audit, second)
    emit(audit, first)
    assert audit.flush(20)
    assert [json.loads(line)["seq"] for line in path.read_text().splitlines()] == [1, 2]


def test_a_sink_that_is_dropped_closes_its_file(tmp_path: Path) -> None:
    """Nothing keeps a sink, and its file descriptor, that nobody writes to any more."""
    sink = JsonLines(str(tmp_path / "audit.jsonl"))
    sink.write(Core().to(State.ACTIVE).records[0], logging.INFO)
    opened = Path(f"/proc/self/fd/{sink._fd}")
    assert opened.resolve() == tmp_path / "audit.jsonl"
    del sink
    gc.collect()
    assert opened.resolve() != tmp_path / "audit.jsonl"
