"""The laws that a log must obey, record by record, against the very table that the engine runs.

Theory: of each connection a ``Track`` remembers the last record. The next record is legal when
its ``seq`` is one more, its source is where the connection was left, its (trigger, source,
dest) is a row of the table, and neither generation nor topology version fell. Everything else
is examined, reported once, and the track is set to what the record says, so that one fault
does not look like many.

A record of an unknown connection starts a track. Whether it may start one depends on what was
read before: ``Verifier`` judges at once when it reads a log from its beginning, and keeps it
as a *head* when it reads a later piece of one (``--jobs``); ``adopt`` then judges the heads.

Memory is bounded: a connection that was not heard of while 100,000 others were is forgotten
and, should it come back, starts late.
"""

from __future__ import annotations

import math
import sys
from collections import Counter
from dataclasses import dataclass, replace
from datetime import datetime

from ..audit.records import SCHEMA
from ..table import IGNORED, IMPOSSIBLE, REFUSED, TRANSITIONS, State, Trigger
from .findings import CAPACITY, Kind, Problem, Problems, Recent, clean
from .records import Created, Record, RecordsLost, Refused, Transition

_ROWS = frozenset((str(row.trigger), str(row.source), str(row.dest)) for row in TRANSITIONS)
_REFUSED = frozenset((str(trigger), str(state)) for state, trigger in REFUSED)
_WHY_NOT = {
    (str(trigger), str(state)): why
    for (state, trigger), why in (*IGNORED.items(), *IMPOSSIBLE.items())
}
#: One string object for each state, however many records name it.
_STATES = {str(state): str(state) for state in State}
_TRIGGERS = frozenset(str(trigger) for trigger in Trigger)
_IDLE, _CLOSED = str(State.IDLE), str(State.CLOSED)
_FORKED = str(Trigger.FORKED)
#: Gaps that wait for a confession; beyond that they are judged by what was confessed so far.
_PENDING = 10_000

#: Who writes a connection's records: pid, flavour and strategy. They never change.
Identity = tuple[int | None, str, str]
#: A connection's id; with the writer's identity for the second and later users of one id.
Key = str | tuple[str, Identity]


def identity_of(record: Transition | Created) -> Identity:
    """The writer of ``record``."""
    return record.pid, sys.intern(record.flavour), sys.intern(record.strategy)


@dataclass(slots=True)
class Track:
    """What the last record of one connection said, and where it stands."""

    connection_id: str
    identity: Identity
    ts: datetime
    seq: int = 0
    state: str = ""
    generation: int = 0
    topology: int | None = None
    file: str = ""
    line: int = 0

    def move(self, record: Transition | Created, file: str, line: int) -> None:
        """Stand where ``record`` leaves the connection."""
        self.ts = record.ts
        self.seq = record.seq or 0
        self.state = _STATES.get(record.dest, record.dest)
        self.generation = record.generation
        if record.topology_version is not None:
            self.topology = record.topology_version
        self.file, self.line = file, line


class Verifier:
    """Checks records in the order in which they were written. See the module's theory."""

    def __init__(self, problems: Problems, *, from_start: bool = True) -> None:
        self.problems = problems
        self.heads: list[tuple[Record, int]] = []
        self.records = self.lines = self.connections = self.lost_records = 0
        #: gaps in ``seq``: the violation unless it is covered, the process, how many are missing
        self._gaps: list[tuple[Problem, int | None, int]] = []
        #: by pid: what its sink has confessed to, and no gap is covered by yet
        self._confessed: Counter[int | None] = Counter()
        self._from_start = from_start
        self._file, self._line = "", 0
        self._tracks = Recent[Key, Track](CAPACITY if from_start else math.inf)
        self._damaged = 0

    def begin(self, file: str) -> None:
        """The records that follow come from ``file``."""
        self._file = file
        self._damaged = 0

    def finish(self) -> None:
        """The log ends here: judge what had to wait for its end."""
        self._settle()
        if self._tracks.forgotten:
            what = f"{self._tracks.forgotten:,} connections had to be forgotten to keep memory flat"
            self.problems.add(Problem(Kind.FORGOTTEN, self._file, 0, what))

    # -- one record --------------------------------------------------------------------------

    def check(self, record: Record, line: int) -> None:
        """Judge one record; ``line`` is its number in the current file."""
        self.records += 1
        if type(record) is Transition:
            track = self._tracks.young.get(record.connection_id)
            if (
                track is not None
                and record.seq == track.seq + 1
                and record.source == track.state
                and (record.trigger, record.source, record.dest) in _ROWS
                and (record.pid, record.flavour, record.strategy) == track.identity
                and record.generation >= track.generation
                and record.topology_version == track.topology
                and record.ts >= track.ts
                and record.schema == SCHEMA
            ):
                track.seq = record.seq
                track.state = _STATES[record.dest]
                track.generation = record.generation
                track.ts = record.ts
                track.file, track.line = self._file, line
                return
        self._line = line
        self._examine(record)

    def damage(self, problem: Problem) -> None:
        """A line that is no record, or a file that ended badly."""
        self._damaged = problem.line
        self.problems.add(problem)

    def _examine(self, record: Record) -> None:
        """Everything off the fast path: other kinds of record, first records, and faults."""
        if record.schema != SCHEMA:
            what = f"schema {record.schema}: this reader knows {SCHEMA} and reads on as if it were"
            self._report(Kind.UNKNOWN_SCHEMA, record, what)
        if isinstance(record, RecordsLost):
            self.lost_records += max(0, record.count)
            self._confessed[record.pid] += max(0, record.count)
            self._report(Kind.RECORDS_LOST, record, f"the sink lost {record.count:,} records")
        elif isinstance(record, Refused):
            self._refused(record)
        elif isinstance(record, (Transition, Created)):  # the others change nothing
            self._step(record)

    def _step(self, record: Transition | Created) -> None:
        track = self._tracks.find(record.connection_id)
        if track is not None and track.identity != identity_of(record):
            track = self._second_user(track, record)
            if track is None:
                return
        if track is None:
            self._first(record)
        elif isinstance(record, Transition):
            self._next(track, record)
        else:
            what = f"created a second time (known already, at seq {track.seq})"
            self._report(Kind.SHARED_ID, record, what, track)

    # -- other pieces, other users of an id ----------------------------------------------------

    def _second_user(self, track: Track, record: Transition | Created) -> Track | None:
        """The track of another connection that has the same id; None once it is reported."""
        identity = identity_of(record)
        key = (record.connection_id, identity)
        other = self._tracks.find(key)
        if other is None and self._start(key, record):
            what = f"two connections with one id: {_tell(track.identity)}; {_tell(identity)}"
            self._report(Kind.SHARED_ID, record, what, track)
        return other

    def adopt(self, later: Verifier, lines: int) -> None:
        """Judge the heads of a later piece, then stand where that piece ended.

        ``lines`` is the number of lines of the same file that come before the piece.
        """
        for record, line in later.heads:
            self.check(record, lines + line)
        self.records += later.records - len(later.heads)
        self.lines += later.lines
        self.problems.absorb(later.problems, lines)
        self.lost_records += later.lost_records
        self._gaps += [(gap.moved(lines), pid, missing) for gap, pid, missing in later._gaps]
        self._confessed.update(later._confessed)
        for track in later._tracks.values():
            track.line += lines
            known = self._tracks.find(track.connection_id)
            same = known is None or known.identity == track.identity
            key = track.connection_id if same else (track.connection_id, track.identity)
            self._tracks.put(key, track)

    # -- the laws ----------------------------------------------------------------------------

    def _start(self, key: Key, record: Transition | Created) -> bool:
        """Start a track. False: whether it may start here ``adopt`` will judge."""
        track = Track(record.connection_id, identity_of(record), record.ts)
        track.move(record, self._file, self._line)
        self._tracks.put(key, track)
        if self._from_start:
            self.connections += 1
        else:
            self.heads.append((record, self._line))
        return self._from_start

    def _first(self, record: Transition | Created) -> None:
        if not self._start(record.connection_id, record):
            return
        seq = record.seq
        if isinstance(record, Created):
            if record.dest != _IDLE or seq not in (0, None):
                what = f"created in IDLE with seq 0, not in {record.dest} with seq {seq}"
                self._report(Kind.BAD_START, record, f"a connection is {what}")
            return
        self._row(record)
        if record.seq > 1:
            self._report(Kind.STARTS_LATE, record, f"the log starts at seq {seq}")
        elif record.seq < 1:
            self._report(Kind.BAD_START, record, f"seq {seq}: the first is 1")
        elif record.source != _IDLE and record.trigger != _FORKED:
            what = f"seq 1 starts in {record.source}, not in IDLE"
            self._report(Kind.BAD_START, record, what)

    def _next(self, track: Track, record: Transition) -> None:
        if record.seq <= track.seq:
            what = f"seq {record.seq} after seq {track.seq}: repeated or out of order"
            self._report(Kind.SEQ_REPEAT, record, what, track)
            return
        missing = record.seq - track.seq - 1
        trigger = clean(record.trigger)
        if track.state == _CLOSED:
            what = f"{trigger} after CLOSED (seq {track.seq}): CLOSED is absorbing"
            self._report(Kind.AFTER_CLOSED, record, what, track)
        elif missing:
            self._gap(track, record, missing)
        elif record.source != track.state and record.trigger != _FORKED:
            left = f"seq {track.seq} ended in {clean(track.state)}"
            what = f"{trigger} starts in {clean(record.source)}, but {left}"
            self._report(Kind.SOURCE_MISMATCH, record, what, track)
        self._row(record)
        self._never_falls(track, record)
        track.move(record, self._file, self._line)

    def _gap(self, track: Track, record: Transition, missing: int) -> None:
        last = record.seq - 1
        span = f"seq {last}" if missing == 1 else f"seq {track.seq + 1} to {last}"
        message = f"{span} missing: {missing:,} record{'s' * (missing > 1)} lost"
        if track.file == self._file and track.line < self._damaged < self._line:
            message += ", perhaps in the damaged line before"
        problem = self._problem(Kind.SEQ_GAP, record, message, track)
        self._gaps.append((problem, record.pid, missing))
        if len(self._gaps) >= _PENDING:
            self._settle()

    def _settle(self) -> None:
        """Gaps wait, since a sink confesses after the loss: then each is a note or a violation."""
        for problem, pid, missing in self._gaps:
            if self._confessed[pid] >= missing:
                self._confessed[pid] -= missing
                message = f"{problem.message}; the sink had said so (records_lost)"
                problem = replace(problem, kind=Kind.COVERED_GAP, message=message)
            self.problems.add(problem)
        self._gaps.clear()

    def _row(self, record: Transition) -> None:
        trigger, source, dest = record.trigger, record.source, record.dest
        if (trigger, source, dest) in _ROWS:
            return
        if trigger not in _TRIGGERS:
            why = f"{clean(trigger)!r} is no trigger"
        elif source not in _STATES or dest not in _STATES:
            wrong = source if source not in _STATES else dest
            why = f"{clean(wrong)!r} is no state"
        elif (trigger, source) in _WHY_NOT:
            why = f"in {source} nothing happens on {trigger}: {_WHY_NOT[trigger, source]}"
        else:
            legal = sorted(to for on, at, to in _ROWS if (on, at) == (trigger, source))
            why = f"from {source}, {trigger} leads to {' or '.join(legal)}"
        step = f"{clean(source)} -> {clean(dest)} on {clean(trigger)}"
        self._report(Kind.ILLEGAL_TRANSITION, record, f"{step} is no row of the table: {why}")

    def _never_falls(self, track: Track, record: Transition) -> None:
        if record.generation < track.generation:
            what = f"generation {record.generation} after {track.generation}"
            self._report(Kind.GENERATION_FALLS, record, what, track)
        version = record.topology_version
        if version is not None and track.topology is not None and version < track.topology:
            what = f"topology version {version} after {track.topology}"
            self._report(Kind.TOPOLOGY_FALLS, record, what, track)
        if record.ts < track.ts:
            back = (track.ts - record.ts).total_seconds()
            self._report(Kind.CLOCK_BACK, record, f"the clock went back by {back:.6g} s", track)

    def _refused(self, record: Refused) -> None:
        legal = (record.trigger, record.source) in _REFUSED
        if not legal or record.dest not in (None, record.source) or record.seq is not None:
            what = f"{clean(record.trigger)} is not refused in {clean(record.source)}"
            what += ", or a refusal that changes something"
            self._report(Kind.ILLEGAL_REFUSAL, record, what)

    # -- reporting ---------------------------------------------------------------------------

    def _problem(
        self, kind: Kind, record: Record, message: str, earlier: Track | None = None
    ) -> Problem:
        whose = record.connection_id, getattr(record, "address", None)
        before = ("", 0) if earlier is None else (earlier.file, earlier.line)
        return Problem(kind, self._file, self._line, message, *whose, *before)

    def _report(
        self, kind: Kind, record: Record, message: str, earlier: Track | None = None
    ) -> None:
        self.problems.add(self._problem(kind, record, message, earlier))


def _tell(identity: Identity) -> str:
    pid, flavour, strategy = identity
    return f"pid {pid}, {clean(flavour) or '?'}, {clean(strategy) or '?'}"
