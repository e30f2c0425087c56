"""What a process holds, read again and again, and whether that grows."""

from __future__ import annotations

import ctypes
import gc
import os
import sys
import threading
import time
from collections.abc import Callable, Sequence
from itertools import combinations
from pathlib import Path
from statistics import median

#: What is growth at all, whatever the scatter: the least that the reading can tell apart.
GRAINS = {"descriptors": 2.0, "threads": 1.0, "tasks": 1.0, "MB": 2.0, "blocks": 5_000.0}


def reading(tasks: Callable[[], int]) -> dict[str, float]:
    """What this process holds at rest, ``tasks`` of its event loops among it.

    The least of five looks: now and then somebody asks for a topology.
    """
    gc.collect()
    # What only the allocator keeps is no leak.
    ctypes.CDLL(None).malloc_trim(0)
    looks = []
    for _ in range(5):
        looks.append(_look(tasks()))
        time.sleep(0.2)
    return {what: min(look[what] for look in looks) for what in GRAINS}


def _look(tasks: int) -> dict[str, float]:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return {
        "descriptors": len(os.listdir("/proc/self/fd")),
        "threads": threading.active_count(),
        "tasks": tasks,
        "MB": pages * os.sysconf("SC_PAGE_SIZE") / 1e6,
        "blocks": sys.getallocatedblocks(),
    }


def growth(values: Sequence[float]) -> tuple[float, float]:
    """By how much readings grow from the first to the last, and their scatter around that.

    Theil and Sen's line: the median of the slopes of all pairs, which a third of the readings may
    miss by whatever they like; and the median distance from it, as a standard deviation.
    """
    pairs = combinations(enumerate(values), 2)
    slope = median((later - earlier) / (at - before) for (before, earlier), (at, later) in pairs)
    rests = [value - slope * at for at, value in enumerate(values)]
    middle = median(rests)
    scatter = 1.4826 * median(abs(rest - middle) for rest in rests)
    return slope * (len(values) - 1), scatter


def grown(readings: Sequence[dict[str, float]]) -> tuple[list[str], str]:
    """What has grown in the second half of the readings, and all figures.

    Growth counts from three times the scatter on: for n readings the line's own error is the
    scatter times the root of 12 / n, so that is three times the error or more from 12 on, and twice
    from 5 on. In the first half pools, caches and the allocator's arenas fill up.
    """
    half = readings[len(readings) // 2 :]
    leaks, figures = [], []
    for what, grain in GRAINS.items():
        values = [each[what] for each in half]
        more, scatter = growth(values)
        told = (
            f"{what} {values[0]:,.0f} -> {values[-1]:,.0f} ({more:+,.1f}, scatter {scatter:,.1f})"
        )
        figures.append(told)
        if more > max(grain, 3 * scatter):
            leaks.append(told)
    return leaks, f"over {len(half)} readings: " + ", ".join(figures)
