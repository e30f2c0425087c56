"""Listeners and log handlers in an outage: whatever they do, no call waits for them."""

from __future__ import annotations

import json
import logging
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import milvus_lifecycle as ml
from tests.flavours import Program
from tests.observe import Call, wait_until
from tests.processes import REPOSITORY, FakeMilvusProcess
from tests.servers import FakeMilvus

pytestmark = pytest.mark.timeout(120)

#: A call that a reader holds up waits for `recovery_budget`, 60 s; one that is served at once,
#: half a second.
SOON = 30.0


def subscribe(program: Program, listener: Callable[[Any], object]) -> None:
    managers = {"threads": ml.ConnectionManager, "asyncio": ml.AsyncConnectionManager}
    program.inside(lambda: managers[program.name].get_instance().subscribe(listener))


class Handler(logging.Handler):
    """A log handler that does something with each record of the engine."""

    def __init__(self, act: Callable[[Any], object]) -> None:
        super().__init__(logging.DEBUG)
        self.emit = act  # type: ignore[method-assign]


@pytest.fixture(params=["listener", "log handler"])
def hear(request: pytest.FixtureRequest, program: Program) -> Iterator[Callable[..., None]]:
    """Have something called for each record: by the engine, or by the program's own logging."""
    logger = logging.getLogger("milvus_lifecycle")
    before = (list(logger.handlers), logger.level, logger.propagate)

    def begin(act: Callable[[Any], object]) -> None:
        if request.param == "listener":
            subscribe(program, act)
            return
        logger.addHandler(Handler(act))
        logger.setLevel(logging.DEBUG)
        logger.propagate = False

    yield begin
    logger.handlers[:], logger.level, logger.propagate = before
    logging.getLogger("milvus_lifecycle").manager._clear_cache()  # type: ignore[attr-defined]


def ride(program: Program, server: FakeMilvus, client: Any) -> list[Call]:
    """Four calls in an outage of a second, each of them served soon after it."""
    server.stop()
    calls = [Call(client.list_collections) for _ in range(4)]
    time.sleep(1)
    server.start()
    assert wait_until(lambda: all(call.done for call in calls), SOON), "calls are held up"
    assert [call.error for call in calls] == [None] * 4
    return calls


def test_one_that_calls_the_client_that_it_hears_of(
    program: Program, server: FakeMilvus, hear: Callable[..., None]
) -> None:
    """Its call waits like everybody's, and is served like everybody's."""
    client = program.client(server.uri)
    client.list_collections()
    answers: list[object] = []

    def act(record: Any) -> None:
        if len(answers) < 2:
            answers.append("asked")
            answers[-1] = client.list_collections()

    hear(act)
    ride(program, server, client)
    assert wait_until(lambda: answers == [["demo"]] * 2, SOON), answers


def test_one_that_hangs(program: Program, server: FakeMilvus, hear: Callable[..., None]) -> None:
    """Two outages pass it by; when it goes on, it hears of them all, in order."""
    client = program.client(server.uri)
    client.list_collections()
    go_on = threading.Event()
    heard: list[str] = []

    def act(record: Any) -> None:
        go_on.wait(60)
        if record.trigger != "retry":
            heard.append(record.trigger)

    hear(act)
    for _ in range(2):
        ride(program, server, client)
        assert heard == [], "it was waited for"
    go_on.set()
    assert wait_until(lambda: len(heard) == 4, SOON), heard
    assert heard == ["fail", "recovered", "fail", "recovered"]


@pytest.fixture
def server() -> Iterator[FakeMilvus]:
    with FakeMilvus() as fake:
        yield fake


_PROGRAM = """
import os, sys, time
import milvus_lifecycle as ml
from tests.flavours import Flavour
from tests.processes import ask_child
name, uri, path, what = sys.argv[1:]
ml.install(audit=path)
flavour = Flavour(name)
client = flavour.client(uri)
manager = {"threads": ml.ConnectionManager, "asyncio": ml.AsyncConnectionManager}[name]
hear = {"hangs": lambda record: time.sleep(1000), "slow": lambda record: time.sleep(0.01)}[what]
flavour.inside(lambda: manager.get_instance().subscribe(hear))
for _ in range(20):
    flavour.wait(flavour.inside(manager.get_instance).close_all())
    client.list_collections()
if what == "slow" and name == "threads":
    assert ask_child(client.list_collections, 20) == "['demo']"
print(os.getpid(), flush=True)
"""


@pytest.mark.parametrize("what", ["slow", "hangs"])
@pytest.mark.parametrize("name", ["threads", "asyncio"])
def test_the_end_of_the_process(name: str, what: str, tmp_path: Path) -> None:
    """The audit file has every record, each once, whatever other readers and children do."""
    path = tmp_path / "audit.jsonl"
    with FakeMilvusProcess() as server:
        ended = subprocess.run(
            [sys.executable, "-c", _PROGRAM, name, server.uri, str(path), what],
            cwd=REPOSITORY,
            capture_output=True,
            text=True,
            timeout=60,
        )
    assert ended.returncode == 0, ended.stderr
    records = [json.loads(line) for line in path.read_text().splitlines()]
    own = [r for r in records if r.get("pid") == int(ended.stdout) and r["seq"] is not None]
    seen = [(record["connection_id"], record["seq"]) for record in own]
    assert len(seen) == len(set(seen))
    # Each of the 20 times: created, connected in two steps, closed.
    assert sum(record["event"] == "connection.created" for record in own) == 21
    assert sum(record["dest"] == "CLOSED" for record in own) >= 20
    for identity in {identity for identity, _ in seen}:
        numbers = [seq for connection, seq in seen if connection == identity]
        assert numbers == list(range(len(numbers))), "a gap"
