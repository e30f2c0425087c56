"""The report's timeline: what is shown of a log, and how a large one is thinned."""

from __future__ import annotations

import base64
import gzip
import json
from datetime import timedelta
from typing import Any

from milvus_lifecycle.replay.outages import Life
from milvus_lifecycle.replay.records import Created, Record, convert
from milvus_lifecycle.replay.stats import Stats
from milvus_lifecycle.report.timeline import STATES, Lane, Stay, TimelineFold, pack, timeline_data
from tests.audit_logs import START, Story, decoded
from tests.made_up import synthetic_records


def fold(limit: int, *stories: Story) -> tuple[TimelineFold, list[Lane]]:
    return feed(limit, decoded(*stories))


def feed(
    limit: int, records: list[Record], stats: Stats | None = None
) -> tuple[TimelineFold, list[Lane]]:
    stats = stats or Stats()
    timeline = TimelineFold(stats, limit)
    for record in records:
        timeline.add(record)
    stats.finish()
    timeline.finish()
    return timeline, timeline.lanes


def states(lane: Lane) -> list[str]:
    return [stay.state for stay in lane.stays]


def test_each_record_begins_a_stay() -> None:
    """Small logs are shown as they are: one stay for each record."""
    timeline, (lane,) = fold(100, Story().connect().outage(2.0, 0.5, 1.0))
    assert states(lane) == ["IDLE", "PROBING", "ACTIVE", "RECOVERING", "RECOVERING", "ACTIVE"]
    assert [(stay.start - START).total_seconds() for stay in lane.stays] == [0, 1, 3, 5, 5.5, 6.5]
    assert (timeline.grain, timeline.left_out, lane.life.outage_s) == (timedelta(0), False, 1.5)


def test_a_log_that_starts_late_shows_what_came_before() -> None:
    """The first record says in which state the connection was, and for how long."""
    records = decoded(Story().connect().step("release", "IDLE", 4.0))[-2:]
    stats = Stats()
    stats.reach(START)
    _, (lane,) = feed(100, records, stats)
    assert states(lane) == ["PROBING", "ACTIVE", "IDLE"]
    assert (lane.stays[0].record, lane.stays[0].start) == (None, START + timedelta(seconds=1))


def test_connections_in_trouble_come_first() -> None:
    """The order of the lanes is the time in outages."""
    _, lanes = fold(
        100,
        Story("calm").connect(),
        Story("worst").connect().outage(0.5, 9.0),
        Story("bad").connect().outage(1.0, 2.0),
        Story("ongoing").connect().step("fail", "RECOVERING", 1.0).step("retry", "RECOVERING", 5.0),
    )
    assert [lane.life.connection_id for lane in lanes] == ["worst", "ongoing", "bad", "calm"]


def test_short_stays_are_merged_into_the_worst_of_them() -> None:
    """A merged stay keeps the colour and the record that matter, and the number of records."""
    story = Story().connect()
    for _ in range(200):
        story.step("release", "IDLE", 0.001).step("acquire", "ACTIVE", 0.001)
    story.outage(0.001, 0.001).step("release", "IDLE", 500.0)
    timeline, (lane,) = fold(40, story)
    assert timeline.grain > timedelta(0)
    assert len(lane.stays) <= 40
    assert "RECOVERING" in states(lane)
    assert sum(stay.records for stay in lane.stays) == len(story.records)
    worst = next(stay for stay in lane.stays if stay.state == "RECOVERING")
    assert worst.record is not None
    assert worst.record.dest == "RECOVERING"


def test_the_last_state_survives_thinning() -> None:
    """What became of a connection is always to be seen."""
    (created,) = decoded(Story())
    assert isinstance(created, Created)
    lane = Lane(Life.of(created, lambda life, outage: None), created)
    for index, state in enumerate(("IDLE", "ACTIVE", "RECOVERING", "CLOSED")):
        lane.stays.append(Stay(START + timedelta(milliseconds=index), state, None))
    lane.thin(timedelta(seconds=1))
    assert states(lane) == ["RECOVERING", "CLOSED"]


def test_a_huge_log_keeps_the_connections_in_trouble() -> None:
    """Memory and page stay small, and what is left out had the least trouble."""
    records = [convert(record) for record in synthetic_records(20_000, seed=6, connections=300)]
    _, (worst, *_) = feed(10**9, records)
    thinned, lanes = feed(1000, records)
    assert sum(len(lane.stays) for lane in lanes) <= 1000
    assert thinned.left_out
    assert worst.life.connection_id in {lane.life.connection_id for lane in lanes}
    assert worst.life.outage_s > 0


def test_the_page_gets_every_field_of_a_record() -> None:
    """The packed columns say the same as the records."""
    _, lanes = fold(100, Story("c1", "one:1").connect().outage(2.0, 0.5), Story("c2", "two:1"))
    packed = pack(timeline_data(lanes, START, START + timedelta(seconds=10)))
    data: Any = json.loads(gzip.decompress(base64.b64decode(packed)))
    stays, texts = data["stays"], data["texts"]
    assert data["lanes"]["id"] == ["c1", "c2"]
    assert data["lanes"]["first"] == [0, 5]
    assert {len(column) for column in stays.values()} == {6}
    failed = 3
    assert STATES[stays["state"][failed]] == "RECOVERING"
    assert stays["start"][failed] == 5000.0
    assert stays["seq"][failed] == 3
    named = ("trigger", "source", "reason", "error_code", "address", "thread_name")
    assert [texts[stays[name][failed]] for name in named] == [
        "fail",
        "ACTIVE",
        "as told",
        "UNAVAILABLE",
        "one:1",
        "MainThread",
    ]
    assert (data["since"], data["span"]) == (START.timestamp() * 1000, 10_000.0)
