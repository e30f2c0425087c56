"""Recovery: the procedure of whoever leads a flight, be it a probe, a first connect or a recovery.

A generator that decides in memory and yields what has to be waited for (see ``requests``). A
flight that ends without an outcome of its own is settled as abandoned.
"""

from __future__ import annotations

from typing import Any

from ..errors import ConnectionClosed, Failure, FailureSummary, Interrupted, summarize
from ..policy import Pace
from ..table import Trigger
from .connection import ManagedConnection
from .facts import Located
from .flight import FIRST_SLICE, HOPEFUL, Flight, FlightKind, may_pass
from .lifecycle import CHANNELS_PER_OUTAGE
from .pool import Pool
from .requests import Open, Ping, Procedure, Register, Wait, locate
from .strategies import Broken, Connect, Recover
from .wire import Wire

#: No attempt is shorter because a channel of another pace is due (seconds).
MOMENT = 0.05


class Recovery:
    """One flight, and what its leader does."""

    def __init__(self, pool: Pool, connection: ManagedConnection, flight: Flight) -> None:
        self.pool = pool
        self.policy = pool.policy
        self.clock = pool.seams.clock
        self.connection = connection
        self.life = connection.lifecycle
        self.flight = flight

    def fly(self, leader: object) -> Procedure[None]:
        """The flight, led by ``leader``. However it ends, it has an outcome afterwards."""
        try:
            if not self.life.lead(self.flight, leader):
                return  # launched twice: whoever launched it first was interrupted
            if self.flight.kind is FlightKind.PROBE:
                yield from self._probe()
            elif self.flight.kind is FlightKind.CONNECT:
                yield from self._connect()
            else:
                yield from self._recover()
        except BaseException as error:
            self.abandon(leader, error)
            raise
        finally:
            self.abandon(leader)

    def abandon(self, leader: object, error: BaseException | None = None) -> None:
        """The leader is gone: settle the flight if nothing else has."""
        if self.flight.outcome is None and self.flight.leader in (None, leader):
            failure = None if error is None else summarize(error)
            self._settle(Trigger.ABANDONED, failure=failure)

    def _settle(self, trigger: Trigger, **facts: Any) -> bool:
        """Step the connection with an outcome of this flight."""
        return self.pool.step(self.connection, trigger, flight=self.flight.number, **facts)

    def _probe(self) -> Procedure[None]:
        binding = self.life.binding
        try:
            if binding is None:
                raise ConnectionClosed(address=self.connection.address)
            yield Ping(self.connection, binding.wire, self.policy.probe_timeout)
        except Exception as error:
            self._settle(Trigger.PROBE_FAILED, failure=summarize(error))
        else:
            self._settle(Trigger.PROBE_PASSED)

    def _connect(self) -> Procedure[None]:
        """The first connect: as long as the most patient of its waiters allows.

        It fails with the first refusal, so that a wrong address is known at once; unless somebody
        waits who has hope for the server, or the client had a good connection before (in a forked
        child, after close_all): then it is waited for, as in a recovery.
        """
        while True:
            limit, thawed = self.flight.limit, self.flight.thawed
            try:
                left = limit - self.clock()
                located = yield from self._find_place(left)
                wire = yield from self._candidate(located)
                if wire is None:
                    return
                again, end = self.flight.attempts > 0, limit
                if self.flight.failure is not None and not self._awaited():
                    end = min(limit, self.flight.hope or limit)  # no longer for one that refuses
                left = max(0.001, end - self.clock())
                identifier = yield Register(self.connection, wire, left, again)
            except Interrupted:
                continue
            except Exception as error:
                failure = summarize(error)
                more = self._connect_again(failure, limit)
                if not more and (thawed or not self.pool.thaw(self.flight)):
                    self._settle(Trigger.PROBE_FAILED, failure=self.flight.failure or failure)
                    return
                gap = self.policy.gap(self.flight.attempts, 0.0, self.pool.seams.chance)
                yield Wait(self.connection, self.flight, self.clock() + gap, leads=True)
            else:
                self._land(Trigger.PROBE_PASSED, wire, identifier, located)
                return

    def _connect_again(self, failure: FailureSummary, limit: float) -> bool:
        self.flight.attempts += 1
        kind = failure.kind
        if kind is not Failure.DEADLINE:
            self.flight.failure = failure
        if self.flight.outcome is not None or self.clock() >= self.flight.patience:
            return False
        if kind is Failure.DEADLINE and self.flight.patience > limit:
            return True  # somebody more patient has joined
        if self._awaited():
            return kind in HOPEFUL
        return self.clock() < self.flight.hope and may_pass(failure)

    def _awaited(self) -> bool:
        """Is the server waited for, whoever hopes?"""
        return self.life.was_good or self.connection.strategy.awaits_news()

    def _recover(self) -> Procedure[None]:
        while self.flight.outcome is None:
            self.pool.thaw(self.flight)
            if self.flight.not_before > self.clock():
                yield Wait(self.connection, self.flight, self.flight.not_before, leads=True)
                continue
            started = self.clock()
            try:
                left = max(0.001, self.flight.deadline - started)
                limit = min(self.policy.connect_timeout, left)
                located = yield from self._find_place(limit)
                if self.flight.standby is not None:
                    stays = yield from self._keep_standby(located)
                    if stays:
                        return
                wire = yield from self._candidate(located)
                if wire is None:
                    return
                answer = yield from self._validate(wire)
            except Interrupted:
                continue
            except Exception as error:
                self._attempt_failed(summarize(error), started)
                continue
            if not isinstance(answer, FailureSummary):
                self._land(Trigger.RECOVERED, wire, answer, located)
                return
            self._attempt_failed(answer, started)

    def _find_place(self, timeout: float) -> Procedure[Located | None]:
        """Where to connect to, by the strategy's locator; None: the configured address."""
        plan = self.flight.plan
        if isinstance(plan, Broken):
            raise plan.error
        if not isinstance(plan, (Connect, Recover)) or plan.locator is None:
            return None
        failure = self.flight.failure
        return (yield from locate(self.connection, plan.locator, failure, timeout))

    def _keep_standby(self, located: Located | None) -> Procedure[bool]:
        """The target has not moved: if the channel that failed answers, it goes on serving."""
        standby = self.flight.standby
        stays = standby is not None and located is not None and located.address == standby.address
        if standby is not None and stays and not standby.recalled:
            limit = self._slice()
            try:
                yield Ping(self.connection, standby, min(self.policy.probe_timeout, limit))
            except Interrupted:
                raise
            except Exception as error:
                self.flight.failure = summarize(error)
            else:
                stood_down = self._settle(Trigger.STAND_DOWN, located=located, unchanged=True)
                return stood_down or self.flight.outcome is not None
        self.pool.finish(self.connection, self.life.withdraw(self.flight, standby=True))
        return self.flight.outcome is not None

    def _validate(self, wire: Wire) -> Procedure[str | FailureSummary]:
        """One attempt: ask at once, for the cause; then wait for the channel to come up."""
        started = self.clock()
        whole = min(self._slice(), max(MOMENT, self._due(wire) - started))
        try:
            identifier: str = yield Register(self.connection, wire, whole, False)
            return identifier
        except Interrupted:
            raise
        except Exception as error:
            cause = summarize(error)
        left = whole - (self.clock() - started)
        if cause.kind is not Failure.TRANSIENT or left <= 0 or self.flight.outcome is not None:
            return cause
        try:
            identifier = yield Register(self.connection, wire, left, True)
            return identifier
        except Interrupted:
            raise
        except Exception as error:
            late = summarize(error)
        return cause if late.kind is Failure.DEADLINE else late

    def _slice(self) -> float:
        """How long an attempt may last that starts now (seconds)."""
        now = self.clock()
        length = min(self.policy.connect_timeout, max(FIRST_SLICE, now - self._down_since()))
        return max(0.001, min(length, self.flight.deadline - now))

    def _due(self, wire: Wire) -> float:
        """When the outage is too old for the pace at which ``wire`` reconnects."""
        return self._down_since() + self._pace(wire.opened_at).until

    def _pace(self, opened_at: float) -> Pace:
        age = opened_at - self._down_since()
        return self.policy.pace(age + MOMENT, self.life.unit)

    def _down_since(self) -> float:
        outage = self.life.outage
        return outage.began if outage is not None else self.flight.began

    def _candidate(self, located: Located | None) -> Procedure[Wire | None]:
        """The channel to validate: the flight's own if it still fits, else a fresh one.

        None if the flight was decided meanwhile.
        """
        address, secure = self.connection.config.address, None
        if located is not None:
            address, secure = located.address, located.secure
        now, outage = self.clock(), self.life.outage
        spent = outage is not None and outage.channels >= CHANNELS_PER_OUTAGE
        wire = self.flight.candidate
        if wire is not None:
            fits = wire.address == address and now + MOMENT <= self._due(wire)
            fits = fits and not wire.recalled and (spent or not self.flight.refresh)
            if fits and not self.pool.transport.outdated(self.connection, wire):
                return self._rightly(wire)
            self.pool.finish(self.connection, self.life.withdraw(self.flight))
        pace = self._pace(now)
        channel = yield Open(self.connection, address, secure, pace[:2])
        wire = Wire(channel, address, now)
        if not self.life.offer(self.flight, wire):
            wire.close_now(cut=False)  # nobody else knows this channel
            self.pool.close_channel(wire)
            return None
        return self._rightly(wire)

    def _rightly(self, wire: Wire) -> Wire:
        """The news may have come before there was a candidate to be redirected."""
        if self.connection.strategy.misdirected(wire.address):
            raise Interrupted(address=wire.address)
        return wire

    def _attempt_failed(self, failure: FailureSummary, started: float) -> None:
        self.pool.thaw(self.flight)
        now = self.clock()
        self.flight.refresh = failure.kind is Failure.DEADLINE
        age = now - self._down_since()
        gap = self.policy.gap(self.flight.attempts + 1, age, self.pool.seams.chance)
        wire = self.flight.candidate
        if wire is not None and now + MOMENT > self._due(wire):
            gap = 0.0  # the attempt was ended for a channel of another pace
        self.flight.not_before = min(started + gap, self.flight.deadline)
        for trigger in (Trigger.RETRY, Trigger.STAND_DOWN, Trigger.GIVE_UP):
            if self.flight.outcome is not None or self._settle(trigger, failure=failure):
                return

    def _land(self, trigger: Trigger, wire: Wire, identifier: str, located: Located | None) -> None:
        """Swap the validated channel in, unless something else was decided meanwhile."""
        landed = self._settle(trigger, wire=wire, identifier=identifier, located=located)
        if not landed and self.flight.outcome is None:
            # Only a guard can say no here: the flight is somebody else's by now.
            self.pool.finish(self.connection, self.life.withdraw(self.flight))
