"""What was asked of the demo, and what every run of it has in common."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from milvus_lifecycle.demo.child import Heard
from milvus_lifecycle.demo.measure import Observations, Outage
from milvus_lifecycle.demo.view import View


@dataclass(frozen=True)
class Options:
    """What the command line asked for. `outages` in seconds, `json_file` or None."""

    outages: tuple[float, ...]
    workers: int
    use_asyncio: bool
    compare: bool
    json_file: Path | None
    failover: bool = False

    @property
    def worker_name(self) -> str:
        """What a worker is."""
        return "task" if self.use_asyncio else "thread"


def begin_run(options: Options, view: View, *, stock: bool) -> str:
    """Announce a run; returns its title."""
    title = "pymilvus alone" if stock else "with the engine"
    client = "AsyncMilvusClient" if options.use_asyncio else "MilvusClient"
    view.begin_run(f"{title}: {client}, {options.workers} {options.worker_name}s")
    return title


def observe(
    options: Options, heard: Heard, began: float, ended: float, outages: Sequence[Outage]
) -> Observations:
    """What the program's process reported, for `take_figures`."""
    return Observations(
        workers=options.workers,
        began=began,
        ended=ended,
        calls=heard.calls,
        channels=heard.channels,
        triggers=[
            record["trigger"]
            for record in heard.records
            if record["event"] == "connection.transition"
        ],
        outages=outages,
    )
