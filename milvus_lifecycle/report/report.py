"""What a report is made of: one pass over the logs, folded into verdict, figures and timeline."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timezone

from ..replay.lines import Progress
from ..replay.problems import Problems
from ..replay.reading import read_records
from ..replay.rules import Verifier
from ..replay.sources import Sources
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

    for record in read_records(sources, verifier.problems, on_progress, verifier):
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
