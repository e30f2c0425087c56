"""A managed connection: its public face, its leases, and the step that moves its machine."""

from __future__ import annotations

import uuid
import weakref
from collections.abc import Callable
from operator import attrgetter
from typing import TYPE_CHECKING, Any

from ..errors import LifecycleError
from ..table import REFUSED, State, Trigger
from .facts import Facts, Seams, StepResult
from .flight import Flight, FlightKind, Outage, Outcome
from .kept import kept
from .leases import Leases
from .ledger import Ledger
from .machine import fire
from .mutex import check_outside
from .recording import record_creation, record_step, record_wait
from .strategies import Broken, ConnectionStrategy, Dispose
from .wire import Binding, Rpc, Wire

if TYPE_CHECKING:
    from ..audit.stream import Audit, Emission
    from ..config import ConnectionConfig
    from ..policy import LifecyclePolicy
    from .registry import Registry


_ACTIVE = State.ACTIVE


class _Snapshot:
    """What a step may change, as it was before: a step happens as a whole, or not at all.

    Channels are not in it: retiring, promoting and demoting one twice is doing it once. Lists are
    replaced by steps, never changed in place.
    """

    __slots__ = ("_saved",)

    def __init__(self, connection: ManagedConnection) -> None:
        parts = (connection, connection.flight, connection.outage)
        self._saved = [
            (part, names, read(part))
            for part, (names, read) in zip(parts, _PARTS, strict=True)
            if part is not None
        ]

    def restore(self) -> None:
        for part, names, values in self._saved:
            for name, value in zip(names, values, strict=True):
                setattr(part, name, value)


class ManagedConnection(Leases):
    """One pooled connection. Everything about it changes only inside ``step``.

    Public and read-only for users: ``handler``, ``config``, ``strategy``, ``state``,
    ``generation``, ``created_at`` and ``last_used_at`` (``time.monotonic()`` seconds),
    ``clients``, ``idle_time`` (seconds), ``has_clients``.
    """

    __slots__ = (
        "audit",
        "closed_by",
        "config",
        "created_at",
        "expiry_planned",
        "face",
        "handler",
        "id",
        "owner",
        "recycle_planned",
        "refresh_planned",
        "seq",
        "state_since",
    )

    def __init__(
        self,
        config: ConnectionConfig,
        strategy: ConnectionStrategy,
        policy: LifecyclePolicy,
        audit: Audit,
        seams: Seams,
        *,
        dedicated: bool,
        on_lost: Callable[[ManagedConnection], None],
    ) -> None:
        super().__init__(policy, seams, dedicated=dedicated, on_lost=on_lost)
        self.id = uuid.uuid4().hex[:16]
        self.config = config
        self.strategy = strategy
        if type(strategy).needs_probe is not ConnectionStrategy.needs_probe:
            self.strict, self.idle_limit = True, -1.0
        self.audit = audit
        self.handler: Any = None
        #: the permanent channel object that the handler was built with
        self.face: Any = None
        self.seq = 0
        self.created_at = self.state_since = self.last_used_at
        #: the trigger that closed it
        self.closed_by: Trigger | None = None
        #: whom a dedicated connection was made for
        self.owner: weakref.ref[object] | None = None
        #: is there an entry on the schedule that will look whether it has lingered?
        self.expiry_planned = False
        #: ... one that looks at the age of this generation's channel (0: none)?
        self.recycle_planned = 0
        #: ... and one that asks the locator anew?
        self.refresh_planned = False

    # -- public face -----------------------------------------------------------------------

    @property
    def address(self) -> str:
        """The address in use, else the configured one."""
        binding = self.binding
        return binding.wire.address if binding is not None else self.config.address

    @property
    def clients(self) -> frozenset[object]:
        """The live clients that hold this connection."""
        refs = [ref for ref in list(self.leases.values()) if ref is not None]
        return frozenset(client for client in (ref() for ref in refs) if client is not None)

    @property
    def has_clients(self) -> bool:
        """Does anybody hold it (anonymous leases count)?"""
        return bool(self.leases)

    @property
    def idle_time(self) -> float:
        """Seconds since the last RPC or checkout; 0 while an RPC runs."""
        return self.idle_for(self.seams.clock())

    def __repr__(self) -> str:
        return (
            f"<ManagedConnection {self.id} {self.address} {self.state} "
            f"generation={self.generation} clients={len(self.leases)}>"
        )

    # -- RPCs ------------------------------------------------------------------------------

    def enter(self, rpc: Rpc, now: float, *, trusted: bool = False) -> Binding | None:
        """Count ``rpc`` in on the current channel; None if the caller must acquire or wait.

        ``trusted``: the caller has just seen a flight land, however short ``idle_threshold`` is.
        """
        binding = self.binding
        if binding is None:
            return None
        late = now - self.last_used_at > self.idle_limit
        if late and not trusted and (self.strict or self.idle_too_long(now)):
            return None
        state = self.state
        if state is _ACTIVE or (state is State.IDLE and self.validated):
            self.last_used_at = now
            return binding if binding.wire.enter(rpc) else None
        if state is State.RECOVERING:
            flight = self.flight
            if flight is not None and not flight.mandatory and binding.wire.enter(rpc):
                self.last_used_at = now
                return binding
        return None

    def succeeded(self, generation: int, now: float) -> bool:
        """An RPC of ``generation`` was answered. True if the table wants to hear of it."""
        self.last_used_at = self.last_rpc_ended = now
        if generation != self.generation:
            return False
        self.last_success = now
        if self.outage is not None:
            with self._lock, self._section:
                if generation == self.generation and self.flight is None:
                    self.outage = None
        return self.state is State.IDLE and bool(self.leases)

    def ended(self, now: float) -> None:
        """An RPC ended in any other way."""
        self.last_used_at = self.last_rpc_ended = now

    def drained(self, wire: Wire) -> None:
        """A retired channel is closed: forget it."""
        # The RPC that ends last and the end of drain_timeout may meet here.
        with self._lock, self._section:
            self.draining = [each for each in self.draining if each is not wire]

    # -- flights ---------------------------------------------------------------------------

    def join(
        self, flight: Flight, wake: Callable[[], None], until: float, *, leads: bool = False
    ) -> bool:
        """Wait with ``flight``: call ``wake`` once it has ended. False if it has already."""
        with self._lock, self._section:
            if flight.outcome is not None:
                return False
            if leads:
                flight.nudge = wake
            flight.waiters.append(wake)
            flight.patience = max(flight.patience, until)
            return True

    def leave(self, flight: Flight, wake: Callable[[], None]) -> bool:
        """Stop waiting. True if the flight has nobody left who waits for it."""
        with self._lock, self._section:
            if wake in flight.waiters:
                flight.waiters.remove(wake)
            return flight.outcome is None and not flight.waiters

    def lead(self, flight: Flight, leader: object) -> bool:
        """Make ``leader`` lead ``flight``. False if it is over, or led by somebody else."""
        with self._lock, self._section:
            if flight.leader is not None or flight.outcome is not None:
                return False
            flight.leader = leader
            return True

    def offer(self, flight: Flight, wire: Wire) -> bool:
        """Make ``wire`` the flight's candidate. False if the flight is over: close it."""
        with self._lock, self._section:
            if self.flight is not flight:
                return False
            if self.outage is not None:
                self.outage.channels += 1
            flight.refresh = False
            flight.candidate = wire
            return True

    def withdraw(self, flight: Flight) -> StepResult:
        """Take the flight's candidate away. Returns what is to be closed, now or when drained."""
        with self._lock, self._section:
            self.result = StepResult()
            wire, flight.candidate = flight.candidate, None
            if wire is not None:
                self._retire(wire)
            return self.result

    def recall(self) -> StepResult:
        """Take a channel away that still connects: the leader of its flight makes another one."""
        check_outside()
        with self._lock, self._section:
            self.result = StepResult()
            flight = self.flight
            if flight is not None and flight.candidate is not None:
                self._take_away(flight.candidate)
                if flight.candidate.recalled:
                    flight.candidate = None
            return self.result

    def redirect(self) -> StepResult:
        """The target has moved: take away what a flight asks elsewhere. Its leader starts anew.

        Twice does no harm, and whoever was interrupted has to do it again.
        """
        check_outside()
        with self._lock, self._section:
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
            return self.result

    def _take_away(self, wire: Wire) -> None:
        if not wire.validated:  # else it has answered, and its leader is about to say so
            wire.recalled = True
            self._retire(wire)

    def vouch(self, wire: Wire) -> bool:
        """The channel that a flight asked has answered. False if it was taken away meanwhile."""
        with self._lock, self._section:
            wire.validated = True
            return not wire.recalled

    def drop_standby(self, flight: Flight) -> StepResult:
        """The channel that failed is of no use: retire it."""
        with self._lock, self._section:
            self.result = StepResult()
            wire, flight.standby = flight.standby, None
            if wire is not None and self.flight is flight:
                self._retire(wire)
            return self.result

    # -- the step --------------------------------------------------------------------------

    def step(self, trigger: Trigger, facts: Facts, result: StepResult | None = None) -> StepResult:
        """Decide, and leave what is to be done in ``result``. Nothing here waits.

        It happens as a whole or not at all, whatever is raised in the middle of it: a signal
        handler may do that at any bytecode. Raises Reentered if this thread is inside a critical
        section of any connection (a finalizer ran there), ConnectionClosed for a failure of a
        closed connection.
        """
        check_outside()
        result = StepResult() if result is None else result
        with self._lock, self._section:
            before = _Snapshot(self)
            try:
                self._decide(trigger, facts, result)
                self._tell(result.emission)
            except BaseException as error:
                if not result.decided:
                    before.restore()
                    result.clear()
                    if isinstance(error, LifecycleError):
                        raise  # the answer of the table or of a strategy
                    try:  # what came from outside does not come again
                        self._decide(trigger, facts, result)
                    except BaseException:
                        before.restore()
                        result.clear()
                        raise
                self._tell(result.emission)
                raise
        return result

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
        elif trigger is Trigger.FAIL:
            self._press_optional(facts)
        elif trigger is Trigger.DOUBT and source is State.IDLE:
            doubtful = self.guard_same_generation(facts) and self.guard_silent_since(facts)
            self.suspect = self.suspect or doubtful
        if moved or refused:
            result.emission = record_step(
                self, source, trigger, facts, self.flight or flight, moved
            )
        if moved:
            self.state_since = facts.now
        result.moved = moved
        result.decided = True

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
            self.last_error = kept(error)
            return
        if isinstance(effect, Dispose):
            self.result.locator = effect.locator

    def reset_after_fork(self) -> None:
        """In the child: the lock that another thread of the parent may have held is new."""
        self._renew_mutex()

    def enrol(self, registry: Registry) -> ManagedConnection:
        """Enter ``registry``; returns the one that was there first.

        The record of that (``connection.created``, seq 0) comes before any other of this one.
        """
        with self._lock, self._section:
            pooled = registry.add(self)
            if pooled is self:
                self._tell(record_creation(self))
            return pooled

    def report_wait(self, news: str, reason: str, code: str | None, seconds: float) -> None:
        """Put on record that calls wait for a collection, or waited ``seconds`` for it."""
        with self._lock, self._section:
            self._tell(record_wait(self, news, reason, code, seconds))
        self.audit.serve()

    def connecting(self) -> bool:
        """Is a first connect in flight that may fail at the first refusal?"""
        flight = self.flight
        first = flight is not None and flight.kind is FlightKind.CONNECT and not self.validated
        return first and not self.was_good


#: Leases are no business of a step; the row and the result are its own.
_NOT_STEPPED = ("leases", "policy", "result", "row", "seams")
_STEPPED = ("closed_by", "id", "seq", "state_since")
_PARTS: tuple[tuple[tuple[str, ...], Callable[[Any], tuple[Any, ...]]], ...] = tuple(
    (names, attrgetter(*names))
    for names in (
        (*(n for n in Ledger.__slots__ if n not in _NOT_STEPPED), *_STEPPED),
        Flight.__slots__,
        Outage.__slots__,
    )
)
