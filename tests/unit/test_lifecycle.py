"""The books of a connection, stepped by hand, where no scenario goes."""

from __future__ import annotations

from typing import Any

import pytest

from milvus_lifecycle.core.facts import Facts
from milvus_lifecycle.core.mutex import Reentered
from milvus_lifecycle.core.strategies import Effect, Probe, RegularStrategy
from milvus_lifecycle.core.wire import Rpc, Wire
from milvus_lifecycle.table import State, Trigger
from milvus_lifecycle.testing import rpc_error
from tests.cores import CONFIG, Core


def recovering() -> tuple[Core, Wire]:
    """A mandatory recovery under way, with its candidate."""
    core = Core().to(State.RECOVERING)
    flight, wire = core.connection.lifecycle.flight, core.wire()
    assert flight is not None
    assert core.connection.lifecycle.offer(flight, wire)
    return core, wire


def test_a_candidate_that_did_not_land_is_not_lost() -> None:
    """If another channel is swapped in, the flight's candidate is handed over to be closed."""
    core, candidate = recovering()
    flight, other = core.connection.lifecycle.flight, core.wire()
    assert flight is not None
    result = core.step(Trigger.RECOVERED, flight=flight.number, wire=other, identifier="i")
    assert core.connection.lifecycle.binding is not None
    assert core.connection.lifecycle.binding.wire is other
    assert candidate in result.retired
    assert candidate.close_if_drained()


def test_a_late_success_does_not_end_an_outage() -> None:
    """An RPC that is answered while its connection recovers proves nothing of the next channel."""
    core, _ = recovering()
    outage = core.connection.lifecycle.outage
    assert outage is not None
    first = core.life.binding
    assert first is not None
    assert not core.life.succeeded(first, core.clock())
    assert core.connection.lifecycle.outage is outage
    core.land(Trigger.RECOVERED)
    assert core.life.binding is not None
    core.life.succeeded(core.life.binding, core.clock())
    assert core.connection.lifecycle.outage is None


def test_a_channel_is_withdrawn_once() -> None:
    """A candidate that a fork has recalled is not handed over a second time by its leader."""
    core, candidate = recovering()
    flight = core.connection.lifecycle.flight
    assert flight is not None
    assert core.connection.lifecycle.recall().retired == [candidate]
    assert candidate.recalled
    assert core.connection.lifecycle.withdraw(flight).retired == []


@pytest.mark.parametrize("case", ["no flight", "no candidate", "validated"])
def test_a_fork_recalls_only_channels_that_connect(case: str) -> None:
    """Without a flight, without a candidate, or once its Connect was answered: nothing to do."""
    core = Core().to(State.ACTIVE if case == "no flight" else State.RECOVERING)
    flight, wire = core.connection.lifecycle.flight, core.wire()
    if case == "validated":
        assert flight is not None
        assert core.connection.lifecycle.offer(flight, wire)
        wire.validated = True
    assert core.connection.lifecycle.recall().retired == []
    assert not wire.recalled
    assert case != "validated" or (flight is not None and flight.candidate is wire)


class Forking(RegularStrategy):
    """Forks inside of a step, as a finalizer might."""

    asked = False

    def on_recovering(self, connection: Any, facts: Facts) -> Effect:
        with pytest.raises(Reentered):
            connection.recall()
        self.asked = True
        return super().on_recovering(connection, facts)


def test_a_fork_inside_of_a_step_leaves_the_step_alone() -> None:
    """What the step has decided so far is not lost: its flight is launched, its channel closed."""
    strategy = Forking(CONFIG)
    core = Core(strategy=strategy).to(State.ACTIVE)
    result = core.step(Trigger.FAIL, error=rpc_error("UNAVAILABLE"), generation=1)
    assert strategy.asked
    assert result.launch is core.connection.lifecycle.flight
    assert len(result.retired) == 1


class Stubborn(RegularStrategy):
    """Answers a close with something that makes no sense there."""

    def on_closed(self, connection: object, facts: object) -> Effect:
        return Probe()


def test_an_odd_answer_to_a_close_changes_nothing() -> None:
    """A strategy that says anything but Dispose has nothing released; the close is complete."""
    core = Core(strategy=Stubborn(CONFIG)).to(State.ACTIVE)
    result = core.step(Trigger.CLOSE)
    assert core.connection.state is State.CLOSED
    assert result.locator is None
    assert [wire.close_now(cut=False) for wire in result.closing] == [True]


def test_idle_time_is_since_the_last_use() -> None:
    """Seconds since the last RPC or checkout, and none while an RPC runs."""
    core = Core().to(State.ACTIVE)
    core.clock.advance(7)
    assert core.connection.idle_time == 7.0
    rpc = Rpc()
    assert core.connection.lifecycle.enter(rpc, core.clock()) is not None
    core.clock.advance(7)
    assert core.connection.idle_time == 0.0


def test_a_connection_shows_where_it_stands() -> None:
    """Its repr has what a log line needs: id, address, state, generation and clients."""
    core = Core().to(State.ACTIVE)
    shown = repr(core.connection)
    for part in (core.connection.id, "home:19530", "ACTIVE", "generation=1", "clients=1"):
        assert part in shown


def test_a_failure_is_counted_with_its_error() -> None:
    """What callers are told, and the statistics, come from the failure that began the outage."""
    core = Core().to(State.ACTIVE)
    core.step(Trigger.FAIL, error=rpc_error("UNAVAILABLE", "gone"), generation=1)
    assert core.connection.lifecycle.failures == 1
    assert "gone" in str(core.connection.lifecycle.last_failure)
