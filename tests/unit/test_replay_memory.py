"""``audit verify`` in flat memory: ten times the log, the same memory."""

from __future__ import annotations

from pathlib import Path

import pytest

pytest.importorskip("resource", reason="memory is not measured on this system")

from tests.benchmarks.logs import make_log, measure

#: What the allocator may do differently; the longer log is 24 MB longer.
GRACE_MB = 12


@pytest.mark.slow
def test_memory_does_not_grow_with_the_log(tmp_path: Path) -> None:
    """60,000 records peak where 6,000 did, and far below 300 MB."""
    peaks = []
    for count in (6_000, 60_000):
        path = tmp_path / f"{count}.jsonl"
        make_log(path, count, connections=200)
        figures = measure(path)
        assert (figures["exit_code"], figures["records"]) == (0, count)
        peaks.append(figures["peak_mb"])
    assert peaks[1] < peaks[0] + GRACE_MB
    assert peaks[1] < 300
