"""An audit record: its schema, and where records may go.

The one declaration of the fields: sinks write them as they stand here, and ``replay`` reads logs
by them.
"""

from __future__ import annotations

from dataclasses import dataclass, fields

SCHEMA = 1
DEBUG, INFO, WARNING = 10, 20, 30

TRANSITION = "connection.transition"
CREATED = "connection.created"
REFUSED = "connection.refused"
WAITING = "connection.waiting"
OUTAGE = "connection.outage"
RECORDS_LOST = "connection.records_lost"
EVENTS = (TRANSITION, CREATED, REFUSED, WAITING, OUTAGE, RECORDS_LOST)


@dataclass(frozen=True, slots=True)
class TransitionRecord:
    """One state change of one connection (the audit schema, version 1: ``docs/audit.md``).

    ``seq`` is gap-free per connection and starts at 1 (0: the connection was created; null: a
    refused trigger, a wait or a notice, which change nothing). ``ts`` is UTC, ISO 8601. ``dwell_s``
    is the time in seconds that was spent in ``source``, waited, or out of service. ``attempt``
    counts the failed attempts of the flight; of calls, ``waiting`` those that wait for it now,
    ``waited`` those that did so in this outage, ``failed`` those that it made fail. States are
    upper case, triggers lower case.
    """

    event: str
    ts: str
    seq: int | None
    connection_id: str
    address: str
    strategy: str
    flavour: str
    trigger: str | None
    source: str | None
    dest: str
    reason: str
    error_code: str | None
    generation: int
    attempt: int
    clients: int
    in_flight: int
    dwell_s: float
    topology_version: int | None
    pid: int
    thread_name: str
    waiting: int = 0
    waited: int = 0
    failed: int = 0
    schema: int = SCHEMA

    def as_dict(self) -> dict[str, object]:
        """Flat and JSON-ready, ``event`` included."""
        return {name: getattr(self, name) for name in _FIELDS}


# Not dataclasses.asdict: it copies every value deeply, for 10 us a record.
_FIELDS = tuple(field.name for field in fields(TransitionRecord))


@dataclass(frozen=True, slots=True)
class RecordsLost:
    """A line of a log whose sink could not write ``count`` records of process ``pid``."""

    event: str
    ts: str
    connection_id: str | None
    count: int
    pid: int
    schema: int = SCHEMA


@dataclass(frozen=True, slots=True)
class Waited:
    """A call has waited for a connection: a first connect, or the end of an outage. No record."""

    #: the server's, as in records
    address: str
    #: how long it waited
    seconds: float
    #: has it got one? If not, its own time was up, or that which the policy allows.
    served: bool


class Sink:
    """Where records go besides listeners. ``wants`` must cost well under a microsecond."""

    def wants(self, level: int = WARNING) -> bool:
        """Would anything become of a record of that level now?"""
        return True

    def write(self, record: TransitionRecord, level: int) -> None:
        """Deliver one record, on a thread that only this sink keeps waiting.

        May raise: that is counted, never the trouble of whoever caused the record.
        """

    #: is it told of calls that waited, too? (``note_wait``)
    hears_waits = False

    def note_wait(self, waited: Waited) -> None:
        """A call has waited for a connection. On that thread, too."""

    def note_lost(self, count: int) -> None:
        """``count`` records were dropped here, because this sink was too slow for them."""

    def end(self) -> None:
        """The engine was uninstalled: hold nothing open from now on. On that thread, too."""
