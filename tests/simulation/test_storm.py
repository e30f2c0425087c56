"""Storm: after an outage thousands of clients come back one after the other, not together.

``MILVUS_LIFECYCLE_SEED=1234`` draws other outages, and plays them by another seed.
"""

from __future__ import annotations

import math
import os
import random
import socket
import threading
import time
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext, suppress
from functools import cache
from pathlib import Path
from typing import Any

import grpc
import pytest

from milvus_lifecycle import ConnectionConfig, LifecyclePolicy
from milvus_lifecycle.core.lifecycle import Lifecycle
from milvus_lifecycle.core.recovery import Recovery
from milvus_lifecycle.drivers import pymilvus as driver
from milvus_lifecycle.drivers.pymilvus import channel_options
from tests.simulation.broken import Line
from tests.simulation.storm import AWAY, CLIENTS, CONFIG, SEED, Storm, World, draw, simulate

PICTURE = Path(__file__).parents[2] / "docs" / "storm.svg"
Record = Callable[[str, object], None]
POLICY = LifecyclePolicy()
_SEED = int(os.environ.get("MILVUS_LIFECYCLE_SEED") or SEED)
#: parts of the scale from 1 s to 10 min, of each of which an outage is drawn
_DRAWN = 12


def complaints(storm: Storm, luck: float = 1.0) -> set[str]:
    """What is wrong with a storm. ``luck``: how many times the share of 10,000 may be together by
    chance, because there are fewer."""
    clients, found = len(storm.channels), set()
    if len(storm.served) < clients:
        found.add("somebody was not served")
    # One in a thousand may arrive in the moment in which its attempt ends (measured: 5 of 10,000).
    if not clients <= len(storm.arrivals) <= 1.001 * clients:
        found.add("somebody came twice, or not at all")
    # A channel for each pace: the first, and another whenever an outage has doubled its age.
    age = max(1.0, storm.away / POLICY.backoff_patience)
    if max(storm.channels) > min(2.0 + math.log2(age), 8.0) - (age == 1.0):
        found.add("too many channels")
    if storm.peak() > luck * at_once(storm.away):
        found.add("too many at once")
    # Gaps of 4 % of an outage, and what a call adds to one.
    longest = POLICY.backoff_ceiling * (1.0 + 2 * POLICY.backoff_jitter)
    if storm.last() > min(max(0.5, 0.042 * storm.away), longest):
        found.add("somebody came late")
    return found


def at_once(away: float) -> float:
    """The share of 10,000 that may come in 100 ms: all come within 4 % of an outage, most of them
    within half of that (measured: 4.5 to 5 s divided by its length)."""
    return 1.0 if away < POLICY.backoff_patience else max(5.5 / away, 0.02)


def drawn(number: int) -> float:
    """Seconds of an outage: each of so many parts of a logarithmic scale gives one."""
    return float(600.0 ** ((number + random.Random(f"{_SEED} {number}").random()) / _DRAWN))


@pytest.mark.search
@pytest.mark.timeout(1800)
# Every other part, for the time it takes; the longest outage first.
@pytest.mark.parametrize("number", range(_DRAWN - 1, -1, -2))
def test_ten_thousand_do_not_come_back_together(number: int, record_property: Record) -> None:
    """Everybody is served within 4 % of the outage, or half a second; no more of 10,000 come
    together than that has to mean, and no connection needs more than 12 channels."""
    storm = simulate(away=drawn(number), seed=_SEED)
    said = f"storm: {storm}"
    print(said, f"MILVUS_LIFECYCLE_SEED={_SEED}")
    assert complaints(storm) == set(), said
    record_property("figures", said)


@pytest.mark.parametrize("number", [2, 4, 7])
def test_some_hundreds_do_not_come_back_together(number: int) -> None:
    """In every run: what holds of 10,000, for as few as are quickly simulated."""
    storm = simulate(away=drawn(number), processes=300, seed=_SEED)
    assert complaints(storm, luck=3.0) == set(), f"{storm} MILVUS_LIFECYCLE_SEED={_SEED}"


def test_connections_of_one_process_are_simulated_too() -> None:
    """Equal arguments give equal storms, of processes with many connections as well."""
    storm, again = (simulate(away=12.0, processes=4, connections=25) for _ in range(2))
    assert storm == again
    assert len(storm.served) == 100


#: one line of the engine changed, an outage (seconds), and what is wrong then
BROKEN = {
    "recovery always has the pace of a young outage": (
        Line(Recovery, "_pace", "age + MOMENT", "0.0"),
        30.0,
        "too many channels",
    ),
    "recovery always has the pace of an old outage": (
        Line(Recovery, "_pace", "age + MOMENT", "age + 60.0"),
        5.0,
        "somebody came late",
    ),
    "a channel keeps the pace of a young outage": (
        Line(LifecyclePolicy, "pace", "longest, first)", "longest, math.inf)"),
        90.0,
        "too many at once",
    ),
    "all change their pace together": (
        Line(LifecyclePolicy, "pace", "2.0**unit", "2.0**0.5"),
        28.25,
        "too many at once",
    ),
    "gaps begin at the ceiling": (
        Line(LifecyclePolicy, "_late", "self.backoff_max * outage_age", "1e9 * outage_age"),
        30.0,
        "somebody came late",
    ),
    "an attempt goes on with a channel beyond its time": (
        Line(Recovery, "_validate", "self._due(wire) - started", "1e9"),
        90.0,
        "too many at once",
    ),
    "a channel of another pace waits for the gap of the one before": (
        Line(Recovery, "_attempt_failed", "gap = 0.0", "pass"),
        60.0,
        "somebody came late",
    ),
    "nobody waits for the channel": (
        Line(Recovery, "_validate", "wire, left, True)", "wire, left, False)"),
        30.0,
        "somebody came late",
    ),
    "a channel for each attempt": (
        Line(Recovery, "_attempt_failed", "failure.kind is Failure.DEADLINE", "True"),
        30.0,
        "too many channels",
    ),
    "a channel for each flight": (
        Line(Lifecycle, "make_mandatory", "binding.identifier is None", "False"),
        75.0,
        "too many channels",
    ),
    "gRPC's own longest gap": (
        Line(driver, "channel_options", 'options["grpc.max_reconnect_backoff_ms"] =', "_ ="),
        75.0,
        "somebody came late",
    ),
}


@cache
def found_in(name: str | None, away: float) -> set[str]:
    """Complaints about a small storm of a broken engine, or of the shipped one."""
    with BROKEN[name][0].applied() if name is not None else nullcontext():
        return complaints(simulate(away=away, processes=150), luck=2.5)


@pytest.mark.search
@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_engine_makes_a_storm(name: str) -> None:
    """The storm shows that one line of the engine was changed: it is the engine that runs there."""
    _, away, complaint = BROKEN[name]
    assert complaint in found_in(name, away)
    assert found_in(None, away) == set()


# -- the simulated channel against a real one ---------------------------------------------------


@contextmanager
def turnstile() -> Iterator[tuple[str, list[float]]]:
    """A server that takes each connection and closes it: its address, and when they came."""
    came: list[float] = []

    def serve() -> None:
        with suppress(OSError):
            while True:
                connection, _ = listener.accept()
                came.append(time.monotonic())
                connection.close()

    with socket.create_server(("127.0.0.1", 0)) as listener:
        server = threading.Thread(target=serve, daemon=True)
        server.start()
        yield f"127.0.0.1:{listener.getsockname()[1]}", came
        listener.shutdown(socket.SHUT_RDWR)
        server.join()


def simulated(window: tuple[float, float], chance: float, attempts: int) -> list[float]:
    """Seconds after its first call at which a simulated channel tries to connect."""
    world = World(0)
    world.up, world.chance, began = False, lambda: chance, world.now
    channel = world.insecure_channel("", channel_options(CONFIG, window, POLICY.connect_timeout))
    channel.call(lambda error: None, patient=True)
    while len(world.refused) < attempts:
        world.run(until=world.now + 1.0)
    return [at - began for at in world.refused[:attempts]]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("window", "attempts"),
    [
        pytest.param(POLICY.pace(0.0, 0.0)[:2], 10, id="fast"),
        pytest.param(POLICY.pace(30.0, 0.0)[:2], 7, id="slow"),
        pytest.param((0.4, 0.8), 9, id="at its longest gap"),
    ],
)
def test_a_real_channel_connects_as_the_simulated_one(
    window: tuple[float, float], attempts: int
) -> None:
    """A real channel with the engine's options tries to connect when the simulated one does:
    never earlier than the least jitter allows, and no more than 2 s later than the most. Calls
    that fail at once meanwhile bring no attempt forward; a patient one waits."""
    with turnstile() as (address, came):
        config = ConnectionConfig.from_uri(f"http://{address}")
        options = channel_options(config, window, POLICY.connect_timeout)
        with grpc.insecure_channel(address, options=options) as channel:
            call: Any = channel.unary_unary("/any/Method")
            began = time.monotonic()
            waits = call.future(b"", wait_for_ready=True)
            while len(came) < attempts and time.monotonic() < began + 60.0:
                with pytest.raises(grpc.RpcError) as failed:
                    call(b"", timeout=30.0)
                assert failed.value.code() is grpc.StatusCode.UNAVAILABLE
                time.sleep(0.02)
            assert not waits.done()
    seen = [at - began for at in came[:attempts]]
    least, most = (simulated(window, chance, attempts) for chance in (0.0, 1.0))
    rounding = 0.001 * attempts
    assert all(a - rounding <= at <= b + 2.0 for a, at, b in zip(least, seen, most, strict=True)), (
        least,
        seen,
        most,
    )


# -- the picture --------------------------------------------------------------------------------


@pytest.mark.search
@pytest.mark.timeout(1800)
def test_the_picture_is_the_simulation(record_property: Record) -> None:
    """docs/storm.svg shows this very storm: ``python -m tests.simulation.storm docs/storm.svg``."""
    storm = simulate()
    assert (storm.away, len(storm.channels)) == (AWAY, CLIENTS)
    picture = draw(storm)
    ElementTree.fromstring(picture)
    record_property("figures", f"storm of docs/storm.svg: {storm}")
    assert PICTURE.read_text(encoding="utf-8") == picture, "drifted: draw docs/storm.svg again"
