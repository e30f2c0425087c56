"""Audit logs that the real engine wrote, driven step by step as conformance scenarios are."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from milvus_lifecycle.testing import until
from tests.conformance.scenario import CONNECTED, Lines, lines
from tests.conformance.world import World
from tests.corruption import Fields

#: Calls are not probed for having been idle: the scripts below say what happens.
STEADY: dict[str, Any] = {"idle_threshold": None}


def play(
    steps: Lines, records: int, flavour: str = "threads", strategy: str = "regular", **policy: Any
) -> list[Fields]:
    """The ``records`` records that ``steps`` leave, before anything is closed."""
    world = World(flavour, {**STEADY, **policy}, strategy)
    try:
        for step in lines(steps):
            world.do(step)
        until(lambda: len(world.log.records) >= records, 10, f"no {records} records")
        written = [record.as_dict() for record in world.log.records]
    finally:
        world.finish()
    assert len(written) == records, [(one["trigger"], one["dest"]) for one in written]
    return written


#: Budget 6 s. A call fails at 0 s and again whenever the budget is spent; the server comes back
#: 3.5 s into the fourth flight: 3 * 7 s + 3.5 s.
GIVE_UPS: Lines = (
    CONNECTED,
    "advance 100",
    *(
        (
            "A call",
            "A gets fails UNAVAILABLE",
            "advance 6",
            "A raises RecoveryExhausted",
            "register fails UNAVAILABLE",
            "idle",
            "advance 1",
        )
        for _ in range(3)
    ),
    "A call",
    "A gets fails UNAVAILABLE",
    "advance 3.5",
    "register ok",
    "A gets ok",
    "A ok",
    "advance 1000",
)


def gave_up(flavour: str = "threads") -> list[Fields]:
    """One outage of 24.5 s in four flights, of which three gave up."""
    return play(GIVE_UPS, 11, flavour, recovery_budget=6.0)


#: Seconds of the flights and, between them, of the time until the next call has failed.
FLAPS: Sequence[tuple[float, float]] = ((1.0, 2.0), (2.0, 3.0), (1.5, 0.0))


def flapped(flavour: str = "threads") -> list[Fields]:
    """One outage of 9.5 s: the server accepts connections and fails every call, three times."""
    steps: list[Lines] = [CONNECTED, "advance 100"]
    for flight, healthy in FLAPS:
        steps += ["A rpc", "A gets fails UNAVAILABLE", f"advance {flight}", "register ok"]
        steps += [f"advance {healthy}"]
    return play([*steps, "A rpc", "A gets ok", "advance 50"], 9, flavour)


def open_at_the_end(flavour: str = "threads") -> list[Fields]:
    """An outage of 30 s so far: the last record is another connection's."""
    steps = [CONNECTED, "B checkout to=other:1", "register ok", "B ok", "advance 100"]
    steps += ["A rpc", "A gets fails UNAVAILABLE", "advance 30", "B release"]
    return play(steps, 8, flavour)


def hour_beside_a_new_one(flavour: str = "threads") -> list[Fields]:
    """One connection ACTIVE for an hour, which writes nothing; then another one comes."""
    steps = [CONNECTED, "advance 3600", "B checkout to=other:1", "register ok", "B ok"]
    return play(steps, 6, flavour)
