"""From the table to ``transitions``: one rule book for every connection of the process.

This is the only file that knows the library. One ``Machine`` serves all connections of both
flavours without registering them: a registered model costs 7 kB and a strong reference. The
machine holds no data of a connection, so threads may fire it at the same time as long as each
connection is stepped under its own mutex (see docs/decisions.md).
"""

from __future__ import annotations

from typing import Any, Protocol, cast

from transitions import Event, EventData, Machine
from transitions import State as MachineState
from transitions import Transition as MachineTransition

from ..errors import ConnectionClosed, IllegalTransition
from ..table import IGNORED, IMPOSSIBLE, TRANSITIONS, Row, State, Trigger
from .facts import Facts
from .strategies import ConnectionStrategy, View

_STRATEGY = "strategy."
#: entering one of these asks the strategy what the driver has to do
_ASKED = (State.PROBING, State.RECOVERING, State.CLOSED)


class Model(View, Protocol):
    """What the machine moves: a connection's lifecycle."""

    strategy: ConnectionStrategy
    #: the row that is taken
    row: Row | None

    def entered(self, facts: Facts) -> None:
        """PROBING, RECOVERING or CLOSED was entered."""


class RowTransition(MachineTransition):
    """A row of the table. It is taken without the library's log: a step holds its connection's
    mutex, and no log handler may run then."""

    def __init__(self, source: str, dest: str, *callbacks: Any, row: Row) -> None:
        super().__init__(source, dest, *callbacks)
        self.row = row
        asked = [(name, True) for name in row.conditions] + [(name, False) for name in row.unless]
        self.own = [("guard_" + n, want) for n, want in asked if not n.startswith(_STRATEGY)]
        self.theirs = [(n[len(_STRATEGY) :], w) for n, w in asked if n.startswith(_STRATEGY)]
        self.actions = ["action_" + name for name in row.actions]

    def execute(self, event_data: EventData) -> bool:
        """Ask the guards, the connection's own first; then act, move and enter.

        Actions run before the state moves: if one raises, nothing has happened.
        """
        model, facts = cast(Any, event_data.model), event_data.kwargs["facts"]
        for name, wanted in self.own:
            if bool(getattr(model, name)(facts)) is not wanted:
                return False
        for name, wanted in self.theirs:
            if bool(getattr(model.strategy, name)(model, facts)) is not wanted:
                return False
        model.row = self.row
        for name in self.actions:
            getattr(model, name)(self.row, facts)
        model.state = self.row.dest
        if model.state in _ASKED:
            model.entered(facts)
        return True


class TableEvent(Event):
    """A trigger: the first row of the model's state whose guards agree is taken."""

    def trigger(self, model: object, *args: Any, **kwargs: Any) -> bool:
        """True if a row was taken."""
        event = EventData(None, self, self.machine, model, args, kwargs)
        # A State is a string that is its name. Not any(), which is slower.
        for row in self.transitions[cast(Model, model).state]:  # noqa: SIM110
            if row.execute(event):
                return True
        return False


class TableMachine(Machine):
    """The library's machine, with rows and triggers of the table's own."""

    transition_cls = RowTransition
    event_cls = TableEvent


def check_names(model: type, strategy: type) -> None:
    """Raise LookupError for a row that names a guard or an action which there is not."""
    for row in TRANSITIONS:
        names = [(model, f"action_{name}") for name in row.actions]
        for name in (*row.conditions, *row.unless):
            its = name.startswith(_STRATEGY)
            names.append((strategy, name[len(_STRATEGY) :]) if its else (model, f"guard_{name}"))
        for owner, name in names:
            if not hasattr(owner, name):
                raise LookupError(f"{owner.__name__} has no {name}, which {row} names")


def build_machine() -> Machine:
    """The ``transitions`` machine of the table, without models."""
    machine = TableMachine(
        model=None,
        states=[MachineState(each) for each in State],
        initial=State.IDLE,
        auto_transitions=False,
        send_event=True,
    )
    for row in TRANSITIONS:
        machine.add_transition(row.trigger.value, row.source, row.dest, row=row)
    return machine


_MACHINE = build_machine()
_EVENTS = {trigger: _MACHINE.events[trigger.value] for trigger in Trigger}


def fire(model: Model, trigger: Trigger, facts: Facts) -> bool:
    """Step ``model``: True if a row was taken, False if the cell is a no-op.

    Raises ConnectionClosed for a failure of a closed connection and IllegalTransition for a
    cell that the table calls impossible. The caller holds the connection's mutex.
    """
    cell = (model.state, trigger)
    if cell in IGNORED:
        return False
    if cell in IMPOSSIBLE:
        if model.state is State.CLOSED:
            raise ConnectionClosed(address=model.address)
        raise IllegalTransition(f"{trigger} in {model.state}: {IMPOSSIBLE[cell]}")
    return bool(_EVENTS[trigger].trigger(model, facts=facts))
