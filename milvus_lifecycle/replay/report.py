"""What a report is made of: one pass over the logs, folded into verdict, figures and timeline."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime, timezone

from ..diagram_figures import Figures, annotate
from .lines import Progress
from .problems import Problems
from .reading import read_records
from .records import Created, Record, RecordsLost, Refused, Transition, Waiting
from .rules import Verifier
from .sources import Sources
from .stats import Stats, StatsFold
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
    figures: Figures
    lanes: list[Lane]
    timeline: TimelineFold


def fold_report(
    sources: Sources, *, stays: int = STAYS, on_progress: Progress | None = None
) -> Report:
    """Read the logs once. ``stays`` bounds what the timeline shows, see ``timeline.py``."""
    verifier = Verifier(Problems(FINDINGS))
    stats = StatsFold(OUTAGES)
    timeline = TimelineFold(stays)

    def records() -> Iterator[dict[str, object]]:
        for record in read_records(sources, verifier.problems, on_progress, verifier):
            stats.add(record)
            timeline.add(record)
            yield _mapping(record)

    # The diagram's fold pulls the records; the others look at each on its way.
    figures = annotate(records())
    verifier.finish()
    verifier.problems.sort(sources.paths)
    lanes = timeline.finish()
    now = datetime.now(timezone.utc)
    return Report(
        files=sources.paths,
        since=timeline.since or now,
        until=timeline.until or now,
        problems=verifier.problems,
        connections=verifier.connections,
        stats=stats.result(),
        figures=figures,
        lanes=lanes,
        timeline=timeline,
    )


_EVENTS: dict[type[Record], str] = {
    Transition: "connection.transition",
    Created: "connection.created",
    Refused: "connection.refused",
    Waiting: "connection.waiting",
    RecordsLost: "connection.records_lost",
}


def _mapping(record: Record) -> dict[str, object]:
    """The fields that the diagram's figures are made of."""
    fields: dict[str, object] = {
        "event": _EVENTS[type(record)],
        "ts": record.ts.isoformat(),
        "connection_id": record.connection_id,
    }
    if isinstance(record, Transition):
        fields.update(
            trigger=record.trigger, source=record.source, dest=record.dest, dwell_s=record.dwell_s
        )
    return fields


def name_files(files: Sequence[str]) -> str:
    """The logs in a few words."""
    shown = ", ".join(files[:3])
    return shown if len(files) <= 3 else f"{shown} and {len(files) - 3} more"
