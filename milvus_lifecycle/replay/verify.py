"""Reading logs through the rules, from their names to the verdict."""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from .lines import Progress
from .parallel import read_piece, verify_in_parallel
from .problems import Kind, Problems
from .rules import Verifier
from .sources import find_sources, plan_pieces

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
