"""What a run showed, as figures: pure arithmetic over calls, channels, records and databases.

All moments are seconds of time.monotonic().
"""

from __future__ import annotations

import bisect
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

#: What the engine promises for an outage of up to 10 s (design, section 5).
FIRST_GOOD_LIMIT_S = 0.5
CHANNEL_LIMIT = 12

#: And for a failover: seconds from the refresh, and from a death's naming.
MOVE_LIMIT_S = 1.0

#: What the program must do while the server answers, for the figures to mean anything.
RATE_LIMIT = 20.0

#: A stretch between outages shorter than this says nothing about a rate.
_SHORTEST_STRETCH_S = 0.5

_SHOWN = 5
_LANDINGS = frozenset({"probe_passed", "recovered"})

Record = Mapping[str, Any]


@dataclass(frozen=True)
class Call:
    """One call of one worker.

    `end` is None for a call that never ended, `error` for one that did not fail.
    """

    worker: int
    operation: str
    start: float
    end: float | None
    error: str | None


@dataclass(frozen=True)
class Outage:
    """One time that the server was killed.

    `asked`: how many seconds after the kill it was started again. `frozen_at`: when it stopped
    answering, just before `killed_at`. `listens_at`: when its port accepted a connection again.
    """

    asked: float
    frozen_at: float
    killed_at: float
    listens_at: float


@dataclass(frozen=True)
class Move:
    """One time that the topology named another primary.

    `kind` is "switch" (planned; the old primary lives on) or "death" (killed at `killed_at`).
    """

    kind: str
    old: str
    new: str
    version: int
    named_at: float
    killed_at: float | None = None

    @property
    def begun(self) -> float:
        """When the old primary died, or was named no more."""
        return self.named_at if self.killed_at is None else self.killed_at


@dataclass(frozen=True)
class Stay:
    """How long a client's topology said that `address` is the primary.

    `since` is when the flight began that led there (no RPC went there before), `until` when the
    next one was recorded as landed (None: never).
    """

    address: str
    since: float
    until: float | None


@dataclass(frozen=True)
class Write:
    """One acknowledged insert."""

    id: int
    start: float
    end: float


@dataclass(frozen=True)
class Seen:
    """All that was seen in one run. `began` and `ended` bound the time of regular work.

    In a failover `contents` has the ids in each server's database at the end (address -> ids),
    `first_ids` each worker's first one, and `served` when each version of the topology was first
    sent to a client. `clean_exit`: the
    program's process ended by itself.
    """

    workers: int
    began: float
    ended: float
    calls: Sequence[Call] = ()
    channels: Sequence[float] = ()
    records: Sequence[Record] = ()
    outages: Sequence[Outage] = ()
    moves: Sequence[Move] = ()
    contents: Mapping[str, frozenset[int]] = field(default_factory=dict)
    first_ids: Mapping[int, int] = field(default_factory=dict)
    served: Mapping[int, float | None] = field(default_factory=dict)
    clean_exit: bool = True


@dataclass(frozen=True)
class OutageFigures:
    """One outage. `first_good_call_s`: of the slowest worker, after the server listened again;
    None if some worker had none before the next outage or the end."""

    asked_s: float
    down_s: float
    workers_in_flight: int
    failed_calls: int
    channels: int
    first_good_call_s: float | None


@dataclass(frozen=True)
class MoveFigures:
    """One move; seconds after the topology named the new primary, unless it says otherwise.

    `channels`: channels opened from the naming (or the death) until the next move.
    `refreshed_s`: when a client was first sent the new version. `moved_s`: when the last of the
    program's connections had swapped, `after_refresh_s`: the same after the refresh; None if one
    did not. `late_writes`: writes that started after the naming and that the old primary took,
    `late_s`: when the last of its writes ended. Until the client has asked it cannot know better:
    what it did wrong, `Placement.misplaced` counts. `first_good_s`, `slowest_s`: the first good
    call of any, and of the slowest, worker; None if some worker had none until the next move.
    """

    kind: str
    new: str
    version: int
    failed_calls: int
    channels: int
    refreshed_s: float | None
    moved_s: float | None
    after_refresh_s: float | None
    late_writes: int
    late_s: float
    first_good_s: float | None
    slowest_s: float | None


@dataclass(frozen=True)
class Placement:
    """Where the acknowledged writes are. `twice`: sent again after a failure, as they may be.

    `misplaced`: taken by another server than the client's primary, that is, the one that the
    topology named which the client had (see `Stay`); None if nobody knows what the client had
    (pymilvus keeps no records).
    """

    writes: int
    lost: int
    twice: int
    by_server: dict[str, int]
    misplaced: int | None
    examples: list[str]

    @property
    def faults(self) -> list[str]:
        """What is wrong with it; empty if every write is where it belongs."""
        found = []
        if self.lost:
            found.append(f"{self.lost} of {self.writes} acknowledged writes are in no database")
        if self.misplaced:
            found.append(
                f"{self.misplaced} writes were taken by another server than the client's primary "
                f"({self.examples[0]})"
            )
        return found


@dataclass(frozen=True)
class Figures:
    """One run. `slowest_rate`: calls per second that the slowest worker started while the server
    answered, in the stretch where it was slowest; None if there was no such stretch."""

    workers: int
    calls: int
    failed_calls: int
    unended_calls: int
    channels: int
    channels_at_start: int
    slowest_rate: float | None
    longest_call_s: float
    calls_by_operation: dict[str, int]
    transitions_by_trigger: dict[str, int]
    errors: dict[str, int]
    outages: list[OutageFigures]
    moves: list[MoveFigures]
    placement: Placement | None
    clean_exit: bool

    @property
    def too_slow(self) -> bool:
        """Whether the program worked less than the figures take for granted."""
        return self.slowest_rate is not None and self.slowest_rate < RATE_LIMIT

    @property
    def faults(self) -> list[str]:
        """Why the program did not get through unharmed; empty if it did."""
        found = []
        if self.failed_calls:
            found.append(f"{self.failed_calls} of {self.calls} calls failed")
        if self.unended_calls:
            found.append(f"{self.unended_calls} calls never ended")
        for number, outage in enumerate(self.outages, 1):
            if outage.workers_in_flight < self.workers:
                found.append(
                    f"at kill {number} only {outage.workers_in_flight} of {self.workers} workers "
                    "had a call in flight, so the run proves nothing"
                )
            if outage.first_good_call_s is None:
                found.append(f"after outage {number} not every worker had a good call again")
        for number, move in enumerate(self.moves, 1):
            if move.slowest_s is None:
                found.append(f"after move {number} not every worker had a good call")
            if move.moved_s is None and self.transitions_by_trigger:  # pymilvus makes no records
                found.append(f"the connection did not follow move {number}")
        if self.placement is not None:
            found += self.placement.faults
        if not self.clean_exit:
            found.append("the program's process had to be killed at the end")
        return found


@dataclass(frozen=True)
class Run:
    """One finished run. `manager`: the module of the connection manager that was in use.
    `log_lines`: lines that pymilvus logged."""

    title: str
    on_engine: bool
    manager: str
    log_lines: int
    figures: Figures

    def as_json(self) -> dict[str, object]:
        """The run with JSON types; times in seconds."""
        fields, figures = asdict(self), self.figures
        fields |= fields.pop("figures")
        return {**fields, "too_slow": figures.too_slow, "faults": figures.faults}


def take_figures(seen: Seen) -> Figures:
    """Fold what was seen into figures."""
    blows = [outage.killed_at for outage in seen.outages] + [move.begun for move in seen.moves]
    failed = [call for call in seen.calls if call.error is not None and call.end is not None]
    failures = _count_by_blow([call.end for call in failed if call.end is not None], blows)
    channels = _count_by_blow(seen.channels, blows)
    triggers = Counter(
        str(record["trigger"])
        for record in seen.records
        if record["event"] == "connection.transition"
    )
    writes = list_writes(seen.calls, seen.first_ids) if seen.moves else []
    return Figures(
        workers=seen.workers,
        calls=len(seen.calls),
        failed_calls=len(failed),
        unended_calls=sum(call.end is None for call in seen.calls),
        channels=len(seen.channels),
        channels_at_start=channels[0],
        slowest_rate=_find_slowest_rate(seen),
        longest_call_s=max((call.end - call.start for call in seen.calls if call.end), default=0.0),
        calls_by_operation=dict(Counter(call.operation for call in seen.calls)),
        transitions_by_trigger=dict(triggers.most_common()),
        errors=dict(Counter(str(call.error) for call in failed).most_common(_SHOWN)),
        outages=[
            _take_outage(seen, number, failures[number + 1], channels[number + 1])
            for number in range(len(seen.outages))
        ],
        moves=[
            _take_move(seen, writes, number, failures[number + 1], channels[number + 1])
            for number in range(len(seen.moves))
        ],
        placement=check_placement(writes, seen) if seen.moves else None,
        clean_exit=seen.clean_exit,
    )


def _count_by_blow(moments: Iterable[float], blows: Sequence[float]) -> list[int]:
    """Moments before the first blow, then those from each blow on until the next one."""
    counts = [0] * (len(blows) + 1)
    for moment in moments:
        counts[bisect.bisect_right(blows, moment)] += 1
    return counts


def _take_outage(seen: Seen, number: int, failures: int, channels: int) -> OutageFigures:
    outage = seen.outages[number]
    returned = _find_return(seen, number)
    return OutageFigures(
        asked_s=outage.asked,
        down_s=outage.listens_at - outage.killed_at,
        workers_in_flight=len(find_workers_in_flight(seen.calls, outage.killed_at)),
        failed_calls=failures,
        channels=channels,
        first_good_call_s=_after(returned, outage.listens_at),
    )


def _take_move(
    seen: Seen, writes: Sequence[Write], number: int, failures: int, channels: int
) -> MoveFigures:
    move = seen.moves[number]
    until = seen.moves[number + 1].begun if number + 1 < len(seen.moves) else seen.ended
    named, refreshed = move.named_at, seen.served.get(move.version)
    landed = find_landing(seen.records, move)
    good = find_first_good(seen.calls, named, until)
    late = [
        write
        for write in writes
        if named < write.end <= until
        and write.id in seen.contents[move.old]
        and write.id not in seen.contents[move.new]
    ]
    return MoveFigures(
        kind=move.kind,
        new=move.new,
        version=move.version,
        failed_calls=failures,
        channels=channels,
        refreshed_s=_after(refreshed, named),
        moved_s=_after(landed, named),
        after_refresh_s=None if refreshed is None else _after(landed, refreshed),
        late_writes=sum(write.start > named for write in late),
        late_s=max((write.end - named for write in late), default=0.0),
        first_good_s=min(good.values()) - named if good else None,
        slowest_s=max(good.values()) - named if len(good) == seen.workers else None,
    )


def _after(moment: float | None, since: float) -> float | None:
    return None if moment is None else moment - since


def find_workers_in_flight(calls: Iterable[Call], moment: float) -> set[int]:
    """The workers that had a call in flight at a moment."""
    return {
        call.worker
        for call in calls
        if call.start < moment and (call.end is None or call.end > moment)
    }


def find_first_good(calls: Iterable[Call], since: float, until: float) -> dict[int, float]:
    """For each worker the end of its first good call that ended within [since, until]."""
    first: dict[int, float] = {}
    for call in calls:
        if call.error is None and call.end is not None and since <= call.end <= until:
            first[call.worker] = min(call.end, first.get(call.worker, call.end))
    return first


def _find_return(seen: Seen, number: int) -> float | None:
    """When the slowest worker was answered again after an outage; None if one was not."""
    last = number + 1 == len(seen.outages)
    until = seen.ended if last else seen.outages[number + 1].frozen_at
    first = find_first_good(seen.calls, seen.outages[number].listens_at, until)
    return max(first.values()) if len(first) == seen.workers else None


def _find_slowest_rate(seen: Seen) -> float | None:
    """Over the stretches in which all workers were being answered: from the beginning, and from
    each return after an outage. In a failover until the first move: the deaths are no slowness."""
    ends = [outage.frozen_at for outage in seen.outages]
    ends.append(seen.moves[0].begun if seen.moves else seen.ended)
    begins = [seen.began, *(_find_return(seen, number) for number in range(len(seen.outages)))]
    rates = [
        sum(1 for call in seen.calls if call.worker == worker and begin <= call.start < end)
        / (end - begin)
        for begin, end in zip(begins, ends, strict=True)
        if begin is not None and end - begin >= _SHORTEST_STRETCH_S
        for worker in range(seen.workers)
    ]
    return min(rates, default=None)


def find_landing(records: Iterable[Record], move: Move) -> float | None:
    """When the last of the connections had swapped to the new primary; None if one did not."""
    landed: dict[str, float | None] = {}
    for record in list(records):
        name, at = record["connection_id"], record["at"]
        if at < move.named_at:
            if record["dest"] == "CLOSED":
                landed.pop(name, None)
            elif record["generation"]:
                landed.setdefault(name, None)
        elif (
            record["trigger"] == "recovered"
            and record["address"] == move.new
            and landed.get(name) is None
        ):
            landed[name] = at
    times = [at for at in landed.values() if at is not None]
    return max(times) if times and len(times) == len(landed) else None


def list_writes(calls: Iterable[Call], first_ids: Mapping[int, int]) -> list[Write]:
    """The acknowledged inserts. A worker's n-th insert has its first id + n (n from 0)."""
    writes, ids = [], dict(first_ids)
    for call in sorted(calls, key=lambda call: call.start):
        if call.operation == "insert":
            if call.error is None and call.end is not None:
                writes.append(Write(ids[call.worker], call.start, call.end))
            ids[call.worker] += 1
    return writes


def list_stays(records: Iterable[Record]) -> list[Stay]:
    """Where the clients' topology put the primary, and from when to when, by their records."""
    stays: list[Stay] = []
    current: dict[str, tuple[str, float]] = {}
    before: dict[str, float] = {}
    for record in records:
        name, address = str(record["connection_id"]), str(record["address"])
        at: float = record["at"]
        known = current.get(name)
        if record["trigger"] in _LANDINGS and (known is None or known[0] != address):
            if known is not None:
                stays.append(Stay(*known, at))
            current[name] = (address, before.get(name, at))
        if record["trigger"] != "retry":
            before[name] = at
    return [*stays, *(Stay(*known, None) for known in current.values())]


def check_placement(writes: Sequence[Write], seen: Seen) -> Placement:
    """Compare what the servers took with where the primary was."""
    stays = list_stays(seen.records)
    takers = [
        (write, address)
        for write in writes
        for address, ids in seen.contents.items()
        if write.id in ids
    ]
    copies = Counter(write.id for write, _ in takers)
    misplaced = [
        f"id {write.id} on {address}"
        for write, address in takers
        if not any(_was_primary(address, write, stay) for stay in stays)
    ]
    return Placement(
        writes=len(writes),
        lost=len(writes) - len(copies),
        twice=sum(count > 1 for count in copies.values()),
        by_server={
            address: sum(taker == address for _, taker in takers) for address in seen.contents
        },
        misplaced=len(misplaced) if stays else None,
        examples=misplaced[:_SHOWN] if stays else [],
    )


def _was_primary(address: str, write: Write, stay: Stay) -> bool:
    """Whether the client's topology named the server then, at some moment of the call."""
    return (
        stay.address == address
        and stay.since <= write.end
        and (stay.until is None or write.start <= stay.until)
    )
