"""Broken drivers: each has one line changed, as one could write it; schedules have to find it."""

from __future__ import annotations

from dataclasses import dataclass

from milvus_lifecycle.core.lifecycle import Lifecycle
from milvus_lifecycle.drivers.aio import AsyncDriver
from milvus_lifecycle.drivers.threads import ThreadsDriver
from tests.simulation.broken import Line


@dataclass(frozen=True)
class DriverBug:
    """What is wrong, in which driver, and the laws by which that shows."""

    flavour: str
    name: str
    laws: tuple[int, ...]
    patch: Line


BUGS: tuple[DriverBug, ...] = (
    # -- threads ----------------------------------------------------------------------------
    DriverBug(
        "threads",
        "lost wakeup: a flight may end before its waiter is on the list",
        (4,),
        Line(
            ThreadsDriver,
            "_wait",
            "join(flight, wake, request.until, leads=request.leads):",
            "join(flight, wake, request.until, leads=request.leads) is not None:",
        ),
    ),
    DriverBug(
        "threads",
        "late close: a timekeeper that sleeps is not told of an earlier job",
        (7,),
        Line(
            ThreadsDriver,
            "reschedule",
            "# Itself, too: a finalizer may plan on its thread, after it has read what is next.",
            "return",
        ),
    ),
    DriverBug(
        "threads",
        "late close: a channel is left to a timekeeper that may have gone",
        (2, 7),
        Line(
            ThreadsDriver,
            "dispose",
            "wire.channel.close()",
            "self.post(wire.channel.close)",
        ),
    ),
    DriverBug(
        "threads",
        "two leaders: nobody asks whether somebody flies already",
        (1,),
        Line(Lifecycle, "lead", "if flight.leader is not None or", "if"),
    ),
    # -- asyncio ----------------------------------------------------------------------------
    DriverBug(
        "asyncio",
        "late close: a timer that is armed is not moved forward",
        (7,),
        Line(
            AsyncDriver,
            "_arm",
            "due >= self._timer_due > self.pool.seams.clock()",
            "self._timer is not None",
        ),
    ),
    DriverBug(
        "asyncio",
        "late close: channels are closed in the loop's next round, which may not come",
        (7,),
        Line(
            AsyncDriver,
            "_in_loop",
            "if loop is None or not loop.is_running() or self._here():",
            "if loop is None:",
        ),
    ),
    DriverBug(
        "asyncio",
        "lost wakeup: another thread wakes whoever waits, and not the loop",
        (4, 12),
        Line(
            AsyncDriver,
            "_wait",
            "call_in(loop, settle, landed)",
            "settle(landed)",
        ),
    ),
    DriverBug(
        "asyncio",
        "lost wakeup: a leader that is cancelled before its first step settles nothing",
        (4,),
        Line(
            AsyncDriver,
            "_spawn",
            "if done is not None:",
            "if False:",
        ),
    ),
)
