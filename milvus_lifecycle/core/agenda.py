"""The agenda: what is due when. Decides nothing; whoever keeps time takes what is due."""

from __future__ import annotations

import heapq
import itertools
import threading
from collections.abc import Callable, Iterator

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

    def due(self, now: float) -> Iterator[Job]:
        """What is due, each job until the next one is asked for; not what is noted meanwhile.

        A job is taken off once it is done: one that was interrupted is done again.
        """
        mark = next(self._count)
        while True:
            with self._lock:
                entry = self._heap[0] if self._heap else None
            if entry is None or entry[0] > now or entry[1] > mark:
                return
            yield entry[2]
            with self._lock:
                if self._heap and self._heap[0] is entry:
                    heapq.heappop(self._heap)
                elif entry in self._heap:  # an earlier one has come
                    self._heap.remove(entry)
                    heapq.heapify(self._heap)

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
