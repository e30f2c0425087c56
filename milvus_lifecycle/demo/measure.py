"""What a run showed, as figures: pure arithmetic over calls, channels, outages and transitions."""

from __future__ import annotations

import bisect
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field

#: What the engine promises for an outage of up to 10 s (design, section 5).
FIRST_GOOD_LIMIT_S = 0.5
CHANNEL_LIMIT = 12

#: What the program must do while the server answers, for the figures to mean anything.
RATE_LIMIT = 20.0

#: A stretch between outages shorter than this says nothing about a rate.
_SHORTEST_STRETCH_S = 0.5

_ERRORS_SHOWN = 5


@dataclass(frozen=True)
class Call:
    """One call of one worker, in seconds of time.monotonic().

    `end` is None for a call that never ended, `error` for one that did not fail.
    """

    worker: int
    operation: str
    start: float
    end: float | None
    error: str | None

    @property
    def good(self) -> bool:
        """Ended without an error."""
        return self.end is not None and self.error is None


@dataclass(frozen=True)
class Outage:
    """One time that the server was killed, in seconds of time.monotonic().

    `asked`: how long after the kill it was started again. `frozen_at`: when it stopped answering,
    just before `killed_at`. `listens_at`: when its port accepted a connection again.
    """

    asked: float
    frozen_at: float
    killed_at: float
    listens_at: float


@dataclass(frozen=True)
class Observations:
    """All that was seen in one run. `began` and `ended` bound the time of regular work."""

    workers: int
    began: float
    ended: float
    calls: Sequence[Call] = ()
    channels: Sequence[float] = ()
    triggers: Sequence[str] = ()
    outages: Sequence[Outage] = ()


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
    outages: list[OutageFigures] = field(default_factory=list)

    @property
    def faults(self) -> list[str]:
        """Why the program did not get through the run unharmed; empty if it did."""
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
        return found

    @property
    def too_slow(self) -> bool:
        """Whether the program worked less than the figures take for granted."""
        return self.slowest_rate is not None and self.slowest_rate < RATE_LIMIT

    def as_json(self) -> dict[str, object]:
        """The figures with JSON types; times in seconds."""
        return {**asdict(self), "faults": self.faults, "too_slow": self.too_slow}


def take_figures(seen: Observations) -> Figures:
    """Fold what was seen into figures."""
    ended = [call for call in seen.calls if call.end is not None]
    kills = [outage.killed_at for outage in seen.outages]
    channels = _count_by_outage(seen.channels, kills)
    failed = [call.end for call in ended if call.error is not None and call.end is not None]
    failures = _count_by_outage(failed, kills)
    outages = [
        OutageFigures(
            asked_s=outage.asked,
            down_s=outage.listens_at - outage.killed_at,
            workers_in_flight=len(find_workers_in_flight(seen.calls, outage.killed_at)),
            failed_calls=failures[number],
            channels=channels[number],
            first_good_call_s=_find_first_good(seen, outage, _next_frozen(seen, number)),
        )
        for number, outage in enumerate(seen.outages, 1)
    ]
    errors = Counter(call.error for call in ended if call.error is not None)
    return Figures(
        workers=seen.workers,
        calls=len(seen.calls),
        failed_calls=len(failed),
        unended_calls=len(seen.calls) - len(ended),
        channels=len(seen.channels),
        channels_at_start=channels[0],
        slowest_rate=_find_slowest_rate(seen),
        longest_call_s=max((call.end - call.start for call in ended if call.end), default=0.0),
        calls_by_operation=dict(Counter(call.operation for call in seen.calls)),
        transitions_by_trigger=dict(Counter(seen.triggers).most_common()),
        errors=dict(errors.most_common(_ERRORS_SHOWN)),
        outages=outages,
    )


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


def _count_by_outage(moments: Iterable[float], kills: Sequence[float]) -> list[int]:
    """Moments before the first kill, then those from each kill on until the next one."""
    counts = [0] * (len(kills) + 1)
    for moment in moments:
        counts[bisect.bisect_right(kills, moment)] += 1
    return counts


def _next_frozen(seen: Observations, number: int) -> float:
    """When the stretch after outage `number` (from 1) ended."""
    return seen.outages[number].frozen_at if number < len(seen.outages) else seen.ended


def _find_first_good(seen: Observations, outage: Outage, until: float) -> float | None:
    first = find_first_good(seen.calls, outage.listens_at, until)
    if len(first) < seen.workers:
        return None
    return max(first.values()) - outage.listens_at


def _find_slowest_rate(seen: Observations) -> float | None:
    rates = [
        sum(1 for call in seen.calls if call.worker == worker and begin <= call.start < end)
        / (end - begin)
        for begin, end in _list_stretches(seen)
        if end - begin >= _SHORTEST_STRETCH_S
        for worker in range(seen.workers)
    ]
    return min(rates, default=None)


def _list_stretches(seen: Observations) -> list[tuple[float, float]]:
    """(begin, end) of each time in which all workers were being answered."""
    stretches = []
    begin: float | None = seen.began
    for number, outage in enumerate(seen.outages, 1):
        if begin is not None:
            stretches.append((begin, outage.frozen_at))
        delay = _find_first_good(seen, outage, _next_frozen(seen, number))
        begin = None if delay is None else outage.listens_at + delay
    if begin is not None:
        stretches.append((begin, seen.ended))
    return stretches
