"""Retry: whether a failed call is to be tried again, and when. A procedure, as in ``checkout``."""

from __future__ import annotations

from dataclasses import replace

from ..errors import Failure, FailureSummary, classify, summarize
from ..table import State, Trigger
from .checkout import Checkout
from .face import DEADLINE_MARGIN, Face, Start, Status, stamp_of
from .facts import Facts
from .readiness import NEWS, LoadState, Reload
from .requests import AskLoadState, Pause, Procedure
from .wire import WireState

#: Gap (seconds) between two looks at how far a server is with loading a collection.
ASK_PAUSE = 0.25
_MENDABLE = (Failure.TRANSIENT, Failure.REPLICATE_VIOLATION)


class Retry:
    """What the retry decorator asks of a handler's permanent channel, about one failed call."""

    def __init__(self, face: Face) -> None:
        self.face = face
        self.pool = face.pool
        self.clock = face.pool.seams.clock
        #: has the call been counted among those that waited?
        self.waited = False

    def ask(self, error: Exception) -> Procedure[bool]:
        """The retry decorator asks whether to retry: waits until a retry makes sense."""
        start, now = stamp_of(error), self.clock()
        self.waited = start is not None and (start.waited or self.face.waited(start.began))
        failure = start.failure if start is not None else None
        if start is not None and failure is not None:
            # The budget is for waiting. A call may have run for longer than that when its server
            # goes away, or into a connection whose loss nobody noticed.
            start, told = replace(start, began=start.began + (now - start.at)), True
        else:
            # A status instead of an RPC error, or an error that somebody brought in by hand.
            kind, status = classify(error), self.face.take_status(error)
            if kind is Failure.NOT_READY:
                if status is None or not (yield from self._wait_loaded(status)):
                    return False
                self.face.expect_retry(status.start)
                return True
            if kind is Failure.NOT_UP or (kind is Failure.OTHER and status is not None):
                # The other kinds have their words. Errors of pymilvus 2.6 do not tell of the flag.
                return self._later(status)
            if kind not in _MENDABLE:
                return False  # nor is anything made of it: it is its caller's
            start, told = None if status is None else status.start, False
            failure = summarize(error)
        handled = yield from self._settle(start, failure, told)
        if handled and start is not None:
            self.face.expect_retry(start, waited=self.waited)
        return handled

    def _later(self, status: Status | None) -> bool:
        """The server asks to try again later: True if there is time for the decorator's pause.

        If not, its caller sees what the server said.
        """
        if status is None or not status.harmless:
            return False
        start, budget = status.start, Checkout(self.pool, self.clock(), None).budget
        end = start.began + min(budget, self.pool.policy.recovery_budget)
        if start.until is not None:
            end = min(end, start.until - DEADLINE_MARGIN)
        if self.clock() + self.face.pause(start) >= end:
            return False
        self.face.expect_retry(start)
        return True

    def _settle(self, start: Start | None, failure: FailureSummary, told: bool) -> Procedure[bool]:
        connection, generation, began, until = self.face.connection, None, self.clock(), None
        if start is not None:
            connection, began, until = start.connection, start.began, start.until
            generation = connection.lifecycle.generation_of(start.binding)
        life = connection.lifecycle
        facts = Facts(now=self.clock(), failure=failure)
        if failure.kind not in _MENDABLE or not life.strategy.may_recover(life, facts):
            return False
        if generation is not None and generation < life.generation:
            return True
        # An RPC reports its own failure when it fails (a status is not one), and while a flight is
        # under way there is nothing to add. A connection that is ACTIVE was validated since: a
        # channel that answers again keeps its generation.
        if not told or (life.flight is None and life.state is not State.ACTIVE):
            self.pool.step(connection, Trigger.FAIL, failure=failure, generation=generation)
        caller = Checkout(self.pool, began, until)
        caller.counted = self.waited
        yield from caller.ride_out(connection, tell=True)
        self.waited = caller.counted
        return True

    def _wait_loaded(self, status: Status) -> Procedure[bool]:
        """What was read before the outage is not loaded: wait while the server loads it again.

        True: the call is to be tried again. Ends in time for the caller's own deadline.
        """
        start, now = status.start, self.clock()
        budget = min(self.pool.policy.recovery_budget, Checkout(self.pool, now, None).budget)
        assert status.collection is not None, "noted because of its collection"
        reload = self.face.readiness.reload(start.binding, status.collection, now, budget)
        limit = min(reload.until, start.began + budget)
        if start.until is not None:
            limit = min(limit, start.until - DEADLINE_MARGIN)
        while reload.ended > now and _in_use(start):
            if limit - now < ASK_PAUSE:
                if reload.until - now < ASK_PAUSE:
                    self._end_wait(status, reload, "overdue")
                return False
            pause = reload.asked_at + ASK_PAUSE - now
            if reload.loading and pause > 0:  # another call has just asked
                yield Pause(pause)
            else:
                yield from self._ask_loaded(status, reload, limit - now)
            now = self.clock()
        if not _in_use(start):
            self._end_wait(status, reload, "interrupted")
            return True
        return reload.news == "loaded"

    def _ask_loaded(self, status: Status, reload: Reload, left: float) -> Procedure[None]:
        start, reload.asked_at = status.start, self.clock()
        timeout = min(left, self.pool.policy.probe_timeout)
        try:
            state = yield AskLoadState(start.connection, reload.collection, timeout)
        except Exception as error:
            if summarize(error).kind is Failure.DEADLINE or not _in_use(start):
                return  # no news
            state = LoadState.NOT_LOAD
        if state is not LoadState.LOADING:
            self._end_wait(status, reload, "loaded" if state is LoadState.LOADED else "not_loaded")
        elif reload.first("loading"):
            self._tell_wait(status, reload, "loading", 0.0)

    def _end_wait(self, status: Status, reload: Reload, news: str) -> None:
        if reload.first("end"):
            reload.news, reload.ended = news, self.clock()
            if not reload.first("loading"):  # else nobody has waited
                self._tell_wait(status, reload, news, reload.ended - reload.began)

    def _tell_wait(self, status: Status, reload: Reload, news: str, seconds: float) -> None:
        code = None if news == "loaded" else str(status.code)
        reason = NEWS[news].format(reload.collection)
        status.start.connection.lifecycle.report_wait(news, reason, code, seconds)


def _in_use(start: Start) -> bool:
    """Is the channel of this RPC still the one in use?"""
    return start.binding.wire.state is WireState.CURRENT
