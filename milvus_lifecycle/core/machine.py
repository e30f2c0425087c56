"""From the table to ``transitions``: one rule book for every connection of the process.

This is the only file that knows the library's ``EventData``. One plain ``Machine`` serves all
connections of both flavours without registering them: a registered model costs 7 kB and a strong
reference. The machine holds no data of a connection, so threads may fire it at the same time as
long as each connection is stepped under its own mutex (see docs/decisions.md).
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from typing import Protocol, cast

from transitions import EventData, Machine
from transitions import State as MachineState

from ..errors import ConnectionClosed, IllegalTransition
from ..table import IGNORED, IMPOSSIBLE, TRANSITIONS, Row, State, Trigger
from .facts import Facts
from .strategies import ConnectionStrategy, View

_STRATEGY = "strategy."


class Model(View, Protocol):
    """What the machine moves: a connection's lifecycle."""

    strategy: ConnectionStrategy
    #: the row that is taken
    row: Row | None

    def entered(self, facts: Facts) -> None:
        """PROBING, RECOVERING or CLOSED was entered."""


def _condition(name: str) -> Callable[[EventData], bool]:
    """A guard by its name in the table: the strategy's, or the connection's own."""
    method = name.removeprefix(_STRATEGY)

    def ask(event: EventData) -> bool:
        model, facts = cast(Model, event.model), event.kwargs["facts"]
        if method != name:
            return bool(getattr(model.strategy, method)(model, facts))
        return bool(getattr(model, "guard_" + name)(facts))

    return ask


def _taking(row: Row) -> Callable[[EventData], None]:
    """Actions run before the state moves: if one raises, nothing has happened."""

    def take(event: EventData) -> None:
        model = cast(Model, event.model)
        model.row = row
        for name in row.actions:
            getattr(model, "action_" + name)(row, event.kwargs["facts"])

    return take


def _entering(event: EventData) -> None:
    """Entering PROBING, RECOVERING or CLOSED asks the strategy what the driver has to do."""
    cast(Model, event.model).entered(event.kwargs["facts"])


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
    asked = (State.PROBING, State.RECOVERING, State.CLOSED)
    states = [MachineState(each, on_enter=_entering if each in asked else None) for each in State]
    rows = [
        {
            "trigger": row.trigger.value,
            "source": row.source,
            "dest": row.dest,
            "conditions": [_condition(name) for name in row.conditions],
            "unless": [_condition(name) for name in row.unless],
            "before": _taking(row),
        }
        for row in TRANSITIONS
    ]
    return Machine(
        model=None,
        states=states,
        transitions=rows,
        initial=State.IDLE,
        auto_transitions=False,
        send_event=True,
    )


_STEPPING = threading.local()


def _filter(record: logging.LogRecord) -> bool:
    """Drops what ``transitions`` logs of our steps: a step holds its connection's mutex, and no
    log handler may run then. Other users of the library in this process are not touched."""
    return not getattr(_STEPPING, "now", False)


logging.getLogger("transitions.core").addFilter(_filter)

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
    outer, _STEPPING.now = getattr(_STEPPING, "now", False), True
    try:
        return bool(_EVENTS[trigger].trigger(model, facts=facts))
    finally:
        _STEPPING.now = outer  # a finalizer may step another connection inside of this step
