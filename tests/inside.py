"""What tests know of the engine's inside, in one place: everything else goes by public names."""

from __future__ import annotations

from typing import Any

from milvus_lifecycle.audit import stream
from milvus_lifecycle.core import maintenance
from milvus_lifecycle.core.flight import STOPPED, Flight
from milvus_lifecycle.core.recovery import Recovery
from milvus_lifecycle.endpoints import global_cluster

__all__ = [
    "STOPPED",
    "Flight",
    "fetch_limit",
    "fetch_spacing",
    "flush_records",
    "flying",
    "looking_at_tls",
    "opening",
    "records_that_may_wait",
    "waiting",
    "waiting_for_topology",
]


def flush_records(limit: float = 10.0) -> None:
    """Wait until listeners, log handlers and files have every record of this process."""
    stream.flush_all(limit)


def waiting(manager: Any) -> int:
    """How many calls and checkouts wait for the flights of a manager's connections now."""
    flights = [each.lifecycle.flight for each in manager._pool.registry.all()]
    return sum(len(flight.waiters) for flight in flights if flight is not None)


def waiting_for_topology() -> list[int]:
    """How many have joined each fetch of a topology that this process makes now."""
    fetches = [book._fetch for book in list(global_cluster.TopologyBook._books.values())]
    return [len(fetch._wakes) for fetch in fetches if fetch is not None]


def records_that_may_wait(number: int) -> tuple[object, str, int]:
    """For monkeypatch.setattr: how many records wait for a reader before some are lost."""
    return stream, "LIMIT", number


def fetch_spacing(seconds: float) -> tuple[object, str, float]:
    """For monkeypatch.setattr: the least time between two fetches of a topology."""
    return global_cluster, "FETCH_SPACING", seconds


def fetch_limit(seconds: float) -> tuple[object, str, float]:
    """For monkeypatch.setattr: the longest time that a fetch of a topology may take."""
    return global_cluster, "FETCH_LIMIT", seconds


def looking_at_tls(seconds: float) -> tuple[object, str, float]:
    """For monkeypatch.setattr: how often TLS files are looked at."""
    return maintenance, "TLS_LOOK", seconds


def flying() -> tuple[object, str]:
    """For mock.patch.object: the procedure of whoever leads a flight."""
    return Recovery, "fly"


def opening() -> tuple[object, str]:
    """For mock.patch.object: what opens a channel, in both flavours."""
    from milvus_lifecycle.drivers.pymilvus import _PymilvusTransport

    return _PymilvusTransport, "open"
