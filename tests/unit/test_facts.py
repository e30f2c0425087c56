"""The seam for time, as it is when nothing is injected."""

from __future__ import annotations

import threading
import time

from milvus_lifecycle.core.facts import Seams
from tests.observe import Call


def test_a_wait_ends_with_its_event() -> None:
    """However far away its time is."""
    seams, event = Seams(), threading.Event()
    call = Call(seams.wait, event, seams.clock() + 1000)
    event.set()
    call.value(20)


def test_a_wait_ends_with_its_time() -> None:
    """Also with one that is long over: nothing is waited for then."""
    seams = Seams()
    for until in (seams.clock() + 0.01, seams.clock() - 1000):
        Call(seams.wait, threading.Event(), until).value(20)
        assert time.monotonic() >= until
