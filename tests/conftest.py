"""Fixtures that all tests share: the installed engine, with its records and its clients."""

from __future__ import annotations

import signal
import tempfile
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from hypothesis.configuration import set_hypothesis_home_dir

from milvus_lifecycle.testing import CapturedAudit
from tests.network import TcpProxy
from tests.observe import wait_until
from tests.servers import FakeMilvus, TlsFiles, make_tls_files
from tests.simulation.summary import summarize

# Two workers share two cores with servers: how long an example takes says nothing.
settings.register_profile("here", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("here")
# Hypothesis keeps what it read of the source files: not in here.
set_hypothesis_home_dir(Path(tempfile.gettempdir()) / "hypothesis-of-milvus-lifecycle")


def pytest_configure(config: pytest.Config) -> None:
    # A run in the background ignores Ctrl-C, and so would every process that a test interrupts.
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    config.addinivalue_line(
        "markers", "policy(**fields): the LifecyclePolicy that the engine fixture installs"
    )


def pytest_terminal_summary(terminalreporter: Any) -> None:
    summarize(terminalreporter)


class Engine:
    """The engine as a test sees it: unmodified clients, public names, and the audit records."""

    def __init__(self) -> None:
        import milvus_lifecycle as ml

        self.manager: Any = ml.ConnectionManager.get_instance()
        self.audit = CapturedAudit(self.manager)
        self.clients: list[Any] = []

    @property
    def records(self) -> list[Any]:
        """Every record so far."""
        return self.audit.records

    def client(self, uri: str, **options: Any) -> Any:
        """An unmodified MilvusClient, kept alive until the test's end."""
        from pymilvus import MilvusClient

        client = MilvusClient(uri, **options)
        self.clients.append(client)
        return client

    def config(self, uri: Any, **options: Any) -> Any:
        from pymilvus.client.connection_manager import ConnectionConfig

        return ConnectionConfig.from_uri(uri, **options)

    def stats(self) -> dict[str, Any]:
        stats: dict[str, Any] = self.manager.get_stats()
        return stats

    def transitions(self, trigger: str | None = None) -> list[Any]:
        """The records of state changes so far, all or those of one trigger."""
        return [
            record
            for record in list(self.records)
            if record.event == "connection.transition" and trigger in (None, record.trigger)
        ]

    def saw(self, trigger: str, limit: float = 10.0) -> bool:
        """Whether a transition by this trigger is recorded within `limit` seconds."""
        return wait_until(lambda: self.transitions(trigger), limit)


@pytest.fixture
def engine(request: pytest.FixtureRequest) -> Iterator[Engine]:
    """The engine, installed with the policy of the test's `policy` marker."""
    import milvus_lifecycle as ml

    marker = request.node.get_closest_marker("policy")
    ml.install(policy=ml.LifecyclePolicy(**(marker.kwargs if marker else {})))
    try:
        yield Engine()
    finally:
        ml.uninstall()


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
