"""What all tests share: servers, certificates, who is left over, and which skips are allowed."""

from __future__ import annotations

import os
import signal
import sys
import tempfile
import threading
from collections.abc import Callable, Generator, Iterator
from pathlib import Path
from typing import Any, TypeVar

import pytest
from hypothesis import HealthCheck, settings
from hypothesis.configuration import set_hypothesis_home_dir

import milvus_lifecycle
from tests.network import TcpProxy
from tests.servers import FakeMilvus, TlsFiles, make_tls_files
from tests.simulation.summary import summarize

# Two workers share two cores with servers: how long an example takes says nothing.
settings.register_profile("here", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("here")
# Hypothesis keeps what it read of the source files: not in here.
set_hypothesis_home_dir(Path(tempfile.gettempdir()) / "hypothesis-of-milvus-lifecycle")

#: Why a test may be skipped in CI, by how the reason begins. Any other skip fails there: what CI
#: does not run, nobody runs.
ALLOWED_SKIPS = {
    "MILVUS_LIFECYCLE_SEARCH is not set": "a deeper search takes hours: by hand",
    "asyncio.timeout and TaskGroup came with Python 3.11": "3.10 is supported, too",
    "grpc.aio can start no thread at the exit of Python 3.12": "other Pythons run it",
    "grpcio before 1.84 hangs or aborts in the child of a process": "newer ones run it",
    "no mount namespace to be had": "containers may be refused one",
    "no chromium": "`.ci/run` installs it where it may, and says so where not",
    "no prometheus": "the same",
}

Report = TypeVar("Report", pytest.TestReport, pytest.CollectReport)


def pytest_configure(config: pytest.Config) -> None:
    if "TOX_ENV_DIR" in os.environ:
        found = Path(milvus_lifecycle.__file__).parent
        if not found.is_relative_to(sys.prefix):
            raise pytest.UsageError(f"tox tests the wheel that it has installed, and not {found}")
        if found.with_name("tests").exists():
            raise pytest.UsageError("the wheel holds more than the package: tests")
    # A run in the background ignores Ctrl-C, and so would every process that a test interrupts.
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    config.addinivalue_line(
        "markers", "policy(**fields): the LifecyclePolicy that the engine fixture installs"
    )


def _judge_skip(report: Report) -> Report:
    """In CI (`.ci/run` sets the variable) a skip that is not allowed is a failure."""
    if report.skipped and "MILVUS_LIFECYCLE_CI" in os.environ:
        said = report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr)
        if not said.removeprefix("Skipped: ").startswith(tuple(ALLOWED_SKIPS)):
            report.outcome = "failed"
            report.longrepr = f"{said}: not in ALLOWED_SKIPS of tests/conftest.py"
    return report


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport() -> Generator[None, pytest.TestReport, pytest.TestReport]:
    return _judge_skip((yield))


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report() -> Generator[None, pytest.CollectReport, pytest.CollectReport]:
    return _judge_skip((yield))


def pytest_terminal_summary(terminalreporter: Any) -> None:
    summarize(terminalreporter)


@pytest.fixture
def server() -> Iterator[FakeMilvus]:
    """A scriptable Milvus in this process."""
    with FakeMilvus() as fake:
        yield fake


@pytest.fixture
def proxy(server: FakeMilvus) -> Iterator[TcpProxy]:
    """A TCP proxy in front of `server`."""
    with TcpProxy(server.port) as between:
        yield between


@pytest.fixture
def tls_files(tmp_path: Path) -> TlsFiles:
    """Certificates for localhost by an authority that nobody knows."""
    return make_tls_files(tmp_path)


@pytest.fixture
def new_threads() -> Callable[[], set[str]]:
    """Names of the threads that were started since the test began and still run."""
    before = set(threading.enumerate())
    return lambda: {thread.name for thread in threading.enumerate() if thread not in before}
