"""Records in the application's own logging: eight configurations, and none that breaks a call."""

from __future__ import annotations

import io
import json
import logging
import threading
from collections.abc import Iterator, MutableMapping
from typing import Any, NoReturn

import pytest
import structlog

from milvus_lifecycle import ConnectionConfig, ConnectionManager
from milvus_lifecycle.audit.logs import LOGGER_NAME, ApplicationLog
from milvus_lifecycle.audit.records import Sink, TransitionRecord
from milvus_lifecycle.audit.stream import flush_all
from milvus_lifecycle.core import recording
from milvus_lifecycle.testing import FakeClock, Script, until

CONFIG = ConnectionConfig.from_uri("http://127.0.0.1:19530", token="root:sesame")
#: how the thread of a first connect is called
FLIGHT = "milvus-lifecycle-connect"
#: what one connection says of itself from its creation to close_all
TRIGGERS = [None, "acquire", "probe_passed", "close"]


@pytest.fixture(autouse=True)
def unconfigured() -> Iterator[None]:
    """structlog is not configured; what a test configures is undone."""
    structlog.reset_defaults()
    structlog.contextvars.clear_contextvars()
    yield
    structlog.reset_defaults()
    structlog.contextvars.clear_contextvars()


def live(*sinks: Sink) -> ConnectionManager:
    """One connection's life on a scripted transport: created, connected, closed."""
    manager = ConnectionManager(
        transport=Script().threads(), seams=FakeClock().seams(), sinks=(ApplicationLog(), *sinks)
    )
    before = set(threading.enumerate())
    manager.get_or_create(CONFIG)
    _landed(before)
    manager.close_all()
    flush_all(30)
    return manager


def _landed(before: set[threading.Thread]) -> None:
    """Wait for the worker of the first connect, and for whoever tells of it."""

    def lands() -> bool:
        started = set(threading.enumerate()) - before
        return not any(thread.name.startswith(FLIGHT) for thread in started)

    until(lands, 30, "it still flies")
    flush_all(30)


def log_to(logger: str | None, level: int = logging.DEBUG) -> io.StringIO:
    """Give a logger a handler and a level, as ``logging.basicConfig`` gives the root."""
    text = io.StringIO()
    chosen = logging.getLogger(logger)
    chosen.addHandler(logging.StreamHandler(text))
    chosen.setLevel(level)
    return text


@pytest.fixture(autouse=True)
def own_logger() -> Iterator[None]:
    """The loggers are as they were after each test."""
    loggers = (logging.getLogger(LOGGER_NAME), logging.getLogger())
    before = [(list(logger.handlers), logger.level) for logger in loggers]
    yield
    for logger, (handlers, level) in zip(loggers, before, strict=True):
        for added in [handler for handler in logger.handlers if handler not in handlers]:
            logger.removeHandler(added)
        logger.setLevel(level)


def test_nothing_configured_says_nothing(
    capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without any configuration there is no output and no record is built."""
    # pytest puts handlers on the root logger, which an application without logging lacks.
    monkeypatch.setattr(logging.getLogger(), "handlers", [])
    manager = live()
    assert not manager._pool.audit.active()
    assert capfd.readouterr() == ("", "")


def test_only_logging(monkeypatch: pytest.MonkeyPatch) -> None:
    """With ``logging`` configured, each record is one line with its fields attached."""
    text = log_to(None)
    seen: list[logging.LogRecord] = []
    handler = logging.Handler()
    monkeypatch.setattr(handler, "emit", seen.append)
    logging.getLogger(LOGGER_NAME).addHandler(handler)
    live()
    assert [vars(record)["trigger"] for record in seen] == TRIGGERS
    assert [record.levelname for record in seen] == ["DEBUG", "DEBUG", "DEBUG", "INFO"]
    lines = [line for line in text.getvalue().splitlines() if line.startswith("connection.")]
    assert len(lines) == len(TRIGGERS)
    assert "127.0.0.1:19530 PROBING -> ACTIVE (probe_passed)" in lines[2]


@pytest.mark.parametrize("kind", ["logging", "structlog"])
def test_no_record_is_built_for_a_log_that_is_deaf_to_it(
    kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At INFO, what is told at DEBUG (every connect and release) costs no record."""
    built: list[str] = []
    make = recording._record

    def counted(connection: recording.Recorded, event: str, **fields: Any) -> TransitionRecord:
        built.append(event)
        return make(connection, event, **fields)

    monkeypatch.setattr(recording, "_record", counted)
    if kind == "logging":
        monkeypatch.setattr(logging.getLogger(), "handlers", [])
        log_to(None, logging.INFO)
    else:
        structlog.configure(
            wrapper_class=structlog.make_filtering_bound_logger(logging.INFO),
            logger_factory=structlog.ReturnLoggerFactory(),
        )
    live()
    assert built == ["connection.transition"]  # the close


def test_only_structlog() -> None:
    """With structlog configured, each record is one flat event."""
    events: list[dict[str, object]] = []
    _structlog_into(events)
    live()
    assert [event["trigger"] for event in events] == TRIGGERS
    assert events[1]["event"] == "connection.transition"
    assert events[1]["seq"] == 1


def test_both_configured() -> None:
    """With both configured, structlog's configuration holds, and nothing is said twice."""
    text = log_to(None)
    events: list[dict[str, object]] = []
    _structlog_into(events)
    live()
    assert len(events) == len(TRIGGERS)
    assert "connection." not in text.getvalue()


def test_json() -> None:
    """structlog's JSON renderer takes every field as it is."""
    text = io.StringIO()
    structlog.configure(
        processors=[structlog.processors.JSONRenderer()],
        logger_factory=structlog.PrintLoggerFactory(text),
    )
    live()
    parsed = [json.loads(line) for line in text.getvalue().splitlines()]
    assert [event["trigger"] for event in parsed] == TRIGGERS
    assert "sesame" not in text.getvalue()


def test_level_filtered() -> None:
    """What the level filters out is not written: at INFO only the close is left."""
    text = log_to(LOGGER_NAME, logging.INFO)
    live()
    assert [line.split("(")[1].split(")")[0] for line in text.getvalue().splitlines()] == ["close"]
    events: list[dict[str, object]] = []
    _structlog_into(events, structlog.make_filtering_bound_logger(logging.INFO))
    live()
    assert [event["trigger"] for event in events] == ["close"]


def test_capture_logs() -> None:
    """``structlog.testing.capture_logs`` sees the records, with their levels."""
    with structlog.testing.capture_logs() as captured:
        live()
    assert [event["trigger"] for event in captured] == TRIGGERS
    assert [event["log_level"] for event in captured] == ["debug", "debug", "debug", "info"]


def test_reconfigured_later() -> None:
    """A manager follows the configuration of the moment, not that of its creation."""
    manager = ConnectionManager(
        transport=Script().threads(), seams=FakeClock().seams(), sinks=(ApplicationLog(),)
    )
    before = set(threading.enumerate())
    manager.get_or_create(CONFIG)
    _landed(before)
    first: list[dict[str, object]] = []
    _structlog_into(first)
    manager.close_all()
    flush_all(30)
    second: list[dict[str, object]] = []
    _structlog_into(second)
    before = set(threading.enumerate())
    manager.get_or_create(CONFIG)
    _landed(before)
    manager.close_all()
    flush_all(30)
    assert [event["trigger"] for event in first] == ["close"]
    assert [event["trigger"] for event in second] == TRIGGERS


def test_the_applications_context_is_merged_in() -> None:
    """A request id bound with structlog's contextvars stands in the records of its call."""
    events: list[dict[str, object]] = []
    _structlog_into(events)
    with structlog.contextvars.bound_contextvars(request_id="r-7"):
        live()
    assert events[0]["request_id"] == "r-7"


class _Broken(Sink):
    def write(self, record: TransitionRecord, level: int) -> None:
        raise OSError("disk on fire")


def test_a_failing_sink_or_listener_harms_no_call() -> None:
    """Failures are counted, reported once, and never reach the call that caused the record."""
    events: list[dict[str, object]] = []
    _structlog_into(events)
    manager = live(_Broken())
    failures = [reader.failures for reader in manager._pool.audit.readers]
    assert sum(failures) == len(TRIGGERS)
    assert [event["event"] for event in events].count("audit.trouble") == 1


def _structlog_into(events: list[dict[str, object]], wrapper: type | None = None) -> None:
    def keep(_: object, __: str, event: MutableMapping[str, object]) -> NoReturn:
        events.append(dict(event))
        raise structlog.DropEvent

    structlog.configure(processors=[keep], wrapper_class=wrapper)
