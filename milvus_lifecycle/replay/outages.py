"""What one connection lived through, its outages above all; and the incidents they are part of.

``docs/audit.md`` ("What the figures mean") has the definitions, and its queries compute the same
figures. Durations add up ``dwell_s``, which is monotonic time: a clock that was set does not
matter. Only what lasts when the log ends is measured by the clocks that wrote it.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime, timedelta

from ..table import State, Trigger
from .records import Created, Transition

UNFINISHED = "still open when the log ends"
MISSING = "records are missing"

#: Seconds after the end of an outage within which the next failure is a relapse.
RELAPSE = 30.0
#: Relapses that make a connection flap.
FLAPPING = 2
#: How the engine begins the reason of a failure if no call succeeded since the last recovery.
NOT_OVER = "flapping, "
#: Seconds (30 years). A longer dwell time is damage, and would drown everything else.
_LONGEST_DWELL = 1e9

FAILURES = frozenset({str(Trigger.FAIL), str(Trigger.PROBE_FAILED)})
_ENDS = frozenset(
    map(str, (Trigger.RECOVERED, Trigger.STAND_DOWN, Trigger.PROBE_PASSED, Trigger.SERVED))
)
_GIVE_UP = str(Trigger.GIVE_UP)
#: Triggers that end an attempt of a recovery.
ATTEMPTS = frozenset({str(Trigger.RETRY), _GIVE_UP, str(Trigger.RECOVERED)})
_IDLE, _RECOVERING, _CLOSED = map(str, (State.IDLE, State.RECOVERING, State.CLOSED))


@dataclass
class Outage:
    """One outage of one connection. ``end`` is the trigger that ended it, or says why none did.

    ``relapses`` counts the failures in it that came within ``RELAPSE`` s of an end; ``attempts``
    are the failed ones and the one that landed; ``waited`` and ``failed`` count calls, where the
    records tell of them.
    """

    connection_id: str
    address: str
    began: datetime
    cause: str
    reason: str
    error_code: str | None
    seconds: float = 0.0
    attempts: int = 0
    give_ups: int = 0
    relapses: int = 0
    waited: int = 0
    failed: int = 0
    end: str = UNFINISHED


@dataclass(slots=True, eq=False)
class Life:
    """One connection, record by record.

    An outage that has ended is kept until it is *settled*: the next failure may say that it
    goes on. ``outages`` and ``outage_s`` count what is settled.
    """

    connection_id: str
    address: str
    #: where the records leave the connection; "" before its first step
    state: str
    #: told of each outage that is settled
    tell: Callable[[Life, Outage], None]
    _moment: datetime
    records: int = 0
    outages: int = 0
    outage_s: float = 0.0
    relapses: int = 0
    #: the outage under way, or the last one
    outage: Outage | None = None
    #: what it is part of, for whoever keeps such books
    incident: Incident | None = None
    _held: bool = True
    #: has ``outage`` ended, as far as is known?
    _over: bool = False
    #: since it ended: seconds, and those of them that count if it goes on
    _healthy_s: float = 0.0
    _unsettled_s: float = 0.0
    #: the record that began the recovery under way, and its seconds so far
    _recovery: Transition | None = None
    _recovery_s: float = 0.0

    @classmethod
    def of(cls, record: Created | Transition, tell: Callable[[Life, Outage], None]) -> Life:
        """The life that ``record`` is the first to tell of."""
        created = isinstance(record, Created)
        state = record.dest if created else ""
        return cls(record.connection_id, record.address, state, tell, record.ts, int(created))

    def suffered(self, until: datetime) -> float:
        """Seconds in outages until then."""
        if self.outage is None:
            return self.outage_s
        total = self.outage_s + self.outage.seconds
        if not self._over and (self._held or self.state != _IDLE):
            total += max(0.0, (until - self._moment).total_seconds())
        return total

    def add(self, record: Transition) -> float | None:
        """Take one step; returns the seconds that its source lasted, if the figure is usable."""
        if self.state and record.source != self.state:
            # What was under way cannot be measured any more.
            self.settle(MISSING)
            self._recovery = None
        dwell: float | None = record.dwell_s
        if dwell is not None and not 0 <= dwell <= _LONGEST_DWELL:
            dwell = None
        self._pass(record.source, dwell or 0.0)
        self._judge(record)
        if record.dest == _CLOSED:
            self.settle(record.trigger)
        if record.dest != _RECOVERING:
            self._recovery = None
        self.records += 1
        self.state = record.dest
        self.address = record.address or self.address
        self._held = record.clients != 0
        self._moment = record.ts
        return dwell

    def finish(self, until: datetime) -> float:
        """The log ends; returns the seconds in the last state since the last record."""
        left = max(0.0, (until - self._moment).total_seconds())
        self._pass(self.state, left)
        self.settle()
        return left

    def _pass(self, state: str, seconds: float) -> None:
        """The connection spent ``seconds`` in ``state``."""
        self._recovery_s += seconds
        # IDLE and not held: nobody suffers.
        counted = seconds if self._held or state != _IDLE else 0.0
        if self._over:
            self._healthy_s += seconds
            self._unsettled_s += counted
        elif self.outage is not None:
            self.outage.seconds += counted

    def _judge(self, record: Transition) -> None:
        """What a step says of outages."""
        if record.dest == _RECOVERING and record.source != _RECOVERING:
            self._recovery, self._recovery_s = record, 0.0
            if record.trigger in FAILURES and (self.outage is None or self._over):
                self._fail(record)
        elif record.trigger == _GIVE_UP and (self.outage is None or self._over):
            # A move stands down unless its channel fails on the way; only give_up tells of it.
            outage = self._begin(self._recovery or record)
            if self._recovery is not None:
                outage.seconds = self._recovery_s
                outage.attempts = max(0, (record.attempt or 0) - 1)
        if self.outage is not None and not self._over:
            self._go_on(self.outage, record)

    def _go_on(self, outage: Outage, record: Transition) -> None:
        outage.waited = max(outage.waited, record.waited or 0)
        outage.failed = max(outage.failed, record.failed or 0)
        if record.trigger in ATTEMPTS:
            outage.attempts += 1
            outage.give_ups += int(record.trigger == _GIVE_UP)
        if record.trigger in _ENDS:
            outage.end = record.trigger
            self._over, self._healthy_s, self._unsettled_s = True, 0.0, 0.0
        elif record.dest != _CLOSED:
            outage.error_code = outage.error_code or record.error_code

    def _fail(self, record: Transition) -> None:
        outage = self.outage
        relapse = outage is not None and self._healthy_s <= RELAPSE
        self.relapses += int(relapse)
        if outage is not None and relapse and record.reason.startswith(NOT_OVER):
            outage.seconds += self._unsettled_s
            outage.relapses += 1
            outage.end, self._over = UNFINISHED, False
        else:
            self._begin(record).relapses = int(relapse)

    def _begin(self, record: Transition) -> Outage:
        self.settle()
        address = record.address or self.address
        cause = record.trigger, record.reason
        self.outage = Outage(self.connection_id, address, record.ts, *cause, record.error_code)
        return self.outage

    def settle(self, end: str = UNFINISHED) -> None:
        """Nothing can change the outage any more; ``end`` says why, if it has not ended."""
        outage, self.outage = self.outage, None
        if outage is not None:
            outage.end = outage.end if self._over else end
            self._over = False
            self.outages += 1
            self.outage_s += outage.seconds
            self.tell(self, outage)


# -- incidents --------------------------------------------------------------------------------

#: Outages belong together if one begins within this time of another one of the same endpoint.
TOGETHER = timedelta(seconds=5)
#: Incidents that are remembered; beyond, those with the least suffering are forgotten.
_KEPT = 2000


@dataclass
class Incident:
    """Outages of one endpoint that began together: what the endpoint went through.

    There were ``outages`` of ``connections`` connections (some had several). ``seconds`` is the
    longest of them, ``suffered_s`` their sum (connection-seconds). An outage is counted when it
    begins, and its length, attempts and error once it is settled.
    """

    address: str
    began: datetime
    last_began: datetime
    connections: int = 0
    outages: int = 0
    seconds: float = 0.0
    suffered_s: float = 0.0
    attempts: int = 0
    give_ups: int = 0
    unfinished: int = 0
    waited: int = 0
    failed: int = 0
    settled: int = 0
    causes: Counter[str] = field(default_factory=Counter)
    errors: Counter[str] = field(default_factory=Counter)
    reason: str = ""

    def begin(self, outage: Outage, *, again: bool) -> None:
        """One more outage; ``again``: of a connection that had one in here before."""
        if outage.began <= self.began:
            self.began = outage.began
            self.reason = outage.reason
        self.last_began = max(self.last_began, outage.began)
        self.connections += int(not again)
        self.outages += 1
        self.causes[outage.cause] += 1

    def end(self, outage: Outage) -> None:
        """One of its outages is settled."""
        self.settled += 1
        self.seconds = max(self.seconds, outage.seconds)
        self.suffered_s += outage.seconds
        self.attempts += outage.attempts
        self.give_ups += outage.give_ups
        self.waited += outage.waited
        self.failed += outage.failed
        self.unfinished += int(outage.end == UNFINISHED)
        if outage.error_code:
            self.errors[outage.error_code] += 1


class IncidentBook:
    """Sorts outages, in the order in which they begin, into incidents."""

    def __init__(self) -> None:
        self._by_address: defaultdict[str, list[Incident]] = defaultdict(list)
        self._count = 0
        self._room = 2 * _KEPT

    def begin(self, outage: Outage, last: Incident | None) -> Incident:
        """Count an outage that begins; returns its incident.

        ``last`` is the incident of the same connection's outage before, if there was one.
        """
        for incident in reversed(self._by_address[outage.address]):
            if incident.began - TOGETHER <= outage.began <= incident.last_began + TOGETHER:
                break
        else:
            if self._count >= self._room:
                self._forget()
            incident = Incident(outage.address, outage.began, outage.began)
            self._by_address[outage.address].append(incident)
            self._count += 1
        incident.begin(outage, again=incident is last)
        return incident

    def worst(self, count: int) -> list[Incident]:
        """The incidents in which connections suffered longest, taken together."""
        everything = [incident for known in self._by_address.values() for incident in known]
        everything.sort(key=lambda one: (-one.suffered_s, one.began, one.address))
        return everything[:count]

    def _forget(self) -> None:
        order = self.worst(self._count)
        # What is not settled may yet become the worst of all.
        kept = [one for rank, one in enumerate(order) if rank < _KEPT or one.settled < one.outages]
        self._count, self._room = len(kept), 2 * max(_KEPT, len(kept))
        self._by_address.clear()
        for incident in sorted(kept, key=lambda one: one.began):
            self._by_address[incident.address].append(incident)
