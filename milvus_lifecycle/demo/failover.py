"""The scenario of failovers: the primary changes by plan, then the new one dies; as often as asked.

What a topology service and two independent Milvus Lite servers can play: the old primary of a
planned switch lives on and would take any write (Milvus Lite refuses none), so that only the
client keeps writes off it. A server that was killed is started again, as the next stand-by.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

from milvus_lifecycle.demo.errors import ServerFailed
from milvus_lifecycle.demo.failover_measure import Move, find_landing
from milvus_lifecycle.demo.outages import FREEZE_LIMIT, STEADY_S, all_in_flight
from milvus_lifecycle.demo.port import Knock
from milvus_lifecycle.demo.server import START_LIMIT, MilvusLite
from milvus_lifecycle.demo.session import Session
from milvus_lifecycle.demo.topology_service import TopologyService

#: Seconds that the program is given to move, or to be answered again.
_MOVE_LIMIT = 10.0


@dataclass
class Pair:
    """Two servers and the service that names one of them the primary."""

    primary: MilvusLite
    secondary: MilvusLite
    service: TopologyService

    def switch(self) -> float:
        """Have the service name the other one; returns when."""
        self.primary, self.secondary = self.secondary, self.primary
        return self.service.name_primary(self.primary.uri)


def play_failovers(session: Session, pair: Pair, lengths: Sequence[float]) -> list[Move]:
    """For each length: a planned switch, then the new primary's death.

    The length is the time in seconds from the death until the topology names the other server.
    """
    moves = []
    for length in lengths:
        moves.append(_switch(session, pair))
        moves.append(_lose(session, pair, length))
    return moves


def _switch(session: Session, pair: Pair) -> Move:
    old, new = pair.primary, pair.secondary
    named_at = pair.switch()
    session.view.say(f"planned switch: the topology names {new.uri}; {old.uri} lives on")
    move = Move("switch", old.address, new.address, pair.service.version, named_at)
    _wait_until_moved(session, move)
    session.wait(STEADY_S, "regular work")
    return move


def _lose(session: Session, pair: Pair, length: float) -> Move:
    dying, other, view = pair.primary, pair.secondary, session.view
    # Frozen first, for the same reason as in the outages.
    dying.freeze()
    session.wait_until(lambda: all_in_flight(session), FREEZE_LIMIT, "the primary is frozen")
    killed_at = dying.kill()
    view.say(f"primary {dying.uri} killed (SIGKILL) under {session.workers} workers")
    session.wait(length, "the primary is dead, and the topology does not say so yet")
    named_at = pair.switch()
    view.say(f"the topology names {other.uri}, {named_at - killed_at:.2f} s after the kill")
    move = Move(
        "death", dying.address, other.address, pair.service.version, named_at, killed_at=killed_at
    )
    if session.wait_until_all_answered(
        named_at, _MOVE_LIMIT, "waiting for every worker's first good call"
    ):
        view.say("every worker is answered again")
    else:
        view.say("some workers are still not answered")
    _start_again(session, dying)
    session.wait(STEADY_S, "regular work")
    return move


def _wait_until_moved(session: Session, move: Move) -> None:
    records = session.workload.heard.records
    if session.wait_until(
        lambda: find_landing(records, move) is not None, _MOVE_LIMIT, "the program moves"
    ):
        session.view.say("the program's connection has moved")
    else:
        session.view.say("the program's connection has not moved")


def _start_again(session: Session, server: MilvusLite) -> None:
    server.start()
    began = time.monotonic()
    with Knock(server.port) as knock:
        if not session.wait_until(
            lambda: knock.listens_at is not None, START_LIMIT, "the other server starts again"
        ):
            raise ServerFailed(f"{server.uri} did not listen within {START_LIMIT:.0f} s")
    session.view.say(f"{server.uri} is back as a secondary after {time.monotonic() - began:.1f} s")
