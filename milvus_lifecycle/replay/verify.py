"""Logs through the rules, from their names to the verdict; in several processes if asked."""

from __future__ import annotations

import multiprocessing
import os
import time
from collections import deque
from collections.abc import Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from itertools import islice

from .files import LineReader, Progress, find_sources, is_plain
from .findings import LIMIT, Kind, Problem, Problems, as_json
from .rules import Verifier

#: Bytes of a plain file that one worker reads at a time (at most).
_PIECE = 512 * 1024 * 1024
#: ... and at least: below, starting the worker takes longer.
_SMALLEST = 1024 * 1024


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
        told: dict[str, object] = as_json(
            {
                "legal": self.legal,
                "exit_code": self.exit_code,
                **vars(self),
                "violations": problems.violations,
                "notes": problems.notes,
                "unreadable": problems.unreadable,
                "counts": problems.counts,
                "problems": problems.kept,
                "problems_not_shown": problems.hidden,
            }
        )
        return told


def verify_logs(
    names: Sequence[str],
    *,
    jobs: int = 1,
    limit: int = LIMIT,
    ignore: Iterable[Kind] = (),
    on_progress: Progress | None = None,
) -> Verdict:
    """Replay the logs through the table: files, globs or ``-`` (standard input).

    ``jobs`` is the number of processes. ``limit`` bounds the violations and the notes that are
    kept, not those that are counted; findings of the kinds in ``ignore`` are dropped. Nothing is
    raised for bad input: it is a finding.
    """
    began = time.monotonic()
    verifier = Verifier(Problems(limit, ignore))
    sources = find_sources(names, verifier.problems)
    pieces = plan_pieces(sources.paths, jobs)
    # Streams, which no other process can open, come last.
    shared = sum(os.path.isfile(path) for path, *_ in pieces)
    if jobs > 1 and shared > 1:
        _verify_in_parallel(verifier, pieces[:shared], jobs, on_progress)
        pieces = pieces[shared:]
    for piece in pieces:
        _read_piece(verifier, piece, on_progress)
    verifier.finish()
    verifier.problems.sort(sources.paths)
    return Verdict(
        sources.paths,
        verifier.records,
        verifier.lines,
        verifier.connections,
        verifier.lost_records,
        time.monotonic() - began,
        verifier.problems,
    )


# -- pieces -----------------------------------------------------------------------------------

#: What is read in one go: a file from a byte to another (None: its end), by whole lines.
Piece = tuple[str, int, int | None]


def plan_pieces(paths: Sequence[str], jobs: int, smallest: int = _SMALLEST) -> list[Piece]:
    """Cut plain files into line-aligned ranges for ``jobs`` workers; other files stay whole."""
    sizes = {path: os.path.getsize(path) for path in paths if os.path.isfile(path)}
    target = max(smallest, min(_PIECE, sum(sizes.values()) // (jobs * 4) + 1))
    pieces: list[Piece] = []
    for path in paths:
        divide = jobs > 1 and sizes.get(path, 0) >= 2 * target and is_plain(path)
        pieces += _cut(path, sizes[path], target) if divide else [(path, 0, None)]
    return pieces


def _cut(path: str, size: int, target: int) -> list[Piece]:
    cuts = [0]
    with open(path, "rb") as file:
        while cuts[-1] + target < size:
            file.seek(cuts[-1] + target)
            while (line := file.readline(target)) and not line.endswith(b"\n"):
                pass
            if file.tell() >= size:
                break
            cuts.append(file.tell())
    # The last range has no end: a log that still grows is read up to where it is by then.
    return [(path, start, end) for start, end in zip(cuts, [*cuts[1:], None], strict=True)]


def _read_piece(verifier: Verifier, piece: Piece, on_progress: Progress | None) -> None:
    path, start, end = piece
    verifier.begin(path)
    reader = LineReader(path, verifier.damage, start, end, on_progress)
    for number, record in reader.records():
        verifier.check(record, number)
    verifier.lines += reader.lines
    if not reader.lines and not reader.failed:
        what = "the file is empty: nothing to verify"
        verifier.problems.add(Problem(Kind.EMPTY_FILE, path, 0, what))


# -- several at once --------------------------------------------------------------------------


def _verify_piece(piece: Piece, limit: int, ignore: frozenset[Kind]) -> tuple[Verifier, int]:
    """What a worker does: what can be known from the piece alone, and its bytes."""
    verifier = Verifier(Problems(limit, ignore), from_start=False)
    sizes: list[int] = []
    _read_piece(verifier, piece, sizes.append)
    return verifier, sum(sizes)


def _verify_in_parallel(
    verifier: Verifier, pieces: list[Piece], jobs: int, on_progress: Progress | None
) -> None:
    """Join what the workers find in the order of the pieces."""
    limit, ignore = verifier.problems.limit, verifier.problems.ignore
    before = 0
    # spawn: a forked child of a threaded process may inherit locks that nobody will release.
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(min(jobs, len(pieces)), mp_context=context) as pool:
        tasks = ((piece, pool.submit(_verify_piece, piece, limit, ignore)) for piece in pieces)
        waiting = deque(islice(tasks, 2 * jobs))  # no more under way: what they find takes memory
        while waiting:
            (path, start, _), task = waiting.popleft()
            later, size = task.result()
            waiting.extend(islice(tasks, 1))
            if on_progress is not None:
                on_progress(size)
            before = before if start else 0
            verifier.begin(path)
            verifier.adopt(later, before)
            before += later.lines
