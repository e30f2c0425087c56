"""OpenTelemetry on real servers: Prometheus's format, the dashboard, `opentelemetry-instrument`."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from http import HTTPStatus
from pathlib import Path
from typing import Any
from urllib.error import HTTPError, URLError
from urllib.parse import urlencode

import pytest
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.samples import Sample
from pymilvus import MilvusClient

import milvus_lifecycle as ml
from milvus_lifecycle.integrations.otel import Instrumentor, OpenTelemetry
from milvus_lifecycle.managers import NO_HOOKS, Settings
from tests.flavours import Flavour
from tests.network import free_port
from tests.observe import Call, wait_until
from tests.processes import REPOSITORY, FakeMilvusProcess
from tests.servers import FakeMilvus

pytestmark = pytest.mark.timeout(90)

DOCS = REPOSITORY / "docs"
PAGE = (DOCS / "operations.md").read_text(encoding="utf-8")
(SECTION,) = re.findall(r"^## Metrics and traces$.*?^## ", PAGE, re.S | re.M)
DASHBOARD = (DOCS / "grafana.json").read_text(encoding="utf-8")
LABEL = "db_client_connection_pool_name"
PROGRAMS = re.findall(r"```python\n(.*?)```", SECTION, re.S)


@pytest.fixture(autouse=True)
def uninstalled() -> Iterator[None]:
    """Whatever a test installs is taken away again."""
    yield
    ml.uninstall()


class Prometheus:
    """What is printed at the port of the docs' program, which is this one's here."""

    def __init__(self) -> None:
        self.port = free_port()
        self.names: dict[str, Any] = {}
        exec(PROGRAMS[1].replace("9464", str(self.port)), self.names)

    def samples(self) -> list[Sample]:
        """All that is said of connections."""
        url = f"http://127.0.0.1:{self.port}/metrics"
        with urllib.request.urlopen(url, timeout=10) as answer:
            families = text_string_to_metric_families(answer.read().decode())
        samples = [sample for family in families for sample in family.samples]
        return [sample for sample in samples if LABEL in sample.labels]

    def scrape(self) -> dict[str, dict[str, float]]:
        """The values of a metric by those of its labels, but for address and scope."""
        found: dict[str, dict[str, float]] = {}
        for sample in self.samples():
            labels = sorted(sample.labels.items())
            kept = (value for name, value in labels if name != LABEL and "_scope_" not in name)
            found.setdefault(sample.name, {})[" ".join(kept)] = sample.value
        return found

    def close(self) -> None:
        self.names["provider"].shutdown()
        self.names["server"].shutdown()
        self.names["server"].server_close()
        self.names["thread"].join(10)


@pytest.fixture
def prometheus() -> Iterator[Prometheus]:
    """The program of the docs."""
    running = Prometheus()
    yield running
    running.close()


@pytest.mark.slow
def test_what_prometheus_sees(flavour: Flavour, prometheus: Prometheus) -> None:
    """A server that is killed and comes back, while it is away and after it.

    The docs name what is printed, all of it; and the dashboard asks for nothing else.
    """
    with FakeMilvusProcess() as server:
        client = flavour.connected(server.uri)
        server.kill()
        call = Call(client.list_collections)
        wait_until(
            lambda: prometheus.scrape().get("db_client_connection_pending_requests") == {"": 1.0},
            30,
        )
        away = prometheus.scrape()
        assert away["milvus_client_connection_down"] == {"": 1.0}
        assert away["db_client_connection_count"] == {"idle": 0.0, "used": 1.0}
        server.start()
        call.value(60)
        client.close()
    stays = "milvus_client_connection_state_duration_seconds_sum"
    # The listener may be behind the call; this is what it counts last.
    used = "db_client_connection_use_time_seconds_count"
    wait_until(lambda: used in prometheus.scrape(), 30)
    now = prometheus.scrape()
    assert now["db_client_connection_pending_requests"] == {"": 0.0}
    assert now["milvus_client_connection_down"] == {"": 0.0}
    assert now["db_client_connection_create_time_seconds_count"] == {"": 1.0}
    assert now["db_client_connection_wait_time_seconds_count"] == {"": 2.0}  # the connect, too
    assert now["db_client_connection_timeouts_total"] == {"": 0.0}
    assert now["db_client_connection_use_time_seconds_count"] == {"": 1.0}
    assert now["milvus_client_connection_recoveries_total"]["fail recovered"] == 1.0
    assert now["milvus_client_connection_outage_duration_seconds_count"] == {"": 1.0}
    assert "0.001" in now["db_client_connection_create_time_seconds_bucket"]
    assert "3600.0" in now["milvus_client_connection_outage_duration_seconds_bucket"]
    lasted = now["milvus_client_connection_outage_duration_seconds_sum"][""]
    assert call.elapsed is not None
    assert 0 < lasted < call.elapsed
    assert now[stays]["RECOVERING"] == pytest.approx(lasted)

    printed = prometheus.samples()
    named = set(re.findall(r"^\| `\S+` \| `(\S+)` \|", SECTION, re.M))
    of_histograms = {f"{name}_{part}" for name in named for part in ("bucket", "count", "sum")}
    assert set(now) <= named | of_histograms
    assert all(name in now or f"{name}_bucket" in now for name in named)
    known = set(now).union(*(sample.labels for sample in printed))
    asked = re.findall(r"\b(?:db|milvus)_client_\w+", DASHBOARD)
    assert set(asked) <= known
    assert len(set(asked) & set(now)) >= 9


#: What Grafana puts in, and a time in which a test is over.
VARIABLES = {
    "$__rate_interval": "1m",
    "$__range": "1m",
    "$__interval_ms": "1000",
    "$__interval": "1s",
    "$pool": ".*",
}


class RealPrometheus:
    """A server that scrapes twice a second."""

    def __init__(self, folder: Path, port: int) -> None:
        scrape = {"job_name": "test", "static_configs": [{"targets": [f"127.0.0.1:{port}"]}]}
        (folder / "config.yml").write_text(
            json.dumps({"global": {"scrape_interval": "500ms"}, "scrape_configs": [scrape]})
        )
        address = f"127.0.0.1:{free_port()}"
        self._url = f"http://{address}/api/v1/query?"
        self._process = subprocess.Popen(
            [
                "prometheus",
                f"--config.file={folder}/config.yml",
                f"--storage.tsdb.path={folder}/data",
                f"--web.listen-address={address}",
            ],
            stderr=subprocess.DEVNULL,
        )

    def ask(self, query: str) -> dict[str, float]:
        """The values of a query by those of its labels; none while the server comes up."""
        for name, value in VARIABLES.items():
            query = query.replace(name, value)
        try:
            url = self._url + urlencode({"query": query})
            with urllib.request.urlopen(url, timeout=10) as answer:
                found = json.load(answer)["data"]["result"]
        except URLError as error:
            if isinstance(error, HTTPError) and error.code != HTTPStatus.SERVICE_UNAVAILABLE:
                raise AssertionError(f"{query}: {error.read().decode()}") from error
            return {}
        return {" ".join(sorted(one["metric"].values())): float(one["value"][1]) for one in found}

    def close(self) -> None:
        self._process.kill()
        self._process.wait(10)


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("prometheus") is None, reason="no prometheus")
def test_the_dashboard_on_a_real_prometheus(
    server: FakeMilvus, prometheus: Prometheus, tmp_path: Path
) -> None:
    """It understands every query, and the first outage of a process is seen in each of them."""
    real = RealPrometheus(tmp_path, prometheus.port)
    queries = {
        f"{panel['title']} {target['refId']}": target["expr"]
        for panel in json.loads(DASHBOARD)["panels"]
        for target in panel["targets"]
    }

    def shows(place: str, value: str) -> float:
        """A value of a panel. Under load a scrape may fail, and then there is none."""
        return real.ask(queries[place]).get(value, -1.0)

    try:
        client = MilvusClient(server.uri)
        wait_until(lambda: shows("Connections down now A", "") == 0, 30)
        server.stop()
        call = Call(client.list_collections)
        wait_until(lambda: shows("Connections down now A", "") == 1, 30)
        wait_until(lambda: shows("Time in each state A", "RECOVERING") > 0, 30)
        server.start()
        call.value(60)
        wait_until(lambda: all(map(real.ask, queries.values())), 30)
        wait_until(lambda: shows("Outages A", "") > 0, 30)
        wait_until(lambda: shows("Recoveries A", "fail recovered") > 0, 30)
        wait_until(lambda: shows("Connections down now A", "") == 0, 30)
    finally:
        real.close()


def test_the_other_program_of_the_docs_is_told_once(server: FakeMilvus) -> None:
    """Its install may be called again: its listener is the same."""
    for _ in range(2):
        exec(PROGRAMS[0])
    assert ml.status()["installed"]


def test_a_program_that_is_instrumented_keeps_the_listener(server: FakeMilvus) -> None:
    """Whatever it installs itself; one that had installed something already is told."""
    metrics = InMemoryMetricReader()
    provider = MeterProvider([metrics], shutdown_on_exit=False)

    def recorded() -> bool:
        data = metrics.get_metrics_data()
        scopes = data.resource_metrics[0].scope_metrics if data else ()
        names = {metric.name for scope in scopes for metric in scope.metrics}
        return "db.client.connection.create_time" in names

    Instrumentor().instrument(meter_provider=provider)
    heard: list[Any] = []
    ml.install(ml.LifecyclePolicy(), listeners=[heard.append])
    ml.install(ml.LifecyclePolicy(), listeners=[heard.append, OpenTelemetry(provider)])  # the same
    MilvusClient(server.uri).list_collections()
    wait_until(recorded, 30)
    assert heard
    with pytest.raises(RuntimeError, match="give this to its install"):
        Instrumentor().instrument()
    Instrumentor().uninstrument()
    assert not ml.status()["installed"]
    ml.install()
    assert Settings.current().hooks == NO_HOOKS


_PROGRAM = """
import milvus_lifecycle, sys
from pymilvus import MilvusClient
assert milvus_lifecycle.status()["installed"]
milvus_lifecycle.install(milvus_lifecycle.LifecyclePolicy(linger=1.0))
client = MilvusClient(sys.argv[1])
print(client.list_collections(), client.list_collections())
"""


@pytest.mark.slow
def test_opentelemetry_instrument_finds_the_engine(server: FakeMilvus, tmp_path: Path) -> None:
    """A program that knows of no OpenTelemetry has its metrics and its recovery exported."""
    program = tmp_path / "app.py"
    program.write_text(_PROGRAM)
    server.fail_next("ShowCollections")
    command = Path(sys.executable).with_name("opentelemetry-instrument")
    console = ("--metrics_exporter", "console", "--traces_exporter", "console")
    ran = subprocess.run(
        [command, *console, "--logs_exporter", "none", sys.executable, program, server.uri],
        capture_output=True,
        text=True,
        timeout=60,
        cwd=REPOSITORY,
    )
    assert ran.returncode == 0, ran.stderr
    assert ran.stderr == ""
    assert "['demo'] ['demo']" in ran.stdout
    exported = set(re.findall(r'"name": "((?:db|milvus)\.client\.\S+?)"', ran.stdout))
    assert exported >= {
        "milvus.client.connection.recovery",  # the span
        "milvus.client.connection.recoveries",
        "db.client.connection.create_time",
    }
