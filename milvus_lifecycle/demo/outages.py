"""The scenario of outages: the server is killed in the middle of calls and comes back later."""

from __future__ import annotations

import time
from collections.abc import Sequence

from milvus_lifecycle.demo.errors import ServerFailed
from milvus_lifecycle.demo.measure import Outage
from milvus_lifecycle.demo.port import Knock
from milvus_lifecycle.demo.server import START_LIMIT
from milvus_lifecycle.demo.session import Session

#: Seconds of regular work between a recovery and the next kill.
STEADY_S = 2.0

#: Seconds a frozen server is given to collect a call of every worker.
FREEZE_LIMIT = 3.0

#: A call that has been unanswered for so long was not just about to return when the server froze.
_IN_FLIGHT_AGE = 0.05

#: Seconds, beside the outage's own length, that the program is given to be answered again.
_RETURN_LIMIT = 10.0


def play_outages(session: Session, lengths: Sequence[float]) -> list[Outage]:
    """Play one outage of each length, in seconds from the kill to the new start."""
    return [_play_outage(session, length) for length in lengths]


def _play_outage(session: Session, length: float) -> Outage:
    server, view = session.server, session.view
    # Frozen first: whether every worker has a call in flight at the kill must not be left to
    # chance. To a client the freeze is a server that is slow for some 60 ms.
    frozen_at = time.monotonic()
    server.freeze()
    session.wait_until(lambda: all_in_flight(session), FREEZE_LIMIT, "the server is frozen")
    killed_at = server.kill()
    view.say(f"server killed (SIGKILL) under {session.workers} workers, for {length:g} s")
    with Knock(server.port) as knock:
        session.wait(length, "the server is down")
        if knock.listens_at is not None:
            raise ServerFailed(f"something else listens on {server.uri}, which was the server's")
        server.start()
        if not session.wait_until(
            lambda: knock.listens_at is not None, START_LIMIT, "the server starts again"
        ):
            raise server.give_up()
        listens_at = knock.listens_at
    assert listens_at is not None  # wait_until said so
    view.say(f"server listens again, {listens_at - killed_at:.2f} s after the kill")
    if session.wait_until_all_answered(
        listens_at, _RETURN_LIMIT + length, "waiting for every worker's first good call"
    ):
        view.say("every worker is answered again")
    else:
        view.say("some workers are still not answered")
    session.wait(STEADY_S, "regular work")
    return Outage(length, frozen_at, killed_at, listens_at)


def all_in_flight(session: Session) -> bool:
    """Whether every worker has a call that a frozen server has not answered."""
    calls = session.workload.ask_in_flight(limit=1.0)
    latest = time.monotonic() - _IN_FLIGHT_AGE
    return sum(1 for call in calls if call.start <= latest) >= session.workers
