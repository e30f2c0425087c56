"""Flights: the procedures of whoever leads a probe, a first connect or a recovery.

Generators like those of ``procedures``: they decide in memory and yield what has to be waited
for. A flight that ends without an outcome of its own is settled as abandoned.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..errors import ConnectionClosed, Failure, Interrupted, classify
from ..table import Trigger
from .engine import Engine
from .flight import Flight, FlightKind
from .kept import kept
from .ledger import CHANNELS_PER_OUTAGE
from .requests import Locate, Open, Ping, Procedure, Register, Wait
from .strategies import Broken, Connect, Recover
from .wire import Wire

if TYPE_CHECKING:
    from .connection import ManagedConnection
    from .facts import Located

#: A first attempt of an outage lasts this long (seconds) before it counts as failed; later ones
#: as long as the outage is old, up to ``connect_timeout``. The channel itself keeps connecting.
FIRST_SLICE = 1.0
#: Whoever wakes so much later (seconds) than he wanted was not run meanwhile: the process was
#: stopped or the machine suspended, and its budgets ran out without a try.
STOPPED = 1.0


class Flights(Engine):
    """What the leader of a flight does, written once."""

    def fly(self, connection: ManagedConnection, flight: Flight, leader: object) -> Procedure[None]:
        """One flight, by its leader. However it ends, the flight has an outcome afterwards."""
        try:
            if not connection.lead(flight, leader):
                return  # launched twice: whoever launched it first was interrupted
            if flight.kind is FlightKind.PROBE:
                yield from self._probe(connection, flight)
            elif flight.kind is FlightKind.CONNECT:
                yield from self._connect(connection, flight)
            else:
                yield from self._recover(connection, flight)
        except BaseException as error:
            self.abandon(connection, flight, leader, error)
            raise
        finally:
            self.abandon(connection, flight, leader)

    def abandon(
        self,
        connection: ManagedConnection,
        flight: Flight,
        leader: object,
        error: BaseException | None = None,
    ) -> None:
        """The leader is gone: settle the flight if nothing else has."""
        if flight.outcome is None and flight.leader in (None, leader):
            self.step(connection, Trigger.ABANDONED, flight=flight.number, error=error)

    def _probe(self, connection: ManagedConnection, flight: Flight) -> Procedure[None]:
        binding = connection.binding
        try:
            if binding is None:
                raise ConnectionClosed(address=connection.address)
            yield Ping(connection, binding.wire, self.policy.probe_timeout)
        except Exception as error:
            self.step(connection, Trigger.PROBE_FAILED, flight=flight.number, error=error)
        else:
            self.step(connection, Trigger.PROBE_PASSED, flight=flight.number)

    def _connect(self, connection: ManagedConnection, flight: Flight) -> Procedure[None]:
        """The first connect: as long as the most patient of its waiters allows.

        It fails with the first refusal, so that a wrong address is known at once; unless the
        client had a good connection before (in a forked child, after close_all): then a server
        that is away is waited for, as in a recovery.
        """
        while True:
            limit, thawed = _limit(flight), flight.thawed
            try:
                left = limit - self.seams.clock()
                located = yield from self._find_place(connection, flight, left)
                wire = yield from self._candidate(connection, flight, located)
                if wire is None:
                    return
                left = max(0.001, limit - self.seams.clock())
                again = flight.attempts > 0
                identifier = yield Register(connection, wire, left, again)
            except Interrupted:
                continue
            except Exception as error:
                more = self._connect_again(connection, flight, error, limit)
                if not more and (thawed or not self._thaw(flight)):
                    self.step(connection, Trigger.PROBE_FAILED, flight=flight.number, error=error)
                    return
                gap = self.policy.gap(flight.attempts, 0.0, self.seams.chance)
                yield Wait(connection, flight, self.seams.clock() + gap, leads=True)
            else:
                self._land(connection, flight, Trigger.PROBE_PASSED, wire, identifier, located)
                return

    def _connect_again(
        self, connection: ManagedConnection, flight: Flight, error: Exception, limit: float
    ) -> bool:
        flight.attempts += 1
        kind = classify(error)
        if kind is not Failure.DEADLINE:
            flight.error = kept(error)
        if flight.outcome is not None or self.seams.clock() >= flight.patience:
            return False
        if kind is Failure.DEADLINE and flight.patience > limit:
            return True  # somebody more patient has joined
        hopeful = connection.was_good or connection.strategy.awaits_news()
        return hopeful and kind in (Failure.TRANSIENT, Failure.DEADLINE)

    def _recover(self, connection: ManagedConnection, flight: Flight) -> Procedure[None]:
        while flight.outcome is None:
            self._thaw(flight)
            if flight.not_before > self.seams.clock():
                yield Wait(connection, flight, flight.not_before, leads=True)
                continue
            started = self.seams.clock()
            try:
                left = max(0.001, flight.deadline - started)
                limit = min(self.policy.connect_timeout, left)
                located = yield from self._find_place(connection, flight, limit)
                if flight.standby is not None:
                    kept = yield from self._keep_standby(connection, flight, located)
                    if kept:
                        return
                wire = yield from self._candidate(connection, flight, located)
                if wire is None:
                    return
                identifier = yield from self._validate(connection, flight, wire)
            except Interrupted:
                continue
            except Exception as error:
                self._attempt_failed(connection, flight, error, started)
            else:
                self._land(connection, flight, Trigger.RECOVERED, wire, identifier, located)
                return

    def _thaw(self, flight: Flight) -> bool:
        """If its time ran out while the process was not run: time for one more attempt, once.

        True if it has been given that, now or before.
        """
        now = self.seams.clock()
        if not flight.thawed and now > _limit(flight) + STOPPED:
            flight.thawed = True
            flight.deadline = flight.patience = now + self.policy.connect_timeout
        return flight.thawed

    def _find_place(
        self, connection: ManagedConnection, flight: Flight, timeout: float
    ) -> Procedure[Located | None]:
        """Where to connect to, by the strategy's locator; None: the configured address."""
        plan = flight.plan
        if isinstance(plan, Broken):
            raise plan.error
        if not isinstance(plan, (Connect, Recover)) or plan.locator is None:
            return None
        located: Located = yield Locate(connection, plan.locator, flight.error, timeout)
        return located

    def _keep_standby(
        self, connection: ManagedConnection, flight: Flight, located: Located | None
    ) -> Procedure[bool]:
        """The target has not moved: if the channel that failed answers, it goes on serving."""
        standby = flight.standby
        stays = standby is not None and located is not None and located.address == standby.address
        if standby is not None and stays and not standby.recalled:
            limit = self._slice(connection, flight, standby)
            try:
                yield Ping(connection, standby, min(self.policy.probe_timeout, limit))
            except Interrupted:
                raise
            except Exception as error:
                flight.error = error
            else:
                stood_down = self.step(
                    connection,
                    Trigger.STAND_DOWN,
                    flight=flight.number,
                    located=located,
                    unchanged=True,
                )
                return stood_down or flight.outcome is not None
        self.finish(connection, connection.drop_standby(flight))
        return flight.outcome is not None

    def _validate(
        self,
        connection: ManagedConnection,
        flight: Flight,
        wire: Wire,
    ) -> Procedure[str]:
        """One attempt: ask at once, for the cause; then wait for the channel to come up."""
        started = self.seams.clock()
        whole = self._slice(connection, flight, wire)
        try:
            identifier: str = yield Register(connection, wire, whole, False)
            return identifier
        except Exception as error:
            left = whole - (self.seams.clock() - started)
            if classify(error) is not Failure.TRANSIENT or left <= 0 or flight.outcome is not None:
                raise
            cause = kept(error)
        try:
            identifier = yield Register(connection, wire, left, True)
            return identifier
        except Exception as error:
            if classify(error) is not Failure.DEADLINE:
                raise
        # Another copy: an error that is a variable of its own traceback would live until the
        # collector comes, and keep the call object of the attempt, and so the channel's socket.
        raise kept(cause)

    def _slice(
        self,
        connection: ManagedConnection,
        flight: Flight,
        wire: Wire,
    ) -> float:
        """How long an attempt may last that starts now (seconds)."""
        now, policy = self.seams.clock(), self.policy
        age = now - self._down_since(connection, flight)
        length = min(policy.connect_timeout, max(FIRST_SLICE, age))
        if not wire.slow and age < policy.backoff_patience:
            length = min(length, policy.backoff_patience - age)
        return max(0.001, min(length, flight.deadline - now))

    def _down_since(self, connection: ManagedConnection, flight: Flight) -> float:
        outage = connection.outage
        return outage.began if outage is not None else flight.began

    def _candidate(
        self, connection: ManagedConnection, flight: Flight, located: Located | None
    ) -> Procedure[Wire | None]:
        """The channel to validate: the flight's own if it still fits, else a fresh one.

        None if the flight was decided meanwhile.
        """
        address, secure = connection.config.address, None
        if located is not None:
            address, secure = located.address, located.secure
        age = self.seams.clock() - self._down_since(connection, flight)
        late = flight.kind is FlightKind.RECOVERY and age >= self.policy.backoff_patience
        outage = connection.outage
        spent = outage is not None and outage.channels >= CHANNELS_PER_OUTAGE
        wire = flight.candidate
        if wire is not None:
            fits = wire.address == address and (wire.slow or not late) and not wire.recalled
            if fits and (spent or not flight.refresh):
                return self._rightly(connection, wire)
            self.finish(connection, connection.withdraw(flight))
        window = self.policy.reconnect_window(age if late else 0.0, self.seams.chance)
        channel = yield Open(connection, address, secure, window)
        wire = Wire(channel, address, self.seams.clock(), slow=late)
        if not connection.offer(flight, wire):
            wire.sever(cut=False)  # nobody else knows this channel
            self.close_channel(wire)
            return None
        return self._rightly(connection, wire)

    def _rightly(self, connection: ManagedConnection, wire: Wire) -> Wire:
        """The news may have come before there was a candidate to be redirected."""
        if connection.strategy.misdirected(wire.address):
            raise Interrupted(address=wire.address)
        return wire

    def _attempt_failed(
        self, connection: ManagedConnection, flight: Flight, error: Exception, started: float
    ) -> None:
        self._thaw(flight)
        now = self.seams.clock()
        flight.refresh = classify(error) is Failure.DEADLINE
        age = now - self._down_since(connection, flight)
        gap = self.policy.gap(flight.attempts + 1, age, self.seams.chance)
        flight.not_before = min(started + gap, flight.deadline)
        outcome = {"flight": flight.number, "error": error}
        for trigger in (Trigger.RETRY, Trigger.STAND_DOWN, Trigger.GIVE_UP):
            if flight.outcome is not None or self.step(connection, trigger, **outcome):
                return

    def _land(
        self,
        connection: ManagedConnection,
        flight: Flight,
        trigger: Trigger,
        wire: Wire,
        identifier: str,
        located: Located | None,
    ) -> None:
        """Swap the validated channel in, unless something else was decided meanwhile."""
        landed = self.step(
            connection,
            trigger,
            flight=flight.number,
            wire=wire,
            identifier=identifier,
            located=located,
        )
        if not landed and flight.outcome is None:
            # Only a guard can say no here: the flight is somebody else's by now.
            self.finish(connection, connection.withdraw(flight))


def _limit(flight: Flight) -> float:
    """When it is to end (monotonic seconds): a first connect, for the most patient who waits."""
    patient = flight.kind is FlightKind.CONNECT and flight.patience > flight.began
    return flight.patience if patient else flight.deadline
