"""What a process holds, read again and again, and whether that grows."""

from __future__ import annotations

import ctypes
import os
import sys
import threading
import time
from collections.abc import Callable, Sequence
from itertools import combinations
from math import sqrt
from pathlib import Path
from statistics import median

#: What is no growth yet. Of blocks (Python's, 770,000 at rest) and memory: a hundredth or two.
GRAINS = {
    "descriptors": 2.0,
    "threads": 1.0,
    "tasks": 1.0,
    "MB": 4.0,
    "malloc-kB": 500.0,
    "blocks": 5_000.0,
}
_SURE = 2.6

#: glibc keeps some of what was freed for the thread that freed it, and counts it as in use. That
#: fills up for hours, by 1,400 bytes for each channel at first, bare ones of gRPC among them. With
#: nothing kept they show next to none, and what grows is a leak.
KEEP_NOTHING = {"GLIBC_TUNABLES": "glibc.malloc.tcache_count=0:glibc.malloc.arena_max=1"}


class _Mallinfo(ctypes.Structure):
    _fields_ = tuple(
        (name, ctypes.c_size_t)
        for name in (
            *("arena", "ordblks", "smblks", "hblks", "hblkhd"),
            *("usmblks", "fsmblks", "uordblks", "fordblks", "keepcost"),
        )
    )


def reading(tasks: Callable[[], int]) -> dict[str, float]:
    """What this process holds at rest, ``tasks`` of its event loops among it.

    The least of five looks: now and then somebody asks for a topology.
    """
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
        "malloc-kB": malloced() / 1e3,
        "blocks": sys.getallocatedblocks(),
    }


def malloced() -> int:
    """Bytes in use by glibc's malloc: gRPC's, and those of Python that are in no block."""
    mallinfo2 = ctypes.CDLL(None).mallinfo2
    mallinfo2.restype = _Mallinfo
    info = mallinfo2()
    return int(info.uordblks + info.hblkhd)


def growth(values: Sequence[float]) -> tuple[float, float]:
    """By how much readings grow from the first to the last, and how sure that is.

    Theil and Sen's line: the median of the slopes of all pairs, which a fourth of the readings may
    miss by whatever they like. Mann and Kendall's test: how many more pairs rise than fall, in
    standard deviations of what chance alone does. Neither cares how readings scatter.
    """
    count, pairs = len(values), list(combinations(enumerate(values), 2))
    slope = median((later - earlier) / (at - before) for (before, earlier), (at, later) in pairs)
    rising = sum((later > earlier) - (later < earlier) for (_, earlier), (_, later) in pairs)
    return slope * (count - 1), (rising - 1) / sqrt(count * (count - 1) * (2 * count + 5) / 18)


def grown(readings: Sequence[dict[str, float]]) -> tuple[list[str], str]:
    """What has grown in the second half of the readings, and all figures.

    In the first half pools, caches and the allocator's arenas fill up. Growth is more than a grain,
    and surer than chance makes it once in 300 times: of six readings, each is above the one before.
    """
    half = readings[len(readings) // 2 :]
    leaks, figures = [], []
    for what, grain in GRAINS.items():
        values = [each[what] for each in half]
        more, sure = growth(values)
        told = f"{what} {values[0]:,.0f} -> {values[-1]:,.0f} (line {more:+,.1f}, z {sure:+.1f})"
        figures.append(told)
        if more > grain and sure > _SURE:
            leaks.append(told)
    return leaks, f"over {len(half)} readings: " + ", ".join(figures)
