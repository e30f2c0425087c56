"""Twenty places to connect to, whose servers are killed, stopped and moved all the time."""

from __future__ import annotations

import ctypes
import json
import multiprocessing
import os
import random
import sched
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable
from contextlib import ExitStack
from functools import partial
from http.server import BaseHTTPRequestHandler
from multiprocessing.connection import Connection
from typing import Any

from typing_extensions import Self

from tests.global_clusters import HOST, localhost_names
from tests.network import free_port
from tests.servers import FakeMilvus
from tests.topology_service import answer, cluster, reply, serving

PLACES = 20
#: so many of them are global clusters, which are told to be somewhere else
MOVING = 6
#: Seconds that each answer takes: some calls are under way when a server dies.
_ANSWER_S = 0.1
#: Milvus allows a ping every five seconds, gRPC's servers one every five minutes.
_AS_MILVUS = [
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.http2.min_ping_interval_without_data_ms", 5_000),
]

# A server dies every two seconds. One that is forked from a process that has imported everything
# costs a hundredth of one that begins anew.
_PROCESSES = multiprocessing.get_context("forkserver")
_PROCESSES.set_forkserver_preload(["tests.servers"])


def _end_with_parent() -> None:
    """Also if it is stopped."""
    death = 1  # PR_SET_PDEATHSIG
    ctypes.CDLL(None).prctl(death, signal.SIGKILL)


def _serve(port: int) -> None:
    _end_with_parent()
    fake = FakeMilvus(port, workers=24, options=_AS_MILVUS)
    fake.on("ShowCollections", lambda call: time.sleep(_ANSWER_S))
    fake.start()
    threading.Event().wait()


def _tell_topologies(pipe: Connection) -> None:
    """A topology service for each moving place; ``pipe`` says (place, version, port)."""
    _end_with_parent()
    answers: dict[int, bytes] = {}
    with ExitStack() as stack:
        services = [
            stack.enter_context(serving(partial(_answer, answers, at))) for at in range(MOVING)
        ]
        pipe.send([service.server.server_port for service in services])
        while True:
            at, version, port = pipe.recv()
            known = cluster("in01-a", f"http://127.0.0.1:{port}")
            answers[at] = json.dumps(answer(str(version), [known])).encode()
            for service in services:
                service.seen.clear()


def _answer(answers: dict[int, bytes], at: int, handler: BaseHTTPRequestHandler) -> None:
    reply(answers[at])(handler)


class Place:
    """Where clients connect to; its server can be replaced. ``tell``: where a moving one is."""

    def __init__(self, tell: Callable[[int], object] | None = None, service: int = 0) -> None:
        self._tell = tell
        self._port = free_port()
        self.uri = f"http://{HOST}:{service}" if tell else f"http://127.0.0.1:{self._port}"
        self.in_trouble = False
        self._process: Any = self._begin()

    def _begin(self) -> Any:
        process = _PROCESSES.Process(target=_serve, args=(self._port,), daemon=True)
        process.start()
        if self._tell is not None:
            self._tell(self._port)
        return process

    def kill(self) -> None:
        """SIGKILL; its port refuses from now on."""
        process, self._process = self._process, None
        if process is not None:
            _kill(process)

    def start(self) -> None:
        """Serve again."""
        self._process = self._begin()

    def pause(self) -> None:
        """SIGSTOP: it accepts and does not answer."""
        os.kill(self._process.pid, signal.SIGSTOP)

    def resume(self) -> None:
        os.kill(self._process.pid, signal.SIGCONT)

    def move(self) -> Callable[[], None]:
        """Serve elsewhere, and say so. Returns what ends the server that was there before."""
        old, self._port = self._process, free_port()
        self.start()
        return lambda: _kill(old)


def _kill(process: Any) -> None:
    process.kill()
    process.join(10)
    process.close()


class Weather:
    """The places, and what happens to them: one fault at a time at each, all from one seed."""

    def __init__(self, seed: int) -> None:
        self._chance = random.Random(seed)
        self._stack = ExitStack()
        #: how often what happened
        self.faults: Counter[str] = Counter()
        self.places: list[Place] = []

    def __enter__(self) -> Self:
        self._stack.enter_context(localhost_names())
        ours, theirs = _PROCESSES.Pipe()
        teller = _PROCESSES.Process(target=_tell_topologies, args=(theirs,), daemon=True)
        teller.start()
        self._stack.callback(_kill, teller)
        theirs.close()
        self._stack.enter_context(ours)
        services = ours.recv()
        versions = [0] * MOVING

        def tell(at: int, port: int) -> None:
            versions[at] += 1
            ours.send((at, versions[at], port))

        for at in range(MOVING):
            self.places.append(Place(partial(tell, at), services[at]))
        self.places += [Place() for _ in range(MOVING, PLACES)]
        for place in self.places:
            self._stack.callback(place.kill)
        return self

    def __exit__(self, *exc: object) -> None:
        self._stack.close()

    def rage(self, seconds: float, watch: Callable[[], object], every: float) -> None:
        """Strike every 1 to 3 s for a while, and look on; at the end all servers are well."""
        events, longest = sched.scheduler(time.monotonic, time.sleep), min(12.0, seconds)
        until = time.monotonic() + seconds

        def look() -> None:
            watch()
            if not events.empty():
                events.enter(every, 1, look)

        def strike() -> None:
            well = [place for place in self.places if not place.in_trouble]
            self._strike(self._chance.choice(well), events, longest)
            pause = self._chance.uniform(1.0, 3.0)
            if time.monotonic() + pause < until:
                events.enter(pause, 1, strike)

        events.enter(0.0, 1, strike)
        events.enter(every, 1, look)
        events.run()

    def _strike(self, place: Place, events: sched.scheduler, longest: float) -> None:
        kinds = ["killed", "refuses", "hangs"]
        kinds += ["moves", "moves"] * (place in self.places[:MOVING])
        kind = self._chance.choice(kinds)
        self.faults[kind] += 1
        place.in_trouble = True
        lasts, end = self._chance.uniform(1.0, longest), place.start
        if kind == "killed":
            place.kill()
            lasts = 0.0
        elif kind == "refuses":
            place.kill()
        elif kind == "hangs":
            place.pause()
            end = place.resume
        else:
            end = place.move()
            lasts = 2.0

        def over() -> None:
            end()
            place.in_trouble = False

        events.enter(lasts, 0, over)
