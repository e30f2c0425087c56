"""The agenda: what is due when. Decides nothing; whoever keeps time takes what is due."""

from __future__ import annotations

import heapq
import itertools
import threading
from collections.abc import Callable

Job = Callable[[], object]


class Agenda:
    """A heap of (due, job). Times are ``time.monotonic()`` seconds.

    A job looks at the connection when it runs and does nothing if it came too early or too
    late; so nothing is ever taken off the agenda before its time.
    """

    def __init__(self) -> None:
        self._heap: list[tuple[float, int, Job]] = []
        self._count = itertools.count()
        self._lock = threading.RLock()

    def push(self, due: float, job: Job) -> bool:
        """Note ``job``. True if it is now the next one due (whoever waits must look again)."""
        with self._lock:
            entry = (due, next(self._count), job)
            heapq.heappush(self._heap, entry)
            return self._heap[0] is entry

    def take_due(self, now: float) -> list[Job]:
        """Remove and return what is due."""
        jobs = []
        with self._lock:
            while self._heap and self._heap[0][0] <= now:
                jobs.append(heapq.heappop(self._heap)[2])
        return jobs

    def next_due(self) -> float | None:
        """When the next job is due; None if there is none."""
        with self._lock:
            return self._heap[0][0] if self._heap else None

    def __len__(self) -> int:
        return len(self._heap)

    def reset_after_fork(self) -> None:
        """In the child: start with an empty agenda."""
        self._lock = threading.RLock()
        self._heap = []
