"""Schedules: one run of a real driver for each seed, and what is checked in all of them.

One ``random.Random(seed)`` draws the policy, the users' plans, the server's fate, every latency,
and who runs next. So a seed is a run: running it again gives the same trace, move by move.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime, timedelta, timezone
from itertools import count
from random import Random
from types import SimpleNamespace
from typing import Any, ClassVar

from milvus_lifecycle import LifecyclePolicy
from milvus_lifecycle.audit.records import TRANSITION, TransitionRecord
from milvus_lifecycle.core.facts import Seams
from milvus_lifecycle.core.lifecycle import Lifecycle
from milvus_lifecycle.core.requests import Open
from milvus_lifecycle.endpoints.choose import default_strategy
from milvus_lifecycle.errors import LifecycleError, error_code
from milvus_lifecycle.table import TRANSITIONS, State
from tests.cores import Tap
from tests.simulation import laws
from tests.simulation.actors import AWAY, HOME, Client
from tests.simulation.kernel import EPOCH
from tests.simulation.setup import Compass
from tests.simulation.users import Call, Life, User
from tests.simulation.weather import Channel, Server

WALL = datetime(2030, 1, 1, tzinfo=timezone.utc)
#: A schedule that takes more moves or more simulated seconds than this does not end by itself.
MOST_MOVES = 5000
MOST_SECONDS = 300.0
#: at the end, time for lingering and draining connections to go
CALM = 8.0
_ROWS = frozenset((row.trigger.value, row.source.value, row.dest.value) for row in TRANSITIONS)
_FLYING = (State.PROBING, State.RECOVERING)


def draw_policy(rng: Random) -> LifecyclePolicy:
    """Few different durations, so that things fall on the same moment."""
    return LifecyclePolicy(
        idle_threshold=rng.choice((None, 0.0, 0.5)),
        probe_timeout=rng.choice((0.5, 1.0)),
        connect_timeout=rng.choice((1.0, 2.0)),
        recovery_budget=rng.choice((2.0, 4.0)),
        backoff_initial=0.25,
        backoff_max=rng.choice((0.25, 1.0)),
        backoff_ceiling=1.0,
        backoff_patience=rng.choice((1.0, 10.0)),
        backoff_jitter=rng.choice((0.0, 0.2)),
        linger=rng.choice((None, 0.0, 0.5, 1.0)),
        max_age=rng.choice((None, None, 1.5)),
        drain_timeout=rng.choice((None, 0.25, 1.0)),
        topology_refresh=rng.choice((None, 1.0)),
    )


class Wanderer(Compass):
    """A strategy whose target moves; its locator is I/O like any other."""

    name = "wanderer"

    def __init__(self, config: Any, world: World) -> None:
        super().__init__(config, lambda: world.target)
        self.world = world
        self.keeps_current = world.keeps_current  # type: ignore[misc]

    def locator(self, connection: Any) -> Any:
        return self.world.locator()

    def refresh_every(self, connection: Any) -> float | None:
        every: float | None = connection.policy.topology_refresh
        return every


def watch(world: World, manager: Any) -> None:
    """Have the world note the connections of a manager, and read its records."""
    world.manager, world.pool = manager, manager._pool
    pool: Any = manager._pool
    pool.world = world
    pool.audit.readers = (Tap(world.hear),)
    register = pool.register

    def register_and_note(connection: Any) -> Any:
        world.connections.append(connection)
        world.handlers[connection] = connection.handler
        pooled = register(connection)
        if pooled is not connection:  # another thread was first
            world.connections.remove(connection)
        return pooled

    pool.register = register_and_note


def watched_lead() -> tuple[Any, str, Any]:
    """What to replace so that the world is told of whoever takes the lead of a flight."""
    lead = Lifecycle.lead

    def lead_and_tell(life: Lifecycle, flight: Any, leader: object) -> bool:
        led = lead(life, flight, leader)
        if led:
            connection: Any = life.leases.home()
            connection.face.pool.world.led(connection, flight)
        return led

    return Lifecycle, "lead", lead_and_tell


class World:
    """Everything of one schedule. The flavours add who runs, and how they wait."""

    flavour: ClassVar[str]
    #: it makes a call itself, at the end
    name: ClassVar[str] = "the epilogue"
    now: float

    def __init__(self, seed: int) -> None:
        self.seed = seed
        self.rng = rng = Random(seed)
        self.policy = draw_policy(rng)
        self.server = Server(rng)
        self.wanders = rng.random() < 0.2
        self.keeps_current = rng.random() < 0.5
        self.target = HOME
        #: one bit of luck a manager: the rest of its draws come from here, too
        self.chance = Random(seed).random
        self.trace: list[str] = []
        self.records: list[TransitionRecord] = []
        #: how long callers waited at least, at which time
        self.budgets: list[tuple[float, float]] = []
        self.connections: list[Any] = []
        self.handlers: dict[Any, Any] = {}
        self.channels: list[Channel] = []
        #: channels of a parent process: there is none here (the laws look)
        self.inherited: list[Channel] = []
        #: clients that nobody uses and that the collector has not found yet
        self.garbage: list[Client | None] = []
        #: whoever waits for a flight -> the flight
        self.waiting: dict[int, Any] = {}
        #: (connection, flight) of every leader that is at work
        self.leading: list[tuple[Any, Any]] = []
        #: thread or task -> its entry there
        self.leaders: dict[Any, tuple[Any, Any]] = {}
        #: for how long (seconds) somebody was kept from running who could have run
        self.slack = 0.0
        self.moves = 0
        #: kinds of errors that callers saw
        self.errors: set[str] = set()
        #: did its loop end with tasks in it?
        self.unfinished = False
        self.watch = laws.Watch(self)  # type: ignore[arg-type]
        refusals = ("refused",) if self.server.refuses else ()
        self.setup = SimpleNamespace(kinds=refusals)
        self.actors = [User(self, name, n, rng) for n, name in enumerate("ABCD"[: self._crowd()])]
        self.manager: Any = None
        self.pool: Any = None
        self.kernel: Any = None
        self._keys = count(1)

    def _crowd(self) -> int:
        return self.rng.choice((1, 2, 2, 3, 3, 4))

    # -- what the manager is given ----------------------------------------------------------

    def seams(self) -> dict[str, Any]:
        """What the manager's constructor takes besides the transport."""
        return {
            "transport": self,
            "strategy_for": self.strategy,
            "seams": Seams(self.clock, self.wait, self.wall, self.rng.random),
        }

    def strategy(self, config: Any) -> Any:
        return Wanderer(config, self) if self.wanders else default_strategy(config)

    def clock(self) -> float:
        return self.now

    def wall(self) -> datetime:
        return WALL + timedelta(seconds=self.now - EPOCH)

    def wait(self, event: Any, until: float) -> None:
        """How a thread waits; a loop has ways of its own."""
        raise NotImplementedError

    def locator(self) -> Any:
        """What a wandering strategy asks for its place."""
        raise NotImplementedError

    # -- the transport ------------------------------------------------------------------------

    channel_class: type[Channel]

    def translate(self, error: LifecycleError) -> Exception:
        return error

    @property
    def unread(self) -> bool:
        """Is there something that the timekeeper has not read, or the collector not found?"""
        return bool(self.garbage)

    def outdated(self, *about: object) -> bool:
        return False

    def open(self, request: Open) -> Channel:
        laws.check_no_lock(self, "open")  # type: ignore[arg-type]
        channel = self.channel_class(self, len(self.channels) + 1, request.address)
        self.channels.append(channel)
        return channel

    # -- what the world notes -----------------------------------------------------------------

    def least_since(self, began: float) -> list[float]:
        """How long callers waited at least, since then, and when it was looked at before."""
        before = [budget for at, budget in self.budgets if at < began][-1:]
        return before + [budget for at, budget in self.budgets if at >= began]

    def note(self, what: str) -> None:
        self.trace.append(f"{self.now - EPOCH:.6g} {what}")
        self.budgets.append((self.now, laws.least_budget(self)))

    def hear(self, record: TransitionRecord) -> None:
        """Reads the records as they are queued."""
        if record.event == TRANSITION:
            self.records.append(record)
            self.note(f"{record.connection_id[-2:]}: {record.trigger} -> {record.dest}")

    @contextmanager
    def waits(self, request: Any) -> Iterator[None]:
        """Somebody waits for a flight."""
        key = next(self._keys)
        self.waiting[key] = request.flight
        longest = self.policy.recovery_budget + 0.5
        if request.until + request.grace - self.now > longest + 1e-6:
            raise laws.Broken(9, f"a wait of {request.until - self.now:g} s; budget {longest:g}")
        try:
            yield
        finally:
            del self.waiting[key]

    def who(self) -> Any:
        """The thread or task that runs now."""
        raise NotImplementedError

    def led(self, connection: Any, flight: Any) -> None:
        """Law 1: at most one leader of a connection that has something to decide."""
        for known, other in self.leading:
            if known is connection and other.outcome is None and flight.outcome is None:
                raise laws.Broken(1, "two leaders of one connection")
        entry = self.leaders[self.who()] = (connection, flight)
        self.leading.append(entry)

    @contextmanager
    def leads(self, connection: Any, flight: Any) -> Iterator[None]:
        """Somebody flies, or finds that another one does."""
        who = self.who()  # asked now: a task that is collected has no loop to be found in
        try:
            yield
        finally:
            entry = self.leaders.pop(who, None)
            if entry is not None:
                self.leading.remove(entry)
            laws.check_mistake(connection)

    def finalize(self, client: Client) -> None:
        """What a user's ``__del__`` does: give back what it holds."""
        client.on_end = None
        for connection in self.connections:
            if 0 in connection.leases.held:
                self.pool.release(connection, None)

    def checked(self, user: Any, call: Call, began: float, error: BaseException | None) -> None:
        """A call has ended: law 9."""
        self.note(f"{user.name}: {call.what} {type(error).__name__ if error else 'ok'}")
        if error is not None:
            self.errors.add(error_code(error))
        limit = call.limit
        if call.what == "checkout" and limit is None:
            budget = self.policy.recovery_budget + self.slack + 0.5
            if self.now - began > budget + 1e-6:
                raise laws.Broken(9, f"a checkout took {self.now - began:g} s")
        laws.check_call(self, user, call.what, began, limit, error, self.slack)  # type: ignore[arg-type]

    # -- beside the users ---------------------------------------------------------------------

    def forecast(self) -> Life:
        """What happens to the server, and to a target that moves."""
        for gap, mode in self.server.forecast:
            yield gap
            self.note(f"the server is {mode}")
            self.server.become(mode)
            if self.wanders and self.rng.random() < 0.5:
                self.target = AWAY if self.target == HOME else HOME
                self.note(f"the target is {self.target}")
                self.pool.maintenance.reroute_all()

    def epilogue(self) -> Life:
        """All users have ended: nothing may be left over, now and after the close."""
        for user in self.actors:
            yield from user.leave()
        self.collect()
        yield CALM
        self.note("calm")
        if self.slack < CALM:
            self._check_calm()
        pooled = self.pool.registry.all()
        yield Call("close_all", self.manager.close_all)
        laws.check_closed(pooled)

    def collect(self, *, finalizers: bool = True) -> None:
        """The collector comes; for clients with a finalizer too, or only for the others."""
        garbage, self.garbage = self.garbage, []
        while garbage:
            client = garbage.pop()
            if client is not None and client.on_end is not None and not finalizers:
                self.garbage.append(client)
            client = None

    # -- checks -------------------------------------------------------------------------------

    def check_quiet(self) -> None:
        """Nobody can run before time passes, and nobody is in the middle of anything."""
        for connection in self.connections:
            self._check_connection(connection)
            laws.check_records(self, connection, complete=True)  # type: ignore[arg-type]
        for flight in self.waiting.values():
            if flight.outcome is not None:
                raise laws.Broken(4, f"a waiter was not woken by the end of flight {flight.number}")
            if all(flight is not connection.lifecycle.flight for connection in self.connections):
                raise laws.Broken(4, "somebody waits for a flight that nobody flies")
        laws.check_channels(self, self.slack)  # type: ignore[arg-type]
        laws.check_leases(self)  # type: ignore[arg-type]
        laws.check_lines(self.pool, self.slack)

    def _check_connection(self, connection: Any) -> None:
        state, flight = connection.state, connection.lifecycle.flight
        if (state in _FLYING) is not (flight is not None):
            raise laws.Broken(1, f"{state} with flight {flight}")
        deciding = [f for c, f in self.leading if c is connection and f.outcome is None]
        flown = deciding == [flight]
        if flight is not None and not deciding:
            flown = laws.in_line(self.pool, flight, self.slack)
        if flight is not None and not flown:
            raise laws.Broken(4, f"flight {flight.number} has no leader and no outcome")
        if flight is None and deciding:
            raise laws.Broken(1, "a leader without a flight")
        waiting = sum(other is flight for other in self.waiting.values())
        if flight is not None and len(flight.waiters) != waiting:
            raise laws.Broken(4, f"{len(flight.waiters)} to be woken, {waiting} wait")
        if state is State.ACTIVE:
            if not connection.lifecycle.validated or not connection.lifecycle.has_channel:
                raise laws.Broken(7, "ACTIVE without a validated channel")
            if not connection.leases and not self.unread:
                raise laws.Broken(12, "ACTIVE and held by nobody")
        if connection.handler is not self.handlers[connection]:
            raise laws.Broken(6, "the handler was exchanged")
        due = connection.lifecycle.linger_due()
        if state is State.IDLE and due is not None and self.now > due + self.slack + 1e-6:
            raise laws.Broken(7, f"should have been closed {self.now - due:g} s ago")

    def _check_calm(self) -> None:
        """Long after the last release."""
        for connection in self.connections:
            if connection.state is State.CLOSED:
                continue
            life = connection.lifecycle
            if connection.leases or life.flight is not None or life.draining:
                raise laws.Broken(12, f"{connection!r} is in use, and nobody uses it")
            if self.policy.linger is not None:
                raise laws.Broken(7, f"{connection!r} has lingered for {CALM:g} s")

    def check_over(self) -> None:
        """After the end: every connection is closed, every channel is, and all is on record."""
        laws.check_closed(self.connections)
        for channel in self.channels:
            if not channel.closed:
                raise laws.Broken(7, f"channel {channel.number} is open at the end")
            if channel.rpcs:
                raise laws.Broken(4, f"an RPC runs on channel {channel.number} at the end")
        if (self.waiting or self.leading) and not self.unfinished:
            raise laws.Broken(4, "somebody waits or flies at the end")
        last: dict[str, tuple[int, str]] = {}
        for record in self.records:
            seq, state = last.get(record.connection_id, (0, State.IDLE.value))
            if record.seq != seq + 1 or record.source != state:
                raise laws.Broken(8, f"record {record.seq} follows {seq}, {record.source} {state}")
            if (record.trigger, record.source, record.dest) not in _ROWS:
                raise laws.Broken(8, f"no row: {record.trigger}, {record.source}, {record.dest}")
            last[record.connection_id] = (record.seq, record.dest)
        for connection in self.connections:
            laws.check_records(self, connection, complete=True)  # type: ignore[arg-type]

    def run(self) -> None:
        """The whole schedule. Raises what it finds."""
        raise NotImplementedError

    def end(self) -> None:
        """Drop what still waits, after a finding."""
