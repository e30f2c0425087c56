"""Listeners, log handlers and audit files that are slow, hang, or call the client they hear of."""

from __future__ import annotations

import json
import logging
import os
import re
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

import milvus_lifecycle as ml
from tests import inside
from tests.flavours import Program
from tests.observe import Call, LogLines, wait_until
from tests.processes import REPOSITORY, FakeMilvusProcess, ask_child
from tests.servers import FakeMilvus, every_other
from tests.stock import FORK_POLLER, Env, Kind, defect, run, verdict

pytestmark = pytest.mark.timeout(120)

#: A call that nobody keeps waiting is served well within this (seconds), and within the budget.
SOON = 15.0


class _Heard(LogLines):
    """Has every record of the engine's log heard."""

    def __init__(self, hear: Callable[[str], object]) -> None:
        super().__init__(logger="milvus_lifecycle")
        self._hear = hear

    def emit(self, record: logging.LogRecord) -> None:
        self._hear(record.getMessage())


@pytest.mark.policy(recovery_budget=40.0)
@pytest.mark.parametrize("reader", ["listener", "log handler"])
def test_a_reader_calls_the_client_that_it_hears_of(
    program: Program, server: FakeMilvus, reader: str
) -> None:
    """It waits for the end of the outage as everybody does, and nobody waits for it."""
    client = program.client(server.uri)
    client.list_collections()
    answers: list[Any] = []

    def hear(news: object) -> None:
        answers.append(client.list_collections())

    unsubscribe = program.subscribe(hear) if reader == "listener" else lambda: None
    with _Heard(hear if reader == "log handler" else lambda news: None):
        server.stop()
        calls = [Call(client.list_collections) for _ in range(4)]
        assert program.saw("retry")
        server.start()
        assert [call.value(SOON) for call in calls] == [["demo"]] * 4
        wait_until(lambda: answers, SOON)
        unsubscribe()
    assert answers[0] == ["demo"]


@pytest.mark.policy(recovery_budget=40.0)
def test_a_log_handler_that_hangs_costs_records(
    program: Program, server: FakeMilvus, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No call waits for it, and once it goes on it is told how many records it missed, and where.

    Other readers miss none.
    """
    monkeypatch.setattr(*inside.records_that_may_wait(5))
    server.on("ShowCollections", every_other)
    go, lines = threading.Event(), list[str]()

    def hear(line: str) -> None:
        go.wait(60)
        lines.append(line)

    client = program.client(server.uri)
    client.list_collections()
    inside.flush_records()
    before = len(program.heard)
    with _Heard(hear):
        for _ in range(6):
            assert Call(client.list_collections).value(SOON) == ["demo"]
            wait_until(lambda: program.seen()[-1] == "recovered", SOON)
        happened = len(program.heard) - before
        go.set()
        wait_until(lambda: lines and "missed" in lines[-1], SOON)
        client.list_collections()
        wait_until(lambda: "(recovered)" in lines[-1], SOON)
    # One in the handler's hands and five that wait; then what it missed, and the last call.
    missed = [re.findall(r"it missed (\d+) records", line) for line in lines]
    assert missed == [*[[]] * 6, [str(happened - 6)], [], []]


def test_an_audit_file_that_hangs(
    server: FakeMilvus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Calls and uninstall go on without it; it says itself how many records are missing."""
    monkeypatch.setattr(*inside.records_that_may_wait(5))
    path = tmp_path / "audit.jsonl"
    os.mkfifo(path)  # who opens it for writing waits until somebody reads
    ml.install(audit=str(path))
    program = Program("threads")
    try:
        server.on("ShowCollections", every_other)
        client = program.client(server.uri)
        for _ in range(6):
            assert Call(client.list_collections).value(SOON) == ["demo"]
        Call(ml.uninstall).value(SOON)
    finally:
        reading = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
        program.end()
        ml.uninstall()
    written = b""

    def lost() -> int:
        nonlocal written
        with suppress(BlockingIOError):  # nothing new
            written += os.read(reading, 65536)
        records = [json.loads(line) for line in written.splitlines()]
        return sum(record["count"] for record in records if "count" in record)

    wait_until(lost, SOON)
    missed = lost()
    os.close(reading)
    assert (written.count(b'"seq":'), missed) == (6, len(program.heard) - 6)


_LEAVE = """
import logging, sys, threading, time
import milvus_lifecycle as ml
case, uri, path = sys.argv[1:]
class Handler(logging.Handler):
    def emit(self, record):
        if case == "hangs":
            threading.Event().wait()
        time.sleep(0.01)
        print(record.getMessage(), flush=True)
logging.getLogger("milvus_lifecycle").addHandler(Handler())
logging.getLogger("milvus_lifecycle").setLevel(logging.DEBUG)
ml.install(audit=path)
from pymilvus import MilvusClient
client = MilvusClient(uri)
for _ in range(4):
    client.list_collections()
"""


@pytest.mark.parametrize("case", ["slow", "hangs"])
def test_records_are_flushed_at_exit(case: str, tmp_path: Path) -> None:
    """A process that ends just after a transition tells all, to those who listen."""
    path = tmp_path / "audit.jsonl"
    with FakeMilvusProcess(flaky=["ShowCollections"]) as server:
        command = [sys.executable, "-c", _LEAVE, case, server.uri, str(path)]
        done = subprocess.run(
            command, cwd=REPOSITORY, capture_output=True, text=True, timeout=100, check=False
        )
    assert (done.returncode, "Traceback" in done.stderr) == (0, False), done.stderr
    records = [json.loads(line) for line in path.read_text().splitlines()]
    assert [record["seq"] for record in records] == list(range(len(records)))
    assert [record["trigger"] for record in records[-3:]] == ["fail", "recovered", "close"]
    assert len(records) == 3 + 4 * 2 + 1
    assert len(done.stdout.splitlines()) == (0 if case == "hangs" else len(records))


@defect(environment=FORK_POLLER)
def a_child_tells_its_own_story(env: Env) -> None:
    """Forked while a reader is busy: no record of the parent's comes twice, none of the child's
    is missing."""
    path = env.folder() / "audit.jsonl"
    ml.uninstall()
    ml.install(audit=str(path))
    server = env.enter(FakeMilvusProcess(flaky=["ShowCollections"]))
    manager, told = env.manager(), Counter[tuple[int, str, int]]()

    def slow(record: Any) -> None:
        time.sleep(0.05)
        told[record.pid, record.connection_id, record.seq] += 1

    manager.subscribe(slow)
    client = env.client(server.uri)
    client.list_collections()

    def in_child() -> object:
        told.clear()
        client.list_collections()
        inside.flush_records(20)
        return client.list_collections(), sorted({pid == os.getpid() for pid, _, _ in told})

    said = [ask_child(in_child, 30) for _ in range(3)]
    client.list_collections()
    inside.flush_records(20)
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    stories = Counter((line["pid"], line["connection_id"], line["seq"]) for line in lines)
    gaps = [key for key in stories if key[2] > 1 and (*key[:2], key[2] - 1) not in stories]
    once = {*stories.values(), *told.values()} == {1}
    children = len({line["pid"] for line in lines}) - 1
    verdict(
        said == ["(['demo'], [True])"] * 3 and once and not gaps and children == 3,
        f"{said}, {children} children, gaps {gaps}, {stories}",
    )


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system cannot fork")
def test_fork() -> None:
    """The body's promise about forked children holds on the engine."""
    outcome = run("engine", a_child_tells_its_own_story)
    assert outcome.kind is Kind.PASSED, str(outcome)
