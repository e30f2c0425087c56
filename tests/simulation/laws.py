"""The laws of the design, as checks of a run: while a step is made, after it, and at the end."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, ClassVar

from milvus_lifecycle.core.admission import ONE_MORE
from milvus_lifecycle.core.checkout import VERDICT_GRACE
from milvus_lifecycle.core.flight import FlightKind
from milvus_lifecycle.core.wire import WireState
from milvus_lifecycle.drivers.aio_loops import GONE
from milvus_lifecycle.errors import (
    ConnectFailed,
    ConnectionClosed,
    DeadlineExceeded,
    Failure,
    PermanentFailure,
    RecoveryExhausted,
    error_code,
)
from milvus_lifecycle.table import Row, State, Trigger
from tests.simulation.kernel import Blocked

if TYPE_CHECKING:
    from tests.simulation.actors import Actor
    from tests.simulation.world import Channel, World

_FLYING = (State.PROBING, State.RECOVERING)
_ABOUT_A_GENERATION = (Trigger.FAIL, Trigger.DOUBT, Trigger.SERVED)
_OUTCOMES = (
    Trigger.PROBE_PASSED,
    Trigger.PROBE_FAILED,
    Trigger.RETRY,
    Trigger.RECOVERED,
    Trigger.STAND_DOWN,
    Trigger.GIVE_UP,
    Trigger.ABANDONED,
)


#: what no code raises on purpose
_MISTAKES = (AssertionError, AttributeError, LookupError, NameError, TypeError)


class Broken(BaseException):
    """A law does not hold. No handler of the engine's own may swallow it.

    Law 0 is the one that nobody writes down: no code raises what nobody expects.
    """

    def __init__(self, law: int, what: str) -> None:
        super().__init__(f"law {law}: {what}" if law else f"a crash: {what}")
        self.law = law


def crash(who: str, error: Exception) -> Broken:
    """The finding that ``who`` raised ``error``."""
    broken = Broken(0, f"{who} raised {error!r}")
    broken.__cause__ = error
    return broken


def complain(text: str) -> None:
    """Stands for the engine's own: it complains of what a job of the timekeeper raised."""
    raise Broken(0, text)


def check_mistake(connection: Any) -> None:
    """Law 0: a flight takes whatever its attempt raises for a failure, mistakes in the code too."""
    failure = connection.lifecycle.last_failure
    if failure is not None and isinstance(failure.error, _MISTAKES):
        raise crash("a flight", failure.error)


class Watch:
    """What the machine was seen to do in one run, beside what it says in its records."""

    #: over all runs: (state, trigger) cells that were tried, rows that were travelled
    cells: ClassVar[dict[tuple[State, Trigger], int]] = {}
    rows: ClassVar[dict[Row, int]] = {}

    def __init__(self, world: World) -> None:
        self.world = world
        #: connection -> [(trigger, source, dest)], since it was made or forked
        self.moved: dict[Any, list[tuple[str, str, str]]] = {}
        self.checked: dict[str, int] = {}
        #: channel -> since when it drains
        self.draining: dict[int, float] = {}
        #: connection -> since when its RPCs have failed, and its budget runs
        self.down: dict[Any, float] = {}
        #: connections whose channel something has vouched for since it was last doubted
        self.vouched: set[Any] = set()
        #: (process, flight) of whoever took a lead
        self.leads: list[tuple[Any, Any]] = []
        #: processes that a fork left behind
        self.orphans: list[Any] = []

    def answered(self, channel: Any) -> None:
        """A user's RPC ended well: if that is the channel in use, its outage is over."""
        for connection in list(self.down):
            life = connection.lifecycle
            in_use = life.binding is not None and life.binding.wire.channel is channel
            if in_use and life.flight is None:
                del self.down[connection]

    def forked(self) -> None:
        """Records of the parent stay in the parent."""
        self.moved.clear()
        self.down.clear()
        self.vouched.clear()
        self.world.records.clear()
        self.checked.clear()


def watched(fire: Callable[..., bool]) -> Callable[..., bool]:
    """The machine's ``fire``, looked at from both sides."""

    def fire_and_watch(life: Any, trigger: Trigger, facts: Any) -> bool:
        connection = life.leases.home()
        source, generation, flight = life.state, life.generation, life.flight
        cell = (source, trigger)
        Watch.cells[cell] = Watch.cells.get(cell, 0) + 1
        moved = fire(life, trigger, facts)
        if moved:
            row = life.row
            Watch.rows[row] = Watch.rows.get(row, 0) + 1
        watch, dest = connection.face.pool.world.watch, connection.state
        if moved:
            steps = watch.moved.setdefault(connection, [])
            steps.append((trigger.value, source.value, dest.value))
            for wire in _open_of(life.draining):
                watch.draining.setdefault(wire.channel.number, facts.now)
            _check_step(connection, trigger, facts, source, generation, flight)
        elif dest is not source:
            raise Broken(8, f"{source} became {dest} without a row")
        return moved

    return fire_and_watch


def watched_lead(lead: Callable[..., bool]) -> Callable[..., bool]:
    """A connection's ``lead``, with the watch told of whoever leads."""

    def lead_and_tell(life: Any, flight: Any, leader: object) -> bool:
        led = lead(life, flight, leader)
        world = life.leases.home().face.pool.world
        if led:
            world.watch.leads.append((world.kernel.running, flight))
        return led

    return lead_and_tell


def watched_enter(enter: Callable[..., Any]) -> Callable[..., Any]:
    """Law 9: no RPC is let in while its connection probes, or recovers from a failure."""

    def enter_and_watch(life: Any, rpc: Any, now: float, **how: Any) -> Any:
        before, entered = (life.state, life.flight), enter(life, rpc, now, **how)
        state, flight = life.state, life.flight
        kept = state is State.PROBING or (state is State.RECOVERING and flight.mandatory)
        if entered is not None and kept and before == (state, flight):
            raise Broken(9, f"an RPC was let in while {state}")
        return entered

    return enter_and_watch


def watched_budget(make_mandatory: Callable[..., None]) -> Callable[..., None]:
    """Law 9: one budget for an outage, which begins with it and ends with a user's good RPC."""

    def make_and_watch(life: Any, flight: Any, facts: Any) -> None:
        make_mandatory(life, flight, facts)
        connection = life.leases.home()
        watch = connection.face.pool.world.watch
        left = flight.deadline - watch.down.setdefault(connection, facts.now)
        if abs(left - life.policy.recovery_budget) > 1e-6:
            raise Broken(9, f"an outage of which {left:g} s are looked at")

    return make_and_watch


def _check_step(
    connection: Any, trigger: Trigger, facts: Any, source: State, generation: int, flight: Any
) -> None:
    if source is State.CLOSED:
        raise Broken(3, f"{trigger} led out of CLOSED")
    if trigger in _ABOUT_A_GENERATION and facts.generation not in (None, generation):
        raise Broken(5, f"{trigger} of generation {facts.generation} moved generation {generation}")
    if trigger in _OUTCOMES and (flight is None or facts.flight != flight.number):
        number = flight.number if flight is not None else "none"
        raise Broken(1, f"{trigger} of flight {facts.flight} decided flight {number}")
    flying = connection.state in _FLYING
    if flying is not (connection.lifecycle.flight is not None):
        raise Broken(1, f"{connection.state} with flight {connection.lifecycle.flight}")
    if trigger is Trigger.GIVE_UP and not flight.mandatory:
        raise Broken(9, "gave up a channel that was good")
    if trigger is Trigger.RETRY and facts.failure.kind is Failure.PERMANENT:
        raise Broken(9, "what a server refuses is tried again")
    if trigger is Trigger.RETRY and facts.now >= flight.deadline:
        raise Broken(9, "another attempt, and the budget is spent")
    binding = connection.lifecycle.binding
    swapped = facts.wire is not None and binding is not None and binding.wire is facts.wire
    if connection.generation != generation + swapped:
        raise Broken(5, f"generation {generation} became {connection.generation}")
    _check_vouched(connection, trigger, source)


def _check_vouched(connection: Any, trigger: Trigger, source: State) -> None:
    """Law 9: who checks out gets a channel that has answered since it was given up."""
    watch = connection.face.pool.world.watch
    if (trigger, source, connection.state) == (Trigger.ACQUIRE, State.IDLE, State.ACTIVE):
        if connection not in watch.vouched:
            raise Broken(9, "a caller is let in, and nothing vouches for the channel")
    elif trigger in (Trigger.PROBE_PASSED, Trigger.RECOVERED, Trigger.STAND_DOWN, Trigger.SERVED):
        watch.vouched.add(connection)
    elif trigger in (Trigger.GIVE_UP, Trigger.ABANDONED):
        watch.vouched.discard(connection)
        watch.down.pop(connection, None)  # the next flight has a budget of its own


# -- what a single piece of I/O or a call must keep to ----------------------------------------


def check_no_lock(world: World, what: str) -> None:
    """Law 2: nothing waits, closes or tells anybody with a lock in its hand."""
    process = world.kernel.running
    if process is not None and process.locks and not world.kernel.dead:
        raise Broken(2, f"{what} while a lock is held")


def check_channel_close(world: World, channel: Channel) -> None:
    """Law 7: not under a running RPC, unless the connection was closed or the drain is over."""
    if world.kernel.dead or not channel.rpcs:
        return
    wire = _wire_of(world, channel)
    owner = next((c for c in world.connections if wire in _wires(c)), None)
    closed = owner is None or owner.state is State.CLOSED
    if wire is not None and not wire.cut and not closed:
        raise Broken(7, f"channel {channel.number} was closed under a running RPC")


def check_identity(world: World, actor: Actor, handler: Any) -> None:
    """Law 6: one connection, one handler."""
    connection = handler.face.connection
    if connection.handler is not handler:
        raise Broken(6, f"{actor.name} was given a handler that is not its connection's")


def check_call(
    world: World,
    actor: Actor,
    what: str,
    began: float,
    limit: float | None,
    error: Any,
    slack: float = 0.0,
) -> None:
    """Law 9: how long a call waited, and which errors it may see.

    ``slack`` (seconds): for how long threads did not run although they could have.
    """
    if world.kernel.dead:
        return
    took = world.kernel.now - began
    budget = world.pool.policy.recovery_budget
    # Without a limit of its own a call may run, fail and be waited for again and again.
    if limit is not None and took > limit + VERDICT_GRACE + slack + 1e-6:
        raise Broken(9, f"the {what} of {actor.name} took {took:g} s of {limit:g} s")
    # Less of it where a recovery has given up, at some time of the call.
    budget = min([budget, least_budget(world), *world.least_since(began)])
    least = budget if limit is None else min(limit, budget)
    if isinstance(error, RecoveryExhausted) and took < least - 1e-6:
        raise Broken(9, f"RecoveryExhausted after {took:g} s of {least:g} s")
    if isinstance(error, DeadlineExceeded) and (limit is None or took < limit * 0.9):
        raise Broken(9, f"DeadlineExceeded after {took:g} s of {limit} s")
    if isinstance(error, PermanentFailure) and "refused" not in world.setup.kinds:
        raise Broken(9, "PermanentFailure without a refusal")
    patience = world.pool.policy.connect_timeout if limit is None else limit
    if isinstance(error, ConnectFailed) and not (
        took >= patience - 1e-6  # it may have landed in the very moment in which its caller left
        or any(
            c.lifecycle.closed_by in (Trigger.PROBE_FAILED, Trigger.ABANDONED)
            or not c.lifecycle.validated
            for c in world.connections
        )
    ):
        raise Broken(9, "ConnectFailed although every first connect was good")
    closed = any(c.state is State.CLOSED for c in world.connections)
    if isinstance(error, ConnectionClosed) and not closed:
        raise Broken(9, "ConnectionClosed although no connection is")


def least_budget(world: Any) -> float:
    """How long a caller who comes now waits at least."""
    budgets = [float(c.lifecycle.budget(world.kernel.now)) for c in world.connections]
    return min(budgets, default=world.pool.policy.recovery_budget)


def check_silence(world: World, began: float, limit: float | None, error: Any) -> None:
    """Law 9: if nobody answers, a first connect takes the time that its caller has.

    Not between two locks: whoever joins after the leader has looked who waits, and before it says
    that nobody answers, is told so at once.
    """
    told = isinstance(error, ConnectFailed) and error.last_error is not None
    if not told or world.setup.preemptions is not None:
        return
    took, policy = world.kernel.now - began, world.pool.policy
    least = min(policy.connect_timeout if limit is None else limit, policy.recovery_budget)
    if error_code(error.last_error) == "DEADLINE_EXCEEDED" and took < least - 1e-6:
        raise Broken(9, f"ConnectFailed after {took:g} s of {least:g} s, and nobody refused")


def check_closed(connections: list[Any]) -> None:
    """Law 3: close wins at once, whatever is under way."""
    for connection in connections:
        if connection.state is not State.CLOSED:
            raise Broken(3, f"{connection.state} after close")


def check_wait(world: World, began: float) -> None:
    """Law 9: no wait for the engine lasts longer than the budget."""
    process = world.kernel.running
    if process is None or world.kernel.dead or not hasattr(process.about, "plan"):
        return
    took, budget = world.kernel.now - began, world.pool.policy.recovery_budget
    if took > budget + VERDICT_GRACE + 1e-6:
        raise Broken(9, f"{process.name} waited {took:g} s; the budget is {budget:g} s")


# -- what holds whenever nobody is in the middle of something -----------------------------------


def check(world: World) -> None:
    """Everything that can be seen from outside. Cheap: it runs after every move."""
    kernel = world.kernel
    between = any(p.pending.between or p.locks for p in kernel.processes if p.pending)
    for process, error in kernel.crashes:
        raise crash(process.name, error)
    for connection in world.connections:
        check_mistake(connection)
        check_records(world, connection, complete=not between)
        if not between:
            _check_flight(world, connection)
    if not between:
        check_channels(world)
        check_leases(world)
        check_lines(world.pool)


def check_end(world: World) -> None:
    """Nothing can happen any more: nobody waits, and nothing is left over."""
    for process in world.kernel.processes:
        if process.name != "timekeeper":
            raise Broken(4, f"{process.name} waits for ever")
    for connection in world.connections:
        unused = connection.state is not State.CLOSED and not connection.leases
        if unused and world.pool.policy.linger is not None:
            raise Broken(7, "a connection that nobody uses is never closed")


def _check_flight(world: World, connection: Any) -> None:
    state, flight = connection.state, connection.lifecycle.flight
    if (state in _FLYING) is not (flight is not None):
        raise Broken(1, f"{state} with flight {flight}")
    flying = [
        process
        for process in world.kernel.processes
        if isinstance(process.about, tuple) and process.about[0] is connection
    ]
    deciding = [
        process
        for process in flying
        if process.about[1].outcome is None and (process, process.about[1]) in world.watch.leads
    ]
    if len(deciding) > 1:
        raise Broken(1, f"{len(deciding)} leaders of one connection")
    flown = any(process.about[1] is flight for process in flying)
    if flight is not None and not (flown or in_line(world.pool, flight) or world.unread):
        raise Broken(4, f"flight {flight.number} has no leader and no outcome")
    if flight is None and deciding:
        raise Broken(1, "a leader without a flight")
    if state is State.CLOSED and connection in world.pool.registry.all():
        raise Broken(3, "a closed connection is pooled")
    first = flight is not None and flight.kind is FlightKind.CONNECT
    if first and not connection.lifecycle.validated and not _awaited(world, flight):
        raise Broken(1, "a first connect goes on, and nobody waits for it")
    waiting = 0
    for process in world.kernel.processes:
        pending = process.pending
        if not isinstance(pending, Blocked) or pending.about is None:
            continue
        if pending.ready() or world.kernel.now >= pending.due:
            continue
        if pending.about.outcome is not None:
            raise Broken(4, f"{process.name} was not woken by the end of its flight")
        if all(pending.about is not known.lifecycle.flight for known in world.connections):
            raise Broken(4, f"{process.name} waits for a flight that nobody flies")
        waiting += pending.about is flight
    if flight is not None and len(flight.waiters) > waiting + _ripe(world, flight):
        raise Broken(4, "a waiter that has gone is still to be woken")
    if state is State.ACTIVE:
        if not connection.lifecycle.validated or not connection.lifecycle.has_channel:
            raise Broken(7, "ACTIVE without a validated channel")
        if not connection.leases and not world.unread:
            raise Broken(12, "ACTIVE and held by nobody")
    if connection.handler is not world.handlers[connection]:
        raise Broken(6, "the handler was exchanged")


def _awaited(world: World, flight: Any) -> bool:
    """Does anybody besides its leader wait for it?"""
    pending = [actor.process.pending for actor in world.actors]
    return any(getattr(each, "about", None) is flight for each in pending)


def in_line(pool: Any, flight: Any, slack: float = 0.0) -> bool:
    """Does a timer, or whoever leaves the line, launch it?"""
    put_off = flight.put_off and flight.not_before >= pool.seams.clock() - slack - 1e-6
    return put_off or any(flight in line.waiting for line in pool.admission.lines.values())


def check_lines(pool: Any, slack: float = 0.0) -> None:
    """Laws 4 and 9: who stands in line has his turn, or the end of his budget, in time."""
    now = pool.seams.clock() - slack - 1e-6
    for line in pool.admission.lines.values():
        if any(flight.outcome is not None for flight in (*line.inside, *line.waiting)):
            raise Broken(4, "a flight that is over has a place in line")
        if not line.inside or (line.waiting and len(line.inside) < line.most):
            raise Broken(4, "a turn was lost")
        if line.waiting and line.due < now:
            raise Broken(4, "nobody looks at those in line")
        if any(flight.deadline + ONE_MORE < now for flight in line.waiting):
            raise Broken(9, "a flight stands in line though its budget is spent")
        if len(line.inside) > line.most:
            raise Broken(2, f"{len(line.inside)} knock at one address, {line.most} may")


def _ripe(world: World, flight: Any) -> int:
    """Waiters whose own time is over, but who have not run yet."""
    return sum(
        isinstance(p.pending, Blocked)
        and p.pending.about is flight
        and (bool(p.pending.ready()) or world.kernel.now >= p.pending.due)
        for p in world.kernel.processes
    )


def _wires(connection: Any) -> list[Any]:
    flight, binding = connection.lifecycle.flight, connection.lifecycle.binding
    wires = list(connection.lifecycle.draining)
    if binding is not None:
        wires.append(binding.wire)
    if flight is not None:
        wires.extend(wire for wire in (flight.candidate, flight.standby) if wire is not None)
    return wires


def _open_of(wires: list[Any]) -> list[Any]:
    """Those whose channel is open (asyncio drops a channel as it closes it)."""
    return [wire for wire in wires if wire.channel is not GONE and not wire.channel.closed]


def _wire_of(world: World, channel: Channel) -> Any:
    for connection in world.connections:
        for wire in _wires(connection):
            if wire.channel is channel:
                return wire
    return None


def check_channels(world: World, slack: float = 0.0) -> None:
    """Law 7: every channel is candidate, current, draining or closed, and known to somebody."""
    for channel in world.channels:
        if channel.closed or channel in world.inherited:
            continue
        wire = _wire_of(world, channel)
        if wire is None:
            raise Broken(7, f"channel {channel.number} is open and nobody knows it")
        if wire.state is WireState.CLOSED:
            raise Broken(7, f"channel {channel.number} counts as closed and is open")
        if wire.in_flight != channel.rpcs:
            raise Broken(
                7, f"channel {channel.number} runs {channel.rpcs} RPCs, counted {wire.in_flight}"
            )
        if wire.state is WireState.DRAINING and not wire.in_flight:
            raise Broken(7, f"channel {channel.number} has drained and is open")
    _check_drains(world, slack)
    for connection in world.connections:
        if connection.state is State.CLOSED and _open_of(_wires(connection)):
            raise Broken(3, "a channel of a closed connection is open")


def _check_drains(world: World, slack: float) -> None:
    """Law 7: ``drain_timeout`` is the most that a retired channel lives."""
    timeout, now = world.pool.policy.drain_timeout, world.kernel.now - slack
    if timeout is None:
        return
    for connection in world.connections:
        for wire in _open_of(connection.lifecycle.draining):
            since = world.watch.draining.get(wire.channel.number, now)
            if now > since + timeout + 1e-6:
                raise Broken(7, f"channel {wire.channel.number} drains after drain_timeout")


def check_leases(world: World) -> None:
    """Law 12: whoever holds a connection is known to, and nobody else is."""
    if world.unread or world.watch.orphans:
        return
    busy = [actor for actor in world.actors if actor.busy]
    for actor in world.actors:
        if not actor.holds or actor.busy:
            continue
        connection = actor.face.connection
        if connection.state is not State.CLOSED and actor.lease not in connection.leases.held:
            raise Broken(12, f"the lease of {actor.name} was lost")
    if busy:
        return
    holders = {actor.lease for actor in world.actors if actor.holds}
    for connection in world.connections:
        if connection.state is State.CLOSED:
            continue
        if any(key not in holders for key in connection.leases.held):
            raise Broken(12, "a lease outlives its client")
        if connection.dedicated and not connection.leases and connection.lifecycle.flight is None:
            raise Broken(12, "a dedicated connection outlives its client")


def check_records(world: World, connection: Any, *, complete: bool) -> None:
    """Law 8: exactly one record a change, gap-free, in order."""
    steps = world.watch.moved.get(connection, [])
    records = [record for record in world.records if record.connection_id == connection.id]
    start = world.watch.checked.get(connection.id, 0)
    if len(records) > len(steps) or (complete and len(records) < len(steps)):
        raise Broken(8, f"{len(steps)} changes, {len(records)} records")
    for at in range(start, len(records)):
        record = records[at]
        told = (record.trigger, record.source, record.dest)
        if record.seq != at + 1:
            raise Broken(8, f"record {at + 1} has seq {record.seq}")
        if told != steps[at]:
            raise Broken(8, f"change {steps[at]} is on record as {told}")
    world.watch.checked[connection.id] = len(records)
    if complete and steps and steps[-1][2] != connection.state.value:
        raise Broken(8, f"the last record says {steps[-1][2]}, the state is {connection.state}")
