"""Timers: what a manager does by itself, later: expiry, rotation, refresh, the end of a drain.

A job looks at its connection when it comes due and asks the table by a trigger; so a timer that
comes too early or too late does nothing.
"""

from __future__ import annotations

import weakref
from abc import abstractmethod
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING, Any

from ..audit.stream import complain
from ..errors import LifecycleError, brief
from ..table import State, Trigger

if TYPE_CHECKING:
    from ..policy import LifecyclePolicy
    from .agenda import Agenda
    from .connection import ManagedConnection
    from .facts import Seams, StepResult
    from .registry import Registry
    from .wire import Wire


class Timers:
    """The agenda's jobs. ``Engine`` gives them their step, a driver their time."""

    agenda: Agenda
    policy: LifecyclePolicy
    registry: Registry
    seams: Seams

    @abstractmethod
    def step(self, connection: ManagedConnection, trigger: Trigger, **facts: Any) -> bool:
        """Step the machine and do what the step leaves to do. True if a row was taken."""

    @abstractmethod
    def finish(self, connection: ManagedConnection, result: StepResult) -> None:
        """Wake, close and note what a step leaves to do."""

    @abstractmethod
    def aside(self, connection: ManagedConnection) -> None:
        """Have ``refresh`` run beside everything else. May raise if there can be no worker."""

    @abstractmethod
    def dispose(self, wire: Wire) -> None:
        """Close a channel that nothing uses any more. Twice does no harm."""

    def close_channel(self, wire: Wire) -> None:
        """Close a channel, and note that this was done."""
        self.dispose(wire)
        wire.gone = True

    @abstractmethod
    def wind(self) -> None:
        """The agenda has a new next job: whoever keeps time must look again."""

    def _plan(self, due: float, job: Callable[[], object]) -> None:
        if self.agenda.push(due, job):
            self.wind()

    def _look_at(
        self, connection: ManagedConnection, due: float, job: Callable[..., object], *args: Any
    ) -> None:
        # Weakly: a closed connection is not kept for as long as its next timer was away.
        self._plan(due, partial(_if_it_is_there, weakref.ref(connection), job, *args))

    def plan_expiry(self, connection: ManagedConnection) -> None:
        """Close the connection once it has lingered unused."""
        if connection.expiry_planned:
            return  # one entry a connection: it is moved on when it comes due too early
        due = connection.linger_due()
        if due is not None and connection.state is State.IDLE:
            connection.expiry_planned = True
            try:
                self._look_at(connection, due, self._expire)
            except BaseException:  # a signal handler's: twice is better than never
                connection.expiry_planned = False
                raise

    def _expire(self, connection: ManagedConnection) -> None:
        connection.expiry_planned = False
        if connection.state is State.IDLE and not self.step(connection, Trigger.EXPIRE):
            self.plan_expiry(connection)

    def _plan_recycle(self, connection: ManagedConnection, not_before: float = 0.0) -> None:
        """Look at the channel's age once it is due; one entry a generation."""
        policy, binding = self.policy, connection.binding
        if policy.max_age is None or binding is None:
            return
        generation = connection.generation
        if connection.recycle_planned == generation:
            return
        connection.recycle_planned = generation
        due = binding.wire.opened_at + policy.max_age * (
            1.0 - policy.backoff_jitter * connection.unit
        )
        # A moment later than due: the guard wants "older than", not "as old as".
        due = max(due + 0.001, not_before)
        self._look_at(connection, due, self._recycle, generation)

    def _recycle(self, connection: ManagedConnection, generation: int) -> None:
        if connection.recycle_planned == generation:
            connection.recycle_planned = 0
        if connection.generation != generation or connection.state is State.CLOSED:
            return
        if not self.step(connection, Trigger.RECYCLE):
            # Not held, suspect or in a flight just now.
            self._plan_recycle(connection, self._not_too_soon())

    def _not_too_soon(self) -> float:
        return self.seams.clock() + max(1.0, (self.policy.max_age or 0.0) / 10)

    def _plan_second_try(self, connection: ManagedConnection) -> None:
        """A move stood down: look again, but not at once, or a refusal would make us spin."""
        self._plan_recycle(connection, self._not_too_soon())
        again = self.seams.clock() + max(1.0, self.policy.backoff_ceiling)
        self._look_at(connection, again, self.step, Trigger.REROUTE)

    def _plan_refresh(self, connection: ManagedConnection) -> None:
        """Ask the locator anew every so often, with jitter; one entry a connection."""
        every = connection.strategy.refresh_every(connection)
        if every is None or connection.refresh_planned:
            return
        connection.refresh_planned = True
        jitter = self.policy.backoff_jitter * (2.0 * self.seams.chance() - 1.0)
        due = self.seams.clock() + every * (1.0 + jitter)
        self._look_at(connection, due, self._refresh)

    def _refresh(self, connection: ManagedConnection) -> None:
        if connection.state is State.CLOSED:
            return
        connection.refresh_planned = False
        if connection.leases and connection.flight is None:
            # No thread to be had, or a loop that is closing: the next one is planned anyway.
            with suppress(RuntimeError, LifecycleError):
                self.aside(connection)
        self._plan_refresh(connection)

    def reroute_all(self) -> None:
        """A target may have moved: let every connection compare."""
        for connection in self.registry.all():
            if connection.state in (State.IDLE, State.ACTIVE):
                self.step(connection, Trigger.REROUTE)
            else:
                self.finish(connection, connection.redirect())

    def _cut(self, connection: ManagedConnection, wire: Wire) -> None:
        """``drain_timeout`` is over: what still runs on the retired channel is cut."""
        if wire.sever(cut=True):
            self.close_channel(wire)
        connection.drained(wire)

    def run_due(self) -> float | None:
        """Run what is due. Returns when to come again (monotonic seconds), None for never."""
        for job in self.agenda.due(self.seams.clock()):
            attempt(job)
        return self.agenda.next_due()


def _if_it_is_there(
    ref: weakref.ref[ManagedConnection], job: Callable[..., object], *args: Any
) -> None:
    connection = ref()
    if connection is not None:
        job(connection, *args)


def attempt(job: Callable[[], object]) -> None:
    """Run a job of the engine's own. What a strategy raises there must not stop time."""
    try:
        job()
    except Exception as error:
        complain(f"a job of the timekeeper raised {brief(error)}")
