"""One piece of a log through the rules, and several pieces at once in worker processes."""

from __future__ import annotations

import multiprocessing
from collections.abc import Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures import TimeoutError as StillRunning
from ctypes import c_longlong
from multiprocessing.sharedctypes import Synchronized

from .decoding import decode_or_explain
from .lines import Batch, LineReader, Progress
from .problems import Kind, Problem, Problems
from .records import decode
from .rules import Outcome, Verifier
from .sources import Piece

#: Seconds between two looks at how far the workers are.
_GLANCE = 0.2


def read_piece(verifier: Verifier, piece: Piece, on_progress: Progress | None) -> int:
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
