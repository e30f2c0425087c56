"""The books of a connection: the facts that guards ask for, the actions that rows perform.

Every ``guard_*`` and ``action_*`` is called by a row of the table, under the connection's
mutex, and touches nothing but memory.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..errors import Failure, classify
from ..table import Row, State, Trigger
from .facts import Facts, Seams, StepResult
from .flight import Flight, FlightKind, Outage, Outcome
from .kept import kept
from .wire import Binding, Wire

if TYPE_CHECKING:
    import weakref

    from ..policy import LifecyclePolicy
    from .strategies import ConnectionStrategy

#: Channels that one outage may cost before attempts go on with the channel they have. A slow
#: channel (see Wire.slow) may come on top, so that an outage stays under 12 in all.
CHANNELS_PER_OUTAGE = 8

_OUTCOMES = {
    Trigger.PROBE_PASSED: Outcome.LANDED,
    Trigger.RECOVERED: Outcome.LANDED,
    Trigger.STAND_DOWN: Outcome.LANDED,
    Trigger.FAIL: Outcome.SUPERSEDED,
    Trigger.GIVE_UP: Outcome.GAVE_UP,
    Trigger.ABANDONED: Outcome.ABANDONED,
    Trigger.FORKED: Outcome.FORKED,
    Trigger.CLOSE: Outcome.CLOSED,
}


class Ledger:
    """State of one connection besides its public face. Written only inside a step."""

    __slots__ = (
        "binding",
        "dedicated",
        "draining",
        "failures",
        "flight",
        "flights",
        "generation",
        "last_error",
        "last_rpc_ended",
        "last_success",
        "last_used_at",
        "leases",
        "outage",
        "policy",
        "recoveries",
        "result",
        "row",
        "seams",
        "state",
        "strategy",
        "suspect",
        "unheld_since",
        "unit",
        "validated",
        "was_good",
    )

    state: State
    strategy: ConnectionStrategy

    def __init__(self, policy: LifecyclePolicy, seams: Seams, *, dedicated: bool) -> None:
        now = seams.clock()
        self.policy = policy
        self.seams = seams
        self.dedicated = dedicated
        self.state = State.IDLE
        self.generation = 0
        self.binding: Binding | None = None
        self.flight: Flight | None = None
        self.flights = 0
        self.outage: Outage | None = None
        self.validated = False
        #: its clients had a good connection before this one was made (or before a fork)
        self.was_good = False
        self.suspect = False
        self.draining: list[Wire] = []
        self.leases: dict[int, weakref.ref[object] | None] = {}
        self.unheld_since = now
        self.last_used_at = now
        self.last_rpc_ended = now
        self.last_success = now
        self.last_error: BaseException | None = None
        self.recoveries = 0
        self.failures = 0
        #: where in the jitter window of ``max_age`` this connection stands
        self.unit = seams.chance()
        self.row: Row | None = None
        self.result = StepResult()

    # -- what guards and strategies ask ----------------------------------------------------

    @property
    def has_channel(self) -> bool:
        """Is there a current channel that takes RPCs?"""
        return self.binding is not None and self.binding.wire.state.value == "current"

    @property
    def in_flight(self) -> int:
        """RPCs running on any channel of this connection."""
        wires = list(self.draining)
        if self.binding is not None and self.binding.wire not in wires:
            wires.append(self.binding.wire)  # in both places from its failure to the swap
        return sum(wire.in_flight for wire in wires)

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

    def channel_age(self, now: float) -> float:
        """Seconds since the current channel was opened."""
        return now - self.binding.wire.opened_at if self.binding is not None else 0.0

    def linger_due(self) -> float | None:
        """When an unused connection may be closed (monotonic seconds); None: not as it is."""
        linger = self.policy.linger
        if linger is None or self.leases or self.flight is not None or self.in_flight:
            return None
        return max(self.unheld_since, self.last_rpc_ended) + linger

    def guard_held(self, facts: Facts) -> bool:
        return bool(self.leases)

    def guard_dedicated(self, facts: Facts) -> bool:
        return self.dedicated

    def guard_validated(self, facts: Facts) -> bool:
        return self.validated

    def guard_suspect(self, facts: Facts) -> bool:
        return self.suspect

    def guard_same_flight(self, facts: Facts) -> bool:
        return self.flight is not None and self.flight.number == facts.flight

    def guard_same_generation(self, facts: Facts) -> bool:
        return facts.generation is None or facts.generation == self.generation

    def guard_has_channel(self, facts: Facts) -> bool:
        return self.has_channel

    def guard_silent_since(self, facts: Facts) -> bool:
        return self.last_success < facts.started

    def guard_budget_left(self, facts: Facts) -> bool:
        return self.flight is not None and facts.now < self.flight.deadline

    def guard_permanent(self, facts: Facts) -> bool:
        return facts.error is not None and classify(facts.error) is Failure.PERMANENT

    def guard_may_stand_down(self, facts: Facts) -> bool:
        return facts.unchanged or (self.flight is not None and not self.flight.mandatory)

    # -- actions ---------------------------------------------------------------------------

    def action_begin_probe(self, row: Row, facts: Facts) -> None:
        kind = FlightKind.PROBE if self.has_channel else FlightKind.CONNECT
        limit = self.policy.connect_timeout
        if kind is FlightKind.PROBE:
            limit = self.policy.probe_timeout
        flight = self._begin(kind, row.trigger, facts.now, facts.now + limit)
        if facts.until is not None:
            # The caller joins a moment later; its leader may be on its way by then.
            flight.patience = max(flight.patience, facts.until)

    def action_begin_recovery(self, row: Row, facts: Facts) -> None:
        now, budget = facts.now, self.policy.recovery_budget
        flight = self._begin(FlightKind.RECOVERY, row.trigger, now, now + budget)
        # Without a channel (its last recovery was abandoned) nothing serves while it moves.
        failed = row.trigger in (Trigger.FAIL, Trigger.PROBE_FAILED)
        flight.mandatory = failed or not self.has_channel
        if flight.mandatory:
            self.make_mandatory(flight, facts)
        if failed and self.outage is not None and self.outage.flaps == 1:
            self._alarm()

    def make_mandatory(self, flight: Flight, facts: Facts) -> None:
        """The current channel failed: the flight is now all that stands between it and RPCs."""
        flight.mandatory = True
        self.failures += 1
        flight.error = kept(facts.error) or self.last_error
        self.last_error = flight.error
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
            self._retire_current()
        elif binding.identifier is None or outage.channels >= CHANNELS_PER_OUTAGE:
            # Never validated (kept by a give_up), or channels are spent: validate this one anew.
            binding.wire.demote()
            flight.candidate = binding.wire
        elif self.strategy.keeps_current:
            binding.wire.demote()
            flight.standby = binding.wire
        else:
            self._retire_current()

    def action_bind(self, row: Row, facts: Facts) -> None:
        """Swap the validated channel in. One reference changes: RPCs see all of it or nothing."""
        self.suspect = False
        self.last_used_at = max(self.last_used_at, facts.now)
        if facts.wire is not None:
            if self.binding is not None and self.binding.wire is not facts.wire:
                self._retire_current()
            self.generation += 1
            facts.wire.promote()
            version = facts.located.version if facts.located is not None else None
            self.binding = Binding(self.generation, facts.wire, facts.identifier, version)
            self.strategy.committed(self, facts.located)  # type: ignore[arg-type]
            if self.flight is not None and self.flight.candidate is facts.wire:
                self.flight.candidate = None
        self.validated = True
        if row.trigger is Trigger.RECOVERED:
            self.recoveries += 1

    def action_count_attempt(self, row: Row, facts: Facts) -> None:
        flight = self.flight
        assert flight is not None, "its rows ask for same_flight"
        flight.attempts += 1
        flight.error = kept(facts.error) or flight.error
        self.last_error = flight.error
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
        if row.trigger is Trigger.GIVE_UP:
            self._alarm()

    def action_clear_suspicion(self, row: Row, facts: Facts) -> None:
        self.suspect = False

    def action_end_flight(self, row: Row, facts: Facts) -> None:
        flight = self.flight
        if flight is None:
            return
        flight.error = kept(facts.error) or flight.error
        self.last_error = flight.error or self.last_error
        if row.trigger is Trigger.PROBE_FAILED:
            over = row.dest is State.CLOSED
            outcome = Outcome.FAILED if over else Outcome.SUPERSEDED
        else:
            outcome = _OUTCOMES[row.trigger]
        self._end(outcome)

    def action_forget_parent(self, row: Row, facts: Facts) -> None:
        """The parent's sockets belong to the parent: keep the objects, touch nothing."""
        from ..fork import leak

        flight, self.flight = self.flight, None
        leak(self.binding, self.draining, flight)
        self.binding = None
        self.draining = []
        self.outage = None
        self.was_good = self.was_good or self.validated
        self.validated = False
        self.suspect = False

    # -- helpers ---------------------------------------------------------------------------

    def _begin(self, kind: FlightKind, cause: Trigger, now: float, deadline: float) -> Flight:
        self.flights += 1
        self.flight = Flight(self.flights, kind, cause, now, deadline)
        self.result.launch = self.flight
        return self.flight

    def _end(self, outcome: Outcome) -> None:
        flight, self.flight = self.flight, None
        assert flight is not None, "whoever ends a flight has seen it"
        flight.outcome = outcome
        self.last_error = flight.error or self.last_error
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

    def _alarm(self) -> None:
        """The outage takes a turn that people should notice: the first of its kind does."""
        self.result.alarm = self.outage is None or not self.outage.noticed
        if self.outage is not None:
            self.outage.noticed = True

    def _retire_current(self) -> None:
        assert self.binding is not None, "whoever replaces a channel has seen it"
        self._retire(self.binding.wire)

    def _retire(self, wire: Wire) -> None:
        """Close the channel once nothing runs on it any more: now, or when it has drained."""
        wire.retire()
        self.result.retired.append(wire)
        if wire.in_flight and wire not in self.draining:
            self.draining = [*self.draining, wire]
