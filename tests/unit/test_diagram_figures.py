"""The figures of an annotated diagram: what the log says, and nothing that it does not say."""

from __future__ import annotations

import statistics
import tracemalloc
from collections.abc import Iterable, Iterator
from itertools import count

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from milvus_lifecycle.diagram.drawing import (
    Drawing,
    Look,
    draw,
    show_count,
    show_seconds,
    show_share,
)
from milvus_lifecycle.diagram.formats import to_dot, to_mermaid
from milvus_lifecycle.replay.records import Record, convert
from milvus_lifecycle.replay.stats import (
    EXACT_DWELLS,
    DwellTally,
    UnknownConnection,
    fold_connection,
    fold_stats,
)


def annotated(records: Iterable[Record]) -> Drawing:
    return draw(stats=fold_stats(records))


def path_drawn(records: Iterable[Record], connection: str) -> Drawing:
    return draw(stats=fold_connection(records, connection))


def step(second: float, trigger: str, source: str, dest: str, **fields: object) -> Record:
    """A transition record of connection ``c`` at ``second`` past midnight, dwell time 1 s."""
    return convert(
        {
            "event": "connection.transition",
            "ts": f"2026-01-01T00:{int(second // 60):02}:{second % 60:09.6f}+00:00",
            "seq": 1,
            "connection_id": "c",
            "trigger": trigger,
            "source": source,
            "dest": dest,
            "dwell_s": 1.0,
            **fields,
        }
    )


def created(second: float, connection: str = "c") -> Record:
    return step(second, "", "", "IDLE", connection_id=connection, event="connection.created")


OUTAGE = [
    created(0),
    step(1, "acquire", "IDLE", "PROBING", dwell_s=1),
    step(2, "probe_passed", "PROBING", "ACTIVE", dwell_s=1),
    step(12, "fail", "ACTIVE", "RECOVERING", dwell_s=10),
    step(13, "retry", "RECOVERING", "RECOVERING", dwell_s=1),
    step(15, "retry", "RECOVERING", "RECOVERING", dwell_s=2),
    step(21, "retry", "RECOVERING", "RECOVERING", dwell_s=6),
    step(22, "recovered", "RECOVERING", "ACTIVE", dwell_s=1),
    step(40, "release", "ACTIVE", "IDLE", dwell_s=18),
]


RETRY = ("retry", "RECOVERING", "RECOVERING")


def test_counts_medians_and_shares() -> None:
    """Each row has its count and the median time before it; each state its share of the time."""
    stats = fold_stats(OUTAGE)
    assert (stats.edges[RETRY], stats.medians[RETRY]) == (3, 2.0)
    assert ("give_up", "RECOVERING", "IDLE") not in stats.edges
    assert stats.total.state_shares() == pytest.approx(
        {"IDLE": 1 / 40, "PROBING": 1 / 40, "ACTIVE": 28 / 40, "RECOVERING": 10 / 40, "CLOSED": 0}
    )
    drawing = draw(stats=stats)
    assert "1 connection (1 of them created), 8 transitions" in drawing.caption[0]
    assert "for each of the 1 recovery." in drawing.caption[2]
    (line,) = (line for edge in drawing.edges for line in edge.lines if line.trigger == "retry")
    assert line.figures == ("\u00d73", "2.0 s")
    notes = {node.name: node.notes for node in drawing.nodes}
    assert notes["ACTIVE"] == ("70.0 % of the time",)


def test_a_closed_connection_spends_no_more_time() -> None:
    """CLOSED is not counted, however long the log goes on."""
    closed = step(1, "close", "IDLE", "CLOSED")
    total = fold_stats([closed, created(50, "other"), created(51, "x")]).total
    assert (total.state_shares()["IDLE"], total.state_shares()["CLOSED"]) == (1.0, 0.0)
    assert total.connections == 3


def test_one_connection_alone() -> None:
    """With a connection named, everything is of it alone, and its steps are numbered."""
    noise = [step(n, "acquire", "IDLE", "ACTIVE", connection_id="noise") for n in range(3, 50)]
    stats = fold_connection([*OUTAGE[:2], *noise, *OUTAGE[2:]], "c")
    assert stats.total.transitions == 8
    assert stats.path is not None
    assert stats.path.steps[RETRY] == [4, 5, 6]
    assert stats.path.last_state == "IDLE"
    assert ("acquire", "IDLE", "ACTIVE") not in stats.edges


def test_an_unknown_connection_is_an_error_with_a_hint() -> None:
    """A mistyped id names the ids of the log that are near it."""
    with pytest.raises(UnknownConnection, match=r"'3f2a9c0x'.*did you mean '3f2a9c01'"):
        fold_connection([step(1, "close", "IDLE", "CLOSED", connection_id="3f2a9c01")], "3f2a9c0x")


def test_what_is_no_step_changes_no_figure() -> None:
    """Refused triggers and confessed losses are records, but nothing happened."""
    harmless = [
        step(3, "acquire", "CLOSED", "CLOSED", event="connection.refused", seq=None),
        step(3, "loading", "ACTIVE", "ACTIVE", event="connection.waiting", seq=None),
        convert(
            {"event": "connection.records_lost", "ts": "2026-01-01T00:00:03+00:00", "count": 5}
        ),
    ]
    stats = fold_stats([*OUTAGE, *harmless])
    assert (stats.edges, stats.strays) == (fold_stats(OUTAGE).edges, 0)


@pytest.mark.parametrize("dwell", [None, -1.0, float("nan"), float("inf"), 1e10])
def test_a_dwell_time_that_is_none_is_not_used(dwell: object) -> None:
    """The step counts; its time does not."""
    drawing = annotated([step(1, "fail", "ACTIVE", "RECOVERING", dwell_s=dwell)])
    lines = [line.figures for edge in drawing.edges for line in edge.lines if line.figures]
    assert lines == [("\u00d71",)]


def test_transitions_that_the_table_does_not_allow_are_told_apart() -> None:
    """A step that is no row is not drawn, and the caption says that there were some."""
    drawing = annotated([*OUTAGE, step(50, "acquire", "CLOSED", "ACTIVE")])
    assert any("1 transition left out that no row" in line for line in drawing.caption)


def test_the_log_may_be_empty() -> None:
    """No record at all gives a diagram in which everything is dim."""
    drawing = annotated([])
    assert all(edge.dim for edge in drawing.edges if edge.source != "start")
    assert to_dot(drawing)


def test_never_travelled_edges_are_dim_and_travelled_ones_wider() -> None:
    """Grey and dotted means never; width grows with the count."""
    many = [step(1, "acquire", "IDLE", "ACTIVE", connection_id=str(n)) for n in range(5000)]
    edges = {(e.source, e.dest): e for e in annotated([*OUTAGE, *many]).edges}
    assert edges["PROBING", "CLOSED"].dim
    assert edges["PROBING", "CLOSED"].look.style == "dotted"
    assert not edges["IDLE", "ACTIVE"].dim
    assert edges["IDLE", "ACTIVE"].look.width > edges["ACTIVE", "RECOVERING"].look.width


@pytest.mark.parametrize(("retries", "heat"), [(1, 1), (6, 2), (40, 3)])
def test_retries_glow_with_their_number_for_each_recovery(retries: int, heat: int) -> None:
    """The same count is more heat where there were fewer recoveries."""
    records = [
        *(step(n, "fail", "ACTIVE", "RECOVERING") for n in range(10)),
        *(step(n, "retry", "RECOVERING", "RECOVERING") for n in range(retries)),
    ]
    drawing = annotated(records)
    lines = [line for edge in drawing.edges for line in edge.lines if line.trigger == "retry"]
    assert [line.heat for line in lines] == [heat]
    assert f"<b>retry  \u00d7{retries}  1.0 s</b>".replace(" ", "\u00a0") in to_mermaid(drawing)


def test_the_end_of_a_path_is_marked() -> None:
    """The highlighted connection's last state says so in words, not in colour alone."""
    drawing = path_drawn(OUTAGE, "c")
    nodes = {node.name: node for node in drawing.nodes}
    assert nodes["IDLE"].look.width > Look().width
    assert "the path ends here" in nodes["IDLE"].notes
    assert nodes["CLOSED"].dim
    assert "#4, 5, 6" in to_mermaid(drawing).replace("#35;", "#").replace("\u00a0", " ")


def test_a_hostile_id_cannot_break_the_drawing() -> None:
    """What stands for an id in a log is shown as text: no markup, no control characters."""
    hostile = '<script>"\n\x00--&' + "x" * 500
    drawing = path_drawn([step(1, "close", "IDLE", "CLOSED", connection_id=hostile)], hostile)
    assert "\x00" not in drawing.title
    assert len(drawing.title) < 100
    assert "<script>" not in to_dot(drawing)
    assert to_mermaid(drawing).splitlines()[1].startswith('title: "What connection <script>\\"')


@settings(deadline=None, max_examples=40)
@given(st.lists(st.floats(0, 1e6), min_size=1, max_size=9))
def test_the_median_of_many_is_right_within_one_percent(some: list[float]) -> None:
    """Beyond the exact ones the tally is a histogram whose error is bounded."""
    values = some * (EXACT_DWELLS + 1)
    tally = DwellTally()
    for value in values:
        tally.add(value)
    median = tally.median()
    assert median is not None
    low, high = statistics.median_low(values), statistics.median_high(values)
    assert low * 0.99 <= median <= high * 1.01


@given(st.lists(st.floats(0, 1e6), max_size=50))
def test_the_median_of_few_is_exact(values: list[float]) -> None:
    """A log that one can check by hand gives the figures that one gets by hand."""
    tally = DwellTally()
    for value in values:
        tally.add(value)
    assert tally.median() == (statistics.median(values) if values else None)


def many_records(total: int) -> Iterator[Record]:
    """Connections that come, work and go: no more than one is open at a time."""
    for number in count():
        for trigger, source, dest in (
            ("acquire", "IDLE", "PROBING"),
            ("probe_passed", "PROBING", "ACTIVE"),
            ("close", "ACTIVE", "CLOSED"),
        ):
            if total <= 0:
                return
            total -= 1
            dwell = 0.001 * (number % 997)
            yield step(1, trigger, source, dest, connection_id=f"c{number}", dwell_s=dwell)


def peak_of(total: int) -> int:
    """The most memory (bytes) that folding so many records took at once."""
    tracemalloc.start()
    fold_stats(many_records(total))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return peak


@pytest.mark.slow
def test_memory_does_not_grow_with_the_log() -> None:
    """Five times the records take at most half as much memory again, and 50 kB."""
    peak_of(100)
    assert peak_of(20_000) < 1.5 * peak_of(4_000) + 50_000


def test_figures_without_time_have_no_shares() -> None:
    """Nothing is divided by zero, and no state claims a share."""
    assert fold_stats([created(5)]).total.state_shares() == {}
    assert not any(node.notes for node in annotated([created(5)]).nodes)


@pytest.mark.parametrize(
    ("seconds", "shown"),
    [
        (0, "0 \u00b5s"),
        (2e-7, "0.2 \u00b5s"),
        (0.00123, "1.2 ms"),
        (0.0456, "46 ms"),
        (1, "1.0 s"),
        (61, "61 s"),
        (100, "1.7 min"),
        (86_400, "24 h"),
        (1e6, "12 d"),
    ],
)
def test_durations_are_short(seconds: float, shown: str) -> None:
    """Two or three digits in the unit that suits."""
    assert show_seconds(seconds) == shown


def test_counts_and_shares_are_short() -> None:
    """Large counts are rounded; small shares are not shown as none, nor large ones as all."""
    assert [show_count(n) for n in (7, 99_999, 123_456, 5_000_000)] == [
        "7",
        "99,999",
        "123 k",
        "5.0 M",
    ]
    assert [show_share(s) for s in (0.0001, 0.0123, 0.5, 0.99999, 1.0)] == [
        "< 0.1 %",
        "1.2 %",
        "50.0 %",
        "> 99.9 %",
        "100.0 %",
    ]
