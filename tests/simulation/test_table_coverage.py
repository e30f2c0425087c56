"""Coverage of the table: every row is travelled, every cell without a row is tried."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from milvus_lifecycle.core.facts import Facts
from milvus_lifecycle.errors import ConnectionClosed
from milvus_lifecycle.table import IGNORED, IMPOSSIBLE, REFUSED, TRANSITIONS, State, Trigger
from tests.simulation.explore import replay, search
from tests.simulation.laws import Watch
from tests.simulation.setup import Plan, Setup
from tests.simulation.setups import CORNERS
from tests.simulation.world import World, simulated

Record = Callable[[str, object], None]
_GUEST = Setup("guest", (Plan(4, ("checkout", "rpc", "release")),), ("close_all",), faults=1)
#: what leads from nothing to each state: labels of moves
_WAYS = {
    State.IDLE: ("checkout", "starts", "register on channel 1: good", "wakes", "release"),
    State.ACTIVE: ("checkout", "starts", "register on channel 1: good", "wakes"),
    State.PROBING: ("checkout",),
    State.RECOVERING: (
        "checkout",
        "starts",
        "register on channel 1: good",
        "wakes",
        "rpc",
        "rpc on channel 1: UNAVAILABLE",
    ),
    State.CLOSED: ("checkout", "starts", "register on channel 1: good", "wakes", "close_all"),
}


def _at(state: State) -> tuple[World, Any]:
    """A world whose connection is in ``state``, led there by the engine itself."""
    world = replay(_GUEST, ())
    for label in _WAYS[state]:
        world.take(next(move for move in world.moves() if move.label == label))
    connection = world.connections[0]
    assert connection.state is state
    return world, connection


def _books(connection: Any) -> dict[str, Any]:
    """Everything that a trigger could change."""
    life = connection.lifecycle
    known = ("state", "generation", "binding", "flight", "validated", "suspect", "seq", "outage")
    return {
        **{name: getattr(life, name) for name in known},
        "leases": dict(connection.leases.held),
        "draining": list(life.draining),
        "waiters": len(life.flight.waiters) if life.flight is not None else 0,
    }


@pytest.mark.search
def test_every_row_is_travelled(record_property: Record) -> None:
    """The searches of the table's corners take each of its rows at least once."""
    Watch.rows.clear()
    for setup in CORNERS:
        outcome = search(setup.everyday())
        assert outcome.broken is None, outcome.trace
    missing = [row for row in TRANSITIONS if row not in Watch.rows]
    print(f"{len(TRANSITIONS) - len(missing)} of {len(TRANSITIONS)} rows")
    for row in TRANSITIONS:
        print(
            f"{Watch.rows.get(row, 0):>8}  {row.source} --{row.trigger}--> {row.dest} {row.guard}"
        )
    assert not missing
    record_property("rows", len(TRANSITIONS))


def test_every_cell_without_a_row_is_tried(record_property: Record) -> None:
    """A trigger where the table has no row changes nothing; where it is impossible, it raises."""
    tried = 0
    for state, trigger in sorted({*IGNORED, *IMPOSSIBLE}, key=str):
        with simulated(_GUEST):
            world, connection = _at(state)
            before, records = _books(connection), len(world.records)
            facts = Facts(now=world.kernel.now, flight=0, started=world.kernel.now + 1.0)
            if (state, trigger) in IMPOSSIBLE:
                with pytest.raises(ConnectionClosed):
                    connection.lifecycle.step(trigger, facts)
            else:
                result = connection.lifecycle.step(trigger, facts)
                assert not result.moved, (state, trigger)
                left_to_do = (*result.wakes, *result.closing, *result.retired)
                assert left_to_do == (), (state, trigger)
                assert result.launch is None, (state, trigger)
                told = result.emission is not None
                assert told is ((state, trigger) in REFUSED), (state, trigger)
            if (state, trigger) == (State.IDLE, Trigger.DOUBT):
                before["suspect"] = True  # what the reason of this cell says
            assert _books(connection) == before, (state, trigger)
            assert len(world.records) == records
            world.end()
        tried += 1
    print(f"{tried} of {len(IGNORED) + len(IMPOSSIBLE)} cells without a row")
    assert tried == len(IGNORED) + len(IMPOSSIBLE)
    record_property("cells", tried)


def test_every_cell_is_a_row_ignored_or_impossible() -> None:
    """No (state, trigger) pair is left to chance, and none is accounted for twice."""
    rows = {(row.source, row.trigger) for row in TRANSITIONS}
    every = {(state, trigger) for state in State for trigger in Trigger}
    assert rows | set(IGNORED) | set(IMPOSSIBLE) == every
    assert not rows & (set(IGNORED) | set(IMPOSSIBLE))
    assert not set(IGNORED) & set(IMPOSSIBLE)
