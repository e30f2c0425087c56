"""Logs through the rules, from their names to the verdict; in several processes if asked."""

from __future__ import annotations

import multiprocessing
import os
import time
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures import TimeoutError as StillRunning
from ctypes import c_longlong
from dataclasses import dataclass
from multiprocessing.sharedctypes import Synchronized

from .files import LineReader, Progress, Span, find_sources, records_in
from .findings import Kind, Problems
from .rules import Outcome, Verifier

#: How many findings of a sort are kept for showing; all of them are counted.
LIMIT = 1000
#: Bytes of a plain file that one worker reads at a time (at most).
_PIECE = 512 * 1024 * 1024
#: ... and at least: below, starting the worker takes longer.
_SMALLEST = 1024 * 1024
#: Seconds between two looks at how far the workers are.
_GLANCE = 0.2


@dataclass(frozen=True)
class Verdict:
    """What ``verify_logs`` found. ``exit_code`` is that of ``audit verify``."""

    files: tuple[str, ...]
    records: int
    lines: int
    connections: int
    lost_records: int
    seconds: float
    problems: Problems

    @property
    def legal(self) -> bool | None:
        """None: no verdict, for a file could not be opened or there was no record in any."""
        return self.problems.judge(self.records)

    @property
    def exit_code(self) -> int:
        """0 legal, 1 violations, 2 no verdict, or not on every file that was asked for."""
        if self.problems.unreadable or self.legal is None:
            return 2
        return 0 if self.legal else 1

    def as_dict(self) -> dict[str, object]:
        """JSON-ready."""
        problems = self.problems
        return {
            "legal": self.legal,
            "exit_code": self.exit_code,
            "files": list(self.files),
            "records": self.records,
            "lines": self.lines,
            "connections": self.connections,
            "lost_records": self.lost_records,
            "violations": problems.violations,
            "notes": problems.notes,
            "unreadable": problems.unreadable,
            "counts": {str(kind): count for kind, count in sorted(problems.counts.items())},
            "problems": [problem.as_dict() for problem in problems.kept],
            "problems_not_shown": problems.counts.total() - len(problems.kept),
            "seconds": round(self.seconds, 3),
        }


def verify_logs(
    names: Sequence[str],
    *,
    jobs: int = 1,
    limit: int = LIMIT,
    ignore: Iterable[Kind] = (),
    on_progress: Progress | None = None,
) -> Verdict:
    """Replay the logs through the table.

    ``names`` are files, globs or ``-`` (standard input). ``jobs`` is the number of processes.
    ``limit`` bounds the violations and the notes that are kept, not those that are counted.
    Findings of the kinds in ``ignore`` are dropped. Nothing is raised for bad input: it is
    a finding.
    """
    began = time.monotonic()
    sources = find_sources(names)
    verifier = Verifier(Problems(limit, ignore))
    for problem in sources.problems:
        verifier.problems.add(problem)
    pieces = plan_pieces(sources.paths, jobs)
    shared = [piece for piece in pieces if piece.regular]
    lines = 0
    if jobs > 1 and len(shared) > 1:
        lines = verify_in_parallel(verifier, shared, jobs, on_progress)
        pieces = pieces[len(shared) :]  # streams come last
    lines += sum(read_piece(verifier, piece, on_progress) for piece in pieces)
    verifier.finish()
    verifier.problems.sort(sources.paths)
    return Verdict(
        sources.paths,
        verifier.records,
        lines,
        verifier.connections,
        verifier.losses.lost_records,
        time.monotonic() - began,
        verifier.problems,
    )


# -- pieces -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Piece:
    """What is read in one go: a whole file, or a line-aligned range of a plain one."""

    path: str
    span: Span | None = None
    #: False for standard input and pipes, which no other process can open
    regular: bool = True

    @property
    def continues(self) -> bool:
        """A later range of the file that the piece before it began."""
        return self.span is not None and self.span.start > 0


def plan_pieces(paths: Sequence[str], jobs: int, smallest: int = _SMALLEST) -> list[Piece]:
    """Cut plain files into line-aligned ranges for ``jobs`` workers; other files stay whole."""
    pieces: list[Piece] = []
    total = sum(os.path.getsize(path) for path in paths if os.path.isfile(path))
    target = max(smallest, min(_PIECE, total // (jobs * 4) + 1))
    for path in paths:
        if jobs < 2 or not os.path.isfile(path) or os.path.getsize(path) < 2 * target:
            pieces.append(Piece(path, regular=os.path.isfile(path)))
        else:
            pieces.extend(_cut(path, target))
    return pieces


def _cut(path: str, target: int) -> list[Piece]:
    size = os.path.getsize(path)
    cuts = [0]
    with open(path, "rb") as file:
        if file.read(2) == b"\x1f\x8b":
            return [Piece(path)]
        while cuts[-1] + target < size:
            file.seek(cuts[-1] + target)
            while True:
                line = file.readline(target)
                if not line or line.endswith(b"\n"):
                    break
            if file.tell() >= size:
                break
            cuts.append(file.tell())
    # The last range has no end: a log that still grows is read up to where it is by then.
    ends: list[int | None] = [*cuts[1:], None]
    return [Piece(path, Span(start, end)) for start, end in zip(cuts, ends, strict=True)]


def read_piece(verifier: Verifier, piece: Piece, on_progress: Progress | None) -> int:
    """Check every record of ``piece``; returns its number of lines."""
    verifier.begin(piece.path)
    reader = LineReader(piece.path, piece.span, on_progress)
    check = verifier.check
    for number, record in records_in(reader, verifier.damage):
        check(record, number)
    if not reader.lines and not reader.failed:
        verifier.damage(Kind.EMPTY_FILE, 0, "the file is empty: nothing to verify")
    return reader.lines


# -- several at once --------------------------------------------------------------------------


#: In a worker: bytes that all workers have read so far. Set once by ``_initialize``.
_bytes_read: Synchronized[int] | None = None


def _initialize(counter: Synchronized[int]) -> None:
    # The counter can only be inherited, not sent with a task.
    global _bytes_read
    _bytes_read = counter


def _count(size: int) -> None:
    if _bytes_read is not None:
        with _bytes_read.get_lock():
            _bytes_read.value += size


def _verify_piece(piece: Piece, limit: int, ignore: frozenset[Kind]) -> Outcome:
    """What a worker does: everything that can be known from the piece alone."""
    verifier = Verifier(Problems(limit, ignore), from_start=False)
    lines = read_piece(verifier, piece, _count)
    return verifier.outcome(lines)


def verify_in_parallel(
    verifier: Verifier, pieces: list[Piece], jobs: int, on_progress: Progress | None
) -> int:
    """Join the workers' outcomes in the order of the pieces; returns the number of lines."""
    total = before = 0
    for piece, outcome in _outcomes(verifier.problems, pieces, jobs, on_progress):
        before = before if piece.continues else 0
        verifier.begin(piece.path)
        verifier.adopt(outcome, before)
        before += outcome.lines
        total += outcome.lines
    return total


def _outcomes(
    problems: Problems, pieces: list[Piece], jobs: int, on_progress: Progress | None
) -> Iterator[tuple[Piece, Outcome]]:
    """Outcomes in order, with no more than two pieces per worker under way or waiting."""
    # spawn: a forked child of a threaded process may inherit locks that nobody will release.
    context = multiprocessing.get_context("spawn")
    counter = context.Value(c_longlong, 0)
    waiting: list[tuple[Piece, Future[Outcome]]] = []
    with ProcessPoolExecutor(
        min(jobs, len(pieces)), mp_context=context, initializer=_initialize, initargs=(counter,)
    ) as pool:
        for piece in pieces:
            task = pool.submit(_verify_piece, piece, problems.limit, problems.ignore)
            waiting.append((piece, task))
            if len(waiting) >= 2 * jobs:
                first, future = waiting.pop(0)
                yield first, _wait(future, counter, on_progress)
        for piece, future in waiting:
            yield piece, _wait(future, counter, on_progress)


def _wait(
    future: Future[Outcome], counter: Synchronized[int], on_progress: Progress | None
) -> Outcome:
    """The outcome; meanwhile, report how far all workers are."""
    while True:
        try:
            return future.result(_GLANCE)
        except StillRunning:
            if future.done():
                raise
        finally:
            if on_progress is not None:
                with counter.get_lock():
                    size, counter.value = counter.value, 0
                on_progress(size)
