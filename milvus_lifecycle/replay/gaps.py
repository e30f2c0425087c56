"""Gaps in ``seq``, and which of them the sink itself has confessed to.

A sink that could not write says so later: ``connection.records_lost`` with a count, of one
connection, of one process or of everybody. Since the confession comes after the loss, gaps
wait here until the log is read, and are then set against what was confessed.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, replace

from .problems import Kind, Problem, Problems
from .records import RecordsLost

#: Gaps that wait for a confession; beyond that they are judged by what was confessed so far.
_PENDING = 10_000


@dataclass(frozen=True)
class Gap:
    """``missing`` records of one connection; ``problem`` is the violation unless it is covered."""

    problem: Problem
    pid: int | None
    missing: int


class LossBook:
    """The gaps that were found, and the losses that were confessed."""

    def __init__(self) -> None:
        self.lost_records = 0
        self._gaps: list[Gap] = []
        #: (connection id, None), (None, pid) or (None, None): records that may be missing
        self._allowed: Counter[tuple[str | None, int | None]] = Counter()

    def miss(self, gap: Gap, problems: Problems) -> None:
        """A gap was found; it is judged by ``settle``."""
        self._gaps.append(gap)
        if len(self._gaps) >= _PENDING:
            self.settle(problems)

    def confess(self, record: RecordsLost) -> None:
        """The sink says that it lost ``record.count`` records."""
        count = max(0, record.count)
        self.lost_records += count
        if record.connection_id is not None:
            self._allowed[record.connection_id, None] += count
        else:
            self._allowed[None, record.pid] += count

    def absorb(self, other: LossBook, lines: int) -> None:
        """Take over the book of a later piece, whose lines count from ``lines`` on."""
        self._gaps += [replace(gap, problem=gap.problem.moved(lines)) for gap in other._gaps]
        self._allowed.update(other._allowed)
        self.lost_records += other.lost_records

    def settle(self, problems: Problems) -> None:
        """Turn each waiting gap into a note, if it was confessed to, or into a violation."""
        for gap in self._gaps:
            problem = gap.problem
            if self._cover(gap):
                problem = replace(
                    problem,
                    kind=Kind.COVERED_GAP,
                    message=f"{problem.message}; the sink had said so (records_lost)",
                )
            problems.add(problem)
        self._gaps.clear()

    def _cover(self, gap: Gap) -> bool:
        """Use up what was confessed for this gap; False (and nothing used) if it is too little."""
        keys = dict.fromkeys(((gap.problem.connection_id, None), (None, gap.pid), (None, None)))
        if sum(self._allowed[key] for key in keys) < gap.missing:
            return False
        left = gap.missing
        for key in keys:
            used = min(left, self._allowed[key])
            self._allowed[key] -= used
            left -= used
        return True
