"""The demo's figures: what calls, channels, records and databases are folded into."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest

from milvus_lifecycle.demo.figures import (
    Call,
    Move,
    Outage,
    Run,
    Seen,
    Stay,
    Write,
    check_placement,
    find_first_good,
    find_landing,
    find_workers_in_flight,
    list_stays,
    list_writes,
    take_figures,
)

# One outage of two workers: frozen at 10.9, killed at 11, listening again at 13.
OUTAGE = Outage(asked=1.0, frozen_at=10.9, killed_at=11.0, listens_at=13.0)

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


def make_calls(worker: int, begin: float, end: float, gap: float) -> list[Call]:
    """Good calls of one worker, one every `gap` seconds, each half as long."""
    count = round((end - begin) / gap)
    return [
        Call(worker, "search", begin + n * gap, begin + (n + 0.5) * gap, None) for n in range(count)
    ]


def make_run(*more: Call, rescued: bool = True) -> Seen:
    """A run of two workers with one outage; both ride through it unless not `rescued`."""
    calls = [call for worker in (0, 1) for call in make_calls(worker, 10.0, 10.9, 0.03)]
    calls += [Call(0, "insert", 10.9, 13.1, None)]
    if rescued:
        calls += [Call(1, "insert", 10.9, 13.25, None)]
    calls += [call for worker in (0, 1) for call in make_calls(worker, 13.3, 15.0, 0.04)]
    return Seen(
        workers=2,
        began=10.0,
        ended=15.0,
        calls=[*calls, *more],
        channels=[9.0, 11.5, 12.9],
        records=[record(1, name) for name in ("acquire", "fail", "retry", "retry", "recovered")],
        outages=[OUTAGE],
    )


def test_a_run_that_rode_through_has_no_fault_and_all_its_figures() -> None:
    """No fault; the return is that of the worker who was answered last; channels are counted for
    the outage after whose kill they were opened; the most frequent trigger comes first."""
    figures = take_figures(make_run())
    assert (figures.faults, figures.failed_calls, figures.too_slow) == ([], 0, False)
    (outage,) = figures.outages
    assert outage.first_good_call_s == pytest.approx(0.25)
    assert outage.down_s == 2.0
    assert (figures.channels, figures.channels_at_start, outage.channels) == (3, 1, 2)
    triggers = figures.transitions_by_trigger
    assert triggers == {"retry": 2, "acquire": 1, "fail": 1, "recovered": 1}
    assert next(iter(triggers)) == "retry"


def test_a_call_that_was_good_before_the_server_listened_does_not_count() -> None:
    """Only a call that ended while the server listened is a first good call."""
    calls = [Call(0, "search", 11.0, 12.9, None), Call(0, "search", 13.0, 13.5, None)]
    assert find_first_good(calls, 13.0, 15.0) == {0: 13.5}


def test_a_worker_without_a_good_call_is_a_fault() -> None:
    """A worker that is never answered again is reported, whatever the others do."""
    run = make_run()
    calls = [call for call in run.calls if not (call.worker == 1 and (call.end or 0) > 13.0)]
    figures = take_figures(replace(run, calls=calls))
    assert figures.outages[0].first_good_call_s is None
    assert any("good call" in fault for fault in figures.faults)


def test_a_failed_call_is_a_fault_and_keeps_its_text() -> None:
    """One failed call is enough for a fault, and the summary can say what it was."""
    figures = take_figures(make_run(Call(1, "insert", 11.1, 11.4, "MilvusException: down")))
    assert figures.failed_calls == figures.outages[0].failed_calls == 1
    assert figures.errors == {"MilvusException: down": 1}
    assert any("failed" in fault for fault in figures.faults)


def test_a_call_that_never_ended_is_a_fault() -> None:
    """A call that hangs for ever is not taken for a good one."""
    figures = take_figures(make_run(Call(1, "insert", 14.0, None, None)))
    assert (figures.unended_calls, figures.failed_calls) == (1, 0)
    assert any("never ended" in fault for fault in figures.faults)


def test_a_kill_between_two_calls_is_a_fault() -> None:
    """A kill that a worker did not feel proves nothing, and the run says so."""
    figures = take_figures(make_run(rescued=False))
    assert figures.outages[0].workers_in_flight == 1
    assert any("only 1 of 2" in fault for fault in figures.faults)


def test_a_program_that_had_to_be_killed_is_a_fault() -> None:
    """A program that does not end by itself is not passed off as unharmed."""
    assert take_figures(replace(make_run(), clean_exit=False)).faults != []


def test_in_flight_includes_calls_without_an_end() -> None:
    """A worker whose call never came back was in flight too."""
    calls = [
        Call(0, "a", 1.0, 3.0, "x"),
        Call(1, "a", 1.0, None, None),
        Call(2, "a", 2.5, 3.0, None),
    ]
    assert find_workers_in_flight(calls, 2.0) == {0, 1}


def test_rate_is_the_slowest_workers_in_its_slowest_stretch() -> None:
    """The rate leaves the outage out and does not hide a slow worker behind a fast one."""
    figures = take_figures(make_run())
    assert figures.slowest_rate is not None
    assert 22.0 < figures.slowest_rate < 28.0


def test_too_slow_is_said() -> None:
    """A program that hardly works is not passed off as a load."""
    calls = [call for worker in (0, 1) for call in make_calls(worker, 10.0, 15.0, 0.1)]
    assert take_figures(Seen(2, 10.0, 15.0, calls)).too_slow


def test_an_empty_run_has_figures() -> None:
    """A run that saw nothing at all is zeros, not an exception."""
    figures = take_figures(Seen(2, 10.0, 10.1))
    assert (figures.calls, figures.longest_call_s, figures.slowest_rate) == (0, 0.0, None)


def test_figures_are_json() -> None:
    """All figures survive a JSON file, beside what is known of the run."""
    figures = take_figures(make_run())
    run = Run("with the engine", True, "module", 0, figures).as_json()
    assert json.loads(json.dumps(run)) == run
    assert (run["title"], run["calls"], run["faults"]) == ("with the engine", figures.calls, [])


def test_records_say_where_the_primary_was() -> None:
    """A stay begins with the flight that leads there and ends with the next landing; a recovery
    that comes back to the same address splits none."""
    assert list_stays(RECORDS) == [Stay(A, 0.5, 11.0), Stay(B, 10.9, 21.0), Stay(A, 20.0, None)]
    same = [*RECORDS[:2], record(3, "fail", A, "RECOVERING"), record(4, "recovered", A)]
    assert list_stays(same) == [Stay(A, 0.5, None)]


def place(writes: list[Write], on_a: set[int], on_b: set[int], records: list[Any]) -> Any:
    """What check_placement says of two databases with these contents."""
    contents = {A: frozenset(on_a), B: frozenset(on_b)}
    return check_placement(writes, Seen(1, 0.0, 30.0, records=records, contents=contents))


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
    placement = place([Write(7, start, end)], on_a, on_b, RECORDS)
    assert placement.misplaced == misplaced
    assert bool(placement.faults) == bool(misplaced)
    assert placement.by_server[taker] == 1


def test_a_lost_write_is_a_fault_and_a_doubled_one_is_not() -> None:
    """Retried inserts are at-least-once: in both databases is legal, in neither is not."""
    placement = place([Write(1, 19.9, 21.5), Write(2, 2, 3)], {1}, {1}, RECORDS)
    assert (placement.lost, placement.twice, placement.misplaced) == (1, 1, 0)
    assert placement.faults == ["1 of 2 acknowledged writes are in no database"]


def test_without_records_nobody_knows_what_the_client_had() -> None:
    """pymilvus keeps no records: its writes are counted, not judged."""
    placement = place([Write(1, 5, 6)], set(), {1}, [])
    assert placement.misplaced is None
    assert placement.faults == []


def test_ids_follow_the_order_of_a_workers_inserts() -> None:
    """A failed insert uses up its id; searches do not."""
    calls = [
        Call(0, "insert", 3.0, 3.1, None),
        Call(0, "insert", 1.0, 1.1, None),
        Call(0, "insert", 2.0, 2.1, "MilvusException: no"),
        Call(0, "search", 2.5, 2.6, None),
        Call(1, "insert", 1.0, 1.5, None),
        Call(1, "insert", 4.0, None, None),
    ]
    writes = [(write.id, write.start) for write in list_writes(calls, {0: 1, 1: 100})]
    assert writes == [(1, 1.0), (100, 1.0), (3, 3.0)]


def test_a_move_has_landed_when_every_connection_has() -> None:
    """The last connection's swap counts; one that was closed before does not."""
    move = Move("switch", A, B, 2, named_at=10.0)
    other = record(2.0, "probe_passed", A, connection_id="two")
    assert find_landing(RECORDS, move) == 11.0
    assert find_landing([other, *RECORDS], move) is None
    closed = record(3.0, "close", A, "CLOSED", connection_id="two")
    assert find_landing([other, closed, *RECORDS], move) == 11.0
    late = record(12.0, "recovered", B, connection_id="two")
    assert find_landing([other, *RECORDS, late], move) == 12.0
    assert find_landing([], move) is None


def test_the_figures_of_moves() -> None:
    """Times count from the naming, and so do the old primary's late writes; channels are each
    move's own, from the death on if there was one."""
    moves = [
        Move("switch", A, B, 2, named_at=10.0),
        Move("death", B, A, 3, named_at=20.2, killed_at=19.95),
    ]
    calls = [
        Call(0, "insert", 10.4, 10.6, None),
        Call(0, "insert", 12.0, 12.1, None),
        Call(0, "insert", 19.9, 21.2, None),
    ]
    contents = {A: frozenset({1, 3}), B: frozenset({2})}
    seen = Seen(1, 0.0, 30.0, calls, [0.5, 10.9, 19.96, 20.4], RECORDS, (), moves, contents)
    figures = take_figures(replace(seen, first_ids={0: 1}, served={2: 10.85, 3: 20.9}))
    switch, death = figures.moves
    assert (switch.moved_s, switch.late_writes) == (1.0, 1)
    assert switch.refreshed_s == pytest.approx(0.85)
    assert switch.after_refresh_s == pytest.approx(0.15)
    assert switch.late_s == pytest.approx(0.6)
    assert death.moved_s == pytest.approx(0.8)
    assert death.first_good_s == death.slowest_s == pytest.approx(1.0)
    assert death.late_writes == 0
    assert (figures.channels_at_start, switch.channels, death.channels) == (1, 1, 2)
    assert figures.faults == []


@pytest.mark.parametrize(("records", "faults"), [(RECORDS, 2), ([], 1)])
def test_a_move_that_nobody_followed_is_a_fault_of_the_engine_only(
    records: list[Any], faults: int
) -> None:
    """pymilvus is not expected to move; a worker without a good call is a fault of either."""
    move = Move("switch", A, B, 2, named_at=100.0)
    contents: dict[str, frozenset[int]] = {A: frozenset(), B: frozenset()}
    seen = Seen(1, 0.0, 101.0, records=records, moves=[move], contents=contents)
    assert len(take_figures(seen).faults) == faults
