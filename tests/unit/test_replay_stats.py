"""``audit stats``: the figures are those that one gets by adding up the log by hand."""

from __future__ import annotations

import json
from array import array
from functools import partial
from pathlib import Path

import pytest

from milvus_lifecycle.replay import outages as incidents_module
from milvus_lifecycle.replay import stats as stats_module
from milvus_lifecycle.replay.findings import Recent
from milvus_lifecycle.replay.outages import NOT_OVER, UNFINISHED
from milvus_lifecycle.replay.records import convert
from milvus_lifecycle.replay.stats import Figures, Stats, fold_stats
from milvus_lifecycle.report.tables import Table, print_tables, stats_tables
from milvus_lifecycle.table import TRANSITIONS
from tests.audit_logs import Story, decoded
from tests.made_up import synthetic_records


def figures(*stories: Story) -> Stats:
    return fold_stats(decoded(*stories))


def test_an_outage_is_added_up_from_its_records() -> None:
    """Its duration is the time in RECOVERING, attempts included; its cause the first failure."""
    stats = figures(Story().connect().outage(10.0, 0.5, 0.25, 0.75))
    (outage,) = stats.longest_outages
    assert (outage.seconds, outage.attempts, outage.cause) == (1.5, 3, "fail")
    assert (outage.error_code, outage.end) == ("UNAVAILABLE", "recovered")
    assert outage.began.isoformat() == "2026-03-01T09:00:13+00:00"
    assert list(stats.total.outage_times) == [1.5]


def test_a_terminal_of_eighty_columns_shows_every_figure(tmp_path: Path) -> None:
    """What is too wide for it has a paragraph a row; no line is cut, and none is longer."""
    tables = stats_tables(figures(Story().connect().outage(10.0, 0.5), Story("b", "other:1")))
    out = tmp_path / "out.txt"
    with out.open("w") as stream:
        print_tables(tables, stream, 80)
    told = out.read_text()
    assert max(map(len, told.splitlines())) <= 80
    for name, cell in (("p50", "500 ms"), ("calls waited", "0"), ("unfinished", "0")):
        assert f"{name} {cell}" in told
    words = " ".join(told.split())
    for table in tables:
        for row in table.rows:
            assert all(" ".join(cell.split()) in words for cell in row)


def test_time_in_each_state_is_the_sum_of_the_stays() -> None:
    """Every dwell time is counted for the state that was left."""
    stats = figures(Story().connect().outage(10.0, 0.5).step("release", "IDLE", 4.0))
    assert dict(stats.total.state_s) == {
        "IDLE": 1.0,
        "PROBING": 2.0,
        "ACTIVE": 14.0,
        "RECOVERING": 0.5,
    }


def test_quantiles_are_observed_values() -> None:
    """Nearest rank: p50 of 1 to 100 is 50, p95 is 95, p99 is 99, the maximum is 100."""
    cases = {(): [None] * 4, (7,): [7] * 4, tuple(range(100, 0, -1)): [50, 95, 99, 100]}
    for seconds, found in cases.items():
        quantiles = Figures(outage_times=array("d", seconds)).outage_quantiles()
        assert list(quantiles.values()) == found


def test_figures_are_kept_for_each_endpoint_and_in_all() -> None:
    """Endpoints have figures of their own, and the total is their sum."""
    stats = figures(
        Story("c1", "a:1").connect().outage(5.0, 1.0),
        Story("c2", "b:1").connect().outage(5.0, 3.0).outage(100.0, 2.0),
    )
    assert list(stats.endpoints) == ["a:1", "b:1"]
    assert sorted(stats.endpoints["b:1"].outage_times) == [2.0, 3.0]
    assert stats.total.connections == 2
    assert stats.total.outage_quantiles() == {"p50": 2.0, "p95": 3.0, "p99": 3.0, "max": 3.0}
    assert [outage.seconds for outage in stats.longest_outages] == [3.0, 2.0, 1.0]


def test_a_move_is_no_outage() -> None:
    """reroute and recycle change a healthy channel: nobody suffered."""
    story = Story().connect().step("recycle", "RECOVERING", 9.0).step("recovered", "ACTIVE", 0.1)
    total = figures(story).total
    assert (total.moves, total.recoveries, total.outages) == (1, 1, 0)


def test_a_give_up_does_not_end_an_outage() -> None:
    """It lasts until something vouches for the connection again; time that nobody waits is free."""
    story = Story().connect().step("fail", "RECOVERING", 5.0)
    story.step("give_up", "IDLE", 60.0, clients=0).step("acquire", "PROBING", 100.0)
    story.step("probe_passed", "ACTIVE", 0.5)
    stats = figures(story)
    (outage,) = stats.longest_outages
    assert (outage.seconds, outage.give_ups, outage.end) == (60.5, 1, "probe_passed")
    assert stats.total.give_ups == 1


def test_the_wait_of_a_client_after_a_give_up_counts() -> None:
    """While a client holds the connection, IDLE is part of the outage."""
    story = Story().connect().step("fail", "RECOVERING", 5.0)
    story.step("give_up", "IDLE", 60.0, clients=2).step("served", "ACTIVE", 7.0)
    assert figures(story).longest_outages[0].seconds == 67.0


def test_an_outage_that_the_log_does_not_end_is_listed() -> None:
    """What is still broken when the log ends is what on-call looks for."""
    story = Story().connect().step("fail", "RECOVERING", 5.0).step("retry", "RECOVERING", 3.0)
    stats = figures(story)
    assert (stats.longest_outages[0].end, stats.longest_outages[0].seconds) == (UNFINISHED, 3.0)
    assert stats.incidents[0].unfinished == 1


def test_missing_records_end_what_cannot_be_measured() -> None:
    """A gap in the log gives no duration that nobody measured."""
    story = Story().connect().step("fail", "RECOVERING", 5.0)
    story.state = "ACTIVE"  # records were lost
    story.step("release", "IDLE", 1.0).step("acquire", "ACTIVE", 1.0).outage(5.0, 2.0)
    stats = figures(story)
    assert {outage.end: outage.seconds for outage in stats.longest_outages} == {
        "records are missing": 0.0,
        "recovered": 2.0,
    }


def test_waits_for_collections_are_counted(capsys: pytest.CaptureFixture[str]) -> None:
    """How often calls waited for one, and how long; the rest of the figures does not change."""
    story = Story().connect().outage(10.0, 0.5)
    before = figures(story)
    story.wait("loading").wait("loaded", 26.5).wait("loading").wait("overdue", 60.0)
    stats = figures(story)
    assert (stats.total.waits, stats.total.waited_s) == (2, 86.5)
    assert (stats.total.transitions, stats.edges) == (before.total.transitions, before.edges)
    print_tables(stats_tables(stats))
    assert "Collections that were loaded again" in capsys.readouterr().out


def test_a_failed_first_connect_is_counted() -> None:
    """A connection that never lived is no outage, and is not forgotten either."""
    story = Story().step("acquire", "PROBING", 0.0).step("probe_failed", "CLOSED", 2.0)
    total = figures(story).total
    assert (total.failed_connects, total.outages) == (1, 0)


def test_a_connection_flaps_when_it_relapses_twice() -> None:
    """Three outages within 30 s of each other are flapping; with a long rest they are not."""
    flapping = Story("flaps").connect().outage(5, 1).outage(5, 1).outage(5, 1)
    resting = Story("rests").connect().outage(5, 1).outage(90, 1).outage(90, 1)
    stats = figures(flapping, resting)
    assert [flapper.connection_id for flapper in stats.flapping] == ["flaps"]
    assert stats.flapping[0].relapses == 2
    assert stats.total.flapping == 1


@pytest.mark.parametrize(
    ("healthy", "reason", "lengths", "relapses"),
    [
        (30.0, NOT_OVER + "again", [1.0 + 30.0 + 2.0], 1),
        (30.0, "an RPC failed", [1.0, 2.0], 1),  # a call succeeded in between
        (30.5, NOT_OVER + "again", [1.0, 2.0], 0),  # nobody called: it would have been told
    ],
)
def test_an_outage_goes_on_if_no_call_succeeded(
    healthy: float, reason: str, lengths: list[float], relapses: int
) -> None:
    """The record says whether one has; after 30 s it is another outage in any case."""
    story = Story().connect().outage(5.0, 1.0).step("fail", "RECOVERING", healthy, reason=reason)
    stats = figures(story.step("recovered", "ACTIVE", 2.0))
    assert sorted(stats.total.outage_times) == lengths
    assert sum(one.relapses for one in stats.longest_outages) == relapses


def test_a_move_that_gives_up_is_an_outage_from_its_beginning() -> None:
    """Its channel failed on the way, and nobody wrote down when."""
    story = Story().connect().step("reroute", "RECOVERING", 9.0).step("retry", "RECOVERING", 2.0)
    story.step("give_up", "IDLE", 60.0, attempt=2).step("served", "ACTIVE", 1.0)
    (outage,) = figures(story).longest_outages
    assert (outage.cause, outage.seconds, outage.attempts) == ("reroute", 63.0, 2)


def test_what_went_before_the_first_record_does_not_count() -> None:
    """It is another log's, or the parent's of a forked child."""
    child = Story("child").step("forked", "IDLE", 500.0)
    child.records.pop(0)  # a child has no record of its creation
    late = Story("late").connect().step("release", "IDLE", 100.0).step("expire", "CLOSED", 300.0)
    del late.records[:3]
    state_s = figures(child, late).total.state_s
    assert (state_s["ACTIVE"], state_s["IDLE"]) == (0.0, 300.0)


def test_an_outage_of_a_forgotten_connection_is_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    """A fold that has to forget connections forgets nothing that they suffered."""
    monkeypatch.setattr(stats_module, "Recent", partial(Recent, 2))
    stories = [Story(f"c{n}", began=100.0 * n).connect().outage(5.0, 1.0) for n in range(20)]
    stats = figures(*stories)
    assert (stats.total.outages, stats.incidents[0].suffered_s) == (20, 1.0)
    assert stats.as_dict()["forgotten_connections"] == 16


def test_the_worst_incidents_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of more incidents than twice what is kept those with the least suffering go."""
    monkeypatch.setattr(incidents_module, "_KEPT", 5)
    stories = [Story(f"c{n}", began=100.0 * n).connect() for n in range(60)]
    for number, story in enumerate(stories):
        story.outage(5.0, number % 7 + 0.5).step("close", "CLOSED", 1.0)
    incidents = figures(*stories).incidents
    assert [one.suffered_s for one in incidents[:5]] == [6.5] * 5
    assert len(incidents) <= 10


def test_outages_that_began_together_are_one_incident() -> None:
    """An endpoint that goes down is one line, not one for each of its connections."""
    stories = [
        Story(f"c{n}", "a:1", began=n / 10).connect().outage(10.0, 1.0 + n) for n in range(5)
    ]
    other = Story("d1", "b:1").connect().outage(10.0, 9.0)
    later = Story("c9", "a:1", began=100).connect().outage(10.0, 0.5)
    incidents = figures(*stories, other, later).incidents
    assert [(one.address, one.connections) for one in incidents] == [
        ("a:1", 5),
        ("b:1", 1),
        ("a:1", 1),
    ]
    assert (incidents[0].seconds, incidents[0].suffered_s) == (5.0, 15.0)
    assert incidents[0].errors == {"UNAVAILABLE": 5}


def test_a_connection_counts_once_in_an_incident() -> None:
    """An endpoint that comes and goes for its only connection is no crowd."""
    (incident,) = figures(Story().connect().outage(1, 0.5).outage(1, 0.5).outage(1, 0.5)).incidents
    assert (incident.connections, incident.outages, incident.suffered_s) == (1, 3, 1.5)


def test_rows_that_were_never_taken_are_listed() -> None:
    """Together with the rows that were taken they are the table."""
    stats = figures(Story().connect().outage(5.0, 1.0))
    rows = {(str(row.trigger), str(row.source), str(row.dest)) for row in TRANSITIONS}
    assert set(stats.never_travelled) | set(stats.edges) == rows
    assert ("recovered", "RECOVERING", "ACTIVE") not in stats.never_travelled
    assert ("give_up", "RECOVERING", "IDLE") in stats.never_travelled


def test_everything_is_json() -> None:
    """``--json`` has every figure, in seconds and counts."""
    stats = figures(Story().connect().outage(10.0, 0.5, 0.25))
    told = json.loads(json.dumps(stats.as_dict()))
    assert told["total"]["outage_s"]["p50"] == 0.75
    assert told["longest_outages"][0]["connection_id"] == "c1"
    assert told["endpoints"]["a:19530"]["state_share"]["PROBING"] == pytest.approx(
        2 / 13.75, abs=1e-6
    )


def test_a_log_of_nothing_has_figures_too(capsys: pytest.CaptureFixture[str]) -> None:
    """An empty log gives empty tables and no division by zero."""
    stats = fold_stats([])
    print_tables(stats_tables(stats))
    assert json.dumps(stats.as_dict())
    assert "never travelled" in capsys.readouterr().out


def test_many_endpoints_share_the_last_line(monkeypatch: pytest.MonkeyPatch) -> None:
    """A log of random addresses cannot fill the memory."""
    monkeypatch.setattr(stats_module, "ENDPOINTS", 3)
    stats = figures(*(Story(f"c{n}", f"host-{n}:1").connect() for n in range(9)))
    assert len(stats.endpoints) == 4
    assert stats.endpoints[stats_module.OTHERS].connections == 6
    assert stats.total.connections == 9


def test_totals_of_a_large_log_add_up() -> None:
    """Counts by endpoint, by edge and in all agree with each other."""
    stats = fold_stats(convert(record) for record in synthetic_records(20_000, seed=8))
    assert sum(stats.edges.values()) == stats.total.transitions
    assert sum(one.transitions for one in stats.endpoints.values()) == stats.total.transitions
    ended = [one for one in stats.edges if one[0] in ("recovered", "give_up", "retry")]
    assert stats.total.attempts == sum(stats.edges[edge] for edge in ended)


def test_plain_tables_line_up(tmp_path: Path) -> None:
    """Without a terminal the columns are padded, numbers to the right."""
    path = tmp_path / "out.txt"
    with path.open("w") as out:
        table = Table("Title", ("name", "count>"), (("a", "1,000"), ("long name", "2")), "a note")
        print_tables([table, Table("empty", ("x",))], out)
    assert path.read_text() == (
        "Title\n(a note)\nname       count\n---------  -----\na          1,000\n"
        "long name      2\n\n"
    )
