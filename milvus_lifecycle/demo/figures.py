"""What a run showed: what is noted while it lasts, and the figures that come of it.

A figure is declared where it is counted: its name in the JSON file, its label in the summary, and
whether it is what the engine promises. All moments are seconds of time.monotonic().
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

#: What the engine promises for an outage of up to 10 s (design, section 5).
FIRST_GOOD_LIMIT_S = 0.5
CHANNEL_LIMIT = 12

#: And for a failover: seconds from the refresh, and from a death's naming.
MOVE_LIMIT_S = 1.0

#: Calls per second that a worker must start for the figures to mean anything.
RATE_LIMIT = 20.0

_SHOWN = 5

Record = Mapping[str, Any]


@dataclass(frozen=True)
class Call:
    """One call of one worker; `inserts`: the id of the entity that it inserts."""

    worker: int
    inserts: int | None
    start: float
    end: float = math.inf
    error: str | None = None


@dataclass(frozen=True)
class Blow:
    """What was done to the program at one time.

    `killed_at`: when its server was killed (None in a planned switch). `healed_at`: when that
    server listened again or, in a failover, the topology named `new` in place of `old` (addresses);
    `told_at`: when a client was first sent that topology (None: never).
    """

    name: str
    text: str
    healed_at: float
    killed_at: float | None = None
    old: str = ""
    new: str = ""
    told_at: float | None = None

    @property
    def begun(self) -> float:
        """When the server died, or was named no more."""
        return self.healed_at if self.killed_at is None else self.killed_at


@dataclass(frozen=True)
class Stay:
    """How long a client's topology said that `address` is the primary.

    `since` is when the flight began that led there (no RPC went there before), `until` when the
    next one was recorded as landed.
    """

    address: str
    since: float
    until: float = math.inf


@dataclass
class Seen:
    """All that was seen in one run; most of it is filled while the program runs.

    `calls` have ended, `in_flight` have not (by worker). `steady`: from when to when there was
    regular work, before the first blow. `contents`: in a failover, the ids in each server's
    database at the end. `clean_exit`: the program's process ended by itself.
    """

    workers: int
    calls: list[Call] = field(default_factory=list)
    in_flight: dict[int, Call] = field(default_factory=dict)
    last_good: dict[int, float] = field(default_factory=dict)
    failed_calls: int = 0
    channels: list[float] = field(default_factory=list)
    records: list[Record] = field(default_factory=list)
    log_lines: int = 0
    steady: tuple[float, float] = (0.0, 1.0)
    blows: list[Blow] = field(default_factory=list)
    contents: Mapping[str, frozenset[int]] = field(default_factory=dict)
    clean_exit: bool = True

    def add_call(self, call: Call) -> None:
        """Take in a call that begins, or the same call when it has ended."""
        if call.end == math.inf:
            self.in_flight[call.worker] = call
            return
        self.in_flight.pop(call.worker, None)
        self.calls.append(call)
        if call.error is None:
            self.last_good[call.worker] = call.end
        else:
            self.failed_calls += 1

    def list_writes(self) -> list[Call]:
        """The acknowledged inserts."""
        return [call for call in self.calls if call.inserts is not None and call.error is None]

    def all_good_since(self, moment: float) -> bool:
        """Whether every worker had a good call that ended at or after a moment."""
        return sum(end >= moment for end in list(self.last_good.values())) >= self.workers


@dataclass(frozen=True)
class Figure:
    """One figure: `key` and `value` in the JSON file, `label` and `text` in the summary.

    `good`: whether it is as promised (None: nothing is), `fault`: what it means if it is not.
    """

    key: str
    label: str
    value: object
    text: str
    good: bool | None = None
    fault: str = ""


@dataclass(frozen=True)
class Section:
    """Figures of one subject; `praise`: what to say if none has a fault."""

    name: str
    text: str
    figures: Sequence[Figure]
    praise: str = ""

    @property
    def faults(self) -> list[str]:
        """What is wrong with them."""
        return [figure.fault for figure in self.figures if figure.good is False and figure.fault]


@dataclass(frozen=True)
class Run:
    """One finished run; `too_slow`: the program worked less than the figures take for granted."""

    title: str
    too_slow: bool
    sections: Sequence[Section]
    errors: dict[str, int]
    transitions_by_trigger: dict[str, int]

    @property
    def faults(self) -> list[str]:
        """Why the program did not get through unharmed; empty if it did."""
        return [fault for section in self.sections for fault in section.faults]

    def as_json(self) -> dict[str, object]:
        """The run with JSON types; times in seconds."""
        figures = {
            section.name: {figure.key: figure.value for figure in section.figures}
            for section in self.sections
        }
        return {**vars(self), "sections": figures, "faults": self.faults}


def take_figures(title: str, seen: Seen) -> Run:
    """Fold what was seen into figures."""
    begin, end = seen.steady
    started = Counter(call.worker for call in seen.calls if begin <= call.start < end)
    rate = min(started[worker] for worker in range(seen.workers)) / (end - begin)
    errors = Counter(call.error for call in seen.calls if call.error is not None)
    steps = [record for record in seen.records if record["event"] == "connection.transition"]
    sections = [_sum_up(seen, rate)]
    begins = [blow.begun for blow in seen.blows]
    for blow, until in zip(seen.blows, [*begins[1:], math.inf], strict=False):
        sections.append(_judge_blow(seen, blow, until))
    if seen.contents:
        sections.append(judge_writes(seen))
    return Run(
        title=title,
        too_slow=rate < RATE_LIMIT,
        sections=sections,
        errors=dict(errors.most_common(_SHOWN)),
        transitions_by_trigger=dict(Counter(step["trigger"] for step in steps).most_common()),
    )


def _count(key: str, label: str, value: int, most: int | None = None, fault: str = "") -> Figure:
    return Figure(key, label, value, f"{value:,}", None if most is None else value <= most, fault)


def _time(
    key: str, label: str, value: float | None, most: float | None = None, fault: str = ""
) -> Figure:
    """A time in seconds; None: what it waited for never came."""
    if value is None:
        return Figure(key, label, None, "never", False, fault)
    return Figure(key, label, value, f"{value:.3f} s", None if most is None else value <= most)


def _sum_up(seen: Seen, rate: float) -> Section:
    unended = len(seen.in_flight)
    calls = len(seen.calls) + unended
    failed = seen.failed_calls
    longest = max((call.end - call.start for call in seen.calls), default=0.0)
    first = min((blow.begun for blow in seen.blows), default=math.inf)
    at_start = sum(at < first for at in seen.channels)
    how = "by itself" if seen.clean_exit else "killed"
    killed = "the program's process had to be killed at the end"
    figures = [
        _count("calls", "calls", calls),
        _count("failed_calls", "failed calls", failed, 0, f"{failed} of {calls} calls failed"),
        _count("unended_calls", "unended calls", unended, 0, f"{unended} calls never ended"),
        Figure("rate", "calls/s of the slowest worker", rate, f"{rate:.1f}", rate >= RATE_LIMIT),
        _time("longest_call_s", "longest call", longest),
        _count("channels_at_start", "channels opened at the start", at_start),
        _count("channels", "channels opened in all", len(seen.channels)),
        _count("log_lines", "lines logged by pymilvus", seen.log_lines),
        Figure("clean_exit", "the program ended", seen.clean_exit, how, seen.clean_exit, killed),
    ]
    return Section("in all", "", figures, f"no call failed, of {calls:,}")


def _judge_blow(seen: Seen, blow: Blow, until: float) -> Section:
    """What the program felt of one blow, until the next one."""
    failed = sum(call.error is not None and blow.begun <= call.end < until for call in seen.calls)
    channels = sum(blow.begun <= at < until for at in seen.channels)
    good = [end - blow.healed_at for end in find_first_good(seen, blow.healed_at, until).values()]
    slowest = max(good) if len(good) == seen.workers else None
    quick, few = (None, None) if blow.new else (FIRST_GOOD_LIMIT_S, CHANNEL_LIMIT)
    lost = f"after {blow.name} not every worker had a good call"
    figures = [
        *_judge_kill(seen, blow),
        _count("failed_calls", "failed calls", failed, 0),
        _count("channels", "channels opened", channels, few),
        *_judge_move(seen, blow, until),
        _time("first_good_s", "first good call after", min(good, default=None), MOVE_LIMIT_S),
        _time("slowest_s", "slowest worker's first good call after", slowest, quick, lost),
    ]
    return Section(blow.name, blow.text, figures)


def _after(moment: float | None, since: float | None) -> float | None:
    return None if moment is None or since is None else moment - since


def find_first_good(seen: Seen, since: float, until: float) -> dict[int, float]:
    """For each worker the end of its first good call that ended within [since, until]."""
    first: dict[int, float] = {}
    for call in seen.calls:
        if call.error is None and since <= call.end <= until:
            first[call.worker] = min(call.end, first.get(call.worker, call.end))
    return first


def _judge_kill(seen: Seen, blow: Blow) -> Iterator[Figure]:
    if blow.killed_at is None:
        return
    until = "the other was named" if blow.new else "it listened"
    yield _time("down_s", f"from the kill until {until}", blow.healed_at - blow.killed_at)
    calls = [*seen.calls, *seen.in_flight.values()]
    hit = len({call.worker for call in calls if call.start < blow.killed_at < call.end})
    text = f"{hit} of {seen.workers}"
    missed = f"only {text} workers had a call in flight at {blow.name}, so the run proves nothing"
    good = hit >= seen.workers
    yield Figure("workers_in_flight", "workers in flight at the kill", hit, text, good, missed)


def _judge_move(seen: Seen, blow: Blow, until: float) -> Iterator[Figure]:
    """How the program followed the primary. The writes that the old one still took in a planned
    switch are no fault: until the client has asked, it cannot know better."""
    if not blow.new:
        return
    named, told = blow.healed_at, blow.told_at
    landed = find_landing(seen.records, blow.new, named)
    yield _time("told_s", "client told, after the naming", _after(told, named))
    # pymilvus makes no records and is not expected to follow.
    lost = f"the connection did not follow {blow.name}" if seen.records else ""
    yield _time("moved_s", "moved, after the naming", _after(landed, named), None, lost)
    after = _after(landed, told)
    yield _time("after_told_s", "moved, after the client was told", after, MOVE_LIMIT_S)
    if blow.killed_at is None:
        elsewhere = seen.contents[blow.old] - seen.contents[blow.new]
        writes = [call for call in seen.list_writes() if call.inserts in elsewhere]
        late = [call for call in writes if named < call.end <= until]
        last = max((call.end - named for call in late), default=0.0)
        yield _time("late_s", "last write on the old primary, after the naming", last)
        begun = sum(call.start > named for call in late)
        yield _count("late_writes", "writes begun there, after the naming", begun)


def find_landing(records: Sequence[Record], address: str, since: float) -> float | None:
    """When the last connection had swapped to a primary named at `since`; None if one did not."""
    landed: dict[str, float | None] = {}
    for record in records[:]:
        name, at = record["connection_id"], record["at"]
        if at < since:
            if record["dest"] == "CLOSED":
                landed.pop(name, None)
            elif record["generation"]:
                landed.setdefault(name, None)
        elif record["trigger"] == "recovered" and record["address"] == address:
            landed[name] = landed.get(name) or at
    times = [at for at in landed.values() if at is not None]
    return max(times) if times and len(times) == len(landed) else None


def list_stays(records: Iterable[Record]) -> list[Stay]:
    """Where the clients' topology put the primary, and from when to when, by their records."""
    stays: list[Stay] = []
    current: dict[str, tuple[str, float]] = {}
    before: dict[str, float] = {}
    for record in records:
        name, address = record["connection_id"], record["address"]
        at: float = record["at"]
        known = current.get(name)
        landed = record["trigger"] in ("probe_passed", "recovered")
        if landed and (known is None or known[0] != address):
            if known is not None:
                stays.append(Stay(*known, at))
            current[name] = (address, before.get(name, at))
        if record["trigger"] != "retry":
            before[name] = at
    return [*stays, *(Stay(*known) for known in current.values())]


def judge_writes(seen: Seen) -> Section:
    """Compare what the servers took with the primaries of the topologies that the client had."""
    writes = seen.list_writes()
    stays = list_stays(seen.records)
    takers = [
        (write, address)
        for write in writes
        for address, ids in seen.contents.items()
        if write.inserts in ids
    ]
    copies = Counter(write.inserts for write, _ in takers)
    by_server = {at: sum(address == at for _, address in takers) for at in seen.contents}
    shares = " + ".join(map(str, by_server.values()))
    lost, twice = len(writes) - len(copies), len(takers) - len(copies)
    total = f"{len(writes):,}"
    gone = f"{lost} of {total} acknowledged writes are in no database"
    figures = [
        _count("writes", "acknowledged writes", len(writes)),
        Figure("by_server", "in the two databases", by_server, shares),
        _count("twice", "in both (sent again after a failure)", twice),
        _count("lost", "in neither", lost, 0, gone),
    ]
    label = "taken by another than the client's primary"
    if not stays:  # pymilvus keeps no records: nobody knows what the client had
        figures.append(Figure("misplaced", label, None, "not known"))
        return Section("writes", "where they are", figures)
    misplaced = [
        f"id {write.inserts} on {at}"
        for write, at in takers
        if not any(
            stay.address == at and stay.since <= write.end and write.start <= stay.until
            for stay in stays
        )
    ]
    wrong = (
        f"{len(misplaced)} writes were taken by another server than the client's primary "
        f"({', '.join(misplaced[:_SHOWN])})"
    )
    figures.append(_count("misplaced", label, len(misplaced), 0, wrong))
    praise = f"each of {total} writes is where it belongs"
    return Section("writes", "where they are", figures, praise)
