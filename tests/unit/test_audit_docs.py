"""``docs/audit.md``: the schema is complete, and every query of it runs and tells the truth."""

from __future__ import annotations

import dataclasses
import gzip
import re
from pathlib import Path
from typing import Any

import pytest

from milvus_lifecycle.audit import TransitionRecord
from milvus_lifecycle.replay.problems import Kind
from milvus_lifecycle.replay.records import EVENTS, convert
from milvus_lifecycle.replay.stats import fold_stats
from milvus_lifecycle.replay.synthetic import synthetic_records
from tests.audit_logs import Story, merged, write_log
from tests.corruption import Fields, encode, join

PAGE = (Path(__file__).parents[2] / "docs" / "audit.md").read_text(encoding="utf-8")
QUERIES = dict(re.findall(r"<!-- query: (\w+) -->\n```sql\n(.*?)```", PAGE, re.S))


def ask(folder: Path, records: list[Fields], query: str) -> list[tuple[Any, ...]]:
    """The answer of one of the page's queries over a log in two files, one compressed."""
    duckdb = pytest.importorskip("duckdb", reason="duckdb is not installed")
    (folder / "audit").mkdir(exist_ok=True)
    half = len(records) // 2
    old = join([encode(record) for record in records[:half]])
    (folder / "audit" / "log.jsonl.1.gz").write_bytes(gzip.compress(old, 1))
    write_log(folder / "audit" / "log.jsonl", records[half:])
    connection = duckdb.connect()
    for view in ("records", "flights"):
        connection.execute(QUERIES[view].replace("audit/*", f"{folder}/audit/*"))
    answer: list[tuple[Any, ...]] = connection.execute(QUERIES[query]).fetchall()
    return answer


@pytest.fixture(scope="module")
def log() -> list[Fields]:
    return list(synthetic_records(20_000, seed=13, connections=60))


def test_every_field_and_event_is_documented() -> None:
    """The page's schema is the record's."""
    documented = re.findall(r"^\| `(\w+)` \| [^|]+ \| ", PAGE, re.M)
    assert documented == [field.name for field in dataclasses.fields(TransitionRecord)]
    assert all(f"`{event}`" in PAGE for event in EVENTS)


def test_every_kind_of_finding_is_documented() -> None:
    """Whatever ``verify`` prints can be looked up."""
    assert [kind for kind in Kind if f"`{kind}`" not in PAGE] == []


def test_there_are_queries() -> None:
    """The extraction found them: views, and at least five questions."""
    assert {"records", "flights"} < set(QUERIES)
    assert len(QUERIES) >= 7
    assert PAGE.count("```sql") == len(QUERIES)


@pytest.mark.parametrize("name", [name for name in QUERIES if name not in ("records", "flights")])
def test_every_query_runs(name: str, log: list[Fields], tmp_path: Path) -> None:
    """No query of the page has an error in it."""
    answer = ask(tmp_path, log, name)
    assert answer or name in ("gaps", "broken", "flapping")


def test_failover_times_are_those_of_stats(log: list[Fields], tmp_path: Path) -> None:
    """The query and ``audit stats`` agree on every endpoint's recoveries."""
    stats = fold_stats(convert(record) for record in log)
    expected = {}
    for address, figures in stats.endpoints.items():
        times = figures.recovery_quantiles()
        if times["p50"] is not None and times["p95"] is not None and times["max"] is not None:
            rounded = [round(times[which] or 0.0, 3) for which in ("p50", "p95", "max")]
            expected[address] = (len(figures.recovery_times), *rounded)
    answer = {row[0]: row[1:5] for row in ask(tmp_path, log, "failover")}
    assert set(answer) == set(expected)
    for address, row in answer.items():
        assert row == pytest.approx(expected[address], abs=0.0011), address


def test_flapping_finds_the_connection_that_flaps(tmp_path: Path) -> None:
    """Three failures in ten minutes are found, two are not."""
    stories = (
        Story("flaps").connect().outage(5, 1).outage(5, 1).outage(5, 1),
        Story("fine").connect().outage(5, 1).outage(5, 1),
    )
    answer = ask(tmp_path, merged(*stories), "flapping")
    assert [(row[3], row[4]) for row in answer] == [("flaps", 3)]


def test_broken_finds_what_has_not_recovered(tmp_path: Path) -> None:
    """Whoever is still recovering, or gave up; nobody else."""
    stories = (
        Story("down", "down:1").connect().step("fail", "RECOVERING", 5.0),
        Story("gone", "gone:1")
        .connect()
        .step("fail", "RECOVERING", 5.0)
        .step("give_up", "IDLE", 60),
        Story("fine", "fine:1").connect().outage(5, 1),
    )
    assert {row[0] for row in ask(tmp_path, merged(*stories), "broken")} == {"down:1", "gone:1"}


def test_gaps_finds_the_incomplete_connection(log: list[Fields], tmp_path: Path) -> None:
    """A complete log has none; without one of its lines it has one."""
    assert ask(tmp_path, log, "gaps") == []
    ids = [record["connection_id"] for record in log]
    index = next(i for i in range(1000, len(log)) if log[i]["seq"] > 2 and ids[i] in ids[i + 1 :])
    damaged = log[:index] + log[index + 1 :]
    assert [row[0] for row in ask(tmp_path, damaged, "gaps")] == [ids[index]]
