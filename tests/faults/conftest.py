"""Marks everything in this folder as long, and prints its figures at the end."""

from __future__ import annotations

import logging
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.faults.leftovers import warm_up
from tests.faults.servers import SERVERS, Server

_HERE = Path(__file__).parent


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if _HERE in item.path.parents:
            item.add_marker(pytest.mark.long)


@pytest.fixture(scope="session", autouse=True)
def warm() -> None:
    """What gRPC opens once and keeps is no leftover of the first fault."""
    if int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1")) > 1:
        pytest.fail("the faults need the machine for themselves: pytest -m long -n 0")
    # It logs a traceback for each failed attempt.
    logging.getLogger("pymilvus").setLevel(logging.CRITICAL)
    warm_up()


@pytest.fixture(scope="session")
def running(request: pytest.FixtureRequest) -> Iterator[Server]:
    """A real server of the kind asked for; one at a time, for all tests that want it."""
    # Not pytest's folder, which outlives the run: Milvus writes some hundred megabytes.
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        server: Server = SERVERS[request.param](Path(folder))
        server.name = request.param
        with server:
            yield server


@pytest.fixture
def server(running: Server) -> Server:
    """The running server, whatever the test before did to it."""
    running.ensure()
    running.wait_ready()
    return running


def pytest_terminal_summary(terminalreporter: Any) -> None:
    lines = [
        str(value)
        for reports in ("passed", "failed")
        for report in terminalreporter.stats.get(reports, [])
        for name, value in getattr(report, "user_properties", ())
        if name == "fault"
    ]
    if lines:
        terminalreporter.section("faults")
        for line in lines:
            terminalreporter.write_line(line)
