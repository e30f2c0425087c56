"""The demo's figures: what calls, channels, records and databases are folded into."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest

from milvus_lifecycle.demo.figures import (
    Blow,
    Call,
    Run,
    Seen,
    Stay,
    find_first_good,
    find_landing,
    judge_writes,
    list_stays,
    take_figures,
)

# One outage: killed at 11, listening again at 13.
OUTAGE = Blow("outage 1", "killed", healed_at=13.0, killed_at=11.0)

A, B = "127.0.0.1:1", "127.0.0.1:2"


def record(at: float, trigger: str, address: str = A, dest: str = "ACTIVE", **more: Any) -> Any:
    """A transition as the program's process reports it."""
    row = {"event": "connection.transition", "connection_id": "one", "generation": 1, "at": at}
    return {**row, "trigger": trigger, "address": address, "dest": dest, **more}


#: A connection on A from 1 s, on B from 11 s, on A again from 21 s.
RECORDS = [
    record(0.5, "acquire", "cluster", "PROBING", generation=0),
    record(1.0, "probe_passed", A),
    record(10.9, "reroute", A, "RECOVERING"),
    record(11.0, "recovered", B),
    record(20.0, "fail", B, "RECOVERING"),
    record(20.5, "retry", B, "RECOVERING"),
    record(21.0, "recovered", A),
]


def see(workers: int, *calls: Call, **more: Any) -> Seen:
    """What was seen in a run with these calls."""
    seen = Seen(workers, **more)
    for call in calls:
        seen.add_call(call)
    return seen


def make_calls(worker: int, begin: float, end: float, gap: float) -> list[Call]:
    """Good calls of one worker, one every `gap` seconds, each half as long."""
    count = round((end - begin) / gap)
    return [Call(worker, None, begin + n * gap, begin + (n + 0.5) * gap) for n in range(count)]


def make_run(*more: Call, rescued: bool = True) -> Seen:
    """A run of two workers with one outage; both ride through it unless not `rescued`."""
    calls = [call for worker in (0, 1) for call in make_calls(worker, 10.0, 10.9, 0.03)]
    calls += [Call(0, 1, 10.9, 13.1)]
    if rescued:
        calls += [Call(1, 2, 10.9, 13.25)]
    calls += [call for worker in (0, 1) for call in make_calls(worker, 13.3, 15.0, 0.04)]
    return see(
        2,
        *calls,
        *more,
        steady=(10.0, 10.9),
        channels=[9.0, 11.5, 12.9],
        records=[record(1, name) for name in ("acquire", "fail", "retry", "retry", "recovered")],
        blows=[OUTAGE],
    )


def read(run: Run, section: str = "in all") -> dict[str, Any]:
    """The figures of one section, by their keys."""
    sections: Any = run.as_json()["sections"]
    figures: dict[str, Any] = sections[section]
    return figures


def test_a_run_that_rode_through_has_no_fault_and_all_its_figures() -> None:
    """No fault; the return is that of the worker who was answered last; channels are counted for
    the outage after whose kill they were opened; the most frequent trigger comes first."""
    run = take_figures("a run", make_run())
    figures, outage = read(run), read(run, "outage 1")
    assert (run.faults, figures["failed_calls"], run.too_slow) == ([], 0, False)
    assert outage["slowest_s"] == pytest.approx(0.25)
    assert outage["down_s"] == 2.0
    channels = (figures["channels"], figures["channels_at_start"], outage["channels"])
    assert channels == (3, 1, 2)
    triggers = run.transitions_by_trigger
    assert triggers == {"retry": 2, "acquire": 1, "fail": 1, "recovered": 1}
    assert next(iter(triggers)) == "retry"


def test_a_call_that_was_good_before_the_server_listened_does_not_count() -> None:
    """Only a call that ended while the server listened is a first good call."""
    seen = see(1, Call(0, None, 11.0, 12.9), Call(0, None, 13.0, 13.5))
    assert find_first_good(seen, 13.0, 15.0) == {0: 13.5}


def test_a_worker_without_a_good_call_is_a_fault() -> None:
    """A worker that is never answered again is reported, whatever the others do."""
    seen = make_run()
    seen.calls = [call for call in seen.calls if not (call.worker == 1 and call.end > 13.0)]
    run = take_figures("a run", seen)
    assert read(run, "outage 1")["slowest_s"] is None
    assert any("good call" in fault for fault in run.faults)


def test_a_failed_call_is_a_fault_and_keeps_its_text() -> None:
    """One failed call is enough for a fault, and the summary can say what it was."""
    failed = Call(1, 3, 11.1, 11.4, "MilvusException: down")
    run = take_figures("a run", make_run(failed))
    assert read(run)["failed_calls"] == read(run, "outage 1")["failed_calls"] == 1
    assert run.errors == {"MilvusException: down": 1}
    assert any("failed" in fault for fault in run.faults)


def test_a_call_that_never_ended_is_a_fault() -> None:
    """A call that hangs for ever is not taken for a good one."""
    run = take_figures("a run", make_run(Call(1, 3, 14.0)))
    assert (read(run)["unended_calls"], read(run)["failed_calls"]) == (1, 0)
    assert any("never ended" in fault for fault in run.faults)


def test_a_kill_between_two_calls_is_a_fault() -> None:
    """A kill that a worker did not feel proves nothing, and the run says so."""
    run = take_figures("a run", make_run(rescued=False))
    assert read(run, "outage 1")["workers_in_flight"] == 1
    assert any("only 1 of 2" in fault for fault in run.faults)


def test_a_program_that_had_to_be_killed_is_a_fault() -> None:
    """A program that does not end by itself is not passed off as unharmed."""
    assert take_figures("a run", replace(make_run(), clean_exit=False)).faults != []


def test_in_flight_includes_calls_without_an_end() -> None:
    """A worker whose call never came back was in flight too; one that has not begun was not."""
    calls = [Call(0, None, 1.0, 3.0, "x"), Call(1, None, 1.0), Call(2, None, 2.5, 3.0)]
    blow = Blow("outage 1", "killed", healed_at=2.2, killed_at=2.0)
    run = take_figures("a run", see(3, *calls, blows=[blow]))
    assert read(run, "outage 1")["workers_in_flight"] == 2


def test_rate_is_the_slowest_workers_before_the_first_blow() -> None:
    """The rate leaves the outage out and does not hide a slow worker behind a fast one."""
    calls = [*make_calls(0, 10.0, 11.0, 0.02), *make_calls(1, 10.0, 15.0, 0.04)]
    run = take_figures("a run", see(2, *calls, steady=(10.0, 11.0)))
    assert read(run)["rate"] == pytest.approx(25, abs=1)
    assert not run.too_slow


def test_too_slow_is_said() -> None:
    """A program that hardly works is not passed off as a load."""
    calls = [call for worker in (0, 1) for call in make_calls(worker, 10.0, 15.0, 0.1)]
    assert take_figures("a run", see(2, *calls, steady=(10.0, 15.0))).too_slow


def test_an_empty_run_has_figures() -> None:
    """A run that saw nothing at all is zeros, not an exception."""
    figures = read(take_figures("a run", Seen(2)))
    assert (figures["calls"], figures["longest_call_s"], figures["rate"]) == (0, 0.0, 0.0)


def test_figures_are_json() -> None:
    """All figures survive a JSON file, beside what is known of the run."""
    run = take_figures("a run", make_run()).as_json()
    assert json.loads(json.dumps(run)) == run
    assert (run["title"], run["faults"]) == ("a run", [])


def test_a_worker_that_was_answered_is_known_while_the_program_runs() -> None:
    """Every worker must have had a good call since a moment; a call that goes on is in flight."""
    seen = see(2, Call(0, None, 1.0, 2.0), Call(1, None, 1.0, 2.5, "down"), Call(1, None, 2.6))
    assert not seen.all_good_since(2.0)
    assert list(seen.in_flight) == [1]
    seen.add_call(Call(1, None, 2.6, 3.0))
    assert seen.all_good_since(2.0)
    assert not seen.all_good_since(2.5)
    assert seen.in_flight == {}


def test_records_say_where_the_primary_was() -> None:
    """A stay begins with the flight that leads there and ends with the next landing; a recovery
    that comes back to the same address splits none."""
    assert list_stays(RECORDS) == [Stay(A, 0.5, 11.0), Stay(B, 10.9, 21.0), Stay(A, 20.0)]
    same = [*RECORDS[:2], record(3, "fail", A, "RECOVERING"), record(4, "recovered", A)]
    assert list_stays(same) == [Stay(A, 0.5)]


def place(
    writes: list[Call], on_a: set[int], on_b: set[int], records: list[Any]
) -> tuple[dict[str, Any], list[str]]:
    """Figures and faults of two databases with these contents."""
    contents = {A: frozenset(on_a), B: frozenset(on_b)}
    section = judge_writes(see(1, *writes, records=records, contents=contents))
    return {figure.key: figure.value for figure in section.figures}, section.faults


@pytest.mark.parametrize(
    ("start", "end", "taker", "misplaced"),
    [
        (2.0, 2.1, A, 0),
        (2.0, 2.1, B, 1),  # nothing led there yet
        (10.95, 11.2, A, 0),  # began before the swap: it may finish on the old primary
        (10.95, 11.2, B, 0),
        (11.1, 11.2, A, 1),  # began after the swap
        (11.1, 11.2, B, 0),
        (19.9, 21.5, A, 0),  # retried
        (19.9, 21.5, B, 0),
        (22.0, 22.1, B, 1),
    ],
)
def test_a_write_belongs_where_its_clients_topology_said(
    start: float, end: float, taker: str, misplaced: int
) -> None:
    """A server may take a call that overlaps its time as the client's primary, and no other."""
    on_a, on_b = ({7}, set[int]()) if taker == A else (set[int](), {7})
    figures, faults = place([Call(0, 7, start, end)], on_a, on_b, RECORDS)
    assert figures["misplaced"] == misplaced
    assert bool(faults) == bool(misplaced)
    assert figures["by_server"] == {A: len(on_a), B: len(on_b)}


def test_a_lost_write_is_a_fault_and_a_doubled_one_is_not() -> None:
    """Retried inserts are at-least-once: in both databases is legal, in neither is not."""
    figures, faults = place([Call(0, 1, 19.9, 21.5), Call(0, 2, 2, 3)], {1}, {1}, RECORDS)
    assert (figures["lost"], figures["twice"], figures["misplaced"]) == (1, 1, 0)
    assert faults == ["1 of 2 acknowledged writes are in no database"]


def test_what_was_not_acknowledged_may_be_anywhere() -> None:
    """A failed insert, one that never ended, and a search are no acknowledged writes."""
    calls = [Call(0, 1, 3.0, 3.1, "no"), Call(0, None, 3.2, 3.3), Call(0, 2, 4.0)]
    figures, faults = place(calls, set(), {1}, RECORDS)
    assert (figures["writes"], faults) == (0, [])


def test_without_records_nobody_knows_what_the_client_had() -> None:
    """pymilvus keeps no records: its writes are counted, not judged."""
    figures, faults = place([Call(0, 1, 5, 6)], set(), {1}, [])
    assert figures["misplaced"] is None
    assert faults == []


def test_a_move_has_landed_when_every_connection_has() -> None:
    """The last connection's swap counts; one that was closed before does not."""
    other = record(2.0, "probe_passed", A, connection_id="two")
    assert find_landing(RECORDS, B, 10.0) == 11.0
    assert find_landing([other, *RECORDS], B, 10.0) is None
    closed = record(3.0, "close", A, "CLOSED", connection_id="two")
    assert find_landing([other, closed, *RECORDS], B, 10.0) == 11.0
    late = record(12.0, "recovered", B, connection_id="two")
    assert find_landing([other, *RECORDS, late], B, 10.0) == 12.0
    assert find_landing([], B, 10.0) is None


def test_the_figures_of_moves() -> None:
    """Times count from the naming, and so do the old primary's late writes; channels are each
    move's own, from the death on if there was one."""
    blows = [
        Blow("switch 1", "", 10.0, None, A, B, told_at=10.85),
        Blow("death 1", "", 20.2, 19.95, B, A, told_at=20.9),
    ]
    calls = [Call(0, 1, 10.4, 10.6), Call(0, 2, 12.0, 12.1), Call(0, 3, 19.9, 21.2)]
    contents = {A: frozenset({1, 3}), B: frozenset({2})}
    channels = [0.5, 10.9, 19.96, 20.4]
    seen = see(1, *calls, channels=channels, records=RECORDS, blows=blows, contents=contents)
    run = take_figures("a run", seen)
    switch, death = read(run, "switch 1"), read(run, "death 1")
    assert (switch["moved_s"], switch["late_writes"]) == (1.0, 1)
    assert switch["told_s"] == pytest.approx(0.85)
    assert switch["after_told_s"] == pytest.approx(0.15)
    assert switch["late_s"] == pytest.approx(0.6)
    assert death["moved_s"] == pytest.approx(0.8)
    assert death["first_good_s"] == death["slowest_s"] == pytest.approx(1.0)
    opened = (read(run)["channels_at_start"], switch["channels"], death["channels"])
    assert opened == (1, 1, 2)
    assert run.faults == []


@pytest.mark.parametrize(("records", "faults"), [(RECORDS, 2), ([], 1)])
def test_a_move_that_nobody_followed_is_a_fault_of_the_engine_only(
    records: list[Any], faults: int
) -> None:
    """pymilvus is not expected to move; a worker without a good call is a fault of either."""
    blow = Blow("switch 1", "", 100.0, None, A, B)
    contents: dict[str, frozenset[int]] = {A: frozenset(), B: frozenset()}
    seen = see(1, records=records, blows=[blow], contents=contents)
    assert len(take_figures("a run", seen).faults) == faults
