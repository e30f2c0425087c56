"""The table is complete, closed, and is what the machine runs."""

from __future__ import annotations

import inspect
import logging
from dataclasses import replace
from itertools import product

import pytest

from milvus_lifecycle import RegularStrategy
from milvus_lifecycle.core import machine
from milvus_lifecycle.core.facts import Facts
from milvus_lifecycle.core.lifecycle import Lifecycle
from milvus_lifecycle.core.machine import build_machine, check_names
from milvus_lifecycle.core.mutex import Reentered, inside
from milvus_lifecycle.core.strategies import ConnectionStrategy, View
from milvus_lifecycle.errors import ConnectionClosed
from milvus_lifecycle.table import (
    IGNORED,
    IMPOSSIBLE,
    LIVE,
    REFUSED,
    TRANSITIONS,
    Row,
    State,
    Trigger,
)
from milvus_lifecycle.testing import FakeClock
from tests.cores import CONFIG, Core

CELLS = list(product(State, Trigger))
ROW_CELLS = {(row.source, row.trigger) for row in TRANSITIONS}


@pytest.mark.parametrize(("state", "trigger"), CELLS, ids=lambda cell: cell.value)
def test_every_cell_is_accounted_for(state: State, trigger: Trigger) -> None:
    """Each (state, trigger) pair has rows, or is IGNORED, or is IMPOSSIBLE: exactly one."""
    homes = [(state, trigger) in home for home in (ROW_CELLS, IGNORED, IMPOSSIBLE)]
    assert homes.count(True) == 1


def test_reasons_are_given() -> None:
    """Each row, ignored cell and impossible cell says why, in words."""
    for why in (*(row.why for row in TRANSITIONS), *IGNORED.values(), *IMPOSSIBLE.values()):
        assert len(why.split()) >= 2


def test_closed_is_absorbing() -> None:
    """No row leads out of CLOSED, and every live state has a row into it."""
    assert not [row for row in TRANSITIONS if row.source is State.CLOSED]
    assert {row.source for row in TRANSITIONS if row.dest is State.CLOSED} == set(LIVE)


def test_refused_cells_are_ignored_cells() -> None:
    """Only a no-op can be refused."""
    assert set(REFUSED) <= set(IGNORED)


def test_a_row_can_be_reached() -> None:
    """No row stands below one of its cell that is always taken."""
    for cell in ROW_CELLS:
        rows = [row for row in TRANSITIONS if (row.source, row.trigger) == cell]
        assert all(row.conditions or row.unless for row in rows[:-1])


@pytest.mark.parametrize("row", TRANSITIONS, ids=lambda row: f"{row.trigger}-{row.source}")
def test_every_name_in_the_table_exists(row: Row) -> None:
    """Each condition and action is a method with the right signature."""
    for name in (*row.conditions, *row.unless):
        if name.startswith("strategy."):
            method = getattr(ConnectionStrategy, name.removeprefix("strategy."))
            assert list(inspect.signature(method).parameters) == ["self", "connection", "facts"]
        else:
            method = getattr(Lifecycle, f"guard_{name}")
            assert list(inspect.signature(method).parameters) == ["self", "facts"]
    for name in row.actions:
        method = getattr(Lifecycle, f"action_{name}")
        assert list(inspect.signature(method).parameters) == ["self", "row", "facts"]


def test_every_guard_and_action_is_used() -> None:
    """The books hold no guard or action that no row names (``permanent`` is an ``unless``)."""
    named = {f"guard_{n}" for row in TRANSITIONS for n in (*row.conditions, *row.unless)}
    named |= {f"action_{name}" for row in TRANSITIONS for name in row.actions}
    members = {m for m in dir(Lifecycle) if m.startswith(("guard_", "action_"))}
    assert members - named == set()


def test_the_machine_is_the_table() -> None:
    """The machine has the table's rows in the table's order, and nothing else."""
    machine = build_machine()
    assert set(machine.states) == {state.name for state in State}
    assert set(machine.events) == {trigger.value for trigger in Trigger}
    built = [
        (event, transition.source, transition.dest)
        for event in machine.events
        for transitions in machine.events[event].transitions.values()
        for transition in transitions
    ]
    wanted = [(row.trigger.value, row.source.name, row.dest.name) for row in TRANSITIONS]
    assert sorted(built) == sorted(wanted)
    for state, trigger in ROW_CELLS:
        cell = machine.events[trigger.value].transitions[state.name]
        rows = [row for row in TRANSITIONS if (row.source, row.trigger) == (state, trigger)]
        assert [transition.dest for transition in cell] == [row.dest.name for row in rows]


def test_the_machine_agrees_with_the_rows() -> None:
    """In every state, every trigger takes the first row whose conditions hold, or none."""
    for state, trigger in CELLS:
        if (state, trigger) in IMPOSSIBLE:
            continue
        core = Core().to(state)
        connection = core.life
        flight = connection.flight.number if connection.flight is not None else None
        facts = Facts(now=core.clock(), flight=flight, started=core.clock() + 1)
        row = first_row(connection, trigger, facts)
        result = connection.step(trigger, facts)
        assert result.moved == (row is not None), (state, trigger)
        assert connection.state is (row.dest if row is not None else state), (state, trigger)


def first_row(connection: Lifecycle, trigger: Trigger, facts: Facts) -> Row | None:
    """The direct reading of the table."""

    def holds(name: str) -> bool:
        if name.startswith("strategy."):
            guard = getattr(connection.strategy, name.removeprefix("strategy."))
            return bool(guard(connection, facts))
        return bool(getattr(connection, f"guard_{name}")(facts))

    for row in TRANSITIONS:
        if (row.source, row.trigger) == (connection.state, trigger):
            wanted = all(holds(name) for name in row.conditions)
            if wanted and not any(holds(name) for name in row.unless):
                return row
    return None


@pytest.mark.parametrize(("state", "trigger"), list(IGNORED), ids=lambda cell: cell.value)
def test_an_ignored_cell_changes_nothing(state: State, trigger: Trigger) -> None:
    """An ignored trigger moves nothing and leaves no record but that of a refused one."""
    core = Core().to(state)
    before = len(core.records)
    seq = core.life.seq
    result = core.step(trigger, flight=99, generation=99)
    assert not result.moved
    assert (result.launch, result.retired, result.closing, result.wakes) == (None, [], [], [])
    assert core.connection.state is state
    assert core.life.seq == seq
    left = core.records[before:]
    assert [record.event for record in left] == (
        ["connection.refused"] if (state, trigger) in REFUSED else []
    )
    assert all(record.seq is None for record in left)


@pytest.mark.parametrize(("state", "trigger"), list(IMPOSSIBLE), ids=lambda cell: cell.value)
def test_an_impossible_cell_raises(state: State, trigger: Trigger) -> None:
    """A failure of a closed connection raises the closed error and leaves it closed."""
    core = Core().to(state)
    with pytest.raises(ConnectionClosed, match="home:19530"):
        core.step(trigger)
    assert core.connection.state is state


def test_outcomes_of_other_flights_are_ignored() -> None:
    """In no state does the outcome of a flight that is over move anything."""
    outcomes = [row.trigger for row in TRANSITIONS if "same_flight" in row.conditions]
    for state, trigger in product(State, sorted(set(outcomes))):
        core = Core().to(state)
        assert not core.step(trigger, flight=77).moved
        assert not core.step(trigger, flight=None).moved
        assert core.connection.state is state


class Nested(RegularStrategy):
    """Tries to step another connection inside of each step, as a finalizer may."""

    def needs_probe(self, connection: View, facts: Facts) -> bool:
        with pytest.raises(Reentered):
            Core().to(State.ACTIVE)
        return super().needs_probe(connection, facts)


class _Nosy(logging.Handler):
    def __init__(self, core: Core) -> None:
        super().__init__()
        self.core = core
        self.seen: list[bool] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.seen.append(inside())


def test_no_log_handler_runs_under_a_step() -> None:
    """What ``transitions`` logs at DEBUG does not reach handlers while a mutex is held."""
    strategy = Nested(CONFIG)
    core, logger = Core(strategy=strategy), logging.getLogger("transitions")
    nosy, level = _Nosy(core), logger.level
    logger.addHandler(nosy)
    logger.setLevel(logging.DEBUG)
    try:
        core.to(State.RECOVERING)
        outer = len(nosy.seen)
        logging.getLogger("transitions.core").debug("another user of the library")
    finally:
        logger.removeHandler(nosy)
        logger.setLevel(level)
    assert outer == 0
    assert nosy.seen == [False]


def test_two_connections_do_not_meet_in_the_machine() -> None:
    """The machine holds nothing of a connection: stepping one leaves the other alone."""
    one, two = Core().to(State.ACTIVE), Core().to(State.PROBING)
    one.step(Trigger.CLOSE)
    assert two.connection.state is State.PROBING
    assert isinstance(two.clock, FakeClock)
    assert [record.seq for record in two.records] == [1, 2, 3]


@pytest.mark.parametrize(
    "row",
    [
        replace(TRANSITIONS[0], conditions=("helt",)),
        replace(TRANSITIONS[0], unless=("strategy.needs_prob",)),
        replace(TRANSITIONS[0], actions=("begin_prob",)),
    ],
    ids=["guard", "strategy", "action"],
)
def test_a_row_that_names_what_there_is_not_is_found_at_import(
    monkeypatch: pytest.MonkeyPatch, row: Row
) -> None:
    """The name and the row are told; the shipped rows are fine."""
    check_names(Lifecycle, ConnectionStrategy)
    monkeypatch.setattr(machine, "TRANSITIONS", (*TRANSITIONS, row))
    with pytest.raises(LookupError, match=r"has no (guard_helt|needs_prob|action_begin_prob), "):
        check_names(Lifecycle, ConnectionStrategy)
