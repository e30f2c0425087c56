"""What reading a log keeps, in bounded memory: what was found, and what was said lately."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, is_dataclass, replace
from datetime import datetime
from enum import Enum
from typing import Any, Generic, TypeVar

#: How many findings of a sort are kept for showing; all of them are counted.
LIMIT = 1000


class Kind(str, Enum):
    """Every kind of finding; the value is what ``--json`` and the text output call it."""

    # The log contradicts the table or a law.
    ILLEGAL_TRANSITION = "illegal-transition"
    SOURCE_MISMATCH = "source-mismatch"
    BAD_START = "bad-start"
    SEQ_GAP = "seq-gap"
    SEQ_REPEAT = "seq-repeat"
    AFTER_CLOSED = "after-closed"
    GENERATION_FALLS = "generation-falls"
    TOPOLOGY_FALLS = "topology-falls"
    SHARED_ID = "shared-id"
    ILLEGAL_REFUSAL = "illegal-refusal"
    # The log itself is damaged.
    BROKEN_LINE = "broken-line"
    CUT_LINE = "cut-line"
    LONG_LINE = "long-line"
    NUL_BYTES = "nul-bytes"
    FOREIGN_LINE = "foreign-line"
    BAD_RECORD = "bad-record"
    UNKNOWN_SCHEMA = "unknown-schema"
    CUT_FILE = "cut-file"
    # Worth knowing, and no violation.
    COVERED_GAP = "covered-gap"
    RECORDS_LOST = "records-lost"
    STARTS_LATE = "starts-late"
    CLOCK_BACK = "clock-back"
    EMPTY_FILE = "empty-file"
    FORGOTTEN = "forgotten"
    # A file could not be opened.
    UNREADABLE = "unreadable"

    def __str__(self) -> str:
        return self.value


NOTES = frozenset(
    {Kind.COVERED_GAP, Kind.RECORDS_LOST, Kind.STARTS_LATE, Kind.CLOCK_BACK}
    | {Kind.EMPTY_FILE, Kind.FORGOTTEN}
)


@dataclass(frozen=True)
class Problem:
    """One finding. ``line`` counts from 1; 0 means the file as a whole.

    ``earlier_file`` and ``earlier_line`` say where the record stands that it contradicts.
    """

    kind: Kind
    file: str
    line: int
    message: str
    connection_id: str | None = None
    address: str | None = None
    earlier_file: str = ""
    earlier_line: int = 0

    @property
    def text(self) -> str:
        """The message, with the place of the earlier record that it contradicts."""
        if not self.earlier_line:
            return self.message
        if self.earlier_file == self.file:
            return f"{self.message} (see line {self.earlier_line})"
        return f"{self.message} (see {self.earlier_file}:{self.earlier_line})"

    @property
    def place(self) -> str:
        """``file:line``, which editors and terminals can jump to."""
        return f"{self.file}:{self.line}" if self.line else self.file

    def moved(self, lines: int) -> Problem:
        """The same finding, ``lines`` further down in its file."""
        earlier = self.earlier_line and self.earlier_line + lines
        return replace(self, line=self.line and self.line + lines, earlier_line=earlier)


class Problems:
    """Findings: counted without end, kept up to ``limit`` violations and as many notes.

    Findings of a kind in ``ignore`` are neither counted nor kept. Files that could not be
    opened are all kept: there are no more of them than files.
    """

    def __init__(self, limit: int, ignore: Iterable[Kind] = ()) -> None:
        self.limit = limit
        self.ignore = frozenset(ignore)
        self.counts: Counter[Kind] = Counter()
        self.kept: list[Problem] = []
        self._room = {True: limit, False: limit}

    def add(self, problem: Problem) -> None:
        """Count a finding, and keep it if there is room."""
        if problem.kind in self.ignore:
            return
        self.counts[problem.kind] += 1
        if problem.kind is not Kind.UNREADABLE:
            self._room[problem.kind in NOTES] -= 1
            if self._room[problem.kind in NOTES] < 0:
                return
        self.kept.append(problem)

    def absorb(self, other: Problems, lines: int) -> None:
        """Take over another list whose findings lie ``lines`` further down than they say."""
        for problem in other.kept:
            self.add(problem.moved(lines))
        kept = Counter(problem.kind for problem in other.kept)
        self.counts.update(other.counts - kept)

    def sort(self, files: Sequence[str]) -> None:
        """Order what is kept as it stands in ``files``; what belongs to no file comes first."""
        order = {file: index for index, file in enumerate(files)}
        self.kept.sort(key=lambda problem: (order.get(problem.file, -1), problem.line))

    @property
    def violations(self) -> int:
        """How many findings are violations."""
        return self.counts.total() - self.notes - self.unreadable

    @property
    def notes(self) -> int:
        """How many findings are mere notes."""
        return sum(self.counts[kind] for kind in NOTES)

    @property
    def unreadable(self) -> int:
        """How many files could not be opened."""
        return self.counts[Kind.UNREADABLE]

    @property
    def hidden(self) -> int:
        """How many findings are counted, but not kept."""
        return self.counts.total() - len(self.kept)

    def judge(self, records: int) -> bool | None:
        """Is it legal? None: a file could not be opened, or there was no record in any."""
        if self.violations:
            return False
        return True if records and not self.unreadable else None


#: Entries in one of the two generations. With half a kilobyte each, 100 MB at most.
CAPACITY = 100_000

K = TypeVar("K")
V = TypeVar("V")


class Recent(Generic[K, V]):
    """Entries in two generations of at most ``capacity`` each.

    When the young generation is full, the old one is forgotten and the young one becomes old.
    So an entry lives at least until ``capacity`` others were touched after it. ``forget`` is
    called with each value that is forgotten. ``young`` is public for fast paths; whoever misses
    there asks ``find``.
    """

    def __init__(
        self, capacity: float = CAPACITY, forget: Callable[[V], object] | None = None
    ) -> None:
        self.young: dict[K, V] = {}
        self.forgotten = 0
        self._old: dict[K, V] = {}
        self._capacity = capacity
        self._forget = forget

    def find(self, key: K) -> V | None:
        """The entry of ``key``, made young again; None if it is unknown or forgotten."""
        value = self.young.get(key)
        if value is None and (value := self._old.pop(key, None)) is not None:
            self.put(key, value)
        return value

    def put(self, key: K, value: V) -> None:
        """Remember ``value``."""
        if len(self.young) >= self._capacity and key not in self.young:
            gone, self._old, self.young = self._old, self.young, {}
            self.forgotten += len(gone)
            if self._forget is not None:
                for lost in gone.values():
                    self._forget(lost)
        self.young[key] = value

    def drop(self, key: K) -> None:
        """Nothing more will be heard of ``key``."""
        self.young.pop(key, None)
        self._old.pop(key, None)

    def values(self) -> Iterator[V]:
        """All entries that are remembered, the older generation first."""
        yield from self._old.values()
        yield from self.young.values()


# -- for people and programs -------------------------------------------------------------------


def as_json(value: object) -> Any:
    """``value`` in JSON's types: dataclasses as objects, seconds to the microsecond."""
    if isinstance(value, float):
        return round(value, 6)
    if isinstance(value, datetime):
        return value.isoformat()
    if isinstance(value, Counter):
        return dict(value.most_common())
    if is_dataclass(value):
        value = vars(value)
    if isinstance(value, dict):
        return {str(key): as_json(one) for key, one in value.items()}
    return [as_json(one) for one in value] if isinstance(value, (list, tuple)) else value


def clean(text: str, width: int = 60) -> str:
    """``text`` without control characters (a terminal would obey them), shortened."""
    shown = "".join(char if char.isprintable() else "\N{REPLACEMENT CHARACTER}" for char in text)
    return shown if len(shown) <= width else shown[: width - 1] + "…"
