"""What can be wrong with a log: the kinds of finding, one finding, and a bounded list of them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from enum import Enum


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
    {
        Kind.COVERED_GAP,
        Kind.RECORDS_LOST,
        Kind.STARTS_LATE,
        Kind.CLOCK_BACK,
        Kind.EMPTY_FILE,
        Kind.FORGOTTEN,
    }
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

    @property
    def is_note(self) -> bool:
        """Worth knowing, but neither a violation nor an unreadable file."""
        return self.kind in NOTES

    def moved(self, lines: int) -> Problem:
        """The same finding, ``lines`` further down in its file."""
        if not lines:
            return self
        return replace(
            self,
            line=self.line + lines if self.line else 0,
            earlier_line=self.earlier_line + lines if self.earlier_line else 0,
        )

    def as_dict(self) -> dict[str, object]:
        """JSON-ready."""
        return {**asdict(self), "kind": str(self.kind)}


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
            if self._room[problem.is_note] <= 0:
                return
            self._room[problem.is_note] -= 1
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
        return sum(
            count
            for kind, count in self.counts.items()
            if kind not in NOTES and kind is not Kind.UNREADABLE
        )

    @property
    def notes(self) -> int:
        """How many findings are mere notes."""
        return sum(count for kind, count in self.counts.items() if kind in NOTES)

    @property
    def unreadable(self) -> int:
        """How many files could not be opened."""
        return self.counts[Kind.UNREADABLE]

    def judge(self, records: int) -> bool | None:
        """Is what was read legal? None: nobody can say, for a file could not be opened or there
        was no record in any."""
        if self.violations:
            return False
        return True if records and not self.unreadable else None


def clean(text: str, width: int = 60) -> str:
    """``text`` without control characters (a terminal would obey them), shortened."""
    shown = "".join(char if char.isprintable() else "\N{REPLACEMENT CHARACTER}" for char in text)
    return shown if len(shown) <= width else shown[: width - 1] + "…"
