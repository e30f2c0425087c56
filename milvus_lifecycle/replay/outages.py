"""What one connection lived through: its flights and outages, folded from its records.

Definitions, which ``audit stats`` and the report share:

- A *recovery* is a flight that landed as ``recovered`` after it began with ``fail`` or
  ``probe_failed``. Its duration is the time in RECOVERING, retries included. A flight that
  began as reroute or recycle is a *move*: nothing had failed.
- An *outage* begins with the ``fail`` or ``probe_failed`` that leads to RECOVERING, and ends
  when something vouches for the connection again: recovered, stand_down, probe_passed or
  served. A give_up or an abandoned flight does not end it. Its duration adds up ``dwell_s``,
  which is monotonic time: a clock that was set does not matter. Time in IDLE while no client
  holds the connection does not count: nobody suffers. Its attempts are the failed ones and
  the one that landed.
- A *relapse* is an outage that begins within ``RELAPSE`` seconds of the end of the same
  connection's last one; a connection with ``FLAPPING`` relapses or more is flapping.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from datetime import datetime

from ..table import State, Trigger
from .records import Created, Transition

UNFINISHED = "still open when the log ends"

RELAPSE = 30.0
FLAPPING = 2

_BEGINS = frozenset({str(Trigger.FAIL), str(Trigger.PROBE_FAILED)})
_MOVES = frozenset({str(Trigger.REROUTE), str(Trigger.RECYCLE)})
_ENDS = frozenset(
    map(str, (Trigger.RECOVERED, Trigger.STAND_DOWN, Trigger.PROBE_PASSED, Trigger.SERVED))
)
_RETRY, _RECOVERED = str(Trigger.RETRY), str(Trigger.RECOVERED)
_GIVE_UP = str(Trigger.GIVE_UP)
_IDLE, _PROBING = str(State.IDLE), str(State.PROBING)
_RECOVERING, _CLOSED = str(State.RECOVERING), str(State.CLOSED)


@dataclass
class Outage:
    """One outage of one connection. ``end`` is the trigger that ended it, or says why none did."""

    connection_id: str
    address: str
    began: datetime
    cause: str
    reason: str
    error_code: str | None
    seconds: float = 0.0
    attempts: int = 0
    give_ups: int = 0
    relapse: bool = False
    end: str = UNFINISHED

    @property
    def unfinished(self) -> bool:
        """Was it still open when the log ended?"""
        return self.end == UNFINISHED

    def as_dict(self) -> dict[str, object]:
        """JSON-ready."""
        values = asdict(self)
        values["began"] = self.began.isoformat()
        values["seconds"] = round(self.seconds, 6)
        return values


@dataclass
class Landing:
    """A flight that ended well, after ``seconds``; ``move``: it began without a failure."""

    seconds: float
    move: bool


class Life:
    """One connection, record by record."""

    __slots__ = (
        "address",
        "connection_id",
        "flight_s",
        "held",
        "incident",
        "last_end",
        "moving",
        "outage",
        "relapses",
        "state",
        "ts",
    )

    def __init__(self, record: Created | Transition) -> None:
        self.connection_id = record.connection_id
        self.address = record.address
        #: where the records leave the connection; "" before its first step
        self.state = record.dest if isinstance(record, Created) else ""
        self.ts: datetime = record.ts
        self.outage: Outage | None = None
        self.last_end: datetime | None = None
        self.relapses = 0
        #: seconds in RECOVERING so far; None while no flight is known to be under way
        self.flight_s: float | None = None
        self.moving = False
        self.held = True
        #: what the last outage was part of, for whoever keeps such books
        self.incident: object = None

    def add(self, record: Transition) -> tuple[Landing | None, Outage | None]:
        """Take one step; returns the flight and the outage that it ended, if any."""
        ended: Outage | None = None
        if self.state and record.source != self.state:
            # Records are missing: what was under way cannot be measured any more.
            ended = self._end("records are missing", self.ts)
            self.flight_s = None
        dwell = record.dwell_s or 0.0
        if self.outage is not None and (self.held or record.source != _IDLE):
            self.outage.seconds += dwell
        landing = self._fly(record, dwell)
        ended = self._suffer(record) or ended
        self.state = record.dest
        self.held = record.clients != 0
        self.ts = record.ts
        self.address = record.address or self.address
        return landing, ended

    def _fly(self, record: Transition, dwell: float) -> Landing | None:
        """The flight's books: the time in RECOVERING from its first record to its last."""
        if record.source == _RECOVERING:
            if self.flight_s is not None:
                self.flight_s += dwell
            if record.dest == _RECOVERING:
                return None
            flight_s, self.flight_s = self.flight_s, None
            if record.trigger == _RECOVERED and flight_s is not None:
                return Landing(flight_s, self.moving)
        elif record.dest == _RECOVERING:
            self.flight_s = 0.0
            self.moving = record.trigger in _MOVES
        return None

    def _suffer(self, record: Transition) -> Outage | None:
        """The outage's books; returns the outage that this record ended."""
        trigger = record.trigger
        if record.dest == _RECOVERING and trigger in _BEGINS:
            if self.outage is None:
                self._begin(record)
        elif trigger == _GIVE_UP and self.outage is None:
            # It began as a move, and failed on the way: only give_up tells.
            self._begin(record).seconds = record.dwell_s or 0.0
        outage = self.outage
        if outage is None:
            return None
        if trigger in (_RETRY, _GIVE_UP, _RECOVERED):
            outage.attempts += 1
            outage.error_code = outage.error_code or record.error_code
        if trigger == _GIVE_UP:
            outage.give_ups += 1
        if trigger in _ENDS or record.dest == _CLOSED:
            return self._end(trigger, record.ts)
        return None

    def _begin(self, record: Transition) -> Outage:
        self.outage = Outage(
            connection_id=self.connection_id,
            address=self.address or record.address,
            began=record.ts,
            cause=record.trigger,
            reason=record.reason,
            error_code=record.error_code,
        )
        if self.last_end is not None:
            healthy = (record.ts - self.last_end).total_seconds()
            if 0 <= healthy <= RELAPSE:
                self.outage.relapse = True
                self.relapses += 1
        return self.outage

    def _end(self, how: str, moment: datetime) -> Outage | None:
        outage, self.outage = self.outage, None
        if outage is not None:
            outage.end = how
            self.last_end = moment
        return outage


def is_failed_connect(record: Transition) -> bool:
    """The first connect failed: the connection never lived."""
    return record.source == _PROBING and record.dest == _CLOSED and record.trigger in _BEGINS
