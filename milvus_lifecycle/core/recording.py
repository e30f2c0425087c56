"""The records of a connection: what its steps leave behind, for the audit to carry.

They are made under the connection's mutex, where ``seq`` is counted. When nobody listens and
nothing is configured, none is built at all.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Sized
from typing import Protocol

from ..audit.records import (
    CREATED,
    DEBUG,
    INFO,
    OUTAGE,
    REFUSED,
    TRANSITION,
    WAITING,
    WARNING,
    TransitionRecord,
)
from ..audit.stream import Audit, Emission
from ..errors import Failure
from ..table import Row, State, Trigger
from .facts import Facts
from .flight import Flight, Outage
from .strategies import ConnectionStrategy, View


class Recorded(View, Protocol):
    """What is told of a connection."""

    audit: Audit
    strategy: ConnectionStrategy
    id: str
    seq: int
    state_since: float
    generation: int
    dedicated: bool
    topology: int | None
    outage: Outage | None
    row: Row | None
    flight: Flight | None

    @property
    def leases(self) -> Sized:
        """One for each client that holds it."""

    @property
    def in_flight(self) -> int:
        """RPCs that run on it."""


def record_step(
    connection: Recorded,
    source: State,
    trigger: Trigger,
    facts: Facts,
    flight: Flight | None,
    moved: bool,
) -> Emission | None:
    """The record of a step that was taken (or refused). None if nobody wants one of its level."""
    failure, level = facts.failure, _level(connection, trigger, source, moved)
    if level < WARNING and not connection.audit.active(level):
        return None
    record = _record(
        connection,
        TRANSITION if moved else REFUSED,
        seq=connection.seq if moved else None,
        trigger=trigger._value_,
        source=source._value_,
        reason=_reason(connection, trigger, facts, flight, moved),
        error_code=failure.code if failure is not None else None,
        attempt=flight.attempts if flight is not None else 0,
        dwell_s=facts.now - connection.state_since,
        topology_version=connection.topology,
    )
    return Emission(record, level)


def record_creation(connection: Recorded) -> Emission | None:
    """The record of a new connection, seq 0."""
    if not connection.audit.active(DEBUG):
        return None
    reason = "dedicated" if connection.dedicated else "shared"
    return Emission(_record(connection, CREATED, seq=0, reason=reason), DEBUG)


def record_wait(
    connection: Recorded, news: str, reason: str, code: str | None, seconds: float
) -> Emission | None:
    """The record of calls that wait for a collection: no state changes.

    ``news`` is what happened to the wait, ``seconds`` how long it has lasted.
    """
    if not connection.audit.active(INFO):
        return None
    record = _record(
        connection,
        WAITING,
        seq=None,
        trigger=news,
        source=connection.state._value_,
        reason=reason,
        error_code=code,
        dwell_s=seconds,
    )
    return Emission(record, INFO)


def record_outage(
    connection: Recorded, news: str, reason: str, seconds: float, outage: Outage
) -> TransitionRecord:
    """The record of what people are told of an outage: no state changes. ``seconds`` is its age."""
    return _record(
        connection,
        OUTAGE,
        seq=None,
        trigger=news,
        source=connection.state._value_,
        reason=reason,
        dwell_s=seconds,
        outage=outage,
    )


def _record(
    connection: Recorded,
    event: str,
    *,
    seq: int | None,
    reason: str,
    trigger: str | None = None,
    source: str | None = None,
    error_code: str | None = None,
    attempt: int = 0,
    dwell_s: float = 0.0,
    topology_version: int | None = None,
    outage: Outage | None = None,
) -> TransitionRecord:
    flight, outage = connection.flight, outage or connection.outage
    return TransitionRecord(
        event=event,
        ts=connection.seams.wall().isoformat(timespec="microseconds"),
        seq=seq,
        connection_id=connection.id,
        address=connection.address,
        strategy=connection.strategy.name,
        flavour=connection.audit.flavour,
        trigger=trigger,
        source=source,
        dest=connection.state._value_,  # half the time of ``value``
        reason=reason,
        error_code=error_code,
        generation=connection.generation,
        attempt=attempt,
        clients=len(connection.leases),
        in_flight=connection.in_flight,
        dwell_s=round(max(0.0, dwell_s), 6),
        topology_version=topology_version,
        pid=os.getpid(),
        thread_name=threading.current_thread().name,
        waiting=flight.waiting if flight is not None else 0,
        waited=outage.waited if outage is not None else 0,
        failed=outage.failed if outage is not None else 0,
    )


def _reason(
    connection: Recorded, trigger: Trigger, facts: Facts, flight: Flight | None, moved: bool
) -> str:
    if not moved:
        return "refused: the connection is closed"
    row, outage = connection.row, connection.outage
    reason = facts.reason or (row.why if row is not None else "")
    if trigger is Trigger.GIVE_UP:
        permanent = facts.failure is not None and facts.failure.kind is Failure.PERMANENT
        reason = "waiting does not mend this" if permanent else "the recovery budget is spent"
    elif trigger is Trigger.RECOVERED and flight is not None:
        tries = flight.attempts + 1
        reason += f", after {facts.now - flight.began:.1f} s and {tries} attempt"
        reason += "" if tries == 1 else "s"
        if outage is not None:
            reason += f"; {outage.waited} waited, {outage.failed} failed"
    if outage is not None and outage.flaps and trigger in (Trigger.FAIL, Trigger.PROBE_FAILED):
        reason = f"flapping, no call succeeded since the last recovery: {reason}"
    return reason if facts.failure is None else f"{reason}: {facts.failure.text}"


def _level(connection: Recorded, trigger: Trigger, source: State, moved: bool) -> int:
    """INFO for recovery and close, DEBUG for the rest. An outage is told of by notices; WARNING
    is what is none, and yet leaves nothing to serve with."""
    if not moved:
        return DEBUG
    dest = connection.state
    if trigger is Trigger.PROBE_FAILED and dest is State.CLOSED:
        return WARNING
    if trigger is Trigger.GIVE_UP and connection.outage is None:
        return WARNING
    if State.RECOVERING in (source, dest) or dest is State.CLOSED:
        return INFO
    return DEBUG
