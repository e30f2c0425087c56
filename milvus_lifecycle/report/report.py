"""What a report is made of: one pass over the logs, folded into verdict, figures and timeline."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timezone

from ..replay.files import LineReader, Progress, Sources, records_in
from ..replay.findings import Problems
from ..replay.rules import Verifier
from ..replay.stats import Stats, StatsFold
from .timeline import STAYS, Lane, TimelineFold

#: Findings and outages that a page lists; further ones are counted.
FINDINGS = 200
OUTAGES = 300


@dataclass(frozen=True)
class Report:
    """Everything that the page shows."""

    files: tuple[str, ...]
    since: datetime
    until: datetime
    problems: Problems
    connections: int
    stats: Stats
    lanes: list[Lane]
    timeline: TimelineFold


def fold_report(
    sources: Sources, *, stays: int = STAYS, on_progress: Progress | None = None
) -> Report:
    """Read the logs once. ``stays`` bounds what the timeline shows, see ``timeline.py``."""
    verifier = Verifier(Problems(FINDINGS))
    stats = StatsFold(OUTAGES)
    timeline = TimelineFold(stays)

    for problem in sources.problems:
        verifier.problems.add(problem)
    for path in sources.paths:
        verifier.begin(path)
        reader = LineReader(path, None, on_progress)
        for number, record in records_in(reader, verifier.damage):
            verifier.check(record, number)
            timeline.add(record, stats.add(record))
    verifier.finish()
    verifier.problems.sort(sources.paths)
    found = stats.result()
    now = datetime.now(timezone.utc)
    return Report(
        files=sources.paths,
        since=found.since or now,
        until=found.until or now,
        problems=verifier.problems,
        connections=verifier.connections,
        stats=found,
        lanes=timeline.finish(),
        timeline=timeline,
    )
