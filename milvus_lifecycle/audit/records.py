"""Audit records: what a step leaves behind, and to whom it is told.

A record is made and queued under the connection's mutex (where ``seq`` is counted), and read by
listeners and sinks on threads of their own (``stream``). When nobody listens and nothing is
configured, no record is built at all.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from contextvars import Context, copy_context
from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING

from ..errors import brief, error_code
from ..table import State, Trigger
from .stream import Outlet

if TYPE_CHECKING:
    from ..core.connection import ManagedConnection
    from ..core.facts import Facts
    from ..core.flight import Flight, Outage

SCHEMA = 1
DEBUG, INFO, WARNING = 10, 20, 30

TRANSITION = "connection.transition"
CREATED = "connection.created"
REFUSED = "connection.refused"
WAITING = "connection.waiting"


@dataclass(frozen=True, slots=True)
class TransitionRecord:
    """One state change of one connection (design: the audit schema, version 1).

    ``seq`` is gap-free per connection and starts at 1 (0: the connection was created; null: a
    refused trigger or a wait, which change nothing). ``ts`` is UTC, ISO 8601. ``dwell_s`` is the
    time in seconds that was spent in ``source``, or waited. ``attempt`` counts the failed attempts
    of the flight. States are upper case, triggers lower case.
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
    schema: int = SCHEMA

    def as_dict(self) -> dict[str, object]:
        """Flat and JSON-ready, ``event`` included."""
        return {name: getattr(self, name) for name in _FIELDS}


# Not dataclasses.asdict: it copies every value deeply, for 10 us a record.
_FIELDS = tuple(field.name for field in fields(TransitionRecord))


class Emission:
    """A record, the log level that it deserves, and the context of whoever caused it."""

    __slots__ = ("context", "level", "readers", "record")

    def __init__(self, record: TransitionRecord, level: int) -> None:
        self.record = record
        self.level = level
        self.context: Context = copy_context()
        #: who has been given it: a step that was interrupted may queue it twice
        self.readers: list[object] = []


Listener = Callable[[TransitionRecord], object]


class Sink:
    """Where records go besides listeners. ``wants`` must cost well under a microsecond."""

    def wants(self) -> bool:
        """Would anything become of a record now?"""
        return False

    def write(self, record: TransitionRecord, level: int) -> None:
        """Deliver one record, on a thread that only this sink keeps waiting.

        May raise: that is counted, never the trouble of whoever caused the record.
        """

    def note_lost(self, count: int) -> None:
        """``count`` records were dropped here, because this sink was too slow for them."""

    @property
    def reader(self) -> Reader:
        """Its queue: one, however many managers write to it, so that records keep their order."""
        known: Reader | None = vars(self).get("_reader")
        if known is None:  # of two that come at once, one wins
            new = Reader(self.write, self.wants, self.note_lost)
            known = vars(self).setdefault("_reader", new)
        return known

    def end(self) -> None:
        """The engine was uninstalled: hold nothing open from now on."""


class Reader:
    """A listener or a sink, with the queue that it is served from."""

    def __init__(
        self,
        write: Callable[[TransitionRecord, int], object],
        wants: Callable[[], bool],
        note_lost: Callable[[int], object],
    ) -> None:
        self.wants = wants
        self.outlet: Outlet[Emission] = Outlet(self._read, self._lost)
        #: deliveries that raised
        self.failures = 0
        self._write: Callable[[TransitionRecord, int], object] = write
        self._note_lost = note_lost

    def stop(self) -> None:
        """Tell it no more, not even what waits."""
        self.wants = _never

    def _read(self, emission: Emission) -> None:
        if self in emission.readers or not self.wants():
            return
        emission.readers.append(self)
        self._attempt(emission.context.copy().run, self._write, emission.record, emission.level)

    def _lost(self, count: int) -> None:
        self._attempt(self._note_lost, count)

    def _attempt(self, tell: Callable[..., object], *what: object) -> None:
        try:
            tell(*what)
        except BaseException as error:  # this thread is ours: nobody else is to end by it
            self.failures += 1
            if self.failures == 1:
                from .logs import complain

                complain(f"a reader of the audit raised {brief(error)}; more is only counted")


class Audit:
    """The record stream of one manager: makes records, and queues them for its readers."""

    def __init__(self, flavour: str, sinks: tuple[Sink, ...] = ()) -> None:
        self.flavour = flavour
        self.readers = tuple(sink.reader for sink in sinks)
        self._lock = threading.Lock()

    def subscribe(self, listener: Listener) -> Callable[[], None]:
        """Call ``listener(record)`` for every record from now on. Returns the unsubscriber."""
        if not callable(listener):
            raise TypeError(f"listener must be callable, not {type(listener).__name__}")
        reader = Reader(lambda record, level: listener(record), _always, _dropped)
        with self._lock:
            self.readers = (*self.readers, reader)

        def unsubscribe() -> None:
            reader.stop()
            with self._lock:
                self.readers = tuple(known for known in self.readers if known is not reader)

        return unsubscribe

    @property
    def failures(self) -> int:
        """Deliveries to a listener or sink that raised."""
        return sum(reader.failures for reader in self.readers)

    def reset_after_fork(self) -> None:
        """In the child: another thread of the parent may have held the lock."""
        self._lock = threading.Lock()

    def active(self) -> bool:
        """Does anybody want records right now?"""
        wanted = False
        for reader in self.readers:  # not any(): on the silent path its generator is half the cost
            wanted = wanted or reader.wants()
        return wanted

    # -- telling ---------------------------------------------------------------------------------

    def queue(self, emission: Emission) -> None:
        """Hand a record over, under the mutex of its connection: in the order of its ``seq``."""
        for reader in self.readers:
            if reader.wants():
                reader.outlet.put(emission)

    def serve(self) -> None:
        """See that what was queued is read. Called outside of every lock."""
        for reader in self.readers:
            reader.outlet.serve()

    def flush(self, limit: float) -> bool:
        """Wait until every record so far has been read, ``limit`` seconds for each reader."""
        flushed = [reader.outlet.flush(limit) for reader in self.readers]
        return all(flushed)

    # -- preparing: under the connection's mutex ----------------------------------------------

    def prepare(
        self,
        connection: ManagedConnection,
        source: State,
        trigger: Trigger,
        facts: Facts,
        flight: Flight | None,
        moved: bool,
    ) -> Emission | None:
        """The record of a step that was taken (or refused). None if nobody wants it."""
        if not self.active():
            if trigger in _WARNERS:  # what is noted must not depend on who listens
                _level(connection, trigger, source, moved)
            return None
        level = _level(connection, trigger, source, moved)
        error = facts.error
        row = connection.row
        if not moved:
            reason = "refused: the connection is closed"
        else:
            reason = facts.reason or (row.why if row is not None else "")
            outage = connection.outage
            if outage is not None and outage.flaps and _begins(trigger):
                reason = f"flapping, no call succeeded since the last recovery: {reason}"
            if error is not None:
                reason = f"{reason}: {brief(error)}"
        binding = connection.binding
        version = binding.version if binding is not None else None
        if trigger is Trigger.REROUTE:
            version = connection.strategy.version(connection)
        elif facts.located is not None and facts.located.version is not None:
            version = facts.located.version
        record = TransitionRecord(
            event=TRANSITION if moved else REFUSED,
            ts=connection.seams.wall().isoformat(timespec="microseconds"),
            seq=connection.seq if moved else None,
            connection_id=connection.id,
            address=connection.address,
            strategy=connection.strategy.name,
            flavour=self.flavour,
            trigger=trigger.value,
            source=source.value,
            dest=connection.state.value,
            reason=reason,
            error_code=error_code(error) if error is not None else None,
            generation=connection.generation,
            attempt=flight.attempts if flight is not None else 0,
            clients=len(connection.leases),
            in_flight=connection.in_flight,
            dwell_s=round(max(0.0, facts.now - connection.state_since), 6),
            topology_version=version,
            pid=os.getpid(),
            thread_name=threading.current_thread().name,
        )
        return Emission(record, level)

    def created(self, connection: ManagedConnection) -> Emission | None:
        """The record of a new connection, seq 0."""
        if not self.active():
            return None
        record = TransitionRecord(
            event=CREATED,
            ts=connection.seams.wall().isoformat(timespec="microseconds"),
            seq=0,
            connection_id=connection.id,
            address=connection.address,
            strategy=connection.strategy.name,
            flavour=self.flavour,
            trigger=None,
            source=None,
            dest=State.IDLE.value,
            reason="dedicated" if connection.dedicated else "shared",
            error_code=None,
            generation=connection.generation,
            attempt=0,
            clients=len(connection.leases),
            in_flight=0,
            dwell_s=0.0,
            topology_version=None,
            pid=os.getpid(),
            thread_name=threading.current_thread().name,
        )
        return Emission(record, DEBUG)

    def waiting(
        self,
        connection: ManagedConnection,
        news: str,
        reason: str,
        code: str | None,
        seconds: float,
    ) -> Emission | None:
        """The record of calls that wait for a collection: no state changes.

        ``news`` is what happened to the wait, ``seconds`` how long it has lasted.
        """
        emission = self.created(connection)
        if emission is None:
            return None
        state = connection.state.value
        record = replace(
            emission.record,
            event=WAITING,
            seq=None,
            trigger=news,
            source=state,
            dest=state,
            reason=reason,
            error_code=code,
            in_flight=connection.in_flight,
            dwell_s=round(seconds, 6),
        )
        return Emission(record, INFO)


def _always() -> bool:
    return True


def _never() -> bool:
    return False


def _dropped(count: int) -> None:
    from .logs import complain

    complain(f"a listener was too slow: it missed {count} records")


def _level(connection: ManagedConnection, trigger: Trigger, source: State, moved: bool) -> int:
    """INFO for recovery and close, WARNING at most once an outage, DEBUG for the rest."""
    if not moved:
        return DEBUG
    outage = connection.outage
    dest = connection.state
    if trigger is Trigger.GIVE_UP or (
        outage is not None and outage.flaps == 1 and _begins(trigger)
    ):
        return _warn_once(outage)
    if trigger in (Trigger.PROBE_FAILED, Trigger.ABANDONED) and dest is State.CLOSED:
        return WARNING if trigger is Trigger.PROBE_FAILED else INFO
    if dest in (State.RECOVERING, State.CLOSED) or source is State.RECOVERING:
        return INFO
    return DEBUG


_WARNERS = frozenset({Trigger.GIVE_UP, Trigger.FAIL, Trigger.PROBE_FAILED})


def _begins(trigger: Trigger) -> bool:
    return trigger in (Trigger.FAIL, Trigger.PROBE_FAILED)


def _warn_once(outage: Outage | None) -> int:
    if outage is None:
        return WARNING
    if outage.warned:
        return INFO
    outage.warned = True
    return WARNING
