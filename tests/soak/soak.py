"""The soak: 200 connections, in both flavours, to twenty servers that are never all well.

By hand, one flavour or both: `python -m tests.faults.alone tests.soak.soak:soak threads FOLDER`.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import os
import random
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Generator
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

import grpc
from pymilvus.exceptions import MilvusException

import milvus_lifecycle as ml
from milvus_lifecycle.errors import ConnectFailed
from tests import inside
from tests.faults.load import FLAVOURS, Flavour, Load, Work
from tests.faults.scene import count, engine
from tests.observe import came_true
from tests.soak.levels import grown, reading
from tests.soak.places import PLACES, Weather

#: Seconds; the servers' troubles, and what follows from them, come on top.
SECONDS = float(os.environ.get("MILVUS_LIFECYCLE_SOAK", "600"))

#: connections of a flavour to a place: four that clients share, and a dedicated one
_CONNECTIONS = 5
#: Who uses which: the first three have two clients each.
_USERS = (0, 1, 2, 0, 1, 2, 3, 4)
_DEDICATED = 4
#: Seconds that the servers are unwell at a time; then all come to rest, and are looked at.
_STORM_S = min(15.0, SECONDS / 20)
#: How long a call may last, and everybody come to rest: a hang lasts 12 s, a connect 10 s, and a
#: call that nobody wakes the whole `recovery_budget`.
_LIMIT = 60.0
#: Seconds between two looks.
_EVERY_S = 0.25
#: So many at least: of the six in the second half something can be said.
_READINGS = 12
#: A client is closed, or vanishes, before so many of its calls, and another one takes its place.
_RENEWED = 0.02
#: A call's own timeout may end so much later (seconds), and so many times as late as sleeps end
#: meanwhile: on a busy machine each step of a call waits for its turn.
_LATE_S, _STEPS = 5.0, 20
#: threads that are there while something goes on
_WORKERS = tuple(
    f"milvus-lifecycle-{work}" for work in ("connect", "probe", "recovery", "refresh", "topology")
)
_CHANNEL_MODULES = ("grpc._channel", "grpc.aio._channel")
#: a channel in use, a fresh one, and two on which calls go on until `drain_timeout`
_CHANNELS = 4
_POLICY = {
    "idle_threshold": 1.0,
    "recovery_budget": 2 * _LIMIT,
    "drain_timeout": 5.0,
    "max_age": 60.0,
    "topology_refresh": 20.0,
}


class Watch:
    """Which flights are under way and which channels are open, as the engine itself has it."""

    def __init__(self) -> None:
        #: connections that had two flights at once
        self.doubled: list[str] = []
        self.opened = self.most = self.most_of_one = 0
        #: an open channel -> the id of its connection
        self.channels: dict[Any, str] = {}
        self._flights: dict[str, list[inside.Flight]] = {}
        self._lock = threading.Lock()
        self._patches = contextlib.ExitStack()

    def __enter__(self) -> Watch:
        closing = [(sys.modules[name].Channel, "close") for name in _CHANNEL_MODULES]
        for target, watched in (
            (inside.flying(), self._flying),
            (inside.opening(), self._opening),
            *((each, self._closing) for each in closing),
        ):
            original = getattr(*target)
            self._patches.enter_context(mock.patch.object(*target, watched(original)))
        return self

    def __exit__(self, *exc: object) -> None:
        self._patches.close()

    def look(self) -> None:
        """One flight at most for each connection, and few channels."""
        each = Counter(list(self.channels.values()))
        self.most = max(self.most, each.total())
        self.most_of_one = max(self.most_of_one, *each.values(), 0)
        assert not self.doubled, self.doubled[:5]
        assert self.most_of_one <= _CHANNELS, each.most_common(3)

    def under_way(self) -> int:
        """How many connections have a flight."""
        return len(self._flights)

    def _flying(self, fly: Any) -> Any:
        def flying(recovery: Any, leader: object) -> Any:
            flight, connection = recovery.flight, recovery.connection.id
            with self._lock:
                known = self._flights.setdefault(connection, [])
                # It may have ended before its worker came to run.
                others = [each for each in known if each.outcome is None and each is not flight]
                if others and flight.outcome is None:
                    self.doubled.append(connection)
                known.append(flight)
            try:
                yield from fly(recovery, leader)
            finally:
                with self._lock:
                    known.remove(flight)
                    if not known:
                        del self._flights[connection]

        return flying

    def _opening(self, open_channel: Any) -> Any:
        def opening(transport: Any, request: Any) -> Any:
            channel = open_channel(transport, request)
            self.opened += 1
            self.channels[channel] = request.connection.id
            return channel

        return opening

    def _closing(self, close: Any) -> Any:
        def closing(channel: Any, *args: Any) -> Any:
            self.channels.pop(channel, None)
            return close(channel, *args)

        return closing


class Soak:
    """The workers of both flavours, and what must hold of them."""

    def __init__(self, flavours: list[Flavour], weather: Weather, seed: int) -> None:
        self.weather = weather
        self.watch = Watch()
        #: calls that ended at their own timeout, and first connects to a server that was away
        self.late = self.refused = 0
        #: how late sleeps end (seconds): the worst of the last ones
        self._lag = dict.fromkeys(flavours, 0.0)
        self._seed = seed
        workers = PLACES * len(_USERS)
        self.loads = {
            flavour: Load(flavour, workers=workers, work=partial(self._work, flavour))
            for flavour in flavours
        }

    # -- what a worker does --------------------------------------------------------------------

    def _work(self, flavour: Flavour, worker: int) -> Work:
        load, chance = self.loads[flavour], random.Random(f"{self._seed} {flavour} {worker}")
        place, user = self.weather.places[worker // len(_USERS)], _USERS[worker % len(_USERS)]
        login = {"token": f"user-{user}:password", "dedicated": user == _DEDICATED}
        new = partial(load.new_client, place.uri, **login)
        client = yield from self._connect(load, new)
        while client is not None:
            yield load.ready
            if load.stopping.is_set():
                yield client.close
                return
            if chance.random() < _RENEWED:
                if chance.random() < 0.5:
                    yield client.close  # else it vanishes
                client = yield from self._connect(load, new)
                continue
            timeout = 0.5 if chance.random() < 0.1 else None
            yield from self._call(flavour, worker, client, timeout)
            pause, began = chance.uniform(0.4, 1.2), time.monotonic()
            yield partial(load.sleep, pause)
            late = time.monotonic() - began - pause
            self._lag[flavour] = max(late, 0.9 * self._lag[flavour])

    def _connect(self, load: Load, new: Callable[[], Any]) -> Generator[Any, Any, Any]:
        while not load.stopping.is_set():
            began = time.monotonic()
            try:
                client = yield new
                yield client.list_collections  # asyncio connects with the first call
                return client
            except ConnectFailed:
                self.refused += 1
            except Exception as error:
                load.tally.bad(began, "connect", error)
            yield partial(load.sleep, 0.2)
        return None

    def _call(self, flavour: Flavour, worker: int, client: Any, timeout: float | None) -> Work:
        load, began = self.loads[flavour], time.monotonic()
        try:
            yield partial(client.list_collections, timeout=timeout)
        except Exception as error:
            took = time.monotonic() - began
            lag = self._lag[flavour]
            in_time = timeout is not None and took < timeout + _LATE_S + _STEPS * lag
            if in_time and isinstance(error, (MilvusException, grpc.RpcError)):
                self.late += 1
            else:
                what = f"list, timeout={timeout}, {took:.1f} s (sleeps end {lag:.1f} s late)"
                load.tally.bad(began, what, error)
        else:
            load.tally.good(worker, began, "list", 0)

    # -- what is looked at ---------------------------------------------------------------------

    def look(self) -> None:
        """What holds all along."""
        self.watch.look()
        for flavour, load in self.loads.items():
            bad = load.tally.failed + load.tally.refused + load.complaints
            assert not bad, (flavour, bad[:5])
            assert load.tally.longest < _LIMIT, flavour

    def rest(self) -> dict[str, float]:
        """All servers are well: wait until everybody is served and nothing goes on; a reading."""
        for flavour, load in self.loads.items():
            assert load.served_again(_LIMIT) is not None, f"{flavour}: somebody is not served"
            load.pause()
        quiet = came_true(lambda: not self._unrest(), _LIMIT, every=0.25)
        assert quiet, self._unrest()
        self.look()
        loops = [load.loop for load in self.loads.values() if load.loop is not None]
        found = reading(lambda: sum(len(asyncio.all_tasks(loop)) for loop in loops))
        for load in self.loads.values():
            load.resume()
        return found

    def figures(self) -> str:
        """What happened, in one line."""
        tallies, watch = [load.tally for load in self.loads.values()], self.watch
        return (
            f"{sum(tally.calls for tally in tallies):,} calls, none failed, the longest "
            f"{max(tally.longest for tally in tallies):.1f} s; {self.late:,} ended at their own "
            f"timeout, {self.refused:,} first connects refused; {dict(self.weather.faults)}; "
            f"{watch.opened:,} channels, at most {watch.most} open at once, {watch.most_of_one} of "
            "one connection"
        )

    def _unrest(self) -> list[str]:
        gc.collect()  # clients that vanished
        rows = [row for flavour in self.loads for row in self._connections(flavour)]
        wrong = [
            f"{row['address']} {row['state']}, {row['in_flight']} RPCs"
            for row in rows
            if row["state"] != "ACTIVE" or row["in_flight"]
        ]
        wanted = PLACES * _CONNECTIONS * len(self.loads)
        counts = {"connections": len(rows), "channels": len(self.watch.channels)}
        wrong += [f"{count} {what}" for what, count in counts.items() if count != wanted]
        names = [thread.name for thread in threading.enumerate()]
        at_work = [name for name in names if name.startswith(_WORKERS)]
        return wrong + at_work + ["a flight"] * self.watch.under_way()

    def _connections(self, flavour: Flavour) -> list[dict[str, Any]]:
        async def inside_the_loop() -> Any:
            return ml.AsyncConnectionManager.get_instance().get_stats()

        loop = self.loads[flavour].loop
        if loop is None:
            stats = ml.ConnectionManager.get_instance().get_stats()
        else:
            stats = asyncio.run_coroutine_threadsafe(inside_the_loop(), loop).result(10)
        rows: list[dict[str, Any]] = stats["connections"]
        return rows


def soak(flavours: str, folder: Path) -> str:
    """No call without a timeout fails, one flight each, few channels, and nothing grows."""
    seed = int(os.environ.get("MILVUS_LIFECYCLE_SEED") or random.randrange(10**6))
    print(f"MILVUS_LIFECYCLE_SEED={seed}", flush=True)
    chosen = [flavour for flavour in FLAVOURS if flavour in flavours]
    audit = folder / "audit.jsonl"
    readings: list[dict[str, float]] = []
    with Weather(seed) as weather, engine(audit, **_POLICY):
        running = Soak(chosen, weather, seed)
        with contextlib.ExitStack() as stack:
            stack.enter_context(running.watch)
            for load in running.loads.values():
                stack.enter_context(load)
            ends = time.monotonic() + SECONDS
            while time.monotonic() < ends or len(readings) < _READINGS:
                weather.rage(_STORM_S, running.look, _EVERY_S)
                readings.append(running.rest())
                print({what: round(held, 1) for what, held in readings[-1].items()}, flush=True)
            leaks, levels = grown(readings)
            assert not leaks, f"grown: {leaks}; {running.figures()}; {levels}"
        running.look()  # again, now that all have ended
    figures = f"{'+'.join(chosen)}, {SECONDS:.0f} s, seed {seed}: {running.figures()}; "
    return figures + f"{count(audit, 'recovered'):,} recoveries; {levels}"
