"""The pool under both managers: runs steps, and does at once what they leave to do.

Nothing here waits. What waits is a procedure (``checkout``, ``retry``, ``recovery``), performed by
a driver.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from typing import Any

from ..audit.records import Sink
from ..audit.stream import Audit
from ..config import ConnectionConfig
from ..errors import (
    ConnectionClosed,
    Failure,
    FailureSummary,
    LifecycleError,
    UnknownHandler,
    summarize,
)
from ..policy import LifecyclePolicy
from ..table import State, Trigger
from .admission import ONE_MORE, Admission, Line, Turn
from .connection import ManagedConnection
from .facts import Facts, Seams
from .flight import Flight, FlightKind
from .lifecycle import StepResult
from .maintenance import Maintenance
from .mutex import Reentered
from .notices import Notices
from .registry import Registry
from .strategies import ConnectionStrategy
from .transport import Driver, Transport
from .wire import Wire

#: attribute of a handler that leads to its permanent channel
FACE = "_milvus_lifecycle_face"

_LANDINGS = (Trigger.PROBE_PASSED, Trigger.RECOVERED, Trigger.STAND_DOWN)

StrategyFor = Callable[[ConnectionConfig], ConnectionStrategy]


def look() -> None:
    """A job that only wakes whoever keeps time."""


class Pool:
    """Registry, audit, policy and maintenance of one manager, and the epilogue of every step."""

    #: set by the driver itself, as it is made
    driver: Driver

    def __init__(
        self,
        flavour: str,
        policy: LifecyclePolicy | None = None,
        *,
        transport: Transport,
        strategy_for: StrategyFor,
        sinks: tuple[Sink, ...] = (),
        seams: Seams | None = None,
    ) -> None:
        self.policy = policy if policy is not None else LifecyclePolicy()
        self.transport = transport
        self.strategy_for = strategy_for
        self.seams = seams if seams is not None else Seams()
        self.registry = Registry()
        self.admission = Admission()
        self.audit = Audit(flavour, sinks)
        self.notices = Notices(self.audit)
        self.maintenance = Maintenance(self)
        self._on_lost = partial(_note_loss, weakref.ref(self))

    # -- connections -----------------------------------------------------------------------

    def create(self, config: ConnectionConfig, *, dedicated: bool) -> ManagedConnection:
        """A new connection with its handler, in no registry yet; it holds nothing to close."""
        connection = self._bare(config, dedicated=dedicated)
        face = connection.face = self.driver.permanent_channel(connection)
        connection.handler = self.transport.make_handler(connection, face)
        setattr(connection.handler, FACE, face)
        return connection

    def renew(self, old: ManagedConnection, face: object) -> ManagedConnection:
        """A successor of a closed connection, for the handler that its clients already have."""
        connection = self._bare(old.config, dedicated=old.dedicated)
        connection.handler, connection.face = old.handler, face
        if old.dedicated:
            # Calls that revive it at the same time find each other by the owner.
            owned = old.owner is not None and old.owner() is not None
            connection.owner = old.owner if owned else weakref.ref(face)
        connection.lifecycle.was_good = old.lifecycle.validated or old.lifecycle.was_good
        return connection

    def _bare(self, config: ConnectionConfig, *, dedicated: bool) -> ManagedConnection:
        strategy = self.strategy_for(config)
        strategy.attached(self.policy, self.maintenance.plan_reroutes)
        return ManagedConnection(
            config,
            strategy,
            self.policy,
            self.audit,
            self.seams,
            dedicated=dedicated,
            on_lost=self._on_lost,
        )

    def register(self, connection: ManagedConnection) -> ManagedConnection:
        """Pool ``connection``; the one that was there first wins."""
        life = connection.lifecycle
        with life.lock, life.section:
            pooled = self.registry.add(connection)
            if pooled is connection:
                life.report_creation()
        if pooled is connection:
            self.audit.serve()
            self.driver.reschedule()
        return pooled

    def find_or_create(
        self, config: ConnectionConfig, client: object | None, *, dedicated: bool
    ) -> ManagedConnection:
        """The pooled connection of ``config`` (a dedicated one: of this client), or a new one."""
        if dedicated:
            known = self.registry.find_dedicated(config.key, client)
        else:
            known = self.registry.find(config.key)
        if known is not None:
            return known
        connection = self.create(config, dedicated=dedicated)
        if dedicated and client is not None:
            connection.owner = weakref.ref(client)
        return self.register(connection)

    def claim(self, connection: ManagedConnection, client: object | None) -> bool:
        """The short way to an IDLE connection that needs no probe. False: take the long one."""
        result = StepResult()
        try:
            facts = Facts(self.seams.clock())
            claimed = connection.lifecycle.claim(client, facts, result)
            if claimed:
                self._carry_out(connection, Trigger.ACQUIRE, {}, result)
        except BaseException:  # a signal handler's: the caller gets no handler
            if result.decided:
                rest = partial(self._carry_out, connection, Trigger.ACQUIRE, {}, result)
                self.leave_to_others(rest)
                self.leave_to_others(partial(self.give_back, connection, client))
            raise
        return claimed

    def _lost(self, connection: ManagedConnection) -> None:
        connection.leases.loss_noted = False
        self.settle(connection, "its last client was collected")

    def settle(self, connection: ManagedConnection, reason: str = "") -> None:
        """See that a connection that nobody holds is IDLE, or closed, and will expire."""
        if not connection.leases:
            self.step(connection, Trigger.RELEASE, reason=reason)
            self.maintenance.plan_expiry(connection)

    def give_back(self, connection: ManagedConnection, client: object | None) -> None:
        """Drop a lease; the last one out moves the connection to IDLE or closes it."""
        try:
            if connection.unlease(client):
                self.settle(connection)
        except Reentered:
            self.driver.post(partial(self.give_back, connection, client))
        except BaseException:  # a signal handler's
            self.leave_to_others(partial(self.give_back, connection, client))
            raise

    def release(self, connection: ManagedConnection, client: object | None) -> None:
        """A client is done with ``connection``; of a dedicated one, whoever says so."""
        if client is None and connection.dedicated:
            for holder in (*connection.clients, None):
                self.give_back(connection, holder)
        else:
            self.give_back(connection, client)

    def close(self, connection: ManagedConnection, reason: str) -> None:
        """Close at once: nothing is waited for, waiters wake with the closed error."""
        self.step(connection, Trigger.CLOSE, reason=reason)

    def close_all(self, reason: str) -> None:
        """Close every connection of this manager."""
        for connection in self.registry.all():
            self.close(connection, reason)

    def retire(self) -> None:
        """Close every connection, for good: one that registers late ends with its clients."""
        for connection in self.registry.retire():
            self.close(connection, "uninstalled")

    # -- steps -----------------------------------------------------------------------------

    def step(self, connection: ManagedConnection, trigger: Trigger, **facts: Any) -> bool:
        """Step the machine and do what the step leaves to do. True if a row was taken."""
        result = StepResult()
        try:
            connection.lifecycle.step(trigger, Facts(now=self.seams.clock(), **facts), result)
            self._carry_out(connection, trigger, facts, result)
        except Reentered:
            self.driver.post(partial(self.step, connection, trigger, **facts))
        except BaseException:
            # Somebody interrupts this thread. What is decided is decided: another one does it.
            if result.decided:
                self.leave_to_others(partial(self._carry_out, connection, trigger, facts, result))
            raise
        return result.moved

    def leave_to_others(self, job: Callable[[], object]) -> None:
        """This thread is interrupted: whoever keeps time does the rest."""
        self.driver.post(job)
        self.driver.reschedule()

    def _carry_out(
        self,
        connection: ManagedConnection,
        trigger: Trigger,
        facts: dict[str, Any],
        result: StepResult,
    ) -> None:
        """Do what a step has left to do: its flight first, which others wait for."""
        if result.launch is not None:
            self.launch(connection, result.launch)
        if result.ended is not None:
            self._let_in(self.admission.ended(connection, result.ended, self.seams.clock()))
        if result.moved and connection.lifecycle.state is State.CLOSED:
            self.registry.remove(connection)
            self._part(connection)
            if not len(self.registry):
                self.driver.post(look)  # whoever keeps time may go
        self.finish(connection, result)
        if self.notices.troubles if connection.lifecycle.outage is None else result.moved:
            self.notices.look(connection.lifecycle, self.seams.clock())
        if result.emission is not None:
            self.audit.serve()
        if result.moved:
            self._follow_up(connection, trigger, facts)

    def finish(self, connection: ManagedConnection, result: StepResult) -> None:
        """Wake, close and note: everything in ``result`` but the flight to launch."""
        for wake in result.wakes:
            wake()
        for wire in result.closing:
            if wire.close_now(cut=False):
                self.close_channel(wire)
        timeout = self.policy.drain_timeout
        for wire in result.retired:
            if wire.close_if_drained():
                self.drained(connection, wire)
            elif timeout is not None and wire.running:
                self.maintenance.plan_cut(connection, wire, timeout)
        if result.locator is not None:
            result.locator.release(connection.lifecycle)

    def close_channel(self, wire: Wire) -> None:
        """Close a channel that nothing uses any more, and note that this was done."""
        self.driver.dispose(wire)
        wire.gone = True

    def launch(self, connection: ManagedConnection, flight: Flight) -> None:
        """Have a flight flown: now, or once it is its turn among those of its address."""
        if flight.kind is FlightKind.RECOVERY and not self._may_begin(connection, flight):
            return
        try:
            self.driver.launch(connection, flight)
            flight.launched = self.seams.clock()
        except (RuntimeError, MemoryError, LifecycleError) as error:
            # No thread to be had, or a loop that is closing.
            failure = summarize(error)
            self.step(connection, Trigger.ABANDONED, flight=flight.number, failure=failure)

    def _may_begin(self, connection: ManagedConnection, flight: Flight) -> bool:
        """May this recovery begin? If not, somebody launches it again in time."""
        if flight.not_before > self.seams.clock():
            if not flight.put_off:  # one entry a flight; twice is better than never
                again = partial(self._take_turn, connection, flight)
                self.maintenance.plan(flight.not_before, again)
                flight.put_off = True
            return False
        line = self.admission.admit(connection, flight)
        if line is not None:
            self._watch(line)
        return line is None

    def _watch(self, line: Line) -> None:
        """See to it that somebody looks at those who wait in ``line``."""
        now = self.seams.clock()
        if line.waiting and line.due <= now:
            line.due = now + ONE_MORE
            try:
                self.maintenance.plan(line.due, partial(self._look_at_line, line))
            except BaseException:  # a signal handler's: twice is better than never
                line.due = now
                raise

    def _look_at_line(self, line: Line) -> None:
        self._watch(line)
        self._let_in(self.admission.look(line, self.seams.clock()))

    def _let_in(self, turns: list[Turn]) -> None:
        for connection, flight in turns:
            self.driver.post(partial(self._take_turn, connection, flight))

    def _take_turn(self, connection: ManagedConnection, flight: Flight) -> None:
        """It may be the turn of a flight that nobody leads yet; or it is too late for it.

        One that was put off makes an attempt, however late: it has not stood in line yet.
        """
        put_off, flight.put_off = flight.put_off, False
        if flight.outcome is not None or not flight.lost(self.seams.clock()):
            return
        self.thaw(flight)
        if put_off or self.seams.clock() < flight.deadline:
            self.launch(connection, flight)
            return
        facts = {"flight": flight.number, "failure": flight.failure}
        if not self.step(connection, Trigger.STAND_DOWN, **facts):
            self.step(connection, Trigger.GIVE_UP, **facts)

    def _follow_up(
        self, connection: ManagedConnection, trigger: Trigger, facts: dict[str, Any]
    ) -> None:
        """What a landing has to look at again, and the timers that a step sets."""
        life, held = connection.lifecycle, connection.leases.held
        if life.state is State.CLOSED or life.flight is not None:
            return
        if life.dedicated and not held:
            self.step(connection, Trigger.RELEASE)
            return
        if trigger in _LANDINGS:
            self.plan_fill(connection.face, self.seams.clock())
            if trigger is Trigger.STAND_DOWN and not facts.get("unchanged"):
                self.maintenance.plan_second_try(connection)
            else:
                self.step(connection, Trigger.REROUTE)
                self.maintenance.plan_recycle(connection)
            self.maintenance.plan_refresh(connection)
        if not held:
            self.maintenance.plan_expiry(connection)

    # -- several connections of one handler ------------------------------------------------

    def plan_fill(self, face: Any, due: float) -> None:
        """See to it that the handler has its members, once it is ``due`` (monotonic seconds)."""
        if self.policy.channels > 1:
            self.maintenance.plan(due, partial(self._fill, weakref.ref(face)))

    def _fill(self, face_ref: weakref.ref[Any]) -> None:
        """Have as many connections behind a handler as the policy says. Whoever keeps time does."""
        face = face_ref()
        if face is None or face.connection.state is not State.ACTIVE:
            return
        for _ in range(len(face.members), self.policy.channels - 1):
            member = self.renew(face.connection, face)
            member.lease(face)  # it is held as long as the first one lives
            life = member.lifecycle
            with life.lock, life.section:
                self.registry.add_member(member)
                life.report_creation()
            face.members = (*face.members, member)
            until = self.seams.clock() + self.policy.connect_timeout
            self.step(member, Trigger.ACQUIRE, until=until, reason="policy.channels")

    def _part(self, connection: ManagedConnection) -> None:
        """A closed connection has no members, and is none; it is replaced after a while."""
        face = connection.face
        if connection is face.connection:
            members, face.members = face.members, ()
            for member in members:
                self.give_back(member, face)
        elif connection in face.members:
            face.members = tuple(each for each in face.members if each is not connection)
            self.plan_fill(face, self.seams.clock() + self.policy.backoff_ceiling)

    # -- flights ---------------------------------------------------------------------------

    def deserted(self, connection: ManagedConnection, flight: Flight) -> None:
        """The last waiter of a flight has left. Nobody left for a first connect: it is abandoned.

        Not if the process was stopped: whoever waited comes back for one more attempt.
        """
        first = flight.kind is FlightKind.CONNECT and not connection.lifecycle.validated
        if first and not self.thaw(flight):
            self.step(connection, Trigger.ABANDONED, flight=flight.number)

    def thaw(self, flight: Flight) -> bool:
        """If its time ran out while the process was not run: time for one more attempt, once.

        True if it has been given that, now or before.
        """
        return flight.thaw(self.seams.clock(), self.policy.connect_timeout)

    # -- RPCs: called by the permanent channel ---------------------------------------------

    def rpc_failed(
        self,
        connection: ManagedConnection,
        failure: FailureSummary,
        generation: int | None,
        started: float,
    ) -> None:
        """An RPC failed: let the table decide. Each reports itself, retried or not."""
        if failure.kind is Failure.DEADLINE:
            trigger = Trigger.DOUBT
        elif failure.kind in (Failure.TRANSIENT, Failure.REPLICATE_VIOLATION):
            trigger = Trigger.FAIL
        else:
            return
        with suppress(ConnectionClosed):  # the caller sees it when it asks
            self.step(connection, trigger, failure=failure, generation=generation, started=started)

    def drained(self, connection: ManagedConnection, wire: Wire) -> None:
        """The last RPC of a retired channel has ended (or again, after an interruption)."""
        self.close_channel(wire)
        connection.lifecycle.drained(wire)

    # -- handlers --------------------------------------------------------------------------

    def find_face(self, handler: Any) -> Any:
        """The permanent channel behind a handler; None if this pool did not hand it out."""
        face = getattr(handler, FACE, None)
        return face if face is not None and face.pool is self else None

    def face_of(self, handler: Any) -> Any:
        """The same, but raises UnknownHandler."""
        face = self.find_face(handler)
        if face is None:
            unknown = UnknownHandler(f"unknown handler of type {type(handler).__name__}")
            raise self.transport.translate(unknown)
        return face

    # -- everybody -------------------------------------------------------------------------

    def stats(self) -> dict[str, Any]:
        """Counts, and a row for each connection; no secret in any of it."""
        connections = self.registry.all()
        now = self.seams.clock()  # after that: no connection is younger than nothing
        rows = [
            {
                "id": connection.id,
                "address": connection.address,
                "state": connection.state.value,
                "dedicated": connection.dedicated,
                "clients": len(connection.leases),
                "generation": connection.generation,
                "recoveries": connection.lifecycle.recoveries,
                "failures": connection.lifecycle.failures,
                "age": now - connection.created_at,
                "idle": connection.lifecycle.idle_for(now),
                "in_flight": connection.lifecycle.in_flight,
                **connection.lifecycle.trouble(now),
            }
            for connection in connections
        ]
        dedicated = sum(1 for row in rows if row["dedicated"])
        return {
            "total_connections": len(rows),
            "shared_connections": len(rows) - dedicated,
            "dedicated_connections": dedicated,
            "connections": rows,
        }

    def fork_child(self) -> None:
        """In a forked child: new locks, then every connection is told."""
        self.registry.reset_after_fork()
        self.admission.reset_after_fork()
        self.maintenance.schedule.reset_after_fork()
        self.audit.reset_after_fork()
        self.notices.reset_after_fork()
        for connection in self.registry.all():
            life, connection.leases.loss_noted = connection.lifecycle, False
            life.renew_mutex()
            life.expiry_planned, life.refresh_planned, life.recycle_planned = False, False, 0
            self.step(connection, Trigger.FORKED)


def _note_loss(pool_ref: weakref.ref[Pool], connection: ManagedConnection) -> None:
    """Called inside the collector, when a connection's last client was lost."""
    pool = pool_ref()
    if pool is not None:
        pool.driver.post(partial(pool._lost, connection))
