"""The lifecycle of a connection: the model that ``transitions`` moves by the table.

Everything in it changes under the connection's mutex, and nothing here waits: ``step`` decides and
returns what is to be done. Every ``guard_*`` and ``action_*`` is called by a row of the table; a
row that names another one fails at import.
"""

from __future__ import annotations

import threading
import uuid
from collections.abc import Callable
from dataclasses import dataclass, field
from operator import attrgetter
from typing import Any

from ..audit.stream import Audit, Emission
from ..config import ConnectionConfig
from ..errors import Failure, FailureSummary, LifecycleError, summarize
from ..fork import leak
from ..policy import LifecyclePolicy
from ..table import REFUSED, Row, State, Trigger
from . import mutex
from .facts import Facts, Seams
from .flight import FIRST_SLICE, Flight, FlightKind, Outage, Outcome
from .leases import Leases
from .machine import check_names, fire
from .recording import record_creation, record_step, record_wait
from .strategies import AnyLocator, Broken, ConnectionStrategy, Dispose
from .wire import Binding, Rpc, Wire, WireState


@dataclass(slots=True)
class StepResult:
    """What is left to do once the mutex is free again. Nothing in it waits.

    Whoever is interrupted while he does it leaves it to somebody else, who begins anew: so
    nothing in it does harm if it is done twice.
    """

    #: the step has happened, whether or not it moved anything
    decided: bool = False
    moved: bool = False
    #: its record
    emission: Emission | None = None
    #: a flight that somebody has to fly now, and the one that is over
    launch: Flight | None = None
    ended: Flight | None = None
    #: wake-up calls of the waiters of a flight that has ended
    wakes: list[Callable[[], None]] = field(default_factory=list)
    #: channels out of service: to be closed once nothing runs on them, or cut after a while
    retired: list[Wire] = field(default_factory=list)
    #: channels to close now, whatever runs on them
    closing: list[Wire] = field(default_factory=list)
    #: what the strategy wants to be released, as the connection is closed
    locator: AnyLocator | None = None

    def clear(self) -> None:
        """As if nothing had been decided."""
        StepResult.__init__(self)


_NOTHING = StepResult()

#: Channels that one outage may cost before attempts go on with the channel they have. Those of a
#: slower pace come on top (see LifecyclePolicy.pace), five in the first five minutes.
CHANNELS_PER_OUTAGE = 6

_OUTCOMES = {
    Trigger.PROBE_PASSED: Outcome.LANDED,
    Trigger.RECOVERED: Outcome.LANDED,
    Trigger.STAND_DOWN: Outcome.LANDED,
    Trigger.PROBE_FAILED: Outcome.SUPERSEDED,
    Trigger.FAIL: Outcome.SUPERSEDED,
    Trigger.GIVE_UP: Outcome.GAVE_UP,
    Trigger.ABANDONED: Outcome.ABANDONED,
}


def _snapshot(life: Lifecycle) -> Callable[[], None]:
    """What a step may change, as it was before: a step happens as a whole, or not at all.

    Channels are not in it: retiring, promoting and demoting one twice is doing it once. Lists are
    replaced by steps, never changed in place. Returns what puts it all back.
    """
    saved: list[tuple[object, tuple[str, ...], tuple[object, ...]]] = []
    for part, (names, read) in zip((life, life.flight, life.outage), _PARTS, strict=True):
        if part is not None:
            saved.append((part, names, read(part)))

    def restore() -> None:
        for part, names, values in saved:
            for name, value in zip(names, values, strict=True):
                setattr(part, name, value)

    return restore


def _guard(path: str) -> Callable[[Lifecycle, Facts], bool]:
    """A guard that asks what stands at ``path``, and nothing of the facts."""
    read = attrgetter(path)
    return lambda self, facts: bool(read(self))


@dataclass(slots=True, eq=False, repr=False)
class Lifecycle:
    """State, channels, flight and outage of one connection. Written only inside a step."""

    config: ConnectionConfig
    strategy: ConnectionStrategy
    policy: LifecyclePolicy
    audit: Audit
    seams: Seams
    leases: Leases
    dedicated: bool = field(kw_only=True)
    id: str = field(default_factory=lambda: uuid.uuid4().hex[:16])
    state: State = State.IDLE
    seq: int = 0
    generation: int = 0
    binding: Binding | None = None
    #: version of the topology that its steps last followed, if it follows one
    topology: int | None = None
    flight: Flight | None = None
    flights: int = 0
    outage: Outage | None = None
    validated: bool = False
    #: its clients had a good connection before this one was made (or before a fork)
    was_good: bool = False
    suspect: bool = False
    draining: list[Wire] = field(default_factory=list)
    created_at: float = field(init=False)
    state_since: float = field(init=False)
    last_used_at: float = field(init=False)
    last_rpc_ended: float = field(init=False)
    last_success: float = field(init=False)
    last_failure: FailureSummary | None = None
    recoveries: int = 0
    failures: int = 0
    #: the trigger that closed it
    closed_by: Trigger | None = None
    #: ``idle_threshold`` as a number
    idle_limit: float = field(init=False)
    #: the strategy has a ``needs_probe`` of its own: it is asked each time
    strict: bool = field(init=False)
    #: where in the jitter window of ``max_age`` this connection stands
    unit: float = field(init=False)
    #: is there an entry on the schedule that will look whether it has lingered?
    expiry_planned: bool = False
    #: ... one that looks at the age of this generation's channel (0: none)?
    recycle_planned: int = 0
    #: ... and one that asks the locator anew?
    refresh_planned: bool = False
    #: the row that the step under way takes, and what that step leaves to do
    row: Row | None = None
    result: StepResult = field(init=False)
    lock: threading.RLock = field(init=False)
    section: mutex.Section = field(init=False)
    #: a slot: a strategy or a locator may keep weakly what it is given
    __weakref__: Any = field(init=False)

    def __post_init__(self) -> None:
        now = self.created_at = self.state_since = self.seams.clock()
        self.last_used_at = self.last_rpc_ended = self.last_success = now
        threshold = self.policy.idle_threshold
        self.idle_limit = float("inf") if threshold is None else threshold
        self.strict = type(self.strategy).needs_probe is not ConnectionStrategy.needs_probe
        if self.strict:
            self.idle_limit = -1.0
        self.unit = self.seams.chance()
        self.result = _NOTHING
        self.renew_mutex()

    def renew_mutex(self) -> None:
        """A new one: in a forked child another thread of the parent may have held it."""
        self.lock = threading.RLock()
        self.section = mutex.Section(self.lock)

    @property
    def address(self) -> str:
        """The address in use, else the configured one."""
        binding = self.binding
        return binding.wire.address if binding is not None else self.config.address

    # -- what guards and strategies ask ----------------------------------------------------

    @property
    def has_channel(self) -> bool:
        """Is there a current channel that takes RPCs?"""
        return self.binding is not None and self.binding.wire.state is WireState.CURRENT

    @property
    def in_flight(self) -> int:
        """RPCs running on any channel of this connection."""
        binding, draining = self.binding, self.draining
        running = sum(wire.in_flight for wire in draining) if draining else 0
        if binding is not None and binding.wire not in draining:
            running += len(binding.wire.running)  # in both places from its failure to the swap
        return running

    def generation_of(self, binding: Binding) -> int:
        """Generation of an RPC on ``binding``; -1, older than any, if a give_up replaced its
        channel: the channel that was kept then has the same number."""
        mine = self.binding
        if mine is not None and mine.wire is not binding.wire:
            return -1 if binding.generation == self.generation else binding.generation
        return binding.generation

    def idle_for(self, now: float) -> float:
        """Seconds since the last RPC or checkout; 0 while an RPC runs."""
        if self.binding is not None and self.binding.wire.in_flight > 0:
            return 0.0
        return max(0.0, now - self.last_used_at)

    def idle_too_long(self, now: float) -> bool:
        """Longer than ``idle_threshold``?"""
        threshold = self.policy.idle_threshold
        return threshold is not None and self.idle_for(now) > threshold

    def stale(self, now: float) -> bool:
        """Used longer ago than ``idle_limit``: is the strategy to be asked before it is used?"""
        return self.strict or self.idle_too_long(now)

    def channel_age(self, now: float) -> float:
        """Seconds since the current channel was opened."""
        return now - self.binding.wire.opened_at if self.binding is not None else 0.0

    def trouble(self, now: float) -> dict[str, float | int | None]:
        """How old its outage is (seconds; None: there is none), and how many calls wait."""
        outage, flight = self.outage, self.flight
        return {
            "outage": None if outage is None else max(0.0, now - outage.began),
            "waiting": 0 if flight is None else flight.waiting,
        }

    def linger_due(self) -> float | None:
        """When an unused connection may be closed (monotonic seconds); None: not as it is."""
        linger = self.policy.linger
        if linger is None or self.leases.held or self.flight is not None or self.in_flight:
            return None
        return max(self.leases.unheld_since, self.last_rpc_ended) + linger

    guard_held, guard_dedicated = _guard("leases.held"), _guard("dedicated")
    guard_validated, guard_suspect = _guard("validated"), _guard("suspect")
    guard_has_channel = _guard("has_channel")

    def guard_same_flight(self, facts: Facts) -> bool:
        return self.flight is not None and self.flight.number == facts.flight

    def guard_same_generation(self, facts: Facts) -> bool:
        return facts.generation is None or facts.generation == self.generation

    def guard_silent_since(self, facts: Facts) -> bool:
        return self.last_success < facts.started

    def guard_budget_left(self, facts: Facts) -> bool:
        return self.flight is not None and facts.now < self.flight.deadline

    def guard_permanent(self, facts: Facts) -> bool:
        return facts.failure is not None and facts.failure.kind is Failure.PERMANENT

    def guard_may_stand_down(self, facts: Facts) -> bool:
        return facts.unchanged or (self.flight is not None and not self.flight.mandatory)

    # -- RPCs ------------------------------------------------------------------------------

    def enter(self, rpc: Rpc, now: float, *, trusted: bool = False) -> Binding | None:
        """Count ``rpc`` in on the current channel; None if the caller must acquire or wait.

        ``trusted``: the caller has just seen a flight land, however short ``idle_threshold`` is.
        """
        binding = self.binding
        if binding is None:
            return None
        if not trusted and now - self.last_used_at > self.idle_limit and self.stale(now):
            return None
        state = self.state
        if state is State.ACTIVE or (state is State.IDLE and self.validated):
            self.last_used_at = now
            return binding if binding.wire.enter(rpc) else None
        if state is State.RECOVERING:
            flight = self.flight
            if flight is not None and not flight.mandatory and binding.wire.enter(rpc):
                self.last_used_at = now
                return binding
        return None

    def succeeded(self, binding: Binding, now: float) -> bool:
        """An RPC on ``binding`` was answered. True if the table wants to hear of it."""
        generation = self.ended(binding, now)
        if generation != self.generation:
            return False
        self.last_success = now
        if self.outage is not None:
            locks = mutex.here.locks
            with self.lock:
                locks.append(self.lock)
                if generation == self.generation and self.flight is None:
                    self.outage = None
                locks.pop()
        return self.state is State.IDLE and bool(self.leases.held)

    def ended(self, binding: Binding, now: float) -> int:
        """An RPC on ``binding`` is over: its generation."""
        self.last_used_at = self.last_rpc_ended = now
        return self.generation_of(binding)

    def drained(self, wire: Wire) -> None:
        """A retired channel is closed: forget it."""
        # The RPC that ends last and the end of drain_timeout may meet here.
        locks = mutex.here.locks
        with self.lock:
            locks.append(self.lock)
            self.draining = [each for each in self.draining if each is not wire]
            locks.pop()

    # -- flights ---------------------------------------------------------------------------

    def join(
        self, flight: Flight, wake: Callable[[], None], until: float, *, leads: bool = False
    ) -> bool:
        """Wait with ``flight``: call ``wake`` once it has ended. False if it has already."""
        with self.lock, self.section:
            under_way = flight.outcome is None
            if under_way:
                if leads:
                    flight.nudge = wake
                flight.waiters.append(wake)
                flight.patience = max(flight.patience, until)
            return under_way

    def leave(self, flight: Flight, wake: Callable[[], None]) -> bool:
        """Stop waiting. True if the flight has nobody left who waits for it, its leader aside."""
        with self.lock, self.section:
            if wake in flight.waiters:
                flight.waiters.remove(wake)
            return flight.outcome is None and not flight.waiting

    def lead(self, flight: Flight, leader: object) -> bool:
        """Make ``leader`` lead ``flight``. False if it is over, or led by somebody else."""
        with self.lock, self.section:
            if flight.leader is not None or flight.outcome is not None:
                return False
            flight.leader = leader
            return True

    def offer(self, flight: Flight, wire: Wire) -> bool:
        """Make ``wire`` the flight's candidate. False if the flight is over: close it."""
        with self.lock, self.section:
            if self.flight is not flight:
                return False
            if self.outage is not None:
                self.outage.channels += 1
            flight.refresh = False
            flight.candidate = wire
            return True

    def withdraw(self, flight: Flight, *, standby: bool = False) -> StepResult:
        """Take the flight's candidate, or its standby, away. Returns what is to be closed."""
        with self.lock, self.section:
            self.result = StepResult()
            if standby:
                wire, flight.standby = flight.standby, None
            else:
                wire, flight.candidate = flight.candidate, None
            if wire is not None and self.flight is flight:
                self._retire(wire)
            return self._left()

    def _left(self) -> StepResult:
        """What the change under way leaves to do."""
        result, self.result = self.result, _NOTHING
        return result

    def recall(self) -> StepResult:
        """Take a channel away that still connects: the leader of its flight makes another one."""
        mutex.check_outside()
        with self.lock, self.section:
            self.result = StepResult()
            flight = self.flight
            if flight is not None and flight.candidate is not None:
                self._take_away(flight.candidate)
                if flight.candidate.recalled:
                    flight.candidate = None
            return self._left()

    def redirect(self) -> StepResult:
        """The target has moved: take away what a flight asks elsewhere. Its leader starts anew.

        Twice does no harm, and whoever was interrupted has to do it again.
        """
        mutex.check_outside()
        with self.lock, self.section:
            self.result = StepResult()
            flight = self.flight
            wires = (flight.candidate, flight.standby) if flight is not None else ()
            for wire in wires:
                if wire is not None and self.strategy.misdirected(wire.address):
                    assert flight is not None
                    self._take_away(wire)
                    flight.not_before = flight.began
                    if flight.nudge is not None:
                        self.result.wakes.append(flight.nudge)
            return self._left()

    def _take_away(self, wire: Wire) -> None:
        if not wire.validated:  # else it has answered, and its leader is about to say so
            wire.recalled = True
            self._retire(wire)

    def vouch(self, wire: Wire) -> bool:
        """The channel that a flight asked has answered. False if it was taken away meanwhile."""
        with self.lock, self.section:
            wire.validated = True
            return not wire.recalled

    # -- the step --------------------------------------------------------------------------

    def step(self, trigger: Trigger, facts: Facts, result: StepResult | None = None) -> StepResult:
        """Decide, and leave what is to be done in ``result``. Nothing here waits.

        It happens as a whole or not at all, whatever is raised in the middle of it: a signal
        handler may do that at any bytecode. Raises Reentered if this thread is inside a critical
        section of any connection (a finalizer ran there), ConnectionClosed for a failure of a
        closed connection.
        """
        locks = mutex.here.locks
        if locks and mutex.inside():
            raise mutex.Reentered
        result = StepResult() if result is None else result
        with self.lock:
            locks.append(self.lock)
            try:
                self._step(trigger, facts, result)
            finally:
                locks.pop()
        return result

    def claim(self, client: object | None, facts: Facts, result: StepResult) -> bool:
        """Lease an IDLE connection that needs no probe, and step it: ``acquire``, in one.

        False if that is not how it is: then nothing has happened. Whoever has to wait needs a lease
        of the call's own first (see Checkout).
        """
        locks = mutex.here.locks
        if self.strict or self.state is not State.IDLE or (locks and mutex.inside()):
            return False
        with self.lock:
            locks.append(self.lock)
            try:
                if self.leases.held or self.state is not State.IDLE:
                    return False
                if self.strategy.needs_probe(self, facts):
                    return False
                try:
                    self.leases.add(client)
                    self._step(Trigger.ACQUIRE, facts, result)
                except TypeError:
                    if result.decided:
                        raise
                    return False  # no client: the long way says what is wrong with it
                finally:
                    if not result.decided:
                        self.leases.drop(client)
                self.last_used_at = facts.now
                return True
            finally:
                locks.pop()

    def _step(self, trigger: Trigger, facts: Facts, result: StepResult) -> None:
        restore = _snapshot(self)
        try:
            self._decide(trigger, facts, result)
            if result.emission is not None:
                self._tell(result.emission)
        except BaseException as error:
            if not result.decided:
                restore()
                result.clear()
                if isinstance(error, LifecycleError):
                    raise  # the answer of the table or of a strategy
                try:  # what came from outside does not come again
                    self._decide(trigger, facts, result)
                except BaseException:
                    restore()
                    result.clear()
                    raise
            self._tell(result.emission)
            raise

    def _tell(self, emission: Emission | None) -> None:
        if emission is not None:
            self.audit.queue(emission)  # no reader takes one twice

    def _decide(self, trigger: Trigger, facts: Facts, result: StepResult) -> None:
        source, self.result = self.state, result
        refused = (source, trigger) in REFUSED
        flight = self.flight
        moved = fire(self, trigger, facts)
        if moved:
            if trigger is Trigger.FORKED:
                self.id, self.seq = uuid.uuid4().hex[:16], 0
            self.seq += 1
            heard = facts.located.version if facts.located is not None else None
            if trigger is Trigger.REROUTE:
                heard = self.strategy.version(self)
            self.topology = self.topology if heard is None else heard
        elif trigger is Trigger.FAIL:
            self._press_optional(facts)
        elif trigger is Trigger.DOUBT and source is State.IDLE:
            doubtful = self.guard_same_generation(facts) and self.guard_silent_since(facts)
            self.suspect = self.suspect or doubtful
        if (moved or refused) and self.audit.active():
            result.emission = record_step(
                self, source, trigger, facts, self.flight or flight, moved
            )
        if moved:
            self.state_since = facts.now
        result.moved = moved
        result.decided = True
        self.result = _NOTHING

    def _press_optional(self, facts: Facts) -> None:
        """A failure during reroute or recycle: the flight becomes mandatory."""
        flight = self.flight
        if (
            self.state is State.RECOVERING
            and flight is not None
            and not flight.mandatory
            and self.guard_same_generation(facts)
            and self.strategy.may_recover(self, facts)
        ):
            self.make_mandatory(flight, facts)

    def entered(self, facts: Facts) -> None:
        """PROBING, RECOVERING or CLOSED was entered: ask the strategy for the effect."""
        if self.state is State.CLOSED:
            self._shut(facts)
            return
        flight = self.flight
        assert flight is not None, "the row's action has begun it"
        ask = self.strategy.on_recovering
        if self.state is State.PROBING:
            ask = self.strategy.on_probing
        try:
            flight.plan = ask(self, facts)
        except Exception as error:  # a strategy's fault fails the flight, not the engine
            flight.plan = Broken(error)

    def _shut(self, facts: Facts) -> None:
        self.closed_by = self.row.trigger if self.row is not None else None
        flight = self.flight
        wires = list(self.draining)
        if self.binding is not None:
            wires.append(self.binding.wire)
        if flight is not None:
            if flight.candidate is not None:
                wires.append(flight.candidate)
            flight.candidate = None
            self._end(Outcome.CLOSED)
        self.draining = []
        self.result.closing = wires
        try:
            effect = self.strategy.on_closed(self, facts)
        except Exception as error:  # whoever waits has to wake, whatever the strategy does
            self.last_failure = summarize(error)
            return
        if isinstance(effect, Dispose):
            self.result.locator = effect.locator

    def report_creation(self) -> None:
        """Put on record (``connection.created``, seq 0) that it is pooled: before all else."""
        self._tell(record_creation(self))

    def report_wait(self, news: str, reason: str, code: str | None, seconds: float) -> None:
        """Put on record that calls wait for a collection, or waited ``seconds`` for it."""
        with self.lock, self.section:
            self._tell(record_wait(self, news, reason, code, seconds))
        self.audit.serve()

    def suffer(self, *, waited: int = 0, failed: int = 0) -> bool:
        """Count a call that waits in its outage, or fails of it. False if there is none."""
        with self.lock, self.section:
            outage = self.outage
            if outage is not None:
                outage.waited += waited
                outage.failed += failed
            return outage is not None

    def connecting(self) -> bool:
        """Is a first connect in flight that may fail at the first refusal?"""
        flight = self.flight
        first = flight is not None and flight.kind is FlightKind.CONNECT and not self.validated
        return first and not self.was_good

    def budget(self, now: float) -> float:
        """How long a caller who comes now waits for a recovery (seconds).

        After a give_up, or just before it, only a share of the budget, or what a probe and an
        attempt may take.
        """
        outage, whole = self.outage, self.policy.recovery_budget
        if outage is None:
            return whole
        spent = outage.given_up
        if outage.budget_from is not None:
            spent = spent or now > outage.budget_from + whole - FIRST_SLICE
        one_try = self.policy.probe_timeout + FIRST_SLICE
        return min(whole, max(whole * self.policy.give_up_share, one_try)) if spent else whole

    # -- actions ---------------------------------------------------------------------------

    def action_begin_probe(self, row: Row, facts: Facts) -> None:
        kind = FlightKind.PROBE if self.has_channel else FlightKind.CONNECT
        limit = self.policy.connect_timeout
        if kind is FlightKind.PROBE:
            limit = self.policy.probe_timeout
        flight = self._begin(kind, facts.now, facts.now + limit)
        # The caller joins a moment later; its leader may be on its way by then, or refused.
        flight.hope = max(flight.hope, facts.hope)
        if facts.until is not None:
            flight.patience = max(flight.patience, facts.until)

    def action_begin_recovery(self, row: Row, facts: Facts) -> None:
        now, budget = facts.now, self.policy.recovery_budget
        flight = self._begin(FlightKind.RECOVERY, now, now + budget)
        # Without a channel (its last recovery was abandoned) nothing serves while it moves.
        failed = row.trigger in (Trigger.FAIL, Trigger.PROBE_FAILED)
        flight.mandatory = failed or not self.has_channel
        if flight.mandatory:
            self.make_mandatory(flight, facts)

    def make_mandatory(self, flight: Flight, facts: Facts) -> None:
        """The current channel failed: the flight is now all that stands between it and RPCs."""
        flight.mandatory = True
        self.failures += 1
        self.last_failure = flight.failure = facts.failure or self.last_failure
        outage = self._outage(facts.now)
        if outage.budget_from is None:
            outage.budget_from = facts.now
        flight.deadline = outage.budget_from + self.policy.recovery_budget
        if outage.flaps:
            age = facts.now - outage.began
            flight.not_before = facts.now + self.policy.gap(outage.flaps, age, self.seams.chance)
        binding = self.binding
        assert binding is not None, "a validated connection has a channel, if only a closed one"
        if flight.candidate is not None:
            self._retire(binding.wire)
        elif binding.identifier is None or outage.channels >= CHANNELS_PER_OUTAGE:
            # Never validated (kept by a give_up), or channels are spent: validate this one anew.
            binding.wire.demote()
            flight.candidate = binding.wire
        elif self.strategy.keeps_current:
            binding.wire.demote()
            flight.standby = binding.wire
        else:
            self._retire(binding.wire)

    def action_bind(self, row: Row, facts: Facts) -> None:
        """Swap the validated channel in. One reference changes: RPCs see all of it or nothing."""
        self.suspect = False
        self.last_used_at = max(self.last_used_at, facts.now)
        if facts.wire is not None:
            if self.binding is not None and self.binding.wire is not facts.wire:
                self._retire(self.binding.wire)
            self.generation += 1
            facts.wire.promote()
            self.binding = Binding(self.generation, facts.wire, facts.identifier)
            self.strategy.committed(self, facts.located)
            if self.flight is not None and self.flight.candidate is facts.wire:
                self.flight.candidate = None
        self.validated = True
        if self.outage is not None:
            self.outage.given_up = False
        if row.trigger is Trigger.RECOVERED:
            self.recoveries += 1
            if self.outage is not None:
                self.outage.landings += 1

    def action_count_attempt(self, row: Row, facts: Facts) -> None:
        flight = self.flight
        assert flight is not None, "its rows ask for same_flight"
        flight.attempts += 1
        self.last_failure = flight.failure = facts.failure or flight.failure
        if self.outage is not None:
            self.outage.attempts += 1

    def action_keep_candidate(self, row: Row, facts: Facts) -> None:
        """A channel that goes on reconnecting by itself serves better than none."""
        flight = self.flight
        if flight is None or flight.candidate is None:
            self.action_keep_standby(row, facts)
            return
        if not flight.mandatory:
            self.action_drop_candidate(row, facts)
            return
        wire, flight.candidate = flight.candidate, None
        wire.promote()
        self.binding = Binding(self.generation, wire, None)

    def action_drop_candidate(self, row: Row, facts: Facts) -> None:
        flight = self.flight
        if flight is not None and flight.candidate is not None:
            self._retire(flight.candidate)
            flight.candidate = None

    def action_keep_standby(self, row: Row, facts: Facts) -> None:
        """The channel that failed goes on serving: it answers, or there is no other."""
        flight = self.flight
        if flight is not None and flight.standby is not None:
            flight.standby.promote()
            flight.standby = None

    def action_become_suspect(self, row: Row, facts: Facts) -> None:
        self.suspect = True
        if self.outage is not None:
            self.outage.budget_from = None
        if row.trigger is Trigger.GIVE_UP and self.outage is not None:
            self.outage.given_up = True

    def action_clear_suspicion(self, row: Row, facts: Facts) -> None:
        self.suspect = False

    def action_end_flight(self, row: Row, facts: Facts) -> None:
        flight = self.flight
        if flight is None:
            return
        flight.failure = facts.failure or flight.failure
        failed = row.trigger is Trigger.PROBE_FAILED and row.dest is State.CLOSED
        self._end(Outcome.FAILED if failed else _OUTCOMES[row.trigger])

    def action_forget_parent(self, row: Row, facts: Facts) -> None:
        """The parent's sockets belong to the parent: keep the objects, touch nothing."""
        flight, self.flight = self.flight, None
        leak(self.binding, self.draining, flight)
        self.binding = None
        self.draining = []
        self.outage = None
        self.was_good = self.was_good or self.validated
        self.validated = False
        self.suspect = False

    # -- helpers ---------------------------------------------------------------------------

    def _begin(self, kind: FlightKind, now: float, deadline: float) -> Flight:
        self.flights += 1
        self.flight = Flight(self.flights, kind, now, deadline)
        self.result.launch = self.flight
        return self.flight

    def _end(self, outcome: Outcome) -> None:
        flight, self.flight = self.flight, None
        assert flight is not None, "whoever ends a flight has seen it"
        flight.outcome, self.result.ended = outcome, flight
        self.last_failure = flight.failure or self.last_failure
        self.result.wakes.extend(flight.waiters)
        flight.waiters = []
        if flight.candidate is not None:
            self._retire(flight.candidate)
            flight.candidate = None

    def _outage(self, now: float) -> Outage:
        """The outage that this failure belongs to: the one under way, or a new one."""
        if self.outage is None:
            self.outage = Outage(now, self.generation)
        elif self.generation > self.outage.generation:
            self.outage.generation = self.generation
            self.outage.flaps += 1
        return self.outage

    def _retire(self, wire: Wire) -> None:
        """Close the channel once nothing runs on it any more: now, or when it has drained."""
        running = wire.retire()
        self.result.retired.append(wire)
        if running and wire not in self.draining:
            self.draining = [*self.draining, wire]


check_names(Lifecycle, ConnectionStrategy)

#: what was there before and is not stepped; the row and the result are a step's own
_NOT_STEPPED = (
    *("audit", "config", "created_at", "idle_limit", "leases", "lock", "policy", "result", "row"),
    *("expiry_planned", "recycle_planned", "refresh_planned", "seams", "section", "strict"),
    "__weakref__",
)
_PARTS: tuple[tuple[tuple[str, ...], Callable[[Any], tuple[Any, ...]]], ...] = tuple(
    (names, attrgetter(*names))
    for names in (
        tuple(name for name in Lifecycle.__slots__ if name not in _NOT_STEPPED),
        Flight.__slots__,
        Outage.__slots__,
    )
)
