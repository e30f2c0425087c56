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
    REFUSED,
    TRANSITION,
    WAITING,
    WARNING,
    TransitionRecord,
)
from ..audit.stream import Audit, Emission
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
    alarm: bool,
) -> Emission | None:
    """The record of a step that was taken (or refused). None if nobody wants one of its level.

    ``alarm``: of all steps of its outage, this is the one that people should notice.
    """
    failure, level = facts.failure, _level(connection, trigger, source, moved, alarm)
    if level < WARNING and not connection.audit.active(level):
        return None
    record = _record(
        connection,
        TRANSITION if moved else REFUSED,
        seq=connection.seq if moved else None,
        trigger=trigger._value_,
        source=source._value_,
        reason=_reason(connection, trigger, facts, moved),
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
) -> TransitionRecord:
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
    )


def _reason(connection: Recorded, trigger: Trigger, facts: Facts, moved: bool) -> str:
    if not moved:
        return "refused: the connection is closed"
    row, outage = connection.row, connection.outage
    reason = facts.reason or (row.why if row is not None else "")
    if outage is not None and outage.flaps and trigger in (Trigger.FAIL, Trigger.PROBE_FAILED):
        reason = f"flapping, no call succeeded since the last recovery: {reason}"
    return reason if facts.failure is None else f"{reason}: {facts.failure.text}"


def _level(connection: Recorded, trigger: Trigger, source: State, moved: bool, alarm: bool) -> int:
    """INFO for recovery and close, WARNING at most once an outage, DEBUG for the rest."""
    if not moved:
        return DEBUG
    if alarm:
        return WARNING
    dest = connection.state
    if trigger is Trigger.PROBE_FAILED and dest is State.CLOSED:
        return WARNING
    if State.RECOVERING in (source, dest) or dest is State.CLOSED:
        return INFO
    return DEBUG
