"""The demo's figures: what calls, channels and kills are folded into."""

from __future__ import annotations

import json

from milvus_lifecycle.demo.measure import (
    Call,
    Observations,
    Outage,
    find_first_good,
    find_workers_in_flight,
    take_figures,
)

# One outage of two workers: frozen at 10.9, killed at 11, listening again at 13.
OUTAGE = Outage(asked=1.0, frozen_at=10.9, killed_at=11.0, listens_at=13.0)


def make_calls(worker: int, begin: float, end: float, gap: float) -> list[Call]:
    """Good calls of one worker, one every `gap` seconds, each half as long."""
    count = round((end - begin) / gap)
    return [
        Call(worker, "search", begin + n * gap, begin + (n + 0.5) * gap, None) for n in range(count)
    ]


def make_run(*more: Call, rescued: bool = True) -> Observations:
    """A run of two workers with one outage; both ride through it unless not `rescued`."""
    calls = [call for worker in (0, 1) for call in make_calls(worker, 10.0, 10.9, 0.03)]
    calls += [Call(0, "insert", 10.9, 13.1, None)]
    if rescued:
        calls += [Call(1, "insert", 10.9, 13.25, None)]
    calls += [call for worker in (0, 1) for call in make_calls(worker, 13.3, 15.0, 0.04)]
    return Observations(
        workers=2,
        began=10.0,
        ended=15.0,
        calls=[*calls, *more],
        channels=[9.0, 11.5, 12.9],
        triggers=["acquire", "fail", "retry", "retry", "recovered"],
        outages=[OUTAGE],
    )


def test_a_run_that_rode_through_has_no_fault() -> None:
    """A run in which each call was answered is reported as having no fault at all."""
    figures = take_figures(make_run())
    assert figures.faults == []
    assert figures.failed_calls == 0
    assert not figures.too_slow


def test_first_good_call_is_the_slowest_workers() -> None:
    """The figure for the return is that of the worker who was answered last."""
    (outage,) = take_figures(make_run()).outages
    assert outage.first_good_call_s is not None
    assert abs(outage.first_good_call_s - 0.25) < 1e-9
    assert outage.down_s == 2.0


def test_a_call_that_was_good_before_the_server_listened_does_not_count() -> None:
    """Only a call that ended while the server listened is a first good call."""
    calls = [Call(0, "search", 11.0, 12.9, None), Call(0, "search", 13.0, 13.5, None)]
    assert find_first_good(calls, 13.0, 15.0) == {0: 13.5}


def test_a_worker_without_a_good_call_is_a_fault() -> None:
    """A worker that is never answered again is reported, whatever the others do."""
    run = make_run()
    calls = [call for call in run.calls if not (call.worker == 1 and (call.end or 0) > 13.0)]
    figures = take_figures(Observations(2, 10.0, 15.0, calls, run.channels, run.triggers, [OUTAGE]))
    assert figures.outages[0].first_good_call_s is None
    assert any("good call" in fault for fault in figures.faults)


def test_channels_belong_to_the_outage_after_whose_kill_they_were_opened() -> None:
    """Channels are counted per outage, those before the first kill apart."""
    figures = take_figures(make_run())
    assert (figures.channels, figures.channels_at_start) == (3, 1)
    assert figures.outages[0].channels == 2


def test_a_failed_call_is_a_fault_and_keeps_its_text() -> None:
    """One failed call is enough for a fault, and the summary can say what it was."""
    figures = take_figures(make_run(Call(1, "insert", 11.1, 11.4, "MilvusException: down")))
    assert figures.failed_calls == figures.outages[0].failed_calls == 1
    assert figures.errors == {"MilvusException: down": 1}
    assert any("failed" in fault for fault in figures.faults)


def test_a_call_that_never_ended_is_a_fault() -> None:
    """A call that hangs for ever is not taken for a good one."""
    figures = take_figures(make_run(Call(1, "insert", 14.0, None, None)))
    assert figures.unended_calls == 1
    assert figures.failed_calls == 0
    assert any("never ended" in fault for fault in figures.faults)


def test_a_kill_between_two_calls_is_a_fault() -> None:
    """A kill that a worker did not feel proves nothing, and the run says so."""
    figures = take_figures(make_run(rescued=False))
    assert figures.outages[0].workers_in_flight == 1
    assert any("only 1 of 2" in fault for fault in figures.faults)


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
    assert take_figures(Observations(2, 10.0, 15.0, calls)).too_slow


def test_an_empty_run_has_figures() -> None:
    """A run that saw nothing at all is zeros, not an exception."""
    figures = take_figures(Observations(2, 10.0, 10.1))
    assert (figures.calls, figures.longest_call_s, figures.slowest_rate) == (0, 0.0, None)


def test_transitions_are_counted_by_trigger() -> None:
    """The summary's table: the most frequent trigger first."""
    triggers = take_figures(make_run()).transitions_by_trigger
    assert triggers == {"retry": 2, "acquire": 1, "fail": 1, "recovered": 1}
    assert next(iter(triggers)) == "retry"


def test_figures_are_json() -> None:
    """All figures survive a JSON file."""
    figures = take_figures(make_run()).as_json()
    assert json.loads(json.dumps(figures)) == figures
