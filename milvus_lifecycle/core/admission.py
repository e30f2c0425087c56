"""Admission: how many connections of one address recover at the same time.

Connections that lose a server together do not all knock: one does, and the others stand in line
without a worker of their own. When it is answered they follow, a few at a time, each validated by
itself. What keeps it out may be its own trouble (a balancer's bad backend, a locator that hangs):
so one more is let in for each second without an answer.
"""

from __future__ import annotations

import threading
from dataclasses import dataclass, field

from ..errors import Failure
from ..tls import PATH_FIELDS
from .connection import ManagedConnection
from .flight import Flight, Outcome
from .mutex import Section

#: So many connections of one address recover at the same time, at most.
AT_ONCE = 8
#: After so many seconds without an answer one more is let in.
ONE_MORE = 1.0

#: With other certificates an address may answer differently.
_TLS = ("secure", "server_name", *PATH_FIELDS)

Turn = tuple[ManagedConnection, Flight]


@dataclass(slots=True)
class Line:
    """One address: how many may recover at once, who does, and who waits; first come first."""

    most: int = 1
    inside: dict[Flight, ManagedConnection] = field(default_factory=dict)
    waiting: dict[Flight, ManagedConnection] = field(default_factory=dict)
    #: when somebody looks at those who wait (monotonic seconds); in the past: nobody will
    due: float = 0.0


class Admission:
    """The lines of one pool; an address where nobody recovers has none.

    The turns that are returned are for the caller to give. He may be interrupted, and others then
    do it again: who is inside and has no leader is returned again.
    """

    def __init__(self) -> None:
        self.reset_after_fork()

    def reset_after_fork(self) -> None:
        """In the child: nobody is in line."""
        self.lines: dict[object, Line] = {}
        # A finalizer that the collector runs in here steps no connection: see ``mutex``.
        self._lock = threading.RLock()
        self._section = Section(self._lock)

    def admit(self, connection: ManagedConnection, flight: Flight) -> Line | None:
        """None: ``flight`` may begin (or is over). Else the line in which it stands now."""
        with self._lock, self._section:
            if flight.outcome is not None:
                return None
            line = self.lines.setdefault(_place(connection), Line())
            if flight not in line.inside:
                if len(line.inside) >= line.most:
                    line.waiting[flight] = connection
                    return line
                line.inside[flight] = connection
            line.waiting.pop(flight, None)
            return None

    def ended(self, connection: ManagedConnection, flight: Flight, now: float) -> list[Turn]:
        """A flight is over, wherever it was: whose turn it is."""
        with self._lock, self._section:
            place = _place(connection)
            line = self.lines.get(place)
            if line is None:
                return []
            line.inside.pop(flight, None)
            line.waiting.pop(flight, None)
            refused = flight.failure is not None and flight.failure.kind is Failure.PERMANENT
            if flight.outcome is Outcome.LANDED or refused:
                line.most = AT_ONCE
            turns = _turns(line, now)
            if not line.inside:
                self.lines.pop(place, None)
            return turns

    def look(self, line: Line, now: float) -> list[Turn]:
        """A second without an answer: whose turn it is, and for whom it is too late."""
        with self._lock, self._section:
            line.most = min(line.most + 1, AT_ONCE)
            late = [(c, flight) for flight, c in line.waiting.items() if flight.deadline <= now]
            return [*late, *_turns(line, now)]


def _turns(line: Line, now: float) -> list[Turn]:
    while line.waiting and len(line.inside) < line.most:
        flight = next(iter(line.waiting))
        line.inside[flight] = line.waiting[flight]
        del line.waiting[flight]
    return [(connection, flight) for flight, connection in line.inside.items() if flight.lost(now)]


def _place(connection: ManagedConnection) -> object:
    config = connection.lifecycle.config
    return config.address, tuple(pair for pair in config.handler_kwargs if pair[0] in _TLS)
