"""Fixtures that all tests share: servers, certificates, and who is left over."""

from __future__ import annotations

import os
import signal
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

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


def pytest_configure(config: pytest.Config) -> None:
    found = milvus_lifecycle.__file__
    if "TOX_ENV_DIR" in os.environ and not found.startswith(sys.prefix):
        raise pytest.UsageError(f"tox tests the wheel that it has installed, and not {found}")
    # A run in the background ignores Ctrl-C, and so would every process that a test interrupts.
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    config.addinivalue_line(
        "markers", "policy(**fields): the LifecyclePolicy that the engine fixture installs"
    )


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
