"""A managed connection: its public face, its leases, and the step that moves its machine."""

from __future__ import annotations

import threading
import time
import uuid
import weakref
from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from .facts import Facts, Seams, StepResult
from .flight import Flight, FlightKind, Outcome
from .kept import kept
from .leases import Leases
from .machine import fire
from .mutex import check_outside
from .strategies import Broken, ConnectionStrategy, Dispose
from .table import REFUSED, State, Trigger
from .wire import Binding, Wire

if TYPE_CHECKING:
    from .audit import Audit, Emission
    from .config import ConnectionConfig
    from .policy import LifecyclePolicy


_ACTIVE = State.ACTIVE


class ManagedConnection(Leases):
    """One pooled connection. Everything about it changes only inside ``step``.

    Public and read-only for users: ``handler``, ``config``, ``strategy``, ``state``,
    ``generation``, ``created_at`` and ``last_used_at`` (``time.monotonic()`` seconds),
    ``clients``, ``idle_time`` (seconds), ``has_clients``.
    """

    __slots__ = (
        "_delivering",
        "_outbox",
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
        on_lost: Callable[[ManagedConnection, int, weakref.ref[object]], None],
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
        #: is there an entry on the agenda that will look whether it has lingered?
        self.expiry_planned = False
        #: ... one that looks at the age of this generation's channel (0: none)?
        self.recycle_planned = 0
        #: ... and one that asks the locator anew?
        self.refresh_planned = False
        self._outbox: deque[Emission] = deque()
        self._delivering = threading.Lock()

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

    def enter(self, now: float, *, trusted: bool = False) -> Binding | None:
        """Count an RPC in on the current channel; None if the caller must acquire or wait.

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
            return binding if binding.wire.enter() else None
        if state is State.RECOVERING:
            flight = self.flight
            if flight is not None and not flight.mandatory and binding.wire.enter():
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
            with self._mutex:
                if generation == self.generation and self.flight is None:
                    self.outage = None
        return self.state is State.IDLE and bool(self.leases)

    def ended(self, now: float) -> None:
        """An RPC ended in any other way."""
        self.last_used_at = self.last_rpc_ended = now

    def drained(self, wire: Wire) -> None:
        """A retired channel is closed: forget it."""
        with self._mutex:  # the RPC that ends last and the end of drain_timeout may meet here
            if wire in self.draining:
                self.draining.remove(wire)

    # -- flights ---------------------------------------------------------------------------

    def join(
        self, flight: Flight, wake: Callable[[], None], until: float, *, leads: bool = False
    ) -> bool:
        """Wait with ``flight``: call ``wake`` once it has ended. False if it has already."""
        with self._mutex:
            if flight.outcome is not None:
                return False
            if leads:
                flight.nudge = wake
            flight.waiters.append(wake)
            flight.patience = max(flight.patience, until)
            return True

    def part(self, flight: Flight, wake: Callable[[], None]) -> bool:
        """Stop waiting. True if the flight has nobody left who waits for it."""
        with self._mutex:
            if wake in flight.waiters:
                flight.waiters.remove(wake)
            return flight.outcome is None and not flight.waiters

    def offer(self, flight: Flight, wire: Wire) -> bool:
        """Make ``wire`` the flight's candidate. False if the flight is over: close it."""
        with self._mutex:
            if self.flight is not flight:
                return False
            if self.outage is not None:
                self.outage.channels += 1
            flight.refresh = False
            flight.candidate = wire
            return True

    def withdraw(self, flight: Flight) -> StepResult:
        """Take the flight's candidate away. Returns what is to be closed, now or when drained."""
        with self._mutex:
            self.result = StepResult()
            wire, flight.candidate = flight.candidate, None
            if wire is not None:
                self._retire(wire)
            return self.result

    def recall(self) -> StepResult:
        """Take a channel away that still connects: the leader of its flight makes another one."""
        check_outside()
        with self._mutex:
            self.result = StepResult()
            flight = self.flight
            if flight is not None and flight.candidate is not None:
                self._take_away(flight, flight.candidate)
            return self.result

    def redirect(self) -> StepResult:
        """The target has moved: take away what a flight asks elsewhere. Its leader starts anew."""
        check_outside()
        with self._mutex:
            self.result = StepResult()
            flight = self.flight
            wires = (flight.candidate, flight.standby) if flight is not None else ()
            for wire in wires:
                if wire is not None and self.strategy.misdirected(wire.address):
                    assert flight is not None
                    self._take_away(flight, wire)
                    flight.not_before = flight.began
                    if flight.nudge is not None:
                        self.result.wakes.append(flight.nudge)
            return self.result

    def _take_away(self, flight: Flight, wire: Wire) -> None:
        if wire.validated:
            return  # it has answered, and its leader is about to say so
        wire.recalled = True
        if wire is flight.candidate:
            flight.candidate = None
        else:
            flight.standby = None
        self._retire(wire)

    def vouch(self, wire: Wire) -> bool:
        """The channel that a flight asked has answered. False if it was taken away meanwhile."""
        with self._mutex:
            wire.validated = True
            return not wire.recalled

    def drop_standby(self, flight: Flight) -> StepResult:
        """The channel that failed is of no use: retire it."""
        with self._mutex:
            self.result = StepResult()
            wire, flight.standby = flight.standby, None
            if wire is not None and self.flight is flight:
                self._retire(wire)
            return self.result

    # -- the step --------------------------------------------------------------------------

    def step(self, trigger: Trigger, facts: Facts) -> StepResult:
        """Decide. Nothing here waits; what is left to do comes back in the result.

        Raises Reentered if this thread is inside a critical section of any connection (a
        finalizer ran there), ConnectionClosed for a failure of a closed connection.
        """
        check_outside()
        with self._mutex:
            return self._step(trigger, facts)

    def _step(self, trigger: Trigger, facts: Facts) -> StepResult:
        source, self.result = self.state, StepResult()
        result = self.result
        refused = (source, trigger) in REFUSED
        flight = self.flight
        moved = result.moved = fire(self, trigger, facts)
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
            emission = self.audit.prepare(
                self, source, trigger, facts, self.flight or flight, moved
            )
            if emission is not None:
                self._outbox.append(emission)
        if moved:
            self.state_since = facts.now
        return result

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
            self.press(flight, facts)

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
        self.result.dispose.extend(wire for wire in wires if wire.sever(cut=False))
        try:
            effect = self.strategy.on_closed(self, facts)
        except Exception as error:  # whoever waits has to wake, whatever the strategy does
            self.last_error = kept(error)
            return
        if isinstance(effect, Dispose):
            self.result.locator = effect.locator

    def reset_after_fork(self) -> None:
        """In the child: locks that another thread of the parent may have held are new."""
        self._renew_mutex()
        self._delivering = threading.Lock()
        self._outbox.clear()

    def announce(self) -> None:
        """Prepare the ``connection.created`` record (seq 0): before anybody can step this."""
        emission = self.audit.created(self)
        if emission is not None:
            self._outbox.append(emission)

    def deliver(self) -> None:
        """Hand records out in ``seq`` order, outside the mutex. One thread at a time does it."""
        while self._outbox:
            if not self._delivering.acquire(blocking=False):
                return  # whoever delivers looks again after letting go
            try:
                while self._outbox:
                    self.audit.emit(self._outbox.popleft())
            finally:
                self._delivering.release()

    def flush(self, until: float) -> None:
        """The process ends: hand out what is left, after whoever delivers, or at ``until``.

        That thread may be a daemon, which never gets to it. ``until``: ``time.monotonic()`` s.
        """
        if self._delivering.acquire(timeout=max(0.0, until - time.monotonic())):
            self._delivering.release()
        self.deliver()

    def connecting(self) -> bool:
        """Is a first connect in flight that may fail at the first refusal?"""
        flight = self.flight
        first = flight is not None and flight.kind is FlightKind.CONNECT and not self.validated
        return first and not self.was_good
