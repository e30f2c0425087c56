"""Flights where no scenario goes: channels that come back, locators, and outcomes that race."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import pytest

from milvus_lifecycle.core.connection import ManagedConnection
from milvus_lifecycle.core.facts import Facts, Located
from milvus_lifecycle.core.flight import STOPPED, Flight
from milvus_lifecycle.core.recovery import Recovery
from milvus_lifecycle.core.requests import Join, Procedure
from milvus_lifecycle.core.wire import WireState
from milvus_lifecycle.errors import (
    ConfigError,
    ConnectFailed,
    ConnectionClosed,
    DeadlineExceeded,
    LifecycleError,
    PermanentFailure,
    RecoveryExhausted,
    summarize,
)
from milvus_lifecycle.table import State, Trigger
from milvus_lifecycle.testing import rpc_error
from tests.cores import CONFIG
from tests.observe import Call
from tests.rigs import Faithful, Rig, Roamer, Signpost

UNAVAILABLE = rpc_error("UNAVAILABLE")
CONNECTED = ["acquire", "probe_passed"]


def faithful() -> tuple[Rig, Faithful, Any]:
    """A validated connection whose strategy asks the channel that failed first."""
    strategy = Faithful()
    rig = Rig(strategy)
    strategy.where = Signpost(rig.script)
    return rig, strategy, rig.connected()


def test_a_channel_that_answers_again_serves_on() -> None:
    """Where the target has not moved, the channel that failed is asked before another is opened."""
    rig, _, handler = faithful()
    with rig:
        call = rig.failing(handler, "ping")
        rig.script.let_go()
        call.value(20)
        assert rig.triggers() == [*CONNECTED, "fail", "stand_down"]
        assert handler.face.connection.generation == 1
        assert [channel.closed for channel in rig.script.channels] == [False]


def test_a_channel_that_was_never_asked_again_serves_on() -> None:
    """Nobody could say where to be until the budget was over: the old channel is all there is."""
    strategy = Faithful()
    with Rig(strategy, recovery_budget=5.0) as rig:
        strategy.where = Signpost(rig.script)
        handler = rig.connected()
        rig.script.plan("rpc", UNAVAILABLE)
        rig.script.hold("locate")
        call = Call(handler.call)
        lost = rig.script.wait_held("locate")
        rig.sees(lambda: rig.clock.sleeping() == 1, "the call does not wait")
        rig.clock.advance(5.0)
        lost.fail(UNAVAILABLE)
        with pytest.raises(RecoveryExhausted):
            call.value(20)
        rig.script.let_go()
        assert rig.triggers() == [*CONNECTED, "fail", "give_up"]
        wire = handler.face.connection.lifecycle.binding.wire
        assert (wire.state, wire.gone) == (WireState.CURRENT, False)
        handler.rpc()
        assert len(rig.script.channels) == 1


def test_a_channel_that_does_not_answer_is_replaced() -> None:
    """If the old channel is dead a fresh one is opened, and the old one closed, in one flight."""
    rig, _, handler = faithful()
    with rig:
        rig.script.plan("rpc", UNAVAILABLE)
        rig.script.plan("ping", rpc_error("DEADLINE_EXCEEDED"))
        handler.call()
        assert rig.triggers() == [*CONNECTED, "fail", "recovered"]
        assert [channel.closed for channel in rig.script.channels] == [True, False]


def test_what_the_old_channel_said_is_told() -> None:
    """A caller whose time is over before a fresh channel has answered hears what failed last."""
    rig, _, handler = faithful()
    with rig:
        rig.script.plan("rpc", UNAVAILABLE)
        rig.script.plan("ping", rpc_error("UNAVAILABLE", "the old channel is silent"))
        rig.script.hold("register")
        call = Call(handler.call, None, 5.0)
        rig.script.wait_held("register")
        rig.sees(lambda: rig.clock.sleeping() == 1, "the call does not wait")
        rig.clock.advance(6.0)
        with pytest.raises(DeadlineExceeded, match="the old channel is silent"):
            call.value(20)


def test_what_the_last_attempt_said_is_told() -> None:
    """Between two attempts, too: not what once began the recovery."""
    with Rig() as rig:
        handler = rig.connected()
        rig.script.plan("rpc", UNAVAILABLE)
        for _ in range(2):  # at once, and waiting for the channel to come up
            rig.script.plan("register", rpc_error("UNAVAILABLE", "refused at the second try"))
        call = Call(handler.call, None, 5.0)
        rig.audit.wait_for("retry")
        rig.sees(lambda: rig.clock.sleeping() == 2, "caller and leader do not wait")
        rig.clock.advance(6.0)
        with pytest.raises(DeadlineExceeded, match="refused at the second try"):
            call.value(20)


def test_an_outage_costs_twelve_channels_at_most() -> None:
    """A channel that gets no answer is replaced for the next attempt, but not for ever."""
    with Rig(recovery_budget=10_000.0) as rig:
        handler = rig.connected()
        rig.script.plan("rpc", UNAVAILABLE)
        rig.script.plan("register", *[rpc_error("DEADLINE_EXCEEDED")] * 60)
        call = Call(handler.call)
        for number in range(1, 21):
            rig.sees(
                lambda at=number: (
                    len(rig.audit.transitions(Trigger.RETRY)) >= at and rig.clock.sleeping() == 2
                ),
                f"attempt {number} was not made",
            )
            rig.clock.advance(60.0)
        assert len(rig.script.channels) <= 1 + 11  # 6, and one for each pace that is left
        rig.manager.close_all()
        with pytest.raises(ConnectionClosed):
            call.value(20)


def test_one_failure_is_one_recovery() -> None:
    """A decorator that asks after the channel has answered again is to retry, and nothing else."""
    rig, _, handler = faithful()
    with rig:
        error = rpc_error("UNAVAILABLE")
        rig.script.plan("rpc", error)
        with pytest.raises(type(error)):
            handler.rpc()
        rig.audit.wait_for("stand_down")
        assert rig.manager.handle_error(handler, error) is True
        assert rig.triggers() == [*CONNECTED, "fail", "stand_down"]
        assert handler.face.connection.lifecycle.failures == 1


def test_a_move_that_has_become_a_recovery_has_the_whole_budget() -> None:
    """It counts from the failure: how long the move had tried before is nobody's outage."""
    strategy = Roamer()
    with Rig(strategy, recovery_budget=60.0) as rig:
        handler = rig.connected()
        strategy.target = "north:19530"
        strategy.where = Signpost(rig.script, strategy.target)
        rig.script.hold("register")
        rig.manager._pool.maintenance.reroute_all()
        rig.script.wait_held("register")
        rig.clock.advance(50.0)
        rig.script.plan("rpc", UNAVAILABLE)
        call = Call(handler.call)
        flight = handler.face.connection.lifecycle.flight
        rig.sees(lambda: flight.mandatory, "the failure was not heard of")
        rig.sees(lambda: flight.deadline == rig.clock() + 60.0, "the budget is the move's")
        rig.script.let_go()
        call.value(20)


def test_a_target_that_moved_is_not_asked_at_its_old_place() -> None:
    """The old address is not even pinged: it may answer, and be a secondary now."""
    rig, strategy, handler = faithful()
    with rig:
        strategy.target = "north:19530"
        strategy.where = Signpost(rig.script, strategy.target)
        rig.script.plan("rpc", UNAVAILABLE)
        handler.call()
        assert rig.count("ping") == 0
        assert handler.face.connection.address == "north:19530"
        assert [channel.closed for channel in rig.script.channels] == [True, False]


@pytest.mark.parametrize(("kind", "keeps"), [("register", False), ("ping", True)])
def test_a_channel_that_was_taken_away_is_not_asked_again(kind: str, keeps: bool) -> None:
    """The target has moved, and back again before the leader looked: another channel is opened."""

    class Fickle(Roamer):
        keeps_current = keeps
        away = False

        def misdirected(self, address: str) -> bool:
            return self.away

    strategy = Fickle()
    with Rig(strategy) as rig:
        strategy.where = Signpost(rig.script)
        handler = rig.connected()
        call = rig.failing(handler, kind)
        taken = rig.script.wait_held(kind).channel
        strategy.away = True
        result = handler.face.connection.lifecycle.redirect()
        strategy.away = False
        rig.manager._pool.finish(handler.face.connection, result)
        rig.script.let_go()
        call.value(20)
        assert rig.triggers() == [*CONNECTED, "fail", "recovered"]
        assert taken is not None
        assert taken.closed
        assert handler.face.connection.lifecycle.binding.wire.channel is rig.script.channels[-1]


def test_a_close_while_the_old_channel_is_asked() -> None:
    """Close wins: the waiter has the closed error, no channel is opened, the old one is closed."""
    rig, _, handler = faithful()
    with rig:
        call = rig.failing(handler, "ping")
        rig.manager.close_all()
        with pytest.raises(ConnectionClosed):
            call.value(20)
        assert rig.triggers() == [*CONNECTED, "fail", "close"]
        assert [channel.closed for channel in rig.script.channels] == [True]


def test_a_refusal_is_not_the_end_of_an_attempt() -> None:
    """After a first refusal the attempt waits for its channel to come up: one channel, no retry."""
    with Rig() as rig:
        handler = rig.connected()
        rig.script.plan("rpc", UNAVAILABLE)
        rig.script.plan("register", UNAVAILABLE)
        handler.call()
        assert rig.triggers() == [*CONNECTED, "fail", "recovered"]
        assert len(rig.script.channels) == 2
        assert rig.count("register") == 3


class Stepped:
    """A locator whose waiting is a procedure."""

    def __init__(self) -> None:
        self.wakes: list[Callable[[], object]] = []

    def steps(self, connection: Any, failure: Any, timeout: float) -> Procedure[Located]:
        yield Join(self.wakes.append, time.monotonic() + timeout)
        return Located("north:19530")

    def release(self, connection: Any) -> None:
        """Nothing is held."""


def test_a_locator_may_have_its_leader_wait_for_others() -> None:
    """Its steps are the flight's: the leader waits until it is woken, and goes where it is told."""
    strategy, locator = Roamer(), Stepped()
    with Rig(strategy) as rig:
        strategy.target, strategy.where = "north:19530", locator  # type: ignore[assignment]
        call = Call(rig.connected)
        rig.sees(lambda: locator.wakes, "nobody waits")
        assert rig.script.channels == []
        locator.wakes[0]()
        assert call.value(20).face.connection.address == "north:19530"


def test_a_server_that_comes_up_and_refuses() -> None:
    """A permanent error while an attempt waits is told at once, and not the refusal before it."""
    with Rig() as rig:
        handler = rig.connected()
        call = rig.failing(handler, "register")
        rig.script.plan("register", rpc_error("UNAUTHENTICATED"))
        rig.script.wait_held("register").fail(UNAVAILABLE)
        with pytest.raises(PermanentFailure, match="UNAUTHENTICATED") as caught:
            call.value(20)
        assert caught.value.attempts == 1
        assert rig.triggers() == [*CONNECTED, "fail", "give_up"]


def test_a_first_connect_that_cannot_be_tried() -> None:
    """What this side has to put right is a ConfigError, not a refusal by a server."""
    strategy = Roamer()
    with Rig(strategy) as rig:
        strategy.where = Signpost(rig.script)
        rig.script.plan("locate", ConfigError("something has to be installed", field="uri"))
        with pytest.raises(ConfigError, match=r"^something has to be installed") as caught:
            rig.connected()
        assert (caught.value.field, caught.value.address) == ("uri", CONFIG.address)
        assert rig.manager.get_stats()["total_connections"] == 0


def test_a_close_as_a_flight_gives_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """Close was first: it is the last record, and what the waiter is told."""
    with Rig() as rig:
        step = rig.manager._pool.step

        def hasty(connection: Any, trigger: Trigger, **facts: Any) -> bool:
            if trigger is Trigger.GIVE_UP:
                step(connection, Trigger.CLOSE)
            return step(connection, trigger, **facts)

        monkeypatch.setattr(rig.manager._pool, "step", hasty)
        handler = rig.connected()
        rig.script.plan("rpc", UNAVAILABLE)
        rig.script.plan("register", rpc_error("PERMISSION_DENIED"))
        with pytest.raises(ConnectionClosed):
            handler.call()
        assert rig.triggers() == [*CONNECTED, "fail", "close"]


def test_a_probe_that_finds_itself_in_a_forked_child() -> None:
    """Its connection has no channel there, and a flight of the parent's decides nothing."""
    with Rig() as rig:
        handler = rig.connected()
        connection = handler.face.connection
        rig.clock.advance(31)
        result = connection.lifecycle.step(Trigger.ACQUIRE, Facts(now=rig.clock()))
        assert result.launch is not None
        leader = Recovery(rig.manager._pool, connection, result.launch).fly(object())
        rig.manager._driver.fork_child()
        with pytest.raises(StopIteration):
            next(leader)
        assert connection.state is State.IDLE
        assert rig.count("ping") == 0
        assert rig.triggers()[-1] == "forked"


# -- a process that did not run -------------------------------------------------------------------


def test_a_recovery_whose_budget_passed_in_a_stopped_process_tries_once_more() -> None:
    """The server is back meanwhile: whoever waits is served, by that one attempt."""
    with Rig(recovery_budget=5.0) as rig:
        call = rig.failing(rig.connected(), "register")
        rig.clock.advance(60)
        rig.script.wait_held("register").fail(rpc_error("DEADLINE_EXCEEDED"))
        rig.script.let_go()
        assert call.value(20) is None
        assert "give_up" not in rig.triggers()


def test_a_stopped_process_tries_no_more_than_once() -> None:
    """If the server is still away, the flight gives up as ever, and the caller is told."""
    with Rig(recovery_budget=5.0, connect_timeout=2.0) as rig:
        handler = rig.connected()
        call = rig.failing(handler, "register")
        flight = handler.face.connection.lifecycle.flight
        rig.clock.advance(60)
        rig.script.wait_held("register").fail(rpc_error("DEADLINE_EXCEEDED"))
        rig.sees(lambda: flight.attempts == 1, "its leader has not heard of it")
        rig.clock.advance(60)
        rig.script.wait_held("register").fail(rpc_error("DEADLINE_EXCEEDED"))
        rig.audit.wait_for("give_up")
        rig.script.let_go()
        with pytest.raises(LifecycleError):
            call.value(20)


@pytest.mark.parametrize("attempts", [1, 2])
def test_a_first_connect_in_a_stopped_process_tries_once_more(attempts: int) -> None:
    """The one more attempt is made whatever the first one ended with, and decides."""
    with Rig(connect_timeout=5.0) as rig:
        rig.script.hold("register")
        call = Call(rig.connected)
        for attempt in range(attempts):
            held = rig.script.wait_held("register")
            rig.sees(lambda: rig.clock.sleeping() == 1, "nobody waits for it")
            if attempt == 0:
                rig.clock.advance(60)
                rig.sees(lambda: rig.clock.sleeping() == 1, "the waiter has left")
            held.fail(UNAVAILABLE)
            rig.sees(lambda: rig.clock.sleeping() == 2 or call.done, "it goes on at once")
            rig.clock.advance(1)
        if attempts == 1:
            rig.script.let_go()
            assert call.value(20) is not None
        else:
            with pytest.raises(ConnectFailed):
                call.value(20)


def test_a_channel_with_old_tls_files_is_not_asked_again() -> None:
    """The next attempt opens another one, although the outage is young."""
    with Rig() as rig:
        handler = rig.connected()
        call = rig.failing(handler, "register")
        rig.script.outdated.append(rig.script.channels[-1])
        rig.script.held("register")[0].fail(UNAVAILABLE)
        rig.script.let_go()
        rig.clock.advance(1)
        call.value(20)
        assert rig.triggers()[-3:] == ["fail", "retry", "recovered"]
        assert len(rig.script.channels) == 3


def test_a_flight_that_nobody_launched_is_launched_by_who_finds_it() -> None:
    """Whoever decided it was interrupted before he could."""
    with Rig() as rig:
        handler = rig.connected()
        failure = Facts(now=rig.clock(), failure=summarize(rpc_error("UNAVAILABLE")), generation=1)
        handler.face.connection.lifecycle.step(Trigger.FAIL, failure)
        assert Call(handler.call).value(20) is None
        assert rig.triggers()[-2:] == ["fail", "recovered"]


@pytest.mark.parametrize("another", [True, False])
def test_a_flight_whose_leader_never_came_is_flown_after_all(
    monkeypatch: pytest.MonkeyPatch, another: bool
) -> None:
    """Whoever comes a second later, or else the last to give up, has it flown by somebody else."""
    with Rig() as rig:
        handler, driver = rig.connected(), rig.manager._driver
        launch = driver.launch
        died: list[Flight] = []

        def careless(connection: ManagedConnection, flight: Flight) -> None:
            if died:
                launch(connection, flight)
            died.append(flight)  # the first one: its leader has done nothing

        monkeypatch.setattr(driver, "launch", careless)
        rig.script.plan("rpc", rpc_error("UNAVAILABLE"))
        first = Call(handler.call, timeout=5.0)
        rig.sees(lambda: rig.clock.sleeping() == 1, "it does not wait")
        if another:
            rig.clock.advance(STOPPED + 1)
            assert Call(handler.call).value(20) is None
            assert first.value(20) is None
        else:
            rig.clock.advance(6)
            with pytest.raises(LifecycleError):
                first.value(20)
            rig.audit.wait_for("recovered")
