"""The engine's own log, written while things go wrong, replays through the table."""

from __future__ import annotations

import json
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest

import milvus_lifecycle as ml
from milvus_lifecycle.replay.files import find_sources, read_records
from milvus_lifecycle.replay.findings import Problems
from milvus_lifecycle.replay.records import Created, Transition
from milvus_lifecycle.replay.stats import fold_stats
from milvus_lifecycle.replay.verify import verify_logs
from tests.network import TcpProxy
from tests.observe import Call, wait_until

pytestmark = pytest.mark.timeout(90)


@pytest.fixture
def audited(tmp_path: Path) -> Iterator[str]:
    """The engine with JSON lines in a file; returns the file's name."""
    path = tmp_path / "audit.jsonl"
    ml.install(policy=ml.LifecyclePolicy(probe_timeout=2.0), audit=str(path))
    try:
        yield str(path)
    finally:
        ml.uninstall()


def lines_with(path: str, trigger: str) -> int:
    return Path(path).read_text().count(f'"trigger":"{trigger}"') if Path(path).exists() else 0


def has_more(path: str, trigger: str, than: int) -> bool:
    return lines_with(path, trigger) > than


def ride_through(audited: str, proxy: TcpProxy, outages: int) -> None:
    """A client whose server goes away and comes back, several times."""
    from pymilvus import MilvusClient

    client: Any = MilvusClient(proxy.uri)
    for _ in range(outages):
        client.list_collections()
        failed = lines_with(audited, "retry")
        proxy.set_mode("refuse", cut=True)
        call = Call(client.list_collections, timeout=20)
        wait_until(partial(has_more, audited, "retry", failed), 20)
        proxy.set_mode("pass", cut=True)
        assert call.value(30) is not None
    client.close()


def test_a_log_of_outages_is_legal(audited: str, proxy: TcpProxy) -> None:
    """What the engine writes while a server comes and goes verifies clean, line by line."""
    ride_through(audited, proxy, outages=3)
    ml.uninstall()
    verdict = verify_logs([audited])
    assert [problem.text for problem in verdict.problems.kept] == []
    assert (verdict.exit_code, verdict.connections) == (0, 1)
    problems = Problems(10)
    stats = fold_stats(read_records(find_sources([audited], problems), problems))
    assert (stats.total.outages, stats.total.recoveries) == (3, 3)
    assert sum(incident.outages for incident in stats.incidents) == 3
    assert {incident.connections for incident in stats.incidents} == {1}


def test_every_field_of_a_record_is_read(audited: str, proxy: TcpProxy) -> None:
    """The reader's types and the writer's agree: nothing is dropped, nothing changes."""
    ride_through(audited, proxy, outages=1)
    ml.uninstall()
    written = [json.loads(line) for line in Path(audited).read_text().splitlines()]
    read = list(read_records(find_sources([audited], Problems(0)), Problems(10)))
    assert len(read) == len(written) > 5
    for fields, record in zip(written, read, strict=True):
        assert isinstance(record, (Transition, Created))
        for name, value in fields.items():
            if name not in ("event", "ts"):
                assert getattr(record, name) == value, name
        assert record.ts.isoformat(timespec="microseconds") == fields["ts"]
