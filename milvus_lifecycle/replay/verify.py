"""Reading logs through the rules: in one process, or in several with the pieces joined in order."""

from __future__ import annotations

import multiprocessing
import time
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from dataclasses import dataclass

from .decoding import decode_or_explain
from .lines import Batch, LineReader, Progress
from .problems import Kind, Problem, Problems
from .records import decode
from .rules import Outcome, Verifier
from .sources import Piece, find_sources, plan_pieces

#: How many findings of a sort are kept for showing; all of them are counted.
LIMIT = 1000


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
    def exit_code(self) -> int:
        """0 legal, 1 violations, 2 a file could not be opened."""
        return self.problems.exit_code

    def as_dict(self) -> dict[str, object]:
        """JSON-ready."""
        problems = self.problems
        return {
            "legal": not problems.violations and not problems.unreadable,
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
    if jobs > 1 and len(pieces) > 1:
        lines = _verify_in_parallel(verifier, pieces, jobs, on_progress)
    else:
        lines = sum(_read(verifier, piece, on_progress) for piece in pieces)
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


def _read(verifier: Verifier, piece: Piece, on_progress: Progress | None) -> int:
    """Check every record of ``piece``; returns its number of lines."""
    verifier.begin(piece.path)
    reader = LineReader(piece.path, piece.span, on_progress)
    check = verifier.check
    for part in reader:
        if isinstance(part, Problem):
            verifier.damage(part.kind, part.line, part.message)
            continue
        for number, line in enumerate(part.lines, part.first):
            try:
                record = decode(line)
            except (ValueError, RecursionError):
                _read_damaged(verifier, line, number, part)
            else:
                check(record, number)
    if not reader.lines and not reader.failed:
        verifier.damage(Kind.EMPTY_FILE, 0, "the file is empty: nothing to verify")
    return reader.lines


def _read_damaged(verifier: Verifier, line: bytes, number: int, batch: Batch) -> None:
    records, findings = decode_or_explain(line, batch.complete)
    for kind, message in findings:
        verifier.damage(kind, number, message)
    for record in records:
        verifier.check(record, number)


# -- several processes -------------------------------------------------------------------------


def _verify_piece(piece: Piece, limit: int, ignore: tuple[Kind, ...]) -> Outcome:
    """What a worker does: everything that can be known from the piece alone."""
    verifier = Verifier(Problems(limit, ignore), from_start=False)
    lines = _read(verifier, piece, None)
    return verifier.outcome(lines)


def _verify_in_parallel(
    verifier: Verifier, pieces: list[Piece], jobs: int, on_progress: Progress | None
) -> int:
    """Join the workers' outcomes in the order of the pieces; returns the number of lines."""
    total = before = 0
    for piece, outcome in _outcomes(verifier.problems, pieces, jobs):
        before = before if piece.continues else 0
        verifier.begin(piece.path)
        verifier.adopt(outcome, before)
        before += outcome.lines
        total += outcome.lines
        if on_progress is not None:
            on_progress(piece.size)
    return total


def _outcomes(
    problems: Problems, pieces: list[Piece], jobs: int
) -> Iterator[tuple[Piece, Outcome]]:
    """Outcomes in order, with no more than two pieces per worker under way or waiting."""
    # spawn: a forked child of a threaded process may inherit locks that nobody will release.
    context = multiprocessing.get_context("spawn")
    waiting: list[tuple[Piece, Future[Outcome]]] = []
    ignore = tuple(problems.ignore)
    with ProcessPoolExecutor(min(jobs, len(pieces)), mp_context=context) as pool:
        for piece in pieces:
            waiting.append((piece, pool.submit(_verify_piece, piece, problems.limit, ignore)))
            if len(waiting) >= 2 * jobs:
                first, future = waiting.pop(0)
                yield first, future.result()
        for piece, future in waiting:
            yield piece, future.result()
