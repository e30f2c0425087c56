"""``docs/audit.md``: the schema is complete, and every query of it runs and tells the truth."""

from __future__ import annotations

import dataclasses
import gzip
import random
import re
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from milvus_lifecycle.audit.records import EVENTS, TransitionRecord
from milvus_lifecycle.replay.findings import Kind
from milvus_lifecycle.replay.outages import NOT_OVER, UNFINISHED
from milvus_lifecycle.replay.records import convert
from milvus_lifecycle.replay.stats import fold_stats
from milvus_lifecycle.table import TRANSITIONS, State, Trigger
from tests import engine_logs
from tests.audit_logs import Story, merged, write_log
from tests.corruption import Fields, encode, join
from tests.made_up import synthetic_records

PAGE = (Path(__file__).parents[2] / "docs" / "audit.md").read_text(encoding="utf-8")
QUERIES = dict(re.findall(r"<!-- query: (\w+) -->\n```sql\n(.*?)```", PAGE, re.S))


VIEWS = [name for name, query in QUERIES.items() if query.startswith("CREATE VIEW")]


def ask(folder: Path, records: list[Fields], *queries: str) -> list[list[tuple[Any, ...]]]:
    """The answers of the page's queries, or SQL, over a log in two files, one compressed."""
    duckdb = pytest.importorskip("duckdb", reason="duckdb is not installed")
    (folder / "audit").mkdir(exist_ok=True)
    half = len(records) // 2
    old = join([encode(record) for record in records[:half]])
    (folder / "audit" / "log.jsonl.1.gz").write_bytes(gzip.compress(old, 1))
    write_log(folder / "audit" / "log.jsonl", records[half:])
    connection = duckdb.connect()
    for view in VIEWS:
        connection.execute(QUERIES[view].replace("audit/*", f"{folder}/audit/*"))
    return [connection.execute(QUERIES.get(query, query)).fetchall() for query in queries]


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
    assert VIEWS == ["records", "stays", "outages"]
    assert len(QUERIES) >= len(VIEWS) + 5
    assert PAGE.count("```sql") == len(QUERIES)


def test_every_query_runs(log: list[Fields], tmp_path: Path) -> None:
    """No query of the page has an error in it."""
    names = [name for name in QUERIES if name not in VIEWS]
    for name, answer in zip(names, ask(tmp_path, log, *names), strict=True):
        assert answer or name in ("gaps", "flapping", "broken"), name


def wandering(seed: int) -> list[Fields]:
    """Connections that walk over the rows of the table at random, from trouble to trouble."""
    chance = random.Random(seed)
    stories = [Story(f"c{n}", f"host-{n % 3}:1", began=chance.random()) for n in range(60)]
    for story in stories:
        for _ in range(chance.randint(0, 400)):
            row = chance.choice(TRANSITIONS)
            closes = row.dest is State.CLOSED and chance.random() < 0.8
            if row.source != story.state or row.trigger is Trigger.FORKED or closes:
                continue
            story.step(
                row.trigger.value,
                row.dest.value,
                chance.choice((0.0, 0.5, 3.0, 20.0, 29.9, 30.1, 100.0)),
                reason=chance.choice((NOT_OVER, "")) + row.why,
                clients=chance.randint(0, 2),
                address=chance.choice((story.address, "host-9:1")),
                error_code=chance.choice((None, "UNAVAILABLE")),
            )
    return merged(*stories)


LOGS: dict[str, Callable[[], list[Fields]]] = {
    "give_ups": engine_logs.gave_up,
    "flaps": engine_logs.flapped,
    "open": engine_logs.open_at_the_end,
    "hour": engine_logs.hour_beside_a_new_one,
    "made up": lambda: list(synthetic_records(6_000, seed=6, connections=25)),
    **{f"wandering {seed}": partial(wandering, seed) for seed in range(1, 4)},
    "late": lambda: wandering(4)[300:],
}


@pytest.mark.parametrize("name", LOGS)
def test_the_queries_and_the_fold_agree(name: str, tmp_path: Path) -> None:
    """One definition: outages and times are the same in the page's queries and in ``stats``."""
    records = LOGS[name]()
    outages, lengths, shares, flapping = ask(
        tmp_path,
        records,
        "SELECT connection_id, epoch(began), address, cause, reason, seconds, relapses, give_ups,"
        " ending FROM outages ORDER BY ALL",
        "failover",
        "shares",
        "flapping",
    )
    stats = fold_stats((convert(record) for record in records), 100_000)
    assert outages == [
        pytest.approx(row, abs=1e-5)
        for row in sorted(
            (
                one.connection_id,
                one.began.timestamp(),
                one.address,
                one.cause,
                one.reason,
                one.seconds,
                one.relapses,
                one.give_ups,
                None if one.end == UNFINISHED else one.end,
            )
            for one in stats.longest_outages
        )
    ]
    assert {row[0]: row[1:5] for row in lengths} == {
        address: pytest.approx((figures.outages, *map(spent.get, ("p50", "p95", "max"))), abs=1e-3)
        for address, figures in stats.endpoints.items()
        if (spent := figures.outage_quantiles())["max"] is not None
    }
    assert {(row[0], row[1]): row[2] for row in shares if row[2]} == pytest.approx(
        {
            (address, state): spent
            for address, figures in stats.endpoints.items()
            for state, spent in figures.state_s.items()
            if spent and state != "CLOSED"
        },
        abs=0.001,
    )
    assert {row[1]: row[2] for row in flapping} == {
        one.connection_id: one.relapses for one in stats.flapping
    }
    assert len(outages) == stats.total.outages


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
    (answer,) = ask(tmp_path, merged(*stories), "broken")
    assert {row[0] for row in answer} == {"down:1", "gone:1"}


def test_gaps_finds_the_incomplete_connection(log: list[Fields], tmp_path: Path) -> None:
    """A complete log has none; without one of its lines it has one."""
    assert ask(tmp_path, log, "gaps") == [[]]
    ids = [record["connection_id"] for record in log]
    index = next(i for i in range(1000, len(log)) if log[i]["seq"] > 2 and ids[i] in ids[i + 1 :])
    damaged = log[:index] + log[index + 1 :]
    (answer,) = ask(tmp_path, damaged, "gaps")
    assert [row[0] for row in answer] == [ids[index]]
