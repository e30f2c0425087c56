"""Connections of one address that fail together: one knocks, and the others stand in line."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import pytest

from milvus_lifecycle import ConnectionConfig
from milvus_lifecycle.core.admission import AT_ONCE
from milvus_lifecycle.core.flight import STOPPED
from milvus_lifecycle.errors import PermanentFailure, RecoveryExhausted, summarize
from milvus_lifecycle.table import State, Trigger
from milvus_lifecycle.testing import rpc_error
from tests.observe import Call
from tests.rigs import Faithful, Rig, Roamer, Signpost

CROWD = AT_ONCE + 3


class Crowd:
    """Connections of one address, each with a call that waits for a recovery."""

    def __init__(self, rig: Rig, size: int = CROWD, **different: Any) -> None:
        self.rig, self.pool = rig, rig.manager._pool
        configs = [
            ConnectionConfig.from_uri("http://home:19530", token=f"user{n}:secret", **different)
            for n in range(size)
        ]
        self.handlers = [rig.manager.get_or_create(config) for config in configs]
        self.connections = [handler.face.connection for handler in self.handlers]

    def fail(self) -> list[Call]:
        """Every connection fails, one after the other; what knocks is held."""
        self.rig.script.hold("register")
        calls = []
        for handler, connection in zip(self.handlers, self.connections, strict=True):
            self.rig.script.plan("rpc", rpc_error("UNAVAILABLE"))
            calls.append(Call(handler.call))
            self.rig.sees(lambda: bool(_waiters(connection)), "it does not wait")  # noqa: B023
        return calls

    def knocks(self, number: int) -> None:
        """Wait until so many knock; no more do, once whoever keeps time has looked."""
        self.rig.sees(lambda: len(self.rig.script.held("register")) >= number, "too few knock")
        for _ in range(2):
            looked = threading.Event()
            self.rig.manager._driver.post(looked.set)
            assert looked.wait(20)
        inside = [flight for line in self.lines for flight in line.inside]
        assert len(inside) == number

    @property
    def lines(self) -> list[Any]:
        return list(self.pool.admission.lines.values())


def _waiters(connection: Any) -> list[Any]:
    flight = connection.lifecycle.flight
    return [] if flight is None else list(flight.waiters)


def test_one_knocks_and_the_others_follow_a_few_at_a_time() -> None:
    """The answer of the first one opens the door for eight at a time; each is asked about."""
    with Rig() as rig:
        crowd = Crowd(rig)
        before = rig.count("register")
        calls = crowd.fail()
        crowd.knocks(1)
        rig.script.held("register")[0].succeed("identifier")
        crowd.knocks(AT_ONCE)
        rig.script.let_go()
        assert [call.value(20) for call in calls] == [None] * CROWD
        assert rig.count("register") - before == CROWD
        rig.sees(lambda: crowd.lines == [], "a line is left")


def test_one_more_knocks_for_each_second_without_an_answer() -> None:
    """Up to eight, whatever keeps the first one."""
    with Rig() as rig:
        crowd = Crowd(rig)
        calls = crowd.fail()
        for number in (1, 2, 3, 4, 5, 6, 7, 8, 8, 8, 8):
            crowd.knocks(number)
            rig.clock.advance(1)
        rig.script.let_go()
        assert [call.value(20) for call in calls] == [None] * CROWD


def test_a_refusal_is_an_answer() -> None:
    """The credentials of the first one are its own trouble: the address has answered."""
    with Rig() as rig:
        crowd = Crowd(rig)
        calls = crowd.fail()
        crowd.knocks(1)
        rig.script.held("register")[0].fail(rpc_error("UNAUTHENTICATED"))
        crowd.knocks(AT_ONCE)
        rig.script.let_go()
        with pytest.raises(PermanentFailure):
            calls[0].value(20)
        assert [call.value(20) for call in calls[1:]] == [None] * (CROWD - 1)


def test_who_is_closed_gives_his_place_away() -> None:
    """The one that knocks, and one in line: the next one knocks."""
    with Rig() as rig:
        crowd = Crowd(rig, 3)
        calls = crowd.fail()
        for place in (1, 0):
            crowd.pool.close(crowd.connections[place], "tried")
        rig.sees(lambda: crowd.connections[2].lifecycle.flight.leader is not None, "no turn")
        assert [len(line.waiting) for line in crowd.lines] == [0]
        rig.script.let_go()
        assert calls[2].value(20) is None
        rig.sees(lambda: crowd.lines == [], "a line is left")


def test_who_is_never_let_in_gives_up_in_time() -> None:
    """With the end of its budget, or at most a second later; without an attempt of its own."""
    with Rig(recovery_budget=12.0, connect_timeout=60.0) as rig:
        crowd = Crowd(rig)
        calls = crowd.fail()
        for number in range(1, 14):
            crowd.knocks(min(number, AT_ONCE))
            rig.clock.advance(1)
        late = crowd.connections[AT_ONCE:]
        rig.sees(lambda: all(c.state is State.IDLE for c in late), "it goes on")
        for call in calls[AT_ONCE:]:
            with pytest.raises(RecoveryExhausted):
                call.value(20)
        rig.script.let_go()


def test_who_stood_in_line_in_a_stopped_process_has_a_turn() -> None:
    """Its budget ran out while nobody could do anything: it is tried once."""
    with Rig(recovery_budget=60.0) as rig:
        crowd = Crowd(rig, 2)
        crowd.fail()
        crowd.knocks(1)
        rig.clock.advance(100)
        second = crowd.connections[1].lifecycle
        rig.sees(lambda: second.flight is not None and second.flight.leader, "no turn")
        rig.script.let_go()


def test_a_move_that_is_never_let_in_stands_down() -> None:
    """The channel is good all along: it goes on serving."""
    roamer = Roamer()
    with Rig(roamer, recovery_budget=12.0, connect_timeout=60.0) as rig:
        crowd = Crowd(rig)
        rig.script.hold("register")
        roamer.target = "elsewhere:19530"
        for connection in crowd.connections:
            crowd.pool.step(connection, Trigger.REROUTE)
        for number in range(1, 14):
            crowd.knocks(min(number, AT_ONCE))
            rig.clock.advance(1)
        late = crowd.connections[AT_ONCE:]
        rig.sees(lambda: all(c.state is State.ACTIVE for c in late), "it goes on")
        assert all(handler.call() is None for handler in crowd.handlers[AT_ONCE:])
        rig.script.let_go()


def test_who_has_other_certificates_stands_in_another_line() -> None:
    """The same address may answer him differently."""
    with Rig() as rig:
        crowd, other = Crowd(rig, 2), Crowd(rig, 2, server_name="other")
        calls = [*crowd.fail(), *other.fail()]
        crowd.knocks(2)
        assert [len(line.inside) for line in crowd.lines] == [1, 1]
        rig.script.let_go()
        assert [call.value(20) for call in calls] == [None] * 4


def test_a_turn_that_gets_lost_is_given_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever was to begin it was interrupted: a look at the line finds that out."""
    with Rig() as rig:
        crowd = Crowd(rig, 3)
        calls, driver = crowd.fail(), rig.manager._driver
        post = driver.post
        lost: list[object] = []

        def careless(job: Callable[[], object]) -> None:
            if lost or getattr(job, "func", None) != crowd.pool._take_turn:
                post(job)
            else:
                lost.append(job)

        monkeypatch.setattr(driver, "post", careless)
        crowd.pool.close(crowd.connections[0], "tried")
        assert lost
        rig.clock.advance(1)
        crowd.knocks(2)
        rig.script.let_go()
        assert [call.value(20) for call in calls[1:]] == [None] * 2


def test_whoever_is_interrupted_as_he_sets_the_timer_leaves_that_to_others(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The line is looked at all the same."""
    with Rig() as rig:
        crowd = Crowd(rig, 2)
        maintenance = crowd.pool.maintenance
        plan = maintenance.plan
        hit: list[object] = []

        def interrupted(due: float, job: Callable[[], object]) -> None:
            if not hit and getattr(job, "func", None) == crowd.pool._look_at_line:
                hit.append(job)
                raise KeyboardInterrupt
            plan(due, job)

        monkeypatch.setattr(maintenance, "plan", interrupted)
        rig.script.hold("register")
        for connection in crowd.connections:
            try:
                facts = {"failure": _unavailable(), "generation": 1}
                crowd.pool.step(connection, Trigger.FAIL, **facts)
            except KeyboardInterrupt:
                continue
        assert hit
        (line,) = crowd.lines
        rig.sees(lambda: line.due > rig.clock(), "nobody will look")
        rig.clock.advance(1)
        crowd.knocks(2)
        rig.script.let_go()


def test_a_flight_that_is_over_is_in_no_line() -> None:
    """It was decided between its beginning and its launch."""
    with Rig() as rig:
        crowd = Crowd(rig, 1)
        (connection,) = crowd.connections
        crowd.fail()
        crowd.knocks(1)
        flight = connection.lifecycle.flight
        rig.script.let_go()
        rig.sees(lambda: connection.state is State.ACTIVE, "it goes on")
        crowd.pool.launch(connection, flight)
        assert crowd.lines == []


@pytest.mark.parametrize(("budget", "later"), [(600.0, 5.0 + STOPPED), (6.0, 6.5)])
def test_nobody_waits_in_a_thread_for_a_flapping_connection(budget: float, later: float) -> None:
    """It fails again before it has served: its gap is over before anybody flies it. One attempt is
    made even if its budget has ended by then."""
    with Rig(backoff_initial=5.0, backoff_max=5.0, recovery_budget=budget) as rig:
        crowd = Crowd(rig, 1)
        (connection,) = crowd.connections
        crowd.pool.step(connection, Trigger.FAIL, failure=_unavailable(), generation=1)
        rig.sees(lambda: connection.generation == 2, "it does not recover")
        rig.script.hold("register")
        crowd.pool.step(connection, Trigger.FAIL, failure=_unavailable(), generation=2)
        flight = connection.lifecycle.flight
        timers = len(crowd.pool.maintenance.schedule)
        crowd.pool.launch(connection, flight)  # whoever finds it asks, too: one timer is enough
        assert len(crowd.pool.maintenance.schedule) == timers
        assert flight.put_off
        assert flight.leader is None
        assert crowd.lines == []
        rig.clock.advance(later)
        crowd.knocks(1)
        rig.script.let_go()
        rig.sees(lambda: connection.generation == 3, "it does not recover")


def test_news_of_a_move_end_the_gap_of_a_flapping_connection() -> None:
    """What it was to ask once more is not where it should be: it connects elsewhere, and now."""

    class Moved(Faithful):
        def misdirected(self, address: str) -> bool:
            return address != self.target

    moved = Moved()
    with Rig(moved, backoff_initial=5.0, backoff_max=5.0, recovery_budget=600.0) as rig:
        moved.where = signpost = Signpost(rig.script)
        connection = rig.connected().face.connection
        pool = rig.manager._pool
        rig.script.plan("ping", rpc_error("UNAVAILABLE"))
        pool.step(connection, Trigger.FAIL, failure=_unavailable(), generation=1)
        rig.sees(lambda: connection.generation == 2, "it does not recover")
        pool.step(connection, Trigger.FAIL, failure=_unavailable(), generation=2)
        assert connection.lifecycle.flight.put_off
        moved.target = "elsewhere:19530"
        signpost.target = moved.target
        pool.maintenance.reroute_all()
        rig.sees(lambda: connection.generation == 3, "it waits for its gap")


def _unavailable() -> Any:
    return summarize(rpc_error("UNAVAILABLE"))
