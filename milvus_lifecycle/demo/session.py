"""One program under one server: what a scenario is played on.

A scenario (`outages.py` is one) gets a Session, does its harm to the server, and waits by the
session only: each wait draws the live view, notices a process that ended by itself, and ends the
demo when a signal came.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

from milvus_lifecycle.demo.child import Workload
from milvus_lifecycle.demo.server import MilvusLite
from milvus_lifecycle.demo.signals import Signals
from milvus_lifecycle.demo.view import View

_PULSE_GAP = 0.02


@dataclass(frozen=True)
class Session:
    """A server, the program that calls it, and who watches both; in a failover more servers."""

    server: MilvusLite
    workload: Workload
    workers: int
    view: View
    signals: Signals
    others: tuple[MilvusLite, ...] = ()

    def wait_until(self, met: Callable[[], bool], limit: float, status: str) -> bool:
        """Wait until `met`, at most `limit` seconds; says whether it was met.

        Raises Interrupted, ServerFailed or WorkloadFailed.
        """
        deadline = time.monotonic() + limit
        while not met():
            self.signals.check()
            for server in (self.server, *self.others):
                server.check()
            self.workload.check()
            self.view.draw(self.workload.heard, status)
            if time.monotonic() >= deadline:
                return False
            time.sleep(_PULSE_GAP)
        return True

    def wait(self, seconds: float, status: str) -> None:
        """Wait for some seconds."""
        self.wait_until(lambda: False, seconds, status)

    def wait_until_all_answered(self, since: float, limit: float, status: str) -> bool:
        """Wait until every worker has had a good call that ended after `since`."""
        heard = self.workload.heard
        return self.wait_until(lambda: heard.count_good_since(since) >= self.workers, limit, status)
