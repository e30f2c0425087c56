"""What tests know of the engine's inside, in one place: everything else goes by public names."""

from __future__ import annotations

from milvus_lifecycle.audit import stream
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
    "opening",
    "records_that_may_wait",
]


def flush_records(limit: float = 10.0) -> None:
    """Wait until listeners, log handlers and files have every record of this process."""
    stream.flush_all(limit)


def records_that_may_wait(number: int) -> tuple[object, str, int]:
    """For monkeypatch.setattr: how many records wait for a reader before some are lost."""
    return stream, "LIMIT", number


def fetch_spacing(seconds: float) -> tuple[object, str, float]:
    """For monkeypatch.setattr: the least time between two fetches of a topology."""
    return global_cluster, "FETCH_SPACING", seconds


def fetch_limit(seconds: float) -> tuple[object, str, float]:
    """For monkeypatch.setattr: the longest time that a fetch of a topology may take."""
    return global_cluster, "FETCH_LIMIT", seconds


def flying() -> tuple[object, str]:
    """For mock.patch.object: the procedure of whoever leads a flight."""
    return Recovery, "fly"


def opening() -> tuple[object, str]:
    """For mock.patch.object: what opens a channel, in both flavours."""
    from milvus_lifecycle.drivers.pymilvus import _PymilvusTransport

    return _PymilvusTransport, "open"
