"""What a failover showed, as figures: pure arithmetic over calls, records and two databases."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from milvus_lifecycle.demo.measure import Call, find_first_good

#: What the engine promises (issue 4): seconds from the refresh, and from a death's naming.
MOVE_LIMIT_S = 1.0

_LANDINGS = frozenset({"probe_passed", "recovered"})
_SHOWN = 5

Record = Mapping[str, Any]


@dataclass(frozen=True)
class Move:
    """One time that the topology named another primary. Times: seconds of time.monotonic().

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
class Write:
    """One acknowledged insert."""

    id: int
    start: float
    end: float


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
    examples: list[str] = field(default_factory=list)

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

    def as_json(self) -> dict[str, object]:
        """With JSON types."""
        return asdict(self)


def list_writes(calls: Iterable[Call], first_ids: Mapping[int, int]) -> list[Write]:
    """The acknowledged inserts. A worker's n-th insert has its first id + n (n from 0)."""
    writes, numbers = [], dict(first_ids)
    for call in sorted(calls, key=lambda call: call.start):
        if call.operation != "insert":
            continue
        number = numbers[call.worker]
        numbers[call.worker] = number + 1
        if call.error is None and call.end is not None:
            writes.append(Write(number, call.start, call.end))
    return writes


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
    times = list(landed.values())
    if not times or None in times:
        return None
    return max(at for at in times if at is not None)


def list_stays(records: Iterable[Record]) -> list[Stay]:
    """Where the clients' topology put the primary, and from when to when, by their records."""
    stays: list[Stay] = []
    current: dict[str, tuple[str, float]] = {}
    before: dict[str, float] = {}
    for record in records:
        name, address = str(record["connection_id"]), str(record["address"])
        at: float = record["at"]
        known = current.get(name)
        moved = record["trigger"] in _LANDINGS and (known is None or known[0] != address)
        if moved:
            if known is not None:
                stays.append(Stay(known[0], known[1], at))
            current[name] = (address, before.get(name, at))
        if record["trigger"] != "retry":
            before[name] = at
    stays.extend(Stay(address, since, None) for address, since in current.values())
    return stays


def check_placement(
    writes: Sequence[Write], contents: Mapping[str, frozenset[int]], stays: Sequence[Stay]
) -> Placement:
    """Compare what the servers took (`contents`: address -> ids) with where the primary was."""
    lost = twice = misplaced = 0
    examples: list[str] = []
    by_server = dict.fromkeys(contents, 0)
    for write in writes:
        takers = [address for address, ids in contents.items() if write.id in ids]
        lost += not takers
        twice += len(takers) > 1
        for address in takers:
            by_server[address] += 1
            if stays and not _was_primary(address, write, stays):
                misplaced += 1
                examples.append(f"id {write.id} on {address}")
    return Placement(
        writes=len(writes),
        lost=lost,
        twice=twice,
        by_server=by_server,
        misplaced=misplaced if stays else None,
        examples=examples[:_SHOWN],
    )


def _was_primary(address: str, write: Write, stays: Sequence[Stay]) -> bool:
    """Whether the client's topology named the server at some moment of the call."""
    return any(
        stay.address == address
        and stay.since <= write.end
        and (stay.until is None or write.start <= stay.until)
        for stay in stays
    )


def take_moves(
    moves: Sequence[Move],
    *,
    workers: int,
    ended: float,
    calls: Sequence[Call],
    channels: Sequence[float],
    writes: Sequence[Write],
    records: Sequence[Record],
    contents: Mapping[str, frozenset[int]],
    served: Mapping[int, float | None],
) -> list[MoveFigures]:
    """Fold what was seen into the figures of each move. `served`: version -> first sent when."""
    figures = []
    for number, move in enumerate(moves):
        following = moves[number + 1] if number + 1 < len(moves) else None
        until = ended
        if following is not None:
            until = following.begun
        named, refreshed = move.named_at, served.get(move.version)
        landed = find_landing(records, move)
        good = find_first_good(calls, named, until)
        late = [
            write
            for write in writes
            if write.id in contents[move.old]
            and named < write.end <= until
            and write.id not in contents[move.new]
        ]
        begun = move.begun
        figures.append(
            MoveFigures(
                kind=move.kind,
                new=move.new,
                version=move.version,
                failed_calls=sum(
                    call.error is not None and call.end is not None and begun <= call.end < until
                    for call in calls
                ),
                channels=sum(begun <= opened < until for opened in channels),
                refreshed_s=_after(refreshed, named),
                moved_s=_after(landed, named),
                after_refresh_s=None if refreshed is None else _after(landed, refreshed),
                late_writes=sum(write.start > named for write in late),
                late_s=max((write.end - named for write in late), default=0.0),
                first_good_s=min(good.values()) - named if good else None,
                slowest_s=max(good.values()) - named if len(good) == workers else None,
            )
        )
    return figures


def find_move_faults(moves: Sequence[MoveFigures], *, on_engine: bool) -> list[str]:
    """Moves that did not happen."""
    found = []
    for number, move in enumerate(moves, 1):
        if move.slowest_s is None:
            found.append(f"after move {number} not every worker had a good call")
        if on_engine and move.moved_s is None:
            found.append(f"the connection did not follow move {number}")
    return found


def _after(moment: float | None, since: float) -> float | None:
    return None if moment is None else moment - since
