"""Scenarios as data: what is done, step by step, and which records it must leave in both flavours.

A step is a line. A capital letter begins an actor's step, anything else is the world's:

    A checkout [dedicated] [timeout=5] [to=host:port]     A begins get_or_create, as itself
    A uses B / A borrows B           A has B's handler (and client / but holds no lease)
    A rpc [timeout=5]                A begins one RPC; A call: one that is retried as pymilvus does
    A gets ok / A gets fails CODE    A's running RPC is answered
    A waits / A ok / A raises CODE   where A's last call stands (last=, attempts=: of the error)
    A release / A vanishes / A closes / A cancel
    register|ping|locate ok / fails CODE / dies     the oldest operation of that kind ends; ``dies``
                                     takes its leader along
    attempt fails CODE               both halves of a recovery's attempt: at once, then waiting
    advance 30 / close all / fork / workers refused|back / flight cancelled
    target host:port / news host:port|soon      where the connection should be; the engine is told
    idle / running rpc 2 / channels 2 / channel 1 open|closed / pool empty / pool state=IDLE ...

``R*16`` stands for sixteen actors, ``R*`` for all whose names begin so. A record is a line too:
``trigger SOURCE>DEST gGENERATION [attempt=1] [clients=0] [error_code=...]``, ``created`` or
``refused trigger STATE``; ``2:`` before it is the second connection that appears.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

Lines = Sequence["str | Lines"]


@dataclass(frozen=True)
class Scenario:
    """One story. ``promise`` is what it shows; ``only`` names the one flavour that can have it."""

    promise: str
    steps: Lines
    records: Lines
    policy: Mapping[str, float | None] = field(default_factory=dict)
    strategy: str = "regular"
    warnings: int = 0
    #: (flavour, why the other one cannot have it)
    only: tuple[str, str] | None = None


def lines(nested: Lines) -> list[str]:
    """Flatten: scenarios share beginnings."""
    flat: list[str] = []
    for entry in nested:
        flat += [entry] if isinstance(entry, str) else lines(entry)
    return flat


#: A holds a validated connection (generation 1, channel 1).
CONNECTED: Lines = ("A checkout", "register ok", "A ok")
CREATED: Lines = ("created", "acquire IDLE>PROBING g0", "probe_passed PROBING>ACTIVE g1")

#: An RPC of A has failed; a recovery is under way and validates channel 2.
DOWN: Lines = (CONNECTED, "A rpc", "A gets fails UNAVAILABLE", "A raises UNAVAILABLE")
FAILED: Lines = (CREATED, "fail ACTIVE>RECOVERING g1 error_code=UNAVAILABLE")

#: ... and has spent its budget: channel 2 is kept, suspect.
LOST: Lines = (DOWN, "advance 60", "register fails UNAVAILABLE", "idle", "pool state=IDLE")
GAVE_UP: Lines = (FAILED, "give_up RECOVERING>IDLE g1 attempt=1 error_code=UNAVAILABLE")
