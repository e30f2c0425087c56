"""The storm: thousands of clients lose one server together; when do they come back?

``python -m tests.simulation.storm docs/storm.svg`` draws the picture of docs/operations.md;
``python -m tests.simulation.storm 11 45`` says what comes of outages of so many seconds.

The core and the options of its channels are the shipped ones: procedures, table, policy, and
``ThreadsTransport.open``. Which channel is opened when, and how long is waited for it, is
their doing. Simulated are time, the server, gRPC's channels and the callers. The worst case is: all
lose it in the same instant, each of them while it calls; who fails calls again at once; refusing a
connection, taking it and answering cost no time.
"""

from __future__ import annotations

import contextvars
import heapq
import itertools
import math
import random
import sys
from bisect import bisect_left
from collections import Counter
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import grpc

from milvus_lifecycle import ConnectionConfig, LifecyclePolicy, ManagedConnection
from milvus_lifecycle.core.checkout import Checkout
from milvus_lifecycle.core.face import Face
from milvus_lifecycle.core.facts import Seams
from milvus_lifecycle.core.flight import Flight
from milvus_lifecycle.core.pool import Pool
from milvus_lifecycle.core.recovery import Recovery
from milvus_lifecycle.core.requests import Open, Pause, Ping, Register, Wait
from milvus_lifecycle.core.retry import Retry
from milvus_lifecycle.core.wire import Rpc, Wire
from milvus_lifecycle.drivers.pymilvus import ThreadsTransport
from milvus_lifecycle.endpoints.choose import default_strategy
from milvus_lifecycle.errors import RecoveryExhausted
from milvus_lifecycle.testing import rpc_error
from tests.simulation.campaign import collected_by_hand

CLIENTS = 10_000
AWAY = 45.0
#: seconds; what "at the same time" means to a server
WINDOW = 0.1
SEED = 2030
#: seconds after the server's return at which whoever has not come is lost
PATIENCE = 120.0
CONFIG = ConnectionConfig.from_uri("http://server:19530")

Answer = Callable[[Exception | None], object]


class World:
    """One clock, one server, and chance. Also stands for the module ``grpc`` of the engine."""

    def __init__(self, seed: int) -> None:
        self.now = 1000.0
        self.chance = random.Random(seed).random
        self.up = True
        self.channels: list[Channel] = []
        #: when the server took a connection, and when there was nobody to take it
        self.accepted: list[float] = []
        self.refused: list[float] = []
        #: when a client had the answer to the call that the loss had failed
        self.served: list[float] = []
        self._agenda: list[tuple[float, int, Callable[[], object]]] = []
        self._count = itertools.count()

    def at(self, due: float, job: Callable[[], object]) -> None:
        """Have ``job`` done at a time; among those of one moment, in this order."""
        heapq.heappush(self._agenda, (max(due, self.now), next(self._count), job))

    def soon(self, job: Callable[[], object]) -> None:
        """Have ``job`` done now, after all that goes on."""
        self.at(self.now, job)

    def run(self, until: float, done: Callable[[], bool] = lambda: False) -> None:
        """Let time pass until then, or until all is ``done``; what is due then waits."""
        while self._agenda and self._agenda[0][0] < until and not done():
            self.now, _, job = heapq.heappop(self._agenda)
            job()
        self.now = self.now if done() else until

    def lose(self) -> None:
        """The server is gone, and with it every connection."""
        self.up = False
        for channel in self.channels:
            if channel.state == "ready":
                channel.state = "idle"

    def insecure_channel(self, address: str, options: Sequence[tuple[str, Any]]) -> Channel:
        """As ``grpc.insecure_channel``."""
        channel = Channel(self, dict(options))
        self.channels.append(channel)
        return channel


class Channel:
    """A gRPC channel, as far as it connects: https://github.com/grpc/grpc, connection-backoff.md.

    The first call makes it connect, and from then on it tries by itself. A gap lasts from the
    start of an attempt to the start of the next. While it is down, calls fail or are patient.
    (``test_a_real_channel_connects_as_the_simulated_one`` compares it with a real one.)
    """

    MULTIPLIER, JITTER, FLOOR = 1.6, 0.2, 0.1

    def __init__(self, world: World, options: dict[str, Any]) -> None:
        assert options["grpc.use_local_subchannel_pool"], "a backoff that channels share"
        self.world = world
        self.state = "idle"
        initial = options.get("grpc.initial_reconnect_backoff_ms", 1_000) / 1000
        longest = options.get("grpc.max_reconnect_backoff_ms", 120_000) / 1000
        self.longest = max(self.FLOOR, longest)
        self.gap = self.initial = min(max(self.FLOOR, initial), self.longest)
        self.waiting: list[Answer] = []

    def call(self, answer: Answer, *, patient: bool = False, timeout: float | None = None) -> None:
        """Answer, with an error or with None, once the server or the channel does."""
        if self.state == "idle":
            self._connect()
        if self.state == "ready":
            answer(None)
        elif self.state == "closed" or not patient:
            answer(rpc_error("CANCELLED" if self.state == "closed" else "UNAVAILABLE"))
        else:
            self.waiting.append(answer)
            if timeout is not None:
                self.world.at(self.world.now + timeout, partial(self._overdue, answer))

    def _overdue(self, answer: Answer) -> None:
        if answer in self.waiting:
            self.waiting.remove(answer)
            answer(rpc_error("DEADLINE_EXCEEDED"))

    def _connect(self) -> None:
        if self.state == "closed":
            return
        world = self.world
        if world.up:
            world.accepted.append(world.now)
            self.state, self.gap = "ready", self.initial
            waiting, self.waiting = self.waiting, []
            for answer in waiting:
                answer(None)
            return
        world.refused.append(world.now)
        self.state = "failing"
        jitter = 1.0 + self.JITTER * (2.0 * world.chance() - 1.0)
        world.at(world.now + self.gap * jitter, self._connect)
        self.gap = min(self.gap * self.MULTIPLIER, self.longest)

    def close(self) -> None:
        """No more attempts; calls that wait hear of it."""
        self.state = "closed"
        for answer in self.waiting:
            self.world.soon(partial(answer, rpc_error("CANCELLED")))
        self.waiting = []


class Transport(ThreadsTransport):
    """The shipped one, whose channels are the world's."""

    factories: Any

    def __init__(self, world: World) -> None:
        super().__init__()
        self.factories = world

    def make_handler(self, connection: ManagedConnection, channel: Any) -> Any:
        return SimpleNamespace()


@dataclass(frozen=True)
class Use:
    """What callers ask for besides: an RPC of a user's own."""

    channel: Channel


class Process:
    """One process of the fleet: a pool, and the driver that performs what its procedures yield."""

    def __init__(self, world: World, policy: LifecyclePolicy, transport: Transport) -> None:
        self.world = world
        self.opened: Counter[ManagedConnection] = Counter()
        self._alarm: float | None = None
        self.pool = Pool(
            "threads",
            policy,
            transport=transport,
            strategy_for=default_strategy,
            seams=Seams(clock=lambda: world.now, chance=world.chance),
        )
        self.pool.driver = self

    # -- procedures ------------------------------------------------------------------------

    def begin(self, procedure: Generator[Any, Any, Any]) -> None:
        """Have a procedure run: soon, as a thread of its own would."""
        run = contextvars.Context().run
        self.world.soon(partial(self._go_on, procedure, run, None))

    def _go_on(
        self,
        procedure: Generator[Any, Any, Any],
        run: Callable[..., Any],
        error: Exception | None,
        result: object = None,
    ) -> None:
        try:
            how = (procedure.send, result) if error is None else (procedure.throw, error)
            request = run(*how)
        except StopIteration:
            return
        self._perform(request, partial(self._go_on, procedure, run))

    def _perform(self, request: Any, go_on: Callable[..., object]) -> None:
        if isinstance(request, Wait):
            self._wait(request, go_on)
        elif isinstance(request, Open):
            self.opened[request.connection] += 1
            go_on(None, self.pool.transport.open(request))
        elif isinstance(request, (Register, Ping)):
            patient = isinstance(request, Register) and request.patient
            answer = partial(self._answered, request, go_on)
            request.wire.channel.call(answer, patient=patient, timeout=request.timeout)
        elif isinstance(request, Use):
            request.channel.call(go_on)
        else:
            assert isinstance(request, Pause), f"nobody asks a fixed address for {request}"
            self.world.at(self.world.now + request.seconds, partial(go_on, None))

    def _answered(
        self, request: Register | Ping, go_on: Callable[..., object], error: Exception | None
    ) -> None:
        if error is None:
            assert request.connection.lifecycle.vouch(request.wire), "nothing forks or moves"
        go_on(error, "identifier")

    def _wait(self, request: Wait, go_on: Callable[..., object]) -> None:
        life, flight = request.connection.lifecycle, request.flight
        waits = True

        def end() -> None:
            nonlocal waits
            if waits:
                waits = False
                if life.leave(flight, wake):
                    self.pool.deserted(request.connection, flight)
                go_on(None)

        wake = partial(self.world.soon, end)
        if life.join(flight, wake, request.until, leads=request.leads):
            self.world.at(request.until + request.grace, end)
        else:
            end()

    # -- what the pool asks of its driver --------------------------------------------------

    def permanent_channel(self, connection: ManagedConnection) -> Face:
        return Face(self.pool, connection)

    def launch(self, connection: ManagedConnection, flight: Flight) -> None:
        self.begin(Recovery(self.pool, connection, flight).fly(object()))

    def refresh_in_background(self, connection: ManagedConnection) -> None:
        self.begin(self.pool.maintenance.refresh(connection))

    def post(self, job: Callable[[], object]) -> None:
        self.world.soon(job)

    def reschedule(self) -> None:
        due = self.pool.maintenance.schedule.next_due()
        if due is not None and due != self._alarm:
            self._alarm = due
            self.world.at(due, partial(self._keep_time, due))

    def _keep_time(self, due: float) -> None:
        if due == self._alarm:
            self._alarm = None
            self.pool.maintenance.run_due()
            self.reschedule()

    def dispose(self, wire: Wire) -> None:
        wire.channel.close()


class Client:
    """Holds one connection, and has a call under way when the server goes."""

    def __init__(self, process: Process) -> None:
        self.process, self.pool = process, process.pool
        self.face: Face
        process.begin(self._check_out())

    def _check_out(self) -> Generator[Any, Any, None]:
        checkout = Checkout.within(self.pool, None)
        handler = yield from checkout.obtain(CONFIG, True, self)
        self.face = self.pool.face_of(handler)

    @property
    def channels(self) -> int:
        """Channels that were opened for it."""
        return self.process.opened[self.face.connection]

    def lives(self) -> Generator[Any, Any, None]:
        """Calls until it is served."""
        while True:
            try:
                yield from self._call()
            except RecoveryExhausted:
                continue
            self.process.world.served.append(self.process.world.now)
            return

    def _call(self) -> Generator[Any, Any, None]:
        """A call as the permanent channel and the retry decorator make it."""
        face = self.face
        while True:
            rpc = Rpc()
            start, began, until = face.quick(rpc, None)
            if start is None:
                start = yield from Checkout(self.pool, began, until).admit(face, rpc, None)
            try:
                yield Use(start.binding.wire.channel)
            except grpc.RpcError as error:
                failure = face.failed(start, error)
                face.left(start)
                if not (yield from Retry(face).ask(failure)):
                    raise
            else:
                face.left(start)
                face.answered(start, "Rpc", None, None, None)
                return


@dataclass(frozen=True)
class Storm:
    """One simulated storm. Times are seconds after the server's return, sorted."""

    away: float
    #: when connections came to the server
    arrivals: tuple[float, ...]
    #: when clients had the answer to the call that the loss had failed
    served: tuple[float, ...]
    #: how many channels the outage has cost, by client
    channels: tuple[int, ...]

    def peak(self) -> float:
        """The greatest share of clients in any 100 ms, be it of connections or of answers."""
        return max(_densest(self.arrivals), _densest(self.served)) / len(self.channels)

    def mean(self) -> float:
        """Seconds after its return at which a client is served, on average."""
        return sum(self.served) / len(self.served) if self.served else math.inf

    def last(self) -> float:
        """Seconds after its return at which the last client is served."""
        return max(self.served, default=math.inf)

    def counts(self) -> list[int]:
        """Connections in each 100 ms since the return."""
        counts = [0] * (int(self.arrivals[-1] / WINDOW) + 1)
        for at in self.arrivals:
            counts[int(at / WINDOW)] += 1
        return counts

    def __str__(self) -> str:
        return (
            f"{len(self.channels):,} clients, {self.away:.1f} s away: at most {self.peak():.2%} in "
            f"100 ms; {self.mean():.1f} s late on average, {self.last():.1f} s at most; "
            f"{max(self.channels)} channels each"
        )


def _densest(times: Sequence[float]) -> int:
    """The most of them in any window, wherever it begins."""
    return max((bisect_left(times, at + WINDOW) - n for n, at in enumerate(times)), default=0)


def simulate(
    policy: LifecyclePolicy | None = None,
    *,
    away: float = AWAY,
    processes: int = CLIENTS,
    connections: int = 1,
    seed: int = SEED,
) -> Storm:
    """A storm over ``processes`` of so many connections each; equal arguments, equal storms."""
    with collected_by_hand():  # what a client is made of lives to the end
        world = World(seed)
        transport, policy = Transport(world), policy or LifecyclePolicy()
        fleet = [Process(world, policy, transport) for _ in range(processes)]
        clients = [Client(process) for process in fleet for _ in range(connections)]
        world.run(until=world.now + 1.0)
        before = [client.channels for client in clients]
        world.lose()
        for client in clients:
            client.process.begin(client.lives())
        world.run(until=world.now + away)
        world.up, back = True, world.now
        world.accepted.clear()
        world.run(until=back + PATIENCE, done=lambda: len(world.served) == len(clients))
        return Storm(
            away,
            tuple(at - back for at in world.accepted),
            tuple(at - back for at in world.served),
            tuple(client.channels - n for client, n in zip(clients, before, strict=True)),
        )


# -- the picture -------------------------------------------------------------------------------

_WIDE, _HIGH, _LEFT, _TOP, _RIGHT, _BOTTOM = 760, 300, 56, 44, 16, 44
_STYLE = (
    "text{font:12px sans-serif;fill:#444}.title{font-size:14px;fill:#111}"
    ".bar{fill:#2a6f97}.limit{stroke:#c0392b;stroke-dasharray:5 4}.axis{stroke:#999}"
    "@media(prefers-color-scheme:dark){text{fill:#bbb}.title{fill:#eee}.bar{fill:#61a5c2}}"
)


def draw(storm: Storm) -> str:
    """The arrivals as an SVG picture. Equal storms give equal text."""
    counts, clients = storm.counts(), len(storm.arrivals)
    shares = [count / clients for count in counts]
    top = max(shares) * 1.1
    across = (_WIDE - _LEFT - _RIGHT) / len(counts)
    down = (_HIGH - _TOP - _BOTTOM) / top
    floor = _HIGH - _BOTTOM
    title = (
        f"{clients:,} clients lost a server for {storm.away:g} s: arrivals per 100 ms "
        f"(peak {storm.peak():.1%}, mean {storm.mean():.1f} s after the return)"
    )
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDE} {_HIGH}" role="img" '
        f'aria-label="{title}">',
        f"<style>{_STYLE}</style>",
        f'<text class="title" x="{_LEFT}" y="22">{title}</text>',
    ]
    for n, share in enumerate(shares):
        high = share * down
        lines.append(
            f'<rect class="bar" x="{_LEFT + n * across:.2f}" y="{floor - high:.2f}" '
            f'width="{max(0.5, across - 0.6):.2f}" height="{high:.2f}"/>'
        )
    for percent in range(2, int(top * 100) + 1, 2):
        y = floor - percent / 100 * down
        lines.append(
            f'<line class="axis" x1="{_LEFT}" y1="{y:.2f}" x2="{_WIDE - _RIGHT}" y2="{y:.2f}"/>'
        )
        lines.append(f'<text x="{_LEFT - 8}" y="{y + 4:.2f}" text-anchor="end">{percent} %</text>')
    lines.append(
        f'<line class="axis" x1="{_LEFT}" y1="{floor}" x2="{_WIDE - _RIGHT}" y2="{floor}"/>'
    )
    for second in range(int(len(counts) * WINDOW) + 1):
        x = _LEFT + second / WINDOW * across
        lines.append(f'<text x="{x:.2f}" y="{floor + 18}" text-anchor="middle">{second}</text>')
    lines.append(
        f'<text x="{_WIDE - _RIGHT}" y="{_HIGH - 8}" text-anchor="end">'
        "seconds since the server is back</text>"
    )
    lines.append("</svg>")
    return "\n".join(lines) + "\n"


def main(arguments: list[str]) -> None:
    """Draw the picture, or say what comes of an outage of so many seconds."""
    for argument in arguments:
        if argument.endswith(".svg"):
            Path(argument).write_text(draw(simulate()), encoding="utf-8")
        else:
            print(simulate(away=float(argument)))


if __name__ == "__main__":
    main(sys.argv[1:])
